//! One pipeline as a file, and back into a store, this one or another.
//!
//! An export is what compaction would keep of the pipeline, in the form of the very facts that an import appends: a segment
//! file of the log's format that begins with `ImportStarted` and ends with `ImportFinished`. What comes along: retained
//! checkpoints with their commit ids, savepoints, the policy, open dead letters, which get new numbers, and declared schemas.
//! What does not: leases and their tokens, which mean nothing elsewhere, open barriers, whose workers are here, which inputs
//! were merged, the audit, and savepoints on what a rewind abandoned. Nothing is exported while anything is staged: its sink may
//! have it, and the same work done elsewhere would bring it twice.
//!
//! Its entries are numbered anew from 1, because one file cannot span all indexes that a log may have. So a savepoint in it names
//! the place that its checkpoint has in the file.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use fencepost::log::v1::fact::Kind;
use fencepost::log::v1::{Fact, ImportFinished, ImportStarted, Imported, SavepointCreated};
use fencepost::{LogIndex, Lsn};
use prost::Message as _;

use super::admit::{Admission, Admitted};
use super::exported::Exporter;
use super::manifest::BadSnapshot;
use crate::disk::Disk;
use crate::log::{Content, Log, SegmentFileReader, SegmentFileWriter, SegmentLabel};
use crate::state::{Pipeline, named};
use crate::upkeep::{hot_state, replay};

/// An entry of an export is closed when its facts have so many bytes, or when it has so many facts.
const ENTRY_BYTES: usize = 1 << 20;
const ENTRY_FACTS: usize = 10_000;

/// What an export holds.
#[derive(Clone, Debug, Default, PartialEq, Eq)]
pub struct Contents {
    /// The name that the pipeline had.
    pub pipeline: String,
    /// Branches with a checkpoint.
    pub branches: u64,
    /// Retained checkpoints.
    pub checkpoints: u64,
    /// Savepoints.
    pub savepoints: u64,
}

/// Writes a pipeline to a file, as it is when this begins. Blocks; `pace` hears of the bytes read since its last call.
#[allow(clippy::too_many_lines)] // One pass over the log, from beginning to end.
pub fn export(
    disk: &Arc<dyn Disk>,
    data_dir: &Path,
    log: &Log,
    pipeline: &str,
    file: &Path,
    pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Contents, BadSnapshot> {
    // What is judged here must still be there when it is read.
    let _still = log.hold_compaction();
    let through = log.last_index();
    let mut state = hot_state::load(disk, data_dir, log).unwrap_or_default();
    replay(log, &mut state, through, |_, _| pace(0))?;
    let Some(known) = state.pipeline(pipeline).filter(|known| !known.is_importing()) else {
        return Err(BadSnapshot::Refused(format!("there is no pipeline '{pipeline}', or it is being imported itself")));
    };
    let staged = known.branches_after("").filter(|(_, branch)| branch.staged().is_some());
    let staged: Vec<&str> = staged.map(|(name, _)| name).collect();
    if !staged.is_empty() {
        return Err(BadSnapshot::Staged { pipeline: pipeline.to_owned(), branches: named(staged.into_iter()) });
    }

    let label = SegmentLabel {
        content: Content::Export,
        log_id: log.log_id(),
        numbers: 1..=1,
        first_index: LogIndex(1),
        judged_at: Lsn::ZERO,
    };
    let mut entries = Entries::new(SegmentFileWriter::create(&**disk, file, &label)?);
    let started = ImportStarted {
        pipeline: pipeline.to_owned(),
        source_cluster_id: state.cluster_id().to_owned(),
        source_lsn: state.applied().as_u64(),
        source_pipeline: pipeline.to_owned(),
        ..ImportStarted::default()
    };
    entries.push(encoded(0, Kind::ImportStarted(started)));
    entries.close()?;
    let mut exporter = Exporter::new(&state, pipeline, known, log);
    let mut places = Places::new(known);
    for entry in log.entries(LogIndex(1)) {
        let entry = entry?;
        if entry.index > through {
            break;
        }
        let mut bytes = 0;
        for (ordinal, payload) in entry.facts {
            bytes += payload.len() as u64;
            let lsn = Lsn::new(entry.index, ordinal);
            let undecodable = |error| BadSnapshot::Log(format!("the fact at LSN {lsn} does not decode: {error}"));
            let fact = Fact::decode(payload).map_err(undecodable)?;
            if fact.pipeline() != Some(pipeline) {
                continue;
            }
            for mut kind in exporter.take(lsn, &fact)? {
                if entries.is_full() {
                    entries.close()?;
                }
                places.settle(lsn, &mut kind, entries.next());
                entries.push(encoded(fact.at_ms, kind));
            }
        }
        entries.close()?;
        if pace(bytes).is_break() {
            return Err(BadSnapshot::Stopped);
        }
    }
    let finished = ImportFinished { pipeline: pipeline.to_owned(), digest: Bytes::new() };
    entries.push(encoded(0, Kind::ImportFinished(finished)));
    entries.finish()?;
    let branches = known.branches_after("").filter(|(_, it)| it.head().is_some()).count() as u64;
    Ok(Contents { branches, ..exporter.contents })
}

/// The entries of an export, numbered from 1.
struct Entries {
    writer: SegmentFileWriter,
    /// Of the present one.
    index: LogIndex,
    facts: Vec<Vec<u8>>,
    bytes: usize,
}

impl Entries {
    fn new(writer: SegmentFileWriter) -> Entries {
        Entries { writer, index: LogIndex(1), facts: Vec::new(), bytes: 0 }
    }

    fn is_full(&self) -> bool {
        self.bytes > ENTRY_BYTES || self.facts.len() >= ENTRY_FACTS
    }

    /// Where the next fact will be.
    fn next(&self) -> Lsn {
        Lsn::new(self.index, self.facts.len() as u16)
    }

    fn push(&mut self, fact: Vec<u8>) {
        self.bytes += fact.len();
        self.facts.push(fact);
    }

    /// Ends the present entry, if it has any facts.
    fn close(&mut self) -> Result<(), BadSnapshot> {
        if self.facts.is_empty() {
            return Ok(());
        }
        let facts: Vec<(u16, &[u8])> = (0..).zip(self.facts.iter().map(|fact| &fact[..])).collect();
        self.writer.push(self.index, LogIndex::ZERO, 0, &facts)?;
        (self.index, self.bytes) = (self.index.next(), 0);
        self.facts.clear();
        Ok(())
    }

    /// Ends the file with the present entry.
    fn finish(mut self) -> Result<(), BadSnapshot> {
        let last = self.index;
        self.close()?;
        self.writer.finish(last)?;
        Ok(())
    }
}

/// Where the log has what savepoints name, and where the file has it, by branch.
struct Places<'a>(BTreeMap<Lsn, BTreeMap<&'a str, Lsn>>);

