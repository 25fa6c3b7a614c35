//! A database that does not answer: nobody waits for it for ever, and another takes its place.

use std::sync::mpsc::channel;
use std::time::Duration;

use super::super::*;
use super::support::{ANY, LOG_ID, block_on, everything, fed, horizon, lsn, settings};

#[test]
fn a_database_that_hangs_is_left_to_itself_and_made_again() {
    let dir = tempfile::tempdir().unwrap();
    fed(dir.path(), 10).stop();
    let settings = ColdSettings { patience: Duration::from_millis(300), ..settings() };
    let index = ColdIndex::start(dir.path().to_owned(), LOG_ID, ANY, settings);
    assert_eq!(index.opened(), Status::Ready { applied: lsn(10) });
    let (go_on, hanging) = channel::<()>();
    let hang = move |_: &mut Store| {
        let _ = hanging.recv();
        Ok(())
    };
    let epoch = index.send(hang, |_| {}).unwrap();
    let answer = block_on(index.commits(horizon(10), "p/p", "eu", vec![1]));
    assert!(matches!(answer, Err(IndexError::Inconsistent { .. })), "{answer:?}");
    assert_ne!(index.shared().inner().epoch, epoch);
    // The new one works, and stays as it is when the old one wakes up.
    assert_eq!(index.opened(), Status::Rebuilding { applied: Lsn::ZERO });
    drop(go_on);
    index.feed(Lsn::ZERO, vec![], lsn(3)).unwrap();
    index.ready().unwrap();
    assert_eq!(index.status(), Status::Ready { applied: lsn(3) });
    index.stop();
}

#[test]
fn stopping_does_not_wait_for_a_database_that_hangs() {
    let dir = tempfile::tempdir().unwrap();
    fed(dir.path(), 10).stop();
    let settings = ColdSettings { stop_patience: Duration::from_millis(100), ..settings() };
    let index = ColdIndex::start(dir.path().to_owned(), LOG_ID, ANY, settings);
    let (go_on, hanging) = channel::<()>();
    index
        .send(
            move |_: &mut Store| {
                let _ = hanging.recv();
                Ok(())
            },
            |_| {},
        )
        .unwrap();
    index.stop();
    let answer = block_on(index.commits(horizon(10), "p/p", "eu", vec![1]));
    assert!(matches!(answer, Err(IndexError::Failed { .. } | IndexError::Rebuilding { .. })), "{answer:?}");
    drop(go_on);
}

#[test]
fn a_panic_is_a_problem_like_any_other() {
    let dir = tempfile::tempdir().unwrap();
    let index = fed(dir.path(), 10);
    assert_eq!(everything(&index, 10), Ok(()));
    let answer = index.call(|_| -> Result<(), Problem> { panic!("as sled does") });
    assert_eq!(answer, Err(IndexError::Inconsistent { why: "sled panicked: as sled does".to_owned() }));
    assert_eq!(index.status(), Status::Rebuilding { applied: Lsn::ZERO });
}

#[test]
fn a_directory_that_cannot_be_had_is_a_failure_that_is_told() {
    let dir = tempfile::tempdir().unwrap();
    let taken = dir.path().join("index");
    std::fs::write(&taken, "a file").unwrap();
    let index = ColdIndex::start(taken, LOG_ID, ANY, settings());
    let status = index.opened();
    assert!(matches!(&status, Status::Failed { why } if why.contains("see to the disk")), "{status:?}");
    assert!(matches!(index.feed(Lsn::ZERO, vec![], lsn(1)), Err(FeedError::Index(IndexError::Failed { .. }))));
}
