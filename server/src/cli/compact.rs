//! Making the log small, now.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use fencepost_client::Client;
use serde_json::json;

use super::error::CliError;
use super::exit;
use super::offline::{self, Segments};
use super::output::{Cell, Output, note};
use super::progress::watch;

/// Remove what no policy keeps from the log, now and at full speed.
///
/// The server does this by itself, slowly; nothing that can still be read is touched. If this command is interrupted
/// the server goes on. Exits with 65 if a segment is damaged, which is then left as it is.
#[derive(Args)]
pub(crate) struct Compact {
    /// Compact this data directory, which no server has open, instead of asking a server.
    #[arg(long, short, value_name = "DIR")]
    pub(super) data_dir: Option<PathBuf>,
    #[command(flatten)]
    pub(super) segments: Segments,
}

impl Compact {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<ExitCode, CliError> {
        let done = watch("compacting", client.compact().await?).await?;
        print(done.log_bytes_before, done.log_bytes_after, done.damaged, output)
    }
}

/// The same without a server.
pub(super) fn run_offline(data_dir: &Path, segments: &Segments, output: &Output) -> Result<ExitCode, CliError> {
    let done = offline::compact(data_dir, segments)?;
    print(done.bytes_before, done.bytes_after, done.damaged, output)
}

fn print(before: u64, after: u64, damaged: Vec<String>, output: &Output) -> Result<ExitCode, CliError> {
    output.record(vec![
        ("before_bytes", Cell::bytes(before)),
        ("after_bytes", Cell::bytes(after)),
        ("freed_bytes", Cell::bytes(before.saturating_sub(after))),
        ("damaged", Cell::count(damaged.len() as u64).with_value(json!(damaged))),
    ])?;
    if damaged.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    for damaged in damaged {
        note(format_args!("damaged, and left as it is: {damaged}"));
    }
    Ok(exit::exit(exit::INTEGRITY))
}
