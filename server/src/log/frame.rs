//! Frames: the unit that the log is made of. A header of 32 bytes, a payload, zeros up to a multiple of 8.
//!
//! Integers are little-endian. The header's CRC is seeded with the [`Identity`] of the segment, so that a frame of
//! another log, or of another segment of this one, is not taken for one that belongs here. The payload's CRC is plain,
//! so that it can be computed before the segment is known; the header binds it.

use bytes::Buf;
use fencepost::LogIndex;
use uuid::Uuid;

/// Length of a frame's header.
pub(super) const HEADER_BYTES: usize = 32;
/// Frames start at multiples of this.
pub(super) const ALIGN_BYTES: usize = 8;
/// Length of a commit frame's payload.
pub(super) const COMMIT_PAYLOAD_BYTES: usize = 40;
/// Length of a commit frame.
pub(super) const COMMIT_BYTES: usize = HEADER_BYTES + COMMIT_PAYLOAD_BYTES;
/// What the disk is assumed to write in one piece.
pub(super) const SECTOR_BYTES: usize = 512;
/// The last bytes of every entry. None is zero, so that an entry whose end never reached the disk shows.
pub(super) const END_MARK: [u8; 8] = *b"\xfeend\xa5\x9c\xe3\xfe";

/// No log index reaches this: a position has 48 bits for it.
pub(super) const INDEX_END: u64 = 1 << 48;

const FRAME_MARK: [u8; 2] = [0xfe, 0x9c];

/// Which segment of which log a frame belongs to.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Identity {
    pub(super) log_id: Uuid,
    pub(super) segment: u64,
    pub(super) group: u32,
}

impl Identity {
    /// What the CRCs of this segment start from.
    pub(super) fn seed(&self) -> Seed {
        let mut hasher = crc32fast::Hasher::new();
        hasher.update(self.log_id.as_bytes());
        hasher.update(&self.segment.to_le_bytes());
        hasher.update(&self.group.to_le_bytes());
        Seed { crc: hasher.finalize(), group: self.group }
    }
}

/// The start value of a segment's CRCs, and the group that its frames carry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Seed {
    crc: u32,
    pub(super) group: u32,
}

impl Seed {
    /// A running CRC that starts from this seed.
    pub(super) fn hasher(self) -> crc32fast::Hasher {
        crc32fast::Hasher::new_with_initial(self.crc)
    }

    /// The CRC of `bytes` from this seed.
    pub(super) fn crc(self, bytes: &[u8]) -> u32 {
        let mut hasher = self.hasher();
        hasher.update(bytes);
        hasher.finalize()
    }
}

/// What a frame is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Kind {
    /// One fact of an entry.
    Fact = 1,
    /// The end of an entry.
    Commit = 2,
    /// The table of a sealed segment.
    Table = 3,
}

/// A frame's header. Invariant of a decoded one: its CRC was right for the segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Header {
    pub(super) kind: Kind,
    /// Place of the fact in its entry; for a commit frame the number of facts before it.
    pub(super) ordinal: u16,
    /// How many whole sectors inside the payload and its padding hold only zeros. Recovery tells by it a sector that was written as
    /// zeros from one that was never written.
    pub(super) blank_sectors: u16,
    pub(super) index: LogIndex,
    pub(super) payload_bytes: u32,
    pub(super) payload_crc: u32,
}

/// Why 32 bytes are not the header of a frame of this segment.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadHeader {
    /// They are all zero: nothing was written here.
    Blank,
    /// The CRC, the mark, or a reserved field is wrong.
    Damaged,
    /// The CRC is right, and the kind is one that this version does not know.
    UnknownKind(u8),
}

impl Header {
    /// The bytes of this header in the segment of the seed.
    pub(super) fn encode(&self, seed: Seed) -> [u8; HEADER_BYTES] {
        let mut bytes = [0; HEADER_BYTES];
        bytes[0..2].copy_from_slice(&FRAME_MARK);
        bytes[2] = self.kind as u8;
        bytes[4..6].copy_from_slice(&self.ordinal.to_le_bytes());
        bytes[6..8].copy_from_slice(&self.blank_sectors.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.index.0.to_le_bytes());
        bytes[16..20].copy_from_slice(&seed.group.to_le_bytes());
        bytes[20..24].copy_from_slice(&self.payload_bytes.to_le_bytes());
        bytes[24..28].copy_from_slice(&self.payload_crc.to_le_bytes());
        let crc = seed.crc(&bytes[..28]);
        bytes[28..32].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads a header of the segment of the seed.
    pub(super) fn decode(seed: Seed, bytes: &[u8; HEADER_BYTES]) -> Result<Header, BadHeader> {
        if *bytes == [0; HEADER_BYTES] {
            return Err(BadHeader::Blank);
        }
        let mut fields = &bytes[..];
        let mark = [fields.get_u8(), fields.get_u8()];
        let (kind, reserved) = (fields.get_u8(), fields.get_u8());
        let (ordinal, blank_sectors) = (fields.get_u16_le(), fields.get_u16_le());
        let index = LogIndex(fields.get_u64_le());
        let group = fields.get_u32_le();
        let (payload_bytes, payload_crc) = (fields.get_u32_le(), fields.get_u32_le());
        let crc = fields.get_u32_le();
        let is_whole = mark == FRAME_MARK && crc == seed.crc(&bytes[..28]);
        if !is_whole || reserved != 0 || group != seed.group || index.0 >= INDEX_END {
            return Err(BadHeader::Damaged);
        }
        let kind = match kind {
            1 => Kind::Fact,
            2 => Kind::Commit,
            3 => Kind::Table,
            other => return Err(BadHeader::UnknownKind(other)),
        };
        Ok(Header { kind, ordinal, blank_sectors, index, payload_bytes, payload_crc })
    }

    /// Length of the whole frame with its padding.
    pub(super) fn frame_bytes(&self) -> u64 {
        HEADER_BYTES as u64 + align(u64::from(self.payload_bytes))
    }
}

/// A commit frame's payload: what makes the facts before it an entry.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Commit {
    /// CRC, from the segment's seed, over the headers of the entry's facts without their own CRCs.
    pub(super) headers_crc: u32,
    pub(super) facts: u32,
    pub(super) based_on: LogIndex,
    pub(super) term: u64,
    /// The last entry that was known to be durable when the write of this one was issued.
    pub(super) durable_before: LogIndex,
}

