//! Checkpoints that are durable and no resume point yet: phase one of a two-phase commit.
//!
//! A branch has at most one. While it is there the branch takes no other commit, so whoever comes after a crash cannot go
//! on without having asked the sink. It ends with the commit that refers to it, with a discard, or with a rewind. Neither
//! time nor a change of worker removes it.

use std::fmt;

use bytes::Bytes;
use fencepost::log::v1::{BarrierArrived, Staged as StagedFact, StagedDiscarded};
use fencepost::v1::{Checkpoint, DiscardStagedRequest, StageRequest, StagedCheckpoint};
use fencepost::{Lsn, Reason, Token};

use super::barrier::Barriers;
use super::commit::{check_not_after, check_sequence};
use super::dead::DeadLetters;
use super::scope::scope_of;
use super::{Branch, Digest, State};
use crate::error::Refusal;

/// A checkpoint that is to be staged, its shape already checked.
#[derive(Clone, Debug)]
pub struct Stage {
    /// As it came, with the payload CRC filled in.
    pub request: StageRequest,
    /// Of what is staged. Not of the token and the time limit: they belong to the attempt.
    pub digest: Digest,
    /// What the payload check found, which counts only after the checks that come before it.
    pub payload_fault: Option<Refusal>,
}

/// How a request to stage is judged, if it is not refused.
#[derive(Clone, Debug, PartialEq)]
pub enum StageVerdict {
    /// It is staged once this fact is durable.
    Stage(Box<StagedFact>),
    /// An earlier attempt staged it, here.
    AlreadyStaged(Lsn),
}

/// What a branch has staged. The checkpoint itself is in the log, at `lsn`.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Staged {
    /// The caller's identity for it.
    pub stage_id: Box<str>,
    /// The fact that staged it.
    pub lsn: Lsn,
    /// The sequence that it will have.
    pub sequence: u64,
    /// The token that it was staged under.
    pub token: Token,
    /// When, by the server's wall clock.
    pub staged_at_ms: u64,
    /// Length of the checkpoint's state.
    pub state_bytes: u64,
    /// Of what was staged.
    pub(super) digest: Digest,
    /// How many dead letters will be open with the commit.
    pub(super) dead_letters: u32,
    /// The fingerprint of the checkpoint's schema.
    pub(super) schema: Bytes,
    /// The digest of the checkpoint's scope.
    pub(super) scope: Option<Digest>,
    /// The open barrier that it has arrived at.
    pub(super) arrival: Option<Arrival>,
}

/// That a branch is at a barrier.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Arrival {
    pub(super) barrier: Box<str>,
    /// The fact that says so.
    pub(super) lsn: Lsn,
}

impl Staged {
    /// The open barrier that it has arrived at.
    pub fn barrier(&self) -> Option<&str> {
        self.arrival.as_ref().map(|arrival| &*arrival.barrier)
    }

    /// As it is told, without the checkpoint itself.
    pub fn told(&self) -> StagedCheckpoint {
        StagedCheckpoint {
            stage_id: self.stage_id.to_string(),
            sequence: self.sequence,
            token: self.token.as_u64(),
            lsn: self.lsn.as_u64(),
            staged_at_ms: self.staged_at_ms,
            state_bytes: self.state_bytes,
            checkpoint: None,
            barrier: self.barrier().unwrap_or_default().to_owned(),
        }
    }

    /// Whether the fact at `lsn` is its arrival.
    pub(super) fn arrived_at(&self, lsn: Lsn) -> bool {
        self.arrival.as_ref().is_some_and(|arrival| arrival.lsn == lsn)
    }

    pub(super) fn from_fact(lsn: Lsn, at_ms: u64, fact: &StagedFact) -> Result<Staged, String> {
        let checkpoint = fact.checkpoint.as_ref();
        let integrity = checkpoint.and_then(|checkpoint| checkpoint.integrity.as_ref());
        Ok(Staged {
            stage_id: fact.stage_id.as_str().into(),
            lsn,
            sequence: fact.sequence,
            token: Token::from_u64(fact.token),
            staged_at_ms: at_ms,
            state_bytes: checkpoint.map_or(0, |checkpoint| checkpoint.state.len() as u64),
            digest: Digest::try_from(&fact.digest[..]).map_err(|_| "its digest is not 16 bytes")?,
            dead_letters: fact.dead_letters.len() as u32,
            schema: integrity.map(|it| Bytes::copy_from_slice(&it.schema_fingerprint)).unwrap_or_default(),
            scope: scope_of(checkpoint),
            arrival: None,
        })
    }
}

impl Branch {
    /// What is staged.
    pub fn staged(&self) -> Option<&Staged> {
        self.past.as_deref()?.staged.as_deref()
    }

    /// Ends what is staged, and gives the room back that its dead letters have.
    pub(super) fn take_staged(&mut self, dead: &mut DeadLetters) -> Option<Staged> {
        dead.staged -= u64::from(self.staged()?.dead_letters);
        let mut taken = None;
        self.change_past(|past| taken = past.staged.take());
        taken.map(|staged| *staged)
    }

