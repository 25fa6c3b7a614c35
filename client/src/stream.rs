//! The road that commits take: one bidirectional stream for all workers of a client.
//!
//! A unary gRPC call costs more than a commit does, so the workers share a stream, and one task drains what they have
//! queued into as few messages as possible. While a message waits for the network the queue grows, and the next message
//! carries more: batching without a timer.
//!
//! The stream is opened when the first commit comes and again after it broke. A commit that was on its way when the stream
//! broke ends *unknown*; the task never sends anything twice, because only the worker can find out how it ended.

use std::collections::HashMap;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};

use fencepost::v1;
use prost::Message as _;
use tokio::sync::{mpsc, oneshot};
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Status, Streaming};

use crate::error::{Error, Result};
use crate::rpc::{Rpc, commits};

/// Most commits in one message.
const BATCH_COMMITS_MAX: usize = 1_024;
/// Most bytes in one message. What is larger by itself takes a road of its own. Half of the least that a server can be
/// set to take.
pub(crate) const BATCH_BYTES_MAX: usize = 1 << 20;
/// More than what a message has beside a commit, its session and whom it is meant for, and than the end of a session takes.
const COMMIT_BYTES: usize = 256;
const CLOSE_BYTES: usize = 16;
/// Messages that wait for the network. Few, so that the others wait here and travel together.
const MESSAGES_WAITING_MAX: usize = 2;

/// What becomes of one attempt at a commit.
pub(crate) type Answer = oneshot::Receiver<Result<v1::CommitResponse>>;

/// The handle of the task that owns the stream.
///
/// Its queue needs no bound: each worker has at most one commit in it.
#[derive(Debug)]
pub(crate) struct CommitRoad {
    queue: mpsc::UnboundedSender<Item>,
    sessions: AtomicU64,
}

#[derive(Debug)]
enum Item {
    Commit(Attempt),
    Close(u64),
}

#[derive(Debug)]
struct Attempt {
    session: u64,
    commit: v1::CommitRequest,
    answer: oneshot::Sender<Result<v1::CommitResponse>>,
}

impl CommitRoad {
    /// Starts the task. It ends when the handle is dropped.
    pub(crate) fn start(rpc: &Arc<Rpc>) -> CommitRoad {
        let (queue, inbox) = mpsc::unbounded_channel();
        tokio::spawn(Driver { rpc: rpc.clone(), inbox, waiting: Vec::new() }.run());
        CommitRoad { queue, sessions: AtomicU64::new(1) }
    }

    /// A session number that nobody else has.
    pub(crate) fn open_session(&self) -> u64 {
        self.sessions.fetch_add(1, Ordering::Relaxed)
    }

    /// Tells the server, when it is next spoken to, that the session is over.
    pub(crate) fn close_session(&self, session: u64) {
        let _ = self.queue.send(Item::Close(session));
    }

    /// Queues an attempt behind everything that the session sent before. The answer comes whether or not the caller is
    /// still there to send again; an answer that is dropped by the other side means unknown.
    pub(crate) fn send(&self, session: u64, commit: v1::CommitRequest) -> Answer {
        let (answer, receiver) = oneshot::channel();
        // If the task is gone the attempt is dropped here, and with it its answer.
        let _ = self.queue.send(Item::Commit(Attempt { session, commit, answer }));
        receiver
    }
}

/// The task that owns the stream.
struct Driver {
    rpc: Arc<Rpc>,
    inbox: mpsc::UnboundedReceiver<Item>,
    /// Taken from the queue and not yet sent.
    waiting: Vec<Item>,
}

impl Driver {
    async fn run(mut self) {
        loop {
            if self.waiting.is_empty() && self.inbox.recv_many(&mut self.waiting, BATCH_COMMITS_MAX).await == 0 {
                return;
            }
            // Without a stream there is no session to close.
            self.waiting.retain(|item| matches!(item, Item::Commit(_)));
            if self.waiting.is_empty() {
                continue;
            }
            if let Some(mut stream) = self.open().await
                && stream.carry(&mut self).await.is_none()
            {
                return;
            }
        }
    }

    /// Opens a stream whose first message is the commits that wait. If that fails they are all told why.
    async fn open(&mut self) -> Option<Stream> {
        let (outbound, messages) = mpsc::channel(MESSAGES_WAITING_MAX);
        let mut on_their_way = InFlight::default();
        let first = self.batch(&mut on_their_way);
        outbound.try_send(first).expect("a new channel has room");

        let mut service = commits(self.rpc.channel());
        let opening = service.commit_stream(ReceiverStream::new(messages));
        let error = match tokio::time::timeout(self.rpc.options.request_timeout, opening).await {
            Ok(Ok(inbound)) => return Some(Stream { outbound, inbound: inbound.into_inner(), on_their_way }),
            Ok(Err(status)) => Error::from_status(&status, &self.rpc.endpoint),
            Err(_) => self.broken("the commit stream was not opened in time"),
        };
        tracing::debug!(%error, "the commit stream could not be opened");
        on_their_way.fail(&error);
        None
    }

