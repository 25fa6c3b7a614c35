//! Histories of commits, rewinds, forks, savepoints, policies and generations in every order that proptest finds, with
//! compaction of any part of the log at any time: what is left makes the same state, and every checkpoint that must be
//! readable is.

mod letters;
mod parallel;

use std::collections::{BTreeMap, BTreeSet};
use std::ops::Range;

use bytes::Bytes;
use fencepost::Payload;
use fencepost::log::v1::StateRecord;
use fencepost::v1::{
    CreateSavepointRequest, DeleteSavepointRequest, Fingerprint, ForkRequest, Policy, RewindRequest, SetPolicyRequest,
    fork_request, rewind_request,
};
use proptest::prelude::*;
use prost::Message as _;

use super::*;
use crate::state::rewind::Rewinds;
use crate::state::{Keep, Place, SavepointVerdict, StateLoader};

const BRANCHES: [&str; 3] = ["ewr", "jfk", "lga"];
const PIPELINES: [&str; 2] = [PIPELINE, "prod/replays"];

/// Log time from one fact to the next.
const FACT_MS: u64 = 1 << 16;

#[derive(Clone, Debug)]
enum Step {
    /// So many commits in a row of one branch, or of two.
    Commit {
        branch: usize,
        with: Option<usize>,
        times: u64,
    },
    /// An id that was used before, with what comes next.
    UseIdAgain {
        branch: usize,
        which: usize,
    },
    Take {
        branch: usize,
    },
    Release {
        branch: usize,
    },
    /// `to` of 100 of the way back to the start.
    Rewind {
        branch: usize,
        to: u64,
    },
    RewindToSavepoint {
        which: usize,
    },
    Savepoint {
        branch: usize,
        to: u64,
        name: usize,
    },
    DeleteSavepoint {
        name: usize,
    },
    Fork {
        branch: usize,
        to: u64,
        pipeline: usize,
    },
    Policy {
        keep_last: u64,
        keep_facts: u64,
        audit_facts: u64,
    },
    Generation,
    /// What has to do with dead letters, schemas and fences.
    Letters(letters::Step),
    /// What has to do with staged checkpoints, barriers and merges.
    Parallel(parallel::Step),
    /// Compacts the part of the log between these hundredths of it.
    Compact {
        from: usize,
        to: usize,
    },
}

fn step() -> impl Strategy<Value = Step> {
    let branch = 0..BRANCHES.len() + 2;
    let to = 0..=100_u64;
    prop_oneof![
        8 => (branch.clone(), proptest::option::weighted(0.3, branch.clone()), 1..12_u64)
            .prop_map(|(branch, with, times)| Step::Commit { branch, with, times }),
        1 => (branch.clone(), 40..90_u64).prop_map(|(branch, times)| Step::Commit { branch, with: None, times }),
        2 => (branch.clone(), any::<usize>()).prop_map(|(branch, which)| Step::UseIdAgain { branch, which }),
        3 => branch.clone().prop_map(|branch| Step::Take { branch }),
        1 => branch.clone().prop_map(|branch| Step::Release { branch }),
        4 => (branch.clone(), to.clone()).prop_map(|(branch, to)| Step::Rewind { branch, to }),
        2 => any::<usize>().prop_map(|which| Step::RewindToSavepoint { which }),
        3 => (branch.clone(), to.clone(), 0..6_usize)
            .prop_map(|(branch, to, name)| Step::Savepoint { branch, to, name }),
        2 => (0..6_usize).prop_map(|name| Step::DeleteSavepoint { name }),
        1 => (branch, to, 0..PIPELINES.len()).prop_map(|(branch, to, pipeline)| Step::Fork { branch, to, pipeline }),
        2 => (0..12_u64, prop_oneof![Just(0), 1..30_u64], 1..30_u64)
            .prop_map(|(keep_last, keep_facts, audit_facts)| Step::Policy { keep_last, keep_facts, audit_facts }),
        1 => Just(Step::Generation),
        8 => letters::step().prop_map(Step::Letters),
        16 => parallel::step().prop_map(Step::Parallel),
        3 => (0..100_usize, 0..=100_usize).prop_map(|(from, to)| Step::Compact { from, to }),
    ]
}

/// A checkpoint that the branch can be set back to.
#[derive(Clone, Copy, Debug)]
struct Past {
    sequence: u64,
    place: Place,
    /// No policy has ever retired it.
    is_kept: bool,
}

