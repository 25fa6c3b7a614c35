//! Which segments there are and where in them an entry is: what the writer changes and readers look at.
//!
//! Locks are held for look-ups only, never during I/O, so readers and the writer do not wait for each other's disk.

use std::collections::VecDeque;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, MutexGuard, OnceLock, PoisonError, RwLock};

use fencepost::{LogIndex, Lsn};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

use super::SegmentInfo;
use super::error::Damage;
use super::frame::{Identity, Seed};
use super::recovery::Recovered;
use super::segment::{self, Order, SEGMENT_HEADER_BYTES, SegmentHeader, Table, Trailer};
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

/// A segment that does not change any more; compaction may put another in its place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Sealed {
    pub(super) header: SegmentHeader,
    pub(super) trailer: Trailer,
    /// How often a segment of this number was replaced since the log was opened: tells it from its predecessors.
    pub(super) generation: u64,
}

impl Sealed {
    pub(super) fn new(header: SegmentHeader, trailer: Trailer) -> Sealed {
        Sealed { header, trailer, generation: 0 }
    }

    pub(super) fn number(&self) -> u64 {
        self.header.identity.segment
    }

    /// For others to see.
    pub(super) fn info(&self) -> SegmentInfo {
        let SegmentHeader { first_index, file_bytes, last_number, judged_at, .. } = self.header;
        let Trailer { last_index, facts, .. } = self.trailer;
        SegmentInfo { numbers: self.number()..=last_number, first_index, last_index, file_bytes, facts, judged_at }
    }
}

/// Where an entry begins, and how far its segment can be read.
#[derive(Debug)]
pub(super) struct Place {
    pub(super) path: PathBuf,
    pub(super) file: Arc<dyn File>,
    pub(super) seed: Seed,
    pub(super) order: Order,
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
    /// The last entry in a sealed segment.
    pub(super) seals: watch::Sender<LogIndex>,
    /// Held by whoever replaces segments, or needs them to stay.
    pub(super) upkeep: Mutex<()>,
    segments: RwLock<Segments>,
    opened: Mutex<VecDeque<Arc<Opened>>>,
    /// Who hears of damage that a reader met.
    pub(super) damage: OnceLock<mpsc::UnboundedSender<Damage>>,
}

#[derive(Clone, Debug)]
struct Segments {
    sealed: Vec<Sealed>,
    active: Arc<Active>,
    /// The files of the segments that are being replaced: their names may lead to the new file already.
    pinned: Vec<(u64, Arc<dyn File>)>,
}

impl Segments {
    fn pinned(&self, number: u64) -> Option<Arc<dyn File>> {
        self.pinned.iter().find(|(pinned, _)| *pinned == number).map(|(_, file)| Arc::clone(file))
    }

    /// Whether this is still the segment of its number, and its name still leads to its file.
    fn is_current(&self, sealed: &Sealed) -> bool {
        self.sealed.contains(sealed) && self.pinned(sealed.number()).is_none()
    }
}

/// A sealed segment in use.
#[derive(Debug)]
pub(super) struct Opened {
    sealed: Sealed,
    pub(super) file: Arc<dyn File>,
    pub(super) table: Table,
}

impl Catalog {
    /// What was recovered.
    pub(super) fn new(disk: Arc<dyn Disk>, dir: &Path, recovered: &Recovered) -> Catalog {
        let (sealed, active) = (recovered.sealed.clone(), Arc::clone(&recovered.active));
        let last_sealed = LogIndex(active.first_index.0 - 1);
        Catalog {
            disk,
            dir: dir.to_owned(),
            log_id: active.identity.log_id,
            durable: watch::Sender::new(recovered.last_index),
            seals: watch::Sender::new(last_sealed),
            upkeep: Mutex::default(),
            segments: RwLock::new(Segments { sealed, active, pinned: Vec::new() }),
            opened: Mutex::default(),
            damage: OnceLock::new(),
        }
    }

