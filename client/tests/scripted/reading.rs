//! Reading, following, and whom the client believes.

use std::time::Duration;

use fencepost_client::{Action, Applied, Checkpoint, Client, Error, FactStream, Lsn, Reason, StoredCheckpoint, Tail};
use tokio::time::Instant;

use crate::fake::{CallFate, Fake, LogScript, PIPELINE, fresh};

#[tokio::test(start_paused = true)]
async fn listings_page_by_themselves() {
    let fake = Fake::start();
    let pipeline = fake.client().pipeline(PIPELINE);
    let worker = pipeline.branch("a").resume(fresh()).await.unwrap();
    for position in 1..=5 {
        worker.commit(Checkpoint::at(position.to_string())).await.unwrap();
    }
    let _b = pipeline.branch("b").resume(fresh()).await.unwrap();

    let stored = pipeline.branch("a").checkpoints().all().await.unwrap();
    let sequences: Vec<u64> = stored.iter().map(StoredCheckpoint::sequence).collect();
    assert_eq!(sequences, [5, 4, 3, 2, 1]);
    let mut branches = pipeline.branches();
    assert_eq!(branches.next().await.unwrap().unwrap().branch, "a");
    assert_eq!(branches.next().await.unwrap().unwrap().branch, "b");
    assert_eq!(branches.next().await.unwrap(), None);

    let branch = pipeline.branch("a");
    assert_eq!(branch.head().await.unwrap().sequence(), 5);
    assert_eq!(branch.checkpoint(2).await.unwrap().position_str(), "2");
    let error = branch.checkpoint(9).await.unwrap_err();
    assert_eq!((error.reason(), error.action()), (Some(Reason::StateMissing), Action::Stop));
}

#[tokio::test(start_paused = true)]
async fn a_tail_goes_on_where_its_connection_broke() {
    let fake = Fake::start();
    let facts = fake.client().tail(Tail::from(Lsn::from_u64(1)).pipeline(PIPELINE));
    assert_eq!(read_all(facts).await, (1..=10).collect::<Vec<u64>>());
    assert_eq!(fake.see(|state| state.tails.iter().map(|tail| tail.from_lsn).collect::<Vec<_>>()), [1, 4, 7, 10]);
}

/// A log of that many facts of that size. All connections of its clients hold.
fn large_facts(newest: u64, fact_bytes: usize) -> Fake {
    let fake = Fake::start();
    fake.script(|state| state.log = LogScript { newest, fact_bytes, breaks_after: u64::MAX });
    fake
}

async fn read_all(mut facts: FactStream) -> Vec<u64> {
    let mut seen = Vec::new();
    while let Some(fact) = facts.next().await {
        seen.push(fact.unwrap().0.as_u64());
    }
    seen
}

#[tokio::test(start_paused = true)]
async fn tails_that_nobody_reads_hold_up_neither_commits_nor_keepalives() {
    const NEWEST: u64 = 400;
    let fake = large_facts(NEWEST, 64 << 10);
    let client = fake.client();
    let worker = client.pipeline(PIPELINE).branch("main").resume(fresh()).await.unwrap();
    let paused: Vec<FactStream> = (0..8).map(|_| client.tail(Tail::from(Lsn::from_u64(1)))).collect();
    for _ in 0..60 {
        tokio::time::sleep(Duration::from_secs(3)).await;
        let begun = Instant::now();
        worker.commit(Checkpoint::at("1")).await.unwrap();
        assert!(begun.elapsed() < Duration::from_secs(1), "{:?}", begun.elapsed());
        assert!(worker.validity() > worker.ttl() / 2);
    }
    for facts in paused {
        assert_eq!(read_all(facts).await, (1..=NEWEST).collect::<Vec<u64>>(), "nothing is lost, nothing comes twice");
    }
}

#[tokio::test(start_paused = true)]
async fn what_waits_for_a_reader_is_bounded_in_bytes() {
    let fake = large_facts(200, 1 << 20);
    let mut facts = fake.client().tail(Tail::from(Lsn::from_u64(1)));
    facts.next().await.unwrap().unwrap();
    tokio::time::sleep(Duration::from_mins(10)).await;
    // What waits for the reader, and what was in the windows and the pipe when the stream was dropped.
    assert!(fake.see(|state| state.facts_sent) < 20, "{}", fake.see(|state| state.facts_sent));
    assert_eq!(fake.see(|state| state.tails.len()), 1, "nothing is asked for while nobody reads");
    assert_eq!(read_all(facts).await.last(), Some(&200));
}

