//! Commits with dead letters and schemas, replays, discards, and fences of whole pipelines, among all else that happens.

use fencepost::v1::{
    DeadLetter, DeadLetterId, DeclareSchemaRequest, DiscardDeadLettersRequest, FenceGroupRequest, Integrity, Schema,
};

use super::*;

/// As many fingerprints as there can be; 0 is none.
const SCHEMAS: u8 = 5;

#[derive(Clone, Debug)]
pub(super) enum Step {
    /// A commit with so many dead letters of each branch, that replays so many open ones from a certain one on.
    Commit {
        branch: usize,
        with: Option<usize>,
        letters: usize,
        replays: usize,
        from: usize,
        schema: u8,
    },
    /// Gives up so many open ones.
    Discard {
        pipeline: usize,
        from: usize,
        count: usize,
    },
    Declare {
        pipeline: usize,
        schema: u8,
        successor_of: u8,
    },
    Fence {
        pipeline: usize,
    },
}

pub(super) fn step() -> impl Strategy<Value = Step> {
    let (branch, pipeline) = (0..BRANCHES.len() + 2, 0..PIPELINES.len());
    let with = proptest::option::weighted(0.4, branch.clone());
    let schema = 0..SCHEMAS;
    prop_oneof![
        6 => (branch, with, 0..4_usize, 0..3_usize, any::<usize>(), schema.clone()).prop_map(
            |(branch, with, letters, replays, from, schema)| Step::Commit { branch, with, letters, replays, from, schema }
        ),
        2 => (pipeline.clone(), any::<usize>(), 1..4_usize)
            .prop_map(|(pipeline, from, count)| Step::Discard { pipeline, from, count }),
        1 => (pipeline.clone(), schema.clone(), schema)
            .prop_map(|(pipeline, schema, successor_of)| Step::Declare { pipeline, schema, successor_of }),
        1 => pipeline.prop_map(|pipeline| Step::Fence { pipeline }),
    ]
}

/// What a commit has beside its checkpoints.
#[derive(Default)]
pub(super) struct Load {
    letters: usize,
    replays: usize,
    from: usize,
    schema: u8,
}

impl Load {
    pub(super) fn put_on(self, branches: &mut [BranchCommit], state: &State, pipeline: &str) {
        for moved in branches.iter_mut() {
            let letter = |number| DeadLetter {
                payload: Bytes::from(format!("{} {} {number}", moved.branch, moved.sequence)),
                reason: "no delay".to_owned(),
                ..DeadLetter::default()
            };
            moved.dead_letters = (0..self.letters).map(letter).collect();
            if let Some(checkpoint) = moved.checkpoint.as_mut().filter(|_| self.schema > 0) {
                let schema_fingerprint = fingerprint(self.schema);
                checkpoint.integrity = Some(Integrity { schema_fingerprint, ..Integrity::default() });
            }
        }
        branches[0].replayed = some_open(state, pipeline, self.from, self.replays);
    }
}

fn fingerprint(schema: u8) -> Bytes {
    if schema == 0 { Bytes::new() } else { vec![schema; 8].into() }
}

fn open(state: &State, pipeline: &str) -> Vec<DeadLetterId> {
    let known = state.pipeline(pipeline).into_iter();
    known.flat_map(|known| known.dead_letters_from(DeadLetterId::default())).map(|(id, _, _)| id).collect()
}

fn some_open(state: &State, pipeline: &str, from: usize, count: usize) -> Vec<DeadLetterId> {
    let open = open(state, pipeline);
    let from = from % open.len().max(1);
    open.into_iter().skip(from).take(count).collect()
}

