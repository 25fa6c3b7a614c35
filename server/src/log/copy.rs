//! Copies of a log: a snapshot of one that is open, and the beginning of one that is not.
//!
//! Both end with a segment that is sealed, so that nothing is left to judge when the copy is opened.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use fencepost::{LogIndex, Lsn};

use super::catalog::{Catalog, lock};
use super::compact::Pacer;
use super::error::{CopyError, OpenError, SegmentFileError};
use super::recovery::{self, Chain, READ_AHEAD_BYTES, Survey};
use super::segment::{self, Order, SEGMENT_HEADER_BYTES, SegmentHeader};
use super::segment_file::SegmentFileWriter;
use super::tail::Verdict;
use super::walk::{Bad, Problem, Step, Walk, Window};
use crate::disk::{Disk, File};

/// A log that was copied to another directory.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopiedLog {
    /// The last index that it has.
    pub last_index: LogIndex,
    /// Its files.
    pub files: Vec<CopiedFile>,
}

/// A file of a copy.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct CopiedFile {
    /// Its name in the directory.
    pub name: String,
    /// Its length.
    pub bytes: u64,
    /// Whether it is a second name of the file that was there, and takes no room.
    pub linked: bool,
}

/// As [`Log::snapshot_into`](super::Log::snapshot_into).
pub(super) fn snapshot(
    catalog: &Catalog,
    dir: &Path,
    pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<CopiedLog, CopyError> {
    let disk = &*catalog.disk;
    check_empty(disk, dir)?;
    let mut pacer = Pacer::new(pace);
    let _alone = lock(&catalog.upkeep);
    let (sealed, active, end) = catalog.whole();
    let mut files = Vec::with_capacity(sealed.len() + 1);
    for sealed in &sealed {
        let (from, name) = (segment::path(&catalog.dir, sealed.number()), segment::file_name(sealed.number()));
        let linked = link_or_copy(disk, &from, &dir.join(&name))?;
        let bytes = sealed.header.file_bytes;
        files.push(CopiedFile { name, bytes, linked });
        stop_if(pacer.spend(if linked { 0 } else { bytes }))?;
    }
    let part = Part {
        path: active.path.clone(),
        file: Arc::clone(&active.file),
        header: SegmentHeader::fresh(active.identity, active.first_index, active.file_bytes),
        last_index: LogIndex(active.first_index.0.saturating_sub(1)),
        end,
    };
    let (file, last_index) = part.rewrite(disk, dir, Lsn::MAX, &mut pacer)?;
    files.push(file);
    stop_if(pacer.flush())?;
    disk.sync_dir(dir).map_err(SegmentFileError::io("sync the directory", dir))?;
    Ok(CopiedLog { last_index, files })
}

/// Copies the beginning of the log in `from`, which no server has open, into `to`, up to and including the fact at
/// `through`. Damage before that is copied with it, and found as it would have been in `from`.
///
/// Refused if compaction has removed facts on behalf of a later state, as they may be those that are needed.
pub fn copy_through(disk: &dyn Disk, from: &Path, to: &Path, through: Lsn) -> Result<CopiedLog, CopyError> {
    check_empty(disk, to)?;
    let (mut parts, last_index) = parts(disk, from)?;
    if through.index() > last_index {
        return Err(CopyError::TooLate { through, last: last_index });
    }
    parts.retain(|part| part.header.first_index <= through.index());
    let judged = parts.iter().map(|part| part.header.judged_at).max();
    let oldest = judged.unwrap_or_default().max(Lsn::new(LogIndex(1), 0));
    if through < oldest {
        return Err(CopyError::TooEarly { through, oldest });
    }
    let mut files = Vec::with_capacity(parts.len());
    for part in &parts {
        if part.last_index < through.index() {
            let name = segment::file_name(part.header.identity.segment);
            let bytes = disk.copy(&part.path, &to.join(&name)).map_err(SegmentFileError::io("copy", &part.path))?;
            files.push(CopiedFile { name, bytes, linked: false });
        } else {
            let pace = &mut |_| ControlFlow::Continue(());
            files.push(part.rewrite(disk, to, through, &mut Pacer::new(pace))?.0);
        }
    }
    disk.sync_dir(to).map_err(SegmentFileError::io("sync the directory", to))?;
    Ok(CopiedLog { last_index: through.index(), files })
}

fn check_empty(disk: &dyn Disk, dir: &Path) -> Result<(), CopyError> {
    let names = disk.list(dir).map_err(SegmentFileError::io("list", dir))?;
    match names.into_iter().next() {
        Some(found) => Err(CopyError::NotEmpty { dir: dir.to_owned(), found }),
        None => Ok(()),
    }
}

/// Answers whether it was linked.
fn link_or_copy(disk: &dyn Disk, from: &Path, to: &Path) -> Result<bool, SegmentFileError> {
    use std::io::ErrorKind::{CrossesDevices, TooManyLinks, Unsupported};
    match disk.link(from, to) {
        Ok(()) => Ok(true),
        Err(error) if matches!(error.kind(), CrossesDevices | TooManyLinks | Unsupported) => {
            disk.copy(from, to).map(|_| false).map_err(SegmentFileError::io("copy", from))
        }
        Err(error) => Err(SegmentFileError::io("link", from)(error)),
    }
}

fn stop_if(flow: ControlFlow<()>) -> Result<(), CopyError> {
    if flow.is_break() { Err(CopyError::Stopped) } else { Ok(()) }
}

/// One segment of the log that is copied.
struct Part {
    path: PathBuf,
    file: Arc<dyn File>,
    header: SegmentHeader,
    last_index: LogIndex,
    /// Where its entries end.
    end: u64,
}

/// The segments of a log, and its last index. Changes nothing: what opening the log would cut off is left out.
fn parts(disk: &dyn Disk, dir: &Path) -> Result<(Vec<Part>, LogIndex), CopyError> {
    let mut chain = Chain::new(dir);
    let mut parts: Vec<Part> = Vec::new();
    let sealed = |chain: &mut Chain<'_>, part: &mut Part| {
        let trailer = chain.sealed(&part.file, &part.header)?.trailer;
        (part.last_index, part.end) = (trailer.last_index, trailer.entries_end);
        Ok::<(), OpenError>(())
    };
    for number in recovery::segment_numbers(disk, dir)? {
        if chain.stands_for(number) {
            continue;
        }
        if let Some(before) = parts.last_mut() {
            sealed(&mut chain, before)?;
        }
        let (file, header) = chain.open(disk, number)?;
        let path = segment::path(dir, number);
        parts.push(Part { path, file, header, last_index: LogIndex::ZERO, end: SEGMENT_HEADER_BYTES });
    }
    let Some(newest) = parts.last_mut() else { return Ok((parts, LogIndex::ZERO)) };
    if newest.header.order() == Order::Sparse {
        sealed(&mut chain, newest)?;
    } else {
        let mut survey = Survey::new(Arc::clone(&newest.file), newest.header);
        let verdict = survey.run(&mut |_, _, _| ()).map_err(SegmentFileError::io("read", &newest.path))?;
        if let Verdict::Corrupt(bad, why) = verdict {
            return Err(OpenError::Corrupt(recovery::damage(&newest.path, bad, &why)).into());
        }
        (newest.last_index, newest.end) = (survey.last_index(), survey.end());
    }
    let last_index = newest.last_index;
    Ok((parts, last_index))
}

