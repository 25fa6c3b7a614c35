//! Imports, and numbers that only a file from elsewhere can have.

use super::*;

#[test]
fn a_policy_is_not_set_while_the_pipeline_is_imported() {
    use fencepost::log::v1::{ImportFinished, ImportStarted};
    use fencepost::v1::{Policy, SetPolicyRequest};

    let mut store = Store::new();
    let digest = bytes::Bytes::from_static(b"file");
    let pipeline = PIPELINE.to_owned();
    let request = SetPolicyRequest {
        pipeline: pipeline.clone(),
        policy: Some(Policy { keep_last: 3, ..Policy::default() }),
        ..SetPolicyRequest::default()
    };
    let started = ImportStarted { pipeline: pipeline.clone(), digest: digest.clone(), ..ImportStarted::default() };
    store.record(Kind::ImportStarted(started));
    assert_refused(store.state.evaluate_policy(&request), Reason::Importing);
    store.record(Kind::ImportFinished(ImportFinished { pipeline, digest }));
    assert!(store.state.evaluate_policy(&request).unwrap().is_some());
}

#[test]
fn nothing_is_staged_merged_or_waited_for_while_the_pipeline_is_imported() {
    use fencepost::log::v1::ImportStarted;
    use fencepost::v1::{
        AbortBarrierRequest, ArriveRequest, DiscardStagedRequest, Merge, OpenBarrierRequest, StageRequest,
    };

    let mut store = Store::new();
    let pipeline = PIPELINE.to_owned();
    store.record(Kind::ImportStarted(ImportStarted { pipeline: pipeline.clone(), ..ImportStarted::default() }));
    let state = &store.state;
    let request = StageRequest { pipeline: pipeline.clone(), ..StageRequest::default() };
    let stage = crate::state::Stage { request, digest: Digest::default(), payload_fault: None };
    assert_refused(state.evaluate_stage(stage, 0), Reason::Importing);
    let request = DiscardStagedRequest { pipeline: pipeline.clone(), ..DiscardStagedRequest::default() };
    assert_refused(state.evaluate_discard_staged(&request), Reason::Importing);
    let request = OpenBarrierRequest { pipeline: pipeline.clone(), ..OpenBarrierRequest::default() };
    assert_refused(state.evaluate_open_barrier(&request, 0), Reason::Importing);
    let request = ArriveRequest { pipeline: pipeline.clone(), ..ArriveRequest::default() };
    assert_refused(state.evaluate_arrive(&request, 0), Reason::Importing);
    let request = AbortBarrierRequest { pipeline, ..AbortBarrierRequest::default() };
    assert_refused(state.evaluate_abort_barrier(&request), Reason::Importing);
    let commit = commit("1", &[("jfk", Token::from_u64(1), 1)]);
    let merge = crate::state::MergeCommit { commit, merge: Merge::default(), inputs: Ok(Vec::new()) };
    assert_refused(state.evaluate_merge(merge, 0), Reason::Importing);
}

#[test]
fn a_savepoint_of_an_import_needs_the_place_of_its_checkpoint() {
    use fencepost::log::v1::{ImportStarted, SavepointCreated};

    let mut store = Store::new();
    let pipeline = PIPELINE.to_owned();
    store.record(Kind::ImportStarted(ImportStarted { pipeline: pipeline.clone(), ..ImportStarted::default() }));
    let (name, branch) = ("old".to_owned(), "jfk".to_owned());
    let created = SavepointCreated { pipeline, name, branch, sequence: 5, ..SavepointCreated::default() };
    let judged = |created| store.state.evaluate_import_step(Kind::SavepointCreated(created), None);
    assert_refused(judged(created.clone()), Reason::Corrupt);
    let created = SavepointCreated { checkpoint_lsn: Lsn::new(LogIndex(1), 0).as_u64(), ..created };
    assert_eq!(judged(created.clone()).unwrap(), Some(Kind::SavepointCreated(created)));
}

#[test]
fn a_fact_of_an_import_is_not_taken_in_without_the_one_before_it() {
    use fencepost::log::v1::{Committed, CommittedBranch, ImportFinished, ImportStarted, Imported, PolicySet};

    let mut store = Store::new();
    let pipeline = PIPELINE.to_owned();
    store.record(Kind::ImportStarted(ImportStarted { pipeline: pipeline.clone(), ..ImportStarted::default() }));
    let imported = |sequence| {
        let branches = vec![CommittedBranch { branch: "jfk".to_owned(), sequence, ..CommittedBranch::default() }];
        let digest = vec![0; 16].into();
        let commit = Committed { pipeline: pipeline.clone(), digest, branches, ..Committed::default() };
        Kind::Imported(Imported { commit: Some(commit), committed_at_ms: 1 })
    };
    let set = Kind::PolicySet(PolicySet { pipeline: pipeline.clone(), ..PolicySet::default() });
    let finished = ImportFinished { pipeline: pipeline.clone(), ..ImportFinished::default() };
    let steps = [imported(1), imported(2), set, Kind::ImportFinished(finished)];
    for (before, step) in steps.iter().zip(&steps[1..]) {
        assert_refused(store.state.evaluate_import_step(step.clone(), Some(before)), Reason::HeadMismatch);
        store.record(before.clone());
        assert_eq!(store.state.evaluate_import_step(before.clone(), None).unwrap(), None, "it is there");
        assert_eq!(store.state.evaluate_import_step(step.clone(), Some(before)).unwrap(), Some(step.clone()));
    }
}

