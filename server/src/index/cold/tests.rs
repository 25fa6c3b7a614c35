//! The index on disk: against a model, across crashes, and on damaged files.

#![allow(clippy::disallowed_methods)]

mod faults;
mod hangs;
mod model;
mod pattern;
mod support;

use std::path::Path;

use fencepost::{LogIndex, Lsn};

use self::support::{LOG_ID, block_on, commit, everything, fed, horizon, lsn, open, settings};
use super::*;
use crate::clock::Clock;
use crate::disk::{Disk, RealDisk};
use crate::index::Index;
use crate::log::{Log, LogConfig};
use crate::ops::check::{self, IndexFile};
use crate::state::id_key;

#[test]
fn what_was_fed_is_answered_also_after_a_restart() {
    let dir = tempfile::tempdir().unwrap();
    let changes = vec![
        Change::Segment { first_index: LogIndex(1), other_bytes: 7 },
        Change::Segment { first_index: LogIndex(3), other_bytes: 0 },
        commit("eu", 1, 1, "a"),
        commit("us", 1, 1, "a"),
        commit("eu", 2, 3, "b"),
        Change::Audit { pipeline: "p/p".to_owned(), lsn: lsn(2), at_ms: 20 },
        Change::Audit { pipeline: "p/p".to_owned(), lsn: lsn(4), at_ms: 40 },
    ];
    let index = open(dir.path());
    assert_eq!(index.opened(), Status::Rebuilding { applied: Lsn::ZERO });
    index.feed(Lsn::ZERO, changes, lsn(4)).unwrap();
    assert_eq!(
        block_on(index.commit_id(horizon(4), "p/p", id_key("a"))),
        Err(IndexError::Rebuilding { applied: lsn(4) })
    );
    index.ready().unwrap();
    index.stop();
    let index = open(dir.path());
    assert_eq!(index.opened(), Status::Ready { applied: lsn(4) });
    let places = block_on(index.commits(horizon(4), "p/p", "eu", vec![2, 1])).unwrap();
    assert_eq!(places.iter().map(|place| place.unwrap().lsn).collect::<Vec<_>>(), [lsn(3), lsn(1)]);
    assert_eq!(block_on(index.commit_id(horizon(4), "p/p", id_key("a"))), Ok(Some(lsn(1))));
    assert_eq!(block_on(index.commit_id(horizon(4), "p/p", id_key("c"))), Ok(None));
    assert_eq!(block_on(index.audit(horizon(4), "p/p", Lsn::MAX, 9)), Ok(vec![lsn(4), lsn(2)]));
    assert_eq!(block_on(index.audit(horizon(4), "p/p", lsn(4), 9)), Ok(vec![lsn(2)]));
    assert_eq!(block_on(index.audit(horizon(4), "p/p", lsn(3), 0)), Ok(vec![]));
    let used = |first, checkpoint_bytes, other_bytes| {
        let first_index = LogIndex(first);
        SegmentUse { first_index, checkpoint_bytes, other_bytes }
    };
    assert_eq!(index.segments().unwrap(), [used(1, 200, 7), used(3, 100, 0)]);
    let (located, is_more) = block_on(index.at(LogIndex(1)..=LogIndex(2))).unwrap();
    assert_eq!((located.len(), is_more), (2, false));
    assert_eq!(located[1].branch, "us");
}

#[test]
fn damage_where_a_checkpoint_was_staged_names_it_too() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    let mut staged = commit("eu", 1, 9, "a");
    if let Change::Commit { payload, .. } = &mut staged {
        *payload = lsn(4);
    }
    let segment = Change::Segment { first_index: LogIndex(1), other_bytes: 0 };
    index.feed(Lsn::ZERO, vec![segment, staged], lsn(9)).unwrap();
    index.ready().unwrap();
    let located = |at| block_on(index.at(LogIndex(at)..=LogIndex(at))).unwrap().0.len();
    assert_eq!([4, 5, 9].map(located), [1, 0, 1]);
}

/// Makes the index in a directory, whose meta record is sound, one of format 3.
fn make_newer(dir: &Path) {
    let tree = sled::open(dir.join("0000000001")).unwrap();
    let mut meta = tree.get(b"m").unwrap().unwrap().to_vec();
    assert_eq!(&meta[..8], b"FPINDEX2");
    meta[7] = b'3';
    let fields = meta.len() - 4;
    let crc = crc32fast::hash(&[b"m", &meta[..fields]].concat());
    meta[fields..].copy_from_slice(&crc.to_le_bytes());
    tree.insert(b"m", meta).unwrap();
    tree.flush().unwrap();
}

