//! The format of the log is kept: what version 1 wrote is read for ever.
//!
//! `tests/fixtures/log-v1/` was written once and is never written again. A new format gets a directory of its own. The
//! generator is here for that day: `cargo test --test format -- --ignored`.

#![allow(clippy::unwrap_used)] // A panic is how a test says no.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fencepost::{LogIndex, Lsn};
use fencepost_server::clock::Clock;
use fencepost_server::disk::sim::SimDisk;
use fencepost_server::disk::{Disk, RealDisk};
use fencepost_server::log::{EntryBuilder, InlineLog, Log, LogConfig, OpenError, Tail, verify};
use uuid::Uuid;

const ID: Uuid = Uuid::from_u128(0x6665_6e63_6570_6f73_7400_0000_0000_0001);
const CONFIG: LogConfig = LogConfig { segment_bytes: 4096, entry_bytes_max: 3000, write_bytes_max: 1 << 20 };
const ENTRIES: u64 = 40;

fn fixture() -> PathBuf {
    Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/fixtures/log-v1")
}

/// The facts of the entry at an index. Never to be changed.
fn facts(index: u64) -> Vec<Vec<u8>> {
    let length = |ordinal: u64| (index * 37 + ordinal * 101) % 400;
    let byte = |at: u64| if index.is_multiple_of(5) { 0 } else { (index * 31 + at * 7) as u8 };
    (0..index % 4).map(|ordinal| (0..length(ordinal)).map(byte).collect()).collect()
}

/// The fixture on a simulated disk, so that opening it changes nothing in the repository.
fn copy() -> SimDisk {
    let disk = SimDisk::new();
    for name in RealDisk.list(&fixture()).unwrap() {
        let file = RealDisk.open(&fixture().join(&name)).unwrap();
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
    let log = open(&copy()).unwrap();
    assert_eq!((log.log_id(), log.is_fresh(), log.last_index()), (ID, false, LogIndex(ENTRIES)));
    let mut due = 1;
    for entry in log.entries(LogIndex::ZERO) {
        let entry = entry.unwrap();
        assert_eq!((entry.index.0, entry.based_on.0, entry.term), (due, due - 1, due / 10));
        assert_eq!(entry.facts, facts(due), "entry {due}");
        for (ordinal, fact) in (0..).zip(facts(due)) {
            assert_eq!(log.read(Lsn::new(entry.index, ordinal)).unwrap(), fact);
        }
        due += 1;
    }
    assert_eq!(due, ENTRIES + 1);
}

#[test]
fn a_log_of_version_1_is_sound() {
    let report = verify(&RealDisk, &fixture(), &mut ()).unwrap();
    let count: usize = (1..=ENTRIES).map(|index| facts(index).len()).sum();
    assert_eq!((report.log_id, report.tail.clone(), &report.damage[..]), (Some(ID), Tail::Clean, &[][..]));
    assert_eq!((report.segments.len(), report.facts()), (5, count as u64));
}

#[test]
fn version_1_still_writes_the_same_bytes() {
    let written = generate();
    for name in RealDisk.list(&fixture()).unwrap() {
        let path = Path::new("/log").join(name);
        assert!(written.bytes(&path) == copy().bytes(&path), "{}", path.display());
    }
}

#[test]
fn a_newer_version_is_refused_naming_both() {
    let disk = copy();
    let path = Path::new("/log/00000000000000000005.seg");
    let mut bytes = disk.bytes(path).unwrap();
    bytes[8..12].copy_from_slice(&9_u32.to_le_bytes());
    let crc = crc32fast::hash(&bytes[..508]);
    bytes[508..512].copy_from_slice(&crc.to_le_bytes());
    disk.put(path, bytes);
    let error = open(&disk).unwrap_err();
    assert!(matches!(error, OpenError::NewerFormat { .. }));
    let text = error.to_string();
    assert!(text.contains("format 9") && text.contains("format 1") && text.contains("00005.seg"), "{text}");
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
    disk
}

#[test]
#[ignore = "writes the fixture, which exists"]
fn write_the_fixture() {
    let disk = generate();
    RealDisk.create_dir_all(&fixture()).unwrap();
    for name in disk.list(Path::new("/log")).unwrap() {
        let file = RealDisk.create(&fixture().join(&name)).unwrap();
        file.write_at(&disk.bytes(&Path::new("/log").join(&name)).unwrap(), 0).unwrap();
    }
}
