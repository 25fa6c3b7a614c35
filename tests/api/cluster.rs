//! The service as a whole: its status, whom a caller believes it speaks to, health and reflection.

use fencepost::v1::{
    ClusterRef, CommitRequest, DeadLetterId, DeclareSchemaRequest, DiscardDeadLettersRequest, FenceGroupRequest,
    GetCheckpointRequest, GetHeadRequest, GetStatusRequest, KeepAliveRequest, ListBranchesRequest,
    ListCheckpointsRequest, ListDeadLettersRequest, ListPipelinesRequest, ListSchemasRequest, ReleaseRequest,
    ResolveCommitRequest, ResumeRequest, Schema, TailRequest,
};
use fencepost::{Lsn, Reason};
use tonic::{Code, Status};
use tonic_health::pb::HealthCheckRequest;
use tonic_health::pb::health_check_response::ServingStatus;
use tonic_health::pb::health_client::HealthClient;
use tonic_reflection::pb::v1::ServerReflectionRequest;
use tonic_reflection::pb::v1::server_reflection_client::ServerReflectionClient;
use tonic_reflection::pb::v1::server_reflection_request::MessageRequest;
use tonic_reflection::pb::v1::server_reflection_response::MessageResponse;

use crate::dead_letters::skipping;
use crate::support::{ORDERS, Store, commit, head, lease, refusal, resume, unique};

/// Makes every call that says whom it means, each of which would succeed if it named the right one.
#[allow(clippy::too_many_lines)] // One entry for each call.
async fn call_all(store: &Store, cluster: Option<ClusterRef>) -> Vec<(&'static str, Result<(), Status>)> {
    let branch = format!("branch-{}", unique());
    let token = store.take(&branch).await;
    let lsn = store.commit(skipping(&branch, token, 1, &["row"])).await.unwrap().lsn;
    let (pipeline, cluster) = (ORDERS.to_owned(), || cluster.clone());
    let other = format!("other-{}", unique());
    let keep = KeepAliveRequest { cluster: cluster(), leases: vec![lease(&branch, token)] };
    let resolve = ResolveCommitRequest {
        cluster: cluster(),
        pipeline: pipeline.clone(),
        commit_id: "id".to_owned(),
        ..Default::default()
    };
    let get = GetCheckpointRequest {
        cluster: cluster(),
        pipeline: pipeline.clone(),
        branch: branch.clone(),
        sequence: 1,
        without_state: false,
    };
    let discard = DiscardDeadLettersRequest {
        cluster: cluster(),
        pipeline: pipeline.clone(),
        letters: vec![DeadLetterId { lsn, number: 0 }],
        reason: "test data".to_owned(),
        ..Default::default()
    };
    let letters = ListDeadLettersRequest { cluster: cluster(), pipeline: pipeline.clone(), ..Default::default() };
    let schema = Some(Schema { fingerprint: branch.clone().into(), ..Schema::default() });
    let declare = DeclareSchemaRequest { cluster: cluster(), pipeline: pipeline.clone(), schema, ..Default::default() };
    let schemas = ListSchemasRequest { cluster: cluster(), pipeline: pipeline.clone() };
    let fence = FenceGroupRequest {
        cluster: cluster(),
        pipeline: pipeline.clone(),
        reason: "more branches".to_owned(),
        ..Default::default()
    };
    let list = ListCheckpointsRequest { cluster: cluster(), pipeline, branch: branch.clone(), ..Default::default() };
    vec![
        ("Resume", store.resume(ResumeRequest { cluster: cluster(), ..resume(&other) }).await.map(drop)),
        ("KeepAlive", store.leases().keep_alive(keep).await.map(drop)),
        ("Commit", store.commit(CommitRequest { cluster: cluster(), ..commit(&branch, token, 2) }).await.map(drop)),
        ("ResolveCommit", store.commits().resolve_commit(resolve).await.map(drop)),
        (
            "GetHead",
            store.checkpoints().get_head(GetHeadRequest { cluster: cluster(), ..head(&branch) }).await.map(drop),
        ),
        ("GetCheckpoint", store.checkpoints().get_checkpoint(get).await.map(drop)),
        ("ListCheckpoints", store.checkpoints().list_checkpoints(list).await.map(drop)),
        (
            "ListPipelines",
            store
                .checkpoints()
                .list_pipelines(ListPipelinesRequest { cluster: cluster(), ..Default::default() })
                .await
                .map(drop),
        ),
        (
            "ListBranches",
            store
                .checkpoints()
                .list_branches(ListBranchesRequest { cluster: cluster(), ..Default::default() })
                .await
                .map(drop),
        ),
        ("Tail", store.logs().tail(TailRequest { cluster: cluster(), ..Default::default() }).await.map(drop)),
        (
            "Release",
            store
                .leases()
                .release(ReleaseRequest { cluster: cluster(), lease: Some(lease(&branch, token)) })
                .await
                .map(drop),
        ),
        ("ListDeadLetters", store.dead_letters().list_dead_letters(letters).await.map(drop)),
        ("DiscardDeadLetters", store.dead_letters().discard_dead_letters(discard).await.map(drop)),
        ("DeclareSchema", store.pipelines().declare_schema(declare).await.map(drop)),
        ("ListSchemas", store.pipelines().list_schemas(schemas).await.map(drop)),
        ("FenceGroup", store.pipelines().fence_group(fence).await.map(drop)),
    ]
}

