//! Whether a store is what was written: every byte of its log, whether its facts follow from one another, the state in the file
//! beside it, and the index. Takes no lock and changes nothing, so it works beside a server, too.

use std::path::{Path, PathBuf};

use fencepost::log::v1::Fact;
use fencepost::{LogIndex, Lsn};
use prost::Message as _;

use super::holdings::Holdings;
use super::snapshot::{INDEX_DIR, LOG_DIR};
use crate::clock::random_id;
use crate::disk::{Disk, RealDisk};
use crate::index::{ColdIndex, ColdSettings, GivenUp, Horizon, Place, Status};
use crate::log::{self, Damage, Inspector, OpenError, SegmentLabel, SegmentReport, VerifyReport};
use crate::state::State;
use crate::upkeep::hot_state::{self, LogEnd, Saved, Unusable};
use crate::upkeep::{Found, take_in};

/// Checkpoints that the index is asked about at once.
const PLACES_TOGETHER: usize = 10_000;

/// What was found of a store.
#[derive(Debug)]
pub struct Checked {
    /// What its log consists of.
    pub log: VerifyReport,
    /// All damage, also that of the state file, with the checkpoints that cannot be read because of it.
    pub damage: Vec<Found>,
    /// The last fact that could be read.
    pub last: Lsn,
    /// The newest state by which the log was compacted.
    pub judged_at: Lsn,
    /// The state at the end of the log; of a damaged log only what comes before the damage.
    pub state: State,
    /// What the file with the hot state is worth.
    pub state_file: StateFile,
    holdings: Holdings,
}

/// What a file with a hot state is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum StateFile {
    /// There is none, as in every young store.
    Absent,
    /// It says what the log says at this place.
    Good(Lsn),
    /// It was not compared with the log, for this reason. The next start makes it again if need be.
    NotCompared(String),
    /// It is among the damage.
    Damaged,
}

/// What an index is worth.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum IndexFile {
    /// There is none.
    Absent,
    /// It is whole, and where the log's checkpoints are it says the same. It has all facts through this one.
    Good(Lsn),
    /// It was not looked at, for this reason.
    NotChecked(String),
    /// It is not what was written.
    Damaged(Damage),
}

/// Looks at the log and the state file in `dir`, a data directory or a snapshot. `read` hears of the bytes read since its last
/// call. An error means that looking itself was impossible.
pub fn check(disk: &dyn Disk, dir: &Path, read: &mut dyn FnMut(u64)) -> Result<Checked, OpenError> {
    // First the state: beside a running server the log goes on, and may be compacted on behalf of a later state.
    let saved = hot_state::read(disk, dir);
    let (saved, saved_error) = saved.map_or_else(|error| (None, Some(error)), |saved| (Some(saved), None));
    let (state, holdings) = (State::default(), Holdings::default());
    let last = Lsn::ZERO;
    let mut witness =
        Witness { state, holdings, last, judged_at: last, is_sound: true, saved, met: None, shown: 0, read };
    let mut log = log::verify(disk, &dir.join(LOG_DIR), &mut witness)?;
    // What is missing at the end is followed by no fact that would have been told.
    witness.is_sound &= log.damage.is_empty();
    let met = witness.end();
    let Witness { state, holdings, last, judged_at, is_sound, .. } = witness;
    let mut damage = std::mem::take(&mut log.damage);
    if damage.is_empty() && is_sound {
        let of_log = |name: &str| !state.pipeline(name).is_some_and(crate::state::Pipeline::is_importing);
        damage.extend(holdings.missing(of_log).into_iter().map(|(first, last)| Damage {
            file: dir.join(LOG_DIR),
            offset: 0,
            what: format!("checkpoints {first} to {last} are kept, and no fact of the log has them"),
            indexes: None,
        }));
    }
    let path = hot_state::path(dir);
    let state_file = match (met, saved_error) {
        (_, Some(Unusable::Absent)) => StateFile::Absent,
        (_, Some(Unusable::Damaged(found))) => {
            damage.push(found);
            StateFile::Damaged
        }
        (_, Some(error)) => StateFile::NotCompared(error.to_string()),
        (None, None) => unreachable!("a state that was read is met at the latest at the end of the log"),
        (Some((saved, compared)), None) => {
            let fits = log_end(&log, last, judged_at).map(|end| saved.fitting(dir, end));
            match (fits, compared) {
                (_, Compared::Other(what)) => {
                    damage.push(Damage { file: path, offset: 0, what, indexes: None });
                    StateFile::Damaged
                }
                (Some(Err(Unusable::LogEndsEarly { .. })), _) if !damage.is_empty() => {
                    StateFile::NotCompared("the log is damaged".to_owned())
                }
                (Some(Err(early @ Unusable::LogEndsEarly { .. })), _) => {
                    let file = dir.join(LOG_DIR);
                    damage.push(Damage { file, offset: 0, what: early.to_string(), indexes: None });
                    StateFile::NotCompared("the log ends before it".to_owned())
                }
                (Some(Err(unfit)), _) => StateFile::NotCompared(unfit.to_string()),
                (_, Compared::Not(why)) => StateFile::NotCompared(why),
                (_, Compared::Same(lsn)) => StateFile::Good(lsn),
            }
        }
    };
    let name = |damage: Damage| {
        let checkpoints = damage.indexes.as_ref().map(|indexes| holdings.lost_in(indexes).0).unwrap_or_default();
        Found { damage, checkpoints }
    };
    let damage = damage.into_iter().map(name).collect();
    Ok(Checked { log, damage, last, judged_at, state, state_file, holdings })
}