    /// It has another worker, or none, so it has arrived nowhere.
    pub(super) fn leave_barrier(&mut self) {
        if self.staged().is_some_and(|staged| staged.arrival.is_some()) {
            self.change_past(|past| past.staged.iter_mut().for_each(|staged| staged.arrival = None));
        }
    }
}

impl State {
    /// Judges phase one of a two-phase commit, by the checks of a commit in their order. `now_ms` is compared with nothing but
    /// the request's own `not_after`.
    pub fn evaluate_stage(&self, stage: Stage, now_ms: u64) -> Result<StageVerdict, Refusal> {
        let Stage { request, digest, payload_fault } = stage;
        self.check_cluster(request.cluster.as_ref())?;
        self.check_ready(&request.pipeline)?;
        let StageRequest { pipeline, branch: name, stage_id, .. } = &request;
        if let Some(staged) = self.branch(pipeline, name).and_then(Branch::staged)
            && *staged.stage_id == **stage_id
        {
            if staged.digest == digest {
                return Ok(StageVerdict::AlreadyStaged(staged.lsn));
            }
            return Err(reused(name, staged));
        }
        self.check_token(pipeline, name, Token::from_u64(request.token))?;
        check_pending(self.branch(pipeline, name), pipeline, name, "")?;
        check_sequence(self.pipeline(pipeline), pipeline, name, request.sequence)?;
        check_not_after(request.not_after_ms, now_ms)?;
        if let Some(fault) = payload_fault {
            return Err(fault);
        }
        self.check_late(pipeline, format_args!("checkpoint"), request.checkpoint.as_ref())?;
        if let Some(known) = self.pipeline(pipeline) {
            let added = request.dead_letters.len();
            let given = request.checkpoint.iter().map(|checkpoint| (name.as_str(), checkpoint, added));
            known.check_declared(pipeline, given)?;
            known.check_dead_letters(pipeline, added, std::iter::empty())?;
        }
        Ok(StageVerdict::Stage(Box::new(StagedFact {
            pipeline: request.pipeline,
            branch: request.branch,
            sequence: request.sequence,
            token: request.token,
            stage_id: request.stage_id,
            digest: Bytes::copy_from_slice(&digest),
            checkpoint: request.checkpoint,
            dead_letters: request.dead_letters,
            handled_dead_letters: 0,
        })))
    }

    /// Judges that what is staged is given up.
    pub fn evaluate_discard_staged(&self, request: &DiscardStagedRequest) -> Result<StagedDiscarded, Refusal> {
        self.check_cluster(request.cluster.as_ref())?;
        let DiscardStagedRequest { pipeline, branch, token, stage_id, reason, .. } = request;
        self.check_ready(pipeline)?;
        self.check_token(pipeline, branch, Token::from_u64(*token))?;
        let staged = self.staged_as(pipeline, branch, stage_id)?;
        Ok(StagedDiscarded {
            pipeline: pipeline.clone(),
            branch: branch.clone(),
            token: *token,
            staged_lsn: staged.lsn.as_u64(),
            stage_id: stage_id.clone(),
            reason: reason.clone(),
        })
    }

    /// What the branch has staged under this id.
    pub(super) fn staged_as(&self, pipeline: &str, name: &str, stage_id: &str) -> Result<&Staged, Refusal> {
        staged_in(self.branch(pipeline, name), pipeline, name, stage_id)
    }

    /// Checks that what calls itself late is late for a barrier that has closed. `field` is what the refusal calls it.
    pub(super) fn check_late(
        &self,
        pipeline: &str,
        field: fmt::Arguments<'_>,
        late: Option<&Checkpoint>,
    ) -> Result<(), Refusal> {
        let Some(late_for) = late.map(|late| late.late_for.as_str()).filter(|name| !name.is_empty()) else {
            return Ok(());
        };
        let barriers = self.pipeline(pipeline).map(|pipeline| &pipeline.barriers);
        let is_closed =
            |barriers: &Barriers| barriers.open(late_for).is_none() && barriers.closed.get(late_for).is_some();
        if barriers.is_some_and(is_closed) {
            return Ok(());
        }
        let expected = "a barrier of the pipeline that has closed: what one still waits for is not late";
        Err(Refusal::field(Reason::InvalidField, &format!("{field}.late_for"), late_for, expected))
    }

    pub(super) fn apply_staged(
        &mut self,
        lsn: Lsn,
        at_ms: u64,
        fact: &StagedFact,
        is_whole: bool,
    ) -> Result<(), String> {
        let staged = Staged::from_fact(lsn, at_ms, fact)?;
        let (branch, dead) = self.branch_mut(&fact.pipeline, &fact.branch);
        if is_whole {
            if branch.lease().is_none_or(|grant| grant.token != staged.token) {
                return Err(format!("it stages under token {}, which is not current", staged.token));
            }
            let head = branch.head.sequence;
            if staged.sequence != head + 1 {
                return Err(format!("it stages sequence {} on {head}", staged.sequence));
            }
            if branch.staged().is_some() {
                return Err(format!("it stages on branch '{}', which has something staged", fact.branch));
            }
        }
        branch.take_staged(dead);
        dead.staged += u64::from(staged.dead_letters);
        branch.change_past(|past| past.staged = Some(Box::new(staged)));
        Ok(())
    }

