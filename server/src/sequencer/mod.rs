//! One thread that decides everything, in one order.
//!
//! It takes requests from a queue, judges each against the state, takes the resulting facts into the state at once and
//! gathers them into an entry of the log. While one entry is being written the next is gathered: group commit without
//! a timer. Every answer, yes or no, leaves when the newest entry that it could have seen is durable.
//!
//! Promises:
//! * reads, refusals and grants are decided in the same order as commits, so all of them are linearizable;
//! * a keepalive that was in the queue is counted before any takeover that was in it;
//! * a keepalive is answered only by a server that can write;
//! * whatever becomes of a request, its caller hears something.
//!
//! It knows no gRPC and touches no file.

mod core;
mod lease_clock;
mod outbox;
mod reply;
#[cfg(test)]
mod tests;
mod waiters;

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError, SendError, Sender, TryRecvError, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use fencepost::v1::{ClusterRef, Header, KeepAliveRequest, LeaseRef, Predecessor};
use fencepost::{Lsn, Reason, Token};
use tokio::sync::{mpsc, oneshot, watch};

pub use reply::{CommitDone, CommitReply, Permit, Session, SessionAnswer};

use self::core::{Core, shutting_down};
use self::lease_clock::LeaseClock;
use self::outbox::Outbox;
use self::reply::{Answer, Budget};
use crate::clock::Clock;
use crate::error::Refusal;
use crate::index::Index;
use crate::log::Log;
use crate::metrics::Counters;
use crate::state::{Commit, Head, Resume, State};

/// Entries on their way to the disk before the next is gathered: one being written, one ready to follow it.
const ENTRIES_IN_FLIGHT_MAX: u64 = 2;

/// A write that takes longer than this stops lease time.
const DISK_STALL: Duration = Duration::from_millis(250);

/// What frames and a commit frame add to a request, at most.
const OVERHEAD_BYTES: usize = 4096;

/// Bounds of the sequencer.
#[derive(Clone, Copy, Debug)]
pub struct SequencerConfig {
    /// Size at which an entry is closed although the log could not take it yet.
    pub batch_bytes_max: usize,
    /// Memory of all requests in hand; more are refused.
    pub in_flight_bytes_max: usize,
}

/// What a read may look at.
pub struct View {
    /// Leases, heads, remembered commits.
    pub state: State,
    /// Where old checkpoints are.
    pub index: Index,
    leases: LeaseClock,
}

impl View {
    /// For how long nothing was heard from the holder of this token.
    pub fn silent(&self, token: Token) -> Duration {
        self.leases.silent(token)
    }
}

/// A branch was granted.
#[derive(Clone, Debug, PartialEq)]
pub struct Granted {
    /// The fencing token.
    pub token: Token,
    /// How long the holder may be silent.
    pub ttl: Duration,
    /// The resume point.
    pub head: Option<Head>,
    /// Whether the caller said that it may start from nothing.
    pub fresh_allowed: bool,
    /// Who had the branch before.
    pub predecessor: Option<Predecessor>,
    /// The newest fact when the answer was decided.
    pub seen: Lsn,
}

/// Leases were kept alive, each for its TTL, or are lost.
#[derive(Debug)]
pub struct KeptAlive {
    /// In the order of the request.
    pub leases: Vec<Result<Duration, Refusal>>,
    /// The newest fact when the answer was decided.
    pub seen: Lsn,
}

/// A branch is free.
#[derive(Debug)]
pub struct Released {
    /// The newest fact when the answer was decided.
    pub seen: Lsn,
}

/// Looks at the state on the sequencer's thread and makes the answer.
type ReadWork = Box<dyn FnOnce(&View) -> Answer + Send>;

/// One request in the queue.
enum Work {
    /// A commit whose shape was refused takes its turn too, so that it poisons its session in order.
    Commit {
        commit: Result<Box<Commit>, Refusal>,
        reply: CommitReply,
    },
    Resume {
        resume: Box<Resume>,
        wait: Duration,
        reply: oneshot::Sender<Result<Granted, Refusal>>,
    },
    KeepAlive {
        request: KeepAliveRequest,
        reply: oneshot::Sender<Result<KeptAlive, Refusal>>,
    },
    Release {
        cluster: Option<ClusterRef>,
        lease: LeaseRef,
        reply: oneshot::Sender<Result<Released, Refusal>>,
    },
    Read(ReadWork),
    /// The log made progress.
    Wake,
    /// Refuse those who wait for leases, and let nobody wait any more.
    Hurry,
    /// Decide what is queued, then end.
    Stop,
}

impl Work {
    /// Room it may need in the log, at most.
    fn bytes(&self) -> usize {
        match self {
            Work::Commit { commit: Ok(commit), .. } => prost::Message::encoded_len(&commit.request) + OVERHEAD_BYTES,
            Work::Resume { .. } | Work::Release { .. } | Work::Commit { commit: Err(_), .. } => OVERHEAD_BYTES,
            Work::KeepAlive { .. } | Work::Read(_) | Work::Wake | Work::Hurry | Work::Stop => 0,
        }
    }
}

