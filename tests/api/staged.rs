//! Two-phase commits: a checkpoint is made durable, then the sink commits, then the checkpoint becomes the head.

use fencepost::Reason;
use fencepost::v1::audit_record::Action;
use fencepost::v1::commit_response::Outcome;
use fencepost::v1::resolve_commit_response::Outcome as Resolved;
use fencepost::v1::{
    DiscardStagedRequest, ForkRequest, KeepAliveRequest, ListAuditRequest, ListBranchesRequest, ListCheckpointsRequest,
    ResolveCommitRequest, ResumeMode, ResumeRequest, ResumeResponse, StageRequest, StagedCheckpoint, Takeover,
};
use tonic::Status;

use crate::damage::{seal, small};
use crate::support::{
    ORDERS, Store, checkpoint, commit, commit_staged, inner_refusal, lease, refusal, refused_field, resume_as, rewind,
    stage,
};

pub(crate) fn take_over(branch: &str, holder: &str) -> ResumeRequest {
    let (takeover, reason) = (Takeover::Force.into(), "stuck".to_owned());
    ResumeRequest { takeover, reason, ..resume_as(holder, branch) }
}

/// Somebody else takes the branch and is told what is staged.
pub(crate) async fn successor(store: &Store, branch: &str) -> ResumeResponse {
    store.resume(take_over(branch, "loader-2")).await.unwrap()
}

pub(crate) fn discard(branch: &str, token: u64, stage_id: &str) -> DiscardStagedRequest {
    DiscardStagedRequest {
        pipeline: ORDERS.to_owned(),
        branch: branch.to_owned(),
        token,
        stage_id: stage_id.to_owned(),
        reason: "the sink rolled back".to_owned(),
        ..DiscardStagedRequest::default()
    }
}

pub(crate) async fn try_discard(store: &Store, request: DiscardStagedRequest) -> Result<(), Status> {
    store.commits().discard_staged(request).await.map(drop)
}

/// What the branch has staged, as the list of branches tells it.
pub(crate) async fn listed(store: &Store, branch: &str) -> Option<StagedCheckpoint> {
    let request = ListBranchesRequest { pipeline: ORDERS.to_owned(), ..ListBranchesRequest::default() };
    let branches = store.checkpoints().list_branches(request).await.unwrap().into_inner().branches;
    branches.into_iter().find(|it| it.branch == branch).unwrap().staged
}

#[tokio::test]
async fn what_is_staged_is_durable_and_no_resume_point_until_it_is_committed_by_reference() {
    let store = Store::open().await;
    let token = store.with_history("main", 1).await;
    let staged = store.stage(stage("main", token, 2, "tx-7")).await.unwrap();
    assert!(!staged.already);
    assert_eq!(store.head("main").await, 1);
    refusal(&store.checkpoint("main", 2).await.unwrap_err(), Reason::StateMissing);
    let told = listed(&store, "main").await.unwrap();
    assert_eq!((told.stage_id.as_str(), told.sequence, told.token, told.lsn), ("tx-7", 2, token, staged.lsn));
    assert_eq!((told.state_bytes, told.checkpoint, told.barrier.as_str()), (17, None, ""));
    let done = store.commit(commit_staged("main", token, 2, "tx-7")).await.unwrap();
    assert_eq!(done.outcome(), Outcome::Applied);
    let head = store.stored_head("main").await;
    assert_eq!((head.sequence, head.lsn, head.token, head.state_bytes), (2, done.lsn, token, 17));
    let (payload, expected) = (head.checkpoint.unwrap(), checkpoint("offset 2"));
    assert_eq!((payload.position, payload.state), (expected.position, expected.state));
    assert_eq!(listed(&store, "main").await, None);
    store.commit(commit("main", token, 3)).await.unwrap();
}

