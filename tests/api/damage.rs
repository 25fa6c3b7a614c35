//! What becomes of calls that meet damage in the log.

use fencepost::Reason;
use fencepost::v1::{
    GetStatusRequest, ListAuditRequest, ListCheckpointsRequest, ListSavepointsRequest, ResumeRequest, Takeover,
};
use tonic_types::StatusExt as _;

use crate::barrier::{abort, arrive, open, stage_and_arrive, try_abort, try_arrive, try_open};
use crate::support::{ORDERS, Store, commit, name, refusal, resume_as, rewind, rewind_to};

/// A store with small segments.
pub(crate) async fn small() -> Store {
    Store::open_with(|config| {
        config.segment_bytes = 7 << 20;
        config.batch_bytes_max = 4 << 10;
        config.request_bytes_max = 2 << 20;
    })
    .await
}

/// Commits to another branch until what there is so far is in a sealed segment.
pub(crate) async fn seal(store: &Store) {
    let token = store.take("filler").await;
    let segments =
        async || store.cluster().get_status(GetStatusRequest {}).await.unwrap().into_inner().log.unwrap().segments;
    let before = segments().await;
    for sequence in 1.. {
        let mut filler = commit("filler", token, sequence);
        filler.branches[0].checkpoint.as_mut().unwrap().state = vec![7; 1 << 20].into();
        store.commit(filler).await.unwrap();
        if segments().await > before {
            return;
        }
    }
}

fn force(holder: &str) -> ResumeRequest {
    ResumeRequest { takeover: Takeover::Force.into(), reason: "stuck".to_owned(), ..resume_as(holder, "main") }
}

#[tokio::test]
async fn a_branch_is_not_set_back_to_what_cannot_be_read() {
    let store = Store::open().await;
    let token = store.with_history("main", 4).await;
    store.create_savepoint(name("before", "main", 2)).await.unwrap();
    store.damage("state at offset 2");
    for damaged in [rewind("main", 4, 2), rewind_to("main", 4, "before")] {
        refusal(&store.rewind(damaged).await.unwrap_err(), Reason::Corrupt);
    }
    store.commit(commit("main", token, 5)).await.expect("nobody was fenced");
    assert_eq!(store.rewind(rewind("main", 5, 3)).await.unwrap().sequence, 3);
}

#[tokio::test]
async fn nobody_is_fenced_for_a_worker_that_cannot_have_the_head() {
    let store = small().await;
    let token = store.with_history("main", 1).await;
    seal(&store).await;
    store.damage("state at offset 1");
    refusal(&store.resume(force("loader-2")).await.unwrap_err(), Reason::Corrupt);
    store.commit(commit("main", token, 2)).await.expect("it has the branch still");
    let granted = store.resume(force("loader-2")).await.expect("the head is another one");
    assert_eq!(granted.head.unwrap().sequence, 2);
}

#[tokio::test]
async fn a_grant_whose_head_turns_out_to_be_damaged_is_not_denied() {
    let store = Store::open().await;
    let token = store.with_history("main", 1).await;
    store.damage("state at offset 1");
    let status = store.resume(force("loader-2")).await.unwrap_err();
    let details = status.get_details_error_info().unwrap();
    assert_eq!((details.reason.as_str(), details.metadata["applied"].as_str()), ("CORRUPT", "unknown"));
    refusal(&store.commit(commit("main", token, 2)).await.unwrap_err(), Reason::Fenced);
}

#[tokio::test]
async fn a_list_shows_what_can_be_read_and_says_of_the_rest_that_it_cannot() {
    let store = Store::open().await;
    store.with_history("main", 4).await;
    let made = store.create_savepoint(name("before", "main", 3)).await.unwrap();
    store.create_savepoint(name("other", "main", 4)).await.unwrap();
    store.take("elsewhere").await;
    let (pipeline, branch) = (ORDERS.to_owned(), "main".to_owned());
    let request = ListCheckpointsRequest { pipeline, branch, ..ListCheckpointsRequest::default() };
    let checkpoints =
        async || store.checkpoints().list_checkpoints(request.clone()).await.unwrap().into_inner().checkpoints;
    let request = ListSavepointsRequest { pipeline: ORDERS.to_owned(), ..ListSavepointsRequest::default() };
    let savepoints = async || store.pipelines().list_savepoints(request.clone()).await.unwrap().into_inner().savepoints;
    let audit = async |branch: &str| {
        let (pipeline, branch) = (ORDERS.to_owned(), branch.to_owned());
        let request = ListAuditRequest { pipeline, branch, ..ListAuditRequest::default() };
        store.pipelines().list_audit(request).await.unwrap().into_inner().records
    };
    let (of_branch, named, records, elsewhere) =
        (checkpoints().await, savepoints().await, audit("").await, audit("elsewhere").await);

    store.damage("state at offset 2");
    store.damage("before the release");
    let (mut left, mut found) = (of_branch.clone(), checkpoints().await);
    let (was, is) = (left.remove(2), found.remove(2));
    assert_eq!(found, left);
    assert_eq!((is.branch, is.sequence, is.lsn, is.checkpoint), (was.branch, 2, was.lsn, None));
    assert!(is.unreadable.contains("at offset"), "{}", is.unreadable);
    refusal(&store.checkpoint("main", 2).await.unwrap_err(), Reason::Corrupt);

    let (mut left, mut found) = (named, savepoints().await);
    let (was, is) = (left.remove(0), found.remove(0));
    assert_eq!((found, &was), (left, &made));
    assert!(is.unreadable.contains("at offset"), "{}", is.unreadable);
    let (actor, reason) = (String::new(), String::new());
    let known = fencepost::v1::Savepoint { actor, reason, unreadable: is.unreadable.clone(), ..was };
    assert_eq!(is, known, "the rest is known without it");

    let (mut left, mut found) = (records, audit("").await);
    let (was, is) = (left.remove(2), found.remove(2));
    assert_eq!((found, is.lsn), (left, was.lsn));
    assert!(is.unreadable.contains("at offset"), "{}", is.unreadable);
    assert_eq!(audit("elsewhere").await, [elsewhere, vec![is]].concat(), "it may be of that branch");
}

#[tokio::test]
async fn what_was_done_at_a_barrier_is_not_denied_because_it_cannot_be_read() {
    let store = Store::open().await;
    let ewr = store.take("ewr").await;
    let opened = try_open(&store, open("day-1", &["ewr"])).await.unwrap();
    stage_and_arrive(&store, "day-1", "ewr", ewr).await;
    store.damage(&format!("barrier:{}", fencepost::Lsn::from_u64(opened.opened_lsn)));
    try_open(&store, open("day-2", &["ewr"])).await.unwrap();
    try_abort(&store, abort("day-2")).await.unwrap();
    store.damage("lga is closed");
    let failed = [
        try_arrive(&store, arrive("day-1", "ewr", ewr, "day-1-ewr")).await,
        try_open(&store, open("day-1", &["ewr"])).await,
        try_abort(&store, abort("day-2")).await,
    ];
    for status in failed.map(Result::unwrap_err) {
        let details = status.get_details_error_info().unwrap();
        assert_eq!((&*details.reason, &*details.metadata["applied"]), ("CORRUPT", "unknown"), "{status:?}");
    }
}
