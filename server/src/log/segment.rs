//! Segments: the files of the log. A header of one sector, entries, zeros, and, once sealed, a table and a trailer that
//! end the file.
//!
//! The header has a sector to itself, so that no later write touches it. It is written when the segment gets its name,
//! which is after its predecessor was sealed and synced: a segment that has a name proves that those before it are
//! complete. The seal is one write that ends exactly at the end of the file, so that it is found without a search.

use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};

use bytes::Buf;
use fencepost::{LogIndex, Lsn};
use uuid::Uuid;

use super::frame::{self, HEADER_BYTES, Header, INDEX_END, Identity, Kind, SECTOR_BYTES, Seed};

/// The format that this version writes, and the newest that it reads.
pub(super) const FORMAT_VERSION: u32 = 2;
/// Length of a segment's header, and offset of its first entry.
pub(super) const SEGMENT_HEADER_BYTES: u64 = SECTOR_BYTES as u64;
/// Length of a segment's trailer.
pub(super) const TRAILER_BYTES: u64 = 64;

const MAGIC: [u8; 8] = *b"FENCELOG";
const TRAILER_MARK: [u8; 8] = *b"\xfeseal\xa5\x9c\xfe";
const ROW_BYTES: u64 = 8;

/// A segment's file name.
pub(super) fn file_name(number: u64) -> String {
    format!("{number:020}.seg")
}

/// A segment's path in the log's directory.
pub(super) fn path(dir: &Path, number: u64) -> PathBuf {
    dir.join(file_name(number))
}

/// Where a segment is put together before it gets its name.
pub(super) fn temporary_path(dir: &Path, number: u64) -> PathBuf {
    dir.join(format!("{number:020}.tmp"))
}

/// The segment's number, if the name is that of a segment.
pub(super) fn number_of(name: &str) -> Option<u64> {
    let digits = name.strip_suffix(".seg")?;
    if digits.len() == 20 { digits.parse().ok() } else { None }
}

/// What a segment file is for.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Content {
    /// A part of the log.
    Log = 0,
    /// A state in the form of the facts that make it.
    HotState = 1,
    /// Facts chosen for somebody else.
    Export = 2,
}

impl std::fmt::Display for Content {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.write_str(match self {
            Content::Log => "a part of the log",
            Content::HotState => "a hot state",
            Content::Export => "an export",
        })
    }
}

/// What a segment file says about itself: everything in its header but the length.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentLabel {
    /// What it is for.
    pub content: Content,
    /// The log that it is of.
    pub log_id: Uuid,
    /// The segments that it stands for: several after compaction, otherwise one.
    pub numbers: RangeInclusive<u64>,
    /// The first index that belongs to it, whether or not there is such an entry.
    pub first_index: LogIndex,
    /// The newest state by which facts of it were judged dispensable; zero if it was never compacted.
    pub judged_at: Lsn,
}

/// What a segment says about itself.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct SegmentHeader {
    pub(super) identity: Identity,
    pub(super) first_index: LogIndex,
    /// Length of the whole file.
    pub(super) file_bytes: u64,
    pub(super) content: Content,
    /// The last of the segments that this one stands for. Its own number is the first.
    pub(super) last_number: u64,
    pub(super) judged_at: Lsn,
}

/// Why a sector is not the header of a segment that this version can read.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum BadSegmentHeader {
    /// The magic bytes, the CRC, or a reserved byte is wrong.
    Damaged,
    /// It is intact, and of a format newer than [`FORMAT_VERSION`].
    Newer(u32),
}

impl SegmentHeader {
    /// The header of a segment that entries will be appended to.
    pub(super) fn fresh(identity: Identity, first_index: LogIndex, file_bytes: u64) -> SegmentHeader {
        let (content, last_number, judged_at) = (Content::Log, identity.segment, Lsn::ZERO);
        SegmentHeader { identity, first_index, file_bytes, content, last_number, judged_at }
    }

    pub(super) fn of(label: &SegmentLabel, file_bytes: u64) -> SegmentHeader {
        let identity = Identity { log_id: label.log_id, segment: *label.numbers.start(), group: 0 };
        let (content, last_number, judged_at) = (label.content, *label.numbers.end(), label.judged_at);
        SegmentHeader { identity, first_index: label.first_index, file_bytes, content, last_number, judged_at }
    }

