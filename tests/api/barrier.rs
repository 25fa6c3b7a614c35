//! Barriers: all participants move in one fact, or none of them does.

use std::time::Duration;

use fencepost::Reason;
use fencepost::log::v1::fact::Kind;
use fencepost::v1::audit_record::Action;
use fencepost::v1::barrier::State;
use fencepost::v1::resolve_commit_response::Outcome as Resolved;
use fencepost::v1::{
    AbortBarrierRequest, ArriveRequest, AwaitBarrierRequest, AwaitBarrierResponse, Barrier, Checkpoint, CommitRequest,
    FenceGroupRequest, ListAuditRequest, ListBarriersRequest, ListBarriersResponse, MergeRequest, OpenBarrierRequest,
    ResolveCommitRequest,
};
use tonic::{Status, Streaming};

use crate::limits::{bad_names, bad_pipelines};
use crate::merge::{merge, try_merge};
use crate::staged::{discard, listed, successor, try_discard};
use crate::support::{
    ORDERS, PATIENCE, Store, checkpoint, commit, commit_staged, lease, refusal, refused_field, rewind, stage,
};

pub(crate) fn open(name: &str, participants: &[&str]) -> OpenBarrierRequest {
    OpenBarrierRequest {
        pipeline: ORDERS.to_owned(),
        name: name.to_owned(),
        participants: participants.iter().map(|it| (*it).to_owned()).collect(),
        actor: "nightly".to_owned(),
        reason: "the day is over".to_owned(),
        ..OpenBarrierRequest::default()
    }
}

pub(crate) fn arrive(barrier: &str, branch: &str, token: u64, stage_id: &str) -> ArriveRequest {
    ArriveRequest {
        pipeline: ORDERS.to_owned(),
        barrier: barrier.to_owned(),
        branch: branch.to_owned(),
        token,
        stage_id: stage_id.to_owned(),
        cluster: None,
    }
}

pub(crate) fn abort(name: &str) -> AbortBarrierRequest {
    AbortBarrierRequest {
        pipeline: ORDERS.to_owned(),
        name: name.to_owned(),
        actor: "ops".to_owned(),
        reason: "lga is closed".to_owned(),
        ..AbortBarrierRequest::default()
    }
}

pub(crate) async fn try_open(store: &Store, request: OpenBarrierRequest) -> Result<Barrier, Status> {
    Ok(store.barriers().open_barrier(request).await?.into_inner().barrier.unwrap())
}

pub(crate) async fn try_arrive(store: &Store, request: ArriveRequest) -> Result<Barrier, Status> {
    Ok(store.barriers().arrive(request).await?.into_inner().barrier.unwrap())
}

pub(crate) async fn try_abort(store: &Store, request: AbortBarrierRequest) -> Result<Barrier, Status> {
    Ok(store.barriers().abort_barrier(request).await?.into_inner().barrier.unwrap())
}

/// Stages the next checkpoint of a branch, which the token is of, and arrives with it.
pub(crate) async fn stage_and_arrive(store: &Store, barrier: &str, branch: &str, token: u64) -> Barrier {
    let stage_id = format!("{barrier}-{branch}");
    let sequence = store.head(branch).await + 1;
    store.stage(stage(branch, token, sequence, &stage_id)).await.unwrap();
    try_arrive(store, arrive(barrier, branch, token, &stage_id)).await.unwrap()
}

async fn follow(store: &Store, name: &str) -> Streaming<AwaitBarrierResponse> {
    let request = AwaitBarrierRequest { pipeline: ORDERS.to_owned(), name: name.to_owned(), cluster: None };
    store.barriers().await_barrier(request).await.unwrap().into_inner()
}

/// The next change that a stream tells; `None` at its end. A heartbeat may come in between.
async fn next(stream: &mut Streaming<AwaitBarrierResponse>, before: Option<&Barrier>) -> Option<Barrier> {
    let change = async {
        loop {
            let barrier = stream.message().await.unwrap()?.barrier.unwrap();
            if before != Some(&barrier) {
                return Some(barrier);
            }
        }
    };
    tokio::time::timeout(PATIENCE, change).await.expect("each change is told")
}

/// The barrier as it is now.
async fn look(store: &Store, name: &str) -> Barrier {
    next(&mut follow(store, name).await, None).await.unwrap()
}

async fn list(store: &Store, request: ListBarriersRequest) -> ListBarriersResponse {
    store.barriers().list_barriers(request).await.unwrap().into_inner()
}

fn arrived(barrier: &Barrier) -> Vec<(&str, bool)> {
    barrier.participants.iter().map(|it| (it.branch.as_str(), it.arrived)).collect()
}

/// Opens barriers with these numbers, all at once.
async fn open_many(store: &Store, numbers: std::ops::Range<u32>, participants: &[&str], timeout_ms: u64) {
    let mut opening = tokio::task::JoinSet::new();
    for number in numbers {
        let mut barriers = store.barriers();
        let request = OpenBarrierRequest { timeout_ms, ..open(&format!("b-{number}"), participants) };
        opening.spawn(async move { barriers.open_barrier(request).await.map(drop) });
    }
    opening.join_all().await.into_iter().for_each(Result::unwrap);
}