#[tokio::test]
async fn a_commit_by_reference_writes_the_payload_no_second_time() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let staged = store.stage(stage("main", token, 1, "tx")).await.unwrap();
    store.commit(commit_staged("main", token, 1, "tx")).await.unwrap();
    let facts = store.facts(fencepost::v1::TailRequest::default()).await.unwrap();
    let with_payload: Vec<u64> =
        facts.iter().filter(|it| it.fact.as_ref().unwrap().payloads().next().is_some()).map(|it| it.lsn).collect();
    assert_eq!(with_payload, [staged.lsn]);
}

#[tokio::test]
async fn while_something_is_staged_the_branch_takes_no_other_commit() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let staged = store.stage(stage("main", token, 1, "tx-1")).await.unwrap();
    let pending = |status: Status| {
        let details = refusal(&status, Reason::StagedPending);
        assert_eq!((&*details["branch"], &*details["stage_id"]), ("main", "tx-1"));
        assert_eq!(details["lsn"], staged.lsn.to_string());
        assert!(!details.contains_key("barrier"));
    };
    pending(store.commit(commit("main", token, 1)).await.unwrap_err());
    pending(store.commit(commit("main", token, 2)).await.unwrap_err());
    pending(store.commit(commit_staged("main", token, 1, "tx-2")).await.unwrap_err());
    pending(store.stage(stage("main", token, 1, "tx-2")).await.unwrap_err());
    pending(try_discard(&store, discard("main", token, "tx-2")).await.unwrap_err());
    let other = store.take("other").await;
    let mut both = commit("other", other, 1);
    both.branches.push(commit("main", token, 1).branches.remove(0));
    pending(store.commit(both).await.unwrap_err());
    assert_eq!(store.head("other").await, 0, "all or none");
    store.commit(commit("other", other, 1)).await.expect("other branches do not notice");
    refusal(&store.commit(commit_staged("main", token, 2, "tx-1")).await.unwrap_err(), Reason::HeadMismatch);
    store.commit(commit_staged("main", token, 1, "tx-1")).await.unwrap();
}

#[tokio::test]
async fn a_commit_of_what_is_not_staged_is_refused_by_its_name() {
    let store = Store::open().await;
    let token = store.with_history("main", 2).await;
    let status = store.commit(commit_staged("main", token, 3, "tx")).await.unwrap_err();
    let details = refusal(&status, Reason::StateMissing);
    assert_eq!((&*details["stage_id"], &*details["actual_head"]), ("tx", "2"));
    store.stage(stage("main", token, 3, "tx")).await.unwrap();
    store.commit(commit_staged("main", token, 3, "tx")).await.unwrap();
    let status = store.commit(commit_staged("main", token, 4, "tx")).await.unwrap_err();
    assert_eq!(refusal(&status, Reason::StateMissing)["actual_head"], "3", "once is once");
}

#[tokio::test]
async fn a_repeat_of_a_stage_is_answered_with_the_first_and_other_content_is_refused() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let request = stage("main", token, 1, "tx");
    let first = store.stage(request.clone()).await.unwrap();
    let again = store.stage(request.clone()).await.unwrap();
    assert_eq!((again.lsn, again.already), (first.lsn, true));
    // A late retry of one who was replaced is harmless, and true.
    let new = successor(&store, "main").await.token;
    assert!(store.stage(request.clone()).await.unwrap().already);
    assert!(store.stage(StageRequest { token: new, not_after_ms: 1, ..request.clone() }).await.unwrap().already);
    let other = StageRequest { checkpoint: Some(checkpoint("elsewhere")), ..request };
    let status = store.stage(other).await.unwrap_err();
    assert_eq!(refusal(&status, Reason::CommitIdReused)["stage_id"], "tx");
    assert!(status.message().contains("stage id"), "{status:?}");
}

