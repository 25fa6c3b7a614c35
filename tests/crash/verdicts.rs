//! Each row of the table in `server/src/log/recovery.rs`, and of the argument in `docs/log-format.md`.

use std::path::Path;

use fencepost::LogIndex;
use fencepost_server::disk::Disk;
use fencepost_server::disk::sim::{Moment, Operation, SimDisk, Survivors};
use fencepost_server::log::{Damage, EntryBuilder, InlineLog, OpenError, Tail, verify};
use uuid::Uuid;

use crate::workload::{CONFIG, ID, append, check, dir, entry, open, run, segment};

const SEED: u64 = 4;

fn three_segments() -> SimDisk {
    let disk = SimDisk::new();
    run(&disk, SEED, 14);
    assert!(disk.bytes(&segment(3)).is_some() && disk.bytes(&segment(4)).is_none());
    disk
}

/// The damage for which the log is refused. Also checks that refusing changes nothing, and that `verify` agrees.
fn refused(disk: &SimDisk) -> Damage {
    let before: Vec<_> = (1..=4).map(|number| disk.bytes(&segment(number))).collect();
    let error = open(disk).unwrap_err();
    let OpenError::Corrupt(damage) = error else { panic!("{error}") };
    let after: Vec<_> = (1..=4).map(|number| disk.bytes(&segment(number))).collect();
    assert!(before == after, "a refusal changes nothing");
    let report = verify(disk, &dir(), &mut ()).unwrap();
    assert!(report.damage.iter().any(|found| found.file == damage.file), "{:?}", report.damage);
    damage
}

fn rewrite_header(disk: &SimDisk, number: u64, change: impl FnOnce(&mut [u8])) {
    let mut bytes = disk.bytes(&segment(number)).unwrap();
    change(&mut bytes);
    let crc = crc32fast::hash(&bytes[..508]);
    bytes[508..512].copy_from_slice(&crc.to_le_bytes());
    disk.put(&segment(number), bytes);
}

/// A log with one entry per group: the payloads given, each a fact.
fn one_segment(payloads: &[&[u8]]) -> SimDisk {
    let disk = SimDisk::new();
    let mut log = open(&disk).unwrap();
    for (index, payload) in (1..).zip(payloads) {
        let mut builder = EntryBuilder::new(LogIndex(index));
        builder.push(payload);
        log.append(vec![builder.finish(LogIndex(index - 1), 3)]).unwrap();
    }
    disk
}

fn last_index(disk: &SimDisk) -> u64 {
    open(disk).unwrap().last_index().0
}

#[test]
fn an_empty_directory_becomes_a_log() {
    let disk = SimDisk::new();
    disk.put(&dir().join("00000000000000000001.tmp"), vec![1; 100]);
    disk.put(&dir().join("unrelated.txt"), vec![1; 100]);
    let log = open(&disk).unwrap();
    assert_eq!(log.last_index(), LogIndex::ZERO);
    assert_eq!(disk.list(&dir()).unwrap(), ["00000000000000000001.seg", "unrelated.txt"]);
}

#[test]
fn a_missing_segment_is_refused() {
    for missing in [1, 2] {
        let disk = three_segments();
        disk.remove(&segment(missing)).unwrap();
        let damage = refused(&disk);
        assert_eq!(damage.file, segment(missing), "{damage}");
    }
}

#[test]
fn a_damaged_header_is_refused_in_every_segment() {
    for number in 1..=3 {
        let disk = three_segments();
        disk.damage(&segment(number), 20, 0xaa);
        let damage = refused(&disk);
        assert_eq!((&damage.file, damage.offset), (&segment(number), 0), "{damage}");
    }
}

#[test]
fn a_segment_of_another_log_number_or_place_is_refused() {
    type Change = fn(&mut [u8]);
    let changes: [(&str, Change); 5] = [
        ("is of log", |header| header[16] ^= 1),
        ("holds segment 7", |header| (header[32], header[64]) = (7, 7)),
        ("begins with entry", |header| header[40] ^= 1),
        ("of group 1", |header| header[12] = 1),
        ("holds an export", |header| header[56] = 2),
    ];
    for (words, change) in changes {
        let disk = three_segments();
        rewrite_header(&disk, 2, change);
        let damage = refused(&disk);
        assert!(damage.what.contains(words) && damage.file == segment(2), "{damage}");
    }
}

#[test]
fn bytes_that_version_1_does_not_use_are_zero() {
    let disk = three_segments();
    rewrite_header(&disk, 2, |header| header[300] = 1);
    assert_eq!(refused(&disk).file, segment(2));
}

