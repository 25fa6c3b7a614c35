//! Opening the directory of a log: what is found there, and what is done about it.
//!
//! First everything is looked at, then, only if nothing is amiss, something is changed. The verdicts:
//!
//! | Found | Verdict |
//! |---|---|
//! | no segment | fresh: write the first one |
//! | a number that the segment before it stands for | the rest of a finished compaction: removed |
//! | a gap in the numbers, or no segment 1 | corrupt: a file is missing |
//! | a header that is damaged, or of another log, number, first index or length than is due | corrupt |
//! | a header of a newer format | refused, naming both versions |
//! | a segment with a successor and without a good trailer | corrupt: it was sealed before the successor got its name |
//! | newest segment: compacted, with a good trailer | sealed, as what compaction writes is whole |
//! | newest segment: zeros after the last good entry | clean |
//! | newest segment: a complete seal | sealed: the crash came before the successor got its name; write that |
//! | newest segment: anything else after the last good entry | see [`tail`](super::tail): torn or corrupt |
//!
//! Torn means that the last write never finished and nothing in it was acknowledged. The good part of the segment is
//! copied to a new file, which takes the place of the old one in one step: cutting in place could itself be cut short.
//!
//! What is accepted is written once more before it counts as durable. A process that died after a failed sync leaves
//! pages in the cache that look written and are not; only writing them again brings them to the disk.

use std::io;
use std::path::Path;
use std::sync::atomic::AtomicU64;
use std::sync::{Arc, RwLock};

use fencepost::{LogIndex, Lsn};
use uuid::Uuid;

use super::catalog::{Active, Sealed};
use super::error::{Damage, OpenError};
use super::frame::{END_MARK, Identity, Seed};
use super::prepare::{self, StepFailed};
use super::segment::{self, Content, Order, SEGMENT_HEADER_BYTES, SegmentHeader, Table, Trailer};
use super::segment_file;
use super::tail::{Remains, Verdict};
use super::walk::{Bad, Problem, Step, Walk, Window};
use crate::disk::{Disk, File};

/// How far ahead segments are read.
pub(super) const READ_AHEAD_BYTES: usize = 256 << 10;

/// A log that can be written to.
#[derive(Debug)]
pub(super) struct Recovered {
    pub(super) fresh: bool,
    pub(super) sealed: Vec<Sealed>,
    pub(super) active: Arc<Active>,
    pub(super) active_facts: u64,
    pub(super) last_index: LogIndex,
}

/// Looks at a directory and makes it fit for writing. Changes nothing if it fails, except where the disk itself does.
pub(super) fn recover(
    disk: &dyn Disk,
    dir: &Path,
    segment_bytes: u64,
    log_id_if_fresh: Uuid,
) -> Result<Recovered, OpenError> {
    let mut chain = Chain::new(dir);
    let (mut sealed, mut replaced, mut opened) = (Vec::new(), Vec::new(), None);
    for number in segment_numbers(disk, dir)? {
        if chain.stands_for(number) {
            replaced.push(number);
            continue;
        }
        if let Some((file, header)) = opened.take() {
            sealed.push(chain.sealed(&file, &header)?);
        }
        opened = Some(chain.open(disk, number)?);
    }
    let Some((file, header)) = opened else {
        remove_leftovers(disk, dir, &[])?;
        let identity = Identity { log_id: log_id_if_fresh, segment: 1, group: 0 };
        let active = create_segment(disk, dir, identity, LogIndex(1), segment_bytes)?;
        return Ok(Recovered { fresh: true, sealed: Vec::new(), active, active_facts: 0, last_index: LogIndex::ZERO });
    };
    let newest = header.identity.segment;
    let next = Identity { segment: header.last_number + 1, ..header.identity };
    if header.order() == Order::Sparse {
        let last = chain.sealed(&file, &header)?;
        sealed.push(last);
        remove_leftovers(disk, dir, &replaced)?;
        let last_index = last.trailer.last_index;
        let active = create_segment(disk, dir, next, last_index.next(), segment_bytes)?;
        return Ok(Recovered { fresh: false, sealed, active, active_facts: 0, last_index });
    }
    let mut survey = Survey::new(file, header);
    let path = segment::path(dir, newest);
    let verdict = survey.run(&mut |_, _, _| ()).map_err(io_error("read", &path))?;
    match verdict {
        Verdict::Corrupt(bad, why) => return Err(OpenError::Corrupt(damage(&path, bad, &why))),
        Verdict::Unmarked(at) => {
            // The entry lacks nothing but a constant, so it may have been acknowledged.
            complete_mark(disk, &path, at)?;
            return recover(disk, dir, segment_bytes, log_id_if_fresh);
        }
        Verdict::Clean | Verdict::Sealed | Verdict::Torn(_) => {}
    }
    remove_leftovers(disk, dir, &replaced)?;
    let last_index = survey.last_index();
    let active = match verdict {
        Verdict::Sealed => {
            sealed.push(survey.seal_again(disk, &path)?);
            create_segment(disk, dir, next, last_index.next(), segment_bytes)?
        }
        Verdict::Torn(what) => survey.cut(disk, dir, what)?,
        _ => survey.write_again(disk, &path)?,
    };
    disk.sync_dir(dir).map_err(io_error("sync the directory", dir))?;
    let active_facts = if active.identity.segment == newest { survey.facts } else { 0 };
    Ok(Recovered { fresh: false, sealed, active, active_facts, last_index })
}

