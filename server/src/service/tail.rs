//! Following what happens, from the log itself.

use std::time::Duration;

use bytes::Bytes;
use fencepost::log::v1::Fact;
use fencepost::log::v1::fact::Kind;
use fencepost::v1::log_service_server::LogService;
use fencepost::v1::{TailFact, TailRequest, TailResponse};
use fencepost::{LogIndex, Lsn, Reason};
use prost::Message as _;
use tokio::sync::{mpsc, watch};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::status::status;
use super::{Backend, facts};
use crate::error::Refusal;
use crate::log::Log;
use crate::state::{check_name, check_pipeline};

/// A follower that heard nothing for this long hears a heartbeat.
const HEARTBEAT: Duration = Duration::from_secs(5);

/// Facts in one message, and their size, at most. One larger fact still goes out, alone.
const FACTS_MAX: usize = 512;
const BYTES_MAX: usize = 1 << 20;

/// Facts that are looked at in one go, and their size, although none may match.
const LOOKED_AT_MAX: usize = 16_384;
const LOOKED_AT_BYTES_MAX: usize = 16 << 20;

pub(super) struct Service(pub(super) Backend);

#[tonic::async_trait]
impl LogService for Service {
    type TailStream = ReceiverStream<Result<TailResponse, Status>>;

    async fn tail(&self, request: Request<TailRequest>) -> Result<Response<Self::TailStream>, Status> {
        let Backend { sequencer, log, .. } = &self.0;
        let request = request.into_inner();
        if !request.pipeline.is_empty() {
            check_pipeline("pipeline", &request.pipeline).map_err(status)?;
        }
        if !request.branch.is_empty() {
            check_name("branch", &request.branch).map_err(status)?;
        }
        let cluster = request.cluster.clone();
        let ((), seen) =
            sequencer.read(move |view| view.state.check_cluster(cluster.as_ref())).await.map_err(status)?;
        let next = check_start(&request, log.floor(), seen).map_err(status)?;
        let (messages, stream) = mpsc::channel(1);
        let follower = Follower { backend: self.0.clone(), request, next, newest: seen, end: seen.next(), messages };
        tokio::spawn(follower.run());
        Ok(Response::new(ReceiverStream::new(stream)))
    }
}

fn check_start(request: &TailRequest, floor: Lsn, seen: Lsn) -> Result<Lsn, Refusal> {
    let from = Lsn::from_u64(request.from_lsn);
    if from == Lsn::ZERO && !request.allow_gaps {
        return Ok(floor);
    }
    if from < floor && !request.allow_gaps {
        return Err(compacted(from, floor));
    }
    if from > Lsn::new(seen.index().next(), 0) {
        let message = format!("the newest fact is at LSN {seen}, before {from}: check that this is the right cluster");
        return Err(Refusal::new(Reason::FutureLsn, message).with("lsn", seen.as_u64()));
    }
    Ok(from)
}

/// What a caller is told who wants all facts from a place where some are gone.
fn compacted(from: Lsn, floor: Lsn) -> Refusal {
    let message = format!(
        "facts at and after LSN {from} were compacted away, and from LSN {floor} on none is missing: reload the state from \
         heads and go on from there, or ask for what is left with allow_gaps"
    );
    Refusal::new(Reason::Compacted, message).with("floor", floor.as_u64())
}

/// One call: reads ahead of its caller by a few messages, and waits where the log ends.
struct Follower {
    backend: Backend,
    request: TailRequest,
    next: Lsn,
    /// The newest fact that this call knows of.
    newest: Lsn,
    /// Where a call that does not follow ends.
    end: Lsn,
    messages: mpsc::Sender<Result<TailResponse, Status>>,
}

impl Follower {
    async fn run(mut self) {
        let mut durable = self.backend.log.durable();
        let mut stopping = self.backend.stopping.clone();
        loop {
            durable.borrow_and_update();
            let sent = match self.read().await {
                Ok(Some(facts)) => self.send(facts).await,
                Ok(None) if !self.request.follow => return,
                Ok(None) => tokio::select! {
                    biased;
                    _ = stopping.wait_for(|is_stopping| *is_stopping) => return,
                    waited = self.wait(&mut durable) => waited,
                },
                Err(failure) => return drop(self.messages.send(Err(failure)).await),
            };
            if sent.is_err() {
                return;
            }
        }
    }

    /// The next facts that match, perhaps none of many looked at; `None` at the end of what is durable.
    async fn read(&mut self) -> Result<Option<Vec<TailFact>>, Status> {
        let log = self.backend.log.clone();
        let (request, next) = (self.request.clone(), self.next);
        let end = if request.follow { Lsn::MAX } else { self.end };
        let read = facts::blocking(move || read(&log, &request, next, end)).await?;
        Ok(read.map(|(facts, last)| {
            self.next = last.next();
            self.newest = self.newest.max(last);
            facts
        }))
    }

    async fn send(&self, facts: Vec<TailFact>) -> Result<(), ()> {
        let header = Some(self.backend.sequencer.header(self.newest));
        let message = TailResponse { header, facts, next_lsn: self.next.as_u64() };
        self.messages.send(Ok(message)).await.map_err(|_| ())
    }

    /// Waits for more of the log, with a heartbeat now and then. An error: the caller or the log is gone.
    async fn wait(&self, durable: &mut watch::Receiver<LogIndex>) -> Result<(), ()> {
        loop {
            tokio::select! {
                biased;
                () = self.messages.closed() => return Err(()),
                changed = durable.changed() => return changed.map_err(|_| ()),
                () = tokio::time::sleep(HEARTBEAT) => self.send(Vec::new()).await?,
            }
        }
    }
}

/// Facts from `next` on, and the last one looked at. `None`: there is nothing yet.
fn read(log: &Log, request: &TailRequest, next: Lsn, end: Lsn) -> Result<Option<(Vec<TailFact>, Lsn)>, Refusal> {
    let (mut found, mut bytes, mut looked_at_bytes, mut last) = (Vec::new(), 0, 0, None);
    let is_below_floor = next < log.floor();
    for fact in log.scan(next).take(LOOKED_AT_MAX) {
        let (lsn, payload) = fact.map_err(facts::unreadable)?;
        let is_enough = bytes >= BYTES_MAX || found.len() >= FACTS_MAX || looked_at_bytes >= LOOKED_AT_BYTES_MAX;
        if lsn >= end || is_enough {
            break;
        }
        looked_at_bytes += payload.len();
        let mut fact = facts::decode(lsn, payload)?;
        if matches(&fact, request) {
            if request.without_state {
                leave_states_out(&mut fact);
            }
            bytes += fact.encoded_len();
            found.push(TailFact { lsn: lsn.as_u64(), fact: Some(fact) });
        }
        last = Some(lsn);
    }
    // What was read may have gaps if compaction has just been there. A stream that began below the floor may go on with what
    // is left until it is above, and from then on it is as strict as any other.
    let floor = log.floor();
    if next < floor && !(request.allow_gaps && is_below_floor) {
        return Err(compacted(next, floor));
    }
    Ok(last.map(|last| (found, last)))
}

fn matches(fact: &Fact, request: &TailRequest) -> bool {
    let in_pipeline = request.pipeline.is_empty() || fact.pipeline() == Some(&request.pipeline);
    in_pipeline && (request.branch.is_empty() || fact.branches().any(|branch| branch == request.branch))
}

fn leave_states_out(fact: &mut Fact) {
    if let Some(Kind::Committed(committed)) = &mut fact.kind {
        committed.digest = Bytes::copy_from_slice(&committed.digest);
    }
    fact.payloads_mut().for_each(facts::leave_state_out);
}
