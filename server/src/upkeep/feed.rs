//! What the index is told about the log: of every fact only what is still needed, as the state at the end of the range sees
//! it. A branch that committed a thousand times since costs as many entries as it retains.

use std::collections::{BTreeMap, BTreeSet};
use std::ops::RangeInclusive;

use fencepost::log::v1::Fact;
use fencepost::log::v1::fact::Kind;
use fencepost::{LogIndex, Lsn, Made, Payload};
use prost::Message as _;

use crate::index::{Change, is_audit};
use crate::state::{Keep, State, id_key};

/// What a fact takes in its entry beside its payload: header and padding; and what an entry takes for itself: its commit
/// frame and its row in the table.
const FACT_EXTRA_BYTES: u64 = 36;
const ENTRY_EXTRA_BYTES: u64 = 88;

/// What compaction would leave of a fact that has `payload_bytes` and shares its entry with `together` facts in all.
pub(super) fn live_bytes(keep: &Keep, payload_bytes: u64, together: u64) -> u64 {
    let payload_bytes = match keep {
        Keep::Whole => payload_bytes,
        Keep::Reduced(fact) => fact.encoded_len() as u64,
        Keep::Nothing => return 0,
    };
    payload_bytes + FACT_EXTRA_BYTES + ENTRY_EXTRA_BYTES / together.max(1)
}

/// The segment in which something ended, by its first index, and the live bytes that were counted in it until there.
pub(super) type Partial = Option<(LogIndex, u64)>;

/// Changes that are gathered from facts.
pub(super) struct Gathered<'a> {
    state: &'a State,
    now_ms: u64,
    /// In the order of the log.
    changes: Vec<Change>,
    /// Branches that moved, by pipeline.
    touched: BTreeMap<String, BTreeSet<String>>,
    /// Live bytes that are no indexed checkpoints, by the first index of the segment.
    other_bytes: BTreeMap<LogIndex, u64>,
}

impl Gathered<'_> {
    /// As the state sees it. Of the segment in which this begins so much was `counted` before.
    pub(super) fn new(state: &State, now_ms: u64, counted: Partial) -> Gathered<'_> {
        let (changes, touched) = (Vec::new(), BTreeMap::new());
        Gathered { state, now_ms, changes, touched, other_bytes: counted.into_iter().collect() }
    }

    pub(super) fn len(&self) -> usize {
        self.changes.len()
    }

    /// From here on facts are of the segment that begins with this index.
    pub(super) fn segment(&mut self, first_index: LogIndex) {
        self.other_bytes.entry(first_index).or_default();
    }

    /// These entries cannot be read. There may be an audit record of any pipeline among them.
    pub(super) fn unread(&mut self, indexes: RangeInclusive<LogIndex>) {
        let (lsn, at_ms) = (Lsn::new(*indexes.start(), 0), self.now_ms);
        let pipelines = self.state.pipelines_after("", "");
        let audits = pipelines.map(|(name, _)| Change::Audit { pipeline: name.to_owned(), lsn, at_ms });
        self.changes.extend(audits);
        self.changes.push(Change::Unread { indexes });
    }

    /// Takes one fact in, which has `payload_bytes` and shares its entry with `together` facts in all.
    pub(super) fn add(&mut self, lsn: Lsn, fact: &Fact, payload_bytes: u64, together: u64) {
        let Some(pipeline) = fact.pipeline() else { return };
        let (mut made, mut retained) = (0, 0);
        for Made { branch, sequence, payload } in fact.checkpoints() {
            made += 1;
            self.touch(pipeline, branch);
            let known = self.state.branch(pipeline, branch);
            let is_current = known.is_some_and(|known| !known.is_abandoned(sequence, lsn));
            if payload.is_there() && is_current && self.state.is_retained(pipeline, branch, sequence, lsn) {
                retained += 1;
                self.changes.push(Change::Commit {
                    pipeline: pipeline.to_owned(),
                    branch: branch.to_owned(),
                    sequence,
                    lsn,
                    payload: if let Payload::Staged(staged) = payload { staged } else { lsn },
                    at_ms: fact.at_ms,
                    bytes: 0,
                    commit_id: fact.commit().filter(|it| !it.commit_id.is_empty()).map(|it| id_key(&it.commit_id)),
                });
            }
        }
        let is_whole = made > 0 && retained == made;
        let keep = if is_whole { Keep::Whole } else { self.state.keep(lsn, fact, self.now_ms, &|_| false) };
        let live_bytes = live_bytes(&keep, payload_bytes, together);
        // Several checkpoints share the bytes of their fact.
        for change in self.changes.iter_mut().rev().take(retained as usize) {
            if let Change::Commit { bytes, .. } = change {
                *bytes = live_bytes / retained;
            }
        }
        if retained == 0
            && let Some(mut segment) = self.other_bytes.last_entry()
        {
            *segment.get_mut() += live_bytes;
        }
        if is_audit(fact) {
            self.changes.push(Change::Audit { pipeline: pipeline.to_owned(), lsn, at_ms: fact.at_ms });
            fact.branches().for_each(|branch| self.touch(pipeline, branch));
        }
        if let Some(Kind::ImportFinished(_)) = fact.kind
            && let Some(imported) = self.state.pipeline(pipeline)
        {
            imported.branches_after("").for_each(|(branch, _)| self.touch(pipeline, branch));
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

    /// All changes, those included that follow from what the branches retain now; and what was counted of the last segment.
    pub(super) fn finish(self) -> (Vec<Change>, Partial) {
        let Gathered { state, now_ms, mut changes, touched, other_bytes } = self;
        let last = other_bytes.last_key_value().map(|(first_index, bytes)| (*first_index, *bytes));
        let segments = other_bytes.into_iter();
        changes.splice(0..0, segments.map(|(first_index, other_bytes)| Change::Segment { first_index, other_bytes }));
        for (name, branches) in touched {
            // What savepoints will keep of an import comes after what it is of.
            let Some(pipeline) = state.pipeline(&name).filter(|pipeline| !pipeline.is_importing()) else { continue };
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
        (changes, last)
    }
}
