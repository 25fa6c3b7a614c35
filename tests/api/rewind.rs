//! Setting a branch back: what is fenced, what is abandoned, which commit ids are free again.

use fencepost::Reason;
use fencepost::v1::commit_response::Outcome;
use fencepost::v1::resolve_commit_response::Outcome as Resolved;
use fencepost::v1::{CommitRequest, ResolveCommitRequest, ResumeRequest, RewindRequest};
use fencepost_server::config::limits;

use crate::limits::{bad_names, bad_pipelines, check, fault, name_faults};
use crate::support::{
    ORDERS, PATIENCE, Store, commit, commit_of, name, refusal, refused_field, resume_as, rewind, rewind_to,
};

async fn resolve(store: &Store, commit_id: &str, branch: &str, sequence: u64) -> Resolved {
    let request = ResolveCommitRequest {
        pipeline: ORDERS.to_owned(),
        commit_id: commit_id.to_owned(),
        branch: branch.to_owned(),
        sequence,
        cluster: None,
    };
    store.commits().resolve_commit(request).await.unwrap().into_inner().outcome()
}

#[tokio::test]
async fn the_head_goes_back_and_whoever_had_the_branch_is_fenced() {
    let store = Store::open().await;
    let old = store.with_history("main", 5).await;
    let rewound = store.rewind(rewind("main", 5, 3)).await.unwrap();
    assert_eq!((rewound.sequence, rewound.previous_token), (3, old));
    assert_eq!(rewound.previous_holder, "loader-1");
    assert!(rewound.token > old);
    assert_eq!(store.head("main").await, 3);
    for sequence in [4, 6] {
        let status = store.commit(commit("main", old, sequence)).await.unwrap_err();
        let details = refusal(&status, Reason::Fenced);
        assert_eq!(details["current_token"], rewound.token.to_string());
        assert!(status.message().contains("rewound by 'ops'"), "{status:?}");
    }
    // The token of the rewind is nobody's.
    refusal(&store.commit(commit("main", rewound.token, 4)).await.unwrap_err(), Reason::Fenced);
    let resumed = store.resume(resume_as("loader-2", "main")).await.unwrap();
    assert!(resumed.token > rewound.token);
    assert_eq!(resumed.head.unwrap().sequence, 3);
    assert_eq!(resumed.predecessor, None, "nobody had it since");
    store.commit(commit("main", resumed.token, 4)).await.unwrap();
    assert_eq!(store.stored_head("main").await.token, resumed.token);
}

#[tokio::test]
async fn a_request_that_was_granted_before_the_rewind_is_over() {
    let store = Store::open().await;
    let request = ResumeRequest { request_id: "once".to_owned(), ..resume_as("loader-1", "main") };
    let token = store.resume(request.clone()).await.unwrap().token;
    store.commit(commit("main", token, 1)).await.unwrap();
    store.rewind(rewind("main", 1, 0)).await.unwrap();
    let status = store.resume(request).await.unwrap_err();
    refusal(&status, Reason::Fenced);
    assert!(status.message().contains("rewound"), "{status:?}");
}

#[tokio::test]
async fn whoever_waits_for_the_branch_gets_it_at_once_at_the_new_head() {
    let store = Store::open().await;
    store.with_history("main", 4).await;
    let waits = ResumeRequest { wait_ms: PATIENCE.as_millis() as u64, ..resume_as("loader-2", "main") };
    let waiting = store.resume(waits);
    let rewinding = async {
        store.settle().await;
        store.rewind(rewind("main", 4, 2)).await.unwrap()
    };
    let (granted, rewound) = tokio::join!(waiting, rewinding);
    let granted = granted.unwrap();
    assert!(granted.token > rewound.token);
    assert_eq!(granted.head.unwrap().sequence, 2);
}

