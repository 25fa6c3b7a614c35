//! One pass over what was sealed.

use std::io;
use std::ops::ControlFlow;
use std::path::PathBuf;

use fencepost::{LogIndex, Lsn};

use super::board::Board;
use super::compaction::Gains;
use super::damage::Damages;
use super::feed::{Gathered, Partial};
use super::hot_state::{self, Unusable};
use super::pace::Stop;
use super::replay::{self, ReplayError, replay};
use super::{Fed, Settings, Store, ballast};
use crate::index::{Change, FeedError, IndexError, Status};
use crate::log::{CompactError, Damage, ReadError, SegmentFileError, SegmentInfo};
use crate::state::State;

/// Changes that the index is fed at once.
const CHANGES_TOGETHER: usize = 50_000;

/// So many places in the log are passed over one by one; where there are more, a segment has to go as a whole.
const SKIPPED_SINGLY: usize = 16;

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
    pub(super) store: Store,
    pub(super) settings: Settings,
    pub(super) stop: Stop,
    pub(super) board: Board,
    pub(super) damages: Damages,
    fed: Fed,
    /// Length of the hot-state file; `None` if there is none that is known to be good.
    state_bytes: Option<u64>,
    state_lsn: Lsn,
    /// What was left undone is due again.
    is_unfinished: bool,
    /// What is known of what compaction can win.
    pub(super) gains: Gains,
}

impl Pass {
    pub(super) fn new(store: Store, settings: Settings, stop: Stop, board: Board, damages: Damages, fed: Fed) -> Pass {
        let (state_bytes, state_lsn) = (None, Lsn::ZERO);
        let (is_unfinished, gains) = (false, Gains::default());
        Pass { store, settings, stop, board, damages, fed, state_bytes, state_lsn, is_unfinished, gains }
    }

    /// Does what is due, or, if it was ordered, all that there is.
    pub(super) fn run(&mut self, mut ordered: Option<&mut Box<dyn FnMut(Progress) + Send>>) {
        let outcome = self.whole(ordered.as_deref_mut());
        let done = outcome.as_ref().map(|_| ()).map_err(ToString::to_string);
        // An index that failed is tried again by itself.
        self.is_unfinished = outcome.as_ref().is_err_and(|trouble| !matches!(trouble, Trouble::Index(_)));
        match (&outcome, ordered) {
            (Err(Trouble::Stopped) | Ok(None), None) | (Err(Trouble::Stopped), Some(_)) => return,
            (_, Some(progress)) => {
                let done = outcome.map(Option::unwrap_or_default).map_err(|trouble| trouble.to_string());
                progress(Progress::Done(done));
            }
            (Err(trouble), None) => {
                // Said once, not every ten seconds.
                let text = trouble.to_string();
                if self.board.status().trouble != text {
                    tracing::warn!("upkeep did not come to its end and tries again: {text}");
                }
            }
            (Ok(_), None) => {}
        }
        self.board.change(|status| status.trouble = done.err().unwrap_or_default());
    }

    /// Answers nothing if nothing was due.
    pub(super) fn whole(
        &mut self,
        ordered: Option<&mut Box<dyn FnMut(Progress) + Send>>,
    ) -> Result<Option<CompactionDone>, Trouble> {
        self.revive_index();
        let (through, is_ordered) = (self.store.log.sealed_through(), ordered.is_some());
        let is_index_due = match self.store.cold.opened() {
            Status::Ready { applied } => applied < self.state_lsn,
            Status::Opening | Status::Rebuilding { .. } => true,
            Status::Failed { .. } => false,
        };
        let is_cramped = self.store.log.no_space().is_some();
        if !(is_ordered || is_index_due || is_cramped || self.is_unfinished || self.is_due(through)) {
            return Ok(None);
        }
        let state = self.state(through, &mut |_| ())?;
        // What the state or the index finds no room for, compaction may make. Without the one a start takes longer, without
        // the other history is not answered; everything else goes on.
        let is_saved = match self.save(&state) {
            Err(Trouble::Save(error)) if is_full(&error) => false,
            saved => saved.map(|()| true)?,
        };
        let fed = match self.feed(&state, through, &mut |_| ()) {
            Err(Trouble::Index(failed)) => Err(failed),
            fed => fed.map(Ok)?,
        };
        let done = self.compact(&state, ordered)?;
        if !is_saved {
            self.save(&state)?;
        }
        if through > LogIndex::ZERO && self.store.log.no_space().is_none() {
            ballast::keep(&*self.store.disk, &self.store.data_dir, self.settings.segment_bytes / 2);
        }
        if is_ordered { Ok(Some(done)) } else { fed.map(|()| Some(done)).map_err(Trouble::Index) }
    }

    /// Tries an index again that could not be made; on a full disk with the room that is kept back.
    fn revive_index(&self) {
        let Store { disk, data_dir, log, cold, .. } = &self.store;
        let has_failed = || matches!(cold.opened(), Status::Failed { .. });
        if has_failed() {
            cold.retry();
            if has_failed() && log.no_space().is_some() && ballast::give_up(&**disk, data_dir) {
                cold.retry();
            }
        }
    }

