//! Savepoints: made, listed, repeated, refused, deleted.

use fencepost::Reason;
use fencepost::v1::{CreateSavepointRequest, DeleteSavepointRequest, ListSavepointsRequest};
use fencepost_server::config::limits;

use crate::limits::{bad_names, bad_pipelines, check, fault, name_faults};
use crate::support::{ORDERS, Store, commit, name, refusal, rewind};

fn delete(name: &str) -> DeleteSavepointRequest {
    DeleteSavepointRequest { pipeline: ORDERS.to_owned(), name: name.to_owned(), ..Default::default() }
}

#[tokio::test]
async fn a_savepoint_says_what_it_names_who_made_it_and_why() {
    let store = Store::open().await;
    store.with_history("main", 3).await;
    let made = store.create_savepoint(name("release", "main", 2)).await.unwrap();
    assert_eq!((made.name.as_str(), made.branch.as_str(), made.sequence), ("release", "main", 2));
    assert_eq!((made.actor.as_str(), made.reason.as_str()), ("ops", "before the release"));
    assert_eq!(made.lsn, store.checkpoint("main", 2).await.unwrap().lsn);
    assert!(made.created_at_ms > 0);
    let head = store.create_savepoint(name("head", "main", 0)).await.unwrap();
    assert_eq!(head.sequence, 3, "0 is the head");
}

#[tokio::test]
async fn the_same_savepoint_again_is_answered_as_the_first_was_and_another_of_its_name_is_refused() {
    let store = Store::open().await;
    let token = store.with_history("main", 3).await;
    let first = store.create_savepoint(name("release", "main", 2)).await.unwrap();
    let again = CreateSavepointRequest { actor: "somebody".to_owned(), ..name("release", "main", 2) };
    assert_eq!(store.create_savepoint(again).await.unwrap(), first);
    store.with_history("other", 2).await;
    for other in [name("release", "main", 3), name("release", "main", 0), name("release", "other", 2)] {
        let details = refusal(&store.create_savepoint(other).await.unwrap_err(), Reason::Exists);
        assert_eq!((details["field"].as_str(), details["value"].as_str()), ("name", "release"));
    }
    // A checkpoint of the same sequence from after a rewind is another one.
    store.rewind(rewind("main", 3, 1)).await.unwrap();
    refusal(&store.commit(commit("main", token, 2)).await.unwrap_err(), Reason::Fenced);
    let token = store.take("main").await;
    store.commit(commit("main", token, 2)).await.unwrap();
    refusal(&store.create_savepoint(name("release", "main", 2)).await.unwrap_err(), Reason::Exists);
}

#[tokio::test]
async fn only_what_is_there_and_kept_can_be_named() {
    let store = Store::open().await;
    refusal(&store.create_savepoint(name("a", "main", 1)).await.unwrap_err(), Reason::StateMissing);
    store.take("main").await;
    refusal(&store.create_savepoint(name("a", "main", 0)).await.unwrap_err(), Reason::StateMissing);
    store.keep_last(2).await;
    store.with_history("jfk", 5).await;
    refusal(&store.create_savepoint(name("a", "jfk", 6)).await.unwrap_err(), Reason::StateMissing);
    let details = refusal(&store.create_savepoint(name("a", "jfk", 3)).await.unwrap_err(), Reason::Compacted);
    assert_eq!(details["oldest"], "4");
    store.create_savepoint(name("a", "jfk", 4)).await.unwrap();
}

