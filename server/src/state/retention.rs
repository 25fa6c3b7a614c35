//! What a pipeline keeps.
//!
//! How far back a branch keeps its checkpoints is decided when it commits, and is written down in the commit: a later
//! policy, clock or version never decides it otherwise, and `is this checkpoint retained` is a question of the state alone.

use std::collections::{BTreeMap, VecDeque};

use fencepost::log::v1::PolicySet;
use fencepost::v1::{Policy, SetPolicyRequest};
use fencepost::{Lsn, Reason};

use super::{Branch, Pipeline, Savepoint, State};
use crate::config::limits;
use crate::error::Refusal;

/// A policy that was set, and where.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PolicyInForce {
    /// As it was set: 0 stands for a default.
    pub policy: Policy,
    /// The fact that set it.
    pub lsn: Lsn,
    /// When, by the server's wall clock.
    pub set_at_ms: u64,
}

impl PolicyInForce {
    /// Whether it keeps checkpoints by their age.
    pub(super) fn keeps_by_age(&self) -> bool {
        self.policy.keep_for_ms > 0
    }
}

/// The policy with its defaults filled in; of none at all, the defaults alone.
pub fn with_defaults(policy: Option<&Policy>) -> Policy {
    let Policy { keep_last, keep_for_ms, audit_for_ms, reconcile_rows, declared_schemas_only } =
        policy.copied().unwrap_or_default();
    let or = |value: u64, default: u64| if value == 0 { default } else { value };
    Policy {
        keep_last: or(keep_last, limits::KEEP_LAST_DEFAULT),
        keep_for_ms,
        audit_for_ms: or(audit_for_ms, limits::AUDIT_FOR_DEFAULT.as_millis() as u64),
        reconcile_rows,
        declared_schemas_only,
    }
}

/// When the retained checkpoints of a branch were committed, as far as that was after its policy was set. Kept only
/// where the policy keeps by age.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Times(VecDeque<(u64, u64)>);

impl Times {
    /// Takes in a new head.
    pub(super) fn push(&mut self, sequence: u64, at_ms: u64) {
        // After a rewind the sequences go on from its target.
        while self.0.back().is_some_and(|(newer, _)| *newer >= sequence) {
            self.0.pop_back();
        }
        self.0.push_back((sequence, at_ms));
    }

    /// Forgets what is not retained.
    pub(super) fn retain_from(&mut self, sequence: u64) {
        while self.0.front().is_some_and(|(older, _)| *older < sequence) {
            self.0.pop_front();
        }
    }

    /// Forgets what a rewind abandons.
    pub(super) fn cut_after(&mut self, sequence: u64) {
        while self.0.back().is_some_and(|(newer, _)| *newer > sequence) {
            self.0.pop_back();
        }
    }

    pub(super) fn iter(&self) -> impl Iterator<Item = (u64, u64)> {
        self.0.iter().copied()
    }

    /// The oldest sequence that was committed at `cutoff_ms` or later.
    fn first_since(&self, cutoff_ms: u64) -> Option<u64> {
        let first = self.0.partition_point(|(_, at_ms)| *at_ms < cutoff_ms);
        self.0.get(first).map(|(sequence, _)| *sequence)
    }
}

impl Branch {
    /// The oldest sequence to keep once the branch has a checkpoint of this sequence, committed at this time.
    pub(super) fn retained_after(&self, policy: Option<&PolicyInForce>, sequence: u64, now_ms: u64) -> u64 {
        let Policy { keep_last, keep_for_ms, .. } = with_defaults(policy.map(|set| &set.policy));
        let by_count = (sequence + 1).saturating_sub(keep_last);
        let cutoff_ms = now_ms.saturating_sub(keep_for_ms);
        let by_age = match policy {
            _ if keep_for_ms == 0 => sequence,
            // What was there when the policy was set counts as committed then.
            Some(policy) if policy.set_at_ms >= cutoff_ms => 1,
            _ => {
                let since = self.past.as_deref().and_then(|past| past.times.first_since(cutoff_ms));
                since.unwrap_or(sequence)
            }
        };
        self.retained_from().max(by_count.min(by_age))
    }
}

impl Pipeline {
    /// Whether retention or a savepoint keeps the checkpoint that the fact at `lsn` gave the branch.
    pub(super) fn is_retained(&self, name: &str, branch: &Branch, sequence: u64, lsn: Lsn) -> bool {
        // The savepoints of an import come after what they name.
        self.is_importing()
            || branch.head.lsn == lsn
            || (sequence >= branch.retained_from() && !branch.is_abandoned(sequence, lsn))
            || self.savepoints.pin(name, lsn)
    }

    /// How long who did what and why is kept.
    pub fn audit_for_ms(&self) -> u64 {
        with_defaults(self.policy().map(|set| &set.policy)).audit_for_ms
    }
}

impl State {
    /// Judges a new policy, its shape already checked. `None`: it is in force already.
    pub fn evaluate_policy(&self, request: &SetPolicyRequest) -> Result<Option<PolicySet>, Refusal> {
        self.check_cluster(request.cluster.as_ref())?;
        // It would stand in the way of the file's own.
        self.check_ready(&request.pipeline)?;
        let in_force = self.pipeline(&request.pipeline).and_then(Pipeline::policy);
        if in_force.is_some_and(|set| Some(set.policy) == request.policy) {
            return Ok(None);
        }
        Ok(Some(PolicySet {
            pipeline: request.pipeline.clone(),
            policy: request.policy,
            actor: request.actor.clone(),
            reason: request.reason.clone(),
        }))
    }

