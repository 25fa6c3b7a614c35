//! What was measured of each branch since the server started: workers that were lost, how long it took until the next one
//! had committed, what was refused.
//!
//! In memory, because it is for people who look at a server that runs; whoever wants to keep it asks in time. What a commit
//! pays for it is a few bytes copied, and a look-up only while some branch has lost its worker and not yet recovered.

use std::collections::HashMap;
use std::time::Duration;

use fencepost::log::v1::fact::Kind;
use fencepost::log::v1::{Committed, LeaseGranted};
use fencepost::v1::{BranchHealth, CommitRequest};
use fencepost::{Reason, Token};

use crate::clock::Monotonic;
use crate::error::Refusal;
use crate::state::State;

/// Branches that are measured. Those that come later are not, until the server is started again: the memory stays bounded,
/// and no branch shows a part of what happened to it.
const BRANCHES_MAX: usize = if cfg!(test) { 4 } else { 10_000 };

#[derive(Debug, Default)]
pub(super) struct Health {
    /// By pipeline and branch.
    branches: HashMap<Box<str>, HashMap<Box<str>, Measured>>,
    count: usize,
    /// Branches whose worker was lost, by the token of its successor, which has not committed yet.
    recovering: HashMap<Token, Recovery>,
    /// Whom the commit in hand is about. The branch is empty if there are several.
    asked: (String, String),
}

#[derive(Debug, Default)]
struct Measured {
    health: BranchHealth,
    /// The branch is recovering, under this token.
    successor: Option<Token>,
}

#[derive(Debug)]
struct Recovery {
    pipeline: Box<str>,
    branch: Box<str>,
    /// When the lost worker was last heard.
    lost: Monotonic,
}

impl Health {
    /// What was measured of the branch, if anything.
    pub(super) fn of(&self, pipeline: &str, branch: &str) -> Option<&BranchHealth> {
        self.branches.get(pipeline)?.get(branch).map(|measured| &measured.health)
    }

    /// A fact was decided.
    pub(super) fn note(&mut self, kind: &Kind, now: impl FnOnce() -> Monotonic) {
        match kind {
            Kind::LeaseGranted(granted) => self.granted(granted, now()),
            Kind::Committed(committed) if !self.recovering.is_empty() => self.committed(committed, now()),
            Kind::Rewound(rewound) => drop(self.end_recovery(&rewound.pipeline, &rewound.branch)),
            _ => {}
        }
    }

    /// A commit is about to be judged.
    pub(super) fn asks(&mut self, request: &CommitRequest) {
        let (pipeline, branch) = &mut self.asked;
        request.pipeline.clone_into(pipeline);
        branch.clear();
        if let [moved] = &request.branches[..] {
            branch.push_str(&moved.branch);
        }
    }

    /// The commit that was asked for last was refused.
    pub(super) fn refused_commit(&mut self, state: &State, refusal: &Refusal) {
        let (pipeline, branch) = std::mem::take(&mut self.asked);
        let branch = if branch.is_empty() { refusal.detail("branch").unwrap_or_default() } else { &branch };
        self.refused(state, &pipeline, branch, refusal.reason);
    }

    /// A request for the branch was refused. Whoever guesses names fills no memory: only branches that exist are counted.
    pub(super) fn refused(&mut self, state: &State, pipeline: &str, branch: &str, reason: Reason) {
        if state.branch(pipeline, branch).is_none() {
            return;
        }
        if let Some(Measured { health, .. }) = self.measured(pipeline, branch) {
            *health.refusals.entry(reason.to_string()).or_default() += 1;
        }
    }

    fn granted(&mut self, granted: &LeaseGranted, now: Monotonic) {
        let LeaseGranted { pipeline, branch, previous_silent_ms, .. } = granted;
        let before = self.end_recovery(pipeline, branch);
        let Some(measured) = self.measured(pipeline, branch) else { return };
        measured.health.grants += 1;
        measured.health.losses += u64::from(previous_silent_ms.is_some());
        // A successor that was lost, or left, before it had committed has not recovered anything.
        let lost = before.or_else(|| previous_silent_ms.map(|ms| now.minus(Duration::from_millis(ms))));
        let Some(lost) = lost else { return };
        let token = Token::from_u64(granted.token);
        measured.successor = Some(token);
        let (pipeline, branch) = (pipeline.as_str().into(), branch.as_str().into());
        self.recovering.insert(token, Recovery { pipeline, branch, lost });
    }

