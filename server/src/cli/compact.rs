//! Making the log small, now.

use std::process::ExitCode;

use fencepost_client::Client;
use serde_json::json;

use super::error::CliError;
use super::exit;
use super::output::{Cell, Output, note};
use super::progress::watch;

pub(super) async fn run(client: &Client, output: &Output) -> Result<ExitCode, CliError> {
    let compacted = watch("compacting", client.compact().await?).await?;
    let (before, after) = (compacted.log_bytes_before, compacted.log_bytes_after);
    output.record(vec![
        ("before_bytes", Cell::bytes(before)),
        ("after_bytes", Cell::bytes(after)),
        ("freed_bytes", Cell::bytes(before.saturating_sub(after))),
        ("damaged", Cell::count(compacted.damaged.len() as u64).with_value(json!(compacted.damaged))),
    ])?;
    if compacted.damaged.is_empty() {
        return Ok(ExitCode::SUCCESS);
    }
    for damaged in compacted.damaged {
        note(format_args!("damaged, and left as it is: {damaged}"));
    }
    Ok(exit::exit(exit::INTEGRITY))
}