#[tokio::test]
async fn the_arrival_that_completes_the_set_commits_all_branches_in_one_fact() {
    let store = Store::open().await;
    let (ewr, jfk) = (store.with_history("ewr", 2).await, store.take("jfk").await);
    let opened = try_open(&store, open("day-1", &["jfk", "ewr"])).await.unwrap();
    assert_eq!((opened.state(), arrived(&opened)), (State::Open, vec![("ewr", false), ("jfk", false)]));
    let half = stage_and_arrive(&store, "day-1", "jfk", jfk).await;
    assert_eq!((half.state(), arrived(&half)), (State::Open, vec![("ewr", false), ("jfk", true)]));
    assert_eq!(half.participants[1].sequence, 1);
    assert_eq!(listed(&store, "jfk").await.unwrap().barrier, "day-1");
    assert_eq!((store.head("ewr").await, store.head("jfk").await), (2, 0), "nothing moves before all are there");
    let whole = stage_and_arrive(&store, "day-1", "ewr", ewr).await;
    assert_eq!((whole.state(), arrived(&whole)), (State::Committed, vec![("ewr", true), ("jfk", true)]));
    assert_eq!((whole.opened_lsn, whole.opened_at_ms), (opened.opened_lsn, opened.opened_at_ms));
    for (branch, sequence, token) in [("ewr", 3, ewr), ("jfk", 1, jfk)] {
        let head = store.stored_head(branch).await;
        assert_eq!((head.sequence, head.lsn, head.token), (sequence, whole.closed_lsn, token));
        assert_eq!((head.barrier.as_str(), head.committed_at_ms), ("day-1", whole.closed_at_ms));
        assert_eq!(head.checkpoint.unwrap().state, checkpoint(&format!("offset {sequence}")).state);
        assert_eq!(listed(&store, branch).await, None);
        store.commit(commit(branch, token, sequence + 1)).await.unwrap();
    }
    let facts = store.facts(fencepost::v1::TailRequest::default()).await.unwrap();
    let commits = facts.iter().filter(|it| matches!(&it.fact.as_ref().unwrap().kind, Some(Kind::BarrierArrived(_))));
    assert_eq!(commits.count(), 1, "the last arrival is the commit itself");
}

#[tokio::test]
async fn opening_again_is_answered_with_what_became_of_the_barrier_since() {
    let store = Store::open().await;
    let (ewr, jfk) = (store.take("ewr").await, store.take("jfk").await);
    let request = open("day-1", &["ewr", "jfk"]);
    let opened = try_open(&store, request.clone()).await.unwrap();
    assert_eq!(try_open(&store, request.clone()).await.unwrap(), opened);
    let half = stage_and_arrive(&store, "day-1", "ewr", ewr).await;
    assert_eq!(try_open(&store, open("day-1", &["jfk", "ewr"])).await.unwrap(), half, "in whichever order");
    let whole = stage_and_arrive(&store, "day-1", "jfk", jfk).await;
    assert_eq!(try_open(&store, request.clone()).await.unwrap(), whole);
    let store = store.restarted().await;
    assert_eq!(try_open(&store, request).await.unwrap(), whole);
    try_open(&store, open("day-2", &["ewr"])).await.unwrap();
    let given_up = try_abort(&store, abort("day-2")).await.unwrap();
    assert_eq!(try_open(&store, open("day-2", &["ewr"])).await.unwrap(), given_up);
}

#[tokio::test]
async fn a_name_is_taken_by_its_participants_open_or_closed() {
    let store = Store::open().await;
    let ewr = store.take("ewr").await;
    try_open(&store, open("day-1", &["ewr"])).await.unwrap();
    let other = || open("day-1", &["ewr", "jfk"]);
    refused_field(&try_open(&store, other()).await.unwrap_err(), Reason::Exists, "name");
    stage_and_arrive(&store, "day-1", "ewr", ewr).await;
    let status = try_open(&store, other()).await.unwrap_err();
    refused_field(&status, Reason::Exists, "name");
    assert!(status.message().contains("participants are ewr:"), "{status:?}");
    let elsewhere = OpenBarrierRequest { pipeline: "prod/elsewhere".to_owned(), ..other() };
    try_open(&store, elsewhere).await.expect("names are of their pipeline");
}

#[tokio::test]
async fn a_stale_token_arrives_nowhere() {
    let store = Store::open().await;
    let old = store.take("ewr").await;
    try_open(&store, open("day-1", &["ewr"])).await.unwrap();
    store.stage(stage("ewr", old, 1, "tx")).await.unwrap();
    let new = successor(&store, "ewr").await.token;
    refusal(&try_arrive(&store, arrive("day-1", "ewr", old, "tx")).await.unwrap_err(), Reason::Fenced);
    assert_eq!(arrived(&look(&store, "day-1").await), [("ewr", false)]);
    let whole = try_arrive(&store, arrive("day-1", "ewr", new, "tx")).await.unwrap();
    assert_eq!(whole.state(), State::Committed);
    assert_eq!(store.stored_head("ewr").await.token, new);
    // Whoever was replaced is told that, and not that its data is late.
    refusal(&try_arrive(&store, arrive("day-1", "ewr", old, "other")).await.unwrap_err(), Reason::Fenced);
    refusal(&try_arrive(&store, arrive("never", "ewr", old, "tx")).await.unwrap_err(), Reason::Fenced);
}

#[tokio::test]
async fn a_replaced_participant_arrives_again() {
    let store = Store::open().await;
    let (ewr, old) = (store.take("ewr").await, store.take("jfk").await);
    try_open(&store, open("day-1", &["ewr", "jfk"])).await.unwrap();
    stage_and_arrive(&store, "day-1", "jfk", old).await;
    let resumed = successor(&store, "jfk").await;
    let staged = resumed.staged.unwrap();
    assert_eq!((staged.stage_id.as_str(), staged.barrier.as_str()), ("day-1-jfk", ""));
    assert_eq!(resumed.barriers.len(), 1);
    assert_eq!(
        arrived(&look(&store, "day-1").await),
        [("ewr", false), ("jfk", false)],
        "an arrival ends with its worker"
    );
    let half = stage_and_arrive(&store, "day-1", "ewr", ewr).await;
    assert_eq!(half.state(), State::Open, "the arrival of who was replaced does not count");
    let missing = &half.participants[1];
    assert_eq!((missing.arrived, missing.holder.as_str()), (false, "loader-2"), "who is missing is named");
    let whole = try_arrive(&store, arrive("day-1", "jfk", resumed.token, "day-1-jfk")).await.unwrap();
    assert_eq!(whole.state(), State::Committed);
    assert_eq!(store.stored_head("jfk").await.token, resumed.token);
}