#[derive(Default)]
struct History {
    store: Store,
    /// What compaction left.
    kept: Vec<(Lsn, Fact)>,
    /// Where the newest compaction of a fact was judged, also of one that is gone.
    judged: BTreeMap<Lsn, Lsn>,
    /// What is not abandoned of each branch, oldest first.
    past: BTreeMap<(String, String), Vec<Past>>,
    /// Ids that were used.
    ids: Vec<String>,
    generation: u64,
    /// What the next commit has beside its checkpoints.
    load: letters::Load,
    /// What should be staged.
    staged: BTreeMap<(String, String), parallel::Expected>,
}

impl History {
    fn new() -> History {
        let mut history = History { store: Store::new(), generation: 1, ..History::default() };
        history.kept = history.store.facts.clone();
        history
    }

    fn take(&mut self, step: Step) {
        match step {
            Step::Commit { branch, with, times } => {
                for _ in 0..times {
                    let id = format!("id-{}", self.ids.len());
                    self.commit(branch, with, &id);
                }
            }
            Step::UseIdAgain { branch, which } => {
                if let Some(id) = self.ids.get(which % self.ids.len().max(1)).cloned() {
                    self.commit(branch, None, &id);
                }
            }
            Step::Take { branch } => drop(self.grant(branch)),
            Step::Release { branch } => {
                let (pipeline, name) = self.name(branch);
                let token = self.store.state.branch(&pipeline, &name).and_then(Branch::lease).map(|it| it.token);
                let lease = LeaseRef { pipeline, branch: name, token: token.map_or(0, Token::as_u64) };
                if let Ok(Some(released)) = self.store.state.evaluate_release(None, lease) {
                    self.record(Kind::LeaseReleased(released));
                }
            }
            Step::Rewind { branch, to } => self.rewind(branch, to),
            Step::RewindToSavepoint { which } => self.rewind_to_savepoint(which),
            Step::Savepoint { branch, to, name } => self.savepoint(branch, to, name),
            Step::DeleteSavepoint { name } => {
                let request = DeleteSavepointRequest {
                    pipeline: PIPELINE.to_owned(),
                    name: format!("savepoint-{name}"),
                    ..DeleteSavepointRequest::default()
                };
                if let Ok(deleted) = self.store.state.evaluate_savepoint_delete(&request) {
                    self.record(Kind::SavepointDeleted(deleted));
                }
            }
            Step::Fork { branch, to, pipeline } => self.fork(branch, to, PIPELINES[pipeline]),
            Step::Policy { keep_last, keep_facts, audit_facts } => {
                for pipeline in PIPELINES {
                    let (keep_for_ms, audit_for_ms) = (keep_facts * FACT_MS, audit_facts * FACT_MS);
                    let policy = Some(Policy { keep_last, keep_for_ms, audit_for_ms, ..Policy::default() });
                    let request = SetPolicyRequest { pipeline: pipeline.to_owned(), policy, ..Default::default() };
                    if let Some(set) = self.store.state.evaluate_policy(&request).unwrap() {
                        self.record(Kind::PolicySet(set));
                    }
                }
            }
            Step::Generation => {
                self.generation += 1;
                let kept = self.store.state.applied();
                let started = self.store.state.evaluate_generation(self.generation, kept, "ops", "restored").unwrap();
                self.record(Kind::GenerationStarted(started));
                assert_eq!(self.store.state.counts().2, 0, "nobody holds anything of an earlier generation");
            }
            Step::Letters(step) => self.take_letters(step),
            Step::Parallel(step) => self.take_parallel(step),
            Step::Compact { from, to } => self.compact(from, to),
        }
    }

    fn record(&mut self, kind: Kind) -> Place {
        let lsn = self.store.record(kind.clone());
        self.expect(lsn, &kind);
        let (_, fact) = self.store.facts.last().unwrap().clone();
        let committed_at_ms = fact.at_ms;
        self.kept.push((lsn, fact));
        Place { lsn, committed_at_ms }
    }

    fn now(&self) -> u64 {
        1_000 + (self.store.facts.len() as u64 + 1) * FACT_MS
    }