/// Sends requests to the sequencer. Cheap to clone.
#[derive(Clone)]
pub struct Sequencer {
    queue: Sender<Work>,
    shared: Arc<Shared>,
}

struct Shared {
    cluster_id: String,
    generation: u64,
    budget: Arc<Budget>,
    counters: Arc<Counters>,
    failed: watch::Receiver<Option<Refusal>>,
}

/// The sequencer's thread. Dropping it does not stop it; [`SequencerThread::stop`] does.
pub struct SequencerThread {
    queue: Sender<Work>,
    thread: JoinHandle<()>,
}

impl SequencerThread {
    /// Decides what is queued, refuses those who wait for leases, and waits until the thread is done.
    pub fn stop(self) {
        // A thread that is gone already needs no telling.
        let _ = self.queue.send(Work::Stop);
        if self.thread.join().is_err() {
            tracing::error!("the sequencer had panicked");
        }
    }
}

impl Sequencer {
    /// Starts the thread on a state that has taken in everything in the log.
    pub fn start(
        state: State,
        index: Index,
        log: Arc<Log>,
        config: SequencerConfig,
        clock: Clock,
    ) -> std::io::Result<(Sequencer, SequencerThread)> {
        let (queue, requests) = channel();
        let (failed_sender, failed) = watch::channel(None);
        let counters = Arc::new(Counters::default());
        let shared = Arc::new(Shared {
            cluster_id: state.cluster_id().to_owned(),
            generation: state.generation(),
            budget: Budget::new(config.in_flight_bytes_max),
            counters: Arc::clone(&counters),
            failed,
        });
        let last_index = log.last_index();
        let driver = Driver {
            core: Core::new(state, index, last_index, clock, counters),
            outbox: Arc::new(Outbox::new(last_index)),
            log,
            config,
            requests,
            queue: queue.clone(),
            failed: failed_sender,
        };
        let thread = std::thread::Builder::new().name("sequencer".to_owned()).spawn(move || driver.run())?;
        Ok((Sequencer { queue: queue.clone(), shared }, SequencerThread { queue, thread }))
    }

    /// The head of every answer.
    pub fn header(&self, seen: Lsn) -> Header {
        Header { cluster_id: self.shared.cluster_id.clone(), generation: self.shared.generation, lsn: seen.as_u64() }
    }

    /// What was done so far.
    pub fn counters(&self) -> &Counters {
        &self.shared.counters
    }

    /// Changes when the log fails; the server can then do nothing but stop.
    pub fn failed(&self) -> watch::Receiver<Option<Refusal>> {
        self.shared.failed.clone()
    }

    /// Room for a request of this size; held until its answer is sent.
    pub fn permit(&self, bytes: usize) -> Result<Permit, Refusal> {
        self.shared.budget.acquire(bytes)
    }

    /// Commits, or refuses in its turn what has no proper shape; the answer goes where `reply` says.
    pub fn commit(&self, commit: Result<Commit, Refusal>, reply: CommitReply) {
        self.send(Work::Commit { commit: commit.map(Box::new), reply });
    }

    /// Commits and waits for the answer.
    pub async fn commit_once(&self, commit: Commit, permit: Permit) -> Result<CommitDone, Refusal> {
        let (reply, answer) = CommitReply::once(permit);
        self.commit(Ok(commit), reply);
        answered(answer).await
    }

    /// Takes a branch, waiting up to `wait` for a lease that can be claimed.
    pub async fn resume(&self, resume: Resume, wait: Duration) -> Result<Granted, Refusal> {
        self.ask(|reply| Work::Resume { resume: Box::new(resume), wait, reply }).await
    }

    /// Says that holders are there.
    pub async fn keep_alive(&self, request: KeepAliveRequest) -> Result<KeptAlive, Refusal> {
        self.ask(|reply| Work::KeepAlive { request, reply }).await
    }

    /// Gives a branch back.
    pub async fn release(&self, cluster: Option<ClusterRef>, lease: LeaseRef) -> Result<Released, Refusal> {
        self.ask(|reply| Work::Release { cluster, lease, reply }).await
    }

    /// Looks at the state; the answer comes once all that it saw is durable. With it comes the newest fact then.
    pub async fn read<T: Send + 'static>(
        &self,
        look: impl FnOnce(&View) -> Result<T, Refusal> + Send + 'static,
    ) -> Result<(T, Lsn), Refusal> {
        self.ask(|reply| {
            Work::Read(Box::new(move |view| {
                let seen = view.state.applied();
                Answer::once(reply, look(view).map(|found| (found, seen)))
            }))
        })
        .await
    }

    /// From now on nobody waits for a lease: the server is about to stop.
    pub fn hurry(&self) {
        // A thread that is gone lets nobody wait.
        let _ = self.queue.send(Work::Hurry);
    }

    /// If the thread is gone the work comes back, and nothing of it was done.
    fn send(&self, work: Work) {
        if let Err(SendError(work)) = self.queue.send(work) {
            refuse(work);
        }
    }

    async fn ask<T>(&self, work: impl FnOnce(oneshot::Sender<Result<T, Refusal>>) -> Work) -> Result<T, Refusal> {
        let (reply, answer) = oneshot::channel();
        self.send(work(reply));
        answered(answer).await
    }
}

