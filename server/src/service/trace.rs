//! Which distributed trace a call belongs to, and which traces are asked for.

use fencepost::Reason;
use fencepost::v1::{Checkpoint, DeadLetter, StoredCheckpoint};
use tonic::Request;

use crate::error::Refusal;
use crate::state::trace_id;

/// The `traceparent` in the metadata of a call. W3C Trace Context wants an ill-formed one ignored.
pub(super) fn of_call<T>(request: &Request<T>) -> Option<String> {
    let traceparent = request.metadata().get("traceparent")?.to_str().ok()?;
    trace_id(traceparent).map(|_| traceparent.to_owned())
}

/// Gives the trace of a call to what has none of its own.
pub(super) fn fill_in(traceparent: Option<&str>, checkpoint: Option<&mut Checkpoint>, letters: &mut [DeadLetter]) {
    let Some(traceparent) = traceparent else { return };
    let of_letters = letters.iter_mut().map(|letter| &mut letter.traceparent);
    let own = checkpoint.map(|checkpoint| &mut checkpoint.traceparent).into_iter().chain(of_letters);
    own.filter(|own| own.is_empty()).for_each(|own| traceparent.clone_into(own));
}

/// The trace that a list is asked for, as traceparents have it. Empty: it is not.
pub(super) fn asked(asked: &str) -> Result<String, Refusal> {
    if asked.is_empty() || (asked.len() == 32 && asked.bytes().all(|byte| byte.is_ascii_hexdigit())) {
        return Ok(asked.to_ascii_lowercase());
    }
    let shown: String = asked.chars().take(60).flat_map(char::escape_default).collect();
    Err(Refusal::field(Reason::InvalidField, "trace_id", shown, "32 hexadecimal digits"))
}

/// Whether a row of a list is of the trace. One that cannot be read may be.
pub(super) fn is_of(asked: &str, row: &StoredCheckpoint) -> bool {
    let own = row.checkpoint.as_ref().map(|checkpoint| trace_id(&checkpoint.traceparent));
    asked.is_empty() || own.is_none_or(|own| own == Some(asked))
}
