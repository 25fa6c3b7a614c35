//! What the server measures of each branch since it started.

use std::collections::HashMap;

use fencepost::Reason;
use fencepost::v1::{
    BranchHealth, BranchInfo, Fingerprint, GetStatusRequest, ListBranchesRequest, ListPipelinesRequest, ReleaseRequest,
    ResumeRequest, Takeover,
};

use crate::barrier::{arrive, open, try_open};
use crate::dead_letters::skipping;
use crate::merge::merge;
use crate::staged::discard;
use crate::support::{ORDERS, Store, commit, commit_of, lease, refusal, resume, resume_as, rewind, stage};

async fn branch(store: &Store, name: &str) -> BranchInfo {
    let request = ListBranchesRequest { pipeline: ORDERS.to_owned(), ..ListBranchesRequest::default() };
    let branches = store.checkpoints().list_branches(request).await.unwrap().into_inner().branches;
    branches.into_iter().find(|it| it.branch == name).unwrap()
}

async fn health(store: &Store, name: &str) -> BranchHealth {
    branch(store, name).await.health.unwrap_or_default()
}

fn forced(holder: &str) -> ResumeRequest {
    ResumeRequest { takeover: Takeover::Force.into(), reason: "stuck".to_owned(), ..resume_as(holder, "main") }
}

#[tokio::test]
async fn a_loss_is_a_grant_after_a_worker_that_neither_released_nor_was_rewound_or_fenced() {
    let store = Store::open().await;
    let token = store.take("main").await;
    store.leases().release(ReleaseRequest { cluster: None, lease: Some(lease("main", token)) }).await.unwrap();
    let token = store.take("main").await;
    store.commit(commit("main", token, 1)).await.unwrap();
    store.rewind(rewind("main", 1, 1)).await.unwrap();
    store.take("main").await;
    let fence = fencepost::v1::FenceGroupRequest {
        pipeline: ORDERS.to_owned(),
        reason: "more branches".to_owned(),
        ..Default::default()
    };
    store.pipelines().fence_group(fence).await.unwrap();
    store.take("main").await;
    let found = health(&store, "main").await;
    assert_eq!((found.grants, found.losses, found.recoveries), (4, 0, 0));
    let token = store.resume(forced("loader-2")).await.unwrap().token;
    let found = health(&store, "main").await;
    assert_eq!((found.grants, found.losses, found.recoveries), (5, 1, 0), "its successor has not committed yet");
    store.commit(commit("main", token, 2)).await.unwrap();
    store.commit(commit("main", token, 3)).await.unwrap();
    let found = health(&store, "main").await;
    assert_eq!((found.grants, found.losses, found.recoveries), (5, 1, 1));
    assert_eq!(found.last_recovery_ms, found.longest_recovery_ms);
}

#[tokio::test]
async fn refusals_of_commits_and_resumes_are_counted_by_branch_and_reason() {
    let store = Store::open().await;
    let (main, other) = (store.take("main").await, store.take("other").await);
    refusal(&store.commit(commit("main", main, 7)).await.unwrap_err(), Reason::HeadMismatch);
    refusal(&store.commit(commit("main", main, 8)).await.unwrap_err(), Reason::HeadMismatch);
    refusal(
        &store.commit(commit_of([("main", main, 1), ("other", other, 9)])).await.unwrap_err(),
        Reason::HeadMismatch,
    );
    refusal(&store.resume(resume_as("loader-2", "main")).await.unwrap_err(), Reason::LeaseHeld);
    let new = store.resume(forced("loader-2")).await.unwrap().token;
    refusal(&store.commit(commit("main", main, 1)).await.unwrap_err(), Reason::Fenced);
    let mut made = commit("main", new, 1);
    let code = |value: &str| vec![Fingerprint { name: "code".to_owned(), value: value.to_owned() }];
    made.branches[0].checkpoint.as_mut().unwrap().scope = code("v1");
    store.commit(made).await.unwrap();
    let astray = ResumeRequest { scope: code("v2"), ..forced("loader-3") };
    refusal(&store.resume(astray).await.unwrap_err(), Reason::ScopeMismatch);
    let counts =
        |pairs: &[(&str, u64)]| pairs.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect::<HashMap<_, _>>();
    let of_main = counts(&[("HEAD_MISMATCH", 2), ("LEASE_HELD", 1), ("FENCED", 1), ("SCOPE_MISMATCH", 1)]);
    assert_eq!(health(&store, "main").await.refusals, of_main);
    assert_eq!(health(&store, "other").await.refusals, counts(&[("HEAD_MISMATCH", 1)]));
}

