//! A store from a snapshot: in a data directory that is empty, as a new generation of the same cluster.
//!
//! A marker file is there from the first step to the last, so that what a crash leaves behind is never taken for a store.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fencepost::log::v1::fact::Kind;
use fencepost::log::v1::{Fact, GenerationStarted};
use fencepost::{LogIndex, Lsn, Token};
use prost::Message as _;

use super::append;
use super::manifest::{BadSnapshot, Manifest, io_error};
use super::snapshot::{INDEX_DIR, LOG_DIR, last_lsn, must_be_empty};
use crate::clock::{Clock, random_id};
use crate::disk::Disk;
use crate::log::{self, Inspector, Log, LogConfig, LogError};

/// The name of the file that says that a restore has not come to its end.
pub const MARKER: &str = "RESTORING";

/// Refuses what a restore left that was cut short.
pub(super) fn check_restored(disk: &dyn Disk, data_dir: &Path) -> Result<(), BadSnapshot> {
    if disk.open(&data_dir.join(MARKER)).is_err() {
        return Ok(());
    }
    let dir = data_dir.display();
    let problem = format!("a restore into {dir} was cut short: remove that directory and restore again");
    Err(BadSnapshot::Refused(problem))
}

/// Up to where history is restored.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Through {
    /// All of the snapshot.
    End,
    /// Up to and including this fact.
    Lsn(Lsn),
    /// All facts before the first one that was decided after this moment, in milliseconds since 1970.
    TimeMs(u64),
}

/// What to restore, and who says so.
#[derive(Clone, Debug)]
pub struct Restore {
    /// The directory of the snapshot.
    pub snapshot: PathBuf,
    /// The data directory to make; empty, or not there.
    pub data_dir: PathBuf,
    /// How far.
    pub through: Through,
    /// The generation to start. `None`: the snapshot's plus one.
    pub generation: Option<u64>,
    /// Who restores, for the audit.
    pub actor: String,
    /// Why.
    pub reason: String,
}

/// What was restored.
#[derive(Clone, Debug)]
pub struct Restored {
    /// What it was made from.
    pub manifest: Manifest,
    /// The last fact of the old history that was kept.
    pub kept: Lsn,
    /// The generation that starts here.
    pub generation: u64,
}

