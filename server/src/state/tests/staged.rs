//! What is staged, and barriers, where only the state can be asked.

use fencepost::v1::{
    AbortBarrierRequest, ArriveRequest, DeadLetter, OpenBarrierRequest, Policy, SetPolicyRequest, StageRequest,
};

use super::*;
use crate::config::limits;
use crate::state::{AbortVerdict, ArriveVerdict, OpenVerdict, Stage, StageVerdict};

impl Store {
    pub(super) fn stage(&mut self, stage: Stage) -> Result<(Lsn, bool), Refusal> {
        match self.state.evaluate_stage(stage, 1_000)? {
            StageVerdict::Stage(staged) => Ok((self.record(Kind::Staged(*staged)), false)),
            StageVerdict::AlreadyStaged(lsn) => Ok((lsn, true)),
        }
    }

    fn open_barrier(&mut self, name: &str, participants: &[&str]) -> OpenVerdict {
        let request = OpenBarrierRequest {
            pipeline: PIPELINE.to_owned(),
            name: name.to_owned(),
            participants: participants.iter().map(ToString::to_string).collect(),
            ..OpenBarrierRequest::default()
        };
        let verdict = self.state.evaluate_open_barrier(&request, 1_000).unwrap();
        if let OpenVerdict::Open(opened) = &verdict {
            self.record(Kind::BarrierOpened(opened.clone()));
        }
        verdict
    }

    /// Arrives with what [`stage`] has staged.
    fn arrive(&mut self, barrier: &str, branch: &str, token: Token, sequence: u64) -> Result<ArriveVerdict, Refusal> {
        let request = ArriveRequest {
            pipeline: PIPELINE.to_owned(),
            barrier: barrier.to_owned(),
            branch: branch.to_owned(),
            token: token.as_u64(),
            stage_id: format!("stage-{branch}-{sequence}"),
            ..ArriveRequest::default()
        };
        let verdict = self.state.evaluate_arrive(&request, 1_000)?;
        match &verdict {
            ArriveVerdict::Arrived(arrived) => drop(self.record(Kind::BarrierArrived(arrived.clone()))),
            ArriveVerdict::Completed(committed) => drop(self.record(Kind::Committed(committed.clone()))),
            ArriveVerdict::Repeat | ArriveVerdict::Late(..) => {}
        }
        Ok(verdict)
    }

    fn abort(&mut self, name: &str) {
        let (pipeline, name) = (PIPELINE.to_owned(), name.to_owned());
        let request = AbortBarrierRequest { pipeline, name, ..AbortBarrierRequest::default() };
        let Ok(AbortVerdict::Abort(aborted)) = self.state.evaluate_abort_barrier(&request) else {
            panic!("it is open");
        };
        self.record(Kind::BarrierAborted(aborted));
    }
}

pub(super) fn stage(branch: &str, token: Token, sequence: u64, letters: usize) -> Stage {
    let stage_id = format!("stage-{branch}-{sequence}");
    let request = StageRequest {
        pipeline: PIPELINE.to_owned(),
        branch: branch.to_owned(),
        token: token.as_u64(),
        sequence,
        stage_id: stage_id.clone(),
        checkpoint: Some(Checkpoint::default()),
        dead_letters: vec![DeadLetter::default(); letters],
        ..StageRequest::default()
    };
    Stage { digest: digest(&format!("{stage_id} {letters}")), request, payload_fault: None }
}

/// Commits what [`stage`] has staged.
fn commit_staged(branch: &str, token: Token, sequence: u64) -> Commit {
    let mut commit = commit(&format!("commit-{branch}-{sequence}"), &[(branch, token, sequence)]);
    let moved = &mut commit.request.branches[0];
    (moved.checkpoint, moved.staged) = (None, format!("stage-{branch}-{sequence}"));
    commit
}

#[test]
fn room_for_dead_letters_is_made_sure_of_when_they_are_staged_and_their_commit_is_never_refused_for_them() {
    let mut store = Store::new();
    let full = limits::DEAD_LETTERS_OPEN_MAX / limits::DEAD_LETTERS_MAX as u64;
    let branches: Vec<(String, Token)> =
        (0..full).map(|i| (format!("b{i}"), store.start(&format!("b{i}"), "a"))).collect();
    for (branch, token) in &branches {
        store.stage(stage(branch, *token, 1, limits::DEAD_LETTERS_MAX)).unwrap();
    }
    let token = store.start("more", "a");
    let refused = assert_refused(store.stage(stage("more", token, 1, 1)), Reason::TooLarge);
    assert_eq!(refused.detail("field"), Some("dead_letters"));
    let mut adding = commit("adding", &[("more", token, 1)]);
    adding.request.branches[0].dead_letters = vec![DeadLetter::default()];
    assert_refused(store.commit(adding), Reason::TooLarge);
    assert_eq!(store.replayed(), store.state);
    for (branch, token) in &branches {
        store.commit(commit_staged(branch, *token, 1)).unwrap();
    }
    assert_eq!(store.state.pipeline(PIPELINE).unwrap().dead_letters(), limits::DEAD_LETTERS_OPEN_MAX);
    assert_refused(store.stage(stage("more", token, 1, 1)), Reason::TooLarge);
    store.stage(stage("more", token, 1, 0)).expect("it adds none");
    store.commit(commit_staged("more", token, 1)).unwrap();
    assert_eq!(store.replayed(), store.state);
}

