//! Judging who gets a branch and who gives it back.

use std::time::Duration;

use fencepost::log::v1::{LeaseGranted, LeaseReleased, Rewound};
use fencepost::v1::{ClusterRef, LeaseRef, OnMissing, ResumeRequest, Takeover};
use fencepost::{Lsn, Reason, Token};

use super::window::{self, Digest};
use super::{Branch, Head, State, check_name, check_pipeline};
use crate::error::Refusal;

/// A grant: the right of one worker to move one branch. There is one for every branch in memory, so it is kept small.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Grant {
    /// The fencing token.
    pub token: Token,
    /// The stable name of the worker's role; of a rewind, who asked for it.
    pub holder: Box<str>,
    /// Where the grant is in the log.
    pub lsn: Lsn,
    /// By the server's wall clock, for people.
    pub granted_at_ms: u64,
    pub(super) ttl_ms: u32,
    pub(super) lock_delay_ms: u32,
    /// The request's id as it is remembered.
    pub(super) request: Digest,
    pub(super) standing: Standing,
}

/// Whether a grant is in force, and if not what ended it.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Standing {
    /// It is the right to move the branch.
    InForce,
    /// Its holder gave it back.
    Released,
    /// It never was anybody's: a rewind took the branch from whoever had it.
    Rewound,
    /// A new generation of the cluster's history began.
    Ended,
    /// All leases of the pipeline were ended at once.
    Fenced,
}

impl Grant {
    pub(super) fn from_fact(lsn: Lsn, at_ms: u64, granted: &LeaseGranted) -> Grant {
        // Longer than the limits allow, in a log that other software wrote, is as good as for ever.
        let ms = |ms: u64| u32::try_from(ms).unwrap_or(u32::MAX);
        Grant {
            token: Token::from_u64(granted.token),
            holder: granted.holder.as_str().into(),
            lsn,
            granted_at_ms: at_ms,
            ttl_ms: ms(granted.ttl_ms),
            lock_delay_ms: ms(granted.lock_delay_ms),
            request: window::key(&granted.request_id),
            standing: Standing::InForce,
        }
    }

    /// The grant to nobody that a rewind is.
    pub(super) fn of_rewind(lsn: Lsn, at_ms: u64, rewound: &Rewound) -> Grant {
        Grant {
            token: Token::from_u64(rewound.token),
            holder: if rewound.actor.is_empty() { "an operator".into() } else { rewound.actor.as_str().into() },
            lsn,
            granted_at_ms: at_ms,
            ttl_ms: 0,
            lock_delay_ms: 0,
            request: Digest::default(),
            standing: Standing::Rewound,
        }
    }

    /// How long the holder may be silent before others may claim the branch.
    pub fn ttl(&self) -> Duration {
        Duration::from_millis(self.ttl_ms.into())
    }

    /// How much longer others wait after an abnormal loss.
    pub fn lock_delay(&self) -> Duration {
        Duration::from_millis(self.lock_delay_ms.into())
    }

    pub(super) fn is_in_force(&self) -> bool {
        self.standing == Standing::InForce
    }
}

/// A request for a branch, its shape already checked.
#[derive(Clone, Debug)]
pub struct Resume {
    /// As it came, with the TTL filled in.
    pub request: ResumeRequest,
}

/// What time has to say about a request for a branch.
#[derive(Clone, Copy, Debug)]
pub struct ResumeTiming {
    /// For how long nothing was heard from the present holder.
    pub silent: Duration,
    /// The newest fact when the request came. A grant after it went to a rival, not to the caller's own ghost.
    pub arrived: Lsn,
}

/// How a request for a branch is judged.
#[derive(Clone, Debug, PartialEq)]
#[allow(clippy::large_enum_variant)] // It is taken apart where it is made.
pub enum ResumeVerdict {
    /// The caller gets the branch once this fact is durable.
    Grant(Box<LeaseGranted>),
    /// A retry: the caller got the branch already, with this token.
    Repeat(Token),
    /// Somebody else has it and is not known to be gone: for so long, if it stays silent.
    Held(Duration),
}

impl State {
    /// Judges a request for a branch.
    pub fn evaluate_resume(&self, resume: &Resume, timing: ResumeTiming) -> Result<ResumeVerdict, Refusal> {
        let request = &resume.request;
        self.check_cluster(request.cluster.as_ref())?;
        self.check_ready(&request.pipeline)?;
        let branch = self.branch(&request.pipeline, &request.branch);
        let grant = branch.and_then(Branch::last_grant);

        if let Some(token) = branch.and_then(|branch| branch.granted_to_request(&request.request_id)) {
            let is_current = grant.is_some_and(|grant| grant.token == token && grant.is_in_force());
            return if is_current { Ok(ResumeVerdict::Repeat(token)) } else { Err(outlived(request, token, grant)) };
        }
        if branch.and_then(Branch::head).is_none() && request.on_missing() != OnMissing::StartFresh {
            return Err(missing(&request.pipeline, &request.branch));
        }
        if let Some(grant) = grant.filter(|grant| grant.is_in_force()) {
            let remaining = remaining(grant, request, timing);
            if !remaining.is_zero() {
                return Ok(ResumeVerdict::Held(remaining));
            }
        }
        Ok(ResumeVerdict::Grant(Box::new(self.grant(request, branch, timing)?)))
    }

