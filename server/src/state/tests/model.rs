//! Workers that resume, commit, lose answers, retry, stall and come back as zombies, in every order that proptest finds,
//! against the plainest description of what may happen.

use std::collections::{BTreeMap, BTreeSet};

use proptest::prelude::*;

use super::*;

const BRANCHES: [&str; 3] = ["ewr", "jfk", "lga"];
const WORKERS: usize = 4;

#[derive(Clone, Debug)]
enum Step {
    /// A worker asks for a branch. `silent_s`: for how long its holder was not heard.
    Resume {
        worker: usize,
        branch: usize,
        takeover: Takeover,
        silent_s: u64,
        is_retry: bool,
    },
    /// A worker commits what it believes comes next, under the token it believes in.
    Commit {
        worker: usize,
        branch: usize,
        is_answer_lost: bool,
    },
    /// A worker commits two branches at once.
    CommitBoth {
        worker: usize,
        first: usize,
        second: usize,
    },
    /// An old request arrives once more, from the network or from a retry.
    Duplicate {
        which: usize,
    },
    Release {
        worker: usize,
        branch: usize,
    },
    /// The server restarts from its log.
    Restart,
}

fn step() -> impl Strategy<Value = Step> {
    let (worker, branch) = (0..WORKERS, 0..BRANCHES.len());
    let takeover = prop_oneof![Just(Takeover::Wait), Just(Takeover::SameHolder), Just(Takeover::Force)];
    prop_oneof![
        3 => (worker.clone(), branch.clone(), takeover, prop_oneof![Just(0_u64), Just(40)], any::<bool>()).prop_map(
            |(worker, branch, takeover, silent_s, is_retry)| Step::Resume { worker, branch, takeover, silent_s, is_retry }
        ),
        6 => (worker.clone(), branch.clone(), any::<bool>()).prop_map(
            |(worker, branch, is_answer_lost)| Step::Commit { worker, branch, is_answer_lost }
        ),
        2 => (worker.clone(), branch.clone(), branch.clone()).prop_map(
            |(worker, first, second)| Step::CommitBoth { worker, first, second }
        ),
        3 => (0..1000_usize).prop_map(|which| Step::Duplicate { which }),
        1 => (worker, branch).prop_map(|(worker, branch)| Step::Release { worker, branch }),
        1 => Just(Step::Restart),
    ]
}

/// What a worker believes about a branch: its token, and the next sequence.
type Belief = (Token, u64);

#[derive(Default)]
struct Model {
    store: Store,
    beliefs: BTreeMap<(usize, usize), Belief>,
    /// Every commit ever sent.
    sent: Vec<Commit>,
    /// Ids that were acknowledged as applied, once each.
    applied: BTreeMap<String, Lsn>,
    tokens: BTreeSet<Token>,
    /// The newest token of each branch, and whether it was released.
    current: BTreeMap<usize, (Token, bool)>,
    heads: BTreeMap<usize, u64>,
}

impl Model {
    fn take(&mut self, step: Step) {
        match step {
            Step::Resume { worker, branch, takeover, silent_s, is_retry } => {
                self.resume(worker, branch, takeover, Duration::from_secs(silent_s), is_retry);
            }
            Step::Commit { worker, branch, is_answer_lost } => self.commit(worker, &[branch], is_answer_lost),
            Step::CommitBoth { worker, first, second } if first != second => {
                self.commit(worker, &[first, second], false);
            }
            Step::CommitBoth { .. } => {}
            Step::Duplicate { which } => {
                if let Some(commit) = self.sent.get(which % self.sent.len().max(1)).cloned() {
                    self.send(commit);
                }
            }
            Step::Release { worker, branch } => self.release(worker, branch),
            Step::Restart => self.store.state = self.store.replayed(),
        }
        self.check();
    }

