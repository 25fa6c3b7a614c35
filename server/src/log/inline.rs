//! The log without its threads, for tests that choose every step: each call does all its work before it returns, so the
//! same calls on a simulated disk are always the same operations in the same order.

use std::ops::{ControlFlow, RangeInclusive};
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use fencepost::{LogIndex, Lsn};
use uuid::Uuid;

use super::catalog::{Catalog, Sealed};
use super::compact::{self, Compacted, Fate};
use super::copy::{self, CopiedLog};
use super::prepare::{self, Prepared};
use super::writer::Writer;
use super::{
    CompactError, CopyError, Damage, Entries, Entry, Failure, LogConfig, LogError, OpenError, ReadError, SegmentInfo,
    reader, segment, verify,
};
use crate::disk::{DirLock, Disk};

/// A log that is driven by hand.
#[derive(Debug)]
pub struct InlineLog {
    disk: Arc<dyn Disk>,
    dir: PathBuf,
    config: LogConfig,
    catalog: Arc<Catalog>,
    writer: Writer,
    prepared: Option<Prepared>,
    failure: Option<Arc<Failure>>,
    _lock: DirLock,
}

impl InlineLog {
    /// As [`Log::open`](super::Log::open).
    pub fn open(
        disk: Arc<dyn Disk>,
        dir: &Path,
        config: LogConfig,
        log_id_if_fresh: Uuid,
    ) -> Result<InlineLog, OpenError> {
        let (lock, recovered) = super::open_directory(&*disk, dir, &config, log_id_if_fresh)?;
        let catalog = Arc::new(Catalog::new(Arc::clone(&disk), dir, &recovered));
        let writer = Writer::new(recovered, Arc::clone(&catalog));
        let dir = dir.to_owned();
        Ok(InlineLog { disk, dir, config, catalog, writer, prepared: None, failure: None, _lock: lock })
    }

    /// Makes entries durable as one group, or as two if they do not fit into the segment.
    pub fn append(&mut self, mut group: Vec<Entry>) -> Result<LogIndex, LogError> {
        if let Some(failure) = &self.failure {
            return Err(LogError::Failed(Arc::clone(failure)));
        }
        while !group.is_empty() {
            let fitting = self.fitting(&group);
            if fitting == 0 {
                let next = match self.prepared.take() {
                    Some(prepared) => prepared,
                    None => self.prepare(group[0].len_bytes() as u64)?,
                };
                self.writer.rotate(next).map_err(|failure| self.latch(failure))?;
                continue;
            }
            let rest = group.split_off(fitting);
            self.writer.write(&mut group).map_err(|failure| self.latch(failure))?;
            group = rest;
        }
        Ok(self.last_index())
    }

    /// Prepares the next segment if need be; fails as [`Log::reserve`](super::Log::reserve) does.
    pub fn reserve(&mut self, entry_bytes: usize) -> Result<(), LogError> {
        if self.prepared.is_none() {
            self.prepared = Some(self.prepare(entry_bytes as u64)?);
        }
        Ok(())
    }

    /// The last durable entry.
    pub fn last_index(&self) -> LogIndex {
        self.catalog.last_index()
    }

    /// As [`Log::entries`](super::Log::entries).
    pub fn entries(&self, from: LogIndex) -> Entries {
        Entries::new(Arc::clone(&self.catalog), from)
    }

    /// As [`Log::read`](super::Log::read).
    pub fn read(&self, lsn: Lsn) -> Result<Bytes, ReadError> {
        reader::read(&self.catalog, lsn)
    }

    /// As [`Log::compact`](super::Log::compact).
    pub fn compact(
        &self,
        run: RangeInclusive<u64>,
        judged_at: Lsn,
        judge: &mut dyn FnMut(Lsn, &Bytes) -> Fate,
        pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<Compacted, CompactError> {
        compact::compact(&self.catalog, run, judged_at, judge, pace)
    }

    /// As [`Log::sealed`](super::Log::sealed).
    pub fn sealed(&self) -> Vec<SegmentInfo> {
        self.catalog.sealed().iter().map(Sealed::info).collect()
    }

    /// As [`Log::check_segment`](super::Log::check_segment).
    pub fn check_segment(&self, number: u64, pace: &mut dyn FnMut(u64) -> ControlFlow<()>) -> Result<(), Vec<Damage>> {
        verify::check_segment(&self.catalog, number, pace)
    }

    /// As [`Log::snapshot_into`](super::Log::snapshot_into).
    pub fn snapshot_into(
        &self,
        dir: &Path,
        pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
    ) -> Result<CopiedLog, CopyError> {
        copy::snapshot(&self.catalog, dir, pace)
    }

    fn fitting(&self, group: &[Entry]) -> usize {
        let (_, file_bytes, mut end, entries) = self.writer.position();
        let fits = |(at, entry): (usize, &Entry)| {
            let fits = segment::fits(file_bytes, end, entries + at, entry.len_bytes() as u64);
            end += entry.len_bytes() as u64;
            fits
        };
        group.iter().enumerate().map(fits).take_while(|fits| *fits).count()
    }

    fn prepare(&self, wanted_bytes: u64) -> Result<Prepared, LogError> {
        let prepared = prepare::prepare(&*self.disk, &self.dir, self.writer.segment() + 1, self.config.segment_bytes);
        prepared.map_err(|failed| LogError::NoSpace { wanted_bytes, reason: failed.source.to_string() })
    }

    fn latch(&mut self, failure: Failure) -> LogError {
        LogError::Failed(Arc::clone(self.failure.insert(Arc::new(failure))))
    }
}
