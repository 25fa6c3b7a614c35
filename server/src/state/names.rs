//! The rules for names. Names are data: no file is ever named after one.

use fencepost::{NAME_BYTES_MAX, Reason};

use crate::error::Refusal;

const NAME: &str = "1 to 128 of a-z A-Z 0-9 . _ -, not starting with . or -";
const PIPELINE: &str = "NAMESPACE/NAME, each 1 to 128 of a-z A-Z 0-9 . _ -, not starting with . or -";

/// Checks the name of a branch or holder. `field` is what the refusal calls it.
pub fn check_name(field: &str, name: &str) -> Result<(), Refusal> {
    if is_name(name) { Ok(()) } else { Err(Refusal::field(Reason::InvalidName, field, shown(name), NAME)) }
}

/// Checks the full name of a pipeline, `NAMESPACE/NAME`.
pub fn check_pipeline(field: &str, pipeline: &str) -> Result<(), Refusal> {
    match pipeline.split_once('/') {
        Some((namespace, name)) if is_name(namespace) && is_name(name) => Ok(()),
        _ => Err(Refusal::field(Reason::InvalidName, field, shown(pipeline), PIPELINE)),
    }
}

fn is_name(name: &str) -> bool {
    let is_allowed = |byte: u8| byte.is_ascii_alphanumeric() || matches!(byte, b'.' | b'_' | b'-');
    (1..=NAME_BYTES_MAX).contains(&name.len()) && name.bytes().all(is_allowed) && !name.starts_with(['.', '-'])
}

/// Characters of what came in that a message repeats.
const EXCERPT_CHARS: usize = 60;

/// The beginning of a text, fit to be repeated in a message: whatever came in, it is short and printable.
pub fn excerpt(text: &str) -> String {
    text.chars().take(EXCERPT_CHARS).flat_map(char::escape_default).collect()
}

/// The same of a name, which says whether it goes on.
pub(super) fn shown(name: &str) -> String {
    let mut shown = excerpt(name);
    if name.chars().count() > EXCERPT_CHARS {
        shown.push_str("...");
    }
    shown
}