#[tokio::test]
async fn a_worker_that_released_its_branch_after_it_arrived_is_waited_for_no_more() {
    let store = Store::open().await;
    let (ewr, jfk) = (store.take("ewr").await, store.take("jfk").await);
    try_open(&store, open("day-1", &["ewr", "jfk"])).await.unwrap();
    stage_and_arrive(&store, "day-1", "jfk", jfk).await;
    let release = fencepost::v1::ReleaseRequest { lease: Some(lease("jfk", jfk)), cluster: None };
    store.leases().release(release).await.unwrap();
    assert_eq!(stage_and_arrive(&store, "day-1", "ewr", ewr).await.state(), State::Committed);
    let store = store.restarted().await;
    assert_eq!((store.head("ewr").await, store.stored_head("jfk").await.token), (1, jfk));
}

#[tokio::test]
async fn a_repeat_of_an_arrival_is_answered_with_the_barrier_as_it_is() {
    let store = Store::open().await;
    let (ewr, jfk) = (store.take("ewr").await, store.take("jfk").await);
    try_open(&store, open("day-1", &["ewr", "jfk"])).await.unwrap();
    let half = stage_and_arrive(&store, "day-1", "ewr", ewr).await;
    let again = async || try_arrive(&store, arrive("day-1", "ewr", ewr, "day-1-ewr")).await;
    assert_eq!(again().await.unwrap(), half);
    let whole = stage_and_arrive(&store, "day-1", "jfk", jfk).await;
    assert_eq!(again().await.unwrap(), whole, "also once it is complete: this was no late arrival");
    let store = store.restarted().await;
    let last = async || try_arrive(&store, arrive("day-1", "jfk", jfk, "day-1-jfk")).await;
    assert_eq!(last().await.unwrap(), whole, "and so is the arrival that completed it");
}

#[tokio::test]
async fn who_comes_too_late_is_told_and_commits_to_a_branch_of_its_own() {
    let store = Store::open().await;
    let ewr = store.take("ewr").await;
    try_open(&store, open("day-1", &["ewr"])).await.unwrap();
    let late_for = |name: &str| Checkpoint { late_for: name.to_owned(), ..checkpoint("late") };
    let tolerance = store.take("ewr-late").await;
    let tagged = |name: &str| {
        let mut request = commit("ewr-late", tolerance, 1);
        request.branches[0].checkpoint = Some(late_for(name));
        request
    };
    let early = store.commit(tagged("day-1")).await.unwrap_err();
    refused_field(&early, Reason::InvalidField, "branches[0].checkpoint.late_for");
    let whole = stage_and_arrive(&store, "day-1", "ewr", ewr).await;
    store.stage(stage("ewr", ewr, 2, "more")).await.unwrap();
    let status = try_arrive(&store, arrive("day-1", "ewr", ewr, "more")).await.unwrap_err();
    let details = refusal(&status, Reason::BarrierClosed);
    assert_eq!((&*details["barrier"], &details["closed_lsn"]), ("day-1", &whole.closed_lsn.to_string()));
    assert!(status.message().contains("late_for = 'day-1'"), "{status:?}");
    assert!(listed(&store, "ewr").await.is_some(), "what is staged stays");
    let unknown = store.commit(tagged("day-2")).await.unwrap_err();
    refused_field(&unknown, Reason::InvalidField, "branches[0].checkpoint.late_for");
    store.commit(tagged("day-1")).await.unwrap();
    assert_eq!(store.stored_head("ewr-late").await.checkpoint.unwrap().late_for, "day-1");
}

#[tokio::test]
async fn late_data_is_merged_later_with_what_the_barrier_committed() {
    let store = Store::open().await;
    let (ewr, late, day) = (store.take("ewr").await, store.take("ewr-late").await, store.take("day").await);
    try_open(&store, open("day-1", &["ewr"])).await.unwrap();
    let whole = stage_and_arrive(&store, "day-1", "ewr", ewr).await;
    let mut request = commit("ewr-late", late, 1);
    request.branches[0].checkpoint = Some(Checkpoint { late_for: "day-1".to_owned(), ..checkpoint("late") });
    let committed = store.commit(request).await.unwrap();
    let inputs = [("ewr", 1), ("ewr-late", 1)];
    let merged = crate::merge::try_merge(&store, crate::merge::merge(day, 1, &inputs)).await.unwrap();
    assert!(!merged.already);
    let told = store.stored_head("day").await.merge.unwrap().inputs;
    let places: Vec<_> = told.iter().map(|input| (input.branch.as_str(), input.lsn)).collect();
    assert_eq!(places, [("ewr", whole.closed_lsn), ("ewr-late", committed.lsn)]);
}

#[tokio::test]
async fn a_deadline_gives_the_barrier_up_and_discards_what_has_arrived() {
    let store = Store::open().await;
    let (ewr, jfk) = (store.with_history("ewr", 1).await, store.take("jfk").await);
    // What it should wait for is there before the deadline can pass.
    store.stage(stage("ewr", ewr, 2, "tx-ewr")).await.unwrap();
    store.stage(stage("jfk", jfk, 1, "tx-jfk")).await.unwrap();
    let request = OpenBarrierRequest { timeout_ms: 1_500, ..open("day-1", &["ewr", "jfk", "lga"]) };
    let opened = try_open(&store, request).await.unwrap();
    assert_eq!(opened.deadline_ms, opened.opened_at_ms + 1_500);
    try_arrive(&store, arrive("day-1", "ewr", ewr, "tx-ewr")).await.unwrap();
    let mut stream = follow(&store, "day-1").await;
    let waiting = next(&mut stream, None).await.unwrap();
    let given_up =
        if waiting.state() == State::Open { next(&mut stream, Some(&waiting)).await.unwrap() } else { waiting };
    assert_eq!(given_up.state(), State::Aborted);
    assert!(given_up.closed_at_ms >= opened.deadline_ms, "{given_up:?}");
    assert_eq!(given_up.reason, "the deadline passed; missing: jfk (of loader-1), lga (never held)");
    assert_eq!(arrived(&given_up), [("ewr", true), ("jfk", false), ("lga", false)]);
    let holders: Vec<&str> = given_up.participants.iter().map(|it| it.holder.as_str()).collect();
    assert_eq!(holders, ["loader-1", "loader-1", ""]);
    assert_eq!(next(&mut stream, None).await, None, "a stream ends with its barrier");
    assert_eq!(listed(&store, "ewr").await, None);
    store.commit(commit("ewr", ewr, 2)).await.expect("the sequence is free again");
    assert_eq!(listed(&store, "jfk").await.unwrap().stage_id, "tx-jfk", "what had not arrived is its worker's affair");
    let status = try_arrive(&store, arrive("day-1", "jfk", jfk, "tx-jfk")).await.unwrap_err();
    let details = refusal(&status, Reason::BarrierAborted);
    assert_eq!((&*details["barrier"], &details["closed_lsn"]), ("day-1", &given_up.closed_lsn.to_string()));
    assert!(status.message().contains("missing: jfk (of loader-1), lga (never held)"), "{status:?}");
    let audit = ListAuditRequest { pipeline: ORDERS.to_owned(), ..ListAuditRequest::default() };
    let records = store.pipelines().list_audit(audit).await.unwrap().into_inner().records;
    assert_eq!((records[0].action(), records[0].actor.as_str()), (Action::BarrierAborted, ""));
    assert_eq!(records[0].detail, "barrier 'day-1'; missing: jfk (of loader-1), lga (never held)");
}

