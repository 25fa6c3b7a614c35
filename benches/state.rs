//! The hot state at its designed size: memory for each branch and each remembered commit, and how long its records take.
//!
//! `cargo bench --bench state`. Memory is what the process gained (`VmRSS`), the allocator's overhead included.

#![allow(clippy::disallowed_methods, clippy::print_stdout, clippy::unwrap_used, clippy::cast_precision_loss)]

use std::time::Instant;

use bytes::Bytes;
use fencepost::log::v1::fact::Kind;
use fencepost::log::v1::{ClusterCreated, Committed, CommittedBranch, Fact, LeaseGranted, StateRecord};
use fencepost::{LogIndex, Lsn, Token};
use fencepost_server::state::{State, StateLoader, WINDOW_COMMITS};
use prost::Message as _;

const PIPELINES: u64 = 10;
const BRANCHES: u64 = 100_000;

/// Resident memory of this process.
fn resident_bytes() -> u64 {
    let status = std::fs::read_to_string("/proc/self/status").unwrap();
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).unwrap();
    line.trim().trim_end_matches(" kB").trim().parse::<u64>().unwrap() * 1024
}

struct Feed {
    state: State,
    index: u64,
}

impl Feed {
    fn take(&mut self, kind: Kind) {
        self.index += 1;
        let fact = Fact { at_ms: 1_700_000_000_000 + self.index, kind: Some(kind) };
        self.state.apply(Lsn::new(LogIndex(self.index), 0), &fact).unwrap();
    }
}

fn main() {
    let mut feed = Feed { state: State::default(), index: 0 };
    feed.take(Kind::ClusterCreated(ClusterCreated { cluster_id: "cluster".to_owned(), generation: 1 }));
    let before = resident_bytes();
    let begun = Instant::now();
    let (mut epoch, mut commits) = (0, 0_u64);
    for branch in 0..BRANCHES {
        for pipeline in 0..PIPELINES {
            epoch += 1;
            let (pipeline, branch) = (format!("prod/pipeline-{pipeline}"), format!("branch-{branch:06}"));
            let token = Token::new(1, epoch).unwrap().as_u64();
            feed.take(Kind::LeaseGranted(LeaseGranted {
                pipeline: pipeline.clone(),
                branch: branch.clone(),
                token,
                holder: "loader-17".to_owned(),
                request_id: format!("0aee2e33-6c0f-4b1c-8c56-{epoch:012}"),
                ttl_ms: 30_000,
                ..LeaseGranted::default()
            }));
            let moved = CommittedBranch {
                branch,
                sequence: 1,
                token,
                checkpoint: None,
                retained_from: 1,
                ..CommittedBranch::default()
            };
            commits += 1;
            feed.take(Kind::Committed(Committed {
                pipeline,
                commit_id: format!("commit-{commits}"),
                digest: Bytes::from_static(&[7; 16]),
                branches: vec![moved],
                number: 0,
                ..Committed::default()
            }));
        }
    }
    let branches = PIPELINES * BRANCHES;
    let gained = resident_bytes() - before;
    let window_bytes = PIPELINES * WINDOW_COMMITS * 56;
    println!("{branches} branches from facts: {:?}", begun.elapsed());
    println!("memory: {} bytes a branch", gained.saturating_sub(window_bytes) / branches);

    let begun = Instant::now();
    let records: Vec<Bytes> = feed.state.records().map(|record| record.encode_to_vec().into()).collect();
    let bytes: usize = records.iter().map(Bytes::len).sum();
    println!("{} records of {bytes} bytes written: {:?}", records.len(), begun.elapsed());

    let before = resident_bytes();
    let begun = Instant::now();
    let mut loader = StateLoader::default();
    for record in &records {
        loader.push(StateRecord::decode(record.clone()).unwrap()).unwrap();
    }
    let loaded = loader.finish().unwrap();
    println!("loaded: {:?}", begun.elapsed());
    let gained = resident_bytes() - before;
    println!("memory once loaded: {} bytes a branch", gained.saturating_sub(window_bytes) / branches);
    assert!(loaded == feed.state);
}
