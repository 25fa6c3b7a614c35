//! Leases by hand.

use std::time::Duration;

use clap::Subcommand;
use fencepost::Token;
use fencepost_client::{Client, Resume, Takeover};

use super::error::CliError;
use super::inspect::print_branches;
use super::output::{Cell, Output};

#[derive(Subcommand)]
pub(crate) enum Lease {
    /// List the branches that somebody holds.
    List,
    /// Give a branch back in the name of its holder, whose token this takes.
    Release {
        /// NAMESPACE/NAME.
        pipeline: String,
        /// The branch.
        branch: String,
        /// The holder's token, such as g1.e42.
        #[arg(long, short)]
        token: Token,
    },
    /// Take a branch from a worker that is stuck, and leave it free for the next.
    ///
    /// The worker's token is dead from this moment on: whatever it still commits is refused as FENCED. What it writes
    /// to places that do not compare tokens cannot be stopped from here, so stop the worker too if you can.
    Force {
        /// NAMESPACE/NAME.
        pipeline: String,
        /// The branch.
        branch: String,
        /// Why, for the audit.
        #[arg(long, short)]
        reason: String,
        /// Who you are, for the log.
        #[arg(long, env = "USER", default_value = "operator")]
        holder: String,
    },
}

impl Lease {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        match self {
            Lease::List => print_branches(client.leases().all().await?, output, "nobody holds a lease"),
            Lease::Release { pipeline, branch, token } => {
                client.pipeline(&pipeline).branch(&branch).release(token).await?;
                let (pipeline, branch) = (Cell::text(pipeline), Cell::text(branch));
                output.record(vec![
                    ("pipeline", pipeline),
                    ("branch", branch),
                    ("released", Cell::token(token.as_u64())),
                ])
            }
            Lease::Force { pipeline, branch, reason, holder } => {
                let resume = Resume::new(holder)
                    .takeover(Takeover::Force)
                    .reason(reason)
                    .ttl(Duration::from_secs(1))
                    .start_fresh()
                    .soft();
                let worker = client.pipeline(&pipeline).branch(&branch).resume(resume).await?;
                // Who had released the branch before was not fenced by this.
                let fenced = worker.predecessor().filter(|holder| holder.silent.is_some()).cloned();
                let (token, sequence) = (worker.token(), worker.sequence());
                worker.release().await?;
                output.record(vec![
                    ("pipeline", Cell::text(pipeline)),
                    ("branch", Cell::text(branch)),
                    ("fenced", Cell::token(fenced.as_ref().map_or(0, |fenced| fenced.token.as_u64()))),
                    ("holder", fenced.map_or_else(|| Cell::none(false), |fenced| Cell::text(fenced.holder))),
                    ("by_token", Cell::token(token.as_u64())),
                    ("head_sequence", Cell::count(sequence)),
                ])
            }
        }
    }
}
