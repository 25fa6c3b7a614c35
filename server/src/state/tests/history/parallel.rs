//! Staged checkpoints, barriers and merges among all else that happens.

use fencepost::v1::{
    AbortBarrierRequest, ArriveRequest, DeadLetter, DiscardStagedRequest, Merge, MergeInput, OpenBarrierRequest,
    StageRequest,
};

use super::*;
use crate::state::{
    AbortVerdict, ArriveVerdict, Input, MergeCommit, MergeVerdict, OpenBarrier, OpenVerdict, Stage, StageVerdict,
};

/// More than a pipeline remembers once they are closed, so that names come again.
const BARRIERS: usize = 6;

#[derive(Clone, Debug)]
pub(super) enum Step {
    Stage {
        branch: usize,
    },
    /// Commits what is staged, perhaps together with a checkpoint of another branch.
    CommitStaged {
        branch: usize,
        with: Option<usize>,
    },
    Discard {
        branch: usize,
    },
    /// Of the branches whose bits are set. It waits for so many facts, or, at 0, for ever.
    Open {
        name: usize,
        branches: usize,
        facts: u64,
    },
    /// At one of the open ones, with what is staged already or, if nothing is, with something new.
    Arrive {
        branch: usize,
        which: usize,
    },
    Abort {
        which: usize,
    },
    /// The clock is looked at.
    Overdue,
    /// Of checkpoints so many hundredths of the way back to the start.
    Merge {
        branch: usize,
        of: usize,
        to: u64,
        output: u8,
    },
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let branch = 0..BRANCHES.len() + 2;
    let (own, with) = (0..BRANCHES.len(), proptest::option::weighted(0.3, branch.clone()));
    prop_oneof![
        4 => branch.clone().prop_map(|branch| Step::Stage { branch }),
        3 => (branch.clone(), with).prop_map(|(branch, with)| Step::CommitStaged { branch, with }),
        2 => branch.prop_map(|branch| Step::Discard { branch }),
        4 => (0..BARRIERS, 1..1_usize << BRANCHES.len(), prop_oneof![Just(0_u64), 1..40_u64])
            .prop_map(|(name, branches, facts)| Step::Open { name, branches, facts }),
        8 => (own.clone(), any::<usize>()).prop_map(|(branch, which)| Step::Arrive { branch, which }),
        1 => any::<usize>().prop_map(|which| Step::Abort { which }),
        2 => Just(Step::Overdue),
        3 => (own.clone(), own, 0..=100_u64, 0..2_u8)
            .prop_map(|(branch, of, to, output)| Step::Merge { branch, of, to, output }),
    ]
}

/// What a branch should have staged.
#[derive(Clone, Debug, PartialEq)]
pub(super) struct Expected {
    lsn: Lsn,
    barrier: Option<String>,
}

impl History {
    pub(super) fn take_parallel(&mut self, step: Step) {
        match step {
            Step::Stage { branch } => drop(self.stage(branch)),
            Step::CommitStaged { branch, with } => {
                let id = format!("id-{}", self.ids.len());
                self.commit_staged(branch, with, &id);
            }
            Step::Discard { branch } => self.discard(branch),
            Step::Open { name, branches, facts } => self.open_barrier(name, branches, facts),
            Step::Arrive { branch, which } => self.arrive(branch, which),
            Step::Abort { which } => {
                let Some((name, open)) = self.some_open(which) else { return };
                let (pipeline, reason) = (PIPELINE.to_owned(), "no more".to_owned());
                let request = AbortBarrierRequest { pipeline, name, reason, ..Default::default() };
                let Ok(AbortVerdict::Abort(aborted)) = self.store.state.evaluate_abort_barrier(&request) else {
                    panic!("{open:?} can be given up");
                };
                self.record(Kind::BarrierAborted(aborted));
            }
            Step::Overdue => {
                let now = self.now();
                while let Some(aborted) = self.store.state.evaluate_overdue(now) {
                    self.record(Kind::BarrierAborted(aborted));
                }
                let pipeline = self.store.state.pipeline(PIPELINE).into_iter();
                let mut deadlines = pipeline.flat_map(|it| it.open_barriers().map(|(_, open)| open.deadline_ms));
                assert!(deadlines.all(|deadline_ms| deadline_ms == 0 || deadline_ms > now));
            }
            Step::Merge { branch, of, to, output } => self.merge(branch, of, to, output),
        }
    }

