//! The logs that are compared. All work in the directory that they are given, with the settings that their authors
//! chose unless their module says otherwise.

mod fencepost_log;
mod okay_wal;
mod raft;
mod raw;

use std::path::Path;

use clap::ValueEnum;

/// A log that threads append to.
pub(crate) trait Subject: Sync {
    /// What one caller does again and again: append a payload of so many bytes and wait until it is durable. Made in the
    /// caller's thread; callers are numbered from zero.
    fn caller(&self, number: usize, bytes: usize) -> Box<dyn FnMut() + '_>;
}

/// Which log. In the order of their turns.
#[derive(Clone, Copy, Debug, PartialEq, Eq, ValueEnum)]
pub(crate) enum Kind {
    Raw,
    Fencepost,
    RaftEngine,
    Okaywal,
}

impl Kind {
    /// For the table's head.
    pub(crate) fn name(self) -> &'static str {
        match self {
            Kind::Raw => "raw loop",
            Kind::Fencepost => "Fencepost",
            Kind::RaftEngine => "raft-engine",
            Kind::Okaywal => "okaywal",
        }
    }

    /// A new log in an empty directory. Dropping it ends its threads.
    pub(crate) fn open(self, dir: &Path) -> Box<dyn Subject> {
        match self {
            Kind::Raw => Box::new(raw::Raw::open(dir)),
            Kind::Fencepost => Box::new(fencepost_log::FencepostLog::open(dir)),
            Kind::RaftEngine => Box::new(raft::RaftEngine::open(dir)),
            Kind::Okaywal => Box::new(okay_wal::OkayWal::open(dir)),
        }
    }
}

/// A payload of a caller. No byte is zero, and callers have different ones.
fn payload(number: usize, bytes: usize) -> Vec<u8> {
    vec![number as u8 | 1; bytes]
}
