//! What a worker of the demonstration tells about itself: one JSON object a line, on its standard output.

use serde::{Deserialize, Serialize};

/// Something that happened in one process.
#[derive(Clone, Debug, PartialEq, Eq, Serialize, Deserialize)]
#[serde(tag = "event", rename_all = "snake_case")]
pub(super) enum Event {
    /// The server can be reached.
    Listening { endpoint: String },
    /// The worker has the branch.
    Resumed {
        token: u64,
        sequence: u64,
        position: String,
        /// How long the one before had been silent; `None` if there was none, or it released the branch.
        silent_ms: Option<u64>,
    },
    /// Half of the rows of a batch are in the results, and nothing of it is committed.
    Halfway { sequence: u64 },
    /// A commit was acknowledged: it must be in the log from now on, whatever dies.
    Committed { sequence: u64, lsn: u64, flights: u64 },
    /// A commit was refused because another worker has the branch.
    Refused {
        sequence: u64,
        reason: String,
        message: String,
        /// Whether the server said so, or the worker's own client, which had heard of it before.
        by_server: bool,
        holder: Option<String>,
        current_token: Option<u64>,
    },
    /// The input is at its end and the branch was given back.
    Done { sequence: u64 },
}