    fn token(&mut self, branch: usize) -> Token {
        let (pipeline, name) = self.name(branch);
        let held = self.store.state.branch(&pipeline, &name).and_then(Branch::lease).map(|grant| grant.token);
        held.unwrap_or_else(|| self.grant(branch))
    }

    fn head(&self, pipeline: &str, name: &str) -> u64 {
        self.store.state.branch(pipeline, name).and_then(Branch::head).map_or(0, |head| head.sequence)
    }

    fn staged_id(&self, pipeline: &str, name: &str) -> Option<String> {
        let staged = self.store.state.branch(pipeline, name).and_then(Branch::staged);
        staged.map(|staged| staged.stage_id.to_string())
    }

    /// Stages something, unless something is staged. Answers the id of what is staged then.
    fn stage(&mut self, branch: usize) -> String {
        let token = self.token(branch);
        let (pipeline, name) = self.name(branch);
        let stage_id = format!("stage-{}", self.store.facts.len());
        let sequence = self.head(&pipeline, &name) + 1;
        let state = Bytes::from(format!("{name} {sequence} {stage_id}"));
        let letter = |number| DeadLetter { payload: format!("{stage_id} {number}").into(), ..DeadLetter::default() };
        let request = StageRequest {
            pipeline: pipeline.clone(),
            branch: name.clone(),
            token: token.as_u64(),
            sequence,
            stage_id: stage_id.clone(),
            checkpoint: Some(Checkpoint { state, scope: self.scope(), ..Checkpoint::default() }),
            dead_letters: (0..sequence % 3).map(letter).collect(),
            ..StageRequest::default()
        };
        let stage = Stage { digest: digest(&stage_id), request, payload_fault: None };
        match (self.store.state.evaluate_stage(stage.clone(), self.now()), self.staged_id(&pipeline, &name)) {
            (Ok(StageVerdict::Stage(staged)), None) => {
                let lsn = self.record(Kind::Staged(*staged)).lsn;
                let again = self.store.state.evaluate_stage(stage, self.now());
                assert_eq!(again, Ok(StageVerdict::AlreadyStaged(lsn)));
                stage_id
            }
            (Err(refusal), Some(staged)) => {
                assert_eq!((refusal.reason, refusal.detail("stage_id")), (Reason::StagedPending, Some(&*staged)));
                staged
            }
            (verdict, staged) => panic!("{verdict:?} with {staged:?} staged"),
        }
    }

    fn commit_staged(&mut self, branch: usize, with: Option<usize>, id: &str) {
        let (pipeline, name) = self.name(branch);
        let Some(staged) = self.staged_id(&pipeline, &name) else { return };
        let by_reference = |name: String, token: Token, sequence, staged: String| BranchCommit {
            branch: name,
            token: token.as_u64(),
            sequence,
            staged,
            ..BranchCommit::default()
        };
        let mut branches =
            vec![by_reference(name.clone(), self.token(branch), self.head(&pipeline, &name) + 1, staged)];
        if let Some(with) = with
            && let (of, other) = self.name(with)
            && of == pipeline
            && other != name
        {
            let (token, sequence) = (self.token(with), self.head(&pipeline, &other) + 1);
            let staged = self.staged_id(&pipeline, &other).unwrap_or_default();
            let state = Bytes::from(format!("{other} {sequence} {}", self.store.facts.len()));
            let checkpoint =
                staged.is_empty().then(|| Checkpoint { state, scope: self.scope(), ..Checkpoint::default() });
            branches.push(BranchCommit { checkpoint, ..by_reference(other, token, sequence, staged) });
        }
        let has_arrived = |moved: &BranchCommit| {
            let expected = self.staged.get(&(pipeline.clone(), moved.branch.clone()));
            expected.is_some_and(|expected| expected.barrier.is_some())
        };
        let has_arrived = branches.iter().any(has_arrived);
        let moved: Vec<_> = branches.iter().map(|moved| (moved.branch.clone(), moved.sequence)).collect();
        let digest = digest(&format!("{branches:?}"));
        let request =
            CommitRequest { pipeline: pipeline.clone(), commit_id: id.to_owned(), branches, ..Default::default() };
        match self.store.state.evaluate_commit(Commit { request, digest, payload_fault: None }, self.now()) {
            Ok(CommitVerdict::Apply(committed)) => {
                assert!(!has_arrived, "the barrier commits what has arrived");
                let place = self.record(Kind::Committed(committed));
                self.moved(&pipeline, moved, place);
                self.ids.push(id.to_owned());
            }
            Err(refusal) => assert!(has_arrived && refusal.reason == Reason::StagedPending, "{refusal}"),
            verdict => panic!("{verdict:?}"),
        }
    }