    /// The last entry that is durable.
    pub(super) fn last_index(&self) -> LogIndex {
        *self.durable.borrow()
    }

    /// The oldest entry that is kept, or will be.
    pub(super) fn first_index(&self) -> LogIndex {
        self.segments(|segments| {
            segments.sealed.first().map_or(segments.active.first_index, |first| first.header.first_index)
        })
    }

    /// How many segments there are, and how long their files are together.
    pub(super) fn size(&self) -> (usize, u64) {
        self.segments(|segments| {
            let sealed: u64 = segments.sealed.iter().map(|sealed| sealed.header.file_bytes).sum();
            (segments.sealed.len() + 1, sealed + segments.active.file_bytes)
        })
    }

    /// Puts a new active segment in the place of the one that was just sealed.
    pub(super) fn rotate(&self, sealed: Sealed, active: Arc<Active>) {
        self.change(|segments| {
            segments.sealed.push(sealed);
            segments.active = active;
        });
        self.seals.send_replace(sealed.trailer.last_index);
    }

    /// The sealed segments, in order.
    pub(super) fn sealed(&self) -> Vec<Sealed> {
        self.segments(|segments| segments.sealed.clone())
    }

    /// The newest state by which facts were judged dispensable.
    pub(super) fn judged_at(&self) -> Lsn {
        let judged = |segments: &Segments| segments.sealed.iter().map(|sealed| sealed.header.judged_at).max();
        self.segments(judged).unwrap_or_default()
    }

    /// The sealed segments, the active one behind them, and where its durable entries end.
    pub(super) fn whole(&self) -> (Vec<Sealed>, Arc<Active>, u64) {
        self.segments(|segments| {
            let active = Arc::clone(&segments.active);
            let end = active.table(|_| active.end.load(Ordering::Acquire));
            (segments.sealed.clone(), active, end)
        })
    }

    /// Lets readers go on in these files, whatever happens to their names. Until [`Catalog::replace`] or
    /// [`Catalog::unpin`].
    pub(super) fn pin(&self, files: Vec<(u64, Arc<dyn File>)>) {
        self.change(|segments| segments.pinned = files);
    }

    /// Nothing was replaced after all.
    pub(super) fn unpin(&self) {
        self.change(|segments| segments.pinned.clear());
    }

    /// Puts one sealed segment, whose file has its name, in the place of those that it stands for.
    pub(super) fn replace(&self, mut sealed: Sealed) {
        let numbers = sealed.number()..=sealed.header.last_number;
        self.change(|segments| {
            let from = segments.sealed.partition_point(|old| old.number() < *numbers.start());
            let to = segments.sealed.partition_point(|old| old.number() <= *numbers.end());
            sealed.generation = segments.sealed[from].generation + 1;
            segments.sealed.splice(from..to, [sealed]);
            segments.pinned.clear();
        });
        lock(&self.opened).retain(|opened| !numbers.contains(&opened.sealed.number()));
    }

    fn change(&self, change: impl FnOnce(&mut Segments)) {
        change(&mut self.segments.write().unwrap_or_else(PoisonError::into_inner));
    }

    /// Where the first durable entry at or after `index` is.
    pub(super) fn locate(&self, mut index: LogIndex) -> Result<Place, Misplaced> {
        loop {
            let (active, sealed) = self.segments(|segments| {
                let at = segments.sealed.partition_point(|sealed| sealed.trailer.last_index < index);
                (Arc::clone(&segments.active), segments.sealed.get(at).copied())
            });
            let Some(sealed) = sealed else {
                let (found, limit) = active.table(|table| (table.find(index), active.end.load(Ordering::Acquire)));
                let (index, offset) = found.ok_or(Misplaced::Absent)?;
                let (path, file, seed) = (active.path.clone(), Arc::clone(&active.file), active.identity.seed());
                return Ok(Place { path, file, seed, order: Order::Dense, index, offset, limit });
            };
            // Replaced meanwhile: look again.
            let Some(opened) = self.open_sealed(&sealed)? else { continue };
            match opened.table.find(index) {
                Some((index, offset)) => return self.place(&opened, index, offset),
                // Compaction left nothing there.
                None => index = sealed.trailer.last_index.next(),
            }
        }
    }

