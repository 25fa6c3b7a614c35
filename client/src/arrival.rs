//! Arriving at a barrier ([`Worker::arrive`]) with what is staged.
//!
//! From when an arrival is sent the barrier may commit what is staged at any moment, whether or not the answer came. So
//! before a worker does anything else it looks what has become of the barrier that it has arrived at, or may have.

use fencepost::{Action, Applied, Reason, Token, v1};
use tokio::time::Instant;

use crate::barrier::{Barrier, aborted, is_closed};
use crate::checkpoint::{Checkpoint, StoredCheckpoint};
use crate::commit::{Committed, Outcome};
use crate::error::{Error, Result};
use crate::lease::Loss;
use crate::rpc::barriers;
use crate::staged::{Staged, nothing_staged};
use crate::worker::Worker;

/// Longest id of a stage, as the protocol has it.
const ID_BYTES_MAX: usize = 128;

impl Worker {
    /// Stages a checkpoint and arrives at the barrier with it: once all participants have, one fact commits what all of them
    /// have staged. Returns the barrier as it is then; if this was the last arrival it is committed, and the worker stands at
    /// the checkpoint. Otherwise [`Worker::wait_at`] waits for that.
    ///
    /// A barrier that is given up, by somebody or by its deadline, discards what has arrived. So what is handed in here must
    /// not be in a sink yet: apply it once [`Worker::wait_at`] says that the barrier is committed, and again if a resume finds
    /// it as the head and the sink does not have it.
    ///
    /// The same again is success, also once it is committed; other content is late then. If the barrier does not take it,
    /// because it is closed (`BARRIER_CLOSED`: this is late data), aborted, or not there, then nothing is staged any more and
    /// the worker stands where it stood.
    pub async fn arrive(&self, barrier: impl Into<String>, checkpoint: Checkpoint) -> Result<v1::Barrier> {
        let (barrier, deadline) = (barrier.into(), self.commit_deadline());
        let mut turn = self.turn.lock().await;
        self.begin(&mut turn, deadline).await?;
        let content = checkpoint.clone().into_message().checkpoint.unwrap_or_default();
        if let Some(done) = self.committed_by(&barrier, |head| head.is_of(&content)).await? {
            return Ok(done);
        }
        // The sequence tells what comes late from what was committed. What is cut off of the longest names need not be in
        // it: a branch has one thing staged.
        let mut id = format!("{}:{}:{barrier}", self.token(), self.sequence() + 1);
        id.truncate(id.floor_char_boundary(ID_BYTES_MAX));
        if self.staged().is_none_or(|staged| staged.id() != id || !staged.is(&checkpoint)) {
            self.stage_within(&mut turn, id, checkpoint, deadline).await?;
        }
        let error = match self.arrive_within(&barrier, deadline).await {
            Ok(barrier) => return Ok(barrier),
            Err(error) => error,
        };
        let is_refused = error.applied() == Applied::No && !matches!(error.action(), Action::Retry | Action::Reacquire);
        if is_refused && let Some(staged) = self.staged() {
            // If this is not answered it is settled before the next operation. Refused, the branch says so to that.
            let reason = format!("barrier '{barrier}' does not take it");
            let _ = self.discard_within(&mut turn, &staged, reason, deadline).await;
        }
        Err(error)
    }

    /// Arrives at the barrier with what is staged already: by this worker, or by the one before, whose own arrival ended with
    /// it. The same again is success. If the barrier does not take it, it stays staged. If it is given up after that, what has
    /// arrived is discarded, as with [`Worker::arrive`].
    pub async fn arrive_staged(&self, barrier: impl Into<String>) -> Result<v1::Barrier> {
        let (barrier, deadline) = (barrier.into(), self.commit_deadline());
        let mut turn = self.turn.lock().await;
        self.begin(&mut turn, deadline).await?;
        match self.committed_by(&barrier, |_| self.staged().is_none()).await? {
            Some(done) => Ok(done),
            None => self.arrive_within(&barrier, deadline).await,
        }
    }

    async fn arrive_within(&self, barrier: &str, deadline: Instant) -> Result<v1::Barrier> {
        let Some(staged) = self.staged() else { return Err(nothing_staged(self.branch())) };
        let request = v1::ArriveRequest {
            cluster: None,
            pipeline: self.pipeline().to_owned(),
            barrier: barrier.to_owned(),
            branch: self.branch().to_owned(),
            token: self.token().as_u64(),
            stage_id: staged.id().to_owned(),
        };
        self.set_staged(Some(staged.clone().arrived(Some(barrier))));
        let rpc = &self.client.shared.rpc;
        let send = async |channel, request| barriers(channel).arrive(request).await;
        let asked = rpc.ask_each(request, rpc.options.request_timeout, deadline, send).await;
        let one_was_lost = asked.one_was_lost || staged.barrier().is_some();
        let sequence = staged.sequence();
        let error = match self.undoubted(asked) {
            Ok(answer) => {
                let now = answer.barrier.unwrap_or_default();
                // The lease counts on from before: the answer to a repetition, which is no sign of life, looks like any other.
                if is_closed(&now) {
                    self.take_in_closed(&now).await?;
                }
                return Ok(now);
            }
            Err(error) => error,
        };
        self.note_loss(&error);
        if error.applied() == Applied::No {
            if !one_was_lost {
                self.set_staged(Some(staged));
            } else if matches!(error.reason(), Some(Reason::BarrierClosed | Reason::BarrierAborted)) {
                // An earlier attempt may have arrived, and been the last to.
                self.settle_arrival(barrier, deadline).await?;
                if let Some(done) = self.committed_by(barrier, |head| head.sequence() == sequence).await? {
                    return Ok(done);
                }
            }
        }
        Err(error)
    }

