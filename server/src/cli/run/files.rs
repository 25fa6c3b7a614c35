//! The files through which a program is handed its position and state and hands over the new ones.

use std::fs::File;
use std::io;
use std::path::{Path, PathBuf};
use std::time::SystemTime;

use super::super::error::CliError;

/// The two files; gone with the run.
pub(super) struct Files {
    dir: PathBuf,
    /// The position that the program starts from.
    given: Vec<u8>,
}

#[allow(clippy::disallowed_methods)] // The program's own scratch files, not the store's.
impl Files {
    pub(super) fn make(position: &[u8], state: &[u8]) -> Result<Files, CliError> {
        let dir = std::env::temp_dir().join(format!("fencepost-run-{}", fencepost_server::clock::random_id()));
        let files = Files { dir, given: position.to_vec() };
        std::fs::create_dir_all(&files.dir).map_err(|cause| files.failed("making", cause))?;
        files.write(position, state).map_err(|cause| files.failed("writing to", cause))?;
        Ok(files)
    }

    fn write(&self, position: &[u8], state: &[u8]) -> io::Result<()> {
        std::fs::write(self.state(), state)?;
        std::fs::write(self.position(), position)?;
        // So that it shows whether the program wrote there, even if it wrote what was there before.
        File::options().write(true).open(self.position())?.set_modified(SystemTime::UNIX_EPOCH)
    }

    pub(super) fn position(&self) -> PathBuf {
        self.dir.join("position")
    }

    pub(super) fn state(&self) -> PathBuf {
        self.dir.join("state")
    }

    /// What the program wrote as its position; `None` if it left the file alone, emptied or removed it.
    pub(super) fn read_position(&self) -> Result<Option<Vec<u8>>, CliError> {
        let position = self.read(&self.position())?;
        let is_untouched = position == self.given && self.has_its_time();
        Ok(Some(position).filter(|position| !is_untouched && !position.is_empty()))
    }

    pub(super) fn read_state(&self) -> Result<Vec<u8>, CliError> {
        self.read(&self.state())
    }

    fn has_its_time(&self) -> bool {
        let modified = std::fs::metadata(self.position()).and_then(|metadata| metadata.modified());
        modified.is_ok_and(|modified| modified == SystemTime::UNIX_EPOCH)
    }

    fn read(&self, file: &Path) -> Result<Vec<u8>, CliError> {
        match std::fs::read(file) {
            Err(cause) if cause.kind() == io::ErrorKind::NotFound => Ok(Vec::new()),
            read => read.map_err(|cause| self.failed("reading from", cause)),
        }
    }

    fn failed(&self, what: &str, cause: io::Error) -> CliError {
        CliError::io(format_args!("{what} {}", self.dir.display()), cause)
    }
}

impl Drop for Files {
    fn drop(&mut self) {
        // A directory that stays behind in the temporary directory does no harm.
        let _ = std::fs::remove_dir_all(&self.dir);
    }
}
