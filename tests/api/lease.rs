//! Grants, keepalives and releases.

use fencepost::v1::{
    KeepAliveRequest, ListBranchesRequest, OnMissing, ReleaseRequest, ResumeMode, ResumeRequest, TailRequest, Takeover,
};
use fencepost::{Reason, Token};

use crate::support::{Store, commit, inner_refusal, lease, refusal, resume, resume_as};

fn force(holder: &str, branch: &str) -> ResumeRequest {
    ResumeRequest {
        takeover: Takeover::Force.into(),
        reason: "a test takes it".to_owned(),
        ..resume_as(holder, branch)
    }
}

fn release(branch: &str, token: u64) -> ReleaseRequest {
    ReleaseRequest { lease: Some(lease(branch, token)), cluster: None }
}

#[tokio::test]
async fn every_grant_has_a_greater_token_than_all_before_anywhere() {
    let store = Store::open().await;
    let mut last = 0;
    for round in 0..5 {
        for branch in ["one", "other"] {
            let grant = store.resume(force(&format!("loader-{round}"), branch)).await.unwrap();
            assert!(grant.token > last, "{} after {last}", grant.token);
            assert_eq!(Token::from_u64(grant.token).generation(), 1);
            last = grant.token;
        }
    }
}

#[tokio::test]
async fn a_resume_returns_the_head_with_its_state_or_without() {
    let store = Store::open().await;
    let fresh = store.resume(resume("main")).await.unwrap();
    assert_eq!((fresh.head, fresh.predecessor), (None, None));
    store.commit(commit("main", fresh.token, 1)).await.unwrap();

    let hard = store.resume(ResumeRequest { on_missing: OnMissing::Fail.into(), ..force("b", "main") }).await.unwrap();
    let head = hard.head.unwrap();
    let state = b"state at offset 1";
    let checkpoint = head.checkpoint.unwrap();
    assert_eq!((head.sequence, &checkpoint.state[..], &checkpoint.position[..]), (1, &state[..], &b"offset 1"[..]));

    let soft = ResumeRequest { mode: ResumeMode::Soft.into(), ..force("c", "main") };
    let head = store.resume(soft).await.unwrap().head.unwrap();
    let checkpoint = head.checkpoint.unwrap();
    assert_eq!((checkpoint.state.len(), head.state_bytes), (0, state.len() as u64));
    assert_eq!(&checkpoint.position[..], b"offset 1");
}

#[tokio::test]
async fn missing_state_never_reads_as_a_fresh_start() {
    let store = Store::open().await;
    for on_missing in [OnMissing::Unspecified, OnMissing::Fail] {
        let request = ResumeRequest { on_missing: on_missing.into(), ..resume("main") };
        refusal(&store.resume(request).await.unwrap_err(), Reason::StateMissing);
    }
    // Also on a branch that was granted and never committed.
    let token = store.take("main").await;
    store.leases().release(release("main", token)).await.unwrap();
    let request = ResumeRequest { on_missing: OnMissing::Fail.into(), ..resume("main") };
    let status = store.resume(request).await.unwrap_err();
    refusal(&status, Reason::StateMissing);
    assert!(status.message().contains("START_FRESH"), "{status}");
}

#[tokio::test]
async fn a_retried_resume_gets_the_same_token() {
    let store = Store::open().await;
    let request = resume("main");
    let first = store.resume(request.clone()).await.unwrap();
    let again = store.resume(request.clone()).await.unwrap();
    assert_eq!((again.token, again.ttl_ms), (first.token, first.ttl_ms));
    assert_eq!(again.predecessor, first.predecessor, "a retry is answered as the first attempt was");
    // Another request of the same holder is another process.
    refusal(&store.resume(resume("main")).await.unwrap_err(), Reason::LeaseHeld);
    // A retry that comes after a successor was granted must not get the branch back.
    store.resume(force("loader-2", "main")).await.unwrap();
    refusal(&store.resume(request).await.unwrap_err(), Reason::Fenced);
}

