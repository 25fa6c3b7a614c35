//! The one loop that decodes entries. Recovery, readers and `verify` all walk with it.
//!
//! A [`Walk`] goes through one segment from entry to entry, checks every byte that it passes, and stops at the first that
//! is wrong. What that means is for others to say.

use std::io;
use std::sync::Arc;

use bytes::Bytes;
use fencepost::{LogIndex, Lsn};

use super::frame::{self, BadHeader, Commit, HEADER_BYTES, Header, Kind, Seed};
use super::segment::Order;
use crate::disk::File;

/// Reads a file through a buffer that runs ahead.
#[derive(Debug)]
pub(super) struct Window {
    file: Arc<dyn File>,
    ahead_bytes: usize,
    start: u64,
    bytes: Vec<u8>,
}

impl Window {
    pub(super) fn new(file: Arc<dyn File>, ahead_bytes: usize) -> Window {
        Window { file, ahead_bytes, start: 0, bytes: Vec::new() }
    }

    /// The bytes from `offset`, which with `len` must lie before `limit`. Reads ahead, never beyond the limit.
    pub(super) fn get(&mut self, offset: u64, len: usize, limit: u64) -> io::Result<&[u8]> {
        let held = offset >= self.start && offset + len as u64 <= self.start + self.bytes.len() as u64;
        if !held {
            let wanted = (limit - offset).min(len.max(self.ahead_bytes) as u64) as usize;
            self.bytes.resize(wanted, 0);
            self.start = offset;
            if let Err(error) = self.file.read_at(&mut self.bytes, offset) {
                self.bytes.clear();
                return Err(error);
            }
        }
        let from = (offset - self.start) as usize;
        Ok(&self.bytes[from..from + len])
    }

    /// Forgets what was read, for a file that has changed.
    pub(super) fn forget(&mut self) {
        self.bytes.clear();
    }

    /// Whether there are only zeros between two offsets, and if not, where the first other byte is.
    pub(super) fn first_nonzero(&mut self, mut from: u64, to: u64) -> io::Result<Option<u64>> {
        while from < to {
            let len = (to - from).min(self.ahead_bytes as u64) as usize;
            let bytes = self.get(from, len, to)?;
            if !frame::is_zero(bytes) {
                let at = bytes.iter().position(|byte| *byte != 0).expect("a chunk that is not zero has such a byte");
                return Ok(Some(from + at as u64));
            }
            from += len as u64;
        }
        Ok(None)
    }
}

/// An entry that was found whole.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Found {
    pub(super) index: LogIndex,
    pub(super) offset: u64,
    pub(super) end: u64,
    pub(super) commit: Commit,
}

/// A frame that is not as it should be.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Bad {
    pub(super) offset: u64,
    /// The entry that the frame should be part of.
    pub(super) index: LogIndex,
    pub(super) problem: Problem,
}

/// What is wrong with a frame.
#[derive(Clone, Copy, Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum Problem {
    #[error("there are zeros where a frame should be")]
    Blank,
    #[error("the frame's header does not match its CRC")]
    Header,
    #[error("the frame is of kind {0}, which this version does not know")]
    UnknownKind(u8),
    #[error("the frame's payload of {0} bytes reaches beyond the end of the entries")]
    TooLong(u32),
    #[error("the frame's payload does not match its CRC")]
    Payload(Header),
    #[error("the bytes that fill up the frame are not zero")]
    Padding,
    #[error("the frame is a {} of entry {}, number {}, and not the one that is due", kind_name(.0.kind), .0.index, .0.ordinal)]
    OutOfOrder(Header),
    #[error("the end of the entry does not match its facts")]
    Commit,
    #[error("the entries before this leave no room for the table that ends a segment")]
    NoRoom,
}

fn kind_name(kind: Kind) -> &'static str {
    match kind {
        Kind::Fact => "fact",
        Kind::Commit => "commit",
        Kind::Table => "table",
    }
}

/// Where a walk got to.
#[derive(Clone, Copy, Debug)]
pub(super) enum Step {
    Entry(Found),
    /// Nothing more: the limit, or a blank header where an entry would begin.
    End,
    Bad(Bad),
}

/// A walk through the entries of one segment.
#[derive(Debug)]
pub(super) struct Walk {
    pub(super) window: Window,
    seed: Seed,
    order: Order,
    /// Where the next entry begins.
    pub(super) offset: u64,
    /// The index of the next entry, at least.
    pub(super) index: LogIndex,
    /// No entry reaches beyond this.
    pub(super) limit: u64,
    durable_before: LogIndex,
}