    /// What a caller is told that does not wait for a branch that is held, or not any more.
    pub fn lease_held(&self, resume: &Resume, remaining: Duration) -> Refusal {
        let request = &resume.request;
        let grant = self.branch(&request.pipeline, &request.branch).and_then(Branch::lease);
        grant.map_or_else(|| missing(&request.pipeline, &request.branch), |grant| held(grant, request, remaining))
    }

    /// Checks that the lease is in force. A name that cannot be one is refused as such, so that no message repeats it.
    pub fn check_lease(&self, lease: &LeaseRef) -> Result<&Grant, Refusal> {
        check_pipeline("lease.pipeline", &lease.pipeline)?;
        check_name("lease.branch", &lease.branch)?;
        self.check_token(&lease.pipeline, &lease.branch, Token::from_u64(lease.token))
    }

    /// Judges a release. `None`: it was released before.
    pub fn evaluate_release(
        &self,
        cluster: Option<&ClusterRef>,
        lease: LeaseRef,
    ) -> Result<Option<LeaseReleased>, Refusal> {
        self.check_cluster(cluster)?;
        let last = self.branch(&lease.pipeline, &lease.branch).and_then(Branch::last_grant);
        if last.is_some_and(|grant| grant.standing == Standing::Released && grant.token.as_u64() == lease.token) {
            return Ok(None);
        }
        self.check_lease(&lease)?;
        Ok(Some(LeaseReleased { pipeline: lease.pipeline, branch: lease.branch, token: lease.token }))
    }

    /// Check 3 of `semantics.md`: the token is the branch's current one.
    pub(super) fn check_token(&self, pipeline: &str, branch: &str, token: Token) -> Result<&Grant, Refusal> {
        let last = self.branch(pipeline, branch).and_then(Branch::last_grant);
        match last {
            Some(grant) if grant.token == token && grant.is_in_force() => Ok(grant),
            _ if token > self.last_token => Err(self.rolled_back(&format!("token {token}"))),
            Some(grant) if grant.token == token && grant.standing == Standing::Ended => Err(self.ended(branch, token)),
            _ => Err(fenced(pipeline, branch, token, last)),
        }
    }

    fn grant(
        &self,
        request: &ResumeRequest,
        branch: Option<&Branch>,
        timing: ResumeTiming,
    ) -> Result<LeaseGranted, Refusal> {
        // A rewind took the branch from its holder and gave it to nobody.
        let previous = branch.and_then(Branch::last_grant).filter(|grant| grant.standing != Standing::Rewound);
        Ok(LeaseGranted {
            pipeline: request.pipeline.clone(),
            branch: request.branch.clone(),
            token: self.next_token()?.as_u64(),
            holder: request.holder.clone(),
            ttl_ms: request.ttl_ms,
            lock_delay_ms: request.lock_delay_ms,
            request_id: request.request_id.clone(),
            takeover: request.takeover,
            reason: request.reason.clone(),
            resumed_sequence: branch.and_then(Branch::head).map_or(0, |head: Head| head.sequence),
            previous_holder: previous.map_or_else(String::new, |grant| grant.holder.to_string()),
            previous_token: previous.map_or(0, |grant| grant.token.as_u64()),
            previous_silent_ms: previous
                .filter(|grant| grant.is_in_force())
                .map(|_| timing.silent.as_millis().try_into().unwrap_or(u64::MAX)),
            accepted_scope: request.accept_scope.clone(),
        })
    }

    fn ended(&self, branch: &str, token: Token) -> Refusal {
        let message = format!(
            "token {token} of branch '{branch}' ended with generation {} of the cluster's history, which is at \
             generation {}: it was restored or forced since; resume to get a new token",
            token.generation(),
            self.generation
        );
        Refusal::new(Reason::StaleGeneration, message).with("generation", self.generation).with("branch", branch)
    }

    pub(super) fn next_token(&self) -> Result<Token, Refusal> {
        let epoch = if self.last_token.generation() == self.generation { self.last_token.epoch() + 1 } else { 1 };
        Token::new(self.generation, epoch).ok_or_else(|| {
            Refusal::new(Reason::Corrupt, "this generation has granted 2^48 tokens: there is no greater one")
        })
    }
}

