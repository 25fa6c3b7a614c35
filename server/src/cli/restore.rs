//! A store from a snapshot.

use std::ops::ControlFlow;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use clap::Args;
use fencepost::Lsn;
use fencepost_server::clock::Clock;
use fencepost_server::disk::{Disk, RealDisk};
use fencepost_server::log::LogConfig;
use fencepost_server::ops::Manifest;
use fencepost_server::ops::restore::{self, Through};

use super::actor::Actor;
use super::error::CliError;
use super::exit;
use super::offline::Segments;
use super::output::{Cell, Output, note, time};
use super::progress::bar;

/// Make a data directory from a snapshot.
///
/// The directory must be empty or not exist; the snapshot is checked first, and is not changed. What is made is the same
/// cluster in a new generation: whatever was acknowledged after the last fact that is kept is not in it; every token of an
/// earlier generation is refused, so workers must resume; clients that have seen more say STORE_ROLLED_BACK.
///
/// The generation is that of the snapshot plus one. If the cluster was restored since the snapshot was made, name one
/// above its present generation with --generation: two histories must never have the same. `fencepost status` tells it.
#[derive(Args)]
pub(crate) struct Restore {
    /// The directory that `snapshot create` made, or a copy of it.
    snapshot: PathBuf,
    /// The data directory to make.
    #[arg(long, short, env = "FENCEPOST_DATA_DIR", value_name = "DIR")]
    data_dir: PathBuf,
    #[command(flatten)]
    target: Target,
    /// The generation to start. [default: that of the snapshot plus one]
    #[arg(long, value_name = "N")]
    generation: Option<u64>,
    /// Why, for the log.
    #[arg(long, short, default_value = "", hide_default_value = true)]
    reason: String,
    #[command(flatten)]
    actor: Actor,
    #[command(flatten)]
    segments: Segments,
}

#[derive(Args)]
#[group(multiple = false)]
struct Target {
    /// Keep the facts up to and including this one. [default: all]
    #[arg(long, value_name = "LSN")]
    to_lsn: Option<Lsn>,
    /// Keep the facts before the first one after this time, such as 2026-11-21T08:30:00Z.
    #[arg(long, value_name = "TIME", value_parser = milliseconds)]
    to_time: Option<u64>,
}

impl Restore {
    pub(super) fn run(self, output: &Output) -> Result<ExitCode, CliError> {
        let disk: Arc<dyn Disk> = Arc::new(RealDisk);
        if let Err(cause) = RealDisk.list(&self.snapshot) {
            let code = if cause.kind() == std::io::ErrorKind::NotFound { exit::NOT_FOUND } else { exit::UNAVAILABLE };
            return Err(CliError::new(code, format!("cannot read the snapshot {}: {cause}", self.snapshot.display())));
        }
        let manifest = Manifest::read(&*disk, &self.snapshot)?;
        let through = match (self.target.to_lsn, self.target.to_time) {
            (Some(lsn), _) => Through::Lsn(lsn),
            (None, Some(time_ms)) => Through::TimeMs(time_ms),
            (None, None) => Through::End,
        };
        let wanted = restore::Restore {
            snapshot: self.snapshot,
            data_dir: self.data_dir,
            through,
            generation: self.generation,
            actor: self.actor.name(),
            reason: self.reason,
        };
        let bar = bar("restoring", Some(2 * manifest.bytes()));
        let mut pace = |bytes| {
            bar.inc(bytes);
            ControlFlow::Continue(())
        };
        let config = LogConfig::for_upkeep(self.segments.bytes());
        let restored = restore::restore(&disk, &wanted, config, &Clock::real(), &mut pace);
        bar.finish_and_clear();
        let restored = restored?;
        let (generation, before) = (restored.generation, restored.manifest.generation);
        output.record(vec![
            ("data_dir", Cell::text(wanted.data_dir.display().to_string())),
            ("cluster", Cell::text(restored.manifest.cluster_id)),
            ("kept_lsn", Cell::lsn(restored.kept.as_u64())),
            ("generation", Cell::count(generation)),
            ("snapshot_lsn", Cell::lsn(restored.manifest.lsn)),
            ("snapshot_created", Cell::time(restored.manifest.created_at_ms)),
        ])?;
        if output.is_json() {
            return Ok(ExitCode::SUCCESS);
        }
        note(format_args!(
            "What was acknowledged after {} is not in it. Workers of generation {before} and before are refused and must \
             resume.\nThe snapshot is of {}. If the cluster was restored since then and was at generation {generation} or \
             above, remove the directory and restore again with a --generation above that.",
            restored.kept,
            time(restored.manifest.created_at_ms),
        ));
        Ok(ExitCode::SUCCESS)
    }
}

/// A time as RFC 3339, in milliseconds since 1970.
fn milliseconds(text: &str) -> Result<u64, String> {
    let expected = "expected a time with its zone, such as 2026-11-21T08:30:00Z";
    let time: jiff::Timestamp = text.parse().map_err(|error| format!("{error}; {expected}"))?;
    u64::try_from(time.as_millisecond()).map_err(|_| format!("it is before 1970; {expected}"))
}

#[cfg(test)]
mod tests {
    use super::milliseconds;

    #[test]
    fn a_time_has_a_zone_and_is_told_in_milliseconds() {
        assert_eq!(milliseconds("1970-01-01T00:00:01.5Z"), Ok(1_500));
        assert_eq!(milliseconds("1970-01-01T01:00:00+01:00"), Ok(0));
        for wrong in ["2026-11-21T08:30:00", "yesterday", "1969-12-31T23:59:59Z", ""] {
            assert!(milliseconds(wrong).unwrap_err().contains("2026-11-21T08:30:00Z"), "{wrong}");
        }
    }
}
