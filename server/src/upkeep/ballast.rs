//! Room that is kept back for upkeep: a file of zeros that is given up when the disk is full, so that compaction, which
//! needs room to make room, can still run.

use std::path::{Path, PathBuf};

use crate::disk::Disk;

const CHUNK_BYTES: u64 = 1 << 20;

/// Where the file is in a data directory.
fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("reserve")
}

/// Makes sure that the room is kept, if the disk has it.
pub(super) fn keep(disk: &dyn Disk, data_dir: &Path, bytes: u64) {
    let path = path(data_dir);
    if disk.open(&path).and_then(|file| file.size_bytes()).is_ok_and(|found| found == bytes) {
        return;
    }
    let _ = disk.remove(&path);
    let filled = disk.create(&path).and_then(|file| {
        let zeros = vec![0; CHUNK_BYTES.min(bytes) as usize];
        let mut at = 0;
        while at < bytes {
            let chunk = &zeros[..zeros.len().min((bytes - at) as usize)];
            file.write_at(chunk, at)?;
            at += chunk.len() as u64;
        }
        file.sync_data()
    });
    if filled.is_err() {
        // What little there is, others need more.
        let _ = disk.remove(&path);
    }
}

/// Gives the room up. Says whether there was any.
pub(super) fn give_up(disk: &dyn Disk, data_dir: &Path) -> bool {
    disk.remove(&path(data_dir)).and_then(|()| disk.sync_dir(data_dir)).is_ok()
}
