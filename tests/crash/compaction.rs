//! Compaction keeps what it is told to keep, whatever happens in the middle of it: afterwards the run is the old one or
//! the new one.

use std::io::ErrorKind;
use std::ops::{ControlFlow, RangeInclusive};

use bytes::Bytes;
use fencepost::{LogIndex, Lsn};
use fencepost_server::disk::Disk;
use fencepost_server::disk::sim::{Lasting, Moment, Operation, Random, SimDisk, Survivors};
use fencepost_server::log::{CompactError, Compacted, Fate, InlineLog, ReadError, Tail, verify};
use proptest::prelude::*;

use crate::workload::{Facts, append, dir, facts, facts_of, go_on, log_of_five_segments, open, run, segment};

const SEED: u64 = 4;

/// The fate of a fact: always the same for the same seed.
fn fate(seed: u64, lsn: Lsn) -> Fate {
    match Random::new(seed ^ lsn.as_u64()).below(5) {
        0 | 1 => Fate::Keep,
        2 => Fate::Replace(Bytes::from(format!("short {lsn}"))),
        _ => Fate::Drop,
    }
}

/// What must be left of the facts of entries in `indexes`.
fn expected(before: &Facts, seed: u64, indexes: RangeInclusive<u64>) -> Facts {
    let left = |(lsn, payload): &(Lsn, Vec<u8>)| {
        if !indexes.contains(&lsn.index().0) {
            return Some((*lsn, payload.clone()));
        }
        match fate(seed, *lsn) {
            Fate::Keep => Some((*lsn, payload.clone())),
            Fate::Replace(reduced) => Some((*lsn, reduced.to_vec())),
            Fate::Drop => None,
        }
    };
    before.iter().filter_map(left).collect()
}

/// The indexes in a run of sealed segments.
fn indexes(log: &InlineLog, run: &RangeInclusive<u64>) -> RangeInclusive<u64> {
    let sealed = log.sealed();
    let first = sealed.iter().find(|info| info.numbers.start() == run.start()).unwrap().first_index;
    let last = sealed.iter().find(|info| info.numbers.end() == run.end()).unwrap().last_index;
    first.0..=last.0
}

fn compact(log: &InlineLog, run: RangeInclusive<u64>, seed: u64) -> Result<Compacted, CompactError> {
    let judged_at = Lsn::new(log.last_index(), 0);
    log.compact(run, judged_at, &mut |lsn, _| fate(seed, lsn), &mut go_on)
}

/// The facts before, and those that are left if the compaction succeeds.
fn both(disk: &SimDisk, run: &RangeInclusive<u64>, seed: u64) -> (Facts, Facts) {
    let log = open(&disk.fork()).unwrap();
    let before = facts(&log);
    let after = expected(&before, seed, indexes(&log, run));
    assert_ne!(before, after);
    (before, after)
}

/// Opens what is left, twice, and goes on with it. Answers whether the run is the new one.
fn recover(image: &SimDisk, before: &Facts, after: &Facts, what: &str) -> bool {
    let report = verify(image, &dir(), &mut ()).unwrap_or_else(|error| panic!("{what}: {error}"));
    assert_eq!((&report.damage[..], report.tail), (&[][..], Tail::Clean), "{what}");
    let log = open(image).unwrap_or_else(|error| panic!("{what}: {error}"));
    let found = facts(&log);
    assert!(found == *before || found == *after, "{what}: a mixture");
    let last = log.last_index();
    drop(log);
    let names = image.list(&dir()).unwrap();
    assert!(!names.iter().any(|name| name.contains(".tmp")), "{what}: {names:?}");
    let mut log = open(image).unwrap_or_else(|error| panic!("{what}, opened again: {error}"));
    assert!(facts(&log) == found && log.last_index() == last, "{what}: recovery is idempotent");
    assert_eq!(log.sealed().len() + 1, names.len(), "{what}: nothing is left over in {names:?}");
    append(&mut log, SEED, 3).unwrap();
    drop(log);
    let log = open(&image.crash_image(Survivors::Synced)).unwrap();
    assert_eq!(facts(&log)[..found.len()], found, "{what}: what is appended afterwards changes nothing");
    found == *after
}

