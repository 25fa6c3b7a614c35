//! The database itself: what is written, what is read, and how both are checked. Any doubt is a [`Problem`], and whoever owns
//! the store then deletes it. May panic, too: sled does so on some damaged files.

use std::collections::BTreeMap;
use std::ops::{Bound, RangeInclusive};
use std::path::Path;

use fencepost::{LogIndex, Lsn};
use sled::Batch;
use uuid::Uuid;

use super::layout::{self, AuditEntry, Chain, Checkpoint, Id, META, Meta, Sum, Unread, Use, Value};
use super::{Change, ColdSettings, Located};
use crate::index::Place;
use crate::state::Digest;

/// Entries that are written as one batch.
const BATCH_ENTRIES: usize = 20_000;

/// Why the database cannot be trusted.
#[derive(Debug, thiserror::Error)]
pub(super) enum Problem {
    #[error("sled: {0}")]
    Sled(#[from] sled::Error),
    #[error("{0}")]
    Doubt(String),
    /// Another version wrote it. It may be sound.
    #[error("{0}")]
    OtherFormat(String),
}

fn doubt(what: impl Into<String>) -> Problem {
    Problem::Doubt(what.into())
}

pub(super) struct Store {
    tree: sled::Db,
    log_id: Uuid,
    applied: Lsn,
    sum: Sum,
    /// What the `u` entries say.
    pub(super) segments: BTreeMap<u64, Use>,
    /// What the `x` entries say.
    pub(super) unread: BTreeMap<u64, Unread>,
    /// Changed and not written yet. What it says comes before what the tree says.
    pending: BTreeMap<Vec<u8>, Option<Vec<u8>>>,
}

impl Store {
    /// Opens the database and reads all of it: an entry that sled lost is noticed by nothing else. `durable` is the newest
    /// fact that the log has.
    pub(super) fn open(
        dir: &Path,
        log_id: Uuid,
        durable: Lsn,
        settings: &ColdSettings,
        progress: impl Fn(),
    ) -> Result<Store, Problem> {
        let mut store = Store::on(open_tree(dir, settings)?, log_id);
        if let Some(what) = store.raw(META)?.and_then(|meta| layout::other_format(&meta)) {
            return Err(Problem::OtherFormat(what));
        }
        let meta = store.get::<Meta>(META)?.ok_or_else(|| doubt("it has no meta record"))?;
        if meta.log_id != log_id {
            return Err(doubt(format!("it belongs to the log {}, and this is the log {log_id}", meta.log_id)));
        }
        if meta.applied > durable {
            return Err(doubt(format!("it was fed through LSN {}, and the log ends at {durable}", meta.applied)));
        }
        for (at, entry) in store.tree.iter().enumerate() {
            let (key, value) = entry?;
            if *key == *META {
                continue;
            }
            store.sum.add(&key, &value);
            if key.starts_with(b"u") {
                let first_index = layout::last_u64(&key).ok_or_else(|| doubt("a segment's key is too short"))?;
                store.segments.insert(first_index, decode(&key, &value)?);
            }
            if key.starts_with(b"x") {
                let first = layout::last_u64(&key).ok_or_else(|| doubt("the key of unread entries is too short"))?;
                store.unread.insert(first, decode(&key, &value)?);
            }
            if at.is_multiple_of(10_000) {
                progress();
            }
        }
        if store.sum != meta.sum {
            let (found, expected) = (store.sum.entries, meta.sum.entries);
            return Err(doubt(format!("it has {found} entries that are not the {expected} that were written")));
        }
        store.applied = meta.applied;
        Ok(store)
    }

    /// Makes an empty database in a directory that is not there yet.
    pub(super) fn create(dir: &Path, log_id: Uuid, settings: &ColdSettings) -> Result<Store, Problem> {
        let mut store = Store::on(open_tree(dir, settings)?, log_id);
        store.write(Lsn::ZERO)?;
        store.tree.flush()?;
        Ok(store)
    }

    fn on(tree: sled::Db, log_id: Uuid) -> Store {
        let (segments, unread, pending) = (BTreeMap::new(), BTreeMap::new(), BTreeMap::new());
        Store { tree, log_id, applied: Lsn::ZERO, sum: Sum::default(), segments, unread, pending }
    }

    pub(super) fn applied(&self) -> Lsn {
        self.applied
    }

