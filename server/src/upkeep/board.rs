//! What upkeep shows of itself.

use std::sync::{Arc, Mutex, PoisonError};

use fencepost::Lsn;

/// How far upkeep is.
#[derive(Clone, Debug, Default)]
pub struct UpkeepStatus {
    /// The hot-state file has everything through this.
    pub state_lsn: Lsn,
    /// Bytes of live facts in sealed segments, estimated by the last pass.
    pub live_bytes: u64,
    /// Compactions since the start, and the bytes they won.
    pub compactions: u64,
    /// See `compactions`.
    pub compacted_bytes: u64,
    /// When the last scrub of all segments ended, and how far the present one is.
    pub scrubbed_at_ms: u64,
    /// See `scrubbed_at_ms`.
    pub scrub_permille: u64,
    /// Why the last pass did not come to its end; empty if it did.
    pub trouble: String,
}

/// The status, shared. Cheap to clone.
#[derive(Clone, Debug, Default)]
pub(super) struct Board(Arc<Mutex<UpkeepStatus>>);

impl Board {
    pub(super) fn status(&self) -> UpkeepStatus {
        self.0.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    pub(super) fn change(&self, change: impl FnOnce(&mut UpkeepStatus)) {
        change(&mut self.0.lock().unwrap_or_else(PoisonError::into_inner));
    }
}