    pub(super) fn label(&self) -> SegmentLabel {
        let SegmentHeader { identity, first_index, content, last_number, judged_at, .. } = *self;
        let numbers = identity.segment..=last_number;
        SegmentLabel { content, log_id: identity.log_id, numbers, first_index, judged_at }
    }

    /// How strictly its entries follow one another.
    pub(super) fn order(&self) -> Order {
        if self.content == Content::Log && self.judged_at == Lsn::ZERO { Order::Dense } else { Order::Sparse }
    }

    pub(super) fn encode(&self) -> [u8; SECTOR_BYTES] {
        let mut bytes = [0; SECTOR_BYTES];
        bytes[0..8].copy_from_slice(&MAGIC);
        bytes[8..12].copy_from_slice(&FORMAT_VERSION.to_le_bytes());
        bytes[12..16].copy_from_slice(&self.identity.group.to_le_bytes());
        bytes[16..32].copy_from_slice(self.identity.log_id.as_bytes());
        bytes[32..40].copy_from_slice(&self.identity.segment.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.first_index.0.to_le_bytes());
        bytes[48..56].copy_from_slice(&self.file_bytes.to_le_bytes());
        bytes[56..60].copy_from_slice(&(self.content as u32).to_le_bytes());
        bytes[64..72].copy_from_slice(&self.last_number.to_le_bytes());
        bytes[72..80].copy_from_slice(&self.judged_at.as_u64().to_le_bytes());
        let crc = crc32fast::hash(&bytes[..SECTOR_BYTES - 4]);
        bytes[SECTOR_BYTES - 4..].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Magic, version and CRC keep their places in every format, so that a newer one is told from damage.
    pub(super) fn decode(bytes: &[u8; SECTOR_BYTES]) -> Result<SegmentHeader, BadSegmentHeader> {
        let (mut fields, mut crc) = bytes.split_at(SECTOR_BYTES - 4);
        if crc.get_u32_le() != crc32fast::hash(fields) || !fields.starts_with(&MAGIC) {
            return Err(BadSegmentHeader::Damaged);
        }
        fields.advance(MAGIC.len());
        let version = fields.get_u32_le();
        if version > FORMAT_VERSION {
            return Err(BadSegmentHeader::Newer(version));
        }
        let group = fields.get_u32_le();
        let log_id = Uuid::from_u128(fields.get_u128());
        let segment = fields.get_u64_le();
        let first_index = LogIndex(fields.get_u64_le());
        let file_bytes = fields.get_u64_le();
        let identity = Identity { log_id, segment, group };
        let mut header = SegmentHeader::fresh(identity, first_index, file_bytes);
        if version >= 2 {
            header.content = match fields.get_u32_le() {
                0 => Content::Log,
                1 => Content::HotState,
                2 => Content::Export,
                _ => return Err(BadSegmentHeader::Damaged),
            };
            let reserved = fields.get_u32_le();
            header.last_number = fields.get_u64_le();
            header.judged_at = Lsn::from_u64(fields.get_u64_le());
            // Only compaction makes one part of the log of several; a hot state stands for all before it.
            let may_be_several = header.content != Content::Log || header.judged_at > Lsn::ZERO;
            if reserved != 0 || header.last_number < segment || (header.last_number > segment && !may_be_several) {
                return Err(BadSegmentHeader::Damaged);
            }
        }
        // Numbers are counted on, and no run of segments ends where a log that was written cannot have come: each has an entry. So
        // there is always a number for the segment after a run, and one after that.
        let is_counted = header.last_number < INDEX_END || header.last_number == segment;
        let is_possible = (1..INDEX_END).contains(&first_index.0) && is_counted && header.last_number < u64::MAX;
        if version == 0 || !is_possible || !frame::is_zero(fields) {
            return Err(BadSegmentHeader::Damaged);
        }
        Ok(header)
    }
}

/// How strictly the entries of a segment follow one another.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Order {
    /// Every index and every ordinal is there: as written.
    Dense,
    /// Indexes and ordinals rise, and some are left out: after compaction, and in files made of chosen facts.
    Sparse,
}

/// Where a segment's entries are. Rows are in order of index; those of a compacted segment have gaps.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub(super) struct Table {
    first_index: u64,
    /// Index less the segment's first, and offset in units of [`frame::ALIGN_BYTES`].
    rows: Vec<(u32, u32)>,
}

