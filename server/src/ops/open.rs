//! The one way to the log of a store: whoever appends to it, a server or offline work, asks the same before.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use super::manifest::{BadSnapshot, MANIFEST, UNFINISHED};
use super::restore::check_restored;
use super::snapshot::LOG_DIR;
use crate::clock::{Clock, random_id};
use crate::disk::Disk;
use crate::log::{Log, LogConfig, OpenError};
use crate::upkeep::hot_state::{self, Unusable};

/// Why a directory is not opened. Nothing in it was changed.
#[derive(Debug, thiserror::Error)]
pub enum BadStore {
    /// It is a snapshot, or what a restore that was cut short left of one.
    #[error(transparent)]
    NoStore(#[from] BadSnapshot),
    /// The log ends before the state that was made from it.
    #[error("{0}")]
    LogEndsEarly(Unusable),
    /// There is no log, and none is to be made.
    #[error("there is no log in {}: name the directory that the server is given", .dir.display())]
    NoLog {
        /// Where a log was looked for.
        dir: PathBuf,
    },
    /// The log does not open, perhaps because a server has it open.
    #[error(transparent)]
    Open(#[from] OpenError),
}

/// What is done where there is no log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum WithoutLog {
    /// A new one is made.
    Make,
    /// It is refused.
    Refuse,
}

/// Opens the log of a data directory, after making sure that it is one and that its log is not known to have lost its end:
/// opening begins a new segment where the newest is missing, and after that nobody could tell.
pub fn open_log(
    disk: &Arc<dyn Disk>,
    data_dir: &Path,
    config: LogConfig,
    clock: &Clock,
    without: WithoutLog,
) -> Result<Log, BadStore> {
    check_store(&**disk, data_dir)?;
    let log_dir = data_dir.join(LOG_DIR);
    hot_state::check_log(&**disk, data_dir, &log_dir).map_err(BadStore::LogEndsEarly)?;
    let is_segment = |name: &String| Path::new(name).extension().is_some_and(|extension| extension == "seg");
    if without == WithoutLog::Refuse && !disk.list(&log_dir).is_ok_and(|names| names.iter().any(is_segment)) {
        return Err(BadStore::NoLog { dir: log_dir });
    }
    Ok(Log::open(Arc::clone(disk), &log_dir, config, clock.clone(), random_id())?)
}

/// Refuses a directory that is no store: in which a restore or a snapshot was cut short, or that is a snapshot, whose tokens
/// somebody else may have granted again since.
pub fn check_store(disk: &dyn Disk, data_dir: &Path) -> Result<(), BadSnapshot> {
    let dir = data_dir.display();
    check_restored(disk, data_dir)?;
    if disk.open(&data_dir.join(UNFINISHED)).is_ok() {
        let problem = format!("a snapshot into {dir} was cut short: remove that directory and make another one");
        return Err(BadSnapshot::Refused(problem));
    }
    if disk.open(&data_dir.join(MANIFEST)).is_ok() {
        let problem = format!(
            "{dir} is a snapshot, and not a data directory: make one of it with `fencepost restore {dir} --data-dir DIR`"
        );
        return Err(BadSnapshot::Refused(problem));
    }
    Ok(())
}
