//! What the sequencer promises beyond the rules of the state: when answers leave, whom time favours, and what callers
//! hear when the disk fails, fills up, or the server stops.

mod scope;

use std::path::Path;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fencepost::v1::{
    ArriveRequest, BranchCommit, Checkpoint, CommitRequest, KeepAliveRequest, LeaseRef, OnMissing, OpenBarrierRequest,
    ResumeRequest, StageRequest,
};
use fencepost::{LogIndex, Reason, Token};
use tokio::sync::{mpsc, oneshot};

use super::core::Core;
use super::lease_clock::LeaseClock;
use super::outbox::Outbox;
use super::reply::{Answer, Budget};
use super::*;
use crate::clock::random_id;
use crate::disk::sim::{Lasting, Operation, SimDisk};
use crate::log::LogConfig;
use crate::state::{ArriveVerdict, Digest, OpenVerdict, Stage, StageVerdict};

const PIPELINE: &str = "prod/orders";
const TTL: Duration = Duration::from_secs(30);
const SEGMENT_BYTES: u64 = 256 << 10;

fn resume(branch: &str, holder: &str) -> Resume {
    Resume {
        request: ResumeRequest {
            pipeline: PIPELINE.to_owned(),
            branch: branch.to_owned(),
            holder: holder.to_owned(),
            request_id: holder.to_owned(),
            ttl_ms: TTL.as_millis() as u64,
            on_missing: OnMissing::StartFresh.into(),
            ..ResumeRequest::default()
        },
    }
}

fn commit(id: &str, branch: &str, token: Token, sequence: u64) -> Commit {
    let checkpoint = Checkpoint { state: Bytes::from_static(b"state"), ..Checkpoint::default() };
    let branch = BranchCommit {
        branch: branch.to_owned(),
        token: token.as_u64(),
        sequence,
        checkpoint: Some(checkpoint),
        ..BranchCommit::default()
    };
    let request = CommitRequest {
        pipeline: PIPELINE.to_owned(),
        commit_id: id.to_owned(),
        branches: vec![branch],
        ..CommitRequest::default()
    };
    Commit { request, digest: Digest::default(), payload_fault: None }
}

fn lease(branch: &str, token: Token) -> LeaseRef {
    LeaseRef { pipeline: PIPELINE.to_owned(), branch: branch.to_owned(), token: token.as_u64() }
}

fn granted(answer: &mut oneshot::Receiver<Result<Resumed, Refusal>>) -> Granted {
    match answer.try_recv().unwrap().unwrap() {
        Resumed::Granted(granted) => *granted,
        first @ Resumed::ReadFirst { .. } => panic!("{first:?}"),
    }
}

/// The decisions alone, with a clock that the test moves.
struct Deciding {
    core: Core,
    clock: Clock,
}

impl Deciding {
    fn new() -> Deciding {
        let clock = Clock::manual();
        let core = Core::new(State::default(), Index::default(), LogIndex::ZERO, clock.clone(), Arc::default());
        Deciding { core, clock }
    }

    fn ask_for(&mut self, branch: &str, holder: &str, wait: Duration) -> oneshot::Receiver<Result<Resumed, Refusal>> {
        let (reply, answer) = oneshot::channel();
        let deadline = self.clock.now().plus(wait);
        self.core.decide(Work::Resume(Box::new(Waiter {
            resume: resume(branch, holder),
            deadline,
            readable: Readable::default(),
            arrived: None,
            reply,
        })));
        self.settle();
        answer
    }

    /// A holder that comes back, having been told to read the head first when this was the newest fact.
    fn come_back(&mut self, request_id: &str, arrived: Option<Lsn>) -> oneshot::Receiver<Result<Resumed, Refusal>> {
        let (reply, answer) = oneshot::channel();
        let mut resume = resume("jfk", "a");
        request_id.clone_into(&mut resume.request.request_id);
        resume.request.set_takeover(fencepost::v1::Takeover::SameHolder);
        let (deadline, readable) = (self.clock.now(), Readable { arrived, ..Readable::default() });
        self.core.decide(Work::Resume(Box::new(Waiter { resume, deadline, readable, arrived: None, reply })));
        self.settle();
        answer
    }

