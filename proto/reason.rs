//! The catalogue of refusals: what each means for the attempt, and the one thing to do about it.

use std::fmt;
use std::str::FromStr;

use tonic::Code;

/// The `domain` of every `google.rpc.ErrorInfo` that the server sends.
pub const ERROR_DOMAIN: &str = "fencepost";

/// Whether the attempt had an effect.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Applied {
    /// It did not, and never will.
    No,
    /// It may have, or may yet have.
    Unknown,
}

impl Applied {
    /// As in the metadata of an error: `no` or `unknown`.
    pub const fn as_str(self) -> &'static str {
        match self {
            Applied::No => "no",
            Applied::Unknown => "unknown",
        }
    }
}

/// What a caller does about an error. Each [`Reason`] has exactly one.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Action {
    /// Wait a little and send the same request again.
    Retry,
    /// Ask how the attempt ended (`ResolveCommit`), then send the same request again if it was not applied.
    ResolveThenRetry,
    /// Read the head again and rebuild the request from it.
    Resync,
    /// Stop this worker; a new `Resume` starts over with a new token.
    Reacquire,
    /// Stop: the request itself is wrong, and no repetition mends it.
    Stop,
    /// A person has to look.
    Operator,
}

macro_rules! reasons {
    ($($(#[doc = $doc:literal])+ $name:ident = $text:literal, $code:ident, $applied:ident, $action:ident;)+) => {
        /// Why the server refused. `docs/errors.md` has one section for each.
        #[derive(Clone, Copy, Debug, PartialEq, Eq, Hash, PartialOrd, Ord)]
        pub enum Reason {
            $($(#[doc = $doc])+ $name,)+
        }

        impl Reason {
            /// Every reason there is.
            pub const ALL: &'static [Reason] = &[$(Reason::$name,)+];

            /// As on the wire and in the documentation.
            pub const fn as_str(self) -> &'static str {
                match self { $(Reason::$name => $text,)+ }
            }

            /// The status of the call.
            pub const fn code(self) -> Code {
                match self { $(Reason::$name => Code::$code,)+ }
            }

            /// Whether the refused attempt had an effect.
            pub const fn applied(self) -> Applied {
                match self { $(Reason::$name => Applied::$applied,)+ }
            }

            /// What the caller does about it.
            pub const fn action(self) -> Action {
                match self { $(Reason::$name => Action::$action,)+ }
            }
        }
    };
}

reasons! {
    /// The token is not the branch's current one: somebody else was granted the branch, or it was released.
    Fenced = "FENCED", FailedPrecondition, No, Reacquire;
    /// Somebody holds the branch and is not known to be gone.
    LeaseHeld = "LEASE_HELD", FailedPrecondition, No, Retry;
    /// The sequence is not the head's plus one.
    HeadMismatch = "HEAD_MISMATCH", Aborted, No, Resync;
    /// The commit id belongs to a commit with other content.
    CommitIdReused = "COMMIT_ID_REUSED", AlreadyExists, No, Stop;
    /// The commit id is older than what the server remembers, so that how it ended cannot be told from it.
    DedupeWindowExceeded = "DEDUPE_WINDOW_EXCEEDED", OutOfRange, Unknown, Resync;
    /// An earlier commit of the same session was refused.
    SessionPoisoned = "SESSION_POISONED", Aborted, No, Resync;
    /// The request's own time limit had passed.
    NotAfterPassed = "NOT_AFTER_PASSED", FailedPrecondition, No, Stop;
    /// The payload is not what its checksum says.
    IntegrityMismatch = "INTEGRITY_MISMATCH", FailedPrecondition, No, Operator;
    /// There is no checkpoint, pipeline or branch of that name.
    StateMissing = "STATE_MISSING", NotFound, No, Stop;
    /// The log no longer holds the facts asked for.
    Compacted = "COMPACTED", OutOfRange, No, Resync;
    /// The position asked for is not written yet.
    FutureLsn = "FUTURE_LSN", OutOfRange, No, Resync;
    /// The caller speaks of an earlier generation of this cluster's history.
    StaleGeneration = "STALE_GENERATION", FailedPrecondition, No, Reacquire;
    /// The caller has seen a token or a generation that this store never reached: it was restored from an older copy.
    StoreRolledBack = "STORE_ROLLED_BACK", DataLoss, No, Operator;
    /// The caller meant another cluster.
    WrongCluster = "WRONG_CLUSTER", FailedPrecondition, No, Operator;
    /// What is stored fails its checksum.
    Corrupt = "CORRUPT", DataLoss, No, Operator;
    /// The disk has no room for another commit.
    NoSpace = "NO_SPACE", ResourceExhausted, No, Retry;
    /// The server has more work in hand than it allows itself.
    RateLimited = "RATE_LIMITED", ResourceExhausted, No, Retry;
    /// A part of the request is over its limit.
    TooLarge = "TOO_LARGE", InvalidArgument, No, Stop;
    /// A name breaks the rules for names.
    InvalidName = "INVALID_NAME", InvalidArgument, No, Stop;
    /// A field is missing, out of range, or contradicts another.
    InvalidField = "INVALID_FIELD", InvalidArgument, No, Stop;
    /// Something of that name is there already.
    Exists = "EXISTS", AlreadyExists, No, Stop;
    /// The pipeline is being imported and cannot be used before that is done.
    Importing = "IMPORTING", FailedPrecondition, No, Retry;
    /// The branch has something staged, which has to be committed or discarded before anything else is committed.
    StagedPending = "STAGED_PENDING", FailedPrecondition, No, Resync;
    /// The barrier is complete: what comes now is late.
    BarrierClosed = "BARRIER_CLOSED", Aborted, No, Resync;
    /// The barrier was given up, or its deadline has passed.
    BarrierAborted = "BARRIER_ABORTED", Aborted, No, Resync;
    /// These inputs were merged before, with another output.
    MergeDiverged = "MERGE_DIVERGED", DataLoss, No, Operator;
    /// The schema is not declared, does not follow the one before, or differs between the inputs of a merge.
    SchemaMismatch = "SCHEMA_MISMATCH", FailedPrecondition, No, Operator;
    /// What the head was made by or from is not what the caller says that it has.
    ScopeMismatch = "SCOPE_MISMATCH", FailedPrecondition, No, Operator;
    /// The dead letter was replayed or discarded before.
    DeadLetterHandled = "DEAD_LETTER_HANDLED", Aborted, No, Resync;
    /// The index of old checkpoints is being made again from the log.
    IndexRebuilding = "INDEX_REBUILDING", Unavailable, No, Retry;
    /// The server is stopping; nothing of the request was done.
    ShuttingDown = "SHUTTING_DOWN", Unavailable, No, Retry;
    /// The log could not be written. The server stopped taking writes until it is restarted.
    LogFailed = "LOG_FAILED", Unavailable, Unknown, ResolveThenRetry;
}

impl fmt::Display for Reason {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(self.as_str())
    }
}

impl FromStr for Reason {
    type Err = ();

    fn from_str(text: &str) -> Result<Reason, ()> {
        Reason::ALL.iter().copied().find(|reason| reason.as_str() == text).ok_or(())
    }
}
