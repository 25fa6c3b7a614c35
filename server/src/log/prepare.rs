//! Segments in the making: a file of zeros under a temporary name, later given a header and its name.
//!
//! The zeros are written and not just promised by the file system, because a sync is about twice as fast on blocks that
//! were written before. It also means that a full disk is noticed here, before anything depends on it.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::segment::{self, SegmentHeader};
use crate::disk::{Disk, File};

/// How much is written at once.
const CHUNK_BYTES: usize = 1 << 20;
/// How much is left unsynced while zeros are written, so that the log's own syncs do not wait behind all of it.
const UNSYNCED_BYTES: u64 = 8 << 20;

/// A file of zeros, durable, under a temporary name.
#[derive(Debug)]
pub(super) struct Prepared {
    pub(super) number: u64,
    pub(super) file: Arc<dyn File>,
    pub(super) file_bytes: u64,
}

/// Why a step of preparing failed: what was tried, on which file, and what the disk said.
#[derive(Debug)]
pub(super) struct StepFailed {
    pub(super) action: &'static str,
    pub(super) path: PathBuf,
    pub(super) source: io::Error,
}

fn step<T>(action: &'static str, path: &Path, result: io::Result<T>) -> Result<T, StepFailed> {
    result.map_err(|source| StepFailed { action, path: path.to_owned(), source })
}

/// Writes a file of zeros and syncs it. What it cannot finish it removes, as well as it can.
pub(super) fn prepare(disk: &dyn Disk, dir: &Path, number: u64, file_bytes: u64) -> Result<Prepared, StepFailed> {
    let path = segment::temporary_path(dir, number);
    let file = step("create", &path, create_anew(disk, &path))?;
    if let Err(error) = fill(&*file, file_bytes) {
        drop(file);
        let _ = disk.remove(&path);
        return step("fill", &path, Err(error));
    }
    Ok(Prepared { number, file, file_bytes })
}

/// Creates a file, in place of one that is left over from a try whose clean-up failed too.
pub(super) fn create_anew(disk: &dyn Disk, path: &Path) -> io::Result<Arc<dyn File>> {
    disk.create(path).or_else(|error| match error.kind() {
        io::ErrorKind::AlreadyExists => disk.remove(path).and_then(|()| disk.create(path)),
        _ => Err(error),
    })
}

fn fill(file: &dyn File, file_bytes: u64) -> io::Result<()> {
    let zeros = vec![0; CHUNK_BYTES.min(file_bytes as usize)];
    let mut done = 0;
    while done < file_bytes {
        let chunk = &zeros[..zeros.len().min((file_bytes - done) as usize)];
        file.write_at(chunk, done)?;
        done += chunk.len() as u64;
        if done % UNSYNCED_BYTES == 0 && done < file_bytes {
            file.sync_data()?;
        }
    }
    file.sync_data()
}

impl Prepared {
    /// Gives the segment its header, `entries` if it has any already, and its name. When this returns it is durable.
    pub(super) fn publish(
        &self,
        disk: &dyn Disk,
        dir: &Path,
        header: &SegmentHeader,
        entries: &[u8],
    ) -> Result<(), StepFailed> {
        let (temporary, path) = (segment::temporary_path(dir, self.number), segment::path(dir, self.number));
        let mut bytes = header.encode().to_vec();
        bytes.extend_from_slice(entries);
        step("write", &temporary, self.file.write_at(&bytes, 0))?;
        step("sync", &temporary, self.file.sync_data())?;
        step("rename", &temporary, disk.rename(&temporary, &path))?;
        step("sync the directory", dir, disk.sync_dir(dir))
    }
}