    /// Lets time pass in small steps, as a server that is not stalled sees it.
    fn pass(&mut self, duration: Duration) {
        let step = lease_clock::TICK;
        for _ in 0..duration.as_millis() / step.as_millis() {
            self.clock.advance(step);
            self.core.look_at_clock(false);
            for waiter in self.core.due_waiters() {
                self.core.decide(Work::Resume(Box::new(waiter)));
            }
        }
        self.settle();
    }

    /// Delivers every answer, as if all had become durable.
    fn settle(&mut self) {
        let written = self.core.take_batch().map(|(_, _, answers)| answers);
        let answers = written.into_iter().chain(self.core.take_answers().map(|(_, answers)| answers));
        for answer in answers.flatten() {
            answer.deliver(None);
        }
    }
}

#[test]
fn a_holder_that_had_to_read_the_head_first_does_not_take_its_rival_for_its_ghost() {
    let mut deciding = Deciding::new();
    let first = granted(&mut deciding.ask_for("jfk", "a", Duration::ZERO));
    let asked_before = Lsn::ZERO;
    let refused = deciding.come_back("second", Some(asked_before)).try_recv().unwrap().unwrap_err();
    assert_eq!(refused.reason, Reason::LeaseHeld, "that one was granted after it had asked");
    let second = granted(&mut deciding.come_back("third", Some(first.seen)));
    assert!(second.token > first.token, "and that one was there");
}

#[test]
fn a_waiter_gets_the_branch_when_the_holder_was_silent_for_its_ttl_and_not_before() {
    let mut deciding = Deciding::new();
    let first = granted(&mut deciding.ask_for("jfk", "a", Duration::ZERO));
    let mut waiter = deciding.ask_for("jfk", "b", TTL * 2);
    deciding.pass(TTL - Duration::from_secs(1));
    assert!(waiter.try_recv().is_err(), "the holder may still be there");
    deciding.pass(Duration::from_secs(2));
    let granted = granted(&mut waiter);
    assert!(granted.token > first.token);
    assert!(granted.lsn > first.lsn);
}

#[test]
fn a_waiter_that_went_away_is_not_granted_the_branch() {
    let mut deciding = Deciding::new();
    drop(deciding.ask_for("jfk", "a", Duration::ZERO));
    drop(deciding.ask_for("jfk", "gone", TTL * 2));
    let mut waiter = deciding.ask_for("jfk", "b", TTL * 2);
    deciding.pass(TTL + Duration::from_secs(1));
    let granted = granted(&mut waiter);
    assert_eq!(granted.token.epoch(), 2, "nobody was granted the branch in between");
}

#[test]
fn a_release_hands_the_branch_to_the_first_who_waits_at_once() {
    let mut deciding = Deciding::new();
    let first = granted(&mut deciding.ask_for("jfk", "a", Duration::ZERO));
    let (mut b, mut c) = (deciding.ask_for("jfk", "b", TTL), deciding.ask_for("jfk", "c", TTL));
    let (reply, _released) = oneshot::channel();
    deciding.core.decide(Work::Release { cluster: None, lease: lease("jfk", first.token), reply });
    deciding.settle();
    assert!(b.try_recv().unwrap().is_ok());
    assert!(c.try_recv().is_err(), "one branch, one holder");
}

#[test]
fn a_waiter_is_refused_at_its_deadline_and_told_who_holds_the_branch() {
    let mut deciding = Deciding::new();
    drop(deciding.ask_for("jfk", "a", Duration::ZERO));
    let mut waiter = deciding.ask_for("jfk", "b", Duration::from_secs(5));
    deciding.pass(Duration::from_secs(6));
    let refusal = waiter.try_recv().unwrap().unwrap_err();
    assert_eq!((refusal.reason, refusal.detail("holder")), (Reason::LeaseHeld, Some("a")));
}

