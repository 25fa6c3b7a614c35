//! What a decision must look at, in memory: who holds which branch, where each head is, which commits are remembered.
//!
//! Pure. `evaluate_*` judges a request against the state and returns a fact, an earlier result, or a refusal; [`apply`]
//! takes a fact in. Neither does I/O, reads a clock, draws a random number or waits. What time has to say comes in as a
//! number ([`ResumeTiming`]). So the same facts give the same state on every machine, for ever.
//!
//! Invariants, checked by [`State::apply`] on every fact, also at start-up:
//! * tokens strictly increase over the whole cluster, so that one is never granted twice, not even for a branch that
//!   was given up in between;
//! * the sequences of a branch are 1, 2, 3, without gaps;
//! * a commit carries the token that is current at its place in the log.
//!
//! [`apply`]: State::apply

mod commit;
mod lease;
mod names;
#[cfg(test)]
mod tests;
mod window;

use std::collections::BTreeMap;
use std::ops::Bound;

use fencepost::log::v1::fact::Kind;
use fencepost::log::v1::{ClusterCreated, Committed, Fact, LeaseGranted, LeaseReleased};
use fencepost::v1::ClusterRef;
use fencepost::{Lsn, Reason, Token};

pub use commit::{Commit, CommitVerdict, Resolution};
pub use lease::{Grant, Resume, ResumeTiming, ResumeVerdict};
pub use names::{check_name, check_pipeline};
use window::CommitWindow;
pub use window::{Digest, WINDOW_COMMITS};

use crate::error::Refusal;

/// How many earlier grants of a branch are remembered by their requests.
const GRANTS_REMEMBERED: usize = 4;

/// The whole hot state of a cluster.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct State {
    cluster_id: String,
    generation: u64,
    /// Of the newest grant. The next one is greater.
    last_token: Token,
    /// The newest fact taken in.
    applied: Lsn,
    pipelines: BTreeMap<Box<str>, Pipeline>,
    branches: u64,
    leases: u64,
}

/// One pipeline: unit of atomicity.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Pipeline {
    branches: BTreeMap<Box<str>, Branch>,
    window: CommitWindow,
    commits: u64,
    leases: u64,
    last_committed_at_ms: u64,
}

/// One branch: its head, and who may move it.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct Branch {
    head: Option<Head>,
    /// The newest grant, also after its release: it is who had the branch before the next one.
    grant: Option<Box<Grant>>,
    /// Requests that were granted the branch before, oldest first, so that a late retry of one is not granted it anew.
    granted_before: Vec<(Digest, Token)>,
}

/// The resume point of a branch. What it says is in the log, at `lsn`.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Head {
    /// 1, 2, 3.
    pub sequence: u64,
    /// The commit that made it.
    pub lsn: Lsn,
    /// By the server's wall clock, for people.
    pub committed_at_ms: u64,
}

/// A fact that cannot follow from what is in the log before it: either the log is not the one that was written, or the
/// software that wrote it or reads it has a defect.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("the fact at LSN {lsn} contradicts the facts before it: {contradiction}")]
pub struct Inconsistent {
    /// Where.
    pub lsn: Lsn,
    /// What does not fit.
    pub contradiction: String,
}

impl State {
    /// The cluster's id; empty before the first fact.
    pub fn cluster_id(&self) -> &str {
        &self.cluster_id
    }

    /// How many times this history was restored or forced.
    pub fn generation(&self) -> u64 {
        self.generation
    }

    /// The newest fact taken in.
    pub fn applied(&self) -> Lsn {
        self.applied
    }

    /// The newest token ever granted.
    pub fn last_token(&self) -> Token {
        self.last_token
    }

    /// Number of pipelines, of branches, and of branches that somebody holds.
    pub fn counts(&self) -> (u64, u64, u64) {
        (self.pipelines.len() as u64, self.branches, self.leases)
    }

    /// The pipeline of that name.
    pub fn pipeline(&self, pipeline: &str) -> Option<&Pipeline> {
        self.pipelines.get(pipeline)
    }

    /// The branch of that name.
    pub fn branch(&self, pipeline: &str, branch: &str) -> Option<&Branch> {
        self.pipelines.get(pipeline)?.branches.get(branch)
    }

