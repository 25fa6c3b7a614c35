//! Compaction: a run of sealed segments becomes one, without the facts that nothing needs any more.
//!
//! The new file is written aside and synced before it takes the name of the first segment of the run, in one step. From
//! then on it stands for all of them, by its header; the others are removed when the name is durable. A crash leaves
//! either the old run, or the new segment and perhaps files that it stands for, which recovery removes.
//!
//! What is needed is for others to say. Here it is only seen to that the rest stays what and where it was: LSNs do not
//! change, and every byte that is copied was checked.

use std::ops::{ControlFlow, RangeInclusive};
use std::sync::Arc;

use bytes::Bytes;
use fencepost::Lsn;

use super::catalog::{Catalog, Sealed, lock};
use super::error::CompactError;
use super::segment::{self, Content, SegmentLabel};
use super::segment_file::{SegmentFileReader, SegmentFileWriter};
use crate::disk::File;

/// How much is read or written between two calls of a pace.
const PACE_BYTES: u64 = 64 << 10;

/// What becomes of a fact.
#[derive(Clone, Debug, PartialEq, Eq)]
pub enum Fate {
    /// It stays.
    Keep,
    /// It stays in this form.
    Replace(Bytes),
    /// It goes.
    Drop,
}

/// What a compaction did.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Compacted {
    /// The lengths of the files that were.
    pub bytes_before: u64,
    /// The length of the file that is.
    pub bytes_after: u64,
    /// How many facts there were.
    pub facts_before: u64,
    /// How many are left.
    pub facts_after: u64,
}

/// Tells somebody what was read or written, who may slow it down or stop it.
pub(super) struct Pacer<'a> {
    pace: &'a mut dyn FnMut(u64) -> ControlFlow<()>,
    bytes: u64,
}

