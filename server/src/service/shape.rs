//! Checks that need nothing but the request: names, sizes, ranges. What passes can be judged on the state.

use std::collections::BTreeSet;
use std::time::Duration;

use fencepost::Reason;
use fencepost::v1::{BranchCommit, Checkpoint, CommitRequest, KeepAliveRequest, LeaseRef, ResumeRequest, Takeover};

use crate::config::limits;
use crate::error::Refusal;
use crate::state::{
    Commit, Digest, Resume, check_bytes, check_checkpoint, check_id, check_ms, check_name, check_pipeline,
};

/// Checks a request for a branch and fills in the server's default TTL.
pub(super) fn resume(mut request: ResumeRequest, ttl_default_ms: u64) -> Result<(Resume, Duration), Refusal> {
    check_pipeline("pipeline", &request.pipeline)?;
    check_name("branch", &request.branch)?;
    check_name("holder", &request.holder)?;
    check_id("request_id", &request.request_id)?;
    check_bytes("reason", request.reason.len(), limits::REASON_BYTES_MAX)?;
    check_enum(
        "takeover",
        request.takeover,
        Takeover::try_from(request.takeover).is_ok(),
        "WAIT, SAME_HOLDER or FORCE",
    )?;
    let on_missing = fencepost::v1::OnMissing::try_from(request.on_missing).is_ok();
    check_enum("on_missing", request.on_missing, on_missing, "FAIL or START_FRESH")?;
    let mode = fencepost::v1::ResumeMode::try_from(request.mode).is_ok();
    check_enum("mode", request.mode, mode, "HARD or SOFT")?;
    if request.takeover() == Takeover::Force && request.reason.trim().is_empty() {
        let expected = "a few words, kept in the log: FORCE takes a branch from a worker that may be alive";
        return Err(Refusal::field(Reason::InvalidField, "reason", "", expected));
    }
    if request.ttl_ms == 0 {
        request.ttl_ms = ttl_default_ms;
    }
    check_ms("ttl_ms", request.ttl_ms, limits::TTL_MIN, limits::TTL_MAX)?;
    check_ms("lock_delay_ms", request.lock_delay_ms, Duration::ZERO, limits::LOCK_DELAY_MAX)?;
    check_ms("wait_ms", request.wait_ms, Duration::ZERO, limits::WAIT_MAX)?;
    let wait = Duration::from_millis(request.wait_ms);
    Ok((Resume { request }, wait))
}

/// Checks a keepalive as a whole; each of its leases is judged alone.
pub(super) fn keep_alive(request: &KeepAliveRequest) -> Result<(), Refusal> {
    let count = request.leases.len();
    if count == 0 || count > limits::KEEPALIVE_LEASES_MAX {
        let expected = format!("1 to {}", limits::KEEPALIVE_LEASES_MAX);
        return Err(Refusal::field(Reason::InvalidField, "leases", format!("{count} leases"), &expected));
    }
    Ok(())
}

/// Checks that a lease is named, and by proper names.
pub(super) fn lease(lease: Option<LeaseRef>) -> Result<LeaseRef, Refusal> {
    let lease = lease
        .ok_or_else(|| Refusal::field(Reason::InvalidField, "lease", "", "a lease: pipeline, branch and token"))?;
    check_pipeline("lease.pipeline", &lease.pipeline)?;
    check_name("lease.branch", &lease.branch)?;
    Ok(lease)
}

/// Checks a commit, computes the CRC of every payload and the digest of the whole.
pub(super) fn commit(mut request: CommitRequest) -> Result<Commit, Refusal> {
    check_pipeline("pipeline", &request.pipeline)?;
    check_id("commit_id", &request.commit_id)?;
    let count = request.branches.len();
    if count == 0 || count > limits::BRANCHES_MAX {
        let expected = format!("1 to {}", limits::BRANCHES_MAX);
        return Err(Refusal::field(Reason::InvalidField, "branches", format!("{count} branches"), &expected));
    }
    let mut seen = BTreeSet::new();
    for (i, branch) in request.branches.iter().enumerate() {
        check_name(&format!("branches[{i}].branch"), &branch.branch)?;
        if count > 1 && !seen.insert(branch.branch.as_str()) {
            let field = format!("branches[{i}].branch");
            return Err(Refusal::field(Reason::InvalidField, &field, &branch.branch, "each branch once"));
        }
    }
    let mut payload_fault = None;
    for (i, branch) in request.branches.iter_mut().enumerate() {
        let checkpoint = branch.checkpoint.as_mut().ok_or_else(|| {
            Refusal::field(Reason::InvalidField, &format!("branches[{i}].checkpoint"), "", "a checkpoint")
        })?;
        check_checkpoint(&format!("branches[{i}].checkpoint"), checkpoint)?;
        let actual = checkpoint.computed_crc32();
        let declared = checkpoint.payload_crc32.replace(actual);
        if declared.is_some_and(|declared| declared != actual) {
            payload_fault.get_or_insert_with(|| corrupted(&branch.branch, declared.unwrap_or_default(), actual));
        }
    }
    let digest = digest(&request);
    Ok(Commit { request, digest, payload_fault })
}

/// Size of a page: what was asked for, or the default.
pub(super) fn page_size(asked: u32) -> Result<usize, Refusal> {
    if asked > limits::PAGE_SIZE_MAX {
        let expected = format!("0 to {}", limits::PAGE_SIZE_MAX);
        return Err(Refusal::field(Reason::InvalidField, "page_size", asked, &expected));
    }
    Ok(if asked == 0 { limits::PAGE_SIZE_DEFAULT } else { asked } as usize)
}

fn check_enum(field: &str, value: i32, is_known: bool, expected: &str) -> Result<(), Refusal> {
    if is_known { Ok(()) } else { Err(Refusal::field(Reason::InvalidField, field, value, expected)) }
}

fn corrupted(branch: &str, declared: u32, actual: u32) -> Refusal {
    let message = format!(
        "the payload for branch '{branch}' has CRC-32 {actual:08x}, but payload_crc32 says {declared:08x}: it was \
         changed on its way, or the CRC was not taken over position followed by state"
    );
    Refusal::new(Reason::IntegrityMismatch, message)
        .with("branch", branch)
        .with("declared", format!("{declared:08x}"))
        .with("actual", format!("{actual:08x}"))
}

/// Identifies what is committed. Tokens and time limits are left out: they belong to the attempt, and a retry may
/// change them.
fn digest(request: &CommitRequest) -> Digest {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(request.pipeline.as_bytes());
    let CommitRequest { cluster: _, pipeline: _, commit_id: _, branches, not_after_ms: _ } = request;
    // Taken apart, so that the compiler asks about every field that is added.
    for BranchCommit { branch, token: _, sequence, checkpoint } in branches {
        part(branch.as_bytes());
        part(&sequence.to_le_bytes());
        let Some(Checkpoint { position, state, payload_crc32: _, integrity }) = checkpoint else { continue };
        part(position);
        part(state);
        part(&integrity.as_ref().map(prost::Message::encode_to_vec).unwrap_or_default());
    }
    let hash = hasher.finalize();
    let (digest, _) = hash.as_bytes().split_first_chunk().expect("a BLAKE3 hash has 32 bytes");
    *digest
}
