//! A consistent copy of the store, made while it serves: its segments, linked where the file system can, the hot state, and
//! a manifest that says what all of it is. A backup is a snapshot on another disk.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use fencepost::{LogIndex, Lsn};

use super::check::{Checked, check};
use super::manifest::{BadSnapshot, FORMAT_VERSION, MANIFEST, Manifest, ManifestFile, UNFINISHED, io_error};
use crate::clock::Clock;
use crate::disk::Disk;
use crate::log::{Damage, Log, ReadError};
use crate::upkeep::{Found, hot_state};

/// Where the log is in a data directory and in a snapshot.
pub const LOG_DIR: &str = "log";

/// Where the index is in a data directory. A snapshot has none: it is made again from the log.
pub const INDEX_DIR: &str = "index";

/// A snapshot that was made.
#[derive(Clone, Debug)]
pub struct Created {
    /// What it consists of.
    pub manifest: Manifest,
    /// How many bytes had to be copied, because they could not be linked.
    pub bytes_copied: u64,
}

/// Makes a snapshot of an open store in `dir`, which must be empty or not exist. `pace` hears of the bytes handled since
/// its last call, and may stop it.
///
/// What was written when it fails stays, without a manifest, so that it is no snapshot.
pub fn create(
    disk: &dyn Disk,
    log: &Log,
    data_dir: &Path,
    generation: u64,
    dir: &Path,
    clock: &Clock,
    pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Created, BadSnapshot> {
    let log_dir = dir.join(LOG_DIR);
    must_be_empty(disk, dir)?;
    must_be_empty(disk, &log_dir)?;
    disk.create_dir_all(dir).map_err(io_error("create", dir))?;
    Manifest::begin(disk, dir)?;
    disk.create_dir_all(&log_dir).map_err(io_error("create", &log_dir))?;

    // The hot state first: one that is older than the log costs time at a restore, one that is newer would not fit.
    let (state, state_copy) = (hot_state::path(data_dir), hot_state::path(dir));
    let mut bytes_copied = match link_or_copy(disk, &state, &state_copy) {
        Err(error) if error.kind() == io::ErrorKind::NotFound => 0,
        copied => copied.map_err(io_error("copy", &state))?,
    };
    let taken = log.snapshot_into(&log_dir, pace)?;
    bytes_copied += taken.files.iter().filter(|file| !file.linked).map(|file| file.bytes).sum::<u64>();
    let last = last_lsn(log, taken.last_index)?;

    let mut names: Vec<String> = disk.list(&log_dir).map_err(io_error("list", &log_dir))?;
    for name in &mut names {
        *name = format!("{LOG_DIR}/{name}");
    }
    names.extend(disk.list(dir).map_err(io_error("list", dir))?.into_iter().filter(|name| name != UNFINISHED));
    let files = names.iter().map(|name| ManifestFile::of(disk, dir, name, pace));
    let mut manifest = Manifest {
        format: FORMAT_VERSION,
        cluster_id: log.log_id().to_string(),
        generation,
        lsn: last.as_u64(),
        created_at_ms: clock.wall_ms(),
        made_by: format!("fencepost {}", env!("CARGO_PKG_VERSION")),
        files: files.collect::<Result<_, _>>()?,
        digest: String::new(),
    };
    disk.sync_dir(&log_dir).map_err(io_error("sync the directory", &log_dir))?;
    manifest.write(disk, dir)?;
    Ok(Created { manifest, bytes_copied })
}

/// The last fact of an entry.
pub(super) fn last_lsn(log: &Log, index: LogIndex) -> Result<Lsn, ReadError> {
    // Compaction may have removed it, and what follows is not part of the snapshot.
    let entry = log.entries(index).next().transpose()?.filter(|entry| entry.index == index);
    let ordinal = entry.and_then(|entry| entry.facts.last().map(|(ordinal, _)| *ordinal)).unwrap_or_default();
    Ok(Lsn::new(index, ordinal))
}

/// What was found of a snapshot whose manifest is sound.
#[derive(Debug)]
pub struct Verified {
    /// What it is said to consist of.
    pub manifest: Manifest,
    /// What its log and its state file are worth, and all damage.
    pub checked: Checked,
}

/// Looks at every byte of a snapshot: whether its files are those of the manifest, and whether their log is sound. `read` hears
/// of the bytes read since its last call; every file is read twice. Changes nothing.
pub fn verify(disk: &dyn Disk, dir: &Path, read: &mut dyn FnMut(u64)) -> Result<Verified, BadSnapshot> {
    let manifest = Manifest::read(disk, dir)?;
    let files = manifest.check(disk, dir, &mut |bytes| {
        read(bytes);
        ControlFlow::Continue(())
    });
    let mut checked = check(disk, dir, read)?;
    let mut add = |file: PathBuf, what: String| {
        let damage = Damage { file, offset: 0, what, indexes: None };
        checked.damage.push(Found { damage, checkpoints: Vec::new() });
    };
    match files {
        Err(BadSnapshot::Damaged { file, what }) => add(file, what),
        files => files?,
    }
    let path = dir.join(MANIFEST);
    let log_id = checked.log.log_id.map(|id| id.to_string());
    if let Some(log_id) = log_id.filter(|log_id| *log_id != manifest.cluster_id) {
        add(path.clone(), format!("it says cluster {}, and the log is of cluster {log_id}", manifest.cluster_id));
    }
    if checked.last > manifest.lsn() {
        add(path.clone(), format!("it says LSN {}, and the log goes on to LSN {}", manifest.lsn(), checked.last));
    }
    if checked.damage.is_empty() && checked.state.generation() != manifest.generation {
        let found = checked.state.generation();
        let what = format!("it says generation {}, and the log ends in generation {found}", manifest.generation);
        let damage = Damage { file: path, offset: 0, what, indexes: None };
        checked.damage.push(Found { damage, checkpoints: Vec::new() });
    }
    Ok(Verified { manifest, checked })
}

/// Refuses a directory that has files.
pub(super) fn must_be_empty(disk: &dyn Disk, dir: &Path) -> Result<(), BadSnapshot> {
    match disk.list(dir) {
        Ok(names) if names.is_empty() => Ok(()),
        Ok(names) => Err(BadSnapshot::NotEmpty { dir: dir.to_owned(), found: names[0].clone() }),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Ok(()),
        Err(error) => Err(io_error("list", dir)(error)),
    }
}

/// Gives a file another name, or copies it where the file system cannot. Returns the bytes copied.
fn link_or_copy(disk: &dyn Disk, from: &Path, to: &Path) -> io::Result<u64> {
    match disk.link(from, to) {
        Ok(()) => Ok(0),
        Err(error) if error.kind() == io::ErrorKind::NotFound => Err(error),
        Err(_) => disk.copy(from, to),
    }
}