fn log_end(log: &VerifyReport, last: Lsn, judged_at: Lsn) -> Option<LogEnd> {
    let newest = log.segments.last()?;
    let before = LogIndex(newest.first_index.0.saturating_sub(1));
    // Behind the last fact of a compacted segment others may have been.
    let last_index = if newest.judged_at > Lsn::ZERO { judged_at.index() } else { before }.max(last.index());
    Some(LogEnd { log_id: log.log_id?, last_index, newest_segment: newest.last_number, judged_at })
}

/// What came of comparing a saved state with that of the log.
enum Compared {
    Same(Lsn),
    Other(String),
    Not(String),
}

/// Takes every fact in as a server does at start-up.
struct Witness<'a> {
    state: State,
    holdings: Holdings,
    last: Lsn,
    /// Of the segments so far: what is before one that was compacted is all there.
    judged_at: Lsn,
    /// Behind damage facts are missing, so that those that follow fit no state.
    is_sound: bool,
    /// Waits for the replay to come to its place.
    saved: Option<Saved>,
    met: Option<(Saved, Compared)>,
    /// Bytes of the present segment that `read` has heard of.
    shown: u64,
    read: &'a mut dyn FnMut(u64),
}

impl Inspector for Witness<'_> {
    fn begins(&mut self, segment: &SegmentLabel) {
        self.judged_at = self.judged_at.max(segment.judged_at);
    }

    fn damaged(&mut self) {
        self.is_sound = false;
    }

    fn broken(&mut self, lsn: Lsn, payload: &[u8]) {
        if let Ok(fact) = Fact::decode(payload) {
            self.holdings.suspect(lsn, &fact);
        }
    }

    fn segment(&mut self, segment: &SegmentReport) {
        (self.read)(segment.file_bytes.saturating_sub(self.shown));
        self.shown = 0;
    }

    fn fact(&mut self, lsn: Lsn, payload: &[u8]) -> Result<(), String> {
        (self.read)(payload.len() as u64);
        self.shown += payload.len() as u64;
        self.last = lsn;
        self.meet(lsn);
        let fact = Fact::decode(payload).map_err(|error| format!("the fact at LSN {lsn} does not decode: {error}"));
        self.is_sound &= fact.is_ok();
        let fact = fact?;
        self.holdings.take(lsn, &fact);
        if self.is_sound {
            let taken = take_in(&mut self.state, self.judged_at, lsn, &fact);
            self.is_sound = taken.is_ok();
            taken.map_err(|error| error.to_string())?;
        }
        Ok(())
    }
}

impl Witness<'_> {
    /// Compares the saved state when the replay has come to its end, which is when the next fact is behind it.
    fn meet(&mut self, next: Lsn) {
        let Some(saved) = self.saved.take_if(|saved| saved.state.applied() < next) else { return };
        let at = saved.state.applied();
        let compared = if !self.is_sound {
            Compared::Not("the log before its place is damaged".to_owned())
        } else if at < self.judged_at {
            Compared::Not(format!(
                "it has the state at LSN {at}, and the log was compacted up to {} since",
                self.judged_at
            ))
        } else {
            self.state.reached(at);
            compare(&self.state, &saved.state)
        };
        self.holdings.absorb(&saved.state);
        self.met = Some((saved, compared));
    }

    fn end(&mut self) -> Option<(Saved, Compared)> {
        if self.is_sound {
            self.state.reached(self.judged_at);
        }
        self.meet(Lsn::MAX);
        self.met.take()
    }
}