impl Table {
    pub(super) fn new(first_index: LogIndex) -> Table {
        Table { first_index: first_index.0, rows: Vec::new() }
    }

    pub(super) fn push(&mut self, index: LogIndex, offset: u64) {
        let row = ((index.0 - self.first_index) as u32, (offset / frame::ALIGN_BYTES as u64) as u32);
        self.rows.push(row);
    }

    pub(super) fn len(&self) -> usize {
        self.rows.len()
    }

    /// The entry behind the one that begins at an offset: its index, and where it begins.
    pub(super) fn after(&self, offset: u64) -> Option<(LogIndex, u64)> {
        let at = self.rows.partition_point(|row| u64::from(row.1) * frame::ALIGN_BYTES as u64 <= offset);
        self.row(at)
    }

    fn row(&self, at: usize) -> Option<(LogIndex, u64)> {
        let (index, offset) = self.rows.get(at)?;
        Some((LogIndex(self.first_index + u64::from(*index)), u64::from(*offset) * frame::ALIGN_BYTES as u64))
    }

    /// The offset of the first entry at or after an index.
    pub(super) fn find(&self, index: LogIndex) -> Option<(LogIndex, u64)> {
        let wanted = index.0.saturating_sub(self.first_index);
        // Without gaps the row is where the index says.
        let exact =
            usize::try_from(wanted).ok().filter(|at| self.rows.get(*at).is_some_and(|row| row.0 as usize == *at));
        let at = exact.unwrap_or_else(|| self.rows.partition_point(|row| u64::from(row.0) < wanted));
        self.row(at)
    }
}

/// What a sealed segment's last bytes say.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Trailer {
    pub(super) table_offset: u64,
    /// Where the last entry ends. From here to the table are zeros.
    pub(super) entries_end: u64,
    pub(super) last_index: LogIndex,
    pub(super) entries: u64,
    pub(super) facts: u64,
}

impl Trailer {
    fn encode(&self, seed: Seed) -> [u8; TRAILER_BYTES as usize] {
        let mut bytes = [0; TRAILER_BYTES as usize];
        bytes[8..16].copy_from_slice(&self.table_offset.to_le_bytes());
        bytes[16..24].copy_from_slice(&self.entries_end.to_le_bytes());
        bytes[24..32].copy_from_slice(&self.last_index.0.to_le_bytes());
        bytes[32..40].copy_from_slice(&self.entries.to_le_bytes());
        bytes[40..48].copy_from_slice(&self.facts.to_le_bytes());
        bytes[56..64].copy_from_slice(&TRAILER_MARK);
        let crc = seed.crc(&bytes[4..]);
        bytes[0..4].copy_from_slice(&crc.to_le_bytes());
        bytes
    }

    /// Reads the last bytes of a segment. None if it is not sealed, or damaged.
    pub(super) fn decode(seed: Seed, bytes: &[u8; TRAILER_BYTES as usize]) -> Option<Trailer> {
        let mut fields = &bytes[..];
        let crc = fields.get_u32_le();
        if crc != seed.crc(&bytes[4..]) || fields.get_u32_le() != 0 {
            return None;
        }
        let trailer = Trailer {
            table_offset: fields.get_u64_le(),
            entries_end: fields.get_u64_le(),
            last_index: LogIndex(fields.get_u64_le()),
            entries: fields.get_u64_le(),
            facts: fields.get_u64_le(),
        };
        (fields.get_u64_le() == 0 && *fields == TRAILER_MARK).then_some(trailer)
    }

    /// Whether a segment with this header can end with it. What a trailer says is counted on, so that it is not enough
    /// that its CRC is right. Of a compacted segment the last index may be of an entry that is gone, and entries may be
    /// fewer than indexes, never more.
    pub(super) fn fits(&self, header: &SegmentHeader) -> bool {
        let end = self.last_index.0.saturating_add(1);
        (SEGMENT_HEADER_BYTES..=self.table_offset).contains(&self.entries_end)
            && (header.first_index.0..INDEX_END).contains(&end)
            && self.entries <= (end - header.first_index.0).min(header.file_bytes / ROW_BYTES)
            && self.table_offset.checked_add(seal_bytes(self.entries as usize)) == Some(header.file_bytes)
    }

