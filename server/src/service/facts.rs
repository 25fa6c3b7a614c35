//! Facts from the log, for those who asked for checkpoints.

use std::sync::Arc;

use bytes::Bytes;
use fencepost::log::v1::fact::Kind;
use fencepost::log::v1::{Committed, CommittedBranch, Fact, LeaseGranted, Staged};
use fencepost::v1::{Checkpoint, DeadLetter, Predecessor, StoredCheckpoint};
use fencepost::{Lsn, Made, Payload, Reason};
use prost::Message as _;
use tonic::Status;

use super::status::status;
use crate::error::Refusal;
use crate::log::{Log, ReadError};

/// Reads the checkpoint that the fact at `lsn` gave the branch, and compares its CRC. Off the async threads, because
/// the disk may make it wait.
pub(super) async fn read_checkpoint(
    log: &Arc<Log>,
    lsn: Lsn,
    pipeline: String,
    branch: String,
    without_state: bool,
) -> Result<StoredCheckpoint, Status> {
    let log = Arc::clone(log);
    blocking(move || checkpoint(&log, lsn, &pipeline, &branch, without_state)).await
}

/// Who had the branch before the grant at `lsn`, from the grant itself.
pub(super) fn predecessor(log: &Log, lsn: Lsn) -> Result<Option<Predecessor>, Refusal> {
    let Some(Kind::LeaseGranted(granted)) = read(log, lsn)?.kind else {
        return Err(corrupt(lsn, "it is no grant".to_owned()));
    };
    let LeaseGranted { previous_holder, previous_token, previous_silent_ms, .. } = granted;
    let predecessor = Predecessor { holder: previous_holder, token: previous_token, silent_ms: previous_silent_ms };
    Ok((previous_token != 0).then_some(predecessor))
}

/// Runs what may wait for the disk.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Status::internal("reading the log panicked"))?.map_err(status)
}

/// The checkpoint that the fact at `lsn` gave the branch.
pub(super) fn checkpoint(
    log: &Log,
    lsn: Lsn,
    pipeline: &str,
    branch: &str,
    without_state: bool,
) -> Result<StoredCheckpoint, Refusal> {
    let fact = read(log, lsn)?;
    let made = fact.checkpoints().find(|made| made.branch == branch && fact.pipeline() == Some(pipeline));
    let Made { sequence, payload, .. } =
        made.ok_or_else(|| corrupt(lsn, format!("it does not move branch '{branch}' of '{pipeline}'")))?;
    let gone = || {
        let message = format!("checkpoint {sequence} of branch '{branch}' of '{pipeline}' is not kept any more");
        Refusal::new(Reason::Compacted, message).with("branch", branch)
    };
    let staging;
    let (mut checkpoint, staged_letters) = match payload {
        Payload::Here(checkpoint) => (checkpoint.clone(), None),
        Payload::Gone => return Err(gone()),
        Payload::Staged(at) => {
            staging = staged(log, at)?;
            let letters = letter_count(&staging.dead_letters, staging.handled_dead_letters);
            (staging.checkpoint.clone().ok_or_else(gone)?, Some(letters))
        }
    };
    check_payload(lsn, &checkpoint)?;
    let state_bytes = checkpoint.state.len() as u64;
    let commit = fact.commit();
    let moved = commit.and_then(|commit| commit.branches.iter().find(|moved| moved.branch == branch));
    if without_state {
        leave_state_out(&mut checkpoint);
    }
    let letters = |moved: &CommittedBranch| letter_count(&moved.dead_letters, moved.handled_dead_letters);
    Ok(StoredCheckpoint {
        pipeline: pipeline.to_owned(),
        branch: branch.to_owned(),
        sequence,
        token: moved.map_or(0, |moved| moved.token),
        lsn: lsn.as_u64(),
        commit_id: commit.map_or_else(String::new, |commit| commit.commit_id.clone()),
        committed_at_ms: fact.committed_at_ms(),
        state_bytes,
        checkpoint: Some(checkpoint),
        unreadable: String::new(),
        merge: commit.and_then(|commit| commit.merge.clone()),
        barrier: commit.and_then(|commit| commit.barrier.as_ref()).map_or_else(String::new, |it| it.name.clone()),
        dead_letters: staged_letters.or_else(|| moved.map(letters)).unwrap_or_default(),
    })
}

/// How many dead letters came with something, handled ones included.
fn letter_count(open: &[DeadLetter], handled: u32) -> u32 {
    handled.saturating_add(open.len() as u32)
}

