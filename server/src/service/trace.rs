//! Which distributed trace a call belongs to, and which traces are asked for.

use fencepost::v1::{Checkpoint, DeadLetter, StoredCheckpoint};
use fencepost::{Reason, TraceParent};
use tonic::Request;

use crate::error::Refusal;
use crate::state::excerpt;

/// The `traceparent` in the metadata of a call. W3C Trace Context wants an ill-formed one ignored.
pub(super) fn of_call<T>(request: &Request<T>) -> Option<String> {
    let traceparent = request.metadata().get("traceparent")?.to_str().ok()?;
    traceparent.parse::<TraceParent>().is_ok().then(|| traceparent.to_owned())
}

/// Gives the trace of a call to what has none of its own.
pub(super) fn fill_in(traceparent: Option<&str>, checkpoint: Option<&mut Checkpoint>, letters: &mut [DeadLetter]) {
    let Some(traceparent) = traceparent else { return };
    let of_letters = letters.iter_mut().map(|letter| &mut letter.traceparent);
    let own = checkpoint.map(|checkpoint| &mut checkpoint.traceparent).into_iter().chain(of_letters);
    own.filter(|own| own.is_empty()).for_each(|own| traceparent.clone_into(own));
}

/// The trace that a list is asked for. `None`: it is not.
pub(super) fn asked(asked: &str) -> Result<Option<u128>, Refusal> {
    if asked.is_empty() {
        return Ok(None);
    }
    let is_hex = asked.len() == 32 && asked.bytes().all(|byte| byte.is_ascii_hexdigit());
    if let Some(trace) = is_hex.then(|| u128::from_str_radix(asked, 16).ok()).flatten() {
        return Ok(Some(trace));
    }
    Err(Refusal::field(Reason::InvalidField, "trace_id", excerpt(asked), "32 hexadecimal digits"))
}

/// Whether a row of a list is of the trace. One that cannot be read may be.
pub(super) fn is_of(asked: Option<u128>, row: &StoredCheckpoint) -> bool {
    let (Some(asked), Some(checkpoint)) = (asked, &row.checkpoint) else { return true };
    checkpoint.traceparent.parse().is_ok_and(|own: TraceParent| own.trace_id.get() == asked)
}
