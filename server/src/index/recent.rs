//! What the log says that the cold index may not have taken in yet, in memory.
//!
//! Kept in generations of whole log entries, so that what the cold index has taken in is let go of at once: a generation is
//! unlinked on the sequencer's thread, and its many small strings are freed on another one.

use std::collections::{BTreeMap, HashMap, VecDeque};

use fencepost::log::v1::Fact;
use fencepost::log::v1::fact::Kind;
use fencepost::{LogIndex, Lsn};

use super::Place;
use crate::state::{Digest, entry, id_key};

/// How many things a generation has when the next one is begun.
const GENERATION_ENTRIES: usize = 50_000;

/// How many generations there are at most: some 10 million things, less than a gigabyte.
const GENERATIONS_MAX: usize = 200;

/// All checkpoints, commit ids and audit records after one place in the log.
#[derive(Debug, Default)]
pub struct Recent {
    /// Oldest first. Each covers log indexes of its own.
    generations: VecDeque<Generation>,
    /// Everything after it is here.
    after: Lsn,
    /// The newest fact taken in.
    through: Lsn,
}

/// Generations that nobody needs any more. To be dropped where it does not matter how long that takes.
#[derive(Debug)]
#[must_use = "drop it on a thread that has the time"]
pub struct Forgotten {
    _generations: Vec<Generation>,
}

#[derive(Debug, Default)]
struct Generation {
    last_index: LogIndex,
    entries: usize,
    pipelines: BTreeMap<Box<str>, Pipeline>,
}

#[derive(Debug, Default)]
struct Pipeline {
    branches: BTreeMap<Box<str>, BTreeMap<u64, Lsn>>,
    commit_ids: HashMap<Digest, Lsn>,
    /// Ascending.
    audit: Vec<Lsn>,
}

impl Recent {
    /// Empty: what comes first is the first fact after `after`.
    pub fn after(after: Lsn) -> Recent {
        Recent { generations: VecDeque::new(), after, through: after }
    }

    /// From where on nothing is missing, and the newest fact taken in.
    pub(super) fn bounds(&self) -> (Lsn, Lsn) {
        (self.after, self.through)
    }

    /// Takes one fact in. The facts come in the order of the log, each once.
    pub fn feed(&mut self, lsn: Lsn, fact: &Fact) {
        self.through = lsn;
        let Some(name) = fact.pipeline() else { return };
        if !is_audit(fact) && fact.checkpoints().next().is_none() {
            return;
        }
        let generation = self.generation(lsn.index());
        let pipeline = entry(&mut generation.pipelines, name);
        for made in fact.checkpoints() {
            // After a rewind a sequence is used again, and the later checkpoint is the one.
            entry(&mut pipeline.branches, made.branch).insert(made.sequence, lsn);
            generation.entries += 1;
        }
        if let Some(commit) = fact.commit() {
            pipeline.commit_ids.insert(id_key(&commit.commit_id), lsn);
            generation.entries += 1;
        }
        if is_audit(fact) {
            pipeline.audit.push(lsn);
            generation.entries += 1;
        }
    }

    /// Lets go of what the cold index has taken in, all facts through `index`. Generations go as a whole; the one that goes
    /// beyond stays.
    pub fn forget_through(&mut self, index: LogIndex) -> Forgotten {
        let is_done = |generation: &Generation| generation.last_index <= index;
        let done = self.generations.iter().take_while(|generation| is_done(generation)).count();
        let forgotten: Vec<Generation> = self.generations.drain(..done).collect();
        if let Some(newest) = forgotten.last() {
            self.after = self.after.max(Lsn::new(newest.last_index, u16::MAX));
        }
        Forgotten { _generations: forgotten }
    }

    /// Where the newest checkpoint of this sequence is, if it is recent. The caller knows the head: later ones may have been
    /// abandoned by a rewind.
    pub fn commit(&self, pipeline: &str, branch: &str, sequence: u64) -> Option<Place> {
        let found = self.pipelines(pipeline).find_map(|pipeline| pipeline.branches.get(branch)?.get(&sequence));
        found.map(|lsn| Place { sequence, lsn: *lsn })
    }

    /// Where the newest commit with this id is, if it is recent. [`id_key`] makes the key.
    pub fn commit_id(&self, pipeline: &str, key: &Digest) -> Option<Lsn> {
        self.pipelines(pipeline).find_map(|pipeline| pipeline.commit_ids.get(key)).copied()
    }

    /// The audit records before `before`, newest first.
    pub fn audit(&self, pipeline: &str, before: Lsn) -> impl Iterator<Item = Lsn> {
        let older = move |pipeline: &'_ Pipeline| pipeline.audit.partition_point(|lsn| *lsn < before);
        self.pipelines(pipeline).flat_map(move |pipeline| pipeline.audit[..older(pipeline)].iter().rev().copied())
    }

    /// What the generations know of a pipeline, newest first.
    fn pipelines(&self, name: &str) -> impl Iterator<Item = &Pipeline> {
        self.generations.iter().rev().filter_map(move |generation| generation.pipelines.get(name))
    }