    /// Takes the changes in. A crash leaves all, some or none of them, and says `applied` only if all are there; the same
    /// changes again do no harm. What was changed is durable when it returns.
    pub(super) fn feed(&mut self, changes: Vec<Change>, applied: Lsn) -> Result<(), Problem> {
        let before = self.applied;
        for change in changes {
            self.change(change)?;
            if self.pending.len() >= BATCH_ENTRIES {
                self.write(before)?;
            }
        }
        self.write(applied)?;
        self.tree.flush()?;
        Ok(())
    }

    fn change(&mut self, change: Change) -> Result<(), Problem> {
        match change {
            Change::Segment { first_index, other_bytes } => {
                let mut used = self.segments.get(&first_index.0).copied().unwrap_or_default();
                used.other_bytes = other_bytes;
                self.set_use(first_index.0, Some(used))
            }
            Change::Unread { indexes } => self.leave_out(&indexes),
            Change::SegmentGone { first_index } => self.merge_segment(first_index.0),
            Change::Commit { pipeline, branch, sequence, lsn, payload, at_ms, bytes, commit_id } => {
                self.insert(&pipeline, &branch, sequence, Checkpoint { lsn, payload, at_ms, bytes, commit_id })
            }
            Change::Retain { pipeline, branch, sequences, pinned } => {
                self.retain(&pipeline, &branch, &sequences, &pinned)
            }
            Change::Audit { pipeline, lsn, at_ms } => self.append_audit(&pipeline, lsn, at_ms),
            Change::ExpireAudit { pipeline, before_ms } => self.expire_audit(&pipeline, before_ms),
        }
    }

    fn insert(&mut self, pipeline: &str, branch: &str, sequence: u64, new: Checkpoint) -> Result<(), Problem> {
        let key = layout::checkpoint_key(pipeline, branch, sequence);
        let old = self.get::<Checkpoint>(&key)?;
        if old == Some(new) {
            return Ok(());
        }
        if let Some(old) = old {
            self.release(pipeline, old)?;
        }
        if let Some(commit_id) = new.commit_id {
            let id_key = layout::id_key(pipeline, &commit_id);
            // An id of an abandoned commit may be used again; the later commit is the one.
            let known = self.get::<Id>(&id_key)?;
            let id = match known {
                Some(id) if id.lsn > new.lsn => id,
                Some(id) if id.lsn == new.lsn => Id { lsn: id.lsn, checkpoints: id.checkpoints + 1 },
                _ => Id { lsn: new.lsn, checkpoints: 1 },
            };
            self.put(id_key, &id)?;
        }
        self.charge(new.lsn, |bytes| bytes.saturating_add(new.bytes))?;
        self.put(key, &new)
    }

    /// Removes the checkpoints of a branch outside `sequences`, except for the pinned ones.
    fn retain(
        &mut self,
        pipeline: &str,
        branch: &str,
        sequences: &RangeInclusive<u64>,
        pinned: &[u64],
    ) -> Result<(), Problem> {
        let key = |sequence| layout::checkpoint_key(pipeline, branch, sequence);
        let below = sequences.start().checked_sub(1).map(|last| (key(0), key(last)));
        let above = sequences.end().checked_add(1).map(|first| (key(first), key(u64::MAX)));
        for (first, last) in below.into_iter().chain(above) {
            let mut from = first;
            while let Some(found) = self.next_key(from, &last)? {
                let sequence = layout::last_u64(&found).ok_or_else(|| doubt("a checkpoint's key is too short"))?;
                if !pinned.contains(&sequence)
                    && let Some(old) = self.get::<Checkpoint>(&found)?
                {
                    self.release(pipeline, old)?;
                    self.remove(found.clone())?;
                }
                from = after(found);
            }
        }
        Ok(())
    }

    /// The first key there is from `from` through `last`, with what is pending.
    fn next_key(&self, mut from: Vec<u8>, last: &[u8]) -> Result<Option<Vec<u8>>, Problem> {
        while *from <= *last {
            let written = self.tree.range(&from[..]..=last).keys().next().transpose()?;
            let bounds = (Bound::Included(&from[..]), Bound::Included(last));
            match (self.pending.range::<[u8], _>(bounds).next(), written) {
                (Some((key, value)), written) if written.as_ref().is_none_or(|written| **key <= **written) => {
                    if value.is_some() {
                        return Ok(Some(key.clone()));
                    }
                    from = after(key.clone());
                }
                (_, written) => return Ok(written.map(|key| key.to_vec())),
            }
        }
        Ok(None)
    }

