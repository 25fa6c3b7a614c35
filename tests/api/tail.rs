//! Following the log.

use std::time::Duration;

use fencepost::log::v1::fact::Kind;
use fencepost::v1::{ResumeRequest, TailFact, TailRequest, TailResponse};
use fencepost::{LogIndex, Lsn, Reason};
use tonic::Streaming;

use crate::support::{ORDERS, PATIENCE, Store, commit, commit_of, refusal, resume};

fn from(lsn: Lsn) -> TailRequest {
    TailRequest { from_lsn: lsn.as_u64(), ..TailRequest::default() }
}

fn only(pipeline: &str, branch: &str) -> TailRequest {
    TailRequest { pipeline: pipeline.to_owned(), branch: branch.to_owned(), ..TailRequest::default() }
}

/// What a fact is about, in short.
fn kind(fact: &TailFact) -> String {
    match fact.fact.as_ref().unwrap().kind.as_ref().unwrap() {
        Kind::ClusterCreated(_) => "created".to_owned(),
        Kind::LeaseGranted(granted) => format!("granted {}", granted.branch),
        Kind::LeaseReleased(released) => format!("released {}", released.branch),
        Kind::Committed(committed) => {
            let moved = committed.branches.iter().map(|moved| format!("{} {}", moved.branch, moved.sequence));
            format!("committed {}", moved.collect::<Vec<_>>().join(", "))
        }
        other => format!("{other:?}"),
    }
}

async fn kinds(store: &Store, request: TailRequest) -> Vec<String> {
    store.facts(request).await.unwrap().iter().map(kind).collect()
}

async fn next(stream: &mut Streaming<TailResponse>) -> TailResponse {
    let message = tokio::time::timeout(PATIENCE, stream.message()).await.expect("a fact comes in time");
    message.unwrap().expect("a stream that follows does not end")
}

/// Two branches of one pipeline and one of another, with a few commits.
async fn with_facts(store: &Store) {
    let (one, two) = (store.take("one").await, store.take("two").await);
    let other = ResumeRequest { pipeline: "test/other".to_owned(), ..resume("one") };
    store.resume(other).await.unwrap();
    store.commit(commit("one", one, 1)).await.unwrap();
    store.commit(commit("two", two, 1)).await.unwrap();
    store.commit(commit_of([("one", one, 2), ("two", two, 2)])).await.unwrap();
}

#[tokio::test]
async fn the_log_tells_everything_in_order_from_its_first_fact() {
    let store = Store::open().await;
    with_facts(&store).await;
    let all = [
        "created",
        "granted one",
        "granted two",
        "granted one",
        "committed one 1",
        "committed two 1",
        "committed one 2, two 2",
    ];
    let facts = store.facts(TailRequest::default()).await.unwrap();
    assert_eq!(facts.iter().map(kind).collect::<Vec<_>>(), all);
    assert!(facts.windows(2).all(|pair| pair[0].lsn < pair[1].lsn));
    assert_eq!(Lsn::from_u64(facts[0].lsn), Lsn::new(LogIndex(1), 0));
    for (place, fact) in facts.iter().enumerate() {
        let rest = store.facts(TailRequest { from_lsn: fact.lsn, ..TailRequest::default() }).await.unwrap();
        assert_eq!(rest, facts[place..], "from {}", Lsn::from_u64(fact.lsn));
        let after = store.facts(from(Lsn::from_u64(fact.lsn).next())).await.unwrap();
        assert_eq!(after, facts[place + 1..], "after {}", Lsn::from_u64(fact.lsn));
    }
}

#[tokio::test]
async fn a_filter_passes_what_matches_and_nothing_else() {
    let store = Store::open().await;
    with_facts(&store).await;
    assert_eq!(kinds(&store, only("test/other", "")).await, ["granted one"]);
    let one = ["granted one", "committed one 1", "committed one 2, two 2"];
    assert_eq!(kinds(&store, only(ORDERS, "one")).await, one);
    assert_eq!(kinds(&store, only("", "two")).await, ["granted two", "committed two 1", "committed one 2, two 2"]);
    assert_eq!(kinds(&store, only(ORDERS, "none")).await, Vec::<String>::new());
    assert_eq!(kinds(&store, only("nobody/knows", "")).await, Vec::<String>::new());
}

#[tokio::test]
async fn states_can_be_left_out() {
    let store = Store::open().await;
    with_facts(&store).await;
    let request = TailRequest { without_state: true, ..only(ORDERS, "one") };
    for fact in store.facts(request).await.unwrap() {
        if let Some(Kind::Committed(committed)) = fact.fact.unwrap().kind {
            for moved in committed.branches {
                let checkpoint = moved.checkpoint.unwrap();
                assert!(checkpoint.state.is_empty() && !checkpoint.position.is_empty());
            }
        }
    }
}

