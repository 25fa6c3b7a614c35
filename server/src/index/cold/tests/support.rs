//! What the tests of the cold index share.

use std::path::Path;
use std::time::Duration;

use fencepost::log::v1::fact::Kind;
use fencepost::log::v1::{Committed, CommittedBranch, Fact, LeaseGranted};
use fencepost::{LogIndex, Lsn};
use uuid::Uuid;

use super::super::*;
use crate::state::id_key;

pub(super) const LOG_ID: Uuid = Uuid::from_u128(1);

pub(super) fn lsn(index: u64) -> Lsn {
    Lsn::new(LogIndex(index), 0)
}

/// Whatever is there will do.
pub(super) const ANY: Horizon = Horizon { after: Lsn::ZERO, through: Lsn::MAX };

pub(super) fn horizon(through: u64) -> Horizon {
    Horizon { after: lsn(through), through: lsn(through) }
}

pub(super) fn settings() -> ColdSettings {
    ColdSettings { cache_bytes: 8 << 20, patience: Duration::from_secs(20), ..ColdSettings::default() }
}

pub(super) fn open(dir: &Path) -> ColdIndex {
    ColdIndex::start(dir.to_owned(), LOG_ID, ANY, settings())
}

pub(super) fn block_on<T>(work: impl Future<Output = T>) -> T {
    tokio::runtime::Builder::new_current_thread().enable_time().build().unwrap().block_on(work)
}

pub(super) fn commit(branch: &str, sequence: u64, at: u64, commit_id: &str) -> Change {
    Change::Commit {
        pipeline: "p/p".to_owned(),
        branch: branch.to_owned(),
        sequence,
        lsn: lsn(at),
        payload: lsn(at),
        at_ms: at,
        bytes: 100,
        commit_id: Some(id_key(commit_id)),
    }
}

/// An index with `commits` of one branch, each with an audit record at the same place.
pub(super) fn fed(dir: &Path, commits: u64) -> ColdIndex {
    let index = open(dir);
    assert_eq!(index.opened(), Status::Rebuilding { applied: Lsn::ZERO });
    let audit = |at| Change::Audit { pipeline: "p/p".to_owned(), lsn: lsn(at), at_ms: at };
    let changes = (1..=commits).flat_map(|at| [commit("eu", at, at, &at.to_string()), audit(at)]);
    index.feed(Lsn::ZERO, changes.collect(), lsn(commits)).unwrap();
    index.ready().unwrap();
    index
}

/// The facts that `fed` stands for, in turn a commit and a grant.
pub(super) fn fact(at: u64) -> Fact {
    let kind = if at <= 10 {
        let granted = LeaseGranted { pipeline: "p/p".to_owned(), ..LeaseGranted::default() };
        Kind::LeaseGranted(granted)
    } else {
        Kind::Committed(committed(at))
    };
    Fact { at_ms: at, kind: Some(kind) }
}

fn committed(at: u64) -> Committed {
    let branches = vec![CommittedBranch { branch: "eu".to_owned(), sequence: at, ..CommittedBranch::default() }];
    Committed { pipeline: "p/p".to_owned(), commit_id: at.to_string(), branches, ..Committed::default() }
}

/// Asks for all that `fed` put in. An error is what the index says; a wrong answer is a panic.
pub(super) fn everything(index: &ColdIndex, commits: u64) -> Result<(), IndexError> {
    block_on(async {
        for sequences in (1..=commits).collect::<Vec<_>>().chunks(100) {
            let places = index.commits(horizon(commits), "p/p", "eu", sequences.to_vec()).await?;
            for (sequence, place) in sequences.iter().zip(places) {
                let right = super::super::Place { sequence: *sequence, lsn: lsn(*sequence) };
                assert_eq!(place, Some(right));
            }
        }
        for at in 1..=commits {
            let found = index.commit_id(horizon(commits), "p/p", id_key(&at.to_string())).await?;
            assert_eq!(found, Some(lsn(at)));
        }
        let audit = index.audit(horizon(commits), "p/p", Lsn::MAX, commits as usize + 1).await?;
        assert_eq!(audit, (1..=commits).rev().map(lsn).collect::<Vec<_>>());
        let (located, _) = index.at(LogIndex(commits)..=LogIndex(commits)).await?;
        assert_eq!(located.len(), 1);
        assert_eq!(index.segments()?[0].live_bytes(), 100 * commits);
        Ok(())
    })
}
