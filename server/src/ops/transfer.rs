//! One pipeline as a file, and back into a store, this one or another.
//!
//! An export is what compaction would keep of the pipeline, in the form of the very facts that an import appends: a segment
//! file of the log's format that begins with `ImportStarted` and ends with `ImportFinished`. What comes along: retained
//! checkpoints with their commit ids, savepoints, the policy. What does not: leases and their tokens, which mean nothing
//! elsewhere, the audit, and savepoints on what a rewind abandoned.

use std::collections::BTreeMap;
use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use fencepost::log::v1::fact::Kind;
use fencepost::log::v1::{
    ClusterCreated, Committed, CommittedBranch, Fact, ImportFinished, ImportStarted, Imported, SavepointCreated,
};
use fencepost::{LogIndex, Lsn};
use prost::Message as _;

use super::manifest::BadSnapshot;
use crate::disk::Disk;
use crate::log::{Content, Log, SegmentFileReader, SegmentFileWriter, SegmentLabel};
use crate::state::State;
use crate::upkeep::{hot_state, replay};

/// How such files end that a transfer needs for itself.
const SCRATCH: &str = "transfer";

/// Where the facts of an export begin: its first entry is no fact of the source.
const FIRST: LogIndex = LogIndex(1);

/// Where a file that is sent or received is in a data directory, under a name of its own.
pub fn scratch(data_dir: &Path, name: &str) -> PathBuf {
    data_dir.join(format!("{name}.{SCRATCH}"))
}

/// Removes what transfers left that were cut short. For whoever has the data directory to itself; what cannot be removed is in
/// nobody's way.
pub fn remove_leftovers(disk: &dyn Disk, data_dir: &Path) {
    let is_scratch = |path: &PathBuf| path.extension().is_some_and(|extension| extension == SCRATCH);
    let names = disk.list(data_dir).unwrap_or_default();
    for path in names.into_iter().map(|name| data_dir.join(name)).filter(is_scratch) {
        let _ = disk.remove(&path);
    }
}

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
pub fn export(
    disk: &Arc<dyn Disk>,
    data_dir: &Path,
    log: &Log,
    pipeline: &str,
    file: &Path,
    pace: &mut dyn FnMut(u64) -> ControlFlow<()>,
) -> Result<Contents, BadSnapshot> {
    let log_error = |error: &dyn std::fmt::Display| BadSnapshot::Log(error.to_string());
    // What is judged here must still be there when it is read.
    let _still = log.hold_compaction();
    let through = log.last_index();
    let mut state = hot_state::load(disk, data_dir, log).unwrap_or_default();
    replay(log, &mut state, through, |_, _| pace(0)).map_err(|error| log_error(&error))?;
    let known = state.pipeline(pipeline);
    if known.is_none_or(crate::state::Pipeline::is_importing) {
        return Err(BadSnapshot::Refused(format!("there is no pipeline '{pipeline}', or it is being imported itself")));
    }

    let label = SegmentLabel {
        content: Content::Export,
        log_id: log.log_id(),
        numbers: 1..=1,
        first_index: FIRST,
        judged_at: Lsn::ZERO,
    };
    let mut writer = SegmentFileWriter::create(&**disk, file, &label).map_err(|error| log_error(&error))?;
    let mut push = |index: LogIndex, facts: &[(u16, Vec<u8>)]| {
        let facts: Vec<(u16, &[u8])> = facts.iter().map(|(ordinal, payload)| (*ordinal, &payload[..])).collect();
        writer.push(index, LogIndex::ZERO, 0, &facts).map_err(|error| log_error(&error))
    };
    let started = ImportStarted {
        pipeline: pipeline.to_owned(),
        source_cluster_id: state.cluster_id().to_owned(),
        source_lsn: state.applied().as_u64(),
        source_pipeline: pipeline.to_owned(),
        ..ImportStarted::default()
    };
    push(FIRST, &[(0, encoded(0, Kind::ImportStarted(started)))])?;
    let mut contents = Contents { pipeline: pipeline.to_owned(), ..Contents::default() };
    let mut commits = 0;
    for entry in log.entries(FIRST.next()) {
        let entry = entry.map_err(|error| log_error(&error))?;
        if entry.index > through {
            break;
        }
        let (mut facts, mut bytes) = (Vec::new(), 0);
        for (ordinal, payload) in entry.facts {
            bytes += payload.len() as u64;
            let lsn = Lsn::new(entry.index, ordinal);
            let fact = Fact::decode(payload).map_err(|error| log_error(&error))?;
            if fact.pipeline() == Some(pipeline)
                && let Some(kind) = exported(&state, lsn, &fact, &mut commits, &mut contents)
            {
                facts.push((ordinal, encoded(fact.at_ms, kind)));
            }
        }
        if !facts.is_empty() {
            push(entry.index, &facts)?;
        }
        if pace(bytes).is_break() {
            return Err(BadSnapshot::Stopped);
        }
    }
    let finished = ImportFinished { pipeline: pipeline.to_owned(), digest: Bytes::new() };
    push(through.next(), &[(0, encoded(0, Kind::ImportFinished(finished)))])?;
    writer.finish(through.next()).map_err(|error| log_error(&error))?;
    contents.branches =
        known.map_or(0, |known| known.branches_after("").filter(|(_, it)| it.head().is_some()).count()) as u64;
    Ok(contents)
}

