//! Commits in two phases: a checkpoint is staged, something else is done that cannot be undone, and the checkpoint is
//! committed by reference, or discarded if it was not done. [`TwoPhase`](crate::TwoPhase) does it with a sink, and
//! [`Worker::arrive`] with the other branches of a barrier.
//!
//! A stage or a discard whose answer was lost is settled by sending it again, before the worker does anything else: under
//! its id it has one effect, and it moves no head.

use std::sync::PoisonError;

use fencepost::log::v1::Fact;
use fencepost::log::v1::fact::Kind;
use fencepost::{Applied, Lsn, Reason, Token, v1};
use tokio::time::Instant;

use crate::checkpoint::{Checkpoint, StoredCheckpoint};
use crate::commit::{Commit, Committed};
use crate::error::{Error, Result};
use crate::lease::Loss;
use crate::rpc::{Asked, commits};
use crate::tail::Tail;
use crate::worker::{Turn, Worker};

/// What a branch has staged: durable, and no resume point yet. Cloning it does not copy the payload.
#[derive(Clone, Debug, PartialEq)]
pub struct Staged {
    id: String,
    at_ms: u64,
    checkpoint: StoredCheckpoint,
    /// Those that come with it, unless a resume found it: that does not tell them.
    dead_letters: Vec<v1::DeadLetter>,
    /// The barrier that it has arrived at, or may have.
    barrier: Option<String>,
}

impl Staged {
    /// What it was staged as: whoever resumes asks the sink about it.
    pub fn id(&self) -> &str {
        &self.id
    }

    /// The sequence that it will have.
    pub fn sequence(&self) -> u64 {
        self.checkpoint.sequence()
    }

    /// The token that it was staged under.
    pub fn token(&self) -> Token {
        self.checkpoint.token()
    }

    /// Where it is in the log.
    pub fn lsn(&self) -> Lsn {
        self.checkpoint.lsn()
    }

    /// The server's wall clock when it was staged, in milliseconds since 1970. `None` if this worker itself staged it: the
    /// answer does not tell the time.
    pub fn staged_at_ms(&self) -> Option<u64> {
        Some(self.at_ms).filter(|at_ms| *at_ms != 0)
    }

    /// The checkpoint, as it will be once it is committed: its LSN is that of the stage still, and it has no commit id.
    pub fn checkpoint(&self) -> &StoredCheckpoint {
        &self.checkpoint
    }

    /// The barrier that it has arrived at, or may have: an arrival whose answer was lost counts.
    pub fn barrier(&self) -> Option<&str> {
        self.barrier.as_deref()
    }

    /// The same after it has arrived at this barrier, or may have, or at none.
    pub(crate) fn arrived(self, barrier: Option<&str>) -> Staged {
        Staged { barrier: barrier.map(str::to_owned), ..self }
    }

    /// Whether this checkpoint is what is staged.
    pub(crate) fn is(&self, checkpoint: &Checkpoint) -> bool {
        let content = checkpoint.clone().into_message();
        content.dead_letters == self.dead_letters && content.checkpoint.is_some_and(|it| self.checkpoint.has(&it))
    }

    pub(crate) fn into_checkpoint(self) -> StoredCheckpoint {
        self.checkpoint
    }

    pub(crate) fn from_message(pipeline: &str, branch: &str, message: v1::StagedCheckpoint) -> Staged {
        let checkpoint = StoredCheckpoint::from_message(v1::StoredCheckpoint {
            pipeline: pipeline.to_owned(),
            branch: branch.to_owned(),
            sequence: message.sequence,
            token: message.token,
            lsn: message.lsn,
            state_bytes: message.state_bytes,
            checkpoint: message.checkpoint,
            ..v1::StoredCheckpoint::default()
        });
        let barrier = Some(message.barrier).filter(|barrier| !barrier.is_empty());
        Staged { id: message.stage_id, at_ms: message.staged_at_ms, checkpoint, dead_letters: Vec::new(), barrier }
    }

