//! Whole segment files: written once from beginning to end, and read the same way.
//!
//! Compaction, snapshots, and whoever keeps facts outside of the log's directory use the one format. Such a file has no
//! zero area: the table follows the last entry. Until it is finished it has no header, so that nobody takes a part for
//! the whole.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use fencepost::LogIndex;
use uuid::Uuid;

use super::catalog::{self, Sealed};
use super::entry;
use super::error::{Damage, SegmentFileError};
use super::frame::SECTOR_BYTES;
use super::prepare;
use super::recovery::{self, READ_AHEAD_BYTES};
use super::segment::{
    self, BadSegmentHeader, Content, FORMAT_VERSION, Order, SEGMENT_HEADER_BYTES, SegmentHeader, SegmentLabel,
    TRAILER_BYTES, Table, Trailer,
};
use super::walk::{Bad, Problem, ReadEntry, Step, Walk, Window};
use crate::disk::{Disk, File};

/// How much is gathered before it is written.
const CHUNK_BYTES: usize = 1 << 20;
/// How much is left unsynced, so that the log's own syncs do not wait behind all of it.
const UNSYNCED_BYTES: u64 = 8 << 20;
/// A table gives offsets in units of 8 bytes, with four bytes for each.
const OFFSET_MAX: u64 = 8 * u32::MAX as u64;

/// A segment file in the making. Dropped before [`SegmentFileWriter::finish`], it leaves a file without a header behind.
#[derive(Debug)]
pub struct SegmentFileWriter {
    path: PathBuf,
    file: Arc<dyn File>,
    header: SegmentHeader,
    table: Table,
    facts: u64,
    /// What is not written yet, and where it goes.
    gathered: Vec<u8>,
    written: u64,
    unsynced: u64,
    /// The first index that may be pushed.
    due: LogIndex,
}

/// A segment file that is complete and durable under the name that it was made with; the name itself is not, until the
/// directory is synced.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct SegmentFileSummary {
    /// The length of the file.
    pub file_bytes: u64,
    /// How many entries it has.
    pub entries: u64,
    /// How many facts they have.
    pub facts: u64,
}

impl SegmentFileWriter {
    /// Begins a file, in place of what has that name.
    pub fn create(disk: &dyn Disk, path: &Path, label: &SegmentLabel) -> Result<SegmentFileWriter, SegmentFileError> {
        let file = prepare::create_anew(disk, path).map_err(SegmentFileError::io("create", path))?;
        let header = SegmentHeader::of(label, 0);
        let table = Table::new(label.first_index);
        let (path, gathered, due) = (path.to_owned(), Vec::new(), label.first_index);
        Ok(SegmentFileWriter {
            path,
            file,
            header,
            table,
            facts: 0,
            gathered,
            written: SEGMENT_HEADER_BYTES,
            unsynced: 0,
            due,
        })
    }

    /// Adds an entry, its facts given with their ordinals, and answers how long it is in bytes.
    ///
    /// # Panics
    /// If the index or an ordinal does not come after the one before it, or, in a part of the log that was never
    /// compacted, not directly after it.
    pub fn push(
        &mut self,
        index: LogIndex,
        based_on: LogIndex,
        term: u64,
        facts: &[(u16, &[u8])],
    ) -> Result<u64, SegmentFileError> {
        let dense = self.header.order() == Order::Dense;
        assert!(index >= self.due && (!dense || index == self.due), "entry {index} comes where {} is due", self.due);
        assert!(facts.is_sorted_by(|(a, _), (b, _)| a < b), "the ordinals of entry {index} do not rise");
        assert!(
            !dense || facts.last().is_none_or(|(last, _)| usize::from(*last) + 1 == facts.len()),
            "a gap in {index}"
        );
        let offset = self.end();
        if offset > OFFSET_MAX || index.0 - self.header.first_index.0 > u64::from(u32::MAX) {
            return Err(SegmentFileError::TooLong { file: self.path.clone(), bytes: offset, bytes_max: OFFSET_MAX });
        }
        entry::encode(&mut self.gathered, self.header.identity.seed(), offset, (index, based_on, term), facts);
        self.table.push(index, offset);
        self.facts += facts.len() as u64;
        self.due = index.next();
        let bytes = self.end() - offset;
        if self.gathered.len() >= CHUNK_BYTES {
            self.write_gathered()?;
        }
        Ok(bytes)
    }

    /// How many bytes it has so far.
    pub fn len_bytes(&self) -> u64 {
        self.end()
    }

    /// Adds table, trailer and header, and makes the file durable. `last_index` is the last index that belongs to it,
    /// whether or not there is such an entry.
    ///
    /// # Panics
    /// If an entry after `last_index` was pushed.
    pub fn finish(self, last_index: LogIndex) -> Result<SegmentFileSummary, SegmentFileError> {
        let Sealed { header, trailer, .. } = self.seal(last_index)?;
        Ok(SegmentFileSummary { file_bytes: header.file_bytes, entries: trailer.entries, facts: trailer.facts })
    }

