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

mod barriers;
mod core;
mod driver;
mod granted;
mod health;
mod lease_clock;
mod outbox;
mod reply;
#[cfg(test)]
mod tests;
mod waiters;

use std::convert::Infallible;
use std::sync::Arc;
use std::sync::mpsc::{SendError, Sender, channel};
use std::thread::JoinHandle;
use std::time::Duration;

use fencepost::log::v1::fact::Kind;
use fencepost::v1::{BranchHealth, ClusterRef, Header, KeepAliveRequest, LeaseRef};
use fencepost::{LogIndex, Lsn, Token};
use prost::Message as _;
use tokio::sync::{oneshot, watch};

pub use barriers::BarrierChanges;
pub use granted::{Granted, Readable, Resumed, Unread};
pub use reply::{CommitDone, CommitReply, Permit, Session, SessionAnswer};

use self::core::Core;
use self::driver::{Driver, refuse};
use self::health::Health;
use self::lease_clock::LeaseClock;
use self::outbox::Outbox;
use self::reply::{Answer, Budget};
use self::waiters::Waiter;
use crate::clock::Clock;
use crate::error::Refusal;
use crate::index::{Forgotten, Index};
use crate::log::Log;
use crate::metrics::Counters;
use crate::state::{Commit, Resume, State};

/// What a fact about a commit, in its frame, may have beyond the request: digest, time, number, framing; and for each
/// branch the oldest sequence that it keeps.
const COMMIT_EXTRA_BYTES: usize = 256;
const BRANCH_EXTRA_BYTES: usize = 48;

/// A release or another decision, and the grant that it makes possible, in their frames: names, ids and a reason, all bounded.
const GRANT_BYTES_MAX: usize = 8192;

/// The end of a barrier: 128 branches by their names, holders and places, and a reason.
pub const BARRIER_BYTES_MAX: usize = 64 << 10;

/// Commits that are decided without looking at the size of the entry in between.
const COMMITS_TOGETHER_MAX: usize = 256;

/// Bounds of the sequencer.
#[derive(Clone, Copy, Debug)]
pub struct SequencerConfig {
    /// Size at which an entry is closed although the log could not take it yet.
    pub batch_bytes_max: usize,
    /// The longest entry that the log takes.
    pub entry_bytes_max: usize,
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
    health: Health,
}

impl View {
    /// What was measured of the branch since the server started, if anything.
    pub fn health(&self, pipeline: &str, branch: &str) -> Option<&BranchHealth> {
        self.health.of(pipeline, branch)
    }

