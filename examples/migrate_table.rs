//! Moves a hand-made checkpoint table, and the same in Redis, to Fencepost: every row becomes a branch, with its offset as
//! the first checkpoint. It can be killed and run again at any time; a row that differs from what was moved is reported and
//! changes nothing. docs/cookbook/migrate.md explains it and has the procedure.
//!
//! `cargo run --example migrate_table` moves the two dumps in examples/data, with a crash on the way, and counts.
//! `cargo run --example migrate_table -- migrate --help` and `verify --help` tell how to move tables of your own.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "an example reads and writes files of its own")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::ffi::OsString;
use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use fencepost_client::{Branch, Checkpoint, Client, Reason, Resume, StoredCheckpoint, Takeover};
use support::{Process, Result, Store, ensure, fault};

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
    /// Move all rows. Those that are there already are left as they are.
    Migrate(Tables),
    /// Compare all rows with the heads of their branches, before the first worker is started.
    Verify(Tables),
}

#[derive(Args)]
struct Tables {
    #[arg(long)]
    endpoint: String,
    /// The namespace of the new pipelines: job `orders` becomes pipeline `NAMESPACE/orders`.
    #[arg(long)]
    namespace: String,
    /// From `COPY (SELECT job, part, last_offset, updated_at FROM checkpoints) TO STDOUT (FORMAT csv, HEADER)`.
    #[arg(long)]
    postgres: PathBuf,
    /// From `redis-cli HGETALL KEY` for each key `ckpt:JOB`, after a line `# KEY`.
    #[arg(long)]
    redis: PathBuf,
}

/// Where a part of a job was, and which line of which file says so.
#[derive(Clone, Debug)]
struct Row {
    pipeline: String,
    branch: String,
    offset: String,
    source: String,
}

/// What became of a row.
enum Outcome {
    Migrated,
    AlreadyThere,
    Differs(String),
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    support::exit(match cli.role {
        Some(Role::Migrate(tables)) => tables.migrate().await,
        Some(Role::Verify(tables)) => tables.verify().await,
        None => demonstrate(cli.endpoint).await,
    })
}

impl Tables {
    /// All rows. Fails before anything is moved where two rows would become one branch.
    fn rows(&self) -> Result<Vec<Row>> {
        let mut rows = read(&self.postgres, &self.namespace, postgres_rows)?;
        rows.extend(read(&self.redis, &self.namespace, redis_rows)?);
        let mut places = BTreeMap::new();
        for row in &rows {
            if let Some(other) = places.insert((&row.pipeline, &row.branch), &row.source) {
                let Row { pipeline, branch, source, .. } = row;
                return Err(format!("{other} and {source} are both {pipeline}, branch '{branch}': keep one").into());
            }
        }
        Ok(rows)
    }

    async fn migrate(&self) -> Result {
        let client = Client::connect(&self.endpoint).await?;
        let rows = self.rows()?;
        let (mut migrated, mut there, mut differing) = (0, 0, 0);
        for (place, row) in rows.iter().enumerate() {
            match row.migrate(&client, place as u64 + 1).await? {
                Outcome::Migrated => migrated += 1,
                Outcome::AlreadyThere => there += 1,
                Outcome::Differs(how) => {
                    differing += 1;
                    println!("{}: {how}", row.source);
                }
            }
        }
        println!("migrate: {} rows: {migrated} migrated, {there} already there, {differing} differ", rows.len());
        ensure(differing == 0, "rows that differ were left alone: find out which is right")
    }

    async fn verify(&self) -> Result {
        let client = Client::connect(&self.endpoint).await?;
        let rows = self.rows()?;
        for row in &rows {
            let head = row.branch(&client).head().await?;
            let (stands, sequence) = (head.position_str(), head.sequence());
            let wrong =
                format!("{}: is at {}, but the branch at {stands}, sequence {sequence}", row.source, row.offset);
            ensure(sequence == 1 && stands == row.offset, wrong)?;
        }
        let pipelines: BTreeSet<&str> = rows.iter().map(|row| row.pipeline.as_str()).collect();
        let mut branches = 0;
        for pipeline in pipelines {
            branches += client.pipeline(pipeline).branches().all().await?.len();
        }
        println!("verify: {} rows, {branches} branches, every offset where it was", rows.len());
        ensure(branches == rows.len(), "there are branches that no row stands for")
    }
}

impl Row {
    fn branch(&self, client: &Client) -> Branch {
        client.pipeline(&self.pipeline).branch(&self.branch)
    }

    async fn migrate(&self, client: &Client, number: u64) -> Result<Outcome> {
        let branch = self.branch(client);
        // Looked at first and without taking it: to resume a branch would fence a worker that has begun on it.
        match branch.checkpoint(1).await {
            Ok(first) => return Ok(self.compare(&first)),
            Err(error) if error.reason() == Some(Reason::Compacted) => {
                return Ok(Outcome::Differs("went on long ago: nothing is left to compare with".to_owned()));
            }
            Err(error) if error.reason() == Some(Reason::StateMissing) => {}
            Err(error) => return Err(error.into()),
        }
        // A migration that was killed here left its lease behind. One of the same name need not wait for it, and the first
        // worker not for long: the lease is for one commit.
        let resume = Resume::new("migration").takeover(Takeover::SameHolder).ttl(Duration::from_secs(1)).no_wait();
        let worker = branch.resume(resume.start_fresh().reason(format!("migrated from {}", self.source))).await?;
        if let Some(head) = worker.head() {
            return Ok(self.compare(&head));
        }
        fault("granted", number);
        worker.commit(Checkpoint::at(self.offset.clone())).await?;
        fault("committed", number);
        worker.release().await?;
        Ok(Outcome::Migrated)
    }