/// How long the caller has to wait for this grant to become claimable; zero: not at all.
///
/// The lock delay counts from the moment the holder could be taken for lost: when its TTL ran out, or, for a holder of
/// the same name that says by coming back that its predecessor is gone, when that was last heard.
fn remaining(grant: &Grant, request: &ResumeRequest, timing: ResumeTiming) -> Duration {
    let is_own_ghost = *grant.holder == request.holder && grant.lsn <= timing.arrived;
    match request.takeover() {
        Takeover::Force => Duration::ZERO,
        Takeover::SameHolder if is_own_ghost => grant.lock_delay().saturating_sub(timing.silent),
        Takeover::Unspecified | Takeover::Wait | Takeover::SameHolder => {
            (grant.ttl() + grant.lock_delay()).saturating_sub(timing.silent)
        }
    }
}

/// What a caller is told whose request was granted before, and whose grant is over.
fn outlived(request: &ResumeRequest, token: Token, last: Option<&Grant>) -> Refusal {
    let ResumeRequest { pipeline, branch, request_id, .. } = request;
    let since = match last {
        Some(grant) if grant.standing == Standing::Rewound => {
            format!("ended when '{}' rewound the branch", grant.holder)
        }
        Some(grant) if grant.token != token => format!("was followed by '{}' with token {}", grant.holder, grant.token),
        Some(grant) if grant.standing == Standing::Ended => "ended with its generation".to_owned(),
        Some(grant) if grant.standing == Standing::Fenced => "ended when the whole pipeline was fenced".to_owned(),
        _ => "was released since".to_owned(),
    };
    let message = format!(
        "request '{request_id}' was granted branch '{branch}' of '{pipeline}' before, with token {token}, which {since}: \
         to take the branch again, resume with a new request_id"
    );
    let refusal = Refusal::new(Reason::Fenced, message).with("branch", branch);
    let Some(grant) = last else { return refusal };
    refusal.with("current_token", grant.token.as_u64()).with("holder", &grant.holder).with("lsn", grant.lsn.as_u64())
}

/// What a caller is told that does not wait, or not any more.
fn held(grant: &Grant, request: &ResumeRequest, remaining: Duration) -> Refusal {
    // Rounded up, so that a caller who waits that long is not a moment early.
    let remaining_ms = u64::try_from(remaining.as_millis()).unwrap_or(u64::MAX).saturating_add(1);
    let message = format!(
        "branch '{}' of '{}' is held by '{}' (token {}): it can be claimed in {remaining_ms} ms if that worker stays \
         silent; wait for it, or take over with FORCE and a reason (--takeover force --reason)",
        request.branch, request.pipeline, grant.holder, grant.token
    );
    Refusal::new(Reason::LeaseHeld, message)
        .with("holder", &grant.holder)
        .with("current_token", grant.token.as_u64())
        .with("remaining_ms", remaining_ms)
        .with("retry_after_ms", remaining_ms)
}

fn fenced(pipeline: &str, branch: &str, token: Token, last: Option<&Grant>) -> Refusal {
    let refusal = |message: String| Refusal::new(Reason::Fenced, message);
    let Some(grant) = last else {
        let message = format!("nobody was ever granted branch '{branch}' of '{pipeline}': token {token} is not its");
        return refusal(message).with("branch", branch);
    };
    let message = if grant.token == token && grant.standing == Standing::Fenced {
        format!(
            "pipeline '{pipeline}' was fenced as a whole, which ended token {token} of branch '{branch}': stop this worker"
        )
    } else if grant.token == token {
        format!("token {token} released branch '{branch}' of '{pipeline}': resume to get a new one")
    } else if grant.token < token {
        format!("token {token} was granted for another branch than '{branch}' of '{pipeline}'")
    } else if grant.standing == Standing::Rewound {
        format!(
            "branch '{branch}' of '{pipeline}' was rewound by '{}', which ended token {token}: stop this worker, and \
             resume from the new head",
            grant.holder
        )
    } else if !grant.is_in_force() {
        let end = match grant.standing {
            Standing::Released => "released it",
            Standing::Fenced => "lost it when the whole pipeline was fenced",
            _ => "lost it to a new generation",
        };
        format!(
            "branch '{branch}' of '{pipeline}' went on without token {token}: '{}' had it with token {} and {end}; stop \
             this worker, or resume",
            grant.holder, grant.token
        )
    } else {
        format!(
            "branch '{branch}' of '{pipeline}' is held by '{}' with token {} now, so token {token} can never move it \
             again; stop this worker",
            grant.holder, grant.token
        )
    };
    refusal(message)
        .with("branch", branch)
        .with("current_token", grant.token.as_u64())
        .with("holder", &grant.holder)
        .with("lsn", grant.lsn.as_u64())
}

pub(super) fn missing(pipeline: &str, branch: &str) -> Refusal {
    let message = format!(
        "branch '{branch}' of '{pipeline}' has no checkpoint: if it is meant to start from nothing, resume with \
         on_missing = START_FRESH (--start-fresh); if it is not, check the names, the endpoint and whether state was lost"
    );
    Refusal::new(Reason::StateMissing, message).with("pipeline", pipeline).with("branch", branch)
}
