//! What the owner of the index says to it, and what everybody hears from it.

use std::fmt;
use std::ops::RangeInclusive;

use fencepost::{LogIndex, Lsn};

use crate::state::Digest;

/// One thing that is different since the last feed. Whoever feeds walks the facts of a range of the log with the state at
/// its end, and hands over what is still live.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Change {
    /// There is a segment: checkpoints from this log index on count for it. To be said before the commits in it. Again after
    /// it was compacted, with what is live in it apart from indexed checkpoints.
    Segment {
        /// Its first log index.
        first_index: LogIndex,
        /// Bytes of live facts other than checkpoints.
        other_bytes: u64,
    },
    /// Entries of the log cannot be read, and what they hold is not in the index.
    Unread {
        /// The entries.
        indexes: RangeInclusive<LogIndex>,
    },
    /// A segment became part of the one before it.
    SegmentGone {
        /// Its first log index.
        first_index: LogIndex,
    },
    /// A branch has a checkpoint, in the place of an older one of the same sequence.
    Commit {
        /// Pipeline of the branch.
        pipeline: String,
        /// Name of the branch.
        branch: String,
        /// Of the checkpoint.
        sequence: u64,
        /// The fact that made it.
        lsn: Lsn,
        /// The fact that has its payload: the same, unless it was staged before.
        payload: Lsn,
        /// When, in milliseconds since 1970.
        at_ms: u64,
        /// What it takes up in the log.
        bytes: u64,
        /// Made by [`crate::state::id_key`]; `None` for a fork, which is no commit.
        commit_id: Option<Digest>,
    },
    /// A branch keeps these checkpoints and no others: from where retention begins through its head.
    Retain {
        /// Pipeline of the branch.
        pipeline: String,
        /// Name of the branch.
        branch: String,
        /// What is kept.
        sequences: RangeInclusive<u64>,
        /// What is kept besides.
        pinned: Vec<u64>,
    },
    /// An audit record. In the order of the log within its pipeline.
    Audit {
        /// Whom it is about.
        pipeline: String,
        /// The fact that is the record.
        lsn: Lsn,
        /// When, in milliseconds since 1970.
        at_ms: u64,
    },
    /// The oldest audit records of a pipeline are not listed any more, up to the first that is not older.
    ExpireAudit {
        /// Whose.
        pipeline: String,
        /// Records before this time, in milliseconds since 1970, go.
        before_ms: u64,
    },
}

/// What is live in a segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentUse {
    /// Of the segment; 0 for checkpoints that no segment was named for.
    pub first_index: LogIndex,
    /// Of indexed checkpoints.
    pub checkpoint_bytes: u64,
    /// Of other live facts.
    pub other_bytes: u64,
}

impl SegmentUse {
    /// Of all live facts.
    pub fn live_bytes(self) -> u64 {
        self.checkpoint_bytes.saturating_add(self.other_bytes)
    }
}

/// A checkpoint, by name.
#[derive(Clone, Debug, PartialEq, Eq, PartialOrd, Ord)]
pub struct Located {
    /// Pipeline of the branch.
    pub pipeline: String,
    /// Name of the branch.
    pub branch: String,
    /// Of the checkpoint.
    pub sequence: u64,
}

impl fmt::Display for Located {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}/{}@{}", self.pipeline, self.branch, self.sequence)
    }
}

/// How the index is.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Status {
    /// The database is being opened and read.
    Opening,
    /// It answers, about facts through `applied`.
    Ready {
        /// The newest fact it was fed with.
        applied: Lsn,
    },
    /// It is being fed from the log, and does not answer until its owner says that it is complete.
    Rebuilding {
        /// The newest fact it was fed with.
        applied: Lsn,
    },
    /// It cannot even be made anew, until [`ColdIndex::retry`](super::ColdIndex::retry).
    Failed {
        /// Why, and what to do.
        why: String,
    },
}

/// Why there is no answer.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum IndexError {
    /// Ask again later.
    #[error(
        "the index of old checkpoints is being made again from the log and has come to LSN {applied}: ask again later"
    )]
    Rebuilding {
        /// The newest fact it was fed with.
        applied: Lsn,
    },
    /// The owner tries again.
    #[error("the index of old checkpoints cannot be used: {why}")]
    Failed {
        /// Why, and what to do.
        why: String,
    },
    /// What is asked for may be in a part of the log that could not be read when the index was made.
    #[error(
        "entries {} to {} of the log could not be read when the index of old checkpoints was made, and what is asked for may \
         be among them: restore a copy from before the damage, or do without", .indexes.start(), .indexes.end()
    )]
    Unread {
        /// The oldest such entries.
        indexes: RangeInclusive<LogIndex>,
    },
    /// It was found damaged by this very question, and is being made again now.
    #[error("the index of old checkpoints was damaged ({why}) and is being made again from the log: ask again later")]
    Inconsistent {
        /// What was found.
        why: String,
    },
}

/// Why changes were not taken in.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
pub enum FeedError {
    /// The changes follow upon another LSN than the index has come to; it may have been made anew meanwhile.
    #[error("the index has come to LSN {applied}: feed it from there")]
    OutOfStep {
        /// Where to go on from.
        applied: Lsn,
    },
    /// It takes nothing in.
    #[error(transparent)]
    Index(#[from] IndexError),
}

/// A database that is not used any more, and was begun anew.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct GivenUp {
    /// What is wrong with it.
    pub why: String,
    /// False: another version wrote it.
    pub is_damaged: bool,
}