#[tokio::test]
async fn every_call_refuses_a_caller_that_means_another_cluster_or_generation() {
    let store = Store::open().await;
    let status = store.cluster().get_status(GetStatusRequest {}).await.unwrap().into_inner();
    let header = status.header.unwrap();
    let at = |cluster_id: &str, generation| Some(ClusterRef { cluster_id: cluster_id.to_owned(), generation });
    let own = &header.cluster_id;
    for right in [None, at(own, header.generation)] {
        for (call, result) in call_all(&store, right).await {
            result.unwrap_or_else(|status| panic!("{call}: {status}"));
        }
    }
    let wrong = [
        (at("", 1), Reason::WrongCluster),
        (at("11111111-1111-4111-8111-111111111111", 1), Reason::WrongCluster),
        (at(&"\u{10ffff}\n".repeat(50_000), 1), Reason::WrongCluster),
        (at(own, 0), Reason::StaleGeneration),
        (at(own, 2), Reason::StoreRolledBack),
        (at(own, u64::MAX), Reason::StoreRolledBack),
    ];
    for (cluster, reason) in wrong {
        for (call, result) in call_all(&store, cluster.clone()).await {
            let status = result.expect_err(call);
            let details = refusal(&status, reason);
            match reason {
                Reason::WrongCluster => assert_eq!(&details["cluster_id"], own),
                _ => assert_eq!(details["generation"], "1"),
            }
        }
    }
}

#[tokio::test]
async fn the_status_tells_what_the_store_holds_and_did() {
    let store = Store::open().await;
    let (one, other) = (store.take("one").await, store.take("other").await);
    store.commit(commit("one", one, 1)).await.unwrap();
    let done = store.commit(commit("one", one, 2)).await.unwrap();
    store.commit(commit("one", one, 2)).await.unwrap_err();
    let keep = KeepAliveRequest { leases: vec![lease("one", one), lease("other", other)], cluster: None };
    store.leases().keep_alive(keep).await.unwrap();
    store.leases().release(ReleaseRequest { lease: Some(lease("other", other)), cluster: None }).await.unwrap();
    let status = store.cluster().get_status(GetStatusRequest {}).await.unwrap().into_inner();
    assert_eq!((status.pipelines, status.branches, status.leases), (1, 2, 1));
    assert_eq!(status.version, env!("CARGO_PKG_VERSION"));
    let counters = status.counters.unwrap();
    assert_eq!((counters.commits, counters.grants, counters.keepalives), (2, 2, 2));
    assert_eq!(counters.refusals["HEAD_MISMATCH"], 1);
    assert!(Lsn::from_u64(status.durable_lsn) > Lsn::from_u64(done.lsn));
    assert_eq!(status.log.unwrap().failure, "");
}

#[tokio::test]
async fn two_stores_are_two_clusters() {
    let (one, other) = (Store::open().await, Store::open().await);
    let id = async |store: &Store| {
        store.cluster().get_status(GetStatusRequest {}).await.unwrap().into_inner().header.unwrap().cluster_id
    };
    assert_ne!(id(&one).await, id(&other).await);
    assert_eq!(id(&one).await, id(&one).await);
}

#[tokio::test]
async fn health_is_told_for_the_server_and_for_each_service() {
    let store = Store::open().await;
    let mut health = HealthClient::new(store.channel());
    for service in fencepost_server::service::SERVICES {
        let answer = health.check(HealthCheckRequest { service: service.to_owned() }).await.unwrap().into_inner();
        assert_eq!(answer.status(), ServingStatus::Serving, "{service}");
    }
    let unknown = HealthCheckRequest { service: "fencepost.v1.NoService".to_owned() };
    assert_eq!(health.check(unknown).await.unwrap_err().code(), Code::NotFound);
}

#[tokio::test]
async fn reflection_tells_what_can_be_called() {
    let store = Store::open().await;
    let mut reflection = ServerReflectionClient::new(store.channel());
    let mut ask = async |request: MessageRequest| {
        let request = ServerReflectionRequest { message_request: Some(request), host: String::new() };
        let answers = reflection.server_reflection_info(tokio_stream::iter([request])).await.unwrap();
        answers.into_inner().message().await.unwrap().unwrap().message_response.unwrap()
    };
    let MessageResponse::ListServicesResponse(list) = ask(MessageRequest::ListServices(String::new())).await else {
        panic!("no list of services")
    };
    let names: Vec<String> = list.service.into_iter().map(|service| service.name).collect();
    for service in fencepost_server::service::SERVICES.into_iter().filter(|service| !service.is_empty()) {
        assert!(names.iter().any(|name| name == service), "{service} is not among {names:?}");
        let symbol = MessageRequest::FileContainingSymbol(service.to_owned());
        let MessageResponse::FileDescriptorResponse(files) = ask(symbol).await else { panic!("{service}") };
        assert!(!files.file_descriptor_proto.is_empty());
    }
}

#[tokio::test]
async fn a_call_that_does_not_exist_is_unimplemented() {
    let store = Store::open().await;
    let mut client = tonic::client::Grpc::new(store.channel());
    client.ready().await.unwrap();
    let path = tonic::codegen::http::uri::PathAndQuery::from_static("/fencepost.v1.LeaseService/IsTokenValid");
    let codec = tonic_prost::ProstCodec::<GetStatusRequest, GetStatusRequest>::default();
    let status = client.unary(tonic::Request::new(GetStatusRequest {}), path, codec).await.unwrap_err();
    assert_eq!(status.code(), Code::Unimplemented);
}
