//! The verdict on what follows the last good entry of the newest segment: nothing, a write that was cut short, or damage.
//!
//! Here it is decided whether bytes are thrown away, so everything is decided from bytes alone, by pure functions. The
//! argument is in `docs/log-format.md`; in short: the area was zero before; only one group of entries can be unsynced,
//! and everything before it is proven by the `durable_before` of the commits in it; a write that was cut short leaves
//! whole sectors unwritten, or stops at a byte and leaves zeros behind. Damage leaves neither.

use super::frame::{self, COMMIT_BYTES, Commit, END_MARK, HEADER_BYTES, Header, Kind, SECTOR_BYTES, Seed};
use super::segment::{TRAILER_BYTES, Trailer};
use super::walk::{Bad, Problem};

/// The bytes after the last good entry, with what is known about them.
#[derive(Clone, Copy, Debug)]
pub(super) struct Remains<'a> {
    pub(super) seed: Seed,
    /// The segment from where the last good entry ends.
    pub(super) bytes: &'a [u8],
    /// Where that is.
    pub(super) end: u64,
    /// The first frame that is not good, at or after `end`.
    pub(super) bad: Bad,
    /// Where the seal of these entries would be, and its bytes; None if there are no entries.
    pub(super) seal: Option<(u64, &'a [u8])>,
}

/// What the remains are.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    /// Zeros: the log ends here.
    Clean,
    /// The complete seal of the segment.
    Sealed,
    /// A write that never finished. What it held was not acknowledged.
    Torn(&'static str),
    /// An entry that lacks nothing but bytes of its end mark, which is the same in all entries. It begins here.
    Unmarked(u64),
    /// Something durable is not what it was.
    Corrupt(Bad, String),
}

