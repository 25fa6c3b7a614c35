//! A long-running agent that keeps its steps in Fencepost: each is committed as an intent before it is done, and with its
//! result after. So a decision is made once, a side effect happens once, and a process that was replaced does nothing more.
//! docs/cookbook/agent-loop.md explains it.
//!
//! `cargo run --example agent_loop` kills the agent twice and replaces it once while it is frozen, and counts.
//! `cargo run --example agent_loop -- agent --help` tells how to start the agent alone.

#![allow(clippy::disallowed_methods, clippy::print_stdout, reason = "an example reads and writes files of its own")]

mod support;

use std::path::{Path, PathBuf};
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Parser, Subcommand};
use fencepost_client::{Checkpoint, Client, Resume, Takeover, Worker};
use serde::{Deserialize, Serialize};
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
    /// Run the agent, from where the last one came to.
    Agent(Agent),
}

#[derive(Args)]
struct Agent {
    #[arg(long)]
    endpoint: String,
    #[arg(long)]
    pipeline: String,
    /// The agent's name. One that is started again under its name goes on at once; another one waits for its lease.
    #[arg(long)]
    holder: String,
    /// The file that the tools read.
    #[arg(long)]
    flights: PathBuf,
    /// Where messages are delivered: the outside world of this example.
    #[arg(long)]
    outbox: PathBuf,
    /// How long the agent may be silent before another one may take over.
    #[arg(long, default_value_t = 30)]
    ttl_seconds: u64,
    /// For the very first run: without it, a lost memory is an error and not a fresh start.
    #[arg(long)]
    start_fresh: bool,
}

/// Everything that the agent knows. It is the state of each checkpoint, so whoever resumes knows the same.
#[derive(Debug, Default, Serialize, Deserialize)]
struct Memory {
    steps: Vec<Step>,
}

/// One decision of the model. Without a result it is an intent: perhaps done, perhaps not.
#[derive(Debug, Serialize, Deserialize)]
struct Step {
    action: Action,
    result: Option<String>,
}

#[derive(Debug, Serialize, Deserialize)]
enum Action {
    /// Only reads: may be done again.
    MeanDelay { airport: String },
    /// Has an effect outside: must be done once.
    Notify { to: String, text: String },
    /// Ends the work.
    Finish { answer: String },
}

#[tokio::main]
async fn main() -> ExitCode {
    let cli = Cli::parse();
    support::exit(match cli.role {
        Some(Role::Agent(agent)) => agent.run().await,
        None => demonstrate(cli.endpoint).await,
    })
}

impl Agent {
    async fn run(&self) -> Result {
        let client = Client::connect(&self.endpoint).await?;
        let ttl = Duration::from_secs(self.ttl_seconds);
        let resume = Resume::new(&self.holder).ttl(ttl).takeover(Takeover::SameHolder);
        let resume = if self.start_fresh { resume.start_fresh() } else { resume };
        let worker = client.pipeline(&self.pipeline).branch("main").resume(resume).await?;
        let mut memory: Memory = match worker.head() {
            Some(head) => serde_json::from_slice(head.state())?,
            None => Memory::default(),
        };
        let start = worker.head().map_or("begins".to_owned(), |head| format!("goes on at '{}'", head.position_str()));
        println!("{} {}: {start}", self.holder, worker.token());

        // A real agent does this inside `Worker::run`, which ends it in the middle of a tool when it is replaced. Here an
        // agent that does not look must be harmless too.
        loop {
            let number = memory.steps.len() as u64;
            match memory.steps.last_mut() {
                // Decided, by this process or by one before it; the model is not asked again.
                Some(step) if step.result.is_none() => {
                    fault("intended", number);
                    step.result = Some(self.act(&step.action, &format!("{}/{number}", self.pipeline))?);
                    fault("acted", number);
                    commit(&worker, &memory, &format!("step {number} done")).await?;
                    println!("{}: step {number} done", self.holder);
                }
                Some(Step { action: Action::Finish { answer }, .. }) => {
                    println!("{}: {answer}", self.holder);
                    return Ok(worker.release().await?);
                }
                _ => {
                    let step = Step { action: decide(&memory.steps), result: None };
                    memory.steps.push(step);
                    commit(&worker, &memory, &format!("step {} intended", number + 1)).await?;
                }
            }
        }
    }

    /// Does a step. `key` is the same whoever does it, and however often.
    fn act(&self, action: &Action, key: &str) -> Result<String> {
        match action {
            Action::MeanDelay { airport } => mean_delay(&self.flights, airport),
            Action::Notify { to, text } => deliver(&self.outbox, key, to, text),
            Action::Finish { .. } => Ok("finished".to_owned()),
        }
    }
}

async fn commit(worker: &Worker, memory: &Memory, position: &str) -> Result {
    worker.commit(Checkpoint::at(position.to_owned()).state(serde_json::to_vec(memory)?)).await?;
    Ok(())
}