#[tokio::test(start_paused = true)]
async fn a_slow_reader_gets_every_fact_once() {
    let fake = large_facts(30, 1 << 20);
    let mut facts = fake.client().tail(Tail::from(Lsn::from_u64(1)));
    for expected in 1..=30 {
        tokio::time::sleep(Duration::from_secs(1)).await;
        assert_eq!(facts.next().await.unwrap().unwrap().0.as_u64(), expected);
    }
    assert!(facts.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_fact_larger_than_all_that_may_wait_is_delivered_alone() {
    let fake = large_facts(3, 8 << 20);
    let facts = fake.client().tail(Tail::from(Lsn::from_u64(1)));
    tokio::time::sleep(Duration::from_mins(1)).await;
    assert_eq!(read_all(facts).await, [1, 2, 3]);
}

#[tokio::test(start_paused = true)]
async fn a_tail_that_does_not_follow_ends_where_the_log_ended_when_it_began() {
    let fake = Fake::start();
    let mut facts = fake.client().tail(Tail::from(Lsn::from_u64(1)));
    facts.next().await.unwrap().unwrap();
    fake.script(|state| state.log.newest = 1_000);
    assert_eq!(read_all(facts).await, (2..=10).collect::<Vec<u64>>(), "although it was opened again meanwhile");
}

#[tokio::test]
async fn a_client_with_an_address_reads_the_log_over_a_connection_of_its_own() {
    let fake = Fake::start();
    let client = Client::connect(fake.listen().await).await.unwrap();
    let worker = client.pipeline(PIPELINE).branch("main").resume(fresh()).await.unwrap();
    assert_eq!(read_all(client.tail(Tail::from(Lsn::from_u64(8)))).await, [8, 9, 10]);
    let [tails, resumes] = fake.see(|state| state.callers.clone());
    assert!(tails[0].is_some() && resumes[0].is_some() && tails[0] != resumes[0], "{tails:?} {resumes:?}");
    drop(worker);
}

#[tokio::test(start_paused = true)]
async fn a_tail_below_the_floor_ends_with_an_error() {
    let fake = Fake::start();
    let mut facts = fake.client().tail(Tail::from(Lsn::ZERO).follow());
    assert_eq!(facts.next().await.unwrap().unwrap_err().reason(), Some(Reason::Compacted));
    assert!(facts.next().await.is_none());
}

#[tokio::test(start_paused = true)]
async fn a_lower_generation_is_refused_whoever_answers_it() {
    let fake = Fake::start();
    fake.script(|state| state.generation = 3);
    let client = fake.client();
    let worker = client.pipeline(PIPELINE).branch("main").resume(fresh()).await.unwrap();
    assert_eq!(client.generation(), 3);
    fake.script(|state| state.generation = 2);
    let error = client.status().await.unwrap_err();
    assert!(matches!(error, Error::RolledBack { seen: 3, answered: 2, .. }), "{error}");
    assert_eq!((error.reason(), error.action()), (Some(Reason::StoreRolledBack), Action::Operator));
    assert_eq!(worker.commit(Checkpoint::at("1")).await.unwrap_err().applied(), Applied::Unknown);
    assert_eq!(client.generation(), 3, "it never goes back");
}

#[tokio::test(start_paused = true)]
async fn another_cluster_is_refused() {
    let fake = Fake::start();
    let client = fake.client();
    client.status().await.unwrap();
    fake.script(|state| state.cluster = "c2".to_owned());
    let error = client.status().await.unwrap_err();
    assert_eq!(error.reason(), Some(Reason::WrongCluster));
    assert!(error.to_string().contains("c1") && error.to_string().contains("c2"), "{error}");
}

#[tokio::test(start_paused = true)]
async fn a_client_that_missed_a_restore_learns_the_generation_and_resumes() {
    let fake = Fake::start();
    let client = fake.client();
    client.status().await.unwrap();
    fake.script(|state| {
        state.generation = 2;
        state.resume_fates.push_back(CallFate::Refuse(Reason::StaleGeneration, vec![]));
    });
    let worker = client.pipeline(PIPELINE).branch("main").resume(fresh()).await.unwrap();
    assert_eq!(worker.token().generation(), 2);
    let asked = fake.see(|state| state.resumes.clone());
    let generations: Vec<u64> = asked.into_iter().map(|resume| resume.cluster.unwrap().generation).collect();
    assert_eq!(generations, [1, 2]);
}

#[tokio::test]
async fn a_server_that_is_not_there_is_named_with_the_cause_and_what_to_try() {
    let listener = tokio::net::TcpListener::bind("127.0.0.1:0").await.unwrap();
    let address = listener.local_addr().unwrap().to_string();
    drop(listener);
    let error = Client::connect(address.clone()).await.unwrap_err();
    let text = error.to_string();
    assert_eq!((error.applied(), error.action()), (Applied::No, Action::Retry));
    assert!(text.contains(&address) && text.contains("refused") && text.contains("Check that it runs"), "{text}");
}
