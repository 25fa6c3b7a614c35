//! The model: pipelines with many workers that crash, retry, lose answers, stage, meet at barriers, merge, replay dead letters
//! and are rewound, forked and fenced, by seed, against the plainest description of what may happen.
//!
//! `FENCEPOST_MODEL_SEEDS=2000 cargo test --test model` tries more seeds, `FENCEPOST_MODEL_SEED=17` one of them, and both
//! together so many from that one on.

mod invariants;
mod oracle;
mod request;
mod store;
mod world;

use std::panic::{AssertUnwindSafe, catch_unwind};

use world::{Counts, World};

/// Steps of a seed.
const STEPS: usize = 2_000;
const SEEDS: u64 = 60;

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is '{text}': expected a number")))
}

#[test]
fn any_order_of_workers_deaths_retries_and_restarts_keeps_the_promises() {
    let (first, count) = match number("FENCEPOST_MODEL_SEED") {
        Some(seed) => (seed, 1),
        None => (0, SEEDS),
    };
    let seeds = first..first + number("FENCEPOST_MODEL_SEEDS").unwrap_or(count);
    let mut counts = Counts::new();
    for seed in seeds.clone() {
        let mut world = World::new(seed);
        let mut at = 0;
        let run = catch_unwind(AssertUnwindSafe(|| {
            for step in 0..STEPS {
                at = step;
                world.step();
            }
        }));
        assert!(run.is_ok(), "seed {seed} failed at step {at}: FENCEPOST_MODEL_SEED={seed} cargo test --test model");
        for (what, times) in world.counts {
            *counts.entry(what).or_default() += times;
        }
    }
    println!("{} seeds of {STEPS} steps", seeds.end - seeds.start);
    for (what, times) in &counts {
        println!("{times:8}  {what}");
    }
    if seeds.end - seeds.start >= SEEDS {
        // A run in which too little happened is no proof.
        for what in HAPPENS {
            assert!(counts.get(what).is_some_and(|times| *times >= 10), "'{what}' hardly happened: {counts:?}");
        }
    }
}

/// What a run must have seen.
const HAPPENS: [&str; 41] = [
    "resume: applied",
    "resume: already",
    "resume: LEASE_HELD",
    "resume: FENCED",
    "commit: applied",
    "commit: already",
    "commit: FENCED",
    "commit: HEAD_MISMATCH",
    "commit: STAGED_PENDING",
    "commit: INTEGRITY_MISMATCH",
    "commit: DEAD_LETTER_HANDLED",
    "commit staged: applied",
    "commit staged: already",
    "commit staged: FENCED",
    "commit staged: STATE_MISSING",
    "commit staged: STAGED_PENDING",
    "stage: applied",
    "stage: already",
    "stage: FENCED",
    "stage: STAGED_PENDING",
    "discard: applied",
    "discard: FENCED",
    "open: applied",
    "open: already",
    "open: EXISTS",
    "arrive: applied",
    "arrive: already",
    "arrive: FENCED",
    "arrive: BARRIER_CLOSED",
    "arrive: BARRIER_ABORTED",
    "barrier committed",
    "abort: applied",
    "merge: applied",
    "merge: already",
    "merge: MERGE_DIVERGED",
    "discard letters: applied",
    "rewind: applied",
    "fork: applied",
    "fence: applied",
    "deadline passed",
    "compacted",
];
