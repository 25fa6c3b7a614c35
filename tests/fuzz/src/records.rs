//! What a fact may say: payloads decoded and applied to the state, in sequences that mostly fit and sometimes do not.
//!
//! Byte 0 of an input chooses: payloads as they are, each behind its length; or steps, which are facts made of a few
//! names and of numbers near to those that fit, and requests ([`requests`](crate::requests)) judged on the state that
//! these made.

use std::collections::BTreeMap;

use bytes::Bytes;
use fencepost::Lsn;
use fencepost::log::v1::fact::Kind;
use fencepost::log::v1::{
    ClusterCreated, Committed, CommittedBranch, Fact, Forked, GenerationStarted, ImportFinished, ImportStarted,
    Imported, LeaseGranted, LeaseReleased, PolicySet, Rewound, SavepointCreated, SavepointDeleted,
};
use fencepost::v1::{Checkpoint, Integrity, Policy};
use fencepost_server::state::{Branch, State};
use prost::Message as _;

use crate::input::Input;
use crate::{requests, together};

const STEPS_MAX: usize = 48;
const PIPELINES: [&str; 3] = ["prod/orders", "prod/flights", ""];
const BRANCHES: [&str; 4] = ["ewr", "jfk", "lga", ""];
const NAMES: [&str; 4] = ["anna", "bert", "", "\u{10ffff}"];
/// Kinds of its own, those of facts about branches together, and one that is unknown.
const KINDS: u8 = 13 + together::KINDS + 1;

/// A state, and the facts that it took in.
#[derive(Default)]
pub struct Store {
    /// The state.
    pub state: State,
    facts: Vec<(Lsn, Fact)>,
}

impl Store {
    /// Takes a fact in. A state that refused one is given up, as at start-up; this one is made again without it.
    pub fn apply(&mut self, lsn: Lsn, fact: Fact) -> Result<(), String> {
        let before = (self.state.applied(), self.state.last_token());
        let heads = self.heads(&fact);
        match self.state.apply(lsn, &fact) {
            Ok(()) => {
                assert!(self.state.applied() == lsn && before.0 < lsn, "what was applied is at {lsn}");
                assert!(self.state.last_token() >= before.1, "tokens do not fall");
                if let Some(Kind::Committed(committed)) = &fact.kind {
                    let mut moved = heads;
                    for branch in fact.branches() {
                        *moved.entry(branch.to_owned()).or_default() += 1;
                    }
                    assert_eq!(self.heads(&fact), moved, "a commit moves each head by one: {committed:?}");
                }
                self.facts.push((lsn, fact));
                Ok(())
            }
            Err(inconsistent) => {
                assert_eq!(inconsistent.lsn, lsn);
                self.state = self.replayed();
                Err(inconsistent.to_string())
            }
        }
    }

    /// Takes in what the state itself decided, at the next position.
    pub fn decide(&mut self, kind: Kind) {
        let lsn = Lsn::new(self.state.applied().index().next(), 0);
        let fact = Fact { at_ms: 1, kind: Some(kind) };
        let shown = format!("{fact:?}");
        self.apply(lsn, fact).unwrap_or_else(|error| panic!("a fact that was judged does not fit: {error}: {shown}"));
    }

    /// The sequences of the branches that a fact is about.
    fn heads(&self, fact: &Fact) -> BTreeMap<String, u64> {
        let pipeline = fact.pipeline().unwrap_or_default();
        let head = |branch: &str| self.state.branch(pipeline, branch).and_then(Branch::head);
        fact.branches().map(|name| (name.to_owned(), head(name).map_or(0, |head| head.sequence))).collect()
    }

    fn replayed(&self) -> State {
        let mut state = State::default();
        for (lsn, fact) in &self.facts {
            state.apply(*lsn, fact).expect("what fitted once fits again");
        }
        state
    }
}

/// One input.
pub fn run(data: &[u8]) {
    let store = play(data);
    assert!(store.replayed() == store.state, "the same facts give the same state");
}

fn play(data: &[u8]) -> Store {
    let mut input = Input::new(data);
    let mut store = Store::default();
    let is_raw = input.byte() & 1 == 1;
    if !is_raw {
        let created = ClusterCreated { cluster_id: "cluster".to_owned(), generation: u64::from(input.byte() & 1) };
        store.decide(Kind::ClusterCreated(created));
    }
    for _ in 0..STEPS_MAX {
        if input.is_empty() {
            break;
        }
        if is_raw {
            let length = input.short();
            let decoded = Fact::decode(input.bytes(length.into()));
            let lsn = Lsn::new(store.state.applied().index().next(), 0);
            if let Ok(fact) = decoded {
                look(&fact);
                let _ = store.apply(lsn, fact);
            }
        } else {
            step(&mut store, &mut input);
        }
    }
    store
}

