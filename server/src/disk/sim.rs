//! A disk in memory that can do what real disks do on bad days. Deterministic: the same calls and seeds give the same
//! bytes.
//!
//! Each file keeps what is durable apart from what was written since the last sync, and so does the table of names.
//! [`SimDisk::crash_image`] makes the disk that a machine would find after losing power now, by a choice of
//! [`Survivors`]. [`SimDisk::crash_at`] stops the world at a chosen operation: it and all later ones fail, as
//! for a process that is no more. [`SimDisk::fail`] makes operations fail while the process lives on.
//!
//! Two rules are harsher than many real disks: a name is durable only after its directory was synced, and bytes that
//! were pending at a *failed* sync stay readable but are never made durable by a later one ("fsyncgate").

use std::collections::{BTreeMap, BTreeSet, HashSet};
use std::io;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};

use super::{DirLock, Disk, File};

/// What a disk writes in one piece.
pub const SECTOR_BYTES: usize = 512;

/// An operation of the disk, as counted and as chosen for a fault.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
pub enum Operation {
    /// [`Disk::create`].
    Create,
    /// [`File::write_at`] and [`File::set_size`].
    Write,
    /// [`File::sync_data`].
    Sync,
    /// [`Disk::rename`].
    Rename,
    /// [`Disk::link`].
    Link,
    /// [`Disk::remove`].
    Remove,
    /// [`Disk::sync_dir`].
    SyncDir,
    /// [`File::read_at`].
    Read,
}

/// When a crash strikes.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Moment {
    /// The operation does not happen.
    Before,
    /// The operation happens, and nobody learns of it.
    After,
}

/// How long a fault lasts.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Lasting {
    /// For one operation.
    Once,
    /// For that operation and all later ones of its kind.
    Forever,
}

/// What unsynced work outlives a crash.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Survivors {
    /// Only what was synced.
    Synced,
    /// Everything, as after the death of the process alone.
    Everything,
    /// Everything up to the last write, and this many bytes of it.
    TornLastWrite {
        /// How many bytes of the last write arrived.
        bytes: usize,
    },
    /// Any sectors of the unsynced writes, and any of the unsynced names, by a seed.
    Random(u64),
}

/// A simulated disk. Clones are the same disk.
#[derive(Clone, Debug, Default)]
pub struct SimDisk(Arc<Mutex<State>>);

#[derive(Clone, Debug, Default)]
struct State {
    names: Names,
    durable_names: Names,
    pending_names: Vec<NameChange>,
    inodes: Vec<Inode>,
    locks: HashSet<PathBuf>,
    counts: BTreeMap<Operation, u64>,
    faults: Vec<Fault>,
    crash: Option<(Operation, u64, Moment)>,
    crashed: bool,
    capacity_bytes: Option<u64>,
    unreadable: Vec<(PathBuf, Range<u64>)>,
    last_write: Option<usize>,
}

type Names = BTreeMap<PathBuf, usize>;

#[derive(Clone, Debug)]
enum NameChange {
    Link(PathBuf, usize),
    Unlink(PathBuf),
    Rename(PathBuf, PathBuf, usize),
}

#[derive(Clone, Debug, Default)]
struct Inode {
    /// What a reader sees.
    current: Vec<u8>,
    /// What survives any crash.
    durable: Vec<u8>,
    /// Writes since the last sync.
    pending: Vec<Change>,
    /// Writes whose sync failed: they may or may not have arrived, and no later sync covers them. Only writing the
    /// same place again does.
    limbo: Vec<Change>,
}

#[derive(Clone, Debug)]
enum Change {
    Write(usize, Vec<u8>),
    Size(usize),
}

#[derive(Clone, Debug)]
struct Fault {
    operation: Operation,
    nth: u64,
    lasting: Lasting,
    kind: io::ErrorKind,
}

impl SimDisk {
    /// An empty disk without limits.
    pub fn new() -> SimDisk {
        SimDisk::default()
    }

    /// An independent copy of this disk in its present state, without its locks, plans and counts.
    #[must_use]
    pub fn fork(&self) -> SimDisk {
        let state = self.state();
        let fresh = State {
            names: state.names.clone(),
            durable_names: state.durable_names.clone(),
            pending_names: state.pending_names.clone(),
            inodes: state.inodes.clone(),
            capacity_bytes: state.capacity_bytes,
            last_write: state.last_write,
            ..State::default()
        };
        SimDisk(Arc::new(Mutex::new(fresh)))
    }

