//! What this process has done since it started.

use std::collections::HashMap;
use std::sync::atomic::{AtomicU64, Ordering};

use fencepost::log::v1::fact::Kind;
use fencepost::{Reason, v1};

/// Counters, each only ever growing. Cheap enough for the hot path.
#[derive(Debug)]
pub struct Counters {
    commits: AtomicU64,
    grants: AtomicU64,
    keepalives: AtomicU64,
    stages: AtomicU64,
    barriers: AtomicU64,
    refusals: Vec<AtomicU64>,
}

impl Default for Counters {
    fn default() -> Counters {
        Counters {
            commits: AtomicU64::new(0),
            grants: AtomicU64::new(0),
            keepalives: AtomicU64::new(0),
            stages: AtomicU64::new(0),
            barriers: AtomicU64::new(0),
            refusals: Reason::ALL.iter().map(|_| AtomicU64::new(0)).collect(),
        }
    }
}

impl Counters {
    /// A commit was judged good.
    pub fn commit(&self) {
        self.commits.fetch_add(1, Ordering::Relaxed);
    }

    /// A branch was granted.
    pub fn grant(&self) {
        self.grants.fetch_add(1, Ordering::Relaxed);
    }

    /// A fact was decided. Commits and grants are counted where they are judged.
    pub fn fact(&self, kind: &Kind) {
        match kind {
            Kind::Staged(_) => self.stages.fetch_add(1, Ordering::Relaxed),
            Kind::Committed(committed) if committed.barrier.is_some() => self.barriers.fetch_add(1, Ordering::Relaxed),
            _ => return,
        };
    }

    /// A lease was kept alive.
    pub fn keepalive(&self) {
        self.keepalives.fetch_add(1, Ordering::Relaxed);
    }

    /// A request was refused.
    pub fn refusal(&self, reason: Reason) {
        if let Some(counter) = self.refusals.get(reason as usize) {
            counter.fetch_add(1, Ordering::Relaxed);
        }
    }

    /// All of them, as the API shows them; reasons that never occurred are left out.
    pub fn snapshot(&self) -> v1::Counters {
        let refusals: HashMap<String, u64> = Reason::ALL
            .iter()
            .zip(&self.refusals)
            .map(|(reason, counter)| (reason.to_string(), counter.load(Ordering::Relaxed)))
            .filter(|(_, count)| *count > 0)
            .collect();
        v1::Counters {
            commits: self.commits.load(Ordering::Relaxed),
            grants: self.grants.load(Ordering::Relaxed),
            keepalives: self.keepalives.load(Ordering::Relaxed),
            stages: self.stages.load(Ordering::Relaxed),
            barriers: self.barriers.load(Ordering::Relaxed),
            refusals,
        }
    }
}