impl Part {
    /// Writes a sealed segment of the same number with the facts up to `through`. Answers its last index too.
    fn rewrite(
        &self,
        disk: &dyn Disk,
        dir: &Path,
        through: Lsn,
        pacer: &mut Pacer<'_>,
    ) -> Result<(CopiedFile, LogIndex), CopyError> {
        let SegmentHeader { identity, first_index, .. } = self.header;
        let name = segment::file_name(identity.segment);
        let mut writer = SegmentFileWriter::create(disk, &dir.join(&name), &self.header.label())?;
        let window = Window::new(Arc::clone(&self.file), READ_AHEAD_BYTES);
        let order = self.header.order();
        let mut walk = Walk::new(window, identity.seed(), order, first_index, SEGMENT_HEADER_BYTES, self.end);
        let mut last_index = self.last_index;
        while walk.index <= through.index() {
            let mut facts: Vec<(u16, Bytes)> = Vec::new();
            let stepped = walk.step(&mut |lsn, payload, _| {
                if lsn <= through {
                    facts.push((lsn.ordinal(), Bytes::copy_from_slice(payload)));
                }
            });
            let bad = match stepped.map_err(SegmentFileError::io("read", &self.path))? {
                Step::Entry(found) if found.index > through.index() => break,
                Step::Entry(found) => {
                    let facts: Vec<_> = facts.iter().map(|(ordinal, payload)| (*ordinal, &payload[..])).collect();
                    let (based_on, term) = (found.commit.based_on, found.commit.term);
                    let written = writer.push(found.index, based_on, term, &facts)?;
                    last_index = last_index.max(found.index);
                    stop_if(pacer.spend(found.end - found.offset + written))?;
                    continue;
                }
                Step::End if walk.offset == self.end => break,
                Step::End => Bad { offset: walk.offset, index: walk.index, problem: Problem::Blank },
                Step::Bad(bad) => bad,
            };
            let damage = recovery::damage(&self.path, bad, "on the way into a copy");
            return Err(SegmentFileError::Corrupt(damage).into());
        }
        let last_index = last_index.min(through.index());
        let bytes = writer.finish(last_index)?.file_bytes;
        Ok((CopiedFile { name, bytes, linked: false }, last_index))
    }
}