    fn resume(&mut self, worker: usize, branch: usize, takeover: Takeover, silent: Duration, is_retry: bool) {
        let round = self.tokens.len() - usize::from(is_retry && !self.tokens.is_empty());
        let request = ResumeRequest {
            request_id: format!("{worker}/{branch}/{round}"),
            takeover: takeover.into(),
            ..resume(BRANCHES[branch], &format!("holder-{}", worker / 2))
        };
        let before = self.store.facts.len();
        let Ok(token) = self.store.resume(request, silent) else { return };
        if self.store.facts.len() > before {
            assert!(self.tokens.last().is_none_or(|last| *last < token), "tokens only grow");
            assert!(self.tokens.insert(token), "no token is granted twice");
            self.current.insert(branch, (token, false));
        } else {
            assert_eq!(self.current[&branch], (token, false), "a repeat gives the token in force");
        }
        let head = self.heads.get(&branch).copied().unwrap_or(0);
        self.beliefs.insert((worker, branch), (token, head + 1));
    }

    fn commit(&mut self, worker: usize, branches: &[usize], is_answer_lost: bool) {
        let beliefs: Option<Vec<(&str, Token, u64)>> = branches
            .iter()
            .map(|branch| self.beliefs.get(&(worker, *branch)).map(|(token, next)| (BRANCHES[*branch], *token, *next)))
            .collect();
        let Some(beliefs) = beliefs else { return };
        let commit = commit(&format!("{worker}/{}", self.sent.len()), &beliefs);
        self.sent.push(commit.clone());
        let is_ok = self.send(commit);
        if is_ok && !is_answer_lost {
            for branch in branches {
                self.beliefs.get_mut(&(worker, *branch)).expect("it was believed in above").1 += 1;
            }
        }
    }

    fn send(&mut self, commit: Commit) -> bool {
        let may_apply = commit.request.branches.iter().all(|moved| {
            let branch = BRANCHES.iter().position(|name| *name == moved.branch).unwrap();
            let head = self.heads.get(&branch).copied().unwrap_or(0);
            self.current.get(&branch) == Some(&(Token::from_u64(moved.token), false)) && moved.sequence == head + 1
        });
        let id = commit.request.commit_id.clone();
        let first = self.applied.get(&id).copied();
        match (self.store.commit(commit.clone()), first) {
            (Ok((lsn, true)), Some(first)) => assert_eq!(lsn, first, "a repeat gives the first result"),
            (Ok((lsn, false)), None) => {
                assert!(may_apply, "only the current token moves the head, by one");
                self.applied.insert(id, lsn);
                for moved in &commit.request.branches {
                    let branch = BRANCHES.iter().position(|name| *name == moved.branch).unwrap();
                    self.heads.insert(branch, moved.sequence);
                }
            }
            (Err(refusal), None) => assert!(!may_apply, "a good commit was refused: {refusal}"),
            (outcome, first) => panic!("{outcome:?} after {first:?}"),
        }
        self.applied.contains_key(&commit.request.commit_id)
    }

    fn release(&mut self, worker: usize, branch: usize) {
        let Some((token, _)) = self.beliefs.get(&(worker, branch)).copied() else { return };
        let is_current = self.current.get(&branch).is_some_and(|(current, _)| *current == token);
        assert_eq!(self.store.release(BRANCHES[branch], token).is_ok(), is_current);
        if is_current {
            self.current.insert(branch, (token, true));
        }
    }

    /// What must hold after every step.
    fn check(&self) {
        for (branch, name) in BRANCHES.iter().enumerate() {
            assert_eq!(self.store.head(name), self.heads.get(&branch).copied().unwrap_or(0));
        }
        for (id, lsn) in &self.applied {
            let resolved = self.store.state.resolve_commit(None, PIPELINE, id, None);
            assert_eq!(resolved, Ok(Resolution::Applied(*lsn)), "an acknowledged commit is never lost");
        }
    }
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 400, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn any_order_of_workers_deaths_and_retries_keeps_the_promises(
        steps in proptest::collection::vec(step(), 1..120)
    ) {
        let mut model = Model { store: Store::new(), ..Model::default() };
        for step in steps {
            model.take(step);
        }
        let replayed = model.store.replayed();
        prop_assert!(replayed == model.store.state, "the same facts give the same state");
    }
}
