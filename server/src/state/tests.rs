//! Each rule of leases and commits; and that what compaction leaves makes the same state, whatever happened.

mod declared;
mod history;
mod import;
mod staged;

use std::time::Duration;

use fencepost::log::v1::Fact;
use fencepost::log::v1::fact::Kind;
use fencepost::v1::{
    BranchCommit, Checkpoint, ClusterRef, CommitRequest, LeaseRef, OnMissing, ResumeRequest, Takeover,
};
use fencepost::{LogIndex, Lsn, Reason, Token};

use super::{
    Branch, COUNT_END, Commit, CommitVerdict, Digest, Resolution, Resume, ResumeTiming, ResumeVerdict, State,
    WINDOW_COMMITS,
};
use crate::error::Refusal;

const PIPELINE: &str = "prod/orders";
const TTL: Duration = Duration::from_secs(30);

/// A state and the facts it was made from.
#[derive(Default)]
struct Store {
    state: State,
    facts: Vec<(Lsn, Fact)>,
}

impl Store {
    fn new() -> Store {
        let mut store = Store::default();
        let created = fencepost::log::v1::ClusterCreated { cluster_id: "cluster".to_owned(), generation: 1 };
        store.record(Kind::ClusterCreated(created));
        store
    }

    fn record(&mut self, kind: Kind) -> Lsn {
        let lsn = Lsn::new(LogIndex(self.facts.len() as u64 + 1), 0);
        let fact = Fact { at_ms: 1_000 + lsn.as_u64(), kind: Some(kind) };
        self.state.apply(lsn, &fact).expect("a fact judged on this state fits it");
        self.facts.push((lsn, fact));
        lsn
    }

    fn replayed(&self) -> State {
        let mut state = State::default();
        for (lsn, fact) in &self.facts {
            state.apply(*lsn, fact).expect("facts that fitted once fit again");
        }
        state
    }

    fn resume(&mut self, request: ResumeRequest, silent: Duration) -> Result<Token, Refusal> {
        let timing = ResumeTiming { silent, arrived: self.state.applied() };
        let resume = Resume { request };
        match self.state.evaluate_resume(&resume, timing)? {
            ResumeVerdict::Grant(granted) => {
                let token = Token::from_u64(granted.token);
                self.record(Kind::LeaseGranted(*granted));
                Ok(token)
            }
            ResumeVerdict::Repeat(token) => Ok(token),
            ResumeVerdict::Held(remaining) => Err(self.state.lease_held(&resume, remaining)),
        }
    }

    fn commit(&mut self, commit: Commit) -> Result<(Lsn, bool), Refusal> {
        match self.state.evaluate_commit(commit, 1_000)? {
            CommitVerdict::Apply(committed) => Ok((self.record(Kind::Committed(committed)), false)),
            CommitVerdict::AlreadyApplied(lsn) => Ok((lsn, true)),
        }
    }

    fn release(&mut self, branch: &str, token: Token) -> Result<(), Refusal> {
        let lease = LeaseRef { pipeline: PIPELINE.to_owned(), branch: branch.to_owned(), token: token.as_u64() };
        if let Some(released) = self.state.evaluate_release(None, lease)? {
            self.record(Kind::LeaseReleased(released));
        }
        Ok(())
    }

    fn head(&self, branch: &str) -> u64 {
        self.state.branch(PIPELINE, branch).and_then(Branch::head).map_or(0, |head| head.sequence)
    }

    /// A worker that starts fresh on a branch that is free.
    fn start(&mut self, branch: &str, holder: &str) -> Token {
        self.resume(resume(branch, holder), TTL).expect("the branch is free")
    }
}

fn resume(branch: &str, holder: &str) -> ResumeRequest {
    ResumeRequest {
        pipeline: PIPELINE.to_owned(),
        branch: branch.to_owned(),
        holder: holder.to_owned(),
        request_id: format!("{holder}/{branch}"),
        ttl_ms: TTL.as_millis() as u64,
        on_missing: OnMissing::StartFresh.into(),
        ..ResumeRequest::default()
    }
}