async fn answered<T>(answer: oneshot::Receiver<Result<T, Refusal>>) -> Result<T, Refusal> {
    answer.await.unwrap_or_else(|_| Err(outbox::log_failed("the server stopped in the middle of the request")))
}

/// Drives the core: queue in, log and outbox out.
struct Driver {
    core: Core,
    outbox: Arc<Outbox>,
    log: Arc<Log>,
    config: SequencerConfig,
    requests: Receiver<Work>,
    queue: Sender<Work>,
    failed: watch::Sender<Option<Refusal>>,
}

impl Driver {
    fn run(mut self) {
        let mut stopping = false;
        while !stopping {
            let Some(drained) = self.drain() else { break };
            self.core.look_at_clock(self.log.stalled_for() > DISK_STALL);
            // Whoever said in time that it is there must not lose its branch to somebody behind it in the queue.
            let (heard, rest): (Vec<_>, Vec<_>) =
                drained.into_iter().partition(|work| matches!(work, Work::KeepAlive { .. }));
            for work in heard.into_iter().chain(rest) {
                stopping |= matches!(work, Work::Stop);
                self.decide(work);
            }
            self.core.serve_waiters();
            self.hand_over();
        }
        self.finish();
    }

    /// What is in the queue, up to a bound; waits if there is nothing. `None`: nobody can ever ask again.
    fn drain(&mut self) -> Option<Vec<Work>> {
        let first = if self.core.needs_ticks() {
            match self.requests.recv_timeout(lease_clock::TICK) {
                Ok(work) => Some(work),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        } else {
            Some(self.requests.recv().ok()?)
        };
        let mut bytes = first.as_ref().map_or(0, Work::bytes);
        let mut drained = Vec::from_iter(first);
        while bytes < self.config.batch_bytes_max {
            match self.requests.try_recv() {
                Ok(work) => {
                    bytes += work.bytes();
                    drained.push(work);
                }
                Err(TryRecvError::Empty | TryRecvError::Disconnected) => break,
            }
        }
        self.reserve(bytes);
        Some(drained)
    }

    /// Makes sure that the log has room before anything is decided that would need it.
    fn reserve(&mut self, bytes: usize) {
        if bytes == 0 {
            return;
        }
        let refusal = self
            .log
            .reserve(self.core.batch_bytes() + bytes)
            .err()
            .map(|no_space| Refusal::new(Reason::NoSpace, no_space.to_string()).with("retry_after_ms", 1000));
        self.core.set_no_space(refusal);
    }

    fn decide(&mut self, work: Work) {
        if self.core.is_full(self.config.batch_bytes_max) {
            self.outbox.wait_below(ENTRIES_IN_FLIGHT_MAX);
            self.hand_over();
        }
        self.core.decide(work);
    }

    /// Gives the batch to the log if the log can take it, and answers that rest on no new fact to the outbox.
    fn hand_over(&mut self) {
        if let Some((index, answers)) = self.core.take_answers() {
            self.outbox.put(index, answers);
        }
        if self.outbox.in_flight() >= ENTRIES_IN_FLIGHT_MAX {
            return;
        }
        let Some((entry, index, answers)) = self.core.take_batch() else { return };
        self.outbox.put(index, answers);
        let (outbox, queue, failed) = (Arc::clone(&self.outbox), self.queue.clone(), self.failed.clone());
        self.log.append(entry, move |result| {
            outbox.advance(result.map_err(|error| error.to_string()));
            if let Some(failure) = outbox.failure() {
                failed.send_replace(Some(failure));
            }
            // If the sequencer is gone nobody waits for progress.
            let _ = queue.send(Work::Wake);
        });
    }

    /// Decides nothing more; writes and answers what was decided, and refuses the rest.
    fn finish(mut self) {
        self.core.hurry();
        self.outbox.wait_below(1);
        self.hand_over();
        self.outbox.wait_below(1);
        self.hand_over();
        while let Ok(work) = self.requests.try_recv() {
            refuse(work);
        }
    }
}

/// Tells the caller of a request that came too late.
fn refuse(work: Work) {
    match work {
        Work::Commit { reply, .. } => reply.send(Err(shutting_down())),
        Work::Resume { reply, .. } => drop(reply.send(Err(shutting_down()))),
        Work::KeepAlive { reply, .. } => drop(reply.send(Err(shutting_down()))),
        Work::Release { reply, .. } => drop(reply.send(Err(shutting_down()))),
        Work::Read(_) | Work::Wake | Work::Hurry | Work::Stop => {}
    }
}

/// Where a stream's answers come out.
pub type SessionAnswers = mpsc::UnboundedReceiver<SessionAnswer>;
