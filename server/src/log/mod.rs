//! The log: an append-only sequence of entries, each a batch of facts that became durable together.
//!
//! ```text
//! EntryBuilder -> Entry -> Log::append -> [queue] -> one write, one sync -> durable() -> done
//!                                                        Log::read, Log::scan  <- only what is durable
//! ```
//!
//! It promises:
//! * `done` hears of success after the entry is durable, and in the order of the entries;
//! * what was durable is found again, byte for byte, or it is refused: [`Log::open`] cuts off an unfinished write and
//!   nothing else, and no read answers with bytes that were not checked;
//! * the first write or sync that fails ends the log for the life of the process: nobody knows what is on the disk then;
//! * a lack of space is known before an entry is appended, by [`Log::reserve`], and passes when there is space again;
//! * compaction takes out what it was told to and nothing else: what is left keeps its LSN, and a crash leaves the old
//!   segments or the new one.
//!
//! It knows bytes and log indexes. It does not know what a fact says, what state follows from it, or how it came here.
//! The format is in `docs/log-format.md`. Layers, from the bottom: `frame`, `entry` and `segment` are bytes;
//! `walk` decodes; `segment_file` writes and reads whole files; `tail` and `recovery` judge what is found; `writer` appends
//! and `catalog` shows it to `reader`; `compact` and `copy` make new files of old ones; `driver` has the threads.

mod catalog;
mod compact;
mod copy;
mod driver;
mod entry;
mod error;
mod frame;
#[cfg(any(test, feature = "testing"))]
mod inline;
mod prepare;
mod reader;
mod recovery;
mod report;
mod segment;
mod segment_file;
mod tail;
#[cfg(test)]
mod tests;
mod verify;
mod walk;
mod writer;

use std::ops::{ControlFlow, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use bytes::Bytes;
use fencepost::{LogIndex, Lsn};
use tokio::sync::{mpsc, watch};
use uuid::Uuid;

pub use compact::{Compacted, Fate};
pub use copy::{CopiedFile, CopiedLog, copy_through};
pub use driver::{Done, Room};
pub use entry::{Entry, EntryBuilder, FACTS_MAX};
pub use error::{CompactError, CopyError, Damage, Failure, LogError, OpenError, ReadError, SegmentFileError};
#[cfg(any(test, feature = "testing"))]
pub use inline::InlineLog;
pub use reader::{Entries, Scan};
pub use report::{Inspector, SegmentReport, Tail, VerifyReport};
pub use segment::{Content, SegmentLabel};
pub use segment_file::{SegmentFileReader, SegmentFileSummary, SegmentFileWriter};
pub use verify::verify;
pub use walk::ReadEntry;

use crate::clock::Clock;
use crate::disk::{DirLock, Disk};
use catalog::{Catalog, lock};
use driver::Board;
use recovery::Recovered;
use writer::Writer;

/// Sizes. The defaults are for production; tests use small ones.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct LogConfig {
    /// Length of a new segment. Those that exist keep theirs.
    pub segment_bytes: u64,
    /// The longest entry that is taken, framing included.
    pub entry_bytes_max: u64,
    /// A group takes no further entry when it has this many bytes.
    pub write_bytes_max: usize,
}

impl Default for LogConfig {
    fn default() -> LogConfig {
        LogConfig { segment_bytes: 64 << 20, entry_bytes_max: 16 << 20, write_bytes_max: 1 << 20 }
    }
}

impl LogConfig {
    /// For who opens a log to do something to it, and appends next to nothing.
    pub fn for_upkeep(segment_bytes: u64) -> LogConfig {
        LogConfig { segment_bytes, entry_bytes_max: 64 << 10, write_bytes_max: 64 << 10 }
    }

