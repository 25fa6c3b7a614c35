//! What a command says when it fails, and the exit code that goes with it.

use std::fmt::Display;
use std::io;
use std::process::ExitCode;

use fencepost_client::Error;
use fencepost_server::log::OpenError;
use fencepost_server::ops::BadStore;
use fencepost_server::server::ServerError;
use serde_json::json;

use super::exit;
use super::output::{self, Output};

/// A command failed.
#[derive(Debug)]
pub(crate) struct CliError {
    code: u8,
    message: String,
    /// For programs: reason, applied, action.
    details: serde_json::Value,
}

impl CliError {
    /// A failure with an exit code of its own.
    pub(super) fn new(code: u8, message: impl Into<String>) -> CliError {
        CliError { code, message: message.into(), details: json!({}) }
    }

    /// The system said no.
    pub(super) fn io(what: impl Display, cause: io::Error) -> CliError {
        CliError::new(exit::UNAVAILABLE, format!("{what}: {cause}"))
    }

    /// Of a change that must not be made twice: an unknown outcome has a code of its own.
    pub(super) fn of_change(error: Error) -> CliError {
        let is_unknown = matches!(error, Error::Unanswered { .. });
        let failed = CliError::from(error);
        CliError { code: if is_unknown { exit::IN_DOUBT } else { failed.code }, ..failed }
    }

    /// Prints it to standard error, for a person or as one line of JSON.
    pub(super) fn report(self, output: &Output) -> ExitCode {
        if output.is_json() {
            let mut error = json!({ "message": self.message, "exit_code": self.code });
            if let (Some(error), serde_json::Value::Object(details)) = (error.as_object_mut(), self.details) {
                error.extend(details);
            }
            output::note(json!({ "error": error }));
        } else {
            output::note(format_args!("error: {}", self.message));
        }
        exit::exit(self.code)
    }
}

impl From<Error> for CliError {
    fn from(error: Error) -> CliError {
        let details = json!({
            "reason": error.reason().map(fencepost_client::Reason::as_str),
            "applied": error.applied().as_str(),
            "action": format!("{:?}", error.action()),
        });
        CliError { code: exit::code(&error), message: error.to_string(), details }
    }
}

/// The exit code for a store that does not open.
pub(super) fn store_code(error: &BadStore) -> u8 {
    match error {
        BadStore::NoLog { .. } => exit::NOT_FOUND,
        BadStore::Open(OpenError::Locked { .. } | OpenError::Io { .. }) => exit::UNAVAILABLE,
        BadStore::Open(OpenError::Config(_) | OpenError::NewerFormat { .. }) => exit::CONFIG,
        BadStore::NoStore(_) | BadStore::LogEndsEarly(_) | BadStore::Open(OpenError::Corrupt(_)) => exit::INTEGRITY,
    }
}

impl From<ServerError> for CliError {
    fn from(error: ServerError) -> CliError {
        let code = match &error {
            ServerError::Config(_) => exit::CONFIG,
            ServerError::LogFailed(_) | ServerError::Panicked => exit::IN_DOUBT,
            ServerError::Io { .. } | ServerError::Transport(_) | ServerError::Create { .. } => exit::UNAVAILABLE,
            ServerError::Store(error) => store_code(error),
            ServerError::Replay(_) => exit::INTEGRITY,
        };
        CliError::new(code, error.to_string())
    }
}
