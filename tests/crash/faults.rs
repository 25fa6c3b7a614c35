//! Operations fail while the process lives on: each in turn, once and for good.

use std::io::ErrorKind;

use fencepost_server::disk::sim::{Lasting, Operation, SimDisk, Survivors};
use fencepost_server::log::LogError;

use crate::workload::{append, open, recover, run};

const GROUPS: u64 = 10;

#[test]
fn whichever_operation_fails_nothing_acknowledged_is_lost() {
    let (mut runs, mut images) = (0, 0);
    for operation in [
        Operation::Create,
        Operation::Write,
        Operation::Sync,
        Operation::Rename,
        Operation::SyncDir,
        Operation::Remove,
        Operation::Read,
    ] {
        for lasting in [Lasting::Once, Lasting::Forever] {
            for kind in [ErrorKind::Other, ErrorKind::StorageFull] {
                for nth in 1.. {
                    let disk = SimDisk::new();
                    disk.fail(operation, nth, lasting, kind);
                    let progress = run(&disk, 5, GROUPS);
                    if disk.count(operation) < nth {
                        break;
                    }
                    runs += 1;
                    disk.heal();
                    let survivors = [Survivors::Synced, Survivors::Everything].into_iter();
                    for survivors in survivors.chain((0..4).map(Survivors::Random)) {
                        let what = format!("{lasting:?} {kind:?} at {operation:?} {nth}, {survivors:?}");
                        recover(&disk.crash_image(survivors), 5, progress, &what);
                        images += 1;
                    }
                    recover(&disk.fork(), 5, progress, &format!("{lasting:?} {kind:?} at {operation:?} {nth}"));
                }
            }
        }
    }
    println!("{runs} runs with a fault, {images} images recovered");
    assert!(runs > 100, "only {runs} faults were met");
}

#[test]
fn a_log_that_failed_stays_failed() {
    for operation in [Operation::Write, Operation::Sync] {
        let disk = SimDisk::new();
        let mut log = open(&disk).unwrap();
        append(&mut log, 0, 1).unwrap();
        disk.fail(operation, 1, Lasting::Once, ErrorKind::Other);
        assert!(matches!(append(&mut log, 0, 1), Err(LogError::Failed(_))));
        let writes = disk.count(Operation::Write);
        assert!(matches!(append(&mut log, 0, 1), Err(LogError::Failed(_))));
        assert_eq!(disk.count(Operation::Write), writes, "nothing is written after a failure");
    }
}

#[test]
fn a_full_disk_stops_the_log_before_it_tears_anything() {
    for pages in 1..8 {
        let disk = SimDisk::new();
        disk.set_capacity(Some(pages * 4096 + 2000));
        let progress = run(&disk, 9, 40);
        assert_eq!(progress.acknowledged, progress.submitted, "an entry for which room was reserved is written");
        disk.set_capacity(None);
        let found = recover(&disk, 9, progress, &format!("{pages} pages"));
        assert_eq!(found, progress.acknowledged);
    }
}
