//! Which facts compaction keeps.
//!
//! A fact is kept while the state that was made from the log still shows it, while anybody can read a checkpoint in it, or
//! while it is young enough to be told who did what and why. What is kept, taken in by [`State::apply_compacted`], makes
//! the same state again. Facts are dropped one by one, in any part of the log and at any time, so each rule holds
//! although older facts that are of no more use either may still be there.

use fencepost::log::v1::fact::Kind;
use fencepost::log::v1::{Committed, Fact, Rewound};
use fencepost::{Lsn, Token};

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
            Kind::Committed(commit) => commit_kept(pipeline, lsn, fact, commit),
            Kind::Imported(imported) => {
                imported.commit.as_ref().map_or(Keep::Whole, |commit| commit_kept(pipeline, lsn, fact, commit))
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
            Kind::ClusterCreated(_) | Kind::GenerationStarted(_) | Kind::ImportStarted(_) | Kind::ImportFinished(_) => {
                Keep::Whole
            }
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

/// A commit goes once none of its checkpoints is retained and its id is forgotten. One that does not say its number is
/// counted, so its shell stays.
fn commit_kept(pipeline: &Pipeline, lsn: Lsn, fact: &Fact, commit: &Committed) -> Keep {
    let is_remembered = || commit.number == 0 && !commit.commit_id.is_empty() || pipeline.window.holds(commit, lsn);
    checkpoints_kept(pipeline, lsn, fact, is_remembered)
}

fn checkpoints_kept(pipeline: &Pipeline, lsn: Lsn, fact: &Fact, is_shell_kept: impl FnOnce() -> bool) -> Keep {
    let is_retained = |name: &str, sequence| {
        pipeline.branches.get(name).is_some_and(|branch| pipeline.is_retained(name, branch, sequence, lsn))
    };
    let verdicts: Vec<(bool, bool)> = fact
        .checkpoints()
        .map(|(name, sequence, checkpoint)| (checkpoint.is_some(), is_retained(name, sequence)))
        .collect();
    let is_any_retained = verdicts.iter().any(|(_, retained)| *retained);
    if !is_any_retained && !is_shell_kept() {
        return Keep::Nothing;
    }
    if verdicts.iter().all(|(is_there, retained)| *retained || !is_there) {
        return Keep::Whole;
    }
    let mut reduced = fact.clone();
    for (checkpoint, (_, retained)) in reduced.checkpoints_mut().zip(&verdicts) {
        if !retained {
            *checkpoint = None;
        }
    }
    Keep::Reduced(Box::new(reduced))
}
