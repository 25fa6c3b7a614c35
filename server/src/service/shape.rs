//! Checks that need nothing but the request: names, sizes, ranges. What passes can be judged on the state.

use std::collections::BTreeSet;
use std::time::Duration;

use fencepost::Reason;
use fencepost::v1::{
    BranchCommit, Checkpoint, CommitRequest, DeadLetter, DeadLetterId, KeepAliveRequest, LeaseRef, Merge, MergeRequest,
    OpenBarrierRequest, ResumeRequest, StageRequest, Takeover,
};

use crate::config::limits;
use crate::error::Refusal;
use crate::state::{
    BARRIER_ID_PREFIX, Commit, Digest, Resume, Stage, check_asked_by, check_bytes, check_checkpoint, check_dead_letter,
    check_id, check_ms, check_name, check_pipeline, check_scope, excerpt,
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
    if request.takeover() == Takeover::Force {
        reason(&request.reason, "FORCE takes a branch from a worker that may be alive")?;
    }
    if request.ttl_ms == 0 {
        request.ttl_ms = ttl_default_ms;
    }
    check_ms("ttl_ms", request.ttl_ms, limits::TTL_MIN, limits::TTL_MAX)?;
    check_ms("lock_delay_ms", request.lock_delay_ms, Duration::ZERO, limits::LOCK_DELAY_MAX)?;
    check_ms("wait_ms", request.wait_ms, Duration::ZERO, limits::WAIT_MAX)?;
    check_scope("scope", &request.scope)?;
    // As many as a head and a caller can have between them.
    if request.accept_scope.len() > 2 * limits::SCOPE_MAX {
        let (given, expected) = (request.accept_scope.len(), format!("at most {} names", 2 * limits::SCOPE_MAX));
        return Err(Refusal::field(Reason::TooLarge, "accept_scope", given, &expected));
    }
    for (i, name) in request.accept_scope.iter().enumerate() {
        check_name(&format!("accept_scope[{i}]"), name)?;
    }
    let wait = Duration::from_millis(request.wait_ms);
    Ok((Resume { request }, wait))
}

/// Checks a keepalive as a whole; each of its leases is judged alone.
pub(super) fn keep_alive(request: &KeepAliveRequest) -> Result<(), Refusal> {
    count("leases", request.leases.len(), "leases", limits::KEEPALIVE_LEASES_MAX)
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
    check_commit_id(&request.commit_id)?;
    count("branches", request.branches.len(), "branches", limits::BRANCHES_MAX)?;
    let mut seen = BTreeSet::new();
    for (i, branch) in request.branches.iter().enumerate() {
        check_name(&format!("branches[{i}].branch"), &branch.branch)?;
        if request.branches.len() > 1 && !seen.insert(branch.branch.as_str()) {
            let field = format!("branches[{i}].branch");
            return Err(Refusal::field(Reason::InvalidField, &field, &branch.branch, "each branch once"));
        }
    }
    let mut payload_fault = None;
    let (mut letters, mut letter_bytes) = (0, 0);
    for (i, moved) in request.branches.iter_mut().enumerate() {
        match (&mut moved.checkpoint, moved.staged.is_empty()) {
            (Some(given), true) => {
                let fault = checkpoint(&format!("branches[{i}].checkpoint"), &moved.branch, given)?;
                payload_fault = payload_fault.or(fault);
            }
            (None, false) => check_id(&format!("branches[{i}].staged"), &moved.staged)?,
            (None, true) => {
                let field = format!("branches[{i}].checkpoint");
                return Err(Refusal::field(Reason::InvalidField, &field, "", "a checkpoint, or what is staged"));
            }
            (Some(_), false) => {
                let expected = "nothing, because a checkpoint is given: one of the two";
                return Err(Refusal::field(
                    Reason::InvalidField,
                    &format!("branches[{i}].staged"),
                    &moved.staged,
                    expected,
                ));
            }
        }
        if !moved.staged.is_empty() && !moved.dead_letters.is_empty() {
            let expected = "none: those of a staged checkpoint are handed in when it is staged";
            let (field, count) = (format!("branches[{i}].dead_letters"), moved.dead_letters.len());
            return Err(Refusal::field(Reason::InvalidField, &field, count, expected));
        }
        letters += moved.dead_letters.len();
        letter_bytes += dead_letters(&format!("branches[{i}].dead_letters"), &moved.dead_letters)?;
    }
    check_letters("dead_letters", letters, letter_bytes)?;
    check_letters("replayed", request.branches.iter().map(|moved| moved.replayed.len()).sum(), 0)?;
    let mut replayed = BTreeSet::new();
    for (i, moved) in request.branches.iter().enumerate() {
        each_letter_once(&format!("branches[{i}].replayed"), &moved.replayed, &mut replayed)?;
    }
    let digest = commit_digest(&request);
    Ok(Commit { request, digest, payload_fault })
}

