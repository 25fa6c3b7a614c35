//! Looks at every byte of a log and changes none. Works on a copy, and on the directory of a running server.
//!
//! Damage does not end it: it goes on at the next entry that is whole, so that the report shows the whole extent.

use std::io;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fencepost::{LogIndex, Lsn};

use super::catalog::{self, Catalog, Sealed};
use super::error::{Damage, OpenError, SegmentFileError};
use super::frame::{HEADER_BYTES, Kind, SECTOR_BYTES};
use super::recovery::{self, Chain, READ_AHEAD_BYTES, Survey};
use super::report::{Inspector, SegmentReport, Tail, VerifyReport};
use super::segment::{self, Order, SEGMENT_HEADER_BYTES, SegmentHeader, Table, Trailer};
use super::segment_file;
use super::tail::{self, Verdict};
use super::walk::{Bad, Problem, Step, Walk, Window};
use crate::disk::{Disk, File};

/// How often the end of a segment that is being written to is looked at again, before it counts as damaged.
const LOOKS_MAX: usize = 4;
/// How much damage in one sealed segment is listed.
const DAMAGE_MAX: usize = 100;

/// Looks at every byte of the log in a directory. Takes no lock and changes nothing.
///
/// Damage is in the report; an error means that looking itself was impossible.
pub fn verify(disk: &dyn Disk, dir: &Path, inspector: &mut dyn Inspector) -> Result<VerifyReport, OpenError> {
    let (mut shown, mut damage_before) = (Lsn::ZERO, Vec::new());
    loop {
        let numbers = recovery::segment_numbers(disk, dir)?;
        let mut report = VerifyReport {
            log_id: None,
            segments: Vec::new(),
            replaced: Vec::new(),
            tail: Tail::Clean,
            damage: Vec::new(),
        };
        let looked = look(disk, dir, &numbers, inspector, &mut shown, &mut report);
        // Facts are shown once, so what the inspector said of them when they were is still to be told.
        damage_before.retain(|damage| !report.damage.contains(damage));
        report.damage.append(&mut damage_before);
        match looked {
            Ok(()) => return Ok(report),
            // A segment that was there and is gone was replaced by a compaction: all is looked at again.
            Err(OpenError::Io { source, .. })
                if source.kind() == io::ErrorKind::NotFound && recovery::segment_numbers(disk, dir)? != numbers =>
            {
                damage_before = report.damage;
            }
            Err(error) => return Err(error),
        }
    }
}

/// Looks at segments that were there a moment ago.
fn look(
    disk: &dyn Disk,
    dir: &Path,
    numbers: &[u64],
    inspector: &mut dyn Inspector,
    shown: &mut Lsn,
    report: &mut VerifyReport,
) -> Result<(), OpenError> {
    let mut chain = Chain::new(dir);
    // The report of segments that are not there, and the first index in them; the next segment tells the last.
    let mut lost: Option<(usize, LogIndex)> = None;
    for number in numbers {
        if chain.stands_for(*number) {
            report.replaced.push(segment::path(dir, *number));
            continue;
        }
        if let Err(damage) = chain.follows(*number) {
            lost = lost.or(chain.first_due.map(|first_due| (report.damage.len(), first_due)));
            report.damage.push(damage);
            chain.lose();
        }
        let (file, header) = match chain.open(disk, *number) {
            Ok(opened) => opened,
            Err(OpenError::Corrupt(damage)) => {
                // Without its header nothing else in the segment can be checked.
                lost = lost.or(chain.first_due.map(|first_due| (report.damage.len(), first_due)));
                report.damage.push(damage);
                chain.lose();
                if numbers.last() == Some(number) {
                    report.tail = Tail::Corrupt;
                }
                continue;
            }
            Err(other) => return Err(other),
        };
        report.log_id.get_or_insert(header.identity.log_id);
        if let Some((at, first_lost)) = lost.take().filter(|(_, first_lost)| *first_lost < header.first_index) {
            report.damage[at].indexes = Some(first_lost.0..=header.first_index.0 - 1);
        }
        inspector.begins(&header.label());
        let path = segment::path(dir, *number);
        let pace = &mut |_| ControlFlow::Continue(());
        let mut inspection = Inspection { path, file, header, inspector, damage: &mut report.damage, shown, pace };
        let is_newest = numbers.last().is_none_or(|last| *last <= header.last_number);
        let looked = if is_newest && header.order() == Order::Dense {
            let (looked, tail) = inspection.newest()?;
            report.tail = tail;
            looked
        } else {
            inspection.followed(&mut chain)?
        };
        inspector.segment(&looked);
        report.segments.push(looked);
    }
    Ok(())
}