    /// The index on disk is far behind: memory stays bounded, and questions about what is in neither wait for it.
    fn let_go_of_oldest(&mut self) {
        if let Some(oldest) = self.generations.pop_front() {
            self.after = self.after.max(Lsn::new(oldest.last_index, u16::MAX));
        }
    }

    /// The newest generation, begun anew between two entries of the log if it is full.
    fn generation(&mut self, index: LogIndex) -> &mut Generation {
        let is_open = |newest: &Generation| newest.entries < GENERATION_ENTRIES || newest.last_index == index;
        if !self.generations.back().is_some_and(is_open) {
            self.generations.push_back(Generation::default());
            if self.generations.len() > GENERATIONS_MAX {
                self.let_go_of_oldest();
            }
        }
        let newest = self.generations.back_mut().expect("a generation was there or was just begun");
        newest.last_index = index;
        newest
    }
}

/// Whether the fact is listed as an audit record of its pipeline: somebody got or changed something beyond a commit.
pub fn is_audit(fact: &Fact) -> bool {
    matches!(
        fact.kind,
        Some(
            Kind::LeaseGranted(_)
                | Kind::PolicySet(_)
                | Kind::SavepointCreated(_)
                | Kind::SavepointDeleted(_)
                | Kind::Rewound(_)
                | Kind::Forked(_)
                | Kind::ImportStarted(_)
                | Kind::StagedDiscarded(_)
                | Kind::BarrierOpened(_)
                | Kind::BarrierAborted(_)
                | Kind::DeadLettersDiscarded(_)
                | Kind::SchemaDeclared(_)
                | Kind::GroupFenced(_)
        )
    )
}

#[cfg(test)]
mod tests {
    use fencepost::log::v1::{Committed, CommittedBranch, LeaseGranted};

    use super::*;

    fn commit(branch: &str, sequence: u64, commit_id: &str) -> Fact {
        let branches = vec![CommittedBranch { branch: branch.to_owned(), sequence, ..CommittedBranch::default() }];
        let (pipeline, commit_id) = ("prod/orders".to_owned(), commit_id.to_owned());
        Fact {
            at_ms: sequence,
            kind: Some(Kind::Committed(Committed { pipeline, commit_id, branches, ..Committed::default() })),
        }
    }

    fn grant() -> Fact {
        let granted = LeaseGranted { pipeline: "prod/orders".to_owned(), ..LeaseGranted::default() };
        Fact { at_ms: 1, kind: Some(Kind::LeaseGranted(granted)) }
    }

    fn lsn(index: u64) -> Lsn {
        Lsn::new(LogIndex(index), 0)
    }

    #[test]
    fn a_later_commit_of_the_same_sequence_replaces_the_earlier() {
        let mut recent = Recent::default();
        recent.feed(lsn(1), &commit("eu", 1, "a"));
        recent.feed(lsn(2), &commit("eu", 1, "b"));
        assert_eq!(recent.commit("prod/orders", "eu", 1), Some(Place { sequence: 1, lsn: lsn(2) }));
        assert_eq!(recent.commit_id("prod/orders", &id_key("a")), Some(lsn(1)));
        assert_eq!(recent.commit("prod/orders", "us", 1), None);
    }

    #[test]
    fn whole_generations_are_forgotten_and_what_goes_beyond_stays() {
        let mut recent = Recent::default();
        let commits = 2 * GENERATION_ENTRIES as u64;
        for sequence in 1..=commits {
            recent.feed(lsn(sequence), &commit("eu", sequence, &sequence.to_string()));
        }
        // Each commit is two entries, so there are four generations.
        assert_eq!(recent.generations.len(), 4);
        let first = GENERATION_ENTRIES as u64 / 2;
        drop(recent.forget_through(LogIndex(first - 1)));
        assert_eq!((recent.generations.len(), recent.bounds()), (4, (Lsn::ZERO, lsn(commits))));
        drop(recent.forget_through(LogIndex(first)));
        assert_eq!(recent.generations.len(), 3);
        assert_eq!(recent.bounds().0, Lsn::new(LogIndex(first), u16::MAX));
        assert_eq!(recent.commit("prod/orders", "eu", first), None);
        assert_eq!(recent.commit("prod/orders", "eu", first + 1).unwrap().lsn, lsn(first + 1));
        drop(recent.forget_through(LogIndex(commits)));
        assert_eq!(recent.commit("prod/orders", "eu", commits), None);
    }

    #[test]
    fn an_entry_of_the_log_is_not_spread_over_generations() {
        let mut recent = Recent::default();
        for sequence in 1..=GENERATION_ENTRIES as u64 {
            recent.feed(Lsn::new(LogIndex(7), sequence as u16), &commit("eu", sequence, "id"));
        }
        assert_eq!(recent.generations.len(), 1);
        recent.feed(lsn(8), &grant());
        assert_eq!(recent.generations.len(), 2);
        assert_eq!(recent.audit("prod/orders", Lsn::MAX).collect::<Vec<_>>(), [lsn(8)]);
        assert_eq!(recent.audit("prod/orders", lsn(8)).count(), 0);
    }
}
