//! What commits declare and carry beside their checkpoints, where only the state can be asked.

use fencepost::log::v1::SchemaDeclared;
use fencepost::v1::{DeadLetter, DeadLetterId, FenceGroupRequest, Integrity, Policy, Schema, SetPolicyRequest};

use super::*;
use crate::config::limits;

fn skipping(id: &str, token: Token, sequence: u64, letters: usize, replayed: &[DeadLetterId]) -> Commit {
    let mut commit = commit(id, &[("jfk", token, sequence)]);
    commit.request.branches[0].dead_letters = vec![DeadLetter::default(); letters];
    commit.request.branches[0].replayed = replayed.to_vec();
    commit
}

#[test]
fn a_pipeline_has_so_many_open_dead_letters_and_one_that_is_handled_makes_room() {
    let mut store = Store::new();
    let token = store.start("jfk", "a");
    let full = limits::DEAD_LETTERS_OPEN_MAX / limits::DEAD_LETTERS_MAX as u64;
    for sequence in 1..=full {
        store.commit(skipping(&sequence.to_string(), token, sequence, limits::DEAD_LETTERS_MAX, &[])).unwrap();
    }
    let refused = assert_refused(store.commit(skipping("more", token, full + 1, 1, &[])), Reason::TooLarge);
    assert_eq!(refused.detail("field"), Some("dead_letters"));
    assert!(refused.message.contains("replay some or discard them"), "{refused}");
    store.commit(skipping("none", token, full + 1, 0, &[])).expect("it adds none");
    let pipeline = store.state.pipeline(PIPELINE).unwrap();
    let open: Vec<DeadLetterId> = pipeline.dead_letters_from(DeadLetterId::default()).map(|(id, ..)| id).collect();
    assert_refused(store.commit(skipping("two", token, full + 2, 2, &open[..1])), Reason::TooLarge);
    store.commit(skipping("one", token, full + 2, 1, &open[..1])).unwrap();
    assert_eq!(store.state.pipeline(PIPELINE).unwrap().dead_letters(), limits::DEAD_LETTERS_OPEN_MAX);
}

#[test]
fn a_new_generation_ends_also_what_a_fence_of_the_pipeline_had_ended() {
    let mut store = Store::new();
    let token = store.start("jfk", "a");
    let request = FenceGroupRequest { pipeline: PIPELINE.to_owned(), ..FenceGroupRequest::default() };
    let fenced = store.state.evaluate_fence_group(&request).unwrap();
    assert_eq!(fenced.leases, 1);
    store.record(Kind::GroupFenced(fenced));
    assert_refused(store.commit(commit("1", &[("jfk", token, 1)])), Reason::Fenced);
    let started = store.state.evaluate_generation(2, store.state.applied(), "ops", "restored").unwrap();
    store.record(Kind::GenerationStarted(started));
    assert_refused(store.commit(commit("1", &[("jfk", token, 1)])), Reason::StaleGeneration);
}

#[test]
fn schemas_in_a_circle_which_only_other_software_writes_end_the_search() {
    let mut store = Store::new();
    let token = store.start("jfk", "a");
    let schema = |name: &str, before: &str| {
        let (fingerprint, successor_of) = (name.to_owned().into(), before.to_owned().into());
        let schema = Some(Schema { fingerprint, name: name.to_owned(), successor_of });
        Kind::SchemaDeclared(SchemaDeclared { pipeline: PIPELINE.to_owned(), schema, ..SchemaDeclared::default() })
    };
    for declared in
        [schema("first", "third"), schema("second", "first"), schema("third", "second"), schema("other", "")]
    {
        store.record(declared);
    }
    let policy = Some(Policy { declared_schemas_only: true, ..Policy::default() });
    let request = SetPolicyRequest { pipeline: PIPELINE.to_owned(), policy, ..SetPolicyRequest::default() };
    let set = store.state.evaluate_policy(&request).unwrap().unwrap();
    store.record(Kind::PolicySet(set));
    let having = |id: &str, sequence, name: &str| {
        let mut commit = commit(id, &[("jfk", token, sequence)]);
        let integrity = Integrity { schema_fingerprint: name.to_owned().into(), ..Integrity::default() };
        commit.request.branches[0].checkpoint.as_mut().unwrap().integrity = Some(integrity);
        commit
    };
    store.commit(having("1", 1, "other")).unwrap();
    assert_refused(store.commit(having("2", 2, "first")), Reason::SchemaMismatch);
    store.commit(having("3", 2, "other")).unwrap();
}
