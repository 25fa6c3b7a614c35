//! Exit codes. Those above 63 follow the convention of BSD's sysexits(3), so that other tools understand them too.

use std::process::ExitCode;

use fencepost::Reason;
use fencepost_client::Error;

/// All went well.
pub(crate) const DONE: u8 = 0;
/// Refused for a reason that has no code of its own.
pub(crate) const REFUSED: u8 = 1;
/// The command line is wrong.
pub(crate) const USAGE: u8 = 2;
/// The stored or given data is damaged.
pub(crate) const INTEGRITY: u8 = 65;
/// There is no such pipeline, branch, checkpoint, savepoint, barrier, dead letter or file.
pub(crate) const NOT_FOUND: u8 = 66;
/// No server could be reached, or it could not answer.
pub(crate) const UNAVAILABLE: u8 = 69;
/// The barrier was aborted, or its deadline has passed.
pub(crate) const ABORTED: u8 = 73;
/// It is not known whether the commit, rewind, fork, fence or import was applied.
pub(crate) const IN_DOUBT: u8 = 74;
/// Somebody else holds the lease, or a barrier still waits; try again later.
pub(crate) const TRY_LATER: u8 = 75;
/// The worker was replaced and must not go on.
pub(crate) const FENCED: u8 = 77;
/// A setting is wrong, or a newer version is needed.
pub(crate) const CONFIG: u8 = 78;

/// The part of `--help` about exit codes.
pub(super) const HELP: &str = "\
Exit codes:
   0  done
   1  refused, for a reason without a code of its own
   2  the command line is wrong
  65  stored or given data is damaged
  66  no such pipeline, branch, checkpoint, savepoint, barrier, dead letter or file
  69  unavailable: the server cannot be reached, cannot start, or refuses work for now
  73  the barrier was aborted, by somebody or by its deadline: nothing of it was committed
  74  it is not known whether the commit, rewind, fork, fence or import was applied; `serve`: the
      log failed
  75  somebody else holds the lease, or the barrier still waits: try again later
  77  fenced: another worker has the branch now
  78  a setting is wrong, or a file was written by a newer version
`fencepost run` exits with the code of its command where that is not 0.";

/// The code for an error of the client.
pub(super) fn code(error: &Error) -> u8 {
    if error.refusal().is_some_and(|refusal| refusal.metadata().contains_key("newer_format")) {
        return CONFIG;
    }
    match error.reason() {
        Some(Reason::Fenced | Reason::StaleGeneration) => return FENCED,
        Some(Reason::LeaseHeld) => return TRY_LATER,
        Some(Reason::StateMissing) => return NOT_FOUND,
        Some(Reason::BarrierAborted) => return ABORTED,
        Some(Reason::IntegrityMismatch | Reason::Corrupt | Reason::StoreRolledBack | Reason::MergeDiverged) => {
            return INTEGRITY;
        }
        Some(
            Reason::NoSpace | Reason::RateLimited | Reason::ShuttingDown | Reason::Importing | Reason::IndexRebuilding,
        ) => return UNAVAILABLE,
        _ => {}
    }
    match error {
        Error::Lost(_) => FENCED,
        Error::InDoubt { .. } => IN_DOUBT,
        Error::CorruptAnswer { .. } | Error::RolledBack { .. } => INTEGRITY,
        Error::Unreachable { .. } | Error::Unanswered { .. } | Error::Local { .. } => UNAVAILABLE,
        _ => REFUSED,
    }
}

/// As the system wants it.
pub(super) fn exit(code: u8) -> ExitCode {
    ExitCode::from(code)
}