    fn discard(&mut self, branch: usize) {
        let token = self.token(branch).as_u64();
        let (pipeline, branch) = self.name(branch);
        let stage_id = self.staged_id(&pipeline, &branch).unwrap_or_default();
        let request = DiscardStagedRequest { pipeline, branch, token, stage_id, ..Default::default() };
        match self.store.state.evaluate_discard_staged(&request) {
            Ok(discarded) => drop(self.record(Kind::StagedDiscarded(discarded))),
            Err(refusal) => assert!(request.stage_id.is_empty() && refusal.reason == Reason::StateMissing, "{refusal}"),
        }
    }

    fn open_barrier(&mut self, name: usize, branches: usize, facts: u64) {
        let participants = BRANCHES.iter().enumerate().filter(|(bit, _)| branches & (1 << bit) != 0);
        let request = OpenBarrierRequest {
            pipeline: PIPELINE.to_owned(),
            name: format!("barrier-{name}"),
            participants: participants.map(|(_, name)| (*name).to_owned()).collect(),
            timeout_ms: facts * FACT_MS,
            ..OpenBarrierRequest::default()
        };
        match self.store.state.evaluate_open_barrier(&request, self.now()) {
            Ok(OpenVerdict::Open(opened)) => {
                self.record(Kind::BarrierOpened(opened));
                assert_eq!(self.store.state.evaluate_open_barrier(&request, self.now()), Ok(OpenVerdict::Repeat));
            }
            Ok(OpenVerdict::Repeat | OpenVerdict::Closed(_)) => {}
            Err(refusal) => assert_eq!(refusal.reason, Reason::Exists, "{refusal}"),
        }
    }

    /// The newest fact alone.
    fn newest(&self) -> Range<Lsn> {
        let lsn = self.store.state.applied();
        lsn..lsn.next()
    }

    fn some_open(&self, which: usize) -> Option<(String, OpenBarrier)> {
        let pipeline = self.store.state.pipeline(PIPELINE)?;
        let (name, open) = pipeline.open_barriers().nth(which % pipeline.open_barriers().count().max(1))?;
        Some((name.to_owned(), open.clone()))
    }

    fn arrive(&mut self, branch: usize, which: usize) {
        let Some((barrier, open)) = self.some_open(which) else { return };
        let (stage_id, token) = (self.stage(branch), self.token(branch).as_u64());
        let name = BRANCHES[branch].to_owned();
        let of = (PIPELINE.to_owned(), name.clone());
        let before = self.staged[&of].barrier.clone();
        let (pipeline, branch) = of;
        let request = ArriveRequest { pipeline, barrier: barrier.clone(), branch, token, stage_id, cluster: None };
        let others = open.participants.iter().filter(|other| ***other != *name);
        let mut others = others.map(|other| self.staged.get(&(PIPELINE.to_owned(), other.to_string())));
        let is_last = others.all(|other| other.and_then(|it| it.barrier.as_deref()) == Some(&barrier));
        match self.store.state.evaluate_arrive(&request, self.now()) {
            Ok(ArriveVerdict::Arrived(arrived)) => {
                assert!(!is_last && before.is_none());
                self.record(Kind::BarrierArrived(arrived));
                assert_eq!(self.store.state.evaluate_arrive(&request, self.now()), Ok(ArriveVerdict::Repeat));
            }
            Ok(ArriveVerdict::Completed(committed)) => {
                assert!(is_last && before.is_none());
                let moved: Vec<_> = committed.branches.iter().map(|it| (it.branch.clone(), it.sequence)).collect();
                assert!(moved.iter().map(|(name, _)| &**name).eq(open.participants.iter().map(|it| &**it)));
                let place = self.record(Kind::Committed(committed));
                self.moved(PIPELINE, moved, place);
                let late = self.store.state.evaluate_arrive(&request, self.now());
                assert!(matches!(&late, Ok(ArriveVerdict::Late(closed, _)) if closed.lsn == place.lsn), "{late:?}");
            }
            Ok(ArriveVerdict::Repeat) => assert_eq!(before, Some(barrier)),
            Ok(ArriveVerdict::Late(..)) => panic!("it is open"),
            Err(refusal) if refusal.reason == Reason::InvalidField => assert!(!open.awaits(&name), "{refusal}"),
            Err(refusal) if refusal.reason == Reason::BarrierAborted => {
                assert!((1..=self.now()).contains(&open.deadline_ms), "{refusal}");
            }
            Err(refusal) => {
                assert_eq!(refusal.reason, Reason::StagedPending, "{refusal}");
                assert!(before.is_some_and(|before| before != barrier), "{refusal}");
            }
        }
    }

