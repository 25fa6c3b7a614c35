//! Where old checkpoints are in the log: what is asked for rarely and decided upon never.
//!
//! Logical addresses only. Everything here can be made again from the log, so it is never the only copy of anything.

use std::collections::BTreeMap;

use fencepost::Lsn;
use fencepost::log::v1::Fact;

use crate::state::entry;

/// Where the checkpoints of each branch of a pipeline are, by sequence.
type Branches = BTreeMap<Box<str>, BTreeMap<u64, Lsn>>;

/// The checkpoints of every branch, by sequence.
#[derive(Debug, Default)]
pub struct Index {
    pipelines: BTreeMap<Box<str>, Branches>,
}

impl Index {
    /// Takes one fact in. The facts come in the order of the log, each once.
    pub fn feed(&mut self, lsn: Lsn, fact: &Fact) {
        let Some(pipeline) = fact.pipeline() else { return };
        for (branch, sequence, _) in fact.checkpoints() {
            // After a rewind sequences come again: the newest counts.
            entry(entry(&mut self.pipelines, pipeline), branch).insert(sequence, lsn);
        }
    }

    /// Where the newest fact is that gave the branch a checkpoint of this sequence.
    pub fn commit(&self, pipeline: &str, branch: &str, sequence: u64) -> Option<Lsn> {
        self.pipelines.get(pipeline)?.get(branch)?.get(&sequence).copied()
    }
}
