//! Commands that work on a data directory while no server does.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Subcommand};
use fencepost_server::clock::Clock;
use fencepost_server::config::Config;
use fencepost_server::log::ReadError;
use fencepost_server::ops::offline::{Offline, OfflineError};
use fencepost_server::upkeep::{CompactionDone, Progress, ReplayError, Trouble};
use tokio::runtime::Runtime;

use super::error::{CliError, store_code};
use super::exit;
use super::output::{Cell, Output};
use super::progress::bar;

#[derive(Subcommand)]
pub(crate) enum IndexCommand {
    Rebuild(Rebuild),
}

/// Delete the index of old checkpoints and make it again from the log, while no server runs.
///
/// A server does the same by itself, in the background, whenever it finds the index missing or damaged; until it is done
/// old checkpoints and the audit are refused with INDEX_REBUILDING. This does it beforehand, and shows how far it is.
#[derive(Args)]
pub(crate) struct Rebuild {
    /// The directory that `serve` was given.
    #[arg(long, short, env = "FENCEPOST_DATA_DIR", default_value = "fencepost-data", value_name = "DIR")]
    data_dir: PathBuf,
    #[command(flatten)]
    segments: Segments,
}

/// The one setting of the server that matters to who opens its log.
#[derive(Args)]
pub(super) struct Segments {
    /// Size of a new segment file of the log, as for `serve`. [default: 67108864]
    #[arg(long, env = "FENCEPOST_SEGMENT_BYTES", value_name = "BYTES")]
    segment_bytes: Option<u64>,
}

impl Segments {
    pub(super) fn bytes(&self) -> u64 {
        self.segment_bytes.unwrap_or_else(|| Config::default().segment_bytes)
    }
}

impl IndexCommand {
    pub(super) fn run(self, output: &Output) -> Result<ExitCode, CliError> {
        let IndexCommand::Rebuild(Rebuild { data_dir, segments }) = self;
        let clock = Clock::real();
        let offline = Offline::open(&data_dir, segments.bytes(), &clock)?;
        let runtime = runtime()?;
        let _inside = runtime.enter();
        let bar = bar("making the index", Some(offline.sealed_through().0));
        bar.set_style(super::progress::entries());
        let done = offline.rebuild_index(&clock, &mut |index| bar.set_position(index.0));
        bar.finish_and_clear();
        let (through, entries) = done?;
        output.record(vec![("through", Cell::lsn(through.as_u64())), ("entries", Cell::count(entries))])?;
        Ok(ExitCode::SUCCESS)
    }
}

/// Compacts a store that no server has open.
pub(super) fn compact(data_dir: &Path, segments: &Segments) -> Result<CompactionDone, CliError> {
    let clock = Clock::real();
    let offline = Offline::open(data_dir, segments.bytes(), &clock)?;
    let runtime = runtime()?;
    let _inside = runtime.enter();
    let bar = bar("compacting", Some(0));
    let shown = bar.clone();
    let done = offline.compact(&clock, move |progress| {
        if let Progress::Bytes { done, total } = progress {
            shown.set_length(total);
            shown.set_position(done);
        }
    });
    bar.finish_and_clear();
    Ok(done?)
}

/// Upkeep starts what it does beside its work there.
fn runtime() -> Result<Runtime, CliError> {
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build();
    runtime.map_err(|cause| CliError::io("starting the runtime", cause))
}

impl From<OfflineError> for CliError {
    fn from(error: OfflineError) -> CliError {
        let code = match &error {
            OfflineError::Store(error) => store_code(error),
            OfflineError::Trouble(Trouble::State(_)) => exit::INTEGRITY,
            OfflineError::Trouble(Trouble::Replay(ReplayError::Read(ReadError::Io { .. }))) => exit::UNAVAILABLE,
            OfflineError::Trouble(Trouble::Replay(_)) => exit::INTEGRITY,
            OfflineError::Index { .. } | OfflineError::Trouble(_) => exit::UNAVAILABLE,
        };
        CliError::new(code, error.to_string())
    }
}
