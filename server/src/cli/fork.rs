//! A branch made from another one.

use clap::Args;
use fencepost_client::Client;

use super::actor::Actor;
use super::error::CliError;
use super::output::{Cell, Output};

/// Make a branch from a checkpoint of another, in the same pipeline or in another one.
///
/// The new branch begins with a copy of the checkpoint as its number 1. Nobody holds it, it remembers no commit ids, and
/// the branch that it was made from is not touched: a way to rehearse a migration, or to go back to a checkpoint that was
/// abandoned.
#[derive(Args)]
pub(crate) struct Fork {
    /// NAMESPACE/NAME.
    pipeline: String,
    /// The branch to copy from.
    #[arg(default_value = "main")]
    branch: String,
    /// The branch to make; must not exist.
    #[arg(long, value_name = "NAME")]
    new_branch: String,
    /// The pipeline to make it in, as NAMESPACE/NAME; need not exist. Without it, the same.
    #[arg(long, value_name = "PIPELINE")]
    new_pipeline: Option<String>,
    /// The checkpoint's number in its branch; without it, the head.
    #[arg(long, short, conflicts_with = "savepoint", value_parser = clap::value_parser!(u64).range(1..))]
    sequence: Option<u64>,
    /// The savepoint that names the checkpoint.
    #[arg(long, value_name = "NAME")]
    savepoint: Option<String>,
    /// Why, for the audit.
    #[arg(long, short, default_value = "", hide_default_value = true)]
    reason: String,
    #[command(flatten)]
    actor: Actor,
}

impl Fork {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        let mut fork = client.pipeline(&self.pipeline).branch(&self.branch).fork_to(self.new_branch);
        if let Some(pipeline) = self.new_pipeline {
            fork = fork.pipeline(pipeline);
        }
        if let Some(sequence) = self.sequence {
            fork = fork.sequence(sequence);
        }
        if let Some(name) = self.savepoint {
            fork = fork.savepoint(name);
        }
        let forked = fork.actor(self.actor.name()).reason(self.reason).send().await.map_err(CliError::of_change)?;
        output.record(vec![
            ("pipeline", Cell::text(forked.branch.pipeline())),
            ("branch", Cell::text(forked.branch.name())),
            ("lsn", Cell::lsn(forked.lsn.as_u64())),
            ("source_pipeline", Cell::text(self.pipeline)),
            ("source_branch", Cell::text(self.branch)),
            ("source_sequence", Cell::count(forked.source_sequence)),
        ])
    }
}
