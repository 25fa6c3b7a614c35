//! What is staged, and barriers, when the log is compacted, damaged and read again.

use std::path::{Path, PathBuf};

use fencepost::Reason;
use fencepost::v1::barrier::State;
use fencepost::v1::barrier_service_client::BarrierServiceClient;
use fencepost::v1::checkpoint_service_client::CheckpointServiceClient;
use fencepost::v1::commit_service_client::CommitServiceClient;
use fencepost::v1::lease_service_client::LeaseServiceClient;
use fencepost::v1::{
    ArriveRequest, AwaitBarrierRequest, Barrier, BranchCommit, Checkpoint, CommitRequest, DiscardStagedRequest,
    GetCheckpointRequest, OnMissing, OpenBarrierRequest, ResumeRequest, ResumeResponse, StageRequest, Takeover,
};
use fencepost_server::disk::RealDisk;
use fencepost_server::embedded::Embedded;
use fencepost_server::ops::check::{IndexFile, StateFile, check, check_index};
use tonic::{Code, Status};
use tonic_types::StatusExt as _;

use crate::support::{PIPELINE, bytes_in, compact, config, files_in, open_again, scratch, status, until};

const STATE_BYTES: usize = 100_000;

/// The newest sequence that is staged.
const LAST: u64 = 250;

/// What is staged for this sequence: large, and with its name in it.
fn payload(branch: &str, sequence: u64) -> Checkpoint {
    let mut state = format!("<{branch}@{sequence}>").into_bytes();
    state.resize(STATE_BYTES, b'.');
    Checkpoint { position: sequence.to_string().into_bytes().into(), state: state.into(), ..Checkpoint::default() }
}

fn by_force(branch: &str, request_id: &str) -> ResumeRequest {
    ResumeRequest {
        pipeline: PIPELINE.to_owned(),
        branch: branch.to_owned(),
        holder: "loader".to_owned(),
        request_id: request_id.to_owned(),
        takeover: Takeover::Force.into(),
        reason: "a test".to_owned(),
        on_missing: OnMissing::StartFresh.into(),
        ..ResumeRequest::default()
    }
}

async fn take(store: &Embedded, branch: &str, request_id: &str) -> ResumeResponse {
    let request = by_force(branch, request_id);
    LeaseServiceClient::new(store.channel()).resume(request).await.unwrap().into_inner()
}

async fn stage(store: &Embedded, branch: &str, token: u64, sequence: u64) -> u64 {
    let request = StageRequest {
        pipeline: PIPELINE.to_owned(),
        branch: branch.to_owned(),
        token,
        sequence,
        stage_id: format!("{branch}-{sequence}"),
        checkpoint: Some(payload(branch, sequence)),
        ..StageRequest::default()
    };
    CommitServiceClient::new(store.channel()).stage(request).await.unwrap().into_inner().lsn
}

async fn discard(store: &Embedded, branch: &str, token: u64, sequence: u64) {
    let request = DiscardStagedRequest {
        pipeline: PIPELINE.to_owned(),
        branch: branch.to_owned(),
        token,
        stage_id: format!("{branch}-{sequence}"),
        ..DiscardStagedRequest::default()
    };
    CommitServiceClient::new(store.channel()).discard_staged(request).await.unwrap();
}

async fn commit(store: &Embedded, branch: &str, token: u64, sequence: u64) {
    let (branch, staged) = (branch.to_owned(), format!("{branch}-{sequence}"));
    let request = CommitRequest {
        pipeline: PIPELINE.to_owned(),
        commit_id: format!("commit-{staged}"),
        branches: vec![BranchCommit { branch, token, sequence, staged, ..BranchCommit::default() }],
        ..CommitRequest::default()
    };
    CommitServiceClient::new(store.channel()).commit(request).await.unwrap();
}

async fn open(store: &Embedded, name: &str, participants: &[&str]) {
    let request = OpenBarrierRequest {
        pipeline: PIPELINE.to_owned(),
        name: name.to_owned(),
        participants: participants.iter().map(|it| (*it).to_owned()).collect(),
        ..OpenBarrierRequest::default()
    };
    BarrierServiceClient::new(store.channel()).open_barrier(request).await.unwrap();
}

async fn arrive(store: &Embedded, barrier: &str, branch: &str, token: u64, sequence: u64) -> Barrier {
    let request = ArriveRequest {
        pipeline: PIPELINE.to_owned(),
        barrier: barrier.to_owned(),
        branch: branch.to_owned(),
        token,
        stage_id: format!("{branch}-{sequence}"),
        cluster: None,
    };
    BarrierServiceClient::new(store.channel()).arrive(request).await.unwrap().into_inner().barrier.unwrap()
}

async fn look(store: &Embedded, name: &str) -> Barrier {
    let request = AwaitBarrierRequest { pipeline: PIPELINE.to_owned(), name: name.to_owned(), cluster: None };
    let mut stream = BarrierServiceClient::new(store.channel()).await_barrier(request).await.unwrap().into_inner();
    stream.message().await.unwrap().unwrap().barrier.unwrap()
}