#[tokio::test]
async fn one_release_hands_the_branch_to_one_of_many_who_share_a_name() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let waiting: Vec<_> = (0..20)
        .map(|_| {
            let request = ResumeRequest {
                takeover: Takeover::SameHolder.into(),
                wait_ms: 3_600_000,
                ..resume_as("loader-2", "main")
            };
            let mut leases = store.leases();
            tokio::spawn(async move { leases.resume(request).await })
        })
        .collect();
    store.settle().await;
    store.leases().release(release("main", token)).await.unwrap();
    // Whoever asks now is decided after all who waited.
    refusal(&store.resume(resume_as("loader-3", "main")).await.unwrap_err(), Reason::LeaseHeld);
    let granted = store.facts(TailRequest::default()).await.unwrap().len();
    assert_eq!(granted, 4, "created, granted, released, granted");
    waiting.iter().for_each(tokio::task::JoinHandle::abort);
}

#[tokio::test]
async fn who_does_not_wait_is_told_at_once_who_holds_the_branch_and_for_how_long() {
    let store = Store::open().await;
    let first = ResumeRequest { ttl_ms: 60_000, lock_delay_ms: 30_000, ..resume("main") };
    let token = store.resume(first).await.unwrap().token;
    for takeover in [Takeover::Unspecified, Takeover::Wait, Takeover::SameHolder] {
        let request = ResumeRequest { takeover: takeover.into(), ..resume_as("loader-2", "main") };
        let status = store.resume(request).await.unwrap_err();
        let details = refusal(&status, Reason::LeaseHeld);
        assert_eq!((details["holder"].as_str(), details["current_token"].clone()), ("loader-1", token.to_string()));
        let remaining: u64 = details["remaining_ms"].parse().unwrap();
        assert!((60_000..=90_001).contains(&remaining), "the lock delay counts: {remaining}");
        assert_eq!(details["retry_after_ms"], details["remaining_ms"]);
        assert!(status.message().contains("loader-1"), "{status}");
    }
}

#[tokio::test]
async fn a_restarted_worker_takes_over_from_its_own_ghost_at_once() {
    let store = Store::open().await;
    let ghost = store.take("main").await;
    let request = ResumeRequest { takeover: Takeover::SameHolder.into(), ..resume("main") };
    let grant = store.resume(request).await.unwrap();
    let predecessor = grant.predecessor.unwrap();
    assert_eq!((predecessor.holder.as_str(), predecessor.token), ("loader-1", ghost));
    assert!(predecessor.silent_ms.is_some(), "a ghost did not release");
    refusal(&store.commit(commit("main", ghost, 1)).await.unwrap_err(), Reason::Fenced);
}

#[tokio::test]
async fn a_lock_delay_holds_even_the_same_holder_back() {
    let store = Store::open().await;
    store.resume(ResumeRequest { lock_delay_ms: 60_000, ..resume("main") }).await.unwrap();
    let request = ResumeRequest { takeover: Takeover::SameHolder.into(), ..resume("main") };
    refusal(&store.resume(request).await.unwrap_err(), Reason::LeaseHeld);
    store.resume(force("operator", "main")).await.unwrap();
}

#[tokio::test]
async fn a_forced_takeover_keeps_its_reason_and_fences_at_once() {
    let store = Store::open().await;
    let old = store.take("main").await;
    let grant = store.resume(force("operator", "main")).await.unwrap();
    refusal(&store.commit(commit("main", old, 1)).await.unwrap_err(), Reason::Fenced);
    let from_lsn = grant.header.unwrap().lsn;
    let facts = store.facts(fencepost::v1::TailRequest { from_lsn, ..Default::default() }).await.unwrap();
    let Some(fencepost::log::v1::fact::Kind::LeaseGranted(granted)) = facts[0].fact.clone().unwrap().kind else {
        panic!("{facts:?}")
    };
    assert_eq!((granted.reason.as_str(), granted.takeover()), ("a test takes it", Takeover::Force));
    assert_eq!((granted.previous_holder.as_str(), granted.previous_token), ("loader-1", old));
    assert_eq!((granted.holder.as_str(), granted.token), ("operator", grant.token));
}