    /// Takes back what a checkpoint counted for.
    fn release(&mut self, pipeline: &str, old: Checkpoint) -> Result<(), Problem> {
        if let Some(commit_id) = old.commit_id {
            let id_key = layout::id_key(pipeline, &commit_id);
            if let Some(id) = self.get::<Id>(&id_key)?.filter(|id| id.lsn == old.lsn) {
                match id.checkpoints.saturating_sub(1) {
                    0 => self.remove(id_key)?,
                    checkpoints => self.put(id_key, &Id { lsn: id.lsn, checkpoints })?,
                }
            }
        }
        self.charge(old.lsn, |bytes| bytes.saturating_sub(old.bytes))
    }

    fn append_audit(&mut self, pipeline: &str, lsn: Lsn, at_ms: u64) -> Result<(), Problem> {
        let chain_key = layout::chain_key(pipeline);
        let chain = self.get::<Chain>(&chain_key)?.unwrap_or_default();
        if lsn <= chain.newest {
            return Ok(());
        }
        let oldest = if chain.oldest == Lsn::ZERO { lsn } else { chain.oldest };
        self.put(layout::audit_key(pipeline, lsn), &AuditEntry { previous: chain.newest, at_ms })?;
        self.put(chain_key, &Chain { newest: lsn, oldest })
    }

    fn expire_audit(&mut self, pipeline: &str, before_ms: u64) -> Result<(), Problem> {
        let chain_key = layout::chain_key(pipeline);
        let Some(chain) = self.get::<Chain>(&chain_key)? else { return Ok(()) };
        let (mut oldest, last) = (chain.oldest, layout::audit_key(pipeline, chain.newest));
        while oldest > Lsn::ZERO {
            let key = layout::audit_key(pipeline, oldest);
            let audit = self.get::<AuditEntry>(&key)?;
            if audit.ok_or_else(|| lost(pipeline, oldest))?.at_ms >= before_ms {
                break;
            }
            self.remove(key.clone())?;
            oldest = self.next_key(key, &last)?.map_or(Ok(Lsn::ZERO), |key| audit_lsn(&key))?;
        }
        if oldest != chain.oldest {
            self.put(chain_key, &Chain { oldest, ..chain })?;
        }
        Ok(())
    }

    /// The checkpoints of these sequences, as far as they are there.
    pub(super) fn commits(
        &self,
        pipeline: &str,
        branch: &str,
        sequences: &[u64],
    ) -> Result<Vec<Option<Place>>, Problem> {
        let place = |sequence: &u64| {
            let found = self.get::<Checkpoint>(&layout::checkpoint_key(pipeline, branch, *sequence))?;
            Ok(found.map(|found| Place { sequence: *sequence, lsn: found.lsn }))
        };
        sequences.iter().map(place).collect()
    }

    pub(super) fn commit_id(&self, pipeline: &str, key: &Digest) -> Result<Option<Lsn>, Problem> {
        Ok(self.get::<Id>(&layout::id_key(pipeline, key))?.map(|id| id.lsn))
    }

    /// Newest first. Each record names the one before it, so that a gap is noticed.
    pub(super) fn audit(&self, pipeline: &str, before: Lsn, limit: usize) -> Result<Vec<Lsn>, Problem> {
        let chain = self.get::<Chain>(&layout::chain_key(pipeline))?.unwrap_or_default();
        if chain.oldest == Lsn::ZERO || before <= chain.oldest {
            return Ok(Vec::new());
        }
        let (start, end) = (layout::audit_key(pipeline, before), layout::audit_key(pipeline, Lsn::MAX));
        let mut due = match self.tree.range(start.clone()..=end).next() {
            Some(entry) => {
                let (key, value) = entry?;
                decode::<AuditEntry>(&key, &value)?.previous
            }
            None => chain.newest,
        };
        let (mut found, mut entries) =
            (Vec::new(), self.tree.range(layout::audit_key(pipeline, Lsn::ZERO)..start).rev());
        while found.len() < limit && due >= chain.oldest && due > Lsn::ZERO {
            let (key, value) = entries.next().ok_or_else(|| lost(pipeline, due))??;
            if audit_lsn(&key)? != due {
                return Err(lost(pipeline, due));
            }
            found.push(due);
            due = decode::<AuditEntry>(&key, &value)?.previous;
        }
        Ok(found)
    }