#[tokio::test]
async fn a_deadline_that_passed_while_the_server_was_down_counts() {
    let store = Store::open().await;
    let ewr = store.take("ewr").await;
    let request = OpenBarrierRequest { timeout_ms: 1, ..open("day-1", &["ewr", "jfk"]) };
    try_open(&store, request).await.unwrap();
    let patient = OpenBarrierRequest { timeout_ms: 3_600_000, ..open("day-2", &["ewr", "jfk"]) };
    try_open(&store, patient).await.unwrap();
    stage_and_arrive(&store, "day-2", "ewr", ewr).await;
    let store = store.restarted().await;
    let given_up = look(&store, "day-1").await;
    assert_eq!(given_up.state(), State::Aborted);
    let open = look(&store, "day-2").await;
    assert_eq!((open.state(), arrived(&open)), (State::Open, vec![("ewr", true), ("jfk", false)]));
}

#[tokio::test]
async fn an_abort_says_who_and_why_and_discards_what_has_arrived() {
    let store = Store::open().await;
    let (ewr, jfk) = (store.take("ewr").await, store.take("jfk").await);
    try_open(&store, open("day-1", &["ewr", "jfk", "lga"])).await.unwrap();
    stage_and_arrive(&store, "day-1", "ewr", ewr).await;
    let unexplained = AbortBarrierRequest { reason: " ".to_owned(), ..abort("day-1") };
    refused_field(&try_abort(&store, unexplained).await.unwrap_err(), Reason::InvalidField, "reason");
    let given_up = try_abort(&store, abort("day-1")).await.unwrap();
    assert_eq!(given_up.state(), State::Aborted);
    assert_eq!(given_up.reason, "lga is closed; missing: jfk (of loader-1), lga (never held)");
    assert_eq!(listed(&store, "ewr").await, None);
    assert_eq!(try_abort(&store, abort("day-1")).await.unwrap(), given_up, "a repeat is answered as the first was");
    let status = try_arrive(&store, arrive("day-1", "ewr", ewr, "day-1-ewr")).await.unwrap_err();
    refusal(&status, Reason::BarrierAborted);
    store.stage(stage("jfk", jfk, 1, "tx")).await.unwrap();
    refusal(&try_arrive(&store, arrive("day-1", "jfk", jfk, "tx")).await.unwrap_err(), Reason::BarrierAborted);
    let audit = ListAuditRequest { pipeline: ORDERS.to_owned(), ..ListAuditRequest::default() };
    let records = store.pipelines().list_audit(audit).await.unwrap().into_inner().records;
    let told = |at: usize| (records[at].action(), records[at].actor.as_str(), records[at].reason.as_str());
    assert_eq!(told(0), (Action::BarrierAborted, "ops", "lga is closed"));
    assert_eq!(told(1), (Action::BarrierOpened, "nightly", "the day is over"));
    assert_eq!(records[1].detail, "barrier 'day-1' of ewr, jfk, lga");
    let of_one = ListAuditRequest { branch: "lga".to_owned(), pipeline: ORDERS.to_owned(), ..Default::default() };
    assert_eq!(store.pipelines().list_audit(of_one).await.unwrap().into_inner().records.len(), 2);
}

#[tokio::test]
async fn what_is_complete_is_not_taken_back_by_an_abort() {
    let store = Store::open().await;
    let ewr = store.take("ewr").await;
    try_open(&store, open("day-1", &["ewr"])).await.unwrap();
    stage_and_arrive(&store, "day-1", "ewr", ewr).await;
    let details = refusal(&try_abort(&store, abort("day-1")).await.unwrap_err(), Reason::BarrierClosed);
    assert_eq!(details["barrier"], "day-1");
    assert_eq!(store.head("ewr").await, 1);
}

#[tokio::test]
async fn a_barrier_that_nobody_knows_is_refused_by_its_name() {
    let store = Store::open().await;
    let ewr = store.take("ewr").await;
    let check = |status: Status| assert_eq!(refusal(&status, Reason::StateMissing)["barrier"], "never");
    check(try_arrive(&store, arrive("never", "ewr", ewr, "tx")).await.unwrap_err());
    check(try_abort(&store, abort("never")).await.unwrap_err());
    let request = AwaitBarrierRequest { pipeline: ORDERS.to_owned(), name: "never".to_owned(), cluster: None };
    check(store.barriers().await_barrier(request.clone()).await.unwrap_err());
    let elsewhere = AwaitBarrierRequest { pipeline: "prod/elsewhere".to_owned(), ..request };
    check(store.barriers().await_barrier(elsewhere).await.unwrap_err());
}

