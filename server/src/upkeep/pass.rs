//! One pass over what was sealed.

use std::io;
use std::ops::{ControlFlow, RangeInclusive};

use bytes::Bytes;
use fencepost::log::v1::Fact;
use fencepost::{LogIndex, Lsn};
use prost::Message as _;

use super::board::Board;
use super::choose::{Candidate, ORDINARY, THOROUGH, choose};
use super::damage::Damages;
use super::feed::{Gathered, kept_bytes};
use super::hot_state::{self, Unusable};
use super::pace::{Pace, Stop};
use super::replay::{self, ReplayError, replay};
use super::{Fed, Settings, Store, ballast};
use crate::index::{Change, FeedError, IndexError, Status};
use crate::log::{CompactError, Fate, ReadError, SegmentFileError, SegmentInfo};
use crate::state::{Keep, State};

/// Changes that the index is fed at once.
const CHANGES_TOGETHER: usize = 50_000;

/// With so many segments to compact, compaction has fallen behind and is not slowed down.
const BEHIND_SEGMENTS: u64 = 4;

/// How far an ordered compaction is.
#[derive(Clone, Debug)]
pub enum Progress {
    /// So many bytes of so many are looked at.
    Bytes {
        /// Of segments.
        done: u64,
        /// Of all segments that are worth it.
        total: u64,
    },
    /// It is over.
    Done(Result<CompactionDone, String>),
}

/// What an ordered compaction did.
#[derive(Clone, Debug, Default)]
pub struct CompactionDone {
    /// Length of the log's files before.
    pub bytes_before: u64,
    /// And after.
    pub bytes_after: u64,
    /// Segments that were left alone because they are damaged.
    pub damaged: Vec<String>,
}

