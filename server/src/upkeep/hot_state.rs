//! The hot state in one flat file, so that a start need not replay the whole log.
//!
//! It is made ahead of time by the very code of start-up: load the file that is there, replay the sealed segments after it,
//! write the result. So it is never more than a shortcut, and every pass proves that the file before it could be read. It
//! is a segment file of the log's own format whose facts are [`StateRecord`]s.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fencepost::log::v1::StateRecord;
use fencepost::{LogIndex, Lsn};
use prost::Message as _;

use crate::disk::Disk;
use crate::log::{Content, Log, SegmentFileError, SegmentFileReader, SegmentFileWriter, SegmentLabel};
use crate::state::{State, StateLoader};

/// Records in one entry of the file.
const RECORDS_TOGETHER: usize = 1_000;

/// Where the file is in a data directory.
pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("state.seg")
}

/// Why there is no state to be had from a file. Unless the log itself ends too early, it is there to start from.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// There is none; the normal case of a young store.
    #[error("there is none")]
    Absent,
    /// It does not hold what was written.
    #[error("it is damaged: {0}")]
    Damaged(String),
    /// It cannot be used with this log, though it is intact.
    #[error("{0}")]
    Unfit(String),
    /// It knows of facts that the log does not have.
    #[error(
        "{} has the state at LSN {state} and knows of later segments, but the log ends with entry {log}: its newest \
         segments are missing, and with them commits that were acknowledged. Put them back, or restore a snapshot; to go \
         on without them, at the price of what they held, remove that file", .file.display()
    )]
    LogEndsEarly {
        /// The file.
        file: PathBuf,
        /// How far it goes.
        state: Lsn,
        /// How far the log goes.
        log: LogIndex,
    },
}

/// The state in the file of a data directory, if it fits the log.
pub fn load(disk: &Arc<dyn Disk>, data_dir: &Path, log: &Log) -> Result<State, Unusable> {
    let path = path(data_dir);
    let damaged = |problem: String| Unusable::Damaged(problem);
    let reader = match SegmentFileReader::open(&**disk, &path, Content::HotState, None) {
        Err(SegmentFileError::Io { source, .. }) if source.kind() == io::ErrorKind::NotFound => {
            return Err(Unusable::Absent);
        }
        opened => opened.map_err(|error| damaged(error.to_string()))?,
    };
    let label = reader.label();
    if label.log_id != log.log_id() {
        return Err(Unusable::Unfit(format!("it belongs to log {}, and this is log {}", label.log_id, log.log_id())));
    }
    let mut loader = StateLoader::default();
    for entry in reader {
        for (_, payload) in entry.map_err(|error| damaged(error.to_string()))?.facts {
            let record = StateRecord::decode(payload).map_err(|error| damaged(error.to_string()))?;
            loader.push(record).map_err(|error| damaged(error.to_string()))?;
        }
    }
    let state = loader.finish().map_err(|error| damaged(error.to_string()))?;
    let (applied, judged_at) = (state.applied(), log.judged_at());
    if applied.index() > log.last_index() || *label.numbers.end() > newest_segment(log) {
        return Err(Unusable::LogEndsEarly { file: path, state: applied, log: log.last_index() });
    }
    if applied < judged_at {
        let older = format!("it has the state at LSN {applied}, and the log was compacted up to LSN {judged_at} since");
        return Err(Unusable::Unfit(older));
    }
    Ok(state)
}

/// Puts the state in the place of what the file has, durably. Returns the file's length.
pub fn save(disk: &Arc<dyn Disk>, data_dir: &Path, log: &Log, state: &State) -> Result<u64, SegmentFileError> {
    let (path, temporary) = (path(data_dir), data_dir.join("state.tmp"));
    let written = write(disk, &temporary, log, state);
    if written.is_err() {
        // What is left of it takes room that is wanted elsewhere.
        let _ = disk.remove(&temporary);
    }
    let io = |action: &'static str, path: &Path| {
        let path = path.to_owned();
        move |source| SegmentFileError::Io { action, path, source }
    };
    let bytes = written?;
    disk.rename(&temporary, &path).map_err(io("rename", &temporary))?;
    disk.sync_dir(data_dir).map_err(io("sync the directory", data_dir))?;
    Ok(bytes)
}

fn write(disk: &Arc<dyn Disk>, path: &Path, log: &Log, state: &State) -> Result<u64, SegmentFileError> {
    let label = SegmentLabel {
        content: Content::HotState,
        log_id: log.log_id(),
        numbers: 1..=newest_segment(log),
        first_index: LogIndex(1),
        judged_at: Lsn::ZERO,
    };
    let mut writer = SegmentFileWriter::create(&**disk, path, &label)?;
    let (mut records, mut index) = (state.records().peekable(), LogIndex::ZERO);
    while records.peek().is_some() {
        index = index.next();
        let payloads: Vec<Vec<u8>> = records.by_ref().take(RECORDS_TOGETHER).map(|it| it.encode_to_vec()).collect();
        let facts: Vec<(u16, &[u8])> = (0..).zip(payloads.iter().map(|payload| &payload[..])).collect();
        writer.push(index, LogIndex(index.0 - 1), 0, &facts)?;
    }
    Ok(writer.finish(index)?.file_bytes)
}

/// The number of the segment that is written to.
fn newest_segment(log: &Log) -> u64 {
    log.sealed().last().map_or(1, |newest| newest.numbers.end() + 1)
}
