//! `fencepost verify`: looks at every byte of a data directory, a snapshot or an export, and changes none.

use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::Args;
use fencepost_server::disk::{Disk as _, RealDisk};
use fencepost_server::log::{OpenError, Tail, VerifyReport};
use fencepost_server::ops::check::{self, Checked, IndexFile, StateFile};
use fencepost_server::ops::transfer::Export;
use fencepost_server::ops::{BadSnapshot, MANIFEST, open, snapshot};
use fencepost_server::upkeep::Found;
use serde_json::{Value, json};

use super::error::CliError;
use super::exit;
use super::output::{Cell, Output, note, write};
use super::progress::bar;

/// Check every byte of a data directory, a snapshot or an export, without changing any.
///
/// Works on the directory of a running server and on a copy. Of a data directory: the CRC of every frame, that the
/// entries follow each other, that every fact decodes and none contradicts the facts before it, that every checkpoint that
/// is kept is there, that the hot state in its file is the one that the log gives, and that the index says the same as the
/// log. (The index is left out while a server has it open.) Of a snapshot also that its files are those of its manifest.
///
/// Exits with 65 if anything is damaged, and names the file, the offset, the entries, and the checkpoints that cannot be
/// read because of it.
#[derive(Args)]
pub(crate) struct Verify {
    /// A data directory, a snapshot, or the file of an export. Without it: the data directory of the next flag.
    path: Option<PathBuf>,
    /// The directory that `serve` was given.
    #[arg(long, short, env = "FENCEPOST_DATA_DIR", default_value = "fencepost-data", value_name = "DIR")]
    data_dir: PathBuf,
}

impl Verify {
    pub(super) fn run(self, output: &Output) -> Result<ExitCode, CliError> {
        let path = self.path.unwrap_or(self.data_dir);
        match RealDisk.list(&path) {
            Ok(names) if names.iter().any(|name| name == MANIFEST) => verify_snapshot(&path, output),
            Err(error) if error.kind() == std::io::ErrorKind::NotADirectory => verify_export(&path, output),
            _ => verify_data_dir(&path, output),
        }
    }
}

fn verify_data_dir(dir: &Path, output: &Output) -> Result<ExitCode, CliError> {
    open::check_store(&RealDisk, dir).map_err(|error| CliError::new(exit::INTEGRITY, error.to_string()))?;
    let bar = bar("checking", Some(bytes_in(&dir.join(snapshot::LOG_DIR))));
    let checked = check::check(&RealDisk, dir, &mut |bytes| bar.inc(bytes));
    let mut checked = checked.map_err(|error| match error {
        OpenError::NewerFormat { .. } => CliError::new(exit::CONFIG, error.to_string()),
        error => CliError::new(exit::NOT_FOUND, format!("{error}; is {} a data directory?", dir.display())),
    })?;
    bar.set_message("checking the index");
    let index = check::check_index(dir, &checked);
    bar.finish_and_clear();
    if let IndexFile::Damaged(damage) = &index {
        checked.damage.push(Found { damage: damage.clone(), checkpoints: Vec::new() });
    }
    let (state_words, index_words) = (state_words(&checked.state_file), index_words(&index));
    let tail = tail_words(&checked.log.tail);
    let log = &checked.log;
    if output.is_json() {
        let found = json!({
            "cluster_id": log.log_id.map(|id| id.to_string()), "generation": checked.state.generation(),
            "lsn": checked.last.to_string(), "tail": tail, "facts": log.facts(), "bytes": log.bytes(),
            "compacted_lsn": checked.judged_at.to_string(), "segments": segments_json(log), "state_file": state_words,
            "index": index_words, "damage": damage_json(&checked.damage),
        });
        write(&format!("{found:#}"))?;
    } else {
        print_segments(log, output)?;
        output.record(vec![
            ("cluster", log.log_id.map_or_else(|| Cell::none(false), |id| Cell::text(id.to_string()))),
            ("generation", Cell::count(checked.state.generation())),
            ("lsn", Cell::lsn(checked.last.as_u64())),
            ("facts", Cell::count(log.facts())),
            ("tail", Cell::text(tail)),
            ("state_file", Cell::text(state_words)),
            ("index", Cell::text(index_words)),
            ("damage", Cell::count(checked.damage.len() as u64)),
        ])?;
    }
    for file in &log.replaced {
        note(format_args!("left over by a compaction, and removed at the next start: {}", file.display()));
    }
    Ok(conclude(&checked, "restore the directory from a snapshot, and keep this one until that is done"))
}