#[tokio::test]
async fn a_follower_sees_new_facts_and_can_go_on_where_it_was() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let mut stream =
        store.logs().tail(TailRequest { follow: true, ..TailRequest::default() }).await.unwrap().into_inner();
    let mut seen = Vec::new();
    let mut next_lsn = 0;
    for sequence in 1..=20 {
        store.commit(commit("main", token, sequence)).await.unwrap();
        while seen.last() != Some(&format!("committed main {sequence}")) {
            let message = next(&mut stream).await;
            next_lsn = message.next_lsn;
            seen.extend(message.facts.iter().map(kind));
        }
    }
    assert_eq!(seen.len(), 22);
    drop(stream);

    store.commit(commit("main", token, 21)).await.unwrap();
    let request = TailRequest { follow: true, from_lsn: next_lsn, ..TailRequest::default() };
    let mut stream = store.logs().tail(request).await.unwrap().into_inner();
    assert_eq!(kind(&next(&mut stream).await.facts[0]), "committed main 21", "none twice and none left out");
}

#[tokio::test]
async fn a_follower_may_start_one_past_the_newest_fact() {
    let store = Store::open().await;
    let token = store.take("main").await;
    let newest = Lsn::from_u64(store.facts(TailRequest::default()).await.unwrap().last().unwrap().lsn);
    let request = TailRequest { follow: true, ..from(Lsn::new(newest.index().next(), 0)) };
    let mut stream = store.logs().tail(request).await.unwrap().into_inner();
    store.commit(commit("main", token, 1)).await.unwrap();
    assert_eq!(kind(&next(&mut stream).await.facts[0]), "committed main 1");
}

#[tokio::test]
async fn a_position_that_is_not_in_the_log_is_refused() {
    let store = Store::open().await;
    store.take("main").await;
    let newest = Lsn::from_u64(store.facts(TailRequest::default()).await.unwrap().last().unwrap().lsn);
    let past = Lsn::new(newest.index().next(), 0);
    for future in [past.next(), Lsn::new(LogIndex(1_000), 0), Lsn::MAX] {
        let details = refusal(&store.facts(from(future)).await.unwrap_err(), Reason::FutureLsn);
        assert_eq!(details["lsn"], newest.as_u64().to_string());
    }
    assert_eq!(store.facts(from(past)).await.unwrap(), []);
    let first = Lsn::new(LogIndex(1), 0);
    for gone in [1, first.as_u64() - 1] {
        let details = refusal(&store.facts(from(Lsn::from_u64(gone))).await.unwrap_err(), Reason::Compacted);
        assert_eq!(details["floor"], first.as_u64().to_string());
    }
}

#[tokio::test]
async fn the_header_tells_the_newest_fact_and_no_later_position() {
    let store = Store::open().await;
    let token = store.take("main").await;
    store.commit(commit("main", token, 1)).await.unwrap();
    let newest = store.facts(TailRequest::default()).await.unwrap().last().unwrap().lsn;
    let mut stream = store.logs().tail(TailRequest::default()).await.unwrap().into_inner();
    while let Some(message) = stream.message().await.unwrap() {
        let lsn = message.header.unwrap().lsn;
        assert_eq!(Lsn::from_u64(lsn), Lsn::from_u64(newest));
    }
}

/// Time does not pass for real here: a paused clock jumps to the next timer once everybody waits.
#[tokio::test]
async fn a_follower_that_hears_nothing_hears_a_heartbeat() {
    let store = Store::open().await;
    store.take("main").await;
    let mut stream =
        store.logs().tail(TailRequest { follow: true, ..TailRequest::default() }).await.unwrap().into_inner();
    let first = next(&mut stream).await;
    assert_eq!(first.facts.len(), 2);
    tokio::time::pause();
    let begun = tokio::time::Instant::now();
    for beat in 1..=3 {
        let heartbeat = stream.message().await.unwrap().unwrap();
        assert_eq!((heartbeat.facts.len(), heartbeat.next_lsn), (0, first.next_lsn));
        assert_eq!(heartbeat.header.unwrap().lsn, first.facts[1].lsn);
        assert!(begun.elapsed() >= Duration::from_secs(5 * beat));
    }
}

#[tokio::test]
async fn a_long_log_comes_in_many_messages_and_whole() {
    let store = Store::open().await;
    let token = store.take("main").await;
    for sequence in 1..=40 {
        let mut request = commit("main", token, sequence);
        request.branches[0].checkpoint.as_mut().unwrap().state = vec![9; 100 << 10].into();
        store.commit(request).await.unwrap();
    }
    let mut stream = store.logs().tail(only(ORDERS, "main")).await.unwrap().into_inner();
    let (mut messages, mut facts, mut next_lsn) = (0, 0, 0);
    while let Some(message) = stream.message().await.unwrap() {
        messages += 1;
        facts += message.facts.len();
        assert!(message.next_lsn > next_lsn, "every message says how far it got");
        next_lsn = message.next_lsn;
    }
    assert_eq!(facts, 41);
    assert!(messages > 2, "4 MB do not come in {messages} messages");
}