#[tokio::test]
async fn a_stage_id_is_idempotent_only_as_long_as_it_is_staged() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let request = stage("main", token, 1, "tx");
    let first = store.stage(request.clone()).await.unwrap();
    assert!(store.stage(request.clone()).await.unwrap().already);
    try_discard(&store, discard("main", token, "tx")).await.unwrap();
    let second = store.stage(request.clone()).await.unwrap();
    assert!(!second.already && second.lsn > first.lsn, "what was discarded is staged anew");
    store.commit(commit_staged("main", token, 1, "tx")).await.unwrap();
    refusal(&store.stage(request).await.unwrap_err(), Reason::HeadMismatch);
    let third = store.stage(stage("main", token, 2, "tx")).await.unwrap();
    assert!(!third.already, "the same id with other content, once nothing is staged under it");
}

#[tokio::test]
async fn a_repeat_of_a_commit_by_reference_is_answered_with_the_first() {
    let store = Store::open().await;
    let token = store.take("main").await;
    store.stage(stage("main", token, 1, "tx")).await.unwrap();
    let request = commit_staged("main", token, 1, "tx");
    let first = store.commit(request.clone()).await.unwrap();
    let again = store.commit(request.clone()).await.unwrap();
    assert_eq!((again.lsn, again.outcome()), (first.lsn, Outcome::AlreadyApplied));
    let mut other = request.clone();
    other.branches[0].staged = "tx-2".to_owned();
    refusal(&store.commit(other).await.unwrap_err(), Reason::CommitIdReused);
    let resolve = ResolveCommitRequest {
        pipeline: ORDERS.to_owned(),
        commit_id: request.commit_id,
        ..ResolveCommitRequest::default()
    };
    let resolved = store.commits().resolve_commit(resolve).await.unwrap().into_inner();
    assert_eq!((resolved.outcome(), resolved.lsn), (Resolved::Applied, first.lsn));
}

#[tokio::test]
async fn a_stage_is_judged_like_a_commit() {
    let store = Store::open().await;
    let old = store.take("main").await;
    let token = successor(&store, "main").await.token;
    let refused = async |request: StageRequest, reason| {
        let details = refusal(&store.stage(request).await.unwrap_err(), reason);
        assert_eq!(listed(&store, "main").await, None);
        details
    };
    let good = || stage("main", token, 1, "tx");
    // Each of these has all the faults of those below it, too.
    let mut worst = StageRequest { token: old, sequence: 2, not_after_ms: 1, ..good() };
    worst.checkpoint.as_mut().unwrap().payload_crc32 = Some(7);
    worst.checkpoint.as_mut().unwrap().late_for = "never".to_owned();
    let cluster = Some(fencepost::v1::ClusterRef { cluster_id: "other".to_owned(), generation: 1 });
    refused(StageRequest { cluster, ..worst.clone() }, Reason::WrongCluster).await;
    refused(worst.clone(), Reason::Fenced).await;
    worst.token = token;
    assert_eq!(refused(worst.clone(), Reason::HeadMismatch).await["actual_head"], "0");
    worst.sequence = 1;
    refused(worst.clone(), Reason::NotAfterPassed).await;
    worst.not_after_ms = 0;
    refused(worst.clone(), Reason::IntegrityMismatch).await;
    worst.checkpoint.as_mut().unwrap().payload_crc32 = None;
    assert_eq!(refused(worst.clone(), Reason::InvalidField).await["field"], "checkpoint.late_for");
    refused(StageRequest { token: token + 1, ..good() }, Reason::StoreRolledBack).await;
    store.stage(good()).await.unwrap();
}

