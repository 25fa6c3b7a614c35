//! Every byte of a log is changed, one at a time. Nothing acknowledged may be missing or different without a word.

use std::path::{Path, PathBuf};

use fencepost::{LogIndex, Lsn};
use fencepost_server::disk::sim::SimDisk;
use fencepost_server::log::{Inspector, Tail, verify};

use crate::workload::{dense, dir, open, payloads, run, segment};

const SEED: u64 = 4;

fn log_of_three_segments() -> (SimDisk, u64) {
    let disk = SimDisk::new();
    let progress = run(&disk, SEED, 14);
    assert!(disk.bytes(&segment(3)).is_some(), "the workload fills two segments");
    (disk, progress.acknowledged)
}

/// What became of a change.
#[derive(Debug, PartialEq, Eq)]
enum Outcome {
    /// The log does not open.
    Refused,
    /// It opens, and reading it tells of the damage.
    NotRead,
    /// It opens with everything in it.
    Harmless,
}

/// Opens and reads everything. Panics if something is missing or different and nobody says so.
fn outcome(disk: &SimDisk, last: u64, what: &str) -> Outcome {
    let Ok(log) = open(disk) else { return Outcome::Refused };
    let mut due = 1;
    for entry in log.entries(LogIndex(1)) {
        let Ok(entry) = entry else { return Outcome::NotRead };
        assert_eq!((entry.index, entry.term), (LogIndex(due), 3), "{what}");
        assert_eq!(dense(entry.facts), payloads(SEED, due), "{what}");
        due += 1;
    }
    assert_eq!(due - 1, last, "{what}: opened as if nothing was wrong");
    Outcome::Harmless
}

/// The places to change: all that is used, and some of the zeros.
fn places(disk: &SimDisk) -> Vec<(PathBuf, usize)> {
    let mut places = Vec::new();
    for number in 1..=3 {
        let bytes = disk.bytes(&segment(number)).unwrap();
        let used = |at: usize| bytes[at.saturating_sub(64)..bytes.len().min(at + 64)].iter().any(|byte| *byte != 0);
        places.extend((0..bytes.len()).filter(|at| used(*at) || at % 61 == 0).map(|at| (segment(number), at)));
    }
    places
}

#[test]
fn no_changed_byte_goes_unnoticed() {
    let (disk, last) = log_of_three_segments();
    let (mut refused, mut not_read, mut harmless) = (0, 0, 0);
    let mut harmless_places = Vec::new();
    for (path, at) in places(&disk) {
        let good = disk.bytes(&path).unwrap()[at];
        for bad in [good ^ 0x01, good ^ 0x80, 0x00, 0xff] {
            if bad == good {
                continue;
            }
            let what = format!("{} byte {at}: {good:#04x} became {bad:#04x}", path.display());
            let image = disk.fork();
            image.damage(&path, at, bad);
            let report = verify(&image, &dir(), &mut ()).map(|report| (report.damage, report.tail));
            match outcome(&image, last, &what) {
                Outcome::Refused => refused += 1,
                Outcome::NotRead => not_read += 1,
                Outcome::Harmless => {
                    harmless += 1;
                    harmless_places.push((path.clone(), at));
                }
            }
            let Ok((damage, tail)) = report else { continue };
            // A torn tail is a finding too: the change is in what no entry has used, or is put right when it is opened.
            assert!(!damage.is_empty() || matches!(tail, Tail::Torn(_)), "{what}: verify saw nothing");
            for damage in damage {
                assert_eq!(damage.file, path, "{what}: {damage}");
            }
        }
    }
    println!("changes: {refused} refused, {not_read} told by a read, {harmless} harmless");
    assert!(refused + not_read > 10_000, "{refused} refused, {not_read} told by a read");
    // Harmless is what no entry needs: zeros behind the entries, the table when all is read in order, and an end mark.
    for (path, at) in harmless_places {
        let end = entries_end(&disk, &path);
        assert!(at >= end, "{} byte {at}: harmless, though entries end at {end}", path.display());
    }
}

/// Where the entries end; in the newest segment without the last end mark, which is a constant.
fn entries_end(disk: &SimDisk, path: &Path) -> usize {
    let bytes = disk.bytes(path).unwrap();
    if path == segment(3) {
        return bytes.iter().rposition(|byte| *byte != 0).unwrap() + 1 - 8;
    }
    let trailer = &bytes[bytes.len() - 64..];
    u64::from_le_bytes(trailer[16..24].try_into().unwrap()) as usize
}

#[test]
fn verify_names_the_damaged_frame_and_the_entries_in_it() {
    let (disk, last) = log_of_three_segments();
    let whole = verify(&disk, &dir(), &mut ()).unwrap();
    assert_eq!((whole.damage.len(), whole.tail), (0, Tail::Clean));
    let facts: usize = (1..=last).map(|index| payloads(SEED, index).len()).sum();
    assert_eq!((whole.segments.len(), whole.segments.iter().map(|s| s.facts).sum::<u64>()), (3, facts as u64));
    for at in 512..entries_end(&disk, &segment(1)) {
        let image = disk.fork();
        image.damage(&segment(1), at, disk.bytes(&segment(1)).unwrap()[at] ^ 0x10);
        let report = verify(&image, &dir(), &mut ()).unwrap();
        let [damage] = &report.damage[..] else { panic!("byte {at}: {:?}", report.damage) };
        assert_eq!(damage.file, segment(1));
        // A commit frame binds all facts of its entry, and no frame here is longer than an entry may be.
        assert!(damage.offset as usize <= at && at < damage.offset as usize + 2500, "byte {at}: {damage}");
        let lost = damage.indexes.clone().unwrap();
        let found: u64 = report.segments.iter().map(|segment| segment.entries).sum();
        assert_eq!(found + lost.clone().count() as u64, last, "byte {at}: {lost:?} lost, {found} found of {last}");
    }
}

/// Remembers what it was shown.
#[derive(Default)]
struct Witness(Vec<Lsn>);

impl Inspector for Witness {
    fn fact(&mut self, lsn: Lsn, _payload: &[u8]) -> Result<(), String> {
        self.0.push(lsn);
        Ok(())
    }
}

#[test]
fn verify_shows_each_fact_once_and_in_order_whatever_is_damaged() {
    let (disk, _) = log_of_three_segments();
    for number in 1..=3 {
        for at in (512..entries_end(&disk, &segment(number))).step_by(3) {
            let image = disk.fork();
            image.damage(&segment(number), at, disk.bytes(&segment(number)).unwrap()[at] ^ 0x10);
            let mut witness = Witness::default();
            verify(&image, &dir(), &mut witness).unwrap();
            assert!(witness.0.is_sorted_by(|before, after| before < after), "segment {number}, byte {at}");
        }
    }
}