    /// The branch is not recovering, or not under the same token. Answers when its worker was lost, if it was.
    fn end_recovery(&mut self, pipeline: &str, branch: &str) -> Option<Monotonic> {
        let successor = self.branches.get_mut(pipeline)?.get_mut(branch)?.successor.take()?;
        self.recovering.remove(&successor).map(|recovery| recovery.lost)
    }

    fn committed(&mut self, committed: &Committed, now: Monotonic) {
        for moved in &committed.branches {
            let Some(recovery) = self.recovering.remove(&Token::from_u64(moved.token)) else { continue };
            let took_ms = now.since(recovery.lost).as_millis() as u64;
            if let Some(Measured { health, successor }) = self.measured(&recovery.pipeline, &recovery.branch) {
                *successor = None;
                health.recoveries += 1;
                health.last_recovery_ms = took_ms;
                health.longest_recovery_ms = health.longest_recovery_ms.max(took_ms);
            }
        }
    }

    /// The numbers of the branch, begun if there is room.
    fn measured(&mut self, pipeline: &str, branch: &str) -> Option<&mut Measured> {
        if self.of(pipeline, branch).is_none() {
            if self.count >= BRANCHES_MAX {
                return None;
            }
            self.count += 1;
            self.branches.entry(pipeline.into()).or_default().insert(branch.into(), Measured::default());
        }
        self.branches.get_mut(pipeline)?.get_mut(branch)
    }
}

#[cfg(test)]
mod tests {
    use fencepost::log::v1::{CommittedBranch, Fact, Rewound};
    use fencepost::{LogIndex, Lsn};

    use super::*;

    const PIPELINE: &str = "prod/orders";

    fn at(second: u64) -> Monotonic {
        Monotonic::default().plus(Duration::from_secs(second))
    }

    fn grant(branch: &str, token: u64, previous_token: u64, silent_s: Option<u64>) -> Kind {
        Kind::LeaseGranted(LeaseGranted {
            pipeline: PIPELINE.to_owned(),
            branch: branch.to_owned(),
            token,
            previous_token,
            previous_silent_ms: silent_s.map(|s| s * 1000),
            ..LeaseGranted::default()
        })
    }

    fn commit(token: u64) -> Kind {
        let branches = vec![CommittedBranch { token, ..CommittedBranch::default() }];
        Kind::Committed(Committed { pipeline: PIPELINE.to_owned(), branches, ..Committed::default() })
    }

    fn recoveries(health: &Health) -> (u64, u64, u64) {
        let found = health.of(PIPELINE, "main").unwrap();
        (found.recoveries, found.last_recovery_ms, found.longest_recovery_ms)
    }

    #[test]
    fn a_recovery_lasts_from_when_the_lost_worker_was_last_heard_to_the_first_commit_of_its_successor() {
        let mut health = Health::default();
        health.note(&grant("main", 1, 0, None), || at(0));
        health.note(&commit(1), || at(10));
        assert_eq!(recoveries(&health), (0, 0, 0), "nobody was lost");
        health.note(&grant("main", 2, 1, Some(30)), || at(100));
        assert_eq!(recoveries(&health), (0, 0, 0), "it has not committed yet");
        health.note(&commit(2), || at(105));
        health.note(&commit(2), || at(200));
        assert_eq!(recoveries(&health), (1, 35_000, 35_000));
        health.note(&grant("main", 3, 2, Some(1)), || at(300));
        health.note(&commit(3), || at(301));
        assert_eq!(recoveries(&health), (2, 2_000, 35_000));
        let found = health.of(PIPELINE, "main").unwrap();
        assert_eq!((found.grants, found.losses), (3, 2));
    }

