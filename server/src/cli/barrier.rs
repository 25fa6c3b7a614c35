//! Barriers: where the branches of a pipeline wait for each other.

use std::collections::BTreeMap;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, Subcommand};
use fencepost::v1::barrier::State;
use fencepost::v1::{Barrier, BranchInfo, Participant};
use fencepost_client::{Client, LeaseInfo};
use serde_json::{Value, json};

use super::actor::Actor;
use super::duration;
use super::error::CliError;
use super::exit;
use super::output::{Cell, Column, Output, human_duration, note};

/// List the barriers that wait, with whom they wait for.
///
/// A branch is missing until its worker has arrived with what it has staged. Shown with it are who holds the branch and
/// for how long nothing was heard of that worker: start it again, take the branch from it (`lease force`), or give the
/// barrier up (`barrier abort`).
///
/// Example: `fencepost barriers prod/orders --all`
#[derive(Args)]
pub(crate) struct Barriers {
    /// NAMESPACE/NAME; without it, all pipelines.
    pipeline: Option<String>,
    /// Also those that do not wait any more, newest first.
    #[arg(long, short, requires = "pipeline")]
    all: bool,
    /// How many.
    #[arg(long, short = 'n', default_value_t = 100)]
    limit: usize,
}

#[derive(Subcommand)]
pub(crate) enum BarrierCommand {
    Open(Open),
    /// Show one barrier: who has arrived, who has not, until when it waits, how it ended.
    Show(Which),
    Wait(Wait),
    /// Give a barrier up. What its branches had staged for it is discarded; heads stay where they are.
    Abort {
        #[command(flatten)]
        which: Which,
        /// Why, for the audit.
        #[arg(long, short)]
        reason: String,
        #[command(flatten)]
        actor: Actor,
    },
}

/// Open a barrier: the named branches move together once all have arrived, or not at all.
///
/// Every participant may open it with the same branches; the first does, the others are told what became of it. Workers
/// arrive through the client crate.
///
/// Example: `fencepost barrier open prod/orders 2013-01-05 --branches jfk,lga,ewr --timeout 2h`
#[derive(Args)]
pub(crate) struct Open {
    #[command(flatten)]
    which: Which,
    /// Whom it waits for: branches, which need not exist yet.
    #[arg(long, short, required = true, value_delimiter = ',', value_name = "BRANCH,..")]
    branches: Vec<String>,
    /// How long it waits before it is aborted as a whole, such as 2h; without it, for ever.
    #[arg(long, short, value_name = "TIME", value_parser = duration::parse)]
    timeout: Option<u64>,
    /// Why, for the audit.
    #[arg(long, short, default_value = "", hide_default_value = true)]
    reason: String,
    #[command(flatten)]
    actor: Actor,
}

/// Wait until a barrier is committed or aborted.
///
/// Says whom it waits for whenever that changes. Exits with 0 once all branches were committed, with 73 if the barrier was
/// aborted, and with 75 if it still waits when --timeout is over: the barrier itself goes on waiting.
///
/// Example: `fencepost barrier wait prod/orders 2013-01-05 --timeout 30min && ./publish.sh`
#[derive(Args)]
pub(crate) struct Wait {
    #[command(flatten)]
    which: Which,
    /// How long to wait here, such as 30min; without it, until it is closed.
    #[arg(long, short, value_name = "TIME", value_parser = duration::parse)]
    timeout: Option<u64>,
}

#[derive(Args)]
pub(crate) struct Which {
    /// NAMESPACE/NAME.
    pipeline: String,
    /// The barrier, such as 2013-01-05.
    name: String,
}

impl Barriers {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        let mut barriers = match &self.pipeline {
            Some(pipeline) if self.all => client.pipeline(pipeline).barriers(),
            Some(pipeline) => client.pipeline(pipeline).waiting_barriers(),
            None => client.waiting_barriers(),
        };
        let (mut rows, mut known) = (Vec::new(), BTreeMap::<String, Leases>::new());
        while rows.len() < self.limit
            && let Some(barrier) = barriers.next().await?
        {
            if barrier.state() == State::Open && !known.contains_key(&barrier.pipeline) {
                known.insert(barrier.pipeline.clone(), leases(client, &barrier.pipeline).await?);
            }
            rows.push(row(&barrier, known.get(&barrier.pipeline).unwrap_or(&Leases::new())));
        }
        let columns = ["pipeline", "barrier", "state", "arrived", "missing", "deadline", "closed", "reason"];
        output.rows(&columns, rows, if self.all { "no barriers yet" } else { "no barrier waits" })
    }
}