#[tokio::test]
async fn what_is_ill_formed_is_refused_by_its_field() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let good = || stage("main", token, 1, "tx");
    let mut large = good();
    large.checkpoint.as_mut().unwrap().position = vec![0; (64 << 10) + 1].into();
    let with_state = |bytes| {
        let mut request = good();
        request.checkpoint.as_mut().unwrap().state = vec![0; bytes].into();
        request
    };
    let bad = [
        (StageRequest { pipeline: "orders".to_owned(), ..good() }, Reason::InvalidName, "pipeline"),
        (StageRequest { branch: "-".to_owned(), ..good() }, Reason::InvalidName, "branch"),
        (StageRequest { stage_id: "a b".to_owned(), ..good() }, Reason::InvalidName, "stage_id"),
        (StageRequest { checkpoint: None, ..good() }, Reason::InvalidField, "checkpoint"),
        (large, Reason::TooLarge, "checkpoint.position"),
        (with_state(4 << 20 | 1), Reason::TooLarge, "checkpoint.state"),
        (with_state(9 << 20), Reason::TooLarge, "request"),
    ];
    for (request, reason, field) in bad {
        refused_field(&store.stage(request).await.unwrap_err(), reason, field);
    }
    let mut both = commit("main", token, 1);
    both.branches[0].staged = "tx".to_owned();
    refused_field(&store.commit(both).await.unwrap_err(), Reason::InvalidField, "branches[0].staged");
    let mut neither = commit("main", token, 1);
    neither.branches[0].checkpoint = None;
    refused_field(&store.commit(neither).await.unwrap_err(), Reason::InvalidField, "branches[0].checkpoint");
    let unnamed = discard("main", token, "");
    refused_field(&try_discard(&store, unnamed).await.unwrap_err(), Reason::InvalidName, "stage_id");
    let wordy = DiscardStagedRequest { reason: "x".repeat(1025), ..discard("main", token, "tx") };
    refused_field(&try_discard(&store, wordy).await.unwrap_err(), Reason::TooLarge, "reason");
}

#[tokio::test]
async fn whoever_resumes_is_given_what_is_staged_and_commits_it_after_asking_the_sink() {
    let store = Store::open().await;
    let old = store.with_history("main", 1).await;
    let staged = store.stage(stage("main", old, 2, "tx-9")).await.unwrap();
    let soft = ResumeRequest { mode: ResumeMode::Soft.into(), ..take_over("main", "loader-3") };
    let position_only = store.resume(soft).await.unwrap().staged.unwrap();
    let payload = position_only.checkpoint.unwrap();
    assert_eq!((payload.position, payload.state.len()), (checkpoint("offset 2").position, 0));
    let resumed = successor(&store, "main").await;
    assert_eq!(resumed.head.unwrap().sequence, 1, "it is no resume point");
    let told = resumed.staged.unwrap();
    assert_eq!((told.stage_id.as_str(), told.sequence, told.token, told.lsn), ("tx-9", 2, old, staged.lsn));
    let payload = told.checkpoint.unwrap();
    assert_eq!(payload.payload_crc32, Some(payload.computed_crc32()));
    assert_eq!(payload.state, checkpoint("offset 2").state);
    refusal(&store.commit(commit_staged("main", old, 2, "tx-9")).await.unwrap_err(), Reason::Fenced);
    store.commit(commit_staged("main", resumed.token, 2, "tx-9")).await.unwrap();
    assert_eq!(store.stored_head("main").await.token, resumed.token);
    assert_eq!(successor(&store, "main").await.staged, None);
}

#[tokio::test]
async fn a_branch_that_never_committed_resumes_with_what_it_has_staged() {
    let store = Store::open().await;
    let old = store.take("main").await;
    store.stage(stage("main", old, 1, "tx")).await.unwrap();
    let resumed = successor(&store, "main").await;
    assert_eq!((resumed.head, resumed.staged.unwrap().sequence), (None, 1));
}

#[tokio::test]
async fn what_is_discarded_is_gone_and_its_sequence_is_free() {
    let store = Store::open().await;
    let token = store.take("main").await;
    store.stage(stage("main", token, 1, "tx-1")).await.unwrap();
    try_discard(&store, discard("main", token, "tx-1")).await.unwrap();
    assert_eq!(listed(&store, "main").await, None);
    refusal(&store.commit(commit_staged("main", token, 1, "tx-1")).await.unwrap_err(), Reason::StateMissing);
    // It may have been committed as well, so a repeat is not told that it was discarded.
    refusal(&try_discard(&store, discard("main", token, "tx-1")).await.unwrap_err(), Reason::StateMissing);
    store.commit(commit("main", token, 1)).await.unwrap();
    let audit = ListAuditRequest { pipeline: ORDERS.to_owned(), ..ListAuditRequest::default() };
    let records = store.pipelines().list_audit(audit).await.unwrap().into_inner().records;
    let record = &records[0];
    assert_eq!((record.action(), record.branch.as_str(), record.token), (Action::StagedDiscarded, "main", token));
    assert_eq!(record.reason, "the sink rolled back");
    assert!(record.detail.contains("'tx-1'"), "{record:?}");
}