impl<'a> Places<'a> {
    fn new(pipeline: &'a Pipeline) -> Places<'a> {
        let mut places: BTreeMap<Lsn, BTreeMap<&str, Lsn>> = BTreeMap::new();
        for (_, savepoint) in pipeline.savepoints_after("") {
            places.entry(savepoint.lsn).or_default().insert(&savepoint.branch, Lsn::ZERO);
        }
        Places(places)
    }

    /// Takes in that a fact of the log, at `lsn`, comes to this place of the file; or tells a savepoint where that is what it
    /// names.
    fn settle(&mut self, lsn: Lsn, kind: &mut Kind, place: Lsn) {
        match kind {
            Kind::SavepointCreated(created) => {
                let named = self.0.get(&Lsn::from_u64(created.checkpoint_lsn));
                let named = named.and_then(|branches| branches.get(&*created.branch));
                created.checkpoint_lsn = named.map_or(0, |place| place.as_u64());
            }
            Kind::Imported(Imported { commit: Some(commit), .. }) => {
                let is_here = |branch: &str| commit.branches.iter().any(|moved| moved.branch == branch);
                let named = self.0.get_mut(&lsn).into_iter().flatten().filter(|(branch, _)| is_here(branch));
                named.for_each(|(_, at)| *at = place);
            }
            _ => {}
        }
    }
}

fn encoded(at_ms: u64, kind: Kind) -> Vec<u8> {
    Fact { at_ms, kind: Some(kind) }.encode_to_vec()
}

/// An export file that was found whole.
#[derive(Debug)]
pub struct Export {
    facts: Facts,
    /// What it holds.
    pub contents: Contents,
    /// Its first fact.
    pub started: ImportStarted,
    /// The checkpoints that savepoints name, by their places in the file: branch and sequence.
    pub named: BTreeMap<u64, (String, u64)>,
    /// Length of its longest fact.
    pub fact_bytes: usize,
}

impl Export {
    /// Reads all of a file, checks every field, and takes its facts into a state of its own, so that what an import appends
    /// fits for certain. Blocks.
    pub fn open(disk: &dyn Disk, file: &Path) -> Result<Export, BadSnapshot> {
        let facts = || {
            let reader = SegmentFileReader::open(disk, file, Content::Export, None)?;
            Ok::<_, BadSnapshot>(Facts { reader, file: file.to_owned(), rest: Vec::new() })
        };
        let damaged = |what: String| BadSnapshot::Damaged { file: file.to_owned(), what };
        let (mut admission, mut fact_bytes) = (Admission::new(), 0);
        for fact in facts()? {
            let (lsn, fact) = fact?;
            fact_bytes = fact_bytes.max(fact.encoded_len());
            admission
                .take(lsn, fact)
                .map_err(|what| damaged(format!("the fact at LSN {lsn} cannot be taken in: {what}")))?;
        }
        let Admitted { contents, started, named } = admission.finish().map_err(damaged)?;
        Ok(Export { facts: facts()?, contents, started, named, fact_bytes })
    }