/// The numbers of the segments in a directory, in order.
pub(super) fn segment_numbers(disk: &dyn Disk, dir: &Path) -> Result<Vec<u64>, OpenError> {
    let names = disk.list(dir).map_err(io_error("list", dir))?;
    Ok(names.iter().filter_map(|name| segment::number_of(name)).collect())
}

/// Checks that each segment is what must follow the one before it.
#[derive(Debug)]
pub(super) struct Chain<'a> {
    dir: &'a Path,
    log_id: Option<Uuid>,
    /// The number of the next segment, and the first index in it; None after damage, when it is not known.
    number_due: Option<u64>,
    pub(super) first_due: Option<LogIndex>,
}

impl<'a> Chain<'a> {
    pub(super) fn new(dir: &'a Path) -> Chain<'a> {
        Chain { dir, log_id: None, number_due: Some(1), first_due: Some(LogIndex(1)) }
    }

    /// Whether a segment that was opened already stands for the one of this number.
    pub(super) fn stands_for(&self, number: u64) -> bool {
        self.number_due.is_some_and(|due| number < due)
    }

    /// Goes on behind a segment of which nothing is known.
    pub(super) fn lose(&mut self) {
        (self.number_due, self.first_due) = (None, None);
    }

    /// Checks that no file is missing before the next segment.
    pub(super) fn follows(&self, number: u64) -> Result<(), Damage> {
        match self.number_due {
            Some(due) if due != number => {
                let what = format!("the file is missing, and {} is there", segment::file_name(number));
                Err(Damage { file: segment::path(self.dir, due), offset: 0, what, indexes: None })
            }
            _ => Ok(()),
        }
    }

    /// Opens the next segment and checks its header.
    pub(super) fn open(&mut self, disk: &dyn Disk, number: u64) -> Result<(Arc<dyn File>, SegmentHeader), OpenError> {
        self.follows(number).map_err(OpenError::Corrupt)?;
        let path = segment::path(self.dir, number);
        let corrupt =
            |what: String| Err(OpenError::Corrupt(Damage { file: path.clone(), offset: 0, what, indexes: None }));
        let (file, header) = segment_file::open(disk, &path)?;
        let Identity { log_id, segment, group } = header.identity;
        let log_id_due = *self.log_id.get_or_insert(log_id);
        let first_due = self.first_due.unwrap_or(header.first_index);
        if log_id != log_id_due {
            return corrupt(format!("the segment is of log {log_id}, and those before it are of log {log_id_due}"));
        }
        if segment != number || group != 0 {
            return corrupt(format!("the file holds segment {segment} of group {group}, and not what its name says"));
        }
        if header.content != Content::Log {
            return corrupt(format!("the file holds {}, and not a part of the log", header.content));
        }
        if header.first_index != first_due {
            return corrupt(format!("the segment begins with entry {}, and {first_due} is due", header.first_index));
        }
        self.number_due = Some(header.last_number + 1);
        Ok((file, header))
    }

    /// Checks that the segment was sealed, as it has a successor.
    pub(super) fn sealed(&mut self, file: &Arc<dyn File>, header: &SegmentHeader) -> Result<Sealed, OpenError> {
        let path = segment::path(self.dir, header.identity.segment);
        let trailer = segment_file::trailer(&**file, &path, header)?;
        self.first_due = Some(trailer.last_index.next());
        Ok(Sealed::new(*header, trailer))
    }
}

/// What the newest segment holds.
#[derive(Debug)]
pub(super) struct Survey {
    pub(super) header: SegmentHeader,
    seed: Seed,
    pub(super) walk: Walk,
    pub(super) table: Table,
    pub(super) facts: u64,
    durable: LogIndex,
}

impl Survey {
    pub(super) fn new(file: Arc<dyn File>, header: SegmentHeader) -> Survey {
        let seed = header.identity.seed();
        let window = Window::new(file, READ_AHEAD_BYTES);
        let walk = Walk::new(window, seed, header.order(), header.first_index, SEGMENT_HEADER_BYTES, header.file_bytes);
        // The segment got its name after all that is before it was durable.
        let durable = LogIndex(header.first_index.0 - 1);
        Survey { header, seed, walk, table: Table::new(header.first_index), facts: 0, durable }
    }

