//! From facts back to state: the one way of start-up, of the upkeep pass and of verification.

use std::ops::ControlFlow;

use fencepost::log::v1::Fact;
use fencepost::{LogIndex, Lsn};
use prost::Message as _;

use crate::log::{Log, ReadError};
use crate::state::{Inconsistent, State};

/// Why the log does not give a state.
#[derive(Debug, thiserror::Error)]
pub enum ReplayError {
    /// A fact could not be read.
    #[error("the log cannot be read: {0}")]
    Read(#[from] ReadError),
    /// A fact does not decode.
    #[error("the fact at LSN {lsn} does not decode ({cause}): it was written by a newer version, or by other software")]
    Undecodable {
        /// Where.
        lsn: Lsn,
        /// What the decoder says.
        cause: prost::DecodeError,
    },
    /// The facts contradict each other.
    #[error(transparent)]
    Inconsistent(#[from] Inconsistent),
    /// It was told to stop.
    #[error("the replay was stopped")]
    Stopped,
}

/// Takes into `state` what the log has behind it, up to and including the entry `through`, and shows each fact to `each`, which
/// may stop it.
///
/// Up to where compaction has judged, facts that others build on may be gone, so they are taken in as they are; behind that
/// every fact must follow from those before it.
pub fn replay(
    log: &Log,
    state: &mut State,
    through: LogIndex,
    mut each: impl FnMut(Lsn, &Fact) -> ControlFlow<()>,
) -> Result<u64, ReplayError> {
    let (judged_at, mut facts) = (log.judged_at(), 0);
    let from = state.applied().next();
    for fact in log.scan(from) {
        let (lsn, payload) = fact?;
        if lsn.index() > through {
            break;
        }
        let fact = take_in(state, judged_at, lsn, payload)?;
        if each(lsn, &fact).is_break() {
            return Err(ReplayError::Stopped);
        }
        facts += 1;
    }
    if judged_at.index() <= through {
        state.reached(judged_at);
    }
    Ok(facts)
}

/// Takes the next fact in: as it is, up to where compaction has judged, and behind that as one that must follow.
pub fn take_in(state: &mut State, judged_at: Lsn, lsn: Lsn, payload: bytes::Bytes) -> Result<Fact, ReplayError> {
    let fact = decode(lsn, payload)?;
    if lsn <= judged_at {
        state.apply_compacted(lsn, &fact)?;
    } else {
        state.reached(judged_at);
        state.apply(lsn, &fact)?;
    }
    Ok(fact)
}

/// A fact from its bytes.
pub(super) fn decode(lsn: Lsn, payload: bytes::Bytes) -> Result<Fact, ReplayError> {
    Fact::decode(payload).map_err(|cause| ReplayError::Undecodable { lsn, cause })
}
