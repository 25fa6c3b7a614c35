//! What becomes of a request for a branch.

use std::time::Duration;

use fencepost::v1::{Barrier, Fingerprint};
use fencepost::{LogIndex, Lsn, Token};

use crate::state::{Head, Staged};

/// A branch was granted.
#[derive(Clone, Debug, PartialEq)]
pub struct Granted {
    /// The fencing token.
    pub token: Token,
    /// How long the holder may be silent.
    pub ttl: Duration,
    /// The resume point.
    pub head: Option<Head>,
    /// What is staged on it.
    pub staged: Option<Staged>,
    /// The first open barriers that wait for the branch, without their participants.
    pub barriers: Vec<Barrier>,
    /// Where the grant is in the log. It says who had the branch before.
    pub lsn: Lsn,
    /// The newest fact when the answer was decided.
    pub seen: Lsn,
}

/// Heads that can be read. A branch is granted only at one of these: otherwise whoever has it would be fenced by somebody
/// who cannot begin.
#[derive(Clone, Debug, Default)]
pub struct Readable {
    /// All that were made after this entry; but none of them if the request has a scope.
    pub after: LogIndex,
    /// And the one that this fact made, which was read.
    pub at: Lsn,
    /// What that one says of its scope.
    pub scope: Vec<Fingerprint>,
    /// The same of what is staged; that has no scope.
    pub staged: Lsn,
    /// As in [`Resumed::ReadFirst`], if the branch was asked for before.
    pub arrived: Option<Lsn>,
}

/// What becomes of a request for a branch, if it is not refused.
#[derive(Clone, Debug, PartialEq)]
pub enum Resumed {
    /// The branch is the caller's.
    Granted(Box<Granted>),
    /// Nothing was decided: something has to be read first. The caller then asks again.
    ReadFirst {
        /// What.
        unread: Unread,
        /// The newest fact when the branch was asked for first. Grants since then went to rivals.
        arrived: Lsn,
    },
}

/// What has to be read, in the fact at this place.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Unread {
    /// The checkpoint that is the head.
    Head(Lsn),
    /// The checkpoint that is staged.
    Staged(Lsn),
}
