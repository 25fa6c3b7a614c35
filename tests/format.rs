//! The format of the log is kept: what versions 1 and 2 wrote is read for ever.
//!
//! `tests/fixtures/log-v1/` and `log-v2/` were written once and are never written again. A new format gets a directory of
//! its own. The generator is here for that day: `cargo test --test format -- --ignored`. The second log is the first one
//! with its segments 2 and 3 compacted into one.

#![allow(clippy::unwrap_used)] // A panic is how a test says no.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use fencepost::{LogIndex, Lsn};
use fencepost_server::clock::Clock;
use fencepost_server::disk::sim::SimDisk;
use fencepost_server::disk::{Disk, RealDisk};
use fencepost_server::log::{EntryBuilder, Fate, InlineLog, Log, LogConfig, OpenError, ReadError, Tail, verify};
use uuid::Uuid;

const ID: Uuid = Uuid::from_u128(0x6665_6e63_6570_6f73_7400_0000_0000_0001);
const CONFIG: LogConfig = LogConfig { segment_bytes: 4096, entry_bytes_max: 3000, write_bytes_max: 1 << 20 };
const ENTRIES: u64 = 40;
const JUDGED_AT: Lsn = Lsn::new(LogIndex(ENTRIES), 0);

fn fixture(version: u32) -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join(format!("tests/fixtures/log-v{version}"))
}

/// What is left of a fact that was in segment 2 or 3. Never to be changed.
fn fate(lsn: Lsn) -> Fate {
    match lsn.index().0 % 3 {
        0 => Fate::Drop,
        1 if lsn.ordinal() == 0 => Fate::Replace(Bytes::from_static(b"reduced")),
        _ => Fate::Keep,
    }
}

/// The facts of the entry at an index. Never to be changed.
fn facts(index: u64) -> Vec<Vec<u8>> {
    let length = |ordinal: u64| (index * 37 + ordinal * 101) % 400;
    let byte = |at: u64| if index.is_multiple_of(5) { 0 } else { (index * 31 + at * 7) as u8 };
    (0..index % 4).map(|ordinal| (0..length(ordinal)).map(byte).collect()).collect()
}

/// The fixture on a simulated disk, so that opening it changes nothing in the repository.
fn copy(version: u32) -> SimDisk {
    let disk = SimDisk::new();
    for name in RealDisk.list(&fixture(version)).unwrap() {
        let file = RealDisk.open(&fixture(version).join(&name)).unwrap();
        let mut bytes = vec![0; file.size_bytes().unwrap() as usize];
        file.read_at(&mut bytes, 0).unwrap();
        disk.put(&Path::new("/log").join(name), bytes);
    }
    disk
}

fn open(disk: &SimDisk) -> Result<Log, OpenError> {
    Log::open(Arc::new(disk.clone()), Path::new("/log"), CONFIG, Clock::manual(), Uuid::nil())
}

#[test]
fn a_log_of_version_1_opens_with_exactly_its_facts() {
    let log = open(&copy(1)).unwrap();
    assert_eq!((log.log_id(), log.is_fresh(), log.last_index()), (ID, false, LogIndex(ENTRIES)));
    let mut due = 1;
    for entry in log.entries(LogIndex::ZERO) {
        let entry = entry.unwrap();
        assert_eq!((entry.index.0, entry.based_on.0, entry.term), (due, due - 1, due / 10));
        let expected: Vec<_> = (0..).zip(facts(due).into_iter().map(Bytes::from)).collect();
        assert_eq!(entry.facts, expected, "entry {due}");
        for (ordinal, fact) in (0..).zip(facts(due)) {
            assert_eq!(log.read(Lsn::new(entry.index, ordinal)).unwrap(), fact);
        }
        due += 1;
    }
    assert_eq!(due, ENTRIES + 1);
}

#[test]
fn a_log_of_version_1_is_sound() {
    let report = verify(&RealDisk, &fixture(1), &mut ()).unwrap();
    let count: usize = (1..=ENTRIES).map(|index| facts(index).len()).sum();
    assert_eq!((report.log_id, report.tail.clone(), &report.damage[..]), (Some(ID), Tail::Clean, &[][..]));
    assert_eq!((report.segments.len(), report.facts()), (5, count as u64));
}

