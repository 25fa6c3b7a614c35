//! What becomes of a request for a branch.

use std::time::Duration;

use fencepost::v1::{Barrier, Fingerprint, ResumeRequest};
use fencepost::{LogIndex, Lsn, Token};

use crate::error::Refusal;
use crate::state::{Branch, Head, Staged, compare_scope};

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
    /// All that were written after this entry.
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

impl Readable {
    /// What has to be read before the branch can be granted. Refuses a head of another scope than the request's.
    ///
    /// Of a head that moves on meanwhile the scope is known without reading it if it is the request's, or that of the head
    /// that was read: so a busy holder keeps nobody reading.
    pub(super) fn check(&self, request: &ResumeRequest, branch: &Branch) -> Result<Option<Unread>, Refusal> {
        if let Some(head) = branch.head() {
            let is_read = head.lsn == self.at;
            let is_same = request.scope.is_empty() || branch.is_head_of_scope(&request.scope);
            let is_told = is_read || self.at != Lsn::ZERO && branch.is_head_of_scope(&self.scope);
            if !(is_read || branch.is_head_after(self.after)) || !(is_same || is_told) {
                return Ok(Some(Unread::Head(head.lsn)));
            }
            if !is_same {
                compare_scope(request, head.sequence, &self.scope)?;
            }
        }
        let staged = branch.staged().map(|staged| staged.lsn);
        let staged = staged.filter(|staged| staged.index() <= self.after && *staged != self.staged);
        Ok(staged.map(Unread::Staged))
    }

    /// Whether nothing of this sort was read yet.
    pub(super) fn is_first(&self, unread: Unread) -> bool {
        match unread {
            Unread::Head(_) => self.at == Lsn::ZERO,
            Unread::Staged(_) => self.staged == Lsn::ZERO,
        }
    }
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
