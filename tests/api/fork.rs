//! Branches made from checkpoints of others.

use fencepost::Reason;
use fencepost::v1::{ForkRequest, ForkResponse, ListBranchesRequest, fork_request};
use fencepost_server::config::limits;
use tonic::Status;

use crate::limits::{bad_names, bad_pipelines, check, fault, name_faults};
use crate::support::{ORDERS, Store, commit, name, refusal, refused_field, rewind};

/// Forks a checkpoint of `main` of [`ORDERS`].
fn fork(sequence: u64, branch: &str) -> ForkRequest {
    ForkRequest {
        source_pipeline: ORDERS.to_owned(),
        source_branch: "main".to_owned(),
        from: Some(fork_request::From::Sequence(sequence)),
        pipeline: ORDERS.to_owned(),
        branch: branch.to_owned(),
        actor: "ops".to_owned(),
        reason: "replay".to_owned(),
        ..ForkRequest::default()
    }
}

fn fork_savepoint(savepoint: &str, branch: &str) -> ForkRequest {
    ForkRequest { from: Some(fork_request::From::Savepoint(savepoint.to_owned())), ..fork(0, branch) }
}

async fn forked(store: &Store, request: ForkRequest) -> Result<ForkResponse, Status> {
    Ok(store.pipelines().fork(request).await?.into_inner())
}

#[tokio::test]
async fn a_fork_starts_with_a_copy_and_goes_its_own_way() {
    let store = Store::open().await;
    let token = store.with_history("main", 5).await;
    let answer = forked(&store, fork(3, "replay")).await.unwrap();
    assert_eq!(answer.source_sequence, 3);
    let head = store.stored_head("replay").await;
    assert_eq!((head.sequence, head.lsn, head.token), (1, answer.lsn, 0));
    assert_eq!(head.checkpoint, store.checkpoint("main", 3).await.unwrap().checkpoint);
    assert_eq!(store.checkpoint("replay", 1).await.unwrap(), head);

    refusal(&store.commit(commit("replay", token, 2)).await.unwrap_err(), Reason::Fenced);
    let token = store.take("replay").await;
    store.commit(commit("replay", token, 2)).await.unwrap();
    assert_eq!((store.head("replay").await, store.head("main").await), (2, 5));
    store.rewind(rewind("replay", 2, 1)).await.unwrap();
    assert_eq!(store.stored_head("replay").await, head);
}

#[tokio::test]
async fn a_fork_inherits_no_remembered_commits() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let first = commit("main", token, 1);
    store.commit(first.clone()).await.unwrap();
    let elsewhere = ForkRequest { pipeline: "prod/replays".to_owned(), ..fork(0, "main") };
    forked(&store, elsewhere).await.unwrap();
    let resume = fencepost::v1::ResumeRequest { pipeline: "prod/replays".to_owned(), ..crate::support::resume("main") };
    let token = store.resume(resume).await.unwrap().token;
    let mut same_id = commit("main", token, 2);
    (same_id.pipeline, same_id.commit_id) = ("prod/replays".to_owned(), first.commit_id);
    store.commit(same_id).await.unwrap();
}

#[tokio::test]
async fn the_head_a_kept_sequence_or_a_savepoint_can_be_forked() {
    let store = Store::open().await;
    store.keep_last(2).await;
    let token = store.with_history("main", 1).await;
    store.create_savepoint(name("first", "main", 1)).await.unwrap();
    for sequence in 2..=5 {
        store.commit(commit("main", token, sequence)).await.unwrap();
    }
    assert_eq!(forked(&store, fork(0, "of-head")).await.unwrap().source_sequence, 5);
    assert_eq!(forked(&store, ForkRequest { from: None, ..fork(0, "of-none") }).await.unwrap().source_sequence, 5);
    assert_eq!(forked(&store, fork(4, "of-kept")).await.unwrap().source_sequence, 4);
    assert_eq!(forked(&store, fork_savepoint("first", "of-savepoint")).await.unwrap().source_sequence, 1);
    assert_eq!(store.stored_head("of-savepoint").await.checkpoint.unwrap().position, "offset 1".as_bytes());
    let details = refusal(&forked(&store, fork(3, "no")).await.unwrap_err(), Reason::Compacted);
    assert_eq!(details["oldest"], "4");
    refusal(&forked(&store, fork(6, "no")).await.unwrap_err(), Reason::StateMissing);
    refusal(&forked(&store, fork_savepoint("nothing", "no")).await.unwrap_err(), Reason::StateMissing);
}