#[tokio::test]
async fn only_participants_arrive_and_only_with_what_they_have_staged() {
    let store = Store::open().await;
    let (ewr, jfk) = (store.take("ewr").await, store.take("jfk").await);
    try_open(&store, open("day-1", &["ewr", "lga"])).await.unwrap();
    store.stage(stage("jfk", jfk, 1, "tx")).await.unwrap();
    let stranger = try_arrive(&store, arrive("day-1", "jfk", jfk, "tx")).await.unwrap_err();
    refused_field(&stranger, Reason::InvalidField, "branch");
    assert!(stranger.message().contains("ewr, lga"), "{stranger:?}");
    let empty_handed = try_arrive(&store, arrive("day-1", "ewr", ewr, "tx")).await.unwrap_err();
    assert_eq!(refusal(&empty_handed, Reason::StateMissing)["stage_id"], "tx");
    store.stage(stage("ewr", ewr, 1, "tx-1")).await.unwrap();
    let other = try_arrive(&store, arrive("day-1", "ewr", ewr, "tx-2")).await.unwrap_err();
    assert_eq!(refusal(&other, Reason::StagedPending)["stage_id"], "tx-1");
}

#[tokio::test]
async fn who_has_arrived_is_committed_by_the_barrier_alone_unless_it_withdraws() {
    let store = Store::open().await;
    let (ewr, jfk) = (store.take("ewr").await, store.take("jfk").await);
    try_open(&store, open("day-1", &["ewr", "jfk"])).await.unwrap();
    try_open(&store, open("day-2", &["ewr"])).await.unwrap();
    stage_and_arrive(&store, "day-1", "ewr", ewr).await;
    let pending = |status: Status| assert_eq!(refusal(&status, Reason::StagedPending)["barrier"], "day-1");
    pending(store.commit(commit_staged("ewr", ewr, 1, "day-1-ewr")).await.unwrap_err());
    pending(store.commit(commit("ewr", ewr, 1)).await.unwrap_err());
    pending(store.stage(stage("ewr", ewr, 1, "other")).await.unwrap_err());
    pending(try_arrive(&store, arrive("day-2", "ewr", ewr, "day-1-ewr")).await.unwrap_err());
    try_discard(&store, discard("ewr", ewr, "day-1-ewr")).await.unwrap();
    assert_eq!(arrived(&look(&store, "day-1").await), [("ewr", false), ("jfk", false)]);
    assert_eq!(stage_and_arrive(&store, "day-1", "jfk", jfk).await.state(), State::Open);
    store.stage(stage("ewr", ewr, 1, "anew")).await.unwrap();
    let whole = try_arrive(&store, arrive("day-1", "ewr", ewr, "anew")).await.unwrap();
    assert_eq!(whole.state(), State::Committed);
}

#[tokio::test]
async fn a_rewind_voids_the_arrival_of_its_branch() {
    let store = Store::open().await;
    let (ewr, jfk) = (store.with_history("ewr", 2).await, store.take("jfk").await);
    try_open(&store, open("day-1", &["ewr", "jfk"])).await.unwrap();
    stage_and_arrive(&store, "day-1", "ewr", ewr).await;
    let mut stream = follow(&store, "day-1").await;
    let before = next(&mut stream, None).await.unwrap();
    store.rewind(rewind("ewr", 2, 1)).await.unwrap();
    let after = next(&mut stream, Some(&before)).await.unwrap();
    assert_eq!(arrived(&after), [("ewr", false), ("jfk", false)]);
    assert_eq!(after.participants[0].holder, "", "a rewind gave the branch to nobody");
    assert_eq!(stage_and_arrive(&store, "day-1", "jfk", jfk).await.state(), State::Open);
    let ewr = store.take("ewr").await;
    assert_eq!(stage_and_arrive(&store, "day-1", "ewr", ewr).await.state(), State::Committed);
    assert_eq!(store.head("ewr").await, 2);
}

#[tokio::test]
async fn a_fence_of_the_pipeline_voids_all_arrivals_and_leaves_what_is_staged() {
    let store = Store::open().await;
    let (ewr, jfk) = (store.take("ewr").await, store.take("jfk").await);
    try_open(&store, open("day-1", &["ewr", "jfk", "lga"])).await.unwrap();
    stage_and_arrive(&store, "day-1", "ewr", ewr).await;
    stage_and_arrive(&store, "day-1", "jfk", jfk).await;
    let mut stream = follow(&store, "day-1").await;
    let before = next(&mut stream, None).await.unwrap();
    let fence = FenceGroupRequest { pipeline: ORDERS.to_owned(), reason: "five".to_owned(), ..Default::default() };
    store.pipelines().fence_group(fence).await.unwrap();
    let after = next(&mut stream, Some(&before)).await.unwrap();
    assert_eq!(arrived(&after), [("ewr", false), ("jfk", false), ("lga", false)]);
    refusal(&try_arrive(&store, arrive("day-1", "ewr", ewr, "day-1-ewr")).await.unwrap_err(), Reason::Fenced);
    assert_eq!(listed(&store, "ewr").await.unwrap().stage_id, "day-1-ewr");
    let resumed = successor(&store, "ewr").await;
    let again = try_arrive(&store, arrive("day-1", "ewr", resumed.token, "day-1-ewr")).await.unwrap();
    assert_eq!(arrived(&again), [("ewr", true), ("jfk", false), ("lga", false)]);
}

#[tokio::test]
async fn whoever_awaits_a_barrier_is_told_each_change_and_its_end() {
    let store = Store::open().await;
    let (ewr, jfk) = (store.take("ewr").await, store.take("jfk").await);
    let opened = try_open(&store, open("day-1", &["ewr", "jfk"])).await.unwrap();
    let mut stream = follow(&store, "day-1").await;
    assert_eq!(next(&mut stream, None).await.unwrap(), opened, "first as it is");
    let half = stage_and_arrive(&store, "day-1", "ewr", ewr).await;
    assert_eq!(next(&mut stream, Some(&opened)).await.unwrap(), half);
    let resumed = successor(&store, "ewr").await;
    let voided = next(&mut stream, Some(&half)).await.unwrap();
    assert_eq!((arrived(&voided)[0], voided.participants[0].holder.as_str()), (("ewr", false), "loader-2"));
    let again = try_arrive(&store, arrive("day-1", "ewr", resumed.token, "day-1-ewr")).await.unwrap();
    assert_eq!(next(&mut stream, Some(&voided)).await.unwrap(), again);
    try_discard(&store, discard("ewr", resumed.token, "day-1-ewr")).await.unwrap();
    let withdrawn = next(&mut stream, Some(&again)).await.unwrap();
    assert_eq!(arrived(&withdrawn)[0], ("ewr", false));
    let half = stage_and_arrive(&store, "day-1", "jfk", jfk).await;
    assert_eq!(next(&mut stream, Some(&withdrawn)).await.unwrap(), half);
    let whole = stage_and_arrive(&store, "day-1", "ewr", resumed.token).await;
    assert_eq!(next(&mut stream, Some(&half)).await.unwrap(), whole);
    assert_eq!(next(&mut stream, None).await, None, "and then the stream ends");
    let mut late = follow(&store, "day-1").await;
    assert_eq!((next(&mut late, None).await.unwrap(), next(&mut late, None).await), (whole, None));
}

