//! Names for checkpoints that must not go.

use clap::{Args, Subcommand};
use fencepost_client::{Client, Savepoint};

use super::actor::Actor;
use super::error::CliError;
use super::output::{Cell, Output, UNREADABLE};

#[derive(Subcommand)]
pub(crate) enum SavepointCommand {
    Create(Create),
    /// List the savepoints of a pipeline.
    List {
        /// NAMESPACE/NAME.
        pipeline: String,
    },
    /// Take a savepoint's name away. The checkpoint lives on for as long as the policy keeps it.
    Delete {
        /// NAMESPACE/NAME.
        pipeline: String,
        /// The savepoint.
        name: String,
        /// Why, for the audit.
        #[arg(long, short, default_value = "", hide_default_value = true)]
        reason: String,
        #[command(flatten)]
        actor: Actor,
    },
}

/// Name a checkpoint, so that no policy removes it.
///
/// Do this before a migration or a risky deployment: `rewind --savepoint` goes back to it, `fork --savepoint` makes a
/// branch from it. The same again does nothing; another checkpoint under a name that is taken is refused.
#[derive(Args)]
pub(crate) struct Create {
    /// NAMESPACE/NAME.
    pipeline: String,
    /// A name for it, unique in the pipeline.
    name: String,
    /// The branch.
    #[arg(long, short, default_value = "main")]
    branch: String,
    /// The checkpoint's number in its branch; without it, the head.
    #[arg(long, short, value_parser = clap::value_parser!(u64).range(1..))]
    sequence: Option<u64>,
    /// Why, for the audit.
    #[arg(long, short, default_value = "", hide_default_value = true)]
    reason: String,
    #[command(flatten)]
    actor: Actor,
}

impl SavepointCommand {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        match self {
            SavepointCommand::Create(create) => create.run(client, output).await,
            SavepointCommand::List { pipeline } => {
                let savepoints = client.pipeline(pipeline).savepoints().all().await?;
                let columns = ["name", "branch", "sequence", "lsn", "created", "actor", "reason", UNREADABLE];
                let rows = savepoints.into_iter().map(|savepoint| {
                    let unreadable = Cell::maybe(&savepoint.unreadable);
                    cells(savepoint).into_iter().chain([unreadable]).collect()
                });
                output.rows(&columns, rows.collect(), "no savepoints")
            }
            SavepointCommand::Delete { pipeline, name, reason, actor } => {
                let deletion = client.pipeline(&pipeline).delete_savepoint(&name);
                deletion.actor(actor.name()).reason(reason).send().await?;
                output.record(vec![("pipeline", Cell::text(pipeline)), ("deleted", Cell::text(name))])
            }
        }
    }
}

impl Create {
    async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        let creation = client.pipeline(&self.pipeline).create_savepoint(self.name).branch(self.branch);
        let creation = creation.sequence(self.sequence.unwrap_or(0)).actor(self.actor.name()).reason(self.reason);
        let [name, branch, sequence, lsn, created, actor, reason] = cells(creation.send().await?);
        output.record(vec![
            ("pipeline", Cell::text(self.pipeline)),
            ("savepoint", name),
            ("branch", branch),
            ("sequence", sequence),
            ("lsn", lsn),
            ("created", created),
            ("actor", actor),
            ("reason", reason),
        ])
    }
}

fn cells(savepoint: Savepoint) -> [Cell; 7] {
    [
        Cell::text(savepoint.name),
        Cell::text(savepoint.branch),
        Cell::count(savepoint.sequence),
        Cell::lsn(savepoint.lsn),
        Cell::time(savepoint.created_at_ms),
        Cell::text(savepoint.actor),
        Cell::text(savepoint.reason),
    ]
}