    pub(super) fn apply_staged_discarded(&mut self, fact: &StagedDiscarded, is_whole: bool) -> Result<(), String> {
        let (branch, dead) = self.branch_mut(&fact.pipeline, &fact.branch);
        if branch.staged().is_some_and(|staged| staged.lsn.as_u64() == fact.staged_lsn) {
            branch.take_staged(dead);
            return Ok(());
        }
        if is_whole { Err(format!("it discards '{}', which is not staged", fact.stage_id)) } else { Ok(()) }
    }

    pub(super) fn apply_barrier_arrived(
        &mut self,
        lsn: Lsn,
        fact: &BarrierArrived,
        is_whole: bool,
    ) -> Result<(), String> {
        let barrier = fact.barrier.as_ref().ok_or("it names no barrier")?;
        let known = self.pipeline(&fact.pipeline).and_then(|pipeline| pipeline.barriers.open(&barrier.name));
        let is_awaited =
            known.is_some_and(|known| known.opened.as_u64() == barrier.opened_lsn && known.awaits(&fact.branch));
        let (branch, _) = self.branch_mut(&fact.pipeline, &fact.branch);
        let is_staged = branch.staged().is_some_and(|staged| staged.lsn.as_u64() == fact.staged_lsn);
        if is_awaited && is_staged {
            let arrival = Arrival { barrier: barrier.name.as_str().into(), lsn };
            branch.change_past(|past| past.staged.iter_mut().for_each(|it| it.arrival = Some(arrival.clone())));
            return Ok(());
        }
        if is_whole {
            return Err(format!("branch '{}' arrives at '{}', which does not await it", fact.branch, barrier.name));
        }
        Ok(())
    }
}

/// Checks that a commit of the branch is of what it has staged, or that it has nothing staged. `stage_id` is what the commit
/// refers to; empty: it brings a checkpoint of its own.
pub(super) fn check_pending(
    branch: Option<&Branch>,
    pipeline: &str,
    name: &str,
    stage_id: &str,
) -> Result<(), Refusal> {
    if stage_id.is_empty() {
        let staged = branch.and_then(Branch::staged);
        return staged.map_or(Ok(()), |staged| Err(pending(pipeline, name, staged)));
    }
    let staged = staged_in(branch, pipeline, name, stage_id)?;
    if staged.arrival.is_some() { Err(pending(pipeline, name, staged)) } else { Ok(()) }
}

fn staged_in<'a>(
    branch: Option<&'a Branch>,
    pipeline: &str,
    name: &str,
    stage_id: &str,
) -> Result<&'a Staged, Refusal> {
    match branch.and_then(Branch::staged) {
        Some(staged) if *staged.stage_id == *stage_id => Ok(staged),
        Some(other) => Err(pending(pipeline, name, other)),
        None => {
            let head = branch.map(|branch| branch.head).unwrap_or_default();
            let message = format!(
                "branch '{name}' of '{pipeline}' has nothing staged as '{stage_id}': it was never staged, or it was \
                 committed or discarded since; the head is at sequence {}, read it to see which",
                head.sequence
            );
            Err(Refusal::new(Reason::StateMissing, message)
                .with("branch", name)
                .with("stage_id", stage_id)
                .with("actual_head", head.sequence)
                .with("actual_head_lsn", head.lsn.as_u64()))
        }
    }
}

/// What a caller is told who would move a branch past what it has staged.
pub(super) fn pending(pipeline: &str, name: &str, staged: &Staged) -> Refusal {
    let Staged { stage_id, sequence, lsn, .. } = staged;
    let way_out = match staged.barrier() {
        None => "ask the sink whether it has committed that, then commit it by reference or discard it".to_owned(),
        Some(barrier) => format!(
            "it has arrived with that at barrier '{barrier}', which commits or discards it: wait for the barrier, or \
             discard it to withdraw"
        ),
    };
    let message = format!(
        "branch '{name}' of '{pipeline}' has '{stage_id}' staged as sequence {sequence} (LSN {lsn}) and takes nothing else \
         meanwhile: {way_out}"
    );
    let refusal = Refusal::new(Reason::StagedPending, message)
        .with("branch", name)
        .with("stage_id", stage_id)
        .with("lsn", lsn.as_u64());
    match staged.barrier() {
        Some(barrier) => refusal.with("barrier", barrier),
        None => refusal,
    }
}

fn reused(name: &str, staged: &Staged) -> Refusal {
    let Staged { stage_id, lsn, .. } = staged;
    let message = format!(
        "stage id '{stage_id}' is taken: branch '{name}' has other content staged under it (LSN {lsn}); commit or discard \
         that, and use a new stage id for new content"
    );
    Refusal::new(Reason::CommitIdReused, message)
        .with("branch", name)
        .with("stage_id", stage_id)
        .with("lsn", lsn.as_u64())
}
