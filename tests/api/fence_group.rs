//! Ending all leases of a pipeline at once, for a change of the number of its branches.

use std::time::Duration;

use fencepost::Reason;
use fencepost::v1::audit_record::Action;
use fencepost::v1::{
    FenceGroupRequest, FenceGroupResponse, FencedHolder, KeepAliveRequest, ListAuditRequest, ListBranchesRequest,
    ReleaseRequest, ResumeRequest,
};
use tonic::Status;

use crate::support::{
    ORDERS, PATIENCE, Store, commit, commit_of, inner_refusal, lease, refusal, refused_field, resume, resume_as,
};

fn fence() -> FenceGroupRequest {
    FenceGroupRequest {
        pipeline: ORDERS.to_owned(),
        actor: "ops".to_owned(),
        reason: "three branches become five".to_owned(),
        ..FenceGroupRequest::default()
    }
}

async fn try_fence(store: &Store, request: FenceGroupRequest) -> Result<FenceGroupResponse, Status> {
    Ok(store.pipelines().fence_group(request).await?.into_inner())
}

#[tokio::test]
async fn all_tokens_of_the_pipeline_die_in_one_fact_and_their_holders_are_named() {
    let store = Store::open().await;
    let mut tokens = Vec::new();
    for branch in ["ewr", "jfk", "lga", "old"] {
        tokens.push(store.resume(resume_as(&format!("loader-{branch}"), branch)).await.unwrap().token);
    }
    let release = ReleaseRequest { cluster: None, lease: Some(lease("old", tokens[3])) };
    store.leases().release(release).await.unwrap();
    let elsewhere = ResumeRequest { pipeline: "prod/elsewhere".to_owned(), ..resume("main") };
    let other = store.resume(elsewhere).await.unwrap().token;
    let fenced = try_fence(&store, fence()).await.unwrap();
    let holders = ["ewr", "jfk", "lga"].into_iter().zip(&tokens);
    let holders = holders.map(|(branch, token)| FencedHolder {
        branch: branch.to_owned(),
        holder: format!("loader-{branch}"),
        token: *token,
    });
    assert_eq!((fenced.fenced, fenced.fenced_count), (holders.collect(), 3));
    assert!(fenced.token > other, "every lower one is refused");
    for (branch, token) in ["ewr", "jfk", "lga"].into_iter().zip(&tokens) {
        let refused = store.commit(commit(branch, *token, 1)).await.unwrap_err();
        refusal(&refused, Reason::Fenced);
        assert!(refused.message().contains("fenced as a whole"), "{refused:?}");
    }
    refusal(&store.commit(commit_of([("ewr", fenced.token, 1)])).await.unwrap_err(), Reason::Fenced);
    let keepalive = KeepAliveRequest { cluster: None, leases: vec![lease("jfk", tokens[1])] };
    let kept = store.leases().keep_alive(keepalive).await.unwrap().into_inner();
    inner_refusal(kept.results[0].refusal.as_ref(), Reason::Fenced);
    let release = ReleaseRequest { cluster: None, lease: Some(lease("jfk", tokens[1])) };
    refusal(&store.leases().release(release).await.unwrap_err(), Reason::Fenced);

    // Another pipeline does not notice, and new workers start at once, from the heads.
    let mut commit_elsewhere = commit("main", other, 1);
    commit_elsewhere.pipeline = "prod/elsewhere".to_owned();
    store.commit(commit_elsewhere).await.unwrap();
    let resumed = store.resume(resume_as("loader-0", "jfk")).await.unwrap();
    assert!(resumed.token > fenced.token);
    let predecessor = resumed.predecessor.unwrap();
    assert_eq!((predecessor.holder.as_str(), predecessor.silent_ms), ("loader-jfk", None), "it was not lost");
    store.commit(commit("jfk", resumed.token, 1)).await.unwrap();
}

#[tokio::test]
async fn a_retry_of_a_resume_whose_grant_was_fenced_takes_the_branch_from_nobody() {
    let store = Store::open().await;
    let request = resume("main");
    store.resume(request.clone()).await.unwrap();
    try_fence(&store, fence()).await.unwrap();
    let refused = store.resume(request).await.unwrap_err();
    refusal(&refused, Reason::Fenced);
    assert!(refused.message().contains("when the whole pipeline was fenced"), "{refused:?}");
    store.resume(resume("main")).await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn those_who_wait_for_any_branch_of_it_get_it() {
    let store = Store::open().await;
    let branches: Vec<String> = (0..50).map(|number| format!("branch-{number}")).collect();
    let mut waiting = tokio::task::JoinSet::new();
    for branch in &branches {
        store.take(branch).await;
        let mut leases = store.leases();
        let request = ResumeRequest { wait_ms: 3_600_000, ..resume_as("loader-2", branch) };
        waiting.spawn(async move { leases.resume(request).await });
    }
    store.settle().await;
    let fenced = try_fence(&store, fence()).await.unwrap();
    assert_eq!(fenced.fenced_count, 50);
    let all = async {
        while let Some(resumed) = waiting.join_next().await {
            let token = resumed.unwrap().unwrap().into_inner().token;
            assert!(token > fenced.token, "a new worker begins after the fence");
        }
    };
    // Long before any lease runs out.
    tokio::time::timeout(PATIENCE.min(Duration::from_secs(20)), all).await.unwrap();
}

#[tokio::test]
async fn it_is_in_force_after_a_restart_and_listed_in_the_audit() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let fenced = try_fence(&store, fence()).await.unwrap();
    let store = store.restarted().await;
    refusal(&store.commit(commit("main", token, 1)).await.unwrap_err(), Reason::Fenced);
    let leased = ListBranchesRequest { leased_only: true, ..ListBranchesRequest::default() };
    assert_eq!(store.checkpoints().list_branches(leased).await.unwrap().into_inner().branches, []);
    let audit = ListAuditRequest { pipeline: ORDERS.to_owned(), ..ListAuditRequest::default() };
    let newest = store.pipelines().list_audit(audit).await.unwrap().into_inner().records.remove(0);
    assert_eq!((newest.action(), newest.token), (Action::GroupFenced, fenced.token));
    assert_eq!((newest.actor.as_str(), newest.reason.as_str()), ("ops", "three branches become five"));
    assert_eq!(newest.detail, "1 leases ended");
}

#[tokio::test]
async fn it_needs_a_known_pipeline_and_a_reason() {
    let store = Store::open().await;
    store.take("main").await;
    let unknown = FenceGroupRequest { pipeline: "prod/unknown".to_owned(), ..fence() };
    refusal(&try_fence(&store, unknown).await.unwrap_err(), Reason::StateMissing);
    let silent = FenceGroupRequest { reason: " ".to_owned(), ..fence() };
    refused_field(&try_fence(&store, silent).await.unwrap_err(), Reason::InvalidField, "reason");
    let bad = FenceGroupRequest { pipeline: "orders".to_owned(), ..fence() };
    refused_field(&try_fence(&store, bad).await.unwrap_err(), Reason::InvalidName, "pipeline");
    let again = try_fence(&store, fence()).await.unwrap();
    assert_eq!(
        try_fence(&store, fence()).await.map(|it| (it.fenced_count, it.token > again.token)).unwrap(),
        (0, true)
    );
}
