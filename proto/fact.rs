//! What facts have in common: whom they are about, and the checkpoints they carry.

use crate::Lsn;
use crate::log::v1::fact::Kind;
use crate::log::v1::{BarrierRef, Committed, CommittedBranch, Fact};
use crate::v1::{Checkpoint, DeadLetter};

/// A checkpoint that a fact made the head of a branch.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Made<'a> {
    /// The branch.
    pub branch: &'a str,
    /// Its number in the branch.
    pub sequence: u64,
    /// What it says, or where that is.
    pub payload: Payload<'a>,
}

/// Where a checkpoint says what it says.
#[derive(Clone, Copy, Debug, PartialEq)]
pub enum Payload<'a> {
    /// In the fact itself.
    Here(&'a Checkpoint),
    /// In the fact that staged it.
    Staged(Lsn),
    /// Nowhere: compaction took it out, because it was not retained any more.
    Gone,
}

impl Payload<'_> {
    /// Whether it is anywhere.
    pub fn is_there(&self) -> bool {
        *self != Payload::Gone
    }
}

impl CommittedBranch {
    /// What its checkpoint says, or where that is.
    pub fn payload(&self) -> Payload<'_> {
        match (&self.checkpoint, self.staged_lsn) {
            (Some(checkpoint), _) => Payload::Here(checkpoint),
            (None, 0) => Payload::Gone,
            (None, staged) => Payload::Staged(Lsn::from_u64(staged)),
        }
    }
}

impl Fact {
    /// The pipeline that it is about; `None` if it concerns the cluster as a whole.
    pub fn pipeline(&self) -> Option<&str> {
        Some(match self.kind.as_ref()? {
            Kind::ClusterCreated(_) | Kind::GenerationStarted(_) => return None,
            Kind::LeaseGranted(granted) => &granted.pipeline,
            Kind::LeaseReleased(released) => &released.pipeline,
            Kind::Committed(committed) => &committed.pipeline,
            Kind::PolicySet(set) => &set.pipeline,
            Kind::SavepointCreated(created) => &created.pipeline,
            Kind::SavepointDeleted(deleted) => &deleted.pipeline,
            Kind::Rewound(rewound) => &rewound.pipeline,
            Kind::Forked(forked) => &forked.pipeline,
            Kind::ImportStarted(started) => &started.pipeline,
            Kind::Imported(imported) => &imported.commit.as_ref()?.pipeline,
            Kind::ImportFinished(finished) => &finished.pipeline,
            Kind::Staged(staged) => &staged.pipeline,
            Kind::StagedDiscarded(discarded) => &discarded.pipeline,
            Kind::BarrierOpened(opened) => &opened.pipeline,
            Kind::BarrierArrived(arrived) => &arrived.pipeline,
            Kind::BarrierAborted(aborted) => &aborted.pipeline,
            Kind::DeadLettersDiscarded(discarded) => &discarded.pipeline,
            Kind::SchemaDeclared(declared) => &declared.pipeline,
            Kind::GroupFenced(fenced) => &fenced.pipeline,
        })
    }

    /// The branches that it is about, in its own order; none if it concerns the pipeline or the cluster as a whole.
    pub fn branches(&self) -> impl Iterator<Item = &str> {
        let one = match &self.kind {
            Some(Kind::LeaseGranted(granted)) => Some(&granted.branch),
            Some(Kind::LeaseReleased(released)) => Some(&released.branch),
            Some(Kind::SavepointCreated(created)) => Some(&created.branch),
            Some(Kind::SavepointDeleted(deleted)) => Some(&deleted.branch),
            Some(Kind::Rewound(rewound)) => Some(&rewound.branch),
            Some(Kind::Forked(forked)) => Some(&forked.branch),
            Some(Kind::Staged(staged)) => Some(&staged.branch),
            Some(Kind::StagedDiscarded(discarded)) => Some(&discarded.branch),
            Some(Kind::BarrierArrived(arrived)) => Some(&arrived.branch),
            _ => None,
        };
        let (awaited, given_up) = match &self.kind {
            Some(Kind::BarrierOpened(opened)) => (&opened.participants[..], &[][..]),
            Some(Kind::BarrierAborted(aborted)) => (&[][..], &aborted.participants[..]),
            _ => (&[][..], &[][..]),
        };
        let awaited = awaited.iter().chain(given_up.iter().map(|participant| &participant.branch));
        let moved = self.commit().into_iter().flat_map(|commit| commit.branches.iter().map(|moved| &moved.branch));
        one.into_iter().chain(awaited).chain(moved).map(String::as_str)
    }