#[tokio::test]
async fn a_released_branch_is_free_and_a_repeated_release_is_harmless() {
    let store = Store::open().await;
    let token = store.take("main").await;
    store.leases().release(release("main", token)).await.unwrap();
    store.leases().release(release("main", token)).await.unwrap();
    let grant = store.resume(resume_as("loader-2", "main")).await.unwrap();
    let predecessor = grant.predecessor.unwrap();
    assert_eq!((predecessor.token, predecessor.silent_ms), (token, None), "it released, so it was not silent");
    // The late repeat of a release must not take the branch from the successor.
    refusal(&store.leases().release(release("main", token)).await.unwrap_err(), Reason::Fenced);
    store.commit(commit("main", grant.token, 1)).await.unwrap();
}

#[tokio::test]
async fn only_the_current_token_releases() {
    let store = Store::open().await;
    let (token, other) = (store.take("main").await, store.take("other").await);
    refusal(&store.leases().release(release("other", token)).await.unwrap_err(), Reason::Fenced);
    refusal(&store.leases().release(release("nowhere", token)).await.unwrap_err(), Reason::Fenced);
    refusal(&store.leases().release(release("main", other + 1)).await.unwrap_err(), Reason::StoreRolledBack);
    store.commit(commit("main", token, 1)).await.unwrap();
}

#[tokio::test]
async fn one_keepalive_carries_many_leases_and_each_is_judged_alone() {
    let store = Store::open().await;
    let names: Vec<String> = (0..200).map(|i| format!("shard-{i}")).collect();
    let mut leases = Vec::new();
    for (i, name) in names.iter().enumerate() {
        let ttl_ms = 1_000 * (i as u64 + 1);
        let token = store.resume(ResumeRequest { ttl_ms, ..resume(name) }).await.unwrap().token;
        leases.push(lease(name, token));
    }
    let successor = store.resume(force("operator", "shard-77")).await.unwrap().token;
    leases[150].token = successor + 1;
    let request = KeepAliveRequest { leases: leases.clone(), cluster: None };
    let answer = store.leases().keep_alive(request).await.unwrap().into_inner();
    assert_eq!(answer.results.len(), 200);
    for (i, result) in answer.results.iter().enumerate() {
        match i {
            77 => {
                let details = inner_refusal(result.refusal.as_ref(), Reason::Fenced);
                assert_eq!((details["current_token"].clone(), result.ttl_ms), (successor.to_string(), 0));
                assert_eq!(details["holder"], "operator");
            }
            150 => drop(inner_refusal(result.refusal.as_ref(), Reason::StoreRolledBack)),
            _ => assert_eq!((result.refusal.as_ref(), result.ttl_ms), (None, 1_000 * (i as u64 + 1))),
        }
    }
}

#[tokio::test]
async fn a_keepalive_leaves_no_fact() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let before = store.facts(TailRequest::default()).await.unwrap();
    for _ in 0..10 {
        let request = KeepAliveRequest { leases: vec![lease("main", token)], cluster: None };
        store.leases().keep_alive(request).await.unwrap();
    }
    assert_eq!(store.facts(TailRequest::default()).await.unwrap(), before);
}

#[tokio::test]
async fn the_listing_shows_who_holds_what() {
    let store = Store::open().await;
    let token = store.resume(ResumeRequest { ttl_ms: 60_000, ..resume("main") }).await.unwrap().token;
    store.commit(commit("main", token, 1)).await.unwrap();
    let list = async || {
        let request = ListBranchesRequest::default();
        store.checkpoints().list_branches(request).await.unwrap().into_inner().branches.remove(0)
    };
    let held = list().await;
    let info = held.lease.unwrap();
    assert_eq!((info.token, info.holder.as_str(), info.ttl_ms), (token, "loader-1", 60_000));
    assert!((1..=60_000).contains(&info.remaining_ms));
    assert_eq!((held.head_sequence, held.last_token), (1, token));
    store.leases().release(release("main", token)).await.unwrap();
    let free = list().await;
    assert_eq!((free.lease, free.last_token, free.head_sequence), (None, token, 1));
}