#[test]
fn keepalives_and_commits_both_keep_a_lease_alive() {
    let mut deciding = Deciding::new();
    let holder = granted(&mut deciding.ask_for("jfk", "a", Duration::ZERO));
    let mut waiter = deciding.ask_for("jfk", "b", TTL * 10);
    deciding.pass(TTL - Duration::from_secs(1));
    let (reply, mut kept) = oneshot::channel();
    let request = KeepAliveRequest { cluster: None, leases: vec![lease("jfk", holder.token)] };
    deciding.core.decide(Work::KeepAlive { request, reply });
    deciding.pass(TTL - Duration::from_secs(1));
    assert_eq!(kept.try_recv().unwrap().unwrap().leases, [Ok(TTL)]);
    assert!(waiter.try_recv().is_err());
    let budget = Budget::new(1 << 20);
    let (reply, _answer) = CommitReply::once(budget.acquire(1).unwrap());
    let commit = Ok(commit("1", "jfk", holder.token, 1));
    deciding.core.decide(Work::Commits(vec![Submission { commit, reply }]));
    deciding.pass(TTL - Duration::from_secs(1));
    assert!(waiter.try_recv().is_err());
    deciding.pass(Duration::from_secs(2));
    assert!(waiter.try_recv().unwrap().is_ok());
}

#[test]
fn nobody_waits_on_a_server_that_is_stopping() {
    let mut deciding = Deciding::new();
    drop(deciding.ask_for("jfk", "a", Duration::ZERO));
    let mut early = deciding.ask_for("jfk", "b", TTL);
    deciding.core.decide(Work::Hurry);
    let mut late = deciding.ask_for("jfk", "c", TTL);
    assert_eq!(early.try_recv().unwrap().unwrap_err().reason, Reason::ShuttingDown);
    assert_eq!(late.try_recv().unwrap().unwrap_err().reason, Reason::ShuttingDown);
}

#[test]
fn lease_time_stands_still_while_the_server_or_its_disk_is_stalled() {
    let (clock, token) = (Clock::manual(), Token::from_u64(1));
    let mut leases = LeaseClock::new(clock.now(), [token].into_iter(), 1);
    let mut look_after = |duration, disk_stalled| {
        clock.advance(duration);
        leases.look(clock.now(), disk_stalled);
        leases.silent(token)
    };
    assert_eq!(look_after(Duration::from_millis(300), false), Duration::from_millis(300));
    assert_eq!(look_after(Duration::from_millis(300), true), Duration::from_millis(300));
    let after_a_freeze = look_after(Duration::from_hours(1), false);
    assert!(after_a_freeze < Duration::from_millis(500), "{after_a_freeze:?}");
}

#[test]
fn an_answer_waits_for_the_newest_entry_that_it_could_have_seen() {
    let (outbox, mut ready) = Outbox::new(LogIndex(7));
    let put = |index| {
        let (reply, answer) = oneshot::channel();
        outbox.put(LogIndex(index), vec![Answer::once(reply, Ok(index))]);
        answer
    };
    let mut deliver = || {
        while let Ok(ready) = ready.try_recv() {
            ready.deliver();
        }
    };
    let (mut seen, mut eighth, mut refused_after_it, mut ninth) = (put(7), put(8), put(8), put(9));
    deliver();
    assert_eq!(seen.try_recv().unwrap(), Ok(7));
    assert!(eighth.try_recv().is_err());
    outbox.advance(Ok(LogIndex(8)));
    deliver();
    assert_eq!((eighth.try_recv().unwrap(), refused_after_it.try_recv().unwrap()), (Ok(8), Ok(8)));
    assert!(ninth.try_recv().is_err());
    outbox.advance(Err("the disk is gone".to_owned()));
    let mut later = put(9);
    deliver();
    assert_eq!(ninth.try_recv().unwrap().unwrap_err().reason, Reason::LogFailed);
    assert_eq!(later.try_recv().unwrap().unwrap_err().reason, Reason::LogFailed, "and so for ever");
}