    /// The commit in it, an imported one included.
    pub fn commit(&self) -> Option<&Committed> {
        match self.kind.as_ref()? {
            Kind::Committed(committed) => Some(committed),
            Kind::Imported(imported) => imported.commit.as_ref(),
            _ => None,
        }
    }

    /// The same, to be changed.
    pub fn commit_mut(&mut self) -> Option<&mut Committed> {
        match self.kind.as_mut()? {
            Kind::Committed(committed) => Some(committed),
            Kind::Imported(imported) => imported.commit.as_mut(),
            _ => None,
        }
    }

    /// When the checkpoints in it were committed, in milliseconds since 1970: here or, if they were imported, where they come
    /// from.
    pub fn committed_at_ms(&self) -> u64 {
        match &self.kind {
            Some(Kind::Imported(imported)) => imported.committed_at_ms,
            _ => self.at_ms,
        }
    }

    /// The barrier that it is about.
    pub fn barrier(&self) -> Option<&BarrierRef> {
        match self.kind.as_ref()? {
            Kind::Committed(committed) => committed.barrier.as_ref(),
            Kind::BarrierArrived(arrived) => arrived.barrier.as_ref(),
            Kind::BarrierAborted(aborted) => aborted.barrier.as_ref(),
            _ => None,
        }
    }

    /// The checkpoints that it made heads of branches.
    pub fn checkpoints(&self) -> impl Iterator<Item = Made<'_>> {
        let forked = match &self.kind {
            Some(Kind::Forked(forked)) => {
                let payload = forked.checkpoint.as_ref().map_or(Payload::Gone, Payload::Here);
                Some(Made { branch: &forked.branch, sequence: 1, payload })
            }
            _ => None,
        };
        let moved = self.commit().into_iter().flat_map(|commit| &commit.branches);
        let moved =
            moved.map(|moved| Made { branch: &moved.branch, sequence: moved.sequence, payload: moved.payload() });
        forked.into_iter().chain(moved)
    }

    /// The checkpoints that are in it, also one that is only staged.
    pub fn payloads(&self) -> impl Iterator<Item = &Checkpoint> {
        let one = match &self.kind {
            Some(Kind::Forked(forked)) => forked.checkpoint.as_ref(),
            Some(Kind::Staged(staged)) => staged.checkpoint.as_ref(),
            _ => None,
        };
        let moved = self.commit().into_iter().flat_map(|commit| &commit.branches);
        one.into_iter().chain(moved.filter_map(|moved| moved.checkpoint.as_ref()))
    }

    /// The dead letters that are in it, in the order of their numbers.
    pub fn dead_letters(&self) -> impl Iterator<Item = &DeadLetter> {
        let staged = match &self.kind {
            Some(Kind::Staged(staged)) => &staged.dead_letters[..],
            _ => &[],
        };
        let moved = self.commit().into_iter().flat_map(|commit| &commit.branches);
        staged.iter().chain(moved.flat_map(|moved| &moved.dead_letters))
    }

    /// The same as [`Fact::payloads`], to be changed.
    pub fn payloads_mut(&mut self) -> impl Iterator<Item = &mut Checkpoint> {
        let (one, commit) = match &mut self.kind {
            Some(Kind::Forked(forked)) => (forked.checkpoint.as_mut(), None),
            Some(Kind::Staged(staged)) => (staged.checkpoint.as_mut(), None),
            Some(Kind::Committed(committed)) => (None, Some(committed)),
            Some(Kind::Imported(imported)) => (None, imported.commit.as_mut()),
            _ => (None, None),
        };
        let moved = commit.into_iter().flat_map(|commit| &mut commit.branches);
        one.into_iter().chain(moved.filter_map(|moved| moved.checkpoint.as_mut()))
    }

    /// Takes out the checkpoints of [`Fact::checkpoints`] of which this says so, by their places there.
    pub fn take_out(&mut self, mut is_taken: impl FnMut(usize) -> bool) {
        if let Some(Kind::Forked(forked)) = &mut self.kind
            && is_taken(0)
        {
            forked.checkpoint = None;
        }
        let moved = self.commit_mut().into_iter().flat_map(|commit| &mut commit.branches);
        for (_, moved) in moved.enumerate().filter(|(place, _)| is_taken(*place)) {
            moved.checkpoint = None;
            moved.staged_lsn = 0;
        }
    }
}
