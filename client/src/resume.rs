//! Taking a branch: what a worker may say about it ([`Resume`]), and the one call that does it.

use std::time::Duration;

use fencepost::{Token, v1};
use tokio::time::Instant;

use crate::checkpoint::StoredCheckpoint;
use crate::error::{Error, Result};
use crate::lease::{Lease, margin};
use crate::pipeline::Branch;
use crate::retry::unique_id;
use crate::rpc::leases;
use crate::staged::Staged;
use crate::worker::{Found, Predecessor, Worker};

/// How long a resume waits for somebody else's lease unless told otherwise: two default TTLs.
const WAIT: Duration = Duration::from_mins(1);
/// Longer than any wait that the server accepts, so that it is the server who says so.
const WAIT_MAX: Duration = Duration::from_hours(2);

/// How far a resume may go to get a branch that somebody else holds.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Takeover {
    /// Wait until the lease is released, or its holder was silent for longer than its TTL.
    #[default]
    Wait,
    /// As `Wait`, but take over at once from a holder of the same name: a restarted worker does not wait for its ghost.
    /// Only for names that no two living workers share.
    SameHolder,
    /// Take over at once from anybody. Needs a [`Resume::reason`], which is kept.
    Force,
}

/// How to take a branch. By default: wait up to a minute for a lease that somebody holds, fail where there is no checkpoint
/// yet, and fetch and verify the state.
#[derive(Clone, Debug)]
#[must_use = "hand it to Branch::resume"]
pub struct Resume {
    request: v1::ResumeRequest,
    wait: Duration,
}

impl Resume {
    /// For a holder of that name. The name is of a role and survives restarts: `loader-3`, not a process id.
    pub fn new(holder: impl Into<String>) -> Resume {
        Resume { request: v1::ResumeRequest { holder: holder.into(), ..Default::default() }, wait: WAIT }
    }

    /// How long the worker may be silent before others may take over: 1 s to 1 h. Default: the server's, usually 30 s.
    pub fn ttl(mut self, ttl: Duration) -> Resume {
        self.request.ttl_ms = millis(ttl);
        self
    }

    /// How long to wait for a lease that somebody holds: at most 1 h. Then the call fails with `LEASE_HELD`.
    pub fn wait(mut self, wait: Duration) -> Resume {
        self.wait = wait;
        self
    }

    /// Fails at once with `LEASE_HELD` if somebody holds the lease.
    pub fn no_wait(self) -> Resume {
        self.wait(Duration::ZERO)
    }

    /// How far to go to get the branch.
    pub fn takeover(mut self, takeover: Takeover) -> Resume {
        let takeover = match takeover {
            Takeover::Wait => v1::Takeover::Wait,
            Takeover::SameHolder => v1::Takeover::SameHolder,
            Takeover::Force => v1::Takeover::Force,
        };
        self.request.set_takeover(takeover);
        self
    }

    /// Why, for whoever reads the log later. At most 1 KiB.
    pub fn reason(mut self, reason: impl Into<String>) -> Resume {
        self.request.reason = reason.into();
        self
    }

    /// How long the next grant is held back if this worker is lost without a release: for sinks that cannot compare
    /// fencing tokens. At most 60 s.
    pub fn lock_delay(mut self, delay: Duration) -> Resume {
        self.request.lock_delay_ms = millis(delay);
        self
    }

    /// Starts from nothing where the branch has no checkpoint. Without it that is an error, because lost state must never
    /// read as a fresh start.
    pub fn start_fresh(mut self) -> Resume {
        self.request.set_on_missing(v1::OnMissing::StartFresh);
        self
    }

    /// What this worker is made by or works from, to be compared with what the head was
    /// ([`Checkpoint::scope`](crate::Checkpoint::scope)), before anybody is fenced. A difference, also of names, is refused
    /// with `SCOPE_MISMATCH`. If no scope is given nothing is compared. At most 16, each name once.
    pub fn scope(mut self, name: impl Into<String>, value: impl Into<String>) -> Resume {
        self.request.scope.push(v1::Fingerprint { name: name.into(), value: value.into() });
        self
    }

    /// Says that a difference in this name of the scope is meant. It is kept in the log.
    pub fn accept_scope(mut self, name: impl Into<String>) -> Resume {
        self.request.accept_scope.push(name.into());
        self
    }

    /// Fetches the position without the state. What is not fetched cannot be verified either.
    pub fn soft(mut self) -> Resume {
        self.request.set_mode(v1::ResumeMode::Soft);
        self
    }

    pub(crate) async fn take(self, branch: &Branch) -> Result<Worker> {
        let Resume { mut request, wait } = self;
        if request.takeover() == v1::Takeover::Force && request.reason.is_empty() {
            let problem =
                "a forced takeover needs a reason, which is kept in the log: add `.reason(\"..\")`".to_owned();
            return Err(Error::Invalid { field: "reason", problem });
        }
        request.pipeline = branch.pipeline().to_owned();
        request.branch = branch.name().to_owned();
        request.request_id = unique_id();
        let soft = request.mode() == v1::ResumeMode::Soft;

        let rpc = &branch.client().shared.rpc;
        let patience = Instant::now() + wait.min(WAIT_MAX);
        let slack = rpc.options.request_timeout;
        let asked = rpc
            .ask_each(request, wait.min(WAIT_MAX) + slack, patience + slack, move |channel, mut request| {
                request.get_mut().wait_ms = millis(patience.saturating_duration_since(Instant::now()));
                async move { leases(channel).resume(request).await }
            })
            .await;
        let answer = asked.result?;

        let head = answer.head.map(|head| {
            let (pipeline, branch) = (branch.pipeline().to_owned(), branch.name().to_owned());
            StoredCheckpoint::from_message(v1::StoredCheckpoint { pipeline, branch, ..head })
        });
        let staged = answer.staged.map(|staged| Staged::from_message(branch.pipeline(), branch.name(), staged));
        for found in head.iter().chain(staged.as_ref().map(Staged::checkpoint)).filter(|_| !soft) {
            found.verify()?;
        }
        let found = Found {
            head,
            staged,
            predecessor: answer.predecessor.map(Predecessor::from_message),
            open_barriers: answer.barriers,
        };
        let ttl = Duration::from_millis(answer.ttl_ms);
        let token = Token::from_u64(answer.token);
        let lease = Lease::new(branch.pipeline().to_owned(), branch.name().to_owned(), token, ttl, asked.sent);
        let due = first_renewal(asked.sent, ttl);
        Ok(Worker::start(branch.client().clone(), lease, due, found))
    }
}

impl From<&str> for Resume {
    fn from(holder: &str) -> Resume {
        Resume::new(holder)
    }
}

impl From<String> for Resume {
    fn from(holder: String) -> Resume {
        Resume::new(holder)
    }
}

/// When the first renewal is due. At once after an answer that took long, most often because it had to wait for somebody
/// else's lease: of the time counted from the sending little is left, or none.
fn first_renewal(sent: Instant, ttl: Duration) -> Instant {
    let now = Instant::now();
    if now.saturating_duration_since(sent) <= margin(ttl) { sent + ttl / 3 } else { now }
}

fn millis(duration: Duration) -> u64 {
    u64::try_from(duration.as_millis()).unwrap_or(u64::MAX)
}
