//! Claims about the log, its threads included.

use std::io;
use std::path::Path;
use std::sync::{Arc, mpsc};
use std::thread;
use std::time::Duration;

use fencepost::{LogIndex, Lsn};
use uuid::Uuid;

use super::frame::Identity;
use super::segment::{self, SegmentHeader, Table, Trailer};
use super::{EntryBuilder, Inspector, Log, LogConfig, LogError, OpenError, ReadError, verify};
use crate::clock::Clock;
use crate::disk::RealDisk;
use crate::disk::sim::{Lasting, Moment, Operation, SimDisk, Survivors};

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
    log.reserve(2000).unwrap();
    disk.fail(Operation::Sync, 1, Lasting::Once, io::ErrorKind::Other);
    let error = append(&log, 3, &[b"bad"]).unwrap_err();
    assert!(matches!(&error, LogError::Failed(failure) if failure.action == "sync"), "{error}");
    assert!(matches!(append(&log, 4, &[b"later"]), Err(LogError::Failed(_))));
    assert!(matches!(log.reserve(100), Err(LogError::Failed(_))));
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
        match log.reserve(entry(1, &[&[1; 500]]).len_bytes()) {
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
    assert!(matches!(log.reserve(604), Err(LogError::NoSpace { .. })), "it rests for a second");
    clock.advance(Duration::from_secs(1));
    log.reserve(604).unwrap();
    append(&log, index + 1, &[&[1; 500]]).unwrap();
    assert_eq!(log.scan(Lsn::ZERO).count() as u64, index + 1);
}

#[test]
fn an_entry_over_the_limit_is_refused_and_leaves_its_index_free() {
    let log = open(&SimDisk::new()).unwrap();
    assert!(matches!(append(&log, 1, &[&[0; 2048]]), Err(LogError::TooLarge { bytes_max: 2048, .. })));
    assert!(matches!(log.reserve(2049), Err(LogError::TooLarge { .. })));
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
                log.reserve(entry(index, &[&[index as u8; 200]]).len_bytes()).unwrap();
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
fn written(number: u64, first: u64, payloads: &[&[u8]]) -> (SegmentHeader, Table, Vec<u8>) {
    let identity = Identity { log_id: ID, segment: number, group: 0 };
    let header = SegmentHeader { identity, first_index: LogIndex(first), file_bytes: 4096 };
    let (mut table, mut bytes) = (Table::new(header.first_index), header.encode().to_vec());
    for (index, payload) in (first..).zip(payloads) {
        table.push(LogIndex(index), bytes.len() as u64);
        let mut entry = entry(index, &[*payload]);
        bytes.extend_from_slice(entry.place(identity.seed(), bytes.len() as u64, LogIndex(first - 1)));
    }
    (header, table, bytes)
}

/// A segment that ends with a good table and this trailer.
fn sealed(change: impl FnOnce(&mut Trailer)) -> Vec<u8> {
    let (header, table, mut bytes) = written(1, 1, &[b"one", b"two"]);
    let entries_end = bytes.len() as u64;
    let seed = header.identity.seed();
    let (table_offset, mut seal) = segment::encode_seal(seed, header.file_bytes, &table, entries_end, 2);
    let mut trailer = Trailer { table_offset, entries_end, last_index: LogIndex(2), entries: 2, facts: 2 };
    change(&mut trailer);
    seal.truncate(seal.len() - segment::TRAILER_BYTES as usize);
    bytes.resize(table_offset as usize, 0);
    bytes.extend_from_slice(&seal);
    bytes.extend_from_slice(&trailer.encode(seed));
    bytes
}

fn put(disk: &SimDisk, number: u64, bytes: Vec<u8>) {
    disk.put(&segment::path(Path::new("/log"), number), bytes);
}

#[test]
fn a_trailer_with_a_right_crc_and_impossible_numbers_is_refused() {
    let changes: [fn(&mut Trailer); 4] = [
        |trailer| trailer.entries = u64::MAX,
        |trailer| trailer.entries_end = u64::MAX / 2,
        |trailer| trailer.last_index = LogIndex(u64::MAX),
        |trailer| trailer.table_offset -= 8,
    ];
    for change in changes {
        let disk = SimDisk::new();
        put(&disk, 1, sealed(change));
        let (header, _, mut second) = written(2, 3, &[]);
        second.resize(header.file_bytes as usize, 0);
        put(&disk, 2, second);
        let Err(OpenError::Corrupt(damage)) = open(&disk) else { panic!("it must be refused") };
        assert!(damage.what.contains("trailer"), "{damage}");
        let report = verify(&disk, Path::new("/log"), &mut ()).unwrap();
        assert_eq!(report.damage.first(), Some(&damage));
    }
}

#[test]
fn verify_compares_the_trailer_with_what_is_there() {
    let report = |change: fn(&mut Trailer)| {
        let disk = SimDisk::new();
        put(&disk, 1, sealed(change));
        let mut trailer = Trailer { table_offset: 0, entries_end: 0, last_index: LogIndex(2), entries: 0, facts: 0 };
        change(&mut trailer);
        let (header, _, mut second) = written(2, trailer.last_index.0 + 1, &[]);
        second.resize(header.file_bytes as usize, 0);
        put(&disk, 2, second);
        verify(&disk, Path::new("/log"), &mut ()).unwrap().damage
    };
    assert_eq!(report(|_| ()), []);
    let changes: [fn(&mut Trailer); 2] = [|trailer| trailer.facts = 3, |trailer| trailer.last_index = LogIndex(7)];
    for change in changes {
        let damage = report(change);
        assert_eq!(damage.last().map(|damage| damage.offset), Some(4096 - 64), "{damage:?}");
    }
}

#[test]
fn a_newest_segment_without_room_for_its_seal_is_refused() {
    // The header of the segment, that of the fact, and the commit.
    let (header, _, full) = written(1, 1, &[&[1; 4096 - 512 - 32 - 72]]);
    assert_eq!(full.len() as u64, header.file_bytes);
    let disk = SimDisk::new();
    put(&disk, 1, full);
    let Err(OpenError::Corrupt(damage)) = open(&disk) else { panic!("it must be refused") };
    assert!(damage.what.contains("no room"), "{damage}");
    assert_eq!(verify(&disk, Path::new("/log"), &mut ()).unwrap().damage, [damage]);
}
