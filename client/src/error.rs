//! What can go wrong, and for each failure the two things a caller must know: whether the attempt had an effect, and the
//! one thing to do about it.
//!
//! There is one error type. What the server refuses is a [`Refusal`]; everything else happened on the way.

use std::collections::HashMap;
use std::error::Error as _;
use std::time::Duration;

use fencepost::{Action, Applied, ERROR_DOMAIN, Lsn, Reason, Token, v1};
use tonic::{Code, ConnectError, Status};
use tonic_types::StatusExt as _;

use crate::lease::Loss;

/// The result of everything this crate does.
pub type Result<T, E = Error> = std::result::Result<T, E>;

/// Why a call failed. [`Error::applied`] and [`Error::action`] say what follows from it.
#[derive(Clone, Debug, thiserror::Error)]
#[non_exhaustive]
pub enum Error {
    /// The server answered no.
    #[error(transparent)]
    Refused(Box<Refusal>),
    /// There was no connection, so nothing was sent.
    #[error(
        "cannot reach a Fencepost server at {endpoint}: {cause}. Check that it runs (`fencepost status`), that the \
         address and port are right, and that nothing between blocks them"
    )]
    Unreachable {
        /// The address that was tried.
        endpoint: String,
        /// What the network said.
        cause: String,
    },
    /// The request was sent, or may have been, and no answer came.
    #[error("no answer from {endpoint}: {cause}. Whether the request had an effect is not known")]
    Unanswered {
        /// The address that was asked.
        endpoint: String,
        /// What ended the wait.
        cause: String,
    },
    /// The commit's time ran out while it was not known whether it had been applied.
    #[error(
        "it is not known whether commit '{commit_id}' of {pipeline} was applied: {cause}. The worker settles it before \
         its next commit; elsewhere ask Client::resolve_commit for '{commit_id}', branch '{branch}', sequence {sequence}"
    )]
    InDoubt {
        /// The pipeline of the commit.
        pipeline: String,
        /// The identity under which its outcome can be asked for.
        commit_id: String,
        /// One of its branches.
        branch: String,
        /// The sequence that the commit asks for in that branch.
        sequence: u64,
        /// The last thing that went wrong.
        cause: Box<Error>,
    },
    /// The request was not sent because it cannot be right.
    #[error("{field}: {problem}")]
    Invalid {
        /// What the problem is about.
        field: &'static str,
        /// What is wrong with it and what would be right.
        problem: String,
    },
    /// What the caller gave to read from or write to failed. Nothing was changed on the server.
    #[error("{what}: {cause}")]
    Local {
        /// What was being done.
        what: &'static str,
        /// What the system said.
        cause: String,
    },
    /// The worker had lost its lease before the call.
    #[error(transparent)]
    Lost(#[from] Loss),
    /// What arrived is not what was committed.
    #[error(
        "the checkpoint of {pipeline}/{branch} at sequence {sequence} failed its integrity check: {problem}. Do not \
         resume from it: verify the server's log (`fencepost verify`) and compare with a backup"
    )]
    CorruptAnswer {
        /// The pipeline of the checkpoint.
        pipeline: String,
        /// The branch of the checkpoint.
        branch: String,
        /// The sequence of the checkpoint.
        sequence: u64,
        /// What differs.
        problem: String,
    },
    /// The server's history is older than one that this client has seen.
    #[error(
        "the server at {endpoint} is at generation {answered}, but this client has seen generation {seen}: the store \
         was rolled back, or this is an old primary. Find out which server is the right one before any worker goes on"
    )]
    RolledBack {
        /// The address that answered.
        endpoint: String,
        /// The highest generation seen so far.
        seen: u64,
        /// The generation of the answer.
        answered: u64,
    },
    /// The answer came from another cluster than the ones before.
    #[error(
        "the server at {endpoint} belongs to cluster {answered}, but this client has been speaking to cluster \
         {expected}: check the address; one Client serves one cluster"
    )]
    WrongCluster {
        /// The address that answered.
        endpoint: String,
        /// The cluster of the first answer.
        expected: String,
        /// The cluster of this answer.
        answered: String,
    },
}

impl Error {
    /// Whether the attempt had an effect.
    pub fn applied(&self) -> Applied {
        match self {
            Error::Refused(refusal) => refusal.applied(),
            Error::Unreachable { .. } | Error::Invalid { .. } | Error::Local { .. } | Error::Lost(_) => Applied::No,
            Error::Unanswered { .. }
            | Error::InDoubt { .. }
            | Error::CorruptAnswer { .. }
            | Error::RolledBack { .. }
            | Error::WrongCluster { .. } => Applied::Unknown,
        }
    }