#[test]
fn requests_in_hand_are_bounded_and_room_comes_back_with_the_answer() {
    let budget = Budget::new(100);
    let permit = budget.acquire(60).unwrap();
    assert_eq!(budget.acquire(60).unwrap_err().reason, Reason::RateLimited);
    drop(permit);
    budget.acquire(100).unwrap();
}

#[test]
fn a_reply_that_is_dropped_says_that_the_outcome_is_unknown() {
    let budget = Budget::new(100);
    let (reply, mut answer) = CommitReply::once(budget.acquire(1).unwrap());
    drop(reply);
    assert_eq!(answer.try_recv().unwrap().unwrap_err().reason, Reason::LogFailed);
    let (answers, mut received) = mpsc::unbounded_channel();
    drop(CommitReply::stream(answers, Session::new(3), 9, None));
    let answer = received.try_recv().unwrap();
    assert_eq!((answer.session, answer.number), (3, 9));
    assert_eq!(answer.result.unwrap_err().reason, Reason::LogFailed);
}

/// The whole sequencer over a real log on a simulated disk.
struct Running {
    disk: SimDisk,
    sequencer: Sequencer,
    thread: Option<SequencerThread>,
    log: Arc<Log>,
}

impl Running {
    fn start() -> Running {
        let disk = SimDisk::new();
        let config = LogConfig { segment_bytes: SEGMENT_BYTES, entry_bytes_max: 64 << 10, write_bytes_max: 32 << 10 };
        let clock = Clock::real();
        let log = Log::open(Arc::new(disk.clone()), Path::new("/log"), config, clock.clone(), random_id());
        let log = Arc::new(log.expect("a new log"));
        let config =
            SequencerConfig { batch_bytes_max: 32 << 10, entry_bytes_max: 64 << 10, in_flight_bytes_max: 1 << 20 };
        let started = Sequencer::start(State::default(), Index::default(), Arc::clone(&log), config, clock);
        let (sequencer, thread) = started.expect("a thread");
        Running { disk, sequencer, thread: Some(thread), log }
    }

    async fn grant(&self, branch: &str) -> Token {
        let resumed = self.sequencer.resume(resume(branch, "a"), Duration::ZERO, Readable::default()).await;
        let Ok(Resumed::Granted(granted)) = resumed else { panic!("a free branch: {resumed:?}") };
        granted.token
    }

    async fn commit(&self, commit: Commit) -> Result<CommitDone, Refusal> {
        self.sequencer.commit_once(commit, self.sequencer.permit(1).unwrap()).await
    }
}

impl Drop for Running {
    fn drop(&mut self) {
        if let Some(thread) = self.thread.take() {
            thread.stop();
        }
        self.log.close();
    }
}

#[tokio::test]
async fn a_commit_that_was_answered_is_in_the_log() {
    let running = Running::start();
    let token = running.grant("jfk").await;
    let done = running.commit(commit("1", "jfk", token, 1)).await.unwrap();
    running.log.read(done.lsn).expect("it is durable");
    let refusal = running.commit(commit("2", "jfk", token, 1)).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::HeadMismatch);
    let (head, seen) = running
        .sequencer
        .read(|view| {
            Ok(view.state.branch(PIPELINE, "jfk").and_then(super::super::state::Branch::head).map(|head| head.sequence))
        })
        .await
        .unwrap();
    assert_eq!((head, seen), (Some(1), done.lsn));
}