impl BarrierCommand {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<ExitCode, CliError> {
        match self {
            BarrierCommand::Open(open) => open.run(client, output).await?,
            BarrierCommand::Show(which) => {
                let barrier = which.find(client).get().await?;
                print(&barrier, client, output).await?;
            }
            BarrierCommand::Wait(wait) => return wait.run(client, output).await,
            BarrierCommand::Abort { which, reason, actor } => {
                let barrier = which.find(client).abort(actor.name(), reason).await?;
                print(&barrier, client, output).await?;
            }
        }
        Ok(ExitCode::SUCCESS)
    }
}

impl Open {
    async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        let mut opening =
            client.pipeline(self.which.pipeline).open_barrier(self.which.name).participants(self.branches);
        if let Some(ms) = self.timeout {
            opening = opening.timeout(Duration::from_millis(ms));
        }
        let barrier = opening.actor(self.actor.name()).reason(self.reason).open().await?;
        print(&barrier, client, output).await
    }
}

impl Which {
    fn find(&self, client: &Client) -> fencepost_client::Barrier {
        client.pipeline(&self.pipeline).barrier(&self.name)
    }
}

impl Wait {
    async fn run(self, client: &Client, output: &Output) -> Result<ExitCode, CliError> {
        let mut states = self.which.find(client).watch();
        let patience = tokio::time::sleep(Duration::from_millis(self.timeout.unwrap_or(u64::MAX)));
        tokio::pin!(patience);
        let mut last = Barrier::default();
        loop {
            let now = tokio::select! {
                biased;
                now = states.next() => now?,
                () = &mut patience => break,
            };
            let Some(now) = now else { break };
            last = now;
            if last.state() == State::Open && !output.is_json() {
                let missing = missing(&last, &leases(client, &last.pipeline).await?);
                note(format_args!("waiting for {}", missing.text));
            }
        }
        print(&last, client, output).await?;
        Ok(exit::exit(match last.state() {
            State::Committed => exit::DONE,
            State::Aborted => exit::ABORTED,
            State::Open | State::Unspecified => exit::TRY_LATER,
        }))
    }
}

async fn print(barrier: &Barrier, client: &Client, output: &Output) -> Result<(), CliError> {
    let leases = if barrier.state() == State::Open { leases(client, &barrier.pipeline).await? } else { Leases::new() };
    output.record(record(barrier, &leases))
}

fn row(barrier: &Barrier, leases: &Leases) -> Vec<Cell> {
    vec![
        Cell::text(&barrier.pipeline),
        Cell::text(&barrier.name),
        Cell::text(state_word(barrier)),
        arrived(barrier),
        missing(barrier, leases),
        Cell::time(barrier.deadline_ms),
        Cell::time(barrier.closed_at_ms),
        Cell::maybe(&barrier.reason),
    ]
}

/// Who holds which branch of a pipeline.
type Leases = BTreeMap<String, LeaseInfo>;

async fn leases(client: &Client, pipeline: &str) -> Result<Leases, CliError> {
    let branches = client.pipeline(pipeline).branches().all().await?;
    let held = |branch: BranchInfo| branch.lease.map(|lease| (branch.branch, lease));
    Ok(branches.into_iter().filter_map(held).collect())
}

fn state_word(barrier: &Barrier) -> &'static str {
    match barrier.state() {
        State::Open => "open",
        State::Committed => "committed",
        State::Aborted => "aborted",
        State::Unspecified => "unknown",
    }
}

/// How many have arrived, of how many.
fn arrived(barrier: &Barrier) -> Cell {
    if barrier.participants.is_empty() {
        return Cell::none(false);
    }
    let (arrived, all) = (barrier.participants.iter().filter(|it| it.arrived).count(), barrier.participants.len());
    Cell::text(format!("{arrived} of {all}")).with_value(json!({ "count": arrived, "of": all }))
}

/// Who has not arrived, and while it matters whom to ask about it.
fn missing(barrier: &Barrier, leases: &Leases) -> Cell {
    let missing: Vec<_> = barrier.participants.iter().filter(|it| !it.arrived).collect();
    let words = missing.iter().map(|it| match barrier.state() {
        State::Open => missing_words(it, leases.get(&it.branch)),
        _ => it.branch.clone(),
    });
    let words = words.collect::<Vec<_>>();
    let values = missing.iter().map(|it| missing_json(it, leases.get(&it.branch))).collect::<Vec<_>>();
    Cell::maybe(&words.join(", ")).with_value(Value::Array(values))
}

