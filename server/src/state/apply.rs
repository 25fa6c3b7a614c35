//! Taking facts in.
//!
//! One path for whole and for compacted logs. Of a compacted log the facts that a fact builds on may be gone; what does
//! not hold then is not compared, and everything else is.

use std::collections::BTreeMap;

use bytes::Bytes;
use fencepost::log::v1::fact::Kind;
use fencepost::log::v1::{
    ClusterCreated, Committed, CommittedBranch, Fact, Forked, GenerationStarted, Imported, LeaseGranted, LeaseReleased,
    PolicySet, Rewound, SavepointCreated, SavepointDeleted,
};
use fencepost::{Lsn, Token};

use super::dead::DeadLetters;
use super::lease::Standing;
use super::merge::{self, Merged};
use super::pipeline::Origin;
use super::retention::Times;
use super::scope::scope_of;
use super::{
    Branch, COUNT_END, ClosedBarrier, Digest, Grant, Head, Inconsistent, Pipeline, PolicyInForce, Savepoint, State,
    entry,
};

/// What may be missing of the log before a fact.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Before {
    /// Nothing.
    Whole,
    /// What compaction found to be of no more use.
    Compacted,
}

impl State {
    /// Takes one fact in. The facts come in the order of the log, each once.
    pub fn apply(&mut self, lsn: Lsn, fact: &Fact) -> Result<(), Inconsistent> {
        self.take_in(lsn, fact, Before::Whole)
    }

    /// Takes one fact of a compacted log in: one that is not after the place that its compaction was judged at. Facts
    /// that it builds on may be gone.
    pub fn apply_compacted(&mut self, lsn: Lsn, fact: &Fact) -> Result<(), Inconsistent> {
        self.take_in(lsn, fact, Before::Compacted)
    }

    /// All facts up to `lsn` were taken in, also those that compaction removed.
    pub fn reached(&mut self, lsn: Lsn) {
        self.applied = self.applied.max(lsn);
    }

    fn take_in(&mut self, lsn: Lsn, fact: &Fact, before: Before) -> Result<(), Inconsistent> {
        let inconsistent = |contradiction: String| Inconsistent { lsn, contradiction };
        if lsn <= self.applied {
            return Err(inconsistent(format!("it comes after the fact at {}", self.applied)));
        }
        let at_ms = fact.at_ms;
        let is_whole = before == Before::Whole;
        let outcome = match &fact.kind {
            Some(Kind::ClusterCreated(created)) => self.apply_cluster_created(created),
            Some(Kind::LeaseGranted(granted)) => self.apply_lease_granted(lsn, at_ms, granted, before),
            Some(Kind::LeaseReleased(released)) => self.apply_lease_released(released, before),
            Some(Kind::Committed(committed)) => self.apply_committed(lsn, at_ms, committed, before),
            Some(Kind::PolicySet(set)) => {
                self.apply_policy_set(lsn, at_ms, set);
                Ok(())
            }
            Some(Kind::SavepointCreated(created)) => self.apply_savepoint_created(lsn, at_ms, created, before),
            Some(Kind::SavepointDeleted(deleted)) => self.apply_savepoint_deleted(deleted, before),
            Some(Kind::Rewound(rewound)) => self.apply_rewound(lsn, at_ms, rewound, before),
            Some(Kind::Forked(forked)) => self.apply_forked(lsn, at_ms, forked, before),
            Some(Kind::GenerationStarted(started)) => self.apply_generation_started(lsn, started),
            Some(Kind::ImportStarted(started)) => self.apply_import_started(started),
            Some(Kind::Imported(imported)) => self.apply_imported(lsn, imported),
            Some(Kind::ImportFinished(finished)) => self.apply_import_finished(finished),
            Some(Kind::Staged(staged)) => self.apply_staged(lsn, at_ms, staged, is_whole),
            Some(Kind::StagedDiscarded(discarded)) => self.apply_staged_discarded(discarded, is_whole),
            Some(Kind::BarrierOpened(opened)) => self.apply_barrier_opened(lsn, at_ms, opened, is_whole),
            Some(Kind::BarrierArrived(arrived)) => self.apply_barrier_arrived(lsn, arrived, is_whole),
            Some(Kind::BarrierAborted(aborted)) => self.apply_barrier_aborted(lsn, at_ms, aborted, is_whole),
            Some(Kind::DeadLettersDiscarded(discarded)) => self.apply_dead_letters_discarded(discarded, is_whole),
            Some(Kind::SchemaDeclared(declared)) => self.apply_schema_declared(declared, is_whole),
            Some(Kind::GroupFenced(fenced)) => self.apply_group_fenced(lsn, fenced),
            None => Err("it is of a kind that this version does not know".to_owned()),
        };
        outcome.map_err(inconsistent)?;
        self.applied = lsn;
        Ok(())
    }

