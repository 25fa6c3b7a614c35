//! Rows of a file into PostgreSQL, each exactly once: the rows, the fencing token and the id of the batch are written in one
//! transaction, which refuses a lower token; and whoever takes over asks the table what became of the last batch.
//! docs/cookbook/postgres-sink.md explains it.
//!
//! `cargo run --example two_phase_postgres` kills its worker at each step, freezes and replaces three, and counts.
//! `cargo run --example two_phase_postgres -- worker --help` tells how to start a worker alone.

#![allow(clippy::print_stdout, reason = "an example is a program")]

#[path = "support/flights.rs"]
mod flights;
#[path = "support/postgres.rs"]
mod postgres;
mod support;

use std::ffi::OsString;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use fencepost_client::{Checkpoint, Client, Resume, Sink, SinkError, Takeover, Token, TwoPhase, TwoPhaseError};
use flights::Flight;
use postgres::{ABSENT, Postgres};
use support::{Process, Result, Store, ensure, fault};

/// Rows of a batch.
const BATCH_ROWS: usize = 500;

/// What a worker that stands still inside of its transaction would keep locked for ever otherwise. Less than a lease's TTL.
const CONNECTION: &str = "SET idle_in_transaction_session_timeout = '1s'";

/// The table of rows has no unique key: a row that came twice would be there twice.
const TABLES: &str = "
    CREATE TABLE flights (line int, day text, airport text, carrier text, delay bigint, token bigint);
    CREATE TABLE fence (branch text PRIMARY KEY, token bigint NOT NULL, stage_id text);
    INSERT INTO fence VALUES ('week1', 0, NULL)";

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
    /// Load the file, from where the last worker came to.
    Worker(Load),
}

#[derive(Args)]
struct Load {
    #[arg(long)]
    endpoint: String,
    #[arg(long)]
    pipeline: String,
    /// The database, as in `host=/run/postgresql user=postgres`.
    #[arg(long)]
    postgres: String,
    /// The worker's name. One that is started again under its name goes on at once; another one waits for its lease.
    #[arg(long)]
    holder: String,
    /// How long the worker may be silent before another one may take over.
    #[arg(long, default_value_t = 30)]
    ttl_seconds: u64,
    /// For the very first run: without it, lost progress is an error and not a fresh start.
    #[arg(long)]
    start_fresh: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    support::exit(match cli.role {
        Some(Role::Worker(load)) => Box::pin(load.run()).await,
        None => demonstrate(cli.endpoint).await,
    })
}

/// The table, for the rows of one branch.
struct Table {
    connection: tokio_postgres::Client,
    branch: &'static str,
}

/// Rows that are written together.
struct Batch {
    number: u64,
    rows: Vec<Flight>,
}

impl Load {
    async fn run(&self) -> Result {
        let connection = postgres::connect(&self.postgres).await?;
        connection.batch_execute(CONNECTION).await?;
        let table = Table { connection, branch: "week1" };
        let resume = Resume::new(&self.holder).ttl(Duration::from_secs(self.ttl_seconds));
        let resume = resume.takeover(Takeover::SameHolder);
        let resume = if self.start_fresh { resume.start_fresh() } else { resume };
        let client = Client::connect(&self.endpoint).await?;
        let worker = client.pipeline(&self.pipeline).branch(table.branch).resume(resume).await?;
        let left = worker.staged().map(|staged| staged.sequence());

        // From here on no worker before this one writes to the table; so what it says about the last batch is final.
        let mut loader = TwoPhase::start(worker, table).await.map_err(told)?;
        let done = loader.worker().sequence();
        let found = match left {
            None => "nothing was left staged".to_owned(),
            Some(batch) if batch == done => format!("batch {batch} was left staged, and is in the table: committed"),
            Some(batch) => format!("batch {batch} was left staged, and is not in the table: discarded"),
        };
        println!("{} {}: {found}", self.holder, loader.worker().token());

        let flights = flights::read()?;
        let mut at: usize = loader.worker().head().map_or(Ok(0), |head| head.position_str().parse())?;
        while at < flights.len() {
            let rows: Vec<Flight> = flights.iter().skip(at).take(BATCH_ROWS).cloned().collect();
            let count = rows.len() as u64;
            at += rows.len();
            let batch = Batch { number: loader.worker().sequence() + 1, rows };
            fault("read", batch.number);
            let checkpoint = Checkpoint::at(at.to_string()).rows_in(count).rows_out(count);
            loader.write(&batch, checkpoint).await.map_err(told)?;
            fault("committed", batch.number);
        }
        Ok(loader.into_parts().0.release().await?)
    }
}

impl Sink for Table {
    type Batch = Batch;
    type Error = tokio_postgres::Error;

    async fn fence(&mut self, token: Token) -> Result<Option<String>, SinkError<Self::Error>> {
        const RAISE: &str = "UPDATE fence SET token = $2 WHERE branch = $1 AND token <= $2 RETURNING stage_id";
        match self.connection.query_opt(RAISE, &[&self.branch, &number(token)]).await? {
            Some(row) => Ok(row.get(0)),
            None => Err(self.fenced().await?),
        }
    }

