//! Where old checkpoints are in the log: what is asked for rarely and decided upon never.
//!
//! Logical addresses only. Everything here can be made again from the log, so it is never the only copy of anything.
//! [`Recent`] has the newest part in memory, fed by the sequencer; [`ColdIndex`] has the rest on disk, fed when a segment was
//! sealed. A question is put to the first on the sequencer's thread, and what is left of it to the second away from there:
//! that is [`History`], [`CommitId`] and [`Audit`].

mod cold;
mod recent;

use fencepost::log::v1::Fact;
use fencepost::{LogIndex, Lsn};

pub use cold::{Change, ColdIndex, ColdSettings, FeedError, GivenUp, IndexError, Located, SegmentUse, Status};
pub use recent::{Forgotten, Recent, is_audit};

use crate::state::{Digest, id_key};

/// Where a checkpoint is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Place {
    /// Of the checkpoint, in its branch.
    pub sequence: u64,
    /// The fact that made it.
    pub lsn: Lsn,
}

/// The part of the index that lives on the sequencer's thread.
#[derive(Debug, Default)]
pub struct Index {
    recent: Recent,
}

/// What a question to the cold index rests on: it must have all facts through `after`, because recent has those that
/// follow; and if it has facts beyond `through`, it may have let go of what was there when the question was put.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Horizon {
    /// Recent has everything after it.
    pub after: Lsn,
    /// The newest fact when the question was put.
    pub through: Lsn,
}

impl Horizon {
    /// Nothing was ever sealed, so that nobody but memory knows anything, and there need not be an index on disk.
    fn is_beginning(self) -> bool {
        self.after.index() == LogIndex::ZERO
    }
}

impl Index {
    /// An index that is fed from the first fact after `after` on.
    pub fn after(after: Lsn) -> Index {
        Index { recent: Recent::after(after) }
    }

    /// Takes one fact in. The facts come in the order of the log, each once.
    pub fn feed(&mut self, lsn: Lsn, fact: &Fact) {
        self.recent.feed(lsn, fact);
    }

    /// Lets go of what the cold index has taken in, all facts through `index`.
    pub fn forget_through(&mut self, index: LogIndex) -> Forgotten {
        self.recent.forget_through(index)
    }

    /// The places of these checkpoints, all of which the state says are retained.
    pub fn history(&self, pipeline: &str, branch: &str, sequences: impl IntoIterator<Item = u64>) -> History {
        let find = |sequence| self.recent.commit(pipeline, branch, sequence).ok_or(sequence);
        let (pipeline, branch, places) =
            (pipeline.to_owned(), branch.to_owned(), sequences.into_iter().map(find).collect());
        History { horizon: self.horizon(), pipeline, branch, places }
    }

    /// The newest commit with this id that is still known.
    pub fn commit_id(&self, pipeline: &str, commit_id: &str) -> CommitId {
        let key = id_key(commit_id);
        let found = self.recent.commit_id(pipeline, &key);
        CommitId { horizon: self.horizon(), pipeline: pipeline.to_owned(), key, found }
    }

    /// At most `limit` audit records of the pipeline before `before`, newest first.
    pub fn audit(&self, pipeline: &str, before: Lsn, limit: usize) -> Audit {
        let found: Vec<Lsn> = self.recent.audit(pipeline, before).take(limit).collect();
        Audit { horizon: self.horizon(), pipeline: pipeline.to_owned(), before, limit, found }
    }

    /// What the questions of this moment rest on.
    pub fn horizon(&self) -> Horizon {
        let (after, through) = self.recent.bounds();
        Horizon { after, through }
    }
}

/// The places of some checkpoints of a branch, as far as they are recent.
#[derive(Debug)]
pub struct History {
    horizon: Horizon,
    pipeline: String,
    branch: String,
    /// In the caller's order; where it is not recent, the sequence alone.
    places: Vec<Result<Place, u64>>,
}

impl History {
    /// Gets the rest from the cold index. In the caller's order; what retention removed since the question was put is
    /// left out.
    pub async fn complete(self, cold: &ColdIndex) -> Result<Vec<Place>, IndexError> {
        let missing: Vec<u64> = self.places.iter().filter_map(|place| place.err()).collect();
        if missing.is_empty() {
            return Ok(self.places.into_iter().flatten().collect());
        }
        if self.horizon.is_beginning() {
            return Ok(self.places.into_iter().flatten().collect());
        }
        let mut found = cold.commits(self.horizon, &self.pipeline, &self.branch, missing).await?.into_iter();
        let places = self.places.into_iter().map(|place| place.map_or_else(|_| found.next().flatten(), Some));
        Ok(places.flatten().collect())
    }
}

/// Where the commit with an id is, as far as that is recent.
#[derive(Debug)]
pub struct CommitId {
    horizon: Horizon,
    pipeline: String,
    key: Digest,
    found: Option<Lsn>,
}

impl CommitId {
    /// Asks the cold index if need be. `None`: no commit that is still retained has the id.
    pub async fn complete(self, cold: &ColdIndex) -> Result<Option<Lsn>, IndexError> {
        match self.found {
            Some(lsn) => Ok(Some(lsn)),
            None if self.horizon.is_beginning() => Ok(None),
            None => cold.commit_id(self.horizon, &self.pipeline, self.key).await,
        }
    }
}

/// The audit records of a pipeline, newest first, as far as they are recent.
#[derive(Debug)]
pub struct Audit {
    horizon: Horizon,
    pipeline: String,
    before: Lsn,
    limit: usize,
    found: Vec<Lsn>,
}

impl Audit {
    /// Gets the rest from the cold index.
    pub async fn complete(mut self, cold: &ColdIndex) -> Result<Vec<Lsn>, IndexError> {
        let wanted = self.limit - self.found.len();
        if wanted > 0 && !self.horizon.is_beginning() {
            // Recent may have some that the cold index has too: it goes on below them.
            let before = self.found.last().copied().unwrap_or(self.before);
            self.found.extend(cold.audit(self.horizon, &self.pipeline, before, wanted).await?);
        }
        Ok(self.found)
    }
}