/// Checks the snapshot and makes a data directory from it. `pace` hears of the bytes handled since its last call.
pub fn restore(
    disk: &Arc<dyn Disk>,
    restore: &Restore,
    config: LogConfig,
    clock: &Clock,
    pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Restored, BadSnapshot> {
    let Restore { snapshot, data_dir, through, .. } = restore;
    let manifest = Manifest::read(&**disk, snapshot)?;
    let generation = generation(restore, &manifest)?;
    check_restored(&**disk, data_dir)?;
    manifest.check(&**disk, snapshot, pace)?;
    let log_dir = data_dir.join(LOG_DIR);
    must_be_empty(&**disk, data_dir)?;
    must_be_empty(&**disk, &log_dir)?;
    // An index that is left of a later history of the same cluster would be taken for the index of this one.
    if disk.directories(&data_dir.join(INDEX_DIR)).is_ok_and(|names| !names.is_empty()) {
        return Err(BadSnapshot::NotEmpty { dir: data_dir.clone(), found: INDEX_DIR.to_owned() });
    }
    let through = match *through {
        Through::End => None,
        Through::Lsn(lsn) => Some(lsn),
        Through::TimeMs(time_ms) => last_before(&**disk, &snapshot.join(LOG_DIR), time_ms)?,
    };

    disk.create_dir_all(data_dir).map_err(io_error("create", data_dir))?;
    let marker = data_dir.join(MARKER);
    disk.create(&marker).map_err(io_error("create", &marker))?;
    disk.sync_dir(data_dir).map_err(io_error("sync the directory", data_dir))?;
    if let Some(parent) = data_dir.parent().filter(|parent| !parent.as_os_str().is_empty()) {
        disk.sync_dir(parent).map_err(io_error("sync the directory", parent))?;
    }
    disk.create_dir_all(&log_dir).map_err(io_error("create", &log_dir))?;
    match through {
        Some(through) => {
            log::copy_through(&**disk, &snapshot.join(LOG_DIR), &log_dir, through)?;
        }
        None => {
            for file in &manifest.files {
                let (from, to) = (snapshot.join(&file.name), data_dir.join(&file.name));
                disk.copy(&from, &to).map_err(io_error("copy", &from))?;
                if pace(file.bytes).is_break() {
                    return Err(BadSnapshot::Stopped);
                }
            }
        }
    }
    let log = Log::open(Arc::clone(disk), &log_dir, config, clock.clone(), random_id())?;
    let kept = match through {
        Some(_) => last_lsn(&log, log.last_index())?,
        None => manifest.lsn(),
    };
    let started = GenerationStarted {
        generation,
        kept_lsn: kept.as_u64(),
        actor: restore.actor.clone(),
        reason: restore.reason.clone(),
    };
    append(&log, clock, Kind::GenerationStarted(started)).map_err(|error| match error {
        LogError::NoSpace { .. } => {
            io_error("write to", &log_dir)(io::Error::new(io::ErrorKind::StorageFull, error.to_string()))
        }
        error => io_error("write to", &log_dir)(io::Error::other(error.to_string())),
    })?;
    log.close();
    disk.remove(&marker).map_err(io_error("remove", &marker))?;
    disk.sync_dir(data_dir).map_err(io_error("sync the directory", data_dir))?;
    Ok(Restored { manifest, kept, generation })
}

/// The generation to start: above the snapshot's, and one that tokens have room for.
fn generation(restore: &Restore, manifest: &Manifest) -> Result<u64, BadSnapshot> {
    let wanted = restore.generation.unwrap_or(manifest.generation.saturating_add(1));
    if wanted <= manifest.generation || Token::new(wanted, 1).is_none() {
        let problem = format!(
            "generation is {wanted}: it must be above {}, which the snapshot has, and below {}",
            manifest.generation,
            1_u64 << 16
        );
        return Err(BadSnapshot::Refused(problem));
    }
    Ok(wanted)
}

/// The place before the first fact that is later than a moment; `None` if there is no such fact.
fn last_before(disk: &dyn Disk, log_dir: &Path, time_ms: u64) -> Result<Option<Lsn>, BadSnapshot> {
    struct Search {
        time_ms: u64,
        oldest: Option<(Lsn, u64)>,
        later: Option<Lsn>,
    }

    impl Inspector for Search {
        fn fact(&mut self, lsn: Lsn, payload: &[u8]) -> Result<(), String> {
            let fact =
                Fact::decode(payload).map_err(|error| format!("the fact at LSN {lsn} does not decode: {error}"))?;
            self.oldest.get_or_insert((lsn, fact.at_ms));
            if fact.at_ms > self.time_ms {
                self.later.get_or_insert(lsn);
            }
            Ok(())
        }
    }

    let mut search = Search { time_ms, oldest: None, later: None };
    let report = log::verify(disk, log_dir, &mut search)?;
    if let Some(damage) = report.damage.first() {
        return Err(BadSnapshot::Log(damage.to_string()));
    }
    match (search.later, search.oldest) {
        (None, _) => Ok(None),
        (Some(later), Some((oldest, oldest_ms))) if later == oldest => {
            let begun = i64::try_from(oldest_ms).ok().and_then(|ms| jiff::Timestamp::from_millisecond(ms).ok());
            let begun = begun.map_or_else(|| format!("{oldest_ms} ms"), |begun| begun.to_string());
            Err(BadSnapshot::Refused(format!("the snapshot begins after that time: its first fact is of {begun}")))
        }
        // What compaction removed between the fact before and this one is part of the state that is left.
        (Some(later), _) => Ok(Some(match later.ordinal() {
            0 => Lsn::new(LogIndex(later.index().0 - 1), u16::MAX),
            ordinal => Lsn::new(later.index(), ordinal - 1),
        })),
    }
}
