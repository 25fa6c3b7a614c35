//! How a commit ended whose answer was lost: every outcome, also when the commit is older than what is remembered.

use fencepost::Reason;
use fencepost::v1::resolve_commit_response::Outcome;
use fencepost::v1::{CommitStreamRequest, ResolveCommitRequest, ResolveCommitResponse, SessionCommit};
use tonic::Status;

use crate::support::{ORDERS, Store, commit, refusal};

/// How many commits a pipeline remembers by id.
const WINDOW: u64 = fencepost_server::state::WINDOW_COMMITS;

async fn resolve(store: &Store, commit_id: &str, branch: &str, sequence: u64) -> Result<ResolveCommitResponse, Status> {
    let request = ResolveCommitRequest {
        pipeline: ORDERS.to_owned(),
        commit_id: commit_id.to_owned(),
        branch: branch.to_owned(),
        sequence,
        cluster: None,
    };
    Ok(store.commits().resolve_commit(request).await?.into_inner())
}

#[tokio::test]
async fn a_commit_that_landed_is_found_with_and_without_its_branch() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let request = commit("main", token, 1);
    let done = store.commit(request.clone()).await.unwrap();
    for (branch, sequence) in [("", 0), ("main", 1)] {
        let found = resolve(&store, &request.commit_id, branch, sequence).await.unwrap();
        assert_eq!((found.outcome(), found.lsn), (Outcome::Applied, done.lsn));
    }
}

#[tokio::test]
async fn a_commit_that_never_came_or_was_refused_is_not_applied() {
    let store = Store::open().await;
    let answer = resolve(&store, "never", "", 0).await.unwrap();
    assert_eq!((answer.outcome(), answer.lsn), (Outcome::NotApplied, 0), "of a pipeline that nobody knows");
    let token = store.take("main").await;
    let refused = commit("main", token, 7);
    refusal(&store.commit(refused.clone()).await.unwrap_err(), Reason::HeadMismatch);
    for (branch, sequence) in [("", 0), ("main", 7), ("nowhere", 1)] {
        let answer = resolve(&store, &refused.commit_id, branch, sequence).await.unwrap();
        assert_eq!((answer.outcome(), answer.lsn), (Outcome::NotApplied, 0));
    }
}

/// Makes one commit more than the pipeline remembers, named `commit-of-<sequence>`, and returns the first LSN.
async fn fill_window(store: &Store, token: u64) -> u64 {
    let messages = (1..=WINDOW + 1).step_by(500).map(move |first| {
        let commits = (first..(first + 500).min(WINDOW + 2)).map(|sequence| {
            let mut request = commit("main", token, sequence);
            request.commit_id = format!("commit-of-{sequence}");
            SessionCommit { session: 1, number: sequence, commit: Some(request) }
        });
        CommitStreamRequest { commits: commits.collect(), closed_sessions: vec![] }
    });
    let mut answers = store.commits().commit_stream(tokio_stream::iter(messages)).await.unwrap().into_inner();
    let (mut committed, mut first) = (0, 0);
    while let Some(message) = answers.message().await.unwrap() {
        for result in message.results {
            let Some(fencepost::v1::session_result::Result::Committed(done)) = result.result else {
                panic!("{result:?}")
            };
            committed += 1;
            if result.number == 1 {
                first = done.lsn;
            }
        }
    }
    assert_eq!(committed, WINDOW + 1);
    first
}

#[tokio::test]
async fn a_commit_beyond_the_window_is_settled_by_branch_and_sequence() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let first = fill_window(&store, token).await;

    // The index still knows the id, and of one that it does not know nobody can say whether it ever was.
    for (branch, sequence) in [("", 0), ("main", 1)] {
        let found = resolve(&store, "commit-of-1", branch, sequence).await.unwrap();
        assert_eq!((found.outcome(), found.lsn), (Outcome::Applied, first));
    }
    let details = refusal(&resolve(&store, "another", "", 0).await.unwrap_err(), Reason::DedupeWindowExceeded);
    assert_eq!(details["commit_id"], "another");
    // What was there before the policy let go of it cannot be told any more.
    refusal(&resolve(&store, "another", "main", 1).await.unwrap_err(), Reason::DedupeWindowExceeded);
    // The oldest that is still remembered needs no help.
    assert_eq!(resolve(&store, "commit-of-2", "", 0).await.unwrap().outcome(), Outcome::Applied);
    for (branch, sequence) in [("main", WINDOW - 5), ("main", WINDOW + 2), ("nowhere", 1)] {
        let answer = resolve(&store, "another", branch, sequence).await.unwrap();
        assert_eq!(answer.outcome(), Outcome::NotApplied, "at {branch} {sequence}");
    }

    // A retry that comes too late fails closed: the sequence is compared for ever.
    let mut late = commit("main", token, 1);
    late.commit_id = "commit-of-1".to_owned();
    refusal(&store.commit(late).await.unwrap_err(), Reason::HeadMismatch);
    assert_eq!(store.head("main").await, WINDOW + 1);
}