fn compare(replayed: &State, saved: &State) -> Compared {
    if replayed == saved {
        return Compared::Same(saved.applied());
    }
    let differing = replayed.records().zip(saved.records()).find(|(replayed, saved)| replayed != saved);
    let differing =
        differing.map_or_else(String::new, |(replayed, saved)| format!(": {replayed:?} is {saved:?} there"));
    let at = saved.applied();
    Compared::Other(format!("it is intact, and is not the state that the log gives at LSN {at}{differing}"))
}

/// Looks at the index in a data directory whose log was checked, by way of a copy, because opening an index may change it.
/// Leaves it alone while a server has it open. Blocks.
pub fn check_index(data_dir: &Path, checked: &Checked) -> IndexFile {
    let (dir, log_dir) = (data_dir.join(INDEX_DIR), data_dir.join(LOG_DIR));
    if RealDisk.directories(&dir).map_or(true, |names| names.is_empty()) {
        return IndexFile::Absent;
    }
    let Some(log_id) = checked.log.log_id else {
        return IndexFile::NotChecked("the log does not say its id".to_owned());
    };
    // Before and after: a server that came in between may have written.
    let is_free = || RealDisk.is_locked(&log_dir).is_ok_and(|is_locked| !is_locked);
    let in_use = || IndexFile::NotChecked("a server has it open, or may have".to_owned());
    if !is_free() {
        return in_use();
    }
    let copy = Scratch(std::env::temp_dir().join(format!("fencepost-verify-{}", random_id())));
    if let Err(error) = RealDisk.copy_tree(&dir, &copy.0) {
        let to = copy.0.display();
        return IndexFile::NotChecked(format!("it cannot be copied to {to} to be opened there: {error}"));
    }
    if !is_free() {
        return in_use();
    }
    let needed = Horizon { after: Lsn::ZERO, through: checked.last.max(checked.judged_at) };
    let cold = ColdIndex::start(copy.0.clone(), log_id, needed, ColdSettings::default());
    let status = cold.opened();
    let compared = match (status, cold.given_up()) {
        (_, Some(GivenUp { why, is_damaged: false })) => {
            cold.stop();
            return IndexFile::NotChecked(format!("{why}: the next start makes it again from the log"));
        }
        (_, Some(GivenUp { why, .. })) => Err(why),
        (Status::Ready { applied }, None) => checked.compare_places(&cold, applied).map(|()| applied),
        (status, None) => return IndexFile::NotChecked(format!("its copy does not open: {status:?}")),
    };
    cold.stop();
    compared
        .map_or_else(|what| IndexFile::Damaged(Damage { file: dir, offset: 0, what, indexes: None }), IndexFile::Good)
}

impl Checked {
    /// Holds what the index says of kept checkpoints through `applied` against the log.
    fn compare_places(&self, cold: &ColdIndex, applied: Lsn) -> Result<(), String> {
        for (pipeline, branch, mut kept) in self.holdings.kept() {
            kept.retain(|(_, lsn)| *lsn <= applied);
            for kept in kept.chunks(PLACES_TOGETHER) {
                let sequences = kept.iter().map(|(sequence, _)| *sequence).collect();
                let found = cold.places(pipeline, branch, sequences).map_err(|error| error.to_string())?;
                let differs = |((_, lsn), found): &(&(u64, Lsn), Option<Place>)| found.is_none_or(|it| it.lsn != *lsn);
                if let Some(((sequence, lsn), found)) = kept.iter().zip(found).find(differs) {
                    let found = found.map_or("nowhere".to_owned(), |found| format!("at LSN {}", found.lsn));
                    return Err(format!(
                        "it has {pipeline}/{branch}@{sequence} {found}, and the log has it at LSN {lsn}"
                    ));
                }
            }
        }
        Ok(())
    }
}

/// A directory that goes with this.
struct Scratch(PathBuf);

impl Drop for Scratch {
    fn drop(&mut self) {
        // What cannot be removed is the system's to clear away.
        let _ = RealDisk.remove_tree(&self.0);
    }
}