    /// Checkpoints whose facts, or payloads, are in these log indexes, from the entry after `previous` on, out of the next `rows` entries;
    /// and where to go on, unless that was all.
    pub(super) fn located(
        &self,
        indexes: &RangeInclusive<LogIndex>,
        previous: &[u8],
        rows: usize,
    ) -> Result<(Vec<Located>, Option<Vec<u8>>), Problem> {
        let mut found = Vec::new();
        let entries = self.tree.range((Bound::Excluded(previous.to_vec()), Bound::Excluded(b"i".to_vec())));
        let mut last = None;
        for (at, entry) in entries.enumerate() {
            if at == rows {
                return Ok((found, last));
            }
            let (key, value) = entry?;
            let checkpoint: Checkpoint = decode(&key, &value)?;
            if indexes.contains(&checkpoint.lsn.index()) || indexes.contains(&checkpoint.payload.index()) {
                let names = layout::checkpoint_names(&key).ok_or_else(|| doubt("a checkpoint's key has no names"))?;
                let (pipeline, branch, sequence) = names;
                found.push(Located { pipeline: pipeline.to_owned(), branch: branch.to_owned(), sequence });
            }
            last = Some(key.to_vec());
        }
        Ok((found, None))
    }

    /// Number of entries.
    pub(super) fn entries(&self) -> u64 {
        self.sum.entries
    }

    /// Makes everything durable, for a clean end.
    pub(super) fn flush(&self) -> Result<(), Problem> {
        self.tree.flush()?;
        Ok(())
    }

    fn raw(&self, key: &[u8]) -> Result<Option<Vec<u8>>, Problem> {
        match self.pending.get(key) {
            Some(value) => Ok(value.clone()),
            None => Ok(self.tree.get(key)?.map(|value| value.to_vec())),
        }
    }

    fn get<V: Value>(&self, key: &[u8]) -> Result<Option<V>, Problem> {
        self.raw(key)?.map(|value| decode(key, &value)).transpose()
    }

    pub(super) fn put<V: Value>(&mut self, key: Vec<u8>, value: &V) -> Result<(), Problem> {
        let value = value.encode(&key);
        if let Some(old) = self.raw(&key)? {
            self.sum.remove(&key, &old);
        }
        self.sum.add(&key, &value);
        self.pending.insert(key, Some(value));
        Ok(())
    }

    pub(super) fn remove(&mut self, key: Vec<u8>) -> Result<(), Problem> {
        if let Some(old) = self.raw(&key)? {
            self.sum.remove(&key, &old);
            self.pending.insert(key, None);
        }
        Ok(())
    }

    /// Writes what is pending as one batch, with the meta record that fits it.
    fn write(&mut self, applied: Lsn) -> Result<(), Problem> {
        let mut batch = Batch::default();
        for (key, value) in std::mem::take(&mut self.pending) {
            match value {
                Some(value) => batch.insert(key, value),
                None => batch.remove(key),
            }
        }
        let meta = Meta { log_id: self.log_id, applied, sum: self.sum };
        batch.insert(META, meta.encode(META));
        self.tree.apply_batch(batch)?;
        self.applied = applied;
        Ok(())
    }
}

/// Measured with a million entries, 50,000 a feed: the other mode takes as long and as much disk. Nothing is flushed on
/// a timer, because every feed ends with a flush.
fn open_tree(dir: &Path, settings: &ColdSettings) -> Result<sled::Db, Problem> {
    let config = sled::Config::new().path(dir).cache_capacity(settings.cache_bytes).flush_every_ms(None);
    Ok(config.mode(sled::Mode::LowSpace).open()?)
}

fn decode<V: Value>(key: &[u8], value: &[u8]) -> Result<V, Problem> {
    V::decode(key, value).ok_or_else(|| doubt("an entry is not what was written"))
}

fn audit_lsn(key: &[u8]) -> Result<Lsn, Problem> {
    layout::last_u64(key).map(Lsn::from_u64).ok_or_else(|| doubt("an audit record's key is too short"))
}

fn lost(pipeline: &str, lsn: Lsn) -> Problem {
    doubt(format!("audit record {lsn} of '{pipeline}' is not there"))
}

/// The smallest key greater than this one.
fn after(mut key: Vec<u8>) -> Vec<u8> {
    key.push(0);
    key
}