    fn from_request(request: v1::StageRequest, lsn: u64) -> Staged {
        let as_committed = v1::BranchCommit {
            branch: request.branch,
            token: request.token,
            sequence: request.sequence,
            checkpoint: request.checkpoint,
            dead_letters: request.dead_letters.clone(),
            ..v1::BranchCommit::default()
        };
        let checkpoint = StoredCheckpoint::from_commit(&request.pipeline, &as_committed);
        let checkpoint = checkpoint.committed("", Lsn::from_u64(lsn), Token::from_u64(request.token));
        Staged { id: request.stage_id, at_ms: 0, checkpoint, dead_letters: request.dead_letters, barrier: None }
    }
}

impl Worker {
    /// What the branch has staged: by this worker, or, as the resume found it, by one before. Until it is committed or
    /// discarded the branch takes no other commit (`STAGED_PENDING`).
    pub fn staged(&self) -> Option<Staged> {
        self.staged.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Makes a checkpoint durable that is no resume point yet. Do what goes with it, then [`Worker::commit_staged`].
    ///
    /// `id` is best that of the sink's own transaction; 1 to 128 characters. The same again is success. Repeats itself for as
    /// long as the client's commit deadline allows; what is not known by then is settled before the worker's next operation.
    pub async fn stage(&self, id: impl Into<String>, checkpoint: Checkpoint) -> Result<Staged> {
        let deadline = self.commit_deadline();
        let mut turn = self.turn.lock().await;
        self.begin(&mut turn, deadline).await?;
        self.stage_within(&mut turn, id.into(), checkpoint, deadline).await
    }

    /// The same within a turn.
    pub(crate) async fn stage_within(
        &self,
        turn: &mut Turn,
        id: String,
        checkpoint: Checkpoint,
        deadline: Instant,
    ) -> Result<Staged> {
        let content = checkpoint.into_message();
        if !content.replayed.is_empty() {
            let problem = "what is staged cannot say which dead letters it replays, because a worker that takes over could \
                           not know of them: commit it in one step";
            return Err(Error::Invalid { field: "replayed", problem: problem.to_owned() });
        }
        turn.staging = Some(v1::StageRequest {
            cluster: None,
            pipeline: self.pipeline().to_owned(),
            branch: self.branch().to_owned(),
            token: self.token().as_u64(),
            sequence: self.sequence() + 1,
            stage_id: id,
            checkpoint: content.checkpoint,
            dead_letters: content.dead_letters,
            not_after_ms: 0,
        });
        self.send_stage(turn, deadline).await?;
        Ok(self.staged().expect("what was staged just now is there until this turn is over"))
    }

    /// Commits what is staged: the branch moves to it. Like [`Worker::commit`] it repeats itself and finds out how an attempt
    /// ended whose answer was lost. [`Commit::staged`] does it for several workers at once.
    pub async fn commit_staged(&self) -> Result<Committed> {
        Commit::staged([self]).send().await
    }

    /// Gives up what is staged, for a reason that is kept in the log: the sink did not commit it, and will not. The branch
    /// stays where it is. An arrival at a barrier is withdrawn with it.
    ///
    /// Repeats itself for as long as the client's commit deadline allows, and what is not known by then is settled like a
    /// stage; that it is not there any more is success. Unless it is committed: a barrier that it had arrived at may do that
    /// at any moment. Then the worker stands at it, and the error is `BARRIER_CLOSED`.
    pub async fn discard_staged(&self, reason: impl Into<String>) -> Result<()> {
        let deadline = self.commit_deadline();
        let mut turn = self.turn.lock().await;
        self.begin(&mut turn, deadline).await?;
        let Some(staged) = self.staged() else { return Err(nothing_staged(self.branch())) };
        self.discard_within(&mut turn, &staged, reason.into(), deadline).await
    }

    /// The same within a turn.
    pub(crate) async fn discard_within(
        &self,
        turn: &mut Turn,
        staged: &Staged,
        reason: String,
        deadline: Instant,
    ) -> Result<()> {
        turn.discarding = Some(v1::DiscardStagedRequest {
            cluster: None,
            pipeline: self.pipeline().to_owned(),
            branch: self.branch().to_owned(),
            token: self.token().as_u64(),
            stage_id: staged.id().to_owned(),
            reason,
        });
        self.send_discard(turn, deadline).await
    }

    /// Finds out how what is in doubt ended.
    pub(crate) async fn settled(&self) -> Result<()> {
        let mut turn = self.turn.lock().await;
        self.begin(&mut turn, self.commit_deadline()).await
    }

    /// What an operation of the worker begins with: nothing is in doubt any more, and the lease is not known to be lost.
    pub(crate) async fn begin(&self, turn: &mut Turn, deadline: Instant) -> Result<()> {
        self.settle(turn, deadline).await?;
        match self.lease.gone() {
            Some(loss) => Err(Error::Lost(loss)),
            None => Ok(()),
        }
    }

    /// Finds out how a stage or a discard ended, if one is in doubt. That it was refused in the end is no error of whatever
    /// comes next.
    pub(crate) async fn settle_staged(&self, turn: &mut Turn, deadline: Instant) -> Result<()> {
        let sent = match self.send_stage(turn, deadline).await {
            Ok(()) => self.send_discard(turn, deadline).await,
            refused => refused,
        };
        if turn.staging.is_some() || turn.discarding.is_some() { sent } else { Ok(()) }
    }

    /// Sends the stage of this turn, if there is one, until it is known how it ended.
    async fn send_stage(&self, turn: &mut Turn, deadline: Instant) -> Result<()> {
        let Some(request) = turn.staging.clone() else { return Ok(()) };
        let rpc = &self.client.shared.rpc;
        let send = async |channel, request| commits(channel).stage(request).await;
        let asked = rpc.ask_each(request.clone(), rpc.options.request_timeout, deadline, send).await;
        let sent = asked.sent;
        match self.undoubted(asked) {
            Ok(answer) => {
                turn.staging = None;
                // That it is staged already is told to a fenced worker too.
                if !answer.already {
                    self.lease.renewed(sent);
                }
                self.set_staged(Some(Staged::from_request(request, answer.lsn)));
                Ok(())
            }
            Err(error) => {
                if error.applied() == Applied::No {
                    turn.staging = None;
                }
                self.note_loss(&error);
                Err(error)
            }
        }
    }

    /// Sends the discard of this turn, if there is one, until it is known how it ended.
    async fn send_discard(&self, turn: &mut Turn, deadline: Instant) -> Result<()> {
        let Some(request) = turn.discarding.clone() else { return Ok(()) };
        let rpc = &self.client.shared.rpc;
        let send = async |channel, request| commits(channel).discard_staged(request).await;
        let asked = rpc.ask_each(request, rpc.options.request_timeout, deadline, send).await;
        let sent = asked.sent;
        let discarded = match self.undoubted(asked) {
            Ok(_) => {
                self.lease.renewed(sent);
                self.set_staged(None);
                Ok(())
            }
            Err(error) if error.reason() == Some(Reason::StateMissing) => self.take_in_missing(error).await,
            Err(error) => {
                self.note_loss(&error);
                Err(error)
            }
        };
        if discarded.as_ref().err().is_none_or(|error| error.applied() == Applied::No) {
            turn.discarding = None;
        }
        discarded
    }

    /// What was to be discarded is not there: an earlier attempt did it, or it is committed.
    async fn take_in_missing(&self, error: Error) -> Result<()> {
        if let Some(staged) = self.staged().filter(|staged| error.actual_head() >= Some(staged.sequence())) {
            self.take_in_committed(staged.clone()).await?;
            let is_it = |head: &StoredCheckpoint| head.sequence() == staged.sequence() && head.barrier().is_some();
            let by_barrier = self.head().filter(is_it);
            return Err(by_barrier.map_or(error, |head| is_committed(&staged, &head)));
        }
        self.set_staged(None);
        Ok(())
    }

    /// What the branch has staged, as the server has it. It can be what this worker does not know of: a late copy of a stage
    /// that it has discarded since.
    pub(crate) async fn look_for_staged(&self, deadline: Instant) -> Result<Option<Staged>> {
        let search = async {
            let Some(told) = self.as_branch().staged().await? else { return Ok(None) };
            if let Some(known) = self.staged().filter(|known| known.lsn().as_u64() == told.lsn) {
                return Ok(Some(known));
            }
            // A list leaves the checkpoint out. The fact has it. If that is gone it was discarded or committed meanwhile.
            let tail = Tail::left_from(Lsn::from_u64(told.lsn)).pipeline(self.pipeline()).branch(self.branch());
            let first = self.client.tail(tail).next().await.transpose()?;
            let Some((_, Fact { kind: Some(Kind::Staged(fact)), .. })) =
                first.filter(|(lsn, _)| lsn.as_u64() == told.lsn)
            else {
                return Ok(None);
            };
            let told = v1::StagedCheckpoint { checkpoint: fact.checkpoint, ..told };
            let staged = Staged::from_message(self.pipeline(), self.branch(), told);
            staged.checkpoint.verify()?;
            Ok(Some(Staged { dead_letters: fact.dead_letters, ..staged }))
        };
        let cause = || format!("what branch '{}' has staged could not be found out in time", self.branch());
        let late = |_| Err(Error::Unanswered { endpoint: self.client.endpoint().to_owned(), cause: cause() });
        tokio::time::timeout_at(deadline, search).await.unwrap_or_else(late)
    }

    /// What an idempotent request came to. If an attempt was lost and the last one was only put off, it is not known.
    pub(crate) fn undoubted<A>(&self, asked: Asked<A>) -> Result<A> {
        match asked.result {
            Err(error) if asked.one_was_lost && error.action() == fencepost::Action::Retry => {
                let cause = format!("an attempt was lost, and the last one was put off: {error}");
                Err(Error::Unanswered { endpoint: self.client.endpoint().to_owned(), cause })
            }
            result => result,
        }
    }

    /// A worker whose lease is gone knows it at once.
    pub(crate) fn note_loss(&self, error: &Error) {
        // Of these requests that something is not there is no word about the lease.
        if error.reason() != Some(Reason::StateMissing)
            && let Some(loss) = Loss::of(error)
        {
            self.lease.lose(loss);
        }
    }

    pub(crate) fn set_staged(&self, staged: Option<Staged>) {
        *self.staged.lock().unwrap_or_else(PoisonError::into_inner) = staged;
    }

    pub(crate) fn commit_deadline(&self) -> Instant {
        Instant::now() + self.client.shared.rpc.options.commit_deadline
    }
}

/// What is said to whoever would discard what is committed already.
fn is_committed(staged: &Staged, head: &StoredCheckpoint) -> Error {
    let (id, sequence, barrier) = (staged.id(), head.sequence(), head.barrier().unwrap_or_default());
    let message = format!(
        "'{id}' was committed as sequence {sequence} by barrier '{barrier}' before it could be discarded: go on from there, or \
         rewind the branch"
    );
    let closed_lsn = head.lsn().as_u64().to_string();
    let details = [("barrier", barrier.to_owned()), ("closed_lsn", closed_lsn), ("stage_id", id.to_owned())];
    Error::refused(Reason::BarrierClosed, message, details)
}

pub(crate) fn nothing_staged(branch: &str) -> Error {
    let problem = format!(
        "branch '{branch}' has nothing staged: stage a checkpoint first. What had arrived at a barrier is committed or \
         discarded by that; look at the head"
    );
    Error::Invalid { field: "staged", problem }
}