#[tokio::test]
async fn whoever_awaits_hears_a_heartbeat_when_nothing_happens() {
    let store = Store::open().await;
    let opened = try_open(&store, open("day-1", &["ewr"])).await.unwrap();
    let mut stream = follow(&store, "day-1").await;
    assert_eq!(next(&mut stream, None).await.unwrap(), opened);
    // Time does not pass for real from here on: it jumps to the next timer once everybody waits.
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    for beat in 1..=3 {
        let heartbeat = stream.message().await.unwrap().unwrap();
        assert_eq!(heartbeat.barrier.unwrap(), opened);
        assert!(begun.elapsed() >= Duration::from_secs(5 * beat));
    }
}

#[tokio::test]
async fn whoever_awaits_hears_a_heartbeat_however_often_other_barriers_change() {
    let store = Store::open().await;
    let opened = try_open(&store, open("day-1", &["ewr"])).await.unwrap();
    let mut stream = follow(&store, "day-1").await;
    assert_eq!(next(&mut stream, None).await.unwrap(), opened);
    let others = async {
        for number in 0.. {
            let name = format!("b-{number}");
            try_open(&store, open(&name, &["jfk"])).await.unwrap();
            try_abort(&store, abort(&name)).await.unwrap();
        }
    };
    tokio::select! {
        () = others => unreachable!("there is always another one"),
        heartbeat = tokio::time::timeout(PATIENCE, stream.message()) => {
            let heartbeat = heartbeat.expect("a heartbeat comes").unwrap().unwrap();
            assert_eq!(heartbeat.barrier.unwrap(), opened);
        }
    }
}

#[tokio::test]
async fn ids_of_barriers_are_no_ids_for_other_commits() {
    let store = Store::open().await;
    let ewr = store.take("ewr").await;
    let opened = try_open(&store, open("day-1", &["ewr"])).await.unwrap();
    let commit_id = format!("barrier:{}", fencepost::Lsn::from_u64(opened.opened_lsn));
    let taken = CommitRequest { commit_id: commit_id.clone(), ..commit("ewr", ewr, 1) };
    refused_field(&store.commit(taken).await.unwrap_err(), Reason::InvalidName, "commit_id");
    let merge = MergeRequest { commit_id: commit_id.clone(), ..merge(ewr, 1, &[("jfk", 1)]) };
    refused_field(&try_merge(&store, merge).await.unwrap_err(), Reason::InvalidName, "commit_id");
    let whole = stage_and_arrive(&store, "day-1", "ewr", ewr).await;
    let request = ResolveCommitRequest { pipeline: ORDERS.to_owned(), commit_id, ..ResolveCommitRequest::default() };
    let resolved = store.commits().resolve_commit(request).await.unwrap().into_inner();
    assert_eq!((resolved.outcome(), resolved.lsn), (Resolved::Applied, whole.closed_lsn));
}

#[tokio::test]
async fn a_server_that_stops_ends_the_waiting() {
    let store = Store::open().await;
    try_open(&store, open("day-1", &["ewr"])).await.unwrap();
    let mut stream = follow(&store, "day-1").await;
    let opened = next(&mut stream, None).await.unwrap();
    let store = tokio::time::timeout(PATIENCE, store.restarted()).await.expect("a stream does not hold the server up");
    let end = tokio::time::timeout(PATIENCE, stream.message()).await.unwrap();
    assert!(matches!(end, Ok(None) | Err(_)), "{end:?}");
    assert_eq!(look(&store, "day-1").await, opened);
}

#[tokio::test]
async fn a_restart_changes_nothing_at_any_point_of_a_barrier() {
    let mut store = Store::open().await;
    let (ewr, jfk) = (store.take("ewr").await, store.take("jfk").await);
    let mut told = try_open(&store, open("day-1", &["ewr", "jfk"])).await.unwrap();
    for (branch, token) in [("ewr", ewr), ("jfk", jfk)] {
        store = store.restarted().await;
        assert_eq!(look(&store, "day-1").await, told);
        store.stage(stage(branch, token, 1, "tx")).await.unwrap();
        store = store.restarted().await;
        told = try_arrive(&store, arrive("day-1", branch, token, "tx")).await.unwrap();
    }
    assert_eq!(told.state(), State::Committed);
    let store = store.restarted().await;
    assert_eq!(look(&store, "day-1").await, told);
    assert_eq!((store.head("ewr").await, store.head("jfk").await), (1, 1));
}

#[tokio::test]
async fn the_commit_of_a_barrier_is_resolved_like_any_other() {
    let store = Store::open().await;
    let ewr = store.take("ewr").await;
    try_open(&store, open("day-1", &["ewr"])).await.unwrap();
    let whole = stage_and_arrive(&store, "day-1", "ewr", ewr).await;
    let commit_id = store.stored_head("ewr").await.commit_id;
    let resolve = async || {
        let (pipeline, commit_id) = (ORDERS.to_owned(), commit_id.clone());
        let request = ResolveCommitRequest { pipeline, commit_id, ..ResolveCommitRequest::default() };
        store.commits().resolve_commit(request).await.unwrap().into_inner()
    };
    assert_eq!((resolve().await.outcome(), resolve().await.lsn), (Resolved::Applied, whole.closed_lsn));
    store.rewind(rewind("ewr", 1, 0)).await.unwrap();
    assert_eq!(resolve().await.outcome(), Resolved::NotApplied);
}