    /// The one thing to do about it.
    pub fn action(&self) -> Action {
        match self {
            Error::Refused(refusal) => refusal.action(),
            Error::Unreachable { .. } => Action::Retry,
            // Asking again does not help where the wrong server would be asked.
            Error::InDoubt { cause, .. } if cause.action() == Action::Operator => Action::Operator,
            Error::Unanswered { .. } | Error::InDoubt { .. } => Action::ResolveThenRetry,
            Error::Invalid { .. } | Error::Local { .. } => Action::Stop,
            Error::Lost(_) => Action::Reacquire,
            Error::CorruptAnswer { .. } | Error::RolledBack { .. } | Error::WrongCluster { .. } => Action::Operator,
        }
    }

    /// The catalogue's name for it, where it has one.
    pub fn reason(&self) -> Option<Reason> {
        match self {
            Error::Refused(refusal) => refusal.reason(),
            Error::Lost(Loss::Fenced { .. }) => Some(Reason::Fenced),
            Error::CorruptAnswer { .. } => Some(Reason::IntegrityMismatch),
            Error::RolledBack { .. } => Some(Reason::StoreRolledBack),
            Error::WrongCluster { .. } => Some(Reason::WrongCluster),
            Error::InDoubt { cause, .. } => cause.reason(),
            _ => None,
        }
    }

    /// The server's answer, if it gave one.
    pub fn refusal(&self) -> Option<&Refusal> {
        match self {
            Error::Refused(refusal) => Some(refusal),
            Error::InDoubt { cause, .. } => cause.refusal(),
            _ => None,
        }
    }

    /// Who holds the branch, where the refusal tells.
    pub fn holder(&self) -> Option<&str> {
        match self {
            Error::Lost(Loss::Fenced { holder, .. }) => holder.as_deref(),
            _ => self.refusal()?.holder(),
        }
    }

    /// The branch's current token, where the refusal tells.
    pub fn current_token(&self) -> Option<Token> {
        match self {
            Error::Lost(Loss::Fenced { by, .. }) => *by,
            _ => self.refusal()?.current_token(),
        }
    }

    /// The branch's actual head, where the refusal tells.
    pub fn actual_head(&self) -> Option<u64> {
        self.refusal()?.actual_head()
    }

    /// How long the server asked to wait before the next attempt.
    pub fn retry_after(&self) -> Option<Duration> {
        self.refusal()?.retry_after()
    }

    /// Reads what a failed call says. `endpoint` is for people.
    pub(crate) fn from_status(status: &Status, endpoint: &str) -> Error {
        if let Some(refusal) = Refusal::from_status(status) {
            return Error::Refused(Box::new(refusal));
        }
        if let Some(cause) = connect_failure(status) {
            return Error::Unreachable { endpoint: endpoint.to_owned(), cause };
        }
        if no_effect_by_code(status.code()) {
            return Error::Refused(Box::new(Refusal::bare(status)));
        }
        let cause = match status.message() {
            "" => status.code().description().to_owned(),
            message => message.to_owned(),
        };
        Error::Unanswered { endpoint: endpoint.to_owned(), cause }
    }

    /// What the server would refuse, without effect, for what the client finds out by itself.
    pub(crate) fn refused(
        reason: Reason,
        message: String,
        details: impl IntoIterator<Item = (&'static str, String)>,
    ) -> Error {
        let details = [("applied", Applied::No.as_str().to_owned())].into_iter().chain(details);
        let metadata = details.map(|(key, value)| (key.to_owned(), value)).collect();
        Error::from_refusal(v1::Refusal { reason: reason.as_str().to_owned(), message, metadata })
    }

    /// Reads a refusal inside a message.
    pub(crate) fn from_refusal(refusal: v1::Refusal) -> Error {
        Error::Refused(Box::new(Refusal::from_message(refusal)))
    }
}

/// The server's no: which reason of the catalogue, in which words, with which details.
#[derive(Clone, Debug, thiserror::Error)]
#[error("{name}: {message}")]
pub struct Refusal {
    name: String,
    message: String,
    code: Code,
    metadata: HashMap<String, String>,
    retry_after: Option<Duration>,
}

impl Refusal {
    /// The reason, or `None` if this client is older than it.
    pub fn reason(&self) -> Option<Reason> {
        self.name.parse().ok()
    }

    /// The reason as the server wrote it.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// What happened and what to do, for people.
    pub fn message(&self) -> &str {
        &self.message
    }

    /// The gRPC status code.
    pub fn code(&self) -> Code {
        self.code
    }