    /// Whether it is that of these entries, whose table was compared. Of a compacted segment the last may be gone.
    pub(super) fn counts(&self, order: Order, facts: u64, last_index: LogIndex) -> bool {
        facts == self.facts
            && last_index <= self.last_index
            && (order == Order::Sparse || last_index == self.last_index)
    }
}

/// Length of the seal of a segment with this many entries.
pub(super) fn seal_bytes(entries: usize) -> u64 {
    HEADER_BYTES as u64 + ROW_BYTES * entries as u64 + TRAILER_BYTES
}

/// Whether an entry can be added and the segment still be sealed.
pub(super) fn fits(file_bytes: u64, end: u64, entries: usize, entry_bytes: u64) -> bool {
    end + entry_bytes + seal_bytes(entries + 1) <= file_bytes
}

/// The longest entry that an empty segment can take.
pub(super) fn entry_bytes_max(file_bytes: u64) -> u64 {
    file_bytes.saturating_sub(SEGMENT_HEADER_BYTES + seal_bytes(1))
}

/// The trailer of a segment of this length whose table has these entries.
pub(super) fn trailer(file_bytes: u64, table: &Table, entries_end: u64, last_index: LogIndex, facts: u64) -> Trailer {
    let entries = table.len() as u64;
    Trailer { table_offset: file_bytes - seal_bytes(table.len()), entries_end, last_index, entries, facts }
}

/// The bytes that seal a segment. They go to the offset of the table, and end at the end of the file.
pub(super) fn encode_seal(seed: Seed, table: &Table, trailer: &Trailer) -> Vec<u8> {
    let mut rows = Vec::with_capacity(table.len() * ROW_BYTES as usize);
    for (index, offset) in &table.rows {
        rows.extend_from_slice(&index.to_le_bytes());
        rows.extend_from_slice(&offset.to_le_bytes());
    }
    let header = Header {
        kind: Kind::Table,
        ordinal: 0,
        blank_sectors: 0,
        index: trailer.last_index,
        payload_bytes: rows.len() as u32,
        payload_crc: crc32fast::hash(&rows),
    };
    let mut seal = header.encode(seed).to_vec();
    seal.extend_from_slice(&rows);
    seal.extend_from_slice(&trailer.encode(seed));
    seal
}

/// Reads the table frame that a trailer points to. None if it is damaged or does not agree with the trailer.
pub(super) fn decode_table(seed: Seed, first_index: LogIndex, trailer: &Trailer, frame: &[u8]) -> Option<Table> {
    let (header, mut rows) = frame.split_first_chunk::<HEADER_BYTES>()?;
    let header = Header::decode(seed, header).ok()?;
    let expected = (Kind::Table, 0, 0, trailer.last_index, rows.len() as u32);
    let found = (header.kind, header.ordinal, header.blank_sectors, header.index, header.payload_bytes);
    if found != expected
        || rows.len() as u64 != trailer.entries * ROW_BYTES
        || header.payload_crc != crc32fast::hash(rows)
    {
        return None;
    }
    let mut table = Table::new(first_index);
    while rows.has_remaining() {
        table.rows.push((rows.get_u32_le(), rows.get_u32_le()));
    }
    Some(table)
}

#[cfg(test)]
mod tests {
    use super::*;

    fn header() -> SegmentHeader {
        let identity = Identity { log_id: Uuid::from_u128(0x1234), segment: 9, group: 0 };
        SegmentHeader {
            last_number: 11,
            judged_at: Lsn::new(LogIndex(700), 3),
            ..SegmentHeader::fresh(identity, LogIndex(100), 4096)
        }
    }

    #[test]
    fn a_segment_header_survives_the_round_trip_and_no_change_of_a_byte() {
        let good = header().encode();
        assert_eq!(SegmentHeader::decode(&good), Ok(header()));
        for at in 0..good.len() {
            let mut bad = good;
            bad[at] ^= 0x10;
            assert_eq!(SegmentHeader::decode(&bad), Err(BadSegmentHeader::Damaged), "byte {at}");
        }
    }

    #[test]
    fn only_a_part_of_the_log_has_to_be_compacted_to_stand_for_several() {
        let never = SegmentHeader { judged_at: Lsn::ZERO, ..header() };
        assert_eq!(SegmentHeader::decode(&never.encode()), Err(BadSegmentHeader::Damaged));
        let state = SegmentHeader { content: Content::HotState, ..never };
        assert_eq!(SegmentHeader::decode(&state.encode()), Ok(state));
    }