/// One fact or one request.
fn step(store: &mut Store, input: &mut Input<'_>) {
    let choice = input.byte();
    if choice >= 0x80 {
        return requests::run(store, choice, input);
    }
    let (pipeline, branch) = (input.one_of(&PIPELINES), input.one_of(&BRANCHES));
    let fact = Fact { at_ms: input.number(1_000), kind: kind(choice % KINDS, &store.state, pipeline, branch, input) };
    look(&fact);
    let bytes = fact.encode_to_vec();
    assert_eq!(Fact::decode(&bytes[..]).as_ref(), Ok(&fact), "a fact is what was encoded");
    let next = store.state.applied().next().as_u64();
    // The upper half of all positions is left free, for what follows.
    let _ = store.apply(Lsn::from_u64(input.number(next) & (u64::MAX >> 1)), fact);
}

/// Asks a fact everything.
fn look(fact: &Fact) {
    let _ = (fact.pipeline(), fact.branches().count(), fact.commit(), format!("{fact:?}"));
    let mut reduced = fact.clone();
    let places = reduced.checkpoints().count();
    reduced.take_out(|_| true);
    assert_eq!(places, fact.checkpoints().count(), "each checkpoint has its place");
    assert!(reduced.checkpoints().all(|made| !made.payload.is_there()), "no checkpoint is left");
}

#[allow(clippy::too_many_lines)] // One arm for each kind.
fn kind(choice: u8, state: &State, pipeline: &str, branch: &str, input: &mut Input<'_>) -> Option<Kind> {
    let lease = |branch: &str| state.branch(pipeline, branch).and_then(Branch::lease).map_or(0, |it| it.token.as_u64());
    let head = |branch: &str| state.branch(pipeline, branch).and_then(Branch::head);
    let sequence = |branch: &str| head(branch).map_or(0, |head| head.sequence);
    let lsn = |branch: &str| head(branch).map_or(0, |head| head.lsn.as_u64());
    let minted = state.last_token().as_u64().saturating_add(1).max(state.generation().wrapping_shl(48) | 1);
    let (in_pipeline, in_branch) = (pipeline.to_owned(), branch.to_owned());
    let (actor, reason) = ("someone".to_owned(), "because".to_owned());
    Some(match choice {
        0 => Kind::LeaseGranted(LeaseGranted {
            pipeline: in_pipeline,
            branch: in_branch,
            token: input.number(minted),
            holder: input.one_of(&NAMES).to_owned(),
            ttl_ms: input.number(30_000),
            lock_delay_ms: input.number(0),
            request_id: format!("{}", input.byte()),
            takeover: i32::from(input.byte()),
            reason,
            resumed_sequence: input.number(sequence(branch)),
            previous_holder: input.one_of(&NAMES).to_owned(),
            previous_token: input.number(lease(branch)),
            previous_silent_ms: Some(input.number(0)),
            accepted_scope: Vec::new(),
        }),
        1 => Kind::LeaseReleased(LeaseReleased {
            pipeline: in_pipeline,
            branch: in_branch,
            token: input.number(lease(branch)),
        }),
        2 | 3 => {
            let others = input.bytes((input.clone().byte() & 3).into()).to_vec();
            let others = others.iter().map(|other| BRANCHES[usize::from(*other) % BRANCHES.len()]);
            let mut moved = |branch: &str| CommittedBranch {
                branch: branch.to_owned(),
                sequence: input.number(sequence(branch).saturating_add(1)),
                token: input.number(lease(branch)),
                checkpoint: checkpoint(input),
                retained_from: input.number(0),
                staged_lsn: input.number(together::staged_lsn(state, pipeline, branch)),
                dead_letters: together::letters(input),
                replayed: together::letter_ids(state, pipeline, input),
                ..CommittedBranch::default()
            };
            let branches = std::iter::once(branch).chain(others).map(&mut moved).collect();
            let digest = if input.byte() == 1 { input.bytes(17).to_vec() } else { vec![input.byte(); 16] };
            let commit = Committed {
                pipeline: in_pipeline,
                commit_id: format!("{}", input.byte()),
                digest: digest.into(),
                branches,
                number: input.number(state.pipeline(pipeline).map_or(0, |known| known.commits().0).saturating_add(1)),
                barrier: (input.byte() & 7 == 7).then(|| together::barrier(state, pipeline, input)),
                merge: together::merge(input, branch, lsn(branch)),
            };
            if choice == 2 {
                Kind::Committed(commit)
            } else {
                let commit = (input.byte() != 1).then_some(commit);
                Kind::Imported(Imported { commit, committed_at_ms: input.number(1_000) })
            }
        }
        4 => {
            let policy = Policy {
                keep_last: input.number(2),
                keep_for_ms: input.number(0),
                audit_for_ms: input.number(0),
                reconcile_rows: input.byte() == 1,
                declared_schemas_only: input.byte() == 1,
            };
            let policy = (input.byte() != 1).then_some(policy);
            Kind::PolicySet(PolicySet { pipeline: in_pipeline, policy, actor, reason })
        }
        5 => Kind::SavepointCreated(SavepointCreated {
            pipeline: in_pipeline,
            name: input.one_of(&NAMES).to_owned(),
            branch: in_branch,
            sequence: input.number(sequence(branch)),
            checkpoint_lsn: input.number(lsn(branch)),
            checkpoint_committed_at_ms: input.number(1_000),
            actor,
            reason,
        }),
        6 => Kind::SavepointDeleted(SavepointDeleted {
            pipeline: in_pipeline,
            name: input.one_of(&NAMES).to_owned(),
            created_lsn: input.number(state.applied().as_u64()),
            actor,
            reason,
            branch: in_branch,
            sequence: input.number(sequence(branch)),
        }),
        7 => Kind::Rewound(Rewound {
            pipeline: in_pipeline,
            branch: in_branch,
            to_sequence: input.number(sequence(branch)),
            to_lsn: input.number(lsn(branch)),
            to_committed_at_ms: input.number(1_000),
            from_sequence: input.number(sequence(branch)),
            token: input.number(minted),
            previous_holder: input.one_of(&NAMES).to_owned(),
            previous_token: input.number(lease(branch)),
            actor,
            reason,
            savepoint: input.one_of(&NAMES).to_owned(),
            retained_from: input.number(0),
        }),
        8 => Kind::Forked(Forked {
            pipeline: in_pipeline,
            branch: in_branch,
            source_pipeline: input.one_of(&PIPELINES).to_owned(),
            source_branch: input.one_of(&BRANCHES).to_owned(),
            source_sequence: input.number(1),
            source_lsn: input.number(lsn(branch)),
            checkpoint: checkpoint(input),
            actor,
            reason,
        }),
        9 => Kind::GenerationStarted(GenerationStarted {
            generation: input.number(state.generation().saturating_add(1)),
            kept_lsn: input.number(state.applied().as_u64()),
            actor,
            reason,
        }),
        10 => Kind::ImportStarted(ImportStarted {
            pipeline: in_pipeline,
            digest: Bytes::from(vec![input.byte() & 1; 32]),
            source_cluster_id: "other".to_owned(),
            source_lsn: input.number(0),
            source_pipeline: input.one_of(&PIPELINES).to_owned(),
            actor,
            reason,
        }),
        11 => Kind::ImportFinished(ImportFinished {
            pipeline: in_pipeline,
            digest: Bytes::from(vec![input.byte() & 1; 32]),
        }),
        12 => Kind::ClusterCreated(ClusterCreated {
            cluster_id: input.one_of(&NAMES).to_owned(),
            generation: input.number(1),
        }),
        13.. if choice < 13 + together::KINDS => together::kind(choice - 13, state, pipeline, branch, input),
        _ => return None,
    })
}