/// Checks a snapshot and says what it is.
pub(super) fn verify_snapshot(dir: &Path, output: &Output) -> Result<ExitCode, CliError> {
    if let Err(cause) = RealDisk.list(dir) {
        let code = if cause.kind() == std::io::ErrorKind::NotFound { exit::NOT_FOUND } else { exit::UNAVAILABLE };
        return Err(CliError::new(code, format!("cannot read the snapshot {}: {cause}", dir.display())));
    }
    let bytes = bytes_in(dir) + 2 * bytes_in(&dir.join(snapshot::LOG_DIR));
    let bar = bar("checking", Some(bytes));
    let verified = snapshot::verify(&RealDisk, dir, &mut |bytes| bar.inc(bytes));
    bar.finish_and_clear();
    let snapshot::Verified { manifest, checked } = verified?;
    if output.is_json() {
        let found = json!({
            "directory": dir, "cluster_id": manifest.cluster_id, "generation": manifest.generation,
            "lsn": manifest.lsn().to_string(), "created": super::output::time(manifest.created_at_ms),
            "made_by": manifest.made_by, "files": manifest.files.len(), "bytes": manifest.bytes(),
            "facts": checked.log.facts(), "compacted_lsn": checked.judged_at.to_string(),
            "state_file": state_words(&checked.state_file), "segments": segments_json(&checked.log),
            "damage": damage_json(&checked.damage),
        });
        write(&format!("{found:#}"))?;
    } else {
        output.record(vec![
            ("directory", Cell::text(dir.display().to_string())),
            ("cluster", Cell::text(manifest.cluster_id.clone())),
            ("generation", Cell::count(manifest.generation)),
            ("lsn", Cell::lsn(manifest.lsn)),
            ("created", Cell::time(manifest.created_at_ms)),
            ("made_by", Cell::text(manifest.made_by.clone())),
            ("files", Cell::count(manifest.files.len() as u64)),
            ("size_bytes", Cell::bytes(manifest.bytes())),
            ("facts", Cell::count(checked.log.facts())),
            ("state_file", Cell::text(state_words(&checked.state_file))),
            ("damage", Cell::count(checked.damage.len() as u64)),
        ])?;
    }
    Ok(conclude(&checked, "do not restore from this snapshot; make another one while the store is still there"))
}

fn verify_export(file: &Path, output: &Output) -> Result<ExitCode, CliError> {
    let export = Export::open(&RealDisk, file)?;
    let (contents, started) = (export.contents, export.started);
    output.record(vec![
        ("file", Cell::text(file.display().to_string())),
        ("pipeline", Cell::text(contents.pipeline)),
        ("branches", Cell::count(contents.branches)),
        ("checkpoints", Cell::count(contents.checkpoints)),
        ("savepoints", Cell::count(contents.savepoints)),
        ("source_cluster", Cell::text(started.source_cluster_id)),
        ("source_lsn", Cell::lsn(started.source_lsn)),
    ])?;
    Ok(ExitCode::SUCCESS)
}

/// Names the damage, if there is any, and the exit code that goes with it.
fn conclude(checked: &Checked, advice: &str) -> ExitCode {
    if checked.damage.is_empty() {
        return ExitCode::SUCCESS;
    }
    for found in &checked.damage {
        note(damage_words(found));
    }
    note(format_args!("nothing was changed; {advice}"));
    exit::exit(exit::INTEGRITY)
}

fn damage_words(found: &Found) -> String {
    let Found { damage, checkpoints, .. } = found;
    let entries = damage
        .indexes
        .as_ref()
        .map_or_else(String::new, |indexes| format!(" (entries {} to {})", indexes.start(), indexes.end()));
    let names: Vec<String> = checkpoints.iter().map(ToString::to_string).collect();
    let lost = if names.is_empty() { String::new() } else { format!("; cannot be read: {}", names.join(", ")) };
    format!("damaged: {damage}{entries}{lost}")
}

