//! Following the log: every durable fact in order, across broken connections and a reader's pauses.
//!
//! What a reader leaves in its stream takes room in the connection's window, and without that room no other answer
//! arrives: not to a keepalive, not to a commit. So a stream is only held open while its facts are being taken. Those that
//! arrived wait here, bounded; when there is no more room and the reader does not make any soon, the stream is dropped, and
//! opened again at the first fact that did not fit once the reader has caught up. Besides, a client that knows its address
//! reads over a connection of its own.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use fencepost::log::v1::Fact;
use fencepost::{Lsn, v1};
use tokio::sync::{OwnedSemaphorePermit, Semaphore, mpsc};
use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::Streaming;

use crate::error::{Error, Result};
use crate::retry::{Backoff, repeatable};
use crate::rpc::{Rpc, logs};

/// The server speaks every 5 s; after three of them the connection is taken for dead.
pub(crate) const SILENCE_MAX: Duration = Duration::from_secs(15);
/// Facts that wait for the reader, and about how much memory they take. One that is larger waits alone.
const FACTS_WAITING_MAX: usize = 1_024;
const BYTES_WAITING_MAX: usize = 4 << 20;
/// How long a message may wait for room before its stream is dropped: short beside any TTL.
const PATIENCE: Duration = Duration::from_millis(250);

/// Which facts to follow, and from where.
#[derive(Clone, Debug, Default)]
#[must_use = "hand it to Client::tail"]
pub struct Tail {
    request: v1::TailRequest,
}

impl Tail {
    /// From the fact at `lsn` on, none left out; `COMPACTED` if some are gone by then. [`Lsn::ZERO`]: from the beginning, as
    /// far as compaction has left it. To go on after a fact that has been seen, use [`Lsn::next`] of it.
    pub fn from(lsn: Lsn) -> Tail {
        let allow_gaps = lsn == Lsn::ZERO;
        Tail { request: v1::TailRequest { from_lsn: lsn.as_u64(), allow_gaps, ..Default::default() } }
    }

    /// From the fact at `lsn` on, with what compaction has left there.
    pub(crate) fn left_from(lsn: Lsn) -> Tail {
        Tail { request: v1::TailRequest { allow_gaps: true, ..Tail::from(lsn).request } }
    }

    /// Only facts about this pipeline.
    pub fn pipeline(mut self, pipeline: impl Into<String>) -> Tail {
        self.request.pipeline = pipeline.into();
        self
    }

    /// Only facts about this branch.
    pub fn branch(mut self, branch: impl Into<String>) -> Tail {
        self.request.branch = branch.into();
        self
    }

    /// Goes on for ever; without it the stream ends at what was durable when it began.
    pub fn follow(mut self) -> Tail {
        self.request.follow = true;
        self
    }

    /// Leaves the states of checkpoints out.
    pub fn without_state(mut self) -> Tail {
        self.request.without_state = true;
        self
    }

    pub(crate) fn start(self, rpc: Arc<Rpc>) -> FactStream {
        let (facts, received) = mpsc::channel(FACTS_WAITING_MAX);
        let room = Arc::new(Semaphore::new(BYTES_WAITING_MAX));
        tokio::spawn(Follower { rpc, request: self.request, end: None, facts, room }.run());
        FactStream { received }
    }
}

/// Facts in the order of the log, none left out and none twice. Ends after its first error.
///
/// A broken connection is no error: the stream goes on where it was. `COMPACTED` and `FUTURE_LSN` are, because to go on
/// elsewhere is the reader's decision.
///
/// A reader may pause for as long as it likes and holds up nobody: about 4 MiB wait for it, the rest stays on the server.
/// What the server deletes meanwhile is `COMPACTED` when the reader comes back.
#[derive(Debug)]
pub struct FactStream {
    received: mpsc::Receiver<Waiting>,
}

impl FactStream {
    /// The next fact; `None` once the stream has ended.
    pub async fn next(&mut self) -> Option<Result<(Lsn, Fact)>> {
        self.received.recv().await.map(|waiting| waiting.fact)
    }
}

impl Stream for FactStream {
    type Item = Result<(Lsn, Fact)>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.received.poll_recv(context).map(|waiting| Some(waiting?.fact))
    }
}

/// A fact that waits for the reader, or the error that ends the stream.
#[derive(Debug)]
struct Waiting {
    fact: Result<(Lsn, Fact)>,
    /// What it takes of the room, given back when the reader takes it.
    _room: Option<OwnedSemaphorePermit>,
}

/// The task behind a [`FactStream`]. It ends when the reader is gone.
struct Follower {
    rpc: Arc<Rpc>,
    /// Always for what has not been handed over yet.
    request: v1::TailRequest,
    /// The last fact of a stream that does not follow: the newest when it was first opened.
    end: Option<u64>,
    facts: mpsc::Sender<Waiting>,
    room: Arc<Semaphore>,
}

/// How one connection's part of the stream ended.
enum Ended {
    /// Everything was delivered, or nobody reads any more.
    Done,
    /// The reader took its time.
    Paused,
    Failed(Error),
}