fn digest(content: &str) -> Digest {
    *blake3::hash(content.as_bytes()).as_bytes().split_first_chunk().unwrap().0
}

fn commit(id: &str, branches: &[(&str, Token, u64)]) -> Commit {
    let content = branches.iter().map(|(branch, _, sequence)| format!("{branch}={sequence};")).collect::<String>();
    let branches = branches.iter().map(|(branch, token, sequence)| BranchCommit {
        branch: (*branch).to_owned(),
        token: token.as_u64(),
        sequence: *sequence,
        checkpoint: Some(Checkpoint::default()),
        ..BranchCommit::default()
    });
    let request = CommitRequest {
        pipeline: PIPELINE.to_owned(),
        commit_id: id.to_owned(),
        branches: branches.collect(),
        ..CommitRequest::default()
    };
    Commit { request, digest: digest(&content), payload_fault: None }
}

#[track_caller]
fn assert_refused<T: std::fmt::Debug>(result: Result<T, Refusal>, reason: Reason) -> Refusal {
    let refusal = result.expect_err("this must be refused");
    assert_eq!(refusal.reason, reason, "{refusal}");
    refusal
}

#[test]
fn missing_state_is_an_error_unless_a_fresh_start_was_asked_for() {
    let mut store = Store::new();
    let request = ResumeRequest { on_missing: OnMissing::Fail.into(), ..resume("jfk", "a") };
    assert_refused(store.resume(request.clone(), TTL), Reason::StateMissing);
    let token = store.start("jfk", "a");
    store.release("jfk", token).unwrap();
    // A branch that was granted and never committed has no state either.
    let again = ResumeRequest { request_id: "again".to_owned(), ..request };
    assert_refused(store.resume(again, TTL), Reason::StateMissing);
}

#[test]
fn the_fence_rises_at_the_grant_and_not_at_the_first_commit() {
    let mut store = Store::new();
    let old = store.start("jfk", "a");
    let new = store.start("jfk", "b");
    assert!(new > old);
    let refusal = assert_refused(store.commit(commit("1", &[("jfk", old, 1)])), Reason::Fenced);
    assert_eq!(refusal.detail("holder"), Some("b"));
    assert_eq!(refusal.detail("current_token"), Some(new.as_u64().to_string().as_str()));
    store.commit(commit("2", &[("jfk", new, 1)])).unwrap();
}

#[test]
fn a_late_commit_is_accepted_until_a_successor_is_granted() {
    let mut store = Store::new();
    let token = store.start("jfk", "a");
    // However long the holder was silent: nobody else was granted the branch.
    store.commit(commit("1", &[("jfk", token, 1)])).unwrap();
}

#[test]
fn a_retried_resume_gets_the_same_token_and_a_new_one_a_new_token() {
    let mut store = Store::new();
    let first = store.start("jfk", "a");
    assert_eq!(store.resume(resume("jfk", "a"), Duration::ZERO).unwrap(), first);
    let again =
        ResumeRequest { request_id: "another".to_owned(), takeover: Takeover::SameHolder.into(), ..resume("jfk", "a") };
    assert!(store.resume(again, Duration::ZERO).unwrap() > first);
}

#[test]
fn others_wait_for_the_ttl_and_the_lock_delay() {
    let mut store = Store::new();
    let lock_delay = Duration::from_secs(5);
    let request = ResumeRequest { lock_delay_ms: lock_delay.as_millis() as u64, ..resume("jfk", "a") };
    store.resume(request, TTL).unwrap();
    let refusal = assert_refused(store.resume(resume("jfk", "b"), TTL), Reason::LeaseHeld);
    assert_eq!(refusal.detail("holder"), Some("a"));
    assert_eq!(refusal.detail("remaining_ms"), Some("5001"));
    store.resume(resume("jfk", "b"), TTL + lock_delay).unwrap();
}

#[test]
fn the_same_holder_takes_over_after_the_lock_delay_only() {
    let mut store = Store::new();
    let request = ResumeRequest { lock_delay_ms: 5_000, ..resume("jfk", "a") };
    store.resume(request, TTL).unwrap();
    let ghost = ResumeRequest {
        request_id: "restarted".to_owned(),
        takeover: Takeover::SameHolder.into(),
        ..resume("jfk", "a")
    };
    assert_refused(store.resume(ghost.clone(), Duration::from_secs(4)), Reason::LeaseHeld);
    store.resume(ghost, Duration::from_secs(5)).unwrap();
}