/// The model. A real one may well answer the same question with something else the next time, which is why what it said is
/// committed before anything is done about it.
fn decide(steps: &[Step]) -> Action {
    let delays: Vec<(f64, &str)> = steps
        .iter()
        .filter_map(|step| match (&step.action, &step.result) {
            (Action::MeanDelay { airport }, Some(minutes)) => Some((minutes.parse().ok()?, airport.as_str())),
            _ => None,
        })
        .collect();
    let airports = ["EWR", "JFK", "LGA"];
    if let Some(airport) = airports.get(delays.len()) {
        return Action::MeanDelay { airport: (*airport).to_owned() };
    }
    let worst = delays.into_iter().max_by(|one, other| one.0.total_cmp(&other.0));
    let (minutes, airport) = worst.expect("all three airports have been measured");
    let answer = format!("{airport} was late by {minutes:.2} minutes on average");
    let told = steps.iter().filter(|step| matches!(step.action, Action::Notify { .. })).count();
    match ["operations", "the duty manager", "the press office"].get(told) {
        Some(to) => Action::Notify { to: (*to).to_owned(), text: answer },
        None => Action::Finish { answer },
    }
}

/// A tool that reads.
fn mean_delay(flights: &Path, airport: &str) -> Result<String> {
    let text = std::fs::read_to_string(flights)?;
    let rows = text.lines().skip(1).map(|row| row.split(',').collect::<Vec<_>>());
    let flights = rows.filter(|row| row.get(12) == Some(&airport));
    let delays: Vec<f64> = flights.filter_map(|row| row.get(8)?.parse().ok()).collect();
    Ok((delays.iter().sum::<f64>() / delays.len() as f64).to_string())
}

/// A tool with an effect, as a good service offers it: the same key again does nothing, and has the first answer. Each
/// delivered message is a file that appears whole or not at all.
fn deliver(outbox: &Path, key: &str, to: &str, text: &str) -> Result<String> {
    let file = outbox.join(key.replace('/', "_"));
    let mut message = tempfile::NamedTempFile::new_in(outbox)?;
    std::io::Write::write_all(&mut message, format!("to {to}: {text}").as_bytes())?;
    match message.persist_noclobber(&file) {
        Ok(_) => println!("outbox: delivered to {to}"),
        Err(_) if file.exists() => println!("outbox: the message to {to} is known; nothing was delivered"),
        Err(cause) => return Err(cause.into()),
    }
    Ok(format!("message {key}"))
}

/// Kills the agent between intent and effect, and between effect and result; then freezes it and lets another one take over.
async fn demonstrate(endpoint: Option<String>) -> Result {
    let store = Store::open(endpoint).await?;
    let outbox = store.scratch().join("outbox");
    std::fs::create_dir(&outbox)?;
    let flights = Path::new(env!("CARGO_MANIFEST_DIR")).join("examples/data/flights-week1.csv");
    let pipeline = store.free_name("examples/agent-loop");
    let agent = |holder: &str, more: &[&str], fault: Option<&str>| {
        let mut arguments = vec!["agent".into(), "--endpoint".into(), store.endpoint().into()];
        arguments.extend(["--pipeline".into(), pipeline.clone().into(), "--holder".into(), holder.into()]);
        arguments.extend(["--flights".into(), flights.clone().into(), "--outbox".into(), outbox.clone().into()]);
        arguments.extend(["--ttl-seconds".into(), "1".into()]);
        arguments.extend(more.iter().map(|argument| (*argument).into()));
        Process::start(&arguments, fault)
    };

    support::killed(agent("ada", &["--start-fresh"], Some("kill intended 4"))?.ended().await?)?;
    println!("killed ada with SIGKILL when step 4 was committed as an intent, before it was done");
    support::killed(agent("ada", &[], Some("kill acted 5"))?.ended().await?)?;
    println!("killed ada with SIGKILL when step 5 was done, before its result was committed");
    let zombie = agent("ada", &[], Some("freeze intended 6"))?;
    zombie.frozen().await?;
    println!("froze ada with SIGSTOP when step 6 was committed as an intent; bob waits until the lease has run out");
    support::succeeded(agent("bob", &[], None)?.ended().await?)?;
    println!("woke ada");
    zombie.thaw()?;
    support::fenced(zombie.ended().await?)?;

    let head = store.client().await?.pipeline(pipeline).branch("main").head().await?;
    let memory: Memory = serde_json::from_slice(head.state())?;
    let intents = memory.steps.iter().filter(|step| matches!(step.action, Action::Notify { .. })).count();
    let messages = std::fs::read_dir(&outbox)?.count();
    println!(
        "agent_loop: {} steps in {} commits, {intents} messages decided on, {messages} delivered, 2 kills, 1 zombie refused",
        memory.steps.len(),
        head.sequence(),
    );
    ensure(memory.steps.iter().all(|step| step.result.is_some()), "a step has no result")?;
    ensure(
        head.sequence() == 2 * memory.steps.len() as u64,
        "a step was not committed twice: as intent and as result",
    )?;
    ensure((intents, messages) == (3, 3), "expected 3 messages, each delivered once")?;
    store.close().await
}
