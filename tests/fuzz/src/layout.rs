//! The layout of a segment, written down a second time from `docs/log-format.md`: enough to make CRCs right again after
//! bytes were changed, and to tell which facts are intact, without a word from the code under test.

use std::collections::HashSet;

use crc32fast::Hasher;
use fencepost::{LogIndex, Lsn};

/// Where the entries begin.
pub const ENTRIES: usize = 512;
/// Length of a frame's header.
pub const FRAME: usize = 32;
/// Length of a trailer.
pub const TRAILER: usize = 64;
/// No log index reaches this.
pub const INDEX_END: u64 = 1 << 48;
/// Length of a commit's payload.
const COMMIT: usize = 40;
const MARK: [u8; 2] = [0xfe, 0x9c];
const FACT: u8 = 1;
const COMMIT_KIND: u8 = 2;

/// A part of a structure: its offset and its length.
pub type Field = (usize, usize);
/// The fields of a segment's header, those of later formats included.
pub const HEADER_FIELDS: [Field; 10] =
    [(0, 8), (8, 4), (12, 4), (16, 8), (32, 8), (40, 8), (48, 8), (56, 4), (64, 8), (72, 8)];
/// The fields of a frame's header.
pub const FRAME_FIELDS: [Field; 8] = [(2, 1), (3, 1), (4, 2), (6, 2), (8, 8), (16, 4), (20, 4), (24, 4)];
/// The fields of a commit, from the beginning of its frame.
pub const COMMIT_FIELDS: [Field; 6] = [(32, 4), (36, 4), (40, 8), (48, 8), (56, 8), (64, 8)];
/// The fields of a trailer.
pub const TRAILER_FIELDS: [Field; 7] = [(4, 4), (8, 8), (16, 8), (24, 8), (32, 8), (40, 8), (48, 8)];

/// What a segment's CRCs start from, as its header has it.
fn seeded(segment: &[u8], bytes: &[u8]) -> u32 {
    let mut seed = Hasher::new();
    seed.update(&segment[16..32]);
    seed.update(&segment[32..40]);
    seed.update(&segment[12..16]);
    let mut hasher = Hasher::new_with_initial(seed.finalize());
    hasher.update(bytes);
    hasher.finalize()
}

fn put(segment: &mut [u8], at: usize, crc: u32) {
    segment[at..at + 4].copy_from_slice(&crc.to_le_bytes());
}

fn word(segment: &[u8], at: usize) -> u32 {
    u32::from_le_bytes(segment[at..at + 4].try_into().expect("four bytes"))
}

/// Where frames seem to begin: each mark at a multiple of 8 that is not inside the frame before it.
pub fn frames(segment: &[u8]) -> Vec<usize> {
    let (mut found, mut at) = (Vec::new(), ENTRIES);
    while at + FRAME <= segment.len() {
        if segment[at..].starts_with(&MARK) {
            found.push(at);
            at += payload(segment, at).map_or(8, |payload| FRAME + payload.len().next_multiple_of(8));
        } else {
            at += 8;
        }
    }
    found
}

/// The payload of the frame there, if the segment is long enough for it.
fn payload(segment: &[u8], frame: usize) -> Option<&[u8]> {
    segment.get(frame + FRAME..)?.get(..word(segment, frame + 20) as usize)
}

/// Makes the CRC of a segment's header right.
pub fn mend_header(segment: &mut [u8]) {
    if segment.len() >= ENTRIES {
        let crc = crc32fast::hash(&segment[..508]);
        put(segment, 508, crc);
    }
}

/// Makes the CRCs of all frames right.
pub fn mend_frames(segment: &mut [u8]) {
    let mut facts = Vec::new();
    for frame in frames(segment) {
        let length = payload(segment, frame).map(<[u8]>::len);
        if segment[frame + 2] == COMMIT_KIND && length == Some(COMMIT) {
            let crc = seeded(segment, &std::mem::take(&mut facts));
            put(segment, frame + FRAME, crc);
        }
        if let Some(payload) = payload(segment, frame) {
            let crc = crc32fast::hash(payload);
            put(segment, frame + 24, crc);
        }
        let crc = seeded(segment, &segment[frame..frame + 28]);
        put(segment, frame + 28, crc);
        if segment[frame + 2] == FACT {
            facts.extend_from_slice(&segment[frame..frame + 28]);
        }
    }
}

/// Makes the CRC of a segment's trailer right.
pub fn mend_trailer(segment: &mut [u8]) {
    if let Some(at) = segment.len().checked_sub(TRAILER).filter(|at| *at >= ENTRIES) {
        let crc = seeded(segment, &segment[at + 4..]);
        put(segment, at, crc);
    }
}

/// The facts whose CRCs are right, wherever in the segment they are.
pub fn intact(segment: &[u8]) -> HashSet<(Lsn, &[u8])> {
    let mut found = HashSet::new();
    for frame in (ENTRIES..).step_by(8).take_while(|frame| frame + FRAME <= segment.len()) {
        let header = &segment[frame..frame + FRAME];
        if !header.starts_with(&MARK)
            || header[2] != FACT
            || word(segment, frame + 28) != seeded(segment, &header[..28])
        {
            continue;
        }
        let Some(payload) = payload(segment, frame) else { continue };
        if crc32fast::hash(payload) == word(segment, frame + 24) {
            let ordinal = u16::from_le_bytes([header[4], header[5]]);
            let index = u64::from_le_bytes(header[8..16].try_into().expect("eight bytes"));
            found.insert((Lsn::new(LogIndex(index), ordinal), payload));
        }
    }
    found
}
