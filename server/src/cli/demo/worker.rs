//! One worker process of the demonstration: reads flights of one airport from the committed position on, adds them up, and
//! commits after each batch.
//!
//! It is written as any pipeline would be, with one exception: it never looks whether it still has its lease, as
//! `Worker::run` would for it. What protects the data must not depend on a worker that behaves.

use std::io::{self, Write as _};
use std::path::PathBuf;
use std::process::ExitCode;
use std::time::Duration;

use clap::{Args, ValueEnum};
use fencepost_client::{Checkpoint, Client, Error, Reason, Resume, Takeover, Worker};

use super::event::Event;
use super::files::Results;
use super::flights::{Flight, Flights, Place, Totals};
use crate::cli::error::CliError;
use crate::cli::exit;

/// How long a successor waits for the branch before it gives up.
const WAIT: Duration = Duration::from_secs(20);

#[derive(Args)]
pub(crate) struct DemoWorker {
    #[arg(long)]
    pipeline: String,
    /// The airport, which is also the branch.
    #[arg(long)]
    origin: String,
    #[arg(long)]
    holder: String,
    #[arg(long, value_enum)]
    takeover: Mode,
    #[arg(long)]
    ttl_ms: u64,
    #[arg(long)]
    input: PathBuf,
    /// The file that result rows are appended to.
    #[arg(long)]
    results: PathBuf,
    #[arg(long)]
    batch_rows: usize,
    /// How long a batch takes.
    #[arg(long)]
    pace_ms: u64,
    /// A batch that takes longer, so that a fault meets it half done.
    #[arg(long, default_value_t = 0)]
    slow_batch: u64,
    #[arg(long, default_value_t = 0)]
    slow_ms: u64,
}

#[derive(Clone, Copy, Debug, ValueEnum)]
enum Mode {
    Wait,
    SameHolder,
}

/// The rows between two commits.
struct Batch {
    flights: Vec<Flight>,
    rows_in: u64,
    end: Place,
}

impl DemoWorker {
    pub(in crate::cli) async fn run(self, client: &Client) -> Result<ExitCode, CliError> {
        let worker = client.pipeline(&self.pipeline).branch(&self.origin).resume(self.resume()).await?;
        let head = worker.head();
        let position = head.as_ref().map_or_else(String::new, |head| head.position_str().into_owned());
        let mut totals: Totals = match &head {
            Some(head) => serde_json::from_slice(head.state()).map_err(|cause| damaged(&cause))?,
            None => Totals::default(),
        };
        tell(&Event::Resumed {
            token: worker.token().as_u64(),
            sequence: worker.sequence(),
            silent_ms: worker.predecessor().and_then(|before| before.silent).map(|silent| silent.as_millis() as u64),
            position: position.clone(),
        })?;
        let from = head.map(|_| position.parse()).transpose()?;
        let mut flights = Flights::open(&self.input, from)?;
        let mut results = Results::append_to(&self.results)?;
        while let Some(batch) = self.read(&mut flights)? {
            if let Err(refused) = self.work(&worker, &batch, &mut totals, &mut results).await? {
                tell(&refused)?;
                return Ok(exit::exit(exit::FENCED));
            }
        }
        let sequence = worker.sequence();
        worker.release().await?;
        tell(&Event::Done { sequence })?;
        Ok(ExitCode::SUCCESS)
    }

    fn resume(&self) -> Resume {
        let takeover = match self.takeover {
            Mode::Wait => Takeover::Wait,
            Mode::SameHolder => Takeover::SameHolder,
        };
        Resume::new(&self.holder).ttl(Duration::from_millis(self.ttl_ms)).takeover(takeover).wait(WAIT).start_fresh()
    }

    /// Reads until there are enough rows of the own airport; `None` at the end.
    fn read(&self, input: &mut Flights) -> Result<Option<Batch>, CliError> {
        let (mut flights, mut rows_in) = (Vec::with_capacity(self.batch_rows), 0);
        while flights.len() < self.batch_rows {
            let Some(flight) = input.next()? else { break };
            rows_in += 1;
            if flight.origin == self.origin {
                flights.push(flight);
            }
        }
        Ok((rows_in > 0).then(|| Batch { flights, rows_in, end: input.place() }))
    }

    /// Appends the rows of a batch, adds them to the totals, and commits. The inner error is what to tell when the commit
    /// was refused because the branch has another worker.
    async fn work(
        &self,
        worker: &Worker,
        batch: &Batch,
        totals: &mut Totals,
        results: &mut Results,
    ) -> Result<Result<(), Event>, CliError> {
        let sequence = worker.sequence() + 1;
        let (first, second) = batch.flights.split_at(batch.flights.len().div_ceil(2));
        results.append(worker.token(), sequence, first)?;
        tell(&Event::Halfway { sequence })?;
        let pace_ms = if sequence == self.slow_batch { self.slow_ms } else { self.pace_ms };
        tokio::time::sleep(Duration::from_millis(pace_ms)).await;
        // From here to the commit the worker does not wait for anything, so that one that slept for long sends its commit
        // before the answer to a renewal could tell it what happened meanwhile.
        results.append(worker.token(), sequence, second)?;
        for flight in &batch.flights {
            totals.add(&flight.day, &flight.carrier, flight.arrival_delay);
        }
        let rows_out = batch.flights.len() as u64;
        let checkpoint = Checkpoint::at(batch.end.to_string())
            .state(serde_json::to_vec(totals).map_err(|cause| damaged(&cause))?)
            .rows_in(batch.rows_in)
            .rows_out(rows_out)
            .rows_filtered(batch.rows_in - rows_out)
            .rows_dead(0);
        match worker.commit(checkpoint).await {
            Ok(committed) => {
                let (sequence, lsn) = (committed.sequence, committed.lsn.as_u64());
                tell(&Event::Committed { sequence, lsn, flights: totals.flights() })?;
                Ok(Ok(()))
            }
            Err(error) if error.reason() == Some(Reason::Fenced) => Ok(Err(refused(sequence, &error))),
            Err(error) => Err(error.into()),
        }
    }
}

fn refused(sequence: u64, error: &Error) -> Event {
    Event::Refused {
        sequence,
        reason: Reason::Fenced.as_str().to_owned(),
        message: error.to_string(),
        by_server: error.refusal().is_some(),
        holder: error.holder().map(str::to_owned),
        current_token: error.current_token().map(fencepost_client::Token::as_u64),
    }
}

/// Tells the demonstration. If it is gone, so is the reason to go on.
fn tell(event: &Event) -> Result<(), CliError> {
    let told = serde_json::to_string(event).map_err(io::Error::from).and_then(|line| {
        let mut stdout = io::stdout().lock();
        writeln!(stdout, "{line}").and_then(|()| stdout.flush())
    });
    told.map_err(|cause| CliError::io("telling the demonstration", cause))
}

fn damaged(cause: &serde_json::Error) -> CliError {
    CliError::new(exit::INTEGRITY, format!("the saved sums cannot be read or written: {cause}"))
}