impl<'a> Pacer<'a> {
    pub(super) fn new(pace: &'a mut dyn FnMut(u64) -> ControlFlow<()>) -> Pacer<'a> {
        Pacer { pace, bytes: 0 }
    }

    pub(super) fn spend(&mut self, bytes: u64) -> ControlFlow<()> {
        self.bytes += bytes;
        if self.bytes < PACE_BYTES { ControlFlow::Continue(()) } else { self.flush() }
    }

    pub(super) fn flush(&mut self) -> ControlFlow<()> {
        (self.pace)(std::mem::take(&mut self.bytes))
    }
}

/// As [`Log::compact`](super::Log::compact).
pub(super) fn compact(
    catalog: &Catalog,
    run: RangeInclusive<u64>,
    judged_at: Lsn,
    judge: &mut dyn FnMut(Lsn, &Bytes) -> Fate,
    pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Compacted, CompactError> {
    let _alone = lock(&catalog.upkeep);
    let members = members(catalog, &run)?;
    let needed = members.iter().map(|member| member.header.judged_at).max().unwrap_or_default();
    let needed = needed.max(Lsn::new(members.last().map(|last| last.trailer.last_index).unwrap_or_default(), 0));
    if judged_at < needed || judged_at == Lsn::ZERO {
        return Err(CompactError::TooEarly { judged_at, needed });
    }
    let temporary = segment::temporary_path(&catalog.dir, *run.start());
    let mut done = Compacted::default();
    let written = rewrite(catalog, &members, judged_at, judge, &mut Pacer::new(pace), &mut done);
    let (sealed, files) = written.inspect_err(|_| {
        // There may be nothing to remove, and whatever stays is removed when the log is opened.
        let _ = catalog.disk.remove(&temporary);
    })?;
    done.bytes_after = sealed.header.file_bytes;
    done.facts_after = sealed.trailer.facts;
    publish(catalog, sealed, files)?;
    Ok(done)
}

/// The sealed segments that a run consists of.
fn members(catalog: &Catalog, run: &RangeInclusive<u64>) -> Result<Vec<Sealed>, CompactError> {
    let sealed = catalog.sealed();
    let inside = |it: &&Sealed| run.contains(&it.number()) && run.contains(&it.header.last_number);
    let members: Vec<Sealed> = sealed.iter().filter(inside).copied().collect();
    let ends = members.first().zip(members.last()).map(|(first, last)| (first.number(), last.header.last_number));
    if ends == Some((*run.start(), *run.end())) {
        return Ok(members);
    }
    let sealed = sealed.iter().map(|it| it.number()..=it.header.last_number).collect();
    Err(CompactError::NotSealed { wanted: run.clone(), sealed })
}

type Files = Vec<(u64, Arc<dyn File>)>;

/// Writes what is left of the run to the temporary file. Answers what it is, and the files that it was made of.
fn rewrite(
    catalog: &Catalog,
    members: &[Sealed],
    judged_at: Lsn,
    judge: &mut dyn FnMut(Lsn, &Bytes) -> Fate,
    pacer: &mut Pacer<'_>,
    done: &mut Compacted,
) -> Result<(Sealed, Files), CompactError> {
    let (first, last) = (members[0].header, members[members.len() - 1]);
    let label = SegmentLabel { numbers: first.identity.segment..=last.header.last_number, judged_at, ..first.label() };
    let path = segment::temporary_path(&catalog.dir, first.identity.segment);
    let mut files = Vec::with_capacity(members.len());
    let mut writer = SegmentFileWriter::create(&*catalog.disk, &path, &label)?;
    for member in members {
        let path = segment::path(&catalog.dir, member.number());
        let mut reader = SegmentFileReader::open(&*catalog.disk, &path, Content::Log, Some(catalog.log_id))?;
        reader.expect(member)?;
        files.push((member.number(), reader.file()));
        done.bytes_before += member.header.file_bytes;
        done.facts_before += member.trailer.facts;
        let mut read = reader.offset();
        while let Some(entry) = reader.next().transpose()? {
            let mut kept = Vec::with_capacity(entry.facts.len());
            for (ordinal, payload) in entry.facts {
                match judge(Lsn::new(entry.index, ordinal), &payload) {
                    Fate::Keep => kept.push((ordinal, payload)),
                    Fate::Replace(reduced) => kept.push((ordinal, reduced)),
                    Fate::Drop => {}
                }
            }
            let mut spent = reader.offset() - std::mem::replace(&mut read, reader.offset());
            if !kept.is_empty() {
                let kept: Vec<(u16, &[u8])> = kept.iter().map(|(ordinal, payload)| (*ordinal, &payload[..])).collect();
                spent += writer.push(entry.index, entry.based_on, entry.term, &kept)?;
            }
            stop_if(pacer.spend(spent))?;
        }
        stop_if(pacer.flush())?;
    }
    Ok((writer.seal(last.trailer.last_index)?, files))
}

fn stop_if(flow: ControlFlow<()>) -> Result<(), CompactError> {
    if flow.is_break() { Err(CompactError::Stopped) } else { Ok(()) }
}

/// Puts the temporary file into the place of the run.
fn publish(catalog: &Catalog, sealed: Sealed, files: Files) -> Result<(), CompactError> {
    let (disk, dir) = (&*catalog.disk, &catalog.dir);
    let (temporary, path) = (segment::temporary_path(dir, sealed.number()), segment::path(dir, sealed.number()));
    // Readers who know the run by its old names must not meet the new file.
    catalog.pin(files);
    if let Err(error) = disk.rename(&temporary, &path) {
        catalog.unpin();
        let _ = disk.remove(&temporary);
        return Err(CompactError::io("rename", &temporary)(error));
    }
    catalog.replace(sealed);
    // Until its name is durable the others are needed: after a crash the old first segment may be back.
    disk.sync_dir(dir).map_err(CompactError::io("sync the directory", dir))?;
    let names = disk.list(dir).map_err(CompactError::io("list", dir))?;
    let stands_for = sealed.number() + 1..=sealed.header.last_number;
    let replaced =
        names.iter().filter_map(|name| segment::number_of(name)).filter(|number| stands_for.contains(number));
    for path in replaced.map(|number| segment::path(dir, number)) {
        disk.remove(&path).map_err(CompactError::io("remove", &path))?;
    }
    disk.sync_dir(dir).map_err(CompactError::io("sync the directory", dir))
}