#[test]
fn a_stranger_may_not_use_the_same_holder_mode_and_force_takes_at_once() {
    let mut store = Store::new();
    store.start("jfk", "a");
    let stranger = ResumeRequest { takeover: Takeover::SameHolder.into(), ..resume("jfk", "b") };
    assert_refused(store.resume(stranger, Duration::ZERO), Reason::LeaseHeld);
    let force = ResumeRequest { takeover: Takeover::Force.into(), ..resume("jfk", "b") };
    store.resume(force, Duration::ZERO).unwrap();
    let Some(Kind::LeaseGranted(granted)) = &store.facts.last().unwrap().1.kind else { panic!("a grant") };
    assert_eq!((granted.previous_holder.as_str(), granted.previous_silent_ms), ("a", Some(0)));
}

#[test]
fn a_released_branch_is_free_at_once_and_its_token_is_dead() {
    let mut store = Store::new();
    let token = store.start("jfk", "a");
    store.release("jfk", token).unwrap();
    store.release("jfk", token).expect("a repeat is answered as the first was");
    assert_refused(store.commit(commit("1", &[("jfk", token, 1)])), Reason::Fenced);
    let next = store.resume(resume("jfk", "b"), Duration::ZERO).unwrap();
    assert_refused(store.release("jfk", token), Reason::Fenced);
    assert!(next > token);
}

#[test]
fn a_late_retry_of_a_resume_whose_grant_is_over_takes_the_branch_from_nobody() {
    let mut store = Store::new();
    let first = store.start("jfk", "a");
    let second = store.start("jfk", "b");
    let late = ResumeRequest { takeover: Takeover::Force.into(), ..resume("jfk", "a") };
    let refusal = assert_refused(store.resume(late.clone(), Duration::ZERO), Reason::Fenced);
    assert_eq!(refusal.detail("current_token"), Some(second.as_u64().to_string().as_str()));
    store.release("jfk", second).unwrap();
    assert_refused(store.resume(resume("jfk", "b"), Duration::ZERO), Reason::Fenced);
    assert_refused(store.resume(late.clone(), Duration::ZERO), Reason::Fenced);
    let anew = ResumeRequest { request_id: "anew".to_owned(), ..late };
    assert!(store.resume(anew, Duration::ZERO).unwrap() > first);
}

#[test]
fn a_holder_of_the_same_name_takes_over_from_its_ghost_and_not_from_its_rival() {
    let mut store = Store::new();
    store.start("jfk", "a");
    let arrived = store.state.applied();
    let same = |request_id: &str| ResumeRequest {
        request_id: request_id.to_owned(),
        takeover: Takeover::SameHolder.into(),
        ..resume("jfk", "a")
    };
    store.resume(same("first"), Duration::ZERO).unwrap();
    let timing = ResumeTiming { silent: Duration::ZERO, arrived };
    let verdict = store.state.evaluate_resume(&Resume { request: same("second") }, timing);
    assert!(matches!(verdict, Ok(ResumeVerdict::Held(_))), "both came for the same ghost: {verdict:?}");
}

#[test]
fn a_token_of_another_branch_moves_nothing() {
    let mut store = Store::new();
    let jfk = store.start("jfk", "a");
    let ewr = store.start("ewr", "a");
    assert_refused(store.commit(commit("1", &[("jfk", ewr, 1)])), Reason::Fenced);
    assert_refused(store.commit(commit("1", &[("lga", ewr, 1)])), Reason::Fenced);
    store.commit(commit("1", &[("jfk", jfk, 1)])).unwrap();
}

#[test]
fn a_token_above_all_that_were_minted_says_that_the_store_went_back() {
    let mut store = Store::new();
    let token = store.start("jfk", "a");
    let higher = Token::from_u64(token.as_u64() + 1);
    assert_refused(store.commit(commit("1", &[("jfk", higher, 1)])), Reason::StoreRolledBack);
}