    /// A branch by number: the first ones are made by leases, the others by forks.
    fn name(&self, branch: usize) -> (String, String) {
        let forks = self.past.keys().filter(|(_, name)| name.starts_with("fork"));
        let fork = branch.checked_sub(BRANCHES.len()).and_then(|nth| forks.into_iter().nth(nth));
        fork.cloned().unwrap_or_else(|| (PIPELINE.to_owned(), BRANCHES[branch % BRANCHES.len()].to_owned()))
    }

    /// What the next checkpoint says that it was made by: one of two scopes, or nothing.
    fn scope(&self) -> Vec<Fingerprint> {
        let number = self.store.facts.len() % 3;
        let fingerprint = || Fingerprint { name: "code".to_owned(), value: number.to_string() };
        (number > 0).then(fingerprint).into_iter().collect()
    }

    fn grant(&mut self, branch: usize) -> Token {
        let (pipeline, name) = self.name(branch);
        let request_id = format!("request-{}", self.store.facts.len());
        let request = ResumeRequest { pipeline, request_id, takeover: Takeover::Force.into(), ..resume(&name, "a") };
        let timing = ResumeTiming { silent: Duration::ZERO, arrived: self.store.state.applied() };
        let verdict = self.store.state.evaluate_resume(&Resume { request }, timing);
        let Ok(ResumeVerdict::Grant(granted)) = verdict else { panic!("force takes any branch: {verdict:?}") };
        let token = Token::from_u64(granted.token);
        self.record(Kind::LeaseGranted(*granted));
        token
    }

    fn commit(&mut self, branch: usize, with: Option<usize>, id: &str) {
        let mut moved = vec![(self.name(branch), branch)];
        moved.extend(with.map(|with| (self.name(with), with)));
        let (pipeline, _) = moved[0].0.clone();
        moved.retain(|((of, _), _)| *of == pipeline);
        moved.dedup_by(|a, b| a.0 == b.0);
        let branches = moved.iter().map(|((_, name), number)| {
            let held = self.store.state.branch(&pipeline, name).and_then(Branch::lease).map(|grant| grant.token);
            let token = held.unwrap_or_else(|| self.grant(*number));
            let head = self.store.state.branch(&pipeline, name).and_then(Branch::head);
            let sequence = head.map_or(0, |head| head.sequence) + 1;
            let state = Bytes::from(format!("{name} {sequence} {}", self.store.facts.len()));
            let checkpoint = Some(Checkpoint { state, scope: self.scope(), ..Checkpoint::default() });
            BranchCommit {
                branch: name.clone(),
                token: token.as_u64(),
                sequence,
                checkpoint,
                ..BranchCommit::default()
            }
        });
        let mut branches: Vec<BranchCommit> = branches.collect();
        std::mem::take(&mut self.load).put_on(&mut branches, &self.store.state, &pipeline);
        let request =
            CommitRequest { pipeline: pipeline.clone(), commit_id: id.to_owned(), branches, ..Default::default() };
        let digest = digest(&format!("{:?}", request.branches));
        let commit = Commit { request: request.clone(), digest, payload_fault: None };
        match self.store.state.evaluate_commit(commit, self.now()) {
            Ok(CommitVerdict::Apply(committed)) => {
                let place = self.record(Kind::Committed(committed));
                let moved = request.branches.into_iter().map(|moved| (moved.branch, moved.sequence));
                self.moved(&pipeline, moved.collect(), place);
                self.ids.push(id.to_owned());
            }
            Ok(CommitVerdict::AlreadyApplied(_)) => panic!("no two commits here have the same content"),
            Err(refusal) if refusal.reason == Reason::CommitIdReused => {}
            Err(refusal) => {
                let is_staged =
                    |moved: &BranchCommit| self.staged.contains_key(&(pipeline.clone(), moved.branch.clone()));
                assert!(refusal.reason == Reason::StagedPending && request.branches.iter().any(is_staged), "{refusal}");
            }
        }
    }

    /// The branches have new heads, which the fact at `place` made.
    fn moved(&mut self, pipeline: &str, moved: Vec<(String, u64)>, place: Place) {
        let keep_last = self.keep_last(pipeline);
        for (branch, sequence) in moved {
            let past = self.past.entry((pipeline.to_owned(), branch)).or_default();
            past.push(Past { sequence, place, is_kept: true });
            for old in past.iter_mut().filter(|old| old.sequence + keep_last <= sequence) {
                old.is_kept = false;
            }
        }
    }

