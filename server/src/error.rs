//! How the server says no.

use std::fmt;

use fencepost::Reason;

/// A definite answer that is not yes: what was refused, why, and what would be right.
///
/// It becomes a gRPC status or a message of a stream in `service/status.rs`, and nowhere else.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct Refusal {
    /// Which of the catalogue.
    pub reason: Reason,
    /// For a person: names the field or thing, its value, and what to do.
    pub message: String,
    /// For a program. `applied` is added on the way out, unless it is here.
    pub metadata: Vec<(&'static str, String)>,
}

impl Refusal {
    /// A refusal without details for programs.
    pub fn new(reason: Reason, message: impl Into<String>) -> Refusal {
        Refusal { reason, message: message.into(), metadata: Vec::new() }
    }

    /// Adds a detail for programs.
    #[must_use]
    pub fn with(mut self, key: &'static str, value: impl fmt::Display) -> Refusal {
        self.metadata.push((key, value.to_string()));
        self
    }

    /// A field with a value that it cannot have.
    pub fn field(reason: Reason, field: &str, value: impl fmt::Display, expected: &str) -> Refusal {
        let value = value.to_string();
        let message = format!("{field} is '{value}': expected {expected}");
        Refusal::new(reason, message).with("field", field).with("value", value).with("expected", expected)
    }

    /// The detail of the given key, if there is one.
    pub fn detail(&self, key: &str) -> Option<&str> {
        self.metadata.iter().find(|(name, _)| *name == key).map(|(_, value)| value.as_str())
    }
}

impl fmt::Display for Refusal {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}: {}", self.reason, self.message)
    }
}

impl std::error::Error for Refusal {}
