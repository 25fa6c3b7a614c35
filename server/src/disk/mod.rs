//! The only door to the file system.
//!
//! [`Disk`] and [`File`] are the few operations that the log needs, no more. [`RealDisk`] hands them to the operating
//! system; `sim::SimDisk` keeps everything in memory, and crashes, tears, forgets, fills up and fails when a test
//! asks for it. Nothing here knows what the files mean.
//!
//! What a caller may rely on, from either disk:
//! * data is durable after [`File::sync_data`] and not before; unsynced writes may survive a crash in any order;
//! * a new, renamed or removed name is durable after [`Disk::sync_dir`] and not before; a rename is atomic;
//! * a failed sync says nothing about what reached the disk, and a second one that succeeds does not either.

use std::any::Any;
use std::fmt;
use std::io;
use std::path::Path;
use std::sync::Arc;

mod real;
#[cfg(any(test, feature = "testing"))]
pub mod sim;

pub use real::RealDisk;

/// Directories and names.
pub trait Disk: Send + Sync + fmt::Debug {
    /// Creates a directory and those above it; nothing happens if it exists.
    fn create_dir_all(&self, dir: &Path) -> io::Result<()>;
    /// The names of the files in a directory, sorted.
    fn list(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// The names of the directories in a directory, sorted.
    fn directories(&self, dir: &Path) -> io::Result<Vec<String>>;
    /// Opens an existing file for reading.
    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Opens an existing file for reading and writing.
    fn open_rw(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Creates a file that must not exist, for reading and writing.
    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>>;
    /// Gives a file another name, in place of the file that has that name, if any. Atomic.
    fn rename(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Gives a file a second name, which must not be taken. Fails with [`io::ErrorKind::Unsupported`],
    /// [`io::ErrorKind::CrossesDevices`] or [`io::ErrorKind::TooManyLinks`] where that cannot be.
    fn link(&self, from: &Path, to: &Path) -> io::Result<()>;
    /// Copies a file to a name that must not be taken, and makes the bytes durable. Answers how many.
    fn copy(&self, from: &Path, to: &Path) -> io::Result<u64>;
    /// Removes a name.
    fn remove(&self, path: &Path) -> io::Result<()>;
    /// Makes the names in a directory durable.
    fn sync_dir(&self, dir: &Path) -> io::Result<()>;
    /// Takes a directory for this process alone, until the lock is dropped. Fails with [`io::ErrorKind::WouldBlock`]
    /// if somebody else has it.
    fn lock(&self, dir: &Path) -> io::Result<DirLock>;
}

/// One open file. All access is by position, so that readers and the writer share it.
pub trait File: Send + Sync + fmt::Debug {
    /// The file's length.
    fn size_bytes(&self) -> io::Result<u64>;
    /// Fills the whole buffer; fails with [`io::ErrorKind::UnexpectedEof`] if the file ends before.
    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()>;
    /// Writes the whole buffer. After a failure any part of it may have been written.
    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()>;
    /// Makes everything written so far durable.
    fn sync_data(&self) -> io::Result<()>;
    /// Cuts the file, or extends it with zeros.
    fn set_size(&self, size_bytes: u64) -> io::Result<()>;
}

/// A directory held by this process. Dropping it gives the directory back.
pub struct DirLock {
    _held: Box<dyn Any + Send + Sync>,
}

impl DirLock {
    fn new(held: impl Any + Send + Sync) -> DirLock {
        DirLock { _held: Box::new(held) }
    }
}

impl fmt::Debug for DirLock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("DirLock")
    }
}

/// The name of the file that a lock is taken on.
const LOCK_FILE: &str = "LOCK";
