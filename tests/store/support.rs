//! A store with small segments, so that much happens with little data, and a load of commits.

use std::path::{Path, PathBuf};
use std::time::Duration;

use fencepost::v1::cluster_service_client::ClusterServiceClient;
use fencepost::v1::maintenance_service_client::MaintenanceServiceClient;
use fencepost::v1::{CompactRequest, CompactResponse, GetStatusRequest, GetStatusResponse};
use fencepost_client::{Checkpoint, Client, Resume, Worker};
use fencepost_server::config::Config;
use fencepost_server::embedded::Embedded;
use fencepost_server::server::ServerError;
use tempfile::TempDir;
use tonic::Status;

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

/// A directory for stores that are opened many times: in memory, where there is room for that.
pub(crate) fn scratch() -> TempDir {
    let memory = Path::new("/dev/shm");
    let is_roomy = rustix::fs::statvfs(memory).is_ok_and(|found| found.f_bavail * found.f_frsize > 2 << 30);
    if is_roomy { tempfile::tempdir_in(memory).unwrap() } else { tempfile::tempdir().unwrap() }
}

/// Copies a data directory. Sealed segments, which nobody writes to, only get a second name.
pub(crate) fn copy_store(from: &Path, to: &Path) {
    let newest = files_in(&from.join("log")).into_iter().rfind(|file| file.extension().is_some_and(|it| it == "seg"));
    for file in files_in(from) {
        let target = to.join(file.strip_prefix(from).unwrap());
        std::fs::create_dir_all(target.parent().unwrap()).unwrap();
        let is_sealed = file.starts_with(from.join("log")) && file.extension().is_some_and(|it| it == "seg");
        if is_sealed && newest.as_ref() != Some(&file) {
            std::fs::hard_link(&file, &target).unwrap();
        } else {
            std::fs::copy(&file, &target).unwrap();
        }
    }
}

/// Opens a store whose last owner may still be letting go of it.
pub(crate) async fn open_again(config: Config) -> Result<Embedded, ServerError> {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    loop {
        match Embedded::open_with(config.clone()).await {
            Err(error) if error.to_string().contains("in use by another process") => {
                assert!(tokio::time::Instant::now() < deadline, "{error}");
                tokio::time::sleep(Duration::from_millis(10)).await;
            }
            opened => return opened,
        }
    }
}

/// Compacts all that is worth it, and waits until that is done; all earlier passes are done then too.
pub(crate) async fn compact(store: &Embedded) -> Result<CompactResponse, Status> {
    let mut progress =
        MaintenanceServiceClient::new(store.channel()).compact(CompactRequest::default()).await?.into_inner();
    let mut last = CompactResponse::default();
    while let Some(told) = progress.message().await? {
        last = told;
    }
    Ok(last)
}

/// Files that something left behind that was cut short. The log's next segment is none, as long as it is one.
pub(crate) fn leftovers(data_dir: &Path) -> Vec<PathBuf> {
    let is_temporary = |file: &PathBuf| file.extension().is_some_and(|it| it == "tmp" || it == "transfer");
    let mut found: Vec<PathBuf> = files_in(data_dir).into_iter().filter(is_temporary).collect();
    let next = found.iter().rposition(|file| file.starts_with(data_dir.join("log")));
    next.map(|next| found.remove(next));
    found
}
