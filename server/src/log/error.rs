//! What can go wrong, in words that say what to do.

use std::io;
use std::ops::RangeInclusive;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use fencepost::{LogIndex, Lsn};

/// A place in the log whose bytes are not what was written there.
#[derive(Clone, Debug, PartialEq, Eq, thiserror::Error)]
#[error("{} is damaged at offset {offset}: {what}", file.display())]
pub struct Damage {
    /// The file.
    pub file: PathBuf,
    /// Where the damaged frame, table or header begins.
    pub offset: u64,
    /// What was found, and what should have been.
    pub what: String,
    /// The entries that may be lost, as far as that can be told.
    pub indexes: Option<RangeInclusive<u64>>,
}

/// Why a log cannot be opened. Nothing on the disk was changed, except where an [`OpenError::Io`] says so.
#[derive(Debug, thiserror::Error)]
pub enum OpenError {
    /// Another server has the directory.
    #[error("{} is in use by another process: stop that server, or choose another data directory", dir.display())]
    Locked {
        /// The directory.
        dir: PathBuf,
    },
    /// What was durable is not there any more.
    #[error(
        "{0}. Nothing was changed. Run `fencepost verify` on the directory to see the extent, and restore it from a \
         copy; do not remove files from it"
    )]
    Corrupt(Damage),
    /// A newer Fencepost wrote this log.
    #[error(
        "{} has log format {found}, and this version reads up to format {supported}: use the Fencepost that wrote \
         it, or a newer one. Nothing was changed", file.display()
    )]
    NewerFormat {
        /// The file.
        file: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format that this version reads.
        supported: u32,
    },
    /// The configuration makes no sense.
    #[error("the log's configuration is wrong: {0}")]
    Config(String),
    /// The disk refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

/// Why a segment file cannot be written or read.
#[derive(Debug, thiserror::Error)]
pub enum SegmentFileError {
    /// Its bytes are not those that were written.
    #[error("{0}")]
    Corrupt(Damage),
    /// A newer Fencepost wrote it.
    #[error(
        "{} has format {found}, and this version reads up to format {supported}: use the Fencepost that wrote it, or a \
         newer one", file.display()
    )]
    NewerFormat {
        /// The file.
        file: PathBuf,
        /// Its format.
        found: u32,
        /// The newest format that this version reads.
        supported: u32,
    },
    /// It is not the file that was asked for.
    #[error("{} is not the file that is wanted: {what}", file.display())]
    Another {
        /// The file.
        file: PathBuf,
        /// What it is, and what it should be.
        what: String,
    },
    /// What it should hold is more than the format can address.
    #[error("{} would have more than {bytes} bytes, or too many entries: a segment file ends at {bytes_max}", file.display())]
    TooLong {
        /// The file.
        file: PathBuf,
        /// How long it is already.
        bytes: u64,
        /// How long it may become.
        bytes_max: u64,
    },
    /// The disk refused.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl SegmentFileError {
    pub(super) fn io<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> SegmentFileError + 'a {
        move |source| SegmentFileError::Io { action, path: path.to_owned(), source }
    }
}

impl From<SegmentFileError> for OpenError {
    fn from(error: SegmentFileError) -> OpenError {
        match error {
            SegmentFileError::Corrupt(damage) => OpenError::Corrupt(damage),
            SegmentFileError::NewerFormat { file, found, supported } => {
                OpenError::NewerFormat { file, found, supported }
            }
            SegmentFileError::Io { action, path, source } => OpenError::Io { action, path, source },
            SegmentFileError::Another { ref file, .. } | SegmentFileError::TooLong { ref file, .. } => {
                let (file, what) = (file.clone(), error.to_string());
                OpenError::Corrupt(Damage { file, offset: 0, what, indexes: None })
            }
        }
    }
}

