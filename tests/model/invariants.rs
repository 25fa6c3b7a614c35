//! What must be true of a pipeline after every step, in words and in code. The words are those of `docs/semantics.md`.

use std::collections::BTreeMap;

use fencepost::log::v1::fact::Kind;
use fencepost::v1::DeadLetterId;
use fencepost_server::state::Branch;

use crate::oracle::{Barrier, Letter, Oracle};
use crate::store::{PIPELINE, Store};

/// What is cheap to look at, after every step.
pub(crate) fn check(oracle: &Oracle, store: &Store) {
    heads_are_what_was_acknowledged(oracle, store);
    tokens_only_grow(oracle, store);
    one_thing_is_staged_and_nothing_but_its_end_removes_it(oracle, store);
    a_barrier_commits_all_or_none(oracle, store);
    a_dead_letter_is_open_until_it_is_handled_once(oracle, store);
}

/// All of it, now and then.
pub(crate) fn check_all(oracle: &Oracle, store: &Store) {
    check(oracle, store);
    no_acknowledged_commit_is_lost(oracle, store);
    what_is_kept_can_be_read(oracle, store);
    rows_reconcile(oracle);
    merges_are_made_once(oracle, store);
    a_start_makes_the_same_state(store);
}

/// 1. The head of a branch is the newest checkpoint that was acknowledged and not abandoned by a rewind; sequences count from
///    1 without gaps; only the holder of the current token, or a barrier that it had arrived at, has moved it. (That each
///    request was judged so is compared when it is sent.)
fn heads_are_what_was_acknowledged(oracle: &Oracle, store: &Store) {
    for (name, branch) in &oracle.branches {
        let known = store.state.branch(PIPELINE, name);
        let head = known.and_then(Branch::head).map_or(0, |head| head.sequence);
        assert_eq!(head, branch.history.len() as u64, "head of {name}");
        let lease = known.and_then(Branch::lease).map(|grant| grant.token.as_u64());
        assert_eq!(lease, branch.is_held.then_some(branch.token), "lease of {name}");
    }
}

/// 2. Tokens only grow, over all branches, and none is granted twice. (That each is greater is compared when it is minted.)
fn tokens_only_grow(oracle: &Oracle, store: &Store) {
    assert_eq!(store.state.last_token().as_u64(), oracle.tokens.last().copied().unwrap_or(0));
}

/// 3. A branch has at most one staged checkpoint. Only its commit, a discard, a rewind or the abort of its barrier ends it;
///    time, restarts and new workers do not. It is at a barrier only as long as the worker that arrived is not replaced.
fn one_thing_is_staged_and_nothing_but_its_end_removes_it(oracle: &Oracle, store: &Store) {
    for (name, branch) in &oracle.branches {
        let staged = store.state.branch(PIPELINE, name).and_then(Branch::staged);
        let found = staged.map(|staged| (staged.stage_id.to_string(), staged.barrier().map(str::to_owned)));
        let expected = branch.staged.as_ref().map(|staged| (staged.id.clone(), staged.arrived.clone()));
        assert_eq!(found, expected, "what {name} has staged");
    }
}

/// 4. A barrier commits all of its participants in one fact, or none; what had arrived at one that was aborted is gone; one
///    whose deadline has passed is never committed. An open one says of each participant whether it is there.
fn a_barrier_commits_all_or_none(oracle: &Oracle, store: &Store) {
    let pipeline = store.state.pipeline(PIPELINE).expect("it has a policy");
    let open: Vec<&str> = pipeline.open_barriers().map(|(name, _)| name).collect();
    let is_open = |barrier: &Barrier| matches!(barrier, Barrier::Open { .. });
    let expected: Vec<&str> =
        oracle.barriers.iter().filter(|(_, barrier)| is_open(barrier)).map(|(name, _)| &**name).collect();
    assert_eq!(open, expected, "open barriers");
    for (name, closed) in pipeline.closed_barriers() {
        let expected = if closed.is_committed { Barrier::Committed } else { Barrier::Aborted };
        assert_eq!(oracle.barriers.get(name), Some(&expected), "barrier {name}");
    }
    for (name, barrier) in pipeline.open_barriers() {
        for participant in pipeline.told_barrier(PIPELINE, name, barrier).participants {
            let staged = oracle.branch(&participant.branch).staged;
            let is_there = staged.is_some_and(|staged| staged.arrived.as_deref() == Some(name));
            assert_eq!(participant.arrived, is_there, "{} at {name}", participant.branch);
        }
    }
    if let Some(Kind::Committed(commit)) = store.newest.as_ref().and_then(|fact| fact.kind.as_ref())
        && let Some(barrier) = &commit.barrier
    {
        for moved in &commit.branches {
            let last = oracle.branch(&moved.branch).history.get(moved.sequence as usize - 1).cloned();
            assert!(last.is_none_or(|saved| saved.barrier.as_ref() == Some(&barrier.name)), "{moved:?}");
        }
    }
}

