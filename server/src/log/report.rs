//! What [`verify`](super::verify) tells: to somebody who watches it, and in the end.

use std::path::PathBuf;

use fencepost::{LogIndex, Lsn};
use uuid::Uuid;

use super::error::Damage;
use super::segment::SegmentLabel;

/// Who watches a verification.
pub trait Inspector {
    /// A segment has a good header and is looked at from here on. After a compaction in between it may be one that was
    /// looked at before.
    fn begins(&mut self, _segment: &SegmentLabel) {}

    /// Something is damaged, so that of the facts that follow some before them may be missing. Said before each of them.
    fn damaged(&mut self) {}

    /// A fact has a good header and another payload than was written. Nothing in it can be trusted.
    fn broken(&mut self, _lsn: Lsn, _payload: &[u8]) {}

    /// A segment was looked at.
    fn segment(&mut self, _segment: &SegmentReport) {}

    /// A fact was found whole. An error says why its payload makes no sense, and is reported as damage.
    fn fact(&mut self, _lsn: Lsn, _payload: &[u8]) -> Result<(), String> {
        Ok(())
    }
}

/// Watches without a word.
impl Inspector for () {}

/// One segment.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct SegmentReport {
    /// Its file.
    pub file: PathBuf,
    /// Its number.
    pub number: u64,
    /// The last of the segments that it stands for: its own number, unless compaction made one of several.
    pub last_number: u64,
    /// The newest state by which facts of it were judged dispensable; zero if it was never compacted.
    pub judged_at: Lsn,
    /// Its first entry; the one that will be its first, if it has none.
    pub first_index: LogIndex,
    /// Its last entry, if it has any.
    pub last_index: Option<LogIndex>,
    /// How many entries are whole.
    pub entries: u64,
    /// How many facts they have.
    pub facts: u64,
    /// The length of its file.
    pub file_bytes: u64,
    /// Whether it is complete.
    pub sealed: bool,
}

/// How the log ends.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Tail {
    /// After a whole entry.
    Clean,
    /// In a write that is unfinished or never was finished. Opening the log cuts it off, and nothing acknowledged with it.
    Torn(&'static str),
    /// In damage.
    Corrupt,
}

/// What a verification found.
#[derive(Clone, Debug)]
pub struct VerifyReport {
    /// The log's identity, if any segment told it.
    pub log_id: Option<Uuid>,
    /// All segments.
    pub segments: Vec<SegmentReport>,
    /// Files for which a compacted segment stands. They are left over, and removed when the log is opened.
    pub replaced: Vec<PathBuf>,
    /// How the log ends.
    pub tail: Tail,
    /// Every damage. The log is sound if there is none.
    pub damage: Vec<Damage>,
}

impl VerifyReport {
    /// How many facts were found whole.
    pub fn facts(&self) -> u64 {
        self.segments.iter().map(|segment| segment.facts).sum()
    }

    /// How long the files are together.
    pub fn bytes(&self) -> u64 {
        self.segments.iter().map(|segment| segment.file_bytes).sum()
    }
}
