//! A log on a simulated disk, the entries that are put into it, and the comparison of what comes back.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use fencepost::{LogIndex, Lsn};
use fencepost_server::disk::sim::{Random, SimDisk};
use fencepost_server::log::{Entries, Entry, EntryBuilder, InlineLog, LogConfig, LogError, OpenError, ReadEntry};
use uuid::Uuid;

/// The identity of all logs here.
pub(crate) const ID: Uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);

/// Segments of four pages, so that a few entries fill one.
pub(crate) const CONFIG: LogConfig = LogConfig { segment_bytes: 4096, entry_bytes_max: 2500, write_bytes_max: 1 << 20 };

/// Where the log is.
pub(crate) fn dir() -> PathBuf {
    PathBuf::from("/data/log")
}

/// A segment's file.
pub(crate) fn segment(number: u64) -> PathBuf {
    dir().join(format!("{number:020}.seg"))
}

/// Opens the log on a disk.
pub(crate) fn open(disk: &SimDisk) -> Result<InlineLog, OpenError> {
    InlineLog::open(Arc::new(disk.clone()), Path::new(&dir()), CONFIG, ID)
}

/// The payloads of the entry at an index: always the same for the same index and seed, of all shapes, with long runs of
/// zeros among them.
pub(crate) fn payloads(seed: u64, index: u64) -> Vec<Vec<u8>> {
    let mut random = Random::new(seed ^ index.wrapping_mul(0x5851_f42d_4c95_7f2d));
    let facts = random.below(4);
    let payload = |_| {
        let bytes = [0, 1, 7, 40, 300, 560][random.below(6) as usize] + random.below(9) as usize;
        let zeros = random.below(3) == 0;
        (0..bytes).map(|_| if zeros { 0 } else { random.next_u64() as u8 }).collect()
    };
    (0..facts).map(payload).collect()
}

/// The entry at an index, with those payloads.
pub(crate) fn entry(seed: u64, index: u64) -> Entry {
    let mut builder = EntryBuilder::new(LogIndex(index));
    for payload in payloads(seed, index) {
        builder.push(&payload);
    }
    builder.finish(LogIndex(index - 1), 3)
}

/// Appends a group of entries after the last one.
pub(crate) fn append(log: &mut InlineLog, seed: u64, entries: u64) -> Result<LogIndex, LogError> {
    let first = log.last_index().0 + 1;
    log.append((first..first + entries).map(|index| entry(seed, index)).collect())
}

/// How far a run of the standard workload got.
#[derive(Clone, Copy, Debug, Default)]
pub(crate) struct Progress {
    pub(crate) acknowledged: u64,
    pub(crate) submitted: u64,
}

/// Opens a log and appends groups of one to three entries, some thousand bytes in all, until that is done or the disk
/// fails.
pub(crate) fn run(disk: &SimDisk, seed: u64, groups: u64) -> Progress {
    let mut progress = Progress::default();
    let Ok(mut log) = open(disk) else { return progress };
    progress.acknowledged = log.last_index().0;
    progress.submitted = progress.acknowledged;
    for group in 0..groups {
        let entries = 1 + (seed + group) % 3;
        if log.reserve(CONFIG.entry_bytes_max as usize).is_err() {
            continue;
        }
        progress.submitted += entries;
        match append(&mut log, seed, entries) {
            Ok(last) => progress.acknowledged = last.0,
            // Part of the group may have been made durable before the failure.
            Err(_) => return Progress { acknowledged: log.last_index().0, ..progress },
        }
    }
    progress
}

/// Checks that the log has exactly the entries from 1 to its last, byte for byte. Answers the last.
pub(crate) fn check(log: &InlineLog, seed: u64) -> u64 {
    let mut last = 0;
    for entry in log.entries(LogIndex(1)) {
        let entry = entry.unwrap();
        last += 1;
        assert_eq!((entry.index, entry.based_on, entry.term), (LogIndex(last), LogIndex(last - 1), 3));
        assert_eq!(dense(entry.facts), payloads(seed, last), "entry {last}");
    }
    assert_eq!(last, log.last_index().0);
    last
}

/// The payloads of an entry that nothing was taken from.
pub(crate) fn dense(facts: Vec<(u16, Bytes)>) -> Vec<Vec<u8>> {
    let payload = |(due, (ordinal, payload)): (u16, (u16, Bytes))| {
        assert_eq!(ordinal, due);
        payload.to_vec()
    };
    (0..).zip(facts).map(payload).collect()
}

/// Opens what a crash left, checks it against what was promised, and goes on with it. Answers the last entry found.
pub(crate) fn recover(image: &SimDisk, seed: u64, progress: Progress, what: &str) -> u64 {
    let log = open(image).unwrap_or_else(|error| panic!("{what}: {error}"));
    let found = check(&log, seed);
    assert!(found >= progress.acknowledged, "{what}: {} were acknowledged, {found} found", progress.acknowledged);
    assert!(found <= progress.submitted, "{what}: {} were submitted, {found} found", progress.submitted);
    drop(log);
    let mut log = open(image).unwrap_or_else(|error| panic!("{what}, opened again: {error}"));
    assert_eq!(check(&log, seed), found, "{what}: recovery is idempotent");
    append(&mut log, seed, 2).unwrap();
    drop(log);
    let log = open(&image.crash_image(fencepost_server::disk::sim::Survivors::Synced)).unwrap();
    assert_eq!(check(&log, seed), found + 2, "{what}: what is appended afterwards stays");
    found
}

/// All facts of a log, in order.
pub(crate) type Facts = Vec<(Lsn, Vec<u8>)>;

/// The pace of somebody who is in no hurry and never stops.
pub(crate) fn go_on(_: u64) -> ControlFlow<()> {
    ControlFlow::Continue(())
}

/// A log with four sealed segments.
pub(crate) fn log_of_five_segments() -> SimDisk {
    let disk = SimDisk::new();
    run(&disk, 4, 26);
    assert!(disk.bytes(&segment(5)).is_some(), "the workload fills four segments");
    disk
}

/// The facts of entries, of the standard workload.
pub(crate) fn facts_of(entries: Entries) -> Facts {
    let facts = |entry: ReadEntry| {
        assert_eq!((entry.based_on.0, entry.term), (entry.index.0 - 1, 3));
        let index = entry.index;
        entry.facts.into_iter().map(move |(ordinal, payload)| (Lsn::new(index, ordinal), payload.to_vec()))
    };
    entries.flat_map(|entry| facts(entry.unwrap())).collect()
}

/// All facts of a log.
pub(crate) fn facts(log: &InlineLog) -> Facts {
    facts_of(log.entries(LogIndex(1)))
}
