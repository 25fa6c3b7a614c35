//! Which checkpoints damage takes away, worked out from what can still be read.
//!
//! A branch keeps a run of sequences without gaps, and the log has them in their order. So one that is kept and that no fact
//! shows is in a damaged place between the facts that show its neighbours; and heads and savepoints are known by their places
//! from a hot state, too.

use std::collections::BTreeMap;
use std::ops::RangeInclusive;

use fencepost::log::v1::Fact;
use fencepost::log::v1::fact::Kind;
use fencepost::{Lsn, Made, Payload};

use crate::index::Located;
use crate::state::{State, entry};

/// Checkpoints that are named for one damage.
const NAMED_MAX: usize = 100;

/// What every branch keeps, and where, as far as it is known.
#[derive(Debug, Default)]
pub(super) struct Holdings {
    pipelines: BTreeMap<Box<str>, Held>,
    /// What damaged facts seem to say.
    suspects: Vec<(Lsn, Located)>,
}

#[derive(Debug, Default)]
struct Held {
    branches: BTreeMap<Box<str>, HeldBranch>,
    /// Branch, sequence and place of what has a name.
    savepoints: BTreeMap<Box<str>, (Box<str>, u64, Lsn)>,
}

#[derive(Debug, Default)]
struct HeldBranch {
    retained_from: u64,
    head: u64,
    /// In the order of sequences, which is that of the log.
    places: BTreeMap<u64, Lsn>,
    /// Where those of them were staged that were, and what is staged now.
    staged: BTreeMap<u64, Lsn>,
}

/// Kept checkpoints of a branch that nobody knows the places of, and between which log indexes they must be.
struct Gap {
    sequences: RangeInclusive<u64>,
    indexes: RangeInclusive<u64>,
}

impl Holdings {
    /// Takes one fact in. The facts come in the order of the log; some may be missing.
    pub(super) fn take(&mut self, lsn: Lsn, fact: &Fact) {
        let Some(name) = fact.pipeline() else { return };
        let held = entry(&mut self.pipelines, name);
        match &fact.kind {
            Some(Kind::SavepointCreated(created)) => {
                let place = (created.branch.as_str().into(), created.sequence, Lsn::from_u64(created.checkpoint_lsn));
                held.savepoints.insert(created.name.as_str().into(), place);
            }
            Some(Kind::SavepointDeleted(deleted)) => drop(held.savepoints.remove(&*deleted.name)),
            Some(Kind::Rewound(rewound)) => {
                let branch = entry(&mut held.branches, &rewound.branch);
                branch.retained_from = rewound.retained_from;
                branch.set_head(rewound.to_sequence, Some(Lsn::from_u64(rewound.to_lsn)));
            }
            _ => {}
        }
        for Made { branch, sequence, payload } in fact.checkpoints() {
            let moved = fact.commit().and_then(|it| it.branches.iter().find(|moved| moved.branch == branch));
            let branch = entry(&mut held.branches, branch);
            branch.retained_from = branch.retained_from.max(moved.map_or(1, |moved| moved.retained_from));
            branch.set_head(sequence, payload.is_there().then_some(lsn));
            match payload {
                Payload::Staged(staged) => drop(branch.staged.insert(sequence, staged)),
                Payload::Here(_) | Payload::Gone => drop(branch.staged.remove(&sequence)),
            }
        }
    }

    /// Takes note of a fact whose payload is not what was written. Often it still says what it was.
    pub(super) fn suspect(&mut self, lsn: Lsn, fact: &Fact) {
        let pipeline = fact.pipeline().unwrap_or_default().to_owned();
        let staged = match &fact.kind {
            Some(Kind::Staged(staged)) => Some((staged.branch.as_str(), staged.sequence)),
            _ => None,
        };
        let made = fact.checkpoints().map(|made| (made.branch, made.sequence)).chain(staged);
        self.suspects.extend(made.map(|(branch, sequence)| {
            (lsn, Located { pipeline: pipeline.clone(), branch: branch.to_owned(), sequence })
        }));
    }

    /// Takes in what a state says that has all facts so far, also those that were not read.
    pub(super) fn absorb(&mut self, state: &State) {
        for (name, pipeline) in state.pipelines_after("", "") {
            let held = entry(&mut self.pipelines, name);
            for (name, known) in pipeline.branches_after("") {
                let branch = entry(&mut held.branches, name);
                branch.retained_from = known.retained_from();
                let head = known.head().unwrap_or_default();
                branch.set_head(head.sequence, Some(head.lsn));
                branch.staged.extend(known.staged().map(|staged| (staged.sequence, staged.lsn)));
            }
            let named = pipeline.savepoints_after("");
            held.savepoints =
                named.map(|(name, it)| (name.into(), (it.branch.as_str().into(), it.sequence, it.lsn))).collect();
        }
    }

