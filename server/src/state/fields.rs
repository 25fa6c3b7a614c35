//! The rules for what requests carry beside names: ids, sizes, ranges. The same hold for facts that come in from a file.

use std::time::Duration;

use fencepost::v1::{Checkpoint, DeadLetter, Fingerprint, Policy, Schema};
use fencepost::{NAME_BYTES_MAX, Reason, TraceParent};

use super::{check_name, excerpt};
use crate::config::limits;
use crate::error::Refusal;

/// Checks the caller's own name for a request or commit: any printable ASCII, so that it can be read in a log.
pub fn check_id(field: &str, id: &str) -> Result<(), Refusal> {
    let is_good = (1..=NAME_BYTES_MAX).contains(&id.len()) && id.bytes().all(|byte| byte.is_ascii_graphic());
    if is_good {
        return Ok(());
    }
    Err(Refusal::field(Reason::InvalidName, field, excerpt(id), "1 to 128 printable ASCII characters without spaces"))
}

/// Checks the sizes in a checkpoint. `field` is what the refusal calls it.
pub fn check_checkpoint(field: &str, checkpoint: &Checkpoint) -> Result<(), Refusal> {
    check_bytes(&format!("{field}.position"), checkpoint.position.len(), limits::POSITION_BYTES_MAX)?;
    check_bytes(&format!("{field}.state"), checkpoint.state.len(), limits::STATE_BYTES_MAX)?;
    let fingerprint = checkpoint.integrity.as_ref().map_or(0, |integrity| integrity.schema_fingerprint.len());
    check_bytes(&format!("{field}.integrity.schema_fingerprint"), fingerprint, limits::FINGERPRINT_BYTES_MAX)?;
    check_scope(&format!("{field}.scope"), &checkpoint.scope)?;
    check_traceparent(&format!("{field}.traceparent"), &checkpoint.traceparent)?;
    if checkpoint.late_for.is_empty() { Ok(()) } else { check_name(&format!("{field}.late_for"), &checkpoint.late_for) }
}

/// Checks a scope: each name once, and values that can be read in a log.
pub fn check_scope(field: &str, scope: &[Fingerprint]) -> Result<(), Refusal> {
    if scope.len() > limits::SCOPE_MAX {
        let expected = format!("at most {} fingerprints", limits::SCOPE_MAX);
        return Err(Refusal::field(Reason::TooLarge, field, scope.len(), &expected));
    }
    for (i, Fingerprint { name, value }) in scope.iter().enumerate() {
        check_name(&format!("{field}[{i}].name"), name)?;
        check_id(&format!("{field}[{i}].value"), value)?;
        if scope[..i].iter().any(|other| other.name == *name) {
            return Err(Refusal::field(Reason::InvalidField, &format!("{field}[{i}].name"), name, "each name once"));
        }
    }
    Ok(())
}

/// Checks a W3C traceparent. Empty: none.
pub(super) fn check_traceparent(field: &str, traceparent: &str) -> Result<(), Refusal> {
    if traceparent.is_empty() || traceparent.parse::<TraceParent>().is_ok() {
        return Ok(());
    }
    let expected = "00-TRACE_ID-PARENT_ID-FLAGS in lower-case hexadecimal digits, as W3C Trace Context has it";
    Err(Refusal::field(Reason::InvalidField, field, excerpt(traceparent), expected))
}

/// Checks one dead letter, but for the sum of the payloads.
pub fn check_dead_letter(field: &str, letter: &DeadLetter) -> Result<(), Refusal> {
    let DeadLetter { payload: _, reason, source_position, traceparent } = letter;
    if reason.is_empty() {
        let expected = "a few words: why the record could not be processed";
        return Err(Refusal::field(Reason::InvalidField, &format!("{field}.reason"), "", expected));
    }
    check_bytes(&format!("{field}.reason"), reason.len(), limits::REASON_BYTES_MAX)?;
    check_bytes(&format!("{field}.source_position"), source_position.len(), limits::REASON_BYTES_MAX)?;
    check_traceparent(&format!("{field}.traceparent"), traceparent)
}

/// Checks a schema as it is declared.
pub fn check_schema(schema: &Schema) -> Result<(), Refusal> {
    let Schema { fingerprint, name, successor_of } = schema;
    if fingerprint.is_empty() {
        let expected = "1 to 64 bytes: what checkpoints say in integrity.schema_fingerprint";
        return Err(Refusal::field(Reason::InvalidField, "schema.fingerprint", "", expected));
    }
    check_bytes("schema.fingerprint", fingerprint.len(), limits::FINGERPRINT_BYTES_MAX)?;
    check_bytes("schema.successor_of", successor_of.len(), limits::FINGERPRINT_BYTES_MAX)?;
    if name.is_empty() { Ok(()) } else { check_id("schema.name", name) }
}

/// Checks the values of a policy. 0 stands for a default.
pub fn check_policy(policy: &Policy) -> Result<(), Refusal> {
    if policy.keep_last > limits::KEEP_LAST_MAX {
        let expected = format!("0 to {}", limits::KEEP_LAST_MAX);
        return Err(Refusal::field(Reason::InvalidField, "policy.keep_last", policy.keep_last, &expected));
    }
    check_ms("policy.keep_for_ms", policy.keep_for_ms, Duration::ZERO, limits::POLICY_AGE_MAX)?;
    check_ms("policy.audit_for_ms", policy.audit_for_ms, Duration::ZERO, limits::POLICY_AGE_MAX)
}

/// Checks who asks for a change of a pipeline's history, and why.
pub fn check_asked_by(actor: &str, reason: &str) -> Result<(), Refusal> {
    let characters = actor.chars().count();
    if characters > limits::ACTOR_CHARS_MAX || actor.chars().any(char::is_control) {
        let expected = format!("at most {} printable characters", limits::ACTOR_CHARS_MAX);
        return Err(Refusal::field(Reason::InvalidField, "actor", excerpt(actor), &expected));
    }
    check_bytes("reason", reason.len(), limits::REASON_BYTES_MAX)
}

/// Checks a length.
pub fn check_bytes(field: &str, actual: usize, max: usize) -> Result<(), Refusal> {
    if actual <= max {
        return Ok(());
    }
    Err(Refusal::field(Reason::TooLarge, field, format!("{actual} bytes"), &format!("at most {max} bytes")))
}

/// Checks a time.
pub fn check_ms(field: &str, actual_ms: u64, min: Duration, max: Duration) -> Result<(), Refusal> {
    let (min_ms, max_ms) = (min.as_millis() as u64, max.as_millis() as u64);
    if (min_ms..=max_ms).contains(&actual_ms) {
        return Ok(());
    }
    Err(Refusal::field(Reason::InvalidField, field, actual_ms, &format!("{min_ms} to {max_ms} milliseconds")))
}
