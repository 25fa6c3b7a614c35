//! Records that pipelines could not process.

use clap::{Args, Subcommand};
use fencepost_client::{Client, DeadLetterId, StoredDeadLetter};

use super::actor::Actor;
use super::error::CliError;
use super::exit;
use super::output::{Cell, Output, UNREADABLE, readable, write_raw};
use super::traceparent;

/// Look at records that a pipeline could not process, and give them up.
///
/// A dead letter comes in with the commit that skips it. It stays until a commit says that it has processed it after all,
/// somebody discards it here, or a rewind abandons its checkpoint.
///
/// To process dead letters after all is a worker's business: it takes a branch, writes what it makes of them to its sink, and
/// names them in its commit, which handles each once. In Rust: `pipeline.replay_dead_letters("mender")`, then `next` and
/// `done`; elsewhere: `BranchCommit.replayed`.
#[derive(Subcommand)]
pub(crate) enum DeadLettersCommand {
    List(List),
    Show(Show),
    Discard(Discard),
}

/// List the dead letters of a pipeline that are open, oldest first.
///
/// Example: `fencepost dead-letters list prod/orders --branch jfk`
#[derive(Args)]
pub(crate) struct List {
    /// NAMESPACE/NAME.
    pipeline: String,
    /// Only those of this branch.
    #[arg(long, short)]
    branch: Option<String>,
    /// How many.
    #[arg(long, short = 'n', default_value_t = 100)]
    limit: usize,
}

/// Show one dead letter, or write its record to standard output.
///
/// Example: `fencepost dead-letters show prod/orders 12.0/3 --raw > record.csv`
#[derive(Args)]
pub(crate) struct Show {
    /// NAMESPACE/NAME.
    pipeline: String,
    /// The dead letter, as `list` names it.
    id: DeadLetterId,
    /// Write the record to standard output, byte for byte, and nothing else.
    #[arg(long)]
    raw: bool,
}

/// Give dead letters up: all that are named or, if one of them is not open, none.
///
/// Example: `fencepost dead-letters discard prod/orders 12.0/3 12.0/4 --reason "test data"`
///
/// All of a branch:
///
/// `fencepost -o json dead-letters list prod/orders --branch jfk | jq -r '.[].id' |
///  xargs fencepost dead-letters discard prod/orders --reason "test data"`
#[derive(Args)]
pub(crate) struct Discard {
    /// NAMESPACE/NAME.
    pipeline: String,
    /// The dead letters, as `list` names them; at most 1,000.
    #[arg(required = true)]
    ids: Vec<DeadLetterId>,
    /// Why, for the audit.
    #[arg(long, short)]
    reason: String,
    #[command(flatten)]
    actor: Actor,
}

impl DeadLettersCommand {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        match self {
            DeadLettersCommand::List(list) => list.run(client, output).await,
            DeadLettersCommand::Show(show) => show.run(client, output).await,
            DeadLettersCommand::Discard(Discard { pipeline, ids, reason, actor }) => {
                let named = ids.iter().map(DeadLetterId::to_string).collect::<Vec<_>>();
                client.pipeline(&pipeline).discard_dead_letters(ids).actor(actor.name()).reason(reason).send().await?;
                let discarded = Cell::text(named.join(", ")).with_value(named.into());
                output.record(vec![("pipeline", Cell::text(pipeline)), ("discarded", discarded)])
            }
        }
    }
}

impl List {
    async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        let mut letters = client.pipeline(self.pipeline).dead_letters().without_payload();
        if let Some(branch) = self.branch {
            letters = letters.branch(branch);
        }
        let (mut letters, mut rows) = (letters.list(), Vec::new());
        while rows.len() < self.limit
            && let Some(letter) = letters.next().await?
        {
            rows.push(row(&letter));
        }
        let columns = ["id", "branch", "sequence", "at", "reason", "position", "payload_bytes", "trace", UNREADABLE];
        output.rows(&columns, rows, "no dead letters are open")
    }
}

fn row(letter: &StoredDeadLetter) -> Vec<Cell> {
    let known = |cell, is_number| if letter.unreadable().is_none() { cell } else { Cell::none(is_number) };
    vec![
        Cell::text(letter.id().to_string()),
        Cell::text(letter.branch()),
        Cell::count(letter.sequence()),
        Cell::time(letter.at_ms()),
        Cell::maybe(letter.reason()),
        known(Cell::maybe(&readable(letter.position())), false),
        known(Cell::bytes(letter.payload_bytes()), true),
        Cell::maybe(&letter.traceparent().map(traceparent::id).unwrap_or_default()),
        Cell::maybe(letter.unreadable().unwrap_or_default()),
    ]
}

impl Show {
    async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        let mut letters = client.pipeline(&self.pipeline).dead_letters().list();
        let letter = loop {
            match letters.next().await? {
                Some(letter) if letter.id() == self.id => break letter,
                Some(_) => {}
                None => return Err(self.not_open()),
            }
        };
        if let Some(why) = letter.unreadable() {
            let message = format!("dead letter {} cannot be read: {why}", self.id);
            return Err(CliError::new(exit::INTEGRITY, message));
        }
        if self.raw {
            return write_raw(letter.payload());
        }
        output.record(vec![
            ("pipeline", Cell::text(self.pipeline)),
            ("id", Cell::text(self.id.to_string())),
            ("branch", Cell::text(letter.branch())),
            ("sequence", Cell::count(letter.sequence())),
            ("at", Cell::time(letter.at_ms())),
            ("reason", Cell::text(letter.reason())),
            ("position", Cell::maybe(&readable(letter.position()))),
            ("traceparent", Cell::maybe(&letter.traceparent().map(|it| it.to_string()).unwrap_or_default())),
            ("size_bytes", Cell::bytes(letter.payload_bytes())),
            ("payload", Cell::opaque(letter.payload())),
        ])
    }

    fn not_open(&self) -> CliError {
        let (id, pipeline) = (self.id, &self.pipeline);
        let message = format!(
            "dead letter {id} of '{pipeline}' is not open: it was replayed or discarded, or there never was one; \
             'fencepost dead-letters list {pipeline}' shows those that are"
        );
        CliError::new(exit::NOT_FOUND, message)
    }
}