    #[test]
    fn a_table_finds_entries_across_gaps() {
        let mut table = Table::new(LogIndex(10));
        for (index, offset) in [(10, 512), (11, 600), (15, 800)] {
            table.push(LogIndex(index), offset);
        }
        assert_eq!(table.find(LogIndex(11)), Some((LogIndex(11), 600)));
        assert_eq!(table.find(LogIndex(12)), Some((LogIndex(15), 800)));
        assert_eq!(table.find(LogIndex(16)), None);
    }

    #[test]
    fn a_seal_survives_the_round_trip_and_no_change_of_a_byte() {
        let seed = header().identity.seed();
        let mut table = Table::new(LogIndex(10));
        table.push(LogIndex(10), 512);
        table.push(LogIndex(11), 600);
        let trailer = trailer(4096, &table, 700, LogIndex(12), 5);
        let seal = encode_seal(seed, &table, &trailer);
        assert_eq!(trailer.table_offset + seal.len() as u64, 4096);
        let read = |seal: &[u8]| {
            let (frame, trailer) = seal.split_last_chunk().unwrap();
            let trailer = Trailer::decode(seed, trailer)?;
            decode_table(seed, LogIndex(10), &trailer, frame)
        };
        assert_eq!(read(&seal), Some(table));
        for at in 0..seal.len() {
            let mut bad = seal.clone();
            bad[at] ^= 0x01;
            assert_eq!(read(&bad), None, "byte {at}");
        }
    }

    #[test]
    fn a_trailer_that_its_segment_cannot_have_does_not_fit() {
        let table_offset = 4096 - seal_bytes(2);
        let last_index = LogIndex(101);
        let good = Trailer { table_offset, entries_end: 700, last_index, entries: 2, facts: 5 };
        assert!(good.fits(&header()));
        for bad in [
            Trailer { table_offset: table_offset - 8, ..good },
            Trailer { table_offset: u64::MAX, ..good },
            Trailer { entries_end: 511, ..good },
            Trailer { entries_end: table_offset + 8, ..good },
            Trailer { entries: 3, ..good },
            Trailer { entries: u64::MAX, ..good },
            Trailer { last_index: LogIndex(98), ..good },
            // Two entries, and only one index.
            Trailer { last_index: LogIndex(100), ..good },
            Trailer { last_index: LogIndex(INDEX_END - 1), ..good },
            Trailer { last_index: LogIndex(u64::MAX), ..good },
        ] {
            assert!(!bad.fits(&header()), "{bad:?}");
        }
        assert!(Trailer { last_index: LogIndex(900), ..good }.fits(&header()), "entries may be gone");
    }

    #[test]
    fn a_header_with_a_number_that_none_can_follow_is_damaged() {
        let run = |last_number| SegmentHeader { last_number, judged_at: Lsn::from_u64(1), ..header() };
        for last_number in [INDEX_END, u64::MAX - 1, u64::MAX] {
            assert_eq!(
                SegmentHeader::decode(&run(last_number).encode()),
                Err(BadSegmentHeader::Damaged),
                "{last_number}"
            );
        }
        let last = SegmentHeader::decode(&run(INDEX_END - 1).encode()).unwrap();
        let next = SegmentHeader { identity: Identity { segment: last.last_number + 1, ..last.identity }, ..last };
        let next = SegmentHeader { last_number: next.identity.segment, judged_at: Lsn::ZERO, ..next };
        assert_eq!(SegmentHeader::decode(&next.encode()), Ok(next), "the one after the last run is sound");
    }

    #[test]
    fn a_header_with_an_index_that_no_position_can_have_is_damaged() {
        for index in [0, INDEX_END, u64::MAX] {
            let bad = SegmentHeader { first_index: LogIndex(index), ..header() };
            assert_eq!(SegmentHeader::decode(&bad.encode()), Err(BadSegmentHeader::Damaged), "{index}");
        }
    }

    #[test]
    fn only_names_of_twenty_digits_are_segments() {
        assert_eq!(number_of(&file_name(42)), Some(42));
        for name in ["42.seg", "00000000000000000042.tmp", "LOCK", "000000000000000000042.seg"] {
            assert_eq!(number_of(name), None, "{name}");
        }
    }
}