#[tokio::test]
async fn of_many_who_arrive_at_once_one_completes_the_barrier() {
    let store = Store::open().await;
    let branches: Vec<String> = (0..16).map(|number| format!("shard-{number}")).collect();
    let names: Vec<&str> = branches.iter().map(String::as_str).collect();
    for round in 1..=5 {
        let barrier = format!("round-{round}");
        try_open(&store, open(&barrier, &names)).await.unwrap();
        let mut arriving = tokio::task::JoinSet::new();
        for branch in &branches {
            let token = successor(&store, branch).await.token;
            let request = stage(branch, token, round, &barrier);
            let (mut commits, mut barriers) = (store.commits(), store.barriers());
            let arrive = arrive(&barrier, branch, token, &barrier);
            arriving.spawn(async move {
                commits.stage(request).await.unwrap();
                barriers.arrive(arrive).await.unwrap().into_inner().barrier.unwrap()
            });
        }
        let mut complete = 0;
        while let Some(barrier) = arriving.join_next().await {
            complete += u32::from(barrier.unwrap().state() == State::Committed);
        }
        assert!(complete >= 1);
        let whole = look(&store, &barrier).await;
        for branch in &branches {
            let head = store.stored_head(branch).await;
            assert_eq!((head.sequence, head.lsn), (round, whole.closed_lsn));
        }
    }
}

#[tokio::test]
async fn open_ones_are_listed_first_by_name_and_then_closed_ones_newest_first() {
    let store = Store::open().await;
    let ewr = store.take("ewr").await;
    for name in ["d", "b", "a", "c"] {
        try_open(&store, open(name, &["ewr"])).await.unwrap();
    }
    stage_and_arrive(&store, "c", "ewr", ewr).await;
    try_abort(&store, abort("a")).await.unwrap();
    let elsewhere = OpenBarrierRequest { pipeline: "prod/elsewhere".to_owned(), ..open("z", &["ewr"]) };
    try_open(&store, elsewhere).await.unwrap();
    let of_orders = || ListBarriersRequest { pipeline: ORDERS.to_owned(), ..ListBarriersRequest::default() };
    let pages = async |request: ListBarriersRequest| {
        let (mut found, mut page_token) = (Vec::new(), String::new());
        loop {
            let page = list(&store, ListBarriersRequest { page_token, ..request.clone() }).await;
            assert!(request.page_size == 0 || page.barriers.len() <= request.page_size as usize);
            found.extend(page.barriers);
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return found;
            }
        }
    };
    for page_size in [0, 1, 2, 3, 4, 5] {
        let all = pages(ListBarriersRequest { page_size, ..of_orders() }).await;
        let names: Vec<_> = all.iter().map(|it| (it.name.as_str(), it.state())).collect();
        let expected = [("b", State::Open), ("d", State::Open), ("a", State::Aborted), ("c", State::Committed)];
        assert_eq!(names, expected, "{page_size} in a page");
        let open = pages(ListBarriersRequest { page_size, open_only: true, ..of_orders() }).await;
        assert_eq!(open, all[..2]);
        let everywhere = pages(ListBarriersRequest { page_size, ..ListBarriersRequest::default() }).await;
        let names: Vec<_> = everywhere.iter().map(|it| (it.pipeline.as_str(), it.name.as_str())).collect();
        assert_eq!(names, [("prod/elsewhere", "z"), (ORDERS, "b"), (ORDERS, "d")]);
        for barrier in all {
            assert_eq!(look(&store, &barrier.name).await, barrier, "a row tells all");
        }
    }
    let unknown = ListBarriersRequest { pipeline: "prod/unknown".to_owned(), ..of_orders() };
    refusal(&store.barriers().list_barriers(unknown).await.unwrap_err(), Reason::StateMissing);
    let everywhere = ListBarriersRequest::default;
    for (asked, page_token) in [
        (of_orders(), "b"),
        (of_orders(), "prod/orders"),
        (of_orders(), "prod/orders -"),
        (of_orders(), "prod/elsewhere z"),
        (of_orders(), "7.0"),
        (of_orders(), "\u{1f}"),
        (everywhere(), "7"),
        (everywhere(), "elsewhere z"),
    ] {
        let asked = ListBarriersRequest { page_token: page_token.to_owned(), ..asked };
        let status = store.barriers().list_barriers(asked).await.unwrap_err();
        refused_field(&status, Reason::InvalidField, "page_token");
    }
    let large = ListBarriersRequest { page_size: 1_001, ..of_orders() };
    refused_field(&store.barriers().list_barriers(large).await.unwrap_err(), Reason::InvalidField, "page_size");
}

#[tokio::test]
async fn what_is_ill_formed_is_refused_by_its_field() {
    let store = Store::open().await;
    let good = || open("day-1", &["ewr"]);
    let mut bad = vec![
        (open("day-1", &[]), Reason::InvalidField, "participants"),
        (open("day-1", &["ewr", "jfk", "ewr"]), Reason::InvalidField, "participants"),
        (OpenBarrierRequest { timeout_ms: 30 * 24 * 3_600_000 + 1, ..good() }, Reason::InvalidField, "timeout_ms"),
        (OpenBarrierRequest { actor: "x".repeat(129), ..good() }, Reason::InvalidField, "actor"),
        (OpenBarrierRequest { reason: "x".repeat(1025), ..good() }, Reason::TooLarge, "reason"),
    ];
    let many: Vec<String> = (0..129).map(|number| format!("shard-{number}")).collect();
    bad.push((OpenBarrierRequest { participants: many, ..good() }, Reason::InvalidField, "participants"));
    for name in bad_names() {
        bad.push((OpenBarrierRequest { name: name.clone(), ..good() }, Reason::InvalidName, "name"));
        let participants = vec!["ewr".to_owned(), name];
        bad.push((OpenBarrierRequest { participants, ..good() }, Reason::InvalidName, "participants[1]"));
    }
    bad.extend(
        bad_pipelines()
            .into_iter()
            .map(|pipeline| (OpenBarrierRequest { pipeline, ..good() }, Reason::InvalidName, "pipeline")),
    );
    for (request, reason, field) in bad {
        refused_field(&try_open(&store, request).await.unwrap_err(), reason, field);
    }
    let arrival = || arrive("day-1", "ewr", 1, "tx");
    let bad = [
        (ArriveRequest { barrier: "-".to_owned(), ..arrival() }, "barrier"),
        (ArriveRequest { branch: String::new(), ..arrival() }, "branch"),
        (ArriveRequest { stage_id: String::new(), ..arrival() }, "stage_id"),
        (ArriveRequest { pipeline: "orders".to_owned(), ..arrival() }, "pipeline"),
    ];
    for (request, field) in bad {
        refused_field(&try_arrive(&store, request).await.unwrap_err(), Reason::InvalidName, field);
    }
    refused_field(&try_abort(&store, abort("")).await.unwrap_err(), Reason::InvalidName, "name");
}

