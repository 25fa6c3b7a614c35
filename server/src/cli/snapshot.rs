//! Copies of the whole store.

use std::path::PathBuf;
use std::process::ExitCode;

use clap::{Args, Subcommand};
use fencepost_client::Client;

use super::error::CliError;
use super::exit;
use super::output::{Cell, Output};
use super::progress::watch;
use super::verify::verify_snapshot;

#[derive(Subcommand)]
pub(crate) enum SnapshotCommand {
    Create(Create),
    Verify(Verify),
}

/// Make a consistent copy of the store, while it runs.
///
/// The server writes the copy, so DIR is a directory on the machine that the server runs on, and the server's user must be
/// able to write there. On the same file system files are linked, not copied, and take no room of their own; such a
/// snapshot guards against mistakes, not against the loss of the disk, so carry it elsewhere.
#[derive(Args)]
pub(crate) struct Create {
    /// A directory on the server's machine that does not exist or is empty. A relative path is taken from here.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

/// Check every byte of a snapshot, without a server and without changing any.
///
/// Its manifest, the length and digest of each of its files, every CRC of its log, and that its facts follow from one
/// another. Exits with 65 if anything is damaged or missing. `fencepost restore` checks the manifest and the digests too.
#[derive(Args)]
pub(crate) struct Verify {
    /// The directory of the snapshot, on this machine.
    #[arg(value_name = "DIR")]
    directory: PathBuf,
}

impl Verify {
    pub(super) fn run(self, output: &Output) -> Result<ExitCode, CliError> {
        verify_snapshot(&self.directory, output)
    }
}

impl Create {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        let Create { directory } = self;
        let shown = directory.display();
        let absolute = std::path::absolute(&directory)
            .map_err(|cause| CliError::io(format_args!("finding the absolute path of {shown}"), cause))?;
        let Some(absolute) = absolute.to_str() else {
            let message = format!("DIR is {shown}, which is not UTF-8 and cannot be sent: choose another name");
            return Err(CliError::new(exit::USAGE, message));
        };
        let snapshot = watch("making a snapshot", client.create_snapshot(absolute).await?).await?;
        output.record(vec![
            ("directory", Cell::text(absolute)),
            ("lsn", Cell::lsn(snapshot.lsn)),
            ("files", Cell::count(snapshot.files)),
            ("size_bytes", Cell::bytes(snapshot.bytes)),
            ("copied_bytes", Cell::bytes(snapshot.bytes_copied)),
        ])
    }
}
