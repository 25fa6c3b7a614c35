//! A start reads the hot-state file and what the log has behind it.

use std::sync::Arc;

use fencepost_server::clock::{Clock, random_id};
use fencepost_server::disk::{Disk, RealDisk};
use fencepost_server::log::{Log, LogConfig};
use fencepost_server::upkeep::hot_state;

use crate::support::{commit_all, config, open, until};

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn a_start_finds_the_hot_state_of_a_store_with_many_segments() {
    let dir = tempfile::tempdir().unwrap();
    let config = config(&dir.path().join("data"));
    let store = open(&config.data_dir).await.unwrap();
    commit_all(&store.client(), 20, 1_500).await;
    until(&store, |it| it.store.as_ref().is_some_and(|it| it.state_lsn > 0)).await;
    store.close().await.unwrap();

    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let (segment_bytes, entry_bytes_max) = (config.segment_bytes, config.entry_bytes_max() as u64);
    let log = LogConfig { segment_bytes, entry_bytes_max, ..LogConfig::default() };
    let log = Log::open(Arc::clone(&disk), &config.data_dir.join("log"), log, Clock::real(), random_id()).unwrap();
    assert!(log.sealed().last().is_some_and(|newest| *newest.numbers.end() > 1));
    let state = hot_state::load(&disk, &config.data_dir, &log).unwrap();
    assert_eq!(state.counts().1, 20);
}