    /// How many operations of a kind were tried so far.
    pub fn count(&self, operation: Operation) -> u64 {
        self.state().counts.get(&operation).copied().unwrap_or(0)
    }

    /// Plans a crash at the `nth` operation of a kind from now, counted from 1.
    pub fn crash_at(&self, operation: Operation, nth: u64, moment: Moment) {
        let mut state = self.state();
        let done = state.counts.get(&operation).copied().unwrap_or(0);
        state.crash = Some((operation, done + nth, moment));
    }

    /// Whether a planned crash has happened.
    pub fn crashed(&self) -> bool {
        self.state().crashed
    }

    /// Plans that the `nth` operation of a kind from now, counted from 1, fails.
    pub fn fail(&self, operation: Operation, nth: u64, lasting: Lasting, kind: io::ErrorKind) {
        let mut state = self.state();
        let done = state.counts.get(&operation).copied().unwrap_or(0);
        state.faults.push(Fault { operation, nth: done + nth, lasting, kind });
    }

    /// Takes back all plans of [`SimDisk::fail`].
    pub fn heal(&self) {
        let mut state = self.state();
        state.faults.clear();
        state.unreadable.clear();
    }

    /// Limits the sum of all files' lengths; writes beyond it fail with [`io::ErrorKind::StorageFull`].
    pub fn set_capacity(&self, bytes: Option<u64>) {
        self.state().capacity_bytes = bytes;
    }

    /// Makes a range of a file unreadable: reads that touch it fail.
    pub fn make_unreadable(&self, path: &Path, range: Range<u64>) {
        self.state().unreadable.push((path.to_owned(), range));
    }

    /// The bytes of a file as they are now.
    pub fn bytes(&self, path: &Path) -> Option<Vec<u8>> {
        let state = self.state();
        state.names.get(path).map(|inode| state.inodes[*inode].current.clone())
    }

    /// Puts a durable file onto the disk, in place of what has that name.
    pub fn put(&self, path: &Path, bytes: Vec<u8>) {
        let mut state = self.state();
        let inode = state.inodes.len();
        state.inodes.push(Inode { current: bytes.clone(), durable: bytes, ..Inode::default() });
        state.names.insert(path.to_owned(), inode);
        state.durable_names.insert(path.to_owned(), inode);
    }

    /// Changes one byte of a file behind everybody's back, durably. Answers the byte that was there.
    pub fn damage(&self, path: &Path, offset: usize, byte: u8) -> u8 {
        let mut state = self.state();
        let inode = state.names.get(path).copied().expect("damage is done to a file that exists");
        let inode = &mut state.inodes[inode];
        if let Some(durable) = inode.durable.get_mut(offset) {
            *durable = byte;
        }
        std::mem::replace(&mut inode.current[offset], byte)
    }

    /// The disk that a machine would find if the power failed now.
    #[must_use]
    pub fn crash_image(&self, survivors: Survivors) -> SimDisk {
        let state = self.state();
        let mut random = match survivors {
            Survivors::Random(seed) => Some(Random::new(seed)),
            _ => None,
        };
        let names = state.surviving_names(survivors, random.as_mut());
        let inodes = (0..state.inodes.len()).map(|inode| state.surviving(inode, survivors, random.as_mut()));
        let inodes = inodes.map(|bytes| Inode { current: bytes.clone(), durable: bytes, ..Inode::default() }).collect();
        let after = State {
            names: names.clone(),
            durable_names: names,
            inodes,
            capacity_bytes: state.capacity_bytes,
            ..State::default()
        };
        SimDisk(Arc::new(Mutex::new(after)))
    }

    /// The length of the last write, if nothing was synced since: how far [`Survivors::TornLastWrite`] can go.
    pub fn last_write_bytes(&self) -> Option<usize> {
        let state = self.state();
        match state.inodes[state.last_write?].pending.last()? {
            Change::Write(_, bytes) => Some(bytes.len()),
            Change::Size(_) => None,
        }
    }