fn checkpoint(input: &mut Input<'_>) -> Option<Checkpoint> {
    let shape = input.byte();
    let integrity = Integrity { rows_in: Some(shape.into()), ..Integrity::default() };
    (shape & 1 == 0).then(|| Checkpoint {
        position: Bytes::from(vec![shape; usize::from(shape >> 6)]),
        integrity: (shape & 2 == 2).then_some(integrity),
        ..Checkpoint::default()
    })
}

/// Inputs to begin with: each kind of fact after a grant and a commit, each request, and a payload as it is.
pub fn seeds() -> Vec<Vec<u8>> {
    let mut granted = [0; 15];
    let committed = [2, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0, 0];
    let after = |granted: [u8; 15]| -> Vec<u8> { [0, 1].into_iter().chain(granted).chain(committed).collect() };
    let begun = after(granted);
    let head = play(&begun).state.branch(PIPELINES[0], BRANCHES[0]).and_then(Branch::head);
    assert_eq!(head.map(|head| head.sequence), Some(1), "the seeds begin with facts that fit");
    let steps = (0..KINDS).chain((0x80..).take(usize::from(requests::KINDS)));
    let mut seeds: Vec<Vec<u8>> = steps.map(|step| begun.iter().copied().chain([step, 0, 0, 0]).collect()).collect();
    // A lease of any length, and somebody else who asks for it.
    granted[6] = 0x81;
    seeds.push(after(granted).into_iter().chain([0x80, 0, 1, 7, 1, 0]).collect());
    let payload = Fact { at_ms: 1, kind: Some(Kind::ClusterCreated(ClusterCreated::default())) }.encode_to_vec();
    let length = (payload.len() as u16).to_le_bytes();
    seeds.push([1].into_iter().chain(length).chain(payload).collect());
    seeds
}
