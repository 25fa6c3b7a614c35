//! A store that has taken very many commits: how large its directory gets, and how fast it starts again.

use std::path::Path;
use std::time::{Duration, Instant};

use fencepost_server::config::Config;

use super::Settings;
use super::process::{self, START};
use super::store::{Branches, Store, bytes_in, config};

const CHECKPOINTS_KEPT: u64 = 10;
/// About what a commit of these takes in the log, and what the index takes for it.
const COMMIT_BYTES: u64 = 450;

/// Commits a second, offered whatever comes of it.
const RATES: [usize; 3] = [5_000, 20_000, 40_000];

pub(crate) async fn run(settings: &Settings) {
    let branches = settings.branches(1_000, 10_000, 10_000);
    let commits = settings.pick(20_000, 1_000_000, 10_000_000);
    let dir = tempfile::tempdir().expect("a temporary directory");
    let small = config(dir.path(), branches);
    let as_it_comes = Config { segment_bytes: Config::default().segment_bytes, ..small.clone() };
    let store = Store::open(settings.pick(small.clone(), small, as_it_comes)).await;
    let sequencer = &store.backend.sequencer;
    let held = Branches::take(sequencer, branches).await;
    let (begun, mut most) = (Instant::now(), 0);
    for tenth in 1..=10 {
        // Looked at often enough to see the most.
        let mut most_of_tenth = 0;
        for part in 0..10 {
            let first = (tenth - 1) * commits / 10 + part * commits / 100;
            held.commit(sequencer, (first..first + commits / 100).map(|commit| commit % branches)).await;
            most_of_tenth = most_of_tenth.max(bytes_in(dir.path()));
        }
        most = most.max(most_of_tenth);
        println!(
            "  {:>8} commits after {:>4.0} s: directory at most {} MiB, of that log now {} MiB, index {} MiB",
            tenth * commits / 10,
            begun.elapsed().as_secs_f64(),
            most_of_tenth >> 20,
            bytes_in(&dir.path().join("log")) >> 20,
            bytes_in(&dir.path().join("index")) >> 20
        );
    }
    let live_bytes = branches as u64 * CHECKPOINTS_KEPT * COMMIT_BYTES;
    store.upkeep().await;
    let after = bytes_in(dir.path());
    for rate in RATES {
        steady(&store, &held, dir.path(), rate, settings.pick(1, 30, 60)).await;
    }
    store.close().await;
    let seconds = process::run(START, dir.path())[0];
    println!(
        "years: {commits} commits over {branches} branches: directory at most {} MiB, {} MiB once upkeep is done, about {} MiB \
         of checkpoints live; start to first read {seconds:.3} s",
        most >> 20,
        after >> 20,
        live_bytes >> 20
    );
}

/// How large the directory gets at a rate, after it was small.
async fn steady(store: &Store, held: &Branches, dir: &Path, rate: usize, seconds: usize) {
    const PARTS: usize = 20;
    let (begun, branches) = (Instant::now(), held.len());
    let (mut most, mut late) = (0, Duration::ZERO);
    for part in 0..seconds * PARTS {
        let first = part * rate / PARTS;
        held.commit(&store.backend.sequencer, (first..first + rate / PARTS).map(|commit| commit % branches)).await;
        most = most.max(bytes_in(dir));
        let due = Duration::from_secs_f64((part + 1) as f64 / PARTS as f64);
        late = late.max(begun.elapsed().saturating_sub(due));
        tokio::time::sleep(due.saturating_sub(begun.elapsed())).await;
    }
    store.upkeep().await;
    let (status, segment_bytes) = (store.backend.upkeep.status(), store.backend.config.segment_bytes);
    let bound = 2 * status.live_bytes + 4 * segment_bytes;
    println!(
        "years: {rate} commits/s for {seconds} s (at most {:.1} s late): directory at most {} MiB; twice what is live in sealed \
         segments and four segments are {} MiB",
        late.as_secs_f64(),
        most >> 20,
        bound >> 20
    );
}
