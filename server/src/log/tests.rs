//! Claims about the log, its threads included.

use std::io;
use std::ops::ControlFlow;
use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};
use std::thread;
use std::time::Duration;

use bytes::Bytes;
use fencepost::{LogIndex, Lsn};
use uuid::Uuid;

use super::frame::Identity;
use super::segment::{self, SegmentHeader, Table, Trailer};
use super::{
    Content, EntryBuilder, Fate, Inspector, Log, LogConfig, LogError, OpenError, ReadEntry, ReadError, Room,
    SegmentFileError, SegmentFileReader, SegmentFileWriter, SegmentLabel, verify,
};
use crate::clock::Clock;
use crate::disk::sim::{Lasting, Moment, Operation, SimDisk, Survivors};
use crate::disk::{DirLock, Disk, File, RealDisk};

const ID: Uuid = Uuid::from_u128(0xfe9c);

fn config() -> LogConfig {
    LogConfig { segment_bytes: 4096, entry_bytes_max: 2048, write_bytes_max: 1024 }
}

fn open(disk: &SimDisk) -> Result<Log, OpenError> {
    Log::open(Arc::new(disk.clone()), Path::new("/log"), config(), Clock::manual(), ID)
}

fn entry(index: u64, payloads: &[&[u8]]) -> super::Entry {
    let mut builder = EntryBuilder::new(LogIndex(index));
    for payload in payloads {
        builder.push(payload);
    }
    builder.finish(LogIndex(index - 1), 0)
}

/// Appends and waits for the answer.
fn append(log: &Log, index: u64, payloads: &[&[u8]]) -> Result<LogIndex, LogError> {
    let (tell, told) = mpsc::channel();
    log.append(entry(index, payloads), move |result| tell.send(result).unwrap());
    told.recv().unwrap()
}

fn facts(log: &Log, from: Lsn) -> Vec<(String, Vec<u8>)> {
    log.scan(from).map(|fact| fact.map(|(lsn, payload)| (lsn.to_string(), payload.to_vec())).unwrap()).collect()
}

#[test]
fn what_was_appended_is_read_and_found_again_after_closing() {
    let disk = SimDisk::new();
    let log = open(&disk).unwrap();
    assert!(log.is_fresh());
    append(&log, 1, &[b"one", b"two"]).unwrap();
    append(&log, 2, &[]).unwrap();
    append(&log, 3, &[b""]).unwrap();
    let expected = vec![
        ("1.0".to_owned(), b"one".to_vec()),
        ("1.1".to_owned(), b"two".to_vec()),
        ("3.0".to_owned(), b"".to_vec()),
    ];
    assert_eq!(facts(&log, Lsn::ZERO), expected);
    log.close();
    assert!(matches!(append(&log, 4, &[]), Err(LogError::Closed)));

    let log = open(&disk).unwrap();
    assert!(!log.is_fresh());
    assert_eq!((log.log_id(), log.last_index()), (ID, LogIndex(3)));
    assert_eq!(facts(&log, Lsn::ZERO), expected);
    assert_eq!(facts(&log, Lsn::new(LogIndex(1), 1)), expected[1..]);
    assert_eq!(log.read(Lsn::new(LogIndex(1), 1)).unwrap(), &b"two"[..]);
    for absent in [Lsn::new(LogIndex(1), 2), Lsn::new(LogIndex(2), 0), Lsn::new(LogIndex(4), 0), Lsn::ZERO] {
        assert!(matches!(log.read(absent), Err(ReadError::NotFound(lsn)) if lsn == absent), "{absent}");
    }
}

#[test]
fn a_scan_goes_on_across_segments_and_after_its_end() {
    let log = open(&SimDisk::new()).unwrap();
    let mut scan = log.scan(Lsn::ZERO);
    assert!(scan.next().is_none());
    for index in 1..=100 {
        let payload = [index as u8; 300];
        append(&log, index, &[&payload]).unwrap();
        let (lsn, read) = scan.next().unwrap().unwrap();
        assert_eq!((lsn.index().0, &read[..]), (index, &payload[..]));
        assert!(scan.next().is_none());
    }
    assert!(log.status().segments > 5, "{:?}", log.status());
    assert_eq!(log.scan(Lsn::ZERO).count(), 100);
    for index in 1..=100 {
        assert_eq!(log.read(Lsn::new(LogIndex(index), 0)).unwrap(), vec![index as u8; 300]);
    }
}