    /// Whether the checkpoint of this sequence that the fact at `lsn` gave the branch is kept: it is the head, or no
    /// policy has retired it and no rewind abandoned it, or it has a savepoint.
    pub fn is_retained(&self, pipeline: &str, branch: &str, sequence: u64, lsn: Lsn) -> bool {
        let known = self.pipeline(pipeline).and_then(|pipeline| Some((pipeline, pipeline.branches.get(branch)?)));
        known.is_some_and(|(pipeline, found)| pipeline.is_retained(branch, found, sequence, lsn))
    }

    /// The oldest sequence that the branch keeps by its policy; 0 if there is no such branch, or nothing in it.
    pub fn oldest_retained(&self, pipeline: &str, branch: &str) -> u64 {
        let branch = self.branch(pipeline, branch).filter(|branch| branch.head().is_some());
        branch.map_or(0, Branch::retained_from)
    }

    /// Sequences of the branch that are kept and below `before` (0: all), newest first, at most so many.
    pub fn kept_before(&self, pipeline: &str, branch: &str, before: u64, limit: usize) -> Result<Vec<u64>, Refusal> {
        let (of, known) = self.known_branch(pipeline, branch)?;
        let newest = if before == 0 { known.head.sequence } else { known.head.sequence.min(before - 1) };
        let mut kept: Vec<u64> = (known.retained_from()..=newest).rev().take(limit).collect();
        let is_older = |savepoint: &Savepoint| {
            let Savepoint { sequence, lsn, .. } = *savepoint;
            savepoint.branch == branch
                && sequence <= newest
                && sequence < known.retained_from()
                && !known.is_abandoned(sequence, lsn)
        };
        let mut older: Vec<u64> =
            of.savepoints.iter().filter(|(_, it)| is_older(it)).map(|(_, it)| it.sequence).collect();
        older.sort_unstable_by(|a, b| b.cmp(a));
        older.dedup();
        kept.extend(older);
        kept.truncate(limit);
        Ok(kept)
    }

    /// Where those of these checkpoints are of which the state can tell; and those that are retained too, but only history
    /// knows where. The others are not retained, or were never made.
    pub fn whereabouts(&self, pipeline: &str, branch: &str, sequences: &[u64]) -> (Vec<(u64, Lsn)>, Vec<u64>) {
        let (mut at, mut in_history) = (Vec::new(), Vec::new());
        let Ok((of, known)) = self.known_branch(pipeline, branch) else { return (at, in_history) };
        let oldest = known.retained_from();
        let mut named = BTreeMap::new();
        if sequences.iter().any(|sequence| *sequence < oldest) {
            let is_here = |it: &&Savepoint| it.branch == branch && !known.is_abandoned(it.sequence, it.lsn);
            let savepoints = of.savepoints.iter().map(|(_, savepoint)| savepoint).filter(is_here);
            named.extend(savepoints.map(|savepoint| (savepoint.sequence, savepoint.lsn)));
        }
        for sequence in sequences.iter().copied().filter(|it| (1..=known.head.sequence).contains(it)) {
            if sequence == known.head.sequence {
                at.push((sequence, known.head.lsn));
            } else if sequence >= oldest {
                in_history.push(sequence);
            } else {
                at.extend(named.get(&sequence).map(|lsn| (sequence, *lsn)));
            }
        }
        (at, in_history)
    }

    /// Checks that the checkpoint of this sequence is there and kept. `found` is where history says that it is.
    pub fn check_place(&self, pipeline: &str, branch: &str, sequence: u64, found: Option<Lsn>) -> Result<Lsn, Refusal> {
        let (of, known) = self.known_branch(pipeline, branch)?;
        let head = known.head.sequence;
        if sequence == 0 || sequence > head {
            let message = format!(
                "branch '{branch}' of '{pipeline}' has no checkpoint {sequence}: its head is {head}; 'fencepost \
                 pipelines' and 'fencepost branches' list what is there"
            );
            return Err(Refusal::new(Reason::StateMissing, message).with("actual_head", head));
        }
        let found = found.filter(|lsn| !known.is_abandoned(sequence, *lsn));
        match found {
            Some(lsn) if of.is_retained(branch, known, sequence, lsn) => Ok(lsn),
            None if sequence >= known.retained_from() => {
                let message = format!(
                    "the history of branch '{branch}' of '{pipeline}' changed while checkpoint {sequence} was looked \
                     for: ask again"
                );
                Err(Refusal::new(Reason::HeadMismatch, message).with("branch", branch).with("actual_head", head))
            }
            _ => {
                let oldest = known.retained_from();
                let message = format!(
                    "checkpoint {sequence} of branch '{branch}' of '{pipeline}' is not kept any more: the oldest that \
                     is kept is {oldest}"
                );
                Err(Refusal::new(Reason::Compacted, message).with("branch", branch).with("oldest", oldest))
            }
        }
    }
}