#[test]
fn the_cluster_and_its_generation_are_compared_before_anything_else() {
    let mut store = Store::new();
    let token = store.start("jfk", "a");
    let from = |cluster_id: &str, generation| {
        let mut commit = commit("1", &[("jfk", token, 7)]);
        commit.request.cluster = Some(ClusterRef { cluster_id: cluster_id.to_owned(), generation });
        commit
    };
    assert_refused(store.commit(from("other", 1)), Reason::WrongCluster);
    assert_refused(store.commit(from("cluster", 0)), Reason::StaleGeneration);
    assert_refused(store.commit(from("cluster", 2)), Reason::StoreRolledBack);
    assert_refused(store.commit(from("cluster", 1)), Reason::HeadMismatch);
}

#[test]
fn the_sequence_is_the_head_plus_one() {
    let mut store = Store::new();
    let token = store.start("jfk", "a");
    for wrong in [0, 2, u64::MAX] {
        let refusal = assert_refused(store.commit(commit("x", &[("jfk", token, wrong)])), Reason::HeadMismatch);
        assert_eq!(refusal.detail("actual_head"), Some("0"));
    }
    store.commit(commit("1", &[("jfk", token, 1)])).unwrap();
    assert_refused(store.commit(commit("2", &[("jfk", token, 1)])), Reason::HeadMismatch);
    store.commit(commit("2", &[("jfk", token, 2)])).unwrap();
}

#[test]
fn a_repeated_commit_id_is_answered_with_the_first_result_even_to_the_fenced() {
    let mut store = Store::new();
    let old = store.start("jfk", "a");
    let (lsn, _) = store.commit(commit("1", &[("jfk", old, 1)])).unwrap();
    store.start("jfk", "b");
    assert_eq!(store.commit(commit("1", &[("jfk", old, 1)])).unwrap(), (lsn, true));
    assert_eq!(store.head("jfk"), 1);
}

#[test]
fn a_commit_id_with_other_content_is_refused() {
    let mut store = Store::new();
    let token = store.start("jfk", "a");
    store.commit(commit("1", &[("jfk", token, 1)])).unwrap();
    let refusal = assert_refused(store.commit(commit("1", &[("jfk", token, 2)])), Reason::CommitIdReused);
    assert!(refusal.detail("lsn").is_some());
}

#[test]
fn many_branches_move_together_or_not_at_all() {
    let mut store = Store::new();
    let (jfk, ewr) = (store.start("jfk", "a"), store.start("ewr", "b"));
    assert_refused(store.commit(commit("1", &[("jfk", jfk, 1), ("ewr", ewr, 2)])), Reason::HeadMismatch);
    assert_eq!((store.head("jfk"), store.head("ewr")), (0, 0));
    store.commit(commit("1", &[("jfk", jfk, 1), ("ewr", ewr, 1)])).unwrap();
    assert_eq!((store.head("jfk"), store.head("ewr")), (1, 1));
    store.start("ewr", "c");
    assert_refused(store.commit(commit("2", &[("jfk", jfk, 2), ("ewr", ewr, 2)])), Reason::Fenced);
    assert_eq!((store.head("jfk"), store.head("ewr")), (1, 1));
}

#[test]
fn a_damaged_payload_is_refused_after_the_fence_and_the_sequence() {
    let mut store = Store::new();
    let token = store.start("jfk", "a");
    let damaged = |branches: &[(&str, Token, u64)]| Commit {
        payload_fault: Some(Refusal::new(Reason::IntegrityMismatch, "damaged")),
        ..commit("1", branches)
    };
    assert_refused(store.commit(damaged(&[("jfk", token, 2)])), Reason::HeadMismatch);
    assert_refused(store.commit(damaged(&[("jfk", token, 1)])), Reason::IntegrityMismatch);
    assert_eq!(store.head("jfk"), 0);
}