fn damage_json(damage: &[Found]) -> Vec<Value> {
    let of = |Found { damage, checkpoints, .. }: &Found| {
        let indexes = damage.indexes.as_ref().map(|indexes| [*indexes.start(), *indexes.end()]);
        let checkpoints: Vec<String> = checkpoints.iter().map(ToString::to_string).collect();
        json!({
            "file": damage.file, "offset": damage.offset, "what": damage.what, "indexes": indexes,
            "checkpoints": checkpoints,
        })
    };
    damage.iter().map(of).collect()
}

fn segments_json(log: &VerifyReport) -> Vec<Value> {
    let segments = log.segments.iter().map(|segment| {
        json!({
            "file": segment.file, "number": segment.number, "last_number": segment.last_number,
            "sealed": segment.sealed, "first_index": segment.first_index.0,
            "last_index": segment.last_index.map(|index| index.0), "entries": segment.entries,
            "facts": segment.facts, "file_bytes": segment.file_bytes,
            "compacted_lsn": (segment.judged_at > fencepost::Lsn::ZERO).then(|| segment.judged_at.to_string()),
        })
    });
    segments.collect()
}

fn print_segments(log: &VerifyReport, output: &Output) -> Result<(), CliError> {
    let rows = log.segments.iter().map(|segment| {
        let state = match (segment.judged_at > fencepost::Lsn::ZERO, segment.sealed) {
            (true, _) => "compacted",
            (false, true) => "sealed",
            (false, false) => "open",
        };
        vec![
            Cell::text(segment.file.file_name().unwrap_or_default().to_string_lossy()),
            Cell::count(segment.first_index.0),
            Cell::optional(segment.last_index.map(|index| index.0)),
            Cell::count(segment.entries),
            Cell::count(segment.facts),
            Cell::bytes(segment.file_bytes),
            Cell::text(state),
        ]
    });
    let columns = ["file", "first_index", "last_index", "entries", "facts", "file_bytes", "state"];
    output.rows(&columns, rows.collect(), "the log has no segments")
}

fn tail_words(tail: &Tail) -> String {
    match tail {
        Tail::Clean => "clean".to_owned(),
        Tail::Torn(how) => format!("torn: {how}; the next start cuts that off and loses nothing acknowledged"),
        Tail::Corrupt => "corrupt".to_owned(),
    }
}

fn state_words(file: &StateFile) -> String {
    match file {
        StateFile::Absent => "none: a start reads the whole log".to_owned(),
        StateFile::Good(lsn) => format!("as the log gives it at {lsn}"),
        StateFile::NotCompared(why) => format!("not compared with the log: {why}"),
        StateFile::Damaged => "damaged: the next start makes it again from the log".to_owned(),
    }
}

fn index_words(index: &IndexFile) -> String {
    match index {
        IndexFile::Absent => "none: a server makes it from the log".to_owned(),
        IndexFile::Good(lsn) => format!("as the log says, up to {lsn}"),
        IndexFile::NotChecked(why) => format!("not checked: {why}"),
        IndexFile::Damaged(_) => "damaged: the next start makes it again from the log".to_owned(),
    }
}

/// Length of the files in a directory, as far as that can be seen: for a bar.
fn bytes_in(dir: &Path) -> u64 {
    let names = RealDisk.list(dir).unwrap_or_default().into_iter();
    let size = |name: String| RealDisk.open(&dir.join(name)).and_then(|file| file.size_bytes());
    names.filter_map(|name| size(name).ok()).sum()
}

impl From<BadSnapshot> for CliError {
    fn from(error: BadSnapshot) -> CliError {
        let code = match &error {
            BadSnapshot::Damaged { .. } | BadSnapshot::Log(_) => exit::INTEGRITY,
            BadSnapshot::Newer { .. } => exit::CONFIG,
            BadSnapshot::Io { .. } => exit::UNAVAILABLE,
            BadSnapshot::NotEmpty { .. }
            | BadSnapshot::Refused(_)
            | BadSnapshot::Staged { .. }
            | BadSnapshot::Stopped => exit::REFUSED,
        };
        CliError::new(code, error.to_string())
    }
}