    #[test]
    fn a_successor_that_is_lost_too_has_recovered_nothing() {
        let mut health = Health::default();
        health.note(&grant("main", 2, 1, Some(30)), || at(100));
        health.note(&grant("main", 3, 2, Some(30)), || at(200));
        // This one gave the branch back at once.
        health.note(&grant("main", 4, 3, None), || at(210));
        health.note(&commit(4), || at(220));
        assert_eq!(recoveries(&health), (1, 150_000, 150_000));
        let found = health.of(PIPELINE, "main").unwrap();
        assert_eq!((found.grants, found.losses), (3, 2));
        assert!(health.recovering.is_empty());
    }

    #[test]
    fn a_rewind_ends_what_was_to_be_recovered() {
        let mut health = Health::default();
        health.note(&grant("main", 2, 1, Some(30)), || at(100));
        let (pipeline, branch) = (PIPELINE.to_owned(), "main".to_owned());
        // Nobody had it any more.
        let rewound = Rewound { pipeline, branch, token: 3, ..Rewound::default() };
        health.note(&Kind::Rewound(rewound), || at(150));
        health.note(&grant("main", 4, 0, None), || at(200));
        health.note(&commit(4), || at(220));
        assert_eq!(recoveries(&health), (0, 0, 0));
        assert!(health.recovering.is_empty());
    }

    #[test]
    fn beyond_the_bound_branches_are_not_measured_and_cost_nothing() {
        let mut health = Health::default();
        for number in 0..2 * BRANCHES_MAX as u64 {
            health.note(&grant(&format!("branch-{number}"), 10 + number, 1, Some(1)), || at(100));
        }
        assert_eq!((health.count, health.recovering.len()), (BRANCHES_MAX, BRANCHES_MAX));
        assert_eq!(health.of(PIPELINE, &format!("branch-{BRANCHES_MAX}")), None);
    }

    #[test]
    fn refusals_are_counted_by_reason_for_branches_that_exist() {
        let mut state = State::default();
        for (index, branch) in (1..).zip(["main", "other"]) {
            let granted = LeaseGranted {
                pipeline: PIPELINE.to_owned(),
                branch: branch.to_owned(),
                token: index,
                ..LeaseGranted::default()
            };
            let fact = Fact { at_ms: 1, kind: Some(Kind::LeaseGranted(granted)) };
            state.apply(Lsn::new(LogIndex(index), 0), &fact).unwrap();
        }
        let mut health = Health::default();
        let asked = |branches: &[&str]| CommitRequest {
            pipeline: PIPELINE.to_owned(),
            branches: branches
                .iter()
                .map(|name| fencepost::v1::BranchCommit { branch: (*name).to_owned(), ..Default::default() })
                .collect(),
            ..CommitRequest::default()
        };
        let refuse = |health: &mut Health, branches: &[&str], named: Option<&str>| {
            health.asks(&asked(branches));
            let refusal = Refusal::new(Reason::Fenced, "no");
            let refusal = named.into_iter().fold(refusal, |refusal, name| refusal.with("branch", name));
            health.refused_commit(&state, &refusal);
        };
        refuse(&mut health, &["main"], None);
        refuse(&mut health, &["main", "other"], Some("other"));
        refuse(&mut health, &["main", "other"], None);
        refuse(&mut health, &["unknown"], None);
        // Nothing is about the commit before.
        health.refused_commit(&state, &Refusal::new(Reason::SessionPoisoned, "no"));
        health.refused(&state, PIPELINE, "main", Reason::LeaseHeld);
        health.refused(&state, PIPELINE, "main", Reason::LeaseHeld);
        let of = |branch: &str| {
            let mut counts: Vec<_> = health.of(PIPELINE, branch)?.refusals.clone().into_iter().collect();
            counts.sort();
            Some(counts)
        };
        assert_eq!(of("main"), Some(vec![("FENCED".to_owned(), 1), ("LEASE_HELD".to_owned(), 2)]));
        assert_eq!(of("other"), Some(vec![("FENCED".to_owned(), 1)]));
        assert_eq!(of("unknown"), None);
    }
}