    /// Fills one message with what waits, in its order, and notes whom the answers belong to.
    fn batch(&mut self, on_their_way: &mut InFlight) -> v1::CommitStreamRequest {
        while self.waiting.len() < BATCH_COMMITS_MAX
            && let Ok(item) = self.inbox.try_recv()
        {
            self.waiting.push(item);
        }
        let mut message = v1::CommitStreamRequest::default();
        let mut bytes = 0;
        let mut taken = 0;
        for item in &self.waiting {
            let more = match item {
                Item::Commit(attempt) => size(&attempt.commit),
                Item::Close(_) => CLOSE_BYTES,
            };
            if taken > 0 && bytes + more > BATCH_BYTES_MAX {
                break;
            }
            bytes += more;
            taken += 1;
        }
        message.commits.reserve(taken);
        for item in self.waiting.drain(..taken) {
            match item {
                Item::Close(session) => message.closed_sessions.push(session),
                // Whoever gave up waiting has asked, or will ask, how it ended: what was never sent stays so.
                Item::Commit(attempt) if attempt.answer.is_closed() => {}
                Item::Commit(Attempt { session, commit, answer }) => {
                    let number = on_their_way.add(answer);
                    message.commits.push(v1::SessionCommit { session, number, commit: Some(commit) });
                }
            }
        }
        message
    }

    fn broken(&self, cause: &str) -> Error {
        Error::Unanswered { endpoint: self.rpc.endpoint.clone(), cause: cause.to_owned() }
    }
}

/// An open stream.
struct Stream {
    outbound: mpsc::Sender<v1::CommitStreamRequest>,
    inbound: Streaming<v1::CommitStreamResponse>,
    on_their_way: InFlight,
}

impl Stream {
    /// Carries commits and answers until the stream breaks. Returns `None` once no handle is left.
    async fn carry(&mut self, driver: &mut Driver) -> Option<()> {
        let error = loop {
            tokio::select! {
                answers = self.inbound.message() => match answers {
                    Ok(Some(answers)) => self.on_their_way.deliver(answers, &driver.rpc),
                    Ok(None) => break driver.broken("the server ended the commit stream"),
                    Err(status) => break why(&status, driver),
                },
                room = self.outbound.reserve(), if !driver.waiting.is_empty() => match room {
                    Ok(room) => room.send(driver.batch(&mut self.on_their_way)),
                    Err(_) => break driver.broken("the commit stream broke"),
                },
                taken = driver.inbox.recv_many(&mut driver.waiting, BATCH_COMMITS_MAX), if driver.waiting.is_empty() => {
                    if taken == 0 {
                        return None;
                    }
                }
            }
        };
        tracing::debug!(%error, commits = self.on_their_way.answers.len(), "the commit stream broke");
        self.on_their_way.fail(&error);
        Some(())
    }
}

/// Whatever the status says, it is not about any one commit: those on their way may have been applied.
fn why(status: &Status, driver: &Driver) -> Error {
    match Error::from_status(status, &driver.rpc.endpoint) {
        error @ Error::Unanswered { .. } => error,
        error => driver.broken(&error.to_string()),
    }
}

/// Whom the answers that are still to come belong to.
#[derive(Default)]
struct InFlight {
    answers: HashMap<u64, oneshot::Sender<Result<v1::CommitResponse>>>,
    last_number: u64,
}

impl InFlight {
    fn add(&mut self, answer: oneshot::Sender<Result<v1::CommitResponse>>) -> u64 {
        self.last_number += 1;
        self.answers.insert(self.last_number, answer);
        self.last_number
    }

    fn deliver(&mut self, message: v1::CommitStreamResponse, rpc: &Rpc) {
        let believed = rpc.cluster.observe(message.header.as_ref());
        for result in message.results {
            let Some(answer) = self.answers.remove(&result.number) else { continue };
            let outcome = match result.result {
                Some(v1::session_result::Result::Committed(committed)) => believed.clone().map(|()| committed),
                Some(v1::session_result::Result::Refusal(refusal)) => Err(Error::from_refusal(refusal)),
                None => Err(Error::Unanswered {
                    endpoint: rpc.endpoint.clone(),
                    cause: "the answer was neither yes nor no".to_owned(),
                }),
            };
            // Whoever gave up the commit does not want the answer.
            let _ = answer.send(outcome);
        }
    }

    fn fail(&mut self, error: &Error) {
        for (_, answer) in self.answers.drain() {
            let _ = answer.send(Err(error.clone()));
        }
    }
}

/// At least as many bytes as a commit takes in a message.
pub(crate) fn size(commit: &v1::CommitRequest) -> usize {
    COMMIT_BYTES + commit.encoded_len()
}