    fn merge(&mut self, branch: usize, of: usize, to: u64, output: u8) {
        let picked = [of, (of + 1) % BRANCHES.len()].map(|input| self.pick(input, to));
        let inputs = picked.into_iter().flatten().map(|((_, branch), Past { sequence, place, .. })| {
            let input = MergeInput { branch, sequence, lsn: place.lsn.as_u64() };
            Input { input, schema: Box::default() }
        });
        let mut inputs: Vec<Input> = inputs.collect();
        inputs.sort_by(|a, b| a.input.branch.cmp(&b.input.branch));
        if inputs.is_empty() {
            return;
        }
        let token = self.token(branch);
        let (pipeline, name) = self.name(branch);
        let sequence = self.head(&pipeline, &name) + 1;
        let id = format!("id-{}", self.ids.len());
        let mut commit = commit(&id, &[(&name, token, sequence)]);
        let checkpoint = commit.request.branches[0].checkpoint.as_mut().unwrap();
        checkpoint.state = Bytes::from(format!("merged {}", self.store.facts.len()));
        let output_digest = Bytes::from(vec![output]);
        let merge = Merge { function: "union".to_owned(), version: "1".to_owned(), output_digest, inputs: Vec::new() };
        let merge = MergeCommit { commit, merge, inputs: Ok(inputs.clone()) };
        match self.store.state.evaluate_merge(merge.clone(), self.now()) {
            Ok(MergeVerdict::Apply(committed)) => {
                let place = self.record(Kind::Committed(*committed));
                self.moved(&pipeline, vec![(name.clone(), sequence)], place);
                self.ids.push(id);
                let mut other = merge;
                "other".clone_into(&mut other.commit.request.commit_id);
                if self.are_kept(&inputs) {
                    let again = self.store.state.evaluate_merge(other, self.now());
                    assert_eq!(again, Ok(MergeVerdict::Already(place.lsn, name.as_str().into(), sequence)));
                }
            }
            Ok(MergeVerdict::Already(lsn, ..)) => {
                assert!(self.past.values().flatten().any(|past| past.place.lsn == lsn), "what stands is not abandoned");
            }
            Err(refusal) => {
                let is_expected = match refusal.reason {
                    Reason::StagedPending => self.staged.contains_key(&(pipeline, name)),
                    Reason::Compacted => !self.are_kept(&inputs),
                    Reason::MergeDiverged => true,
                    _ => false,
                };
                assert!(is_expected, "{refusal}");
            }
        }
    }

    fn are_kept(&self, inputs: &[Input]) -> bool {
        let is_kept =
            |it: &MergeInput| self.store.state.is_retained(PIPELINE, &it.branch, it.sequence, Lsn::from_u64(it.lsn));
        inputs.iter().all(|it| is_kept(&it.input))
    }