    fn apply_cluster_created(&mut self, created: &ClusterCreated) -> Result<(), String> {
        if !self.cluster_id.is_empty() {
            return Err(format!("cluster {} is already there", self.cluster_id));
        }
        check_generation(created.generation)?;
        self.cluster_id.clone_from(&created.cluster_id);
        self.generation = created.generation;
        Ok(())
    }

    fn apply_lease_granted(
        &mut self,
        lsn: Lsn,
        at_ms: u64,
        granted: &LeaseGranted,
        before: Before,
    ) -> Result<(), String> {
        let token = self.mint(granted.token)?;
        let (branch, shared) = made(&mut self.pipelines, &mut self.branches, &granted.pipeline, &granted.branch);
        let head = branch.head.sequence;
        if head != granted.resumed_sequence && before == Before::Whole {
            return Err(format!("it resumes from sequence {}, but the head is {head}", granted.resumed_sequence));
        }
        let newly_held = u64::from(branch.lease().is_none());
        branch.take_grant(Grant::from_fact(lsn, at_ms, granted));
        *shared.leases += newly_held;
        self.leases += newly_held;
        self.last_token = token;
        Ok(())
    }

    fn apply_lease_released(&mut self, released: &LeaseReleased, before: Before) -> Result<(), String> {
        let token = Token::from_u64(released.token);
        let pipeline = self.pipelines.get_mut(&*released.pipeline);
        let held = pipeline.and_then(|pipeline| {
            let grant = pipeline.branches.get_mut(&*released.branch)?.grant.as_deref_mut()?;
            (grant.token == token && grant.is_in_force()).then_some((&mut pipeline.leases, grant))
        });
        match held {
            Some((leases, grant)) => {
                grant.standing = Standing::Released;
                *leases -= 1;
                self.leases -= 1;
                Ok(())
            }
            None if before == Before::Compacted => Ok(()),
            None => Err(format!("it releases token {token}, which is not current")),
        }
    }

    fn apply_committed(&mut self, lsn: Lsn, at_ms: u64, committed: &Committed, before: Before) -> Result<(), String> {
        for moved in &committed.branches {
            self.apply_moved(lsn, at_ms, committed, moved, before)?;
        }
        let pipeline = entry(&mut self.pipelines, &committed.pipeline);
        let is_whole = before == Before::Whole;
        pipeline.dead.close(committed.branches.iter().flat_map(|moved| &moved.replayed), "replays", is_whole)?;
        // What was forked before it was exported comes without a commit.
        if !committed.commit_id.is_empty() {
            let digest = Digest::try_from(&committed.digest[..]).map_err(|_| "its digest is not 16 bytes")?;
            let number = pipeline.number_of(committed, before)?;
            pipeline.window.remember(&committed.commit_id, digest, lsn, number);
            pipeline.last_committed_at_ms = at_ms;
        }
        if let (Some(merge), Some(moved)) = (&committed.merge, committed.branches.first()) {
            let (branch, output_digest) = (moved.branch.as_str().into(), merge.output_digest[..].into());
            let merged = Merged { lsn, branch, sequence: moved.sequence, output_digest };
            pipeline.merges.insert(merge::identity(merge), merged);
        }
        if let Some(barrier) = &committed.barrier {
            let closed = ClosedBarrier { lsn, at_ms, is_committed: true };
            self.close_barrier(&committed.pipeline, barrier, closed, is_whole)?;
        }
        Ok(())
    }