    /// Kept checkpoints that are, or must be, in these entries: at most 100, and whether there are more.
    pub(super) fn lost_in(&self, indexes: &RangeInclusive<u64>) -> (Vec<Located>, bool) {
        let is_in = |lsn: &Lsn| indexes.contains(&lsn.index().0);
        let meets = |gap: &Gap| gap.indexes.start() <= indexes.end() && indexes.start() <= gap.indexes.end();
        let mut lost = Vec::new();
        for (pipeline, held) in &self.pipelines {
            let mut add = |branch: &str, sequence| {
                lost.push(Located { pipeline: pipeline.to_string(), branch: branch.to_owned(), sequence });
            };
            for (name, branch) in &held.branches {
                let staged = branch.staged.iter().map(|(sequence, lsn)| (*sequence, *lsn));
                branch.kept().chain(staged).filter(|(_, lsn)| is_in(lsn)).for_each(|(sequence, _)| add(name, sequence));
                let gaps = branch.gaps();
                gaps.iter().filter(|gap| meets(gap)).for_each(|gap| {
                    gap.sequences.clone().take(NAMED_MAX + 1).for_each(|sequence| add(name, sequence));
                });
            }
            let named = held.savepoints.values().filter(|(_, _, lsn)| is_in(lsn));
            named.for_each(|(branch, sequence, _)| add(branch, *sequence));
        }
        // It is believed where it would be the newest of its branch, of which nothing else can tell.
        let is_newest = |it: &Located| self.branch(it).is_none_or(|branch| branch.head + 1 == it.sequence);
        let suspects = self.suspects.iter().filter(|(lsn, it)| is_in(lsn) && is_newest(it));
        lost.extend(suspects.map(|(_, it)| it.clone()));
        lost.sort();
        lost.dedup();
        let is_more = lost.len() > NAMED_MAX;
        lost.truncate(NAMED_MAX);
        (lost, is_more)
    }

    /// Kept checkpoints whose places nobody knows, of an undamaged log: there should be none. `counts` says which
    /// pipelines count.
    pub(super) fn missing(&self, counts: impl Fn(&str) -> bool) -> Vec<(Located, u64)> {
        let mut missing = Vec::new();
        for (pipeline, held) in self.pipelines.iter().filter(|(name, _)| counts(name)) {
            for (branch, known) in &held.branches {
                missing.extend(known.gaps().into_iter().map(|gap| {
                    let (first, last) = gap.sequences.into_inner();
                    let (pipeline, branch) = (pipeline.to_string(), branch.to_string());
                    (Located { pipeline, branch, sequence: first }, last)
                }));
            }
        }
        missing
    }

    fn branch(&self, of: &Located) -> Option<&HeldBranch> {
        self.pipelines.get(&*of.pipeline)?.branches.get(&*of.branch)
    }

    /// Every branch with what it keeps and where.
    pub(super) fn kept(&self) -> impl Iterator<Item = (&str, &str, Vec<(u64, Lsn)>)> {
        self.pipelines.iter().flat_map(|(pipeline, held)| {
            held.branches.iter().map(|(name, branch)| (&**pipeline, &**name, branch.kept().collect()))
        })
    }
}

impl HeldBranch {
    /// The branch is at this sequence now, whose checkpoint is at `place`, if that is known.
    fn set_head(&mut self, sequence: u64, place: Option<Lsn>) {
        while self.places.last_key_value().is_some_and(|(newer, _)| *newer >= sequence) {
            self.places.pop_last();
        }
        if let Some(place) = place.filter(|_| sequence > 0) {
            self.places.insert(sequence, place);
        }
        self.head = sequence;
        while self.staged.last_key_value().is_some_and(|(newer, _)| *newer > sequence) {
            self.staged.pop_last();
        }
        while self.staged.first_key_value().is_some_and(|(older, _)| *older < self.retained_from) {
            self.staged.pop_first();
        }
        while self.places.first_key_value().is_some_and(|(older, _)| *older < self.retained_from) {
            self.places.pop_first();
        }
    }

    fn kept_sequences(&self) -> RangeInclusive<u64> {
        self.retained_from.max(1)..=self.head
    }

    fn kept(&self) -> impl Iterator<Item = (u64, Lsn)> {
        self.places.iter().map(|(sequence, lsn)| (*sequence, *lsn))
    }

    fn gaps(&self) -> Vec<Gap> {
        let (mut due, head) = self.kept_sequences().into_inner();
        let (mut gaps, mut before) = (Vec::new(), 0);
        for (sequence, lsn) in self.kept() {
            let index = lsn.index().0;
            if sequence > due {
                gaps.push(Gap { sequences: due..=sequence - 1, indexes: before..=index });
            }
            (due, before) = (sequence + 1, index);
        }
        if due <= head {
            gaps.push(Gap { sequences: due..=head, indexes: before..=u64::MAX });
        }
        gaps
    }
}