    fn check(&self) -> Result<(), OpenError> {
        let bytes_max = segment::entry_bytes_max(self.segment_bytes);
        if self.segment_bytes > u64::from(u32::MAX) || !self.segment_bytes.is_multiple_of(512) {
            let found = self.segment_bytes;
            return Err(OpenError::Config(format!("segment_bytes must be a multiple of 512 below 4 GiB, not {found}")));
        }
        if self.entry_bytes_max > bytes_max {
            let (wanted, segment_bytes) = (self.entry_bytes_max, self.segment_bytes);
            return Err(OpenError::Config(format!(
                "an entry of entry_bytes_max {wanted} does not fit into a segment of {segment_bytes} bytes: use at \
                 most {bytes_max}, or longer segments"
            )));
        }
        Ok(())
    }
}

/// The state of a log, for people and metrics.
#[derive(Clone, Debug)]
pub struct LogStatus {
    /// The oldest position that is kept.
    pub first: Lsn,
    /// The last entry that is durable.
    pub last_index: LogIndex,
    /// How many segments there are.
    pub segments: usize,
    /// How long their files are together.
    pub bytes: u64,
    /// The failure that ended the log, if one did.
    pub failure: Option<Arc<Failure>>,
}

/// A sealed segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentInfo {
    /// The numbers that it stands for: several after compaction, otherwise one.
    pub numbers: RangeInclusive<u64>,
    /// The first index that belongs to it, whether or not its entry is left.
    pub first_index: LogIndex,
    /// The last index that belongs to it, whether or not its entry is left.
    pub last_index: LogIndex,
    /// The length of its file.
    pub file_bytes: u64,
    /// How many facts it has.
    pub facts: u64,
    /// The newest state by which facts of it were judged dispensable; zero if it was never compacted.
    pub judged_at: Lsn,
}

/// An open log. Dropping it closes it.
pub struct Log {
    catalog: Arc<Catalog>,
    board: Arc<Board>,
    threads: Mutex<Vec<JoinHandle<()>>>,
    fresh: bool,
    lock: Mutex<Option<DirLock>>,
}

