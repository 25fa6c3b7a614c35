//! Following the log: every durable fact in order, across broken connections.

use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll};
use std::time::Duration;

use fencepost::log::v1::Fact;
use fencepost::{Lsn, v1};
use tokio::sync::mpsc;
use tokio::time::Instant;
use tokio_stream::Stream;
use tonic::Streaming;

use crate::error::{Error, Result};
use crate::retry::{Backoff, repeatable};
use crate::rpc::{Rpc, logs};

/// The server speaks every 5 s; after three of them the connection is taken for dead.
const SILENCE_MAX: Duration = Duration::from_secs(15);
/// Facts that wait for the reader.
const FACTS_WAITING_MAX: usize = 256;

/// Which facts to follow, and from where.
#[derive(Clone, Debug, Default)]
#[must_use = "hand it to Client::tail"]
pub struct Tail {
    request: v1::TailRequest,
}

impl Tail {
    /// From the fact at `lsn` on. [`Lsn::ZERO`]: from the oldest that is kept. To go on after a fact that has been seen, use
    /// [`Lsn::next`] of it.
    pub fn from(lsn: Lsn) -> Tail {
        Tail { request: v1::TailRequest { from_lsn: lsn.as_u64(), ..Default::default() } }
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
        tokio::spawn(Follower { rpc, request: self.request, facts }.run());
        FactStream { received }
    }
}

/// Facts in the order of the log, none left out and none twice. Ends after its first error.
///
/// A broken connection is no error: the stream goes on where it was. `COMPACTED` and `FUTURE_LSN` are, because to go on
/// elsewhere is the reader's decision.
#[derive(Debug)]
pub struct FactStream {
    received: mpsc::Receiver<Result<(Lsn, Fact)>>,
}

impl FactStream {
    /// The next fact; `None` once the stream has ended.
    pub async fn next(&mut self) -> Option<Result<(Lsn, Fact)>> {
        self.received.recv().await
    }
}

impl Stream for FactStream {
    type Item = Result<(Lsn, Fact)>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        self.received.poll_recv(context)
    }
}

/// The task behind a [`FactStream`]. It ends when the reader is gone.
struct Follower {
    rpc: Arc<Rpc>,
    request: v1::TailRequest,
    facts: mpsc::Sender<Result<(Lsn, Fact)>>,
}

/// How one connection's part of the stream ended.
enum Ended {
    /// Everything was delivered, or nobody reads any more.
    Done,
    Failed(Error),
}

impl Follower {
    async fn run(mut self) {
        let mut backoff = Backoff::ordinary();
        loop {
            let from = self.request.from_lsn;
            let Ended::Failed(error) = self.read().await else { return };
            if self.request.from_lsn > from {
                backoff = Backoff::ordinary();
            }
            if !repeatable(&error) {
                // Nobody is there to be told.
                let _ = self.facts.send(Err(error)).await;
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
        let opened = self.rpc.once(self.request.clone(), self.rpc.deadline(), |channel, mut request| {
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
            match message {
                Ok(Ok(Some(message))) => {
                    if let Err(error) = self.rpc.cluster.observe(message.header.as_ref()) {
                        return Ended::Failed(error);
                    }
                    let next = message.next_lsn;
                    if !self.deliver(message.facts).await {
                        return Ended::Done;
                    }
                    self.request.from_lsn = self.request.from_lsn.max(next);
                }
                Ok(Ok(None)) if !self.request.follow => return Ended::Done,
                Ok(Ok(None)) => return self.broke("the server ended the stream"),
                Ok(Err(status)) => return Ended::Failed(Error::from_status(&status, &self.rpc.endpoint)),
                Err(_) => return self.broke("the server was silent for too long"),
            }
        }
    }

    /// Returns false once nobody reads any more.
    async fn deliver(&self, facts: Vec<v1::TailFact>) -> bool {
        for v1::TailFact { lsn, fact } in facts {
            if self.facts.send(Ok((Lsn::from_u64(lsn), fact.unwrap_or_default()))).await.is_err() {
                return false;
            }
        }
        true
    }

    fn broke(&self, cause: &str) -> Ended {
        Ended::Failed(Error::Unanswered { endpoint: self.rpc.endpoint.clone(), cause: cause.to_owned() })
    }
}
