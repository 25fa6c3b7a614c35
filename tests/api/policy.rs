//! Policies: what is kept, what is not any more, and how that is told.

use fencepost::Reason;
use fencepost::v1::{GetPolicyRequest, GetPolicyResponse, ListCheckpointsRequest, Policy, SetPolicyRequest};
use fencepost_server::config::limits;
use tonic::Status;

use crate::limits::{bad_pipelines, check, fault, name_faults};
use crate::support::{ORDERS, Store, commit, keep, name, refusal};

async fn policy(store: &Store) -> Result<GetPolicyResponse, Status> {
    let request = GetPolicyRequest { pipeline: ORDERS.to_owned(), cluster: None };
    Ok(store.pipelines().get_policy(request).await?.into_inner())
}

async fn listed(store: &Store, page_size: u32, before_sequence: u64) -> (Vec<u64>, u64) {
    let request = ListCheckpointsRequest {
        pipeline: ORDERS.to_owned(),
        branch: "main".to_owned(),
        page_size,
        before_sequence,
        cluster: None,
        ..ListCheckpointsRequest::default()
    };
    let page = store.checkpoints().list_checkpoints(request).await.unwrap().into_inner();
    (page.checkpoints.into_iter().map(|stored| stored.sequence).collect(), page.next_before_sequence)
}

#[tokio::test]
async fn a_pipeline_without_a_policy_keeps_the_newest_ten() {
    let store = Store::open().await;
    refusal(&policy(&store).await.unwrap_err(), Reason::StateMissing);
    store.with_history("main", 12).await;
    let answer = policy(&store).await.unwrap();
    let audit_for_ms = limits::AUDIT_FOR_DEFAULT.as_millis() as u64;
    assert_eq!(answer.policy, Some(Policy { keep_last: 10, keep_for_ms: 0, audit_for_ms, ..Policy::default() }));
    assert!(!answer.is_set);
    for retired in [1, 2] {
        let status = store.checkpoint("main", retired).await.unwrap_err();
        assert_eq!(refusal(&status, Reason::Compacted)["oldest"], "3");
    }
    for kept in 3..=12 {
        assert_eq!(store.checkpoint("main", kept).await.unwrap().sequence, kept);
    }
    assert_eq!(listed(&store, 0, 0).await, ((3..=12).rev().collect(), 0));
}

#[tokio::test]
async fn a_policy_counts_from_the_next_commit_on_and_brings_nothing_back() {
    let store = Store::open().await;
    let token = store.with_history("main", 9).await;
    store.keep_last(2).await;
    assert_eq!(store.checkpoint("main", 1).await.unwrap().sequence, 1, "nothing was committed since");
    store.commit(commit("main", token, 10)).await.unwrap();
    assert_eq!(listed(&store, 0, 0).await.0, [10, 9]);
    store.keep_last(100).await;
    store.commit(commit("main", token, 11)).await.unwrap();
    assert_eq!(listed(&store, 0, 0).await.0, [11, 10, 9]);
    assert!(policy(&store).await.unwrap().is_set);
}

#[tokio::test]
async fn what_is_young_is_kept_beyond_the_count() {
    let store = Store::open().await;
    let hour = Policy { keep_last: 1, keep_for_ms: 3_600_000, ..Policy::default() };
    store.pipelines().set_policy(keep(hour)).await.unwrap();
    let token = store.with_history("main", 5).await;
    assert_eq!(listed(&store, 0, 0).await.0, [5, 4, 3, 2, 1]);
    store.keep_last(1).await;
    store.commit(commit("main", token, 6)).await.unwrap();
    assert_eq!(listed(&store, 0, 0).await.0, [6]);
}

#[tokio::test]
async fn savepoints_are_read_and_listed_below_what_the_policy_keeps() {
    let store = Store::open().await;
    store.keep_last(3).await;
    let token = store.with_history("main", 2).await;
    store.create_savepoint(name("first", "main", 1)).await.unwrap();
    for sequence in 3..=9 {
        store.commit(commit("main", token, sequence)).await.unwrap();
    }
    assert_eq!(store.checkpoint("main", 1).await.unwrap().checkpoint.unwrap().position, "offset 1".as_bytes());
    refusal(&store.checkpoint("main", 2).await.unwrap_err(), Reason::Compacted);
    assert_eq!(listed(&store, 0, 0).await, (vec![9, 8, 7, 1], 0));
    assert_eq!(listed(&store, 3, 0).await, (vec![9, 8, 7], 7));
    assert_eq!(listed(&store, 3, 7).await, (vec![1], 0));
    assert_eq!(listed(&store, 3, 1).await, (vec![], 0));
}

#[tokio::test]
async fn the_same_policy_again_changes_nothing() {
    let store = Store::open().await;
    let request = keep(Policy { keep_last: 4, ..Policy::default() });
    let first = store.pipelines().set_policy(request.clone()).await.unwrap().into_inner();
    let again = store.pipelines().set_policy(request).await.unwrap().into_inner();
    assert_eq!(first, again, "no fact was added");
    assert_eq!(first.policy, policy(&store).await.unwrap().policy);
}

#[tokio::test]
async fn a_policy_out_of_bounds_is_refused_by_field() {
    let store = Store::open().await;
    let age_max = limits::POLICY_AGE_MAX.as_millis() as u64;
    let most =
        Policy { keep_last: limits::KEEP_LAST_MAX, keep_for_ms: age_max, audit_for_ms: age_max, ..Policy::default() };
    let good = SetPolicyRequest { actor: "a".repeat(limits::ACTOR_CHARS_MAX), ..keep(most) };
    let mut faults = vec![
        fault("no policy", Reason::InvalidField, "policy", |request: &mut SetPolicyRequest| request.policy = None),
        fault("too many", Reason::InvalidField, "policy.keep_last", |request: &mut SetPolicyRequest| {
            request.policy.as_mut().unwrap().keep_last += 1;
        }),
        fault("too long", Reason::InvalidField, "policy.keep_for_ms", |request: &mut SetPolicyRequest| {
            request.policy.as_mut().unwrap().keep_for_ms += 1;
        }),
        fault("too long", Reason::InvalidField, "policy.audit_for_ms", |request: &mut SetPolicyRequest| {
            request.policy.as_mut().unwrap().audit_for_ms += 1;
        }),
        fault("actor too long", Reason::InvalidField, "actor", |request: &mut SetPolicyRequest| {
            request.actor.push('a');
        }),
        fault("actor unprintable", Reason::InvalidField, "actor", |request: &mut SetPolicyRequest| {
            request.actor = "a\nb".to_owned();
        }),
        fault("reason too long", Reason::TooLarge, "reason", |request: &mut SetPolicyRequest| {
            request.reason = "r".repeat(limits::REASON_BYTES_MAX + 1);
        }),
    ];
    faults.extend(name_faults(bad_pipelines(), "pipeline", |request: &mut SetPolicyRequest, it| request.pipeline = it));
    store.pipelines().set_policy(good.clone()).await.unwrap();
    check("SetPolicy", good, faults, async |request| store.pipelines().set_policy(request).await).await;
}