    fn state(&self) -> MutexGuard<'_, State> {
        self.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn file(&self, path: &Path, inode: usize) -> Arc<dyn File> {
        Arc::new(SimFile { disk: self.clone(), path: path.to_owned(), inode })
    }
}

impl State {
    /// Counts an operation; fails if one of the plans says so. `Ok(true)` asks the caller to do it and then to crash.
    fn begin(&mut self, operation: Operation) -> io::Result<bool> {
        if self.crashed {
            return Err(io::Error::other("the simulated machine has crashed"));
        }
        let count = self.counts.entry(operation).or_insert(0);
        *count += 1;
        let count = *count;
        if let Some((planned, nth, moment)) = self.crash
            && planned == operation
            && nth == count
        {
            self.crashed = true;
            return match moment {
                Moment::Before => Err(io::Error::other("the simulated machine has crashed")),
                Moment::After => Ok(true),
            };
        }
        let fault = self.faults.iter().find(|fault| {
            fault.operation == operation
                && (fault.nth == count || (fault.lasting == Lasting::Forever && fault.nth <= count))
        });
        match fault {
            Some(fault) => Err(io::Error::new(fault.kind, "injected fault")),
            None => Ok(false),
        }
    }

    fn used_bytes(&self) -> u64 {
        let linked: HashSet<usize> = self.names.values().copied().collect();
        linked.into_iter().map(|inode| self.inodes[inode].current.len() as u64).sum()
    }

    /// A write that makes nothing longer needs no room, even on a disk that is over-full.
    fn room_for(&self, growth_bytes: usize) -> bool {
        growth_bytes == 0
            || self.capacity_bytes.is_none_or(|capacity| self.used_bytes() + growth_bytes as u64 <= capacity)
    }

    fn change_names(&mut self, change: NameChange) {
        change.apply(&mut self.names);
        self.pending_names.push(change);
    }

    fn surviving_names(&self, survivors: Survivors, mut random: Option<&mut Random>) -> Names {
        let mut names = self.durable_names.clone();
        for change in &self.pending_names {
            let survives = match survivors {
                Survivors::Synced => false,
                Survivors::Everything | Survivors::TornLastWrite { .. } => true,
                Survivors::Random(_) => random.as_mut().is_some_and(|random| random.coin()),
            };
            if survives {
                change.apply(&mut names);
            }
        }
        names
    }

    fn surviving(&self, inode: usize, survivors: Survivors, mut random: Option<&mut Random>) -> Vec<u8> {
        let is_last = self.last_write == Some(inode);
        let inode = &self.inodes[inode];
        let mut bytes = inode.durable.clone();
        // How likely a sector survives differs from image to image, so that sparse and dense losses are both seen.
        let odds = random.as_mut().map_or(0, |random| random.below(16));
        let changes = inode.limbo.len() + inode.pending.len();
        for (nth, change) in inode.limbo.iter().chain(&inode.pending).enumerate() {
            match (survivors, change) {
                (Survivors::Synced, _) => {}
                (Survivors::TornLastWrite { bytes: kept }, Change::Write(offset, written))
                    if is_last && nth + 1 == changes =>
                {
                    write(&mut bytes, *offset, &written[..kept.min(written.len())]);
                }
                (Survivors::Everything | Survivors::TornLastWrite { .. }, change) => change.apply(&mut bytes),
                (Survivors::Random(_), change) => {
                    let random = random.as_mut().expect("a random image has a generator");
                    change.apply_some_sectors(&mut bytes, odds, random);
                }
            }
        }
        bytes
    }
}

impl NameChange {
    fn apply(&self, names: &mut Names) {
        match self {
            NameChange::Link(path, inode) => {
                names.insert(path.clone(), *inode);
            }
            NameChange::Unlink(path) => {
                names.remove(path);
            }
            NameChange::Rename(from, to, inode) => {
                names.remove(from);
                names.insert(to.clone(), *inode);
            }
        }
    }
}

impl Change {
    fn apply(&self, bytes: &mut Vec<u8>) {
        match self {
            Change::Write(offset, written) => write(bytes, *offset, written),
            Change::Size(size) => bytes.resize(*size, 0),
        }
    }

