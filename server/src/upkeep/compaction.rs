//! The second half of a pass: what can be won, and winning it.

use std::collections::BTreeMap;
use std::ops::{ControlFlow, RangeInclusive};

use bytes::Bytes;
use fencepost::{LogIndex, Lsn};
use prost::Message as _;

use super::choose::{Candidate, ORDINARY, THOROUGH, choose};
use super::feed::live_bytes;
use super::pace::Pace;
use super::pass::{CompactionDone, Pass, Progress, Trouble, unreadable};
use super::{Store, ballast, replay};
use crate::index::{Change, SegmentUse, Status};
use crate::log::{CompactError, Damage, Fate, ReadError, SegmentInfo};
use crate::state::{Keep, State};

/// With so many segments to compact, compaction has fallen behind and is not slowed down.
const BEHIND_SEGMENTS: u64 = 4;

/// So many segments are counted again in each pass. A pass comes with each new segment, so all are by the time that the log
/// has grown by half.
const COUNTED_TOGETHER: usize = 2;

/// What is known of segments beside what the index knows, which is what their retained checkpoints take up.
#[derive(Debug, Default)]
pub(super) struct Gains {
    /// By the first index.
    counted: BTreeMap<LogIndex, Counted>,
    /// Segments that cannot be read, by their first numbers, and why.
    damaged: BTreeMap<u64, String>,
}

/// What was alive in a segment when all of its facts were looked at.
#[derive(Clone, Copy, Debug)]
struct Counted {
    /// As this state saw it.
    at: Lsn,
    live_bytes: u64,
}

impl Gains {
    fn at(&self, segment: &SegmentInfo) -> Lsn {
        self.counted.get(&segment.first_index).map_or(segment.judged_at, |counted| counted.at)
    }
}

type Pacer<'a> = dyn FnMut(u64) -> ControlFlow<()> + 'a;

impl Pass {
    /// Rewrites what is worth it.
    pub(super) fn compact(
        &mut self,
        state: &State,
        mut ordered: Option<&mut Box<dyn FnMut(Progress) + Send>>,
    ) -> Result<CompactionDone, Trouble> {
        let log = std::sync::Arc::clone(&self.store.log);
        // On a full disk what room there is, and what is given up for it, is for making more.
        let room = log.leave_room();
        let mut done = CompactionDone { bytes_before: log.status().bytes, ..CompactionDone::default() };
        let live_permille = if ordered.is_some() { THOROUGH } else { ORDINARY };
        self.count_again(state, live_permille, ordered.is_some() || room.is_some())?;
        let candidates = self.candidates(state);
        let runs = choose(&candidates, self.settings.segment_bytes, live_permille);
        let bytes_of = |run: &RangeInclusive<u64>| -> u64 {
            let inside = candidates.iter().filter(|it| run.contains(it.numbers.start()));
            inside.map(|it| it.file_bytes).sum()
        };
        let bytes_total: u64 = runs.iter().map(bytes_of).sum();
        let is_behind = bytes_total > BEHIND_SEGMENTS * self.settings.segment_bytes;
        let mut pace = self.pace(is_behind || ordered.is_some());
        let (mut bytes_done, mut failed) = (0, None);
        for run in runs {
            let mut used = |bytes| {
                bytes_done += bytes;
                if let Some(progress) = ordered.as_deref_mut() {
                    progress(Progress::Bytes { done: bytes_done.min(bytes_total), total: bytes_total });
                }
                pace.used(bytes)
            };
            match self.compact_run(state, &run, &mut used) {
                Err(CompactError::Stopped) => return Err(Trouble::Stopped),
                // Another run may need less room, and make some.
                Err(error) => failed = failed.or(Some(error)),
                Ok(()) => {}
            }
        }
        done.bytes_after = log.status().bytes;
        done.damaged = self.gains.damaged.values().cloned().collect();
        done.damaged.dedup();
        let live_bytes = self.candidates(state).iter().map(|it| it.live_bytes).sum();
        self.board.change(|status| status.live_bytes = live_bytes);
        failed.map_or(Ok(done), |error| Err(Trouble::Compact(error)))
    }

    fn pace(&self, is_urgent: bool) -> Pace {
        let rate = if is_urgent { 0 } else { self.settings.compaction_bytes_per_second };
        Pace::new(self.stop.clone(), self.store.clock.clone(), rate)
    }

