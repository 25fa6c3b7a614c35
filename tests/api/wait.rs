//! Waiting for a branch that somebody holds: who gets it, when, and who does not.

use std::time::Duration;

use fencepost::Reason;
use fencepost::log::v1::fact::Kind;
use fencepost::v1::{KeepAliveRequest, ReleaseRequest, ResumeRequest, ResumeResponse};
use tokio::task::JoinHandle;
use tokio::time::Instant;
use tonic::Status;

use crate::support::{PATIENCE, Store, commit, lease, refusal, resume, resume_as};

/// Short, and still so long that a busy machine does not take a living holder for a silent one.
const TTL: Duration = Duration::from_secs(2);

fn short(holder: &str) -> ResumeRequest {
    ResumeRequest { ttl_ms: TTL.as_millis() as u64, ..resume_as(holder, "main") }
}

fn patient(holder: &str, wait: Duration) -> ResumeRequest {
    ResumeRequest { wait_ms: wait.as_millis() as u64, ..resume_as(holder, "main") }
}

type Waiting = JoinHandle<Result<ResumeResponse, Status>>;

/// Starts waiting, and returns once the server knows.
async fn wait(store: &Store, request: ResumeRequest) -> Waiting {
    let mut leases = store.leases();
    let waiting = tokio::spawn(async move { Ok(leases.resume(request).await?.into_inner()) });
    store.settle().await;
    waiting
}

async fn answer(waiting: Waiting) -> Result<ResumeResponse, Status> {
    tokio::time::timeout(PATIENCE, waiting).await.expect("a waiter is answered in time").unwrap()
}

async fn release(store: &Store, token: u64) {
    let request = ReleaseRequest { lease: Some(lease("main", token)), cluster: None };
    store.leases().release(request).await.unwrap();
}

#[tokio::test]
async fn a_waiter_gets_the_branch_when_its_holder_releases() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let waiting = wait(&store, patient("loader-2", PATIENCE)).await;
    assert!(!waiting.is_finished());
    let released = Instant::now();
    release(&store, token).await;
    let grant = answer(waiting).await.unwrap();
    assert!(released.elapsed() < Duration::from_secs(10), "long before the TTL of 30 s");
    let predecessor = grant.predecessor.unwrap();
    assert_eq!((predecessor.token, predecessor.silent_ms), (token, None));
}

#[tokio::test]
async fn a_waiter_gets_the_branch_when_its_holder_was_silent_for_the_ttl() {
    let store = Store::open().await;
    let begun = Instant::now();
    let token = store.resume(short("loader-1")).await.unwrap().token;
    let grant = answer(wait(&store, patient("loader-2", PATIENCE)).await).await.unwrap();
    assert!(begun.elapsed() >= TTL, "not before its time: {:?}", begun.elapsed());
    let predecessor = grant.predecessor.unwrap();
    assert_eq!(predecessor.token, token);
    assert!(predecessor.silent_ms.unwrap() >= TTL.as_millis() as u64);
    refusal(&store.commit(commit("main", token, 1)).await.unwrap_err(), Reason::Fenced);
    store.commit(commit("main", grant.token, 1)).await.unwrap();
}

/// Time proposes and the log decides: a lease whose time is over is still its holder's until somebody takes it.
#[tokio::test]
async fn a_late_commit_is_accepted_while_nobody_else_was_granted_the_branch() {
    let store = Store::open().await;
    let token = store.resume(short("loader-1")).await.unwrap().token;
    let remaining = async || {
        let branches = store.checkpoints().list_branches(fencepost::v1::ListBranchesRequest::default()).await;
        branches.unwrap().into_inner().branches[0].lease.clone().unwrap().remaining_ms
    };
    let deadline = Instant::now() + PATIENCE;
    while remaining().await > 0 {
        assert!(Instant::now() < deadline);
        tokio::task::yield_now().await;
    }
    store.commit(commit("main", token, 1)).await.unwrap();
    assert!(remaining().await > 0, "a commit is a sign of life");
    refusal(&store.resume(resume_as("loader-2", "main")).await.unwrap_err(), Reason::LeaseHeld);
}

