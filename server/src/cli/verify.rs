//! `fencepost verify`: looks at every byte of a data directory and changes none.

use std::io::IsTerminal as _;
use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use fencepost::Lsn;
use fencepost::log::v1::Fact;
use fencepost_server::disk::RealDisk;
use fencepost_server::log::{self, Damage, Inspector, SegmentReport, Tail, VerifyReport};
use fencepost_server::state::State;
use indicatif::ProgressBar;
use prost::Message as _;
use serde_json::json;

use super::error::CliError;
use super::exit;
use super::output::{Cell, Output, note, write};

/// Check every byte of a data directory, without changing any.
///
/// Works on the directory of a running server and on a copy. Checks the CRC of every frame, that the entries follow each
/// other, that every fact decodes, and that no fact contradicts the facts before it. Exits with 65 if anything is
/// damaged, and names the file, the offset and the entries.
#[derive(Args)]
pub(crate) struct Verify {
    /// The directory that `serve` was given.
    #[arg(long, short, env = "FENCEPOST_DATA_DIR", default_value = "fencepost-data", value_name = "DIR")]
    data_dir: PathBuf,
}

impl Verify {
    pub(super) fn run(self, output: &Output) -> Result<ExitCode, CliError> {
        let dir = self.data_dir.join("log");
        let bar = if std::io::stderr().is_terminal() { ProgressBar::new_spinner() } else { ProgressBar::hidden() };
        let mut replay = Replay { state: State::default(), last: Lsn::ZERO, is_sound: true, facts: 0, bar };
        let report = log::verify(&RealDisk, &dir, &mut replay).map_err(|error| {
            CliError::new(exit::NOT_FOUND, format!("{error}; is {} a data directory?", self.data_dir.display()))
        })?;
        replay.bar.finish_and_clear();
        print(&report, output)?;
        for file in &report.replaced {
            note(format_args!("left over by a compaction, and removed at the next start: {}", file.display()));
        }
        if report.damage.is_empty() {
            return Ok(ExitCode::SUCCESS);
        }
        for damage in &report.damage {
            note(format_args!("damaged: {damage}{}", extent(damage)));
        }
        note("nothing was changed; restore the directory from a copy, and keep this one until that is done");
        Ok(exit::exit(exit::INTEGRITY))
    }
}

/// Takes every fact into a state, as a server does at start-up.
struct Replay {
    state: State,
    last: Lsn,
    /// Behind damage facts are missing, so that those that follow fit no state.
    is_sound: bool,
    facts: u64,
    bar: ProgressBar,
}

impl Inspector for Replay {
    fn segment(&mut self, segment: &SegmentReport) {
        self.bar.println(format!("{}: {} facts", segment.file.display(), segment.facts));
    }

    fn fact(&mut self, lsn: Lsn, payload: &[u8]) -> Result<(), String> {
        self.facts += 1;
        if self.facts.is_multiple_of(10_000) {
            self.bar.set_message(format!("{} facts", self.facts));
            self.bar.tick();
        }
        let fact = Fact::decode(payload).map_err(|error| format!("the fact at LSN {lsn} does not decode: {error}"))?;
        self.is_sound &= lsn.index() <= self.last.index().next();
        self.last = lsn;
        if !self.is_sound {
            return Ok(());
        }
        self.state.apply(lsn, &fact).map_err(|inconsistent| {
            self.is_sound = false;
            inconsistent.to_string()
        })
    }
}

fn print(report: &VerifyReport, output: &Output) -> Result<(), CliError> {
    let tail = match &report.tail {
        Tail::Clean => "clean".to_owned(),
        Tail::Torn(how) => format!("torn: {how}; the next start cuts that off and loses nothing acknowledged"),
        Tail::Corrupt => "corrupt".to_owned(),
    };
    if output.is_json() {
        let segments = report.segments.iter().map(|segment| {
            json!({
                "file": segment.file, "number": segment.number, "sealed": segment.sealed,
                "first_index": segment.first_index.0, "last_index": segment.last_index.map(|index| index.0),
                "entries": segment.entries, "facts": segment.facts, "file_bytes": segment.file_bytes,
            })
        });
        let damage = report.damage.iter().map(|damage| {
            let indexes = damage.indexes.as_ref().map(|indexes| [*indexes.start(), *indexes.end()]);
            json!({ "file": damage.file, "offset": damage.offset, "what": damage.what, "indexes": indexes })
        });
        let found = json!({
            "cluster_id": report.log_id.map(|id| id.to_string()), "tail": tail, "facts": report.facts(),
            "bytes": report.bytes(), "segments": segments.collect::<Vec<_>>(), "damage": damage.collect::<Vec<_>>(),
        });
        return write(&format!("{found:#}"));
    }
    let rows = report.segments.iter().map(|segment| {
        vec![
            Cell::text(segment.file.file_name().unwrap_or_default().to_string_lossy()),
            Cell::count(segment.first_index.0),
            Cell::optional(segment.last_index.map(|index| index.0)),
            Cell::count(segment.entries),
            Cell::count(segment.facts),
            Cell::bytes(segment.file_bytes),
            Cell::text(if segment.sealed { "sealed" } else { "open" }),
        ]
    });
    let columns = ["file", "first_index", "last_index", "entries", "facts", "file_bytes", "state"];
    output.rows(&columns, rows.collect(), "the log has no segments")?;
    output.record(vec![
        ("cluster", report.log_id.map_or_else(|| Cell::none(false), |id| Cell::text(id.to_string()))),
        ("facts", Cell::count(report.facts())),
        ("tail", Cell::text(tail)),
        ("damage", Cell::count(report.damage.len() as u64)),
    ])
}

fn extent(damage: &Damage) -> String {
    let Some(indexes) = &damage.indexes else { return String::new() };
    format!(" (entries {} to {})", indexes.start(), indexes.end())
}
