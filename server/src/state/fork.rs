//! Making a branch from a checkpoint of another one.

use fencepost::log::v1::Forked;
use fencepost::v1::{Checkpoint, ForkRequest, fork_request::From};
use fencepost::{Lsn, Reason};

use super::State;
use crate::error::Refusal;

impl State {
    /// The sequence that a fork starts from, and where that checkpoint is, if it needs no look into history: of the head
    /// and of a savepoint.
    pub fn fork_source(&self, request: &ForkRequest) -> Result<(u64, Option<Lsn>), Refusal> {
        self.check_cluster(request.cluster.as_ref())?;
        let ForkRequest { source_pipeline: of, source_branch: name, .. } = request;
        let (pipeline, branch) = self.known_branch(of, name)?;
        match &request.from {
            Some(From::Savepoint(savepoint)) => {
                let known = pipeline.known_savepoint(of, savepoint)?;
                if known.branch == *name {
                    return Ok((known.sequence, Some(known.lsn)));
                }
                let expected = format!("a savepoint of branch '{name}'; this one is of '{}'", known.branch);
                Err(Refusal::field(Reason::InvalidField, "savepoint", savepoint, &expected))
            }
            Some(From::Sequence(sequence)) if *sequence != 0 && *sequence != branch.head.sequence => {
                Ok((*sequence, None))
            }
            _ if branch.head().is_some() => Ok((branch.head.sequence, Some(branch.head.lsn))),
            _ => {
                let message = format!("branch '{name}' of '{of}' has no checkpoint, so there is nothing to fork yet");
                Err(Refusal::new(Reason::StateMissing, message).with("pipeline", of).with("branch", name))
            }
        }
    }

    /// Judges a fork, its shape already checked, of the checkpoint of this sequence that the fact at `lsn` made.
    pub fn evaluate_fork(
        &self,
        request: &ForkRequest,
        sequence: u64,
        lsn: Lsn,
        checkpoint: Checkpoint,
    ) -> Result<Forked, Refusal> {
        self.check_cluster(request.cluster.as_ref())?;
        let ForkRequest { source_pipeline, source_branch, pipeline, branch, .. } = request;
        self.check_ready(source_pipeline)?;
        self.check_ready(pipeline)?;
        if self.branch(pipeline, branch).is_some() {
            let message =
                format!("branch '{branch}' of '{pipeline}' exists, and a fork makes a new branch: choose another name");
            return Err(Refusal::new(Reason::Exists, message).with("field", "branch").with("value", branch));
        }
        // A checkpoint from before a rewind can be forked for as long as a savepoint holds it.
        if !self.is_retained(source_pipeline, source_branch, sequence, lsn) {
            self.check_place(source_pipeline, source_branch, sequence, Some(lsn))?;
        }
        Ok(Forked {
            pipeline: pipeline.clone(),
            branch: branch.clone(),
            source_pipeline: source_pipeline.clone(),
            source_branch: source_branch.clone(),
            source_sequence: sequence,
            source_lsn: lsn.as_u64(),
            checkpoint: Some(checkpoint),
            actor: request.actor.clone(),
            reason: request.reason.clone(),
        })
    }
}
