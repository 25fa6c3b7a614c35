//! Watching long work: a bar on a terminal, a line elsewhere.

use std::io::IsTerminal as _;

use fencepost_client::Work;
use indicatif::{ProgressBar, ProgressStyle};

use super::error::CliError;
use super::output::note;

/// A bar for so many bytes, or for nobody knows how many, on standard error.
pub(super) fn bar(what: &'static str, bytes_total: Option<u64>) -> ProgressBar {
    if !std::io::stderr().is_terminal() {
        note(what);
        return ProgressBar::hidden();
    }
    let template = match bytes_total {
        Some(_) => "{msg} {bar:40} {bytes} of {total_bytes}, {eta} to go",
        None => "{spinner} {msg} {bytes}",
    };
    let style = ProgressStyle::with_template(template).expect("the templates above are right");
    bytes_total.map_or_else(ProgressBar::new_spinner, ProgressBar::new).with_style(style).with_message(what)
}

/// How a bar looks that counts entries of the log.
pub(super) fn entries() -> ProgressStyle {
    ProgressStyle::with_template("{msg} {bar:40} entry {pos} of {len}").expect("the template above is right")
}

/// Waits for the end of work that the server does.
pub(super) async fn watch<T>(what: &'static str, mut work: Work<T>) -> Result<T, CliError> {
    let bar = bar(what, Some(0));
    while let Some(progress) = work.progress().await? {
        bar.set_length(progress.bytes_total);
        bar.set_position(progress.bytes_done);
    }
    bar.finish_and_clear();
    Ok(work.result().await?)
}
