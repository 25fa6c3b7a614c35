//! Writing entries: one write and one sync for each group. Plain calls without threads, so that a test can choose
//! every step; [`driver`](super::driver) puts a thread around it.

use std::path::PathBuf;
use std::sync::Arc;
use std::sync::atomic::Ordering;

use fencepost::LogIndex;

use super::catalog::{Active, Catalog, Sealed};
use super::entry::Entry;
use super::error::Failure;
use super::frame::{Identity, Seed};
use super::prepare::{Prepared, StepFailed};
use super::recovery::Recovered;
use super::segment::{self, SegmentHeader, Table};

/// The end of the log. Invariant: everything before `end` is durable and in the catalogue.
#[derive(Debug)]
pub(super) struct Writer {
    catalog: Arc<Catalog>,
    active: Arc<Active>,
    seed: Seed,
    end: u64,
    facts: u64,
    last_index: LogIndex,
    gathered: Vec<u8>,
}

impl Writer {
    /// Continues after what was recovered; makes the catalogue for the readers.
    pub(super) fn new(recovered: Recovered, catalog: Arc<Catalog>) -> Writer {
        let active = recovered.active;
        let (seed, end) = (active.identity.seed(), active.end.load(Ordering::Acquire));
        let (facts, last_index) = (recovered.active_facts, recovered.last_index);
        Writer { catalog, active, seed, end, facts, last_index, gathered: Vec::new() }
    }

    /// The number of the segment that is written to.
    pub(super) fn segment(&self) -> u64 {
        self.active.identity.segment
    }

    /// The last entry that is durable.
    pub(super) fn last_index(&self) -> LogIndex {
        self.last_index
    }

    /// The segment that is written to, its length, where its entries end, and how many there are.
    pub(super) fn position(&self) -> (u64, u64, u64, usize) {
        (self.segment(), self.active.file_bytes, self.end, self.active.table(Table::len))
    }

    /// Makes a group of entries durable, which must follow the last one and fit into the segment, and shows them to the
    /// readers. After a failure nothing more may be written: what is on the disk is unknown.
    pub(super) fn write(&mut self, group: &mut [Entry]) -> Result<(), Failure> {
        let durable_before = self.last_index;
        let mut rows = Vec::with_capacity(group.len());
        let mut end = self.end;
        let alone = group.len() == 1;
        self.gathered.clear();
        for entry in &mut *group {
            assert_eq!(entry.index(), self.last_index.next(), "entries are contiguous");
            rows.push((entry.index(), end));
            self.last_index = entry.index();
            self.facts += entry.fact_count() as u64;
            let frames = entry.place(self.seed, end, durable_before);
            end += frames.len() as u64;
            if !alone {
                self.gathered.extend_from_slice(frames);
            }
        }
        let bytes = match group {
            [entry] => entry.placed(),
            _ => &self.gathered,
        };
        self.make_durable(bytes, self.end)?;
        self.end = end;
        self.active.extend(rows.into_iter(), end);
        self.catalog.durable.send_replace(self.last_index);
        Ok(())
    }

    /// Seals the segment and goes on in a prepared one.
    pub(super) fn rotate(&mut self, next: Prepared) -> Result<(), Failure> {
        let Active { identity, first_index, file_bytes, .. } = *self.active;
        let (trailer, seal) = self.active.table(|table| {
            let trailer = segment::trailer(file_bytes, table, self.end, self.last_index, self.facts);
            (trailer, segment::encode_seal(self.seed, table, &trailer))
        });
        self.make_durable(&seal, trailer.table_offset)?;
        let sealed = Sealed::new(SegmentHeader::fresh(identity, first_index, file_bytes), trailer);
        let identity = Identity { segment: next.number, ..identity };
        let header = SegmentHeader::fresh(identity, self.last_index.next(), next.file_bytes);
        next.publish(&*self.catalog.disk, &self.catalog.dir, &header, &[])?;
        self.active = Arc::new(Active::empty(&self.catalog.dir, &header, next.file));
        (self.seed, self.end, self.facts) = (identity.seed(), segment::SEGMENT_HEADER_BYTES, 0);
        self.catalog.rotate(sealed, Arc::clone(&self.active));
        Ok(())
    }

    fn make_durable(&self, bytes: &[u8], offset: u64) -> Result<(), Failure> {
        let file = &self.active.file;
        file.write_at(bytes, offset).map_err(|error| failure("write", &self.active.path, offset, &error))?;
        file.sync_data().map_err(|error| failure("sync", &self.active.path, offset, &error))
    }
}

fn failure(action: &'static str, file: &std::path::Path, offset: u64, reason: &dyn ToString) -> Failure {
    Failure { action, file: PathBuf::from(file), offset, reason: reason.to_string() }
}

impl From<StepFailed> for Failure {
    fn from(failed: StepFailed) -> Failure {
        failure(failed.action, &failed.path, 0, &failed.source)
    }
}