#[tokio::test]
async fn a_holder_that_is_heard_of_keeps_its_branch() {
    let store = Store::open().await;
    for by_commits in [false, true] {
        let token = store.resume(short(&format!("holder-{by_commits}"))).await.unwrap().token;
        let mut waiting = wait(&store, patient("loader-2", TTL * 3 / 2)).await;
        let mut sequence = store.head("main").await;
        let refused = loop {
            if by_commits {
                sequence += 1;
                store.commit(commit("main", token, sequence)).await.unwrap();
            } else {
                let request = KeepAliveRequest { leases: vec![lease("main", token)], cluster: None };
                store.leases().keep_alive(request).await.unwrap();
            }
            if let Ok(answer) = tokio::time::timeout(TTL / 10, &mut waiting).await {
                break answer.unwrap().unwrap_err();
            }
        };
        refusal(&refused, Reason::LeaseHeld);
        release(&store, token).await;
    }
}

#[tokio::test]
async fn a_waiter_whose_patience_ends_is_refused_with_the_time_left() {
    let store = Store::open().await;
    store.take("main").await;
    let begun = Instant::now();
    let status = answer(wait(&store, patient("loader-2", Duration::from_millis(300))).await).await.unwrap_err();
    let details = refusal(&status, Reason::LeaseHeld);
    assert!(begun.elapsed() >= Duration::from_millis(300));
    assert!(details["remaining_ms"].parse::<u64>().unwrap() > 20_000);
}

#[tokio::test]
async fn waiters_are_served_in_the_order_they_came() {
    let store = Store::open().await;
    let mut token = store.take("main").await;
    let mut waiting = Vec::new();
    for holder in ["second", "third", "fourth"] {
        waiting.push((holder, wait(&store, patient(holder, PATIENCE)).await));
    }
    let mut before = "loader-1";
    for (holder, waiting) in waiting {
        release(&store, token).await;
        let grant = answer(waiting).await.unwrap();
        assert_eq!(grant.predecessor.unwrap().holder, before, "{holder} comes after {before}");
        (token, before) = (grant.token, holder);
    }
}

#[tokio::test]
async fn a_waiter_that_went_away_is_not_granted_the_branch() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let gone = wait(&store, patient("ghost", PATIENCE)).await;
    gone.abort();
    assert!(gone.await.unwrap_err().is_cancelled());
    store.settle().await;
    release(&store, token).await;
    let grant = store.resume(resume("main")).await.unwrap();
    assert_eq!(grant.predecessor.unwrap().token, token);
    let facts = store.facts(fencepost::v1::TailRequest::default()).await.unwrap();
    let was_granted = |fact: &fencepost::v1::TailFact| matches!(&fact.fact.as_ref().unwrap().kind, Some(Kind::LeaseGranted(granted)) if granted.holder == "ghost");
    assert!(!facts.iter().any(was_granted), "{facts:?}");
}

#[tokio::test]
async fn a_retry_of_a_waiting_resume_gets_one_token() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let request = patient("loader-2", PATIENCE);
    let (one, other) = (wait(&store, request.clone()).await, wait(&store, request).await);
    release(&store, token).await;
    assert_eq!(answer(one).await.unwrap().token, answer(other).await.unwrap().token);
}

#[tokio::test]
async fn a_force_takes_the_branch_past_those_who_wait() {
    let store = Store::open().await;
    store.take("main").await;
    let waiting = wait(&store, patient("loader-2", PATIENCE)).await;
    let force = ResumeRequest {
        takeover: fencepost::v1::Takeover::Force.into(),
        reason: "stuck".to_owned(),
        ..resume_as("operator", "main")
    };
    let token = store.resume(force).await.unwrap().token;
    assert!(!waiting.is_finished());
    release(&store, token).await;
    assert_eq!(answer(waiting).await.unwrap().predecessor.unwrap().holder, "operator");
}