#[tokio::test]
async fn what_a_rewind_abandoned_can_be_forked_as_long_as_a_savepoint_holds_it() {
    let store = Store::open().await;
    store.with_history("main", 4).await;
    store.create_savepoint(name("before", "main", 4)).await.unwrap();
    store.rewind(rewind("main", 4, 1)).await.unwrap();
    let token = store.take("main").await;
    for sequence in 2..=5 {
        store.commit(commit("main", token, sequence)).await.unwrap();
    }
    forked(&store, fork_savepoint("before", "rescued")).await.unwrap();
    let rescued = store.stored_head("rescued").await.checkpoint.unwrap();
    assert_eq!(rescued.position, "offset 4".as_bytes());
}

#[tokio::test]
async fn a_fork_never_takes_the_place_of_a_branch() {
    let store = Store::open().await;
    store.with_history("main", 1).await;
    store.take("taken").await;
    for there in ["main", "taken"] {
        let details = refusal(&forked(&store, fork(1, there)).await.unwrap_err(), Reason::Exists);
        assert_eq!((details["field"].as_str(), details["value"].as_str()), ("branch", there));
    }
    forked(&store, fork(1, "new")).await.unwrap();
    refusal(&forked(&store, fork(1, "new")).await.unwrap_err(), Reason::Exists);
    let request = ListBranchesRequest { pipeline: ORDERS.to_owned(), ..Default::default() };
    let listed = store.checkpoints().list_branches(request).await.unwrap().into_inner().branches;
    let names: Vec<(&str, u64)> = listed.iter().map(|it| (it.branch.as_str(), it.head_sequence)).collect();
    assert_eq!(names, [("main", 1), ("new", 1), ("taken", 0)]);
}

#[tokio::test]
async fn a_malformed_fork_is_refused_by_field() {
    let store = Store::open().await;
    refusal(&forked(&store, fork(1, "new")).await.unwrap_err(), Reason::StateMissing);
    store.take("main").await;
    refusal(&forked(&store, fork(0, "new")).await.unwrap_err(), Reason::StateMissing);
    let mut faults = vec![
        fault("reason too long", Reason::TooLarge, "reason", |request: &mut ForkRequest| {
            request.reason = "r".repeat(limits::REASON_BYTES_MAX + 1);
        }),
        fault("actor too long", Reason::InvalidField, "actor", |request: &mut ForkRequest| {
            request.actor = "a".repeat(limits::ACTOR_CHARS_MAX + 1);
        }),
    ];
    faults.extend(name_faults(bad_pipelines(), "pipeline", |request: &mut ForkRequest, it| request.pipeline = it));
    faults.extend(name_faults(bad_names(), "branch", |request: &mut ForkRequest, it| request.branch = it));
    let source = |request: &mut ForkRequest, it| request.source_pipeline = it;
    faults.extend(name_faults(bad_pipelines(), "source_pipeline", source));
    faults
        .extend(name_faults(bad_names(), "source_branch", |request: &mut ForkRequest, it| request.source_branch = it));
    let token = store.take("source").await;
    store.commit(commit("source", token, 1)).await.unwrap();
    let good = ForkRequest { source_branch: "source".to_owned(), ..fork(1, "new") };
    check("Fork", good, faults, async |request| store.pipelines().fork(request).await).await;
    let status = forked(&store, fork_savepoint(".hidden", "new")).await.unwrap_err();
    refused_field(&status, Reason::InvalidName, "savepoint");
}