    /// Pipelines whose names begin with `prefix`, in the order of their names, from the first one after `after`.
    pub fn pipelines_after<'a>(
        &'a self,
        after: &str,
        prefix: &'a str,
    ) -> impl Iterator<Item = (&'a str, &'a Pipeline)> + use<'a> {
        let start = if after < prefix { Bound::Included(prefix) } else { Bound::Excluded(after) };
        self.pipelines
            .range::<str, _>((start, Bound::Unbounded))
            .map(|(name, pipeline)| (&**name, pipeline))
            .take_while(move |(name, _)| name.starts_with(prefix))
    }

    /// Branches of all pipelines with their grants, in no order that matters.
    pub fn grants(&self) -> impl Iterator<Item = &Grant> {
        self.pipelines.values().flat_map(|pipeline| pipeline.branches.values().filter_map(Branch::lease))
    }

    /// Check 1 of `semantics.md`: the caller means this cluster, at this generation.
    pub fn check_cluster(&self, caller: Option<&ClusterRef>) -> Result<(), Refusal> {
        let Some(caller) = caller else { return Ok(()) };
        if caller.cluster_id != self.cluster_id {
            let message = format!(
                "the request is for cluster {}, but this is cluster {}: check the endpoint",
                names::shown(&caller.cluster_id),
                self.cluster_id
            );
            return Err(Refusal::new(Reason::WrongCluster, message).with("cluster_id", &self.cluster_id));
        }
        if caller.generation < self.generation {
            let message = format!(
                "the request is for generation {} of the cluster, which is at generation {}: its history was restored \
                 or forced since; resume to get a new token",
                caller.generation, self.generation
            );
            return Err(Refusal::new(Reason::StaleGeneration, message).with("generation", self.generation));
        }
        if caller.generation > self.generation {
            return Err(self.rolled_back(&format!("generation {}", caller.generation)));
        }
        Ok(())
    }

    /// Takes one fact in. The facts come in the order of the log, each once.
    pub fn apply(&mut self, lsn: Lsn, fact: &Fact) -> Result<(), Inconsistent> {
        let inconsistent = |contradiction: String| Inconsistent { lsn, contradiction };
        if lsn <= self.applied {
            return Err(inconsistent(format!("it comes after the fact at {}", self.applied)));
        }
        let outcome = match &fact.kind {
            Some(Kind::ClusterCreated(created)) => self.apply_cluster_created(created),
            Some(Kind::LeaseGranted(granted)) => self.apply_lease_granted(lsn, fact.at_ms, granted),
            Some(Kind::LeaseReleased(released)) => self.apply_lease_released(released),
            Some(Kind::Committed(committed)) => self.apply_committed(lsn, fact.at_ms, committed),
            _ => Err("it is of a kind that this version does not know".to_owned()),
        };
        outcome.map_err(inconsistent)?;
        self.applied = lsn;
        Ok(())
    }

    fn apply_cluster_created(&mut self, created: &ClusterCreated) -> Result<(), String> {
        if !self.cluster_id.is_empty() {
            return Err(format!("cluster {} is already there", self.cluster_id));
        }
        self.cluster_id.clone_from(&created.cluster_id);
        self.generation = created.generation;
        Ok(())
    }

    fn apply_lease_granted(&mut self, lsn: Lsn, at_ms: u64, granted: &LeaseGranted) -> Result<(), String> {
        let token = Token::from_u64(granted.token);
        if token <= self.last_token {
            return Err(format!("it grants token {token} after token {}", self.last_token));
        }
        // No token could follow one of a later generation.
        if token.generation() != self.generation {
            return Err(format!("it grants token {token} in generation {}", self.generation));
        }
        let pipeline = entry(&mut self.pipelines, &granted.pipeline);
        let known = pipeline.branches.len();
        let branch = entry(&mut pipeline.branches, &granted.branch);
        let head = branch.head.map_or(0, |head| head.sequence);
        if head != granted.resumed_sequence {
            return Err(format!("it resumes from sequence {}, but the head is {head}", granted.resumed_sequence));
        }
        let was_held = branch.lease().is_some();
        branch.take_grant(Grant::from_fact(lsn, at_ms, granted));
        self.branches += (pipeline.branches.len() - known) as u64;
        pipeline.leases += u64::from(!was_held);
        self.leases += u64::from(!was_held);
        self.last_token = token;
        Ok(())
    }

    fn apply_lease_released(&mut self, released: &LeaseReleased) -> Result<(), String> {
        let token = Token::from_u64(released.token);
        let grant = self.grant_mut(&released.pipeline, &released.branch);
        let grant = grant.filter(|grant| grant.token == token && !grant.released);
        grant.ok_or_else(|| format!("it releases token {token}, which is not current"))?.released = true;
        self.leases -= 1;
        if let Some(pipeline) = self.pipelines.get_mut(&*released.pipeline) {
            pipeline.leases -= 1;
        }
        Ok(())
    }

    fn apply_committed(&mut self, lsn: Lsn, at_ms: u64, committed: &Committed) -> Result<(), String> {
        let digest = Digest::try_from(&committed.digest[..]).map_err(|_| "its digest is not 16 bytes".to_owned())?;
        let pipeline = self
            .pipelines
            .get_mut(&*committed.pipeline)
            .ok_or_else(|| format!("there is no pipeline '{}'", committed.pipeline))?;
        for moved in &committed.branches {
            let branch = pipeline
                .branches
                .get_mut(&*moved.branch)
                .ok_or_else(|| format!("there is no branch '{}'", moved.branch))?;
            let token = Token::from_u64(moved.token);
            if branch.lease().is_none_or(|grant| grant.token != token) {
                return Err(format!("it moves branch '{}' with token {token}, which is not current", moved.branch));
            }
            let head = branch.head.map_or(0, |head| head.sequence);
            if moved.sequence != head + 1 {
                return Err(format!("it moves branch '{}' from {head} to {}", moved.branch, moved.sequence));
            }
            branch.head = Some(Head { sequence: moved.sequence, lsn, committed_at_ms: at_ms });
        }
        pipeline.window.remember(&committed.commit_id, digest, lsn);
        pipeline.commits += 1;
        pipeline.last_committed_at_ms = at_ms;
        Ok(())
    }

    fn grant_mut(&mut self, pipeline: &str, branch: &str) -> Option<&mut Grant> {
        self.pipelines.get_mut(pipeline)?.branches.get_mut(branch)?.grant.as_deref_mut()
    }

    fn rolled_back(&self, seen: &str) -> Refusal {
        let message = format!(
            "the caller has seen {seen}, but this store never went beyond token {} of generation {}: it was restored \
             from an older copy, or its data directory was replaced; nothing was applied",
            self.last_token, self.generation
        );
        Refusal::new(Reason::StoreRolledBack, message)
            .with("last_token", self.last_token.as_u64())
            .with("generation", self.generation)
    }
}

