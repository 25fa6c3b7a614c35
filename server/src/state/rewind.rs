//! Setting a branch back, and what that leaves behind.
//!
//! A rewind abandons every later checkpoint that was committed before it. It mints a token for nobody, so that whoever
//! had the branch is fenced, and the ids of the abandoned commits are free again.

use fencepost::log::v1::Rewound;
use fencepost::v1::{RewindRequest, rewind_request::To};
use fencepost::{Lsn, Reason};

use super::{Branch, Head, Pipeline, Savepoint, State};
use crate::error::Refusal;

/// Where a checkpoint is in the log.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// The fact that made it.
    pub lsn: Lsn,
    /// When, by the server's wall clock.
    pub committed_at_ms: u64,
}

/// The rewinds of a branch that still matter: of those with the same or a later target, only the newest does. So both
/// the places and the targets increase.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Rewinds(Vec<(Lsn, u64)>);

impl Rewinds {
    /// Takes in the newest rewind.
    pub(super) fn push(&mut self, lsn: Lsn, to_sequence: u64) {
        self.0.truncate(self.0.partition_point(|(_, to)| *to < to_sequence));
        self.0.push((lsn, to_sequence));
    }

    /// Whether the checkpoint of this sequence that was made at `lsn` was left behind.
    pub(super) fn abandon(&self, sequence: u64, lsn: Lsn) -> bool {
        let later = self.0.partition_point(|(rewound, _)| *rewound < lsn);
        self.0.get(later).is_some_and(|(_, to)| *to < sequence)
    }

    /// Whether the rewind at this place still matters.
    pub(super) fn contain(&self, lsn: Lsn) -> bool {
        self.0.binary_search_by_key(&lsn, |(rewound, _)| *rewound).is_ok()
    }

    /// The newest one.
    pub(super) fn last(&self) -> Option<Lsn> {
        self.0.last().map(|(lsn, _)| *lsn)
    }

    /// All, oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (Lsn, u64)> {
        self.0.iter().copied()
    }
}

impl State {
    /// Judges a rewind, its shape already checked. `found` is where the checkpoint asked for was found and read; not
    /// needed for the head, for sequence 0 and for a savepoint.
    pub fn evaluate_rewind(&self, request: &RewindRequest, found: Option<Place>) -> Result<Rewound, Refusal> {
        self.check_cluster(request.cluster.as_ref())?;
        let RewindRequest { pipeline: of, branch: name, .. } = request;
        self.check_ready(of)?;
        let (pipeline, branch) = self.known_branch(of, name)?;
        let head = branch.head;
        if head.sequence != request.expected_head {
            let message = format!(
                "branch '{name}' of '{of}' is at sequence {}, not at {} as the rewind expects: look at what happened \
                 since, then ask again with the head as it is",
                head.sequence, request.expected_head
            );
            return Err(Refusal::new(Reason::HeadMismatch, message)
                .with("branch", name)
                .with("actual_head", head.sequence)
                .with("actual_head_lsn", head.lsn.as_u64()));
        }
        let (to, savepoint) = match &request.to {
            Some(To::Savepoint(savepoint)) => {
                (of_savepoint(pipeline, of, name, branch, savepoint, found)?, savepoint.as_str())
            }
            Some(To::Sequence(sequence)) => (self.of_sequence(request, pipeline, branch, *sequence, found)?, ""),
            None => return Err(Refusal::field(Reason::InvalidField, "to", "", "a sequence or a savepoint")),
        };
        let previous = branch.lease();
        Ok(Rewound {
            pipeline: of.clone(),
            branch: name.clone(),
            to_sequence: to.sequence,
            to_lsn: to.lsn.as_u64(),
            to_committed_at_ms: to.committed_at_ms,
            from_sequence: head.sequence,
            token: self.next_token()?.as_u64(),
            previous_holder: previous.map_or_else(String::new, |grant| grant.holder.to_string()),
            previous_token: previous.map_or(0, |grant| grant.token.as_u64()),
            actor: request.actor.clone(),
            reason: request.reason.clone(),
            savepoint: savepoint.to_owned(),
            retained_from: branch.retained_from().min(to.sequence.max(1)),
        })
    }

    fn of_sequence(
        &self,
        request: &RewindRequest,
        pipeline: &Pipeline,
        branch: &Branch,
        sequence: u64,
        found: Option<Place>,
    ) -> Result<Head, Refusal> {
        if sequence == 0 {
            return Ok(Head::default());
        }
        if sequence == branch.head.sequence {
            return Ok(branch.head);
        }
        let place = self.check_place(&request.pipeline, &request.branch, sequence, found.map(|place| place.lsn))?;
        debug_assert!(pipeline.is_retained(&request.branch, branch, sequence, place));
        let committed_at_ms = found.map_or(0, |place| place.committed_at_ms);
        Ok(Head { sequence, lsn: place, committed_at_ms })
    }

    /// The pipeline and branch of these names.
    pub(super) fn known_branch(&self, pipeline: &str, branch: &str) -> Result<(&Pipeline, &Branch), Refusal> {
        let missing = |what: String| {
            let hint = "'fencepost pipelines' and 'fencepost branches' list what is there";
            Refusal::new(Reason::StateMissing, format!("{what}; {hint}"))
        };
        let known = self.pipeline(pipeline).ok_or_else(|| missing(format!("there is no pipeline '{pipeline}'")))?;
        let found = known.branches.get(branch);
        let found = found.ok_or_else(|| missing(format!("pipeline '{pipeline}' has no branch '{branch}'")))?;
        Ok((known, found))
    }
}

/// The checkpoint that a savepoint names, if the branch can be set back to it.
fn of_savepoint(
    pipeline: &Pipeline,
    of: &str,
    name: &str,
    branch: &Branch,
    wanted: &str,
    found: Option<Place>,
) -> Result<Head, Refusal> {
    let savepoint = pipeline.known_savepoint(of, wanted)?;
    let Savepoint { sequence, lsn, committed_at_ms, .. } = *savepoint;
    if savepoint.branch != name {
        let message = format!(
            "savepoint '{wanted}' of '{of}' names checkpoint {sequence} of branch '{}', not of '{name}': fork it, or \
             rewind that branch",
            savepoint.branch
        );
        return Err(Refusal::new(Reason::InvalidField, message).with("field", "savepoint").with("value", wanted));
    }
    if sequence > branch.head.sequence || branch.is_abandoned(sequence, lsn) {
        let message = format!(
            "savepoint '{wanted}' of '{of}' names checkpoint {sequence} of branch '{name}' from before the branch was \
             rewound, so it is not of this branch's past any more: fork the savepoint to a new branch instead"
        );
        return Err(Refusal::new(Reason::InvalidField, message).with("field", "savepoint").with("value", wanted));
    }
    if found.is_some_and(|place| place.lsn != lsn) {
        let message = format!("savepoint '{wanted}' of '{of}' was made anew while its checkpoint was read: ask again");
        return Err(Refusal::new(Reason::HeadMismatch, message).with("branch", name).with("savepoint", wanted));
    }
    Ok(Head { sequence, lsn, committed_at_ms })
}
