//! The keys and values of the database. One tree; the first byte of a key says what it is.
//!
//! | key | value |
//! |---|---|
//! | `h` pipeline 00 branch 00 sequence | LSN, LSN of its payload, time, bytes in the log, 1 and the key of the commit id or 0 and zeros |
//! | `i` pipeline 00 key of a commit id | LSN of the commit, how many `h` entries name it |
//! | `a` pipeline 00 LSN | LSN of the audit record before it, time |
//! | `p` pipeline 00 | LSN of the newest audit record ever, LSN of the oldest that is listed or 0 |
//! | `x` first of some log entries | last of those entries, which could not be read |
//! | `u` first log index of a segment | bytes of the `h` entries in it, other live bytes |
//! | `m` | magic, format, log id, applied LSN, number of all other entries, sum of their hashes |
//!
//! Integers in keys are big-endian, so that they sort; those in values are little-endian. Every value ends with a CRC-32
//! over its key and itself.

use fencepost::Lsn;
use uuid::Uuid;

use crate::state::Digest;

/// The meta record begins with it and the format, one character. Both and the CRC keep their places in every format, so that
/// another one is told from damage.
const MAGIC: &[u8; 7] = b"FPINDEX";

/// The format that this version writes and reads.
const FORMAT: u8 = b'2';

pub(super) const META: &[u8] = b"m";

/// One retained checkpoint.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Checkpoint {
    pub(super) lsn: Lsn,
    pub(super) payload: Lsn,
    pub(super) at_ms: u64,
    pub(super) bytes: u64,
    pub(super) commit_id: Option<Digest>,
}

/// One remembered commit id.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Id {
    pub(super) lsn: Lsn,
    pub(super) checkpoints: u64,
}

/// One audit record.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct AuditEntry {
    pub(super) previous: Lsn,
    pub(super) at_ms: u64,
}

/// The ends of a pipeline's audit chain.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Chain {
    pub(super) newest: Lsn,
    /// Zero: none is listed any more.
    pub(super) oldest: Lsn,
}

/// What is live in a segment.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Use {
    pub(super) checkpoint_bytes: u64,
    pub(super) other_bytes: u64,
}

/// Entries of the log that could not be read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Unread {
    pub(super) last: u64,
}

/// What the whole database must be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Meta {
    pub(super) log_id: Uuid,
    pub(super) applied: Lsn,
    pub(super) sum: Sum,
}

/// Number of entries and the sum of their hashes: equal for equal contents, whatever the way there.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub(super) struct Sum {
    pub(super) entries: u64,
    hashes: u128,
}

impl Sum {
    pub(super) fn add(&mut self, key: &[u8], value: &[u8]) {
        self.entries = self.entries.wrapping_add(1);
        self.hashes = self.hashes.wrapping_add(hash(key, value));
    }

    pub(super) fn remove(&mut self, key: &[u8], value: &[u8]) {
        self.entries = self.entries.wrapping_sub(1);
        self.hashes = self.hashes.wrapping_sub(hash(key, value));
    }
}

fn hash(key: &[u8], value: &[u8]) -> u128 {
    let mut hasher = blake3::Hasher::new();
    hasher.update(&(key.len() as u64).to_le_bytes()).update(key).update(value);
    let hash = hasher.finalize();
    u128::from_le_bytes(*hash.as_bytes().first_chunk().expect("a BLAKE3 hash has 32 bytes"))
}

fn named(kind: u8, names: &[&str], rest: &[u8]) -> Vec<u8> {
    let mut key = Vec::with_capacity(1 + names.iter().map(|name| name.len() + 1).sum::<usize>() + rest.len());
    key.push(kind);
    for name in names {
        key.extend_from_slice(name.as_bytes());
        key.push(0);
    }
    key.extend_from_slice(rest);
    key
}

pub(super) fn checkpoint_key(pipeline: &str, branch: &str, sequence: u64) -> Vec<u8> {
    named(b'h', &[pipeline, branch], &sequence.to_be_bytes())
}

pub(super) fn id_key(pipeline: &str, key: &Digest) -> Vec<u8> {
    named(b'i', &[pipeline], key)
}

pub(super) fn audit_key(pipeline: &str, lsn: Lsn) -> Vec<u8> {
    named(b'a', &[pipeline], &lsn.as_u64().to_be_bytes())
}

pub(super) fn chain_key(pipeline: &str) -> Vec<u8> {
    named(b'p', &[pipeline], &[])
}

pub(super) fn use_key(first_index: u64) -> Vec<u8> {
    named(b'u', &[], &first_index.to_be_bytes())
}

pub(super) fn unread_key(first_index: u64) -> Vec<u8> {
    named(b'x', &[], &first_index.to_be_bytes())
}

/// The integer that a key of `h`, `a`, `u` or `x` ends with.
pub(super) fn last_u64(key: &[u8]) -> Option<u64> {
    key.last_chunk().map(|last| u64::from_be_bytes(*last))
}

/// Pipeline, branch and sequence of an `h` key.
pub(super) fn checkpoint_names(key: &[u8]) -> Option<(&str, &str, u64)> {
    let (names, sequence) = key.strip_prefix(b"h")?.split_last_chunk()?;
    let (pipeline, branch) = std::str::from_utf8(names).ok()?.strip_suffix('\0')?.split_once('\0')?;
    Some((pipeline, branch, u64::from_be_bytes(*sequence)))
}

/// What can be stored: fields of fixed size, then a CRC.
pub(super) trait Value: Sized {
    fn put(&self, bytes: &mut Vec<u8>);
    fn take(bytes: &mut &[u8]) -> Option<Self>;

