//! Open dead letters outlive the checkpoints that they came with: through compaction, restarts and exports.

use std::io::Cursor;

use fencepost::v1::dead_letter_service_client::DeadLetterServiceClient;
use fencepost::v1::pipeline_service_client::PipelineServiceClient;
use fencepost::v1::{ListDeadLettersRequest, ListSchemasRequest, Policy, SetPolicyRequest, StoredDeadLetter};
use fencepost_client::Client;
use fencepost_server::disk::RealDisk;
use fencepost_server::embedded::Embedded;
use fencepost_server::ops::check::check;

use crate::drive::Driver;
use crate::prepared::settled;
use crate::support::{PIPELINE, compact, config, open_again, scratch, status};

async fn letters(store: &Embedded, pipeline: &str) -> Vec<StoredDeadLetter> {
    let request = ListDeadLettersRequest { pipeline: pipeline.to_owned(), page_size: 1_000, ..Default::default() };
    DeadLetterServiceClient::new(store.channel()).list_dead_letters(request).await.unwrap().into_inner().letters
}

fn payload(stored: &StoredDeadLetter) -> Vec<u8> {
    stored.letter.as_ref().unwrap().payload.to_vec()
}

/// Commits what dies at once until there are so many more segments, and compacts.
async fn bury(store: &Embedded, driver: &mut Driver) {
    let segments = status(store).await.log.unwrap().segments;
    while status(store).await.log.unwrap().segments < segments + 2 {
        driver.commit("prod/bulk", &["main"], 600_000).await;
    }
    settled(store).await;
    compact(store).await.unwrap();
}

async fn count(client: &Client, branch: &str, sequence: u64) -> u64 {
    let branch = client.pipeline(PIPELINE).branch(branch);
    branch.checkpoint(sequence).await.map_or(0, |found| found.sequence())
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn compaction_removes_no_open_letter_and_the_log_alone_gives_the_same_ones() {
    let dir = scratch();
    let data_dir = dir.path().join("data");
    let mut store = open_again(config(&data_dir)).await.unwrap();
    let mut driver = Driver::new(store.channel());
    driver.policy(PIPELINE, 1, 0).await;
    driver.policy("prod/bulk", 1, 0).await;
    for _ in 0..5 {
        driver.skip(PIPELINE, "eu", 3, 0).await;
    }
    driver.skip(PIPELINE, "us", 2, 4).await;
    driver.discard(PIPELINE, 1).await;
    driver.commit(PIPELINE, &["eu"], 100).await;
    let open = letters(&store, PIPELINE).await;
    assert_eq!(open.len(), 15 + 2 - 4 - 1);
    bury(&store, &mut driver).await;
    assert_eq!(letters(&store, PIPELINE).await, open);
    assert_eq!(count(&store.client(), "eu", 3).await, 0, "the checkpoint itself is gone");

    // What is replayed and discarded after that stays so, whatever compaction removes.
    driver.skip(PIPELINE, "eu", 0, 3).await;
    driver.discard(PIPELINE, 2).await;
    let open = letters(&store, PIPELINE).await;
    assert_eq!(open.len(), 12 - 5);
    for round in 0..2 {
        bury(&store, &mut driver).await;
        store.close().await.unwrap();
        std::fs::remove_dir_all(data_dir.join("index")).unwrap();
        for file in std::fs::read_dir(&data_dir).unwrap() {
            let path = file.unwrap().path();
            if path.is_file() && path.file_name().is_some_and(|name| name.to_string_lossy().contains("state")) {
                std::fs::remove_file(path).unwrap();
            }
        }
        let checked = check(&RealDisk, &data_dir, &mut |_| ()).unwrap();
        assert!(checked.damage.is_empty(), "{:?}", checked.damage.len());
        store = open_again(config(&data_dir)).await.unwrap();
        driver.reconnect(store.channel());
        assert_eq!(letters(&store, PIPELINE).await, open, "round {round}");
    }
    let rest = open.len();
    driver.skip(PIPELINE, "eu", 0, rest).await;
    assert_eq!(letters(&store, PIPELINE).await, []);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_brings_open_letters_and_declared_schemas_and_no_handled_ones() {
    let dir = scratch();
    let source = open_again(config(&dir.path().join("a"))).await.unwrap();
    let target = open_again(config(&dir.path().join("b"))).await.unwrap();
    let mut driver = Driver::new(source.channel());
    driver.policy(PIPELINE, 2, 0).await;
    driver.declare(PIPELINE, "v1", "").await;
    driver.declare(PIPELINE, "v2", "v1").await;
    for _ in 0..6 {
        driver.skip(PIPELINE, "eu", 3, 1).await;
        driver.skip(PIPELINE, "us", 1, 0).await;
    }
    driver.discard(PIPELINE, 2).await;
    let open = letters(&source, PIPELINE).await;
    let is_old = |letter: &&StoredDeadLetter| letter.branch == "eu" && letter.sequence < 5;
    assert!(open.iter().filter(is_old).count() > 3, "some came with checkpoints that are not retained");

    let mut file = Vec::new();
    source.client().export_pipeline(PIPELINE, &mut file).await.unwrap();
    let import = target.client();
    let imported = import.import_pipeline(Cursor::new(file)).pipeline("prod/moved").send().await.unwrap();
    assert_eq!((imported.branches, imported.checkpoints), (2, 4));
    let there = letters(&target, "prod/moved").await;
    let told = |letters: &[StoredDeadLetter]| -> Vec<_> {
        letters.iter().map(|it| (it.branch.clone(), it.sequence, it.at_ms, payload(it))).collect()
    };
    assert_eq!(told(&there), told(&open));
    let request = |pipeline: &str| ListSchemasRequest { cluster: None, pipeline: pipeline.to_owned() };
    let schemas = async |store: &Embedded, pipeline| {
        PipelineServiceClient::new(store.channel()).list_schemas(request(pipeline)).await.unwrap().into_inner().schemas
    };
    assert_eq!(schemas(&target, "prod/moved").await, schemas(&source, PIPELINE).await);

    // They are as good as those that came here first.
    driver.reconnect(target.channel());
    driver.take("prod/moved", "eu").await;
    driver.skip("prod/moved", "eu", 1, there.len()).await;
    let left = letters(&target, "prod/moved").await;
    assert_eq!((left.len(), left[0].sequence), (1, 7));
    let policy = Some(Policy { declared_schemas_only: true, ..Policy::default() });
    let set = SetPolicyRequest { pipeline: "prod/moved".to_owned(), policy, ..SetPolicyRequest::default() };
    PipelineServiceClient::new(target.channel()).set_policy(set).await.unwrap();
    let refused = driver.try_commit("prod/moved", &["eu"], 10).await.unwrap_err();
    assert!(refused.message().contains("declared schemas only"), "{refused:?}");
    source.close().await.unwrap();
    target.close().await.unwrap();
}
