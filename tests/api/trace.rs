//! Distributed traces: taken from fields and from the metadata of a call, stored, and searched for.

use fencepost::Reason;
use fencepost::v1::commit_response::Outcome;
use fencepost::v1::{CommitRequest, ListCheckpointsRequest, ListCheckpointsResponse, ListDeadLettersRequest};
use tonic::{Request, Status};

use crate::dead_letters::skipping;
use crate::support::{ORDERS, Store, commit, commit_staged, refused_field, stage};

const FIRST: &str = "4bf92f3577b34da6a3ce929d0e0e4736";
const SECOND: &str = "0af7651916cd43dd8448eb211c80319c";

fn traceparent(trace: &str) -> String {
    format!("00-{trace}-00f067aa0ba902b7-01")
}

/// A commit whose checkpoint says this of its trace.
fn traced(token: u64, sequence: u64, traceparent: &str) -> CommitRequest {
    let mut request = commit("main", token, sequence);
    traceparent.clone_into(&mut request.branches[0].checkpoint.as_mut().unwrap().traceparent);
    request
}

async fn commit_with(store: &Store, request: CommitRequest, header: &str) -> Outcome {
    let mut request = Request::new(request);
    request.metadata_mut().insert("traceparent", header.parse().unwrap());
    store.commits().commit(request).await.unwrap().into_inner().outcome()
}

async fn stored(store: &Store, sequence: u64) -> String {
    store.checkpoint("main", sequence).await.unwrap().checkpoint.unwrap().traceparent
}

fn search(trace_id: &str) -> ListCheckpointsRequest {
    ListCheckpointsRequest {
        pipeline: ORDERS.to_owned(),
        branch: "main".to_owned(),
        trace_id: trace_id.to_owned(),
        ..ListCheckpointsRequest::default()
    }
}

async fn list(store: &Store, request: ListCheckpointsRequest) -> Result<ListCheckpointsResponse, Status> {
    Ok(store.checkpoints().list_checkpoints(request).await?.into_inner())
}

#[tokio::test]
async fn the_trace_of_a_call_is_that_of_what_has_none_of_its_own() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let mut request = skipping("main", token, 1, &["a", "b"]);
    request.branches[0].dead_letters[1].traceparent = traceparent(SECOND);
    commit_with(&store, request, &traceparent(FIRST)).await;
    assert_eq!(stored(&store, 1).await, traceparent(FIRST));
    let letters = ListDeadLettersRequest { pipeline: ORDERS.to_owned(), ..ListDeadLettersRequest::default() };
    let letters = store.dead_letters().list_dead_letters(letters).await.unwrap().into_inner().letters;
    let traces: Vec<_> = letters.into_iter().map(|it| it.letter.unwrap().traceparent).collect();
    assert_eq!(traces, [traceparent(FIRST), traceparent(SECOND)]);
    commit_with(&store, traced(token, 2, &traceparent(SECOND)), &traceparent(FIRST)).await;
    assert_eq!(stored(&store, 2).await, traceparent(SECOND));
    store.commit(commit("main", token, 3)).await.unwrap();
    assert_eq!(stored(&store, 3).await, "");
}

#[tokio::test]
async fn the_trace_of_a_stage_is_that_of_what_it_stages() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let mut request = stage("main", token, 1, "tx");
    request.dead_letters = skipping("main", token, 1, &["a", "b"]).branches.remove(0).dead_letters;
    request.dead_letters[1].traceparent = traceparent(SECOND);
    let staged = async |trace: &str| {
        let mut request = Request::new(request.clone());
        request.metadata_mut().insert("traceparent", traceparent(trace).parse().unwrap());
        store.commits().stage(request).await.unwrap().into_inner()
    };
    assert!(!staged(FIRST).await.already);
    // A retry may belong to another trace.
    assert!(staged(SECOND).await.already);
    store.commit(commit_staged("main", token, 1, "tx")).await.unwrap();
    assert_eq!(stored(&store, 1).await, traceparent(FIRST));
    let letters = ListDeadLettersRequest { pipeline: ORDERS.to_owned(), ..ListDeadLettersRequest::default() };
    let letters = store.dead_letters().list_dead_letters(letters).await.unwrap().into_inner().letters;
    let traces: Vec<_> = letters.into_iter().map(|it| it.letter.unwrap().traceparent).collect();
    assert_eq!(traces, [traceparent(FIRST), traceparent(SECOND)]);
}