#[test]
fn of_a_stage_dead_letters_are_judged_last() {
    let mut store = Store::new();
    let token = store.start("jfk", "a");
    let full = limits::DEAD_LETTERS_OPEN_MAX / limits::DEAD_LETTERS_MAX as u64;
    for sequence in 1..=full {
        let mut commit = commit(&sequence.to_string(), &[("jfk", token, sequence)]);
        commit.request.branches[0].dead_letters = vec![DeadLetter::default(); limits::DEAD_LETTERS_MAX];
        store.commit(commit).unwrap();
    }
    let policy = Some(Policy { declared_schemas_only: true, ..Policy::default() });
    let request = SetPolicyRequest { pipeline: PIPELINE.to_owned(), policy, ..SetPolicyRequest::default() };
    let set = store.state.evaluate_policy(&request).unwrap().unwrap();
    store.record(Kind::PolicySet(set));
    assert_refused(store.stage(stage("jfk", token, full + 1, 1)), Reason::SchemaMismatch);
    let request = SetPolicyRequest { policy: Some(Policy::default()), ..request };
    let set = store.state.evaluate_policy(&request).unwrap().unwrap();
    store.record(Kind::PolicySet(set));
    assert_refused(store.stage(stage("jfk", token, full + 1, 1)), Reason::TooLarge);
    store.stage(stage("jfk", token, full + 1, 0)).unwrap();
}

#[test]
fn a_new_generation_voids_arrivals_and_leaves_what_is_staged() {
    let mut store = Store::new();
    let (jfk, ewr) = (store.start("jfk", "a"), store.start("ewr", "b"));
    store.open_barrier("day", &["ewr", "jfk"]);
    store.stage(stage("jfk", jfk, 1, 0)).unwrap();
    store.arrive("day", "jfk", jfk, 1).unwrap();
    let staged = |store: &Store| store.state.branch(PIPELINE, "jfk").unwrap().staged().cloned().unwrap();
    assert_eq!(staged(&store).barrier(), Some("day"));
    let started = store.state.evaluate_generation(2, store.state.applied(), "ops", "restored").unwrap();
    store.record(Kind::GenerationStarted(started));
    assert_eq!((staged(&store).barrier(), staged(&store).sequence), (None, 1));
    assert_eq!(store.replayed(), store.state);
    assert_refused(store.arrive("day", "jfk", jfk, 1), Reason::StaleGeneration);
    assert_refused(store.arrive("day", "ewr", ewr, 1), Reason::StaleGeneration);
    // Those of this generation arrive with what was staged before.
    let (jfk, ewr) = (store.start("jfk", "c"), store.start("ewr", "d"));
    store.stage(stage("ewr", ewr, 1, 0)).unwrap();
    assert!(matches!(store.arrive("day", "ewr", ewr, 1), Ok(ArriveVerdict::Arrived(_))), "jfk is waited for again");
    assert!(matches!(store.arrive("day", "jfk", jfk, 1), Ok(ArriveVerdict::Completed(_))));
    assert_eq!((store.head("jfk"), store.head("ewr")), (1, 1));
}

#[test]
fn the_name_of_a_forgotten_barrier_can_be_used_again() {
    let mut store = Store::new();
    let jfk = store.start("jfk", "a");
    store.open_barrier("day", &["jfk"]);
    store.stage(stage("jfk", jfk, 1, 0)).unwrap();
    assert!(matches!(store.arrive("day", "jfk", jfk, 1), Ok(ArriveVerdict::Completed(_))));
    // As many as are remembered: it is forgotten with the last of them.
    for name in ["x", "y"] {
        assert!(matches!(store.open_barrier("day", &["jfk"]), OpenVerdict::Closed(_)));
        store.open_barrier(name, &["jfk"]);
        store.abort(name);
    }
    let ewr = store.start("ewr", "b");
    assert!(matches!(store.open_barrier("day", &["ewr", "jfk"]), OpenVerdict::Open(_)));
    for (branch, token, sequence) in [("jfk", jfk, 2), ("ewr", ewr, 1)] {
        store.stage(stage(branch, token, sequence, 0)).unwrap();
        store.arrive("day", branch, token, sequence).unwrap();
    }
    assert_eq!((store.head("jfk"), store.head("ewr")), (2, 1));
    assert_eq!(store.replayed(), store.state);
}