/// What was staged at `lsn`.
pub(super) fn staged(log: &Log, lsn: Lsn) -> Result<Staged, Refusal> {
    match read(log, lsn)?.kind {
        Some(Kind::Staged(staged)) => Ok(staged),
        _ => Err(corrupt(lsn, "it stages nothing".to_owned())),
    }
}

/// The checkpoint that the branch has staged, at `lsn`.
pub(super) fn staged_checkpoint(
    log: &Log,
    lsn: Lsn,
    pipeline: &str,
    branch: &str,
    without_state: bool,
) -> Result<Checkpoint, Refusal> {
    let checkpoint = staged(log, lsn).and_then(|staged| {
        let checkpoint = staged.checkpoint.ok_or_else(|| corrupt(lsn, "it has no checkpoint".to_owned()))?;
        check_payload(lsn, &checkpoint).map(|()| checkpoint)
    });
    let mut checkpoint = checkpoint.map_err(|refusal| {
        let message = format!(
            "{}; branch '{branch}' of '{pipeline}' has that staged, and nobody can begin on it before that is ended: ask \
             the sink whether it has it, then set the branch back to its present head ('fencepost rewind {pipeline} \
             --branch {branch} --to HEAD')",
            refusal.message
        );
        if refusal.reason == Reason::Corrupt { Refusal { message, ..refusal } } else { refusal }
    })?;
    if without_state {
        leave_state_out(&mut checkpoint);
    }
    Ok(checkpoint)
}

/// Compares a checkpoint, of the fact at `lsn`, with its CRC.
pub(super) fn check_payload(lsn: Lsn, checkpoint: &Checkpoint) -> Result<(), Refusal> {
    if checkpoint.payload_crc32 == Some(checkpoint.computed_crc32()) {
        return Ok(());
    }
    Err(corrupt(lsn, "its payload does not have the CRC it was stored with".to_owned()))
}

/// Drops the state, and with it the memory of the whole fact, which what is left would otherwise keep.
pub(super) fn leave_state_out(checkpoint: &mut Checkpoint) {
    checkpoint.state = Bytes::new();
    checkpoint.position = Bytes::copy_from_slice(&checkpoint.position);
    if let Some(integrity) = &mut checkpoint.integrity {
        integrity.schema_fingerprint = Bytes::copy_from_slice(&integrity.schema_fingerprint);
    }
}

/// The commit at `lsn`, perhaps an imported one. `None`: the branch was forked there.
pub(super) fn commit(log: &Log, lsn: Lsn) -> Result<Option<Committed>, Refusal> {
    let fact = read(log, lsn)?;
    match fact.kind {
        Some(Kind::Committed(committed)) => Ok(Some(committed)),
        Some(Kind::Imported(imported)) => Ok(imported.commit),
        Some(Kind::Forked(_)) => Ok(None),
        _ => Err(corrupt(lsn, "it is no commit".to_owned())),
    }
}

/// The fact at `lsn`.
pub(super) fn read(log: &Log, lsn: Lsn) -> Result<Fact, Refusal> {
    decode(lsn, log.read(lsn).map_err(unreadable)?)
}

/// The same, if compaction has not removed it meanwhile.
pub(super) fn find(log: &Log, lsn: Lsn) -> Result<Option<Fact>, Refusal> {
    match log.read(lsn) {
        Err(ReadError::NotFound(_)) => Ok(None),
        payload => decode(lsn, payload.map_err(unreadable)?).map(Some),
    }
}

/// A fact from its bytes.
pub(super) fn decode(lsn: Lsn, payload: Bytes) -> Result<Fact, Refusal> {
    Fact::decode(payload).map_err(|error| corrupt(lsn, format!("it does not decode: {error}")))
}

/// One row of a list: damage is told in its place, and what was removed meanwhile is left out.
pub(super) fn row<T>(read: Result<T, Refusal>, unreadable: impl FnOnce(String) -> T) -> Option<T> {
    match read {
        Err(refusal) if refusal.reason == Reason::Compacted => None,
        read => Some(read.unwrap_or_else(|refusal| unreadable(refusal.message))),
    }
}

/// What a reader of the log is told.
pub(super) fn unreadable(error: ReadError) -> Refusal {
    if let ReadError::NotFound(lsn) = error {
        let message = format!("what was at LSN {lsn} is not kept any more, and was removed while it was looked for");
        return Refusal::new(Reason::Compacted, message).with("lsn", lsn.as_u64());
    }
    Refusal::new(Reason::Corrupt, format!("{error}; all else can be read"))
}

pub(super) fn corrupt(lsn: Lsn, what: String) -> Refusal {
    let message = format!("the fact at LSN {lsn} is not what the index says: {what}; run 'fencepost verify'");
    Refusal::new(Reason::Corrupt, message).with("lsn", lsn.as_u64())
}