    /// What is left of this write when a later one has taken its place.
    fn without(self, later: &Change) -> Vec<Change> {
        let (Change::Write(offset, bytes), Change::Write(later_offset, later_bytes)) = (&self, later) else {
            return vec![self];
        };
        let (start, end) = (*offset, offset + bytes.len());
        let (cut_start, cut_end) =
            ((*later_offset).clamp(start, end), (later_offset + later_bytes.len()).clamp(start, end));
        let rest = [(start, cut_start), (cut_end, end)];
        let rest = rest.into_iter().filter(|(from, to)| from < to);
        rest.map(|(from, to)| Change::Write(from, bytes[from - start..to - start].to_vec())).collect()
    }

    fn apply_some_sectors(&self, bytes: &mut Vec<u8>, odds: u64, random: &mut Random) {
        let Change::Write(offset, written) = self else {
            return if random.coin() {
                self.apply(bytes);
            };
        };
        let mut from = *offset;
        let end = offset + written.len();
        while from < end {
            let to = end.min((from / SECTOR_BYTES + 1) * SECTOR_BYTES);
            if random.below(16) < odds {
                write(bytes, from, &written[from - offset..to - offset]);
            }
            from = to;
        }
    }
}

fn write(bytes: &mut Vec<u8>, offset: usize, written: &[u8]) {
    if bytes.len() < offset + written.len() {
        bytes.resize(offset + written.len(), 0);
    }
    bytes[offset..offset + written.len()].copy_from_slice(written);
}

fn not_found(path: &Path) -> io::Error {
    io::Error::new(io::ErrorKind::NotFound, format!("{} does not exist", path.display()))
}

impl Disk for SimDisk {
    fn create_dir_all(&self, _dir: &Path) -> io::Result<()> {
        Ok(())
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        let names = state.names.keys().filter(|path| path.parent() == Some(dir));
        Ok(names.filter_map(|path| Some(path.file_name()?.to_string_lossy().into_owned())).collect())
    }

    fn directories(&self, dir: &Path) -> io::Result<Vec<String>> {
        let state = self.state();
        let below = state.names.keys().filter_map(|path| path.parent()?.strip_prefix(dir).ok()?.components().next());
        let names: BTreeSet<String> = below.map(|name| name.as_os_str().to_string_lossy().into_owned()).collect();
        Ok(names.into_iter().collect())
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        self.open_rw(path)
    }

    fn open_rw(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let inode = self.state().names.get(path).copied().ok_or_else(|| not_found(path))?;
        Ok(self.file(path, inode))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        let mut state = self.state();
        state.begin(Operation::Create)?;
        if state.names.contains_key(path) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = state.inodes.len();
        state.inodes.push(Inode::default());
        state.change_names(NameChange::Link(path.to_owned(), inode));
        drop(state);
        Ok(self.file(path, inode))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.begin(Operation::Rename)?;
        let inode = state.names.get(from).copied().ok_or_else(|| not_found(from))?;
        state.change_names(NameChange::Rename(from.to_owned(), to.to_owned(), inode));
        Ok(())
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.begin(Operation::Link)?;
        if state.names.contains_key(to) {
            return Err(io::ErrorKind::AlreadyExists.into());
        }
        let inode = state.names.get(from).copied().ok_or_else(|| not_found(from))?;
        state.change_names(NameChange::Link(to.to_owned(), inode));
        Ok(())
    }

    fn copy(&self, from: &Path, to: &Path) -> io::Result<u64> {
        let bytes = self.bytes(from).ok_or_else(|| not_found(from))?;
        let file = self.create(to)?;
        file.write_at(&bytes, 0)?;
        file.sync_data()?;
        Ok(bytes.len() as u64)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.begin(Operation::Remove)?;
        if !state.names.contains_key(path) {
            return Err(not_found(path));
        }
        state.change_names(NameChange::Unlink(path.to_owned()));
        Ok(())
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        let mut state = self.state();
        state.begin(Operation::SyncDir)?;
        let pending = std::mem::take(&mut state.pending_names);
        for change in pending {
            let path = match &change {
                NameChange::Link(path, _) | NameChange::Unlink(path) | NameChange::Rename(_, path, _) => path,
            };
            if path.parent() == Some(dir) {
                change.apply(&mut state.durable_names);
            } else {
                state.pending_names.push(change);
            }
        }
        Ok(())
    }