    /// Takes in that a commit moved one of its branches.
    fn apply_moved(
        &mut self,
        lsn: Lsn,
        at_ms: u64,
        committed: &Committed,
        moved: &CommittedBranch,
        before: Before,
    ) -> Result<(), String> {
        check_sequence(&moved.branch, moved.sequence)?;
        let (branch, shared) = made(&mut self.pipelines, &mut self.branches, &committed.pipeline, &moved.branch);
        let staged = branch.take_staged(shared.dead);
        if before == Before::Whole {
            let token = Token::from_u64(moved.token);
            // A worker that has arrived at a barrier may have released its branch since.
            let is_current =
                |grant: &&Grant| grant.token == token && (grant.is_in_force() || committed.barrier.is_some());
            if !branch.last_grant().is_some_and(|grant| is_current(&grant)) {
                return Err(format!("it moves branch '{}' with token {token}, which is not current", moved.branch));
            }
            let head = branch.head.sequence;
            if moved.sequence != head + 1 {
                return Err(format!("it moves branch '{}' from {head} to {}", moved.branch, moved.sequence));
            }
            if staged.as_ref().map_or(0, |staged| staged.lsn.as_u64()) != moved.staged_lsn {
                return Err(format!("it moves branch '{}' to other than what it has staged", moved.branch));
            }
        }
        branch.move_to(shared.policy, head(moved.sequence, lsn, at_ms), moved.retained_from);
        let staged = staged.filter(|staged| staged.lsn.as_u64() == moved.staged_lsn);
        if shared.has_schemas {
            let said = moved.checkpoint.as_ref().and_then(|checkpoint| checkpoint.integrity.as_ref());
            let here = said.map_or(&[][..], |it| &it.schema_fingerprint);
            let schema = staged.as_ref().map_or(here, |staged| &staged.schema);
            if branch.past.as_deref().map_or(&[][..], |past| &past.schema) != schema {
                branch.change_past(|past| past.schema = Bytes::copy_from_slice(schema));
            }
        }
        let scope = staged.as_ref().map_or_else(|| scope_of(moved.checkpoint.as_ref()), |staged| staged.scope);
        branch.describe_head(scope, Lsn::from_u64(moved.staged_lsn));
        match staged {
            Some(staged) => shared.dead.add(staged.lsn, &moved.branch, moved.sequence, staged.dead_letters),
            None => shared.dead.add(lsn, &moved.branch, moved.sequence, moved.dead_letters.len() as u32),
        }
        Ok(())
    }

    fn apply_policy_set(&mut self, lsn: Lsn, at_ms: u64, set: &PolicySet) {
        let pipeline = entry(&mut self.pipelines, &set.pipeline);
        let policy = set.policy.unwrap_or_default();
        pipeline.policy = Some(Box::new(PolicyInForce { policy, lsn, set_at_ms: at_ms }));
        for branch in pipeline.branches.values_mut().filter(|branch| branch.past.is_some()) {
            branch.change_past(|past| past.times = Times::default());
        }
    }

    fn apply_savepoint_created(
        &mut self,
        lsn: Lsn,
        at_ms: u64,
        created: &SavepointCreated,
        before: Before,
    ) -> Result<(), String> {
        let SavepointCreated { name, branch, sequence, .. } = created;
        check_sequence(branch, *sequence)?;
        let pipeline = entry(&mut self.pipelines, &created.pipeline);
        let checkpoint = Lsn::from_u64(created.checkpoint_lsn);
        if before == Before::Whole {
            if pipeline.savepoints.get(name).is_some() {
                return Err(format!("savepoint '{name}' is already there"));
            }
            let is_kept = |known: &Branch| {
                *sequence <= known.head.sequence && pipeline.is_retained(branch, known, *sequence, checkpoint)
            };
            if !pipeline.branches.get(&**branch).is_some_and(is_kept) {
                return Err(format!("it names checkpoint {sequence} of branch '{branch}', which is not kept"));
            }
        }
        let savepoint = Savepoint {
            branch: branch.clone(),
            sequence: *sequence,
            lsn: checkpoint,
            committed_at_ms: created.checkpoint_committed_at_ms,
            created: lsn,
            created_at_ms: at_ms,
        };
        pipeline.savepoints.insert(name, savepoint);
        Ok(())
    }