async fn read(store: &Embedded, branch: &str, sequence: u64) -> Result<Checkpoint, Status> {
    let request = GetCheckpointRequest {
        pipeline: PIPELINE.to_owned(),
        branch: branch.to_owned(),
        sequence,
        ..GetCheckpointRequest::default()
    };
    let found = CheckpointServiceClient::new(store.channel()).get_checkpoint(request).await?.into_inner();
    Ok(Checkpoint { payload_crc32: None, ..found.checkpoint.unwrap().checkpoint.unwrap() })
}

/// Stages and commits until two segments are full. Answers the last sequence.
async fn fill(store: &Embedded, branch: &str, token: u64) -> u64 {
    let mut sequence = 0;
    while status(store).await.log.unwrap().segments < 3 {
        sequence += 1;
        stage(store, branch, token, sequence).await;
        // In another entry of the log.
        commit(store, branch, token, sequence).await;
    }
    sequence
}

/// Changes a byte where this text is in the log. Answers in which file.
fn damage(data_dir: &Path, text: &str) -> PathBuf {
    let damaged = files_in(&data_dir.join("log")).into_iter().find_map(|file| {
        let mut bytes = std::fs::read(&file).unwrap();
        let at = bytes.windows(text.len()).rposition(|window| window == text.as_bytes())?;
        bytes[at] ^= 1;
        std::fs::write(&file, bytes).unwrap();
        Some(file)
    });
    damaged.expect("it is in some file")
}

