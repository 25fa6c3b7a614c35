//! The directory of a log as an input describes it: a good log and what is done to it.
//!
//! Byte 0 chooses the log, byte 1 is a set of [`flags`]. The rest is either the content of the newest segment behind its
//! header, or a list of edits.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::{Arc, LazyLock};

use bytes::Bytes;
use fencepost::{LogIndex, Lsn};
use fencepost_server::disk::Disk as _;
use fencepost_server::disk::sim::{Moment, Operation, Random, SimDisk, Survivors};
use fencepost_server::log::{
    Content, Entry, EntryBuilder, Fate, InlineLog, LogConfig, SegmentFileReader, SegmentFileWriter, SegmentLabel,
};
use uuid::Uuid;

use crate::input::Input;
use crate::layout::{self, COMMIT_FIELDS, FRAME_FIELDS, Field, HEADER_FIELDS, TRAILER, TRAILER_FIELDS};

/// What byte 1 of an input says.
pub mod flags {
    /// The CRCs of segment headers are made right.
    pub const HEADERS: u8 = 1;
    /// The CRCs of frames are made right.
    pub const FRAMES: u8 = 2;
    /// The CRCs of trailers are made right.
    pub const TRAILERS: u8 = 4;
    /// The rest of the input is content, not edits.
    pub const CONTENT: u8 = 8;
    /// The log with its threads is opened too.
    pub const THREADS: u8 = 16;
}

/// Segments of four sectors: three entries fill one.
pub const CONFIG: LogConfig = LogConfig { segment_bytes: 2048, entry_bytes_max: 1200, write_bytes_max: 1 << 20 };
/// The identity of the logs.
pub const ID: Uuid = Uuid::from_u128(0x0123_4567_89ab_cdef_0123_4567_89ab_cdef);

const EDITS_MAX: usize = 24;
const FILE_BYTES_MAX: usize = 8192;

/// Makes some of a segment's CRCs right again.
type Mend = fn(&mut [u8]);
/// The files of a directory.
pub type Files = BTreeMap<PathBuf, Vec<u8>>;

/// Where the log is.
pub fn dir() -> &'static Path {
    Path::new("/log")
}

/// A segment's file.
pub fn segment(number: u64) -> PathBuf {
    dir().join(format!("{number:020}.seg"))
}

/// A disk with these files.
pub fn disk(files: &Files) -> SimDisk {
    let disk = SimDisk::new();
    for (path, bytes) in files {
        disk.put(path, bytes.clone());
    }
    disk
}

/// The entry at an index, of no to three facts, some of them zeros.
pub fn entry(index: u64) -> Entry {
    let mut random = Random::new(index);
    let mut builder = EntryBuilder::new(LogIndex(index));
    for _ in 0..random.below(4) {
        let zeros = random.below(4) == 0;
        let length = if zeros { 600 } else { random.below(120) };
        let payload: Vec<u8> = (0..length).map(|_| if zeros { 0 } else { random.next_u64() as u8 }).collect();
        builder.push(&payload[..payload.len().min(1000)]);
    }
    builder.finish(LogIndex(index - 1), 3)
}

/// An entry that leaves little room beside it.
pub fn long_entry(index: LogIndex) -> Entry {
    let mut builder = EntryBuilder::new(index);
    builder.push(&[7; 1000]);
    builder.finish(LogIndex(index.0 - 1), 3)
}

/// The good logs: of one segment and of several, clean, sealed without a successor, torn, and without entries, also from
/// a time when segments were shorter; compacted once, again, before the last segment vanished, with nothing left, and in
/// the middle of a compaction. At last a hot state and an export in the place of a log.
static LOGS: LazyLock<Vec<Files>> = LazyLock::new(|| {
    let log = |entries, plan: &dyn Fn(&SimDisk), survivors| {
        let disk = SimDisk::new();
        plan(&disk);
        write(&disk, CONFIG, entries);
        listed(&disk.crash_image(survivors))
    };
    let crash = |operation, nth| move |disk: &SimDisk| disk.crash_at(operation, nth, Moment::Before);
    vec![
        log(2, &|_| (), Survivors::Synced),
        log(9, &|_| (), Survivors::Synced),
        log(30, &|_| (), Survivors::Synced),
        log(30, &crash(Operation::Rename, 3), Survivors::Synced),
        log(9, &crash(Operation::Sync, 9), Survivors::TornLastWrite { bytes: 90 }),
        log(9, &crash(Operation::Sync, 10), Survivors::Everything),
        log(0, &|_| (), Survivors::Synced),
        log(
            0,
            &|disk| write(disk, LogConfig { segment_bytes: 1024, entry_bytes_max: 400, ..CONFIG }, 0),
            Survivors::Synced,
        ),
        compacted(&[(1, 4)], 1, Survivors::Synced),
        compacted(&[(1, 2), (3, 4), (1, 5)], 2, Survivors::Synced),
        compacted(&[(1, 1), (2, 4), (5, u64::MAX)], 3, Survivors::Synced).into_iter().rev().skip(1).collect(),
        compacted(&[(1, 3)], 0, Survivors::Synced),
        compacted(&[(1, 4)], 1, Survivors::Everything),
        alone(Content::HotState),
        alone(Content::Export),
    ]
});

