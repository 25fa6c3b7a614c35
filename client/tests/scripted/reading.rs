//! Reading, following, and whom the client believes.

use fencepost_client::{Action, Applied, Checkpoint, Client, Error, Lsn, Reason, StoredCheckpoint, Tail};

use crate::fake::{CallFate, Fake, PIPELINE, fresh};

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
    let mut facts = fake.client().tail(Tail::from(Lsn::from_u64(1)).pipeline(PIPELINE));
    let mut seen = Vec::new();
    while let Some(fact) = facts.next().await {
        seen.push(fact.unwrap().0.as_u64());
    }
    assert_eq!(seen, (1..=10).collect::<Vec<u64>>());
    assert_eq!(fake.see(|state| state.tails.iter().map(|tail| tail.from_lsn).collect::<Vec<_>>()), [1, 4, 7, 10]);
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