#[test]
fn a_trailer_proves_the_entries_even_when_the_table_is_damaged() {
    let disk = SimDisk::new();
    let mut log = open(&disk).unwrap();
    disk.crash_at(Operation::Rename, 1, Moment::Before);
    while append(&mut log, SEED, 1).is_ok() {}
    let image = disk.crash_image(Survivors::Synced);
    let mut bytes = image.bytes(&segment(1)).unwrap();
    let word = |at: usize| u64::from_le_bytes(bytes[at..at + 8].try_into().unwrap()) as usize;
    let (table, end) = (word(4096 - 56), word(4096 - 48));
    // The end of the last entry is gone, as if it was never written, and the table with it.
    bytes[end - 72..end].fill(0);
    bytes[table] ^= 1;
    image.put(&segment(1), bytes);
    let damage = refused(&image);
    assert!(damage.what.contains("sealed"), "{damage}");
}

#[test]
fn a_whole_frame_in_the_place_of_another_is_refused() {
    // Two logs of one identity differ in one fact. Its frame is valid in either, and the entry around it is not.
    let (ours, theirs) = (one_segment(&[b"first", b"our fact"]), one_segment(&[b"first", b"a fact !"]));
    let (mut bytes, others) = (ours.bytes(&segment(1)).unwrap(), theirs.bytes(&segment(1)).unwrap());
    let second = 512 + 112..512 + 112 + 40;
    assert_ne!(bytes[second.clone()], others[second.clone()]);
    bytes[second.clone()].copy_from_slice(&others[second]);
    ours.put(&segment(1), bytes);
    let damage = refused(&ours);
    assert!(damage.what.contains("does not match its facts"), "{damage}");
}

#[test]
fn a_segment_under_the_name_of_another_is_refused() {
    let disk = three_segments();
    disk.put(&segment(2), disk.bytes(&segment(1)).unwrap());
    assert_eq!(refused(&disk).file, segment(2));
}

#[test]
fn a_shortened_file_is_refused() {
    for (number, length) in [(1, 4095), (2, 512), (3, 2048), (3, 100), (3, 0)] {
        let disk = three_segments();
        let mut bytes = disk.bytes(&segment(number)).unwrap();
        bytes.truncate(length);
        disk.put(&segment(number), bytes);
        assert_eq!(refused(&disk).file, segment(number));
    }
}

#[test]
fn an_unsealed_segment_with_a_successor_is_refused() {
    let disk = three_segments();
    let mut bytes = disk.bytes(&segment(2)).unwrap();
    let length = bytes.len();
    bytes[length - 64..].fill(0);
    disk.put(&segment(2), bytes);
    let damage = refused(&disk);
    assert_eq!((&damage.file, damage.offset), (&segment(2), length as u64 - 64), "{damage}");
}

#[test]
fn a_newer_format_is_refused_by_name() {
    let disk = three_segments();
    rewrite_header(&disk, 3, |header| header[8] = 3);
    let error = open(&disk).unwrap_err();
    assert!(matches!(error, OpenError::NewerFormat { found: 3, supported: 2, .. }), "{error}");
    assert!(verify(&disk, &dir(), &mut ()).is_err());
}

#[test]
fn a_sealed_segment_without_a_successor_gets_one() {
    // The crash comes when the seal is written and the next segment has no name yet.
    for operation in [Operation::Rename, Operation::SyncDir] {
        let disk = SimDisk::new();
        let mut log = open(&disk).unwrap();
        disk.crash_at(operation, 1, Moment::Before);
        while append(&mut log, SEED, 1).is_ok() {}
        let found = log.last_index().0;
        let image = disk.crash_image(Survivors::Synced);
        let report = verify(&image, &dir(), &mut ()).unwrap();
        assert_eq!((report.tail, report.damage.len(), report.segments[0].sealed), (Tail::Clean, 0, true));
        let mut log = open(&image).unwrap();
        assert_eq!(check(&log, SEED), found);
        assert!(image.bytes(&segment(2)).is_some());
        append(&mut log, SEED, 3).unwrap();
        assert_eq!(check(&log, SEED), found + 3);
    }
}

#[test]
fn damage_in_the_last_entry_is_not_taken_for_a_torn_write() {
    let disk = one_segment(&[b"first", &[7; 1500]]);
    let bytes = disk.bytes(&segment(1)).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    for (at, good) in bytes.iter().enumerate().take(end + 1).skip(512 + 112) {
        let image = disk.fork();
        image.damage(&segment(1), at, good ^ 0x04);
        let damage = refused(&image);
        assert!(damage.offset as usize <= at, "{damage}");
    }
}