/// What an export has of a fact, if anything.
fn exported(state: &State, lsn: Lsn, fact: &Fact, commits: &mut u64, contents: &mut Contents) -> Option<Kind> {
    let name = fact.pipeline()?;
    let pipeline = state.pipeline(name)?;
    match fact.kind.as_ref()? {
        Kind::PolicySet(set) => {
            let is_in_force = pipeline.policy().is_some_and(|policy| policy.lsn == lsn);
            return is_in_force.then(|| Kind::PolicySet(set.clone()));
        }
        Kind::SavepointCreated(created) => {
            let at = Lsn::from_u64(created.checkpoint_lsn);
            let is_current = state.branch(name, &created.branch)?.is_abandoned(created.sequence, at);
            if is_current || pipeline.savepoint(&created.name)?.created != lsn {
                return None;
            }
            contents.savepoints += 1;
            return Some(Kind::SavepointCreated(created.clone()));
        }
        _ => {}
    }
    let mut branches = Vec::new();
    for (branch, sequence, checkpoint) in fact.checkpoints() {
        let known = state.branch(name, branch)?;
        if known.is_abandoned(sequence, lsn) || !state.is_retained(name, branch, sequence, lsn) {
            continue;
        }
        branches.push(CommittedBranch {
            branch: branch.to_owned(),
            sequence,
            token: fact
                .commit()
                .and_then(|it| it.branches.iter().find(|it| it.branch == branch))
                .map_or(0, |it| it.token),
            checkpoint: checkpoint.cloned(),
            retained_from: known.retained_from(),
        });
    }
    if branches.is_empty() {
        return None;
    }
    *commits += 1;
    contents.checkpoints += branches.len() as u64;
    let (commit_id, digest) = fact.commit().map_or_else(
        || (String::new(), Bytes::from_static(&[0; 16])),
        |commit| (commit.commit_id.clone(), commit.digest.clone()),
    );
    let committed_at_ms = match &fact.kind {
        Some(Kind::Imported(imported)) => imported.committed_at_ms,
        _ => fact.at_ms,
    };
    let commit = Committed { pipeline: name.to_owned(), commit_id, digest, branches, number: *commits };
    Some(Kind::Imported(Imported { commit: Some(commit), committed_at_ms }))
}

fn encoded(at_ms: u64, kind: Kind) -> Vec<u8> {
    Fact { at_ms, kind: Some(kind) }.encode_to_vec()
}

