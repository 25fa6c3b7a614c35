//! Parallel branches, a barrier every night and a merge behind it: three airports count their flights, and each day is merged
//! once all of them are through with it. docs/cookbook/nightly-merge.md explains it.
//!
//! `cargo run --example nightly_merge` kills its workers at random, brings ten rows two days late, and counts.
//! `cargo run --example nightly_merge -- airport --help` tells how to start a worker alone.

#![allow(clippy::print_stdout, reason = "an example is a program")]

#[path = "support/flights.rs"]
mod flights;
mod support;

use std::collections::BTreeSet;
use std::ffi::OsString;
use std::process::ExitCode;

use clap::{Args, Parser, Subcommand};
use fencepost::v1::Integrity;
use fencepost_client::{
    Checkpoint, Client, Merge, Pipeline, Policy, Reason, Resume, StoredCheckpoint, Takeover, Worker,
};
use flights::{AIRPORTS, Feed, Flight, HeldUp, Report};
use rand::rngs::StdRng;
use rand::seq::index::sample;
use rand::{Rng as _, SeedableRng as _};
use support::{Process, Result, Store, ensure, fault};

/// Rows between two commits.
const BATCH_ROWS: usize = 100;
/// Ten rows that come two days late.
const HELD_UP: HeldUp<'static> = HeldUp { airport: "LGA", day: "2013-01-03", rows: 10 };
/// How often each worker is killed.
const KILLS: usize = 3;

#[derive(Parser)]
struct Cli {
    /// A server to use instead of one of the example's own.
    #[arg(long, env = "FENCEPOST_ENDPOINT")]
    endpoint: Option<String>,
    /// Who is killed where.
    #[arg(long, default_value_t = 10)]
    seed: u64,
    #[command(subcommand)]
    role: Option<Role>,
}

#[derive(Subcommand)]
enum Role {
    /// Count the flights of an airport, from where the last worker came to.
    Airport {
        #[command(flatten)]
        at: At,
        airport: String,
    },
    /// Merge each day when it is over, from where the last worker came to.
    Merger {
        #[command(flatten)]
        at: At,
    },
}

#[derive(Args)]
struct At {
    #[arg(long)]
    endpoint: String,
    #[arg(long)]
    pipeline: String,
    /// For the very first run: without it, lost progress is an error and not a fresh start.
    #[arg(long)]
    start_fresh: bool,
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    support::exit(match cli.role {
        Some(Role::Airport { at, airport }) => Box::pin(count_airport(&at, &airport)).await,
        Some(Role::Merger { at }) => merge_days(&at).await,
        None => demonstrate(cli.endpoint, cli.seed).await,
    })
}

impl At {
    /// The pipeline, and a worker of this branch: it goes on at once where a dead one of its name was.
    async fn resume(&self, branch: &str, holder: &str) -> Result<(Pipeline, Worker)> {
        let pipeline = Client::connect(&self.endpoint).await?.pipeline(&self.pipeline);
        let resume = if self.start_fresh { role(holder).start_fresh() } else { role(holder) };
        let worker = pipeline.branch(branch).resume(resume).await?;
        Ok((pipeline, worker))
    }
}

fn role(holder: &str) -> Resume {
    Resume::new(holder).takeover(Takeover::SameHolder)
}

/// A branch: batches in the day are committed; the last one of a day is staged, and committed by the day's barrier.
async fn count_airport(at: &At, airport: &str) -> Result {
    let (pipeline, worker) = at.resume(airport, airport).await?;
    let feed = Feed::of(&flights::read()?, airport, HELD_UP);
    let mut done: usize = worker.head().map_or(Ok(0), |head| head.position_str().parse())?;
    let mut reports = worker.head().as_ref().map(flights::reports).transpose()?.unwrap_or_default();

    while let Some(batch) = feed.batch(done, BATCH_ROWS) {
        if reports.first().is_none_or(|report| report.day != batch.day) {
            reports.clear();
            commit_late(&pipeline, airport, feed.late_on(batch.day)).await?;
        }
        done += batch.rows.len();
        flights::count(&mut reports, batch.rows);
        let checkpoint = flights::checkpoint(done, &reports, batch.rows)?;
        let day = flights::number(batch.day);
        fault("counted", day);
        if batch.ends_the_day {
            // What a worker before has left staged is this same batch. It stays staged; only the arrival ended with its worker.
            if worker.staged().is_none() {
                worker.stage(batch.day, checkpoint).await?;
            }
            fault("staged", day);
            // Whoever is first opens it; for all others the same call finds it open.
            pipeline.open_barrier(batch.day).participants(AIRPORTS).open().await?;
            worker.arrive_staged(batch.day).await?;
            fault("arrived", day);
            worker.wait_at(batch.day).await?;
            fault("closed", day);
        } else {
            worker.commit(checkpoint).await?;
            fault("committed", day);
        }
    }
    Ok(worker.release().await?)
}

