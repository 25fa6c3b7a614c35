//! What can go wrong, in words that say what to do.

use std::io;
use std::ops::RangeInclusive;
use std::path::PathBuf;
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