#[tokio::test]
async fn when_the_disk_fails_everybody_hears_unknown_and_nothing_is_tried_again() {
    let running = Running::start();
    let token = running.grant("jfk").await;
    running.disk.fail(Operation::Sync, 1, Lasting::Once, std::io::ErrorKind::Other);
    let refusal = running.commit(commit("1", "jfk", token, 1)).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::LogFailed);
    let mut failed = running.sequencer.failed();
    failed.wait_for(Option::is_some).await.expect("the server is told");
    // The disk would work again, but nobody knows what is on it now. Reads could show what is not there.
    running.disk.heal();
    assert_eq!(running.commit(commit("2", "jfk", token, 1)).await.unwrap_err().reason, Reason::LogFailed);
    assert_eq!(running.sequencer.read(|_| Ok(())).await.unwrap_err().reason, Reason::LogFailed);
    let request = KeepAliveRequest { cluster: None, leases: vec![lease("jfk", token)] };
    let kept = running.sequencer.keep_alive(request).await;
    assert_eq!(kept.unwrap_err().reason, Reason::LogFailed, "a server that cannot write keeps no lease alive");
}

#[tokio::test]
async fn a_full_disk_refuses_commits_before_anything_is_torn_and_goes_on_reading() {
    let running = Running::start();
    let token = running.grant("jfk").await;
    let given_back = running.grant("lax").await;
    // Two segments were prepared; there is no room for a third.
    running.disk.set_capacity(Some(2 * SEGMENT_BYTES + (64 << 10)));
    let mut sequence = 0;
    let refusal = loop {
        let mut next = commit(&format!("{sequence}"), "jfk", token, sequence + 1);
        next.request.branches[0].checkpoint.as_mut().unwrap().state = Bytes::from(vec![7; 16 << 10]);
        match running.commit(next).await {
            Ok(_) => sequence += 1,
            Err(refusal) => break refusal,
        }
    };
    assert_eq!(refusal.reason, Reason::NoSpace, "{refusal}");
    assert!(sequence > 10, "what was prepared was used first");
    let request = KeepAliveRequest { cluster: None, leases: vec![lease("jfk", token)] };
    assert_eq!(running.sequencer.keep_alive(request).await.unwrap().leases, [Ok(TTL)]);
    // To the last byte that commits may have. A release still finds room.
    while running.commit(commit(&format!("{sequence}"), "jfk", token, sequence + 1)).await.is_ok() {
        sequence += 1;
    }
    running.sequencer.release(None, lease("lax", given_back)).await.unwrap();
    let refusal = running.commit(commit("none", "jfk", token, sequence + 1)).await.unwrap_err();
    assert_eq!(refusal.reason, Reason::NoSpace, "{refusal}");
    running.disk.set_capacity(None);
    // It recovers by itself; how soon is the preparer's affair.
    while running.commit(commit("last", "jfk", token, sequence + 1)).await.is_err() {
        tokio::task::yield_now().await;
    }
    assert!(running.log.status().failure.is_none());
}

#[tokio::test]
async fn a_stopped_sequencer_answers_what_it_took_and_refuses_the_rest() {
    let mut running = Running::start();
    let token = running.grant("jfk").await;
    let (reply, answer) = CommitReply::once(running.sequencer.permit(1).unwrap());
    running.sequencer.commit(vec![Submission { commit: Ok(commit("1", "jfk", token, 1)), reply }]);
    running.thread.take().unwrap().stop();
    assert!(answer.await.unwrap().is_ok());
    let late = running.commit(commit("2", "jfk", token, 2)).await.unwrap_err();
    assert_eq!(late.reason, Reason::ShuttingDown);
}

#[tokio::test]
async fn after_a_refusal_nothing_of_its_session_is_applied_and_other_sessions_go_on() {
    let running = Running::start();
    let (jfk, ewr) = (running.grant("jfk").await, running.grant("ewr").await);
    let (answers, mut received) = mpsc::unbounded_channel();
    let (first, second) = (Session::new(1), Session::new(2));
    let send = |session: &Arc<Session>, number, commit| {
        let reply = CommitReply::stream(answers.clone(), Arc::clone(session), number, None);
        running.sequencer.commit(vec![Submission { commit, reply }]);
    };
    send(&first, 1, Ok(commit("1", "jfk", jfk, 1)));
    send(&first, 2, Err(Refusal::new(Reason::InvalidField, "malformed")));
    send(&second, 1, Ok(commit("2", "ewr", ewr, 1)));
    send(&first, 3, Ok(commit("3", "jfk", jfk, 2)));
    let mut reasons = Vec::new();
    for _ in 0..4 {
        let answer = received.recv().await.unwrap();
        reasons.push((answer.session, answer.number, answer.result.err().map(|refusal| refusal.reason)));
    }
    reasons.sort_by_key(|(session, number, _)| (*session, *number));
    let poisoned = Some(Reason::SessionPoisoned);
    assert_eq!(reasons, [(1, 1, None), (1, 2, Some(Reason::InvalidField)), (1, 3, poisoned), (2, 1, None)]);
}

