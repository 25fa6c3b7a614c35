//! Random feeds, restarts and crashes against a model in memory.
//!
//! `FENCEPOST_INDEX_CASES` says how many sequences of steps to try.

use std::collections::BTreeMap;
use std::path::Path;

use fencepost::{LogIndex, Lsn};
use proptest::prelude::*;

use super::super::*;
use super::faults::copy;
use super::support::{block_on, lsn, open};
use crate::index::Place;
use crate::state::id_key;

const PIPELINE: &str = "p/p";
const BRANCHES: [&str; 3] = ["eu", "eu-2", "us"];
/// Log indexes of a segment.
const SEGMENT: u64 = 16;

#[derive(Clone, Debug)]
enum Step {
    /// A commit of the branches in the bits.
    Commit(u8),
    /// The branch goes back by some checkpoints.
    Rewind(usize, u64),
    /// The branch keeps its newest so many; and pins its oldest.
    Retain(usize, u64),
    Audit,
    /// So many of the newest records are kept.
    Expire(u64),
    /// What happened since the last feed is handed over; perhaps twice.
    Feed(bool),
    Restart,
    /// The process is gone without a word: the files are as they are.
    Crash,
}

fn step() -> impl Strategy<Value = Step> {
    prop_oneof![
        8 => (1_u8..8).prop_map(Step::Commit),
        1 => (0..3_usize, 1..4_u64).prop_map(|(branch, back)| Step::Rewind(branch, back)),
        2 => (0..3_usize, 1..6_u64).prop_map(|(branch, keep)| Step::Retain(branch, keep)),
        2 => Just(Step::Audit),
        1 => (0..4_u64).prop_map(Step::Expire),
        3 => any::<bool>().prop_map(Step::Feed),
        1 => Just(Step::Restart),
        1 => Just(Step::Crash),
    ]
}

/// What is right.
#[derive(Clone, Default)]
struct Model {
    now: u64,
    heads: [u64; 3],
    /// Branch and sequence to LSN.
    checkpoints: BTreeMap<(usize, u64), u64>,
    audit: Vec<u64>,
    changes: Vec<Change>,
}

impl Model {
    fn tick(&mut self) {
        self.now += 1;
        if self.now.is_multiple_of(SEGMENT) {
            self.changes.push(Change::Segment { first_index: LogIndex(self.now), other_bytes: 0 });
        }
    }

    fn commit(&mut self, branches: u8) {
        self.tick();
        for (at, branch) in BRANCHES.iter().enumerate().filter(|(at, _)| branches & 1 << at != 0) {
            self.heads[at] += 1;
            self.checkpoints.insert((at, self.heads[at]), self.now);
            self.changes.push(Change::Commit {
                pipeline: PIPELINE.to_owned(),
                branch: (*branch).to_owned(),
                sequence: self.heads[at],
                lsn: lsn(self.now),
                payload: lsn(self.now),
                at_ms: self.now,
                bytes: 10,
                commit_id: Some(id_key(&self.now.to_string())),
            });
        }
    }

    /// Whatever goes beyond the head was abandoned.
    fn retain(&mut self, branch: usize, keep: u64) {
        let head = self.heads[branch];
        let sequences = (head + 1).saturating_sub(keep).max(1)..=head;
        let oldest = self.checkpoints.keys().find(|(of, _)| *of == branch).map(|(_, sequence)| *sequence);
        let pinned: Vec<u64> = oldest.into_iter().filter(|oldest| *oldest <= head).collect();
        self.checkpoints
            .retain(|(of, sequence), _| *of != branch || sequences.contains(sequence) || pinned.contains(sequence));
        let (pipeline, branch) = (PIPELINE.to_owned(), BRANCHES[branch].to_owned());
        self.changes.push(Change::Retain { pipeline, branch, sequences, pinned });
    }

    fn step(&mut self, step: &Step) {
        match step {
            Step::Commit(branches) => self.commit(*branches),
            Step::Rewind(branch, back) => {
                self.heads[*branch] = self.heads[*branch].saturating_sub(*back);
                self.retain(*branch, u64::MAX >> 1);
            }
            Step::Retain(branch, keep) => self.retain(*branch, *keep),
            Step::Audit => {
                self.tick();
                self.audit.push(self.now);
                let audit = Change::Audit { pipeline: PIPELINE.to_owned(), lsn: lsn(self.now), at_ms: self.now };
                self.changes.push(audit);
            }
            Step::Expire(keep) => {
                let before_ms = self.audit.iter().rev().nth(*keep as usize).map_or(0, |newest_gone| newest_gone + 1);
                self.audit.retain(|at| *at >= before_ms);
                self.changes.push(Change::ExpireAudit { pipeline: PIPELINE.to_owned(), before_ms });
            }
            Step::Feed(_) | Step::Restart | Step::Crash => {}
        }
    }