    /// What every branch should have staged after this fact, told by the words of semantics.md.
    pub(super) fn expect(&mut self, lsn: Lsn, kind: &Kind) {
        let of = |pipeline: &str, branch: &str| (pipeline.to_owned(), branch.to_owned());
        let leave = |expected: &mut Expected| expected.barrier = None;
        match kind {
            Kind::Staged(staged) => {
                let before = self.staged.insert(of(&staged.pipeline, &staged.branch), Expected { lsn, barrier: None });
                assert_eq!(before, None, "one at a time");
            }
            Kind::StagedDiscarded(it) => drop(self.staged.remove(&of(&it.pipeline, &it.branch))),
            Kind::Rewound(it) => drop(self.staged.remove(&of(&it.pipeline, &it.branch))),
            Kind::Committed(it) => it.branches.iter().for_each(|moved| {
                let staged = self.staged.remove(&of(&it.pipeline, &moved.branch));
                assert_eq!(staged.map_or(0, |staged| staged.lsn.as_u64()), moved.staged_lsn);
            }),
            Kind::BarrierArrived(it) => {
                let barrier = it.barrier.as_ref().map(|barrier| barrier.name.clone());
                self.staged.get_mut(&of(&it.pipeline, &it.branch)).expect("it is staged").barrier = barrier;
            }
            Kind::BarrierAborted(it) => {
                let name = it.barrier.as_ref().map(|barrier| barrier.name.clone());
                self.staged.retain(|(pipeline, _), staged| *pipeline != it.pipeline || staged.barrier != name);
            }
            Kind::LeaseGranted(it) => {
                self.staged.get_mut(&of(&it.pipeline, &it.branch)).into_iter().for_each(leave);
            }
            Kind::GenerationStarted(_) => self.staged.values_mut().for_each(leave),
            Kind::GroupFenced(it) => {
                self.staged.iter_mut().filter(|((of, _), _)| *of == it.pipeline).for_each(|(_, staged)| leave(staged));
            }
            _ => {}
        }
    }

    /// What must be staged is, and can be read.
    pub(super) fn check_staged(&self) {
        let mut found = BTreeMap::new();
        for pipeline in PIPELINES {
            let branches = self.store.state.pipeline(pipeline).into_iter().flat_map(|it| it.branches_after(""));
            for (name, staged) in branches.filter_map(|(name, branch)| Some((name, branch.staged()?))) {
                let barrier = staged.barrier().map(str::to_owned);
                found.insert((pipeline.to_owned(), name.to_owned()), Expected { lsn: staged.lsn, barrier });
                let whole = self.store.facts.iter().find(|(lsn, _)| *lsn == staged.lsn);
                assert!(self.kept.iter().find(|(lsn, _)| *lsn == staged.lsn) == whole, "{name}: what is staged stays");
            }
        }
        assert_eq!(found, self.staged);
    }
}

/// Opens and gives up so many barriers that all before are forgotten.
fn forget_barriers(history: &mut History) {
    for name in 2..BARRIERS {
        history.take_parallel(Step::Open { name, branches: 1, facts: 0 });
        history.take_parallel(Step::Abort { which: 0 });
    }
}

#[test]
fn the_end_of_a_barrier_stays_as_long_as_its_opening() {
    let mut history = History::new();
    history.take(super::Step::Policy { keep_last: 1, keep_facts: 0, audit_facts: 1 });
    history.take_parallel(Step::Open { name: 0, branches: 1, facts: 5 });
    let opening = history.newest();
    history.take_parallel(Step::Abort { which: 0 });
    let end = history.newest();
    forget_barriers(&mut history);
    history.compact_facts(end.clone());
    history.compact_facts(opening);
    history.compact_facts(end.clone());
    assert!(!history.kept.iter().any(|(lsn, _)| *lsn == end.start));
}

#[test]
fn an_abort_stays_as_long_as_what_it_discarded() {
    let mut history = History::new();
    history.take(super::Step::Policy { keep_last: 1, keep_facts: 0, audit_facts: 1 });
    history.take_parallel(Step::Open { name: 0, branches: 0b11, facts: 0 });
    let opening = history.newest();
    history.stage(0);
    let staged = history.newest();
    history.take_parallel(Step::Arrive { branch: 0, which: 0 });
    history.take_parallel(Step::Abort { which: 0 });
    let end = history.newest();
    forget_barriers(&mut history);
    history.compact_facts(opening);
    history.compact_facts(end.clone());
    history.compact_facts(staged);
    history.compact_facts(end.clone());
    assert!(!history.kept.iter().any(|(lsn, _)| *lsn == end.start));
}
