//! The records of what only few pipelines have: staged checkpoints, barriers, merges, dead letters, schemas.

use bytes::Bytes;
use fencepost::log::v1::state_record::Record;
use fencepost::log::v1::{
    BarrierState, DeadLettersPart, DeadLettersState, MergeState, MergesState, SchemasState, StagedState,
};
use fencepost::{Lsn, Token};

use super::CHUNK;
use crate::state::barrier::{ClosedBarrier, OpenBarrier};
use crate::state::dead::{Letters, Part};
use crate::state::merge::Merged;
use crate::state::staged::{Arrival, Staged};
use crate::state::{Digest, Pipeline};

/// Of a pipeline, all that comes before its branches.
pub(super) fn written(pipeline: &Pipeline) -> impl Iterator<Item = Record> + use<'_> {
    let open = pipeline.barriers.iter_open().map(|(name, barrier)| {
        Record::Barrier(BarrierState {
            name: name.to_owned(),
            opened_lsn: barrier.opened.as_u64(),
            opened_at_ms: barrier.opened_at_ms,
            deadline_ms: barrier.deadline_ms,
            participants: barrier.participants.iter().map(ToString::to_string).collect(),
            ..BarrierState::default()
        })
    });
    let closed = pipeline.barriers.closed.iter().map(|(name, barrier)| {
        Record::Barrier(BarrierState {
            name: name.to_string(),
            closed_lsn: barrier.lsn.as_u64(),
            closed_at_ms: barrier.at_ms,
            is_committed: barrier.is_committed,
            ..BarrierState::default()
        })
    });
    let mut merges = pipeline.merges.iter().map(|(inputs, merged)| MergeState {
        inputs: Bytes::copy_from_slice(inputs),
        lsn: merged.lsn.as_u64(),
        branch: merged.branch.to_string(),
        sequence: merged.sequence,
        output_digest: Bytes::copy_from_slice(&merged.output_digest),
    });
    let merges = std::iter::from_fn(move || {
        let merges: Vec<MergeState> = merges.by_ref().take(CHUNK).collect();
        (!merges.is_empty()).then_some(Record::Merges(MergesState { merges }))
    });
    let letters = pipeline.dead.iter_from(Lsn::ZERO).map(|(lsn, letters)| {
        let parts = letters.parts.iter().map(|part| DeadLettersPart {
            branch: part.branch.to_string(),
            sequence: part.sequence,
            end: part.end,
        });
        let parts = parts.collect();
        Record::DeadLetters(DeadLettersState { lsn: lsn.as_u64(), parts, open: letters.open.clone() })
    });
    let schemas = pipeline.schemas().to_vec();
    let schemas = (!schemas.is_empty()).then_some(Record::Schemas(SchemasState { schemas }));
    open.chain(closed).chain(merges).chain(letters).chain(schemas)
}

pub(super) fn written_staged(staged: &Staged) -> StagedState {
    StagedState {
        stage_id: staged.stage_id.to_string(),
        lsn: staged.lsn.as_u64(),
        sequence: staged.sequence,
        token: staged.token.as_u64(),
        staged_at_ms: staged.staged_at_ms,
        state_bytes: staged.state_bytes,
        digest: Bytes::copy_from_slice(&staged.digest),
        dead_letters: staged.dead_letters,
        schema: staged.schema.clone(),
        scope: staged.scope.map(written_digest).unwrap_or_default(),
        barrier: staged.barrier().unwrap_or_default().to_owned(),
        arrived_lsn: staged.arrival.as_ref().map_or(0, |arrival| arrival.lsn.as_u64()),
    }
}

pub(super) fn read_staged(written: StagedState) -> Result<Staged, String> {
    let arrival = (written.arrived_lsn != 0)
        .then(|| Arrival { barrier: written.barrier.as_str().into(), lsn: Lsn::from_u64(written.arrived_lsn) });
    Ok(Staged {
        stage_id: written.stage_id.as_str().into(),
        lsn: Lsn::from_u64(written.lsn),
        sequence: written.sequence,
        token: Token::from_u64(written.token),
        staged_at_ms: written.staged_at_ms,
        state_bytes: written.state_bytes,
        digest: digest(&written.digest)?,
        dead_letters: written.dead_letters,
        schema: Bytes::copy_from_slice(&written.schema),
        scope: read_digest(&written.scope)?,
        arrival,
    })
}

pub(super) fn barrier(pipeline: &mut Pipeline, written: BarrierState) {
    if written.opened_lsn == 0 {
        let closed = ClosedBarrier {
            lsn: Lsn::from_u64(written.closed_lsn),
            at_ms: written.closed_at_ms,
            is_committed: written.is_committed,
        };
        return pipeline.barriers.closed.insert(written.name.into(), closed);
    }
    let open = OpenBarrier {
        opened: Lsn::from_u64(written.opened_lsn),
        opened_at_ms: written.opened_at_ms,
        deadline_ms: written.deadline_ms,
        participants: written.participants.into_iter().map(Into::into).collect(),
    };
    pipeline.barriers.insert_open(&written.name, open);
}

pub(super) fn merges(pipeline: &mut Pipeline, written: MergesState) -> Result<(), String> {
    for merge in written.merges {
        let merged = Merged {
            lsn: Lsn::from_u64(merge.lsn),
            branch: merge.branch.into(),
            sequence: merge.sequence,
            output_digest: merge.output_digest[..].into(),
        };
        pipeline.merges.insert(digest(&merge.inputs)?, merged);
    }
    Ok(())
}

pub(super) fn dead_letters(pipeline: &mut Pipeline, written: DeadLettersState) {
    let parts = written.parts.into_iter();
    let parts = parts.map(|part| Part { branch: part.branch.into(), sequence: part.sequence, end: part.end });
    let letters = Letters { parts: parts.collect(), open: written.open };
    pipeline.dead.restore(Lsn::from_u64(written.lsn), letters);
}

pub(super) fn written_digest(digest: Digest) -> Bytes {
    Bytes::copy_from_slice(&digest)
}

/// One that need not be there.
pub(super) fn read_digest(bytes: &[u8]) -> Result<Option<Digest>, String> {
    (!bytes.is_empty()).then(|| digest(bytes)).transpose()
}

fn digest(bytes: &[u8]) -> Result<Digest, String> {
    Digest::try_from(bytes).map_err(|_| "has a digest that is not 16 bytes".to_owned())
}
