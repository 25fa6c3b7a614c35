//! Printing the facts of the log, one a line.

use clap::Args;
use fencepost::Lsn;
use fencepost_client::{Client, Tail};

use super::error::CliError;
use super::fact::{json, line};
use super::output::{Output, write};

#[derive(Args)]
pub(crate) struct Log {
    /// The first LSN wanted, such as 42 or 42.0; without it, the oldest that is kept.
    #[arg(long, value_name = "LSN", default_value_t = Lsn::ZERO, hide_default_value = true)]
    from: Lsn,
    /// Only facts about this pipeline.
    #[arg(long, short)]
    pipeline: Option<String>,
    /// Only facts about this branch.
    #[arg(long, short)]
    branch: Option<String>,
    /// Go on printing what happens until interrupted.
    #[arg(long, short)]
    follow: bool,
}

impl Log {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        let mut tail = Tail::from(self.from).without_state();
        if let Some(pipeline) = self.pipeline {
            tail = tail.pipeline(pipeline);
        }
        if let Some(branch) = self.branch {
            tail = tail.branch(branch);
        }
        if self.follow {
            tail = tail.follow();
        }
        let mut facts = client.tail(tail);
        while let Some(fact) = facts.next().await {
            let (lsn, fact) = fact?;
            let line = if output.is_json() { json(lsn, &fact).to_string() } else { line(lsn, &fact) };
            write(&line)?;
        }
        Ok(())
    }
}