#[test]
fn a_log_works_on_the_disk_of_the_machine() {
    let dir = tempfile::tempdir().unwrap();
    let dir = dir.path().join("log");
    let open = || Log::open(Arc::new(RealDisk), &dir, config(), Clock::real(), ID);
    let log = open().unwrap();
    for index in 1..=50 {
        append(&log, index, &[&[7; 100]]).unwrap();
    }
    let second = open().unwrap_err();
    assert!(matches!(&second, OpenError::Locked { dir: named } if *named == dir), "{second}");
    drop(log);
    let log = open().unwrap();
    assert_eq!(log.scan(Lsn::ZERO).count(), 50);
    append(&log, 51, &[b"more"]).unwrap();
}

#[test]
fn the_first_failed_sync_is_the_last_write() {
    let disk = SimDisk::new();
    let log = open(&disk).unwrap();
    append(&log, 1, &[b"good"]).unwrap();
    append(&log, 2, &[&[1; 1900]]).unwrap();
    // This needs the next segment: when it returns the preparer has nothing to do, and the fault meets the writer.
    log.reserve(2000, Room::Ordinary).unwrap();
    disk.fail(Operation::Sync, 1, Lasting::Once, io::ErrorKind::Other);
    let error = append(&log, 3, &[b"bad"]).unwrap_err();
    assert!(matches!(&error, LogError::Failed(failure) if failure.action == "sync"), "{error}");
    assert!(matches!(append(&log, 4, &[b"later"]), Err(LogError::Failed(_))));
    assert!(matches!(log.reserve(100, Room::Ordinary), Err(LogError::Failed(_))));
    assert!(log.status().failure.is_some());
    assert_eq!(log.last_index(), LogIndex(2));
}

#[test]
fn a_full_disk_is_told_before_anything_is_written_and_forgotten_when_there_is_space() {
    let disk = SimDisk::new();
    let clock = Clock::manual();
    let log = Log::open(Arc::new(disk.clone()), Path::new("/log"), config(), clock.clone(), ID).unwrap();
    disk.set_capacity(Some(3 * 4096));
    let mut index = 0;
    let error = loop {
        match log.reserve(entry(1, &[&[1; 500]]).len_bytes(), Room::Ordinary) {
            Ok(()) => {
                index += 1;
                append(&log, index, &[&[1; 500]]).unwrap();
            }
            Err(error) => break error,
        }
    };
    assert!(matches!(error, LogError::NoSpace { .. }), "{error}");
    assert!(index >= 15, "three segments hold more than {index} entries");
    disk.set_capacity(None);
    assert!(matches!(log.reserve(604, Room::Ordinary), Err(LogError::NoSpace { .. })), "it rests for a second");
    clock.advance(Duration::from_secs(1));
    log.reserve(604, Room::Ordinary).unwrap();
    append(&log, index + 1, &[&[1; 500]]).unwrap();
    assert_eq!(log.scan(Lsn::ZERO).count() as u64, index + 1);
}

#[test]
fn the_last_room_is_for_what_is_essential() {
    let disk = SimDisk::new();
    let log = open(&disk).unwrap();
    disk.set_capacity(Some(3 * 4096));
    let small = entry(1, &[b"release"]).len_bytes();
    let mut index = 0;
    let mut append_while = |room| {
        let before = index;
        let error = loop {
            match log.reserve(small, room) {
                Ok(()) => index += 1,
                Err(error) => break error,
            }
            append(&log, index, &[b"release"]).unwrap();
        };
        assert!(matches!(error, LogError::NoSpace { .. }), "{error}");
        index - before
    };
    assert!(append_while(Room::Ordinary) > 50, "all but the last room of three segments");
    let reserved = append_while(Room::Essential) as usize;
    assert!(reserved * (small + 8) <= 256 + small, "{reserved} entries of {small} bytes are more than a sixteenth");
    assert!(
        (reserved + 1) * (small + 8) > 256 - small,
        "{reserved} entries of {small} bytes are less than a sixteenth"
    );
    assert_eq!(append_while(Room::Ordinary), 0);
    // What was refused leaves the log whole, and it goes on when there is space.
    drop(log);
    disk.set_capacity(None);
    let log = open(&disk).unwrap();
    assert_eq!(log.last_index(), LogIndex(index));
    log.reserve(small, Room::Ordinary).unwrap();
}

