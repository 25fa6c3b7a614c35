//! Merges: which sets of checkpoints were merged already, and into what.
//!
//! The same inputs, merged by the same function, give the same output. So the first result stands, and another one is told.
//! Inputs are known by their places in the log: after a rewind a sequence is used again for something else.

use std::collections::BTreeMap;

use fencepost::Lsn;
use fencepost::v1::Merge;

use super::{Digest, Pipeline};

/// How many of its newest merges a pipeline remembers. Fewer in the module's own tests.
pub(super) const MERGES_REMEMBERED: usize = if cfg!(test) { 4 } else { 10_000 };

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

/// The merges of a pipeline.
#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct Merges {
    by_inputs: BTreeMap<Digest, Merged>,
    /// Oldest first.
    order: BTreeMap<Lsn, Digest>,
}

impl Merges {
    pub(super) fn get(&self, inputs: &Digest) -> Option<&Merged> {
        self.by_inputs.get(inputs)
    }

    pub(super) fn insert(&mut self, inputs: Digest, merged: Merged) {
        let lsn = merged.lsn;
        if let Some(before) = self.by_inputs.insert(inputs, merged) {
            self.order.remove(&before.lsn);
        }
        self.order.insert(lsn, inputs);
        while self.order.len() > MERGES_REMEMBERED {
            if let Some((_, oldest)) = self.order.pop_first() {
                self.by_inputs.remove(&oldest);
            }
        }
    }

    pub(super) fn made_at(&self, lsn: Lsn) -> bool {
        self.order.contains_key(&lsn)
    }

    /// Oldest first.
    pub(super) fn iter(&self) -> impl Iterator<Item = (&Digest, &Merged)> {
        self.order.values().filter_map(|inputs| Some((inputs, self.by_inputs.get(inputs)?)))
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
