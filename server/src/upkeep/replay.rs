//! From facts back to state: the one way of start-up, of the upkeep pass and of verification.

use std::ops::ControlFlow;
use std::sync::mpsc::sync_channel;
use std::thread;

use fencepost::log::v1::Fact;
use fencepost::{LogIndex, Lsn};
use prost::Message as _;

use crate::log::{Log, ReadError};
use crate::state::{Inconsistent, State};

/// What the reading thread hands over at once: so many items, or fewer as soon as they have so many bytes. And how many such
/// chunks it may be ahead.
const CHUNK: usize = 512;
const CHUNK_BYTES: usize = 1 << 20;
const CHUNKS_AHEAD: usize = 8;

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
    // A state ends with a whole entry. Looking for more of that one would need its segment, which need not be read.
    let from = Lsn::new(state.applied().index().next(), 0);
    let decoded = log.scan(from).map(|fact| match fact {
        Ok((lsn, payload)) => (payload.len(), decode(lsn, payload).map(|fact| (lsn, fact))),
        Err(error) => (0, Err(error.into())),
    });
    let is_wanted =
        |(_, fact): &(usize, Result<(Lsn, Fact), ReplayError>)| !matches!(fact, Ok((lsn, _)) if lsn.index() > through);
    ahead(decoded.take_while(is_wanted), |decoded| {
        for fact in decoded {
            let (lsn, fact) = fact?;
            take_in(state, judged_at, lsn, &fact)?;
            if each(lsn, &fact).is_break() {
                return Err(ReplayError::Stopped);
            }
            facts += 1;
        }
        Ok(())
    })?;
    if judged_at.index() <= through {
        state.reached(judged_at);
    }
    Ok(facts)
}

/// Takes the next fact in: as it is, up to where compaction has judged, and behind that as one that must follow.
pub fn take_in(state: &mut State, judged_at: Lsn, lsn: Lsn, fact: &Fact) -> Result<(), Inconsistent> {
    if lsn <= judged_at {
        return state.apply_compacted(lsn, fact);
    }
    state.reached(judged_at);
    state.apply(lsn, fact)
}

/// Works on items that a thread of their own reads and decodes meanwhile, which is half of the work of a start. They come
/// with their lengths in bytes, so that few of them are in memory if they are long.
pub(super) fn ahead<T: Send, R>(
    mut items: impl Iterator<Item = (usize, T)> + Send,
    work: impl FnOnce(&mut dyn Iterator<Item = T>) -> R,
) -> R {
    let (sender, chunks) = sync_channel(CHUNKS_AHEAD);
    let read = move || {
        loop {
            let chunk = next_chunk(&mut items);
            if chunk.is_empty() || sender.send(chunk).is_err() {
                return;
            }
        }
    };
    thread::scope(|scope| {
        scope.spawn(read);
        work(&mut chunks.into_iter().flatten())
    })
}

/// What is handed over at once; nothing at the end.
fn next_chunk<T>(items: &mut impl Iterator<Item = (usize, T)>) -> Vec<T> {
    let (mut chunk, mut bytes) = (Vec::new(), 0);
    while chunk.len() < CHUNK && bytes < CHUNK_BYTES {
        let Some((item_bytes, item)) = items.next() else { break };
        chunk.push(item);
        bytes += item_bytes;
    }
    chunk
}

/// A fact from its bytes.
pub(super) fn decode(lsn: Lsn, payload: bytes::Bytes) -> Result<Fact, ReplayError> {
    Fact::decode(payload).map_err(|cause| ReplayError::Undecodable { lsn, cause })
}

#[cfg(test)]
mod tests {
    use super::*;

    fn lengths_of_chunks(items: impl IntoIterator<Item = usize>) -> Vec<usize> {
        let mut items = items.into_iter().map(|bytes| (bytes, ()));
        std::iter::from_fn(|| Some(next_chunk(&mut items).len()).filter(|length| *length > 0)).collect()
    }

    #[test]
    fn what_is_read_ahead_is_bounded_by_its_bytes() {
        assert_eq!(lengths_of_chunks([0; 1_030]), [512, 512, 6]);
        assert_eq!(lengths_of_chunks([4 << 20; 3]), [1, 1, 1]);
        assert_eq!(lengths_of_chunks([100 << 10; 25]), [11, 11, 3]);
        assert!(lengths_of_chunks([]).is_empty());
    }

    #[test]
    fn what_is_read_ahead_comes_in_order_and_whole() {
        let items = (0..2_000).map(|number| ((number % 7) << 18, number));
        assert!(ahead(items, |items| items.eq(0..2_000)));
    }
}