#[test]
fn an_entry_over_the_limit_is_refused_and_leaves_its_index_free() {
    let log = open(&SimDisk::new()).unwrap();
    assert!(matches!(append(&log, 1, &[&[0; 2048]]), Err(LogError::TooLarge { bytes_max: 2048, .. })));
    assert!(matches!(log.reserve(2049, Room::Ordinary), Err(LogError::TooLarge { .. })));
    append(&log, 1, &[b"small"]).unwrap();
}

#[test]
fn answers_come_in_the_order_of_the_entries() {
    let log = open(&SimDisk::new()).unwrap();
    let (tell, told) = mpsc::channel();
    let durable = log.durable();
    for index in 1..=500 {
        let (tell, durable) = (tell.clone(), durable.clone());
        let done = move |result: Result<LogIndex, LogError>| {
            let index = result.unwrap();
            assert!(*durable.borrow() >= index);
            tell.send(index).unwrap();
        };
        log.append(entry(index, &[&[index as u8; 50]]), done);
    }
    let answers: Vec<u64> = told.iter().take(500).map(|index| index.0).collect();
    assert_eq!(answers, (1..=500).collect::<Vec<_>>());
}

#[test]
fn a_log_that_ends_answers_everybody() {
    let log = open(&SimDisk::new()).unwrap();
    let (tell, told) = mpsc::channel();
    for index in 1..=10 {
        let tell = tell.clone();
        let done = move |result: Result<LogIndex, LogError>| {
            tell.send(result.is_ok()).unwrap();
            assert!(index != 3, "a caller's mistake ends the writer's thread");
        };
        log.append(entry(index, &[b"fact"]), done);
    }
    drop(tell);
    assert_eq!(told.iter().count(), 10);
    assert!(matches!(append(&log, 11, &[]), Err(LogError::Failed(_))));
    assert!(log.status().failure.is_some());
}

#[test]
fn readers_and_verification_keep_up_with_a_writer_that_rotates() {
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(Arc::new(RealDisk), dir.path(), config(), Clock::real(), ID).unwrap();
    let entries: u64 = 600;
    thread::scope(|scope| {
        scope.spawn(|| {
            for index in 1..=entries {
                log.reserve(entry(index, &[&[index as u8; 200]]).len_bytes(), Room::Ordinary).unwrap();
                append(&log, index, &[&[index as u8; 200]]).unwrap();
            }
        });
        scope.spawn(|| {
            let mut scan = log.scan(Lsn::ZERO);
            let mut due = 1;
            while due <= entries {
                let Some(fact) = scan.next() else {
                    thread::yield_now();
                    continue;
                };
                let (lsn, payload) = fact.unwrap();
                assert_eq!((lsn, &payload[..]), (Lsn::new(LogIndex(due), 0), &[due as u8; 200][..]));
                assert_eq!(log.read(lsn).unwrap(), payload);
                due += 1;
            }
        });
        scope.spawn(|| {
            while log.last_index().0 < entries {
                let report = verify(&RealDisk, dir.path(), &mut ()).unwrap();
                assert!(report.damage.is_empty(), "{:?}", report.damage);
            }
        });
    });
}

#[test]
fn verification_shows_each_fact_and_reports_what_its_reader_objects_to() {
    struct NoTwos(usize);
    impl Inspector for NoTwos {
        fn fact(&mut self, _lsn: Lsn, payload: &[u8]) -> Result<(), String> {
            self.0 += 1;
            if payload == b"two" { Err("it is a two".into()) } else { Ok(()) }
        }
    }
    let disk = SimDisk::new();
    let log = open(&disk).unwrap();
    append(&log, 1, &[b"one", b"two"]).unwrap();
    append(&log, 2, &[b"three"]).unwrap();
    let mut inspector = NoTwos(0);
    let report = verify(&disk, Path::new("/log"), &mut inspector).unwrap();
    assert_eq!((inspector.0, report.facts(), report.damage.len()), (3, 3, 1));
    assert_eq!(report.damage[0].indexes, Some(1..=1));
    assert!(report.damage[0].what.contains("1.1") && report.damage[0].what.contains("it is a two"));
}

