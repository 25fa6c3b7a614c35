//! Work on a store that no server has open: what upkeep does in the background, now and in the foreground.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fencepost::{LogIndex, Lsn};

use super::open::{BadStore, WithoutLog, open_log};
use super::snapshot::INDEX_DIR;
use crate::clock::Clock;
use crate::disk::{Disk, RealDisk};
use crate::index::{ColdIndex, ColdSettings, Horizon};
use crate::log::{Log, LogConfig};
use crate::upkeep::{self, CompactionDone, Progress, Settings, Store, Trouble};

/// Why that is not possible.
#[derive(Debug, thiserror::Error)]
pub enum OfflineError {
    /// The directory has no store that can be opened.
    #[error(transparent)]
    Store(#[from] BadStore),
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
        let config = LogConfig::for_upkeep(segment_bytes);
        let log = Arc::new(open_log(&disk, data_dir, config, clock, WithoutLog::Refuse)?);
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
        let needed = Horizon { after: Lsn::ZERO, through: Lsn::new(log.last_index(), u16::MAX) };
        let cold = ColdIndex::start(data_dir.join(INDEX_DIR), log.log_id(), needed, ColdSettings::default());
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

#[cfg(test)]
mod tests {
    use std::ops::ControlFlow;

    use fencepost::log::v1::fact::Kind;
    use fencepost::log::v1::{ClusterCreated, GenerationStarted};

    use super::super::append;
    use super::super::snapshot::LOG_DIR;
    use super::*;
    use crate::state::State;
    use crate::upkeep::{hot_state, replay};

    const SEGMENT_BYTES: u64 = 256 << 10;

    #[test]
    fn a_store_that_lost_its_newest_segment_stays_as_it_is() {
        let dir = tempfile::tempdir().unwrap();
        let (data_dir, log_dir) = (dir.path().to_owned(), dir.path().join(LOG_DIR));
        let (disk, clock): (Arc<dyn Disk>, _) = (Arc::new(RealDisk), Clock::real());
        let open = || open_log(&disk, &data_dir, LogConfig::for_upkeep(SEGMENT_BYTES), &clock, WithoutLog::Make);
        let log = open().unwrap();
        append(&log, &clock, Kind::ClusterCreated(ClusterCreated { cluster_id: "c".into(), generation: 1 })).unwrap();
        for generation in 2.. {
            let reason = "long".repeat(10_000);
            let started = GenerationStarted { generation, reason, ..GenerationStarted::default() };
            append(&log, &clock, Kind::GenerationStarted(started)).unwrap();
            if log.sealed().len() > 1 {
                break;
            }
        }
        let mut state = State::default();
        replay(&log, &mut state, log.sealed_through(), |_, _| ControlFlow::Continue(())).unwrap();
        hot_state::save(&disk, &data_dir, &log, &state).unwrap();
        log.close();
        let newest = format!("{:020}.seg", log.sealed().last().unwrap().numbers.end() + 1);
        disk.remove(&log_dir.join(&newest)).unwrap();
        let left = disk.list(&log_dir).unwrap();

        let refused = Offline::open(&data_dir, SEGMENT_BYTES, &clock).unwrap_err();
        assert!(matches!(refused, OfflineError::Store(BadStore::LogEndsEarly(_))), "{refused}");
        assert!(refused.to_string().contains(&newest), "{refused}");
        assert_eq!(disk.list(&log_dir).unwrap(), left, "nothing was put in its place");
        assert!(matches!(open(), Err(BadStore::LogEndsEarly(_))), "a server does not start either");
    }
}
