//! Dead letters that are still open: neither replayed nor discarded.
//!
//! The letters themselves are in the log, in the fact that committed or staged the checkpoint that skipped them. Here is only
//! which of them are open. A rewind closes those of the checkpoints that it abandons: whoever works through them again skips
//! them again.

use std::collections::BTreeMap;

use fencepost::Lsn;
use fencepost::log::v1::{Committed, DeadLettersDiscarded};
use fencepost::v1::DeadLetterId;

use super::{Pipeline, State, entry};

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
        self.parts.iter().find(|part| number < part.end)
    }
}

/// Open letters of a pipeline, by the fact that has them.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct DeadLetters {
    by_fact: BTreeMap<Lsn, Letters>,
    open: u64,
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

    /// Closes one. Whether it was open.
    pub(super) fn close(&mut self, id: &DeadLetterId) -> bool {
        self.close_where(Lsn::from_u64(id.lsn), |number, _| number == id.number) > 0
    }

    /// Closes what a rewind leaves behind.
    pub(super) fn abandon(&mut self, branch: &str, to_sequence: u64) {
        let facts: Vec<Lsn> = self.by_fact.keys().copied().collect();
        for lsn in facts {
            self.close_where(lsn, |_, part| *part.branch == *branch && part.sequence > to_sequence);
        }
    }

    fn close_where(&mut self, lsn: Lsn, is_closed: impl Fn(u32, &Part) -> bool) -> u64 {
        let DeadLetters { by_fact, open, by_branch } = self;
        let Some(letters) = by_fact.get_mut(&lsn) else { return 0 };
        let Letters { parts, open: numbers } = letters;
        let mut closed = 0;
        numbers.retain(|number| {
            let part = parts.iter().find(|part| *number < part.end);
            let Some(part) = part.filter(|part| is_closed(*number, part)) else { return true };
            closed += 1;
            if let Some(count) = by_branch.get_mut(&part.branch) {
                *count -= 1;
                if *count == 0 {
                    by_branch.remove(&part.branch);
                }
            }
            false
        });
        if numbers.is_empty() {
            by_fact.remove(&lsn);
        }
        *open -= closed;
        closed
    }
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

    /// Takes in which letters a commit has handled.
    pub(super) fn apply_replayed(&mut self, committed: &Committed, is_whole: bool) -> Result<(), String> {
        for id in committed.branches.iter().flat_map(|moved| &moved.replayed) {
            if !self.dead.close(id) && is_whole {
                return Err(format!("it replays dead letter {} of {}, which is not open", id.number, id.lsn));
            }
        }
        Ok(())
    }
}

impl State {
    pub(super) fn apply_dead_letters_discarded(
        &mut self,
        fact: &DeadLettersDiscarded,
        is_whole: bool,
    ) -> Result<(), String> {
        let pipeline = entry(&mut self.pipelines, &fact.pipeline);
        for id in &fact.letters {
            if !pipeline.dead.close(id) && is_whole {
                return Err(format!("it discards dead letter {} of {}, which is not open", id.number, id.lsn));
            }
        }
        Ok(())
    }
}