#[test]
fn a_log_of_version_2_opens_with_exactly_what_compaction_left() {
    let log = open(&copy(2)).unwrap();
    assert_eq!((log.log_id(), log.is_fresh(), log.last_index()), (ID, false, LogIndex(ENTRIES)));
    let sealed = log.sealed();
    let numbers: Vec<_> = sealed.iter().map(|info| info.numbers.clone()).collect();
    assert_eq!(numbers, [1..=1, 2..=3, 4..=4]);
    assert_eq!((sealed[1].judged_at, log.judged_at()), (JUDGED_AT, JUDGED_AT));
    let compacted = sealed[1].first_index..=sealed[1].last_index;
    let mut found = log.scan(Lsn::ZERO);
    for index in 1..=ENTRIES {
        for (ordinal, fact) in (0..).zip(facts(index)) {
            let lsn = Lsn::new(LogIndex(index), ordinal);
            let left = match fate(lsn) {
                _ if !compacted.contains(&lsn.index()) => fact,
                Fate::Keep => fact,
                Fate::Replace(reduced) => reduced.to_vec(),
                Fate::Drop => {
                    assert!(matches!(log.read(lsn), Err(ReadError::NotFound(_))), "{lsn}");
                    continue;
                }
            };
            assert_eq!(found.next().unwrap().unwrap(), (lsn, Bytes::from(left.clone())));
            assert_eq!(log.read(lsn).unwrap(), left);
        }
    }
    assert!(found.next().is_none());
}

#[test]
fn a_log_of_version_2_is_sound() {
    let report = verify(&RealDisk, &fixture(2), &mut ()).unwrap();
    assert_eq!((report.log_id, report.tail.clone(), &report.damage[..]), (Some(ID), Tail::Clean, &[][..]));
    let facts = open(&copy(2)).unwrap().scan(Lsn::ZERO).count() as u64;
    assert_eq!((report.segments.len(), report.facts(), report.replaced.len()), (4, facts, 0));
}

#[test]
fn version_2_still_writes_the_same_bytes() {
    let written = generate();
    for name in RealDisk.list(&fixture(2)).unwrap() {
        let path = Path::new("/log").join(name);
        assert!(written.bytes(&path) == copy(2).bytes(&path), "{}", path.display());
    }
}

#[test]
fn a_newer_version_is_refused_naming_both() {
    let disk = copy(2);
    let path = Path::new("/log/00000000000000000005.seg");
    let mut bytes = disk.bytes(path).unwrap();
    bytes[8..12].copy_from_slice(&9_u32.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..508]);
    bytes[508..512].copy_from_slice(&crc.to_le_bytes());
    disk.put(path, bytes);
    let error = open(&disk).unwrap_err();
    assert!(matches!(error, OpenError::NewerFormat { .. }));
    let text = error.to_string();
    assert!(text.contains("format 9") && text.contains("format 2") && text.contains("00005.seg"), "{text}");
}

/// Writes the log of the fixture.
fn generate() -> SimDisk {
    let disk = SimDisk::new();
    let mut log = InlineLog::open(Arc::new(disk.clone()), Path::new("/log"), CONFIG, ID).unwrap();
    for first in (1..=ENTRIES).step_by(2) {
        let entry = |index: u64| {
            let mut builder = EntryBuilder::new(LogIndex(index));
            for fact in facts(index) {
                builder.push(&fact);
            }
            builder.finish(LogIndex(index - 1), index / 10)
        };
        log.append(vec![entry(first), entry(first + 1)]).unwrap();
    }
    log.compact(2..=3, JUDGED_AT, &mut |lsn, _| fate(lsn), &mut |_| ControlFlow::Continue(())).unwrap();
    disk
}

#[test]
#[ignore = "writes the fixture, which exists"]
fn write_the_fixture() {
    let disk = generate();
    RealDisk.create_dir_all(&fixture(2)).unwrap();
    for name in disk.list(Path::new("/log")).unwrap() {
        let file = RealDisk.create(&fixture(2).join(&name)).unwrap();
        file.write_at(&disk.bytes(&Path::new("/log").join(&name)).unwrap(), 0).unwrap();
    }
}