impl Pipeline {
    /// Branches in the order of their names, from the first one after `after`.
    pub fn branches_after<'a>(&'a self, after: &str) -> impl Iterator<Item = (&'a str, &'a Branch)> {
        self.branches
            .range::<str, _>((Bound::Excluded(after), Bound::Unbounded))
            .map(|(name, branch)| (&**name, branch))
    }

    /// Number of branches, and of those that somebody holds.
    pub fn counts(&self) -> (u64, u64) {
        (self.branches.len() as u64, self.leases)
    }

    /// How many commits there were, each of one or more branches, and when the newest was.
    pub fn commits(&self) -> (u64, u64) {
        (self.commits, self.last_committed_at_ms)
    }
}

impl Branch {
    /// The resume point; `None` before the first commit.
    pub fn head(&self) -> Option<Head> {
        self.head
    }

    /// The grant that is in force: nobody released it, and nobody was granted the branch since.
    pub fn lease(&self) -> Option<&Grant> {
        self.last_grant().filter(|grant| !grant.released)
    }

    /// The token that a request was granted, if that is remembered: the newest few requests are.
    fn granted_to_request(&self, request_id: &str) -> Option<Token> {
        if let Some(grant) = self.last_grant()
            && *grant.request_id == *request_id
        {
            return Some(grant.token);
        }
        let request = window::key(request_id);
        self.granted_before.iter().find(|(granted, _)| *granted == request).map(|(_, token)| *token)
    }

    fn take_grant(&mut self, grant: Grant) {
        if let Some(before) = self.grant.replace(Box::new(grant)) {
            if self.granted_before.len() >= GRANTS_REMEMBERED {
                self.granted_before.remove(0);
            }
            self.granted_before.push((window::key(&before.request_id), before.token));
        }
    }

    /// The newest grant, whether in force or released.
    pub fn last_grant(&self) -> Option<&Grant> {
        self.grant.as_deref()
    }
}

/// The value of `name`, made if need be. Looks up before it makes, so that a known name is never copied.
pub(crate) fn entry<'a, V: Default>(map: &'a mut BTreeMap<Box<str>, V>, name: &str) -> &'a mut V {
    if !map.contains_key(name) {
        map.insert(name.into(), V::default());
    }
    map.get_mut(name).expect("the name was there or was just inserted")
}