    /// Walks over the entries from where the walk stands, and judges what follows them.
    pub(super) fn run(&mut self, each: &mut dyn FnMut(Lsn, &[u8], u64)) -> io::Result<Verdict> {
        let bad = loop {
            match self.walk.step(each)? {
                Step::Entry(found) => {
                    self.table.push(found.index, found.offset);
                    self.facts += u64::from(found.commit.facts);
                    self.durable = self.durable.max(found.commit.durable_before);
                }
                Step::Bad(bad) => break bad,
                Step::End => break Bad { offset: self.end(), index: self.walk.index, problem: Problem::Blank },
            }
        };
        if self.end() + segment::seal_bytes(self.table.len()) > self.header.file_bytes {
            let why = "no segment is filled so far when it is written".to_owned();
            return Ok(Verdict::Corrupt(Bad { problem: Problem::NoRoom, ..bad }, why));
        }
        if self.walk.window.first_nonzero(self.end(), self.header.file_bytes)?.is_none() {
            return Ok(Verdict::Clean);
        }
        let (end, file_bytes) = (self.end(), self.header.file_bytes);
        let bytes = self.read(end, file_bytes)?;
        let room_for_seal = end + segment::seal_bytes(self.table.len()) <= file_bytes;
        let seal = room_for_seal.then(|| self.seal());
        let seal = seal.as_ref().map(|(trailer, bytes)| (trailer.table_offset, &bytes[..]));
        Ok(Remains { seed: self.seed, bytes: &bytes, end, bad, seal }.judge())
    }

    /// The last good entry, or the one before the segment.
    pub(super) fn last_index(&self) -> LogIndex {
        LogIndex(self.walk.index.0 - 1)
    }

    /// Where the last good entry ends.
    pub(super) fn end(&self) -> u64 {
        self.walk.offset
    }

    /// Where the entries begin of which nothing that follows says that they are durable.
    fn unproven(&self) -> u64 {
        self.table.find(self.durable.next()).map_or(self.end(), |(_, offset)| offset)
    }

    fn seal(&self) -> (Trailer, Vec<u8>) {
        let file_bytes = self.header.file_bytes;
        let trailer = segment::trailer(file_bytes, &self.table, self.end(), self.last_index(), self.facts);
        (trailer, segment::encode_seal(self.seed, &self.table, &trailer))
    }

    fn read(&mut self, from: u64, to: u64) -> io::Result<Vec<u8>> {
        Ok(self.walk.window.get(from, (to - from) as usize, to)?.to_vec())
    }

    /// Writes the unproven entries once more and makes them durable.
    fn write_again(&mut self, disk: &dyn Disk, path: &Path) -> Result<Arc<Active>, OpenError> {
        let (from, end) = (self.unproven(), self.end());
        let bytes = self.read(from, end).map_err(io_error("read", path))?;
        let file = write_durably(disk, path, from, &bytes)?;
        Ok(self.active(path, file))
    }