/// Checks an id that is given to a commit. Those of barriers are made by the server, and must not be taken when it makes them.
fn check_commit_id(id: &str) -> Result<(), Refusal> {
    check_id("commit_id", id)?;
    if !id.starts_with(BARRIER_ID_PREFIX) {
        return Ok(());
    }
    let expected = format!("an id that does not begin with '{BARRIER_ID_PREFIX}', as those of commits by barriers do");
    Err(Refusal::field(Reason::InvalidName, "commit_id", id, &expected))
}

/// Checks what is to be staged, computes the CRC of its payload and the digest of the whole.
pub(super) fn stage(mut request: StageRequest) -> Result<Stage, Refusal> {
    check_pipeline("pipeline", &request.pipeline)?;
    check_name("branch", &request.branch)?;
    check_id("stage_id", &request.stage_id)?;
    let payload_fault = given(&request.branch, request.checkpoint.as_mut())?;
    let letter_bytes = dead_letters("dead_letters", &request.dead_letters)?;
    check_letters("dead_letters", request.dead_letters.len(), letter_bytes)?;
    // Taken apart, so that the compiler asks about the fields that are added.
    let StageRequest { cluster: _, pipeline, branch, token: _, sequence, .. } = &request;
    let StageRequest { stage_id: _, checkpoint, dead_letters, not_after_ms: _, .. } = &request;
    let moved = BranchCommit {
        branch: branch.clone(),
        sequence: *sequence,
        checkpoint: checkpoint.clone(),
        dead_letters: dead_letters.clone(),
        ..BranchCommit::default()
    };
    let digest = digest(pipeline, &[moved]);
    Ok(Stage { request, digest, payload_fault })
}

/// Checks a merge, puts its inputs in order, and computes CRC and digest as of a commit.
pub(super) fn merge(request: MergeRequest) -> Result<(Commit, Merge), Refusal> {
    let MergeRequest { cluster, pipeline, branch, token, sequence, commit_id, mut checkpoint, merge, not_after_ms } =
        request;
    check_pipeline("pipeline", &pipeline)?;
    check_name("branch", &branch)?;
    check_commit_id(&commit_id)?;
    let payload_fault = given(&branch, checkpoint.as_mut())?;
    let mut merge = merge
        .ok_or_else(|| Refusal::field(Reason::InvalidField, "merge", "", "inputs, function, version and digest"))?;
    check_id("merge.function", &merge.function)?;
    check_id("merge.version", &merge.version)?;
    count("merge.inputs", merge.inputs.len(), "inputs", limits::MERGE_INPUTS_MAX)?;
    if merge.output_digest.is_empty() {
        return Err(Refusal::field(Reason::InvalidField, "merge.output_digest", "", "a digest of the merged output"));
    }
    check_bytes("merge.output_digest", merge.output_digest.len(), limits::FINGERPRINT_BYTES_MAX)?;
    for (i, input) in merge.inputs.iter_mut().enumerate() {
        check_name(&format!("merge.inputs[{i}].branch"), &input.branch)?;
        input.lsn = 0;
    }
    merge.inputs.sort_by(|a, b| (&a.branch, a.sequence).cmp(&(&b.branch, b.sequence)));
    if let Some([twice, _]) = merge.inputs.array_windows().find(|[a, b]| a == b) {
        let value = format!("{}@{}", twice.branch, twice.sequence);
        return Err(Refusal::field(Reason::InvalidField, "merge.inputs", value, "each checkpoint once"));
    }
    let branches = vec![BranchCommit { branch, token, sequence, checkpoint, ..BranchCommit::default() }];
    let mut hasher = blake3::Hasher::new();
    hasher.update(&digest(&pipeline, &branches)).update(&prost::Message::encode_to_vec(&merge));
    let digest = head_of(&hasher);
    let request = CommitRequest { cluster, pipeline, commit_id, branches, not_after_ms };
    Ok((Commit { request, digest, payload_fault }, merge))
}