    /// Its facts, in order. Blocks as they are read.
    pub fn facts(self) -> impl Iterator<Item = Result<(Lsn, Fact), BadSnapshot>> {
        self.facts
    }
}

/// The facts of a segment file.
#[derive(Debug)]
struct Facts {
    reader: SegmentFileReader,
    file: PathBuf,
    /// Of the present entry, the next one last.
    rest: Vec<(Lsn, Bytes)>,
}

impl Iterator for Facts {
    type Item = Result<(Lsn, Fact), BadSnapshot>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.rest.is_empty() {
            match self.reader.next()? {
                Ok(entry) => {
                    let facts = entry.facts.into_iter().rev();
                    self.rest.extend(facts.map(|(ordinal, payload)| (Lsn::new(entry.index, ordinal), payload)));
                }
                Err(error) => return Some(Err(error.into())),
            }
        }
        let (lsn, payload) = self.rest.pop()?;
        let undecodable = |error| {
            let what = format!("the fact at LSN {lsn} does not decode: {error}");
            BadSnapshot::Damaged { file: self.file.clone(), what }
        };
        Some(Fact::decode(payload).map(|fact| (lsn, fact)).map_err(undecodable))
    }
}

/// The fact of an export as it is appended by an import: under another name, if that is wanted, and with the place that a
/// savepoint's checkpoint has here.
pub fn renamed(mut kind: Kind, pipeline: &str, place: impl FnOnce(&SavepointCreated) -> Option<Lsn>) -> Kind {
    match &mut kind {
        Kind::Imported(imported) => {
            if let Some(commit) = &mut imported.commit {
                pipeline.clone_into(&mut commit.pipeline);
            }
        }
        Kind::PolicySet(set) => pipeline.clone_into(&mut set.pipeline),
        Kind::SchemaDeclared(declared) => pipeline.clone_into(&mut declared.pipeline),
        Kind::SavepointCreated(created) => {
            pipeline.clone_into(&mut created.pipeline);
            created.checkpoint_lsn = place(created).map_or(0, Lsn::as_u64);
        }
        _ => {}
    }
    kind
}

#[cfg(test)]
mod tests {
    use fencepost::log::v1::{ClusterCreated, Committed, CommittedBranch, DeadLettersDiscarded, Staged};
    use fencepost::v1::{Checkpoint, DeadLetter, DeadLetterId};
    use uuid::Uuid;

    use super::*;
    use crate::clock::Clock;
    use crate::disk::sim::SimDisk;
    use crate::log::LogConfig;

    const PIPELINE: &str = "prod/orders";

    fn committed(sequence: u64) -> Kind {
        let mut checkpoint = Checkpoint { position: sequence.to_string().into(), ..Checkpoint::default() };
        checkpoint.payload_crc32 = Some(checkpoint.computed_crc32());
        let (branch, checkpoint) = ("main".to_owned(), Some(checkpoint));
        let branch = CommittedBranch { branch, sequence, checkpoint, retained_from: 1, ..CommittedBranch::default() };
        Kind::Committed(Committed {
            pipeline: PIPELINE.to_owned(),
            commit_id: format!("commit-{sequence}"),
            digest: vec![1; 16].into(),
            branches: vec![branch],
            number: sequence,
            ..Committed::default()
        })
    }

    fn savepoint(name: &str, sequence: u64, checkpoint: u64) -> Kind {
        Kind::SavepointCreated(SavepointCreated {
            pipeline: PIPELINE.to_owned(),
            name: name.to_owned(),
            branch: "main".to_owned(),
            sequence,
            checkpoint_lsn: Lsn::new(LogIndex(checkpoint), 0).as_u64(),
            ..SavepointCreated::default()
        })
    }