impl Follower {
    async fn run(mut self) {
        let mut backoff = Backoff::ordinary();
        loop {
            let from = self.request.from_lsn;
            let error = match self.read().await {
                Ended::Done => return,
                Ended::Paused => {
                    self.reader_caught_up().await;
                    if self.facts.is_closed() {
                        return;
                    }
                    continue;
                }
                Ended::Failed(error) => error,
            };
            if self.request.from_lsn > from {
                backoff = Backoff::ordinary();
            }
            if !repeatable(&error) {
                // Nobody is there to be told.
                let _ = self.facts.send(Waiting { fact: Err(error), _room: None }).await;
                return;
            }
            tracing::debug!(%error, from_lsn = %Lsn::from_u64(self.request.from_lsn), "following the log again");
            let pause = error.retry_after().unwrap_or_default() + backoff.draw();
            tokio::select! {
                () = tokio::time::sleep(pause) => {}
                () = self.facts.closed() => return,
            }
        }
    }

    /// Opens the stream and delivers what comes until it ends.
    async fn read(&mut self) -> Ended {
        let channel = self.rpc.tail_channel();
        let opened = self.rpc.once(self.request.clone(), self.rpc.deadline(), |_, mut request| {
            // The deadline is for the opening; the stream itself has none.
            request.metadata_mut().remove("grpc-timeout");
            async move { logs(channel).tail(request).await }
        });
        let mut stream: Streaming<v1::TailResponse> = match opened.await {
            Ok(stream) => stream,
            Err(error) => return Ended::Failed(error),
        };
        loop {
            let message = tokio::select! {
                message = tokio::time::timeout_at(Instant::now() + SILENCE_MAX, stream.message()) => message,
                () = self.facts.closed() => return Ended::Done,
            };
            let ended = match message {
                Ok(Ok(Some(message))) => self.take_in(message).await,
                Ok(Ok(None)) if !self.request.follow => Some(Ended::Done),
                Ok(Ok(None)) => Some(self.broke("the server ended the stream")),
                Ok(Err(status)) => Some(Ended::Failed(Error::from_status(&status, &self.rpc.endpoint))),
                Err(_) => Some(self.broke("the server was silent for too long")),
            };
            if let Some(ended) = ended {
                return ended;
            }
        }
    }

    /// Delivers one message. Returns how the stream ended, if it did.
    async fn take_in(&mut self, message: v1::TailResponse) -> Option<Ended> {
        let v1::TailResponse { header, mut facts, next_lsn } = message;
        if let Err(error) = self.rpc.cluster.observe(header.as_ref()) {
            return Some(Ended::Failed(error));
        }
        if !self.request.follow {
            self.end = self.end.or(header.map(|header| header.lsn));
        }
        let end = self.end.unwrap_or(u64::MAX);
        facts.retain(|fact| fact.lsn <= end);
        match tokio::time::timeout(PATIENCE, self.deliver(facts)).await {
            Ok(Ok(())) => {}
            Ok(Err(NobodyReads)) => return Some(Ended::Done),
            Err(_) => {
                tracing::debug!(from_lsn = %Lsn::from_u64(self.request.from_lsn), "nobody reads; the stream is dropped");
                return Some(Ended::Paused);
            }
        }
        self.request.from_lsn = self.request.from_lsn.max(next_lsn);
        (self.request.from_lsn > end).then_some(Ended::Done)
    }

    /// Hands over one fact after the other as room allows. May be given up at any point: the request is for what is left.
    async fn deliver(&mut self, facts: Vec<v1::TailFact>) -> Result<(), NobodyReads> {
        for v1::TailFact { lsn, fact } in facts {
            self.request.from_lsn = lsn;
            let fact = fact.unwrap_or_default();
            let bytes = size(&fact).min(BYTES_WAITING_MAX) as u32;
            let room = self.room.clone().acquire_many_owned(bytes).await.map_err(|_| NobodyReads)?;
            let place = self.facts.reserve().await.map_err(|_| NobodyReads)?;
            let lsn = Lsn::from_u64(lsn);
            place.send(Waiting { fact: Ok((lsn, fact)), _room: Some(room) });
            self.request.from_lsn = lsn.next().as_u64();
        }
        Ok(())
    }

    /// Resolves when nothing waits any more, so that whatever comes next fits. A reader that goes away leaves nothing behind.
    async fn reader_caught_up(&self) {
        // Nobody closes the semaphore.
        let _ = self.room.acquire_many(BYTES_WAITING_MAX as u32).await;
    }

    fn broke(&self, cause: &str) -> Ended {
        Ended::Failed(Error::Unanswered { endpoint: self.rpc.endpoint.clone(), cause: cause.to_owned() })
    }
}

struct NobodyReads;

/// About how much memory a fact takes.
fn size(fact: &Fact) -> usize {
    let payloads = fact.payloads().map(|checkpoint| checkpoint.position.len() + checkpoint.state.len());
    1_024 + 512 * fact.checkpoints().count() + payloads.sum::<usize>()
}
