//! The hot state in one flat file, so that a start need not replay the whole log.
//!
//! It is made ahead of time by the very code of start-up: load the file that is there, replay the sealed segments after it,
//! write the result. So it is never more than a shortcut, and every pass proves that the file before it could be read. It
//! is a segment file of the log's own format whose facts are [`StateRecord`]s.

use std::fmt::Display;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fencepost::log::v1::StateRecord;
use fencepost::{LogIndex, Lsn};
use prost::{DecodeError, Message as _};
use uuid::Uuid;

use super::replay::ahead;
use crate::disk::Disk;
use crate::log::{
    self, Content, Damage, Log, ReadEntry, SegmentFileError, SegmentFileReader, SegmentFileWriter, SegmentLabel,
};
use crate::state::{BadRecord, State, StateLoader};

/// An entry of the file has so many records, or fewer as soon as they have so many bytes. Whoever reads it has whole entries in
/// memory.
const RECORDS_TOGETHER: usize = 1_000;
const BYTES_TOGETHER: usize = 1 << 20;

/// Where the file is in a data directory.
pub fn path(data_dir: &Path) -> PathBuf {
    data_dir.join("state.seg")
}

/// Where the file is while it is written.
pub fn temporary(data_dir: &Path) -> PathBuf {
    data_dir.join("state.tmp")
}

/// Why there is no state to be had from a file. Unless the end of the log is missing, the log is there to start from.
#[derive(Debug, thiserror::Error)]
pub enum Unusable {
    /// There is none; the normal case of a young store.
    #[error("there is none")]
    Absent,
    /// It does not hold what was written.
    #[error("{0}")]
    Damaged(Damage),
    /// It cannot be used here, though nothing says that it is damaged.
    #[error("{0}")]
    Unfit(String),
    /// It knows of more than the log has.
    #[error(
        "{missing} is missing: {} knows of it, and what it held was acknowledged. Put it back, with all that came after \
         it, or restore a snapshot; to go on without it, at that price, remove {}", .file.display(), .file.display()
    )]
    LogEndsEarly {
        /// The file.
        file: PathBuf,
        /// The segment, or the entry of the log, that is missing.
        missing: String,
    },
}

impl From<SegmentFileError> for Unusable {
    fn from(error: SegmentFileError) -> Unusable {
        match error {
            SegmentFileError::Corrupt(damage) => Unusable::Damaged(damage),
            SegmentFileError::Io { source, .. } if source.kind() == io::ErrorKind::NotFound => Unusable::Absent,
            other => Unusable::Unfit(other.to_string()),
        }
    }
}

/// Refuses a log whose newest segments are missing, as far as the file in the data directory tells. To be asked before the
/// log is opened, because that begins a new segment behind what it finds.
pub fn check_log(disk: &dyn Disk, data_dir: &Path, log_dir: &Path) -> Result<(), Unusable> {
    let file = path(data_dir);
    let Ok(reader) = SegmentFileReader::open(disk, &file, Content::HotState, None) else { return Ok(()) };
    match log::missing_segment(disk, log_dir, *reader.label().numbers.end()) {
        Some(missing) => Err(Unusable::LogEndsEarly { file, missing: missing.display().to_string() }),
        None => Ok(()),
    }
}

/// What a file with a hot state holds.
#[derive(Debug)]
pub struct Saved {
    /// The log that it was made from.
    pub log_id: Uuid,
    /// The newest segment that this log had then.
    pub newest_segment: u64,
    /// At a place where a segment ended.
    pub state: State,
}

/// Reads and checks the whole file of a data directory. Whether it fits the log is another question.
pub fn read(disk: &dyn Disk, data_dir: &Path) -> Result<Saved, Unusable> {
    let path = path(data_dir);
    let damaged = |problem: &dyn Display| {
        Unusable::Damaged(Damage { file: path.clone(), offset: 0, what: problem.to_string(), indexes: None })
    };
    let reader = SegmentFileReader::open(disk, &path, Content::HotState, None)?;
    let label = reader.label();
    let decoded = reader.map(|entry| match entry {
        Ok(entry) => (bytes_of(&entry), Ok(decode(entry))),
        Err(error) => (0, Err(error)),
    });
    let state = ahead(decoded, |decoded| {
        let mut loader = StateLoader::default();
        for records in decoded {
            for record in records?.map_err(|error| damaged(&error))? {
                loader.push(record).map_err(|error| match error {
                    BadRecord::OtherFormat { .. } => Unusable::Unfit(format!("{}: {error}", path.display())),
                    error @ BadRecord::Unfit { .. } => damaged(&error),
                })?;
            }
        }
        loader.finish().map_err(|error| damaged(&error))
    })?;
    Ok(Saved { log_id: label.log_id, newest_segment: *label.numbers.end(), state })
}

/// The end of a log, as far as it says whether a saved state fits.
#[derive(Clone, Copy, Debug)]
pub struct LogEnd {
    /// Which log.
    pub log_id: Uuid,
    /// Its last entry.
    pub last_index: LogIndex,
    /// The segment that is written to.
    pub newest_segment: u64,
    /// The newest state by which it was compacted.
    pub judged_at: Lsn,
}

