//! What holds for a pipeline as a whole: schemas, scope, and the fence of all its workers; and what checkpoints say of
//! themselves.

use fencepost_client::{AuditAction, Checkpoint, Error, Policy, Reason, TraceParent, Upcasters};

use crate::road::{Lost, PIPELINE, Store, fresh};

#[tokio::test]
async fn a_branch_goes_from_a_declared_schema_to_its_successor_and_nowhere_else() {
    let store = Store::open().await;
    let orders = store.pipeline();
    orders.declare_schema("v1").name("orders-1").actor("ada").send().await.unwrap();
    let road = store.road();
    for lost in [Lost::Request, Lost::Answer] {
        road.lose("DeclareSchema", lost);
    }
    let far = road.client().pipeline(PIPELINE);
    far.declare_schema("v2").name("orders-2").successor_of("v1").send().await.unwrap();
    let schemas = orders.schemas().await.unwrap();
    let names: Vec<&str> = schemas.iter().map(|schema| &*schema.name).collect();
    assert_eq!(
        (names, &schemas[1].successor_of[..], road.count("DeclareSchema")),
        (vec!["orders-1", "orders-2"], &b"v1"[..], 3)
    );
    let other = orders.declare_schema("v2").name("orders-3").send().await.unwrap_err();
    assert_eq!(other.reason(), Some(Reason::Exists));

    orders.set_policy(Policy::new().declared_schemas_only()).send().await.unwrap();
    let worker = store.worker("jfk").await;
    let commit = async |schema: &'static str| worker.commit(Checkpoint::at("1").schema(schema)).await;
    let refused = async |schema| commit(schema).await.unwrap_err().reason();
    assert_eq!(refused("v3").await, Some(Reason::SchemaMismatch));
    commit("v1").await.unwrap();
    commit("v2").await.unwrap();
    assert_eq!(refused("v1").await, Some(Reason::SchemaMismatch));
    assert_eq!(worker.sequence(), 2);
}

#[tokio::test]
async fn a_resume_from_a_head_of_another_scope_needs_the_name_of_the_difference() {
    let store = Store::open().await;
    let worker = store.worker("jfk").await;
    worker.commit(Checkpoint::at("1").scope("code", "v1").scope("config", "c1")).await.unwrap();
    let branch = store.branch("jfk");
    let changed = || fresh().scope("code", "v2").scope("config", "c1");
    let refused = branch.resume(changed()).await.unwrap_err();
    assert_eq!(refused.reason(), Some(Reason::ScopeMismatch), "{refused}");
    assert_eq!(worker.commit(Checkpoint::at("2").scope("code", "v1").scope("config", "c1")).await.unwrap().sequence, 2);

    let successor = branch.resume(changed().accept_scope("code")).await.unwrap();
    let head = successor.head().unwrap();
    assert_eq!(head.scope().collect::<Vec<_>>(), [("code", "v1"), ("config", "c1")]);
    assert_eq!(worker.commit(Checkpoint::at("3")).await.unwrap_err().reason(), Some(Reason::Fenced));
}

#[tokio::test]
async fn what_a_checkpoint_says_of_itself_comes_back_with_it() {
    let store = Store::open().await;
    let worker = store.worker("jfk").await;
    let trace: TraceParent = "00-4bf92f3577b34da6a3ce929d0e0e4736-00f067aa0ba902b7-01".parse().unwrap();
    worker.commit(Checkpoint::at("1").state("17").format_version(1).traceparent(trace)).await.unwrap();
    let head = store.worker("jfk").await.head().unwrap();
    assert_eq!((head.format_version(), head.traceparent(), head.barrier()), (1, Some(trace), None));
    let rows = |state: bytes::Bytes| Ok::<_, String>([&state[..], b" rows"].concat().into());
    let upcasters = Upcasters::new(2).register(1, 2, rows).unwrap();
    assert_eq!(head.state_as(&upcasters).unwrap(), "17 rows");
}

#[tokio::test]
async fn a_fence_ends_all_leases_of_a_pipeline_once_whatever_is_lost() {
    for lost in [Lost::Request, Lost::Answer] {
        let store = Store::open().await;
        let workers = [store.worker("one").await, store.worker("two").await];
        workers[0].stage("tx-1", Checkpoint::at("1")).await.unwrap();
        let road = store.road();
        road.lose("FenceGroup", lost);
        let fenced = road.client().pipeline(PIPELINE).fence("ada", "three branches become five").await.unwrap();
        assert_eq!(fenced.leases, 2);
        assert!(workers.iter().all(|worker| worker.token() < fenced.token));
        if lost == Lost::Request {
            let holders: Vec<&str> = fenced.fenced.iter().map(|fenced| &*fenced.branch).collect();
            assert_eq!(holders, ["one", "two"]);
        }
        for worker in &workers {
            let refused = worker.commit(Checkpoint::at("1")).await.unwrap_err();
            assert_eq!(refused.reason(), Some(Reason::Fenced), "{refused}");
        }
        let audit = store.pipeline().audit().all().await.unwrap();
        let fences = audit.iter().filter(|record| record.action() == AuditAction::GroupFenced);
        assert_eq!(fences.map(|record| record.token).collect::<Vec<_>>(), [fenced.token.as_u64()]);
        assert_eq!(store.worker("one").await.staged().unwrap().id(), "tx-1", "what is staged stays");
    }
    let store = Store::open().await;
    let reasonless = store.pipeline().fence("ada", "").await.unwrap_err();
    assert!(matches!(reasonless, Error::Invalid { field: "reason", .. }), "{reasonless}");
}