#[test]
fn an_empty_segment_that_is_too_short_for_the_next_entry_is_passed_over() {
    for crashes in [false, true] {
        let disk = SimDisk::new();
        drop(open(&disk).unwrap());
        let longer = LogConfig { segment_bytes: 16 << 10, entry_bytes_max: 8 << 10, ..config() };
        let open = |disk: &SimDisk| {
            Log::open(Arc::new(disk.clone()), Path::new("/log"), longer, Clock::manual(), ID)
                .unwrap_or_else(|error| panic!("crashes: {crashes}: {error}"))
        };
        let log = open(&disk);
        let planned = if crashes { 1 } else { u64::MAX / 2 };
        disk.crash_at(Operation::Rename, planned, Moment::Before);
        assert_eq!(append(&log, 1, &[&[7; 6000]]).is_err(), crashes);
        drop(log);
        let log = open(&disk.crash_image(Survivors::Synced));
        let expected = if crashes { vec![] } else { vec![("1.0".to_owned(), vec![7; 6000])] };
        assert_eq!(facts(&log, Lsn::ZERO), expected);
    }
}

/// The header of a segment, and its entries, the first of which is `first`.
fn written(number: u64, first: u64, judged_at: Lsn, payloads: &[&[u8]]) -> (SegmentHeader, Table, Vec<u8>) {
    let identity = Identity { log_id: ID, segment: number, group: 0 };
    let header = SegmentHeader { judged_at, ..SegmentHeader::fresh(identity, LogIndex(first), 4096) };
    let (mut table, mut bytes) = (Table::new(header.first_index), header.encode().to_vec());
    for (index, payload) in (first..).zip(payloads) {
        table.push(LogIndex(index), bytes.len() as u64);
        let mut entry = entry(index, &[*payload]);
        bytes.extend_from_slice(entry.place(identity.seed(), bytes.len() as u64, LogIndex(first - 1)));
    }
    (header, table, bytes)
}

/// A segment that ends with a good table and this trailer; a compacted one if it was judged.
fn sealed(judged_at: Lsn, change: impl FnOnce(&mut Trailer)) -> Vec<u8> {
    let (header, table, mut bytes) = written(1, 1, judged_at, &[b"one", b"two"]);
    let entries_end = bytes.len() as u64;
    let seed = header.identity.seed();
    let mut trailer = segment::trailer(header.file_bytes, &table, entries_end, LogIndex(2), 2);
    bytes.resize(trailer.table_offset as usize, 0);
    change(&mut trailer);
    bytes.extend_from_slice(&segment::encode_seal(seed, &table, &trailer));
    bytes
}

fn put(disk: &SimDisk, number: u64, bytes: Vec<u8>) {
    disk.put(&segment::path(Path::new("/log"), number), bytes);
}

/// A segment without entries.
fn empty(number: u64, first: u64) -> Vec<u8> {
    let (header, _, mut bytes) = written(number, first, Lsn::ZERO, &[]);
    bytes.resize(header.file_bytes as usize, 0);
    bytes
}

/// How far a compaction was judged, or that there was none.
const JUDGED: [Lsn; 2] = [Lsn::ZERO, Lsn::from_u64(9 << 16)];

#[test]
fn a_trailer_with_a_right_crc_and_impossible_numbers_is_refused() {
    let changes: [fn(&mut Trailer); 4] = [
        |trailer| trailer.entries = u64::MAX,
        |trailer| trailer.entries_end = u64::MAX / 2,
        |trailer| trailer.last_index = LogIndex(u64::MAX),
        |trailer| trailer.table_offset -= 8,
    ];
    for (change, judged_at) in changes.into_iter().flat_map(|change| JUDGED.map(|judged_at| (change, judged_at))) {
        let disk = SimDisk::new();
        put(&disk, 1, sealed(judged_at, change));
        let path = segment::path(Path::new("/log"), 1);
        let read = SegmentFileReader::open(&disk, &path, Content::Log, None);
        assert!(matches!(read, Err(SegmentFileError::Corrupt(_))), "{judged_at}");
        put(&disk, 2, empty(2, 3));
        let Err(OpenError::Corrupt(damage)) = open(&disk) else { panic!("it must be refused") };
        assert!(damage.what.contains("trailer"), "{damage}");
        let report = verify(&disk, Path::new("/log"), &mut ()).unwrap();
        assert_eq!(report.damage.first(), Some(&damage));
    }
}

