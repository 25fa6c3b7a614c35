//! Resumable ingest of a file: each line becomes a JSON object in another file, and after any crash the next worker goes on
//! without losing or doubling one. docs/cookbook/file-ingest.md explains it.
//!
//! `cargo run --example file_ingest` kills its own worker at the worst moments and counts what came out.
//! `cargo run --example file_ingest -- worker --help` tells how to start the worker alone.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "an example reads and writes files of its own")]

mod support;

use std::collections::BTreeSet;
use std::fs::{File, OpenOptions};
use std::io::{BufRead as _, BufReader, Read as _, Seek as _, SeekFrom, Write as _};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use fencepost_client::{Checkpoint, Client, Error, Resume, Takeover, Worker};
use serde::{Deserialize, Serialize};
use support::{Process, Result, Store, ensure, fault};

/// Lines between two commits.
const BATCH_LINES: usize = 500;
/// How much of the start of a file tells it from others, as far as it was read.
const FINGERPRINT_BYTES: u64 = 1024;

#[derive(Parser)]
struct Cli {
    /// A server to use instead of one of the example's own.
    #[arg(long, env = "FENCEPOST_ENDPOINT")]
    endpoint: Option<String>,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// Ingest a file, from where the last worker came to.
    Worker(Ingest),
}

#[derive(Args)]
struct Ingest {
    #[arg(long)]
    endpoint: String,
    #[arg(long)]
    pipeline: String,
    /// The file to read. Its name is the branch.
    #[arg(long)]
    input: PathBuf,
    /// The file to write.
    #[arg(long)]
    output: PathBuf,
    /// For the very first run: without it, lost progress is an error and not a fresh start.
    #[arg(long)]
    start_fresh: bool,
}

/// What is saved beside the position, which is a byte offset in the input.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Progress {
    /// Length of the output that belongs to the position.
    output_bytes: u64,
    /// Of the input's first bytes: which file the position is a position in.
    fingerprint: u32,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    support::exit(match cli.role {
        Some(Role::Worker(ingest)) => ingest.run().await,
        None => demonstrate(cli.endpoint).await,
    })
}

impl Ingest {
    async fn run(&self) -> Result {
        // First of all, so that two workers on one machine cannot write to the file, whatever they believe.
        let mut output = Output::lock(&self.output)?;
        let client = Client::connect(&self.endpoint).await?;
        let name = self.input.file_name().and_then(|name| name.to_str()).ok_or("--input: expected a file")?;
        // A worker that was killed cannot have given the branch back; one of the same name need not wait for its TTL.
        let resume = Resume::new("ingest").takeover(Takeover::SameHolder);
        let resume = if self.start_fresh { resume.start_fresh() } else { resume };
        let worker = client.pipeline(&self.pipeline).branch(name).resume(resume).await?;

        let (mut input, progress) = match worker.head() {
            Some(head) => {
                let progress: Progress = serde_json::from_slice(head.state())?;
                (Input::at(&self.input, head.position_str().parse()?, progress.fingerprint)?, progress)
            }
            None => (Input::at_the_first_row(&self.input)?, Progress::default()),
        };
        let cut = output.cut_to(progress.output_bytes)?;
        println!("worker {}: starts at byte {}, cuts {cut} bytes off the output", worker.token(), input.offset);

        // Dropped half-way if the lease is lost.
        let work = convert_all(&worker, &mut input, &mut output, progress);
        worker.run(work).await.map_err(Error::from)??;
        Ok(worker.release().await?)
    }
}

/// Batch after batch: write, sync, commit.
async fn convert_all(worker: &Worker, input: &mut Input, output: &mut Output, mut progress: Progress) -> Result {
    loop {
        let lines = input.next_batch()?;
        if lines.is_empty() {
            return Ok(());
        }
        let (batch, count) = (worker.sequence() + 1, lines.len() as u64);
        let (first, second) = lines.split_at(lines.len() / 2);
        output.append(first)?;
        fault("half-written", batch);
        output.append(second)?;
        // On the disk before the commit says so.
        progress.output_bytes = output.sync()?;
        progress.fingerprint = input.fingerprint()?;
        fault("written", batch);
        let checkpoint = Checkpoint::at(input.offset.to_string()).state(serde_json::to_vec(&progress)?);
        worker.commit(checkpoint.rows_in(count).rows_out(count)).await?;
        fault("committed", batch);
    }
}

/// The file that is read, at a place.
struct Input {
    path: PathBuf,
    lines: BufReader<File>,
    /// Where the next line begins.
    offset: u64,
}

impl Input {
    fn at_the_first_row(path: &Path) -> Result<Input> {
        let mut lines = BufReader::new(File::open(path)?);
        let offset = lines.read_line(&mut String::new())? as u64;
        Ok(Input { path: path.to_owned(), lines, offset })
    }

    /// Fails if the place is one in another file: truncated, replaced or rotated since.
    fn at(path: &Path, offset: u64, fingerprint: u32) -> Result<Input> {
        let mut input = Input { path: path.to_owned(), lines: BufReader::new(File::open(path)?), offset };
        let bytes = input.lines.get_ref().metadata()?.len();
        if bytes < offset || input.fingerprint()? != fingerprint {
            let shown = path.display();
            return Err(format!("{shown} is not the file of which {offset} bytes were read: bring that back, or give this one another name").into());
        }
        input.lines.seek(SeekFrom::Start(offset))?;
        Ok(input)
    }