    pub(super) fn seal(mut self, last_index: LogIndex) -> Result<Sealed, SegmentFileError> {
        assert!(last_index.next() >= self.due, "entry {} lies behind the last, {last_index}", self.due.0 - 1);
        let entries_end = self.end();
        self.header.file_bytes = entries_end + segment::seal_bytes(self.table.len());
        let trailer = segment::trailer(self.header.file_bytes, &self.table, entries_end, last_index, self.facts);
        self.gathered.extend(segment::encode_seal(self.header.identity.seed(), &self.table, &trailer));
        self.write_gathered()?;
        let header = self.header.encode();
        self.file.write_at(&header, 0).map_err(SegmentFileError::io("write", &self.path))?;
        self.file.sync_data().map_err(SegmentFileError::io("sync", &self.path))?;
        Ok(Sealed::new(self.header, trailer))
    }

    fn end(&self) -> u64 {
        self.written + self.gathered.len() as u64
    }

    fn write_gathered(&mut self) -> Result<(), SegmentFileError> {
        self.file.write_at(&self.gathered, self.written).map_err(SegmentFileError::io("write", &self.path))?;
        self.written += self.gathered.len() as u64;
        self.unsynced += self.gathered.len() as u64;
        self.gathered.clear();
        if self.unsynced >= UNSYNCED_BYTES {
            self.file.sync_data().map_err(SegmentFileError::io("sync", &self.path))?;
            self.unsynced = 0;
        }
        Ok(())
    }
}

/// Reads a sealed segment file from its first entry to its last, and checks every byte of it. The counts and the table
/// are checked at the end: only who has read all of it knows that it is whole. After an error it stays at its end.
#[derive(Debug)]
pub struct SegmentFileReader {
    path: PathBuf,
    file: Arc<dyn File>,
    sealed: Sealed,
    walk: Walk,
    table: Table,
    facts: u64,
    done: bool,
}

impl SegmentFileReader {
    /// Opens a file, which must have this content and, if a log is named, be of that log.
    pub fn open(
        disk: &dyn Disk,
        path: &Path,
        content: Content,
        log_id: Option<Uuid>,
    ) -> Result<SegmentFileReader, SegmentFileError> {
        let (file, header) = open(disk, path)?;
        let refuse = |what| Err(SegmentFileError::Another { file: path.to_owned(), what });
        if header.content != content {
            return refuse(format!("it holds {}, and {content} is wanted", header.content));
        }
        if let Some(wanted) = log_id
            && wanted != header.identity.log_id
        {
            return refuse(format!("it is of log {}, and log {wanted} is wanted", header.identity.log_id));
        }
        let trailer = trailer(&*file, path, &header)?;
        Ok(SegmentFileReader::new(path, file, Sealed::new(header, trailer)))
    }

    pub(super) fn new(path: &Path, file: Arc<dyn File>, sealed: Sealed) -> SegmentFileReader {
        let Sealed { header, trailer, .. } = sealed;
        let window = Window::new(Arc::clone(&file), READ_AHEAD_BYTES);
        let (seed, first_index) = (header.identity.seed(), header.first_index);
        let walk = Walk::new(window, seed, header.order(), first_index, SEGMENT_HEADER_BYTES, trailer.entries_end);
        let (path, table) = (path.to_owned(), Table::new(first_index));
        SegmentFileReader { path, file, sealed, walk, table, facts: 0, done: false }
    }

    /// What the file says about itself.
    pub fn label(&self) -> SegmentLabel {
        self.sealed.header.label()
    }

    /// The last index that belongs to it, whether or not there is such an entry.
    pub fn last_index(&self) -> LogIndex {
        self.sealed.trailer.last_index
    }

    /// How long it is, and how much is in it, by its own account.
    pub fn summary(&self) -> SegmentFileSummary {
        let Sealed { header, trailer, .. } = self.sealed;
        SegmentFileSummary { file_bytes: header.file_bytes, entries: trailer.entries, facts: trailer.facts }
    }

    /// How many bytes were read so far.
    pub fn offset(&self) -> u64 {
        self.walk.offset
    }

    pub(super) fn file(&self) -> Arc<dyn File> {
        Arc::clone(&self.file)
    }

    /// Checks that the file is the one that was found there before.
    pub(super) fn expect(&self, sealed: &Sealed) -> Result<(), SegmentFileError> {
        if (self.sealed.header, self.sealed.trailer) == (sealed.header, sealed.trailer) {
            return Ok(());
        }
        let (file, what) = (self.path.clone(), "header or trailer are not what they were before".to_owned());
        Err(SegmentFileError::Corrupt(Damage { file, offset: 0, what, indexes: None }))
    }

