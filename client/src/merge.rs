//! What becomes of records that several sources have: policies for the worker that merges the branches of a barrier.
//!
//! Each takes inputs, a source's name and its records, in any order and any pieces, and gives the same records in the order
//! of their keys: a merge that is done again by another worker has the same output, and so the same [`digest`]. They hold
//! all records in memory.
//!
//! ```
//! use fencepost_client::merge;
//!
//! // A flight, the minute of the report, the delay in minutes.
//! let jfk = [("AA1", 600, 5), ("B61", 610, 0)];
//! let lax = [("AA1", 930, 11)];
//! let inputs = [("jfk", jfk.to_vec()), ("lax", lax.to_vec())];
//! let latest = merge::latest_by_event_time(&["jfk", "lax"], inputs, |flight| flight.0, |flight| flight.1)?;
//! assert_eq!(latest, [("AA1", 930, 11), ("B61", 610, 0)]);
//! let output = merge::digest(latest.iter().map(|(flight, minute, delay)| format!("{flight},{minute},{delay}")));
//! assert_eq!(output.len(), 32);
//! # Ok::<_, merge::MergeError>(())
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Debug;
use std::rc::Rc;

/// Why records could not be merged. Which error it is depends on the records alone, not on their order.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[non_exhaustive]
pub enum MergeError {
    /// Different records have the same key, and the policy does not choose between them.
    #[error("key {key} has different records in {}: mend the sources, or choose a policy that ranks them", .sources.join(", "))]
    Conflict {
        /// The key, in its `Debug` form. The smallest one of those in conflict.
        key: String,
        /// The sources that have it and count, in the order of their names. Only one, if it contradicts itself.
        sources: Vec<String>,
    },
    /// An input is of a source that has no rank.
    #[error("source '{source_name}' is not in the order of priority ({}): add it", .order.join(", "))]
    UnknownSource {
        /// The source. The first one by name of those that have no rank.
        source_name: String,
        /// The sources that have one.
        order: Vec<String>,
    },
}

/// All records, each key once. The records of a key have to be equal; where they are not it fails with
/// [`MergeError::Conflict`]. Merging its output with an input again changes nothing.
pub fn union_by_key<S, I, R, K>(
    inputs: impl IntoIterator<Item = (S, I)>,
    key: impl Fn(&R) -> K,
) -> Result<Vec<R>, MergeError>
where
    S: AsRef<str>,
    I: IntoIterator<Item = R>,
    R: PartialEq,
    K: Ord + Debug,
{
    let named = inputs.into_iter().map(|(source, records)| (Rc::<str>::from(source.as_ref()), records));
    by_key(named, key).into_iter().map(|(key, candidates)| agreed(&key, candidates)).collect()
}

/// For each key the record of the source that comes first in `order`. The records that this source has of the key have to
/// be equal; where they are not it fails with [`MergeError::Conflict`]. A source that is not in `order` is
/// [`MergeError::UnknownSource`].
pub fn priority_by_source<S, I, R, K>(
    order: &[&str],
    inputs: impl IntoIterator<Item = (S, I)>,
    key: impl Fn(&R) -> K,
) -> Result<Vec<R>, MergeError>
where
    S: AsRef<str>,
    I: IntoIterator<Item = R>,
    R: PartialEq,
    K: Ord + Debug,
{
    let records = by_key(ranked(order, inputs)?, key);
    let first_of = records.into_iter().map(|(key, candidates)| {
        let first = candidates.iter().map(|(rank, _)| *rank).min();
        let of_first = candidates.into_iter().filter(|(rank, _)| Some(*rank) == first);
        agreed(&key, of_first.map(|(rank, record)| (order[rank], record)).collect())
    });
    first_of.collect()
}

/// For each key the record with the greatest event time. Of several with the same time it is that of the source that comes
/// first in `order`; if that source has several, the greatest of them by their own order, so that there always is exactly
/// one. Who wants another choice among those makes the time finer, by a sequence number for example. A source that is not
/// in `order` is [`MergeError::UnknownSource`].
///
/// Merging its output with an input again changes nothing, if the output is a source before all others in `order`.
pub fn latest_by_event_time<S, I, R, K, T>(
    order: &[&str],
    inputs: impl IntoIterator<Item = (S, I)>,
    key: impl Fn(&R) -> K,
    event_time: impl Fn(&R) -> T,
) -> Result<Vec<R>, MergeError>
where
    S: AsRef<str>,
    I: IntoIterator<Item = R>,
    R: Ord,
    K: Ord,
    T: Ord,
{
    let records = by_key(ranked(order, inputs)?, key);
    let latest = records.into_values().filter_map(|candidates| {
        candidates.into_iter().max_by(|(rank, record), (other_rank, other)| {
            let by_time = event_time(record).cmp(&event_time(other));
            by_time.then(other_rank.cmp(rank)).then_with(|| record.cmp(other))
        })
    });
    Ok(latest.map(|(_, record)| record).collect())
}

/// What two merges compare to know that they had the same output: BLAKE3 of the records, each with its length in bytes
/// before it as a little-endian 64-bit integer, so that no two series of records look the same.
pub fn digest<E: AsRef<[u8]>>(records: impl IntoIterator<Item = E>) -> [u8; 32] {
    let mut hasher = blake3::Hasher::new();
    for record in records {
        let record = record.as_ref();
        hasher.update(&(record.len() as u64).to_le_bytes()).update(record);
    }
    hasher.finalize().into()
}

/// The inputs with the places of their sources in `order`.
fn ranked<S: AsRef<str>, I>(
    order: &[&str],
    inputs: impl IntoIterator<Item = (S, I)>,
) -> Result<Vec<(usize, I)>, MergeError> {
    let (mut ranked, mut unknown) = (Vec::new(), BTreeSet::new());
    for (source, records) in inputs {
        match order.iter().position(|known| *known == source.as_ref()) {
            Some(rank) => ranked.push((rank, records)),
            None => drop(unknown.insert(source.as_ref().to_owned())),
        }
    }
    match unknown.pop_first() {
        None => Ok(ranked),
        Some(source_name) => {
            let order = order.iter().map(|source| (*source).to_owned()).collect();
            Err(MergeError::UnknownSource { source_name, order })
        }
    }
}

/// The records in the order of their keys, each with the mark of the input it was in.
fn by_key<M: Clone, I: IntoIterator<Item = R>, R, K: Ord>(
    inputs: impl IntoIterator<Item = (M, I)>,
    key: impl Fn(&R) -> K,
) -> BTreeMap<K, Vec<(M, R)>> {
    let mut found: BTreeMap<K, Vec<(M, R)>> = BTreeMap::new();
    for (mark, records) in inputs {
        for record in records {
            found.entry(key(&record)).or_default().push((mark.clone(), record));
        }
    }
    found
}

/// The record that all sources agree on.
fn agreed<S: AsRef<str>, R: PartialEq>(key: &impl Debug, mut records: Vec<(S, R)>) -> Result<R, MergeError> {
    if records.windows(2).any(|pair| pair[0].1 != pair[1].1) {
        let sources: BTreeSet<&str> = records.iter().map(|(source, _)| source.as_ref()).collect();
        let sources = sources.into_iter().map(str::to_owned).collect();
        return Err(MergeError::Conflict { key: format!("{key:?}"), sources });
    }
    Ok(records.swap_remove(0).1)
}

#[cfg(test)]
mod tests;
