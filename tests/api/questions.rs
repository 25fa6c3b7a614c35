//! The same for everything that only asks: each malformed field is refused by name.

use fencepost::Reason;
use fencepost::v1::{
    GetCheckpointRequest, GetHeadRequest, ListBranchesRequest, ListCheckpointsRequest, ListPipelinesRequest,
    ResolveCommitRequest, TailRequest,
};
use fencepost_server::config::limits;

use crate::limits::{Fault, bad_ids, bad_names, bad_pipelines, check, fault, name_faults};
use crate::support::{ORDERS, Store, commit, head};

#[tokio::test]
async fn a_malformed_question_is_refused_by_field() {
    let store = Store::open().await;
    let token = store.take("main").await;
    store.commit(commit("main", token, 1)).await.unwrap();

    let mut faults: Vec<Fault<ResolveCommitRequest>> =
        name_faults(bad_pipelines(), "pipeline", |request: &mut ResolveCommitRequest, name| request.pipeline = name)
            .collect();
    faults.extend(name_faults(bad_ids(), "commit_id", |request: &mut ResolveCommitRequest, id| request.commit_id = id));
    let not_empty = bad_names().into_iter().filter(|name| !name.is_empty()).collect();
    faults.extend(name_faults(not_empty, "branch", |request: &mut ResolveCommitRequest, name| request.branch = name));
    let good = ResolveCommitRequest { pipeline: ORDERS.to_owned(), commit_id: "c".to_owned(), ..Default::default() };
    check("ResolveCommit", good, faults, async |request| store.commits().resolve_commit(request).await).await;

    let mut faults: Vec<Fault<GetHeadRequest>> =
        name_faults(bad_pipelines(), "pipeline", |request: &mut GetHeadRequest, name| request.pipeline = name)
            .collect();
    faults.extend(name_faults(bad_names(), "branch", |request: &mut GetHeadRequest, name| request.branch = name));
    check("GetHead", head("main"), faults, async |request| store.checkpoints().get_head(request).await).await;

    let mut faults: Vec<Fault<GetCheckpointRequest>> =
        name_faults(bad_pipelines(), "pipeline", |request: &mut GetCheckpointRequest, name| request.pipeline = name)
            .collect();
    faults.extend(name_faults(bad_names(), "branch", |request: &mut GetCheckpointRequest, name| request.branch = name));
    let good = GetCheckpointRequest {
        pipeline: ORDERS.to_owned(),
        branch: "main".to_owned(),
        sequence: 1,
        ..Default::default()
    };
    check("GetCheckpoint", good, faults, async |request| store.checkpoints().get_checkpoint(request).await).await;

    let mut faults =
        vec![fault("page one over", Reason::InvalidField, "page_size", |request: &mut ListCheckpointsRequest| {
            request.page_size = limits::PAGE_SIZE_MAX + 1;
        })];
    faults.extend(name_faults(bad_pipelines(), "pipeline", |request: &mut ListCheckpointsRequest, name| {
        request.pipeline = name;
    }));
    faults
        .extend(name_faults(bad_names(), "branch", |request: &mut ListCheckpointsRequest, name| request.branch = name));
    let good = ListCheckpointsRequest {
        pipeline: ORDERS.to_owned(),
        branch: "main".to_owned(),
        page_size: limits::PAGE_SIZE_MAX,
        ..Default::default()
    };
    store.checkpoints().list_checkpoints(good.clone()).await.unwrap();
    check("ListCheckpoints", good, faults, async |request| store.checkpoints().list_checkpoints(request).await).await;

    let faults =
        vec![fault("page one over", Reason::InvalidField, "page_size", |request: &mut ListPipelinesRequest| {
            request.page_size = limits::PAGE_SIZE_MAX + 1;
        })];
    let good = ListPipelinesRequest { page_size: limits::PAGE_SIZE_MAX, ..Default::default() };
    store.checkpoints().list_pipelines(good.clone()).await.unwrap();
    check("ListPipelines", good, faults, async |request| store.checkpoints().list_pipelines(request).await).await;
}

#[tokio::test]
async fn a_malformed_filter_is_refused_by_field() {
    let store = Store::open().await;
    store.take("main").await;
    let mut faults =
        vec![fault("page too large", Reason::InvalidField, "page_size", |request: &mut ListBranchesRequest| {
            request.page_size = u32::MAX;
        })];
    let pipelines = || bad_pipelines().into_iter().filter(|name| !name.is_empty()).collect();
    let branches = || bad_names().into_iter().filter(|name| !name.is_empty()).collect();
    faults.extend(name_faults(pipelines(), "pipeline", |request: &mut ListBranchesRequest, name| {
        request.pipeline = name;
    }));
    let good = ListBranchesRequest { page_size: limits::PAGE_SIZE_MAX, ..Default::default() };
    store.checkpoints().list_branches(good.clone()).await.unwrap();
    check("ListBranches", good, faults, async |request| store.checkpoints().list_branches(request).await).await;

    let mut faults: Vec<Fault<TailRequest>> =
        name_faults(pipelines(), "pipeline", |request: &mut TailRequest, name| request.pipeline = name).collect();
    faults.extend(name_faults(branches(), "branch", |request: &mut TailRequest, name| request.branch = name));
    check("Tail", TailRequest::default(), faults, async |request| store.logs().tail(request).await).await;
}
