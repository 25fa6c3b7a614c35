//! What becomes of calls that meet damage in the log.

use fencepost::Reason;
use fencepost::v1::{GetStatusRequest, ResumeRequest, Takeover};
use tonic_types::StatusExt as _;

use crate::support::{Store, commit, name, refusal, resume_as, rewind, rewind_to};

/// A store with small segments.
async fn small() -> Store {
    Store::open_with(|config| {
        config.segment_bytes = 7 << 20;
        config.batch_bytes_max = 4 << 10;
        config.request_bytes_max = 2 << 20;
    })
    .await
}

/// Commits to another branch until what there is so far is in a sealed segment.
async fn seal(store: &Store) {
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
