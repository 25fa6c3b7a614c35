//! The demonstration's own files: the work directory, the results, the input. Nothing here belongs to the store.
//!
//! Rows are appended to the results before the commit that counts them. So a worker that dies in between leaves rows that
//! no commit stands behind, and one that was replaced may go on appending for as long as it does not know. Each row bears
//! the sequence and the token it was written under: a reader keeps it if, and only if, the log has a commit with both.
#![allow(clippy::disallowed_methods, reason = "scratch files of a demonstration, not the store's")]

use std::fs::{self, File, OpenOptions};
use std::io::{self, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};

use fencepost_client::Token;

use super::flights::Flight;
use crate::cli::error::CliError;
use crate::cli::exit;

/// The first line of a file of results.
const TITLE: &str = "token,sequence,line,day,carrier,arr_delay\n";

/// A week of flights from New York's three airports, so that the demonstration needs no file.
const FLIGHTS: &[u8] = include_bytes!(concat!(env!("CARGO_MANIFEST_DIR"), "/../examples/data/flights-week1.csv"));

/// The directory in which everything is that the demonstration makes.
pub(super) struct WorkDir {
    path: PathBuf,
    /// Whether the user named it and wants to look at it afterwards.
    is_kept: bool,
}

impl WorkDir {
    /// Makes the directory: the given one, which must be empty or not there, or a new one among the temporary files.
    pub(super) fn make(keep: Option<&Path>) -> Result<WorkDir, CliError> {
        let path = keep.map_or_else(
            || std::env::temp_dir().join(format!("fencepost-demo-{}", fencepost_server::clock::random_id())),
            Path::to_owned,
        );
        if let Some(problem) = in_the_way(&path) {
            let shown = path.display();
            let message = format!("--keep {shown}: {problem}; expected an empty directory, or one that is not there");
            return Err(CliError::new(exit::CONFIG, message));
        }
        let made = fs::create_dir_all(&path).and_then(|()| path.canonicalize());
        let path = made.map_err(|cause| CliError::io(format_args!("making {}", path.display()), cause))?;
        Ok(WorkDir { path, is_kept: keep.is_some() })
    }

    pub(super) fn path(&self) -> &Path {
        &self.path
    }

    pub(super) fn is_kept(&self) -> bool {
        self.is_kept
    }

    /// The file to read: the given one, or a copy of the one inside this program.
    pub(super) fn input(&self, given: Option<&Path>) -> Result<PathBuf, CliError> {
        if let Some(given) = given {
            return given.canonicalize().map_err(|cause| CliError::io(format_args!("{}", given.display()), cause));
        }
        let path = self.path.join("flights.csv");
        fs::write(&path, FLIGHTS).map_err(|cause| CliError::io(format_args!("writing {}", path.display()), cause))?;
        Ok(path)
    }

    /// The server's data directory.
    pub(super) fn data(&self) -> PathBuf {
        self.path.join("data")
    }

    /// The rows that the workers of a branch append.
    pub(super) fn results(&self, origin: &str) -> PathBuf {
        self.path.join(format!("results-{origin}.csv"))
    }

    /// Where the process of that name writes about itself.
    pub(super) fn messages(&self, name: &str) -> Result<File, CliError> {
        let path = self.messages_path(name);
        let opened = OpenOptions::new().create(true).append(true).open(&path);
        opened.map_err(|cause| CliError::io(format_args!("opening {}", path.display()), cause))
    }

    /// The last thing that the process of that name wrote about itself.
    pub(super) fn last_message(&self, name: &str) -> Option<String> {
        let text = fs::read_to_string(self.messages_path(name)).ok()?;
        text.lines().rfind(|line| !line.is_empty()).map(str::to_owned)
    }

    fn messages_path(&self, name: &str) -> PathBuf {
        self.path.join(format!("{}.log", name.replace(' ', "-")))
    }

    /// Removes it, unless the user wants to keep it.
    pub(super) fn clean_up(&self) {
        if !self.is_kept {
            // What stays behind among the temporary files does no harm.
            let _ = fs::remove_dir_all(&self.path);
        }
    }
}

