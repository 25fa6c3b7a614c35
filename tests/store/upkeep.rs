//! Upkeep meets what it cannot do, and does the rest.

use std::path::{Path, PathBuf};

use fencepost::v1::lease_service_client::LeaseServiceClient;
use fencepost::v1::pipeline_service_client::PipelineServiceClient;
use fencepost::v1::{OnMissing, Policy, ResumeMode, ResumeRequest, SetPolicyRequest, Takeover};
use fencepost_server::embedded::Embedded;
use tokio::task::JoinSet;
use tonic::transport::Channel;

use crate::drive::Driver;
use crate::prepared::settled;
use crate::support::{SEGMENT_BYTES, compact, config, files_in, open_again, scratch, status, until};

const LIVE: &str = "prod/live";
const STATE_BYTES: usize = 100_000;

/// Commits until there are so many segments. The states live, or die at once.
async fn fill(store: &Embedded, driver: &mut Driver, pipeline: &str, segments: u64) {
    while status(store).await.log.unwrap().segments < segments {
        driver.commit(pipeline, &["main"], STATE_BYTES).await;
    }
}

/// Changes a byte of the state that this commit saved, which a sealed segment has. Answers which, and what it was.
fn damage_state(data_dir: &Path, sequence: u64) -> (PathBuf, Vec<u8>) {
    let text = format!("{LIVE}/main@{sequence}#");
    for file in files_in(&data_dir.join("log")) {
        let intact = std::fs::read(&file).unwrap();
        let at = intact.windows(text.len()).rposition(|window| window == text.as_bytes());
        if let Some(at) = at {
            let mut bytes = intact.clone();
            bytes[at] ^= 1;
            std::fs::write(&file, bytes).unwrap();
            return (file, intact);
        }
    }
    panic!("no file has '{text}'");
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_index_that_is_made_again_from_a_damaged_log_has_all_that_can_be_read_and_upkeep_goes_on() {
    let dir = scratch();
    let data_dir = dir.path().join("data");
    let store = open_again(config(&data_dir)).await.unwrap();
    let mut driver = Driver::new(store.channel());
    driver.policy(LIVE, 1_000, 0).await;
    for branch in ["a", "b"] {
        driver.commit("prod/orders", &[branch], 100).await;
    }
    fill(&store, &mut driver, LIVE, 4).await;
    settled(&store).await;
    compact(&store).await.unwrap();
    driver.commit("prod/orders", &["a", "b"], 100).await;
    let truth = driver.known.ask(&store.channel()).await;
    store.close().await.unwrap();

    let damaged = 100;
    let (file, intact) = damage_state(&data_dir, damaged);
    std::fs::remove_dir_all(data_dir.join("index")).unwrap();
    // The second time it is opened with what it does not have.
    for _ in 0..2 {
        let store = open_again(config(&data_dir)).await.unwrap();
        until(&store, |it| it.store.as_ref().is_some_and(|it| it.index_state == "READY")).await;
        let is_told = |text: &str| text.contains(file.to_str().unwrap()) || text.contains("entries 107 to 107");
        let corrupt = truth.beside_damage(&driver.known.ask(&store.channel()).await, &is_told).unwrap();
        assert!((1..20).contains(&corrupt), "{corrupt} answers are missing");
        driver.reconnect(store.channel());
        driver.check_heads().await;
        store.close().await.unwrap();
    }

    // As docs/operations.md says: the segment is put back from a copy. Then it is damaged again.
    std::fs::rename(&file, dir.path().join("damaged")).unwrap();
    std::fs::write(&file, &intact).unwrap();
    std::fs::remove_dir_all(data_dir.join("index")).unwrap();
    let store = open_again(config(&data_dir)).await.unwrap();
    until(&store, |it| it.store.as_ref().is_some_and(|it| it.index_state == "READY")).await;
    truth.must_be(&driver.known.ask(&store.channel()).await, "put back");
    store.close().await.unwrap();
    std::fs::rename(dir.path().join("damaged"), &file).unwrap();

    let store = open_again(config(&data_dir)).await.unwrap();
    driver.reconnect(store.channel());
    driver.policy(LIVE, 1, 0).await;
    driver.commit(LIVE, &["main"], STATE_BYTES).await;
    fill(&store, &mut driver, "prod/bulk", 5).await;
    let done = compact(&store).await.unwrap();
    assert_eq!(done.damaged.len(), 1, "{done:?}");
    assert!(done.damaged[0].contains(file.to_str().unwrap()), "{done:?}");
    assert!(done.log_bytes_after < 4 * SEGMENT_BYTES, "the others were compacted: {done:?}");
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn without_an_index_segments_are_compacted_one_by_one_and_history_comes_back_with_it() {
    let dir = scratch();
    let data_dir = dir.path().join("data");
    std::fs::create_dir_all(&data_dir).unwrap();
    // There is no way to make a directory of this name.
    std::fs::write(data_dir.join("index"), "in the way").unwrap();
    let store = open_again(config(&data_dir)).await.unwrap();
    let mut driver = Driver::new(store.channel());
    driver.policy(LIVE, 1_000, 0).await;
    driver.policy("prod/bulk", 1, 0).await;
    fill(&store, &mut driver, LIVE, 3).await;
    fill(&store, &mut driver, "prod/bulk", 5).await;
    until(&store, |it| it.store.as_ref().is_some_and(|it| it.index_state == "FAILED")).await;
    let done = compact(&store).await.unwrap();
    assert!(done.log_bytes_after < 4 * SEGMENT_BYTES, "{done:?}");
    for file in files_in(&data_dir.join("log")) {
        let bytes = file.metadata().unwrap().len();
        assert!(bytes <= SEGMENT_BYTES, "{} has {bytes} bytes", file.display());
    }
    driver.check_heads().await;
    std::fs::remove_file(data_dir.join("index")).unwrap();
    until(&store, |it| it.store.as_ref().is_some_and(|it| it.index_state == "READY" && it.trouble.is_empty())).await;
    let truth = driver.known.ask(&store.channel()).await;
    store.close().await.unwrap();
    let store = open_again(config(&data_dir)).await.unwrap();
    settled(&store).await;
    truth.must_be(&driver.known.ask(&store.channel()).await, "opened again");
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_dies_of_age_alone_is_found_dead() {
    let dir = scratch();
    let data_dir = dir.path().join("data");
    let store = open_again(config(&data_dir)).await.unwrap();
    let mut driver = Driver::new(store.channel());
    let takers = (0..32).map(|taker| take_often(store.channel(), taker));
    takers.collect::<JoinSet<()>>().join_all().await;
    assert!(status(&store).await.log.unwrap().segments >= 3);
    settled(&store).await;
    let before = compact(&store).await.unwrap().log_bytes_after;
    assert!(before >= 2 * SEGMENT_BYTES, "young grants are kept: {before}");

    let request = SetPolicyRequest {
        pipeline: "prod/cron".to_owned(),
        policy: Some(Policy { audit_for_ms: 1, ..Policy::default() }),
        actor: "ada".to_owned(),
        ..SetPolicyRequest::default()
    };
    PipelineServiceClient::new(store.channel()).set_policy(request).await.unwrap();
    // A new segment brings the next pass.
    fill(&store, &mut driver, "prod/bulk", status(&store).await.log.unwrap().segments + 1).await;
    until(&store, |it| it.log.as_ref().is_some_and(|it| it.bytes < before)).await;
    driver.check_heads().await;
    store.close().await.unwrap();
}

/// Takes a branch again and again, with many words.
async fn take_often(channel: Channel, taker: u64) {
    let mut leases = LeaseServiceClient::new(channel);
    for turn in 0..400 {
        let mut request = ResumeRequest {
            pipeline: "prod/cron".to_owned(),
            branch: format!("job-{taker}"),
            holder: format!("worker-{turn}"),
            request_id: format!("{taker}-{turn}"),
            reason: "again ".repeat(170),
            ..ResumeRequest::default()
        };
        request.set_takeover(Takeover::Force);
        request.set_on_missing(OnMissing::StartFresh);
        request.set_mode(ResumeMode::Soft);
        leases.resume(request).await.unwrap();
    }
}
