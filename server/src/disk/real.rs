//! The disk of the machine, by way of `std::fs`.

#![allow(clippy::disallowed_methods)] // This is the door that the lint points to.

use std::fs::{self, OpenOptions, TryLockError};
use std::io;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::Arc;

use super::{DirLock, Disk, File, LOCK_FILE};

/// The file system of this machine.
#[derive(Clone, Copy, Debug, Default)]
pub struct RealDisk;

impl Disk for RealDisk {
    fn create_dir_all(&self, dir: &Path) -> io::Result<()> {
        fs::create_dir_all(dir)
    }

    fn list(&self, dir: &Path) -> io::Result<Vec<String>> {
        names(dir, fs::FileType::is_file)
    }

    fn directories(&self, dir: &Path) -> io::Result<Vec<String>> {
        names(dir, fs::FileType::is_dir)
    }

    fn open(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(RealFile(fs::File::open(path)?)))
    }

    fn open_rw(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(RealFile(OpenOptions::new().read(true).write(true).open(path)?)))
    }

    fn create(&self, path: &Path) -> io::Result<Arc<dyn File>> {
        Ok(Arc::new(RealFile(OpenOptions::new().read(true).write(true).create_new(true).open(path)?)))
    }

    fn rename(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::rename(from, to)
    }

    fn link(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::hard_link(from, to).map_err(|error| match error.kind() {
            // What a file system says that knows no second names.
            io::ErrorKind::PermissionDenied => io::Error::new(io::ErrorKind::Unsupported, error),
            _ => error,
        })
    }

    fn copy(&self, from: &Path, to: &Path) -> io::Result<u64> {
        drop(OpenOptions::new().write(true).create_new(true).open(to)?);
        let copied = fs::copy(from, to)?;
        OpenOptions::new().write(true).open(to)?.sync_all()?;
        Ok(copied)
    }

    fn remove(&self, path: &Path) -> io::Result<()> {
        fs::remove_file(path)
    }

    fn sync_dir(&self, dir: &Path) -> io::Result<()> {
        fs::File::open(dir)?.sync_all()
    }

    fn lock(&self, dir: &Path) -> io::Result<DirLock> {
        let file = OpenOptions::new().write(true).create(true).truncate(false).open(dir.join(LOCK_FILE))?;
        match file.try_lock() {
            Ok(()) => Ok(DirLock::new(file)),
            Err(TryLockError::WouldBlock) => Err(io::ErrorKind::WouldBlock.into()),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }
}

/// For the index, whose database is several files in a directory that comes and goes as a whole, and for who looks on.
impl RealDisk {
    /// Removes a directory and everything in it; nothing happens if it is not there.
    pub fn remove_tree(&self, dir: &Path) -> io::Result<()> {
        match fs::remove_dir_all(dir) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
            result => result,
        }
    }

    /// Copies a directory and everything in it to a place that is not there yet. Nothing is made durable.
    pub fn copy_tree(&self, from: &Path, to: &Path) -> io::Result<()> {
        fs::create_dir_all(to)?;
        for name in self.list(from)? {
            fs::copy(from.join(&name), to.join(&name))?;
        }
        self.directories(from)?.iter().try_for_each(|name| self.copy_tree(&from.join(name), &to.join(name)))
    }

    /// Whether somebody has the lock of a directory; changes nothing there.
    pub fn is_locked(&self, dir: &Path) -> io::Result<bool> {
        let file = match fs::File::open(dir.join(LOCK_FILE)) {
            Err(error) if error.kind() == io::ErrorKind::NotFound => return Ok(false),
            opened => opened?,
        };
        match file.try_lock_shared() {
            Ok(()) => Ok(false),
            Err(TryLockError::WouldBlock) => Ok(true),
            Err(TryLockError::Error(error)) => Err(error),
        }
    }

    /// Waits until nobody has a lock on an existing file.
    pub fn wait_unlocked(&self, path: &Path) -> io::Result<()> {
        let file = fs::File::open(path)?;
        file.lock()?;
        file.unlock()
    }
}

fn names(dir: &Path, is_wanted: fn(&fs::FileType) -> bool) -> io::Result<Vec<String>> {
    let mut names = Vec::new();
    for entry in fs::read_dir(dir)? {
        let entry = entry?;
        if is_wanted(&entry.file_type()?) {
            names.push(entry.file_name().to_string_lossy().into_owned());
        }
    }
    names.sort();
    Ok(names)
}

#[derive(Debug)]
struct RealFile(fs::File);

impl File for RealFile {
    fn size_bytes(&self) -> io::Result<u64> {
        Ok(self.0.metadata()?.len())
    }

    fn read_at(&self, buffer: &mut [u8], offset: u64) -> io::Result<()> {
        self.0.read_exact_at(buffer, offset)
    }

    fn write_at(&self, bytes: &[u8], offset: u64) -> io::Result<()> {
        self.0.write_all_at(bytes, offset)
    }

    fn sync_data(&self) -> io::Result<()> {
        self.0.sync_data()
    }

    fn set_size(&self, size_bytes: u64) -> io::Result<()> {
        self.0.set_len(size_bytes)
    }
}
