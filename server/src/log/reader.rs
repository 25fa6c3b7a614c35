//! Reading: one fact by its position, or all of them in order. Only what is durable is seen, and every byte that is
//! handed out was checked. Readers keep no lock while they read.

use std::collections::VecDeque;
use std::path::PathBuf;
use std::sync::Arc;

use bytes::Bytes;
use fencepost::{LogIndex, Lsn};

use super::catalog::{Catalog, Misplaced, Place};
use super::error::{Damage, ReadError};
use super::frame::{HEADER_BYTES, Header, Kind};
use super::recovery::READ_AHEAD_BYTES;
use super::segment::Order;
use super::walk::{self, Bad, Problem, ReadEntry, Step, Walk, Window};

/// How far ahead a single fact is read.
const FACT_AHEAD_BYTES: usize = 8 << 10;

/// Reads the fact at a position.
pub(super) fn read(catalog: &Catalog, lsn: Lsn) -> Result<Bytes, ReadError> {
    find(catalog, lsn).inspect_err(|error| tell(catalog, error))
}

/// Tells whoever listens of damage that was met.
fn tell(catalog: &Catalog, error: &ReadError) {
    if let (ReadError::Corrupt(damage), Some(listener)) = (error, catalog.damage.get()) {
        // A listener that is gone does not want to know.
        let _ = listener.send(damage.clone());
    }
}

fn find(catalog: &Catalog, lsn: Lsn) -> Result<Bytes, ReadError> {
    if lsn.index() > catalog.last_index() {
        return Err(ReadError::NotFound(lsn));
    }
    let place = catalog.locate(lsn.index()).map_err(|misplaced| explain(misplaced, lsn))?;
    if place.index != lsn.index() {
        return Err(ReadError::NotFound(lsn));
    }
    let mut window = Window::new(Arc::clone(&place.file), FACT_AHEAD_BYTES);
    let io = |source| ReadError::Io { file: place.path.clone(), index: lsn.index(), source };
    let mut at = place.offset;
    let mut ordinal_due = 0;
    loop {
        let corrupt = |problem| Err(corrupt(&place.path, Bad { offset: at, index: lsn.index(), problem }));
        // Facts on the way are passed over by their headers alone.
        if at + HEADER_BYTES as u64 > place.limit {
            return corrupt(Problem::Blank);
        }
        let header = window.get(at, HEADER_BYTES, place.limit).map_err(io)?;
        let header = header.first_chunk().and_then(|bytes| Header::decode(place.seed, bytes).ok());
        let Some(header) = header else { return corrupt(Problem::Header) };
        if header.index != lsn.index() || header.kind == Kind::Table {
            return corrupt(Problem::OutOfOrder(header));
        }
        if header.kind == Kind::Commit {
            return Err(ReadError::NotFound(lsn));
        }
        let ordinal = u32::from(header.ordinal);
        if ordinal < ordinal_due || (ordinal > ordinal_due && place.order == Order::Dense) {
            return corrupt(Problem::OutOfOrder(header));
        }
        if header.ordinal > lsn.ordinal() {
            return Err(ReadError::NotFound(lsn));
        }
        if header.ordinal == lsn.ordinal() {
            return match walk::frame_at(&mut window, place.seed, at, place.limit).map_err(io)? {
                Ok((_, payload)) => Ok(Bytes::copy_from_slice(payload)),
                Err(problem) => corrupt(problem),
            };
        }
        (at, ordinal_due) = (at + header.frame_bytes(), ordinal + 1);
    }
}

/// The durable entries from an index on, in order. At the end it answers None, and goes on when there are more: wait for
/// [`Log::durable`](super::Log::durable) to change and ask again. After an error it stays at its end.
#[derive(Debug)]
pub struct Entries {
    catalog: Arc<Catalog>,
    next: LogIndex,
    walk: Option<(PathBuf, Walk)>,
    failed: bool,
}

