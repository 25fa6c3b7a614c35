//! Schemas that the checkpoints of a pipeline may have, and which may follow which.

use fencepost::Reason;
use fencepost::v1::audit_record::Action;
use fencepost::v1::{
    CommitRequest, DeadLetterId, DeclareSchemaRequest, Fingerprint, Integrity, ListAuditRequest, ListSchemasRequest,
    Policy, ResumeRequest, Schema, TailRequest,
};
use tonic::Status;

use crate::catalogue::is_documented;
use crate::support::{ORDERS, Store, commit, keep, refusal, refused_field, resume, rewind};

fn schema(name: &str, successor_of: &str) -> Schema {
    let fingerprint = format!("digest of {name}").into_bytes().into();
    let before = if successor_of.is_empty() { String::new() } else { format!("digest of {successor_of}") };
    Schema { fingerprint, name: name.to_owned(), successor_of: before.into_bytes().into() }
}

fn declaration(schema: Schema) -> DeclareSchemaRequest {
    DeclareSchemaRequest {
        pipeline: ORDERS.to_owned(),
        schema: Some(schema),
        actor: "ops".to_owned(),
        reason: "release 7".to_owned(),
        ..DeclareSchemaRequest::default()
    }
}

async fn declare(store: &Store, name: &str, successor_of: &str) -> Result<(), Status> {
    store.pipelines().declare_schema(declaration(schema(name, successor_of))).await.map(drop)
}

async fn schemas(store: &Store) -> Vec<Schema> {
    let request = ListSchemasRequest { pipeline: ORDERS.to_owned(), ..ListSchemasRequest::default() };
    store.pipelines().list_schemas(request).await.unwrap().into_inner().schemas
}

/// A commit whose checkpoint has this schema; none if it is empty.
fn having(name: &str, token: u64, sequence: u64) -> CommitRequest {
    let mut request = commit("main", token, sequence);
    if !name.is_empty() {
        let integrity = Integrity { schema_fingerprint: schema(name, "").fingerprint, ..Integrity::default() };
        request.branches[0].checkpoint.as_mut().unwrap().integrity = Some(integrity);
    }
    request
}

/// Branch `main` of a pipeline that takes declared schemas only.
async fn strict() -> (Store, u64) {
    let store = Store::open().await;
    let token = store.take("main").await;
    store.pipelines().set_policy(keep(Policy { declared_schemas_only: true, ..Policy::default() })).await.unwrap();
    (store, token)
}

#[tokio::test]
async fn a_declaration_is_listed_audited_and_answered_again_without_a_new_fact() {
    let store = Store::open().await;
    declare(&store, "v1", "").await.unwrap();
    declare(&store, "v2", "v1").await.unwrap();
    let facts = async || {
        let request = TailRequest::default();
        store.facts(request).await.unwrap().len()
    };
    let before = facts().await;
    declare(&store, "v2", "v1").await.unwrap();
    assert_eq!(facts().await, before);
    assert_eq!(schemas(&store).await, [schema("v1", ""), schema("v2", "v1")]);
    let audit = ListAuditRequest { pipeline: ORDERS.to_owned(), ..ListAuditRequest::default() };
    let newest = store.pipelines().list_audit(audit).await.unwrap().into_inner().records.remove(0);
    assert_eq!((newest.action(), newest.actor.as_str()), (Action::SchemaDeclared, "ops"));
    assert!(newest.detail.contains("'v2', successor of 646967657374"), "{}", newest.detail);
    assert_eq!(schemas(&store.restarted().await).await.len(), 2);
}

#[tokio::test]
async fn a_declaration_stands_and_needs_what_it_succeeds() {
    let store = Store::open().await;
    declare(&store, "v1", "").await.unwrap();
    let refused = async |schema| store.pipelines().declare_schema(declaration(schema)).await.unwrap_err();
    let other_name = Schema { name: "first".to_owned(), ..schema("v1", "") };
    refused_field(&refused(other_name).await, Reason::Exists, "schema.fingerprint");
    refused_field(&refused(schema("v1", "v1")).await, Reason::Exists, "schema.fingerprint");
    refused_field(&refused(schema("v3", "v2")).await, Reason::InvalidField, "schema.successor_of");
    refused_field(&refused(schema("v3", "v3")).await, Reason::InvalidField, "schema.successor_of");
    let none = Schema { fingerprint: Vec::new().into(), ..schema("v3", "") };
    refused_field(&refused(none).await, Reason::InvalidField, "schema.fingerprint");
    let long = || vec![7; 65].into();
    refused_field(
        &refused(Schema { fingerprint: long(), ..schema("v3", "") }).await,
        Reason::TooLarge,
        "schema.fingerprint",
    );
    refused_field(
        &refused(Schema { successor_of: long(), ..schema("v3", "") }).await,
        Reason::TooLarge,
        "schema.successor_of",
    );
    let spaced = Schema { name: "version 3".to_owned(), ..schema("v3", "") };
    refused_field(&refused(spaced).await, Reason::InvalidName, "schema.name");
    let nothing = DeclareSchemaRequest { schema: None, ..declaration(schema("v3", "")) };
    refused_field(&store.pipelines().declare_schema(nothing).await.unwrap_err(), Reason::InvalidField, "schema");
    let unknown = ListSchemasRequest { pipeline: "prod/unknown".to_owned(), ..ListSchemasRequest::default() };
    refusal(&store.pipelines().list_schemas(unknown).await.unwrap_err(), Reason::StateMissing);
}

#[tokio::test]
async fn a_pipeline_declares_a_thousand_schemas_at_most() {
    let store = Store::open().await;
    for number in 0..1_000 {
        declare(&store, &number.to_string(), "").await.unwrap();
    }
    refused_field(&declare(&store, "more", "").await.unwrap_err(), Reason::TooLarge, "schema");
    declare(&store, "7", "").await.unwrap();
}