/// Checks a new barrier, and puts its participants in order.
pub(super) fn open_barrier(mut request: OpenBarrierRequest) -> Result<OpenBarrierRequest, Refusal> {
    check_pipeline("pipeline", &request.pipeline)?;
    check_name("name", &request.name)?;
    check_asked_by(&request.actor, &request.reason)?;
    count("participants", request.participants.len(), "branches", limits::BRANCHES_MAX)?;
    for (i, branch) in request.participants.iter().enumerate() {
        check_name(&format!("participants[{i}]"), branch)?;
    }
    request.participants.sort_unstable();
    if let Some([twice, _]) = request.participants.array_windows().find(|[a, b]| a == b) {
        return Err(Refusal::field(Reason::InvalidField, "participants", twice, "each branch once"));
    }
    check_ms("timeout_ms", request.timeout_ms, Duration::ZERO, limits::BARRIER_TIMEOUT_MAX)?;
    Ok(request)
}

/// Checks how many there are of what a request has to have. `what` is what they are called.
pub(super) fn count(field: &str, count: usize, what: &str, max: usize) -> Result<(), Refusal> {
    if (1..=max).contains(&count) {
        return Ok(());
    }
    Err(Refusal::field(Reason::InvalidField, field, format!("{count} {what}"), &format!("1 to {max}")))
}

/// Checks a reason that has to be given.
pub(super) fn reason(reason: &str, why: &str) -> Result<(), Refusal> {
    if !reason.trim().is_empty() {
        return Ok(());
    }
    Err(Refusal::field(Reason::InvalidField, "reason", "", &format!("a few words, kept in the log: {why}")))
}

/// Checks the one checkpoint of a request, and fills its CRC in.
fn given(branch: &str, given: Option<&mut Checkpoint>) -> Result<Option<Refusal>, Refusal> {
    let given = given.ok_or_else(|| Refusal::field(Reason::InvalidField, "checkpoint", "", "a checkpoint"))?;
    checkpoint("checkpoint", branch, given)
}

/// Checks one checkpoint and fills its CRC in. The second result is what is wrong with its payload, which counts only after
/// what the state says.
fn checkpoint(field: &str, branch: &str, checkpoint: &mut Checkpoint) -> Result<Option<Refusal>, Refusal> {
    check_checkpoint(field, checkpoint)?;
    let actual = checkpoint.computed_crc32();
    let declared = checkpoint.payload_crc32.replace(actual);
    Ok(declared.filter(|declared| *declared != actual).map(|declared| corrupted(branch, declared, actual)))
}

/// Checks each dead letter. Returns the length of their payloads.
fn dead_letters(field: &str, letters: &[DeadLetter]) -> Result<usize, Refusal> {
    for (i, letter) in letters.iter().enumerate() {
        check_dead_letter(&format!("{field}[{i}]"), letter)?;
    }
    Ok(letters.iter().map(|letter| letter.payload.len()).sum())
}

/// Checks that no dead letter is named twice, in this field or in those before.
pub(super) fn each_letter_once(
    field: &str,
    letters: &[DeadLetterId],
    before: &mut BTreeSet<(u64, u32)>,
) -> Result<(), Refusal> {
    for (i, id) in letters.iter().enumerate() {
        if !before.insert((id.lsn, id.number)) {
            let field = format!("{field}[{i}]");
            return Err(Refusal::field(Reason::InvalidField, &field, id, "each dead letter once"));
        }
    }
    Ok(())
}

fn check_letters(field: &str, count: usize, bytes: usize) -> Result<(), Refusal> {
    if count > limits::DEAD_LETTERS_MAX {
        let expected = format!("at most {} in a commit", limits::DEAD_LETTERS_MAX);
        return Err(Refusal::field(Reason::TooLarge, field, count, &expected));
    }
    check_bytes(field, bytes, limits::DEAD_LETTERS_BYTES_MAX)
}