/// Why segments were not compacted. Unless it says otherwise, nothing was changed.
#[derive(Debug, thiserror::Error)]
pub enum CompactError {
    /// There are no sealed segments that are exactly these.
    #[error("{wanted:?} is no run of sealed segments; those that there are: {sealed:?}")]
    NotSealed {
        /// The numbers that were given.
        wanted: RangeInclusive<u64>,
        /// What may be given, alone or as a run.
        sealed: Vec<RangeInclusive<u64>>,
    },
    /// The state that judges does not cover the segments, or is older than the one that judged before.
    #[error("the state at LSN {judged_at} cannot judge these segments: it must be at {needed} or later")]
    TooEarly {
        /// Where the state is.
        judged_at: Lsn,
        /// Where it must be.
        needed: Lsn,
    },
    /// It was told to stop.
    #[error("the compaction was stopped")]
    Stopped,
    /// A segment is damaged.
    #[error("{0}. The segment is kept as it is. Run `fencepost verify` on the directory to see the extent")]
    Corrupt(Damage),
    /// There is no room for the result. It is tried again by calling again.
    #[error("no space on the disk for {}: {source}", path.display())]
    NoSpace {
        /// The file in the making; it was removed.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
    /// The result would not fit into one segment file.
    #[error("{0}: compact fewer segments at once")]
    TooLong(SegmentFileError),
    /// The disk refused. When syncing the directory or removing failed, the result is in place and what it replaced is
    /// left over until the log is opened again.
    #[error("cannot {action} {}: {source}", path.display())]
    Io {
        /// What was tried.
        action: &'static str,
        /// On what.
        path: PathBuf,
        /// What the operating system said.
        source: io::Error,
    },
}

impl CompactError {
    pub(super) fn io<'a>(action: &'static str, path: &'a Path) -> impl Fn(io::Error) -> CompactError + 'a {
        move |source| match source.kind() {
            io::ErrorKind::StorageFull | io::ErrorKind::QuotaExceeded => {
                CompactError::NoSpace { path: path.to_owned(), source }
            }
            _ => CompactError::Io { action, path: path.to_owned(), source },
        }
    }
}

impl From<SegmentFileError> for CompactError {
    fn from(error: SegmentFileError) -> CompactError {
        match error {
            SegmentFileError::Corrupt(damage) => CompactError::Corrupt(damage),
            SegmentFileError::Io { action, path, source } => CompactError::io(action, &path)(source),
            other => CompactError::TooLong(other),
        }
    }
}

/// Why a log was not copied. What the copy has until then is of no use.
#[derive(Debug, thiserror::Error)]
pub enum CopyError {
    /// There is something in the directory already.
    #[error("{} is not empty: '{found}' is in it; choose a directory without files", dir.display())]
    NotEmpty {
        /// The directory.
        dir: PathBuf,
        /// A file in it.
        found: String,
    },
    /// Facts that are needed may be gone.
    #[error(
        "the log cannot be cut at LSN {through}: it was compacted for the state at {oldest}, so cut it there or later"
    )]
    TooEarly {
        /// Where it should be cut.
        through: Lsn,
        /// The oldest position where it can be.
        oldest: Lsn,
    },
    /// The log ends before.
    #[error("the log cannot be cut at LSN {through}: it ends with entry {last}")]
    TooLate {
        /// Where it should be cut.
        through: Lsn,
        /// The last entry.
        last: LogIndex,
    },
    /// It was told to stop.
    #[error("the copying was stopped")]
    Stopped,
    /// The log to be copied is not as it should be.
    #[error(transparent)]
    Source(#[from] OpenError),
    /// A file cannot be read or written.
    #[error(transparent)]
    File(#[from] SegmentFileError),
}

/// The first write or sync that failed. The log takes nothing more until the process is started again.
#[derive(Debug, thiserror::Error)]
#[error("the log stopped: cannot {action} {} at offset {offset}: {reason}", file.display())]
pub struct Failure {
    /// What was tried.
    pub action: &'static str,
    /// On which file.
    pub file: PathBuf,
    /// Where in it.
    pub offset: u64,
    /// What the operating system said.
    pub reason: String,
}

/// Why an entry was not appended, or not known to be.
#[derive(Clone, Debug, thiserror::Error)]
pub enum LogError {
    /// The disk failed. Whether the entry is in the log is unknown until the server is started again.
    #[error("{0}")]
    Failed(Arc<Failure>),
    /// The log was closed first. The entry is not in it.
    #[error("the log is closed")]
    Closed,
    /// The entry was refused and is not in the log.
    #[error("an entry of {bytes} bytes is over the limit of {bytes_max}: put fewer or smaller facts into it")]
    TooLarge {
        /// Its length.
        bytes: u64,
        /// The longest that is taken.
        bytes_max: u64,
    },
    /// There is no room for the entry now; nothing was written. It comes back by itself when there is space again.
    #[error("no space for {wanted_bytes} bytes in the log: {reason}")]
    NoSpace {
        /// How long the entry is.
        wanted_bytes: u64,
        /// Why the next segment could not be prepared.
        reason: String,
    },
}

/// Why something could not be read.
#[derive(Debug, thiserror::Error)]
pub enum ReadError {
    /// There is no such fact among those that are durable.
    #[error("the log has no fact at {0}")]
    NotFound(Lsn),
    /// The bytes are not those that were written.
    #[error("{0}. Run `fencepost verify` on the directory to see the extent, and restore it from a copy")]
    Corrupt(Damage),
    /// The disk refused.
    #[error("cannot read {} near {index}: {source}", file.display())]
    Io {
        /// The file.
        file: PathBuf,
        /// The entry that was wanted.
        index: LogIndex,
        /// What the operating system said.
        source: io::Error,
    },
}