    fn encode(&self, key: &[u8]) -> Vec<u8> {
        let mut bytes = Vec::with_capacity(64);
        self.put(&mut bytes);
        let crc = crc(key, &bytes);
        bytes.extend_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// `None`: it is not what was stored under this key.
    fn decode(key: &[u8], bytes: &[u8]) -> Option<Self> {
        let (mut fields, stored) = bytes.split_last_chunk()?;
        if u32::from_le_bytes(*stored) != crc(key, fields) {
            return None;
        }
        Self::take(&mut fields).filter(|_| fields.is_empty())
    }
}

fn crc(key: &[u8], fields: &[u8]) -> u32 {
    let mut hasher = crc32fast::Hasher::new();
    hasher.update(key);
    hasher.update(fields);
    hasher.finalize()
}

fn take<const N: usize>(bytes: &mut &[u8]) -> Option<[u8; N]> {
    let (head, rest) = bytes.split_first_chunk()?;
    *bytes = rest;
    Some(*head)
}

fn take_u64(bytes: &mut &[u8]) -> Option<u64> {
    take(bytes).map(u64::from_le_bytes)
}

fn take_lsn(bytes: &mut &[u8]) -> Option<Lsn> {
    take_u64(bytes).map(Lsn::from_u64)
}

fn put(bytes: &mut Vec<u8>, fields: &[u64]) {
    bytes.extend(fields.iter().flat_map(|field| field.to_le_bytes()));
}

impl Value for Checkpoint {
    fn put(&self, bytes: &mut Vec<u8>) {
        put(bytes, &[self.lsn.as_u64(), self.payload.as_u64(), self.at_ms, self.bytes]);
        bytes.push(u8::from(self.commit_id.is_some()));
        bytes.extend_from_slice(&self.commit_id.unwrap_or_default());
    }

    fn take(bytes: &mut &[u8]) -> Option<Checkpoint> {
        let (lsn, payload, at_ms, len) = (take_lsn(bytes)?, take_lsn(bytes)?, take_u64(bytes)?, take_u64(bytes)?);
        let ([has_id], id) = (take(bytes)?, take(bytes)?);
        Some(Checkpoint { lsn, payload, at_ms, bytes: len, commit_id: (has_id == 1).then_some(id) })
    }
}

impl Value for Id {
    fn put(&self, bytes: &mut Vec<u8>) {
        put(bytes, &[self.lsn.as_u64(), self.checkpoints]);
    }

    fn take(bytes: &mut &[u8]) -> Option<Id> {
        Some(Id { lsn: take_lsn(bytes)?, checkpoints: take_u64(bytes)? })
    }
}

impl Value for AuditEntry {
    fn put(&self, bytes: &mut Vec<u8>) {
        put(bytes, &[self.previous.as_u64(), self.at_ms]);
    }

    fn take(bytes: &mut &[u8]) -> Option<AuditEntry> {
        Some(AuditEntry { previous: take_lsn(bytes)?, at_ms: take_u64(bytes)? })
    }
}

impl Value for Chain {
    fn put(&self, bytes: &mut Vec<u8>) {
        put(bytes, &[self.newest.as_u64(), self.oldest.as_u64()]);
    }

    fn take(bytes: &mut &[u8]) -> Option<Chain> {
        Some(Chain { newest: take_lsn(bytes)?, oldest: take_lsn(bytes)? })
    }
}

impl Value for Use {
    fn put(&self, bytes: &mut Vec<u8>) {
        put(bytes, &[self.checkpoint_bytes, self.other_bytes]);
    }

    fn take(bytes: &mut &[u8]) -> Option<Use> {
        Some(Use { checkpoint_bytes: take_u64(bytes)?, other_bytes: take_u64(bytes)? })
    }
}

impl Value for Unread {
    fn put(&self, bytes: &mut Vec<u8>) {
        put(bytes, &[self.last]);
    }

    fn take(bytes: &mut &[u8]) -> Option<Unread> {
        Some(Unread { last: take_u64(bytes)? })
    }
}

/// What is said of a database whose meta record is sound and of another format.
pub(super) fn other_format(meta: &[u8]) -> Option<String> {
    let (fields, stored) = meta.split_last_chunk()?;
    let found = *fields.strip_prefix(MAGIC)?.first()?;
    let is_sound = u32::from_le_bytes(*stored) == crc(META, fields);
    let (found, known) = (found.escape_ascii(), char::from((found != FORMAT && is_sound).then_some(FORMAT)?));
    Some(format!("it has format {found}, and this version reads format {known}"))
}

impl Value for Meta {
    fn put(&self, bytes: &mut Vec<u8>) {
        bytes.extend_from_slice(MAGIC);
        bytes.push(FORMAT);
        bytes.extend_from_slice(self.log_id.as_bytes());
        put(bytes, &[self.applied.as_u64(), self.sum.entries]);
        bytes.extend_from_slice(&self.sum.hashes.to_le_bytes());
    }

    fn take(bytes: &mut &[u8]) -> Option<Meta> {
        take::<7>(bytes).filter(|magic| magic == MAGIC)?;
        take(bytes).filter(|[format]| *format == FORMAT)?;
        let (log_id, applied) = (Uuid::from_bytes(take(bytes)?), take_lsn(bytes)?);
        let sum = Sum { entries: take_u64(bytes)?, hashes: u128::from_le_bytes(take(bytes)?) };
        Some(Meta { log_id, applied, sum })
    }
}
