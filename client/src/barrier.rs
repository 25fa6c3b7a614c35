//! Points at which the branches of a pipeline move together: opening them ([`Pipeline::open_barrier`]), and waiting until
//! they close ([`Barrier::wait`]). Arriving is a worker's ([`Worker::arrive`](crate::Worker::arrive)).

use std::time::Duration;

use fencepost::{Lsn, Reason, v1};
use tokio::time::Instant;
use tonic::Streaming;

use crate::client::{Client, LONGEST};
use crate::error::{Error, Result};
use crate::history::recorded;
use crate::listing::Listing;
use crate::pipeline::Pipeline;
use crate::retry::{Backoff, repeatable};
use crate::rpc::barriers;
use crate::tail::SILENCE_MAX;

/// A barrier that is about to be opened. Begin with [`Pipeline::open_barrier`].
#[derive(Clone, Debug)]
#[must_use = "nothing is sent before `open`"]
pub struct OpenBarrier {
    pipeline: Pipeline,
    request: v1::OpenBarrierRequest,
}

recorded!(OpenBarrier);

impl OpenBarrier {
    /// The branches that must arrive. They need not exist yet. 1 to 128 in all.
    pub fn participants<B: Into<String>>(mut self, branches: impl IntoIterator<Item = B>) -> OpenBarrier {
        self.request.participants.extend(branches.into_iter().map(Into::into));
        self
    }

    /// How long from now it waits; then it is aborted as a whole. At most 30 days. Default: for ever.
    pub fn timeout(mut self, timeout: Duration) -> OpenBarrier {
        // Zero would be for ever.
        self.request.timeout_ms = u64::try_from(timeout.as_millis()).unwrap_or(u64::MAX).max(1);
        self
    }

    /// Sends it until it is answered. Opened before with the same participants, by whomever, that is success, and the answer
    /// is what became of it since; with others it is refused with `EXISTS`.
    pub async fn open(self) -> Result<v1::Barrier> {
        let rpc = &self.pipeline.client().shared.rpc;
        let send = async |channel, request| barriers(channel).open_barrier(request).await;
        let answer = rpc.ask(self.request, rpc.deadline(), send).await?;
        Ok(answer.barrier.unwrap_or_default())
    }
}

/// A barrier of a pipeline. Only a name; nothing is sent to make one.
#[derive(Clone, Debug)]
pub struct Barrier {
    client: Client,
    pipeline: String,
    name: String,
}

impl Barrier {
    /// Its name.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// `namespace/name` of its pipeline.
    pub fn pipeline(&self) -> &str {
        &self.pipeline
    }

    /// The barrier as it is. `STATE_MISSING` if it was never opened, or is forgotten.
    pub async fn get(&self) -> Result<v1::Barrier> {
        let now = self.watch().read(self.client.shared.rpc.deadline()).await?;
        Ok(now.unwrap_or_default())
    }

    /// The barrier as it is, and again after every change, until it is closed.
    pub fn watch(&self) -> BarrierWatch {
        BarrierWatch { barrier: self.clone(), stream: None, seen: None, backoff: Backoff::ordinary() }
    }

    /// Waits until the barrier is committed. That it was aborted is the error `BARRIER_ABORTED`, which names who was missing.
    /// A broken connection is none: it asks again, for as long as the caller waits.
    pub async fn wait(&self) -> Result<v1::Barrier> {
        let mut watch = self.watch();
        while watch.next().await?.is_some() {}
        let closed = watch.seen.unwrap_or_default();
        if closed.state() == v1::barrier::State::Aborted { Err(aborted(&closed)) } else { Ok(closed) }
    }

    /// Gives the barrier up: what has arrived is discarded. A reason is needed; both are kept for whoever reads the audit
    /// later. That it was aborted before is success. `BARRIER_CLOSED` if it is committed.
    pub async fn abort(&self, actor: impl Into<String>, reason: impl Into<String>) -> Result<v1::Barrier> {
        let request = v1::AbortBarrierRequest {
            cluster: None,
            pipeline: self.pipeline.clone(),
            name: self.name.clone(),
            actor: actor.into(),
            reason: reason.into(),
        };
        let rpc = &self.client.shared.rpc;
        let send = async |channel, request| barriers(channel).abort_barrier(request).await;
        match rpc.ask(request, rpc.deadline(), send).await {
            Err(error) if error.reason() == Some(Reason::BarrierAborted) => self.get().await,
            answer => Ok(answer?.barrier.unwrap_or_default()),
        }
    }
}

/// The states of a barrier one after the other.
///
/// What changes while nobody reads is told as one change. A broken connection is no error: the next state comes over a new
/// one.
#[derive(Debug)]
pub struct BarrierWatch {
    barrier: Barrier,
    stream: Option<Streaming<v1::AwaitBarrierResponse>>,
    seen: Option<v1::Barrier>,
    backoff: Backoff,
}

impl BarrierWatch {
    /// The state as it is, if this is the first call; then after each change; `None` once the last one showed the barrier
    /// closed. A call that is given up loses nothing.
    pub async fn next(&mut self) -> Result<Option<v1::Barrier>> {
        self.read(Instant::now() + LONGEST).await
    }