#[tokio::test]
async fn to_zero_is_before_the_first_checkpoint() {
    let store = Store::open().await;
    let token = store.with_history("main", 2).await;
    store.rewind(rewind("main", 2, 0)).await.unwrap();
    assert_eq!(store.head("main").await, 0);
    refusal(&store.checkpoint("main", 1).await.unwrap_err(), Reason::StateMissing);
    refusal(&store.commit(commit("main", token, 1)).await.unwrap_err(), Reason::Fenced);
    let token = store.take("main").await;
    store.commit(commit("main", token, 1)).await.unwrap();
    assert_eq!(store.head("main").await, 1);
}

#[tokio::test]
async fn a_rewind_that_expects_another_head_is_refused_so_a_repeat_is_harmless() {
    let store = Store::open().await;
    store.with_history("main", 5).await;
    for wrong in [0, 4, 6] {
        let details = refusal(&store.rewind(rewind("main", wrong, 3)).await.unwrap_err(), Reason::HeadMismatch);
        assert_eq!(details["actual_head"], "5");
    }
    store.rewind(rewind("main", 5, 3)).await.unwrap();
    let details = refusal(&store.rewind(rewind("main", 5, 3)).await.unwrap_err(), Reason::HeadMismatch);
    assert_eq!(details["actual_head"], "3");
    refusal(&store.rewind(rewind("main", 5, 4)).await.unwrap_err(), Reason::HeadMismatch);
}

#[tokio::test]
async fn the_ids_of_abandoned_commits_are_free_again_and_those_of_others_are_not() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let commits: Vec<CommitRequest> = (1..=3).map(|sequence| commit("main", token, sequence)).collect();
    for commit in &commits {
        store.commit(commit.clone()).await.unwrap();
    }
    store.rewind(rewind("main", 3, 1)).await.unwrap();
    let ids: Vec<&str> = commits.iter().map(|commit| commit.commit_id.as_str()).collect();
    for (branch, sequence) in [("", 0), ("main", 1)] {
        assert_eq!(resolve(&store, ids[0], branch, sequence).await, Resolved::Applied);
    }
    for (id, sequence) in [(ids[1], 2), (ids[2], 3)] {
        assert_eq!(resolve(&store, id, "", 0).await, Resolved::NotApplied, "it was undone");
        assert_eq!(resolve(&store, id, "main", sequence).await, Resolved::NotApplied);
    }
    let token = store.take("main").await;
    let again = |nth: usize| {
        let mut again = commits[nth].clone();
        again.branches[0].token = token;
        again
    };
    let first = store.commit(again(0)).await.unwrap();
    assert_eq!(first.outcome(), Outcome::AlreadyApplied);
    assert_eq!(store.commit(again(1)).await.unwrap().outcome(), Outcome::Applied, "the same content once more");
    assert_eq!(store.commit(again(1)).await.unwrap().outcome(), Outcome::AlreadyApplied);
    let other = CommitRequest { commit_id: ids[2].to_owned(), ..commit("main", token, 3) };
    let mut other = other;
    other.branches[0].checkpoint.as_mut().unwrap().position = "elsewhere".as_bytes().into();
    assert_eq!(store.commit(other).await.unwrap().outcome(), Outcome::Applied, "other content under a free id");
    assert_eq!(resolve(&store, ids[2], "", 0).await, Resolved::Applied);
    let reused = CommitRequest { commit_id: ids[2].to_owned(), ..commit("main", token, 4) };
    refusal(&store.commit(reused).await.unwrap_err(), Reason::CommitIdReused);
}

#[tokio::test]
async fn of_a_commit_of_two_branches_the_one_that_was_not_rewound_stays_where_it_is() {
    let store = Store::open().await;
    let (jfk, ewr) = (store.take("jfk").await, store.take("ewr").await);
    let both = commit_of([("jfk", jfk, 1), ("ewr", ewr, 1)]);
    store.commit(both.clone()).await.unwrap();
    store.rewind(rewind("jfk", 1, 0)).await.unwrap();
    assert_eq!((store.head("jfk").await, store.head("ewr").await), (0, 1));
    assert_eq!(resolve(&store, &both.commit_id, "", 0).await, Resolved::NotApplied, "a part of it was undone");
    let mut again = both;
    again.branches[0].token = store.take("jfk").await;
    refusal(&store.commit(again).await.unwrap_err(), Reason::HeadMismatch);
}

