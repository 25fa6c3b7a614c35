//! Snapshots of an open log, and logs that are cut at a fact: what is in them is a beginning of what was there.

use std::io::ErrorKind;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use fencepost::{LogIndex, Lsn};
use fencepost_server::disk::sim::{Lasting, Moment, Operation, SimDisk, Survivors};
use fencepost_server::disk::{Disk, RealDisk};
use fencepost_server::log::{CopiedLog, CopyError, Fate, InlineLog, Tail, copy_through, verify};

use crate::workload::{CONFIG, Facts, ID, append, dir, facts, go_on, log_of_five_segments, open};

const SEED: u64 = 4;

fn copy_dir() -> PathBuf {
    PathBuf::from("/copy/log")
}

/// Opens a copy, twice, checks it, and goes on with it.
fn check_copy(disk: &SimDisk, dir: &Path, expected: &[(Lsn, Vec<u8>)], last: LogIndex, what: &str) {
    let open = || InlineLog::open(Arc::new(disk.clone()), dir, CONFIG, ID).unwrap();
    for stage in ["as copied", "after it was opened"] {
        let report = verify(disk, dir, &mut ()).unwrap();
        assert_eq!((&report.damage[..], report.tail), (&[][..], Tail::Clean), "{what}, {stage}");
        let log = open();
        assert_eq!(log.last_index(), last, "{what}, {stage}");
        assert!(facts(&log) == expected, "{what}, {stage}");
    }
    append(&mut open(), SEED, 2).unwrap();
    assert!(facts(&open())[..expected.len()] == *expected, "{what}, after more");
}

fn snapshot(log: &InlineLog) -> Result<CopiedLog, CopyError> {
    log.snapshot_into(&copy_dir(), &mut go_on)
}

#[test]
fn a_snapshot_is_a_log_with_a_life_of_its_own() {
    let disk = log_of_five_segments();
    let mut log = open(&disk).unwrap();
    log.compact(2..=3, Lsn::MAX, &mut |lsn, _| if lsn.ordinal() == 0 { Fate::Drop } else { Fate::Keep }, &mut go_on)
        .unwrap();
    let (before, last) = (facts(&log), log.last_index());
    let copied = snapshot(&log).unwrap();
    assert_eq!((copied.last_index, copied.files.len()), (last, 4));
    assert!(copied.files[..3].iter().all(|file| file.linked) && !copied.files[3].linked, "{copied:?}");
    for file in &copied.files {
        let bytes = disk.bytes(&copy_dir().join(&file.name)).unwrap();
        assert_eq!(bytes.len() as u64, file.bytes);
    }
    assert!(matches!(snapshot(&log), Err(CopyError::NotEmpty { .. })));
    // What happens to the one is nothing to the other.
    append(&mut log, SEED, 9).unwrap();
    log.compact(1..=4, Lsn::MAX, &mut |_, _| Fate::Drop, &mut go_on).unwrap();
    let later = facts(&log);
    check_copy(&disk, &copy_dir(), &before, last, "snapshot");
    let copy = InlineLog::open(Arc::new(disk.clone()), &copy_dir(), CONFIG, ID).unwrap();
    copy.compact(1..=3, Lsn::MAX, &mut |_, _| Fate::Drop, &mut go_on).unwrap();
    drop(log);
    assert!(facts(&open(&disk).unwrap()) == later);
}

#[test]
fn a_snapshot_of_a_log_whose_newest_segment_is_empty_opens() {
    let disk = SimDisk::new();
    let log = open(&disk).unwrap();
    assert_eq!(snapshot(&log).unwrap().last_index, LogIndex::ZERO);
    check_copy(&disk, &copy_dir(), &Facts::new(), LogIndex::ZERO, "a new log");

    let disk = log_of_five_segments();
    let log = open(&disk).unwrap();
    let (before, last) = (facts(&log), log.last_index());
    snapshot(&log).unwrap();
    // Opened, it has an empty segment behind the last one.
    let copy = InlineLog::open(Arc::new(disk.clone()), &copy_dir(), CONFIG, ID).unwrap();
    let second = Path::new("/second");
    assert_eq!(copy.snapshot_into(second, &mut go_on).unwrap().last_index, last);
    check_copy(&disk, second, &before, last, "a snapshot of a snapshot");
}

#[test]
fn where_files_cannot_be_linked_they_are_copied() {
    for kind in [ErrorKind::Unsupported, ErrorKind::CrossesDevices] {
        let disk = log_of_five_segments();
        let log = open(&disk).unwrap();
        disk.fail(Operation::Link, 1, Lasting::Forever, kind);
        let copied = snapshot(&log).unwrap();
        assert!(copied.files.iter().all(|file| !file.linked));
        check_copy(&disk, &copy_dir(), &facts(&log), log.last_index(), "copied");
    }
    let (from, to) = (tempfile::tempdir().unwrap(), tempfile::tempdir().unwrap());
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let mut log = InlineLog::open(Arc::clone(&disk), from.path(), CONFIG, ID).unwrap();
    for _ in 0..20 {
        append(&mut log, SEED, 1).unwrap();
    }
    log.snapshot_into(to.path(), &mut go_on).unwrap();
    let copy = InlineLog::open(disk, to.path(), CONFIG, ID).unwrap();
    assert!(facts(&copy) == facts(&log));
    let error = RealDisk.copy(&from.path().join("LOCK"), &to.path().join("LOCK")).unwrap_err();
    assert_eq!(error.kind(), ErrorKind::AlreadyExists, "a copy replaces nothing");
}

const OPERATIONS: [Operation; 6] =
    [Operation::Create, Operation::Write, Operation::Sync, Operation::Link, Operation::SyncDir, Operation::Read];