    /// A log of compacted segments, each given by its last index and its entries.
    fn log(disk: &Arc<dyn Disk>, segments: &[(u64, &[(u64, Kind)])]) -> Log {
        let (log_dir, mut first_index) = (Path::new("/data/log"), LogIndex(1));
        disk.create_dir_all(log_dir).unwrap();
        for (number, (last_index, entries)) in (1..).zip(segments) {
            let judged_at = Lsn::new(LogIndex(*last_index), u16::MAX);
            let (content, log_id, numbers) = (Content::Log, Uuid::nil(), number..=number);
            let label = SegmentLabel { content, log_id, numbers, first_index, judged_at };
            let path = log_dir.join(format!("{number:020}.seg"));
            let mut writer = SegmentFileWriter::create(&**disk, &path, &label).unwrap();
            for (index, kind) in *entries {
                writer.push(LogIndex(*index), LogIndex::ZERO, 0, &[(0, &encoded(1, kind.clone())[..])]).unwrap();
            }
            writer.finish(LogIndex(*last_index)).unwrap();
            first_index = LogIndex(last_index + 1);
        }
        disk.sync_dir(log_dir).unwrap();
        Log::open(Arc::clone(disk), log_dir, LogConfig::for_upkeep(256 << 10), Clock::manual(), Uuid::nil()).unwrap()
    }

    #[test]
    fn an_export_says_that_there_is_no_room_and_what_the_disk_says() {
        use crate::disk::sim::{Lasting, Operation};
        use std::io::ErrorKind::{PermissionDenied, QuotaExceeded, StorageFull};

        let sim = SimDisk::new();
        let disk: Arc<dyn Disk> = Arc::new(sim.clone());
        let created = ClusterCreated { cluster_id: Uuid::nil().to_string(), generation: 1 };
        let log =
            log(&disk, &[(9, &[(1, Kind::ClusterCreated(created)), (2, committed(1)), (3, savepoint("a", 1, 2))])]);
        let export = |file| {
            export(&disk, Path::new("/data"), &log, PIPELINE, Path::new(file), &mut |_| ControlFlow::Continue(()))
        };
        for (file, kind) in [("/a", StorageFull), ("/b", QuotaExceeded), ("/c", PermissionDenied)] {
            sim.fail(Operation::Write, 1, Lasting::Forever, kind);
            let failed = export(file).unwrap_err();
            assert!(matches!(&failed, BadSnapshot::Io { path, .. } if path == Path::new(file)), "{failed:?}");
            assert_eq!(failed.is_full(), kind != PermissionDenied, "{failed:?}");
            sim.heal();
        }
        export("/d").unwrap();
        // What another disk says while the file is read is no damage.
        sim.fail(Operation::Read, 1, Lasting::Forever, PermissionDenied);
        let failed = Export::open(&*disk, Path::new("/d")).unwrap_err();
        assert!(matches!(failed, BadSnapshot::Io { .. }), "{failed:?}");
    }