    /// Writes the seal once more and makes it durable.
    fn seal_again(&mut self, disk: &dyn Disk, path: &Path) -> Result<Sealed, OpenError> {
        let (trailer, seal) = self.seal();
        write_durably(disk, path, trailer.table_offset, &seal)?;
        Ok(Sealed::new(self.header, trailer))
    }

    /// Puts a segment that has the good entries and nothing else in the place of this one.
    fn cut(&mut self, disk: &dyn Disk, dir: &Path, what: &str) -> Result<Arc<Active>, OpenError> {
        let number = self.header.identity.segment;
        let path = segment::path(dir, number);
        let entries = self.read(SEGMENT_HEADER_BYTES, self.end()).map_err(io_error("read", &path))?;
        tracing::warn!(
            file = %path.display(),
            offset = self.end(),
            last_index = self.last_index().0,
            "cut off a write that never finished: {what}"
        );
        let prepared = prepare::prepare(disk, dir, number, self.header.file_bytes)?;
        prepared.publish(disk, dir, &self.header, &entries)?;
        Ok(self.active(&path, prepared.file))
    }

    fn active(&mut self, path: &Path, file: Arc<dyn File>) -> Arc<Active> {
        Arc::new(Active {
            identity: self.header.identity,
            first_index: self.header.first_index,
            file_bytes: self.header.file_bytes,
            path: path.to_owned(),
            file,
            end: AtomicU64::new(self.end()),
            table: RwLock::new(std::mem::take(&mut self.table)),
        })
    }
}

/// Makes and publishes a segment without entries.
fn create_segment(
    disk: &dyn Disk,
    dir: &Path,
    identity: Identity,
    first_index: LogIndex,
    file_bytes: u64,
) -> Result<Arc<Active>, OpenError> {
    let prepared = prepare::prepare(disk, dir, identity.segment, file_bytes)?;
    let header = SegmentHeader::fresh(identity, first_index, file_bytes);
    prepared.publish(disk, dir, &header, &[])?;
    Ok(Arc::new(Active::empty(dir, &header, prepared.file)))
}

fn complete_mark(disk: &dyn Disk, path: &Path, at: u64) -> Result<(), OpenError> {
    write_durably(disk, path, at, &END_MARK)?;
    tracing::warn!(file = %path.display(), offset = at, "completed the end mark of the last entry");
    Ok(())
}

fn write_durably(disk: &dyn Disk, path: &Path, offset: u64, bytes: &[u8]) -> Result<Arc<dyn File>, OpenError> {
    let file = disk.open_rw(path).map_err(io_error("open", path))?;
    if !bytes.is_empty() {
        file.write_at(bytes, offset).map_err(io_error("write", path))?;
        file.sync_data().map_err(io_error("sync", path))?;
    }
    Ok(file)
}

/// Removes segments that never got their name, and those that another one stands for.
fn remove_leftovers(disk: &dyn Disk, dir: &Path, replaced: &[u64]) -> Result<(), OpenError> {
    if !replaced.is_empty() {
        // The name of the one that stands for them must be durable before they go.
        disk.sync_dir(dir).map_err(io_error("sync the directory", dir))?;
    }
    for number in replaced {
        let path = segment::path(dir, *number);
        tracing::debug!(file = %path.display(), "removed a segment that compaction had replaced");
        disk.remove(&path).map_err(io_error("remove", &path))?;
    }
    for name in disk.list(dir).map_err(io_error("list", dir))? {
        if Path::new(&name).extension().is_some_and(|extension| extension == "tmp") {
            let path = dir.join(name);
            disk.remove(&path).map_err(io_error("remove", &path))?;
        }
    }
    Ok(())
}

/// A bad frame as a report of damage.
pub(super) fn damage(path: &Path, bad: Bad, why: &str) -> Damage {
    let what = format!("{} (entry {}; {why})", bad.problem, bad.index);
    Damage { file: path.to_owned(), offset: bad.offset, what, indexes: Some(bad.index.0..=bad.index.0) }
}

pub(super) fn io_error<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> OpenError + 'a {
    move |source| OpenError::Io { action, path: path.to_owned(), source }
}

impl From<StepFailed> for OpenError {
    fn from(failed: StepFailed) -> OpenError {
        OpenError::Io { action: failed.action, path: failed.path, source: failed.source }
    }
}