/// A log whose runs of segments were compacted one after the other, each fact kept, cut or
/// gone at random, or all gone with the seed 0. If everything survives the last compaction crashes before it
/// removes files.
fn compacted(runs: &[(u64, u64)], seed: u64, survivors: Survivors) -> Files {
    let disk = SimDisk::new();
    write(&disk, CONFIG, 30);
    let log = InlineLog::open(Arc::new(disk.clone()), dir(), CONFIG, ID).expect("the log was just written");
    if survivors == Survivors::Everything {
        disk.crash_at(Operation::Remove, 1, Moment::Before);
    }
    let mut random = Random::new(seed);
    for (from, to) in runs {
        let sealed = log.sealed();
        let inside = |number: u64| (*from..=*to).contains(&number);
        let run: Vec<_> = sealed.iter().filter(|it| inside(*it.numbers.start())).collect();
        let (Some(first), Some(last)) = (run.first(), run.last()) else { continue };
        let mut judge = |_: Lsn, payload: &Bytes| match random.below(4) {
            _ if seed == 0 => Fate::Drop,
            0 | 1 => Fate::Keep,
            2 => Fate::Replace(payload.slice(..payload.len() / 2)),
            _ => Fate::Drop,
        };
        let (numbers, judged_at) = (*first.numbers.start()..=*last.numbers.end(), Lsn::new(LogIndex(30), 0));
        let done = log.compact(numbers, judged_at, &mut judge, &mut |_| ControlFlow::Continue(()));
        assert!(done.is_ok() || survivors == Survivors::Everything, "{done:?}");
    }
    drop(log);
    listed(&disk.crash_image(survivors))
}

/// A file that is not of a log's content.
fn alone(content: Content) -> Files {
    let disk = SimDisk::new();
    let label = SegmentLabel { content, log_id: ID, numbers: 1..=4, first_index: LogIndex(1), judged_at: Lsn::ZERO };
    let mut writer = SegmentFileWriter::create(&disk, &segment(1), &label).expect("a simulated disk takes a file");
    for index in [1, 2, 5] {
        let index = LogIndex(index);
        let facts: [(u16, &[u8]); 2] = [(0, b"one"), (7, &[0; 700])];
        writer.push(index, LogIndex(index.0 - 1), 3, &facts).expect("a simulated disk has room");
    }
    writer.finish(LogIndex(9)).expect("a simulated disk has room");
    let read = SegmentFileReader::open(&disk, &segment(1), content, Some(ID)).map(|reader| reader.flatten().count());
    assert!(matches!(read, Ok(3)), "a file is as it was written: {read:?}");
    listed(&disk)
}

fn listed(disk: &SimDisk) -> Files {
    let names = disk.list(dir()).expect("a simulated disk lists its files");
    let paths = names.iter().map(|name| dir().join(name));
    paths.map(|path| (path.clone(), disk.bytes(&path).expect("the file was listed"))).collect()
}

/// Appends entries one by one until the disk fails.
fn write(disk: &SimDisk, config: LogConfig, entries: u64) {
    let Ok(mut log) = InlineLog::open(Arc::new(disk.clone()), dir(), config, ID) else { return };
    for index in 1..=entries {
        if log.append(vec![entry(index)]).is_err() {
            return;
        }
    }
}

/// The files that an input describes.
pub fn files(input: &mut Input<'_>) -> Files {
    let mut files = LOGS[usize::from(input.byte()) % LOGS.len()].clone();
    let flags = input.byte();
    if flags & flags::CONTENT == 0 {
        let mut edits = 0;
        while !input.is_empty() && edits < EDITS_MAX {
            edit(&mut files, input);
            edits += 1;
        }
    } else if let Some((_, newest)) = files.iter_mut().next_back() {
        let room = newest.len() - layout::ENTRIES;
        let content = input.bytes(room);
        newest[layout::ENTRIES..].fill(0);
        newest[layout::ENTRIES..layout::ENTRIES + content.len()].copy_from_slice(content);
    }
    let mends: [(u8, Mend); 3] = [
        (flags::HEADERS, layout::mend_header),
        (flags::FRAMES, layout::mend_frames),
        (flags::TRAILERS, layout::mend_trailer),
    ];
    for file in files.values_mut().filter(|file| file.len() >= layout::ENTRIES) {
        for (_, mend) in mends.iter().filter(|(flag, _)| flags & flag != 0) {
            mend(file);
        }
    }
    files
}

