//! A disk that is really full: a small file system of its own, in a namespace of this test's. Where the system permits no such
//! thing the tests say so and do nothing.
//!
//! Commits are refused, what needs no room goes on, compaction makes room with what was kept back for it, and everything
//! comes back by itself when there is room again.

use std::io::Write as _;
use std::path::{Path, PathBuf};
use std::process::{Command, Stdio};
use std::time::Duration;

use fencepost::v1::checkpoint_service_client::CheckpointServiceClient;
use fencepost::v1::lease_service_client::LeaseServiceClient;
use fencepost::v1::{KeepAliveRequest, LeaseRef, ListCheckpointsRequest};
use fencepost_server::embedded::Embedded;
use tonic::Status;
use tonic_types::StatusExt as _;

use crate::ask::Answer;
use crate::drive::Driver;
use crate::prepared::settled;
use crate::support::{compact, config, leftovers, open_again, status, until};

const DISK: &str = "FENCEPOST_TEST_SMALL_DISK";

/// Runs a test of this file, which is ignored otherwise, on a disk of so many MiB.
fn on_a_small_disk(test: &str, mib: u64) {
    let dir = tempfile::tempdir().unwrap();
    let script = format!(
        "mount -t tmpfs -o size={mib}m none \"$1\" && echo mounted && exec \"$2\" --exact \"$3\" --ignored --nocapture"
    );
    let mut command = Command::new("unshare");
    command.args(["--map-root-user", "--mount", "sh", "-c", &script, "sh"]);
    command.arg(dir.path()).arg(std::env::current_exe().unwrap()).arg(format!("full::{test}")).env(DISK, dir.path());
    let output = command.stdin(Stdio::null()).output();
    let shown = |bytes: &[u8]| String::from_utf8_lossy(bytes).into_owned();
    match output {
        Ok(output) if output.stdout.starts_with(b"mounted") => {
            let (stdout, stderr) = (shown(&output.stdout), shown(&output.stderr));
            assert!(output.status.success(), "{stdout}\n{stderr}");
            assert!(stdout.contains("1 passed"), "{stdout}");
            print!("{stdout}");
        }
        Ok(output) => eprintln!("SKIPPED {test}: no file system can be mounted here: {}", shown(&output.stderr)),
        Err(error) => eprintln!("SKIPPED {test}: unshare: {error}"),
    }
}

/// Takes up all the room that is left.
struct Filler(PathBuf);

impl Filler {
    fn new(disk: &Path) -> Filler {
        let filler = Filler(disk.join("filler"));
        filler.fill();
        filler
    }

    fn fill(&self) {
        let mut file = std::fs::OpenOptions::new().create(true).append(true).open(&self.0).unwrap();
        for piece in [1 << 20, 4096, 1] {
            while file.write_all(&vec![7; piece]).is_ok() {}
        }
        assert_eq!(rustix::fs::statvfs(&self.0).unwrap().f_bavail, 0);
    }

    /// Gives so many bytes back.
    fn shrink(&self, bytes: u64) {
        let file = std::fs::OpenOptions::new().write(true).open(&self.0).unwrap();
        let length = file.metadata().unwrap().len();
        file.set_len(length.saturating_sub(bytes)).unwrap();
    }
}

fn disk() -> PathBuf {
    PathBuf::from(std::env::var_os(DISK).expect("this is run by another test, on a disk of its own"))
}

fn reason(status: &Status) -> String {
    status.get_details_error_info().map_or_else(|| format!("{status:?}"), |info| info.reason)
}

/// Commits large states of which none but the newest lives until there is no room, at most so many.
async fn fill_with_bulk(driver: &mut Driver, most: u64) -> Option<Status> {
    for _ in 0..most {
        if let Err(status) = driver.try_commit("prod/bulk", &["main"], 600_000).await {
            return Some(status);
        }
    }
    None
}

/// The same with states that all live on.
async fn fill_with_life(driver: &mut Driver, most: u64) -> Option<Status> {
    for _ in 0..most {
        if let Err(status) = driver.try_commit("prod/live", &["main"], 600_000).await {
            return Some(status);
        }
    }
    None
}

async fn begin(store: &Embedded) -> Driver {
    let mut driver = Driver::new(store.channel());
    driver.policy("prod/bulk", 1, 0).await;
    driver.policy("prod/live", 1_000, 0).await;
    for branch in ["a", "b", "c", "d"] {
        driver.commit("prod/orders", &[branch], 100).await;
    }
    driver
}

