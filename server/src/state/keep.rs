//! Which facts compaction keeps.
//!
//! A fact is kept while the state that was made from the log still shows it, while anybody can read a checkpoint in it, or
//! while it is young enough to be told who did what and why. What is kept, taken in by [`State::apply_compacted`], makes
//! the same state again. Facts are dropped one by one, in any part of the log and at any time, so each rule holds
//! although older facts that are of no more use either may still be there.

use fencepost::log::v1::fact::Kind;
use fencepost::log::v1::{Committed, CommittedBranch, Fact, Rewound, Staged};
use fencepost::v1::DeadLetterId;
use fencepost::{Lsn, Payload, Token};

use super::lease::Standing;
use super::{Branch, Pipeline, State};

/// What compaction does with a fact.
#[derive(Clone, Debug, PartialEq)]
pub enum Keep {
    /// It stays as it is.
    Whole,
    /// It stays without the checkpoints that are not retained any more.
    Reduced(Box<Fact>),
    /// It goes.
    Nothing,
}

impl Keep {
    fn only_if(is_kept: bool) -> Keep {
        if is_kept { Keep::Whole } else { Keep::Nothing }
    }
}

impl State {
    /// Says what compaction does with the fact at `lsn`, which this state has taken in.
    ///
    /// `now_ms`, a time in the log, says how old it is. `is_gone` says of an older fact whether compaction has removed it,
    /// so that it never comes back.
    pub fn keep(&self, lsn: Lsn, fact: &Fact, now_ms: u64, is_gone: &dyn Fn(Lsn) -> bool) -> Keep {
        let pipeline = fact.pipeline().and_then(|name| self.pipeline(name));
        let (Some(kind), Some(pipeline)) = (&fact.kind, pipeline) else { return Keep::Whole };
        let branch = |name: &str| pipeline.branches.get(name);
        let is_young = fact.at_ms.saturating_add(pipeline.audit_for_ms()) > now_ms;
        match kind {
            Kind::Committed(commit) => commit_kept(pipeline, lsn, fact, commit, is_gone),
            Kind::Imported(imported) => {
                imported.commit.as_ref().map_or(Keep::Whole, |commit| commit_kept(pipeline, lsn, fact, commit, is_gone))
            }
            Kind::Forked(_) => checkpoints_kept(pipeline, lsn, fact, || is_young),
            Kind::LeaseGranted(granted) => {
                let token = Token::from_u64(granted.token);
                Keep::only_if(is_young || branch(&granted.branch).is_some_and(|branch| branch.remembers(token)))
            }
            Kind::LeaseReleased(released) => {
                let last = branch(&released.branch).and_then(Branch::last_grant);
                let ends = |standing, token: Token| standing == Standing::Released && token.as_u64() == released.token;
                Keep::only_if(last.is_some_and(|grant| ends(grant.standing, grant.token)))
            }
            Kind::Rewound(rewound) => {
                let is_shown = branch(&rewound.branch).is_some_and(|branch| branch.shows(lsn, rewound));
                Keep::only_if(is_young || is_shown)
            }
            Kind::PolicySet(_) => Keep::only_if(is_young || pipeline.policy().is_some_and(|set| set.lsn == lsn)),
            Kind::SavepointCreated(created) => {
                let is_there = pipeline.savepoint(&created.name).is_some_and(|savepoint| savepoint.created == lsn);
                Keep::only_if(is_young || is_there)
            }
            Kind::SavepointDeleted(deleted) => Keep::only_if(is_young || !is_gone(Lsn::from_u64(deleted.created_lsn))),
            Kind::Staged(staged) => staged_kept(pipeline, lsn, staged, fact),
            Kind::StagedDiscarded(discarded) => {
                Keep::only_if(is_young || !is_gone(Lsn::from_u64(discarded.staged_lsn)))
            }
            Kind::BarrierOpened(opened) => {
                let is_open = pipeline.barriers.open(&opened.name).is_some_and(|open| open.opened == lsn);
                Keep::only_if(is_young || is_open)
            }
            Kind::BarrierArrived(arrived) => Keep::only_if(
                branch(&arrived.branch).and_then(Branch::staged).is_some_and(|staged| staged.arrived_at(lsn)),
            ),
            Kind::BarrierAborted(aborted) => {
                let is_left = |staged_lsn| staged_lsn != 0 && !is_gone(Lsn::from_u64(staged_lsn));
                let has_discarded = aborted.participants.iter().any(|it| is_left(it.staged_lsn));
                Keep::only_if(is_young || has_discarded || closing_kept(pipeline, lsn, fact, is_gone))
            }
            Kind::DeadLettersDiscarded(discarded) => {
                Keep::only_if(is_young || is_any_left(discarded.letters.iter(), is_gone))
            }
            Kind::GroupFenced(_) => Keep::only_if(is_young || pipeline.last_fenced == lsn),
            Kind::ClusterCreated(_)
            | Kind::GenerationStarted(_)
            | Kind::ImportStarted(_)
            | Kind::ImportFinished(_)
            | Kind::SchemaDeclared(_) => Keep::Whole,
        }
    }
}

impl Branch {
    fn remembers(&self, token: Token) -> bool {
        let newest = self.last_grant().is_some_and(|grant| grant.token == token);
        newest || self.granted_before.iter().any(|(_, before)| *before == token)
    }

    fn shows(&self, lsn: Lsn, rewound: &Rewound) -> bool {
        self.rewinds().is_some_and(|rewinds| rewinds.contain(lsn)) || self.remembers(Token::from_u64(rewound.token))
    }
}