#[tokio::test]
async fn a_worker_that_was_replaced_discards_nothing() {
    let store = Store::open().await;
    let old = store.take("main").await;
    store.stage(stage("main", old, 1, "tx")).await.unwrap();
    let new = successor(&store, "main").await.token;
    refusal(&try_discard(&store, discard("main", old, "tx")).await.unwrap_err(), Reason::Fenced);
    assert!(listed(&store, "main").await.is_some());
    try_discard(&store, discard("main", new, "tx")).await.unwrap();
}

#[tokio::test]
async fn a_rewind_discards_what_is_staged() {
    let store = Store::open().await;
    let token = store.with_history("main", 3).await;
    store.stage(stage("main", token, 4, "tx")).await.unwrap();
    store.rewind(rewind("main", 3, 3)).await.unwrap();
    assert_eq!(listed(&store, "main").await, None, "to its own head, too");
    let token = store.take("main").await;
    refusal(&store.commit(commit_staged("main", token, 4, "tx")).await.unwrap_err(), Reason::StateMissing);
    store.commit(commit("main", token, 4)).await.unwrap();
}

#[tokio::test]
async fn neither_a_restart_nor_a_release_removes_it() {
    let store = Store::open().await;
    let token = store.take("main").await;
    store.stage(stage("main", token, 1, "tx-1")).await.unwrap();
    let store = store.restarted().await;
    refusal(&store.commit(commit("main", token, 1)).await.unwrap_err(), Reason::StagedPending);
    let release = fencepost::v1::ReleaseRequest { lease: Some(lease("main", token)), cluster: None };
    store.leases().release(release).await.unwrap();
    let store = store.restarted().await;
    let resumed = store.resume(resume_as("loader-2", "main")).await.unwrap();
    assert_eq!(resumed.staged.unwrap().checkpoint.unwrap().state, checkpoint("offset 1").state);
    store.commit(commit_staged("main", resumed.token, 1, "tx-1")).await.unwrap();
    store.stage(stage("main", resumed.token, 2, "tx-2")).await.unwrap();
    let store = store.restarted().await;
    let head = store.stored_head("main").await.checkpoint.unwrap();
    assert_eq!(head.state, checkpoint("offset 1").state, "it is read where it was staged");
    try_discard(&store, discard("main", resumed.token, "tx-2")).await.unwrap();
    let store = store.restarted().await;
    assert_eq!(listed(&store, "main").await, None);
    store.commit(commit("main", resumed.token, 2)).await.unwrap();
}