    /// For how long nothing was heard from the holder of this token.
    pub fn silent(&self, token: Token) -> Duration {
        self.leases.silent(token)
    }
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

/// How a rare request is decided, if it is not refused.
#[derive(Debug)]
pub struct Decision<T> {
    /// What becomes a fact; nothing if it was done before.
    pub fact: Option<Kind>,
    /// What the caller hears once the fact, and all that was seen, is durable.
    pub answer: T,
}

/// A rare request was decided.
#[derive(Debug)]
pub struct Decided<T> {
    /// What the decision answers.
    pub answer: T,
    /// Where its fact is in the log, if it made one.
    pub lsn: Option<Lsn>,
    /// The newest fact when the answer was decided.
    pub seen: Lsn,
}

/// Decides on the sequencer's thread and answers; without a core it refuses, because the server stops.
type DecideWork = Box<dyn FnOnce(Option<&mut Core>) + Send>;

/// Looks at the state on the sequencer's thread and makes the answer.
type ReadWork = Box<dyn FnOnce(&View) -> Answer + Send>;

/// A commit on its way to be decided, and where its answer goes. One whose shape was refused takes its turn too, so that
/// it poisons its session in order.
pub struct Submission {
    /// The commit, or why it is none.
    pub commit: Result<Commit, Refusal>,
    /// Takes the answer to the caller.
    pub reply: CommitReply,
}

impl Submission {
    fn bytes(&self) -> usize {
        let Ok(Commit { request, .. }) = &self.commit else { return 0 };
        request.encoded_len() + COMMIT_EXTRA_BYTES + request.branches.len() * BRANCH_EXTRA_BYTES
    }
}

/// One request in the queue.
enum Work {
    /// Commits that came together are decided together, so that they share one write.
    Commits(Vec<Submission>),
    Resume(Box<Waiter>),
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
    /// The index on disk has everything through this entry, so it need not be in memory any more.
    Forget(LogIndex, std::sync::mpsc::Sender<Forgotten>),
    /// Anything rare that becomes a fact of at most so many bytes.
    Decide {
        bytes: usize,
        decide: DecideWork,
    },
    /// There is a keepalive in the other queue.
    Nudge,
    /// Refuse those who wait for leases, and let nobody wait any more.
    Hurry,
    /// Decide what is queued, then end.
    Stop,
}

impl Work {
    /// Room it may need in an entry, at most.
    fn bytes(&self) -> usize {
        match self {
            Work::Commits(submissions) => submissions.iter().map(Submission::bytes).sum(),
            Work::Resume { .. } | Work::Release { .. } => GRANT_BYTES_MAX,
            Work::Decide { bytes, .. } => bytes + GRANT_BYTES_MAX,
            Work::KeepAlive { .. } | Work::Read(_) | Work::Forget(..) | Work::Nudge | Work::Hurry | Work::Stop => 0,
        }
    }
}

/// Sends requests to the sequencer. Cheap to clone.
#[derive(Clone)]
pub struct Sequencer {
    queue: Sender<Work>,
    /// Keepalives, which are counted before everything that came before them: a backlog must not expire leases.
    keepalives: Sender<Work>,
    shared: Arc<Shared>,
}

struct Shared {
    cluster_id: String,
    generation: u64,
    budget: Arc<Budget>,
    counters: Arc<Counters>,
    clock: Clock,
    failed: watch::Receiver<Option<Refusal>>,
    barriers: watch::Receiver<BarrierChanges>,
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
    /// Starts the thread on a state that has taken in everything in the log. Answers are delivered on the Tokio runtime
    /// that this is called in.
    pub fn start(
        state: State,
        index: Index,
        log: Arc<Log>,
        config: SequencerConfig,
        clock: Clock,
    ) -> std::io::Result<(Sequencer, SequencerThread)> {
        let (queue, requests) = channel();
        let (keepalives, kept) = channel();
        let (failed_sender, failed) = watch::channel(None);
        let counters = Arc::new(Counters::default());
        let last_index = log.last_index();
        let (cluster_id, generation) = (state.cluster_id().to_owned(), state.generation());
        let core = Core::new(state, index, last_index, clock.clone(), Arc::clone(&counters));
        let shared = Arc::new(Shared {
            cluster_id,
            generation,
            budget: Budget::new(config.in_flight_bytes_max),
            counters,
            clock,
            failed,
            barriers: core.barriers(),
        });
        let (outbox, ready) = Outbox::new(last_index);
        tokio::spawn(outbox::deliver(ready));
        let driver =
            Driver { core, outbox: Arc::new(outbox), log, config, requests, keepalives: kept, failed: failed_sender };
        let thread = std::thread::Builder::new().name("sequencer".to_owned()).spawn(move || driver.run())?;
        Ok((Sequencer { queue: queue.clone(), keepalives, shared }, SequencerThread { queue, thread }))
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

    /// Changes whenever a barrier may have changed: what it is then, a read tells.
    pub fn barriers(&self) -> watch::Receiver<BarrierChanges> {
        self.shared.barriers.clone()
    }

    /// Room for a request of this size; held until its answer is sent.
    pub fn permit(&self, bytes: usize) -> Result<Permit, Refusal> {
        self.shared.budget.acquire(bytes)
    }

    /// Commits, each for itself, in this order; the answers go where their replies say.
    pub fn commit(&self, mut submissions: Vec<Submission>) {
        while !submissions.is_empty() {
            let rest = submissions.split_off(submissions.len().min(COMMITS_TOGETHER_MAX));
            self.send(Work::Commits(std::mem::replace(&mut submissions, rest)));
        }
    }

    /// Commits and waits for the answer.
    pub async fn commit_once(&self, commit: Commit, permit: Permit) -> Result<CommitDone, Refusal> {
        let (reply, answer) = CommitReply::once(permit);
        self.commit(vec![Submission { commit: Ok(commit), reply }]);
        answered(answer).await
    }

    /// Takes a branch, waiting up to `wait` for a lease that can be claimed. A head that
    /// has to be read, for itself or for its scope, is told once when the request comes, and when its turn comes if another one
    /// has to be read by then.
    pub async fn resume(&self, resume: Resume, wait: Duration, readable: Readable) -> Result<Resumed, Refusal> {
        let deadline = self.shared.clock.now().plus(wait);
        self.ask(|reply| Work::Resume(Box::new(Waiter { resume, deadline, readable, arrived: None, reply }))).await
    }

    /// Says that holders are there.
    pub async fn keep_alive(&self, request: KeepAliveRequest) -> Result<KeptAlive, Refusal> {
        let (reply, answer) = oneshot::channel();
        match self.keepalives.send(Work::KeepAlive { request, reply }) {
            Ok(()) => self.send(Work::Nudge),
            Err(SendError(work)) => refuse(work),
        }
        answered(answer).await
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

    /// Lets go of recent history that the index on disk has, all through this entry. Blocks until that is done; what it
    /// frees, which may take a while, it frees on the caller's thread.
    pub fn forget_through(&self, index: LogIndex) {
        let (forgotten, dropped_here) = std::sync::mpsc::channel();
        self.send(Work::Forget(index, forgotten));
        // A sequencer that is gone has freed everything.
        drop(dropped_here.recv());
    }

    /// Decides something rare. `decide` looks at the state and the wall clock on the sequencer's thread; the fact that it
    /// makes has at most so many bytes beyond a few KiB of names, and the answer comes once all that it saw is durable.
    ///
    /// It is in the queue when this returns: several that are asked for one after the other are decided in that order.
    pub fn decide<T, D>(&self, bytes: usize, decide: D) -> impl Future<Output = Result<Decided<T>, Refusal>> + use<T, D>
    where
        T: Send + 'static,
        D: FnOnce(&State, u64) -> Result<Decision<T>, Refusal> + Send + 'static,
    {
        self.decide_as(None, bytes, decide)
    }

    /// The same for the holder of a branch. Unless it is refused, the holder of that token is heard, if it holds a lease; a refusal
    /// is counted for the branch.
    pub fn decide_as<T, D>(
        &self,
        holder: Option<LeaseRef>,
        bytes: usize,
        decide: D,
    ) -> impl Future<Output = Result<Decided<T>, Refusal>> + use<T, D>
    where
        T: Send + 'static,
        D: FnOnce(&State, u64) -> Result<Decision<T>, Refusal> + Send + 'static,
    {
        let (reply, answer) = oneshot::channel();
        let decide: DecideWork = Box::new(move |core| match core {
            Some(core) => core.decide_rare(holder, decide, reply),
            // A caller that is gone does not hear it.
            None => drop(reply.send(Err(core::shutting_down()))),
        });
        self.send(Work::Decide { bytes, decide });
        answered(answer)
    }

    /// Counts the refusal of what was decided about this branch and then looked up. Answers what the caller is told.
    pub async fn refuse(&self, holder: LeaseRef, refusal: Refusal) -> Refusal {
        let refused = self.decide_as(Some(holder), 0, |_, _| Err::<Decision<Infallible>, _>(refusal)).await;
        let Err(refusal) = refused;
        refusal
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
