//! Which segments there are and where in them an entry is: what the writer changes and readers look at.
//!
//! Locks are held for look-ups only, never during I/O, so readers and the writer do not wait for each other's disk.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError, RwLock};

use fencepost::LogIndex;
use tokio::sync::watch;
use uuid::Uuid;

use super::error::Damage;
use super::frame::{Identity, Seed};
use super::recovery::Recovered;
use super::segment::{self, SEGMENT_HEADER_BYTES, SegmentHeader, Table, Trailer};
use crate::disk::{Disk, File};

/// How many sealed segments are kept open with their tables in memory.
const OPEN_SEGMENTS_MAX: usize = 16;

/// A mutex whose data is consistent whenever it is unlocked, so that a panic elsewhere does no harm to it.
pub(super) fn lock<T>(mutex: &Mutex<T>) -> MutexGuard<'_, T> {
    mutex.lock().unwrap_or_else(PoisonError::into_inner)
}

/// The segment that is written to.
#[derive(Debug)]
pub(super) struct Active {
    pub(super) identity: Identity,
    pub(super) first_index: LogIndex,
    pub(super) file_bytes: u64,
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn File>,
    /// Where the last durable entry ends. Changes together with the table, under its lock.
    pub(super) end: AtomicU64,
    /// The durable entries.
    pub(super) table: RwLock<Table>,
}

impl Active {
    /// A segment without entries.
    pub(super) fn empty(dir: &Path, header: &SegmentHeader, file: Arc<dyn File>) -> Active {
        Active {
            identity: header.identity,
            first_index: header.first_index,
            file_bytes: header.file_bytes,
            path: segment::path(dir, header.identity.segment),
            file,
            end: AtomicU64::new(SEGMENT_HEADER_BYTES),
            table: RwLock::new(Table::new(header.first_index)),
        }
    }

    pub(super) fn table<T>(&self, look: impl FnOnce(&Table) -> T) -> T {
        look(&self.table.read().unwrap_or_else(PoisonError::into_inner))
    }

    /// Makes entries visible that have become durable.
    pub(super) fn extend(&self, rows: impl Iterator<Item = (LogIndex, u64)>, end: u64) {
        let mut table = self.table.write().unwrap_or_else(PoisonError::into_inner);
        rows.for_each(|(index, offset)| table.push(index, offset));
        self.end.store(end, Ordering::Release);
    }
}

/// A segment that does not change any more.
#[derive(Clone, Copy, Debug)]
pub(super) struct Sealed {
    pub(super) number: u64,
    pub(super) first_index: LogIndex,
    pub(super) file_bytes: u64,
    pub(super) trailer: Trailer,
}

/// Where an entry begins, and how far its segment can be read.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn File>,
    pub(super) seed: Seed,
    pub(super) index: LogIndex,
    pub(super) offset: u64,
    pub(super) limit: u64,
}

/// Why a place could not be found.
#[derive(Debug)]
pub(super) enum Misplaced {
    Absent,
    Damaged(Damage),
    Io(PathBuf, io::Error),
}

/// All segments, and how far they are durable.
#[derive(Debug)]
pub(super) struct Catalog {
    pub(super) disk: Arc<dyn Disk>,
    pub(super) dir: PathBuf,
    pub(super) log_id: Uuid,
    pub(super) durable: watch::Sender<LogIndex>,
    segments: RwLock<Segments>,
    opened: Mutex<VecDeque<Arc<Opened>>>,
}

#[derive(Clone, Debug)]
struct Segments {
    sealed: Vec<Sealed>,
    active: Arc<Active>,
}

/// A sealed segment in use.
#[derive(Debug)]
struct Opened {
    number: u64,
    file: Arc<dyn File>,
    table: Table,
}

impl Catalog {
    /// What was recovered.
    pub(super) fn new(disk: Arc<dyn Disk>, dir: &Path, recovered: &Recovered) -> Catalog {
        let (sealed, active) = (recovered.sealed.clone(), Arc::clone(&recovered.active));
        Catalog {
            disk,
            dir: dir.to_owned(),
            log_id: active.identity.log_id,
            durable: watch::Sender::new(recovered.last_index),
            segments: RwLock::new(Segments { sealed, active }),
            opened: Mutex::default(),
        }
    }

    /// The last entry that is durable.
    pub(super) fn last_index(&self) -> LogIndex {
        *self.durable.borrow()
    }

    /// The oldest entry that is kept, or will be.
    pub(super) fn first_index(&self) -> LogIndex {
        self.segments(|segments| segments.sealed.first().map_or(segments.active.first_index, |first| first.first_index))
    }

