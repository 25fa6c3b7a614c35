//! Damage that was found, whoever found it: told once in the log of the server, and shown by its status until it is restarted.

use std::sync::{Arc, Mutex, PoisonError};

use fencepost::LogIndex;
use tokio::runtime::Handle;

use crate::index::{ColdIndex, Located};
use crate::log::Damage;

/// So many places are remembered.
const FOUND_MAX: usize = 1_000;

/// One damaged place, and the checkpoints that cannot be read because of it.
#[derive(Clone, Debug)]
pub struct Found {
    /// Where, and what is wrong there.
    pub damage: Damage,
    /// At most 100.
    pub checkpoints: Vec<Located>,
}

/// All damage that was found since the start. Cheap to clone; clones are the same list.
#[derive(Clone, Debug)]
pub struct Damages {
    found: Arc<Mutex<Vec<Found>>>,
    cold: ColdIndex,
    runtime: Handle,
}

impl Damages {
    /// None yet. The index tells which checkpoints are concerned, on the Tokio runtime that this is called in.
    pub fn new(cold: ColdIndex) -> Damages {
        Damages { found: Arc::default(), cold, runtime: Handle::current() }
    }

    /// All of it.
    pub fn list(&self) -> Vec<Found> {
        self.found.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Remembers a damage, unless it is known.
    pub fn add(&self, damage: Damage) {
        let at = {
            let mut found = self.found.lock().unwrap_or_else(PoisonError::into_inner);
            let is_known = |it: &Found| it.damage.file == damage.file && it.damage.offset == damage.offset;
            if found.len() >= FOUND_MAX || found.iter().any(is_known) {
                return;
            }
            found.push(Found { damage: damage.clone(), checkpoints: Vec::new() });
            found.len() - 1
        };
        let (cold, found) = (self.cold.clone(), Arc::clone(&self.found));
        self.runtime.spawn(async move {
            let checkpoints = match &damage.indexes {
                Some(indexes) => cold.at(LogIndex(*indexes.start())..=LogIndex(*indexes.end())).await,
                None => Ok((Vec::new(), false)),
            };
            let (checkpoints, is_more) = checkpoints.unwrap_or_default();
            let named: Vec<String> = checkpoints.iter().map(ToString::to_string).collect();
            tracing::error!(
                file = %damage.file.display(),
                offset = damage.offset,
                checkpoints = named.join(" "),
                and_more = is_more,
                "damage in the log: {damage}; reads of it are refused with CORRUPT, all else goes on. Restore from a \
                 snapshot before these checkpoints are needed"
            );
            found.lock().unwrap_or_else(PoisonError::into_inner)[at].checkpoints = checkpoints;
        });
    }
}