    async fn read(&mut self, deadline: Instant) -> Result<Option<v1::Barrier>> {
        if self.seen.as_ref().is_some_and(is_closed) {
            return Ok(None);
        }
        let rpc = self.barrier.client.shared.rpc.clone();
        loop {
            let error = match self.message(deadline).await {
                Ok(barrier) => {
                    self.backoff = Backoff::ordinary();
                    if self.seen.as_ref() == Some(&barrier) {
                        continue;
                    }
                    return Ok(Some(self.seen.insert(barrier).clone()));
                }
                Err(error) => error,
            };
            self.stream = None;
            let worth_it = match error.reason() {
                // The history was restored since the last answer.
                Some(Reason::StaleGeneration) => rpc.learn(rpc.deadline()).await?,
                _ => repeatable(&error),
            };
            if !worth_it || !self.backoff.wait(error.retry_after(), deadline).await {
                return Err(error);
            }
            tracing::debug!(%error, barrier = self.barrier.name, "asking for the barrier again");
        }
    }

    /// The next message of the stream, which is opened if it is not.
    async fn message(&mut self, deadline: Instant) -> Result<v1::Barrier> {
        let Barrier { client, pipeline, name } = &self.barrier;
        let rpc = &client.shared.rpc;
        if self.stream.is_none() {
            let (pipeline, name) = (pipeline.clone(), name.clone());
            let request = v1::AwaitBarrierRequest { cluster: None, pipeline, name };
            let opened = rpc.once(request, deadline.min(rpc.deadline()), |channel, mut request| {
                // The deadline is for the opening; the stream itself has none.
                request.metadata_mut().remove("grpc-timeout");
                async move { barriers(channel).await_barrier(request).await }
            });
            self.stream = Some(opened.await?);
        }
        let stream = self.stream.as_mut().expect("it has just been opened, if it was not there");
        let broke = |cause: &str| Error::Unanswered { endpoint: rpc.endpoint.clone(), cause: cause.to_owned() };
        let message = match tokio::time::timeout_at(deadline.min(Instant::now() + SILENCE_MAX), stream.message()).await
        {
            Ok(Ok(message)) => message.ok_or_else(|| broke("the server ended the stream"))?,
            Ok(Err(status)) => return Err(Error::from_status(&status, &rpc.endpoint)),
            Err(_) => return Err(broke("the server was silent for too long")),
        };
        rpc.cluster.observe(message.header.as_ref())?;
        Ok(message.barrier.unwrap_or_default())
    }
}

impl Pipeline {
    /// Opens a point at which branches move together: once all of them have arrived, one fact commits what they have staged.
    ///
    /// ```
    /// # use std::time::Duration;
    /// # use fencepost_client::{Client, Result};
    /// # async fn tonight(client: Client) -> Result<()> {
    /// let flights = client.pipeline("prod/flights");
    /// // Every participant may open it: the same again is the same barrier.
    /// flights.open_barrier("2013-01-05").participants(["ewr", "jfk", "lga"]).timeout(Duration::from_hours(6)).open().await?;
    /// let closed = flights.barrier("2013-01-05").wait().await?;
    /// println!("all of them are committed at {}", closed.closed_lsn);
    /// # Ok(())
    /// # }
    /// ```
    pub fn open_barrier(&self, name: impl Into<String>) -> OpenBarrier {
        let request =
            v1::OpenBarrierRequest { pipeline: self.name().to_owned(), name: name.into(), ..Default::default() };
        OpenBarrier { pipeline: self.clone(), request }
    }

    /// The barrier of that name.
    pub fn barrier(&self, name: impl Into<String>) -> Barrier {
        Barrier { client: self.client().clone(), pipeline: self.name().to_owned(), name: name.into() }
    }

    /// Its barriers: those that wait by name, then the closed ones that are remembered, newest first.
    pub fn barriers(&self) -> Listing<v1::Barrier> {
        list(self.client(), self.name(), false)
    }

    /// Its barriers that wait, by name.
    pub fn waiting_barriers(&self) -> Listing<v1::Barrier> {
        list(self.client(), self.name(), true)
    }
}

impl Client {
    /// The barriers of all pipelines that wait.
    pub fn waiting_barriers(&self) -> Listing<v1::Barrier> {
        list(self, "", true)
    }
}

fn list(client: &Client, pipeline: &str, open_only: bool) -> Listing<v1::Barrier> {
    let (client, pipeline) = (client.clone(), pipeline.to_owned());
    Listing::new(move |page_token: String| {
        let (client, pipeline) = (client.clone(), pipeline.clone());
        async move {
            let rpc = &client.shared.rpc;
            let request = v1::ListBarriersRequest { cluster: None, pipeline, open_only, page_size: 0, page_token };
            let send = async |channel, request| barriers(channel).list_barriers(request).await;
            let answer = rpc.ask(request, rpc.deadline(), send).await?;
            Ok((answer.barriers, Some(answer.next_page_token).filter(|token| !token.is_empty())))
        }
    })
}

pub(crate) fn is_closed(barrier: &v1::Barrier) -> bool {
    matches!(barrier.state(), v1::barrier::State::Committed | v1::barrier::State::Aborted)
}

/// What the server says to whoever arrives at a barrier that was aborted, for those who had arrived. Its reason says who was
/// missing, for people.
pub(crate) fn aborted(barrier: &v1::Barrier) -> Error {
    let missing = barrier.participants.iter().filter(|participant| !participant.arrived);
    let missing: Vec<&str> = missing.map(|participant| &*participant.branch).collect();
    let (name, why) = (&barrier.name, &barrier.reason);
    let message = format!("barrier '{name}' was given up, and what had arrived is discarded: {why}");
    let lsn = Lsn::from_u64(barrier.closed_lsn).to_string();
    let details = [("barrier", name.clone()), ("lsn", lsn), ("missing", missing.join(","))];
    Error::refused(Reason::BarrierAborted, message, details)
}
