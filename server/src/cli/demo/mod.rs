//! `fencepost demo`: the promise, kept before the user's eyes.
//!
//! A real server and three real worker processes add up a week of flights; two workers and the server are hit in the middle
//! of it; in the end everything has to be as if nothing had happened. Who is hit and when follows from a seed ([`plan`]);
//! what happens is in [`script`], what must be true afterwards in [`check`].

mod check;
mod event;
mod files;
mod flights;
mod plan;
mod script;
mod stage;
mod summary;
mod timeline;
mod worker;

use std::path::PathBuf;
use std::process::ExitCode;

use clap::Args;
use serde_json::json;
use tokio::signal::unix::{Signal, SignalKind, signal};

use self::files::WorkDir;
use self::flights::Expected;
use self::plan::Plan;
use self::script::Script;
pub(super) use self::stage::DemoChild;
use self::stage::Stage;
use self::summary::Summary;
use self::timeline::Timeline;
pub(super) use self::worker::DemoWorker;
use super::error::CliError;
use super::output::{Output, note};
use super::{exit, on_runtime};

/// Watch a pipeline survive kill -9, a zombie and a dead server, on real data, in half a minute.
///
/// Starts a server and three workers, each a process of its own. Each worker adds up the delays
/// of the flights from one airport by carrier and day, and after every batch commits how far it
/// has read, with the sums as its state. Meanwhile
///
///   1. a worker is killed (SIGKILL) in the middle of a batch, and a successor goes on after its
///      last commit;
///   2. a worker is frozen (SIGSTOP) for longer than its lease lasts, another takes over, and the
///      frozen one is woken: its commit bears an old fencing token and is refused;
///   3. the server is killed (SIGKILL) and started again; the workers ride over it by themselves.
///
/// In the end the sums are compared, row for row, with those of one uninterrupted pass over the
/// file. If anything differs the exit code is 65. No process is left behind, however it ends.
#[derive(Args)]
#[command(verbatim_doc_comment)]
#[command(about = "Watch a pipeline survive kill -9, a zombie and a dead server, on real data, in half a minute")]
pub(crate) struct Demo {
    /// A CSV file with the columns year, month, day, arr_delay, carrier and origin (EWR, JFK or LGA), such as
    /// nycflights13's flights.csv. [default: its first week, which is built in]
    #[arg(long, value_name = "FILE")]
    input: Option<PathBuf>,
    /// Chooses the victims and the moments; the same seed chooses the same. [default: a new one, which is printed]
    #[arg(long, value_name = "N")]
    seed: Option<u64>,
    /// Work in this directory, which must be empty or not there, and leave the log, the results and what the processes
    /// said in it. [default: a temporary one, which is removed unless something went wrong]
    #[arg(long, value_name = "DIR")]
    keep: Option<PathBuf>,
}

impl Demo {
    pub(super) fn run(self, output: &Output) -> Result<ExitCode, CliError> {
        on_runtime(async {
            // From here on a signal ends the demonstration in order, with its processes.
            let mut stop = Stop::listen()?;
            let stage = Stage::new(Timeline::new(output), WorkDir::make(self.keep.as_deref())?)?;
            let result = tokio::select! {
                result = self.play(&stage, output) => result.map(|()| ExitCode::SUCCESS),
                code = stop.requested() => {
                    note("\nstopped; ending all processes of the demonstration");
                    stage.clear().await;
                    stage.dir.clean_up();
                    return Ok(exit::exit(code));
                }
            };
            stage.clear().await;
            match &result {
                Err(_) if stage.look(|record| !record.parts.is_empty()) => {
                    note(format_args!("what the processes said is in {}", stage.dir.path().display()));
                }
                _ => stage.dir.clean_up(),
            }
            result
        })
    }

    async fn play(&self, stage: &Stage, output: &Output) -> Result<(), CliError> {
        let input = stage.dir.input(self.input.as_deref())?;
        let expected = Expected::read(&input)?;
        // Short enough to be typed again.
        let seed = self.seed.unwrap_or_else(|| fencepost_server::clock::random_id().as_u64_pair().0 >> 44);
        let plan = Plan::draw(seed, &expected)?;
        introduce(stage, &plan, &expected);

        let script = Script { stage, plan: &plan, input };
        let (endpoint, faults) = script.play().await?;
        let acknowledged = stage.look(check::acknowledged);
        let verdict = check::judge(&endpoint, &stage.dir, &expected, &acknowledged).await?;
        stage.clear().await;
        Summary { stage, plan: &plan, expected: &expected, faults: &faults, verdict: &verdict }.print(output)
    }
}

fn introduce(stage: &Stage, plan: &Plan, expected: &Expected) {
    let (flights, seed) = (expected.flights(), plan.seed);
    stage.timeline.remark(&format!(
        "Three workers add up the delays of {flights} flights, each for one of New York's airports. After every batch they\n\
         commit to a Fencepost server how far they have read, and their sums. On the way a worker is killed in the middle\n\
         of a batch, another is frozen until its lease is gone and then woken, and the server is killed. In the end every\n\
         sum must be as if nothing had happened. (Seed {seed}: `fencepost demo --seed {seed}` plays the same again.)\n"
    ));
    stage.timeline.object(&json!({
        "event": "plan",
        "seed": seed,
        "flights": flights,
        "killed": { "branch": plan.kill.origin, "batch": plan.kill.sequence },
        "frozen": { "branch": plan.freeze.origin, "batch": plan.freeze.sequence },
        "server_killed": { "branch": plan.server.origin, "after_sequence": plan.server.sequence },
    }));
}

/// The signals that ask the demonstration to stop.
struct Stop {
    interrupt: Signal,
    terminate: Signal,
    hangup: Signal,
}

impl Stop {
    fn listen() -> Result<Stop, CliError> {
        let listen = |kind| signal(kind).map_err(|cause| CliError::io("listening for signals", cause));
        Ok(Stop {
            interrupt: listen(SignalKind::interrupt())?,
            terminate: listen(SignalKind::terminate())?,
            hangup: listen(SignalKind::hangup())?,
        })
    }

    /// Resolves at the first, to the exit code that a shell would give it.
    async fn requested(&mut self) -> u8 {
        let kind = tokio::select! {
            _ = self.interrupt.recv() => SignalKind::interrupt(),
            _ = self.terminate.recv() => SignalKind::terminate(),
            _ = self.hangup.recv() => SignalKind::hangup(),
        };
        128 + kind.as_raw_value() as u8
    }
}
