//! Work on a store that no server has open: what upkeep does in the background, now and in the foreground.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fencepost::{LogIndex, Lsn};

use super::manifest::BadSnapshot;
use super::restore::check_finished;
use super::snapshot::{INDEX_DIR, LOG_DIR};
use crate::clock::{Clock, random_id};
use crate::disk::{Disk, RealDisk};
use crate::index::{ColdIndex, ColdSettings, Horizon};
use crate::log::{Log, LogConfig, OpenError};
use crate::upkeep::{self, CompactionDone, Progress, Settings, Store, Trouble};

/// Why that is not possible.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The directory is no data directory.
    #[error("there is no log in {}: name the directory that the server is given", .dir.display())]
    NoLog {
        /// Where a log was looked for.
        dir: PathBuf,
    },
    /// A restore was cut short there.
    #[error(transparent)]
    Unfinished(#[from] BadSnapshot),
    /// The log does not open, perhaps because a server has it open.
    #[error(transparent)]
    Open(#[from] OpenError),
    /// The index cannot be removed.
    #[error("cannot remove {}: {source}", .dir.display())]
    Index {
        /// Where it is.
        dir: PathBuf,
        /// What the system says.
        source: io::Error,
    },
    /// It was begun and not finished. Nothing is lost: what was done is complete in itself.
    #[error(transparent)]
    Trouble(#[from] Trouble),
}

/// A store that this process has for itself.
#[derive(Debug)]
pub struct Offline {
    disk: Arc<dyn Disk>,
    data_dir: PathBuf,
    log: Arc<Log>,
    segment_bytes: u64,
}

impl Offline {
    /// Takes a data directory, as a server does when it starts. `segment_bytes` is the length of new segments.
    pub fn open(data_dir: &Path, segment_bytes: u64, clock: &Clock) -> Result<Offline, OfflineError> {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        check_finished(&*disk, data_dir)?;
        let log_dir = data_dir.join(LOG_DIR);
        // A log would be made where there is none.
        let is_segment = |name: &String| Path::new(name).extension().is_some_and(|extension| extension == "seg");
        if !disk.list(&log_dir).is_ok_and(|names| names.iter().any(is_segment)) {
            return Err(OfflineError::NoLog { dir: log_dir });
        }
        let config = LogConfig::for_upkeep(segment_bytes);
        let log = Arc::new(Log::open(Arc::clone(&disk), &log_dir, config, clock.clone(), random_id())?);
        Ok(Offline { disk, data_dir: data_dir.to_owned(), log, segment_bytes })
    }

    /// The last entry that the index will know of.
    pub fn sealed_through(&self) -> LogIndex {
        self.log.sealed_through()
    }

    /// Deletes the index and makes it again from the log, up to the last sealed segment: what comes after that is in the
    /// memory of a server. `at` hears which entry is read, twice from the first to the last. Answers how far the index goes and
    /// how many entries it has. Called in a Tokio runtime.
    pub fn rebuild_index(self, clock: &Clock, at: &mut dyn FnMut(LogIndex)) -> Result<(Lsn, u64), OfflineError> {
        let dir = self.data_dir.join(INDEX_DIR);
        RealDisk.remove_tree(&dir).map_err(|source| OfflineError::Index { dir, source })?;
        self.with_index(clock, |store, settings| {
            let cold = store.cold.clone();
            let through = upkeep::make_index(store, settings, at)?;
            Ok((through, cold.entries().map_err(Trouble::from)?))
        })
    }

    /// Makes the store as small as its policies allow. Called in a Tokio runtime.
    pub fn compact(
        self,
        clock: &Clock,
        progress: impl FnMut(Progress) + Send + 'static,
    ) -> Result<CompactionDone, OfflineError> {
        self.with_index(clock, |store, settings| Ok(upkeep::compact_now(store, settings, progress)?))
    }

    fn with_index<T>(
        self,
        clock: &Clock,
        work: impl FnOnce(Store, Settings) -> Result<T, OfflineError>,
    ) -> Result<T, OfflineError> {
        let Offline { disk, data_dir, log, segment_bytes } = self;
        let durable = Lsn::new(log.last_index(), u16::MAX);
        let cold = ColdIndex::start(
            data_dir.join(INDEX_DIR),
            log.log_id(),
            Horizon { after: Lsn::ZERO, through: durable },
            ColdSettings::default(),
        );
        let store = Store { disk, data_dir, log: Arc::clone(&log), cold: cold.clone(), clock: clock.clone() };
        let settings = Settings {
            segment_bytes,
            compaction_bytes_per_second: 0,
            scrub_bytes_per_second: 0,
            scrub_every: Duration::ZERO,
        };
        let done = work(store, settings);
        cold.stop();
        log.close();
        done
    }
}