const OTHER_FORMAT: &str = "it has format 3, and this version reads format 2";

#[test]
fn an_index_of_another_format_is_made_again_and_not_called_damaged() {
    let dir = tempfile::tempdir().unwrap();
    fed(dir.path(), 20).stop();
    make_newer(dir.path());
    let index = open(dir.path());
    assert_eq!(index.opened(), Status::Rebuilding { applied: Lsn::ZERO });
    assert_eq!(index.given_up(), Some(GivenUp { why: OTHER_FORMAT.to_owned(), is_damaged: false }));
    index.stop();
}

#[test]
fn verification_leaves_an_index_of_another_format_alone() {
    let dir = tempfile::tempdir().unwrap();
    let disk: Arc<dyn Disk> = Arc::new(RealDisk);
    let log_dir = dir.path().join("log");
    let log = Log::open(Arc::clone(&disk), &log_dir, LogConfig::default(), Clock::real(), LOG_ID).unwrap();
    log.close();
    open(&dir.path().join("index")).stop();
    let checked = check::check(&RealDisk, dir.path(), &mut |_| ()).unwrap();
    assert_eq!(check::check_index(dir.path(), &checked), IndexFile::Good(Lsn::ZERO));
    make_newer(&dir.path().join("index"));
    let IndexFile::NotChecked(why) = check::check_index(dir.path(), &checked) else { panic!("it was checked") };
    assert_eq!(why, format!("{OTHER_FORMAT}: the next start makes it again from the log"));
}

#[test]
fn what_is_not_retained_goes_with_its_bytes_and_its_commit_id() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    let mut changes = vec![
        Change::Segment { first_index: LogIndex(1), other_bytes: 0 },
        Change::Segment { first_index: LogIndex(6), other_bytes: 0 },
    ];
    changes.extend((1..=9).map(|sequence| commit("eu", sequence, sequence, &sequence.to_string())));
    changes.push(commit("us", 1, 3, "3"));
    index.feed(Lsn::ZERO, changes, lsn(9)).unwrap();
    let retain =
        |sequences, pinned| Change::Retain { pipeline: "p/p".to_owned(), branch: "eu".to_owned(), sequences, pinned };
    let segments =
        |index: &ColdIndex| index.segments().unwrap().iter().map(|used| used.live_bytes()).collect::<Vec<_>>();
    // Inserted and removed by one feed, and the same again.
    for after in [9, 10] {
        index.feed(lsn(after), vec![commit("eu", 10, 10, "10"), retain(5..=8, vec![2])], lsn(after + 1)).unwrap();
        assert_eq!(segments(&index), [300, 300]);
    }
    index.ready().unwrap();
    for (id, expected) in [("1", None), ("2", Some(lsn(2))), ("3", Some(lsn(3))), ("8", Some(lsn(8))), ("10", None)] {
        assert_eq!(block_on(index.commit_id(horizon(9), "p/p", id_key(id))), Ok(expected), "{id}");
    }
    // Compaction makes one segment of two.
    index.feed(lsn(11), vec![Change::SegmentGone { first_index: LogIndex(6) }; 2], lsn(12)).unwrap();
    assert_eq!(segments(&index), [600]);
    // The question was put before the last feed, which may have removed what it was about.
    let places = block_on(index.commits(horizon(9), "p/p", "eu", vec![4, 5])).unwrap();
    assert_eq!(places.iter().map(Option::is_some).collect::<Vec<_>>(), [false, true]);
}

#[test]
fn a_sequence_used_again_after_a_rewind_is_the_later_checkpoint() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    let first = vec![commit("eu", 1, 1, "a"), commit("eu", 2, 2, "b")];
    index.feed(Lsn::ZERO, first, lsn(2)).unwrap();
    index.feed(lsn(2), vec![commit("eu", 2, 5, "b")], lsn(5)).unwrap();
    index.ready().unwrap();
    assert_eq!(block_on(index.commit_id(horizon(5), "p/p", id_key("b"))), Ok(Some(lsn(5))));
    let places = block_on(index.commits(horizon(5), "p/p", "eu", vec![2])).unwrap();
    assert_eq!(places[0].unwrap().lsn, lsn(5));
    assert_eq!(index.segments().unwrap()[0].live_bytes(), 200);
}

