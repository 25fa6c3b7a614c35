//! One fact of the log, as a line for a person and as an object for a program.

mod history;
mod progress;
mod store;
mod together;

use fencepost::log::v1::Fact;
use fencepost::log::v1::fact::Kind;
use fencepost::{Lsn, Token};
use serde_json::{Value, json};

use super::actor::because;
use super::output::time;

pub(super) use self::progress::{merge_json, merge_words};

/// What there is to say of one kind of fact.
trait Told {
    /// For a person, after a word that says what happened.
    fn words(&self) -> String;

    /// For a program: an object.
    fn json(&self) -> Value;
}

/// What happened in a word, what programs call it, and the rest.
fn told(fact: &Fact) -> (&'static str, &'static str, &dyn Told) {
    let Some(kind) = &fact.kind else { return ("unknown", "unknown", &Unknown) };
    match kind {
        Kind::ClusterCreated(it) => ("created", "cluster_created", it),
        Kind::LeaseGranted(it) => ("granted", "lease_granted", it),
        Kind::LeaseReleased(it) => ("released", "lease_released", it),
        Kind::Committed(it) => ("committed", "committed", it),
        Kind::PolicySet(it) => ("policy", "policy_set", it),
        Kind::SavepointCreated(it) => ("savepoint", "savepoint_created", it),
        Kind::SavepointDeleted(it) => ("savepoint", "savepoint_deleted", it),
        Kind::Rewound(it) => ("rewound", "rewound", it),
        Kind::Forked(it) => ("forked", "forked", it),
        Kind::GenerationStarted(it) => ("restored", "generation_started", it),
        Kind::ImportStarted(it) => ("importing", "import_started", it),
        Kind::Imported(it) => ("imported", "imported", it),
        Kind::ImportFinished(it) => ("imported", "import_finished", it),
        Kind::Staged(it) => ("staged", "staged", it),
        Kind::StagedDiscarded(it) => ("discarded", "staged_discarded", it),
        Kind::BarrierOpened(it) => ("opened", "barrier_opened", it),
        Kind::BarrierArrived(it) => ("arrived", "barrier_arrived", it),
        Kind::BarrierAborted(it) => ("aborted", "barrier_aborted", it),
        Kind::DeadLettersDiscarded(it) => ("discarded", "dead_letters_discarded", it),
        Kind::SchemaDeclared(it) => ("schema", "schema_declared", it),
        Kind::GroupFenced(it) => ("fenced", "group_fenced", it),
    }
}

/// A fact of a newer server.
struct Unknown;

impl Told for Unknown {
    fn words(&self) -> String {
        "a kind of fact that this version does not know".to_owned()
    }

    fn json(&self) -> Value {
        json!({})
    }
}

/// For a person.
pub(super) fn line(lsn: Lsn, fact: &Fact) -> String {
    let (what, _, told) = told(fact);
    format!("{:<8} {}  {what:<9}  {}", lsn.to_string(), time(fact.at_ms), told.words())
}

/// For a program.
pub(super) fn json(lsn: Lsn, fact: &Fact) -> Value {
    let (_, kind, told) = told(fact);
    let mut line = json!({ "lsn": lsn.to_string(), "at": time(fact.at_ms), "kind": kind });
    if let (Some(line), Value::Object(what)) = (line.as_object_mut(), told.json()) {
        line.extend(what);
    }
    line
}

fn by(actor: &str, reason: &str) -> String {
    let actor = if actor.is_empty() { String::new() } else { format!(", by {actor}") };
    format!("{actor}{}", because(reason))
}

fn token(token: u64) -> Token {
    Token::from_u64(token)
}

fn some_token(value: u64) -> Option<String> {
    (value != 0).then(|| token(value).to_string())
}

fn some_lsn(value: u64) -> Option<String> {
    (value != 0).then(|| Lsn::from_u64(value).to_string())
}

fn some_text(text: &str) -> Option<&str> {
    (!text.is_empty()).then_some(text)
}

/// What is said of a fact after its time, and its JSON.
#[cfg(test)]
fn said(kind: Kind) -> (String, Value) {
    let fact = Fact { at_ms: 1_000, kind: Some(kind) };
    let lsn = Lsn::from_u64(3 << 16);
    let line = line(lsn, &fact);
    let start = "3.0      1970-01-01T00:00:01.000Z  ";
    (line.strip_prefix(start).unwrap_or_else(|| panic!("{line}")).to_owned(), json(lsn, &fact))
}