const OPERATIONS: [Operation; 6] =
    [Operation::Create, Operation::Write, Operation::Sync, Operation::Rename, Operation::Remove, Operation::SyncDir];

const RUNS: [RangeInclusive<u64>; 4] = [1..=1, 2..=3, 1..=3, 4..=4];

#[test]
fn a_crash_at_any_operation_leaves_the_old_run_or_the_new_one() {
    let (mut old, mut new) = (0, 0);
    let disk = log_of_five_segments();
    for (seed, numbers) in (0..).zip(RUNS) {
        let (before, after) = both(&disk, &numbers, seed);
        for operation in OPERATIONS {
            for moment in [Moment::Before, Moment::After] {
                for nth in 1.. {
                    let image = disk.fork();
                    let log = open(&image).unwrap();
                    image.crash_at(operation, nth, moment);
                    let outcome = compact(&log, numbers.clone(), seed);
                    if !image.crashed() {
                        outcome.unwrap();
                        break;
                    }
                    let survivors = [Survivors::Synced, Survivors::Everything].into_iter();
                    for survivors in survivors.chain((0..20).map(Survivors::Random)) {
                        let what = format!("{numbers:?}, {moment:?} {operation:?} {nth}, {survivors:?}");
                        let is_new = recover(&image.crash_image(survivors), &before, &after, &what);
                        *(if is_new { &mut new } else { &mut old }) += 1;
                    }
                    let what = format!("{numbers:?}, {moment:?} {operation:?} {nth}, process only");
                    recover(&image.fork(), &before, &after, &what);
                }
            }
        }
    }
    println!("{old} images with the old run, {new} with the new one");
    assert!(old > 200 && new > 200, "{old} old, {new} new");
}

#[test]
fn a_crash_while_what_is_left_over_is_removed_is_recovered_from() {
    let disk = log_of_five_segments();
    let numbers = 1..=3;
    let (before, after) = both(&disk, &numbers, 5);
    let log = open(&disk).unwrap();
    disk.crash_at(Operation::SyncDir, 1, Moment::After);
    compact(&log, numbers, 5).unwrap_err();
    let left_over = disk.crash_image(Survivors::Synced);
    let report = verify(&left_over, &dir(), &mut ()).unwrap();
    assert_eq!((report.replaced, report.damage.len()), (vec![segment(2), segment(3)], 0));
    let mut crashes = 0;
    for operation in [Operation::SyncDir, Operation::Remove, Operation::Write, Operation::Sync] {
        for moment in [Moment::Before, Moment::After] {
            for nth in 1.. {
                let image = left_over.fork();
                image.crash_at(operation, nth, moment);
                let opened = open(&image);
                if !image.crashed() {
                    opened.unwrap();
                    break;
                }
                for survivors in [Survivors::Synced, Survivors::Everything, Survivors::Random(nth)] {
                    let what = format!("{moment:?} {operation:?} {nth}, {survivors:?}");
                    assert!(recover(&image.crash_image(survivors), &before, &after, &what), "{what}");
                    crashes += 1;
                }
            }
        }
    }
    assert!(crashes > 20, "only {crashes} crashes");
}

