//! Entries: a batch of facts that becomes durable as one.
//!
//! The caller's thread frames the facts and computes the CRCs of their payloads; what depends on the place in the
//! log (the headers' CRCs and the commit frame) is filled in by the writer, in the same buffer.

use bytes::{BufMut, BytesMut};
use fencepost::LogIndex;

use super::frame::{self, COMMIT_BYTES, Commit, HEADER_BYTES, Header, Kind, Seed};

/// Most facts in an entry.
pub const FACTS_MAX: usize = u16::MAX as usize;

/// An entry in the making.
#[derive(Debug)]
pub struct EntryBuilder {
    index: LogIndex,
    facts: u16,
    frames: BytesMut,
}

impl EntryBuilder {
    /// An entry without facts, which is valid as it is.
    pub fn new(index: LogIndex) -> EntryBuilder {
        EntryBuilder { index, facts: 0, frames: BytesMut::new() }
    }

    /// How long an entry becomes that has this many facts with this many bytes of payload in all, at most. Good for
    /// [`Log::reserve`](super::Log::reserve).
    pub const fn len_bytes_max(facts: usize, payload_bytes: usize) -> usize {
        payload_bytes + facts * (HEADER_BYTES + frame::ALIGN_BYTES - 1) + COMMIT_BYTES
    }

    /// Adds a fact.
    ///
    /// # Panics
    /// If the entry already has [`FACTS_MAX`] facts: whoever batches must look at [`EntryBuilder::fact_count`].
    pub fn push(&mut self, payload: &[u8]) {
        self.push_with(payload.len(), |buffer| buffer.extend_from_slice(payload));
    }

    /// Adds the fact that `encode` appends to the buffer; the hint is how long it will be.
    ///
    /// # Panics
    /// As [`EntryBuilder::push`].
    pub fn push_with(&mut self, payload_bytes_hint: usize, encode: impl FnOnce(&mut BytesMut)) {
        assert!(usize::from(self.facts) < FACTS_MAX, "an entry has at most {FACTS_MAX} facts");
        self.frames.reserve(HEADER_BYTES + payload_bytes_hint + frame::ALIGN_BYTES + COMMIT_BYTES);
        let start = self.frames.len();
        self.frames.put_bytes(0, HEADER_BYTES);
        encode(&mut self.frames);
        let payload = &self.frames[start + HEADER_BYTES..];
        let (payload_bytes, payload_crc) = (payload.len(), crc32fast::hash(payload));
        self.frames.put_bytes(0, payload_bytes.next_multiple_of(frame::ALIGN_BYTES) - payload_bytes);
        // The writer reads these two back and puts the whole header here.
        self.frames[start..start + 4].copy_from_slice(&(payload_bytes as u32).to_le_bytes());
        self.frames[start + 4..start + 8].copy_from_slice(&payload_crc.to_le_bytes());
        self.facts += 1;
    }

    /// How many facts it has.
    pub fn fact_count(&self) -> usize {
        self.facts.into()
    }

    /// How many bytes of the log it takes, if no fact is added.
    pub fn len_bytes(&self) -> usize {
        self.frames.len() + COMMIT_BYTES
    }

    /// Closes the entry. `based_on` is the entry on whose outcome its facts were judged, `term` is Raft's.
    pub fn finish(mut self, based_on: LogIndex, term: u64) -> Entry {
        self.frames.put_bytes(0, COMMIT_BYTES);
        Entry { index: self.index, facts: self.facts, based_on, term, bytes: self.frames }
    }
}

/// An entry ready to be appended.
#[derive(Debug)]
pub struct Entry {
    index: LogIndex,
    facts: u16,
    based_on: LogIndex,
    term: u64,
    bytes: BytesMut,
}

impl Entry {
    /// Its place in the log.
    pub fn index(&self) -> LogIndex {
        self.index
    }

    /// How many facts it has.
    pub fn fact_count(&self) -> usize {
        self.facts.into()
    }

