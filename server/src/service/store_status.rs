//! How the data directory is, in the words of the API.

use fencepost::v1::{Damage, StoreStatus};
use fencepost::{LogIndex, Lsn};

use super::Backend;
use crate::index::Status;

/// Checkpoints that are named with a damage.
const NAMED_MAX: usize = 100;

pub(super) fn store_status(backend: &Backend) -> StoreStatus {
    let Backend { log, cold, upkeep, .. } = backend;
    let status = upkeep.status();
    let (index_lsn, index_state, index_detail) = match cold.status() {
        Status::Opening => (Lsn::ZERO, "OPENING", String::new()),
        Status::Ready { applied } => (applied, "READY", String::new()),
        Status::Rebuilding { applied } => (applied, "REBUILDING", format!("fed through LSN {applied}")),
        Status::Failed { why } => (Lsn::ZERO, "FAILED", why),
    };
    let damage = upkeep.damages().list().into_iter().map(|found| {
        let indexes = found.damage.indexes.clone();
        let lsn = |index: u64, ordinal| Lsn::new(LogIndex(index), ordinal).as_u64();
        Damage {
            file: found.damage.file.display().to_string(),
            offset: found.damage.offset,
            what: found.damage.what,
            first_lsn: indexes.as_ref().map_or(0, |indexes| lsn(*indexes.start(), 0)),
            last_lsn: indexes.as_ref().map_or(0, |indexes| lsn(*indexes.end(), u16::MAX)),
            checkpoints: found.checkpoints.iter().take(NAMED_MAX).map(ToString::to_string).collect(),
        }
    });
    StoreStatus {
        state_lsn: status.state_lsn.as_u64(),
        index_lsn: index_lsn.as_u64(),
        index_state: index_state.to_owned(),
        index_detail,
        sealed_bytes: log.sealed().iter().map(|segment| segment.file_bytes).sum(),
        live_bytes: status.live_bytes,
        compactions: status.compactions,
        compacted_bytes: status.compacted_bytes,
        scrubbed_at_ms: status.scrubbed_at_ms,
        scrub_permille: status.scrub_permille,
        damage: damage.collect(),
        no_space: log.no_space().unwrap_or_default(),
        compacted_lsn: log.judged_at().as_u64(),
        trouble: status.trouble,
    }
}
