//! How long a start takes and how much memory the state, with the hot-state file and without.

use std::path::Path;
use std::time::Instant;

use fencepost_server::upkeep::hot_state;

use super::Settings;
use super::drive::median;
use super::process::{self, PASS, START, STATE};
use super::store::{Branches, Store, config};

const CHECKPOINTS: usize = 10;
/// About what a commit of these takes in the log.
const COMMIT_BYTES: u64 = 450;
const TURNS: usize = 3;

pub(crate) async fn run(settings: &Settings) {
    let branches = settings.branches(2_000, 100_000, 1_000_000);
    let temporary = tempfile::tempdir().expect("a temporary directory");
    let dir = settings.dir.clone().unwrap_or_else(|| temporary.path().join("data"));
    let kept = dir.join("kept");
    if !kept.exists() {
        make(&dir, branches).await;
        std::fs::hard_link(hot_state::path(&dir), &kept).expect("a second name for the state file");
    }
    if settings.wants("recovery") {
        starts(&dir, &kept);
    }
    if settings.wants("memory") {
        restore(&dir, &kept);
        let state = process::run(STATE, &dir);
        let pass = process::run(PASS, &dir);
        println!(
            "memory: {:.0} branches, {:.0} bytes of state each (aim 400); the whole server has {:.0} MiB, at most {:.0} MiB \
             while upkeep makes a pass",
            state[0],
            state[1] / state[0],
            pass[0] / 1_048_576.0,
            pass[1] / 1_048_576.0
        );
    }
}

/// A store whose newest pass is as long ago as it is on average: the log has half of what makes the next one due.
async fn make(dir: &Path, branches: usize) {
    let begun = Instant::now();
    let store = Store::open(config(dir, branches)).await;
    let sequencer = &store.backend.sequencer;
    let held = Branches::take(sequencer, branches).await;
    for _ in 0..CHECKPOINTS {
        held.commit(sequencer, 0..branches).await;
    }
    let filled = begun.elapsed();
    store.upkeep().await;
    let tail = store.state_file_bytes().midpoint(store.backend.config.segment_bytes) / COMMIT_BYTES;
    held.commit(sequencer, (0..tail as usize).map(|commit| commit * 7919 % branches)).await;
    println!(
        "made {branches} branches x {CHECKPOINTS} in {:.0} s, upkeep done after {:.0} s; state file {} MiB, log {} MiB, \
         {tail} facts in the tail",
        filled.as_secs_f64(),
        begun.elapsed().as_secs_f64(),
        store.state_file_bytes() >> 20,
        store.backend.log.status().bytes >> 20
    );
    store.close().await;
}

fn starts(dir: &Path, kept: &Path) {
    let (mut with, mut without) = (Vec::new(), Vec::new());
    // The first reads everything into the page cache.
    for turn in 0..=TURNS {
        restore(dir, kept);
        let a = process::run(START, dir)[0];
        std::fs::remove_file(hot_state::path(dir)).expect("a state file");
        let b = process::run(START, dir)[0];
        if turn > 0 {
            println!("  start to first read: {a:.3} s with the state file, {b:.3} s without");
            with.push(a);
            without.push(b);
        }
    }
    restore(dir, kept);
    let (a, b) = (median(with), median(without));
    println!(
        "recovery: {a:.3} s with the state file (aim 2 at 1,000,000), {b:.3} s without, ratio {:.3} (aim 0.1)",
        a / b
    );
}

/// The state file as it was when the store was made: every start makes it anew.
fn restore(dir: &Path, kept: &Path) {
    let path = hot_state::path(dir);
    let _ = std::fs::remove_file(&path);
    std::fs::hard_link(kept, path).expect("the second name of the state file");
}
