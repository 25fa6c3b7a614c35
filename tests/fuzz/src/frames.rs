//! The log's decoders, on a directory in which anything may be wrong ([`image`]): `verify`, opening, reading, and
//! what is appended afterwards.

use std::collections::{BTreeMap, HashSet};
use std::path::Path;
use std::sync::Arc;

use fencepost::{LogIndex, Lsn};
use fencepost_server::clock::Clock;
use fencepost_server::disk::sim::{SimDisk, Survivors};
use fencepost_server::log::{
    Content, InlineLog, Inspector, Log, OpenError, ReadError, SegmentFileReader, Tail, VerifyReport, verify,
};
use uuid::Uuid;

use crate::image::{self, CONFIG, dir};
use crate::input::Input;
use crate::layout;

pub use crate::image::seeds;

/// The facts that were read, in order, and the error that ended it, if one did.
type Reading = (Vec<(Lsn, Vec<u8>)>, Option<ReadError>);

/// Remembers every fact that it is shown.
#[derive(Default)]
struct Witness(Vec<(Lsn, Vec<u8>)>);

impl Inspector for Witness {
    fn fact(&mut self, lsn: Lsn, payload: &[u8]) -> Result<(), String> {
        self.0.push((lsn, payload.to_vec()));
        Ok(())
    }
}

/// One input.
pub fn run(data: &[u8]) {
    let files = image::files(&mut Input::new(data));
    let has_threads = data.get(1).is_some_and(|flags| flags & image::flags::THREADS != 0);
    let intact: HashSet<(Lsn, &[u8])> = files.values().flat_map(|file| layout::intact(file)).collect();
    let disk = image::disk(&files);
    for path in files.keys() {
        for content in [Content::Log, Content::HotState, Content::Export] {
            alone(&disk, path, content, &intact);
        }
    }

    let mut witness = Witness::default();
    let report = verify(&disk, dir(), &mut witness);
    assert!(files.iter().all(|(path, bytes)| disk.bytes(path).as_ref() == Some(bytes)), "verify changes nothing");
    for (lsn, payload) in &witness.0 {
        assert!(intact.contains(&(*lsn, &payload[..])), "verify shows a fact at {lsn} that is not there");
    }

    let untouched = disk.fork();
    let (report, log) = match (report, open(&disk)) {
        (Ok(report), Ok(log)) => (report, log),
        (Err(_), Err(_)) => return,
        (Err(error), Ok(_)) => panic!("verify cannot look at what opens: {error}"),
        (Ok(report), Err(error)) => {
            assert!(!report.damage.is_empty(), "it is refused, and verify finds nothing: {error}");
            return;
        }
    };
    let reading = read(&log);
    for (lsn, payload) in &reading.0 {
        assert!(intact.contains(&(*lsn, &payload[..])), "the fact at {lsn} is not in the log");
    }
    if report.damage.is_empty() {
        sound(&report, &witness.0, &log, &reading);
    }
    for (lsn, _) in &reading.0 {
        for lsn in [*lsn, lsn.next(), Lsn::new(lsn.index().next(), 0)] {
            if let Ok(payload) = log.read(lsn) {
                assert!(intact.contains(&(lsn, &payload[..])), "the fact read at {lsn} is not in the log");
            }
        }
    }
    if has_threads {
        threaded(untouched, &reading, report.damage.is_empty());
    }
    drop(log);
    afterwards(&disk, &report, &reading);
}

/// One file, read without the others. Facts, and at most one error, which is the last.
fn alone(disk: &SimDisk, path: &Path, content: Content, intact: &HashSet<(Lsn, &[u8])>) {
    let Ok(mut reader) = SegmentFileReader::open(disk, path, content, None) else { return };
    let (summary, last) = (reader.summary(), reader.last_index());
    let (mut entries, mut facts, mut is_whole) = (0, 0, true);
    for entry in &mut reader {
        let Ok(entry) = entry else {
            is_whole = false;
            continue;
        };
        assert!(is_whole && entry.index <= last, "entry {} comes after the end", entry.index);
        for (ordinal, payload) in &entry.facts {
            let lsn = Lsn::new(entry.index, *ordinal);
            assert!(intact.contains(&(lsn, &payload[..])), "the fact at {lsn} is not in the file");
        }
        (entries, facts) = (entries + 1, facts + entry.facts.len() as u64);
    }
    let counted = (summary.entries, summary.facts);
    assert!(!is_whole || counted == (entries, facts), "{counted:?} were counted, and {:?} read", (entries, facts));
    assert!(reader.next().is_none(), "it stays at its end");
}