/// As [`Log::check_segment`](super::Log::check_segment).
pub(super) fn check_segment(
    catalog: &Catalog,
    number: u64,
    pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<(), Vec<Damage>> {
    let path = segment::path(&catalog.dir, number);
    loop {
        let Some(sealed) = catalog.sealed().into_iter().find(|sealed| sealed.number() == number) else {
            return Ok(());
        };
        let damage = match catalog.file_of(&sealed) {
            // Replaced between two looks.
            Ok(None) => continue,
            Ok(Some(file)) => check_sealed(path, file, &sealed, pace),
            Err(error) => {
                let indexes = Some(sealed.header.first_index.0..=sealed.trailer.last_index.0);
                vec![Damage { file: path, offset: 0, what: format!("it cannot be opened: {error}"), indexes }]
            }
        };
        return if damage.is_empty() { Ok(()) } else { Err(damage) };
    }
}

fn check_sealed(
    path: PathBuf,
    file: Arc<dyn File>,
    sealed: &Sealed,
    pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Vec<Damage> {
    let header = sealed.header;
    let mut damage = Vec::new();
    let (inspector, mut shown) = (&mut (), Lsn::ZERO);
    let (path_seen, shown) = (path.clone(), &mut shown);
    let mut inspection = Inspection { path: path_seen, file, header, inspector, damage: &mut damage, shown, pace };
    if let Err(error) = inspection.all(sealed) {
        let indexes = Some(sealed.header.first_index.0..=sealed.trailer.last_index.0);
        damage.push(Damage { file: path, offset: 0, what: error.to_string(), indexes });
    }
    damage
}

/// One segment under inspection.
struct Inspection<'a> {
    path: PathBuf,
    file: Arc<dyn File>,
    header: SegmentHeader,
    inspector: &'a mut dyn Inspector,
    damage: &'a mut Vec<Damage>,
    /// The last fact that was shown. Parts of the log may be looked at several times, each fact is shown once.
    shown: &'a mut Lsn,
    pace: &'a mut dyn FnMut(u64) -> ControlFlow<()>,
}

impl Inspection<'_> {
    /// The segment that is written to, or was when the log stopped.
    fn newest(&mut self) -> Result<(SegmentReport, Tail), OpenError> {
        let mut survey = Survey::new(Arc::clone(&self.file), self.header);
        let mut tail = None;
        loop {
            let verdict = self.judge(&mut survey)?;
            let sealed = verdict == Verdict::Sealed;
            let found = match &verdict {
                Verdict::Clean | Verdict::Sealed => Tail::Clean,
                Verdict::Torn(what) => Tail::Torn(what),
                Verdict::Unmarked(_) => Tail::Torn("the end mark of the last entry is incomplete"),
                Verdict::Corrupt(..) => Tail::Corrupt,
            };
            // After damage nothing is said about the rest but what else is damaged.
            let after_damage = tail.is_some();
            let tail = tail.get_or_insert(found).clone();
            if let Verdict::Corrupt(bad, why) = verdict
                && !(after_damage && bad.problem == Problem::Blank)
            {
                self.damage.push(recovery::damage(&self.path, bad, &why));
                self.show_broken(&mut survey.walk, bad)?;
                if self.resync(&mut survey.walk, bad, bad.index)? {
                    continue;
                }
            }
            let last_index = survey.last_index();
            return Ok((self.report(survey.table.len() as u64, survey.facts, last_index, sealed), tail));
        }
    }

    /// Judges the end of the segment; several times if a server seems to be writing there.
    fn judge(&mut self, survey: &mut Survey) -> Result<Verdict, OpenError> {
        let mut looks = 0;
        loop {
            let before = survey.end();
            let run = survey.run(&mut show(self.inspector, self.damage, self.shown, &self.path));
            let verdict = run.map_err(recovery::io_error("read", &self.path))?;
            looks = if survey.end() > before { 1 } else { looks + 1 };
            if !matches!(verdict, Verdict::Corrupt(..)) || looks == LOOKS_MAX {
                return Ok(verdict);
            }
            // What was read before and after a write does not fit together, so all of it is read again.
            survey.walk.window.forget();
        }
    }

    /// The header once more, as a file that was opened long ago may have changed on the disk, and all that follows it.
    fn all(&mut self, sealed: &Sealed) -> Result<(), OpenError> {
        let mut bytes = [0; SECTOR_BYTES];
        self.file.read_at(&mut bytes, 0).map_err(recovery::io_error("read", &self.path))?;
        if SegmentHeader::decode(&bytes) != Ok(self.header) {
            let (file, what) = (self.path.clone(), "the segment's header is not what it was".to_owned());
            self.damage.push(Damage { file, offset: 0, what, indexes: None });
        }
        if self.trailer()?.is_some_and(|trailer| trailer != sealed.trailer) {
            let (file, what) = (self.path.clone(), "the segment's trailer is not what it was".to_owned());
            self.damage.push(Damage { file, offset: sealed.header.file_bytes, what, indexes: None });
        }
        // What was read when the log was opened is more to be trusted, and tells where the entries are.
        self.sealed(Some(sealed.trailer)).map(drop)
    }

    /// A segment that has a successor.
    fn followed(&mut self, chain: &mut Chain<'_>) -> Result<SegmentReport, OpenError> {
        let trailer = self.trailer()?;
        chain.first_due = trailer.map(|trailer| trailer.last_index.next());
        self.sealed(trailer)
    }

    fn trailer(&mut self) -> Result<Option<Trailer>, OpenError> {
        match segment_file::trailer(&*self.file, &self.path, &self.header) {
            Ok(trailer) => Ok(Some(trailer)),
            Err(SegmentFileError::Corrupt(damage)) => {
                self.damage.push(damage);
                Ok(None)
            }
            Err(other) => Err(other.into()),
        }
    }

    fn sealed(&mut self, trailer: Option<Trailer>) -> Result<SegmentReport, OpenError> {
        let sealed = trailer.map(|trailer| Sealed::new(self.header, trailer));
        let io = |error| recovery::io_error("read", &self.path)(error);
        let stored = sealed.map(|sealed| catalog::read_table(&*self.file, &sealed)).transpose().map_err(io)?.flatten();
        let SegmentHeader { identity, first_index, file_bytes, .. } = self.header;
        let limit = trailer.map_or(file_bytes, |trailer| trailer.entries_end);
        let window = Window::new(Arc::clone(&self.file), READ_AHEAD_BYTES);
        let order = self.header.order();
        let mut walk = Walk::new(window, identity.seed(), order, first_index, SEGMENT_HEADER_BYTES, limit);
        let mut table = Table::new(first_index);
        let mut facts = 0;
        let mut is_whole = true;
        loop {
            let stepped = walk.step(&mut show(self.inspector, self.damage, self.shown, &self.path));
            let bad = match stepped.map_err(recovery::io_error("read", &self.path))? {
                Step::Entry(found) => {
                    table.push(found.index, found.offset);
                    facts += u64::from(found.commit.facts);
                    if (self.pace)(found.end - found.offset).is_break() {
                        return Ok(self.report(table.len() as u64, facts, found.index, true));
                    }
                    continue;
                }
                Step::End if trailer.is_none() || walk.offset == limit => break,
                Step::End => Bad { offset: walk.offset, index: walk.index, problem: Problem::Blank },
                Step::Bad(bad) if trailer.is_none() && matches!(bad.problem, Problem::OutOfOrder(_)) => break,
                Step::Bad(bad) => bad,
            };
            is_whole = false;
            self.damage.push(recovery::damage(&self.path, bad, "in a sealed segment"));
            self.show_broken(&mut walk, bad)?;
            let last_index = trailer.map_or(bad.index, |trailer| trailer.last_index);
            let found_again = match &stored {
                Some(stored) => self.skip(&mut walk, stored, last_index),
                None => self.resync(&mut walk, bad, last_index)?,
            };
            if !found_again || self.damage.len() >= DAMAGE_MAX {
                break;
            }
        }
        // Behind the last entry of a compacted segment others may have been.
        let last_index = LogIndex(walk.index.0 - 1);
        if let Some(sealed) = sealed {
            // With entries missing the seal cannot agree with them, and that was reported.
            let found = is_whole.then_some((&table, facts, last_index));
            self.seal(&sealed, stored.as_ref(), found, &mut walk.window)?;
        }
        Ok(self.report(table.len() as u64, facts, last_index, true))
    }

    fn show_broken(&mut self, walk: &mut Walk, bad: Bad) -> Result<(), OpenError> {
        let Problem::Payload(header) = bad.problem else { return Ok(()) };
        let (offset, length) = (bad.offset + HEADER_BYTES as u64, header.payload_bytes as usize);
        let payload = walk.window.get(offset, length, walk.limit).map_err(recovery::io_error("read", &self.path))?;
        if header.kind == Kind::Fact {
            self.inspector.broken(Lsn::new(header.index, header.ordinal), payload);
        }
        Ok(())
    }

    /// Moves the walk over the damaged entry where it stands, by the table, and writes into the last report which entries
    /// are lost.
    fn skip(&mut self, walk: &mut Walk, stored: &Table, last_index: LogIndex) -> bool {
        let found = stored.after(walk.offset).filter(|(_, offset)| *offset < walk.limit);
        let lost_last = found.map_or(last_index, |(index, _)| LogIndex(index.0 - 1));
        if let Some(damage) = self.damage.last_mut() {
            damage.indexes = Some(walk.index.0..=lost_last.0);
        }
        if let Some((index, offset)) = found {
            (walk.index, walk.offset) = (index, offset);
        }
        found.is_some()
    }

    /// Checks the zeros before the seal, and the seal against what was found: the table, the facts, the last entry.
    fn seal(
        &mut self,
        sealed: &Sealed,
        stored: Option<&Table>,
        found: Option<(&Table, u64, LogIndex)>,
        window: &mut Window,
    ) -> Result<(), OpenError> {
        let io = recovery::io_error("read", &self.path);
        let trailer = &sealed.trailer;
        let mut report = |offset, what: &str| {
            self.damage.push(Damage { file: self.path.clone(), offset, what: what.to_owned(), indexes: None });
        };
        let (entries_end, table_offset) = (trailer.entries_end, trailer.table_offset);
        if let Some(offset) = window.first_nonzero(entries_end, table_offset).map_err(&io)? {
            report(offset, "the bytes between the entries and the table are not zero");
        }
        if stored.is_none() {
            report(table_offset, "the table of a sealed segment does not match its CRC");
        }
        let Some((entries, facts, last_index)) = found else { return Ok(()) };
        if stored.is_some_and(|stored| stored != entries) {
            report(table_offset, "the table is not that of the entries");
        }
        if !trailer.counts(sealed.header.order(), facts, last_index) {
            let offset = sealed.header.file_bytes - segment::TRAILER_BYTES;
            report(offset, "the trailer does not count the entries that are there");
        }
        Ok(())
    }

    /// Moves the walk to the next whole frame that begins an entry after the bad one, and writes into the last report
    /// which entries are lost.
    fn resync(&mut self, walk: &mut Walk, bad: Bad, last_index: LogIndex) -> Result<bool, OpenError> {
        let io = recovery::io_error("read", &self.path);
        let seed = self.header.identity.seed();
        let length = (walk.limit - bad.offset) as usize;
        let rest = walk.window.get(bad.offset, length, walk.limit).map_err(io)?.to_vec();
        let mut at = bad.offset;
        let mut found = None;
        while let Some((offset, header, frame)) =
            rest.get((at - bad.offset) as usize..).and_then(|rest| tail::next_frame(rest, seed, at))
        {
            let intact = crc32fast::hash(&frame[HEADER_BYTES..]) == header.payload_crc;
            if intact && header.kind != Kind::Table && header.ordinal == 0 && header.index > bad.index {
                found = Some((offset, header.index));
                break;
            }
            at = offset + header.frame_bytes();
        }
        let lost_last = found.map_or(last_index, |(_, index)| LogIndex(index.0 - 1));
        if let Some(damage) = self.damage.last_mut() {
            damage.indexes = Some(bad.index.0..=lost_last.0);
        }
        if let Some((offset, index)) = found {
            (walk.offset, walk.index) = (offset, index);
        }
        Ok(found.is_some())
    }

    fn report(&self, entries: u64, facts: u64, last_index: LogIndex, sealed: bool) -> SegmentReport {
        let SegmentHeader { identity, first_index, file_bytes, last_number, judged_at, .. } = self.header;
        let (file, number) = (self.path.clone(), identity.segment);
        let last_index = (entries > 0).then_some(last_index);
        SegmentReport {
            file,
            number,
            last_number,
            judged_at,
            first_index,
            last_index,
            entries,
            facts,
            file_bytes,
            sealed,
        }
    }
}

/// Shows each fact to the inspector and reports what it objects to.
fn show<'a>(
    inspector: &'a mut dyn Inspector,
    damage: &'a mut Vec<Damage>,
    shown: &'a mut Lsn,
    path: &'a Path,
) -> impl FnMut(Lsn, &[u8], u64) + 'a {
    move |lsn, payload, offset| {
        if lsn <= *shown {
            return;
        }
        *shown = lsn;
        if !damage.is_empty() {
            inspector.damaged();
        }
        if let Err(what) = inspector.fact(lsn, payload) {
            let what = format!("fact {lsn} is whole and makes no sense: {what}");
            let indexes = Some(lsn.index().0..=lsn.index().0);
            damage.push(Damage { file: path.to_owned(), offset, what, indexes });
        }
    }
}
