//! What facts have in common: whom they are about, and the checkpoints they carry.

use crate::log::v1::fact::Kind;
use crate::log::v1::{Committed, Fact};
use crate::v1::Checkpoint;

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
            _ => None,
        };
        let moved = self.commit().into_iter().flat_map(|commit| commit.branches.iter().map(|moved| &moved.branch));
        one.into_iter().chain(moved).map(String::as_str)
    }

    /// The commit in it, an imported one included.
    pub fn commit(&self) -> Option<&Committed> {
        match self.kind.as_ref()? {
            Kind::Committed(committed) => Some(committed),
            Kind::Imported(imported) => imported.commit.as_ref(),
            _ => None,
        }
    }

    /// The checkpoints that it made, each with its branch and sequence and, unless compaction took it out, what it says.
    pub fn checkpoints(&self) -> impl Iterator<Item = (&str, u64, Option<&Checkpoint>)> {
        let forked = match &self.kind {
            Some(Kind::Forked(forked)) => Some((forked.branch.as_str(), 1, forked.checkpoint.as_ref())),
            _ => None,
        };
        let moved = self.commit().into_iter().flat_map(|commit| &commit.branches);
        forked.into_iter().chain(moved.map(|moved| (moved.branch.as_str(), moved.sequence, moved.checkpoint.as_ref())))
    }

    /// The places of the checkpoints, in the order of [`Fact::checkpoints`].
    pub fn checkpoints_mut(&mut self) -> impl Iterator<Item = &mut Option<Checkpoint>> {
        let (forked, commit) = match &mut self.kind {
            Some(Kind::Forked(forked)) => (Some(&mut forked.checkpoint), None),
            Some(Kind::Committed(committed)) => (None, Some(committed)),
            Some(Kind::Imported(imported)) => (None, imported.commit.as_mut()),
            _ => (None, None),
        };
        let moved = commit.into_iter().flat_map(|commit| &mut commit.branches).map(|moved| &mut moved.checkpoint);
        forked.into_iter().chain(moved)
    }
}
