//! The decisions of the sequencer, one request at a time, without threads, channels or a disk.

use std::sync::Arc;

use bytes::BytesMut;
use fencepost::log::v1::Fact;
use fencepost::log::v1::fact::Kind;
use fencepost::v1::{ClusterRef, KeepAliveRequest, LeaseRef, ResumeRequest};
use fencepost::{LogIndex, Lsn, Reason, Token};
use prost::Message as _;
use tokio::sync::{oneshot, watch};

use super::barriers::{BarrierChanges, may_change};
use super::health::Health;
use super::lease_clock::{LeaseClock, TICK};
use super::reply::{Answer, CommitDone};
use super::waiters::{Waiter, Waiters};
use super::{Decided, Decision, Granted, KeptAlive, Released, Resumed, Submission, Unread, View, Work};
use crate::clock::{Clock, Monotonic};
use crate::error::Refusal;
use crate::index::Index;
use crate::log::{Entry, EntryBuilder};
use crate::metrics::Counters;
use crate::state::{Branch, Commit, CommitVerdict, Grant, Pipeline, Resume, ResumeTiming, ResumeVerdict, State};

/// Facts per entry, well below the 65,536 that an LSN has room for.
const BATCH_FACTS_MAX: usize = 32_768;

/// Open barriers that a grant tells of.
const BARRIERS_TOLD_MAX: usize = 100;

pub(super) struct Core {
    view: View,
    waiters: Waiters,
    /// When those who wait are looked at again.
    waiters_due: Monotonic,
    clock: Clock,
    counters: Arc<Counters>,
    barriers: watch::Sender<BarrierChanges>,
    /// The newest entry that was begun.
    last_index: LogIndex,
    batch: Batch,
    /// Why nothing that needs room in the log is accepted just now.
    no_space: Option<Refusal>,
    is_stopping: bool,
}

/// The facts decided since the last entry, and the answers that rest on them.
pub(super) struct Batch {
    entry: EntryBuilder,
    answers: Vec<Answer>,
}

impl Batch {
    fn new(index: LogIndex) -> Batch {
        Batch { entry: EntryBuilder::new(index), answers: Vec::new() }
    }
}

impl Core {
    pub(super) fn new(state: State, index: Index, last_index: LogIndex, clock: Clock, counters: Arc<Counters>) -> Core {
        let leases = LeaseClock::new(clock.now(), state.grants().map(|grant| grant.token), state.counts().2);
        Core {
            view: View { state, index, leases, health: Health::default() },
            waiters: Waiters::default(),
            waiters_due: clock.now(),
            clock,
            counters,
            barriers: watch::Sender::default(),
            last_index,
            batch: Batch::new(last_index.next()),
            no_space: None,
            is_stopping: false,
        }
    }

    /// Whether the sequencer has to look at the clock although nobody asks.
    pub(super) fn needs_ticks(&self) -> bool {
        !self.view.leases.is_idle() || !self.waiters.is_empty() || self.view.state.has_deadlines()
    }

    /// Changes whenever a barrier may have changed.
    pub(super) fn barriers(&self) -> watch::Receiver<BarrierChanges> {
        self.barriers.subscribe()
    }

    /// Whether a barrier has to be given up because its deadline has passed.
    pub(super) fn is_overdue(&self) -> bool {
        self.view.state.overdue_barrier(self.clock.wall_ms()).is_some()
    }

    /// Whether the batch has to be written before more is decided.
    pub(super) fn is_full(&self, bytes_max: usize) -> bool {
        self.batch.entry.len_bytes() >= bytes_max || self.batch.entry.fact_count() >= BATCH_FACTS_MAX
    }

    /// Size of the batch so far.
    pub(super) fn batch_bytes(&self) -> usize {
        self.batch.entry.len_bytes()
    }

    /// Says whether there is room for what comes next.
    pub(super) fn set_no_space(&mut self, refusal: Option<Refusal>) {
        self.no_space = refusal;
    }

    /// Lets time pass. To be called before requests that came in meanwhile are decided.
    pub(super) fn look_at_clock(&mut self, disk_stalled: bool) {
        self.view.leases.look(self.clock.now(), disk_stalled);
    }