fn missing_words(missing: &Participant, lease: Option<&LeaseInfo>) -> String {
    let who = match lease {
        Some(lease) => {
            let silent = human_duration(silent_ms(lease));
            // What is over the TTL is not told.
            let least = if lease.remaining_ms == 0 { "at least " } else { "" };
            format!("{}, silent for {least}{silent}", lease.holder)
        }
        None if missing.holder.is_empty() => "nobody ever held it".to_owned(),
        None => format!("nobody holds it, {} did", missing.holder),
    };
    format!("{} ({who})", missing.branch)
}

fn missing_json(missing: &Participant, lease: Option<&LeaseInfo>) -> Value {
    json!({
        "branch": missing.branch, "holder": (!missing.holder.is_empty()).then_some(&missing.holder),
        "silent_ms": lease.map(silent_ms), "ttl_ms": lease.map(|lease| lease.ttl_ms),
    })
}

/// How long nothing was heard of the holder; at most its TTL.
fn silent_ms(lease: &LeaseInfo) -> u64 {
    lease.ttl_ms.saturating_sub(lease.remaining_ms)
}

fn record(barrier: &Barrier, leases: &Leases) -> Vec<(Column, Cell)> {
    let names = barrier.participants.iter().map(|it| it.branch.as_str()).collect::<Vec<_>>();
    vec![
        ("pipeline", Cell::text(&barrier.pipeline)),
        ("barrier", Cell::text(&barrier.name)),
        ("state", Cell::text(state_word(barrier))),
        ("branches", Cell::maybe(&names.join(", ")).with_value(json!(names))),
        ("arrived", arrived(barrier)),
        ("missing", missing(barrier, leases)),
        ("deadline", Cell::time(barrier.deadline_ms)),
        ("opened", Cell::time(barrier.opened_at_ms)),
        ("opened_lsn", Cell::lsn(barrier.opened_lsn)),
        ("closed", Cell::time(barrier.closed_at_ms)),
        ("closed_lsn", Cell::lsn(barrier.closed_lsn)),
        ("reason", Cell::maybe(&barrier.reason)),
    ]
}

#[cfg(test)]
mod tests {
    use super::*;

    fn participant(branch: &str, arrived: bool, holder: &str) -> Participant {
        Participant { branch: branch.into(), arrived, holder: holder.into(), sequence: 0 }
    }

    #[test]
    fn who_is_missing_is_named_with_who_should_have_come() {
        let participants = vec![
            participant("ewr", true, "loader-1"),
            participant("jfk", false, "loader-2"),
            participant("lga", false, "loader-3"),
            participant("lhr", false, "loader-4"),
            participant("sfo", false, ""),
        ];
        let mut barrier = Barrier { participants, state: State::Open.into(), ..Default::default() };
        let lease = |holder: &str, remaining_ms| LeaseInfo {
            holder: holder.into(),
            ttl_ms: 30_000,
            remaining_ms,
            ..Default::default()
        };
        let leases = [("jfk", lease("loader-2", 28_000)), ("lga", lease("loader-3", 0))];
        let leases = leases.map(|(branch, lease)| (branch.to_owned(), lease)).into();
        let missed = missing(&barrier, &leases);
        assert_eq!(
            missed.text,
            "jfk (loader-2, silent for 2000 ms), lga (loader-3, silent for at least 30.0 s), \
             lhr (nobody holds it, loader-4 did), sfo (nobody ever held it)"
        );
        let expected = json!([
            { "branch": "jfk", "holder": "loader-2", "silent_ms": 2_000, "ttl_ms": 30_000 },
            { "branch": "lga", "holder": "loader-3", "silent_ms": 30_000, "ttl_ms": 30_000 },
            { "branch": "lhr", "holder": "loader-4", "silent_ms": null, "ttl_ms": null },
            { "branch": "sfo", "holder": null, "silent_ms": null, "ttl_ms": null },
        ]);
        assert_eq!(missed.value, expected);
        assert_eq!(arrived(&barrier).text, "1 of 5");
        barrier.set_state(State::Aborted);
        assert_eq!(missing(&barrier, &Leases::new()).text, "jfk, lga, lhr, sfo");
    }

    #[test]
    fn a_barrier_whose_participants_are_forgotten_counts_nobody() {
        assert_eq!(arrived(&Barrier::default()).text, "-");
    }
}