#[tokio::test]
async fn a_retry_may_belong_to_another_trace_and_the_first_one_is_stored() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let request = skipping("main", token, 1, &["a"]);
    assert_eq!(commit_with(&store, request.clone(), &traceparent(FIRST)).await, Outcome::Applied);
    assert_eq!(commit_with(&store, request, &traceparent(SECOND)).await, Outcome::AlreadyApplied);
    assert_eq!(stored(&store, 1).await, traceparent(FIRST));
}

#[tokio::test]
async fn an_ill_formed_field_is_refused_and_an_ill_formed_header_ignored() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let bad = [
        "trace".to_owned(),
        traceparent(&FIRST.to_uppercase()),
        traceparent(&"0".repeat(32)),
        traceparent(&FIRST[1..]),
        format!("ff-{FIRST}-00f067aa0ba902b7-01"),
        format!("00-{FIRST}-0000000000000000-01"),
        format!("00-{FIRST}-00f067aa0ba902b7-1"),
        format!("00-{FIRST}-00f067aa0ba902b7-01-more"),
        format!("00-{FIRST}-00f067aa0ba902b7"),
    ];
    for (sequence, bad) in (1..).zip(&bad) {
        let refused = store.commit(traced(token, sequence, bad)).await.unwrap_err();
        refused_field(&refused, Reason::InvalidField, "branches[0].checkpoint.traceparent");
        let mut letter = skipping("main", token, sequence, &["a"]);
        bad.clone_into(&mut letter.branches[0].dead_letters[0].traceparent);
        let refused = store.commit(letter).await.unwrap_err();
        refused_field(&refused, Reason::InvalidField, "branches[0].dead_letters[0].traceparent");
        commit_with(&store, commit("main", token, sequence), bad).await;
        assert_eq!(stored(&store, sequence).await, "", "{bad}");
    }
    // A later version is read as far as it is known.
    let later = format!("cc-{FIRST}-00f067aa0ba902b7-01-more");
    store.commit(traced(token, 1 + bad.len() as u64, &later)).await.unwrap();
    assert_eq!(list(&store, search(FIRST)).await.unwrap().checkpoints.len(), 1);
}

#[tokio::test]
async fn checkpoints_are_found_by_their_trace_page_by_page() {
    let store = Store::open().await;
    store.keep_last(100).await;
    let token = store.take("main").await;
    for sequence in 1..=20 {
        let of = match sequence % 5 {
            0 => traceparent(FIRST),
            1 => String::new(),
            _ => traceparent(SECOND),
        };
        store.commit(traced(token, sequence, &of)).await.unwrap();
    }
    for page_size in [1, 3, 7, 1_000] {
        let (mut found, mut before_sequence) = (Vec::new(), 0);
        loop {
            let request = ListCheckpointsRequest { page_size, before_sequence, ..search(&FIRST.to_uppercase()) };
            let page = list(&store, request).await.unwrap();
            found.extend(page.checkpoints.iter().map(|it| it.sequence));
            before_sequence = page.next_before_sequence;
            if before_sequence == 0 {
                break;
            }
        }
        assert_eq!(found, [20, 15, 10, 5], "pages of {page_size}");
    }
    assert_eq!(list(&store, search(SECOND)).await.unwrap().checkpoints.len(), 12);
    assert_eq!(list(&store, search("")).await.unwrap().checkpoints.len(), 20);
    for bad in ["4bf92f", "xbf92f3577b34da6a3ce929d0e0e4736"] {
        refused_field(&list(&store, search(bad)).await.unwrap_err(), Reason::InvalidField, "trace_id");
    }
}
