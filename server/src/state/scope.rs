//! What a checkpoint was made by and from, and whether whoever resumes is the same.

use std::collections::BTreeMap;

use fencepost::Reason;
use fencepost::v1::{Checkpoint, Fingerprint, ResumeRequest};

use super::window::{self, Digest};
use crate::error::Refusal;

/// Differences that a message spells out; the others are counted, and their names are for programs.
const SPELLED_MAX: usize = 4;

/// What a scope is known by where its words are not at hand, whatever their order. `None`: it is empty.
pub(super) fn scope_digest(scope: &[Fingerprint]) -> Option<Digest> {
    let mut words: Vec<(&str, &str)> = scope.iter().map(|it| (it.name.as_str(), it.value.as_str())).collect();
    words.sort_unstable();
    // Neither has line breaks.
    let text: String = words.into_iter().flat_map(|(name, value)| [name, "\n", value, "\n"]).collect();
    (!text.is_empty()).then(|| window::key(&text))
}

/// The same of a checkpoint's scope.
pub(super) fn scope_of(checkpoint: Option<&Checkpoint>) -> Option<Digest> {
    checkpoint.and_then(|checkpoint| scope_digest(&checkpoint.scope))
}

/// Compares the scope that a caller gives, if it gives one, with that of the head, at this sequence. Names that the caller
/// accepts may differ.
pub fn compare_scope(request: &ResumeRequest, sequence: u64, head: &[Fingerprint]) -> Result<(), Refusal> {
    let ResumeRequest { pipeline, branch, scope, accept_scope, .. } = request;
    if scope.is_empty() {
        return Ok(());
    }
    let mut both: BTreeMap<&str, (Option<&str>, Option<&str>)> = BTreeMap::new();
    for it in head {
        both.entry(&it.name).or_default().0 = Some(&it.value);
    }
    for it in scope {
        both.entry(&it.name).or_default().1 = Some(&it.value);
    }
    both.retain(|name, (head, own)| head != own && !accept_scope.iter().any(|accepted| accepted == name));
    if both.is_empty() {
        return Ok(());
    }
    let shown = |value: Option<&str>| value.map_or_else(|| "absent".to_owned(), |value| format!("'{value}'"));
    let spelled = both.iter().take(SPELLED_MAX);
    let spelled =
        spelled.map(|(name, (head, own))| format!("{name} is {} there and {} here", shown(*head), shown(*own)));
    let more = both.len().saturating_sub(SPELLED_MAX);
    let more = (more > 0).then(|| format!("and {more} more"));
    let spelled = spelled.chain(more).collect::<Vec<_>>().join(", ");
    let message = format!(
        "checkpoint {sequence} of branch '{branch}' of '{pipeline}' was made in another scope: {spelled}; nobody was \
         fenced; if the difference is meant, name it in accept_scope (--accept-scope NAME)"
    );
    Err(Refusal::new(Reason::ScopeMismatch, message)
        .with("branch", branch)
        .with("sequence", sequence)
        .with("names", both.into_keys().collect::<Vec<_>>().join(",")))
}
