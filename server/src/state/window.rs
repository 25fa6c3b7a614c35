//! The commit ids that a pipeline remembers, so that a late retry gets a friendly answer.
//!
//! Exactly-once does not rest on it: the sequence is compared on every commit, for ever. Ids are kept as 16 bytes of
//! their BLAKE3 hash, which bounds the memory whatever callers choose as ids.

use std::collections::{HashMap, VecDeque};

use fencepost::Lsn;

/// How many of its newest commits a pipeline remembers.
pub const WINDOW_COMMITS: usize = 10_000;

/// What was committed, in 16 bytes of BLAKE3.
pub type Digest = [u8; 16];

#[derive(Debug, Default, PartialEq, Eq)]
pub(super) struct CommitWindow {
    remembered: HashMap<Digest, (Digest, Lsn)>,
    /// Oldest first.
    order: VecDeque<Digest>,
    /// Whether an id was ever forgotten; until then an unknown id was never committed.
    has_forgotten: bool,
}

impl CommitWindow {
    /// What was committed under this id and where, if the window still knows.
    pub(super) fn get(&self, commit_id: &str) -> Option<(Digest, Lsn)> {
        self.remembered.get(&key(commit_id)).copied()
    }

    pub(super) fn has_forgotten(&self) -> bool {
        self.has_forgotten
    }

    pub(super) fn remember(&mut self, commit_id: &str, digest: Digest, lsn: Lsn) {
        let key = key(commit_id);
        if self.remembered.insert(key, (digest, lsn)).is_none() {
            self.order.push_back(key);
        }
        if self.order.len() > WINDOW_COMMITS {
            let oldest = self.order.pop_front().expect("a window over its bound is not empty");
            self.remembered.remove(&oldest);
            self.has_forgotten = true;
        }
    }
}

/// A caller's id as it is remembered, here and in the index.
pub fn key(id: &str) -> Digest {
    let hash = blake3::hash(id.as_bytes());
    let (head, _) = hash.as_bytes().split_first_chunk().expect("a BLAKE3 hash has 32 bytes");
    *head
}