fn open_barrier(name: &str, participants: &[&str], timeout: Duration) -> OpenBarrierRequest {
    OpenBarrierRequest {
        pipeline: PIPELINE.to_owned(),
        name: name.to_owned(),
        participants: participants.iter().map(|it| (*it).to_owned()).collect(),
        timeout_ms: timeout.as_millis() as u64,
        ..OpenBarrierRequest::default()
    }
}

fn opened(state: &State, now_ms: u64, request: &OpenBarrierRequest) -> Result<Decision<()>, Refusal> {
    match state.evaluate_open_barrier(request, now_ms)? {
        OpenVerdict::Open(opened) => Ok(Decision { fact: Some(Kind::BarrierOpened(opened)), answer: () }),
        verdict => panic!("{verdict:?}"),
    }
}

impl Deciding {
    fn decide(
        &mut self,
        holder: Option<LeaseRef>,
        decide: impl FnOnce(&State, u64) -> Result<Decision<()>, Refusal>,
    ) -> Result<Decided<()>, Refusal> {
        let (reply, mut answer) = oneshot::channel();
        self.core.decide_rare(holder, decide, reply);
        self.settle();
        answer.try_recv().unwrap()
    }

    fn stage(&mut self, branch: &str, token: Token) {
        let request = StageRequest {
            pipeline: PIPELINE.to_owned(),
            branch: branch.to_owned(),
            token: token.as_u64(),
            sequence: 1,
            stage_id: "tx".to_owned(),
            checkpoint: Some(Checkpoint::default()),
            ..StageRequest::default()
        };
        let stage = Stage { request, digest: Digest::default(), payload_fault: None };
        let holder = Some(lease(branch, token));
        let staged = self.decide(holder, |state, now_ms| match state.evaluate_stage(stage, now_ms)? {
            StageVerdict::Stage(staged) => Ok(Decision { fact: Some(Kind::Staged(*staged)), answer: () }),
            StageVerdict::AlreadyStaged(_) => Ok(Decision { fact: None, answer: () }),
        });
        staged.unwrap();
    }

    fn arrive(&mut self, barrier: &str, branch: &str, token: Token) -> bool {
        self.try_arrive(barrier, branch, token).unwrap()
    }

    /// Whether the barrier is complete with this arrival.
    fn try_arrive(&mut self, barrier: &str, branch: &str, token: Token) -> Result<bool, Refusal> {
        let request = ArriveRequest {
            pipeline: PIPELINE.to_owned(),
            barrier: barrier.to_owned(),
            branch: branch.to_owned(),
            token: token.as_u64(),
            stage_id: "tx".to_owned(),
            cluster: None,
        };
        let mut is_complete = false;
        self.decide(Some(lease(branch, token)), |state, now_ms| {
            let fact = match state.evaluate_arrive(&request, now_ms)? {
                ArriveVerdict::Arrived(arrived) => Some(Kind::BarrierArrived(arrived)),
                ArriveVerdict::Completed(committed) => Some(Kind::Committed(committed)),
                ArriveVerdict::Repeat => None,
                verdict @ ArriveVerdict::Late(..) => panic!("{verdict:?}"),
            };
            is_complete = matches!(fact, Some(Kind::Committed(_)));
            Ok(Decision { fact, answer: () })
        })?;
        Ok(is_complete)
    }
}

