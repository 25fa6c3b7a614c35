//! What is staged, and barriers, where only the state can be asked.

use fencepost::v1::{DeadLetter, StageRequest};

use super::*;
use crate::config::limits;
use crate::state::{Stage, StageVerdict};

impl Store {
    pub(super) fn stage(&mut self, stage: Stage) -> Result<(Lsn, bool), Refusal> {
        match self.state.evaluate_stage(stage, 1_000)? {
            StageVerdict::Stage(staged) => Ok((self.record(Kind::Staged(*staged)), false)),
            StageVerdict::AlreadyStaged(lsn) => Ok((lsn, true)),
        }
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