    fn keep_last(&self, pipeline: &str) -> u64 {
        let policy = self.store.state.pipeline(pipeline).and_then(|pipeline| pipeline.policy());
        policy.map(|set| set.policy.keep_last).filter(|keep| *keep > 0).unwrap_or(10)
    }

    /// One of the checkpoints of a branch.
    fn pick(&self, branch: usize, to: u64) -> Option<((String, String), Past)> {
        let of = self.name(branch);
        let past = self.past.get(&of).filter(|past| !past.is_empty())?;
        let picked = past[(past.len() - 1) * to as usize / 100];
        Some((of, picked))
    }

    fn rewind(&mut self, branch: usize, to: u64) {
        let Some(((pipeline, branch), picked)) = self.pick(branch, to) else { return };
        let sequence = if to == 0 { 0 } else { picked.sequence };
        let head = self.store.state.branch(&pipeline, &branch).and_then(Branch::head);
        let request = RewindRequest {
            pipeline: pipeline.clone(),
            branch: branch.clone(),
            to: Some(rewind_request::To::Sequence(sequence)),
            expected_head: head.map_or(0, |head| head.sequence),
            actor: "ops".to_owned(),
            reason: "again".to_owned(),
            ..RewindRequest::default()
        };
        match self.store.state.evaluate_rewind(&request, Some(picked.place)) {
            Ok(rewound) => {
                self.record(Kind::Rewound(rewound));
                let past = self.past.get_mut(&(pipeline, branch)).unwrap();
                past.retain(|past| past.sequence <= sequence);
            }
            Err(refusal) => {
                assert_eq!(refusal.reason, Reason::Compacted, "{refusal}");
                assert!(!picked.is_kept, "{picked:?} is kept by the policy: {refusal}");
            }
        }
    }

    fn rewind_to_savepoint(&mut self, which: usize) {
        let Some(pipeline) = self.store.state.pipeline(PIPELINE) else { return };
        let savepoints: Vec<_> = pipeline.savepoints_after("").collect();
        let Some((name, savepoint)) = savepoints.get(which % savepoints.len().max(1)).copied() else { return };
        let (name, savepoint) = (name.to_owned(), savepoint.clone());
        let of = (PIPELINE.to_owned(), savepoint.branch.clone());
        let is_of_past = self.past[&of].iter().any(|past| past.place.lsn == savepoint.lsn);
        let request = RewindRequest {
            pipeline: of.0.clone(),
            branch: of.1.clone(),
            to: Some(rewind_request::To::Savepoint(name)),
            expected_head: self.store.state.branch(&of.0, &of.1).and_then(Branch::head).map_or(0, |head| head.sequence),
            ..RewindRequest::default()
        };
        match self.store.state.evaluate_rewind(&request, None) {
            Ok(rewound) => {
                assert!(is_of_past, "a branch is set back to its own past only");
                self.record(Kind::Rewound(rewound));
                self.past.get_mut(&of).unwrap().retain(|past| past.sequence <= savepoint.sequence);
                let head = self.past.get_mut(&of).unwrap().last_mut().unwrap();
                head.is_kept = true;
            }
            Err(refusal) => assert!(!is_of_past, "{refusal}"),
        }
    }

    fn savepoint(&mut self, branch: usize, to: u64, name: usize) {
        let Some(((pipeline, branch), picked)) = self.pick(branch, to) else { return };
        let request = CreateSavepointRequest {
            pipeline,
            name: format!("savepoint-{name}"),
            branch,
            sequence: picked.sequence,
            ..CreateSavepointRequest::default()
        };
        match self.store.state.evaluate_savepoint_create(&request, Some(picked.place)) {
            Ok(SavepointVerdict::Create(created)) => drop(self.record(Kind::SavepointCreated(created))),
            Ok(SavepointVerdict::Repeat(known)) => assert_eq!(known.lsn, picked.place.lsn),
            Err(refusal) if refusal.reason == Reason::Compacted => assert!(!picked.is_kept, "{picked:?}: {refusal}"),
            Err(refusal) => assert_eq!(refusal.reason, Reason::Exists, "{refusal}"),
        }
    }

