//! Dead letters that are still open: neither replayed nor discarded.
//!
//! The letters themselves are in the log, in the fact that committed or staged the checkpoint that skipped them. Here is only
//! which of them are open. A rewind closes those of the checkpoints that it abandons: whoever works through them again skips
//! them again.

use std::collections::BTreeMap;

use fencepost::log::v1::DeadLettersDiscarded;
use fencepost::v1::{DeadLetterId, DiscardDeadLettersRequest};
use fencepost::{Lsn, Reason};

use super::{Pipeline, State, entry};
use crate::config::limits;
use crate::error::Refusal;

/// The letters of one fact.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Letters {
    /// In the order of the fact.
    pub(super) parts: Vec<Part>,
    /// Numbers of those that are open, ascending. Never empty in the map.
    pub(super) open: Vec<u32>,
}

/// The letters that came with one checkpoint.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Part {
    pub(super) branch: Box<str>,
    pub(super) sequence: u64,
    /// The first number that is not theirs any more.
    pub(super) end: u32,
}

impl Letters {
    /// The checkpoint that this letter came with.
    pub(super) fn part(&self, number: u32) -> Option<&Part> {
        part_of(&self.parts, number)
    }
}

/// Open letters of a pipeline, by the fact that has them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct DeadLetters {
    by_fact: BTreeMap<Lsn, Letters>,
    open: u64,
    /// Of what is staged: they are open once that is committed, and have their room from when they are staged.
    pub(super) staged: u64,
    by_branch: BTreeMap<Box<str>, u64>,
}

impl DeadLetters {
    /// How many are open.
    pub(super) fn count(&self) -> u64 {
        self.open
    }

    /// How many of this branch are open.
    pub(super) fn count_of(&self, branch: &str) -> u64 {
        self.by_branch.get(branch).copied().unwrap_or(0)
    }

    /// Whether any letter of this fact is open.
    pub(super) fn is_any_open(&self, lsn: Lsn) -> bool {
        self.by_fact.contains_key(&lsn)
    }

    pub(super) fn is_open(&self, id: &DeadLetterId) -> bool {
        let letters = self.by_fact.get(&Lsn::from_u64(id.lsn));
        letters.is_some_and(|letters| letters.open.binary_search(&id.number).is_ok())
    }

    /// By fact, in the order of the log.
    pub(super) fn iter_from(&self, lsn: Lsn) -> impl Iterator<Item = (Lsn, &Letters)> {
        self.by_fact.range(lsn..).map(|(lsn, letters)| (*lsn, letters))
    }

    /// Letters that came with a checkpoint, after those of the same fact that were added before.
    pub(super) fn add(&mut self, lsn: Lsn, branch: &str, sequence: u64, count: u32) {
        if count == 0 {
            return;
        }
        let letters = self.by_fact.entry(lsn).or_default();
        let first = letters.parts.last().map_or(0, |part| part.end);
        letters.parts.push(Part { branch: branch.into(), sequence, end: first + count });
        letters.open.extend(first..first + count);
        self.open += u64::from(count);
        *entry(&mut self.by_branch, branch) += u64::from(count);
    }

    /// As they were written down.
    pub(super) fn restore(&mut self, lsn: Lsn, letters: Letters) {
        for number in &letters.open {
            if let Some(part) = letters.part(*number) {
                self.open += 1;
                *entry(&mut self.by_branch, &part.branch) += 1;
            }
        }
        self.by_fact.insert(lsn, letters);
    }

    /// Closes these, each of which is open, unless facts may be missing. `what` is done with them.
    pub(super) fn close<'a>(
        &mut self,
        ids: impl IntoIterator<Item = &'a DeadLetterId>,
        what: &str,
        is_whole: bool,
    ) -> Result<(), String> {
        for id in ids {
            if !self.close_one(id) && is_whole {
                return Err(format!("it {what} dead letter {id}, which is not open"));
            }
        }
        Ok(())
    }

    /// Whether it was open.
    fn close_one(&mut self, id: &DeadLetterId) -> bool {
        let lsn = Lsn::from_u64(id.lsn);
        let Some(letters) = self.by_fact.get_mut(&lsn) else { return false };
        let Ok(place) = letters.open.binary_search(&id.number) else { return false };
        let Some(branch) = letters.part(id.number).map(|part| part.branch.clone()) else { return false };
        letters.open.remove(place);
        self.uncount(&branch, 1);
        self.let_go(lsn);
        true
    }

    /// Closes what a rewind leaves behind.
    pub(super) fn abandon(&mut self, branch: &str, to_sequence: u64) {
        if self.count_of(branch) == 0 {
            return;
        }
        let facts: Vec<Lsn> = self.by_fact.keys().copied().collect();
        for lsn in facts {
            let Some(Letters { parts, open }) = self.by_fact.get_mut(&lsn) else { continue };
            let before = open.len();
            let is_left_behind = |part: &Part| *part.branch == *branch && part.sequence > to_sequence;
            open.retain(|number| !part_of(parts, *number).is_some_and(is_left_behind));
            let closed = (before - open.len()) as u64;
            self.uncount(branch, closed);
            self.let_go(lsn);
        }
    }

    fn uncount(&mut self, branch: &str, closed: u64) {
        self.open -= closed;
        if let Some(count) = self.by_branch.get_mut(branch) {
            *count -= closed;
            if *count == 0 {
                self.by_branch.remove(branch);
            }
        }
    }

    /// Forgets the fact, if none of its letters is open any more.
    fn let_go(&mut self, lsn: Lsn) {
        if self.by_fact.get(&lsn).is_some_and(|letters| letters.open.is_empty()) {
            self.by_fact.remove(&lsn);
        }
    }
}

