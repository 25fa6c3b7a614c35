//! A store on loopback, filled through the sequencer, which is the server's own door and the fastest there is.

use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use bytes::Bytes;
use fencepost::Token;
use fencepost::v1::{BranchCommit, Checkpoint, CommitRequest, OnMissing, ResumeRequest};
use fencepost_server::clock::Clock;
use fencepost_server::config::Config;
use fencepost_server::connections;
use fencepost_server::log::OpenError;
use fencepost_server::ops::BadStore;
use fencepost_server::sequencer::{CommitReply, Readable, Resumed, Sequencer, Session, Submission};
use fencepost_server::server::{Server, ServerError};
use fencepost_server::service::Backend;
use fencepost_server::state::{Commit, Resume};
use fencepost_server::upkeep::{Progress, hot_state};
use tokio::net::TcpListener;
use tokio::sync::{mpsc, oneshot};
use tokio::task::{JoinHandle, JoinSet};
use tonic::transport::{Channel, Endpoint};

/// As in a cluster of some teams.
const PIPELINES: usize = 10;
const STATE_BYTES: usize = 256;
/// Commits that are on their way at a time.
const IN_FLIGHT: usize = 16_384;
const TOGETHER: usize = 256;

/// Settings as they come, but for segments that suit the size of the store.
pub(crate) fn config(data_dir: &Path, branches: usize) -> Config {
    let config = Config { data_dir: data_dir.to_owned(), ..Config::default() };
    if branches >= 50_000 { config } else { small_segments(config) }
}

/// As small as they may be with entries of up to a megabyte.
pub(crate) fn small_segments(config: Config) -> Config {
    Config { segment_bytes: 8 << 20, request_bytes_max: 2 << 20, ..config }
}

/// An open store.
pub(crate) struct Store {
    pub(crate) backend: Backend,
    pub(crate) channel: Channel,
    stop: oneshot::Sender<()>,
    serving: JoinHandle<Result<(), ServerError>>,
}

impl Store {
    /// Opens a store and serves it.
    pub(crate) async fn open(config: Config) -> Store {
        // A store that was just closed keeps its directory while its index is still being opened or fed.
        let server = loop {
            match Server::open(config.clone(), Clock::real()) {
                Err(ServerError::Store(BadStore::Open(OpenError::Locked { .. }))) => {
                    tokio::time::sleep(Duration::from_secs(1)).await;
                }
                opened => break opened.expect("a store"),
            }
        };
        let backend = server.backend().clone();
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let (stop, stopped) = oneshot::channel::<()>();
        let serving = tokio::spawn(server.serve(connections::accept(listener, 1000), async { drop(stopped.await) }));
        let endpoint = Endpoint::from_shared(endpoint).expect("an address").tcp_nodelay(true);
        let endpoint = endpoint.initial_stream_window_size(1 << 20).initial_connection_window_size(8 << 20);
        let channel = endpoint.connect().await.expect("a connection");
        Store { backend, channel, stop, serving }
    }

    pub(crate) async fn close(self) {
        let Store { backend, channel, stop, serving } = self;
        drop((backend, channel));
        let _ = stop.send(());
        serving.await.expect("no panic").expect("an orderly end");
    }

    /// Has upkeep do all that there is to do, and waits for that.
    pub(crate) async fn upkeep(&self) {
        let (done_in, mut done) = mpsc::unbounded_channel();
        self.backend.upkeep.compact(move |progress| {
            if let Progress::Done(result) = progress {
                let _ = done_in.send(result);
            }
        });
        done.recv().await.expect("upkeep answers").expect("upkeep comes to its end");
    }