    fn apply_savepoint_deleted(&mut self, deleted: &SavepointDeleted, before: Before) -> Result<(), String> {
        let SavepointDeleted { name, created_lsn, .. } = deleted;
        let pipeline = entry(&mut self.pipelines, &deleted.pipeline);
        let known = pipeline.savepoints.get(name);
        match known.filter(|known| known.created.as_u64() == *created_lsn) {
            Some(_) => drop(pipeline.savepoints.remove(name)),
            None if before == Before::Compacted => {}
            None => return Err(format!("it deletes savepoint '{name}', which is not there")),
        }
        Ok(())
    }

    fn apply_rewound(&mut self, lsn: Lsn, at_ms: u64, rewound: &Rewound, before: Before) -> Result<(), String> {
        let token = self.mint(rewound.token)?;
        let Rewound { to_sequence, from_sequence, to_committed_at_ms, retained_from, .. } = *rewound;
        if to_sequence > 0 {
            check_sequence(&rewound.branch, to_sequence)?;
        }
        let (branch, shared) = made(&mut self.pipelines, &mut self.branches, &rewound.pipeline, &rewound.branch);
        if before == Before::Whole && (branch.head.sequence != from_sequence || to_sequence > from_sequence) {
            let actual = branch.head.sequence;
            return Err(format!("it sets back from {from_sequence} to {to_sequence}, but the head is {actual}"));
        }
        let newly_free = u64::from(branch.lease().is_some());
        branch.take_grant(Grant::of_rewind(lsn, at_ms, rewound));
        branch.take_staged(shared.dead);
        shared.dead.abandon(&rewound.branch, to_sequence);
        branch.head = head(to_sequence, Lsn::from_u64(rewound.to_lsn), to_committed_at_ms);
        branch.retained_from = retained_from;
        branch.describe_head(None, Lsn::ZERO);
        branch.change_past(|past| {
            past.rewinds.push(lsn, to_sequence);
            past.schema = Bytes::new();
            past.times.cut_after(to_sequence);
            if to_sequence > 0 && shared.policy.is_some_and(PolicyInForce::keeps_by_age) {
                past.times.push(to_sequence, to_committed_at_ms);
            }
            past.times.retain_from(retained_from);
        });
        *shared.last_rewound = lsn;
        *shared.leases -= newly_free;
        self.leases -= newly_free;
        self.last_token = token;
        Ok(())
    }

    fn apply_forked(&mut self, lsn: Lsn, at_ms: u64, forked: &Forked, before: Before) -> Result<(), String> {
        let (branch, shared) = made(&mut self.pipelines, &mut self.branches, &forked.pipeline, &forked.branch);
        if before == Before::Whole && *branch != Branch::default() {
            return Err(format!("it makes branch '{}', which is already there", forked.branch));
        }
        branch.move_to(shared.policy, head(1, lsn, at_ms), 1);
        branch.describe_head(scope_of(forked.checkpoint.as_ref()), Lsn::ZERO);
        Ok(())
    }

    fn apply_generation_started(&mut self, lsn: Lsn, started: &GenerationStarted) -> Result<(), String> {
        if started.generation <= self.generation {
            return Err(format!("it starts generation {} after {}", started.generation, self.generation));
        }
        check_generation(started.generation)?;
        self.generation = started.generation;
        self.generations.push(lsn);
        self.leases = 0;
        for pipeline in self.pipelines.values_mut() {
            pipeline.leases = 0;
            pipeline.branches.values_mut().for_each(Branch::leave_barrier);
            let grants = pipeline.branches.values_mut().filter_map(|branch| branch.grant.as_deref_mut());
            // Also those that a fence of the pipeline ended before: its fact may be gone from a compacted log.
            for grant in grants.filter(|grant| matches!(grant.standing, Standing::InForce | Standing::Fenced)) {
                grant.standing = Standing::Ended;
            }
        }
        Ok(())
    }