/// What a caller is told whose page token no answer had.
pub(super) fn bad_page(page_token: &str) -> Refusal {
    Refusal::field(Reason::InvalidField, "page_token", excerpt(page_token), "the next_page_token of an earlier page")
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

/// Identifies what is committed. Tokens, time limits and traces are left out: they belong to the attempt, and a retry may
/// change them.
fn commit_digest(request: &CommitRequest) -> Digest {
    // Taken apart, so that the compiler asks about the fields that are added.
    let CommitRequest { cluster: _, pipeline, commit_id: _, branches, not_after_ms: _ } = request;
    digest(pipeline, branches)
}

fn digest(pipeline: &str, branches: &[BranchCommit]) -> Digest {
    let mut hasher = blake3::Hasher::new();
    let mut part = |bytes: &[u8]| {
        hasher.update(&(bytes.len() as u64).to_le_bytes());
        hasher.update(bytes);
    };
    part(pipeline.as_bytes());
    for BranchCommit { branch, token: _, sequence, checkpoint, staged, dead_letters, replayed } in branches {
        part(branch.as_bytes());
        part(&sequence.to_le_bytes());
        let mut said = None;
        if let Some(given) = checkpoint {
            let Checkpoint { position, state, payload_crc32: _, integrity, traceparent: _, .. } = given;
            let Checkpoint { format_version, scope, late_for, .. } = given;
            part(position);
            part(state);
            part(&integrity.as_ref().map(prost::Message::encode_to_vec).unwrap_or_default());
            if *format_version != 0 || !scope.is_empty() || !late_for.is_empty() {
                let (scope, late_for) = (scope.clone(), late_for.clone());
                said = Some(Checkpoint { format_version: *format_version, scope, late_for, ..Checkpoint::default() });
            }
        }
        // What few commits have does not change the digests of the others.
        if said.is_some() || !staged.is_empty() || !dead_letters.is_empty() || !replayed.is_empty() {
            let mut rare = BranchCommit {
                checkpoint: said,
                staged: staged.clone(),
                dead_letters: dead_letters.clone(),
                replayed: replayed.clone(),
                ..BranchCommit::default()
            };
            rare.dead_letters.iter_mut().for_each(|letter| letter.traceparent.clear());
            part(&prost::Message::encode_to_vec(&rare));
        }
    }
    head_of(&hasher)
}

fn head_of(hasher: &blake3::Hasher) -> Digest {
    let hash = hasher.finalize();
    let (digest, _) = hash.as_bytes().split_first_chunk().expect("a BLAKE3 hash has 32 bytes");
    *digest
}

#[cfg(test)]
mod tests {
    use fencepost::v1::{Fingerprint, Integrity};

    use super::*;

    fn shown(request: CommitRequest) -> String {
        let digest = commit(request).unwrap().digest;
        digest.iter().map(|byte| format!("{byte:02x}")).collect()
    }

    /// They are in logs and windows: another version must come to the same, or it takes a retry for other content.
    #[test]
    fn the_digest_of_a_request_stays_what_it_was() {
        let integrity = Integrity { rows_in: Some(3), rows_out: Some(3), ..Integrity::default() };
        let checkpoint = Checkpoint {
            position: "offset 7".into(),
            state: "sum 12".into(),
            integrity: Some(integrity),
            traceparent: "00-0af7651916cd43dd8448eb211c80319c-b7ad6b7169203331-01".to_owned(),
            ..Checkpoint::default()
        };
        let ordinary = BranchCommit {
            branch: "main".to_owned(),
            token: 9,
            sequence: 7,
            checkpoint: Some(checkpoint.clone()),
            ..BranchCommit::default()
        };
        let request = |branches| CommitRequest {
            pipeline: "prod/orders".to_owned(),
            commit_id: "day".to_owned(),
            branches,
            ..CommitRequest::default()
        };
        assert_eq!(shown(request(vec![ordinary.clone()])), "0c510e13a84d1737b3419183612ffaee");
        let scoped = Checkpoint {
            format_version: 2,
            late_for: "yesterday".to_owned(),
            scope: vec![Fingerprint { name: "code".to_owned(), value: "abc".into() }],
            ..checkpoint
        };
        let letter = DeadLetter { payload: "bad row".into(), reason: "no delay".to_owned(), ..DeadLetter::default() };
        let rare = BranchCommit {
            checkpoint: Some(scoped),
            dead_letters: vec![letter],
            replayed: vec![DeadLetterId { lsn: 65_536, number: 3 }],
            ..ordinary.clone()
        };
        let staged = BranchCommit {
            branch: "other".to_owned(),
            checkpoint: None,
            staged: "tx-7".to_owned(),
            ..ordinary.clone()
        };
        assert_eq!(shown(request(vec![rare, staged])), "e343c15e45ff6fd1be75a1a9b3a7c996");
    }
}