#[test]
fn an_operation_that_fails_costs_nothing_but_the_compaction() {
    let (mut old, mut new) = (0, 0);
    let disk = log_of_five_segments();
    for operation in OPERATIONS.into_iter().chain([Operation::Read]) {
        for kind in [ErrorKind::Other, ErrorKind::StorageFull] {
            for lasting in [Lasting::Once, Lasting::Forever] {
                for nth in 1.. {
                    let (numbers, seed) = (1..=3, 7);
                    let (before, after) = both(&disk, &numbers, seed);
                    let image = disk.fork();
                    let mut log = open(&image).unwrap();
                    let mut reader = log.entries(LogIndex(1));
                    let first = reader.next().unwrap().unwrap();
                    let tried = image.count(operation);
                    image.fail(operation, nth, lasting, kind);
                    let outcome = compact(&log, numbers.clone(), seed);
                    let tried = image.count(operation) - tried;
                    image.heal();
                    let Err(error) = outcome else {
                        assert!(tried < nth, "{operation:?} {nth} failed and nobody said so");
                        break;
                    };
                    let what = format!("{operation:?} {nth} {kind:?} {lasting:?}: {error}");
                    let is_full = matches!(error, CompactError::NoSpace { .. });
                    assert_eq!(is_full, kind == ErrorKind::StorageFull, "{what}");
                    // The log goes on, and a reader that was in the middle too.
                    let found = facts(&log);
                    assert!(found == before || found == after, "{what}");
                    let rest = facts_of(reader);
                    assert!(first.index == LogIndex(1) && found.ends_with(&rest[rest.len() - 5..]), "{what}");
                    let again = compact(&log, numbers.clone(), seed);
                    assert!(again.is_ok() && facts(&log) == after, "{what}, again: {again:?}");
                    append(&mut log, SEED, 1).unwrap();
                    drop(log);
                    let all_after = facts(&open(&image.fork()).unwrap());
                    assert!(recover(&image.crash_image(Survivors::Synced), &all_after, &all_after, &what));
                    *(if found == after { &mut new } else { &mut old }) += 1;
                }
            }
        }
    }
    println!("{old} faults left the old run, {new} the new one");
    assert!(old > 20 && new > 3, "{old} old, {new} new");
}