    /// The next complete lines, converted. One without its end may still be being written; it is left for later.
    fn next_batch(&mut self) -> Result<Vec<String>> {
        let mut converted = Vec::with_capacity(BATCH_LINES);
        while converted.len() < BATCH_LINES {
            let mut line = String::new();
            let bytes = self.lines.read_line(&mut line)? as u64;
            if !line.ends_with('\n') {
                break;
            }
            converted.push(convert(self.offset, &line)?);
            self.offset += bytes;
        }
        Ok(converted)
    }

    /// CRC-32 of the first bytes, of no more than were read: so it stays the same while the file grows.
    fn fingerprint(&self) -> Result<u32> {
        let mut start = Vec::new();
        File::open(&self.path)?.take(self.offset.min(FINGERPRINT_BYTES)).read_to_end(&mut start)?;
        Ok(crc32fast::hash(&start))
    }
}

/// The file that is written.
struct Output {
    path: PathBuf,
    file: File,
}

impl Output {
    fn lock(path: &Path) -> Result<Output> {
        let file = OpenOptions::new().create(true).append(true).open(path)?;
        file.try_lock().map_err(|cause| format!("{}: another worker writes here ({cause}); end it", path.display()))?;
        // A new file is safe from a power cut only when its directory is on the disk too.
        if let Some(directory) = path.canonicalize()?.parent() {
            File::open(directory)?.sync_all()?;
        }
        Ok(Output { path: path.to_owned(), file })
    }

    /// Takes off what was written after the last commit, and returns how much that was.
    fn cut_to(&mut self, committed: u64) -> Result<u64> {
        let bytes = self.file.metadata()?.len();
        let too_short =
            format!("{} has {bytes} bytes, but {committed} were committed: bring it back", self.path.display());
        let cut = bytes.checked_sub(committed).ok_or(too_short)?;
        self.file.set_len(committed)?;
        Ok(cut)
    }

    fn append(&mut self, lines: &[String]) -> Result {
        Ok(self.file.write_all(lines.concat().as_bytes())?)
    }

    /// Returns the length, all of which is on the disk.
    fn sync(&mut self) -> Result<u64> {
        self.file.sync_data()?;
        Ok(self.file.metadata()?.len())
    }
}

/// The work itself: a row of flights as JSON. `at` tells every row from all others.
fn convert(at: u64, row: &str) -> Result<String> {
    let fields: Vec<&str> = row.trim_end().split(',').collect();
    let [_, _, _, _, _, _, _, _, delay, carrier, flight, _, from, to, ..] = fields[..] else {
        return Err(format!("byte {at}: found {} columns, expected at least 14", fields.len()).into());
    };
    let delay: Option<i32> = if delay == "NA" { None } else { Some(delay.parse()?) };
    let flight = format!("{carrier}{flight}");
    Ok(format!("{}\n", serde_json::json!({ "at": at, "flight": flight, "from": from, "to": to, "delay": delay })))
}

/// Lets a worker be killed at three bad moments, and counts.
async fn demonstrate(endpoint: Option<String>) -> Result {
    let store = Store::open(endpoint).await?;
    let input = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/flights-week1.csv");
    let output = store.scratch().join("flights.ndjson");
    let pipeline = store.free_name("examples/file-ingest");
    let mut arguments = vec!["worker".into(), "--endpoint".into(), store.endpoint().into()];
    arguments.extend(["--pipeline".into(), pipeline.into(), "--input".into(), input.clone().into()]);
    arguments.extend(["--output".into(), output.clone().into(), "--start-fresh".into()]);

    for (fault, moment) in [
        ("kill half-written 3", "half of batch 3 was written"),
        ("kill written 6", "batch 6 was written and not committed"),
        ("kill committed 9", "batch 9 was committed"),
    ] {
        support::killed(Process::start(&arguments, Some(fault))?.ended().await?)?;
        println!("killed with SIGKILL when {moment}");
        // Only the first run may begin from nothing.
        arguments.retain(|argument| argument != "--start-fresh");
    }
    support::succeeded(Process::start(&arguments, None)?.ended().await?)?;

    let whole = std::fs::read_to_string(&input)?;
    let rows = whole.split_inclusive('\n').scan(0, |end, row| {
        let at = *end;
        *end += row.len() as u64;
        Some((at, row))
    });
    let expected = rows.skip(1).map(|(at, row)| convert(at, row)).collect::<Result<Vec<_>>>()?;
    let written = std::fs::read_to_string(&output)?;
    let lines: Vec<&str> = written.split_inclusive('\n').collect();
    let distinct: BTreeSet<&str> = lines.iter().copied().collect();
    let lost = expected.iter().filter(|line| !distinct.contains(line.as_str())).count();
    let (read, doubled) = (expected.len(), lines.len() - distinct.len());
    println!("file_ingest: {read} rows read, {} written, {lost} lost, {doubled} doubled, 3 kills", lines.len());
    ensure(written == expected.concat(), "the output is not what an uninterrupted run writes")?;
    store.close().await
}
