//! What exports and imports share: whose turn it is, the file in the data directory, and how they fail.

use std::io;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use fencepost::Reason;
use tokio::sync::{OwnedSemaphorePermit, Semaphore};

use super::Backend;
use crate::error::Refusal;
use crate::ops::BadSnapshot;
use crate::ops::open::transfer_file;

/// How long a caller may take over a piece. Others wait for its turn to end.
pub(super) const PATIENCE: Duration = Duration::from_secs(60);

/// One export and one import at a time: each has a file as long as a pipeline, and a thread of those that reads need too.
pub(super) struct Turns {
    export: Arc<Semaphore>,
    import: Arc<Semaphore>,
}

impl Turns {
    pub(super) fn new() -> Turns {
        Turns { export: Arc::new(Semaphore::new(1)), import: Arc::new(Semaphore::new(1)) }
    }

    /// The right to export, until it is dropped.
    pub(super) fn export(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        turn(&self.export, "export")
    }

    /// The right to import, until it is dropped.
    pub(super) fn import(&self) -> Result<OwnedSemaphorePermit, Refusal> {
        turn(&self.import, "import")
    }
}

fn turn(turns: &Arc<Semaphore>, what: &str) -> Result<OwnedSemaphorePermit, Refusal> {
    let taken = |_| {
        let message = format!("the server is at another {what}, and there is one at a time: try again when it is done");
        Refusal::new(Reason::RateLimited, message).with("retry_after_ms", 1_000)
    };
    Arc::clone(turns).try_acquire_owned().map_err(taken)
}

/// What a caller is told who holds others up.
pub(super) fn too_slow(what: &str, patience: Duration) -> Refusal {
    let message = format!("{what} for {} s, and others wait for their turn: begin again", patience.as_secs());
    Refusal::new(Reason::RateLimited, message).with("retry_after_ms", 1_000)
}

/// A file in the data directory that goes with this.
pub(super) struct Scratch {
    pub(super) backend: Backend,
    pub(super) path: PathBuf,
}

impl Scratch {
    /// A name for a file.
    pub(super) fn new(backend: &Backend) -> Scratch {
        Scratch { backend: backend.clone(), path: transfer_file(&backend.config.data_dir) }
    }

    /// A file that is empty.
    pub(super) fn create(backend: &Backend) -> Result<Scratch, Refusal> {
        let scratch = Scratch::new(backend);
        backend.disk.create(&scratch.path).map_err(|source| scratch.failed("create", source))?;
        Ok(scratch)
    }

    pub(super) fn write(&self, piece: &[u8], at: u64) -> Result<(), Refusal> {
        let file = self.backend.disk.open_rw(&self.path);
        file.and_then(|file| file.write_at(piece, at)).map_err(|source| self.failed("write", source))
    }

    /// What a caller is told whose file cannot be kept here.
    pub(super) fn failed(&self, action: &'static str, source: io::Error) -> Refusal {
        refusal(&BadSnapshot::Io { action, path: self.path.clone(), source }, None)
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = self.backend.disk.remove(&self.path);
    }
}

/// What a caller is told who wants a copy in this directory of the server's, or a pipeline as a file.
pub(super) fn refusal(error: &BadSnapshot, dir: Option<&Path>) -> Refusal {
    let reason = match error {
        BadSnapshot::Damaged { .. } => Reason::IntegrityMismatch,
        error if error.is_full() => Reason::NoSpace,
        // Only the directory is the caller's choice.
        BadSnapshot::Io { path, .. } if !dir.is_some_and(|dir| path.starts_with(dir)) => Reason::Corrupt,
        BadSnapshot::Log(_) => Reason::Corrupt,
        BadSnapshot::Staged { .. } => Reason::StagedPending,
        BadSnapshot::Stopped => Reason::ShuttingDown,
        BadSnapshot::Newer { .. } | BadSnapshot::NotEmpty { .. } | BadSnapshot::Refused(_) | BadSnapshot::Io { .. } => {
            Reason::InvalidField
        }
    };
    let refusal = Refusal::new(reason, error.to_string());
    if let BadSnapshot::Newer { found, supported, .. } = error {
        let expected = format!("a file of a format up to {supported}");
        return refusal
            .with("field", "data")
            .with("value", found)
            .with("expected", expected)
            .with("newer_format", found);
    }
    if let BadSnapshot::Staged { pipeline, .. } = error {
        return refusal.with("pipeline", pipeline);
    }
    match reason {
        Reason::NoSpace | Reason::ShuttingDown => refusal.with("retry_after_ms", 1_000),
        Reason::InvalidField if dir.is_some() => {
            refusal.with("field", "directory").with("expected", "a place that can be used")
        }
        Reason::InvalidField => {
            refusal.with("field", "pipeline").with("expected", "a pipeline that a file has room for")
        }
        _ => refusal,
    }
}

/// What is wrong with a file that was sent. Its sender does not know it under the name that it has here.
pub(super) fn bad_file(error: BadSnapshot) -> Refusal {
    let file = PathBuf::from("the file that was sent");
    let error = match error {
        BadSnapshot::Damaged { what, .. } => BadSnapshot::Damaged { file, what },
        BadSnapshot::Newer { found, supported, .. } => BadSnapshot::Newer { file, found, supported },
        error => error,
    };
    refusal(&error, None)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_full_disk_is_no_damage_and_no_fault_of_the_caller() {
        let (dir, scratch) = (Path::new("/backup"), Path::new("/data/1.transfer"));
        let io = |path: &Path, kind: io::ErrorKind| BadSnapshot::Io {
            action: "write",
            path: path.to_owned(),
            source: kind.into(),
        };
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            for path in [&dir.join("log/1.seg"), scratch] {
                assert_eq!(refusal(&io(path, kind), Some(dir)).reason, Reason::NoSpace);
                assert_eq!(refusal(&io(path, kind), None).reason, Reason::NoSpace);
            }
        }
        let denied = io::ErrorKind::PermissionDenied;
        let refused = refusal(&io(&dir.join("log"), denied), Some(dir));
        assert_eq!((refused.reason, refused.detail("field")), (Reason::InvalidField, Some("directory")));
        for dir in [None, Some(dir)] {
            let refused = refusal(&io(scratch, denied), dir);
            assert_eq!((refused.reason, refused.detail("field")), (Reason::Corrupt, None));
        }
    }
}