    /// Decides one request.
    pub(super) fn decide(&mut self, work: Work) {
        match work {
            Work::Commits(submissions) => submissions.into_iter().for_each(|submission| self.commit(submission)),
            Work::Resume(waiter) => self.resume(*waiter),
            Work::KeepAlive { request, reply } => self.keep_alive(&request, reply),
            Work::Release { cluster, lease, reply } => {
                let result = self.release(cluster.as_ref(), lease);
                self.answer(reply, result);
            }
            Work::Read(read) => {
                let answer = read(&self.view);
                self.batch.answers.push(answer);
            }
            Work::Forget(index, forgotten) => drop(forgotten.send(self.view.index.forget_through(index))),
            Work::Decide { decide, .. } => decide(Some(self)),
            Work::Hurry => self.hurry(),
            Work::Nudge | Work::Stop => {}
        }
    }

    /// Those who wait for a branch, to be decided again. Once a tick, however much there is to do: a release serves those
    /// who waited for it by itself.
    pub(super) fn due_waiters(&mut self) -> Vec<Waiter> {
        let now = self.clock.now();
        if now < self.waiters_due {
            return Vec::new();
        }
        self.waiters_due = now.plus(TICK);
        self.waiters.take_all().collect()
    }

    /// The answers that rest on no new fact, with the entry that they must wait for.
    pub(super) fn take_answers(&mut self) -> Option<(LogIndex, Vec<Answer>)> {
        let is_ready = self.batch.entry.fact_count() == 0 && !self.batch.answers.is_empty();
        is_ready.then(|| (self.last_index, std::mem::take(&mut self.batch.answers)))
    }

    /// The batch as an entry of the log, if it has any facts.
    pub(super) fn take_batch(&mut self) -> Option<(Entry, LogIndex, Vec<Answer>)> {
        if self.batch.entry.fact_count() == 0 {
            return None;
        }
        let based_on = self.last_index;
        self.last_index = based_on.next();
        let batch = std::mem::replace(&mut self.batch, Batch::new(self.last_index.next()));
        Some((batch.entry.finish(based_on, 0), self.last_index, batch.answers))
    }

    /// Everybody who waits for a lease is told that the server stops, now and from now on.
    pub(super) fn hurry(&mut self) {
        self.is_stopping = true;
        for waiter in self.waiters.take_all() {
            self.answer(waiter.reply, Err(shutting_down()));
        }
    }

    fn commit(&mut self, Submission { commit, reply }: Submission) {
        let result = reply.check_session().and(commit).and_then(|commit| self.judge_commit(commit));
        match &result {
            Ok(done) if !done.already => self.counters.commit(),
            Ok(_) => {}
            Err(refusal) => {
                self.counters.refusal(refusal.reason);
                self.view.health.refused_commit(&self.view.state, refusal);
                reply.poison_session();
            }
        }
        self.batch.answers.push(Answer::Commit(reply, result));
    }

    fn judge_commit(&mut self, commit: Commit) -> Result<CommitDone, Refusal> {
        self.view.health.asks(&commit.request);
        match self.view.state.evaluate_commit(commit, self.clock.wall_ms())? {
            CommitVerdict::AlreadyApplied(lsn) => Ok(CommitDone { lsn, already: true, seen: self.seen() }),
            CommitVerdict::Apply(committed) => {
                self.check_space()?;
                for branch in &committed.branches {
                    self.view.leases.hear(Token::from_u64(branch.token));
                }
                let lsn = self.record(Kind::Committed(committed));
                Ok(CommitDone { lsn, already: false, seen: lsn })
            }
        }
    }

    /// Decides a request for a branch; one that came just now after those who wait for the branch already.
    fn resume(&mut self, mut waiter: Waiter) {
        if waiter.arrived.is_none() {
            let arrived = waiter.readable.arrived.unwrap_or_else(|| self.seen());
            waiter.arrived = Some(arrived);
            let request = &waiter.resume.request;
            match self.check_head(&waiter) {
                Ok(Some(unread)) if waiter.readable.is_first(unread) => {
                    return self.answer(waiter.reply, Ok(Resumed::ReadFirst { unread, arrived }));
                }
                // Another head than the one that was read is read when its turn has come, after who holds the branch.
                Ok(_) => {}
                Err(refusal) => return self.answer_resume(waiter, Err(refusal)),
            }
            self.serve(&request.pipeline.clone(), &request.branch.clone());
        }
        self.decide_resume(waiter);
    }

    /// What has to be read before the branch can be granted. Refuses a head of another scope than the request's.
    fn check_head(&self, waiter: &Waiter) -> Result<Option<Unread>, Refusal> {
        let (state, request) = (&self.view.state, &waiter.resume.request);
        state.check_cluster(request.cluster.as_ref())?;
        state.check_ready(&request.pipeline)?;
        let branch = state.branch(&request.pipeline, &request.branch);
        branch.map_or(Ok(None), |branch| waiter.readable.check(request, branch))
    }