    /// The part of a pass that makes the index: from the log, or what is new in it. `at` hears where it reads, twice from
    /// beginning to end. Answers how far the index goes.
    pub(super) fn index(&mut self, at: &mut dyn FnMut(LogIndex)) -> Result<Lsn, Trouble> {
        let through = self.store.log.sealed_through();
        let state = self.state(through, at)?;
        self.save(&state)?;
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

    /// The state at the end of what is sealed.
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
        Ok(state)
    }

    fn save(&mut self, state: &State) -> Result<(), Trouble> {
        let Store { disk, data_dir, log, .. } = &self.store;
        if state.applied() == self.state_lsn && (self.state_bytes.is_some() || state.applied() == Lsn::ZERO) {
            return Ok(());
        }
        let saved = hot_state::save(disk, data_dir, log, state);
        let saved = match saved {
            Err(error) if is_full(&error) && ballast::give_up(&**disk, data_dir) => {
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
        let (mut after, mut unfinished, mut is_remade) = (applied(cold.opened())?, None, false);
        while after < state.applied() {
            self.go_on_or_stop()?;
            let (changes, last, segment) = self.gather(state, after, through, unfinished.take(), at)?;
            after = match cold.feed(after, changes, last) {
                Ok(()) => {
                    unfinished = segment;
                    last
                }
                Err(FeedError::OutOfStep { applied }) => applied,
                // It was damaged and is empty now.
                Err(FeedError::Index(IndexError::Inconsistent { .. })) if !is_remade => {
                    is_remade = true;
                    applied(cold.opened())?
                }
                Err(FeedError::Index(error)) => return Err(error.into()),
            };
        }
        cold.ready()?;
        (self.fed)(through);
        Ok(())
    }

    /// What the index is to know of the facts from `after` on, up to which fact that is all, and what was counted of the
    /// segment that this is in. What cannot be read is left out, and the index told so.
    fn gather(
        &self,
        state: &State,
        after: Lsn,
        through: LogIndex,
        unfinished: Partial,
        at: &mut dyn FnMut(LogIndex),
    ) -> Result<(Vec<Change>, Lsn, Partial), Trouble> {
        let log = &self.store.log;
        let mut segments = log.sealed().into_iter().map(|segment| segment.first_index).peekable();
        let mut gathered = Gathered::new(state, self.store.clock.wall_ms(), unfinished);
        let mut last = state.applied();
        // It was fed whole entries.
        let mut next = after.index().next();
        let (mut entries, mut skipped) = (log.entries(next), 0);
        while let Some(entry) = entries.next().filter(|_| next <= through) {
            let entry = match entry {
                Ok(entry) if entry.index > through => break,
                Ok(entry) => entry,
                Err(error) => {
                    skipped += 1;
                    let unread = next..=self.skip(error, next, skipped <= SKIPPED_SINGLY)?;
                    next = unread.end().next();
                    entries = log.entries(next);
                    gathered.unread(unread);
                    continue;
                }
            };
            next = entry.index.next();
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
                let payload_bytes = payload.len() as u64;
                let fact = replay::decode(lsn, payload)?;
                gathered.add(lsn, &fact, payload_bytes, together);
            }
            if gathered.len() >= CHANGES_TOGETHER && newest < state.applied() {
                last = newest;
                break;
            }
        }
        let (changes, segment) = gathered.finish();
        Ok((changes, last, segment))
    }

    /// Tells of entries from `from` on that cannot be read. Answers the last of them, as far as that can be told.
    fn skip(&self, error: ReadError, from: LogIndex, is_single: bool) -> Result<LogIndex, Trouble> {
        let damage = match error {
            ReadError::Corrupt(damage) => damage,
            ReadError::Io { file, source, .. } => unreadable(file, &source),
            error @ ReadError::NotFound(_) => return Err(Trouble::Replay(error.into())),
        };
        let segment = self.store.log.sealed().into_iter().find(|segment| segment.last_index >= from);
        let last = segment.map_or(from, |segment| segment.last_index);
        let told = damage.indexes.as_ref().map(|indexes| LogIndex(*indexes.end()));
        self.damages.add(damage);
        Ok(told.filter(|told| is_single && *told >= from).map_or(last, |told| told.min(last)))
    }

    fn go_on(&self) -> ControlFlow<()> {
        if self.stop.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    }

    pub(super) fn go_on_or_stop(&self) -> Result<(), Trouble> {
        if self.stop.is_set() { Err(Trouble::Stopped) } else { Ok(()) }
    }
}

/// A file that the disk does not give back is damaged as far as anybody can tell.
pub(super) fn unreadable(file: PathBuf, source: &io::Error) -> Damage {
    Damage { file, offset: 0, what: format!("it cannot be read: {source}"), indexes: None }
}

fn is_full(error: &SegmentFileError) -> bool {
    use io::ErrorKind::{QuotaExceeded, StorageFull};
    matches!(error, SegmentFileError::Io { source, .. } if matches!(source.kind(), StorageFull | QuotaExceeded))
}