/// Does one thing to the files.
fn edit(files: &mut Files, input: &mut Input<'_>) {
    let operation = input.byte() % 12;
    let which = usize::from(input.byte());
    let Some(path) = files.keys().nth(which % files.len().max(1)).cloned() else { return };
    let mut file = files.remove(&path).expect("the name was just looked up");
    match operation {
        0 => change(&mut file, 0, HEADER_FIELDS, input),
        1 | 2 => {
            let (frames, which) = (layout::frames(&file), usize::from(input.byte()));
            if let Some(frame) = frames.get(which % frames.len().max(1)).copied() {
                if operation == 1 {
                    change(&mut file, frame, FRAME_FIELDS, input);
                } else {
                    change(&mut file, frame, COMMIT_FIELDS, input);
                }
            }
        }
        3 => {
            if let Some(at) = file.len().checked_sub(TRAILER) {
                change(&mut file, at, TRAILER_FIELDS, input);
            }
        }
        // The rows of a table are before the trailer.
        4 => {
            let at = file.len().checked_sub(TRAILER + 4 * (1 + usize::from(input.byte() % 16)));
            change(&mut file, at.unwrap_or(0), [(0, 4)], input);
        }
        5 => {
            let (at, bytes) = (usize::from(input.short()), usize::from(input.byte()));
            overwrite(&mut file, at, input.bytes(bytes));
        }
        6 => {
            let sector = usize::from(input.byte() % 16) * 512;
            overwrite(&mut file, sector, &[0; 512]);
        }
        // A piece from elsewhere, perhaps from another segment.
        7 => {
            let other = files.values().nth(usize::from(input.byte() % 4)).unwrap_or(&file);
            let (from, bytes, to) = (8 * usize::from(input.byte()), input.short(), 8 * usize::from(input.byte()));
            let piece: Vec<u8> = other.iter().skip(from).take(usize::from(bytes % 2048)).copied().collect();
            overwrite(&mut file, to, &piece);
        }
        8 => file.resize(usize::from(input.short()) % FILE_BYTES_MAX, 0),
        // The file has another length, and the header says so.
        9 => {
            file.resize((8 * usize::from(input.short())) % FILE_BYTES_MAX, 0);
            let length = file.len() as u64;
            overwrite(&mut file, 48, &length.to_le_bytes());
        }
        10 => {
            files.insert(segment(input.number(1 + which as u64)), file.clone());
        }
        _ => return,
    }
    files.insert(path, file);
}

/// Gives one of the fields of the structure at an offset another value.
fn change<const N: usize>(file: &mut [u8], at: usize, fields: [Field; N], input: &mut Input<'_>) {
    let (offset, width) = input.one_of(&fields);
    let Some(place) = file.get_mut(at + offset..at + offset + width) else { return };
    let mut value = [0; 8];
    value[..width].copy_from_slice(place);
    let value = input.number(u64::from_le_bytes(value)).to_le_bytes();
    place.copy_from_slice(&value[..width]);
}

/// Writes as much as there is room for.
fn overwrite(file: &mut [u8], at: usize, bytes: &[u8]) {
    let place = file.get_mut(at..).unwrap_or_default();
    let length = bytes.len().min(place.len());
    place[..length].copy_from_slice(&bytes[..length]);
}

/// Inputs to begin with: each log as it is, each content of a newest segment, and each edit once.
pub fn seeds() -> Vec<Vec<u8>> {
    let mends = flags::HEADERS | flags::FRAMES | flags::TRAILERS;
    let mut seeds = Vec::new();
    for (log, files) in (0_u8..).zip(LOGS.iter()) {
        seeds.push(vec![log, flags::THREADS]);
        let newest = files.values().next_back().into_iter().flat_map(|file| &file[layout::ENTRIES..]).copied();
        seeds.push([log, flags::CONTENT | mends].into_iter().chain(newest).collect());
        for operation in 0..12 {
            seeds.push(vec![log, mends, operation, log, 1, 1, 1, 0, 1, 0]);
        }
    }
    seeds
}