#[tokio::test]
async fn each_call_compares_the_cluster_first() {
    let store = Store::open().await;
    let cluster = || Some(fencepost::v1::ClusterRef { cluster_id: "another".to_owned(), generation: 1 });
    let check = |status: Status| drop(refusal(&status, Reason::WrongCluster));
    check(try_open(&store, OpenBarrierRequest { cluster: cluster(), ..open("day-1", &["ewr"]) }).await.unwrap_err());
    check(try_arrive(&store, ArriveRequest { cluster: cluster(), ..arrive("x", "ewr", 1, "tx") }).await.unwrap_err());
    check(try_abort(&store, AbortBarrierRequest { cluster: cluster(), ..abort("x") }).await.unwrap_err());
    let (pipeline, name) = (ORDERS.to_owned(), "x".to_owned());
    let request = AwaitBarrierRequest { pipeline, name, cluster: cluster() };
    check(store.barriers().await_barrier(request).await.unwrap_err());
    let request = ListBarriersRequest { cluster: cluster(), ..ListBarriersRequest::default() };
    check(store.barriers().list_barriers(request).await.unwrap_err());
}

#[tokio::test]
async fn a_pipeline_has_at_most_a_thousand_open_barriers() {
    let store = Store::open().await;
    open_many(&store, 0..1_000, &["ewr"], 0).await;
    let status = try_open(&store, open("one-more", &["ewr"])).await.unwrap_err();
    refused_field(&status, Reason::TooLarge, "name");
    try_abort(&store, abort("b-7")).await.unwrap();
    try_open(&store, open("one-more", &["ewr"])).await.unwrap();
}

#[tokio::test]
async fn the_newest_thousand_closed_ones_are_remembered() {
    let store = Store::open().await;
    for part in [0..1, 1..501, 501..1_001] {
        open_many(&store, part.clone(), &["ewr"], 0).await;
        let mut aborting = tokio::task::JoinSet::new();
        for number in part {
            let mut barriers = store.barriers();
            aborting.spawn(async move { barriers.abort_barrier(abort(&format!("b-{number}"))).await.map(drop) });
        }
        aborting.join_all().await.into_iter().for_each(Result::unwrap);
    }
    let token = store.take("ewr").await;
    let late = async |name: &str| try_arrive(&store, arrive(name, "ewr", token, "tx")).await.unwrap_err();
    refusal(&late("b-0").await, Reason::StateMissing);
    refusal(&late("b-1000").await, Reason::BarrierAborted);
    try_open(&store, open("b-0", &["jfk"])).await.expect("a name that is forgotten may come again");
}

#[tokio::test]
async fn many_deadlines_at_once_are_all_kept() {
    let store = Store::open().await;
    open_many(&store, 0..200, &["ewr", "jfk"], 300).await;
    let open_ones = async || {
        let request = ListBarriersRequest { open_only: true, page_size: 1_000, ..ListBarriersRequest::default() };
        list(&store, request).await.barriers.len()
    };
    let all_closed = async {
        while open_ones().await > 0 {
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(PATIENCE, all_closed).await.unwrap();
}

#[tokio::test]
async fn a_resume_tells_of_at_most_a_hundred_barriers_and_not_who_takes_part() {
    let store = Store::open().await;
    open_many(&store, 0..101, &["ewr", "jfk"], 3_600_000).await;
    let told = store.resume(crate::support::resume("ewr")).await.unwrap().barriers;
    let mut names: Vec<String> = (0..101).map(|number| format!("b-{number}")).collect();
    names.sort();
    assert_eq!(told.iter().map(|it| it.name.clone()).collect::<Vec<_>>(), names[..100], "the first by name");
    let whole = look(&store, &names[0]).await;
    assert_eq!(told[0], Barrier { participants: Vec::new(), ..whole });
}

/// Names of the barriers of [`ORDERS`], page by page.
async fn pages(store: &Store) -> Vec<Vec<String>> {
    let (mut pages, mut page_token) = (Vec::new(), String::new());
    loop {
        let request = ListBarriersRequest {
            pipeline: ORDERS.to_owned(),
            page_size: 1_000,
            page_token,
            ..ListBarriersRequest::default()
        };
        let page = list(store, request).await;
        pages.push(page.barriers.into_iter().map(|it| it.name).collect());
        page_token = page.next_page_token;
        if page_token.is_empty() {
            return pages;
        }
    }
}

#[tokio::test]
async fn a_page_of_barriers_has_a_bounded_number_of_participants_and_none_is_left_out() {
    let store = Store::open().await;
    let participants: Vec<String> = (0..128).map(|number| format!("branch-{number}")).collect();
    let participants: Vec<&str> = participants.iter().map(String::as_str).collect();
    open_many(&store, 0..100, &participants, 0).await;
    let mut names: Vec<String> = (0..100).map(|number| format!("b-{number}")).collect();
    names.sort();
    let open = pages(&store).await;
    assert_eq!(open.concat(), names);
    assert!(open.iter().all(|page| page.len() * 128 < 10_000 + 128), "{open:?}");
    for name in names.iter().rev() {
        try_abort(&store, abort(name)).await.unwrap();
    }
    let closed = pages(&store).await;
    assert_eq!(closed.concat(), names, "the newest first");
    assert!(closed.iter().all(|page| page.len() * 128 < 10_000 + 128), "{closed:?}");
}