    /// Waits until the hot-state file has all that is sealed, whatever the index has.
    pub(crate) async fn state_saved(&self) {
        while self.backend.upkeep.status().state_lsn.index() < self.backend.log.sealed_through() {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
    }

    pub(crate) fn data_dir(&self) -> PathBuf {
        self.backend.config.data_dir.clone()
    }

    /// Length of the hot-state file.
    pub(crate) fn state_file_bytes(&self) -> u64 {
        hot_state::path(&self.data_dir()).metadata().map_or(0, |found| found.len())
    }
}

/// Length of all files in a directory and below it, but for those prepared and not in use yet.
pub(crate) fn bytes_in(dir: &Path) -> u64 {
    let entries = std::fs::read_dir(dir).into_iter().flatten().flatten();
    entries
        .map(|entry| match entry.metadata() {
            Ok(found) if found.is_dir() => bytes_in(&entry.path()),
            found => found.map_or(0, |found| found.len()),
        })
        .sum()
}

/// The branches of a store, all of them held: who may move each, and how far it is.
pub(crate) struct Branches {
    tokens: Vec<u64>,
    sequences: Vec<AtomicU64>,
}

impl Branches {
    /// Takes so many branches, which are new, or are held by the same already.
    pub(crate) async fn take(sequencer: &Sequencer, count: usize) -> Branches {
        let mut tokens = vec![0; count];
        let sequences: Vec<AtomicU64> = (0..count).map(|_| AtomicU64::new(0)).collect();
        for wave in (0..count).collect::<Vec<_>>().chunks(4096) {
            let mut granted = JoinSet::new();
            for branch in wave.iter().copied() {
                let sequencer = sequencer.clone();
                granted.spawn(async move {
                    let resumed = sequencer.resume(resume(branch), Duration::ZERO, Readable::default()).await;
                    let Ok(Resumed::Granted(granted)) = resumed else { panic!("a free branch: {resumed:?}") };
                    (branch, granted.token.as_u64(), granted.head.map_or(0, |head| head.sequence))
                });
            }
            for (branch, token, sequence) in granted.join_all().await {
                tokens[branch] = token;
                sequences[branch].store(sequence, Ordering::Relaxed);
            }
        }
        Branches { tokens, sequences }
    }

    /// How far the last branch is.
    pub(crate) fn last_sequence(&self) -> u64 {
        self.sequences.last().map_or(0, |last| last.load(Ordering::Relaxed))
    }

    pub(crate) fn len(&self) -> usize {
        self.tokens.len()
    }

    /// The next commit of a branch.
    pub(crate) fn next(&self, branch: usize) -> CommitRequest {
        let sequence = self.sequences[branch].fetch_add(1, Ordering::Relaxed) + 1;
        let mut checkpoint = Checkpoint {
            position: Bytes::from(format!("offset={}", sequence * 1000)),
            state: Bytes::from_static(&[7; STATE_BYTES]),
            payload_crc32: None,
            ..Checkpoint::default()
        };
        checkpoint.payload_crc32 = Some(checkpoint.computed_crc32());
        let (pipeline, name) = names(branch);
        let token = self.tokens[branch];
        let commit_id = format!("{}:{branch}:{sequence}", Token::from_u64(token));
        let moved =
            BranchCommit { branch: name, token, sequence, checkpoint: Some(checkpoint), ..BranchCommit::default() };
        CommitRequest { pipeline, commit_id, branches: vec![moved], ..CommitRequest::default() }
    }

    /// Commits to these branches, one after the other, as fast as may be.
    pub(crate) async fn commit(&self, sequencer: &Sequencer, order: impl IntoIterator<Item = usize>) {
        let (answers_in, mut answers) = mpsc::unbounded_channel();
        let session = Session::new(1);
        let (mut sent, mut answered) = (0, 0);
        let mut submissions = Vec::with_capacity(TOGETHER);
        let check = |answer: Option<fencepost_server::sequencer::SessionAnswer>| {
            answer.expect("each is answered").result.expect("each is applied");
        };
        for branch in order {
            let request = self.next(branch);
            let mut digest = [0; 16];
            digest[..8].copy_from_slice(&(branch as u64).to_le_bytes());
            digest[8..].copy_from_slice(&request.branches[0].sequence.to_le_bytes());
            let reply = CommitReply::stream(answers_in.clone(), Arc::clone(&session), sent as u64, None);
            submissions.push(Submission { commit: Ok(Commit { request, digest, payload_fault: None }), reply });
            sent += 1;
            if submissions.len() == TOGETHER {
                sequencer.commit(std::mem::take(&mut submissions));
            }
            while sent - answered > IN_FLIGHT {
                check(answers.recv().await);
                answered += 1;
            }
        }
        sequencer.commit(submissions);
        while answered < sent {
            check(answers.recv().await);
            answered += 1;
        }
    }
}

/// Names of pipeline and branch.
pub(crate) fn names(branch: usize) -> (String, String) {
    (pipeline(branch), format!("shard-{:07}", branch / PIPELINES))
}

fn pipeline(branch: usize) -> String {
    format!("prod/pipeline-{}", branch % PIPELINES)
}

/// The names of all pipelines.
pub(crate) fn pipelines() -> impl Iterator<Item = String> {
    (0..PIPELINES).map(pipeline)
}

fn resume(branch: usize) -> Resume {
    let (pipeline, name) = names(branch);
    let request = ResumeRequest {
        pipeline,
        branch: name,
        holder: format!("loader-{}", branch % 100),
        request_id: format!("0aee2e33-6c0f-4b1c-8c56-{branch:012}"),
        on_missing: OnMissing::StartFresh.into(),
        ttl_ms: 3_600_000,
        ..ResumeRequest::default()
    };
    Resume { request }
}