    fn answer_resume(&mut self, waiter: Waiter, result: Result<Resumed, Refusal>) {
        if let Err(refusal) = &result {
            let ResumeRequest { pipeline, branch, .. } = &waiter.resume.request;
            self.view.health.refused(&self.view.state, pipeline, branch, refusal.reason);
        }
        self.answer(waiter.reply, result);
    }

    /// Decides anew for all who wait for a branch. At most one of them is granted it: the others then wait for that one.
    fn serve(&mut self, pipeline: &str, branch: &str) {
        for waiter in self.waiters.take(pipeline, branch) {
            self.decide_resume(waiter);
        }
    }

    fn decide_resume(&mut self, waiter: Waiter) {
        if waiter.reply.is_closed() {
            return;
        }
        let request = &waiter.resume.request;
        let present = self.view.state.branch(&request.pipeline, &request.branch).and_then(Branch::lease);
        let present = present.map(|grant| grant.token);
        let silent = present.map_or_else(Default::default, |token| self.view.leases.silent(token));
        let arrived = waiter.arrived.unwrap_or_else(|| self.seen());
        let timing = ResumeTiming { silent, arrived };
        let result = match self.view.state.evaluate_resume(&waiter.resume, timing) {
            Ok(ResumeVerdict::Held(_)) if self.clock.now() < waiter.deadline && !self.is_stopping => {
                return self.waiters.add(waiter);
            }
            Ok(ResumeVerdict::Held(_)) if self.clock.now() < waiter.deadline => Err(shutting_down()),
            Ok(ResumeVerdict::Held(remaining)) => Err(self.view.state.lease_held(&waiter.resume, remaining)),
            Ok(ResumeVerdict::Repeat(token)) => {
                self.view.leases.hear(token);
                Ok(self.granted(&waiter.resume, token))
            }
            Ok(ResumeVerdict::Grant(granted)) => self.check_head(&waiter).and_then(|unread| {
                if let Some(unread) = unread {
                    return Ok(Resumed::ReadFirst { unread, arrived });
                }
                self.check_space()?;
                let token = Token::from_u64(granted.token);
                if let Some(present) = present {
                    self.view.leases.forget(present);
                }
                self.view.leases.hear(token);
                self.counters.grant();
                self.record(Kind::LeaseGranted(*granted));
                Ok(self.granted(&waiter.resume, token))
            }),
            Err(refusal) => Err(refusal),
        };
        self.answer_resume(waiter, result);
    }

    fn granted(&self, resume: &Resume, token: Token) -> Resumed {
        let ResumeRequest { pipeline: of, branch: name, .. } = &resume.request;
        let branch = self.view.state.branch(of, name);
        let grant = branch.and_then(Branch::lease);
        let pipeline = self.view.state.pipeline(of);
        let awaited = pipeline
            .into_iter()
            .flat_map(|it| it.barriers_of(name).map(|(name, open)| open.outline(of, name)))
            .take(BARRIERS_TOLD_MAX);
        Resumed::Granted(Box::new(Granted {
            token,
            ttl: grant.map(Grant::ttl).unwrap_or_default(),
            lsn: grant.map(|grant| grant.lsn).unwrap_or_default(),
            head: branch.and_then(Branch::head),
            staged: branch.and_then(Branch::staged).cloned(),
            barriers: awaited.collect(),
            seen: self.seen(),
        }))
    }

    fn keep_alive(&mut self, request: &KeepAliveRequest, reply: oneshot::Sender<Result<KeptAlive, Refusal>>) {
        let result = self.view.state.check_cluster(request.cluster.as_ref()).map(|()| {
            let View { state, leases, .. } = &mut self.view;
            let kept = request.leases.iter().map(|lease| {
                let grant = state.check_lease(lease)?;
                leases.hear(grant.token);
                self.counters.keepalive();
                Ok(grant.ttl())
            });
            KeptAlive { leases: kept.collect(), seen: state.applied() }
        });
        self.answer(reply, result);
    }

    fn release(&mut self, cluster: Option<&ClusterRef>, lease: LeaseRef) -> Result<Released, Refusal> {
        let token = Token::from_u64(lease.token);
        if let Some(released) = self.view.state.evaluate_release(cluster, lease)? {
            self.check_space()?;
            self.view.leases.forget(token);
            let (pipeline, branch) = (released.pipeline.clone(), released.branch.clone());
            self.record(Kind::LeaseReleased(released));
            self.serve(&pipeline, &branch);
        }
        Ok(Released { seen: self.seen() })
    }