#[test]
fn verify_compares_the_trailer_with_what_is_there() {
    type Change = fn(&mut Trailer);
    let report = |judged_at, change: Change| {
        let disk = SimDisk::new();
        put(&disk, 1, sealed(judged_at, change));
        let mut trailer = Trailer { table_offset: 0, entries_end: 0, last_index: LogIndex(2), entries: 0, facts: 0 };
        change(&mut trailer);
        put(&disk, 2, empty(2, trailer.last_index.0 + 1));
        let damage = verify(&disk, Path::new("/log"), &mut ()).unwrap().damage;
        let path = segment::path(Path::new("/log"), 1);
        let read = SegmentFileReader::open(&disk, &path, Content::Log, None).unwrap();
        assert_eq!(read.collect::<Result<Vec<_>, _>>().is_ok(), damage.is_empty(), "{damage:?}");
        damage
    };
    let [whole, compacted] = JUDGED;
    let (same, more, later): (Change, Change, Change) =
        (|_| (), |trailer| trailer.facts = 3, |trailer| trailer.last_index = LogIndex(7));
    // In a compacted segment the last entry may be gone.
    for (judged_at, change) in [(whole, same), (compacted, same), (compacted, later)] {
        assert_eq!(report(judged_at, change), []);
    }
    for (judged_at, change) in [(whole, more), (whole, later), (compacted, more)] {
        let damage = report(judged_at, change);
        assert_eq!(damage.last().map(|damage| damage.offset), Some(4096 - 64), "{judged_at}: {damage:?}");
    }
}

#[test]
fn a_newest_segment_without_room_for_its_seal_is_refused() {
    // The header of the segment, that of the fact, and the commit.
    let (header, _, full) = written(1, 1, Lsn::ZERO, &[&[1; 4096 - 512 - 32 - 72]]);
    assert_eq!(full.len() as u64, header.file_bytes);
    let disk = SimDisk::new();
    put(&disk, 1, full);
    let Err(OpenError::Corrupt(damage)) = open(&disk) else { panic!("it must be refused") };
    assert!(damage.what.contains("no room"), "{damage}");
    assert_eq!(verify(&disk, Path::new("/log"), &mut ()).unwrap().damage, [damage]);
}

/// Appends an entry with the facts "keep" and "drop", both of which name the entry.
fn append_pair(log: &Log, index: u64) {
    let (keep, drop) = (format!("keep {index}"), format!("drop {index}"));
    append(log, index, &[keep.as_bytes(), drop.as_bytes()]).unwrap();
}

/// Drops what says so; answers whether there was anything to compact.
fn compact_all(log: &Log) -> bool {
    let sealed = log.sealed();
    let (Some(first), Some(last)) = (sealed.first(), sealed.last()) else { return false };
    let judge = &mut |_: Lsn, payload: &Bytes| if payload.starts_with(b"drop") { Fate::Drop } else { Fate::Keep };
    let (run, judged_at) = (*first.numbers.start()..=*last.numbers.end(), Lsn::new(last.last_index, 1));
    let done = log.compact(run, judged_at, judge, &mut |_| ControlFlow::Continue(())).unwrap();
    assert!(done.facts_after <= done.facts_before && done.bytes_after <= done.bytes_before);
    true
}

#[test]
fn readers_scrubbing_and_verification_keep_up_with_a_log_that_is_compacted() {
    struct Rising(Lsn);
    impl Inspector for Rising {
        fn fact(&mut self, lsn: Lsn, _payload: &[u8]) -> Result<(), String> {
            if lsn > std::mem::replace(&mut self.0, lsn) { Ok(()) } else { Err("it was shown before".into()) }
        }
    }
    let dir = tempfile::tempdir().unwrap();
    let log = Log::open(Arc::new(RealDisk), dir.path(), config(), Clock::real(), ID).unwrap();
    let entries: u64 = 1500;
    let is_going_on = || log.last_index().0 < entries;
    thread::scope(|scope| {
        scope.spawn(|| (1..=entries).for_each(|index| append_pair(&log, index)));
        scope.spawn(|| {
            while is_going_on() {
                compact_all(&log);
            }
        });
        for _ in 0..2 {
            scope.spawn(|| {
                let mut scan = log.scan(Lsn::ZERO);
                let mut due = 1;
                while due <= entries {
                    let Some(fact) = scan.next() else {
                        thread::yield_now();
                        continue;
                    };
                    let (lsn, payload) = fact.unwrap();
                    if payload.starts_with(b"keep") {
                        assert_eq!((lsn, &payload[..]), (Lsn::new(LogIndex(due), 0), format!("keep {due}").as_bytes()));
                        due += 1;
                    }
                    let back = Lsn::new(LogIndex(1 + lsn.index().0 / 2), 0);
                    assert_eq!(log.read(back).unwrap(), format!("keep {}", back.index()).as_bytes());
                }
            });
        }
        scope.spawn(|| {
            while is_going_on() {
                for info in log.sealed() {
                    log.check_segment(*info.numbers.start(), &mut |_| ControlFlow::Continue(())).unwrap();
                }
            }
        });
        scope.spawn(|| {
            while is_going_on() {
                let report = verify(&RealDisk, dir.path(), &mut Rising(Lsn::ZERO)).unwrap();
                assert!(report.damage.is_empty(), "{:?}", report.damage);
            }
        });
    });
    compact_all(&log);
    let sealed = log.sealed_through();
    let kept = log.scan(Lsn::ZERO).map(Result::unwrap).filter(|(lsn, _)| lsn.index() <= sealed);
    assert_eq!(kept.count() as u64, sealed.0, "one fact of each entry is left");
    assert_eq!(log.status().segments, 2);
}