    /// The segments that the state covers and that can be read.
    fn covered(&self, state: &State) -> impl Iterator<Item = SegmentInfo> {
        let (covered, damaged) = (state.applied().index(), &self.gains.damaged);
        let segments = self.store.log.sealed().into_iter();
        segments.filter(move |it| it.last_index <= covered && !damaged.contains_key(it.numbers.start()))
    }

    /// What the index says is alive, if it knows all that the state does.
    fn uses(&self, state: &State) -> Option<Vec<SegmentUse>> {
        let cold = &self.store.cold;
        let is_whole = matches!(cold.status(), Status::Ready { applied } if applied >= state.applied());
        if is_whole { cold.segments().ok() } else { None }
    }

    fn candidates(&self, state: &State) -> Vec<Candidate> {
        let uses = self.uses(state);
        let live_bytes = |segment: &SegmentInfo| match &uses {
            Some(uses) => used_in(uses, segment).live_bytes(),
            None => self.gains.counted.get(&segment.first_index).map_or(u64::MAX, |counted| counted.live_bytes),
        };
        let candidate = |it: SegmentInfo| Candidate {
            live_bytes: live_bytes(&it).min(it.file_bytes),
            file_bytes: it.file_bytes,
            indexes: it.first_index..=it.last_index,
            numbers: it.numbers,
        };
        self.covered(state).map(candidate).collect()
    }

    /// Looks at the facts of segments that would be worth it if not for what dies without the index being told: commit ids
    /// that are forgotten, grants that are old. Without an index: of all segments.
    fn count_again(&mut self, state: &State, live_permille: u64, is_urgent: bool) -> Result<(), Trouble> {
        let uses = self.uses(state);
        let is_wanted = |segment: &SegmentInfo| match &uses {
            Some(uses) => {
                let (used, enough) = (used_in(uses, segment), segment.file_bytes * live_permille);
                used.checkpoint_bytes * 1_000 < enough && used.live_bytes() * 1_000 >= enough
            }
            None => true,
        };
        let covered: Vec<SegmentInfo> = self.covered(state).collect();
        self.gains.counted.retain(|first_index, _| covered.iter().any(|it| it.first_index == *first_index));
        let is_old = |it: &SegmentInfo| self.gains.at(it) < state.applied();
        let mut wanted: Vec<SegmentInfo> = covered.into_iter().filter(|it| is_old(it) && is_wanted(it)).collect();
        wanted.sort_by_key(|it| self.gains.at(it));
        if !is_urgent {
            wanted.truncate(COUNTED_TOGETHER);
        }
        let mut pace = self.pace(is_urgent);
        for segment in wanted {
            match self.count(state, &segment, &mut |bytes| pace.used(bytes))? {
                Ok(live_bytes) => self.counted(state, segment.first_index..=segment.last_index, live_bytes),
                Err(damage) => self.damaged(damage, segment.numbers),
            }
        }
        Ok(())
    }

    /// What compaction would leave of a segment.
    fn count(
        &self,
        state: &State,
        segment: &SegmentInfo,
        pace: &mut Pacer<'_>,
    ) -> Result<Result<u64, Damage>, Trouble> {
        let now_ms = self.store.clock.wall_ms();
        let (mut live, mut read) = (0, 0);
        for entry in self.store.log.entries(segment.first_index) {
            let entry = match entry {
                Ok(entry) if entry.index > segment.last_index => break,
                Ok(entry) => entry,
                Err(ReadError::Corrupt(damage)) => return Ok(Err(damage)),
                Err(ReadError::Io { file, source, .. }) => return Ok(Err(unreadable(file, &source))),
                Err(error @ ReadError::NotFound(_)) => return Err(Trouble::Replay(error.into())),
            };
            let together = entry.facts.len() as u64;
            for (ordinal, payload) in entry.facts {
                let keep = self.keep(state, now_ms, Lsn::new(entry.index, ordinal), &payload);
                live += live_bytes(&keep, payload.len() as u64, together);
                read += payload.len() as u64;
            }
            if read > 64 << 10 && pace(std::mem::take(&mut read)).is_break() {
                return Err(Trouble::Stopped);
            }
        }
        Ok(Ok(live))
    }

    fn keep(&self, state: &State, now_ms: u64, lsn: Lsn, payload: &Bytes) -> Keep {
        let Ok(fact) = replay::decode(lsn, payload.clone()) else { return Keep::Whole };
        let is_gone = |created: Lsn| matches!(self.store.log.read(created), Err(ReadError::NotFound(_)));
        state.keep(lsn, &fact, now_ms, &is_gone)
    }

