//! What a decision must look at, in memory: who holds which branch, where each head is, which commits are remembered.
//!
//! Pure. `evaluate_*` judges a request against the state and returns a fact, an earlier result, or a refusal; [`apply`]
//! takes a fact in. Neither does I/O, reads a clock, draws a random number or waits. What time has to say comes in as a
//! number ([`ResumeTiming`]). So the same facts give the same state on every machine, for ever.
//!
//! Invariants, checked by [`State::apply`] on every fact, also at start-up:
//! * tokens strictly increase over the whole cluster, so that one is never granted twice, not even for a branch that
//!   was given up in between;
//! * the sequences of a branch are 1, 2, 3, without gaps, and go on from where a rewind set the branch back to;
//! * a commit carries the token that is current at its place in the log.
//!
//! Compaction rests on this module too: [`State::keep`] says of every fact whether the state, or anybody who may read a
//! checkpoint, still needs it. What is kept makes the same state again, by [`State::apply_compacted`].
//!
//! [`apply`]: State::apply

mod apply;
mod barrier;
mod commit;
mod dead;
mod declared;
mod fields;
mod fork;
mod group;
mod import;
mod keep;
mod lease;
mod merge;
mod names;
mod newest;
mod pipeline;
mod records;
mod retention;
mod rewind;
mod savepoint;
mod schema;
mod scope;
mod staged;
#[cfg(test)]
mod tests;
mod window;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Bound;

use fencepost::v1::ClusterRef;
use fencepost::{Lsn, Reason, Token};

pub use barrier::{
    AbortVerdict, ArriveVerdict, BARRIER_ID_PREFIX, ClosedBarrier, KnownBarrier, OpenBarrier, OpenVerdict, named,
    other_participants,
};
pub use commit::{Commit, CommitVerdict, Resolution};
pub use fields::{
    check_asked_by, check_bytes, check_checkpoint, check_dead_letter, check_id, check_ms, check_policy, check_schema,
    check_scope,
};
pub use import::ImportVerdict;
pub use keep::Keep;
pub use lease::{Grant, Resume, ResumeTiming, ResumeVerdict};
pub use merge::{Input, MergeCommit, MergeVerdict, Merged};
pub use names::{check_name, check_pipeline, excerpt};
pub(crate) use pipeline::entry;
pub use pipeline::{Branch, Head, Pipeline};
pub use records::{BadRecord, StateLoader};
pub use retention::{PolicyInForce, with_defaults};
pub use rewind::Place;
pub use savepoint::{Savepoint, SavepointVerdict};
pub use schema::shown_fingerprint;
pub use scope::compare_scope;
pub use staged::{Stage, StageVerdict, Staged};
pub use window::{Digest, WINDOW_COMMITS, key as id_key};

use crate::error::Refusal;

/// No sequence of a branch, and no number of a commit of a pipeline, reaches this: as many as a log can have entries, because a
/// position has 48 bits for the index of one. A branch that commits 100,000 times a second would get here in 90 years. So
/// a fact that says otherwise was not written by us, and there is always a number after one that was taken in.
pub const COUNT_END: u64 = 1 << 48;

/// The whole hot state of a cluster.
#[derive(Debug, Default, PartialEq, Eq)]
pub struct State {
    cluster_id: String,
    generation: u64,
    /// Where each generation after the first began.
    generations: Vec<Lsn>,
    /// Of the newest grant. The next one is greater.
    last_token: Token,
    /// The newest fact taken in.
    applied: Lsn,
    pipelines: BTreeMap<Box<str>, Pipeline>,
    branches: u64,
    leases: u64,
    /// Of open barriers: when, pipeline and name.
    deadlines: BTreeSet<(u64, Box<str>, Box<str>)>,
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

    /// Where each generation after the first began, oldest first.
    pub fn generations(&self) -> &[Lsn] {
        &self.generations
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

    /// The same, or what a caller is told who asks for one that is not there.
    pub fn known_pipeline(&self, pipeline: &str) -> Result<&Pipeline, Refusal> {
        self.pipeline(pipeline).ok_or_else(|| {
            let message = format!("there is no pipeline '{pipeline}'; 'fencepost pipelines' lists what is there");
            Refusal::new(Reason::StateMissing, message).with("pipeline", pipeline)
        })
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

    /// Checks that the pipeline is not half imported.
    pub fn check_ready(&self, pipeline: &str) -> Result<(), Refusal> {
        if !self.pipeline(pipeline).is_some_and(Pipeline::is_importing) {
            return Ok(());
        }
        let message = format!(
            "pipeline '{pipeline}' is being imported and cannot be used before that is done: if nobody imports it now, \
             import the same file again, or another one under another name"
        );
        Err(Refusal::new(Reason::Importing, message).with("pipeline", pipeline).with("retry_after_ms", 1000))
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