#[test]
fn a_request_past_its_own_time_limit_is_void_but_a_repeat_is_still_answered() {
    let mut store = Store::new();
    let token = store.start("jfk", "a");
    let limited = |not_after_ms| {
        let mut commit = commit("1", &[("jfk", token, 1)]);
        commit.request.not_after_ms = not_after_ms;
        commit
    };
    assert_refused(store.commit(limited(999)), Reason::NotAfterPassed);
    store.commit(limited(1_000)).unwrap();
    assert!(store.commit(limited(999)).unwrap().1);
}

#[test]
fn an_old_commit_is_resolved_by_its_sequence_once_its_id_is_forgotten() {
    let mut store = Store::new();
    let token = store.start("jfk", "a");
    let resolve = |store: &Store, id: &str, branch| store.state.resolve_commit(None, PIPELINE, id, branch);
    store.commit(commit("first", &[("jfk", token, 1)])).unwrap();
    assert_eq!(resolve(&store, "never", None), Ok(Resolution::NotApplied));
    for i in 0..WINDOW_COMMITS {
        store.commit(commit(&format!("{i}"), &[("jfk", token, i + 2)])).unwrap();
    }
    assert!(matches!(resolve(&store, "0", None), Ok(Resolution::Applied(_))));
    assert_refused(resolve(&store, "first", None), Reason::DedupeWindowExceeded);
    assert_eq!(resolve(&store, "first", Some(("jfk", 1))), Ok(Resolution::AskHistory));
    assert_eq!(resolve(&store, "next", Some(("jfk", store.head("jfk") + 1))), Ok(Resolution::NotApplied));
    // Beyond the window a retry fails closed: the sequence has moved on.
    assert_refused(store.commit(commit("first", &[("jfk", token, 1)])), Reason::HeadMismatch);
}

#[test]
fn facts_that_contradict_the_facts_before_them_are_not_taken_in() {
    let mut store = Store::new();
    let token = store.start("jfk", "a");
    store.commit(commit("1", &[("jfk", token, 1)])).unwrap();
    let (_, granted) = store.facts[1].clone();
    let (_, committed) = store.facts[2].clone();
    let (last, _) = *store.facts.last().map(|(lsn, fact)| (lsn, fact)).as_ref().unwrap();
    for fact in [granted, committed, store.facts[0].1.clone(), Fact::default()] {
        assert!(store.state.apply(Lsn::new(LogIndex(100), 0), &fact).is_err(), "{fact:?}");
    }
    let released = store.facts[1].1.clone();
    assert!(store.state.apply(*last, &released).is_err(), "an LSN comes once");
}

#[test]
fn a_token_of_another_generation_than_the_cluster_is_in_contradicts_it() {
    use fencepost::log::v1::{LeaseGranted, Rewound};

    let (pipeline, branch) = (PIPELINE.to_owned(), "jfk".to_owned());
    let token = Token::new(2, 1).unwrap().as_u64();
    let granted = LeaseGranted { pipeline, branch, token, ..LeaseGranted::default() };
    let (pipeline, branch) = (granted.pipeline.clone(), granted.branch.clone());
    let rewound = Rewound { pipeline, branch, token, ..Rewound::default() };
    for kind in [Kind::LeaseGranted(granted), Kind::Rewound(rewound)] {
        let fact = Fact { at_ms: 1, kind: Some(kind) };
        for apply in [State::apply, State::apply_compacted] {
            let mut state = Store::new().state;
            let lsn = state.applied().next();
            let inconsistent = apply(&mut state, lsn, &fact).unwrap_err();
            assert!(inconsistent.to_string().contains("g2.e1"), "{inconsistent}");
        }
    }
}

#[test]
fn a_lease_of_any_length_can_be_told_about() {
    let mut store = Store::new();
    store.resume(ResumeRequest { ttl_ms: u64::MAX, ..resume("jfk", "a") }, TTL).unwrap();
    let refusal = assert_refused(store.resume(resume("jfk", "b"), Duration::ZERO), Reason::LeaseHeld);
    // As long as a lease can be, which is 49 days, and a moment.
    assert!(refusal.to_string().contains(&(1_u64 << 32).to_string()), "{refusal}");
    let refusal = store.state.lease_held(&Resume { request: resume("jfk", "b") }, Duration::MAX);
    assert!(refusal.to_string().contains(&u64::MAX.to_string()), "{refusal}");
}