impl Entries {
    pub(super) fn new(catalog: Arc<Catalog>, from: LogIndex) -> Entries {
        let next = from.max(catalog.first_index());
        Entries { catalog, next, walk: None, failed: false }
    }

    fn step(&mut self) -> Result<Option<ReadEntry>, ReadError> {
        let here = Lsn::new(self.next, 0);
        loop {
            let last = self.catalog.last_index();
            if self.next > last {
                return Ok(None);
            }
            let (path, walk) = match &mut self.walk {
                Some((path, walk)) if walk.offset < walk.limit => (path, walk),
                // The segment is read to its end, as far as that was known. It may be sealed or longer by now.
                _ => {
                    let place = match self.catalog.locate(self.next) {
                        // Compaction left nothing from here to the end.
                        Err(Misplaced::Absent) => {
                            self.next = last.next();
                            continue;
                        }
                        place => place.map_err(|misplaced| explain(misplaced, here))?,
                    };
                    self.next = place.index;
                    let Place { path, file, seed, order, index, offset, limit } = place;
                    let window = Window::new(file, READ_AHEAD_BYTES);
                    self.walk = Some((path, Walk::new(window, seed, order, index, offset, limit)));
                    continue;
                }
            };
            let mut facts = Vec::new();
            let stepped =
                walk.step(&mut |lsn, payload, _| facts.push((lsn.ordinal(), Bytes::copy_from_slice(payload))));
            let io = |source| ReadError::Io { file: path.clone(), index: self.next, source };
            let bad = match stepped.map_err(io)? {
                Step::Entry(found) => {
                    self.next = found.index.next();
                    let (based_on, term) = (found.commit.based_on, found.commit.term);
                    return Ok(Some(ReadEntry { index: found.index, based_on, term, facts }));
                }
                Step::Bad(bad) => bad,
                Step::End => Bad { offset: walk.offset, index: walk.index, problem: Problem::Blank },
            };
            return Err(corrupt(path, bad));
        }
    }
}

impl Iterator for Entries {
    type Item = Result<ReadEntry, ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        if self.failed {
            return None;
        }
        let stepped = self.step().inspect_err(|error| tell(&self.catalog, error));
        self.failed = stepped.is_err();
        stepped.transpose()
    }
}

/// The durable facts from a position on, in order. Ends and goes on as [`Entries`] does.
#[derive(Debug)]
pub struct Scan {
    entries: Entries,
    from: Lsn,
    facts: VecDeque<(Lsn, Bytes)>,
}

impl Scan {
    pub(super) fn new(catalog: Arc<Catalog>, from: Lsn) -> Scan {
        Scan { entries: Entries::new(catalog, from.index()), from, facts: VecDeque::new() }
    }
}

impl Iterator for Scan {
    type Item = Result<(Lsn, Bytes), ReadError>;

    fn next(&mut self) -> Option<Self::Item> {
        loop {
            if let Some(fact) = self.facts.pop_front() {
                return Some(Ok(fact));
            }
            let entry = match self.entries.next()? {
                Ok(entry) => entry,
                Err(error) => return Some(Err(error)),
            };
            let from = self.from;
            let facts = entry.facts.into_iter().map(|(ordinal, fact)| (Lsn::new(entry.index, ordinal), fact));
            self.facts.extend(facts.filter(|(lsn, _)| *lsn >= from));
        }
    }
}

fn explain(misplaced: Misplaced, lsn: Lsn) -> ReadError {
    match misplaced {
        Misplaced::Absent => ReadError::NotFound(lsn),
        Misplaced::Damaged(damage) => ReadError::Corrupt(damage),
        Misplaced::Io(file, source) => ReadError::Io { file, index: lsn.index(), source },
    }
}

fn corrupt(path: &std::path::Path, bad: Bad) -> ReadError {
    let indexes = Some(bad.index.0..=bad.index.0);
    let what = format!("{} (entry {})", bad.problem, bad.index);
    ReadError::Corrupt(Damage { file: path.to_owned(), offset: bad.offset, what, indexes })
}
