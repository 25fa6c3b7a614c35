//! Damaged files: whatever is wrong with them, the index answers right or says that it is made again.
//!
//! `FENCEPOST_INDEX_FAULTS` says how many faults to try; the answers are counted and printed.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::sync::Mutex;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::channel;
use std::time::Duration;

use rand::rngs::StdRng;
use rand::{Rng, SeedableRng};

use super::super::*;
use super::support::{commit, everything, lsn, open};

const COMMITS: u64 = 3_500;

pub(super) fn copy(from: &Path, to: &Path) {
    std::fs::create_dir_all(to).unwrap();
    for entry in std::fs::read_dir(from).unwrap().map(Result::unwrap) {
        let target = to.join(entry.file_name());
        if entry.file_type().unwrap().is_dir() {
            copy(&entry.path(), &target);
        } else {
            std::fs::copy(entry.path(), target).unwrap();
        }
    }
}

fn files(dir: &Path, found: &mut Vec<PathBuf>) {
    for entry in std::fs::read_dir(dir).unwrap().map(Result::unwrap) {
        if entry.file_type().unwrap().is_dir() { files(&entry.path(), found) } else { found.push(entry.path()) }
    }
    found.sort();
}

/// As in life: many feeds, entries that come and go, restarts in between.
fn populate(dir: &Path) {
    let audit = |at| Change::Audit { pipeline: "p/p".to_owned(), lsn: lsn(at), at_ms: at };
    let mut index = open(dir);
    for (number, range) in (1..=COMMITS).collect::<Vec<_>>().chunks(250).enumerate() {
        let (first, last) = (range[0], *range.last().unwrap());
        let stays = range.iter().flat_map(|at| [commit("eu", *at, *at, &at.to_string()), audit(*at)]);
        let goes = range.iter().map(|at| commit("us", *at, *at, "of one id"));
        let (pipeline, branch) = ("p/p".to_owned(), "us".to_owned());
        let sequences = if last == COMMITS { 0..=0 } else { last - 50..=last };
        let retain = Change::Retain { pipeline, branch, sequences, pinned: vec![] };
        index.feed(lsn(first - 1), stays.chain(goes).chain([retain]).collect(), lsn(last)).unwrap();
        if number % 4 == 3 {
            index.stop();
            index = open(dir);
            assert_eq!(index.opened(), Status::Ready { applied: lsn(last) });
        }
    }
    index.stop();
}

/// Damages one thing and says what.
fn damage(dir: &Path, random: &mut StdRng) -> String {
    let mut all = Vec::new();
    files(dir, &mut all);
    let file = all[random.random_range(0..all.len())].clone();
    let name = file.file_name().unwrap().to_string_lossy().into_owned();
    let mut bytes = std::fs::read(&file).unwrap();
    // Most of the file may be unused.
    let used = bytes.iter().rposition(|byte| *byte != 0).map_or(1, |last| last + 1).min(bytes.len());
    let at = random.random_range(0..used.max(1));
    let what = match random.random_range(0..10) {
        0..=3 if !bytes.is_empty() => {
            bytes[at] ^= 1 << random.random_range(0..8);
            format!("flip in {name}")
        }
        4 if !bytes.is_empty() => {
            let end = (at / 512 * 512 + 512).min(bytes.len());
            bytes[at / 512 * 512..end].fill(0);
            format!("zeroed sector of {name}")
        }
        5 | 6 => {
            bytes.truncate(at);
            format!("truncated {name}")
        }
        7 => {
            std::fs::remove_file(&file).unwrap();
            return format!("deleted {name}");
        }
        8 => {
            let other = all[random.random_range(0..all.len())].clone();
            let others = std::fs::read(&other).unwrap();
            std::fs::write(&other, &bytes).unwrap();
            bytes = others;
            "swapped files".to_owned()
        }
        _ => {
            bytes = (0..random.random_range(0..70_000)).map(|_| random.random()).collect();
            format!("garbage in place of {name}")
        }
    };
    std::fs::write(&file, &bytes).unwrap();
    what
}

/// Reads everything in a thread of its own, with a bound on how long that may take.
fn outcome(dir: &Path) -> &'static str {
    let (done, outcome) = channel();
    let dir = dir.to_owned();
    std::thread::spawn(move || {
        let index = open(&dir);
        let opened = index.opened();
        let found = match &opened {
            Status::Ready { applied } if *applied == lsn(COMMITS) => match everything(&index, COMMITS) {
                Ok(()) => "right",
                Err(_) => "found damaged by a question",
            },
            // sled lost the end of its log, and what is left is whole: an older index, which is fed from there on.
            Status::Ready { .. } => match everything(&index, COMMITS) {
                Err(IndexError::Rebuilding { .. }) => "an older index",
                other => panic!("an older index answers {other:?}"),
            },
            Status::Rebuilding { applied: Lsn::ZERO } => "found damaged at opening",
            other => panic!("the index says that it is {other:?}"),
        };
        index.stop();
        let _ = done.send(found);
    });
    // A thread that panicked has dropped its end.
    outcome.recv_timeout(Duration::from_secs(60)).expect("a wrong answer, a panic or a hang")
}

#[test]
fn damaged_files_never_make_a_wrong_answer() {
    let faults = std::env::var("FENCEPOST_INDEX_FAULTS").map_or(300, |count| count.parse().unwrap());
    let seed = std::env::var("FENCEPOST_INDEX_SEED").map_or(1, |seed| seed.parse().unwrap());
    let dir = tempfile::tempdir().unwrap();
    let good = dir.path().join("good");
    populate(&good);
    let counts: Mutex<BTreeMap<(String, &str), u64>> = Mutex::default();
    let next = AtomicU64::new(0);
    let work = || loop {
        let number = next.fetch_add(1, Ordering::Relaxed);
        if number >= faults {
            return;
        }
        let mut random = StdRng::seed_from_u64(seed * 1_000_003 + number);
        let damaged = dir.path().join(format!("{number}"));
        copy(&good, &damaged);
        let what = damage(&damaged, &mut random);
        let outcome = outcome(&damaged);
        let kind = what.split('.').next().unwrap_or_default().to_owned();
        *counts.lock().unwrap().entry((kind, outcome)).or_default() += 1;
        std::fs::remove_dir_all(&damaged).unwrap();
    };
    std::thread::scope(|scope| {
        scope.spawn(work);
        scope.spawn(work);
    });
    let counts = counts.into_inner().unwrap();
    for ((what, outcome), count) in &counts {
        println!("{count:6} {what}: {outcome}");
    }
    assert_eq!(counts.values().sum::<u64>(), faults);
    assert!(counts.keys().any(|(_, outcome)| *outcome != "right"), "no fault had any effect: {counts:?}");
}