impl Saved {
    /// The state, if it fits the log that is in the same data directory.
    pub fn fitting(self, data_dir: &Path, log: LogEnd) -> Result<State, Unusable> {
        if self.log_id != log.log_id {
            return Err(Unusable::Unfit(format!("it belongs to log {}, and this is log {}", self.log_id, log.log_id)));
        }
        let (applied, judged_at) = (self.state.applied(), log.judged_at);
        if applied.index() > log.last_index || self.newest_segment > log.newest_segment {
            let missing = format!("what follows entry {} of the log", log.last_index);
            return Err(Unusable::LogEndsEarly { file: path(data_dir), missing });
        }
        if applied < judged_at {
            let older =
                format!("it has the state at LSN {applied}, and the log was compacted up to LSN {judged_at} since");
            return Err(Unusable::Unfit(older));
        }
        Ok(self.state)
    }
}

/// The state in the file of a data directory, if it fits the log.
pub fn load(disk: &Arc<dyn Disk>, data_dir: &Path, log: &Log) -> Result<State, Unusable> {
    let (log_id, last_index, judged_at) = (log.log_id(), log.last_index(), log.judged_at());
    let end = LogEnd { log_id, last_index, newest_segment: newest_segment(log), judged_at };
    read(&**disk, data_dir)?.fitting(data_dir, end)
}

fn bytes_of(entry: &ReadEntry) -> usize {
    entry.facts.iter().map(|(_, payload)| payload.len()).sum()
}

/// The records of an entry of the file.
fn decode(entry: ReadEntry) -> Result<Vec<StateRecord>, DecodeError> {
    entry.facts.into_iter().map(|(_, payload)| StateRecord::decode(payload)).collect()
}

/// Puts the state in the place of what the file has, durably. Returns the file's length.
pub fn save(disk: &Arc<dyn Disk>, data_dir: &Path, log: &Log, state: &State) -> Result<u64, SegmentFileError> {
    let (path, temporary) = (path(data_dir), temporary(data_dir));
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
        let (mut payloads, mut bytes): (Vec<Vec<u8>>, _) = (Vec::new(), 0);
        while payloads.len() < RECORDS_TOGETHER
            && bytes < BYTES_TOGETHER
            && let Some(record) = records.next()
        {
            let payload = record.encode_to_vec();
            bytes += payload.len();
            payloads.push(payload);
        }
        let facts: Vec<(u16, &[u8])> = (0..).zip(payloads.iter().map(|payload| &payload[..])).collect();
        writer.push(index, LogIndex(index.0 - 1), 0, &facts)?;
    }
    Ok(writer.finish(index)?.file_bytes)
}

/// The number of the segment that is written to.
fn newest_segment(log: &Log) -> u64 {
    log.sealed().last().map_or(1, |newest| newest.numbers.end() + 1)
}

#[cfg(test)]
mod tests {
    use fencepost::log::v1::state_record::Record;
    use fencepost::log::v1::{BranchState, PipelineState, StateEnd, StateHeader};

    use super::*;
    use crate::clock::Clock;
    use crate::disk::sim::SimDisk;
    use crate::log::LogConfig;

    /// A state of which a thousand records would be hundreds of megabytes: branches with long pasts.
    fn long_records(branches: u64) -> State {
        let mut records = vec![
            Record::Header(StateHeader { format: 1, applied_lsn: 1, ..StateHeader::default() }),
            Record::Pipeline(PipelineState { name: "prod/orders".into(), ..PipelineState::default() }),
        ];
        for branch in 0..branches {
            let rewinds = (1..=20_000).flat_map(|at| [1 << 50 | at, 1 << 40 | at]).collect();
            records.push(Record::Branch(BranchState {
                name: format!("{branch:04}"),
                rewinds,
                ..BranchState::default()
            }));
        }
        let counted = StateEnd { records: branches + 2, pipelines: 1, branches, applied_lsn: 1 };
        records.push(Record::End(counted));
        let mut loader = StateLoader::default();
        for record in records {
            loader.push(StateRecord { record: Some(record) }).unwrap();
        }
        loader.finish().unwrap()
    }

    #[test]
    fn an_entry_of_the_file_is_bounded_by_its_bytes() {
        let disk: Arc<dyn Disk> = Arc::new(SimDisk::new());
        let data_dir = Path::new("/data");
        let config = LogConfig::for_upkeep(256 << 10);
        let log = Log::open(Arc::clone(&disk), &data_dir.join("log"), config, Clock::manual(), Uuid::nil()).unwrap();
        let state = long_records(20);
        save(&disk, data_dir, &log, &state).unwrap();
        let reader = SegmentFileReader::open(&*disk, &path(data_dir), Content::HotState, None).unwrap();
        let lengths: Vec<usize> = reader.map(|entry| bytes_of(&entry.unwrap())).collect();
        assert!(lengths.len() > 1 && lengths.iter().all(|bytes| *bytes < 2 * BYTES_TOGETHER), "{lengths:?}");
        assert!(load(&disk, data_dir, &log).unwrap() == state);
    }
}