impl Remains<'_> {
    pub(super) fn judge(&self) -> Verdict {
        let Some(last_nonzero) = self.last_nonzero() else { return Verdict::Clean };
        if let Some(verdict) = self.judge_seal() {
            return verdict;
        }
        if let Some(evidence) = self.proof_of_durability() {
            return Verdict::Corrupt(self.bad, evidence);
        }
        if self.lacks_a_sector() {
            return Verdict::Torn("sectors of the last write are missing");
        }
        self.judge_cut(last_nonzero)
    }

    fn at(&self, offset: u64) -> &[u8] {
        &self.bytes[(offset - self.end) as usize..]
    }

    fn last_nonzero(&self) -> Option<u64> {
        self.at(self.end).iter().rposition(|byte| *byte != 0).map(|at| self.end + at as u64)
    }

    /// Whether this is the seal, or a part of it and zeros.
    fn judge_seal(&self) -> Option<Verdict> {
        let (offset, expected) = self.seal?;
        let gap = &self.at(self.end)[..(offset - self.end) as usize];
        let found = self.at(offset);
        if !frame::is_zero(gap) {
            return None;
        }
        if found == expected {
            return Some(Verdict::Sealed);
        }
        let partly = found.iter().zip(expected).all(|(found, expected)| found == expected || *found == 0);
        if partly {
            return Some(Verdict::Torn("the seal of the segment is incomplete"));
        }
        let trailer = self.trailer()?;
        // All entries are there, so it is the table that is damaged.
        let bad = Bad { offset, index: trailer.last_index, problem: Problem::Header };
        (trailer.entries_end == self.end)
            .then(|| Verdict::Corrupt(bad, "the table of a sealed segment is not that of its entries".into()))
    }

    fn trailer(&self) -> Option<Trailer> {
        Trailer::decode(self.seed, self.bytes.last_chunk::<{ TRAILER_BYTES as usize }>()?)
    }

    /// Something that was written after the bad entry was durable, if there is such a thing.
    fn proof_of_durability(&self) -> Option<String> {
        let bad = self.bad.index;
        if let Some(trailer) = self.trailer()
            && trailer.last_index >= bad
        {
            return Some(format!("the segment was sealed up to entry {}", trailer.last_index));
        }
        let mut at = self.bad.offset + self.known_length().unwrap_or(frame::ALIGN_BYTES as u64);
        while let Some((offset, header, frame)) = next_frame(self.at_or_end(at), self.seed, at) {
            at = offset + header.frame_bytes();
            let payload = &frame[HEADER_BYTES..];
            let intact = crc32fast::hash(payload) == header.payload_crc;
            let proof = match header.kind {
                Kind::Commit if intact => Commit::decode(payload).map(|commit| commit.durable_before),
                Kind::Table => Some(header.index),
                _ => None,
            };
            if proof.is_some_and(|durable| durable >= bad) {
                return Some(format!("entry {} at offset {offset} was written after it was durable", header.index));
            }
        }
        None
    }

    fn at_or_end(&self, offset: u64) -> &[u8] {
        self.bytes.get((offset - self.end) as usize..).unwrap_or_default()
    }

    fn bad_header(&self) -> Option<Header> {
        let bytes = self.at(self.bad.offset).first_chunk::<HEADER_BYTES>()?;
        Header::decode(self.seed, bytes).ok()
    }

    /// The length of the bad frame, if its header is good.
    fn known_length(&self) -> Option<u64> {
        match self.bad.problem {
            Problem::Blank | Problem::Header | Problem::UnknownKind(_) | Problem::TooLong(_) => None,
            _ => self.bad_header().map(|header| header.frame_bytes()),
        }
    }

    /// Whether the frame is bad because a sector was never written.
    fn lacks_a_sector(&self) -> bool {
        let (length, header) = match self.bad.problem {
            Problem::Blank | Problem::Header => (HEADER_BYTES as u64, None),
            Problem::Payload(header) => (header.frame_bytes(), Some(header)),
            // These frames are as they were written, or damaged.
            _ => return false,
        };
        let (start, end) = (self.bad.offset, self.bad.offset + length);
        let mut blank_inside = 0;
        let sector_bytes = SECTOR_BYTES as u64;
        for sector in start / sector_bytes..end.div_ceil(sector_bytes) {
            let (from, to) = (sector * sector_bytes, (sector + 1) * sector_bytes);
            // What is before the end may be of an earlier write, so it says nothing about this one.
            let within = self.at_or_end(from.max(self.end));
            let length = (to - from.max(self.end)) as usize;
            if !frame::is_zero(&within[..length.min(within.len())]) {
                continue;
            }
            let inside_payload = header.is_some() && from >= start + HEADER_BYTES as u64 && to <= end;
            if !inside_payload {
                // Each frame begins and ends with bytes that are not zero, or is followed by a frame that does.
                return true;
            }
            blank_inside += 1;
        }
        header.is_some_and(|header| blank_inside > header.blank_sectors)
    }

    /// Whether the last write stopped at a byte.
    fn judge_cut(&self, last_nonzero: u64) -> Verdict {
        const CUT: Verdict = Verdict::Torn("the last write stopped in the middle of an entry");
        let start = self.bad.offset;
        let length = match self.bad.problem {
            Problem::Blank | Problem::Header => HEADER_BYTES as u64,
            Problem::Payload(header) if header.kind == Kind::Commit => {
                let mark = start + COMMIT_BYTES as u64 - END_MARK.len() as u64;
                if last_nonzero >= mark && self.only_lacks_its_mark(mark) {
                    return Verdict::Unmarked(mark);
                }
                mark - start
            }
            Problem::Payload(header) => header.frame_bytes(),
            _ => 0,
        };
        if last_nonzero < start + length {
            return CUT;
        }
        Verdict::Corrupt(self.bad, "its sectors were all written, so it is no write that was cut short".into())
    }

    /// Whether the bytes from `mark` are the beginning of an end mark and then zeros, and the commit frame before it is
    /// right once the mark is complete.
    fn only_lacks_its_mark(&self, mark: u64) -> bool {
        let found = self.at(mark);
        let written = found.iter().zip(END_MARK).take_while(|(found, expected)| **found == *expected).count();
        let frame = &self.at(self.bad.offset)[..COMMIT_BYTES - END_MARK.len()];
        let mut payload = frame[HEADER_BYTES..].to_vec();
        payload.extend_from_slice(&END_MARK);
        frame::is_zero(&found[written..])
            && self.bad_header().is_some_and(|header| header.payload_crc == crc32fast::hash(&payload))
    }
}

/// The first intact header in `bytes`, which begin at `offset`, of a frame that fits: where it is, and the frame without
/// its padding.
pub(super) fn next_frame(bytes: &[u8], seed: Seed, offset: u64) -> Option<(u64, Header, &[u8])> {
    let mut at = (offset.next_multiple_of(frame::ALIGN_BYTES as u64) - offset) as usize;
    while let Some(header) = bytes.get(at..)?.first_chunk::<HEADER_BYTES>() {
        if let Ok(header) = Header::decode(seed, header) {
            let end = at + HEADER_BYTES + header.payload_bytes as usize;
            if let Some(frame) = bytes.get(at..end) {
                return Some((offset + at as u64, header, frame));
            }
        }
        at += frame::ALIGN_BYTES;
    }
    None
}