    fn step(&mut self) -> Result<Option<ReadEntry>, SegmentFileError> {
        let mut facts = Vec::new();
        let each = &mut |lsn: fencepost::Lsn, payload: &[u8], _| {
            facts.push((lsn.ordinal(), Bytes::copy_from_slice(payload)));
        };
        let stepped = self.walk.step(each).map_err(SegmentFileError::io("read", &self.path))?;
        let bad = match stepped {
            Step::Entry(found) if found.index <= self.sealed.trailer.last_index => {
                self.table.push(found.index, found.offset);
                self.facts += u64::from(found.commit.facts);
                let (based_on, term) = (found.commit.based_on, found.commit.term);
                return Ok(Some(ReadEntry { index: found.index, based_on, term, facts }));
            }
            Step::Entry(found) => Bad { offset: found.offset, index: found.index, problem: Problem::Commit },
            Step::End if self.walk.offset == self.walk.limit => return self.check_seal().map(|()| None),
            Step::End => Bad { offset: self.walk.offset, index: self.walk.index, problem: Problem::Blank },
            Step::Bad(bad) => bad,
        };
        Err(SegmentFileError::Corrupt(recovery::damage(&self.path, bad, "in a sealed segment")))
    }

    /// Checks what follows the entries against them.
    fn check_seal(&mut self) -> Result<(), SegmentFileError> {
        let io = SegmentFileError::io("read", &self.path);
        let Sealed { header, trailer, .. } = self.sealed;
        let Trailer { entries_end, table_offset, .. } = trailer;
        let gap = self.walk.window.first_nonzero(entries_end, table_offset).map_err(&io)?;
        let table = catalog::read_table(&*self.file, &self.sealed).map_err(&io)?;
        let last_index = LogIndex(self.walk.index.0 - 1);
        let is_same = table.as_ref() == Some(&self.table) && trailer.counts(header.order(), self.facts, last_index);
        let damage = |offset, what: &str| {
            let (file, what) = (self.path.clone(), what.to_owned());
            Err(SegmentFileError::Corrupt(Damage { file, offset, what, indexes: None }))
        };
        match gap {
            Some(offset) => damage(offset, "the bytes between the entries and the table are not zero"),
            None if !is_same => {
                damage(table_offset, "the table or the trailer of a sealed segment is not that of its entries")
            }
            None => Ok(()),
        }
    }
}

impl Iterator for SegmentFileReader {
    type Item = Result<ReadEntry, SegmentFileError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.done {
            return None;
        }
        let stepped = self.step();
        self.done = !matches!(stepped, Ok(Some(_)));
        stepped.transpose()
    }
}

/// Opens a file and reads its header.
pub(super) fn open(disk: &dyn Disk, path: &Path) -> Result<(Arc<dyn File>, SegmentHeader), SegmentFileError> {
    let corrupt =
        |what: String| Err(SegmentFileError::Corrupt(Damage { file: path.to_owned(), offset: 0, what, indexes: None }));
    let file = disk.open(path).map_err(SegmentFileError::io("open", path))?;
    let found_bytes = file.size_bytes().map_err(SegmentFileError::io("read", path))?;
    let mut bytes = [0; SECTOR_BYTES];
    if found_bytes < SECTOR_BYTES as u64 {
        return corrupt(format!("the file has {found_bytes} bytes, and a segment's header has {SECTOR_BYTES}"));
    }
    file.read_at(&mut bytes, 0).map_err(SegmentFileError::io("read", path))?;
    let header = match SegmentHeader::decode(&bytes) {
        Ok(header) => header,
        Err(BadSegmentHeader::Damaged) => return corrupt("the segment's header does not match its CRC".into()),
        Err(BadSegmentHeader::Newer(found)) => {
            return Err(SegmentFileError::NewerFormat { file: path.to_owned(), found, supported: FORMAT_VERSION });
        }
    };
    if found_bytes != header.file_bytes || found_bytes < SEGMENT_HEADER_BYTES + TRAILER_BYTES {
        return corrupt(format!("the file has {found_bytes} bytes, and had {}", header.file_bytes));
    }
    Ok((file, header))
}

/// Reads the trailer of a file that must be sealed.
pub(super) fn trailer(file: &dyn File, path: &Path, header: &SegmentHeader) -> Result<Trailer, SegmentFileError> {
    let offset = header.file_bytes - TRAILER_BYTES;
    let mut bytes = [0; TRAILER_BYTES as usize];
    file.read_at(&mut bytes, offset).map_err(SegmentFileError::io("read", path))?;
    let corrupt = |what: &str| {
        let (file, what) = (path.to_owned(), what.to_owned());
        SegmentFileError::Corrupt(Damage { file, offset, what, indexes: None })
    };
    let trailer = Trailer::decode(header.identity.seed(), &bytes)
        .ok_or_else(|| corrupt("the segment has a successor, or should be whole, and has no intact trailer"))?;
    if !trailer.fits(header) {
        let what = "the segment's trailer is not one that a segment of its length and first entry can have";
        return Err(corrupt(what));
    }
    Ok(trailer)
}