/// Rows of a day that is closed: they go to a branch of their own, which says what they are late for.
async fn commit_late(pipeline: &Pipeline, airport: &str, rows: &[Flight]) -> Result {
    let Some(day) = rows.first().map(|row| &*row.day) else { return Ok(()) };
    // This branch begins when something is late, so that it is empty says nothing.
    let worker = pipeline.branch("late").resume(role(airport).start_fresh()).await?;
    if worker.staged().is_some() {
        worker.discard_staged("its barrier was closed").await?;
    }
    if worker.head().is_none() {
        let closed = pipeline.barrier(day).get().await?;
        let own = closed.participants.iter().find(|participant| participant.branch == airport);
        let own = own.ok_or("the airport is no participant of the day")?;
        let mut amended = flights::reports(&pipeline.branch(airport).checkpoint(own.sequence).await?)?;
        flights::count(&mut amended, rows);
        let checkpoint = flights::checkpoint(format!("line {}", rows[0].line), &amended, rows)?;
        match worker.arrive_and_wait(day, checkpoint.clone()).await {
            Err(error) if error.reason() == Some(Reason::BarrierClosed) => {
                worker.commit(checkpoint.late_for(day)).await?;
            }
            result => drop(result?),
        }
    }
    Ok(worker.release().await?)
}

/// The merged branch: one checkpoint for each day, and one for what came late.
async fn merge_days(at: &At) -> Result {
    let (pipeline, worker) = at.resume("merged", "merger").await?;
    let days = flights::days(&flights::read()?);
    for day in days.iter().skip(worker.sequence() as usize) {
        pipeline.open_barrier(day).participants(AIRPORTS).open().await?;
        let closed = pipeline.barrier(day).wait().await?;
        // What was merged so far is an input like the others.
        let mut inputs: Vec<StoredCheckpoint> = worker.head().into_iter().collect();
        for participant in closed.participants {
            inputs.push(pipeline.branch(participant.branch).checkpoint(participant.sequence).await?);
        }
        commit_merged(&worker, "union", &inputs, day, &flights::united(&inputs)?).await?;
    }
    if worker.sequence() == days.len() as u64 {
        let merged = worker.head().expect("a branch whose sequence is not 0 has a head");
        let inputs = [merged, pipeline.branch("late").head().await?];
        commit_merged(&worker, "amended", &inputs, "late", &flights::amended(&inputs[0], &inputs[1])?).await?;
    }
    Ok(worker.release().await?)
}

async fn commit_merged(
    worker: &Worker,
    function: &str,
    inputs: &[StoredCheckpoint],
    position: &str,
    output: &[Report],
) -> Result {
    let sequence = worker.sequence() + 1;
    let read = inputs.iter().map(|input| Ok(flights::reports(input)?.len() as u64)).sum::<Result<u64>>()?;
    let written = output.len() as u64;
    let checkpoint = Checkpoint::at(position.to_owned()).state(serde_json::to_vec(output)?);
    let checkpoint = checkpoint.rows_in(read).rows_out(written).rows_filtered(read - written);
    fault("merging", sequence);
    let inputs = inputs.iter().map(|input| (input.branch(), input.sequence()));
    let merge = Merge::by(function, "1").inputs(inputs).output_digest(flights::digest(output));
    worker.merge(merge, checkpoint).await?;
    fault("merged", sequence);
    Ok(())
}