/// Why the directory cannot be used, if it cannot.
fn in_the_way(path: &Path) -> Option<String> {
    match fs::read_dir(path) {
        Ok(mut entries) => entries.next().map(|_| "the directory is not empty".to_owned()),
        Err(cause) if cause.kind() == io::ErrorKind::NotFound => None,
        Err(cause) => Some(cause.to_string()),
    }
}

/// Opens a file for reading that can be read from any place.
pub(super) fn open_regular(path: &Path) -> Result<File, CliError> {
    let failed = |cause| CliError::io(format_args!("{}", path.display()), cause);
    let file = File::open(path).map_err(failed)?;
    if !file.metadata().map_err(failed)?.is_file() {
        let message = format!("{}: expected a regular file, since workers start in the middle of it", path.display());
        return Err(CliError::new(exit::CONFIG, message));
    }
    Ok(file)
}

/// The results of one branch, open for appending.
pub(super) struct Results {
    path: PathBuf,
    file: File,
}

impl Results {
    /// Opens the file behind everything that is in it, also behind a line that a dying worker did not finish.
    pub(super) fn append_to(path: &Path) -> Result<Results, CliError> {
        let opened = OpenOptions::new().create(true).read(true).append(true).open(path);
        let file = opened.map_err(|cause| CliError::io(format_args!("opening {}", path.display()), cause))?;
        let mut results = Results { path: path.to_owned(), file };
        let opening = results.opening().map_err(|cause| results.failed(cause))?;
        results.write(opening)?;
        Ok(results)
    }

    /// Appends the rows and returns once they are on disk: a commit must not say more than the sink has.
    pub(super) fn append(&mut self, token: Token, sequence: u64, flights: &[Flight]) -> Result<(), CliError> {
        let rows = flights.iter().map(|flight| {
            let Flight { line, day, carrier, arrival_delay, .. } = flight;
            let delay = arrival_delay.map_or_else(|| "NA".to_owned(), |minutes| minutes.to_string());
            format!("{token},{sequence},{line},{day},{carrier},{delay}\n")
        });
        self.write(&rows.collect::<String>())?;
        self.file.sync_data().map_err(|cause| self.failed(cause))
    }

    /// What has to come before the next row.
    fn opening(&mut self) -> io::Result<&'static str> {
        if self.file.metadata()?.len() == 0 {
            return Ok(TITLE);
        }
        let mut last = [0];
        self.file.seek(SeekFrom::End(-1))?;
        self.file.read_exact(&mut last)?;
        Ok(if last == *b"\n" { "" } else { "\n" })
    }

    fn write(&mut self, text: &str) -> Result<(), CliError> {
        self.file.write_all(text.as_bytes()).map_err(|cause| self.failed(cause))
    }

    fn failed(&self, cause: io::Error) -> CliError {
        CliError::io(format_args!("appending to {}", self.path.display()), cause)
    }
}

/// A row of results as it was found.
pub(super) struct ResultRow {
    pub(super) token: Token,
    pub(super) sequence: u64,
    pub(super) line: u64,
    pub(super) day: String,
    pub(super) carrier: String,
    pub(super) arrival_delay: Option<i32>,
}

/// Reads a file of results: each line, and the row that it is. One that a dying worker did not finish is none.
pub(super) fn read_results(path: &Path) -> Result<Vec<(String, Option<ResultRow>)>, CliError> {
    let text = fs::read_to_string(path).map_err(|cause| CliError::io(format_args!("{}", path.display()), cause))?;
    let lines = text.lines().filter(|line| *line != TITLE.trim_end());
    Ok(lines.map(|line| (line.to_owned(), parse_result(line))).collect())
}

fn parse_result(line: &str) -> Option<ResultRow> {
    let fields: Vec<&str> = line.split(',').collect();
    let [token, sequence, line, day, carrier, delay] = fields[..] else { return None };
    Some(ResultRow {
        token: token.parse().ok()?,
        sequence: sequence.parse().ok()?,
        line: line.parse().ok()?,
        day: day.to_owned(),
        carrier: carrier.to_owned(),
        arrival_delay: if delay == "NA" { None } else { Some(delay.parse().ok()?) },
    })
}