/// 5. Every dead letter of a committed checkpoint that was not abandoned is open until one commit or one discard has handled
///    it; none is handled twice; none is there twice.
fn a_dead_letter_is_open_until_it_is_handled_once(oracle: &Oracle, store: &Store) {
    let pipeline = store.state.pipeline(PIPELINE).expect("it has a policy");
    let id = |name: &String| store.letters.get(name).copied().unwrap_or_default();
    let mut expected: Vec<DeadLetterId> = oracle
        .letters
        .iter()
        .filter(|(_, letter)| matches!(letter, Letter::Open(_)))
        .map(|(name, _)| id(name))
        .collect();
    expected.sort_by_key(|id| (id.lsn, id.number));
    let open: Vec<DeadLetterId> = pipeline.dead_letters_from(DeadLetterId::default()).map(|(id, ..)| id).collect();
    assert_eq!(open, expected, "open dead letters");
    assert_eq!(pipeline.dead_letters(), open.len() as u64);
    assert!(store.handled.values().all(|times| *times == 1), "handled twice: {:?}", store.handled);
}

/// 6. A commit that was acknowledged is found by its id for ever (in the model: for as long as ids are remembered), unless a
///    rewind abandoned it.
fn no_acknowledged_commit_is_lost(oracle: &Oracle, store: &Store) {
    let standing: std::collections::BTreeSet<u64> =
        oracle.branches.values().flat_map(|branch| &branch.history).map(|saved| saved.commit).collect();
    for (id, (_, commit)) in oracle.ids.iter().filter(|(_, (_, commit))| standing.contains(commit)) {
        assert_eq!(store.resolves(id), Ok(true), "commit {id}, which was number {commit}");
    }
}

/// 7. Every checkpoint that the policy keeps, and every open dead letter, is in the log, whatever was compacted.
fn what_is_kept_can_be_read(oracle: &Oracle, store: &Store) {
    for (name, branch) in &oracle.branches {
        for (sequence, saved) in (1..).zip(&branch.history).filter(|(sequence, _)| *sequence >= branch.kept_from) {
            let read = store.read(name, sequence);
            assert_eq!(read.as_ref(), Some(&saved.content), "{name}@{sequence}");
        }
    }
    for (name, _) in oracle.letters.iter().filter(|(_, letter)| matches!(letter, Letter::Open(_))) {
        let read = store.letters.get(name).and_then(|id| store.read_letter(*id));
        assert_eq!(read.as_ref(), Some(name), "a dead letter");
    }
}

/// 8. Where the policy asks for it, the rows of every checkpoint add up: what was read was written, filtered, or is a dead
///    letter.
fn rows_reconcile(oracle: &Oracle) {
    for saved in oracle.branches.values().flat_map(|branch| &branch.history).filter(|_| oracle.reconciles_rows) {
        let rows = saved.rows;
        assert_eq!(rows.read, rows.written + rows.filtered + saved.letters.len() as u64, "{saved:?}");
    }
}

/// 9. The same inputs are merged once: no two commits that stand were made of the same checkpoints.
fn merges_are_made_once(oracle: &Oracle, store: &Store) {
    let mut made: BTreeMap<Vec<(String, u64)>, Vec<u64>> = BTreeMap::new();
    for (lsn, fact) in &store.log {
        let Some(Kind::Committed(commit)) = &fact.kind else { continue };
        let (Some(merge), [moved]) = (&commit.merge, &commit.branches[..]) else { continue };
        let branch = store.state.branch(PIPELINE, &moved.branch);
        if branch.is_some_and(|branch| !branch.is_abandoned(moved.sequence, *lsn)) {
            let inputs = merge.inputs.iter().map(|input| (input.branch.clone(), input.lsn)).collect();
            made.entry(inputs).or_default().push(lsn.as_u64());
        }
    }
    assert!(made.values().all(|commits| commits.len() == 1), "{made:?} in {:?}", oracle.merges);
}

/// 10. The facts make the state: what compaction leaves of them makes the same one again, and so does the file of the hot
///     state.
fn a_start_makes_the_same_state(store: &Store) {
    assert!(store.replayed() == store.state, "what is left of the log makes the same state");
    assert!(store.reloaded() == store.state, "the file of the hot state makes the same state");
}