/// Why a pass did not come to its end.
#[derive(Debug, thiserror::Error)]
pub enum Trouble {
    /// The log does not give a state.
    #[error(transparent)]
    Replay(#[from] ReplayError),
    /// There is no room for the hot state, or its file cannot be written.
    #[error("the hot state cannot be saved: {0}")]
    Save(SegmentFileError),
    /// The index takes nothing in.
    #[error(transparent)]
    Index(#[from] IndexError),
    /// A segment cannot be rewritten.
    #[error("compaction: {0}")]
    Compact(CompactError),
    /// The log ends before the hot state that was made from it.
    #[error("{0}")]
    State(Unusable),
    /// It was told to stop.
    #[error("the server is stopping")]
    Stopped,
}

pub(super) struct Pass {
    store: Store,
    settings: Settings,
    stop: Stop,
    board: Board,
    damages: Damages,
    fed: Fed,
    /// Length of the hot-state file; `None` if there is none that is known to be good.
    state_bytes: Option<u64>,
    state_lsn: Lsn,
    /// Segments that cannot be compacted because they are damaged, by their first numbers.
    damaged: Vec<u64>,
}

impl Pass {
    pub(super) fn new(store: Store, settings: Settings, stop: Stop, board: Board, damages: Damages, fed: Fed) -> Pass {
        let (state_bytes, state_lsn) = (None, Lsn::ZERO);
        Pass { store, settings, stop, board, damages, fed, state_bytes, state_lsn, damaged: Vec::new() }
    }

    /// Does what is due, or, if it was ordered, all that there is. Says whether it came to its end.
    pub(super) fn run(&mut self, mut ordered: Option<&mut Box<dyn FnMut(Progress) + Send>>) -> bool {
        let outcome = self.whole(ordered.as_deref_mut());
        let done = outcome.as_ref().map(|_| ()).map_err(ToString::to_string);
        match (&outcome, ordered) {
            (Err(Trouble::Stopped), _) => return true,
            (_, Some(progress)) => progress(Progress::Done(outcome.map_err(|trouble| trouble.to_string()))),
            (Err(trouble), None) => {
                // Said once, not every ten seconds.
                let text = trouble.to_string();
                if self.board.status().trouble != text {
                    tracing::warn!("upkeep did not come to its end and tries again: {text}");
                }
            }
            (Ok(_), None) => {}
        }
        let is_done = done.is_ok();
        self.board.change(|status| status.trouble = done.err().unwrap_or_default());
        is_done
    }

    pub(super) fn whole(
        &mut self,
        ordered: Option<&mut Box<dyn FnMut(Progress) + Send>>,
    ) -> Result<CompactionDone, Trouble> {
        let through = self.store.log.sealed_through();
        let index = self.store.cold.opened();
        let is_index_behind = !matches!(index, Status::Ready { applied } if applied >= self.state_lsn);
        if ordered.is_none() && !is_index_behind && !self.is_due(through) {
            return Ok(CompactionDone::default());
        }
        let state = self.state(through, &mut |_| ())?;
        match self.feed(&state, through, &mut |_| ()) {
            // Without an index history is not answered; everything else goes on.
            Err(Trouble::Index(IndexError::Failed { .. })) | Ok(()) => {}
            Err(trouble) => return Err(trouble),
        }
        let done = self.compact(&state, ordered)?;
        if through > LogIndex::ZERO {
            ballast::keep(&*self.store.disk, &self.store.data_dir, self.settings.segment_bytes / 2);
        }
        Ok(done)
    }

    /// The part of a pass that makes the index: from the log, or what is new in it. `at` hears where it reads, twice from
    /// beginning to end. Answers how far the index goes.
    pub(super) fn index(&mut self, at: &mut dyn FnMut(LogIndex)) -> Result<Lsn, Trouble> {
        let through = self.store.log.sealed_through();
        let state = self.state(through, at)?;
        self.feed(&state, through, at)?;
        Ok(state.applied())
    }

    /// Whether enough was sealed since the last time that a pass costs less than what it saves.
    fn is_due(&self, through: LogIndex) -> bool {
        let Some(state_bytes) = self.state_bytes else { return through > LogIndex::ZERO };
        let is_new = |segment: &SegmentInfo| segment.last_index > self.state_lsn.index();
        let new_bytes: u64 = self.store.log.sealed().iter().filter(|it| is_new(it)).map(|it| it.file_bytes).sum();
        new_bytes > 0 && new_bytes >= state_bytes
    }

    /// The state at the end of what is sealed, saved.
    fn state(&mut self, through: LogIndex, at: &mut dyn FnMut(LogIndex)) -> Result<State, Trouble> {
        let Store { disk, data_dir, log, .. } = &self.store;
        let mut state = match hot_state::load(disk, data_dir, log) {
            Ok(state) => state,
            Err(Unusable::Absent) => State::default(),
            Err(early @ Unusable::LogEndsEarly { .. }) => return Err(Trouble::State(early)),
            Err(unusable) => {
                tracing::warn!("the file with the hot state is made again from the log: {unusable}");
                State::default()
            }
        };
        let replayed = replay(log, &mut state, through, |lsn, _| {
            at(lsn.index());
            self.go_on()
        });
        match replayed {
            Err(ReplayError::Stopped) => return Err(Trouble::Stopped),
            Err(ReplayError::Read(ReadError::Corrupt(damage))) => {
                self.damages.add(damage.clone());
                return Err(ReplayError::Read(ReadError::Corrupt(damage)).into());
            }
            replayed => replayed?,
        };
        self.save(&state)?;
        Ok(state)
    }

    fn save(&mut self, state: &State) -> Result<(), Trouble> {
        let Store { disk, data_dir, log, .. } = &self.store;
        if state.applied() == self.state_lsn && (self.state_bytes.is_some() || state.applied() == Lsn::ZERO) {
            return Ok(());
        }
        let saved = hot_state::save(disk, data_dir, log, state);
        let saved = match saved {
            Err(SegmentFileError::Io { source, .. })
                if source.kind() == io::ErrorKind::StorageFull && ballast::give_up(&**disk, data_dir) =>
            {
                hot_state::save(disk, data_dir, log, state)
            }
            saved => saved,
        };
        self.state_bytes = Some(saved.map_err(Trouble::Save)?);
        self.state_lsn = state.applied();
        self.board.change(|status| status.state_lsn = state.applied());
        Ok(())
    }

    /// Hands the index what is new since it was fed, or everything if it is made again.
    fn feed(&self, state: &State, through: LogIndex, at: &mut dyn FnMut(LogIndex)) -> Result<(), Trouble> {
        let cold = &self.store.cold;
        let applied = |status| match status {
            Status::Ready { applied } | Status::Rebuilding { applied } => Ok(applied),
            Status::Opening => Ok(Lsn::ZERO),
            Status::Failed { why } => Err(IndexError::Failed { why }),
        };
        let mut after = applied(cold.opened())?;
        while after < state.applied() {
            self.go_on_or_stop()?;
            let (changes, last) = self.gather(state, after, through, at)?;
            after = match cold.feed(after, changes, last) {
                Ok(()) => last,
                Err(FeedError::OutOfStep { applied }) => applied,
                Err(FeedError::Index(IndexError::Failed { why })) => return Err(IndexError::Failed { why }.into()),
                // It was damaged and is empty now.
                Err(FeedError::Index(_)) => applied(cold.opened())?,
            };
        }
        cold.ready()?;
        (self.fed)(through);
        Ok(())
    }

    /// What the index is to know of the facts from `after` on, and up to which fact that is all.
    fn gather(
        &self,
        state: &State,
        after: Lsn,
        through: LogIndex,
        at: &mut dyn FnMut(LogIndex),
    ) -> Result<(Vec<Change>, Lsn), Trouble> {
        let log = &self.store.log;
        let now_ms = self.store.clock.wall_ms();
        let mut segments = log.sealed().into_iter().map(|segment| segment.first_index).peekable();
        let mut gathered = Gathered::new();
        let mut last = state.applied();
        for entry in log.entries(after.next().index()) {
            let entry = entry.map_err(ReplayError::Read)?;
            if entry.index > through {
                break;
            }
            at(entry.index);
            while let Some(first_index) = segments.next_if(|first_index| *first_index <= entry.index) {
                let is_last = segments.peek().is_none_or(|next| *next > entry.index);
                if is_last {
                    gathered.segment(first_index);
                }
            }
            let together = entry.facts.len() as u64;
            let mut newest = Lsn::ZERO;
            for (ordinal, payload) in entry.facts {
                let lsn = Lsn::new(entry.index, ordinal);
                newest = lsn;
                if lsn <= after {
                    continue;
                }
                let payload_bytes = payload.len() as u64;
                let fact = replay::decode(lsn, payload)?;
                gathered.add(state, now_ms, lsn, &fact, payload_bytes, together);
            }
            if gathered.len() >= CHANGES_TOGETHER && newest < state.applied() {
                last = newest;
                break;
            }
        }
        Ok((gathered.finish(state, now_ms), last))
    }

    /// Rewrites what is worth it.
    fn compact(
        &mut self,
        state: &State,
        mut ordered: Option<&mut Box<dyn FnMut(Progress) + Send>>,
    ) -> Result<CompactionDone, Trouble> {
        let mut done = CompactionDone { bytes_before: self.store.log.status().bytes, ..CompactionDone::default() };
        let candidates = self.candidates(state);
        let live_permille = if ordered.is_some() { THOROUGH } else { ORDINARY };
        let runs = choose(&candidates, self.settings.segment_bytes, live_permille);
        let bytes_of = |run: &RangeInclusive<u64>| -> u64 {
            let inside = candidates.iter().filter(|it| run.contains(it.numbers.start()));
            inside.map(|it| it.file_bytes).sum()
        };
        let bytes_total: u64 = runs.iter().map(bytes_of).sum();
        let is_behind = bytes_total > BEHIND_SEGMENTS * self.settings.segment_bytes;
        let rate = if is_behind || ordered.is_some() { 0 } else { self.settings.compaction_bytes_per_second };
        let mut pace = Pace::new(self.stop.clone(), self.store.clock.clone(), rate);
        let mut bytes_done = 0;
        for run in runs {
            let mut used = |bytes| {
                bytes_done += bytes;
                if let Some(progress) = ordered.as_deref_mut() {
                    progress(Progress::Bytes { done: bytes_done.min(bytes_total), total: bytes_total });
                }
                pace.used(bytes)
            };
            self.compact_run(state, &run, &mut used, &mut done)?;
        }
        done.bytes_after = self.store.log.status().bytes;
        let live_bytes = self.candidates(state).iter().map(|it| it.live_bytes.min(it.file_bytes)).sum();
        self.board.change(|status| status.live_bytes = live_bytes);
        Ok(done)
    }

    /// The segments that the state covers, with what is alive in them.
    fn candidates(&self, state: &State) -> Vec<Candidate> {
        let used = self.store.cold.segments();
        let live_bytes = |segment: &SegmentInfo| match &used {
            // It is not known what is alive: nothing but a look will tell.
            Err(_) => 0,
            Ok(used) => used.iter().find(|it| it.first_index == segment.first_index).map_or(0, |it| it.live_bytes),
        };
        let segments = self.store.log.sealed().into_iter();
        segments
            .filter(|it| it.last_index <= state.applied().index() && !self.damaged.contains(it.numbers.start()))
            .map(|it| Candidate { live_bytes: live_bytes(&it), file_bytes: it.file_bytes, numbers: it.numbers })
            .collect()
    }

    fn compact_run(
        &mut self,
        state: &State,
        run: &RangeInclusive<u64>,
        used: &mut dyn FnMut(u64) -> ControlFlow<()>,
        done: &mut CompactionDone,
    ) -> Result<(), Trouble> {
        let Store { disk, data_dir, log, cold, clock } = &self.store;
        let now_ms = clock.wall_ms();
        let members: Vec<SegmentInfo> =
            log.sealed().into_iter().filter(|it| run.contains(it.numbers.start())).collect();
        let is_gone = |created: Lsn| matches!(log.read(created), Err(ReadError::NotFound(_)));
        let mut other_bytes = 0;
        let mut judge = |lsn: Lsn, payload: &Bytes| {
            let Ok(fact) = replay::decode(lsn, payload.clone()) else { return Fate::Keep };
            // What is kept for its checkpoints is counted with them.
            let is_counted = |fact: &Fact| fact.checkpoints().any(|(.., checkpoint)| checkpoint.is_some());
            match state.keep(lsn, &fact, now_ms, &is_gone) {
                Keep::Whole => {
                    other_bytes += if is_counted(&fact) { 0 } else { kept_bytes(payload.len()) };
                    Fate::Keep
                }
                Keep::Reduced(reduced) => {
                    let payload = reduced.encode_to_vec();
                    other_bytes += if is_counted(&reduced) { 0 } else { kept_bytes(payload.len()) };
                    Fate::Replace(payload.into())
                }
                Keep::Nothing => Fate::Drop,
            }
        };
        let mut compacted = log.compact(run.clone(), state.applied(), &mut judge, used);
        if let Err(CompactError::NoSpace { .. }) = compacted
            && ballast::give_up(&**disk, data_dir)
        {
            compacted = log.compact(run.clone(), state.applied(), &mut judge, used);
        }
        let compacted = match compacted {
            Ok(compacted) => compacted,
            Err(CompactError::Corrupt(damage)) => {
                done.damaged.push(damage.to_string());
                let number = damage.file.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
                let is_in = |it: &&SegmentInfo| number.is_none_or(|number| it.numbers.contains(&number));
                self.damaged.extend(members.iter().filter(is_in).map(|it| *it.numbers.start()));
                self.damages.add(damage);
                return Ok(());
            }
            Err(CompactError::Stopped) => return Err(Trouble::Stopped),
            Err(error) => return Err(Trouble::Compact(error)),
        };
        self.board.change(|status| {
            status.compactions += 1;
            status.compacted_bytes += compacted.bytes_before.saturating_sub(compacted.bytes_after);
        });
        tracing::debug!(?run, ?compacted, "compacted");
        let mut changes: Vec<Change> =
            members.iter().skip(1).map(|it| Change::SegmentGone { first_index: it.first_index }).collect();
        changes.push(Change::Segment { first_index: members[0].first_index, other_bytes });
        if let Status::Ready { applied } = cold.status() {
            // If it fails the index is made again, with the right numbers.
            let _ = cold.feed(applied, changes, applied);
        }
        Ok(())
    }

    fn go_on(&self) -> ControlFlow<()> {
        if self.stop.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    fn go_on_or_stop(&self) -> Result<(), Trouble> {
        if self.stop.is_set() { Err(Trouble::Stopped) } else { Ok(()) }
    }
}