#[tokio::test]
async fn below_what_is_kept_only_savepoints_can_be_gone_back_to() {
    let store = Store::open().await;
    store.keep_last(2).await;
    let token = store.with_history("main", 2).await;
    store.create_savepoint(name("start", "main", 1)).await.unwrap();
    for sequence in 3..=6 {
        store.commit(commit("main", token, sequence)).await.unwrap();
    }
    let details = refusal(&store.rewind(rewind("main", 6, 2)).await.unwrap_err(), Reason::Compacted);
    assert_eq!(details["oldest"], "5");
    refusal(&store.rewind(rewind("main", 6, 7)).await.unwrap_err(), Reason::StateMissing);
    refusal(&store.rewind(rewind_to("main", 6, "nothing")).await.unwrap_err(), Reason::StateMissing);
    let rewound = store.rewind(rewind_to("main", 6, "start")).await.unwrap();
    assert_eq!(rewound.sequence, 1);
    let token = store.take("main").await;
    store.commit(commit("main", token, 2)).await.unwrap();
    let second = store.checkpoint("main", 2).await.unwrap();
    assert_eq!(second.token, token, "the sequence is of the new past");
}

#[tokio::test]
async fn a_savepoint_of_another_past_or_of_another_branch_is_forked_and_not_gone_back_to() {
    let store = Store::open().await;
    store.with_history("main", 4).await;
    store.create_savepoint(name("before", "main", 3)).await.unwrap();
    store.rewind(rewind("main", 4, 2)).await.unwrap();
    let token = store.take("main").await;
    for sequence in 3..=5 {
        store.commit(commit("main", token, sequence)).await.unwrap();
    }
    let status = store.rewind(rewind_to("main", 5, "before")).await.unwrap_err();
    refusal(&status, Reason::InvalidField);
    assert!(status.message().contains("fork"), "{status:?}");
    store.with_history("other", 3).await;
    refusal(&store.rewind(rewind_to("other", 3, "before")).await.unwrap_err(), Reason::InvalidField);
}

#[tokio::test]
async fn a_malformed_rewind_is_refused_by_field() {
    let store = Store::open().await;
    refusal(&store.rewind(rewind("main", 0, 0)).await.unwrap_err(), Reason::StateMissing);
    store.with_history("main", 1).await;
    refusal(&store.rewind(rewind("other", 0, 0)).await.unwrap_err(), Reason::StateMissing);
    let mut faults = vec![
        fault("no target", Reason::InvalidField, "to", |request: &mut RewindRequest| request.to = None),
        fault("no reason", Reason::InvalidField, "reason", |request: &mut RewindRequest| request.reason.clear()),
        fault("blank reason", Reason::InvalidField, "reason", |request: &mut RewindRequest| {
            request.reason = " \t".to_owned();
        }),
        fault("reason too long", Reason::TooLarge, "reason", |request: &mut RewindRequest| {
            request.reason = "r".repeat(limits::REASON_BYTES_MAX + 1);
        }),
        fault("actor too long", Reason::InvalidField, "actor", |request: &mut RewindRequest| {
            request.actor = "a".repeat(limits::ACTOR_CHARS_MAX + 1);
        }),
    ];
    faults.extend(name_faults(bad_pipelines(), "pipeline", |request: &mut RewindRequest, it| request.pipeline = it));
    faults.extend(name_faults(bad_names(), "branch", |request: &mut RewindRequest, it| request.branch = it));
    check("Rewind", rewind("main", 1, 0), faults, async |request| store.rewind(request).await).await;
    let status = store.rewind(rewind_to("main", 1, ".hidden")).await.unwrap_err();
    refused_field(&status, Reason::InvalidName, "savepoint");
}