impl Log {
    /// Opens the log in `dir`, or makes one there with the given id if there is none. Takes the directory for this
    /// process.
    ///
    /// It checks all headers and trailers, and every byte of the newest segment. Damage elsewhere is found by whoever
    /// reads there, and by [`verify`].
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        config: LogConfig,
        clock: Clock,
        log_id_if_fresh: Uuid,
    ) -> Result<Log, OpenError> {
        let (lock, recovered) = open_directory(&*disk, dir, &config, log_id_if_fresh)?;
        let fresh = recovered.fresh;
        let catalog = Arc::new(Catalog::new(disk, dir, &recovered));
        let writer = Writer::new(recovered, Arc::clone(&catalog));
        let board = Arc::new(Board::new(&config, clock, &writer));
        let log = Log { catalog, board, threads: Mutex::default(), fresh, lock: Mutex::new(Some(lock)) };
        // If a thread cannot be had, dropping the log ends the other one.
        log.start(writer).map_err(|source| OpenError::Io {
            action: "start a thread for",
            path: dir.to_owned(),
            source,
        })?;
        Ok(log)
    }

    fn start(&self, writer: Writer) -> std::io::Result<()> {
        let (board, catalog) = (Arc::clone(&self.board), Arc::clone(&self.catalog));
        let preparer = move || board.prepare(&*catalog.disk, &catalog.dir);
        lock(&self.threads).push(thread::Builder::new().name("log-prepare".into()).spawn(preparer)?);
        let board = Arc::clone(&self.board);
        let writing = thread::Builder::new().name("log-write".into()).spawn(move || board.write(writer));
        // Without a writer nobody else would end the other thread.
        lock(&self.threads).push(writing.inspect_err(|_| self.board.abandon())?);
        Ok(())
    }

    /// The log's identity, given when it was made.
    pub fn log_id(&self) -> Uuid {
        self.catalog.log_id
    }

    /// Whether [`Log::open`] found nothing and made it.
    pub fn is_fresh(&self) -> bool {
        self.fresh
    }

    /// Waits until it is known whether an entry of this many bytes, appended next, will find room behind what is
    /// queued. One caller at a time: reserve, apply, append. While the next segment cannot be had, the last 256 KiB of
    /// this one are for [`Room::Essential`].
    pub fn reserve(&self, entry_bytes: usize, room: Room) -> Result<(), LogError> {
        self.board.reserve(entry_bytes as u64, room)
    }

    /// Queues an entry. `done` is called once in any case, with the entry's index when it is durable; on the writer's
    /// thread, so it must be quick.
    ///
    /// An entry that was not reserved and finds no room ends the log, as its facts were already believed.
    ///
    /// # Panics
    /// If the entry does not follow the one appended before it.
    pub fn append(&self, entry: Entry, done: impl FnOnce(Result<LogIndex, LogError>) + Send + 'static) {
        self.board.append(entry, Box::new(done));
    }

    /// Follows the last durable entry.
    pub fn durable(&self) -> watch::Receiver<LogIndex> {
        self.catalog.durable.subscribe()
    }

    /// The last durable entry; zero if there is none.
    pub fn last_index(&self) -> LogIndex {
        self.catalog.last_index()
    }

    /// The oldest position that is kept, or the first that there will be.
    pub fn first_lsn(&self) -> Lsn {
        Lsn::new(self.catalog.first_index(), 0)
    }

    /// The payload of one durable fact.
    pub fn read(&self, lsn: Lsn) -> Result<Bytes, ReadError> {
        reader::read(&self.catalog, lsn)
    }

    /// The durable facts from a position on, in order. See [`Scan`] for how to follow the log with it.
    pub fn scan(&self, from: Lsn) -> Scan {
        Scan::new(Arc::clone(&self.catalog), from)
    }

    /// The durable entries from an index on, in order.
    pub fn entries(&self, from: LogIndex) -> Entries {
        Entries::new(Arc::clone(&self.catalog), from)
    }

    /// The sealed segments, in order.
    pub fn sealed(&self) -> Vec<SegmentInfo> {
        self.catalog.sealed().iter().map(catalog::Sealed::info).collect()
    }

    /// Follows the last index that is in a sealed segment. It changes at each rotation.
    pub fn seals(&self) -> watch::Receiver<LogIndex> {
        self.catalog.seals.subscribe()
    }

    /// The last index that is in a sealed segment; zero if there is none.
    pub fn sealed_through(&self) -> LogIndex {
        *self.catalog.seals.borrow()
    }

    /// The newest state by which facts anywhere in the log were judged dispensable; zero if it was never compacted.
    pub fn judged_at(&self) -> Lsn {
        self.catalog.judged_at()
    }

    /// Makes one segment of a run of sealed ones, without the facts that `judge` drops and with others in the form that it
    /// gives them. `judged_at` is the position of the state by which it judges, which must cover the run.
    ///
    /// Every byte is checked on the way. `pace` hears how many bytes were read or written since it was called last; it
    /// may wait, and it may stop everything, which then has no effect. Appending and reading go on meanwhile. One
    /// compaction or snapshot runs at a time; a second one waits.
    pub fn compact(
        &self,
        run: RangeInclusive<u64>,
        judged_at: Lsn,
        judge: &mut dyn FnMut(Lsn, &Bytes) -> Fate,
        pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Compacted, CompactError> {
        compact::compact(&self.catalog, run, judged_at, judge, pace)
    }

    /// Makes a copy of everything that is durable now, in an empty directory that exists. Sealed segments are linked, or
    /// copied where the file system cannot do that; the others' bytes are checked on the way. The copy is a log that
    /// [`Log::open`] and [`verify`] take; its name is for the caller to make durable. `pace` is as in [`Log::compact`].
    pub fn snapshot_into(
        &self,
        dir: &Path,
        pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<CopiedLog, CopyError> {
        copy::snapshot(&self.catalog, dir, pace)
    }

    /// Reads a sealed segment, named by its first number, from the disk and checks every byte of it. Lists the damage, up
    /// to a hundred places; what the disk cannot read counts as damage. A segment that is not there is not damaged: it was
    /// replaced meanwhile. `pace` is as in [`Log::compact`]; if it stops the check, what was found until then counts.
    pub fn check_segment(&self, number: u64, pace: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<(), Vec<Damage>> {
        verify::check_segment(&self.catalog, number, pace)
    }

    /// Keeps the sealed segments as they are, as long as the result lives.
    pub fn hold_compaction(&self) -> impl Drop + '_ {
        lock(&self.catalog.upkeep)
    }

    /// From here on no fact was ever removed.
    pub fn floor(&self) -> Lsn {
        let sealed = self.catalog.sealed();
        let newest_gap = sealed.iter().rev().find(|segment| segment.header.judged_at > Lsn::ZERO);
        newest_gap.map_or(self.first_lsn(), |segment| Lsn::new(segment.trailer.last_index.next(), 0))
    }

    /// Whatever damage readers meet from now on is told here, too, each time that one meets it. Only the first call counts.
    pub fn tell_damage(&self, to: mpsc::UnboundedSender<Damage>) {
        // Somebody hears of it already.
        let _ = self.catalog.damage.set(to);
    }

    /// How long the write in flight has been waiting for the disk; zero if there is none.
    pub fn stalled_for(&self) -> Duration {
        self.board.stalled_for()
    }

    /// Why the next segment cannot be had, as long as that is so: only the room that is left is used up.
    pub fn no_space(&self) -> Option<String> {
        self.board.no_space()
    }

    /// If there was no room for the next segment, leaves what room there is to others, as long as the result lives.
    pub fn leave_room(&self) -> Option<impl Drop + '_> {
        self.board.hold()
    }

    /// How the log is.
    pub fn status(&self) -> LogStatus {
        let (segments, bytes) = self.catalog.size();
        let (first, last_index) = (self.first_lsn(), self.last_index());
        LogStatus { first, last_index, segments, bytes, failure: self.board.failure() }
    }

    /// Takes nothing more, finishes what is queued, and gives the directory back. Reading goes on to work.
    pub fn close(&self) {
        self.board.close();
        for thread in std::mem::take(&mut *lock(&self.threads)) {
            // The last handle may be dropped by a `done`, on the writer's own thread.
            if thread.thread().id() != thread::current().id() {
                // A panic was reported where it happened, and everybody who waited was answered.
                let _ = thread.join();
            }
        }
        lock(&self.lock).take();
    }
}

