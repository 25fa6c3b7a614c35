//! What the index costs with the pattern of real use. Run by hand, in release mode:
//! `cargo test --release -p fencepost-server --lib index_costs -- --ignored --nocapture`.

use std::time::Instant;

use fencepost::{LogIndex, Lsn};

use super::super::*;
use super::support::{block_on, horizon, lsn, open};
use crate::state::id_key;

const BRANCHES: u64 = 5_000;
/// Checkpoints of a branch that come with one feed, and that are kept.
const NEW: u64 = 5;
const KEPT: u64 = 100;
const FEEDS: u64 = 40;

fn disk_mib(dir: &std::path::Path) -> u64 {
    let entries = std::fs::read_dir(dir).unwrap().map(Result::unwrap);
    let bytes = entries.map(|entry| {
        let meta = entry.metadata().unwrap();
        if meta.is_dir() { disk_mib(&entry.path()) << 20 } else { meta.len() }
    });
    bytes.sum::<u64>() >> 20
}

/// User and system time of the process so far, in hundredths of a second.
fn cpu() -> f64 {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap();
    let fields: Vec<&str> = stat.rsplit(')').next().unwrap().split_whitespace().collect();
    fields[11].parse::<f64>().unwrap() + fields[12].parse::<f64>().unwrap()
}

fn names(branch: u64) -> (String, String) {
    (format!("prod/pipeline-{:04}", branch / 50), format!("partition-{:02}", branch % 50))
}

/// One feed: each branch has some new checkpoints, and keeps the newest hundred.
fn changes(feed: u64) -> Vec<Change> {
    let mut changes = vec![Change::Segment { first_index: LogIndex(feed * BRANCHES * NEW), other_bytes: 0 }];
    for branch in 0..BRANCHES {
        for sequence in feed * NEW + 1..=(feed + 1) * NEW {
            let at = feed * BRANCHES * NEW + branch * NEW + sequence % NEW;
            let (pipeline, branch) = names(branch);
            let commit_id = Some(id_key(&at.to_string()));
            let (lsn, payload) = (lsn(at), lsn(at));
            changes.push(Change::Commit { pipeline, branch, sequence, lsn, payload, at_ms: at, bytes: 300, commit_id });
        }
        let (head, (pipeline, branch)) = ((feed + 1) * NEW, names(branch));
        let sequences = head.saturating_sub(KEPT - 1)..=head;
        changes.push(Change::Retain { pipeline, branch, sequences, pinned: vec![] });
    }
    changes
}

#[test]
#[ignore = "a measurement"]
fn index_costs() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    let mut at = Lsn::ZERO;
    for feed in 0..FEEDS {
        let changes = changes(feed);
        let (begun, busy) = (Instant::now(), cpu());
        let applied = lsn((feed + 1) * BRANCHES * NEW);
        index.feed(at, changes, applied).unwrap();
        at = applied;
        if feed % 5 == 4 {
            let (entries, mib) = (index.entries().unwrap(), disk_mib(dir.path()));
            println!(
                "feed {feed}: {entries} entries, {:.2?}, {} ms CPU, {mib} MiB on disk",
                begun.elapsed(),
                (cpu() - busy) * 10.0
            );
        }
    }
    index.ready().unwrap();
    let horizon = Horizon { after: at, ..horizon(0) };
    let begun = Instant::now();
    block_on(async {
        for n in 0..10_000_u64 {
            let (pipeline, branch) = names(n * 7919 % BRANCHES);
            index.commits(horizon, &pipeline, &branch, vec![FEEDS * NEW - n % KEPT]).await.unwrap();
        }
    });
    println!("10,000 single checkpoints: {:.2?}", begun.elapsed());
    let begun = Instant::now();
    block_on(async {
        for n in 0..1_000_u64 {
            let (pipeline, branch) = names(n * 7919 % BRANCHES);
            let page = (FEEDS * NEW - KEPT + 1..=FEEDS * NEW).collect();
            index.commits(horizon, &pipeline, &branch, page).await.unwrap();
        }
    });
    println!("1,000 pages of 100: {:.2?}", begun.elapsed());
    index.stop();
    drop(index);
    let begun = Instant::now();
    let index = open(dir.path());
    let status = index.opened();
    println!("opened and checked as {status:?} in {:.2?}, {} MiB on disk", begun.elapsed(), disk_mib(dir.path()));
    assert_eq!(status, Status::Ready { applied: at });
}