/// Lets all workers run at once, kills them, and checks what they came to.
async fn demonstrate(endpoint: Option<String>, seed: u64) -> Result {
    let store = Store::open(endpoint).await?;
    let name = store.free_name("examples/nightly-merge");
    let pipeline = store.client().await?.pipeline(&name);
    // Refused from now on: a checkpoint whose rows do not add up, or that has dead rows and does not bring them.
    pipeline.set_policy(Policy::new().reconcile_rows().keep_last(100)).actor("example").send().await?;

    let flights = flights::read()?;
    let plan = kills(&mut StdRng::seed_from_u64(seed));
    let [newark, kennedy, la_guardia, merger] =
        plan.each_ref().map(|(worker, kills)| chain(&store, &name, worker, kills));
    tokio::try_join!(newark, kennedy, la_guardia, merger)?;
    for (worker, kills) in &plan {
        println!("{worker} was killed with SIGKILL at: {}", kills.join(", "));
    }

    let (mut rows, mut kept) = (0, 0);
    for branch in AIRPORTS.into_iter().chain(["late"]) {
        let checkpoints = pipeline.branch(branch).checkpoints().all().await?;
        let sum =
            |of: fn(&Integrity) -> Option<u64>| checkpoints.iter().filter_map(|it| of(it.integrity()?)).sum::<u64>();
        let (read, counted, dead) = (sum(|it| it.rows_in), sum(|it| it.rows_out), sum(|it| it.rows_dead));
        println!("{branch}: {read} rows read, {counted} counted, {dead} dead");
        (rows, kept) = (rows + read, kept + dead);
    }
    let merged = pipeline.branch("merged").head().await?;
    let late = pipeline.branch("late").head().await?;
    ensure(rows == flights.len() as u64, "a row was read twice, or not at all")?;
    ensure(
        flights::reports(&merged)? == flights::straight(&flights),
        "the merged reports are not those of one pass over the file",
    )?;
    ensure(late.late_for() == Some(HELD_UP.day), "the late rows do not say what they are late for")?;

    let letters = pipeline.dead_letters().list().all().await?;
    let distinct: BTreeSet<&[u8]> = letters.iter().map(|letter| &letter.payload()[..]).collect();
    let lacking = flights.iter().filter(|flight| flight.delay.is_none()).map(|flight| flight.text.as_bytes());
    ensure(distinct == lacking.collect(), "the dead letters are not the rows that lack an arr_delay")?;
    ensure(letters.len() == distinct.len() && kept == letters.len() as u64, "a dead letter is there twice")?;
    let (replayed, discarded) = mend(&pipeline).await?;
    println!("dead letters: {} rows, {replayed} replayed, {discarded} discarded", letters.len());
    ensure(pipeline.dead_letters().count().await? == 0, "dead letters are left")?;

    println!(
        "nightly_merge: {rows} rows in {} days, {} kills, {} reports as one pass over the file has them, {kept} dead letters",
        flights::days(&flights).len(),
        plan.iter().map(|(_, kills)| kills.len()).sum::<usize>(),
        flights::reports(&merged)?.len(),
    );
    store.close().await
}

/// Chooses where each worker is to die: on days that no two of its deaths share, and not on the first, so that each has begun.
fn kills(rng: &mut StdRng) -> [(&'static str, Vec<String>); 4] {
    ["EWR", "JFK", "LGA", "merger"].map(|worker| {
        let places: &[&str] = match worker {
            "merger" => &["merging", "merged"],
            _ => &["counted", "committed", "staged", "arrived", "closed"],
        };
        let mut days = sample(rng, 6, KILLS).into_vec();
        days.sort_unstable();
        let place = |day: usize| format!("{} {}", places[rng.random_range(..places.len())], day + 2);
        (worker, days.into_iter().map(place).collect())
    })
}

/// Has the work of one worker done, by as many processes as it takes.
async fn chain(store: &Store, pipeline: &str, worker: &str, kills: &[String]) -> Result {
    let role: &[&str] = if worker == "merger" { &["merger"] } else { &["airport", worker] };
    let place = ["--endpoint", store.endpoint(), "--pipeline", pipeline, "--start-fresh"];
    let mut arguments: Vec<OsString> = role.iter().chain(&place).map(OsString::from).collect();
    for kill in kills {
        support::killed(Process::start(&arguments, Some(&format!("kill {kill}")))?.ended().await?)?;
        // Only the first may begin from nothing.
        arguments.retain(|argument| argument != "--start-fresh");
    }
    support::succeeded(Process::start(&arguments, None)?.ended().await?)
}

/// Works through the dead letters: flights that departed are noted after all, the others are given up. Returns how many.
async fn mend(pipeline: &Pipeline) -> Result<(u64, usize)> {
    let mut replay = pipeline.replay_dead_letters(role("mender")).await?;
    let (mut replayed, mut given_up) = (0, Vec::new());
    while let Some(letter) = replay.next().await? {
        if !letter.reason().starts_with("departed") {
            given_up.push(letter.id());
            continue;
        }
        // The letter is closed by the commit that has what was made of it.
        let noted = Checkpoint::at(letter.id().to_string()).state(letter.payload().clone()).rows_in(1).rows_out(1);
        replay.worker().commit(noted.replayed([letter.id()])).await?;
        replayed += 1;
    }
    let discard = pipeline.discard_dead_letters(given_up.iter().copied());
    discard.actor("mender").reason("the flight never departed").send().await?;
    replay.into_worker().release().await?;
    Ok((replayed, given_up.len()))
}