/// An export file that was found whole.
#[derive(Debug)]
pub struct Export {
    reader: SegmentFileReader,
    /// What it holds.
    pub contents: Contents,
    /// Its first fact.
    pub started: ImportStarted,
    /// Where the source had the checkpoints that savepoints name, by branch and sequence.
    pub named: BTreeMap<u64, (String, u64)>,
}

impl Export {
    /// Reads all of a file and takes its facts into a state of its own, so that what an import appends fits for certain.
    /// Blocks.
    pub fn open(disk: &dyn Disk, file: &Path) -> Result<Export, BadSnapshot> {
        let open = || SegmentFileReader::open(disk, file, Content::Export, None).map_err(BadSnapshot::from);
        let damaged = |what: String| BadSnapshot::Damaged { file: file.to_owned(), what };
        let mut state = State::default();
        let created = ClusterCreated { cluster_id: "import".to_owned(), generation: 1 };
        let created = Fact { at_ms: 0, kind: Some(Kind::ClusterCreated(created)) };
        state.apply(Lsn::new(LogIndex::ZERO, 1), &created).map_err(|error| damaged(error.to_string()))?;
        let (mut contents, mut started, mut named) = (Contents::default(), None, BTreeMap::new());
        let mut is_finished = false;
        for fact in (Facts { reader: open()?, rest: Vec::new() }) {
            let (lsn, fact) = fact.map_err(damaged)?;
            if is_finished {
                return Err(damaged(format!("there is a fact at LSN {lsn} behind its end")));
            }
            state.apply(lsn, &fact).map_err(|error| damaged(error.to_string()))?;
            match fact.kind {
                Some(Kind::ImportStarted(first)) if started.is_none() => started = Some(first),
                Some(Kind::Imported(ref imported)) => {
                    contents.checkpoints += imported.commit.as_ref().map_or(0, |it| it.branches.len() as u64);
                }
                Some(Kind::SavepointCreated(created)) => {
                    contents.savepoints += 1;
                    named.insert(created.checkpoint_lsn, (created.branch, created.sequence));
                }
                Some(Kind::PolicySet(_)) => {}
                Some(Kind::ImportFinished(_)) => is_finished = true,
                _ => return Err(damaged(format!("the fact at LSN {lsn} is of a kind that an export does not have"))),
            }
        }
        let started = started.filter(|_| is_finished);
        let started =
            started.ok_or_else(|| damaged("it has no beginning or no end: the export was cut short".to_owned()))?;
        contents.pipeline.clone_from(&started.pipeline);
        contents.branches = state.counts().1;
        Ok(Export { reader: open()?, contents, started, named })
    }

    /// Its facts, in order. Blocks as they are read.
    pub fn facts(self) -> impl Iterator<Item = Result<(Lsn, Fact), String>> {
        Facts { reader: self.reader, rest: Vec::new() }
    }
}

/// The facts of a segment file.
struct Facts {
    reader: SegmentFileReader,
    /// Of the present entry, the next one last.
    rest: Vec<(Lsn, Bytes)>,
}

impl Iterator for Facts {
    type Item = Result<(Lsn, Fact), String>;

    fn next(&mut self) -> Option<Self::Item> {
        while self.rest.is_empty() {
            match self.reader.next()? {
                Ok(entry) => {
                    let facts = entry.facts.into_iter().rev();
                    self.rest.extend(facts.map(|(ordinal, payload)| (Lsn::new(entry.index, ordinal), payload)));
                }
                Err(error) => return Some(Err(error.to_string())),
            }
        }
        let (lsn, payload) = self.rest.pop()?;
        Some(Fact::decode(payload).map(|fact| (lsn, fact)).map_err(|error| error.to_string()))
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
        Kind::SavepointCreated(created) => {
            pipeline.clone_into(&mut created.pipeline);
            created.checkpoint_lsn = place(created).map_or(0, Lsn::as_u64);
        }
        _ => {}
    }
    kind
}
