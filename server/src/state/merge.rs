//! Merges: which sets of checkpoints were merged already, and into what.
//!
//! The same inputs, merged by the same function, give the same output. So the first result stands, and another one is told.
//! Inputs are known by their places in the log: after a rewind a sequence is used again for something else.

use fencepost::log::v1::Committed;
use fencepost::v1::{Merge, MergeInput};
use fencepost::{Lsn, Reason};

use super::newest::{Newest, Placed};
use super::schema::shown_fingerprint;
use super::{Commit, Digest, Pipeline, State};
use crate::error::Refusal;

/// How many of its newest merges a pipeline remembers. Fewer in the module's own tests.
const MERGES_REMEMBERED: usize = if cfg!(test) { 4 } else { 10_000 };

/// A merge, its shape already checked.
#[derive(Clone, Debug)]
pub struct MergeCommit {
    /// The commit of the output: of one branch.
    pub commit: Commit,
    /// How it was merged; its inputs are in `inputs`.
    pub merge: Merge,
    /// The checkpoints that were merged, in the order of branch and sequence, each once; or why one of them could not be found
    /// or read, which counts only after the checks that come before it.
    pub inputs: Result<Vec<Input>, Refusal>,
}

/// A checkpoint that was merged.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Input {
    /// The checkpoint, and where history has it.
    pub input: MergeInput,
    /// The fingerprint of its schema; empty if it has none.
    pub schema: Box<[u8]>,
}

/// How a merge is judged, if it is not refused.
#[derive(Clone, Debug, PartialEq)]
pub enum MergeVerdict {
    /// The output is committed once this fact is durable.
    Apply(Box<Committed>),
    /// It was before: at this place, of this branch, with this sequence.
    Already(Lsn, Box<str>, u64),
}

/// What became of a set of inputs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Merged {
    /// The commit of the output.
    pub lsn: Lsn,
    /// The branch that has it.
    pub branch: Box<str>,
    /// And its sequence there.
    pub sequence: u64,
    /// What was said of the output.
    pub output_digest: Box<[u8]>,
}

/// The merges of a pipeline, by what identifies their inputs.
pub(super) type Merges = Newest<Digest, Merged, MERGES_REMEMBERED>;

impl Placed for Merged {
    fn lsn(&self) -> Lsn {
        self.lsn
    }
}

impl Pipeline {
    /// What these inputs were merged into, unless a rewind left that behind.
    pub(super) fn merged(&self, merge: &Merge) -> Option<&Merged> {
        let merged = self.merges.get(&identity(merge))?;
        let branch = self.branches.get(&merged.branch)?;
        (!branch.is_abandoned(merged.sequence, merged.lsn)).then_some(merged)
    }
}

impl State {
    /// Judges a merge: first whether it was committed before, by the commit's id or by its inputs, and then like any commit.
    pub fn evaluate_merge(&self, merge: MergeCommit, now_ms: u64) -> Result<MergeVerdict, Refusal> {
        let MergeCommit { commit, mut merge, inputs } = merge;
        let of = &commit.request.pipeline;
        self.check_cluster(commit.request.cluster.as_ref())?;
        self.check_ready(of)?;
        if let (Some(lsn), [moved]) = (self.committed_before(&commit)?, &commit.request.branches[..]) {
            return Ok(MergeVerdict::Already(lsn, moved.branch.as_str().into(), moved.sequence));
        }
        let inputs = inputs?;
        for Input { input, .. } in &inputs {
            self.check_place(of, &input.branch, input.sequence, Some(Lsn::from_u64(input.lsn)))?;
        }
        check_schemas(&inputs)?;
        merge.inputs = inputs.into_iter().map(|it| it.input).collect();
        if let Some(merged) = self.pipeline(of).and_then(|pipeline| pipeline.merged(&merge)) {
            let Merged { lsn, branch, sequence, output_digest } = merged;
            if **output_digest != *merge.output_digest {
                return Err(diverged(of, merged, &merge));
            }
            return Ok(MergeVerdict::Already(*lsn, branch.clone(), *sequence));
        }
        let committed = self.judge_moves(commit, Some(merge), now_ms)?;
        Ok(MergeVerdict::Apply(Box::new(committed)))
    }
}

/// Checks that all inputs that say what schema they have say the same.
fn check_schemas(inputs: &[Input]) -> Result<(), Refusal> {
    let mut said = inputs.iter().filter(|it| !it.schema.is_empty());
    let Some(first) = said.next() else { return Ok(()) };
    let Some(other) = said.find(|it| it.schema != first.schema) else { return Ok(()) };
    let told =
        |Input { input, schema }: &Input| (format!("{}@{}", input.branch, input.sequence), shown_fingerprint(schema));
    let ((first, first_schema), (other, other_schema)) = (told(first), told(other));
    let message = format!(
        "input {first} has schema {first_schema}, and input {other} has {other_schema}: merge checkpoints of one schema, and \
         bring older ones to the newer schema first"
    );
    Err(Refusal::new(Reason::SchemaMismatch, message)
        .with("first", first)
        .with("first_schema", first_schema)
        .with("other", other)
        .with("other_schema", other_schema))
}

fn diverged(pipeline: &str, first: &Merged, merge: &Merge) -> Refusal {
    let Merged { lsn, branch, sequence, output_digest } = first;
    let (first_digest, digest) = (shown_fingerprint(output_digest), shown_fingerprint(&merge.output_digest));
    let message = format!(
        "these inputs of '{pipeline}' were merged by {} {} before, into {branch}@{sequence} (LSN {lsn}) with output digest \
         {first_digest}, not {digest}: the function does not always give the same output, or it changed without a new \
         version",
        merge.function, merge.version
    );
    Refusal::new(Reason::MergeDiverged, message)
        .with("lsn", lsn.as_u64())
        .with("branch", branch)
        .with("sequence", sequence)
        .with("first_digest", first_digest)
        .with("digest", digest)
}

/// What identifies the inputs and how they are merged. Needs their places.
pub(super) fn identity(merge: &Merge) -> Digest {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes()).update(bytes);
    };
    part(merge.function.as_bytes());
    part(merge.version.as_bytes());
    for input in &merge.inputs {
        part(input.branch.as_bytes());
        part(&input.sequence.to_le_bytes());
        part(&input.lsn.to_le_bytes());
    }
    let hash = hasher.finalize();
    *hash.as_bytes().first_chunk().expect("a BLAKE3 hash has 32 bytes")
}
