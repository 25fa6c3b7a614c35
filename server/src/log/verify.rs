//! Looks at every byte of a log and changes none. Works on a copy, and on the directory of a running server.
//!
//! Damage does not end it: it goes on at the next entry that is whole, so that the report shows the whole extent.

use std::path::{Path, PathBuf};
use std::sync::Arc;

use fencepost::{LogIndex, Lsn};
use uuid::Uuid;

use super::catalog::{self, Sealed};
use super::error::{Damage, OpenError};
use super::frame::{HEADER_BYTES, Kind};
use super::recovery::{self, Chain, READ_AHEAD_BYTES, Survey};
use super::segment::{self, SEGMENT_HEADER_BYTES, SegmentHeader, Table};
use super::tail::{self, Verdict};
use super::walk::{Bad, Problem, Step, Walk, Window};
use crate::disk::{Disk, File};

/// How often the end of a segment that is being written to is looked at again, before it counts as damaged.
const LOOKS_MAX: usize = 4;

/// Who watches a verification.
pub trait Inspector {
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

/// Looks at every byte of the log in a directory. Takes no lock and changes nothing.
///
/// Damage is in the report; an error means that looking itself was impossible.
pub fn verify(disk: &dyn Disk, dir: &Path, inspector: &mut dyn Inspector) -> Result<VerifyReport, OpenError> {
    let mut report = VerifyReport { log_id: None, segments: Vec::new(), tail: Tail::Clean, damage: Vec::new() };
    let names = disk.list(dir).map_err(recovery::io_error("list", dir))?;
    let numbers: Vec<u64> = names.iter().filter_map(|name| segment::number_of(name)).collect();
    let mut chain = Chain::new(dir);
    for (at, number) in numbers.iter().enumerate() {
        let number_due = at.checked_sub(1).map_or(1, |before| numbers[before] + 1);
        if *number != number_due {
            let what = format!("the file is missing, and {} is there", segment::file_name(*number));
            report.damage.push(Damage { file: segment::path(dir, number_due), offset: 0, what, indexes: None });
            chain.first_due = None;
        }
        let newest = at + 1 == numbers.len();
        let (file, header) = match chain.open(disk, *number) {
            Ok(opened) => opened,
            Err(OpenError::Corrupt(damage)) => {
                // Without its header nothing else in the segment can be checked.
                report.damage.push(damage);
                chain.first_due = None;
                if newest {
                    report.tail = Tail::Corrupt;
                }
                continue;
            }
            Err(other) => return Err(other),
        };
        report.log_id.get_or_insert(header.identity.log_id);
        let path = segment::path(dir, *number);
        let mut inspection = Inspection { path, file, header, inspector, damage: &mut report.damage, shown: Lsn::ZERO };
        let looked = if newest {
            let (looked, tail) = inspection.newest()?;
            report.tail = tail;
            looked
        } else {
            inspection.sealed(&mut chain)?
        };
        inspector.segment(&looked);
        report.segments.push(looked);
    }
    Ok(report)
}

/// One segment under inspection.
struct Inspection<'a> {
    path: PathBuf,
    file: Arc<dyn File>,
    header: SegmentHeader,
    inspector: &'a mut dyn Inspector,
    damage: &'a mut Vec<Damage>,
    /// The last fact that was shown. The end of the log is looked at several times, each fact is shown once.
    shown: Lsn,
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
            let run = survey.run(&mut show(self.inspector, self.damage, &mut self.shown, &self.path));
            let verdict = run.map_err(recovery::io_error("read", &self.path))?;
            looks = if survey.end() > before { 1 } else { looks + 1 };
            if !matches!(verdict, Verdict::Corrupt(..)) || looks == LOOKS_MAX {
                return Ok(verdict);
            }
            // What was read before and after a write does not fit together, so all of it is read again.
            survey.walk.window.forget();
        }
    }

    /// A segment that has a successor.
    fn sealed(&mut self, chain: &mut Chain<'_>) -> Result<SegmentReport, OpenError> {
        let sealed = match chain.sealed(&*self.file, &self.header) {
            Ok(sealed) => Some(sealed),
            Err(OpenError::Corrupt(damage)) => {
                self.damage.push(damage);
                None
            }
            Err(other) => return Err(other),
        };
        let seed = self.header.identity.seed();
        let limit = sealed.map_or(self.header.file_bytes, |sealed| sealed.trailer.entries_end);
        let window = Window::new(Arc::clone(&self.file), READ_AHEAD_BYTES);
        let mut walk = Walk::new(window, seed, self.header.first_index, SEGMENT_HEADER_BYTES, limit);
        let mut table = Table::new(self.header.first_index);
        let mut facts = 0;
        let mut is_whole = true;
        loop {
            let stepped = walk.step(&mut show(self.inspector, self.damage, &mut self.shown, &self.path));
            let bad = match stepped.map_err(recovery::io_error("read", &self.path))? {
                Step::Entry(found) => {
                    table.push(found.index, found.offset);
                    facts += u64::from(found.commit.facts);
                    continue;
                }
                Step::End if sealed.is_none() || walk.offset == limit => break,
                Step::End => Bad { offset: walk.offset, index: walk.index, problem: Problem::Blank },
                Step::Bad(bad) if sealed.is_none() && matches!(bad.problem, Problem::OutOfOrder(_)) => break,
                Step::Bad(bad) => bad,
            };
            is_whole = false;
            self.damage.push(recovery::damage(&self.path, bad, "in a sealed segment"));
            let last_index = sealed.map_or(bad.index, |sealed| sealed.trailer.last_index);
            if !self.resync(&mut walk, bad, last_index)? {
                break;
            }
        }
        let last_index = LogIndex(walk.index.0 - 1);
        if let Some(sealed) = sealed {
            // With entries missing the seal cannot agree with them, and that was reported.
            let found = is_whole.then_some((&table, facts, last_index));
            self.seal(&sealed, found, &mut walk.window)?;
        }
        chain.first_due = sealed.map(|sealed| sealed.trailer.last_index.next());
        Ok(self.report(table.len() as u64, facts, last_index, true))
    }

    /// Checks the zeros before the seal, and the seal against what was found: the table, the facts, the last entry.
    fn seal(
        &mut self,
        sealed: &Sealed,
        found: Option<(&Table, u64, LogIndex)>,
        window: &mut Window,
    ) -> Result<(), OpenError> {
        let io = recovery::io_error("read", &self.path);
        let seed = self.header.identity.seed();
        let trailer = &sealed.trailer;
        let mut report = |offset, what: &str| {
            self.damage.push(Damage { file: self.path.clone(), offset, what: what.to_owned(), indexes: None });
        };
        let (entries_end, table_offset) = (trailer.entries_end, trailer.table_offset);
        if let Some(offset) = window.first_nonzero(entries_end, table_offset).map_err(&io)? {
            report(offset, "the bytes between the entries and the table are not zero");
        }
        let table = catalog::read_table(&*self.file, seed, sealed).map_err(&io)?;
        if table.is_none() {
            report(table_offset, "the table of a sealed segment does not match its CRC");
        }
        let Some((entries, facts, last_index)) = found else { return Ok(()) };
        if table.is_some_and(|table| table != *entries) {
            report(table_offset, "the table is not that of the entries");
        }
        if (facts, last_index) != (trailer.facts, trailer.last_index) {
            report(sealed.file_bytes - segment::TRAILER_BYTES, "the trailer does not count the entries that are there");
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
        let SegmentHeader { identity, first_index, file_bytes } = self.header;
        let file = self.path.clone();
        let last_index = (entries > 0).then_some(last_index);
        SegmentReport { file, number: identity.segment, first_index, last_index, entries, facts, file_bytes, sealed }
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
        if let Err(what) = inspector.fact(lsn, payload) {
            let what = format!("fact {lsn} is whole and makes no sense: {what}");
            let indexes = Some(lsn.index().0..=lsn.index().0);
            damage.push(Damage { file: path.to_owned(), offset, what, indexes });
        }
    }
}
