//! Reading progress: single checkpoints and every listing, page by page.

use std::slice;

use fencepost::Reason;
use fencepost::v1::{
    ForkRequest, GetCheckpointRequest, GetHeadRequest, ListBranchesRequest, ListCheckpointsRequest,
    ListPipelinesRequest, ReleaseRequest, ResumeRequest,
};

use crate::support::{ORDERS, Store, commit, head, lease, refusal, resume};

fn nth(branch: &str, sequence: u64) -> GetCheckpointRequest {
    GetCheckpointRequest { pipeline: ORDERS.to_owned(), branch: branch.to_owned(), sequence, ..Default::default() }
}

#[tokio::test]
async fn every_checkpoint_that_is_kept_stays_readable() {
    let store = Store::open().await;
    store.keep_last(30).await;
    store.with_history("main", 30).await;
    for sequence in 1..=30 {
        let read = store.checkpoints().get_checkpoint(nth("main", sequence)).await.unwrap().into_inner();
        let stored = read.checkpoint.unwrap();
        assert_eq!((stored.pipeline.as_str(), stored.branch.as_str(), stored.sequence), (ORDERS, "main", sequence));
        let position = format!("offset {sequence}");
        assert_eq!(stored.checkpoint.unwrap().position, position.as_bytes());
    }
}

#[tokio::test]
async fn the_state_can_be_left_out() {
    let store = Store::open().await;
    store.with_history("main", 1).await;
    let bare = GetHeadRequest { without_state: true, ..head("main") };
    let of_head = store.checkpoints().get_head(bare).await.unwrap().into_inner().head.unwrap();
    let bare = GetCheckpointRequest { without_state: true, ..nth("main", 1) };
    let by_sequence = store.checkpoints().get_checkpoint(bare).await.unwrap().into_inner().checkpoint.unwrap();
    for stored in [of_head, by_sequence] {
        assert_eq!(stored.state_bytes, "state at offset 1".len() as u64);
        let checkpoint = stored.checkpoint.unwrap();
        assert!(checkpoint.state.is_empty() && !checkpoint.position.is_empty() && checkpoint.payload_crc32.is_some());
    }
}

#[tokio::test]
async fn what_is_not_there_is_named() {
    let store = Store::open().await;
    let message = async |request: GetHeadRequest| {
        let status = store.checkpoints().get_head(request).await.unwrap_err();
        refusal(&status, Reason::StateMissing);
        status.message().to_owned()
    };
    assert!(message(head("main")).await.contains("no pipeline 'prod/orders'"));
    store.with_history("main", 2).await;
    assert!(message(head("other")).await.contains("no branch 'other'"));
    store.take("empty").await;
    assert!(message(head("empty")).await.contains("branch 'empty' of 'prod/orders' has no checkpoint"));
    for sequence in [0, 3, u64::MAX] {
        let status = store.checkpoints().get_checkpoint(nth("main", sequence)).await.unwrap_err();
        assert_eq!(refusal(&status, Reason::StateMissing)["actual_head"], "2", "{status}");
    }
    let request = ListBranchesRequest { pipeline: "prod/nothing".to_owned(), ..Default::default() };
    refusal(&store.checkpoints().list_branches(request).await.unwrap_err(), Reason::StateMissing);
    let request = ListCheckpointsRequest { pipeline: ORDERS.to_owned(), branch: "no".to_owned(), ..Default::default() };
    refusal(&store.checkpoints().list_checkpoints(request).await.unwrap_err(), Reason::StateMissing);
}