#[tokio::test]
async fn refusals_of_stages_discards_arrivals_and_merges_are_counted_like_those_of_commits() {
    let store = Store::open().await;
    let (main, day) = (store.take("main").await, store.take("day").await);
    let staged = async |request| store.commits().stage(request).await;
    refusal(&staged(stage("main", main, 7, "tx")).await.unwrap_err(), Reason::HeadMismatch);
    staged(stage("main", main, 1, "tx")).await.unwrap();
    refusal(&store.commits().discard_staged(discard("main", day, "tx")).await.unwrap_err(), Reason::Fenced);
    for _ in 0..2 {
        let refused = store.barriers().arrive(arrive("nightly", "main", main, "tx")).await.unwrap_err();
        refusal(&refused, Reason::StateMissing);
    }
    try_open(&store, open("nightly", &["main"])).await.unwrap();
    store.barriers().arrive(arrive("nightly", "main", main, "tx")).await.unwrap();
    staged(stage("main", main, 2, "late")).await.unwrap();
    let refused = store.barriers().arrive(arrive("nightly", "main", main, "late")).await.unwrap_err();
    refusal(&refused, Reason::BarrierClosed);
    refusal(&store.barriers().merge(merge(day, 9, &[("main", 1)])).await.unwrap_err(), Reason::HeadMismatch);
    let counts =
        |pairs: &[(&str, u64)]| pairs.iter().map(|(name, n)| ((*name).to_owned(), *n)).collect::<HashMap<_, _>>();
    let of_main = counts(&[("HEAD_MISMATCH", 1), ("FENCED", 1), ("STATE_MISSING", 2), ("BARRIER_CLOSED", 1)]);
    assert_eq!(health(&store, "main").await.refusals, of_main);
    assert_eq!(health(&store, "day").await.refusals, counts(&[("HEAD_MISMATCH", 1)]));
}

#[tokio::test]
async fn a_branch_that_does_not_exist_is_not_counted_and_nothing_outlives_the_server() {
    let store = Store::open().await;
    refusal(&store.resume(ResumeRequest { on_missing: 0, ..resume("ghost") }).await.unwrap_err(), Reason::StateMissing);
    refusal(&store.commit(commit("ghost", 0, 1)).await.unwrap_err(), Reason::Fenced);
    let token = store.take("ghost").await;
    let found = health(&store, "ghost").await;
    assert_eq!((found.grants, found.refusals.len()), (1, 0));
    refusal(&store.commit(commit("ghost", token, 2)).await.unwrap_err(), Reason::HeadMismatch);
    assert_eq!(health(&store, "ghost").await.refusals.len(), 1);
    let store = store.restarted().await;
    assert_eq!(branch(&store, "ghost").await.health, None);
}

#[tokio::test]
async fn lists_say_how_many_dead_letters_are_open() {
    let store = Store::open().await;
    let (main, other) = (store.take("main").await, store.take("other").await);
    store.commit(skipping("main", main, 1, &["a", "b"])).await.unwrap();
    store.commit(skipping("other", other, 1, &["c"])).await.unwrap();
    store.take("none").await;
    for (name, open) in [("main", 2), ("other", 1), ("none", 0)] {
        assert_eq!(branch(&store, name).await.dead_letters, open, "{name}");
    }
    let pipelines = store.checkpoints().list_pipelines(ListPipelinesRequest::default()).await.unwrap().into_inner();
    assert_eq!(pipelines.pipelines[0].dead_letters, 3);
    store.rewind(rewind("main", 1, 0)).await.unwrap();
    assert_eq!(branch(&store, "main").await.dead_letters, 0);
    let status = store.cluster().get_status(GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!(status.counters.map(|it| (it.commits, it.stages, it.barriers)), Some((2, 0, 0)));
}
