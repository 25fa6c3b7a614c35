//! Requests judged on whatever state a log made. What is judged good must fit that state as a fact.

use std::time::Duration;

use fencepost::Token;
use fencepost::log::v1::fact::Kind;
use fencepost::v1::{
    ArriveRequest, BranchCommit, Checkpoint, CommitRequest, LeaseRef, OnMissing, ResumeRequest, StageRequest,
};
use fencepost_server::state::{
    ArriveVerdict, Branch, Commit, CommitVerdict, Resume, ResumeTiming, ResumeVerdict, Stage, StageVerdict,
};

use crate::input::Input;
use crate::records::Store;
use crate::together;

/// How many kinds of requests there are.
pub const KINDS: u8 = 8;
const PIPELINE: &str = "prod/orders";
const BRANCHES: [&str; 3] = ["ewr", "jfk", "lga"];

/// Judges one request, and takes in what follows from it.
pub fn run(store: &mut Store, choice: u8, input: &mut Input<'_>) {
    let branch = input.one_of(&BRANCHES);
    let known = store.state.branch(PIPELINE, branch);
    let lease = known.and_then(Branch::lease).map_or(Token::NONE, |grant| grant.token).as_u64();
    let head = known.and_then(Branch::head).map_or(0, |head| head.sequence);
    match choice % KINDS {
        0 => resume(store, branch, input),
        1 => {
            let moved = BranchCommit {
                branch: branch.to_owned(),
                token: input.number(lease),
                sequence: input.number(head.saturating_add(1)),
                checkpoint: Some(Checkpoint::default()),
                dead_letters: together::letters(input),
                replayed: together::letter_ids(&store.state, PIPELINE, input),
                ..BranchCommit::default()
            };
            commit(store, moved, input);
        }
        4 => {
            let moved = BranchCommit {
                branch: branch.to_owned(),
                token: input.number(lease),
                sequence: input.number(head.saturating_add(1)),
                staged: format!("{}", input.byte() & 3),
                ..BranchCommit::default()
            };
            commit(store, moved, input);
        }
        5 => {
            let request = StageRequest {
                pipeline: PIPELINE.to_owned(),
                branch: branch.to_owned(),
                token: input.number(lease),
                sequence: input.number(head.saturating_add(1)),
                stage_id: format!("{}", input.byte() & 3),
                checkpoint: Some(Checkpoint::default()),
                dead_letters: together::letters(input),
                ..StageRequest::default()
            };
            let stage = Stage { request, digest: [input.byte() & 1; 16], payload_fault: None };
            match store.state.evaluate_stage(stage, 1_000) {
                Ok(StageVerdict::Stage(staged)) => store.decide(Kind::Staged(*staged)),
                Ok(StageVerdict::AlreadyStaged(lsn)) => assert!(lsn <= store.state.applied(), "it was staged before"),
                Err(refusal) => drop(refusal.to_string()),
            }
        }
        6 => {
            let request = ArriveRequest {
                pipeline: PIPELINE.to_owned(),
                barrier: together::barrier(&store.state, PIPELINE, input).name,
                branch: branch.to_owned(),
                token: input.number(lease),
                stage_id: format!("{}", input.byte() & 3),
                ..ArriveRequest::default()
            };
            match store.state.evaluate_arrive(&request, 1_000) {
                Ok(ArriveVerdict::Arrived(arrived)) => store.decide(Kind::BarrierArrived(arrived)),
                Ok(ArriveVerdict::Completed(committed)) => store.decide(Kind::Committed(committed)),
                Ok(ArriveVerdict::Repeat) => {}
                Ok(ArriveVerdict::Late(_, refusal)) | Err(refusal) => drop(refusal.to_string()),
            }
        }
        7 => {
            while let Some(aborted) = store.state.evaluate_overdue(input.number(1_000)) {
                store.decide(Kind::BarrierAborted(aborted));
            }
        }
        2 => {
            let (pipeline, branch) = (PIPELINE.to_owned(), branch.to_owned());
            let lease = LeaseRef { pipeline, branch, token: input.number(lease) };
            if let Ok(Some(released)) = store.state.evaluate_release(None, lease) {
                store.decide(Kind::LeaseReleased(released));
            }
        }
        _ => {
            let (id, sequence) = (format!("{}", input.byte()), input.number(head));
            let _ = store.state.resolve_commit(None, PIPELINE, &id, Some((branch, sequence)));
        }
    }
}

fn resume(store: &mut Store, branch: &str, input: &mut Input<'_>) {
    let request = ResumeRequest {
        pipeline: PIPELINE.to_owned(),
        branch: branch.to_owned(),
        holder: input.one_of(&["anna", "bert"]).to_owned(),
        request_id: format!("{}", input.byte()),
        ttl_ms: 30_000,
        takeover: i32::from(input.byte() % 4),
        on_missing: OnMissing::StartFresh.into(),
        ..ResumeRequest::default()
    };
    let timing = ResumeTiming { silent: Duration::from_millis(input.number(0)), arrived: store.state.applied() };
    let resume = Resume { request };
    match store.state.evaluate_resume(&resume, timing) {
        Ok(ResumeVerdict::Grant(granted)) => store.decide(Kind::LeaseGranted(*granted)),
        Ok(ResumeVerdict::Held(remaining)) => drop(store.state.lease_held(&resume, remaining).to_string()),
        Ok(ResumeVerdict::Repeat(token)) => assert!(token <= store.state.last_token(), "the token was granted before"),
        Err(refusal) => drop(refusal.to_string()),
    }
}

fn commit(store: &mut Store, moved: BranchCommit, input: &mut Input<'_>) {
    let request = CommitRequest {
        pipeline: PIPELINE.to_owned(),
        commit_id: format!("{}", input.byte()),
        branches: vec![moved],
        ..CommitRequest::default()
    };
    let commit = Commit { request, digest: [input.byte() & 1; 16], payload_fault: None };
    match store.state.evaluate_commit(commit, 1_000) {
        Ok(CommitVerdict::Apply(committed)) => store.decide(Kind::Committed(committed)),
        Ok(CommitVerdict::AlreadyApplied(lsn)) => assert!(lsn <= store.state.applied(), "it was applied before"),
        Err(refusal) => drop(refusal.to_string()),
    }
}
