//! What the index is told about the log: of every fact only what is still needed, as the state at the end of the range sees
//! it. A branch that committed a thousand times since costs as many entries as it retains.

use std::collections::{BTreeMap, BTreeSet};

use fencepost::log::v1::Fact;
use fencepost::{LogIndex, Lsn};

use crate::index::{Change, is_audit};
use crate::state::{Keep, State, id_key};

/// What a fact takes in its entry beside its payload: header and padding; and what an entry takes for itself: its commit
/// frame and its row in the table.
const FACT_EXTRA_BYTES: u64 = 36;
const ENTRY_EXTRA_BYTES: u64 = 88;

/// Changes that are gathered from facts.
pub(super) struct Gathered {
    /// In the order of the log.
    changes: Vec<Change>,
    /// Branches that moved, by pipeline.
    touched: BTreeMap<String, BTreeSet<String>>,
    /// Live bytes that are no checkpoints, by the first index of the segment.
    other_bytes: BTreeMap<LogIndex, u64>,
}

impl Gathered {
    pub(super) fn new() -> Gathered {
        Gathered { changes: Vec::new(), touched: BTreeMap::new(), other_bytes: BTreeMap::new() }
    }

    pub(super) fn len(&self) -> usize {
        self.changes.len()
    }

    /// From here on facts are of the segment that begins with this index.
    pub(super) fn segment(&mut self, first_index: LogIndex) {
        self.other_bytes.entry(first_index).or_default();
    }

    /// Takes one fact in, which has `payload_bytes` and shares its entry with `together` facts in all.
    pub(super) fn add(&mut self, state: &State, now_ms: u64, lsn: Lsn, fact: &Fact, payload_bytes: u64, together: u64) {
        let Some(pipeline) = fact.pipeline() else { return };
        let fact_bytes = payload_bytes + FACT_EXTRA_BYTES + ENTRY_EXTRA_BYTES / together.max(1);
        let (mut retained, mut made) = (0, 0);
        for (branch, sequence, checkpoint) in fact.checkpoints() {
            made += 1;
            self.touch(pipeline, branch);
            let known = state.branch(pipeline, branch);
            let is_current = known.is_some_and(|known| !known.is_abandoned(sequence, lsn));
            if checkpoint.is_some() && is_current && state.is_retained(pipeline, branch, sequence, lsn) {
                retained += 1;
                self.changes.push(Change::Commit {
                    pipeline: pipeline.to_owned(),
                    branch: branch.to_owned(),
                    sequence,
                    lsn,
                    at_ms: fact.at_ms,
                    bytes: fact_bytes,
                    commit_id: fact.commit().filter(|it| !it.commit_id.is_empty()).map(|it| id_key(&it.commit_id)),
                });
            }
        }
        // Several checkpoints share the bytes of their fact.
        if retained > 0 {
            let share = fact_bytes / made;
            for change in self.changes.iter_mut().rev().take(retained as usize) {
                if let Change::Commit { bytes, .. } = change {
                    *bytes = share;
                }
            }
        } else if state.keep(lsn, fact, now_ms, &|_| false) != Keep::Nothing {
            let kept = if made > 0 { fact_bytes.min(HUSK_BYTES) } else { fact_bytes };
            if let Some(mut segment) = self.other_bytes.last_entry() {
                *segment.get_mut() += kept;
            }
        }
        if is_audit(fact) {
            self.changes.push(Change::Audit { pipeline: pipeline.to_owned(), lsn, at_ms: fact.at_ms });
            fact.branches().for_each(|branch| self.touch(pipeline, branch));
        }
    }

    fn touch(&mut self, pipeline: &str, branch: &str) {
        if !self.touched.contains_key(pipeline) {
            self.touched.insert(pipeline.to_owned(), BTreeSet::new());
        }
        let branches = self.touched.get_mut(pipeline).expect("it was there or was just inserted");
        if !branches.contains(branch) {
            branches.insert(branch.to_owned());
        }
    }

    /// All changes, those included that follow from what the branches retain now.
    pub(super) fn finish(self, state: &State, now_ms: u64) -> Vec<Change> {
        let Gathered { mut changes, touched, other_bytes } = self;
        let segments = other_bytes.into_iter();
        changes.splice(0..0, segments.map(|(first_index, other_bytes)| Change::Segment { first_index, other_bytes }));
        for (name, branches) in touched {
            let Some(pipeline) = state.pipeline(&name) else { continue };
            for branch in branches {
                let Some(known) = state.branch(&name, &branch) else { continue };
                let head = known.head().map_or(0, |head| head.sequence);
                let sequences = known.retained_from().max(1)..=head;
                let pinned = pipeline.savepoints_after("").filter(|(_, savepoint)| *savepoint.branch == *branch);
                let pinned = pinned.map(|(_, savepoint)| savepoint.sequence).collect();
                changes.push(Change::Retain { pipeline: name.clone(), branch, sequences, pinned });
            }
            let before_ms = now_ms.saturating_sub(pipeline.audit_for_ms());
            changes.push(Change::ExpireAudit { pipeline: name, before_ms });
        }
        changes
    }
}

/// What a fact of this length takes in the log, if it has its entry to itself.
pub(super) fn kept_bytes(payload_bytes: usize) -> u64 {
    payload_bytes as u64 + FACT_EXTRA_BYTES + ENTRY_EXTRA_BYTES
}

/// What is left of a commit without its checkpoints.
const HUSK_BYTES: u64 = 192;