#[tokio::test]
async fn a_checkpoint_has_the_schema_of_the_head_or_one_that_succeeds_it_directly_or_by_way_of_others() {
    let (store, token) = strict().await;
    for (name, before) in [("v1", ""), ("v2", "v1"), ("v3", "v2"), ("other", "")] {
        declare(&store, name, before).await.unwrap();
    }
    store.commit(having("v1", token, 1)).await.unwrap();
    store.commit(having("v1", token, 2)).await.unwrap();
    let refused = async |name, sequence| store.commit(having(name, token, sequence)).await.unwrap_err();
    let status = refused("other", 3).await;
    let metadata = refusal(&status, Reason::SchemaMismatch);
    let hex = |name: &str| fencepost_server::state::shown_fingerprint(&schema(name, "").fingerprint);
    assert_eq!(metadata["branch"], "main");
    assert_eq!(metadata["schema_fingerprint"], hex("other"));
    assert_eq!(metadata["head_schema_fingerprint"], hex("v1"));
    assert!(status.message().contains(&format!("--successor-of {}", hex("v1"))), "{status:?}");
    store.commit(having("v3", token, 3)).await.unwrap();
    refusal(&refused("v2", 4).await, Reason::SchemaMismatch);
    let undeclared = refused("v4", 4).await;
    refusal(&undeclared, Reason::SchemaMismatch);
    assert!(undeclared.message().contains("fencepost schema declare"), "{undeclared:?}");
    refusal(&refused("", 4).await, Reason::SchemaMismatch);
    // The way out.
    declare(&store, "v4", "v3").await.unwrap();
    store.commit(having("v4", token, 4)).await.unwrap();
    // The head's schema is known after a restart too.
    let store = store.restarted().await;
    refusal(&store.commit(having("v3", token, 5)).await.unwrap_err(), Reason::SchemaMismatch);
    store.commit(having("v4", token, 5)).await.unwrap();
}

#[tokio::test]
async fn after_a_head_of_unknown_schema_any_declared_one_may_come() {
    let (store, token) = strict().await;
    declare(&store, "v1", "").await.unwrap();
    declare(&store, "other", "").await.unwrap();
    store.commit(having("v1", token, 1)).await.unwrap();
    store.commit(having("v1", token, 2)).await.unwrap();
    store.rewind(rewind("main", 2, 1)).await.unwrap();
    let token = store.take("main").await;
    let status = store.commit(having("v9", token, 2)).await.unwrap_err();
    refusal(&status, Reason::SchemaMismatch);
    assert!(!status.message().contains("successor"), "there is nothing known to succeed: {status:?}");
    store.commit(having("other", token, 2)).await.unwrap();

    // What was committed before the policy was set binds nobody.
    let store = Store::open().await;
    let token = store.take("main").await;
    store.commit(having("wild", token, 1)).await.unwrap();
    declare(&store, "v1", "").await.unwrap();
    store.commit(having("wild", token, 2)).await.unwrap();
    store.pipelines().set_policy(keep(Policy { declared_schemas_only: true, ..Policy::default() })).await.unwrap();
    refusal(&store.commit(having("wild", token, 3)).await.unwrap_err(), Reason::SchemaMismatch);
    store.commit(having("v1", token, 3)).await.unwrap();
}

#[tokio::test]
async fn without_a_policy_schemas_are_stored_and_not_compared() {
    let store = Store::open().await;
    let token = store.take("main").await;
    declare(&store, "v1", "").await.unwrap();
    for (sequence, name) in [(1, "v1"), (2, "v7"), (3, "")] {
        store.commit(having(name, token, sequence)).await.unwrap();
    }
}

#[tokio::test]
async fn the_examples_about_what_a_worker_declares_are_what_the_server_says() {
    let store = Store::open().await;
    let check = |result: Result<(), Status>, reason: Reason| {
        let status = result.expect_err(reason.as_str());
        refusal(&status, reason);
        is_documented(reason, status.message());
    };
    let token = store.take("main").await;
    let having = |sequence, schema: &[u8]| {
        let mut request = commit("main", token, sequence);
        let checkpoint = request.branches[0].checkpoint.as_mut().unwrap();
        let schema_fingerprint = schema.to_vec().into();
        checkpoint.integrity = Some(Integrity { schema_fingerprint, ..Integrity::default() });
        checkpoint.scope = vec![Fingerprint { name: "code".to_owned(), value: "v1".to_owned() }];
        request
    };
    for fingerprint in [b"v1", b"v2"] {
        let schema = Some(Schema { fingerprint: fingerprint.to_vec().into(), ..Schema::default() });
        let request = DeclareSchemaRequest { pipeline: ORDERS.to_owned(), schema, ..Default::default() };
        store.pipelines().declare_schema(request).await.unwrap();
    }
    store.pipelines().set_policy(keep(Policy { declared_schemas_only: true, ..Policy::default() })).await.unwrap();
    store.commit(having(1, b"v1")).await.unwrap();
    check(store.commit(having(2, b"v2")).await.map(drop), Reason::SchemaMismatch);
    let scope = vec![Fingerprint { name: "code".to_owned(), value: "v2".to_owned() }];
    check(store.resume(ResumeRequest { scope, ..resume("main") }).await.map(drop), Reason::ScopeMismatch);
    let mut replaying = having(2, b"v1");
    replaying.branches[0].replayed = vec![DeadLetterId { lsn: 3 << 16, number: 0 }];
    check(store.commit(replaying).await.map(drop), Reason::DeadLetterHandled);
}
