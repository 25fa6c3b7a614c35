//! A week of flights through three branches, a barrier at the end of each day and a merge behind it, by workers that die at any
//! of their calls: whatever happens, what is merged in the end is what one pass over the file counts.
//!
//! `FENCEPOST_FLIGHTS_SEEDS=2000 cargo test --test flights` tries more seeds, `FENCEPOST_FLIGHTS_SEED=17` that one; both, so many
//! from there on. A seed says who dies where; who is faster is chance.

// A test that cannot go on ends where it is.
#![allow(clippy::unwrap_used, clippy::print_stdout)]

use std::collections::BTreeSet;
use std::sync::Arc;
use std::time::Duration;

use fencepost_server::embedded::Embedded;
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use life::Counts;
use support::{Result, Store};
use week::Week;

#[path = "../../examples/support/flights.rs"]
mod flights;
mod life;
#[path = "../examples/program.rs"]
mod program;
#[path = "../../examples/support/mod.rs"]
mod support;
mod week;

const SEEDS: u64 = 200;
/// Seeds that are tried at the same time, in one store.
const AT_ONCE: usize = 24;
/// No seed takes this long, unless its workers wait for one another for ever.
const PATIENCE: Duration = Duration::from_mins(2);

/// What a run must have seen.
const HAPPENS: [&str; 8] = [
    "died before a call",
    "died within a call",
    "died when a call was done",
    "was frozen",
    "woke and was refused",
    "began under a new name",
    "began under the name of the one before",
    "passed",
];

fn number(variable: &str) -> Option<u64> {
    let text = std::env::var(variable).ok()?;
    Some(text.parse().unwrap_or_else(|_| panic!("{variable} is '{text}': expected a number")))
}

#[tokio::test(flavor = "multi_thread")]
async fn whoever_dies_the_merged_week_is_the_straight_computation() {
    let first = number("FENCEPOST_FLIGHTS_SEED");
    let count = number("FENCEPOST_FLIGHTS_SEEDS").unwrap_or(if first.is_some() { 1 } else { SEEDS });
    let seeds = first.unwrap_or(0)..first.unwrap_or(0) + count;
    let directory = tempfile::tempdir().unwrap();
    let store = Arc::new(Embedded::open(directory.path()).await.unwrap());
    let (flights, counts) = (Arc::new(flights::read().unwrap()), Counts::default());
    let (room, mut running) = (Arc::new(Semaphore::new(AT_ONCE)), JoinSet::new());
    for seed in seeds {
        let (store, counts, room) = (store.clone(), counts.clone(), room.clone());
        let week = Week::new(seed, flights.clone(), move || store.client());
        running.spawn(async move {
            let _place = room.acquire().await.unwrap();
            // In a task of its own, so that it is known whose panic it was.
            let of_seed = counts.clone();
            let passed = tokio::time::timeout(PATIENCE, tokio::spawn(async move { week.pass(&of_seed).await })).await;
            assert!(
                matches!(passed, Ok(Ok(()))),
                "seed {seed}: {passed:?}: FENCEPOST_FLIGHTS_SEED={seed} cargo test --test flights"
            );
            counts.add("passed");
        });
    }
    while let Some(seed) = running.join_next().await {
        seed.unwrap();
    }
    counts.show();
    if count >= SEEDS {
        // A run in which too little happened is no proof.
        for what in HAPPENS {
            assert!(counts.of(what) >= 20, "'{what}' hardly happened");
        }
    }
}

/// The example is the same in processes of their own, and holds what it came to against the file itself.
#[tokio::test(flavor = "multi_thread")]
async fn whichever_processes_are_killed_the_merged_week_is_the_straight_computation() {
    let store = Store::open(None).await.unwrap();
    let mut kills = BTreeSet::new();
    for seed in 1..=8 {
        let ended = program::run("nightly_merge", &["--endpoint", store.endpoint(), "--seed", &seed.to_string()]);
        assert!(ended.status.success(), "seed {seed}: {}\n{}", ended.status, ended.said);
        let summary = "nightly_merge: 6099 rows in 7 days, 12 kills, 217 reports as one pass over the file has them, 56 dead letters";
        assert_eq!(ended.said.lines().last(), Some(summary), "seed {seed}:\n{}", ended.said);
        let places = ended.said.lines().filter_map(|line| line.split_once("SIGKILL at: "));
        let places = places.flat_map(|(_, places)| places.split(", ").filter_map(|place| place.split_once(' ')));
        kills.extend(places.map(|(place, _)| place.to_owned()));
    }
    let everywhere = ["arrived", "closed", "committed", "counted", "merged", "merging", "staged"];
    assert!(kills.iter().eq(everywhere), "a worker was killed at each place: {kills:?}");
    store.close().await.unwrap();
}

#[test]
fn the_straight_computation_is_that_of_another_program() {
    // awk -F, 'NR > 1 && $9 != "NA" { flights++; minutes += $9 } END { print flights, minutes }' examples/data/flights-week1.csv
    let straight = flights::straight(&flights::read().unwrap());
    let sums = straight.iter().fold((0, 0), |(flights, minutes), it| (flights + it.flights, minutes + it.minutes));
    assert_eq!(sums, (6_043, 23_514));
    // The same with `print $3, $10, $13`, then sort -u, then wc -l.
    assert_eq!(straight.len(), 217);
}