#[test]
fn what_is_sealed_and_judged_is_to_be_seen() {
    let log = open(&SimDisk::new()).unwrap();
    let mut seals = log.seals();
    assert_eq!((log.sealed(), log.sealed_through(), log.judged_at()), (Vec::new(), LogIndex::ZERO, Lsn::ZERO));
    let mut index = 0;
    while log.sealed().len() < 3 {
        index += 1;
        append_pair(&log, index);
    }
    assert!(seals.has_changed().unwrap());
    let sealed = log.sealed();
    assert_eq!(*seals.borrow_and_update(), sealed[2].last_index);
    assert_eq!(log.sealed_through(), sealed[2].last_index);
    for pair in sealed.windows(2) {
        assert_eq!(pair[0].last_index.next(), pair[1].first_index);
        assert_eq!(pair[0].numbers.end() + 1, *pair[1].numbers.start());
    }
    let judged_at = Lsn::new(sealed[1].last_index, 1);
    let go_on = &mut |_| ControlFlow::Continue(());
    let done = log.compact(1..=2, judged_at, &mut |_, _| Fate::Drop, go_on).unwrap();
    assert_eq!(done.facts_before, sealed[0].facts + sealed[1].facts);
    assert_eq!((done.bytes_before, done.facts_after), (2 * 4096, 0));
    let after = log.sealed();
    assert_eq!((after[0].numbers.clone(), after[0].judged_at, after[0].facts), (1..=2, judged_at, 0));
    assert_eq!((after[0].first_index, after[0].last_index), (LogIndex(1), sealed[1].last_index));
    assert_eq!(after[1], sealed[2]);
    assert_eq!(log.judged_at(), judged_at);
    // A run without entries is no end of the log.
    let first = log.entries(LogIndex::ZERO).next().unwrap().unwrap();
    assert_eq!(first.index, sealed[2].first_index);
}

#[test]
fn a_segment_file_holds_chosen_facts_of_any_kind() {
    let disk = SimDisk::new();
    let path = Path::new("/elsewhere/facts.seg");
    let label = SegmentLabel {
        content: Content::Export,
        log_id: ID,
        numbers: 1..=1,
        first_index: LogIndex(1),
        judged_at: Lsn::new(LogIndex(90), 0),
    };
    let large = vec![0; (1 << 20) + 1];
    let mut writer = SegmentFileWriter::create(&disk, path, &label).unwrap();
    let written = writer.push(LogIndex(3), LogIndex(2), 7, &[(1, b"one"), (4, &large)]).unwrap();
    assert_eq!(writer.len_bytes(), 512 + written);
    writer.push(LogIndex(80), LogIndex(79), 7, &[(0, b"")]).unwrap();
    let open = |content, id| SegmentFileReader::open(&disk, path, content, id);
    assert!(matches!(open(Content::Export, None), Err(SegmentFileError::Corrupt(_))), "it is not finished");
    let summary = writer.finish(LogIndex(90)).unwrap();
    assert_eq!((summary.entries, summary.facts), (2, 3));

    let reader = open(Content::Export, Some(ID)).unwrap();
    assert_eq!((reader.label(), reader.last_index(), reader.summary()), (label, LogIndex(90), summary));
    let entries: Vec<ReadEntry> = reader.map(Result::unwrap).collect();
    assert_eq!((entries[0].index, entries[0].based_on, entries[0].term), (LogIndex(3), LogIndex(2), 7));
    assert_eq!(entries[0].facts, [(1, Bytes::from_static(b"one")), (4, large.into())]);
    assert_eq!((entries[1].index, entries.len()), (LogIndex(80), 2));

    let error = open(Content::HotState, None).unwrap_err().to_string();
    assert!(error.contains("holds an export, and a hot state is wanted"), "{error}");
    let error = open(Content::Export, Some(Uuid::nil())).unwrap_err();
    assert!(matches!(error, SegmentFileError::Another { .. }), "{error}");
    let bytes = disk.bytes(path).unwrap();
    for at in (0..bytes.len()).filter(|at| *at < 80 || *at % 40_009 == 0 || *at + 250 > bytes.len()) {
        let byte = disk.damage(path, at, bytes[at] ^ 4);
        let read = open(Content::Export, None).and_then(Iterator::collect::<Result<Vec<_>, _>>);
        assert!(matches!(read, Err(SegmentFileError::Corrupt(_))), "byte {at}");
        disk.damage(path, at, byte);
    }
}

