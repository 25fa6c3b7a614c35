//! Writing to a sink outside Fencepost exactly once ([`TwoPhase`]), if the sink can do one thing ([`Sink`]): write the rows,
//! the fencing token and the id of what was staged in one atomic step, and refuse a lower token in that same step.
//!
//! Each batch goes the same way: its checkpoint is **staged**, the sink **applies** the batch under the id of the stage, and
//! what is staged is **committed**. Whoever resumes the branch first raises the token in the sink, which answers with the last
//! id that it has applied; from then on nothing of an earlier worker changes it any more. So that answer is final, and what
//! the branch has staged is committed if the sink has it and discarded if not:
//!
//! | The worker died | The branch has | The sink has | Its successor |
//! |---|---|---|---|
//! | before the stage was durable | nothing staged | the batch before | goes on from the head: the batch is read again |
//! | before the sink's transaction was | the batch staged | the batch before | discards; the batch is read again |
//! | before the commit was | the batch staged | the batch | commits; goes on behind it |
//! | after that | the batch as its head | the batch | goes on behind it |
//! | while it recovered | as it was, or settled | as it was, with a higher token | does the same once more |
//!
//! A worker that was replaced and does not know it yet ends at the first of these steps that it takes: the stage and the
//! commit are refused by the branch, and the sink's transaction by the sink, once its successor has raised the token there.
//! Before that its batch is the one that its successor finds.
//!
//! So there is one way back for every failure: **resume the branch again**, with
//! [`Takeover::SameHolder`](crate::Takeover::SameHolder) so as not to wait for one's own lease. A sink that does not answer may
//! have applied the batch or may yet do so, and only a higher token there makes that certain.
//!
//! # What a sink keeps
//!
//! One row for each branch is enough: `(branch, token, stage_id)`, because a branch has at most one batch staged. In
//! PostgreSQL, with the row made beforehand:
//!
//! ```sql
//! -- fence(token): no row means that a higher token is there.
//! UPDATE fence SET token = $2 WHERE branch = $1 AND token <= $2 RETURNING stage_id;
//! -- apply(token, stage_id, batch): in one transaction; if the first statement finds no row, roll back.
//! UPDATE fence SET token = $2, stage_id = $3 WHERE branch = $1 AND token <= $2;
//! INSERT INTO orders ...;
//! ```
//!
//! A sink whose rows are in several databases, with `PREPARE TRANSACTION`, fits the same two calls: `apply` prepares all parts,
//! then commits the part that has the row above, then the others; `fence` raises the token, reads that row, and commits the
//! prepared parts of the id that it finds there and rolls back those of any other.

use fencepost::Token;

use crate::checkpoint::Checkpoint;
use crate::commit::Committed;
use crate::error::Error;
use crate::lease::Loss;
use crate::worker::Worker;

/// Where one branch's batches go, each in one atomic step together with a fencing token and an id.
///
/// A sink that several branches write to keeps token and id for each of them: tokens of different branches are not to be
/// compared.
pub trait Sink {
    /// What is written in one step.
    type Batch: ?Sized;
    /// What can go wrong in the sink.
    type Error: std::error::Error;

    /// In one atomic step: refuses `token` with [`SinkError::Fenced`] if a higher one has been here, otherwise remembers it,
    /// and returns the id of the batch that was applied last, if one ever was.
    fn fence(
        &mut self,
        token: Token,
    ) -> impl Future<Output = std::result::Result<Option<String>, SinkError<Self::Error>>> + Send;

    /// In one atomic step: refuses `token` with [`SinkError::Fenced`] if a higher one has been here, otherwise writes the batch
    /// and remembers `token` and `stage_id`.
    fn apply(
        &mut self,
        token: Token,
        stage_id: &str,
        batch: &Self::Batch,
    ) -> impl Future<Output = std::result::Result<(), SinkError<Self::Error>>> + Send;
}

/// What a sink answers if it does not do what it is asked to.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum SinkError<E> {
    /// A higher token has been here: the worker was replaced.
    #[error("the sink has seen token {by}: this worker was replaced")]
    Fenced {
        /// The highest token that the sink has seen.
        by: Token,
    },
    /// Anything else. Whether the sink did it need not be known.
    #[error(transparent)]
    Failed(#[from] E),
}