impl History {
    pub(super) fn take_letters(&mut self, step: Step) {
        match step {
            Step::Commit { branch, with, letters, replays, from, schema } => {
                self.load = Load { letters, replays, from, schema };
                let id = format!("id-{}", self.ids.len());
                self.commit(branch, with, &id);
            }
            Step::Discard { pipeline, from, count } => {
                let letters = some_open(&self.store.state, PIPELINES[pipeline], from, count);
                let (pipeline, reason) = (PIPELINES[pipeline].to_owned(), "hopeless".to_owned());
                let request = DiscardDeadLettersRequest { pipeline, letters, reason, ..Default::default() };
                match self.store.state.evaluate_discard_dead_letters(&request) {
                    Ok(discarded) => drop(self.record(Kind::DeadLettersDiscarded(discarded))),
                    Err(refusal) => assert_eq!(refusal.reason, Reason::StateMissing, "{refusal}"),
                }
                let again = self.store.state.evaluate_discard_dead_letters(&request);
                assert!(request.letters.is_empty() || again.is_err(), "each is handled once");
            }
            Step::Declare { pipeline, schema, successor_of } => {
                let name = format!("v{schema}");
                let (fingerprint, successor_of) = (fingerprint(schema), fingerprint(successor_of));
                let schema = Some(Schema { fingerprint, name, successor_of });
                let pipeline = PIPELINES[pipeline].to_owned();
                let request = DeclareSchemaRequest { pipeline, schema, ..Default::default() };
                if let Ok(Some(declared)) = self.store.state.evaluate_schema_declare(&request) {
                    self.record(Kind::SchemaDeclared(declared));
                    assert_eq!(self.store.state.evaluate_schema_declare(&request), Ok(None));
                }
            }
            Step::Fence { pipeline } => {
                let request = FenceGroupRequest { pipeline: PIPELINES[pipeline].to_owned(), ..Default::default() };
                let Ok(fenced) = self.store.state.evaluate_fence_group(&request) else { return };
                self.record(Kind::GroupFenced(fenced));
                let (_, leases) = self.store.state.pipeline(PIPELINES[pipeline]).unwrap().counts();
                assert_eq!(leases, 0, "nobody holds anything of a fenced pipeline");
            }
        }
    }

    /// What must be open, told from all facts by the words of semantics.md, is what the state says, and can be read.
    pub(super) fn check_letters(&self) {
        let all = self.open_by_the_book();
        for pipeline in PIPELINES {
            let expected: Vec<_> = all.iter().filter(|(_, of)| of.pipeline == pipeline).collect();
            let ids: Vec<_> =
                expected.iter().map(|((lsn, number), _)| DeadLetterId { lsn: *lsn, number: *number }).collect();
            assert_eq!(open(&self.store.state, pipeline), ids, "{pipeline}");
            let Some(known) = self.store.state.pipeline(pipeline) else { continue };
            assert_eq!(known.dead_letters(), ids.len() as u64);
            for (_, of) in &expected {
                let of_branch = expected.iter().filter(|(_, other)| other.branch == of.branch).count() as u64;
                assert_eq!(known.dead_letters_of(&of.branch), of_branch);
            }
        }
        for ((lsn, number), of) in &all {
            let (_, kept) = self.kept.iter().find(|(at, _)| at.as_u64() == *lsn).expect("open letters are not removed");
            assert_eq!(kept.dead_letters().nth(*number as usize), Some(&of.letter));
        }
    }

    /// Open letters, by fact and number.
    fn open_by_the_book(&self) -> BTreeMap<(u64, u32), Letter> {
        let mut open: BTreeMap<(u64, u32), Letter> = BTreeMap::new();
        for (lsn, fact) in &self.store.facts {
            let mut handled: Vec<DeadLetterId> = Vec::new();
            match &fact.kind {
                Some(Kind::Committed(commit)) => {
                    let mut here = 0;
                    for moved in &commit.branches {
                        let staged = self.store.facts.iter().find(|(at, _)| at.as_u64() == moved.staged_lsn);
                        let of = |letter: &DeadLetter| Letter {
                            pipeline: commit.pipeline.clone(),
                            branch: moved.branch.clone(),
                            sequence: moved.sequence,
                            letter: letter.clone(),
                        };
                        if let Some((at, staged)) = staged {
                            open.extend((0..).zip(staged.dead_letters()).map(|(n, it)| ((at.as_u64(), n), of(it))));
                        }
                        for letter in &moved.dead_letters {
                            open.insert((lsn.as_u64(), here), of(letter));
                            here += 1;
                        }
                        handled.extend(&moved.replayed);
                    }
                }
                Some(Kind::DeadLettersDiscarded(discarded)) => handled.extend(&discarded.letters),
                Some(Kind::Rewound(rewound)) => open.retain(|_, of| {
                    of.pipeline != rewound.pipeline || of.branch != rewound.branch || of.sequence <= rewound.to_sequence
                }),
                _ => {}
            }
            for DeadLetterId { lsn, number } in handled {
                assert!(open.remove(&(lsn, number)).is_some(), "each is handled once");
            }
        }
        open
    }
}

struct Letter {
    pipeline: String,
    branch: String,
    sequence: u64,
    letter: DeadLetter,
}
