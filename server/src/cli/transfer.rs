//! One pipeline as a file: out of one store and into another.

use std::ffi::OsString;
use std::io;
use std::path::{Path, PathBuf};

use clap::Args;
use fencepost_client::Client;
use tokio::fs::{self, File};

use super::actor::Actor;
use super::error::CliError;
use super::exit;
use super::output::{Cell, Output};
use super::progress::bar;

/// Write a pipeline to a file: what it keeps of its branches, its savepoints and its policy.
///
/// The file is for `fencepost import`, into this store under another name or into another one. It appears under its name
/// once it is complete.
#[derive(Args)]
pub(crate) struct Export {
    /// NAMESPACE/NAME.
    pipeline: String,
    /// The file to make, on this machine; must not exist.
    file: PathBuf,
}

/// Take in a pipeline from a file that `export` made.
///
/// The pipeline must not exist, and nobody can use it before it is complete. An import that was interrupted is taken up
/// where it was when the same file is imported again.
#[derive(Args)]
pub(crate) struct Import {
    /// The file, on this machine.
    file: PathBuf,
    /// The name to give it, as NAMESPACE/NAME; without it, the one that it had.
    #[arg(long, short)]
    pipeline: Option<String>,
    /// Why, for the audit.
    #[arg(long, short, default_value = "", hide_default_value = true)]
    reason: String,
    #[command(flatten)]
    actor: Actor,
}

impl Export {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        let (file, partial) = (&self.file, partial(&self.file));
        if fs::try_exists(file).await.map_err(|cause| failed("looking for", file, cause))? {
            let message = format!("{} exists already: choose another name, or remove it", file.display());
            return Err(CliError::new(exit::REFUSED, message));
        }
        let written = write(client, &self.pipeline, &partial).await;
        if written.is_err() {
            // What is there is of no use, and the error is what counts.
            let _ = fs::remove_file(&partial).await;
        }
        let bytes = written?;
        fs::rename(&partial, file).await.map_err(|cause| failed("naming", file, cause))?;
        output.record(vec![
            ("pipeline", Cell::text(self.pipeline)),
            ("file", Cell::text(file.display().to_string())),
            ("size_bytes", Cell::bytes(bytes)),
        ])
    }
}

async fn write(client: &Client, pipeline: &str, partial: &Path) -> Result<u64, CliError> {
    let mut file = File::create(partial).await.map_err(|cause| failed("creating", partial, cause))?;
    let bar = bar("exporting", None);
    let bytes = client.export_pipeline(pipeline, bar.wrap_async_write(&mut file)).await?;
    bar.finish_and_clear();
    file.sync_all().await.map_err(|cause| failed("writing", partial, cause))?;
    Ok(bytes)
}

impl Import {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        let file = File::open(&self.file).await.map_err(|cause| failed("opening", &self.file, cause))?;
        let bytes = file.metadata().await.map_err(|cause| failed("reading", &self.file, cause))?.len();
        let bar = bar("importing", Some(bytes));
        let import = client.import_pipeline(bar.wrap_async_read(file)).pipeline(self.pipeline.unwrap_or_default());
        let sent = import.actor(self.actor.name()).reason(self.reason).send().await;
        bar.finish_and_clear();
        let imported = sent.map_err(CliError::of_change)?;
        output.record(vec![
            ("pipeline", Cell::text(imported.pipeline)),
            ("branches", Cell::count(imported.branches)),
            ("checkpoints", Cell::count(imported.checkpoints)),
            ("savepoints", Cell::count(imported.savepoints)),
        ])
    }
}

/// Where the file is written before it is complete.
fn partial(file: &Path) -> PathBuf {
    let mut name = OsString::from(file);
    name.push(".partial");
    PathBuf::from(name)
}

fn failed(what: &str, file: &Path, cause: io::Error) -> CliError {
    if cause.kind() == io::ErrorKind::NotFound {
        return CliError::new(exit::NOT_FOUND, format!("{what} {}: {cause}", file.display()));
    }
    CliError::io(format_args!("{what} {}", file.display()), cause)
}
