//! Facts from the log, for those who asked for checkpoints.

use std::sync::Arc;

use bytes::Bytes;
use fencepost::log::v1::fact::Kind;
use fencepost::log::v1::{Committed, Fact};
use fencepost::v1::StoredCheckpoint;
use fencepost::{Lsn, Reason};
use prost::Message as _;
use tonic::Status;

use super::shape;
use super::status::status;
use crate::error::Refusal;
use crate::log::{Log, ReadError};

/// Reads the checkpoint that the commit at `lsn` gave the branch, and compares its CRC. Off the async threads, because
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

/// Runs what may wait for the disk.
pub(super) async fn blocking<T: Send + 'static>(
    work: impl FnOnce() -> Result<T, Refusal> + Send + 'static,
) -> Result<T, Status> {
    let done = tokio::task::spawn_blocking(work).await;
    done.map_err(|_| Status::internal("reading the log panicked"))?.map_err(status)
}

/// The checkpoint that the commit at `lsn` gave the branch.
pub(super) fn checkpoint(
    log: &Log,
    lsn: Lsn,
    pipeline: &str,
    branch: &str,
    without_state: bool,
) -> Result<StoredCheckpoint, Refusal> {
    let (at_ms, committed) = commit(log, lsn)?;
    let moved = committed.branches.into_iter().find(|moved| moved.branch == branch);
    let moved = moved.filter(|_| committed.pipeline == pipeline);
    let moved = moved.ok_or_else(|| corrupt(lsn, format!("it does not move branch '{branch}' of '{pipeline}'")))?;
    let mut checkpoint = moved.checkpoint.unwrap_or_default();
    if checkpoint.payload_crc32 != Some(shape::crc(&checkpoint)) {
        return Err(corrupt(lsn, "its payload does not have the CRC it was stored with".to_owned()));
    }
    let state_bytes = checkpoint.state.len() as u64;
    if without_state {
        checkpoint.state = Bytes::new();
    }
    Ok(StoredCheckpoint {
        pipeline: committed.pipeline,
        branch: moved.branch,
        sequence: moved.sequence,
        token: moved.token,
        lsn: lsn.as_u64(),
        commit_id: committed.commit_id,
        committed_at_ms: at_ms,
        state_bytes,
        checkpoint: Some(checkpoint),
    })
}

/// The commit at `lsn`, and when it was made.
pub(super) fn commit(log: &Log, lsn: Lsn) -> Result<(u64, Committed), Refusal> {
    let fact = decode(lsn, log.read(lsn).map_err(unreadable)?)?;
    match fact.kind {
        Some(Kind::Committed(committed)) => Ok((fact.at_ms, committed)),
        _ => Err(corrupt(lsn, "it is no commit".to_owned())),
    }
}

/// A fact from its bytes.
pub(super) fn decode(lsn: Lsn, payload: Bytes) -> Result<Fact, Refusal> {
    Fact::decode(payload).map_err(|error| corrupt(lsn, format!("it does not decode: {error}")))
}

/// What a reader of the log is told.
pub(super) fn unreadable(error: ReadError) -> Refusal {
    Refusal::new(
        Reason::Corrupt,
        format!("{error}; nothing else is affected: run 'fencepost verify' to see the damage"),
    )
}

fn corrupt(lsn: Lsn, what: String) -> Refusal {
    let message = format!("the fact at LSN {lsn} is not what the index says: {what}; run 'fencepost verify'");
    Refusal::new(Reason::Corrupt, message).with("lsn", lsn.as_u64())
}