/// The part that this letter is in.
fn part_of(parts: &[Part], number: u32) -> Option<&Part> {
    parts.get(parts.partition_point(|part| part.end <= number))
}

impl Pipeline {
    /// How many dead letters are open, of all branches.
    pub fn dead_letters(&self) -> u64 {
        self.dead.count()
    }

    /// How many dead letters of a branch are open.
    pub fn dead_letters_of(&self, branch: &str) -> u64 {
        self.dead.count_of(branch)
    }

    /// Open dead letters from this one on, in the order of the log, each with the branch and sequence that it came with.
    pub fn dead_letters_from(&self, first: DeadLetterId) -> impl Iterator<Item = (DeadLetterId, &str, u64)> {
        let start = Lsn::from_u64(first.lsn);
        self.dead.iter_from(start).flat_map(move |(lsn, letters)| {
            let skipped = if lsn == start { letters.open.partition_point(|number| *number < first.number) } else { 0 };
            letters.open[skipped..].iter().filter_map(move |number| {
                let part = letters.part(*number)?;
                Some((DeadLetterId { lsn: lsn.as_u64(), number: *number }, &*part.branch, part.sequence))
            })
        })
    }

    /// Checks that the dead letters that something handles are open, and that there is room for so many more.
    pub(super) fn check_dead_letters<'a>(
        &self,
        name: &str,
        added: usize,
        handled: impl Iterator<Item = &'a DeadLetterId>,
    ) -> Result<(), Refusal> {
        let mut closed = 0;
        for id in handled {
            if !self.dead.is_open(id) {
                return Err(not_open(name, id));
            }
            closed += 1;
        }
        let DeadLetters { open, staged, .. } = self.dead;
        if added == 0 || open + staged + added as u64 <= limits::DEAD_LETTERS_OPEN_MAX + closed {
            return Ok(());
        }
        let expected = format!(
            "at most {} that are open or staged in '{name}', and {open} are open and {staged} staged: replay some or discard \
             them (fencepost dead-letters)",
            limits::DEAD_LETTERS_OPEN_MAX
        );
        Err(Refusal::field(Reason::TooLarge, "dead_letters", added, &expected))
    }
}

impl State {
    /// Judges a discard, its shape already checked.
    pub fn evaluate_discard_dead_letters(
        &self,
        request: &DiscardDeadLettersRequest,
    ) -> Result<DeadLettersDiscarded, Refusal> {
        self.check_cluster(request.cluster.as_ref())?;
        let DiscardDeadLettersRequest { pipeline: of, letters, actor, reason, .. } = request;
        self.check_ready(of)?;
        self.known_pipeline(of)?.check_dead_letters(of, 0, letters.iter())?;
        let (pipeline, actor, reason) = (of.clone(), actor.clone(), reason.clone());
        Ok(DeadLettersDiscarded { pipeline, letters: letters.clone(), actor, reason })
    }

    pub(super) fn apply_dead_letters_discarded(
        &mut self,
        fact: &DeadLettersDiscarded,
        is_whole: bool,
    ) -> Result<(), String> {
        entry(&mut self.pipelines, &fact.pipeline).dead.close(&fact.letters, "discards", is_whole)
    }
}

fn not_open(name: &str, id: &DeadLetterId) -> Refusal {
    let message = format!(
        "dead letter {id} is not open in '{name}': it was replayed or discarded before, or a rewind abandoned the \
         checkpoint that it came with; list those that are open ('fencepost dead-letters list {name}'), and go on without \
         this one"
    );
    Refusal::new(Reason::DeadLetterHandled, message).with("lsn", id.lsn).with("number", id.number)
}