#[tokio::test]
async fn a_deleted_savepoint_is_gone_and_so_is_what_only_it_kept() {
    let store = Store::open().await;
    store.keep_last(1).await;
    let token = store.with_history("main", 1).await;
    store.create_savepoint(name("first", "main", 1)).await.unwrap();
    store.commit(commit("main", token, 2)).await.unwrap();
    store.checkpoint("main", 1).await.unwrap();
    store.pipelines().delete_savepoint(delete("first")).await.unwrap();
    refusal(&store.checkpoint("main", 1).await.unwrap_err(), Reason::Compacted);
    refusal(&store.pipelines().delete_savepoint(delete("first")).await.unwrap_err(), Reason::StateMissing);
    let elsewhere = DeleteSavepointRequest { pipeline: "prod/nothing".to_owned(), ..delete("first") };
    refusal(&store.pipelines().delete_savepoint(elsewhere).await.unwrap_err(), Reason::StateMissing);
    store.create_savepoint(name("first", "main", 2)).await.unwrap();
}

#[tokio::test]
async fn savepoints_are_listed_by_name_in_pages() {
    let store = Store::open().await;
    store.with_history("main", 3).await;
    for i in (0..7).rev() {
        store.create_savepoint(name(&format!("s{i}"), "main", 1 + i % 3)).await.unwrap();
    }
    for (page_size, pages) in [(1, 8), (3, 3), (7, 2), (0, 1)] {
        let (mut names, mut page_token, mut calls) = (Vec::new(), String::new(), 0);
        loop {
            let request =
                ListSavepointsRequest { pipeline: ORDERS.to_owned(), page_size, page_token, ..Default::default() };
            let page = store.pipelines().list_savepoints(request).await.unwrap().into_inner();
            calls += 1;
            names.extend(page.savepoints.into_iter().map(|savepoint| savepoint.name));
            page_token = page.next_page_token;
            if page_token.is_empty() {
                break;
            }
        }
        assert_eq!(names, ["s0", "s1", "s2", "s3", "s4", "s5", "s6"], "pages of {page_size}");
        assert_eq!(calls, pages, "pages of {page_size}");
    }
    let request = ListSavepointsRequest { pipeline: "prod/nothing".to_owned(), ..Default::default() };
    refusal(&store.pipelines().list_savepoints(request).await.unwrap_err(), Reason::StateMissing);
}

#[tokio::test]
async fn a_pipeline_has_so_many_savepoints_and_not_one_more() {
    let store = Store::open().await;
    store.with_history("main", 1).await;
    let mut making = tokio::task::JoinSet::new();
    for i in 0..limits::SAVEPOINTS_MAX {
        let mut pipelines = store.pipelines();
        making.spawn(async move { pipelines.create_savepoint(name(&format!("s{i}"), "main", 1)).await });
    }
    for made in making.join_all().await {
        made.unwrap();
    }
    let details = refusal(&store.create_savepoint(name("more", "main", 1)).await.unwrap_err(), Reason::TooLarge);
    assert_eq!(details["value"], "more");
    store.create_savepoint(name("s0", "main", 1)).await.expect("a repeat is no new one");
    store.pipelines().delete_savepoint(delete("s7")).await.unwrap();
    store.create_savepoint(name("more", "main", 1)).await.unwrap();
}

#[tokio::test]
async fn a_malformed_savepoint_is_refused_by_field() {
    let store = Store::open().await;
    store.with_history("main", 1).await;
    let mut faults = vec![
        fault("actor too long", Reason::InvalidField, "actor", |request: &mut CreateSavepointRequest| {
            request.actor = "\u{e4}".repeat(limits::ACTOR_CHARS_MAX + 1);
        }),
        fault("reason too long", Reason::TooLarge, "reason", |request: &mut CreateSavepointRequest| {
            request.reason = "r".repeat(limits::REASON_BYTES_MAX + 1);
        }),
    ];
    faults.extend(name_faults(bad_pipelines(), "pipeline", |request: &mut CreateSavepointRequest, it| {
        request.pipeline = it;
    }));
    faults.extend(name_faults(bad_names(), "branch", |request: &mut CreateSavepointRequest, it| request.branch = it));
    faults.extend(name_faults(bad_names(), "name", |request: &mut CreateSavepointRequest, it| request.name = it));
    check("CreateSavepoint", name("s", "main", 1), faults, async |request| store.create_savepoint(request).await).await;
}