#[tokio::test]
async fn checkpoints_are_listed_newest_first_in_pages_without_gap_or_overlap() {
    let store = Store::open().await;
    store.keep_last(205).await;
    store.with_history("main", 205).await;
    for (page_size, pages) in [(1, 205), (7, 30), (41, 5), (204, 2), (205, 1), (1_000, 1), (0, 3)] {
        let (mut seen, mut before_sequence, mut calls) = (Vec::new(), 0, 0);
        loop {
            let request = ListCheckpointsRequest {
                pipeline: ORDERS.to_owned(),
                branch: "main".to_owned(),
                before_sequence,
                page_size,
                cluster: None,
                ..ListCheckpointsRequest::default()
            };
            let page = store.checkpoints().list_checkpoints(request).await.unwrap().into_inner();
            calls += 1;
            for stored in &page.checkpoints {
                assert!(stored.state_bytes > 0 && stored.checkpoint.as_ref().unwrap().state.is_empty());
            }
            seen.extend(page.checkpoints.into_iter().map(|stored| stored.sequence));
            before_sequence = page.next_before_sequence;
            if before_sequence == 0 {
                break;
            }
        }
        assert_eq!(seen, (1..=205).rev().collect::<Vec<u64>>(), "pages of {page_size}");
        assert_eq!(calls, pages, "pages of {page_size}");
    }
    let beyond = ListCheckpointsRequest {
        pipeline: ORDERS.to_owned(),
        branch: "main".to_owned(),
        before_sequence: u64::MAX,
        page_size: 1,
        cluster: None,
        ..ListCheckpointsRequest::default()
    };
    let page = store.checkpoints().list_checkpoints(beyond.clone()).await.unwrap().into_inner();
    assert_eq!(page.checkpoints[0].sequence, 205);
    let first = ListCheckpointsRequest { before_sequence: 1, ..beyond };
    let page = store.checkpoints().list_checkpoints(first).await.unwrap().into_inner();
    assert_eq!((page.checkpoints.len(), page.next_before_sequence), (0, 0));
}

#[tokio::test]
async fn a_branch_without_commits_has_an_empty_history() {
    let store = Store::open().await;
    store.take("main").await;
    let request =
        ListCheckpointsRequest { pipeline: ORDERS.to_owned(), branch: "main".to_owned(), ..Default::default() };
    let page = store.checkpoints().list_checkpoints(request).await.unwrap().into_inner();
    assert_eq!((page.checkpoints.len(), page.next_before_sequence), (0, 0));
}

/// Pipelines `a/p00`, `a/p01`, ... and `b/p00`, ..., each with branches `x`, `y`, `z` of which `y` is released.
async fn with_pipelines(store: &Store, count: usize) -> Vec<String> {
    let mut names = Vec::new();
    for namespace in ["b", "a"] {
        for i in (0..count).rev() {
            let pipeline = format!("{namespace}/p{i:02}");
            for branch in ["z", "x", "y"] {
                let request = ResumeRequest { pipeline: pipeline.clone(), ..resume(branch) };
                let token = store.resume(request).await.unwrap().token;
                if branch == "y" {
                    let lease = Some(fencepost::v1::LeaseRef { pipeline: pipeline.clone(), ..lease("y", token) });
                    store.leases().release(ReleaseRequest { lease, cluster: None }).await.unwrap();
                }
            }
            names.push(pipeline);
        }
    }
    names.sort();
    names
}

#[tokio::test]
async fn pipelines_are_listed_by_name_and_prefix_in_pages() {
    let store = Store::open().await;
    let names = with_pipelines(&store, 12).await;
    let list = async |prefix: &str, page_size: u32| {
        let (mut seen, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListPipelinesRequest { prefix: prefix.to_owned(), page_size, page_token, cluster: None };
            let page = store.checkpoints().list_pipelines(request).await.unwrap().into_inner();
            for info in page.pipelines {
                assert_eq!((info.branches, info.leases, info.commits, info.last_committed_at_ms), (3, 2, 0, 0));
                seen.push(info.pipeline);
            }
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return seen;
            }
        }
    };
    for page_size in [0, 1, 5, 12, 24, 1_000] {
        assert_eq!(list("", page_size).await, names);
        assert_eq!(list("a/", page_size).await, names[..12]);
        assert_eq!(list("b/p0", page_size).await, names[12..22]);
        assert_eq!(list("c", page_size).await, Vec::<String>::new());
    }
}

