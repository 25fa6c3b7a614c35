//! The order in which a commit is judged: each request here has all the faults that come after the one it is refused for.

use std::collections::HashMap;

use fencepost::Reason;
use fencepost::v1::{
    Checkpoint, CommitRequest, DeadLetter, DeadLetterId, DeclareSchemaRequest, Integrity, Policy, Schema, StageRequest,
};

use crate::staged::{discard, successor, try_discard};
use crate::support::{ORDERS, Store, commit_of, keep, refusal, stage};

/// A pipeline that compares all that can be compared, and has declared schema `v1`.
async fn strict() -> Store {
    let store = Store::open().await;
    let policy = Policy { reconcile_rows: true, declared_schemas_only: true, ..Policy::default() };
    store.pipelines().set_policy(keep(policy)).await.unwrap();
    let schema = Some(Schema { fingerprint: "v1".into(), name: "v1".to_owned(), ..Schema::default() });
    let request = DeclareSchemaRequest { pipeline: ORDERS.to_owned(), schema, ..DeclareSchemaRequest::default() };
    store.pipelines().declare_schema(request).await.unwrap();
    store
}

fn integrity(rows_out: u64, schema: &'static str) -> Integrity {
    let (rows_in, rows_out) = (Some(3), Some(rows_out));
    Integrity { rows_in, rows_out, schema_fingerprint: schema.into(), ..Integrity::default() }
}

fn each(request: &mut CommitRequest, change: impl Fn(&mut Checkpoint)) {
    request.branches.iter_mut().for_each(|moved| change(moved.checkpoint.as_mut().unwrap()));
}

#[tokio::test]
async fn a_commit_is_judged_in_the_order_that_is_written_down_over_all_of_its_branches() {
    let store = strict().await;
    let (main, old) = (store.take("main").await, store.take("other").await);
    let other = successor(&store, "other").await.token;
    let good = stage("main", main, 1, "tx");
    let checkpoint = good.checkpoint.map(|given| Checkpoint { integrity: Some(integrity(3, "v1")), ..given });
    store.stage(StageRequest { checkpoint, ..good }).await.unwrap();

    let mut worst = commit_of([("main", main, 1), ("other", old, 2)]);
    worst.not_after_ms = 1;
    worst.branches[0].replayed = vec![DeadLetterId { lsn: 1, number: 2 }];
    each(&mut worst, |it| it.integrity = Some(integrity(2, "v2")));
    each(&mut worst, |it| (it.payload_crc32, it.late_for) = (Some(7), "never".to_owned()));
    let refused = async |request: &CommitRequest, reason: Reason| -> HashMap<String, String> {
        refusal(&store.commit(request.clone()).await.unwrap_err(), reason)
    };
    refused(&worst, Reason::Fenced).await;
    worst.branches[1].token = other;
    refused(&worst, Reason::StagedPending).await;
    try_discard(&store, discard("main", main, "tx")).await.unwrap();
    assert_eq!(refused(&worst, Reason::HeadMismatch).await["branch"], "other");
    worst.branches[1].sequence = 1;
    refused(&worst, Reason::NotAfterPassed).await;
    worst.not_after_ms = 0;
    assert!(refused(&worst, Reason::IntegrityMismatch).await.contains_key("declared"), "the payload comes first");
    each(&mut worst, |it| it.payload_crc32 = None);
    assert_eq!(refused(&worst, Reason::InvalidField).await["field"], "branches[0].checkpoint.late_for");
    each(&mut worst, |it| it.late_for.clear());
    assert_eq!(refused(&worst, Reason::IntegrityMismatch).await["rows_out"], "2");
    each(&mut worst, |it| it.integrity = Some(integrity(3, "v2")));
    refused(&worst, Reason::SchemaMismatch).await;
    each(&mut worst, |it| it.integrity = Some(integrity(3, "v1")));
    refused(&worst, Reason::DeadLetterHandled).await;
    worst.branches[0].replayed.clear();
    store.commit(worst).await.unwrap();
}

#[tokio::test]
async fn a_stage_is_judged_like_a_commit_by_row_counts_dead_letters_and_schema() {
    let store = strict().await;
    let token = store.take("main").await;
    let mut request = stage("main", token, 1, "tx");
    request.dead_letters = vec![DeadLetter { reason: "no delay".to_owned(), ..DeadLetter::default() }];
    let with = |request: &mut StageRequest, said| request.checkpoint.as_mut().unwrap().integrity = Some(said);
    with(&mut request, integrity(3, "v2"));
    let refused = async |request: &StageRequest, reason: Reason| {
        refusal(&store.stage(request.clone()).await.unwrap_err(), reason)
    };
    let details = refused(&request, Reason::IntegrityMismatch).await;
    assert_eq!((&*details["rows_out"], &*details["dead_letters"]), ("3", "1"));
    let dead = |schema| Integrity { rows_dead: Some(1), ..integrity(2, schema) };
    with(&mut request, dead("v2"));
    refused(&request, Reason::SchemaMismatch).await;
    with(&mut request, dead("v1"));
    store.stage(request).await.unwrap();
}