#[test]
fn a_full_disk_refuses_commits_and_nothing_else_and_recovers() {
    on_a_small_disk("inner_full_of_life", 64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a disk of its own"]
async fn inner_full_of_life() {
    let (disk, data_dir) = (disk(), disk().join("data"));
    let store = open_again(config(&data_dir)).await.unwrap();
    let mut driver = begin(&store).await;
    let mut filler = None;
    while filler.is_none() {
        assert!(fill_with_life(&mut driver, 1).await.is_none());
        if status(&store).await.log.unwrap().segments == 4 {
            settled(&store).await;
            until(&store, |_| data_dir.join("reserve").exists()).await;
            filler = Some(Filler::new(&disk));
        }
    }
    let filler = filler.unwrap();
    let refused = fill_with_life(&mut driver, 100).await.expect("there is no room");
    assert_eq!(reason(&refused), "NO_SPACE", "{refused}");
    println!("refused: {}", refused.message());
    let told = until(&store, |it| it.store.as_ref().is_some_and(|it| !it.no_space.is_empty())).await;
    println!("{:?}", told.store);
    assert_goes_on_without_room(&store, &mut driver).await;
    let truth = driver.known.ask(&store.channel()).await;
    let export = store.client().export_pipeline("prod/live", Vec::new()).await.expect_err("there is no room");
    assert_eq!(export.reason(), Some(fencepost::Reason::NoSpace), "{export}");

    // For a while nothing changes.
    for _ in 0..20 {
        let again = driver.try_commit("prod/live", &["main"], 600_000).await.expect_err("there is no room");
        assert_eq!(reason(&again), "NO_SPACE", "{again}");
        tokio::time::sleep(Duration::from_millis(100)).await;
    }
    println!("{:?}", status(&store).await.store);
    let ordered = compact(&store).await;
    println!("compact: {ordered:?}");
    println!("{:?}", status(&store).await.store);
    truth.must_be(&driver.known.ask(&store.channel()).await, "on a full disk");

    // A restart where there is hardly any room, and one where there is none at all: then the index cannot be opened.
    store.close().await.unwrap();
    for is_full in [false, true] {
        if is_full {
            filler.fill();
        }
        let store = open_again(config(&data_dir)).await.unwrap();
        settled(&store).await;
        println!("restarted: {:?}", status(&store).await.store);
        let mut found = driver.known.ask(&store.channel()).await;
        if is_full {
            let is_refused = |answer: &Answer| answer.as_ref().is_err_and(|(reason, _)| reason == "INDEX_REBUILDING");
            found.0.retain(|_, answer| !is_refused(answer));
            let mut due = truth.clone();
            due.0.retain(|question, _| found.0.contains_key(question));
            due.must_be(&found, "restarted without any room");
            assert!(found.0.len() > 100, "{}", found.0.len());
        } else {
            truth.must_be(&found, "restarted with hardly any room");
        }
        store.close().await.unwrap();
    }
    let store = open_again(config(&data_dir)).await.unwrap();
    driver.reconnect(store.channel());
    let refused = fill_with_life(&mut driver, 100).await.expect("there is no room");
    assert_eq!(reason(&refused), "NO_SPACE", "{refused}");

    filler.shrink(1 << 30);
    recovered(&store, &mut driver).await;
    let truth = driver.known.ask(&store.channel()).await;
    store.close().await.unwrap();
    assert_eq!(leftovers(&data_dir), Vec::<PathBuf>::new());
    let store = open_again(config(&data_dir)).await.unwrap();
    settled(&store).await;
    truth.must_be(&driver.known.ask(&store.channel()).await, "after all of it");
    store.close().await.unwrap();
}

/// Reads, keepalives and releases need no room, or have it.
async fn assert_goes_on_without_room(store: &Embedded, driver: &mut Driver) {
    driver.check_heads().await;
    let mut checkpoints = CheckpointServiceClient::new(store.channel());
    let (pipeline, branch) = ("prod/live".to_owned(), "main".to_owned());
    let request = ListCheckpointsRequest { pipeline, branch, ..ListCheckpointsRequest::default() };
    let listed = checkpoints.list_checkpoints(request).await.unwrap().into_inner().checkpoints;
    assert_eq!(listed.len() as u64, driver.head("prod/live", "main").min(100));
    let leases = driver.known.tokens.iter().filter(|(pipeline, ..)| pipeline == "prod/orders");
    let leases = leases.map(|(pipeline, branch, token)| LeaseRef {
        pipeline: pipeline.clone(),
        branch: branch.clone(),
        token: *token,
    });
    let request = KeepAliveRequest { cluster: None, leases: leases.collect() };
    let kept = LeaseServiceClient::new(store.channel()).keep_alive(request).await.unwrap().into_inner();
    assert!(kept.results.iter().all(|it| it.refusal.is_none()), "{kept:?}");
    driver.release("prod/orders", "d").await;
}

/// Waits until the store works as if nothing had been.
async fn recovered(store: &Embedded, driver: &mut Driver) {
    let deadline = tokio::time::Instant::now() + Duration::from_secs(60);
    while let Err(refused) = driver.try_commit("prod/live", &["main"], 600_000).await {
        assert_eq!(reason(&refused), "NO_SPACE", "{refused}");
        assert!(tokio::time::Instant::now() < deadline, "it does not recover: {refused}");
        tokio::time::sleep(Duration::from_millis(50)).await;
    }
    assert!(fill_with_life(driver, 15).await.is_none());
    let found = until(store, |it| {
        let (Some(store), Some(log)) = (&it.store, &it.log) else { return false };
        let is_fed = store.index_state == "READY" && store.index_lsn >= store.state_lsn;
        is_fed && store.no_space.is_empty() && store.trouble.is_empty() && log.failure.is_empty()
    })
    .await;
    println!("recovered: {:?}", found.store);
}

#[test]
fn compaction_makes_room_on_a_full_disk() {
    on_a_small_disk("inner_full_of_waste", 64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a disk of its own"]
async fn inner_full_of_waste() {
    let (disk, data_dir) = (disk(), disk().join("data"));
    let store = open_again(config(&data_dir)).await.unwrap();
    let mut driver = begin(&store).await;
    while status(&store).await.log.unwrap().segments < 3 {
        assert!(fill_with_bulk(&mut driver, 1).await.is_none());
    }
    settled(&store).await;
    compact(&store).await.unwrap();
    until(&store, |_| data_dir.join("reserve").exists()).await;
    let filler = Filler::new(&disk);
    // Room for what lives, which moves from segment to segment.
    filler.shrink(3 << 20);
    let before = status(&store).await.store.unwrap().compactions;
    // Five segments go through two segments' room.
    let (mut committed, mut refused) = (0, 0);
    let deadline = tokio::time::Instant::now() + Duration::from_secs(90);
    while committed < 60 {
        match driver.try_commit("prod/bulk", &["main"], 600_000).await {
            Ok(()) => committed += 1,
            Err(status) => {
                assert_eq!(reason(&status), "NO_SPACE", "{status}");
                refused += 1;
                tokio::time::sleep(Duration::from_millis(20)).await;
            }
        }
        let is_late = tokio::time::Instant::now() > deadline;
        assert!(!is_late, "after {committed} commits: {:?}", status(&store).await.store);
    }
    let found = status(&store).await.store.unwrap();
    println!("{committed} commits, {refused} refused for a while: {found:?}");
    assert!(found.compactions > before);
    driver.check_heads().await;
    store.close().await.unwrap();
}

#[test]
fn what_is_derived_finds_no_room_and_is_made_when_there_is_some() {
    on_a_small_disk("inner_no_room_for_what_is_derived", 64);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
#[ignore = "needs a disk of its own"]
async fn inner_no_room_for_what_is_derived() {
    let (disk, data_dir) = (disk(), disk().join("data"));
    let store = open_again(config(&data_dir)).await.unwrap();
    let mut driver = begin(&store).await;
    while status(&store).await.log.unwrap().segments < 3 {
        assert!(fill_with_life(&mut driver, 1).await.is_none());
    }
    settled(&store).await;
    let branches: Vec<String> = (0..60).map(|branch| format!("small-{branch}")).collect();
    let branches: Vec<&str> = branches.iter().map(String::as_str).collect();
    for _ in 0..8 {
        driver.commit("prod/many", &branches, 10).await;
    }
    until(&store, |_| data_dir.join("reserve").exists()).await;
    let filler = Filler::new(&disk);
    std::fs::remove_file(data_dir.join("reserve")).unwrap();
    filler.fill();
    // The next segment is prepared already, so that there is a seal, and nothing that comes after it has room.
    let refused = fill_with_life(&mut driver, 100).await.expect("there is no room");
    assert_eq!(reason(&refused), "NO_SPACE", "{refused}");
    let told = until(&store, |it| it.store.as_ref().is_some_and(|it| !it.trouble.is_empty())).await;
    println!("{:?}", told.store);
    driver.check_heads().await;
    filler.shrink(1 << 30);
    recovered(&store, &mut driver).await;
    let truth = driver.known.ask(&store.channel()).await;
    store.close().await.unwrap();
    assert_eq!(leftovers(&data_dir), Vec::<PathBuf>::new());
    std::fs::remove_dir_all(data_dir.join("index")).unwrap();
    std::fs::remove_file(data_dir.join("state.seg")).unwrap();
    let store = open_again(config(&data_dir)).await.unwrap();
    settled(&store).await;
    truth.must_be(&driver.known.ask(&store.channel()).await, "made again");
    store.close().await.unwrap();
}