#[test]
fn damage_in_a_payload_of_zeros_is_not_taken_for_a_missing_sector() {
    // Sectors of zeros that were written are counted in the header, so they are not taken for ones that were not.
    let mut payload = vec![0; 2000];
    payload[1900..].fill(9);
    let disk = one_segment(&[b"first", &payload]);
    for at in [640, 1200, 1500, 2100, 2600] {
        let image = disk.fork();
        image.damage(&segment(1), at, 0x55);
        refused(&image);
    }
}

#[test]
fn a_sector_that_is_missing_from_the_last_write_is_cut_off() {
    let disk = one_segment(&[b"first", &[7; 1500]]);
    let mut bytes = disk.bytes(&segment(1)).unwrap();
    bytes[1024..1536].fill(0);
    disk.put(&segment(1), bytes);
    assert!(matches!(verify(&disk, &dir(), &mut ()).unwrap().tail, Tail::Torn(_)));
    assert_eq!(last_index(&disk), 1);
    assert_eq!(last_index(&disk), 1);
    assert_eq!(verify(&disk, &dir(), &mut ()).unwrap().tail, Tail::Clean);
}

#[test]
fn a_sector_that_is_missing_from_a_proven_write_is_refused() {
    // The third entry was written after the second was durable, and says so.
    let disk = one_segment(&[b"first", &[7; 1500], b"third"]);
    let mut bytes = disk.bytes(&segment(1)).unwrap();
    bytes[1024..1536].fill(0);
    disk.put(&segment(1), bytes);
    let damage = refused(&disk);
    assert!(damage.what.contains("entry 3"), "{damage}");
    let report = verify(&disk, &dir(), &mut ()).unwrap();
    assert_eq!(report.tail, Tail::Corrupt);
    assert_eq!(report.damage[0].indexes, Some(2..=2));
    assert_eq!(report.segments[0].entries, 2);
}

#[test]
fn an_entry_that_lacks_only_its_end_mark_is_completed() {
    let disk = one_segment(&[b"first", b"second"]);
    let bytes = disk.bytes(&segment(1)).unwrap();
    let end = bytes.iter().rposition(|byte| *byte != 0).unwrap();
    for missing in 0..7 {
        let image = disk.fork();
        for back in 0..=missing {
            image.damage(&segment(1), end - back, 0);
        }
        assert!(matches!(verify(&image, &dir(), &mut ()).unwrap().tail, Tail::Torn(_)));
        assert_eq!(last_index(&image), 2, "{} bytes missing", missing + 1);
        assert_eq!(image.bytes(&segment(1)).unwrap(), bytes);
    }
}

#[test]
fn anything_behind_the_end_of_a_sealed_log_is_refused() {
    let disk = three_segments();
    let bytes = disk.bytes(&segment(1)).unwrap();
    let end = u64::from_le_bytes(bytes[4096 - 48..4096 - 40].try_into().unwrap()) as usize;
    disk.damage(&segment(1), end + 3, 1);
    let report = verify(&disk, &dir(), &mut ()).unwrap();
    assert_eq!((report.damage.len(), report.damage[0].offset as usize), (1, end + 3), "{:?}", report.damage);
}

#[test]
fn a_second_log_on_the_directory_is_refused_by_name() {
    let disk = SimDisk::new();
    let first = open(&disk).unwrap();
    let error = open(&disk).unwrap_err();
    assert!(matches!(error, OpenError::Locked { .. }) && error.to_string().contains("/data/log"), "{error}");
    drop(first);
    open(&disk).unwrap();
}

#[test]
fn the_identity_is_the_one_on_the_disk() {
    let disk = three_segments();
    let other = Uuid::from_u128(99);
    let mut log = InlineLog::open(std::sync::Arc::new(disk.clone()), Path::new(&dir()), CONFIG, other).unwrap();
    append(&mut log, SEED, 1).unwrap();
    assert_eq!(verify(&disk, &dir(), &mut ()).unwrap().log_id, Some(ID));
}

#[test]
fn a_read_of_an_unreadable_sector_is_told_and_not_guessed() {
    let disk = three_segments();
    let log = open(&disk).unwrap();
    disk.make_unreadable(&segment(2), 600..601);
    let results: Vec<_> = log.entries(LogIndex(1)).collect();
    assert!(results.last().unwrap().is_err());
    assert!(results.iter().rev().skip(1).all(Result::is_ok));
    assert!(open(&disk.fork()).is_ok());
    assert!(entry(SEED, 1).len_bytes() > 0);
}