    /// Compares everything that the index can be asked.
    fn check(&self, index: &ColdIndex) {
        let horizon = Horizon { after: Lsn::ZERO, through: Lsn::ZERO };
        block_on(async {
            for (at, branch) in BRANCHES.iter().enumerate() {
                let sequences: Vec<u64> = (1..=self.now).collect();
                let place = |sequence: &u64| {
                    let found = self.checkpoints.get(&(at, *sequence))?;
                    Some(Place { sequence: *sequence, lsn: lsn(*found) })
                };
                let right: Vec<_> = sequences.iter().map(place).collect();
                let known = index.call(move |store| store.commits(PIPELINE, branch, &sequences)).unwrap();
                assert_eq!(known, right, "{branch}");
            }
            for id in 1..=self.now {
                let right = self.checkpoints.values().any(|at| *at == id).then_some(lsn(id));
                let known = index.commit_id(horizon, PIPELINE, id_key(&id.to_string())).await;
                assert_eq!(known, Ok(right), "commit id {id}");
            }
            let audit = index.audit(horizon, PIPELINE, Lsn::MAX, 1_000).await.unwrap();
            assert_eq!(audit, self.audit.iter().rev().map(|at| lsn(*at)).collect::<Vec<_>>());
            let mut used = BTreeMap::new();
            for at in self.checkpoints.values() {
                *used.entry(LogIndex(at / SEGMENT * SEGMENT)).or_insert(0) += 10;
            }
            let mut known: BTreeMap<_, _> =
                index.segments().unwrap().into_iter().map(|used| (used.first_index, used.live_bytes())).collect();
            known.retain(|_, bytes| *bytes > 0);
            assert_eq!(known, used);
        });
    }
}

/// A copy of the files as they are at some moment of the feed.
fn crash(dir: &Path, copies: &mut u64) -> std::path::PathBuf {
    *copies += 1;
    let copied = dir.join(format!("crash-{copies}"));
    copy(&dir.join("index"), &copied);
    copied
}

fn run(steps: &[Step]) {
    let dir = tempfile::tempdir().unwrap();
    let mut place = dir.path().join("index");
    let (mut model, mut applied, mut copies) = (Model::default(), Lsn::ZERO, 0);
    let mut index = open(&place);
    index.opened();
    index.ready().unwrap();
    for step in steps {
        model.step(step);
        match step {
            Step::Feed(again) => {
                // Each feed has an LSN of its own.
                let changes = std::mem::take(&mut model.changes);
                for _ in 0..=u8::from(*again) {
                    model.tick();
                    index.feed(applied, changes.clone(), lsn(model.now)).unwrap();
                    applied = lsn(model.now);
                }
                model.check(&index);
            }
            Step::Restart => {
                index.stop();
                index = open(&place);
                assert_eq!(index.opened(), Status::Ready { applied });
            }
            Step::Crash => {
                // All that was fed was flushed, so the copy must have it.
                place = if place.ends_with("index") { crash(dir.path(), &mut copies) } else { continue };
                index = open(&place);
                assert_eq!(index.opened(), Status::Ready { applied });
            }
            _ => {}
        }
    }
}

fn cases() -> u32 {
    std::env::var("FENCEPOST_INDEX_CASES").map_or(10, |count| count.parse().unwrap())
}

proptest! {
    #![proptest_config(ProptestConfig { cases: cases(), ..ProptestConfig::default() })]

    #[test]
    fn the_index_knows_what_a_map_would_know(steps in proptest::collection::vec(step(), 1..80)) {
        run(&steps);
    }
}

/// Copies the files again and again while they are written: each copy is the index as it was after some feed, or in
/// doubt; and the same changes, fed again, make it whole.
#[test]
fn a_crash_in_the_middle_of_a_feed_leaves_it_behind_and_never_ahead() {
    const FEEDS: u64 = 12;
    let dir = tempfile::tempdir().unwrap();
    let place = dir.path().join("index");
    let index = open(&place);
    index.opened();
    let (mut model, mut feeds, mut models) = (Model::default(), Vec::new(), vec![Model::default()]);
    for _ in 0..FEEDS {
        for round in 0..80 {
            model.step(&Step::Commit(1 + (round % 7)));
            model.step(&Step::Audit);
        }
        (0..3).for_each(|branch| model.step(&Step::Retain(branch, 40)));
        feeds.push((std::mem::take(&mut model.changes), lsn(model.now)));
        models.push(model.clone());
    }
    let (feeding, fed) = (feeds.clone(), index.clone());
    let feeder = std::thread::spawn(move || {
        let mut applied = Lsn::ZERO;
        for (changes, through) in feeding {
            fed.feed(applied, changes, through).unwrap();
            applied = through;
        }
    });
    let mut copies = 0;
    while !feeder.is_finished() {
        crash(dir.path(), &mut copies);
    }
    feeder.join().unwrap();
    let stride = (copies / u64::from(cases())).max(1);
    for number in (1..=copies).rev().step_by(stride as usize) {
        let index = open(&dir.path().join(format!("crash-{number}")));
        let applied = match index.opened() {
            // Where it is made again, the copy was not of one moment.
            Status::Ready { applied } | Status::Rebuilding { applied } => applied,
            other => panic!("{other:?}"),
        };
        let done = feeds.iter().position(|(_, through)| *through > applied).unwrap_or(feeds.len());
        let mut after = applied;
        for (changes, through) in &feeds[done..] {
            index.feed(after, changes.clone(), *through).unwrap();
            after = *through;
        }
        index.ready().unwrap();
        models[feeds.len()].check(&index);
    }
    assert!(copies > 0);
}