    /// Waits until the barrier that the worker has arrived at is committed; then it stands at what it had staged. If the barrier
    /// is aborted that is discarded, and the error, `BARRIER_ABORTED`, names who was missing. Fails at once if the worker's
    /// lease is lost for good: its successor arrives.
    pub async fn wait_at(&self, barrier: impl Into<String>) -> Result<Committed> {
        let barrier = self.at(&barrier.into());
        loop {
            let mut turn = self.turn.lock().await;
            self.settle(&mut turn, self.commit_deadline()).await?;
            drop(turn);
            if let Some(head) = self.head().filter(|head| head.barrier() == Some(barrier.name())) {
                return Ok(Committed { sequence: head.sequence(), lsn: head.lsn(), outcome: Outcome::Applied });
            }
            if let Some(loss) = self.lease.gone() {
                return Err(Error::Lost(loss));
            }
            if self.staged().is_none_or(|staged| staged.barrier() != Some(barrier.name())) {
                let now = barrier.get().await?;
                let problem = format!("branch '{}' has not arrived at barrier '{}'", self.branch(), barrier.name());
                let is_aborted = now.state() == v1::barrier::State::Aborted;
                return Err(if is_aborted { aborted(&now) } else { Error::Invalid { field: "barrier", problem } });
            }
            tokio::select! {
                closed = barrier.wait() => match closed {
                    Err(error) if error.reason() != Some(Reason::BarrierAborted) => return Err(error),
                    _ => {}
                },
                loss = self.lease.ended() => return Err(Error::Lost(loss)),
            }
        }
    }

    /// [`Worker::arrive`], then [`Worker::wait_at`].
    ///
    /// ```
    /// # use fencepost_client::{Checkpoint, Reason, Result, Worker};
    /// # async fn end_of_day(worker: &Worker, late: &Worker, done: Checkpoint) -> Result<()> {
    /// match worker.arrive_and_wait("2013-01-05", done.clone()).await {
    ///     // The others have closed the day without this branch. What it has is kept beside, and merged later.
    ///     Err(error) if error.reason() == Some(Reason::BarrierClosed) => {
    ///         late.commit(done.late_for("2013-01-05")).await?;
    ///     }
    ///     result => drop(result?),
    /// }
    /// # Ok(())
    /// # }
    /// ```
    pub async fn arrive_and_wait(&self, barrier: impl Into<String>, checkpoint: Checkpoint) -> Result<Committed> {
        let barrier = barrier.into();
        self.arrive(&barrier, checkpoint).await?;
        self.wait_at(&barrier).await
    }

    /// Finds out what has become of this barrier, which the worker has arrived at, or may have.
    pub(crate) async fn settle_arrival(&self, barrier: &str, deadline: Instant) -> Result<()> {
        let looked = tokio::time::timeout_at(deadline, self.at(barrier).get()).await;
        let now = match looked {
            Ok(Ok(now)) => now,
            // There is no such barrier to have arrived at.
            Ok(Err(error)) if error.reason() == Some(Reason::StateMissing) => return Ok(()),
            Ok(Err(error)) => return Err(error),
            Err(_) => {
                let cause = format!("what became of barrier '{barrier}' could not be found out in time");
                return Err(Error::Unanswered { endpoint: self.client.endpoint().to_owned(), cause });
            }
        };
        if is_closed(&now) { self.take_in_closed(&now).await } else { Ok(()) }
    }

    /// The barrier that this worker has arrived at, or may have, is closed.
    async fn take_in_closed(&self, barrier: &v1::Barrier) -> Result<()> {
        let Some(staged) = self.staged() else { return Ok(()) };
        if barrier.state() == v1::barrier::State::Aborted {
            // Only what had arrived is discarded. Who that was is forgotten some day.
            let own = |participant: &v1::Participant| participant.branch == self.branch() && participant.arrived;
            let is_gone = barrier.participants.is_empty() || barrier.participants.iter().any(own);
            self.set_staged((!is_gone).then(|| staged.arrived(None)));
            return Ok(());
        }
        self.take_in_committed(staged).await
    }

    /// What was staged is committed, unless the barrier was committed without it.
    pub(crate) async fn take_in_committed(&self, staged: Staged) -> Result<()> {
        let head = self.as_branch().head_without_state().await?;
        let token = Token::from_u64(head.token);
        if token > self.token() || head.sequence > staged.sequence() {
            let holder = None;
            let loss = Loss::Fenced { by: Some(token).filter(|token| *token > self.token()), holder };
            self.lease.lose(loss.clone());
            return Err(Error::Lost(loss));
        }
        if head.sequence == staged.sequence() {
            self.move_to(Some(staged.into_checkpoint().described(head)));
            self.set_staged(None);
        } else {
            // It was committed without this branch.
            self.set_staged(Some(staged.arrived(None)));
        }
        Ok(())
    }

    /// The barrier, if it committed the checkpoint that the worker stands at, and that is what was meant.
    async fn committed_by(
        &self,
        barrier: &str,
        is_meant: impl FnOnce(&StoredCheckpoint) -> bool,
    ) -> Result<Option<v1::Barrier>> {
        let head = self.head().filter(|head| head.barrier() == Some(barrier) && is_meant(head));
        let Some(head) = head else { return Ok(None) };
        // The name may have been used again since.
        Ok(Some(self.at(barrier).get().await?).filter(|now| now.closed_lsn == head.lsn().as_u64()))
    }

    fn at(&self, barrier: &str) -> Barrier {
        self.client.pipeline(self.pipeline()).barrier(barrier)
    }
}