    async fn apply(&mut self, token: Token, stage_id: &str, batch: &Batch) -> Result<(), SinkError<Self::Error>> {
        const RAISE: &str = "UPDATE fence SET token = $2, stage_id = $3 WHERE branch = $1 AND token <= $2";
        const INSERT: &str =
            "INSERT INTO flights SELECT *, $6 FROM unnest($1::int[], $2::text[], $3::text[], $4::text[], $5::bigint[])";
        fault("staged", batch.number);
        let transaction = self.connection.transaction().await?;
        if transaction.execute(RAISE, &[&self.branch, &number(token), &stage_id]).await? == 0 {
            transaction.rollback().await?;
            return Err(self.fenced().await?);
        }
        let lines: Vec<i32> = batch.rows.iter().map(|row| row.line as i32).collect();
        let days: Vec<&str> = batch.rows.iter().map(|row| &*row.day).collect();
        let airports: Vec<&str> = batch.rows.iter().map(|row| &*row.airport).collect();
        let carriers: Vec<&str> = batch.rows.iter().map(|row| &*row.carrier).collect();
        let delays: Vec<Option<i64>> = batch.rows.iter().map(|row| row.delay).collect();
        transaction.execute(INSERT, &[&lines, &days, &airports, &carriers, &delays, &number(token)]).await?;
        fault("writing", batch.number);
        transaction.commit().await?;
        fault("written", batch.number);
        Ok(())
    }
}

impl Table {
    /// Who has been here instead.
    async fn fenced(&self) -> Result<SinkError<tokio_postgres::Error>, tokio_postgres::Error> {
        let row = self.connection.query_one("SELECT token FROM fence WHERE branch = $1", &[&self.branch]).await?;
        Ok(SinkError::Fenced { by: Token::from_u64(row.get::<_, i64>(0) as u64) })
    }
}

/// A token as PostgreSQL has it, which knows signed numbers only. The order stays up to generation 32,767.
fn number(token: Token) -> i64 {
    token.as_u64() as i64
}

fn told(error: TwoPhaseError<tokio_postgres::Error>) -> Box<dyn std::error::Error + Send + Sync> {
    match error {
        TwoPhaseError::Fencepost(error) => error.into(),
        other => other.into(),
    }
}

/// Kills the worker at each step, replaces three that are frozen, wakes them, and counts the rows in the table.
async fn demonstrate(endpoint: Option<String>) -> Result {
    if Postgres::programs().is_none() {
        println!("two_phase_postgres: skipped. {ABSENT}");
        return Ok(());
    }
    let postgres = Postgres::start().await?;
    let connection = postgres.connect().await?;
    connection.batch_execute(TABLES).await?;
    let store = Store::open(endpoint).await?;
    let pipeline = store.free_name("examples/postgres-sink");
    let worker = |holder: &str, more: &[&str], fault: Option<&str>| {
        let address = postgres.address();
        let place = ["worker", "--endpoint", store.endpoint(), "--pipeline", &pipeline, "--postgres", &address];
        let own = ["--holder", holder, "--ttl-seconds", "1"];
        let arguments = place.iter().chain(&own).chain(more);
        Process::start(&arguments.map(OsString::from).collect::<Vec<_>>(), fault)
    };

    let mut first: &[&str] = &["--start-fresh"];
    for (place, moment) in [
        ("read 2", "batch 2 was read, and not staged"),
        ("staged 3", "batch 3 was staged"),
        ("writing 4", "batch 4 was in a transaction"),
        ("written 5", "the transaction of batch 5 was committed, and batch 5 was not"),
        ("committed 6", "batch 6 was committed"),
    ] {
        support::killed(worker("ada", first, Some(&format!("kill {place}")))?.ended().await?)?;
        println!("killed ada with SIGKILL when {moment}");
        first = &[];
    }

    let ada = worker("ada", &[], Some("freeze read 8"))?;
    ada.frozen().await?;
    println!("froze ada with SIGSTOP when batch 8 was read; bob waits until the lease has run out");
    let bob = worker("bob", &[], Some("freeze staged 9"))?;
    bob.frozen().await?;
    println!("froze bob when batch 9 was staged, and woke ada");
    ada.thaw()?;
    support::fenced(ada.ended().await?)?;
    let cleo = worker("cleo", &[], Some("freeze writing 10"))?;
    cleo.frozen().await?;
    println!("froze cleo when batch 10 was in a transaction, and woke bob");
    bob.thaw()?;
    support::fenced(bob.ended().await?)?;
    support::succeeded(worker("dora", &[], None)?.ended().await?)?;
    println!("woke cleo");
    cleo.thaw()?;
    ensure(cleo.ended().await?.code() == Some(1), "a worker whose transaction was ended did not notice")?;

    let rows = connection.query("SELECT line, day, airport, carrier, delay FROM flights ORDER BY line", &[]).await?;
    let found = rows.iter().map(|row| text(row.get(0), row.get(1), row.get(2), row.get(3), row.get(4)));
    let flights = flights::read()?;
    let expected = flights.iter().map(|it| text(it.line as i32, &it.day, &it.airport, &it.carrier, it.delay));
    let (found, expected) = (checksum(found), checksum(expected));
    println!(
        "two_phase_postgres: {} rows read, {} in the table, checksums {expected:08x} and {found:08x}, 5 kills, 3 zombies refused",
        flights.len(),
        rows.len(),
    );
    ensure(rows.len() == flights.len() && found == expected, "the table is not what one uninterrupted load makes")?;
    store.close().await
}

fn text(line: i32, day: &str, airport: &str, carrier: &str, delay: Option<i64>) -> String {
    format!("{line},{day},{airport},{carrier},{delay:?}\n")
}

fn checksum(rows: impl Iterator<Item = String>) -> u32 {
    crc32fast::hash(rows.collect::<String>().as_bytes())
}