fn open(disk: &SimDisk) -> Result<InlineLog, OpenError> {
    InlineLog::open(Arc::new(disk.clone()), dir(), CONFIG, image::ID)
}

fn read(log: &InlineLog) -> Reading {
    let mut facts = Vec::new();
    for entry in log.entries(LogIndex::ZERO) {
        match entry {
            Ok(entry) => {
                let numbered = entry.facts.iter();
                facts.extend(numbered.map(|(ordinal, fact)| (Lsn::new(entry.index, *ordinal), fact.to_vec())));
            }
            Err(error) => return (facts, Some(error)),
        }
    }
    (facts, None)
}

/// Of a log in which verify found no damage everything can be read, and is what verify saw.
fn sound(report: &VerifyReport, shown: &[(Lsn, Vec<u8>)], log: &InlineLog, (facts, error): &Reading) {
    assert!(error.is_none(), "verify finds no damage, and reading does: {error:?}");
    let shown: BTreeMap<Lsn, &[u8]> = shown.iter().map(|(lsn, payload)| (*lsn, &payload[..])).collect();
    for (lsn, payload) in facts {
        assert_eq!(shown.get(lsn), Some(&&payload[..]), "the fact at {lsn} is not the one that verify saw");
        let found = log.read(*lsn).unwrap_or_else(|error| panic!("read in order, and not by position: {error}"));
        assert!(found == payload[..], "the fact at {lsn} is another when read by its position");
    }
    // An entry that lacks a part of its end mark is completed by opening, and not counted by verify.
    let read = facts.len() as u64;
    let is_as_counted = read == report.facts() || matches!(report.tail, Tail::Torn(_)) && read > report.facts();
    assert!(is_as_counted, "verify counts {} facts, and {read} are read", report.facts());
}

/// The log with its threads has the same facts. If it is sound it can be read from anywhere.
fn threaded(disk: SimDisk, (facts, _): &Reading, is_sound: bool) {
    let log = Log::open(Arc::new(disk), dir(), CONFIG, Clock::manual(), Uuid::nil());
    let log = log.unwrap_or_else(|error| panic!("opens only without threads: {error}"));
    let mut scan = log.scan(Lsn::ZERO);
    let found: Vec<(Lsn, Vec<u8>)> =
        scan.by_ref().map_while(Result::ok).map(|(lsn, fact)| (lsn, fact.to_vec())).collect();
    assert!(found == *facts, "a scan shows other facts than the entries have");
    let Some((middle, _)) = facts.get(facts.len() / 2).filter(|_| is_sound) else { return };
    let rest = log.scan(*middle).flatten().count();
    assert_eq!(rest, facts.len() - facts.len() / 2, "a scan from {middle} shows what comes from there on");
}

/// Once opened a log opens again, with the same facts, and takes more.
fn afterwards(disk: &SimDisk, before: &VerifyReport, (facts, error): &Reading) {
    let disk = disk.crash_image(Survivors::Synced);
    let report = verify(&disk, dir(), &mut ()).unwrap_or_else(|error| panic!("after opening: {error}"));
    assert!(report.damage.is_empty() || !before.damage.is_empty(), "opening did damage: {:?}", report.damage);
    assert_eq!(report.tail, Tail::Clean, "opening leaves a clean end");
    let mut log = open(&disk).unwrap_or_else(|error| panic!("opens only once: {error}"));
    let again = read(&log);
    assert!(again.0 == *facts && again.1.is_some() == error.is_some(), "opened again it has other facts");
    // The first needs a segment of its own, mostly.
    let (next, last) = (log.last_index().next(), log.last_index().0 + 2);
    if last >= layout::INDEX_END {
        return;
    }
    for entry in [image::long_entry(next), image::entry(last)] {
        log.append(vec![entry]).unwrap_or_else(|error| panic!("takes no entry: {error}"));
    }
    drop(log);
    let log = open(&disk).unwrap_or_else(|error| panic!("does not open after entries were appended: {error}"));
    assert_eq!(log.last_index(), LogIndex(last), "the entries that were appended are there");
}