#[tokio::test]
async fn history_lists_rewinds_and_forks_what_was_committed_by_reference() {
    let store = Store::open().await;
    let mut token = store.take("main").await;
    for sequence in 1..=4 {
        let id = format!("tx-{sequence}");
        store.stage(stage("main", token, sequence, &id)).await.unwrap();
        store.commit(commit_staged("main", token, sequence, &id)).await.unwrap();
    }
    let list = ListCheckpointsRequest {
        pipeline: ORDERS.to_owned(),
        branch: "main".to_owned(),
        ..ListCheckpointsRequest::default()
    };
    let listed = store.checkpoints().list_checkpoints(list).await.unwrap().into_inner().checkpoints;
    let rows: Vec<_> =
        listed.iter().map(|it| (it.sequence, it.checkpoint.as_ref().unwrap().position.clone())).collect();
    let expected: Vec<_> = (1..=4).rev().map(|it| (it, checkpoint(&format!("offset {it}")).position)).collect();
    assert_eq!(rows, expected);
    let fork = ForkRequest {
        source_pipeline: ORDERS.to_owned(),
        source_branch: "main".to_owned(),
        from: Some(fencepost::v1::fork_request::From::Sequence(2)),
        pipeline: ORDERS.to_owned(),
        branch: "copy".to_owned(),
        ..ForkRequest::default()
    };
    store.pipelines().fork(fork).await.unwrap();
    assert_eq!(store.stored_head("copy").await.checkpoint.unwrap().state, checkpoint("offset 2").state);
    store.rewind(rewind("main", 4, 3)).await.unwrap();
    let resumed = store.resume(resume_as("loader-1", "main")).await.unwrap();
    assert_eq!(resumed.head.unwrap().checkpoint.unwrap().state, checkpoint("offset 3").state);
    token = resumed.token;
    // The sequence is used again, and the later one is the one.
    store
        .stage(StageRequest { checkpoint: Some(checkpoint("again")), ..stage("main", token, 4, "tx-4") })
        .await
        .unwrap();
    store.commit(commit_staged("main", token, 4, "tx-4")).await.unwrap();
    assert_eq!(store.checkpoint("main", 4).await.unwrap().checkpoint.unwrap().state, checkpoint("again").state);
}

#[tokio::test]
async fn several_branches_are_committed_by_reference_together_with_others() {
    let store = Store::open().await;
    let (ewr, jfk, lga) = (store.take("ewr").await, store.take("jfk").await, store.take("lga").await);
    store.stage(stage("ewr", ewr, 1, "tx-ewr")).await.unwrap();
    store.stage(stage("jfk", jfk, 1, "tx-jfk")).await.unwrap();
    let mut all = commit_staged("ewr", ewr, 1, "tx-ewr");
    all.branches.push(commit_staged("jfk", jfk, 1, "tx-ewr").branches.remove(0));
    all.branches.push(commit("lga", lga, 1).branches.remove(0));
    let wrong = store.commit(all.clone()).await.unwrap_err();
    assert_eq!(refusal(&wrong, Reason::StagedPending)["branch"], "jfk");
    assert!(listed(&store, "ewr").await.is_some(), "nothing of a refused commit is done");
    all.branches[1].staged = "tx-jfk".to_owned();
    let lsn = store.commit(all).await.unwrap().lsn;
    for branch in ["ewr", "jfk", "lga"] {
        let head = store.stored_head(branch).await;
        assert_eq!((head.lsn, head.checkpoint.unwrap().state), (lsn, checkpoint("offset 1").state));
    }
}

#[tokio::test]
async fn retention_counts_what_was_staged_as_what_it_became() {
    let store = Store::open().await;
    store.keep_last(2).await;
    let token = store.take("main").await;
    for sequence in 1..=3 {
        store.stage(stage("main", token, sequence, "tx")).await.unwrap();
        store.commit(commit_staged("main", token, sequence, "tx")).await.unwrap();
    }
    assert_eq!(refusal(&store.checkpoint("main", 1).await.unwrap_err(), Reason::Compacted)["oldest"], "2");
    assert_eq!(store.checkpoint("main", 2).await.unwrap().sequence, 2);
}

#[tokio::test]
async fn nobody_is_fenced_for_a_worker_that_cannot_have_what_is_staged() {
    let store = small().await;
    let token = store.take("main").await;
    store.stage(stage("main", token, 1, "tx")).await.unwrap();
    seal(&store).await;
    store.damage("state at offset 1");
    refusal(&store.resume(take_over("main", "loader-2")).await.unwrap_err(), Reason::Corrupt);
    try_discard(&store, discard("main", token, "tx")).await.expect("it has the branch still");
    assert_eq!(successor(&store, "main").await.staged, None);
}