/// Why a batch was not written, or why it is not known whether it was.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum TwoPhaseError<E> {
    /// Fencepost said no, or nothing. A sink that fences the worker is told as [`Error::Lost`].
    #[error(transparent)]
    Fencepost(#[from] Error),
    /// The sink failed. Whether it has the batch is not known.
    #[error("the sink failed, and may have the batch: {0}. Resume the branch again, which finds out")]
    Sink(E),
    /// An earlier batch was begun and not ended, so that it is not known where to go on.
    #[error("batch '{stage_id}' was begun and not ended: resume the branch again, which finds out what became of it")]
    Unsettled {
        /// The id that it was staged under.
        stage_id: String,
    },
}

/// A worker that writes to a sink, each batch exactly once.
///
/// ```
/// # use fencepost_client::{Checkpoint, Client, Resume, Sink, TwoPhase, TwoPhaseError};
/// # async fn load<S: Sink<Batch = [String]>>(client: Client, sink: S) -> Result<(), TwoPhaseError<S::Error>> {
/// let worker = client.pipeline("prod/orders").branch("jfk").resume(Resume::new("loader-1").start_fresh()).await?;
/// let mut loader = TwoPhase::start(worker, sink).await?;
/// let done = loader.worker().head().map_or(0, |head| head.position_str().parse().unwrap_or(0));
/// loader.write(&["a row".to_owned(), "another".to_owned()], Checkpoint::at((done + 2).to_string())).await?;
/// # Ok(())
/// # }
/// ```
#[derive(Debug)]
pub struct TwoPhase<S> {
    worker: Worker,
    sink: S,
    /// Batches begun.
    begun: u64,
    /// The id of the batch that the sink may have and that is not known to be committed.
    open: Option<String>,
}

impl<S: Sink> TwoPhase<S> {
    /// Raises the token in the sink, and settles what the worker before left staged. After that the worker's head is what the
    /// sink has.
    pub async fn start(worker: Worker, sink: S) -> Result<TwoPhase<S>, TwoPhaseError<S::Error>> {
        let mut this = TwoPhase { worker, sink, begun: 0, open: None };
        let last = this.sink.fence(this.worker.token()).await;
        let last = this.answered(last)?;
        if let Some(staged) = this.worker.staged() {
            if last.as_deref() == Some(staged.id()) {
                this.worker.commit_staged().await?;
            } else {
                this.worker.discard_staged("the sink does not have it").await?;
            }
        }
        Ok(this)
    }

    /// Writes a batch to the sink and commits the checkpoint behind it. Returns once both are durable.
    ///
    /// If the sink may have it and its commit is not known, after an error or because the call was given up half-way, every
    /// further batch is refused ([`TwoPhaseError::Unsettled`]): the branch has to be resumed again, and its head tells where to
    /// go on. A batch that Fencepost refused before the sink saw it leaves nothing behind.
    pub async fn write(
        &mut self,
        batch: &S::Batch,
        checkpoint: Checkpoint,
    ) -> Result<Committed, TwoPhaseError<S::Error>> {
        self.worker.settled().await?;
        let unsettled = self.open.clone().or_else(|| self.worker.staged().map(|staged| staged.id().to_owned()));
        if let Some(stage_id) = unsettled {
            return Err(TwoPhaseError::Unsettled { stage_id });
        }
        self.begun += 1;
        // The sink and the log show it beside the token that it belongs to.
        let stage_id = format!("{}:{}", self.worker.token(), self.begun);
        self.worker.stage(&stage_id, checkpoint).await?;
        self.open = Some(stage_id.clone());
        let answer = self.sink.apply(self.worker.token(), &stage_id, batch).await;
        self.answered(answer)?;
        let committed = self.worker.commit_staged().await?;
        self.open = None;
        Ok(committed)
    }

    /// The worker: where it stands, and whether it is still the one.
    pub fn worker(&self) -> &Worker {
        &self.worker
    }

    /// The sink.
    pub fn sink(&mut self) -> &mut S {
        &mut self.sink
    }

    /// Both.
    pub fn into_parts(self) -> (Worker, S) {
        (self.worker, self.sink)
    }

    /// What the sink's answer means for the worker: one that the sink has fenced stops.
    fn answered<T>(&self, answer: Result<T, SinkError<S::Error>>) -> Result<T, TwoPhaseError<S::Error>> {
        answer.map_err(|error| match error {
            SinkError::Failed(error) => TwoPhaseError::Sink(error),
            SinkError::Fenced { by } => {
                let loss = Loss::Fenced { by: Some(by), holder: None };
                self.worker.lease.lose(loss.clone());
                TwoPhaseError::Fencepost(Error::Lost(loss))
            }
        })
    }
}