    fn place(&self, opened: &Opened, index: LogIndex, offset: u64) -> Result<Place, Misplaced> {
        let Opened { sealed: Sealed { header, trailer, .. }, file, .. } = opened;
        let (seed, order, limit) = (header.identity.seed(), header.order(), trailer.entries_end);
        let path = segment::path(&self.dir, header.identity.segment);
        if !(SEGMENT_HEADER_BYTES..limit).contains(&offset) {
            let what = format!("the table puts entry {index} at offset {offset}, where no entry can be");
            return Err(Misplaced::Damaged(Damage { file: path, offset: trailer.table_offset, what, indexes: None }));
        }
        Ok(Place { path, file: Arc::clone(file), seed, order, index, offset, limit })
    }

    /// Opens a sealed segment and reads its table, unless that was done lately. None if it was replaced and is not to be
    /// had any more.
    pub(super) fn open_sealed(&self, sealed: &Sealed) -> Result<Option<Arc<Opened>>, Misplaced> {
        {
            let mut opened = lock(&self.opened);
            if let Some(at) = opened.iter().position(|opened| opened.sealed == *sealed) {
                let found = opened.remove(at).expect("the position was just found");
                opened.push_back(Arc::clone(&found));
                return Ok(Some(found));
            }
        }
        let path = segment::path(&self.dir, sealed.number());
        let Some(file) = self.file_of(sealed).map_err(|error| Misplaced::Io(path.clone(), error))? else {
            return Ok(None);
        };
        let table = read_table(&*file, sealed).map_err(|error| Misplaced::Io(path.clone(), error))?;
        let table = table.ok_or_else(|| {
            let what = "the table of a sealed segment does not match its CRC".to_owned();
            let indexes = Some(sealed.header.first_index.0..=sealed.trailer.last_index.0);
            Misplaced::Damaged(Damage { file: path.clone(), offset: sealed.trailer.table_offset, what, indexes })
        })?;
        let found = Arc::new(Opened { sealed: *sealed, file, table });
        let mut opened = lock(&self.opened);
        if opened.len() == OPEN_SEGMENTS_MAX {
            opened.pop_front();
        }
        opened.push_back(Arc::clone(&found));
        Ok(Some(found))
    }

    /// The file of a sealed segment. None if it was replaced meanwhile.
    pub(super) fn file_of(&self, sealed: &Sealed) -> io::Result<Option<Arc<dyn File>>> {
        let pinned =
            self.segments(|segments| segments.sealed.contains(sealed).then(|| segments.pinned(sealed.number())));
        match pinned {
            None => return Ok(None),
            Some(Some(file)) => return Ok(Some(file)),
            Some(None) => {}
        }
        let file = self.disk.open(&segment::path(&self.dir, sealed.number()));
        // A segment is pinned before its name leads to another file. So if it is not pinned now, this was the right one.
        if self.segments(|segments| segments.is_current(sealed)) { file.map(Some) } else { Ok(None) }
    }

    fn segments<T>(&self, look: impl FnOnce(&Segments) -> T) -> T {
        look(&self.segments.read().unwrap_or_else(PoisonError::into_inner))
    }
}

/// Reads a sealed segment's table. None if it is damaged.
pub(super) fn read_table(file: &dyn File, sealed: &Sealed) -> io::Result<Option<Table>> {
    let Sealed { header, trailer, .. } = sealed;
    let end = header.file_bytes - segment::TRAILER_BYTES;
    if trailer.table_offset > end {
        return Ok(None);
    }
    let mut frame = vec![0; (end - trailer.table_offset) as usize];
    file.read_at(&mut frame, trailer.table_offset)?;
    Ok(segment::decode_table(header.identity.seed(), header.first_index, trailer, &frame))
}