    fn fork(&mut self, branch: usize, to: u64, pipeline: &str) {
        let Some(((source_pipeline, source_branch), picked)) = self.pick(branch, to) else { return };
        let name = format!("fork-{}", self.past.len());
        let request = ForkRequest {
            source_pipeline,
            source_branch,
            from: Some(fork_request::From::Sequence(picked.sequence)),
            pipeline: pipeline.to_owned(),
            branch: name.clone(),
            ..ForkRequest::default()
        };
        let state = Bytes::from(format!("copy {name}"));
        let checkpoint = Checkpoint { state, scope: self.scope(), ..Checkpoint::default() };
        match self.store.state.evaluate_fork(&request, picked.sequence, picked.place.lsn, checkpoint) {
            Ok(forked) => {
                let place = self.record(Kind::Forked(forked));
                let first = Past { sequence: 1, place, is_kept: true };
                self.past.insert((pipeline.to_owned(), name), vec![first]);
            }
            Err(refusal) => {
                assert_eq!(refusal.reason, Reason::Compacted, "{refusal}");
                assert!(!picked.is_kept, "{picked:?}: {refusal}");
            }
        }
    }

    fn compact(&mut self, from: usize, to: usize) {
        let facts = &self.store.facts;
        let bound = |hundredth: usize| facts.get(facts.len() * hundredth / 100).map_or(Lsn::MAX, |(lsn, _)| *lsn);
        self.compact_facts(bound(from)..bound(to));
    }

    fn compact_facts(&mut self, range: Range<Lsn>) {
        let facts = &self.store.facts;
        let (state, now_ms) = (&self.store.state, facts.last().unwrap().1.at_ms);
        let there: BTreeSet<Lsn> = self.kept.iter().map(|(lsn, _)| *lsn).collect();
        let is_gone = |created: Lsn| !there.contains(&created);
        let kept = self.kept.drain(..).filter_map(|(lsn, fact)| {
            if !range.contains(&lsn) {
                return Some((lsn, fact));
            }
            match state.keep(lsn, &fact, now_ms, &is_gone) {
                Keep::Whole => Some((lsn, fact)),
                Keep::Reduced(reduced) => Some((lsn, *reduced)),
                Keep::Nothing => None,
            }
        });
        let kept = kept.collect();
        self.kept = kept;
        for (lsn, _) in facts.iter().filter(|(lsn, _)| range.contains(lsn)) {
            self.judged.insert(*lsn, state.applied());
        }
        self.check();
    }

    /// The state made from what compaction left.
    fn replayed(&self) -> State {
        let judged_at = self.judged.values().max().copied().unwrap_or_default();
        let mut state = State::default();
        let (compacted, whole): (Vec<_>, Vec<_>) = self.kept.iter().partition(|(lsn, _)| *lsn <= judged_at);
        for (lsn, fact) in compacted {
            state.apply_compacted(*lsn, fact).expect("what is left of facts that fitted still fits");
        }
        state.reached(judged_at);
        for (lsn, fact) in whole {
            state.apply(*lsn, fact).expect("facts that fitted once fit again");
        }
        state
    }

    fn check(&self) {
        let state = &self.store.state;
        assert_eq!(self.replayed(), *state, "what compaction leaves makes the same state");
        let payload = |facts: &[(Lsn, Fact)], lsn: Lsn, branch: &str| {
            let (_, fact) = facts.iter().find(|(at, _)| *at == lsn)?;
            match fact.checkpoints().find(|made| made.branch == branch)?.payload {
                Payload::Here(checkpoint) => Some(checkpoint.clone()),
                Payload::Staged(staged) => facts.iter().find(|(at, _)| *at == staged)?.1.payloads().next().cloned(),
                Payload::Gone => None,
            }
        };
        let assert_readable = |branch: &str, lsn: Lsn, why: &str| {
            let written = payload(&self.store.facts, lsn, branch);
            assert!(written.is_some() && payload(&self.kept, lsn, branch) == written, "{branch} at {lsn}: {why}");
        };
        for ((pipeline, name), past) in &self.past {
            for past in past.iter().filter(|past| past.is_kept) {
                assert!(state.is_retained(pipeline, name, past.sequence, past.place.lsn), "{name} {past:?}");
                assert_readable(name, past.place.lsn, "kept by the policy");
            }
            let head = state.branch(pipeline, name).and_then(Branch::head);
            assert_eq!(head.map(|head| head.sequence), past.last().map(|past| past.sequence));
            if let Some(head) = head {
                assert_readable(name, head.lsn, "the head");
                let branch = state.branch(pipeline, name).unwrap();
                let said = payload(&self.store.facts, head.lsn, name).unwrap().scope;
                let is_set_back = branch.rewinds().and_then(Rewinds::last).is_some_and(|rewound| head.lsn < rewound);
                assert_eq!(branch.is_head_of_scope(&said), !is_set_back, "{name}: {said:?}");
            }
        }
        self.check_letters();
        self.check_staged();
        for (_, savepoint) in state.pipeline(PIPELINE).into_iter().flat_map(|pipeline| pipeline.savepoints_after("")) {
            assert_readable(&savepoint.branch, savepoint.lsn, "a savepoint");
        }
    }
}