#[test]
fn a_full_disk_or_an_order_to_stop_leaves_no_trace() {
    let disk = log_of_five_segments();
    let log = open(&disk).unwrap();
    let names = disk.list(&dir()).unwrap();
    let before = facts(&log);
    let used: u64 = log.sealed().iter().map(|info| info.file_bytes).sum::<u64>() + 4096;
    for room in [0, 100, 600, 2000] {
        disk.set_capacity(Some(used + room));
        let error = log.compact(1..=4, Lsn::MAX, &mut |_, _| Fate::Keep, &mut go_on).unwrap_err();
        assert!(matches!(error, CompactError::NoSpace { .. }), "{error}");
        assert!(facts(&log) == before && disk.list(&dir()).unwrap() == names);
    }
    disk.set_capacity(None);
    for nth in 1.. {
        let mut calls = 0;
        let pace = &mut |_| {
            calls += 1;
            if calls == nth { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
        };
        let Err(error) = log.compact(1..=2, Lsn::MAX, &mut |_, _| Fate::Drop, pace) else {
            assert!(nth > 2, "stopped at each segment");
            break;
        };
        assert!(matches!(error, CompactError::Stopped), "{error}");
        assert!(facts(&log) == before && disk.list(&dir()).unwrap() == names);
    }
}

#[test]
fn only_sealed_neighbours_are_compacted_and_only_by_a_state_that_covers_them() {
    let log = open(&log_of_five_segments()).unwrap();
    for run in [0..=1, 5..=5, 4..=5, 7..=9, RangeInclusive::new(2, 1)] {
        let error = compact(&log, run.clone(), 0).unwrap_err();
        assert!(matches!(&error, CompactError::NotSealed { wanted, sealed } if *wanted == run && sealed.len() == 4));
    }
    let last = log.sealed()[1].last_index;
    let mut keep = |_: Lsn, _: &Bytes| Fate::Keep;
    let early = Lsn::new(LogIndex(last.0 - 1), 9);
    let error = log.compact(1..=2, early, &mut keep, &mut go_on).unwrap_err();
    assert!(matches!(error, CompactError::TooEarly { .. }), "{error}");
    log.compact(1..=2, Lsn::new(last, 5), &mut keep, &mut go_on).unwrap();
    let error = log.compact(1..=2, Lsn::new(last, 4), &mut keep, &mut go_on).unwrap_err();
    assert!(matches!(error, CompactError::TooEarly { .. }), "judged later before: {error}");
    // Half of what was made one.
    let error = log.compact(2..=3, Lsn::MAX, &mut keep, &mut go_on).unwrap_err();
    assert!(matches!(error, CompactError::NotSealed { .. }), "{error}");
}

#[test]
fn readers_in_the_middle_neither_miss_nor_repeat() {
    let disk = log_of_five_segments();
    let (before, _) = both(&disk, &(1..=3), 1);
    for position in 0..facts(&open(&disk.fork()).unwrap()).len() as u64 {
        let image = disk.fork();
        let log = open(&image).unwrap();
        let mut reader = log.entries(LogIndex(1));
        let taken: Vec<_> = reader.by_ref().take(position as usize).map(Result::unwrap).collect();
        let after = expected(&before, 1, indexes(&log, &(1..=3)));
        compact(&log, 1..=3, 1).unwrap();
        let last = taken.last().map_or(0, |entry| entry.index.0);
        let rest: Facts = facts_of(reader);
        assert!(rest.is_sorted_by(|(a, _), (b, _)| a < b));
        assert!(rest.iter().all(|(lsn, _)| lsn.index().0 > last), "repeated after {last}");
        for fact in after.iter().filter(|(lsn, _)| lsn.index().0 > last) {
            let (lsn, payload) = fact;
            let read = rest.iter().find(|(found, _)| found == lsn).unwrap_or_else(|| panic!("{lsn} is missing"));
            let original = before.iter().find(|(found, _)| found == lsn).unwrap();
            assert!(read.1 == *payload || read.1 == original.1, "{lsn}");
        }
        assert!(rest.iter().all(|fact| before.contains(fact) || after.contains(fact)));
    }
}

#[test]
fn every_changed_byte_of_a_compacted_segment_is_found() {
    let disk = log_of_five_segments();
    let log = open(&disk).unwrap();
    compact(&log, 1..=3, 3).unwrap();
    let after = facts(&log);
    drop(log);
    let length = disk.bytes(&segment(1)).unwrap().len();
    let (mut refused, mut read) = (0, 0);
    for at in 0..length {
        {
            let image = disk.fork();
            let bad = disk.bytes(&segment(1)).unwrap()[at] ^ (1 << (at % 8));
            let what = format!("byte {at} became {bad:#04x}");
            let opened = open(&image).unwrap();
            image.damage(&segment(1), at, bad);
            let damage = opened.check_segment(1, &mut go_on).unwrap_err();
            assert!(damage.iter().all(|damage| damage.file == segment(1)), "{what}: {damage:?}");
            let error = opened.compact(1..=3, Lsn::MAX, &mut |_, _| Fate::Keep, &mut go_on).unwrap_err();
            assert!(matches!(error, CompactError::Corrupt(_)), "{what}: {error}");
            assert_eq!(image.bytes(&segment(1)).unwrap().len(), length, "{what}: the damaged segment stays");
            drop(opened);
            let report = verify(&image, &dir(), &mut ()).unwrap();
            assert!(!report.damage.is_empty(), "{what}");
            let Ok(log) = open(&image) else {
                refused += 1;
                continue;
            };
            let found: Result<Vec<_>, _> = log.entries(LogIndex(1)).collect();
            match found {
                Err(error) => {
                    assert!(matches!(error, ReadError::Corrupt(_)), "{what}: {error}");
                    read += 1;
                }
                Ok(_) => assert!(facts(&log) == after, "{what}: different without a word"),
            }
        }
    }
    println!("{refused} refused, {read} told by a read");
    assert!(refused > 100 && read > 300, "{refused} refused, {read} told by a read");
}

#[test]
fn all_damage_in_a_segment_is_listed_with_the_entries_that_are_lost() {
    let disk = log_of_five_segments();
    let log = open(&disk).unwrap();
    compact(&log, 1..=3, 3).unwrap();
    let bytes = disk.bytes(&segment(1)).unwrap();
    let entries: Vec<u64> = log.entries(LogIndex(1)).map(|entry| entry.unwrap().index.0).collect();
    assert_eq!(log.check_segment(1, &mut go_on), Ok(()));
    // The end mark of every other entry.
    let marks = bytes.windows(8).enumerate().filter(|(_, bytes)| bytes == b"\xfeend\xa5\x9c\xe3\xfe");
    let marks: Vec<usize> = marks.map(|(at, _)| at).collect();
    for at in marks.iter().step_by(2) {
        disk.damage(&segment(1), *at, 0);
    }
    let damage = log.check_segment(1, &mut go_on).unwrap_err();
    let lost: Vec<_> = damage.iter().map(|damage| damage.indexes.clone().unwrap()).collect();
    assert_eq!(lost.len(), marks.len().div_ceil(2));
    for (nth, lost) in lost.iter().enumerate() {
        assert!(lost.contains(&entries[2 * nth]), "{lost:?}");
        assert!(!lost.contains(&entries[2 * nth + 1]), "{lost:?}");
    }
    disk.make_unreadable(&segment(2), 0..1);
    assert_eq!(log.check_segment(2, &mut go_on), Ok(()), "what compaction replaced is not damaged");
    disk.make_unreadable(&segment(4), 1000..1001);
    let damage = log.check_segment(4, &mut go_on).unwrap_err();
    assert!(damage[0].what.contains("injected read error"), "{damage:?}");
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 40, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_is_left_is_what_was_chosen(
        seed in any::<u64>(),
        groups in 10..40_u64,
        rounds in prop::collection::vec((0..6_usize, 0..4_usize, any::<u64>()), 1..6),
    ) {
        let disk = SimDisk::new();
        run(&disk, seed, groups);
        let mut log = open(&disk).unwrap();
        let mut model = facts(&log);
        for (from, more, choice) in rounds {
            let sealed = log.sealed();
            prop_assume!(!sealed.is_empty());
            let from = from % sealed.len();
            let to = (from + more).min(sealed.len() - 1);
            let numbers = *sealed[from].numbers.start()..=*sealed[to].numbers.end();
            let left = expected(&model, choice, indexes(&log, &numbers));
            let done = compact(&log, numbers, choice).unwrap();
            prop_assert_eq!(model.len() as u64 - left.len() as u64, done.facts_before - done.facts_after);
            model = left;
            prop_assert!(facts(&log) == model);
            for (lsn, payload) in &model {
                prop_assert_eq!(&log.read(*lsn).unwrap(), payload);
                let next = Lsn::new(lsn.index(), lsn.ordinal() + 1);
                let is_absent = matches!(log.read(next), Err(ReadError::NotFound(absent)) if absent == next);
                prop_assert!(is_absent || model.iter().any(|(lsn, _)| *lsn == next));
            }
            // From any position on, the same.
            for from in 0..=log.last_index().0 {
                let rest: Vec<_> = facts_of(log.entries(LogIndex(from)));
                let first = model.partition_point(|(lsn, _)| lsn.index().0 < from);
                prop_assert!(rest[..] == model[first..]);
            }
            drop(log);
            log = open(&disk.crash_image(Survivors::Synced)).unwrap();
            prop_assert!(facts(&log) == model);
            drop(log);
            log = open(&disk).unwrap();
        }
        let report = verify(&disk, &dir(), &mut ()).unwrap();
        prop_assert_eq!((report.facts(), report.damage.len()), (model.len() as u64, 0));
    }
}