    #[test]
    fn what_was_staged_comes_in_a_commit_for_each_branch_with_the_letters_that_are_open() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
        let created = ClusterCreated { cluster_id: Uuid::nil().to_string(), generation: 1 };
        let letter = |payload: &'static str| DeadLetter {
            payload: payload.into(),
            reason: "no".to_owned(),
            ..DeadLetter::default()
        };
        let staged = |branch: &str, letters: &[&'static str]| {
            let mut checkpoint = Checkpoint { position: branch.to_owned().into(), ..Checkpoint::default() };
            checkpoint.payload_crc32 = Some(checkpoint.computed_crc32());
            Kind::Staged(Staged {
                pipeline: PIPELINE.to_owned(),
                branch: branch.to_owned(),
                sequence: 1,
                stage_id: branch.to_owned(),
                digest: vec![1; 16].into(),
                checkpoint: Some(checkpoint),
                dead_letters: letters.iter().map(|payload| letter(payload)).collect(),
                ..Staged::default()
            })
        };
        let place = |index| Lsn::new(LogIndex(index), 0).as_u64();
        let by_reference = |branch: &str, staged_lsn| CommittedBranch {
            branch: branch.to_owned(),
            sequence: 1,
            retained_from: 1,
            staged_lsn,
            ..CommittedBranch::default()
        };
        let Kind::Committed(mut both) = committed(1) else { panic!("it is a commit") };
        both.branches[0].dead_letters = vec![letter("a"), letter("b")];
        both.branches.extend([by_reference("one", place(2)), by_reference("two", place(3))]);
        let named = Kind::SavepointCreated(SavepointCreated {
            pipeline: PIPELINE.to_owned(),
            name: "of-two".to_owned(),
            branch: "two".to_owned(),
            sequence: 1,
            checkpoint_lsn: place(4),
            ..SavepointCreated::default()
        });
        let handled = |lsn, number| DeadLetterId { lsn: place(lsn), number };
        let letters = vec![handled(2, 0), handled(4, 0)];
        let discarded = Kind::DeadLettersDiscarded(DeadLettersDiscarded {
            pipeline: PIPELINE.to_owned(),
            letters,
            ..DeadLettersDiscarded::default()
        });
        let entries = [
            (1, Kind::ClusterCreated(created)),
            (2, staged("one", &["c", "d"])),
            (3, staged("two", &[])),
            (4, Kind::Committed(both)),
            (5, named),
            (6, discarded),
        ];
        let log = log(&disk, &[(9, &entries)]);
        let file = Path::new("/export");
        let mut pace = |_| ControlFlow::Continue(());
        let contents = export(&disk, Path::new("/data"), &log, PIPELINE, file, &mut pace).unwrap();
        assert_eq!(contents, Contents { pipeline: PIPELINE.to_owned(), branches: 3, checkpoints: 3, savepoints: 1 });
        let export = Export::open(&*disk, file).unwrap();
        let (mut told, mut named) = (Vec::new(), None);
        for fact in export.facts() {
            let (lsn, fact) = fact.unwrap();
            let letters = fact.dead_letters().map(|letter| letter.payload.to_vec()).collect::<Vec<_>>().concat();
            for moved in fact.commit().into_iter().flat_map(|commit| &commit.branches) {
                let is_here = moved.checkpoint.is_some() && moved.staged_lsn == 0;
                told.push((lsn, moved.branch.clone(), is_here, letters.clone(), moved.handled_dead_letters));
            }
            if let Some(Kind::SavepointCreated(created)) = fact.kind {
                named = Some(Lsn::from_u64(created.checkpoint_lsn));
            }
        }
        let expected = [("main", "b", 1), ("one", "d", 1), ("two", "", 0)];
        let expected = (0..).zip(expected).map(|(ordinal, (branch, letters, handled))| {
            (Lsn::new(LogIndex(2), ordinal), branch.to_owned(), true, letters.as_bytes().to_vec(), handled)
        });
        assert_eq!(told, expected.collect::<Vec<_>>());
        assert_eq!(named, Some(Lsn::new(LogIndex(2), 2)), "the savepoint names that of its branch");
    }

    #[test]
    fn facts_at_indexes_that_no_file_can_span_are_exported() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
        let (far, farther) = (4_000_000_000, 8_000_000_000);
        let created = ClusterCreated { cluster_id: Uuid::nil().to_string(), generation: 1 };
        let first =
            [(1, Kind::ClusterCreated(created)), (7, committed(1)), (9, committed(2)), (12, savepoint("a", 2, 9))];
        let second =
            [(far + 5, committed(3)), (farther - 3, committed(4)), (farther - 2, savepoint("b", 4, farther - 3))];
        let log = log(&disk, &[(far, &first), (farther, &second)]);
        let file = Path::new("/export");
        let mut pace = |_| ControlFlow::Continue(());
        let contents = export(&disk, Path::new("/data"), &log, PIPELINE, file, &mut pace).unwrap();
        let expected = Contents { pipeline: PIPELINE.to_owned(), branches: 1, checkpoints: 4, savepoints: 2 };
        assert_eq!(contents, expected);

        let export = Export::open(&*disk, file).unwrap();
        assert_eq!(export.contents, contents);
        assert_eq!(Lsn::from_u64(export.started.source_lsn), Lsn::new(LogIndex(farther), u16::MAX));
        let place = |index| Lsn::new(LogIndex(index), 0).as_u64();
        let named = [(place(3), ("main".to_owned(), 2)), (place(6), ("main".to_owned(), 4))];
        assert_eq!(export.named, BTreeMap::from(named));
        let indexes: Vec<u64> = export.facts().map(|fact| fact.unwrap().0.index().0).collect();
        assert_eq!(indexes, [1, 2, 3, 4, 5, 6, 7, 8], "without gaps");
    }
}
