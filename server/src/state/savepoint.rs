//! Names for checkpoints. As long as a checkpoint has one, retention does not remove it.

use std::collections::BTreeMap;

use fencepost::log::v1::{SavepointCreated, SavepointDeleted};
use fencepost::v1::{CreateSavepointRequest, DeleteSavepointRequest};
use fencepost::{Lsn, Reason};

use super::{Pipeline, Place, State};
use crate::config::limits;
use crate::error::Refusal;

/// What a savepoint names. Who made it and why is in the fact at `created`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Savepoint {
    /// The branch that it is of.
    pub branch: String,
    /// The checkpoint's sequence.
    pub sequence: u64,
    /// Where the checkpoint is.
    pub lsn: Lsn,
    /// When the checkpoint was committed, by the server's wall clock.
    pub committed_at_ms: u64,
    /// The fact that made the savepoint.
    pub created: Lsn,
    /// When, by the server's wall clock.
    pub created_at_ms: u64,
}

/// How a savepoint is judged, if it is not refused.
#[derive(Clone, Debug, PartialEq)]
pub enum SavepointVerdict {
    /// It exists once this fact is durable.
    Create(SavepointCreated),
    /// A retry: it exists, here.
    Repeat(Savepoint),
}

/// The savepoints of a pipeline.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Savepoints {
    by_name: BTreeMap<Box<str>, Savepoint>,
    /// The branches whose checkpoints they hold, by place, sorted; one for each savepoint.
    pinned: BTreeMap<Lsn, Vec<Box<str>>>,
}

impl Savepoints {
    pub(super) fn get(&self, name: &str) -> Option<&Savepoint> {
        self.by_name.get(name)
    }

    pub(super) fn insert(&mut self, name: &str, savepoint: Savepoint) {
        self.remove(name);
        let pinned = self.pinned.entry(savepoint.lsn).or_default();
        let at = pinned.partition_point(|branch| **branch < *savepoint.branch);
        pinned.insert(at, savepoint.branch.as_str().into());
        self.by_name.insert(name.into(), savepoint);
    }

    pub(super) fn remove(&mut self, name: &str) -> Option<Savepoint> {
        let removed = self.by_name.remove(name)?;
        if let Some(pinned) = self.pinned.get_mut(&removed.lsn) {
            if let Some(at) = pinned.iter().position(|branch| **branch == *removed.branch) {
                pinned.remove(at);
            }
            if pinned.is_empty() {
                self.pinned.remove(&removed.lsn);
            }
        }
        Some(removed)
    }

    /// Whether any of them names the checkpoint that this fact gave the branch.
    pub(super) fn pin(&self, branch: &str, lsn: Lsn) -> bool {
        self.pinned.get(&lsn).is_some_and(|branches| branches.iter().any(|pinned| **pinned == *branch))
    }

    /// Whether any of them names a checkpoint of this sequence of the branch.
    pub(super) fn pin_sequence(&self, branch: &str, sequence: u64) -> bool {
        self.by_name.values().any(|savepoint| savepoint.sequence == sequence && savepoint.branch == branch)
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (&str, &Savepoint)> {
        self.by_name.iter().map(|(name, savepoint)| (&**name, savepoint))
    }
}

impl Pipeline {
    /// The savepoint of that name.
    pub fn savepoint(&self, name: &str) -> Option<&Savepoint> {
        self.savepoints.get(name)
    }

    /// Savepoints in the order of their names, from the first one after `after`.
    pub fn savepoints_after<'a>(&'a self, after: &str) -> impl Iterator<Item = (&'a str, &'a Savepoint)> {
        let range =
            self.savepoints.by_name.range::<str, _>((std::ops::Bound::Excluded(after), std::ops::Bound::Unbounded));
        range.map(|(name, savepoint)| (&**name, savepoint))
    }

    pub(super) fn known_savepoint(&self, pipeline: &str, name: &str) -> Result<&Savepoint, Refusal> {
        self.savepoints.get(name).ok_or_else(|| {
            let message = format!("pipeline '{pipeline}' has no savepoint '{name}': list those that it has");
            Refusal::new(Reason::StateMissing, message).with("pipeline", pipeline).with("savepoint", name)
        })
    }
}

impl State {
    /// Judges a new savepoint, its shape already checked. `found` is where the checkpoint of the sequence asked for is, as
    /// history knows it; not needed for the head.
    pub fn evaluate_savepoint_create(
        &self,
        request: &CreateSavepointRequest,
        found: Option<Place>,
    ) -> Result<SavepointVerdict, Refusal> {
        self.check_cluster(request.cluster.as_ref())?;
        let CreateSavepointRequest { pipeline: of, name, branch: branch_name, .. } = request;
        let (pipeline, branch) = self.known_branch(of, branch_name)?;
        let head = branch.head;
        let sequence = if request.sequence == 0 { head.sequence } else { request.sequence };
        let wanted =
            if sequence == head.sequence { (sequence > 0).then_some(head.lsn) } else { found.map(|it| it.lsn) };
        if let Some(known) = pipeline.savepoints.get(name) {
            if known.branch == *branch_name && known.sequence == sequence && wanted.is_none_or(|lsn| lsn == known.lsn) {
                return Ok(SavepointVerdict::Repeat(known.clone()));
            }
            let message = format!(
                "savepoint '{name}' of '{of}' exists and names checkpoint {} of branch '{}' (LSN {}), not {sequence} of \
                 '{branch_name}': choose another name, or delete it first",
                known.sequence, known.branch, known.lsn
            );
            return Err(Refusal::new(Reason::Exists, message).with("field", "name").with("value", name));
        }
        let lsn = self.check_place(of, branch_name, sequence, wanted)?;
        if pipeline.savepoints.by_name.len() >= limits::SAVEPOINTS_MAX {
            let expected =
                format!("at most {} savepoints in '{of}', and it has as many: delete some", limits::SAVEPOINTS_MAX);
            return Err(Refusal::field(Reason::TooLarge, "name", name, &expected));
        }
        let committed_at_ms =
            if lsn == head.lsn { head.committed_at_ms } else { found.map_or(0, |place| place.committed_at_ms) };
        Ok(SavepointVerdict::Create(SavepointCreated {
            pipeline: of.clone(),
            name: name.clone(),
            branch: branch_name.clone(),
            sequence,
            checkpoint_lsn: lsn.as_u64(),
            checkpoint_committed_at_ms: committed_at_ms,
            actor: request.actor.clone(),
            reason: request.reason.clone(),
        }))
    }

    /// Judges the end of a savepoint.
    pub fn evaluate_savepoint_delete(&self, request: &DeleteSavepointRequest) -> Result<SavepointDeleted, Refusal> {
        self.check_cluster(request.cluster.as_ref())?;
        let DeleteSavepointRequest { pipeline: of, name, .. } = request;
        self.check_ready(of)?;
        let pipeline = self.known_pipeline(of)?;
        let savepoint = pipeline.known_savepoint(of, name)?;
        Ok(SavepointDeleted {
            pipeline: of.clone(),
            name: name.clone(),
            created_lsn: savepoint.created.as_u64(),
            actor: request.actor.clone(),
            reason: request.reason.clone(),
            branch: savepoint.branch.clone(),
            sequence: savepoint.sequence,
        })
    }
}