    /// How many segments there are, and how long their files are together.
    pub(super) fn size(&self) -> (usize, u64) {
        self.segments(|segments| {
            let sealed: u64 = segments.sealed.iter().map(|sealed| sealed.file_bytes).sum();
            (segments.sealed.len() + 1, sealed + segments.active.file_bytes)
        })
    }

    /// Puts a new active segment in the place of the one that was just sealed.
    pub(super) fn rotate(&self, sealed: Sealed, active: Arc<Active>) {
        let mut segments = self.segments.write().unwrap_or_else(PoisonError::into_inner);
        segments.sealed.push(sealed);
        segments.active = active;
    }

    /// Where the first durable entry at or after `index` is.
    pub(super) fn locate(&self, index: LogIndex) -> Result<Place, Misplaced> {
        let (active, sealed) = self.segments(|segments| {
            let at = segments.sealed.partition_point(|sealed| sealed.trailer.last_index < index);
            (Arc::clone(&segments.active), segments.sealed.get(at).copied())
        });
        if let Some(sealed) = sealed {
            return self.locate_sealed(&sealed, index);
        }
        let (found, limit) = active.table(|table| (table.find(index), active.end.load(Ordering::Acquire)));
        let (index, offset) = found.ok_or(Misplaced::Absent)?;
        let (path, file, seed) = (active.path.clone(), Arc::clone(&active.file), active.identity.seed());
        Ok(Place { path, file, seed, index, offset, limit })
    }

    fn locate_sealed(&self, sealed: &Sealed, index: LogIndex) -> Result<Place, Misplaced> {
        let opened = self.opened(sealed)?;
        let (index, offset) = opened.table.find(index).ok_or(Misplaced::Absent)?;
        let (seed, limit) = (self.identity(sealed.number).seed(), sealed.trailer.entries_end);
        let path = segment::path(&self.dir, sealed.number);
        if !(SEGMENT_HEADER_BYTES..limit).contains(&offset) {
            let what = format!("the table puts entry {index} at offset {offset}, where no entry can be");
            return Err(Misplaced::Damaged(Damage {
                file: path,
                offset: sealed.trailer.table_offset,
                what,
                indexes: None,
            }));
        }
        Ok(Place { path, file: Arc::clone(&opened.file), seed, index, offset, limit })
    }

    /// Opens a sealed segment and reads its table, unless that was done lately.
    fn opened(&self, sealed: &Sealed) -> Result<Arc<Opened>, Misplaced> {
        {
            let mut opened = lock(&self.opened);
            if let Some(at) = opened.iter().position(|opened| opened.number == sealed.number) {
                let found = opened.remove(at).expect("the position was just found");
                opened.push_back(Arc::clone(&found));
                return Ok(found);
            }
        }
        let path = segment::path(&self.dir, sealed.number);
        let io = |error| Misplaced::Io(path.clone(), error);
        let file = self.disk.open(&path).map_err(io)?;
        let seed = self.identity(sealed.number).seed();
        let table = read_table(&*file, seed, sealed).map_err(io)?;
        let table = table.ok_or_else(|| {
            let what = "the table of a sealed segment does not match its CRC".to_owned();
            let indexes = Some(sealed.first_index.0..=sealed.trailer.last_index.0);
            Misplaced::Damaged(Damage { file: path.clone(), offset: sealed.trailer.table_offset, what, indexes })
        })?;
        let found = Arc::new(Opened { number: sealed.number, file, table });
        let mut opened = lock(&self.opened);
        if opened.len() == OPEN_SEGMENTS_MAX {
            opened.pop_front();
        }
        opened.push_back(Arc::clone(&found));
        Ok(found)
    }

    fn identity(&self, segment: u64) -> Identity {
        Identity { log_id: self.log_id, segment, group: 0 }
    }

    fn segments<T>(&self, look: impl FnOnce(&Segments) -> T) -> T {
        look(&self.segments.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Reads a sealed segment's table. None if it is damaged.
pub(super) fn read_table(file: &dyn File, seed: Seed, sealed: &Sealed) -> io::Result<Option<Table>> {
    let end = sealed.file_bytes - segment::TRAILER_BYTES;
    if sealed.trailer.table_offset > end {
        return Ok(None);
    }
    let mut frame = vec![0; (end - sealed.trailer.table_offset) as usize];
    file.read_at(&mut frame, sealed.trailer.table_offset)?;
    Ok(segment::decode_table(seed, sealed.first_index, &sealed.trailer, &frame))
}