#[test]
fn audit_records_expire_from_the_oldest_on() {
    let dir = tempfile::tempdir().unwrap();
    let index = open(dir.path());
    let audit = |at| Change::Audit { pipeline: "p/p".to_owned(), lsn: lsn(at), at_ms: at };
    let expire = |before_ms| Change::ExpireAudit { pipeline: "p/p".to_owned(), before_ms };
    index.feed(Lsn::ZERO, vec![audit(1), audit(2), audit(3), expire(3)], lsn(3)).unwrap();
    index.ready().unwrap();
    let listed = |index: &ColdIndex| block_on(index.audit(horizon(3), "p/p", Lsn::MAX, 9)).unwrap();
    assert_eq!(listed(&index), [lsn(3)]);
    // The same again brings nothing back.
    index.feed(lsn(3), vec![audit(1), audit(2), audit(3), expire(9)], lsn(4)).unwrap();
    assert_eq!(listed(&index), []);
    index.feed(lsn(4), vec![audit(5), audit(6)], lsn(6)).unwrap();
    assert_eq!(listed(&index), [lsn(6), lsn(5)]);
}

#[test]
fn a_hole_in_what_must_be_there_gives_the_index_up() {
    let dir = tempfile::tempdir().unwrap();
    let index = fed(dir.path(), 10);
    let answer = block_on(index.commits(horizon(10), "p/p", "eu", vec![10, 11]));
    assert!(matches!(answer, Err(IndexError::Inconsistent { .. })), "{answer:?}");
    assert_eq!(index.status(), Status::Rebuilding { applied: Lsn::ZERO });
    let fed = index.feed(lsn(10), vec![], lsn(11));
    assert_eq!(fed, Err(FeedError::OutOfStep { applied: Lsn::ZERO }));
    assert_eq!(index.entries(), Ok(0));
}

#[test]
fn an_index_of_another_log_or_ahead_of_its_log_is_made_again() {
    for (log_id, durable, is_kept) in
        [(LOG_ID, lsn(10), true), (LOG_ID, lsn(9), false), (uuid::Uuid::from_u128(2), lsn(10), false)]
    {
        let dir = tempfile::tempdir().unwrap();
        fed(dir.path(), 10).stop();
        let needed = Horizon { after: lsn(9), through: durable };
        let index = ColdIndex::start(dir.path().to_owned(), log_id, needed, settings());
        assert_eq!(index.opened() == Status::Ready { applied: lsn(10) }, is_kept, "{log_id} {durable}");
        index.reset("the test is over");
        assert_eq!(index.status(), Status::Rebuilding { applied: Lsn::ZERO });
    }
}

#[test]
fn an_index_that_is_behind_is_not_ready_before_it_was_fed() {
    let dir = tempfile::tempdir().unwrap();
    fed(dir.path(), 10).stop();
    let needed = Horizon { after: lsn(12), through: lsn(15) };
    let index = ColdIndex::start(dir.path().to_owned(), LOG_ID, needed, settings());
    assert_eq!(index.opened(), Status::Rebuilding { applied: lsn(10) });
    index.feed(lsn(10), vec![], lsn(12)).unwrap();
    index.ready().unwrap();
    assert_eq!(index.status(), Status::Ready { applied: lsn(12) });
    index.stop();
}

#[test]
fn what_is_recent_and_what_is_not_come_as_one_answer() {
    let dir = tempfile::tempdir().unwrap();
    let cold = fed(dir.path(), 10);
    let mut index = Index::after(lsn(8));
    for at in 9..=12 {
        index.feed(lsn(at), &support::fact(at));
    }
    let places = block_on(index.history("p/p", "eu", (7..=12).rev()).complete(&cold)).unwrap();
    assert_eq!(places.iter().map(|place| place.lsn).collect::<Vec<_>>(), [12, 11, 10, 9, 8, 7].map(lsn));
    for at in [1, 12] {
        assert_eq!(block_on(index.commit_id("p/p", &at.to_string()).complete(&cold)), Ok(Some(lsn(at))));
    }
    let audit = |before, limit| block_on(index.audit("p/p", before, limit).complete(&cold)).unwrap();
    assert_eq!(audit(Lsn::MAX, 3), [lsn(10), lsn(9), lsn(8)]);
    // Facts between what the cold index has and what is recent would be missed.
    let late = Index::after(lsn(11));
    let answer = block_on(late.history("p/p", "eu", [11]).complete(&cold));
    assert_eq!(answer, Err(IndexError::Rebuilding { applied: lsn(10) }));
}

#[test]
fn everything_can_be_read_while_others_ask() {
    let dir = tempfile::tempdir().unwrap();
    let index = fed(dir.path(), 300);
    assert_eq!(everything(&index, 300), Ok(()));
    let (located, is_more) = block_on(index.at(LogIndex(100)..=LogIndex(250))).unwrap();
    assert_eq!((located.len(), is_more), (100, true));
}
