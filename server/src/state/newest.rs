//! The newest of what happened, by name: what a pipeline remembers of barriers that closed, and of merges.
//!
//! How many is bounded, and which they are follows from their places in the log alone: so it is the same after facts in between
//! were compacted away.

use std::collections::BTreeMap;

use fencepost::Lsn;

/// What has a place in the log.
pub(super) trait Placed {
    /// The fact that made it.
    fn lsn(&self) -> Lsn;
}

/// At most `MAX` values. A later one of the same name takes the place of the one before.
#[derive(Debug, PartialEq, Eq)]
pub(super) struct Newest<K, V, const MAX: usize> {
    by_name: BTreeMap<K, V>,
    /// Their names, oldest first.
    order: BTreeMap<Lsn, K>,
}

impl<K, V, const MAX: usize> Default for Newest<K, V, MAX> {
    fn default() -> Self {
        Newest { by_name: BTreeMap::new(), order: BTreeMap::new() }
    }
}

impl<K: Ord + Clone, V: Placed, const MAX: usize> Newest<K, V, MAX> {
    pub(super) fn get<Q: Ord + ?Sized>(&self, name: &Q) -> Option<&V>
    where
        K: std::borrow::Borrow<Q>,
    {
        self.by_name.get(name)
    }

    pub(super) fn insert(&mut self, name: K, value: V) {
        let lsn = value.lsn();
        if let Some(before) = self.by_name.insert(name.clone(), value) {
            self.order.remove(&before.lsn());
        }
        self.order.insert(lsn, name);
        while self.order.len() > MAX {
            if let Some((_, oldest)) = self.order.pop_first() {
                self.by_name.remove(&oldest);
            }
        }
    }

    /// Whether the fact at `lsn` made one of them.
    pub(super) fn made_at(&self, lsn: Lsn) -> bool {
        self.order.contains_key(&lsn)
    }

    /// Oldest first.
    pub(super) fn iter(&self) -> impl DoubleEndedIterator<Item = (&K, &V)> {
        self.order.values().filter_map(|name| Some((name, self.by_name.get(name)?)))
    }
}
