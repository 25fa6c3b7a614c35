//! The machine stops, at any moment, and keeps any part of what was not synced.

use fencepost_server::disk::sim::{Moment, Operation, SimDisk, Survivors};

use crate::workload::{Progress, check, open, recover, run};

const GROUPS: u64 = 12;
const SEEDS: u64 = 3;

/// Stops a run at the nth operation of a kind; None when there are not that many.
fn crash(operation: Operation, nth: u64, moment: Moment, seed: u64) -> Option<(SimDisk, Progress)> {
    let disk = SimDisk::new();
    disk.crash_at(operation, nth, moment);
    let progress = run(&disk, seed, GROUPS);
    disk.crashed().then_some((disk, progress))
}

#[test]
fn what_was_acknowledged_survives_a_crash_at_every_operation() {
    let mut images = 0;
    for seed in 0..SEEDS {
        for operation in [Operation::Create, Operation::Write, Operation::Sync, Operation::Rename, Operation::SyncDir] {
            for moment in [Moment::Before, Moment::After] {
                for nth in 1.. {
                    let Some((disk, progress)) = crash(operation, nth, moment, seed) else { break };
                    let what = format!("seed {seed}, {moment:?} {operation:?} {nth}");
                    let survivors = [Survivors::Synced, Survivors::Everything].into_iter();
                    for survivors in survivors.chain((0..12).map(Survivors::Random)) {
                        let what = format!("{what}, {survivors:?}");
                        recover(&disk.crash_image(survivors), seed, progress, &what);
                        images += 1;
                    }
                    // Only the process died: the cache is still there, and what was not synced is still not durable.
                    recover(&disk.fork(), seed, progress, &format!("{what}, process only"));
                    images += 1;
                }
            }
        }
    }
    println!("{images} crash images recovered");
    assert!(images > 1000, "only {images} images");
}

#[test]
fn a_write_torn_at_any_byte_loses_nothing_acknowledged() {
    let (mut images, mut kept) = (0, 0);
    for nth in 1.. {
        let Some((disk, progress)) = crash(Operation::Write, nth, Moment::After, 1) else { break };
        let length = disk.last_write_bytes().unwrap();
        // Files of zeros look the same wherever they are torn.
        let step = if length >= 4096 { 97 } else { 1 };
        for bytes in (0..=length).step_by(step) {
            let image = disk.crash_image(Survivors::TornLastWrite { bytes });
            let found = recover(&image, 1, progress, &format!("write {nth} torn at byte {bytes} of {length}"));
            images += 1;
            kept += u64::from(found > progress.acknowledged);
        }
    }
    println!("{images} torn writes, {kept} of which kept entries that were not acknowledged");
    assert!(images > 3000 && kept > 100, "{images} images, {kept} kept more");
}

#[test]
fn unsynced_sectors_may_arrive_in_any_order() {
    let mut shortened = 0;
    for seed in 0..4 {
        for nth in 1.. {
            let Some((disk, progress)) = crash(Operation::Sync, nth, Moment::Before, seed) else { break };
            for survivors in 0..60 {
                let image = disk.crash_image(Survivors::Random(survivors));
                let found = recover(&image, seed, progress, &format!("seed {seed}, sync {nth}, survivors {survivors}"));
                shortened += u64::from(found < progress.submitted);
            }
        }
    }
    assert!(shortened > 500, "only {shortened} images lost anything");
}

#[test]
fn a_crash_during_recovery_is_recovered_from() {
    let mut images = 0;
    for nth in (1..).step_by(3) {
        let Some((disk, progress)) = crash(Operation::Sync, nth, Moment::Before, 2) else { break };
        for first in 0..6 {
            let image = disk.crash_image(Survivors::Random(first));
            for operation in [Operation::Write, Operation::Sync, Operation::Rename, Operation::Remove] {
                for again in 1.. {
                    let second = image.fork();
                    second.crash_at(operation, again, Moment::After);
                    let outcome = open(&second);
                    if outcome.is_ok() {
                        break;
                    }
                    for survivors in [Survivors::Synced, Survivors::Everything, Survivors::Random(first)] {
                        let what = format!("sync {nth}, survivors {first}, {operation:?} {again}, {survivors:?}");
                        recover(&second.crash_image(survivors), 2, progress, &what);
                        images += 1;
                    }
                }
            }
        }
    }
    assert!(images > 200, "only {images} images");
}

#[test]
fn entries_found_after_a_failed_sync_are_durable_once_the_log_is_open() {
    // The pages are in the cache and count as clean, though they are not on the disk.
    let disk = SimDisk::new();
    disk.fail(Operation::Sync, 8, fencepost_server::disk::sim::Lasting::Once, std::io::ErrorKind::Other);
    let progress = run(&disk, 0, GROUPS);
    assert!(progress.acknowledged < progress.submitted);
    let restarted = disk.fork();
    let log = open(&restarted).unwrap();
    let found = check(&log, 0);
    assert!(found > progress.acknowledged, "the cache shows entries whose sync failed");
    drop(log);
    let log = open(&restarted.crash_image(Survivors::Synced)).unwrap();
    assert_eq!(check(&log, 0), found);
}