#[tokio::test]
async fn a_rewind_to_the_present_head_ends_what_is_staged_and_cannot_be_read() {
    for commits in [0, 2] {
        let store = small().await;
        let token = store.with_history("main", commits).await;
        store.stage(stage("main", token, commits + 1, "tx")).await.unwrap();
        seal(&store).await;
        store.damage(&format!("state at offset {}", commits + 1));
        let status = store.resume(take_over("main", "loader-2")).await.unwrap_err();
        refusal(&status, Reason::Corrupt);
        let text = status.message();
        assert!(text.contains("ask the sink") && text.contains("fencepost rewind prod/orders --branch main"), "{text}");
        assert_eq!(store.rewind(rewind("main", commits, commits)).await.unwrap().sequence, commits);
        let resumed = successor(&store, "main").await;
        assert_eq!((resumed.head.map_or(0, |head| head.sequence), resumed.staged), (commits, None));
        store.commit(commit("main", resumed.token, commits + 1)).await.unwrap();
    }
}

#[tokio::test]
async fn a_head_is_refused_whose_payload_is_damaged_where_it_was_staged() {
    let store = small().await;
    let token = store.take("main").await;
    store.stage(stage("main", token, 1, "tx")).await.unwrap();
    store.commit(commit_staged("main", token, 1, "tx")).await.unwrap();
    seal(&store).await;
    store.damage("state at offset 1");
    refusal(&store.resume(take_over("main", "loader-2")).await.unwrap_err(), Reason::Corrupt);
    refusal(&store.checkpoint("main", 1).await.unwrap_err(), Reason::Corrupt);
    store.commit(commit("main", token, 2)).await.expect("it has the branch still");
}

#[tokio::test]
async fn on_a_stream_a_session_that_meets_something_staged_is_poisoned() {
    let store = Store::open().await;
    let token = store.take("main").await;
    store.stage(stage("main", token, 1, "tx")).await.unwrap();
    let number = |number, request| fencepost::v1::SessionCommit { session: 1, number, commit: Some(request) };
    let commits = vec![
        number(1, commit("main", token, 1)),
        number(2, commit_staged("main", token, 1, "tx")),
        fencepost::v1::SessionCommit { session: 2, ..number(1, commit_staged("main", token, 1, "tx")) },
    ];
    let message = fencepost::v1::CommitStreamRequest { commits, closed_sessions: Vec::new() };
    let mut answers = store.commits().commit_stream(tokio_stream::iter([message])).await.unwrap().into_inner();
    let mut results = Vec::new();
    while let Some(answer) = answers.message().await.unwrap() {
        results.extend(answer.results);
    }
    results.sort_by_key(|it| (it.session, it.number));
    let refused = |result: &fencepost::v1::SessionResult, reason| match &result.result {
        Some(fencepost::v1::session_result::Result::Refusal(refusal)) => drop(inner_refusal(Some(refusal), reason)),
        other => panic!("{other:?}"),
    };
    refused(&results[0], Reason::StagedPending);
    refused(&results[1], Reason::SessionPoisoned);
    assert_eq!(store.head("main").await, 1, "another session commits it");
}

#[tokio::test]
async fn a_stage_is_a_sign_of_life() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let remaining = async || {
        let request = ListBranchesRequest { pipeline: ORDERS.to_owned(), ..ListBranchesRequest::default() };
        let branches = store.checkpoints().list_branches(request).await.unwrap().into_inner().branches;
        branches[0].lease.as_ref().unwrap().remaining_ms
    };
    while remaining().await > 29_700 {
        tokio::time::sleep(std::time::Duration::from_millis(20)).await;
    }
    store.stage(stage("main", token, 1, "tx")).await.unwrap();
    assert!(remaining().await > 29_700);
    let keep = KeepAliveRequest { leases: vec![lease("main", token)], cluster: None };
    assert!(store.leases().keep_alive(keep).await.unwrap().into_inner().results[0].refusal.is_none());
}