/// A commit goes once none of its checkpoints is retained, its id is forgotten, none of its dead letters is open, and nothing
/// is left in the log that it has ended. One that does not say its number is counted, so its shell stays.
fn commit_kept(pipeline: &Pipeline, lsn: Lsn, fact: &Fact, commit: &Committed, is_gone: &dyn Fn(Lsn) -> bool) -> Keep {
    let is_remembered = || {
        commit.number == 0 && !commit.commit_id.is_empty()
            || pipeline.window.holds(commit, lsn)
            || pipeline.merges.made_at(lsn)
            || commit.branches.iter().any(|moved| pipeline.dead.is_any_open(letters_at(lsn, moved)))
            || is_any_left(commit.branches.iter().flat_map(|moved| &moved.replayed), is_gone)
            || commit.barrier.is_some() && closing_kept(pipeline, lsn, fact, is_gone)
    };
    let is_stripped = |moved: &CommittedBranch| {
        !moved.dead_letters.is_empty() && !pipeline.dead.is_any_open(lsn) && moved.staged_lsn == 0
    };
    let kept = checkpoints_kept(pipeline, lsn, fact, is_remembered);
    if kept == Keep::Nothing || !commit.branches.iter().any(is_stripped) {
        return kept;
    }
    let mut reduced = if let Keep::Reduced(reduced) = kept { reduced } else { Box::new(fact.clone()) };
    for moved in reduced.commit_mut().into_iter().flat_map(|commit| &mut commit.branches) {
        moved.handled_dead_letters += std::mem::take(&mut moved.dead_letters).len() as u32;
    }
    Keep::Reduced(reduced)
}

/// Where the dead letters are that came with this checkpoint of the commit at `lsn`.
fn letters_at(lsn: Lsn, moved: &CommittedBranch) -> Lsn {
    if moved.staged_lsn == 0 { lsn } else { Lsn::from_u64(moved.staged_lsn) }
}

/// Whether the fact that has one of these dead letters is still there, so that it would be open again.
fn is_any_left<'a>(mut letters: impl Iterator<Item = &'a DeadLetterId>, is_gone: &dyn Fn(Lsn) -> bool) -> bool {
    letters.any(|letter| !is_gone(Lsn::from_u64(letter.lsn)))
}

/// Whether the end of a barrier is remembered, or its opening is still there, so that it would be open again.
fn closing_kept(pipeline: &Pipeline, lsn: Lsn, fact: &Fact, is_gone: &dyn Fn(Lsn) -> bool) -> bool {
    let opened = fact.barrier().map_or(Lsn::ZERO, |barrier| Lsn::from_u64(barrier.opened_lsn));
    pipeline.barriers.closed.made_at(lsn) || !is_gone(opened)
}

/// What was staged goes once it is neither staged any more nor the retained checkpoint that a commit made of it, and none of
/// its dead letters is open. Whether it was committed or discarded is not known here: if a later checkpoint of the same
/// sequence is retained this one stays as long.
fn staged_kept(pipeline: &Pipeline, lsn: Lsn, staged: &Staged, fact: &Fact) -> Keep {
    let Some(branch) = pipeline.branches.get(&*staged.branch) else { return Keep::Nothing };
    let is_staged = branch.staged().is_some_and(|it| it.lsn == lsn);
    let is_retained = staged.sequence <= branch.head.sequence
        && staged.sequence >= branch.retained_from()
        && !branch.is_abandoned(staged.sequence, lsn);
    let is_needed = is_staged || is_retained || pipeline.savepoints.pin_sequence(&staged.branch, staged.sequence);
    let has_open = pipeline.dead.is_any_open(lsn);
    if !is_needed && !has_open {
        return Keep::Nothing;
    }
    let without_checkpoint = !is_needed && staged.checkpoint.is_some();
    let without_letters = !has_open && !is_staged && !staged.dead_letters.is_empty();
    if !without_checkpoint && !without_letters {
        return Keep::Whole;
    }
    let mut reduced = fact.clone();
    if let Some(Kind::Staged(staged)) = &mut reduced.kind {
        if without_checkpoint {
            staged.checkpoint = None;
        }
        if without_letters {
            staged.handled_dead_letters += std::mem::take(&mut staged.dead_letters).len() as u32;
        }
    }
    Keep::Reduced(Box::new(reduced))
}

fn checkpoints_kept(pipeline: &Pipeline, lsn: Lsn, fact: &Fact, is_shell_kept: impl FnOnce() -> bool) -> Keep {
    let is_retained = |name: &str, sequence| {
        pipeline.branches.get(name).is_some_and(|branch| pipeline.is_retained(name, branch, sequence, lsn))
    };
    // Whether each is there, and retained.
    let verdicts: Vec<(bool, bool)> = fact
        .checkpoints()
        .map(|made| {
            let is_retained = is_retained(made.branch, made.sequence);
            match made.payload {
                // The way to open dead letters stays.
                Payload::Staged(staged) => (true, is_retained || pipeline.dead.is_any_open(staged)),
                payload => (payload.is_there(), is_retained),
            }
        })
        .collect();
    let is_any_retained = verdicts.iter().any(|(_, retained)| *retained);
    if !is_any_retained && !is_shell_kept() {
        return Keep::Nothing;
    }
    if verdicts.iter().all(|(is_there, retained)| *retained || !is_there) {
        return Keep::Whole;
    }
    let mut reduced = fact.clone();
    reduced.take_out(|place| !verdicts[place].1);
    Keep::Reduced(Box::new(reduced))
}