#[tokio::test]
async fn branches_are_listed_across_pipelines_in_pages() {
    let store = Store::open().await;
    let pipelines = with_pipelines(&store, 4).await;
    let list = async |pipeline: &str, leased_only: bool, page_size: u32| {
        let (mut seen, mut page_token) = (Vec::new(), String::new());
        loop {
            let pipeline = pipeline.to_owned();
            let request = ListBranchesRequest { pipeline, leased_only, page_size, page_token, cluster: None };
            let page = store.checkpoints().list_branches(request).await.unwrap().into_inner();
            assert!(page_size == 0 || page.branches.len() <= page_size as usize);
            for info in page.branches {
                assert_eq!(info.lease.is_some(), info.branch != "y");
                seen.push((info.pipeline, info.branch));
            }
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return seen;
            }
        }
    };
    let of = |pipelines: &[String], branches: &[&str]| {
        let pairs =
            pipelines.iter().flat_map(|name| branches.iter().map(|branch| (name.clone(), (*branch).to_owned())));
        pairs.collect::<Vec<_>>()
    };
    for page_size in [0, 1, 2, 3, 4, 5, 23, 24, 25, 1_000] {
        assert_eq!(list("", false, page_size).await, of(&pipelines, &["x", "y", "z"]), "pages of {page_size}");
        assert_eq!(list("", true, page_size).await, of(&pipelines, &["x", "z"]), "pages of {page_size}");
        assert_eq!(list("a/p02", false, page_size).await, of(&pipelines[2..3], &["x", "y", "z"]));
        assert_eq!(list("a/p02", true, page_size).await, of(&pipelines[2..3], &["x", "z"]));
    }
}

#[tokio::test]
async fn the_few_leases_among_many_branches_and_pipelines_are_found() {
    const MANY: usize = 2_100;
    let store = Store::open().await;
    store.with_history("main", 1).await;
    let mut forks = tokio::task::JoinSet::new();
    for i in 0..2 * MANY {
        let mut pipelines = store.pipelines();
        let pipeline = if i < MANY { "many/branches".to_owned() } else { format!("many/pipelines-{i}") };
        let fork = ForkRequest {
            source_pipeline: ORDERS.to_owned(),
            source_branch: "main".to_owned(),
            pipeline,
            branch: format!("b{i}"),
            ..ForkRequest::default()
        };
        forks.spawn(async move { pipelines.fork(fork).await });
    }
    forks.join_all().await.into_iter().for_each(|forked| drop(forked.unwrap()));
    let last = ResumeRequest { pipeline: "many/branches".to_owned(), ..resume("z") };
    store.resume(last).await.unwrap();
    let list = async |request: ListBranchesRequest| {
        let (mut seen, mut page_token) = (Vec::new(), String::new());
        loop {
            let request = ListBranchesRequest { page_token, ..request.clone() };
            let page = store.checkpoints().list_branches(request).await.unwrap().into_inner();
            seen.extend(page.branches.into_iter().map(|info| (info.pipeline, info.branch)));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                return seen;
            }
        }
    };
    let (of_many, of_orders) = (("many/branches".to_owned(), "z".to_owned()), (ORDERS.to_owned(), "main".to_owned()));
    for page_size in [1, 2, 1_000] {
        let leased = ListBranchesRequest { leased_only: true, page_size, ..ListBranchesRequest::default() };
        assert_eq!(list(leased.clone()).await, [of_many.clone(), of_orders.clone()], "pages of {page_size}");
        let one = ListBranchesRequest { pipeline: "many/branches".to_owned(), ..leased };
        assert_eq!(list(one).await, slice::from_ref(&of_many), "pages of {page_size}");
    }
    let all = list(ListBranchesRequest { page_size: 999, ..ListBranchesRequest::default() }).await;
    assert_eq!((all.len(), all.is_sorted()), (2 * MANY + 2, true));
}

#[tokio::test]
async fn a_pipeline_counts_its_commits() {
    let store = Store::open().await;
    store.with_history("main", 3).await;
    let page = store.checkpoints().list_pipelines(ListPipelinesRequest::default()).await.unwrap().into_inner();
    let info = &page.pipelines[0];
    assert_eq!((info.branches, info.leases, info.commits), (1, 1, 3));
    assert_eq!(info.last_committed_at_ms, store.stored_head("main").await.committed_at_ms);
}

#[tokio::test]
async fn a_read_shows_what_was_acknowledged_before_it() {
    let store = Store::open().await;
    let token = store.take("main").await;
    for sequence in 1..=200 {
        let done = store.commit(commit("main", token, sequence)).await.unwrap();
        let read = store.checkpoints().get_head(head("main")).await.unwrap().into_inner();
        assert_eq!(read.head.unwrap().sequence, sequence);
        assert!(read.header.unwrap().lsn >= done.lsn);
    }
}