    /// Remembers what is alive in a segment, and tells the index.
    fn counted(&mut self, state: &State, indexes: RangeInclusive<LogIndex>, live_bytes: u64) {
        let first_index = *indexes.start();
        self.gains.counted.insert(first_index, Counted { at: state.applied(), live_bytes });
        let cold = &self.store.cold;
        let (Some(uses), Status::Ready { applied }) = (self.uses(state), cold.status()) else { return };
        let inside = || uses.iter().filter(|used| indexes.contains(&used.first_index));
        let checkpoint_bytes: u64 = inside().map(|used| used.checkpoint_bytes).sum();
        let merged = inside().filter(|used| used.first_index != first_index);
        let mut changes: Vec<Change> =
            merged.map(|used| Change::SegmentGone { first_index: used.first_index }).collect();
        let other_bytes = live_bytes.saturating_sub(checkpoint_bytes);
        changes.insert(0, Change::Segment { first_index, other_bytes });
        // If it fails the index is made again, with the right numbers.
        let _ = cold.feed(applied, changes, applied);
    }

    fn compact_run(
        &mut self,
        state: &State,
        run: &RangeInclusive<u64>,
        used: &mut Pacer<'_>,
    ) -> Result<(), CompactError> {
        let members: Vec<SegmentInfo> =
            self.store.log.sealed().into_iter().filter(|it| run.contains(it.numbers.start())).collect();
        let (Some(first), Some(last)) = (members.first(), members.last()) else { return Ok(()) };
        if members.iter().all(|it| it.judged_at >= state.applied()) {
            // This very state has said what can go.
            return Ok(());
        }
        let Store { disk, data_dir, log, clock, .. } = &self.store;
        let now_ms = clock.wall_ms();
        let mut judge = |lsn: Lsn, payload: &Bytes| match self.keep(state, now_ms, lsn, payload) {
            Keep::Whole => Fate::Keep,
            Keep::Reduced(reduced) => Fate::Replace(reduced.encode_to_vec().into()),
            Keep::Nothing => Fate::Drop,
        };
        let mut compacted = log.compact(run.clone(), state.applied(), &mut judge, used);
        if let Err(CompactError::NoSpace { .. }) = compacted
            && ballast::give_up(&**disk, data_dir)
        {
            compacted = log.compact(run.clone(), state.applied(), &mut judge, used);
        }
        match compacted {
            Ok(compacted) => {
                self.board.change(|status| {
                    status.compactions += 1;
                    status.compacted_bytes += compacted.bytes_before.saturating_sub(compacted.bytes_after);
                });
                tracing::debug!(?run, ?compacted, "compacted");
                self.counted(state, first.first_index..=last.last_index, compacted.bytes_after);
                Ok(())
            }
            Err(CompactError::Corrupt(damage)) => {
                self.damaged(damage, run.clone());
                Ok(())
            }
            Err(CompactError::Io { action: "open" | "read", path, source }) => {
                self.damaged(unreadable(path, &source), run.clone());
                Ok(())
            }
            Err(error) => Err(error),
        }
    }

    /// Leaves alone what cannot be read: the segment of that file, or, if that is none of them, the whole run.
    fn damaged(&mut self, damage: Damage, run: RangeInclusive<u64>) {
        let number = damage.file.file_stem().and_then(|stem| stem.to_str()?.parse::<u64>().ok());
        let numbers = number.filter(|number| run.contains(number)).map_or(run, |number| number..=number);
        self.gains.damaged.extend(numbers.map(|number| (number, damage.to_string())));
        self.damages.add(damage);
    }
}

/// The sum of what the index counts for a segment: it may not have heard yet that several became one.
fn used_in(uses: &[SegmentUse], segment: &SegmentInfo) -> SegmentUse {
    let from = uses.partition_point(|used| used.first_index < segment.first_index);
    let inside = uses[from..].iter().take_while(|used| used.first_index <= segment.last_index);
    let none = SegmentUse { first_index: segment.first_index, checkpoint_bytes: 0, other_bytes: 0 };
    inside.fold(none, |sum, used| SegmentUse {
        checkpoint_bytes: sum.checkpoint_bytes.saturating_add(used.checkpoint_bytes),
        other_bytes: sum.other_bytes.saturating_add(used.other_bytes),
        ..sum
    })
}
