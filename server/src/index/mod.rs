//! Where old checkpoints are in the log: what is asked for rarely and decided upon never.
//!
//! Logical addresses only. Everything here can be made again from the log, so it is never the only copy of anything.

use std::collections::BTreeMap;

use fencepost::Lsn;
use fencepost::log::v1::Fact;
use fencepost::log::v1::fact::Kind;

use crate::state::entry;

/// The commits of every branch, by sequence.
#[derive(Debug, Default)]
pub struct Index {
    pipelines: BTreeMap<Box<str>, BTreeMap<Box<str>, Vec<Lsn>>>,
}

impl Index {
    /// Takes one fact in. The facts come in the order of the log, each once.
    pub fn feed(&mut self, lsn: Lsn, fact: &Fact) {
        let Some(Kind::Committed(committed)) = &fact.kind else { return };
        let pipeline = entry(&mut self.pipelines, &committed.pipeline);
        for branch in &committed.branches {
            let commits = entry(pipeline, &branch.branch);
            commits.push(lsn);
            debug_assert_eq!(commits.len() as u64, branch.sequence, "sequences are gapless from 1");
        }
    }

    /// Where the commit is that gave the branch its checkpoint of this sequence.
    pub fn commit(&self, pipeline: &str, branch: &str, sequence: u64) -> Option<Lsn> {
        let commits = self.pipelines.get(pipeline)?.get(branch)?;
        commits.get(usize::try_from(sequence.checked_sub(1)?).ok()?).copied()
    }
}