    fn lock(&self, dir: &Path) -> io::Result<DirLock> {
        if !self.state().locks.insert(dir.to_owned()) {
            return Err(io::ErrorKind::WouldBlock.into());
        }
        Ok(DirLock::new(SimLock { disk: self.clone(), dir: dir.to_owned() }))
    }
}

struct SimLock {
    disk: SimDisk,
    dir: PathBuf,
}

impl Drop for SimLock {
    fn drop(&mut self) {
        self.disk.state().locks.remove(&self.dir);
    }
}

#[derive(Debug)]
struct SimFile {
    disk: SimDisk,
    path: PathBuf,
    inode: usize,
}

impl SimFile {
    fn change(&self, change: Change) -> io::Result<()> {
        let mut state = self.disk.state();
        let planned = state.begin(Operation::Write);
        let size = state.inodes[self.inode].current.len();
        let (wanted, partial) = match &change {
            Change::Write(offset, bytes) => {
                (offset + bytes.len(), Change::Write(*offset, bytes[..bytes.len() / 2].to_vec()))
            }
            Change::Size(wanted) => (*wanted, Change::Size(size)),
        };
        let outcome = match planned {
            Ok(_) if !state.room_for(wanted.saturating_sub(size)) => Err(io::ErrorKind::StorageFull.into()),
            Ok(_) => Ok(()),
            Err(error) if state.crashed => return Err(error),
            Err(error) => Err(error),
        };
        // A write that fails may have done its first half.
        let change = if outcome.is_ok() { change } else { partial };
        let inode = &mut state.inodes[self.inode];
        change.apply(&mut inode.current);
        inode.pending.push(change);
        state.last_write = Some(self.inode);
        if state.crashed { Err(io::Error::other("the simulated machine has crashed")) } else { outcome }
    }
}

impl File for SimFile {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.disk.state().inodes[self.inode].current.len() as u64)
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        let mut state = self.disk.state();
        state.begin(Operation::Read)?;
        let end = offset + buffer.len() as u64;
        if state.unreadable.iter().any(|(path, bad)| *path == self.path && bad.start < end && offset < bad.end) {
            return Err(io::Error::other("injected read error"));
        }
        let bytes = &state.inodes[self.inode].current;
        let bytes = bytes.get(offset as usize..end as usize).ok_or(io::ErrorKind::UnexpectedEof)?;
        buffer.copy_from_slice(bytes);
        Ok(())
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.change(Change::Write(offset as usize, bytes.to_vec()))
    }

    fn sync_data(&self) -> io::Result<()> {
        let mut state = self.disk.state();
        let outcome = state.begin(Operation::Sync);
        if outcome.is_err() && state.crashed {
            return outcome.map(|_| ());
        }
        let crashes = state.crashed;
        let inode = &mut state.inodes[self.inode];
        let pending = std::mem::take(&mut inode.pending);
        if let Err(error) = outcome {
            inode.limbo.extend(pending);
            return Err(error);
        }
        for change in pending {
            change.apply(&mut inode.durable);
            inode.limbo = std::mem::take(&mut inode.limbo).into_iter().flat_map(|old| old.without(&change)).collect();
        }
        if crashes { Err(io::Error::other("the simulated machine has crashed")) } else { Ok(()) }
    }

    fn set_size(&self, size_bytes: u64) -> io::Result<()> {
        self.change(Change::Size(size_bytes as usize))
    }
}

/// SplitMix64: small, seeded, good enough to choose sectors.
#[derive(Clone, Debug)]
pub struct Random(u64);

impl Random {
    /// A generator whose numbers follow from the seed.
    pub fn new(seed: u64) -> Random {
        Random(seed)
    }

    /// The next number.
    pub fn next_u64(&mut self) -> u64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut mixed = self.0;
        mixed = (mixed ^ (mixed >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        mixed = (mixed ^ (mixed >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        mixed ^ (mixed >> 31)
    }

    /// A number below the bound, which is not zero.
    pub fn below(&mut self, bound: u64) -> u64 {
        self.next_u64() % bound
    }

    /// One or the other.
    pub fn coin(&mut self) -> bool {
        self.next_u64() & 1 == 1
    }
}