#[test]
fn a_stage_and_an_arrival_keep_the_own_lease_alive_and_no_other() {
    let mut deciding = Deciding::new();
    let [ewr, jfk] = ["ewr", "jfk"].map(|branch| granted(&mut deciding.ask_for(branch, "a", Duration::ZERO)).token);
    let [mut for_ewr, mut for_jfk] = ["ewr", "jfk"].map(|branch| deciding.ask_for(branch, "b", TTL * 10));
    let request = open_barrier("day-1", &["ewr", "jfk"], Duration::ZERO);
    deciding.decide(None, |state, now_ms| opened(state, now_ms, &request)).unwrap();
    let nearly = TTL - Duration::from_secs(1);
    deciding.pass(nearly);
    deciding.stage("ewr", ewr);
    deciding.stage("jfk", jfk);
    deciding.pass(nearly);
    assert!(!deciding.arrive("day-1", "ewr", ewr));
    assert!(deciding.arrive("day-1", "jfk", jfk), "the last one");
    assert!(for_ewr.try_recv().is_err() && for_jfk.try_recv().is_err());
    deciding.pass(nearly);
    assert!(for_ewr.try_recv().is_err() && for_jfk.try_recv().is_err());
    deciding.pass(Duration::from_secs(2));
    assert!(for_ewr.try_recv().unwrap().is_ok() && for_jfk.try_recv().unwrap().is_ok());
}

#[test]
fn a_holder_that_released_its_branch_is_not_heard_through_the_barrier() {
    let mut deciding = Deciding::new();
    let [ewr, jfk] = ["ewr", "jfk"].map(|branch| granted(&mut deciding.ask_for(branch, "a", Duration::ZERO)).token);
    let request = open_barrier("day-1", &["ewr", "jfk"], Duration::ZERO);
    deciding.decide(None, |state, now_ms| opened(state, now_ms, &request)).unwrap();
    for (branch, token) in [("ewr", ewr), ("jfk", jfk)] {
        deciding.stage(branch, token);
        deciding.arrive("day-1", branch, token);
        let (reply, _released) = oneshot::channel();
        deciding.core.decide(Work::Release { cluster: None, lease: lease(branch, token), reply });
        deciding.settle();
    }
    assert!(!deciding.core.needs_ticks(), "nobody holds anything, so nobody is waited for");
}

#[test]
fn a_deadline_is_looked_for_as_long_as_there_is_one_and_gives_the_barrier_up() {
    let mut deciding = Deciding::new();
    let request = open_barrier("day-1", &["ewr"], Duration::from_secs(5));
    deciding.decide(None, |state, now_ms| opened(state, now_ms, &request)).unwrap();
    let mut changes = deciding.core.barriers();
    assert!(deciding.core.needs_ticks() && !deciding.core.is_overdue());
    deciding.clock.advance(Duration::from_secs(4));
    assert!(!deciding.core.is_overdue());
    deciding.clock.advance(Duration::from_secs(1));
    assert!(deciding.core.is_overdue());
    let full = Refusal::new(Reason::NoSpace, "the disk is full");
    deciding.core.set_no_space(Some(full));
    assert!(!deciding.core.give_up_overdue(), "it cannot be said on a full disk");
    assert!(deciding.core.is_overdue() && !changes.has_changed().unwrap());
    deciding.core.set_no_space(None);
    assert!(deciding.core.give_up_overdue());
    assert!(!deciding.core.is_overdue() && !deciding.core.needs_ticks());
    assert!(changes.has_changed().unwrap(), "those who wait at it are woken");
    changes.borrow_and_update();
    drop(deciding.ask_for("ewr", "a", Duration::ZERO));
    assert!(!changes.has_changed().unwrap(), "where no barrier is open nobody is woken");
}