#[test]
fn a_snapshot_that_was_made_survives_a_crash_and_one_that_was_not_harms_nothing() {
    let disk = log_of_five_segments();
    let (before, last) = {
        let log = open(&disk.fork()).unwrap();
        (facts(&log), log.last_index())
    };
    let mut crashes = 0;
    for operation in OPERATIONS {
        for nth in 1.. {
            let image = disk.fork();
            let log = open(&image).unwrap();
            image.crash_at(operation, nth, Moment::Before);
            let outcome = snapshot(&log);
            let has_crashed = image.crashed();
            assert_eq!(outcome.is_err(), has_crashed);
            for survivors in [Survivors::Synced, Survivors::Everything, Survivors::Random(nth)] {
                let what = format!("{operation:?} {nth}, {survivors:?}");
                let left = image.crash_image(survivors);
                assert!(facts(&open(&left).unwrap()) == before, "{what}");
                if !has_crashed {
                    check_copy(&left, &copy_dir(), &before, last, &what);
                }
            }
            if !has_crashed {
                break;
            }
            crashes += 1;
        }
    }
    assert!(crashes >= 10, "only {crashes} crashes");
}

#[test]
fn a_snapshot_that_fails_or_is_stopped_says_so_and_the_log_goes_on() {
    let disk = log_of_five_segments();
    let mut faults = 0;
    for operation in OPERATIONS {
        for nth in 1.. {
            let image = disk.fork();
            let mut log = open(&image).unwrap();
            let before = facts(&log);
            let tried = image.count(operation);
            image.fail(operation, nth, Lasting::Once, ErrorKind::Other);
            let outcome = snapshot(&log);
            image.heal();
            if image.count(operation) - tried < nth {
                outcome.unwrap();
                break;
            }
            let error = outcome.unwrap_err();
            assert!(matches!(error, CopyError::File(_)), "{operation:?} {nth}: {error}");
            append(&mut log, SEED, 3).unwrap();
            assert!(facts(&log)[..before.len()] == before);
            faults += 1;
        }
    }
    assert!(faults >= 10, "only {faults} faults");
    let log = open(&disk).unwrap();
    let error = log.snapshot_into(&copy_dir(), &mut |_| ControlFlow::Break(())).unwrap_err();
    assert!(matches!(error, CopyError::Stopped), "{error}");
}

#[test]
fn a_log_can_be_cut_at_each_of_its_facts() {
    let disk = log_of_five_segments();
    let last = open(&disk.fork()).unwrap().last_index();
    let all = facts(&open(&disk.fork()).unwrap());
    let ends = (1..=last.0).map(|index| Lsn::new(LogIndex(index), u16::MAX));
    for through in all.iter().map(|(lsn, _)| *lsn).chain(ends) {
        let image = disk.fork();
        let copied = copy_through(&image, &dir(), &copy_dir(), through).unwrap();
        assert_eq!(copied.last_index, through.index());
        let expected = &all[..all.partition_point(|(lsn, _)| *lsn <= through)];
        check_copy(&image, &copy_dir(), expected, through.index(), &format!("through {through}"));
        assert!(facts(&open(&image).unwrap()) == all, "the log itself is as it was");
    }
    let beyond = Lsn::new(last.next(), 0);
    let error = copy_through(&disk, &dir(), &copy_dir(), beyond).unwrap_err();
    assert!(matches!(error, CopyError::TooLate { last: named, .. } if named == last), "{error}");
    let error = copy_through(&disk, &dir(), &copy_dir(), Lsn::ZERO).unwrap_err();
    assert!(matches!(error, CopyError::TooEarly { .. }), "{error}");
    assert!(disk.list(&copy_dir()).unwrap().is_empty());
}

#[test]
fn a_compacted_log_cannot_be_cut_before_the_state_that_judged_it() {
    let disk = log_of_five_segments();
    let log = open(&disk).unwrap();
    let judged_at = Lsn::new(log.sealed()[3].last_index, 0);
    let fate = &mut |lsn: Lsn, _: &Bytes| if lsn.index().0.is_multiple_of(2) { Fate::Drop } else { Fate::Keep };
    log.compact(2..=3, judged_at, fate, &mut go_on).unwrap();
    let (all, sealed, last) = (facts(&log), log.sealed(), log.last_index());
    drop(log);
    let mut cuts = 0;
    for index in 1..=last.0 {
        for ordinal in [0, u16::MAX] {
            let through = Lsn::new(LogIndex(index), ordinal);
            let image = disk.fork();
            let outcome = copy_through(&image, &dir(), &copy_dir(), through);
            // What lies before the compacted segments is whole.
            if through < judged_at && through.index() >= sealed[1].first_index {
                let error = outcome.unwrap_err();
                assert!(matches!(error, CopyError::TooEarly { oldest, .. } if oldest == judged_at), "{error}");
                continue;
            }
            outcome.unwrap();
            let expected = &all[..all.partition_point(|(lsn, _)| *lsn <= through)];
            check_copy(&image, &copy_dir(), expected, through.index(), &format!("through {through}"));
            cuts += 1;
        }
    }
    assert!(cuts > 20, "only {cuts} cuts");
    // A compacted segment may be the last of the copy.
    let log = open(&disk).unwrap();
    log.compact(2..=4, judged_at, &mut |_, _| Fate::Drop, &mut go_on).unwrap();
    let all = facts(&log);
    drop(log);
    copy_through(&disk, &dir(), &copy_dir(), judged_at).unwrap();
    let expected = &all[..all.partition_point(|(lsn, _)| *lsn <= judged_at)];
    check_copy(&disk, &copy_dir(), expected, judged_at.index(), "a compacted segment at the end");
}