    fn apply_imported(&mut self, lsn: Lsn, imported: &Imported) -> Result<(), String> {
        let commit = imported.commit.as_ref().ok_or("it has no commit")?;
        let importing = self.pipelines.get(&*commit.pipeline).is_some_and(|pipeline| pipeline.origin != Origin::Here);
        if !importing {
            return Err(format!("pipeline '{}' is not being imported", commit.pipeline));
        }
        let head = |name: &str| self.branch(&commit.pipeline, name).map_or(0, |branch| branch.head.sequence);
        if let Some(moved) = commit.branches.iter().find(|moved| moved.sequence <= head(&moved.branch)) {
            let (name, sequence) = (&moved.branch, moved.sequence);
            return Err(format!("it moves branch '{name}' from {} to {sequence}", head(name)));
        }
        // As in a compacted log: only what was retained came along, and its tokens were minted elsewhere.
        self.apply_committed(lsn, imported.committed_at_ms, commit, Before::Compacted)
    }

    /// The branch, made if need be, and the dead letters of its pipeline.
    pub(super) fn branch_mut(&mut self, pipeline: &str, branch: &str) -> (&mut Branch, &mut DeadLetters) {
        let (branch, shared) = made(&mut self.pipelines, &mut self.branches, pipeline, branch);
        (branch, shared.dead)
    }

    /// The next token, compared with those before and with the generation.
    pub(super) fn mint(&self, token: u64) -> Result<Token, String> {
        let token = Token::from_u64(token);
        if token <= self.last_token {
            return Err(format!("it grants token {token} after token {}", self.last_token));
        }
        // No token could follow one of a later generation.
        if token.generation() != self.generation {
            return Err(format!("it grants token {token} in generation {}", self.generation));
        }
        Ok(token)
    }
}

impl Pipeline {
    /// Which commit of the pipeline this is. Facts of old logs do not say; they are counted, and never compacted away.
    fn number_of(&self, committed: &Committed, before: Before) -> Result<u64, String> {
        let newest = self.window.newest();
        let number = if committed.number == 0 { newest + 1 } else { committed.number };
        let follows = number == newest + 1 || (before == Before::Compacted && number > newest);
        if follows && number < COUNT_END {
            return Ok(number);
        }
        Err(format!("it is commit {number} of '{}' after commit {newest}", committed.pipeline))
    }
}

impl Branch {
    /// Takes a checkpoint in as the new head. `retained_from` 0: as before.
    fn move_to(&mut self, policy: Option<&PolicyInForce>, head: Head, retained_from: u64) {
        self.head = head;
        if retained_from > 0 {
            self.retained_from = retained_from;
        }
        if self.past.is_some() || policy.is_some_and(PolicyInForce::keeps_by_age) {
            let retained_from = self.retained_from;
            self.change_past(|past| {
                if policy.is_some_and(PolicyInForce::keeps_by_age) {
                    past.times.push(head.sequence, head.committed_at_ms);
                    past.times.retain_from(retained_from);
                }
            });
        }
    }
}

/// What a branch shares with the others of its pipeline.
struct Shared<'a> {
    policy: Option<&'a PolicyInForce>,
    leases: &'a mut u64,
    last_rewound: &'a mut Lsn,
    dead: &'a mut DeadLetters,
    has_schemas: bool,
}

/// The branch, made if need be.
fn made<'a>(
    pipelines: &'a mut BTreeMap<Box<str>, Pipeline>,
    branches: &mut u64,
    pipeline: &str,
    branch: &str,
) -> (&'a mut Branch, Shared<'a>) {
    let Pipeline { branches: of_pipeline, leases, last_rewound, policy, dead, schemas, .. } =
        entry(pipelines, pipeline);
    if !of_pipeline.contains_key(branch) {
        *branches += 1;
    }
    let shared = Shared { policy: policy.as_deref(), leases, last_rewound, dead, has_schemas: !schemas.is_empty() };
    (entry(of_pipeline, branch), shared)
}

/// A checkpoint has a sequence that another one can follow.
fn check_sequence(branch: &str, sequence: u64) -> Result<(), String> {
    if (1..COUNT_END).contains(&sequence) {
        return Ok(());
    }
    Err(format!("it gives a checkpoint of branch '{branch}' the sequence {sequence}, which none can have"))
}

/// Tokens have 16 bits for the generation.
fn check_generation(generation: u64) -> Result<(), String> {
    if Token::new(generation, 1).is_some() {
        return Ok(());
    }
    Err(format!("it starts generation {generation}, which no token has room for"))
}

fn head(sequence: u64, lsn: Lsn, committed_at_ms: u64) -> Head {
    Head { sequence, lsn, committed_at_ms }
}