    /// How many bytes of the log it takes.
    pub fn len_bytes(&self) -> usize {
        self.bytes.len()
    }

    /// Completes the frames for the place that the entry gets, and hands them out. Only once for each entry.
    pub(super) fn place(&mut self, seed: Seed, offset: u64, durable_before: LogIndex) -> &[u8] {
        let mut headers_crc = seed.hasher();
        let mut at = 0;
        for ordinal in 0..self.facts {
            let word = |from: usize| {
                let bytes = self.bytes[from..from + 4].try_into().expect("the slice has four bytes");
                u32::from_le_bytes(bytes)
            };
            let (payload_bytes, payload_crc) = (word(at), word(at + 4));
            let payload_at = at + HEADER_BYTES;
            let padded_bytes = frame::align(payload_bytes.into()) as usize;
            let padded = &self.bytes[payload_at..payload_at + padded_bytes];
            let blank_sectors = frame::blank_sectors(padded, offset + payload_at as u64);
            let index = self.index;
            let header = Header { kind: Kind::Fact, ordinal, blank_sectors, index, payload_bytes, payload_crc };
            let encoded = header.encode(seed);
            headers_crc.update(&encoded[..28]);
            self.bytes[at..payload_at].copy_from_slice(&encoded);
            at += header.frame_bytes() as usize;
        }
        let commit = Commit {
            headers_crc: headers_crc.finalize(),
            facts: self.facts.into(),
            based_on: self.based_on,
            term: self.term,
            durable_before,
        };
        let commit = commit_frame(seed, self.index, &commit);
        self.bytes[at..].copy_from_slice(&commit);
        &self.bytes
    }

    /// The frames that [`Entry::place`] completed.
    pub(super) fn placed(&self) -> &[u8] {
        &self.bytes
    }
}

/// Appends a whole entry to bytes whose end is at `offset` in their file, its facts given with their ordinals. Everything
/// before it counts as durable.
pub(super) fn encode(
    bytes: &mut Vec<u8>,
    seed: Seed,
    offset: u64,
    (index, based_on, term): (LogIndex, LogIndex, u64),
    facts: &[(u16, &[u8])],
) {
    let start = bytes.len();
    let mut headers_crc = seed.hasher();
    for (ordinal, payload) in facts {
        let header_at = bytes.len();
        bytes.extend_from_slice(&[0; HEADER_BYTES]);
        bytes.extend_from_slice(payload);
        bytes.resize(header_at + HEADER_BYTES + frame::align(payload.len() as u64) as usize, 0);
        let payload_at = header_at + HEADER_BYTES;
        let blank_sectors = frame::blank_sectors(&bytes[payload_at..], offset + (payload_at - start) as u64);
        let (payload_bytes, payload_crc) = (payload.len() as u32, crc32fast::hash(payload));
        let header = Header { kind: Kind::Fact, ordinal: *ordinal, blank_sectors, index, payload_bytes, payload_crc };
        let encoded = header.encode(seed);
        headers_crc.update(&encoded[..28]);
        bytes[header_at..payload_at].copy_from_slice(&encoded);
    }
    let (headers_crc, durable_before) = (headers_crc.finalize(), LogIndex(index.0.saturating_sub(1)));
    let commit = Commit { headers_crc, facts: facts.len() as u32, based_on, term, durable_before };
    bytes.extend_from_slice(&commit_frame(seed, index, &commit));
}

/// The whole frame that ends an entry.
pub(super) fn commit_frame(seed: Seed, index: LogIndex, commit: &Commit) -> [u8; COMMIT_BYTES] {
    let payload = commit.encode();
    let header = Header {
        kind: Kind::Commit,
        ordinal: commit.facts as u16,
        blank_sectors: 0,
        index,
        payload_bytes: payload.len() as u32,
        payload_crc: crc32fast::hash(&payload),
    };
    let mut frame = [0; COMMIT_BYTES];
    frame[..HEADER_BYTES].copy_from_slice(&header.encode(seed));
    frame[HEADER_BYTES..].copy_from_slice(&payload);
    frame
}