/// Checks everything that there is in a directory that nobody has open.
fn assert_sound(data_dir: &Path) {
    let checked = check(&RealDisk, data_dir, &mut |_| ()).unwrap();
    assert!(checked.damage.is_empty(), "{:?}", checked.damage);
    assert!(matches!(checked.state_file, StateFile::Good(_)), "{:?}", checked.state_file);
    assert!(matches!(check_index(data_dir, &checked), IndexFile::Good(_)));
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn what_was_staged_stays_as_long_as_what_it_became_and_is_written_once() {
    let dir = scratch();
    let data_dir = dir.path().join("data");
    let store = open_again(config(&data_dir)).await.unwrap();
    let (main, idle) = (take(&store, "main", "1").await.token, take(&store, "idle", "2").await.token);
    open(&store, "complete", &["idle", "main"]).await;
    stage(&store, "idle", idle, 1).await;
    arrive(&store, "complete", "idle", idle, 1).await;
    stage(&store, "main", main, 1).await;
    assert_eq!(arrive(&store, "complete", "main", main, 1).await.state(), State::Committed);
    open(&store, "waiting", &["absent", "idle"]).await;
    stage(&store, "idle", idle, 2).await;
    let waiting = arrive(&store, "waiting", "idle", idle, 2).await;
    for sequence in 2..=LAST {
        stage(&store, "main", main, sequence).await;
        if sequence < LAST {
            commit(&store, "main", main, sequence).await;
        }
    }
    let complete = look(&store, "complete").await;
    compact(&store).await.unwrap();
    compact(&store).await.unwrap();
    let live = 13 * STATE_BYTES as u64;
    let bytes = bytes_in(&data_dir.join("log"));
    assert!(bytes < live + 4 * crate::support::SEGMENT_BYTES, "{bytes} bytes are left of {LAST} states");

    assert_eq!((look(&store, "complete").await, look(&store, "waiting").await), (complete.clone(), waiting.clone()));
    for sequence in LAST - 10..LAST {
        assert_eq!(read(&store, "main", sequence).await.unwrap(), payload("main", sequence));
    }
    assert_eq!(read(&store, "main", LAST - 11).await.unwrap_err().code(), Code::OutOfRange);
    assert_eq!(read(&store, "idle", 1).await.unwrap(), payload("idle", 1));
    store.close().await.unwrap();
    assert_sound(&data_dir);

    // From the log alone, too.
    std::fs::remove_file(data_dir.join("state.seg")).unwrap();
    std::fs::remove_dir_all(data_dir.join("index")).unwrap();
    let store = open_again(config(&data_dir)).await.unwrap();
    until(&store, |it| it.store.as_ref().is_some_and(|it| it.index_state == "READY")).await;
    assert_eq!((look(&store, "complete").await, look(&store, "waiting").await), (complete, waiting));
    let resumed = take(&store, "main", "3").await;
    let staged = resumed.staged.unwrap();
    assert_eq!((staged.sequence, resumed.head.unwrap().sequence), (LAST, LAST - 1));
    assert_eq!(staged.checkpoint.unwrap().state, payload("main", LAST).state);
    commit(&store, "main", resumed.token, LAST).await;
    let idle = take(&store, "idle", "4").await;
    assert_eq!(idle.staged.unwrap().checkpoint.unwrap().state, payload("idle", 2).state);
    let absent = take(&store, "absent", "5").await.token;
    stage(&store, "absent", absent, 1).await;
    arrive(&store, "waiting", "absent", absent, 1).await;
    assert_eq!(arrive(&store, "waiting", "idle", idle.token, 2).await.state(), State::Committed);
    assert_eq!(read(&store, "idle", 2).await.unwrap(), payload("idle", 2));
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn damage_where_a_checkpoint_was_staged_names_the_checkpoint() {
    let dir = scratch();
    let data_dir = dir.path().join("data");
    let store = open_again(config(&data_dir)).await.unwrap();
    let main = take(&store, "main", "1").await.token;
    let sequence = fill(&store, "main", main).await;
    compact(&store).await.unwrap();
    store.close().await.unwrap();
    let kept = sequence - 3;
    let damaged = damage(&data_dir, &format!("<main@{kept}>"));
    let checked = check(&RealDisk, &data_dir, &mut |_| ()).unwrap();
    let named: Vec<String> = checked.damage.iter().flat_map(|it| &it.checkpoints).map(ToString::to_string).collect();
    assert_eq!(named, [format!("{PIPELINE}/main@{kept}")]);
    assert!(checked.damage.iter().all(|it| it.damage.file == damaged), "{:?}", checked.damage);
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn nobody_is_fenced_for_a_head_that_was_staged_where_it_cannot_be_read_any_more() {
    let dir = scratch();
    let data_dir = dir.path().join("data");
    let store = open_again(config(&data_dir)).await.unwrap();
    let (main, bulk) = (take(&store, "main", "1").await.token, take(&store, "bulk", "2").await.token);
    stage(&store, "main", main, 1).await;
    fill(&store, "bulk", bulk).await;
    store.close().await.unwrap();
    damage(&data_dir, "<main@1>");
    let store = open_again(config(&data_dir)).await.unwrap();
    // The commit itself is in the newest segment.
    commit(&store, "main", main, 1).await;
    let refused = LeaseServiceClient::new(store.channel()).resume(by_force("main", "3")).await.unwrap_err();
    let details = refused.get_error_details();
    let info = details.error_info().unwrap();
    assert_eq!((info.reason.as_str(), info.metadata["applied"].as_str()), ("CORRUPT", "no"), "{refused:?}");
    // The worker goes on, and with its next checkpoint the branch can be taken.
    stage(&store, "main", main, 2).await;
    commit(&store, "main", main, 2).await;
    assert_eq!(take(&store, "main", "4").await.head.unwrap().checkpoint.unwrap().state, payload("main", 2).state);
    store.close().await.unwrap();
}

#[tokio::test(flavor = "multi_thread", worker_threads = 2)]
async fn an_export_has_what_was_committed_by_reference_and_is_refused_while_anything_is_staged() {
    let dir = scratch();
    let source = open_again(config(&dir.path().join("a"))).await.unwrap();
    let target = open_again(config(&dir.path().join("b"))).await.unwrap();
    let (main, other) = (take(&source, "main", "1").await.token, take(&source, "other", "2").await.token);
    open(&source, "day", &["main", "other"]).await;
    for (branch, token) in [("main", main), ("other", other)] {
        stage(&source, branch, token, 1).await;
        arrive(&source, "day", branch, token, 1).await;
    }
    stage(&source, "main", main, 2).await;
    commit(&source, "main", main, 2).await;
    stage(&source, "main", main, 3).await;
    open(&source, "waiting", &["main", "other"]).await;
    arrive(&source, "waiting", "main", main, 3).await;
    let refused = source.client().export_pipeline(PIPELINE, Vec::new()).await.unwrap_err();
    assert_eq!(refused.reason(), Some(Reason::StagedPending), "{refused}");
    let text = refused.to_string();
    assert!(text.contains("something staged on main,") && text.contains("fencepost staged"), "{text}");
    discard(&source, "main", main, 3).await;
    let mut file = Vec::new();
    source.client().export_pipeline(PIPELINE, &mut file).await.unwrap();
    target.client().import_pipeline(std::io::Cursor::new(file)).send().await.unwrap();
    let target = {
        target.close().await.unwrap();
        open_again(config(&dir.path().join("b"))).await.unwrap()
    };
    for (branch, sequence) in [("main", 1), ("main", 2), ("other", 1)] {
        assert_eq!(read(&target, branch, sequence).await.unwrap(), payload(branch, sequence), "{branch}@{sequence}");
    }
    let resumed = take(&target, "main", "3").await;
    assert_eq!((resumed.head.unwrap().sequence, resumed.staged, resumed.barriers), (2, None, Vec::new()));
    stage(&target, "main", resumed.token, 3).await;
    commit(&target, "main", resumed.token, 3).await;
    assert_eq!(read(&target, "main", 3).await.unwrap(), payload("main", 3));
}