impl Drop for Log {
    fn drop(&mut self) {
        self.close();
    }
}

impl std::fmt::Debug for Log {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("Log")
            .field("dir", &self.catalog.dir)
            .field("last_index", &self.last_index())
            .finish_non_exhaustive()
    }
}

/// Where the segment of this number would be, if all that are in the directory of a log are older.
pub fn missing_segment(disk: &dyn Disk, dir: &Path, number: u64) -> Option<PathBuf> {
    let newest = match disk.list(dir) {
        Ok(names) => names.iter().filter_map(|name| segment::number_of(name)).max().unwrap_or(0),
        Err(error) if error.kind() == std::io::ErrorKind::NotFound => 0,
        // Whoever opens the log hears of it.
        Err(_) => return None,
    };
    (newest < number).then(|| segment::path(dir, number))
}

/// Takes a directory and recovers the log in it.
fn open_directory(
    disk: &dyn Disk,
    dir: &Path,
    config: &LogConfig,
    log_id_if_fresh: Uuid,
) -> Result<(DirLock, Recovered), OpenError> {
    config.check()?;
    disk.create_dir_all(dir).map_err(recovery::io_error("create", dir))?;
    if let Some(parent) = dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        disk.sync_dir(parent).map_err(recovery::io_error("sync the directory", parent))?;
    }
    let lock = disk.lock(dir).map_err(|source| match source.kind() {
        std::io::ErrorKind::WouldBlock => OpenError::Locked { dir: dir.to_owned() },
        _ => OpenError::Io { action: "lock", path: dir.to_owned(), source },
    })?;
    let recovered = recovery::recover(disk, dir, config.segment_bytes, log_id_if_fresh)?;
    Ok((lock, recovered))
}
