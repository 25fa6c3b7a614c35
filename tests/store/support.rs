//! A store with small segments, so that much happens with little data, and a load of commits.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fencepost::v1::cluster_service_client::ClusterServiceClient;
use fencepost::v1::{GetStatusRequest, GetStatusResponse};
use fencepost_client::{Checkpoint, Client, Resume, Worker};
use fencepost_server::config::Config;
use fencepost_server::embedded::Embedded;
use fencepost_server::server::ServerError;

/// The pipeline of most tests.
pub(crate) const PIPELINE: &str = "prod/orders";

/// As small as may be, so that a few megabytes make several of them.
pub(crate) const SEGMENT_BYTES: u64 = 7 << 20;

/// Settings for a data directory.
pub(crate) fn config(data_dir: &Path) -> Config {
    Config {
        data_dir: data_dir.to_owned(),
        segment_bytes: SEGMENT_BYTES,
        batch_bytes_max: 4 << 10,
        request_bytes_max: 2 << 20,
        compaction_bytes_per_second: 0,
        scrub_bytes_per_second: 0,
        ..Config::default()
    }
}

pub(crate) async fn open(data_dir: &Path) -> Result<Embedded, ServerError> {
    Embedded::open_with(config(data_dir)).await
}

/// What a commit of this sequence saves: half a kilobyte that says which one it is.
pub(crate) fn state(branch: usize, sequence: u64) -> Vec<u8> {
    format!("{branch}:{sequence};").into_bytes().repeat(64)
}

pub(crate) async fn worker(client: &Client, branch: usize) -> Worker {
    let branch = client.pipeline(PIPELINE).branch(format!("shard-{branch}"));
    branch.resume(Resume::new("loader").start_fresh()).await.unwrap()
}

/// Commits so many times on each of the branches, all branches at once.
pub(crate) async fn commit_all(client: &Client, branches: usize, times: u64) {
    let mut tasks = tokio::task::JoinSet::new();
    for branch in 0..branches {
        let client = client.clone();
        tasks.spawn(async move {
            let worker = worker(&client, branch).await;
            for _ in 0..times {
                let sequence = worker.sequence() + 1;
                let checkpoint = Checkpoint::at(sequence.to_string()).state(state(branch, sequence));
                worker.commit(checkpoint).await.unwrap();
            }
            worker.release().await.unwrap();
        });
    }
    while let Some(done) = tasks.join_next().await {
        done.unwrap();
    }
}

pub(crate) async fn status(store: &Embedded) -> GetStatusResponse {
    ClusterServiceClient::new(store.channel()).get_status(GetStatusRequest {}).await.unwrap().into_inner()
}

/// Asks for the status until it is as wanted.
pub(crate) async fn until(store: &Embedded, mut is_so: impl FnMut(&GetStatusResponse) -> bool) -> GetStatusResponse {
    let wait = async {
        loop {
            let status = status(store).await;
            if is_so(&status) {
                return status;
            }
            tokio::time::sleep(Duration::from_millis(20)).await;
        }
    };
    tokio::time::timeout(Duration::from_secs(60), wait).await.expect("the status becomes as wanted")
}

/// Length of all files in a directory and below it.
pub(crate) fn bytes_in(dir: &Path) -> u64 {
    files_in(dir).iter().map(|file| file.metadata().map_or(0, |found| found.len())).sum()
}

/// All files in a directory and below it.
pub(crate) fn files_in(dir: &Path) -> Vec<PathBuf> {
    let (mut files, mut dirs) = (Vec::new(), vec![dir.to_owned()]);
    while let Some(dir) = dirs.pop() {
        for entry in std::fs::read_dir(dir).into_iter().flatten().flatten() {
            if entry.file_type().is_ok_and(|it| it.is_dir()) {
                dirs.push(entry.path());
            } else {
                files.push(entry.path());
            }
        }
    }
    files.sort();
    files
}