impl Walk {
    /// Starts at the entry `index`, which begins at `offset`.
    pub(super) fn new(window: Window, seed: Seed, order: Order, index: LogIndex, offset: u64, limit: u64) -> Walk {
        Walk { window, seed, order, offset, index, limit, durable_before: LogIndex::ZERO }
    }

    /// Goes over one entry and shows its facts, whose CRCs were right, with the offsets of their frames. Stays in place unless the entry is whole.
    pub(super) fn step(&mut self, each: &mut dyn FnMut(Lsn, &[u8], u64)) -> io::Result<Step> {
        let mut headers_crc = self.seed.hasher();
        let mut at = self.offset;
        let (mut index, mut facts, mut ordinal_due) = (self.index, 0_u32, 0_u32);
        if at == self.limit {
            return Ok(Step::End);
        }
        loop {
            let bad = |problem| Step::Bad(Bad { offset: at, index, problem });
            let (header, payload) = match frame_at(&mut self.window, self.seed, at, self.limit)? {
                Ok(found) => found,
                Err(Problem::Blank) if at == self.offset => return Ok(Step::End),
                Err(problem) => return Ok(bad(problem)),
            };
            let ordinal = u32::from(header.ordinal);
            let due = match (self.order, header.kind) {
                (_, Kind::Table) => false,
                (_, Kind::Commit) => ordinal == facts,
                (Order::Dense, Kind::Fact) => ordinal == ordinal_due,
                (Order::Sparse, Kind::Fact) => ordinal >= ordinal_due,
            };
            // Where entries are left out, the first frame of an entry says which one it is.
            let skips = self.order == Order::Sparse && at == self.offset && header.index > index;
            if !due || (header.index != index && !skips) {
                return Ok(bad(Problem::OutOfOrder(header)));
            }
            index = header.index;
            let end = at + header.frame_bytes();
            if header.kind == Kind::Fact {
                each(Lsn::new(index, header.ordinal), payload, at);
                headers_crc.update(&header.encode(self.seed)[..28]);
                (facts, ordinal_due, at) = (facts + 1, ordinal + 1, end);
                continue;
            }
            let durable = self.durable_before.0..index.0;
            let commit = Commit::decode(payload).filter(|commit| {
                commit.headers_crc == headers_crc.clone().finalize()
                    && commit.facts == facts
                    && header.blank_sectors == 0
                    && durable.contains(&commit.durable_before.0)
            });
            let Some(commit) = commit else {
                return Ok(Step::Bad(Bad { offset: at, index, problem: Problem::Commit }));
            };
            let found = Found { index, offset: self.offset, end, commit };
            (self.offset, self.index, self.durable_before) = (end, index.next(), commit.durable_before);
            return Ok(Step::Entry(found));
        }
    }
}

/// Reads and checks the frame at an offset.
pub(super) fn frame_at(
    window: &mut Window,
    seed: Seed,
    at: u64,
    limit: u64,
) -> io::Result<Result<(Header, &[u8]), Problem>> {
    if at + HEADER_BYTES as u64 > limit {
        return Ok(Err(Problem::Blank));
    }
    let bytes = window.get(at, HEADER_BYTES, limit)?.try_into().expect("the slice has the length of a header");
    let header = match Header::decode(seed, bytes) {
        Ok(header) => header,
        Err(BadHeader::Blank) => return Ok(Err(Problem::Blank)),
        Err(BadHeader::Damaged) => return Ok(Err(Problem::Header)),
        Err(BadHeader::UnknownKind(kind)) => return Ok(Err(Problem::UnknownKind(kind))),
    };
    if header.frame_bytes() > limit - at {
        return Ok(Err(Problem::TooLong(header.payload_bytes)));
    }
    let frame = window.get(at, header.frame_bytes() as usize, limit)?;
    let (payload, padding) = frame[HEADER_BYTES..].split_at(header.payload_bytes as usize);
    if crc32fast::hash(payload) != header.payload_crc {
        return Ok(Err(Problem::Payload(header)));
    }
    if !frame::is_zero(padding) {
        return Ok(Err(Problem::Padding));
    }
    Ok(Ok((header, payload)))
}

/// An entry with its facts.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct ReadEntry {
    /// Its place in the log.
    pub index: LogIndex,
    /// The entry on whose outcome its facts were judged.
    pub based_on: LogIndex,
    /// Raft's term.
    pub term: u64,
    /// The ordinals and payloads of its facts, in order. Ordinals are left out where compaction removed a fact.
    pub facts: Vec<(u16, Bytes)>,
}