/// What is to happen, once.
type Plan = Arc<Mutex<Option<Box<dyn FnOnce() + Send>>>>;

/// A disk on which something else happens in the middle of an operation.
#[derive(Clone, Default)]
struct Interrupted {
    disk: SimDisk,
    before_open: Plan,
    after_rename: Plan,
}

impl std::fmt::Debug for Interrupted {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str("Interrupted")
    }
}

fn happen(plan: &Plan) {
    let planned = plan.lock().unwrap().take();
    if let Some(planned) = planned {
        planned();
    }
}

impl Disk for Interrupted {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        self.disk.create_dir_all(dir)
    }
    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.list(dir)
    }
    fn directories(&self, dir: &Path) -> io::Result<Vec<String>> {
        self.disk.directories(dir)
    }
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        happen(&self.before_open);
        self.disk.open(path)
    }
    fn open_rw(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.disk.open_rw(path)
    }
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.disk.create(path)
    }
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.rename(from, to)?;
        happen(&self.after_rename);
        Ok(())
    }
    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        self.disk.link(from, to)
    }
    fn copy(&self, from: &Path, to: &Path) -> io::Result<u64> {
        self.disk.copy(from, to)
    }
    fn remove(&self, path: &Path) -> io::Result<()> {
        self.disk.remove(path)
    }
    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        self.disk.sync_dir(dir)
    }
    fn lock(&self, dir: &Path) -> io::Result<DirLock> {
        self.disk.lock(dir)
    }
}

#[test]
fn a_reader_between_two_steps_of_a_compaction_meets_no_file_that_it_does_not_know() {
    for lsn in [Lsn::new(LogIndex(1), 0), Lsn::new(LogIndex(45), 0)] {
        for is_during_open in [true, false] {
            let disk = Interrupted::default();
            let open = || Log::open(Arc::new(disk.clone()), Path::new("/log"), config(), Clock::manual(), ID).unwrap();
            let log = open();
            (1..=100).for_each(|index| append_pair(&log, index));
            // A log that was opened just now has no segment in memory.
            drop(log);
            let log = Arc::new(open());
            let sealed = log.sealed();
            assert!(sealed.len() > 2 && lsn.index() <= sealed[sealed.len() - 1].last_index);
            let expected = format!("keep {}", lsn.index());
            let happened = Arc::new(Mutex::new(false));
            if is_during_open {
                let (compacted, happened) = (Arc::clone(&log), Arc::clone(&happened));
                let compaction = move || *happened.lock().unwrap() = compact_all(&compacted);
                *disk.before_open.lock().unwrap() = Some(Box::new(compaction));
                assert_eq!(log.read(lsn).unwrap(), expected.as_bytes());
            } else {
                let (reader, happened, expected) = (Arc::clone(&log), Arc::clone(&happened), expected.clone());
                let reading = move || {
                    assert_eq!(reader.read(lsn).unwrap(), expected.as_bytes());
                    assert!(reader.scan(Lsn::ZERO).all(|fact| fact.is_ok()));
                    *happened.lock().unwrap() = true;
                };
                *disk.after_rename.lock().unwrap() = Some(Box::new(reading));
                compact_all(&log);
            }
            assert!(*happened.lock().unwrap());
            assert_eq!(log.read(lsn).unwrap(), expected.as_bytes());
            assert_eq!(log.sealed().len(), 1);
        }
    }
}