fn loaded(state: &State) -> State {
    let mut loader = StateLoader::default();
    for record in state.records() {
        let record = StateRecord::decode(Bytes::from(record.encode_to_vec())).unwrap();
        loader.push(record).unwrap();
    }
    loader.finish().unwrap()
}

proptest! {
    #![proptest_config(ProptestConfig { cases: 300, failure_persistence: None, ..ProptestConfig::default() })]

    #[test]
    fn what_compaction_leaves_makes_the_same_state_and_every_retained_checkpoint_stays(
        steps in proptest::collection::vec(step(), 1..80)
    ) {
        let mut history = History::new();
        for step in steps {
            history.take(step);
        }
        history.compact(0, 100);
        prop_assert!(history.store.replayed() == history.store.state, "the same facts give the same state");
        prop_assert!(loaded(&history.store.state) == history.store.state, "its records give the same state");
    }
}

#[test]
fn compaction_leaves_what_the_policy_keeps_and_little_else() {
    let mut history = History::new();
    history.take(Step::Policy { keep_last: 5, keep_facts: 0, audit_facts: 1 });
    history.take(Step::Commit { branch: 0, with: None, times: 20 });
    history.take(Step::Savepoint { branch: 0, to: 100, name: 0 });
    history.take(Step::Commit { branch: 0, with: None, times: 3 * WINDOW_COMMITS });
    history.compact(0, 100);
    let count = |is: fn(&Fact) -> bool| history.kept.iter().filter(|(_, fact)| is(fact)).count() as u64;
    let has_payload = |fact: &Fact| fact.payloads().next().is_some();
    assert_eq!(count(has_payload), 5 + 1, "the newest five, and the savepoint's");
    assert_eq!(count(|fact| fact.commit().is_some()), WINDOW_COMMITS + 1, "the ids that are remembered");
    assert_eq!(history.store.state.oldest_retained(PIPELINE, "ewr"), 20 + 3 * WINDOW_COMMITS - 4);
    history.take(Step::DeleteSavepoint { name: 0 });
    history.take(Step::Take { branch: 0 });
    history.compact(0, 100);
    history.compact(0, 100);
    let count = |is: fn(&Fact) -> bool| history.kept.iter().filter(|(_, fact)| is(fact)).count();
    assert_eq!(count(has_payload), 5);
    assert_eq!(count(|fact| matches!(fact.kind, Some(Kind::SavepointCreated(_) | Kind::SavepointDeleted(_)))), 0);
}

#[test]
fn records_that_are_not_whole_are_refused() {
    let mut history = History::new();
    for step in [
        Step::Policy { keep_last: 3, keep_facts: 4, audit_facts: 1 },
        Step::Commit { branch: 0, with: Some(1), times: 4 },
        Step::Fork { branch: 0, to: 100, pipeline: 1 },
        Step::Rewind { branch: 0, to: 90 },
        Step::Savepoint { branch: 0, to: 100, name: 1 },
    ] {
        history.take(step);
    }
    let records: Vec<StateRecord> = history.store.state.records().collect();
    let load = |records: &mut dyn Iterator<Item = &StateRecord>| {
        let mut loader = StateLoader::default();
        for record in records {
            loader.push(record.clone())?;
        }
        loader.finish()
    };
    assert_eq!(load(&mut records.iter()).as_ref(), Ok(&history.store.state));
    for missing in 0..records.len() {
        let rest = records.iter().enumerate().filter(|(i, _)| *i != missing).map(|(_, record)| record);
        assert!(load(&mut rest.clone()).is_err(), "without record {missing}: {:?}", records[missing]);
        assert!(load(&mut records[..missing].iter()).is_err(), "only {missing} records");
    }
}