    /// Whether the attempt had an effect: as the server said, or else as the catalogue says.
    pub fn applied(&self) -> Applied {
        match (self.metadata.get("applied").map(String::as_str), self.reason()) {
            (Some("no"), _) => Applied::No,
            (None, Some(reason)) => reason.applied(),
            (None, None) if no_effect_by_code(self.code) => Applied::No,
            _ => Applied::Unknown,
        }
    }

    /// The one thing to do: as the catalogue says, or, for a reason newer than this client, what the code suggests.
    pub fn action(&self) -> Action {
        if let Some(reason) = self.reason() {
            return reason.action();
        }
        match (self.code, self.applied()) {
            (Code::DataLoss, _) => Action::Operator,
            (Code::Unavailable | Code::ResourceExhausted, Applied::No) => Action::Retry,
            (Code::Aborted | Code::OutOfRange, _) => Action::Resync,
            (_, Applied::Unknown) => Action::ResolveThenRetry,
            (_, Applied::No) => Action::Stop,
        }
    }

    /// All details, under the names that the server gave them.
    pub fn metadata(&self) -> &HashMap<String, String> {
        &self.metadata
    }

    /// How long to wait at least before the next attempt.
    pub fn retry_after(&self) -> Option<Duration> {
        self.retry_after.or_else(|| self.number("retry_after_ms").map(Duration::from_millis))
    }

    /// Who holds the branch.
    pub fn holder(&self) -> Option<&str> {
        self.metadata.get("holder").map(String::as_str)
    }

    /// The branch's current token.
    pub fn current_token(&self) -> Option<Token> {
        self.number("current_token").map(Token::from_u64)
    }

    /// The sequence of the branch's actual head.
    pub fn actual_head(&self) -> Option<u64> {
        self.number("actual_head")
    }

    /// How long the lease that is in the way still runs.
    pub fn remaining(&self) -> Option<Duration> {
        self.number("remaining_ms").map(Duration::from_millis)
    }

    /// Where in the log the refusal was decided, or what it is about.
    pub fn lsn(&self) -> Option<Lsn> {
        let text = self.metadata.get("lsn")?;
        text.parse().map(Lsn::from_u64).ok().or_else(|| text.parse().ok())
    }

    /// The field of the request that is wrong.
    pub fn field(&self) -> Option<&str> {
        self.metadata.get("field").map(String::as_str)
    }

    fn number(&self, key: &str) -> Option<u64> {
        self.metadata.get(key)?.parse().ok()
    }

    fn from_status(status: &Status) -> Option<Refusal> {
        let info = status.get_details_error_info().filter(|info| info.domain == ERROR_DOMAIN)?;
        Some(Refusal {
            name: info.reason,
            message: status.message().to_owned(),
            code: status.code(),
            metadata: info.metadata,
            retry_after: status.get_details_retry_info().and_then(|retry| retry.retry_delay),
        })
    }

    fn from_message(refusal: v1::Refusal) -> Refusal {
        let reason: Option<Reason> = refusal.reason.parse().ok();
        Refusal {
            code: reason.map_or(Code::Unknown, Reason::code),
            name: refusal.reason,
            message: refusal.message,
            metadata: refusal.metadata,
            retry_after: None,
        }
    }

    /// Of a status that something other than Fencepost wrote: a proxy, a service that is not there.
    fn bare(status: &Status) -> Refusal {
        Refusal {
            name: format!("{:?}", status.code()),
            message: status.message().to_owned(),
            code: status.code(),
            metadata: HashMap::new(),
            retry_after: None,
        }
    }
}

/// Codes that are only ever given to a request that was not looked into. With all others it may have had an effect.
fn no_effect_by_code(code: Code) -> bool {
    matches!(
        code,
        Code::InvalidArgument
            | Code::FailedPrecondition
            | Code::NotFound
            | Code::AlreadyExists
            | Code::PermissionDenied
            | Code::Unauthenticated
            | Code::Unimplemented
            // Bare, it is the server's transport that found the message too large to read.
            | Code::OutOfRange
    )
}

/// The cause, if the status says that no connection could be made.
fn connect_failure(status: &Status) -> Option<String> {
    let mut source = status.source();
    while let Some(error) = source {
        if error.is::<ConnectError>() {
            return Some(innermost(error));
        }
        source = error.source();
    }
    None
}

/// The last error of a chain: the outer ones only say that something failed.
pub(crate) fn innermost(error: &(dyn std::error::Error + 'static)) -> String {
    let mut last = error;
    while let Some(source) = last.source() {
        last = source;
    }
    last.to_string()
}

#[cfg(test)]
mod tests;