    /// Decides something rare, and answers. Unless it is refused the holder, if there is one, is there: a repeat is a sign of
    /// life, too.
    pub(super) fn decide_rare<T: Send + 'static>(
        &mut self,
        holder: Option<LeaseRef>,
        decide: impl FnOnce(&State, u64) -> Result<Decision<T>, Refusal>,
        reply: oneshot::Sender<Result<Decided<T>, Refusal>>,
    ) {
        let decision = decide(&self.view.state, self.clock.wall_ms());
        let result = decision.and_then(|Decision { fact, answer }| {
            let is_commit = matches!(fact, Some(Kind::Committed(_)));
            let lsn = fact.map(|kind| self.check_space().map(|()| self.record_rare(kind))).transpose()?;
            if is_commit {
                self.counters.commit();
            }
            Ok(Decided { answer, lsn, seen: self.seen() })
        });
        match (holder, &result) {
            (Some(holder), Ok(_)) => self.view.leases.hear_present(Token::from_u64(holder.token)),
            (Some(LeaseRef { pipeline, branch, .. }), Err(refusal)) => {
                self.view.health.refused(&self.view.state, &pipeline, &branch, refusal.reason);
            }
            (None, _) => {}
        }
        self.answer(reply, result);
    }

    /// Gives up the barrier whose deadline passed first. Time may do this, because an abort moves no head. `false`: nothing
    /// was done, because there was no need or no room.
    pub(super) fn give_up_overdue(&mut self) -> bool {
        let overdue = self.view.state.evaluate_overdue(self.clock.wall_ms()).filter(|_| self.no_space.is_none());
        overdue.map(|aborted| self.record(Kind::BarrierAborted(aborted))).is_some()
    }

    /// A rewind, and a fence of a pipeline, end leases, so those who wait for the branches have waited enough.
    fn record_rare(&mut self, kind: Kind) -> Lsn {
        let View { state, leases, .. } = &mut self.view;
        match &kind {
            Kind::Rewound(rewound) => {
                leases.forget(Token::from_u64(rewound.previous_token));
                let (pipeline, branch) = (rewound.pipeline.clone(), rewound.branch.clone());
                let lsn = self.record(kind);
                self.serve(&pipeline, &branch);
                lsn
            }
            Kind::GroupFenced(fenced) => {
                let held = state.pipeline(&fenced.pipeline).into_iter().flat_map(Pipeline::leases);
                held.for_each(|(_, grant)| leases.forget(grant.token));
                // They may be many, and each needs room for a grant of its own: the driver sees to that, right after this.
                self.waiters_due = self.clock.now();
                self.record(kind)
            }
            _ => self.record(kind),
        }
    }

    /// Takes a fact into the state and into the batch.
    fn record(&mut self, kind: Kind) -> Lsn {
        let fact = Fact { at_ms: self.clock.wall_ms(), kind: Some(kind) };
        let ordinal = u16::try_from(self.batch.entry.fact_count()).expect("a full batch is closed before it overflows");
        let lsn = Lsn::new(self.last_index.next(), ordinal);
        if let Some(pipeline) = fact.pipeline().filter(|_| may_change(&self.view.state, &fact)) {
            self.barriers.send_modify(|changes| changes.note(pipeline, lsn));
        }
        self.view.state.apply(lsn, &fact).expect("a fact that was just judged on this state fits it");
        self.view.index.feed(lsn, &fact);
        if let Some(kind) = &fact.kind {
            self.counters.fact(kind);
            self.view.health.note(kind, || self.clock.now());
        }
        let encode = |buffer: &mut BytesMut| fact.encode(buffer).expect("a growing buffer has room for every fact");
        self.batch.entry.push_with(fact.encoded_len(), encode);
        lsn
    }

    fn answer<T: Send + 'static>(&mut self, reply: oneshot::Sender<Result<T, Refusal>>, result: Result<T, Refusal>) {
        if let Err(refusal) = &result {
            self.counters.refusal(refusal.reason);
        }
        self.batch.answers.push(Answer::once(reply, result));
    }

    fn check_space(&self) -> Result<(), Refusal> {
        self.no_space.clone().map_or(Ok(()), Err)
    }

    pub(super) fn seen(&self) -> Lsn {
        self.view.state.applied()
    }
}

pub(super) fn shutting_down() -> Refusal {
    Refusal::new(Reason::ShuttingDown, "the server is stopping and did nothing of this request: try again")
        .with("retry_after_ms", 200)
}