impl Commit {
    pub(super) fn encode(&self) -> [u8; COMMIT_PAYLOAD_BYTES] {
        let mut bytes = [0; COMMIT_PAYLOAD_BYTES];
        bytes[0..4].copy_from_slice(&self.headers_crc.to_le_bytes());
        bytes[4..8].copy_from_slice(&self.facts.to_le_bytes());
        bytes[8..16].copy_from_slice(&self.based_on.0.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.term.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.durable_before.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&END_MARK);
        bytes
    }

    /// Reads a payload whose CRC was right. None if it is not one that [`Commit::encode`] makes.
    pub(super) fn decode(mut payload: &[u8]) -> Option<Commit> {
        if payload.len() != COMMIT_PAYLOAD_BYTES || payload[32..] != END_MARK {
            return None;
        }
        Some(Commit {
            headers_crc: payload.get_u32_le(),
            facts: payload.get_u32_le(),
            based_on: LogIndex(payload.get_u64_le()),
            term: payload.get_u64_le(),
            durable_before: LogIndex(payload.get_u64_le()),
        })
    }
}

/// Rounds up to where the next frame may start.
pub(super) const fn align(bytes: u64) -> u64 {
    bytes.next_multiple_of(ALIGN_BYTES as u64)
}

/// How many whole sectors inside a payload, given with its padding, hold only zeros, if its first byte is at `offset`
/// in the file.
pub(super) fn blank_sectors(payload: &[u8], offset: u64) -> u16 {
    let to_boundary = (offset.next_multiple_of(SECTOR_BYTES as u64) - offset) as usize;
    let Some(inside) = payload.get(to_boundary..) else { return 0 };
    let blank = inside.chunks_exact(SECTOR_BYTES).filter(|sector| is_zero(sector)).count();
    // More than fits means a payload of over 32 MiB of zeros; recovery then only becomes more careful.
    u16::try_from(blank).unwrap_or(u16::MAX)
}

/// Whether all bytes are zero.
pub(super) fn is_zero(bytes: &[u8]) -> bool {
    const ZEROS: [u8; 4096] = [0; 4096];
    bytes.chunks(ZEROS.len()).all(|chunk| *chunk == ZEROS[..chunk.len()])
}

#[cfg(test)]
mod tests {
    use super::*;

    fn seed() -> Seed {
        Identity { log_id: Uuid::from_u128(7), segment: 3, group: 0 }.seed()
    }

    fn header() -> Header {
        let (ordinal, index) = (5, LogIndex(0x0102_0304_0506));
        Header { kind: Kind::Fact, ordinal, blank_sectors: 2, index, payload_bytes: 77, payload_crc: 0xdead_beef }
    }

    #[test]
    fn a_header_survives_the_round_trip() {
        assert_eq!(Header::decode(seed(), &header().encode(seed())), Ok(header()));
    }

    #[test]
    fn a_header_of_another_segment_or_log_does_not_pass() {
        let bytes = header().encode(seed());
        for other in [
            Identity { log_id: Uuid::from_u128(7), segment: 4, group: 0 },
            Identity { log_id: Uuid::from_u128(8), segment: 3, group: 0 },
            Identity { log_id: Uuid::from_u128(7), segment: 3, group: 1 },
        ] {
            assert_eq!(Header::decode(other.seed(), &bytes), Err(BadHeader::Damaged));
        }
    }

    #[test]
    fn a_frame_with_an_index_that_no_position_can_have_does_not_pass() {
        let last = Header { index: LogIndex(INDEX_END - 1), ..header() };
        assert_eq!(Header::decode(seed(), &last.encode(seed())), Ok(last));
        for index in [INDEX_END, u64::MAX] {
            let beyond = Header { index: LogIndex(index), ..header() };
            assert_eq!(Header::decode(seed(), &beyond.encode(seed())), Err(BadHeader::Damaged), "{index}");
        }
    }

    #[test]
    fn every_changed_byte_of_a_header_is_noticed() {
        let good = header().encode(seed());
        for at in 0..HEADER_BYTES {
            for mask in 1..=255 {
                let mut bad = good;
                bad[at] ^= mask;
                assert!(Header::decode(seed(), &bad).is_err(), "byte {at} ^ {mask:#x}");
            }
        }
    }

    #[test]
    fn only_whole_sectors_of_zeros_inside_a_payload_are_counted() {
        assert_eq!(blank_sectors(&[0; 511], 512), 0);
        assert_eq!(blank_sectors(&[0; 512], 512), 1);
        assert_eq!(blank_sectors(&[0; 1023], 513), 1);
        assert_eq!(blank_sectors(&[0; 1022], 513), 0);
        assert_eq!(blank_sectors(&[1; 2048], 512), 0);
        assert_eq!(blank_sectors(&[], 100), 0);
    }
}