#[test]
fn who_arrives_after_the_deadline_is_late_although_a_full_disk_kept_the_abort_out_of_the_log() {
    let mut deciding = Deciding::new();
    let [ewr, jfk] = ["ewr", "jfk"].map(|branch| granted(&mut deciding.ask_for(branch, "a", Duration::ZERO)).token);
    let request = open_barrier("day-1", &["ewr", "jfk"], Duration::from_secs(5));
    deciding.decide(None, |state, now_ms| opened(state, now_ms, &request)).unwrap();
    deciding.stage("ewr", ewr);
    deciding.stage("jfk", jfk);
    assert!(!deciding.arrive("day-1", "ewr", ewr));
    deciding.clock.advance(Duration::from_secs(5));
    deciding.core.set_no_space(Some(Refusal::new(Reason::NoSpace, "the disk is full")));
    assert!(!deciding.core.give_up_overdue());
    // There is room for what is smaller than an abort, or again.
    deciding.core.set_no_space(None);
    let late = deciding.try_arrive("day-1", "jfk", jfk).unwrap_err();
    assert_eq!((late.reason, late.detail("barrier")), (Reason::BarrierAborted, Some("day-1")));
    assert!(!deciding.arrive("day-1", "ewr", ewr), "a repeat says how it stands");
}

#[test]
fn a_repeated_stage_or_arrival_of_the_holder_is_a_sign_of_life() {
    let mut deciding = Deciding::new();
    let [ewr, jfk] = ["ewr", "jfk"].map(|branch| granted(&mut deciding.ask_for(branch, "a", Duration::ZERO)).token);
    let mut waits = deciding.ask_for("ewr", "b", TTL * 10);
    let request = open_barrier("day-1", &["ewr", "jfk"], Duration::ZERO);
    deciding.decide(None, |state, now_ms| opened(state, now_ms, &request)).unwrap();
    let nearly = TTL - Duration::from_secs(1);
    deciding.stage("ewr", ewr);
    deciding.pass(nearly);
    deciding.stage("ewr", ewr);
    deciding.pass(nearly);
    deciding.arrive("day-1", "ewr", ewr);
    deciding.pass(nearly);
    deciding.arrive("day-1", "ewr", ewr);
    deciding.pass(nearly);
    assert!(waits.try_recv().is_err());
    // Who is heard after its branch was given back is not waited for.
    for (branch, token) in [("ewr", ewr), ("jfk", jfk)] {
        let (reply, _released) = oneshot::channel();
        deciding.core.decide(Work::Release { cluster: None, lease: lease(branch, token), reply });
        deciding.settle();
    }
    let next = granted(&mut waits).token;
    deciding.decide(Some(lease("ewr", ewr)), |_, _| Ok(Decision { fact: None, answer: () })).unwrap();
    let (reply, _released) = oneshot::channel();
    deciding.core.decide(Work::Release { cluster: None, lease: lease("ewr", next), reply });
    deciding.settle();
    assert!(!deciding.core.needs_ticks(), "nobody holds anything");
}

#[test]
fn whoever_waits_at_a_barrier_is_not_woken_for_those_of_another_pipeline() {
    let mut deciding = Deciding::new();
    let changes = deciding.core.barriers();
    let request = open_barrier("day-1", &["ewr"], Duration::ZERO);
    deciding.decide(None, |state, now_ms| opened(state, now_ms, &request)).unwrap();
    let first = changes.borrow().of(PIPELINE);
    assert_eq!((first, changes.borrow().of("prod/elsewhere")), (deciding.core.seen(), Lsn::ZERO));
    let elsewhere = OpenBarrierRequest { pipeline: "prod/elsewhere".to_owned(), ..request.clone() };
    deciding.decide(None, |state, now_ms| opened(state, now_ms, &elsewhere)).unwrap();
    assert_eq!((changes.borrow().of(PIPELINE), changes.borrow().of("prod/elsewhere")), (first, deciding.core.seen()));
    drop(deciding.ask_for("ewr", "a", Duration::ZERO));
    assert_eq!(changes.borrow().of(PIPELINE), deciding.core.seen(), "a worker that may be waited for");
}