#[test]
fn numbers_that_none_can_follow_contradict_every_log() {
    use fencepost::log::v1::{
        Committed, CommittedBranch, GenerationStarted, ImportStarted, Imported, Rewound, SavepointCreated,
    };

    let (pipeline, branch) = (PIPELINE.to_owned(), "jfk".to_owned());
    let moved = |sequence| CommittedBranch { branch: "jfk".to_owned(), sequence, ..CommittedBranch::default() };
    let committed = |pipeline: &str, number, sequence| Committed {
        pipeline: pipeline.to_owned(),
        commit_id: "id".to_owned(),
        digest: vec![0; 16].into(),
        branches: vec![moved(sequence)],
        number,
        ..Committed::default()
    };
    let savepoint = |sequence| {
        let (pipeline, branch) = (pipeline.clone(), branch.clone());
        SavepointCreated { pipeline, name: "x".to_owned(), branch, sequence, ..SavepointCreated::default() }
    };
    let rewound = |to_sequence| {
        let (pipeline, branch) = (pipeline.clone(), branch.clone());
        let token = Token::new(1, 9).unwrap().as_u64();
        Rewound { pipeline, branch, token, to_sequence, from_sequence: u64::MAX, ..Rewound::default() }
    };
    let import = |number, sequence| {
        Kind::Imported(Imported { commit: Some(committed("prod/new", number, sequence)), committed_at_ms: 1 })
    };
    for apply in [State::apply, State::apply_compacted] {
        for number in [COUNT_END, u64::MAX] {
            let generation = GenerationStarted { generation: number, ..GenerationStarted::default() };
            for kind in [
                Kind::Committed(committed(PIPELINE, 1, number)),
                Kind::Committed(committed(PIPELINE, number, 1)),
                Kind::SavepointCreated(savepoint(number)),
                Kind::Rewound(rewound(number)),
                Kind::GenerationStarted(generation),
                import(1, number),
                import(number, 1),
            ] {
                let mut store = Store::new();
                store.start("jfk", "a");
                let started = ImportStarted { pipeline: "prod/new".to_owned(), ..ImportStarted::default() };
                store.record(Kind::ImportStarted(started));
                let fact = Fact { at_ms: 1, kind: Some(kind) };
                assert!(apply(&mut store.state, Lsn::new(LogIndex(100), 0), &fact).is_err(), "{fact:?}");
            }
        }
    }
}

#[test]
fn after_the_last_number_there_is_a_refusal() {
    use fencepost::log::v1::{Committed, CommittedBranch, ImportFinished, ImportStarted, Imported};

    let last = COUNT_END - 1;
    for (sequence, number) in [(last, 1), (1, last)] {
        let mut store = Store::new();
        let moved = CommittedBranch { branch: "jfk".to_owned(), sequence, ..CommittedBranch::default() };
        let commit_of = Committed {
            pipeline: PIPELINE.to_owned(),
            commit_id: "id".to_owned(),
            digest: vec![0; 16].into(),
            branches: vec![moved],
            number,
            ..Committed::default()
        };
        store.record(Kind::ImportStarted(ImportStarted { pipeline: PIPELINE.to_owned(), ..ImportStarted::default() }));
        store.record(Kind::Imported(Imported { commit: Some(commit_of), committed_at_ms: 1 }));
        store.record(Kind::ImportFinished(ImportFinished { pipeline: PIPELINE.to_owned(), digest: vec![].into() }));
        let token = store.start("jfk", "a");
        assert_refused(store.commit(commit("next", &[("jfk", token, sequence + 1)])), Reason::Corrupt);
    }
}

#[test]
fn imported_checkpoints_of_a_branch_rise() {
    use fencepost::log::v1::{Committed, CommittedBranch, ImportStarted, Imported};

    let mut store = Store::new();
    store.record(Kind::ImportStarted(ImportStarted { pipeline: PIPELINE.to_owned(), ..ImportStarted::default() }));
    let imported = |sequence, number| {
        let moved = CommittedBranch { branch: "jfk".to_owned(), sequence, ..CommittedBranch::default() };
        let commit_of =
            Committed { pipeline: PIPELINE.to_owned(), branches: vec![moved], number, ..Committed::default() };
        Kind::Imported(Imported { commit: Some(commit_of), committed_at_ms: 1 })
    };
    store.record(imported(5, 1));
    store.record(imported(7, 2));
    for sequence in [0, 5, 7] {
        let fact = Fact { at_ms: 1, kind: Some(imported(sequence, 3)) };
        assert!(store.state.apply(Lsn::new(LogIndex(100), 0), &fact).is_err(), "{sequence}");
    }
}