    fn compare(&self, first: &StoredCheckpoint) -> Outcome {
        let moved = first.position_str();
        if moved == self.offset {
            return Outcome::AlreadyThere;
        }
        Outcome::Differs(format!("is at {} in the table, but {moved} was migrated", self.offset))
    }
}

/// Reads a dump: each row as job, part, offset and the number of its line.
fn read(file: &Path, namespace: &str, rows: fn(&str) -> Result<Vec<[&str; 3]>>) -> Result<Vec<Row>> {
    let shown = file.display();
    let text = std::fs::read_to_string(file).map_err(|cause| format!("{shown}: {cause}"))?;
    let rows = rows(&text).map_err(|problem| format!("{shown}: {problem}"))?;
    let name = file.file_name().unwrap_or_default().to_string_lossy();
    let row = |[job, part, offset]: [&str; 3]| Row {
        pipeline: format!("{namespace}/{job}"),
        branch: part.to_owned(),
        offset: offset.to_owned(),
        source: format!("{name}, {job} {part}"),
    };
    Ok(rows.into_iter().map(row).collect())
}

/// Of `COPY .. TO`. This table has no field that would have to be quoted; for one that has, take the csv crate.
fn postgres_rows(text: &str) -> Result<Vec<[&str; 3]>> {
    let mut lines = text.lines();
    let header = lines.next().unwrap_or_default();
    let expected = "job,part,last_offset,updated_at";
    ensure(header == expected, format!("line 1: found '{header}', expected '{expected}'"))?;
    let mut rows = Vec::new();
    for (place, line) in lines.enumerate() {
        let [job, part, offset, _] = line.split(',').collect::<Vec<_>>()[..] else {
            return Err(format!("line {}: found '{line}', expected 4 columns without quotes", place + 2).into());
        };
        rows.push([job, part, offset]);
    }
    Ok(rows)
}

/// Of `HGETALL`: a line with the part, and one with its offset.
fn redis_rows(text: &str) -> Result<Vec<[&str; 3]>> {
    let (mut rows, mut job) = (Vec::new(), None);
    let mut lines = text.lines().enumerate();
    while let Some((place, line)) = lines.next() {
        if let Some(key) = line.strip_prefix("# ") {
            job = key.strip_prefix("ckpt:");
            ensure(job.is_some(), format!("line {}: found key '{key}', expected 'ckpt:JOB'", place + 1))?;
            continue;
        }
        let job = job.ok_or_else(|| format!("line {}: found '{line}', expected '# ckpt:JOB'", place + 1))?;
        let (_, offset) = lines.next().ok_or_else(|| format!("line {}: '{line}' has no value after it", place + 1))?;
        rows.push([job, line, offset]);
    }
    Ok(rows)
}

/// Moves the dumps that the example brings: killed once, run again, run a third time, and once with a table that has changed.
async fn demonstrate(endpoint: Option<String>) -> Result {
    let store = Store::open(endpoint).await?;
    let data = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data");
    let tables = Tables {
        endpoint: store.endpoint().to_owned(),
        namespace: store.free_name("moved"),
        postgres: data.join("checkpoints.csv"),
        redis: data.join("checkpoints.redis"),
    };
    let process = |command: &str, postgres: &Path, fault: Option<&str>| {
        let mut arguments: Vec<OsString> = vec![command.into(), "--endpoint".into(), store.endpoint().into()];
        arguments.extend(["--namespace".into(), tables.namespace.clone().into()]);
        arguments.extend(["--postgres".into(), postgres.into(), "--redis".into(), tables.redis.clone().into()]);
        Process::start(&arguments, fault)
    };

    support::killed(process("migrate", &tables.postgres, Some("kill committed 3"))?.ended().await?)?;
    println!("killed with SIGKILL when row 3 was committed");
    support::killed(process("migrate", &tables.postgres, Some("kill granted 8"))?.ended().await?)?;
    println!("killed with SIGKILL when row 8 had its branch and nothing in it");
    support::succeeded(process("migrate", &tables.postgres, None)?.ended().await?)?;
    support::succeeded(process("migrate", &tables.postgres, None)?.ended().await?)?;
    support::succeeded(process("verify", &tables.postgres, None)?.ended().await?)?;

    println!("a writer that was forgotten moves a row on in the old table, and that is dumped and migrated again");
    let changed = store.scratch().join("changed.csv");
    std::fs::write(&changed, std::fs::read_to_string(&tables.postgres)?.replace("orders,2,4000,", "orders,2,4711,"))?;
    let refused = process("migrate", &changed, None)?.ended().await?;
    ensure(refused.code() == Some(1), format!("a row that differs was not reported: {refused}"))?;
    support::succeeded(process("verify", &tables.postgres, None)?.ended().await?)?;

    // What the table could not do: the writer that was forgotten is refused.
    let branch = store.client().await?.pipeline(format!("{}/orders", tables.namespace)).branch("2");
    let forgotten = branch.resume("loader-a").await?;
    let replacement = branch.resume(Resume::new("loader-b").takeover(Takeover::Force).reason("loader-a hangs")).await?;
    replacement.commit(Checkpoint::at("4100")).await?;
    let refusal = forgotten.commit(Checkpoint::at("4050")).await.err().ok_or("a replaced worker moved the branch")?;
    ensure(refusal.reason() == Some(Reason::Fenced), format!("expected FENCED, got {refusal}"))?;
    let head = branch.head().await?;
    ensure(head.position_str() == "4100" && head.sequence() == 2, "the head is not the replacement's")?;
    replacement.release().await?;

    println!(
        "migrate_table: {} rows moved, 2 kills, 1 changed row reported, 1 stale writer refused",
        tables.rows()?.len()
    );
    store.close().await
}
