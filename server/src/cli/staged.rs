//! What is staged and waits for its commit.

use clap::{Args, Subcommand};
use fencepost::v1::{BranchInfo, StagedCheckpoint};
use fencepost_client::{Client, Resume};

use super::confirm::Confirm;
use super::error::CliError;
use super::exit;
use super::inspect::find_branch;
use super::output::{Cell, Output, time};

/// List what is staged and neither committed nor discarded: work that waits for its sink or for a barrier.
///
/// A branch that has something staged takes no other commit. The next worker that resumes it is told, asks its sink, and
/// commits or discards it. Nothing is ever removed by time.
///
/// Example: `fencepost staged prod/orders`
#[derive(Args)]
#[command(args_conflicts_with_subcommands = true)]
pub(crate) struct Staged {
    /// NAMESPACE/NAME; without it, all pipelines.
    pipeline: Option<String>,
    #[command(subcommand)]
    command: Option<StagedCommand>,
}

#[derive(Subcommand)]
enum StagedCommand {
    Discard(Discard),
}

/// Give up what a branch has staged, where no worker is left to do it.
///
/// Look at the sink first: if it has the work, this makes the next worker write it again. Takes the branch for a moment,
/// which fences its last worker, and gives it back; while a worker holds the branch that is refused with exit code 75. Stop
/// the worker then, or take the branch from it with `lease force`.
///
/// Shows what will be discarded and asks first. Where there is no terminal to ask on, --yes is needed.
///
/// Example: `fencepost staged discard prod/orders jfk --reason "the sink has no such transaction"`
#[derive(Args)]
struct Discard {
    /// NAMESPACE/NAME.
    pipeline: String,
    /// The branch.
    branch: String,
    /// Why, for the audit.
    #[arg(long, short)]
    reason: String,
    #[command(flatten)]
    confirm: Confirm,
    /// Who you are, for the log.
    #[arg(long, env = "USER", default_value = "operator")]
    holder: String,
}

impl Staged {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        if let Some(StagedCommand::Discard(discard)) = self.command {
            return discard.run(client, output).await;
        }
        let mut branches = match self.pipeline {
            Some(pipeline) => client.pipeline(pipeline).branches(),
            None => client.branches(),
        };
        let mut rows = Vec::new();
        while let Some(branch) = branches.next().await? {
            rows.extend(row(branch));
        }
        let columns = [
            "pipeline",
            "branch",
            "stage_id",
            "sequence",
            "staged",
            "token",
            "holder",
            "state_bytes",
            "barrier",
            "lsn",
        ];
        output.rows(&columns, rows, "nothing is staged")
    }
}

fn row(branch: BranchInfo) -> Option<Vec<Cell>> {
    let staged = branch.staged?;
    Some(vec![
        Cell::text(branch.pipeline),
        Cell::text(branch.branch),
        Cell::text(staged.stage_id),
        Cell::count(staged.sequence),
        Cell::time(staged.staged_at_ms),
        Cell::token(staged.token),
        Cell::maybe(branch.lease.as_ref().map_or("", |lease| &lease.holder)),
        Cell::bytes(staged.state_bytes),
        Cell::maybe(&staged.barrier),
        Cell::lsn(staged.lsn),
    ])
}

impl Discard {
    async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        let Discard { pipeline, branch: name, reason, confirm, holder } = self;
        let branch = client.pipeline(&pipeline).branch(&name);
        let now = find_branch(client, &branch).await?;
        let Some(staged) = now.staged else { return Err(nothing(&pipeline, &name)) };
        if let Some(lease) = now.lease.filter(|lease| lease.remaining_ms > 0) {
            return Err(held(&pipeline, &name, &lease.holder));
        }
        confirm.ask("discard", &plan(&pipeline, &name, &staged))?;
        let resume = Resume::new(holder).no_wait().start_fresh().soft();
        let resume = resume.reason(format!("to discard '{}'", staged.stage_id));
        let worker = branch.resume(resume).await?;
        let found = worker.staged();
        let result = match &found {
            Some(found) if found.id() == staged.stage_id => {
                worker.discard_staged(reason).await.map_err(CliError::of_change)
            }
            Some(found) => Err(another(&pipeline, &name, found.id())),
            None => Err(nothing(&pipeline, &name)),
        };
        worker.release().await?;
        result?;
        output.record(vec![
            ("pipeline", Cell::text(pipeline)),
            ("branch", Cell::text(name)),
            ("discarded", Cell::text(staged.stage_id)),
            ("sequence", Cell::count(staged.sequence)),
        ])
    }
}

fn plan(pipeline: &str, branch: &str, staged: &StagedCheckpoint) -> String {
    let StagedCheckpoint { stage_id, sequence, staged_at_ms, .. } = staged;
    let barrier = if staged.barrier.is_empty() {
        String::new()
    } else {
        format!("\nit has arrived at barrier '{}', which waits for the branch again", staged.barrier)
    };
    format!(
        "{pipeline}/{branch}: '{stage_id}' is staged as checkpoint {sequence} since {}{barrier}\n\
         the next worker starts from checkpoint {} and does that work again: be sure that no sink has it",
        time(*staged_at_ms),
        sequence.saturating_sub(1)
    )
}

fn held(pipeline: &str, branch: &str, holder: &str) -> CliError {
    let message = format!(
        "'{holder}' holds branch '{branch}' of '{pipeline}', so what is staged there is its business: stop it, or take the \
         branch from it first ('fencepost lease force {pipeline} {branch} --reason WHY'); nothing was discarded"
    );
    CliError::new(exit::TRY_LATER, message)
}

fn nothing(pipeline: &str, branch: &str) -> CliError {
    let message =
        format!("branch '{branch}' of '{pipeline}' has nothing staged: 'fencepost staged {pipeline}' lists what is");
    CliError::new(exit::NOT_FOUND, message)
}

fn another(pipeline: &str, branch: &str, id: &str) -> CliError {
    let message = format!(
        "branch '{branch}' of '{pipeline}' has '{id}' staged by now, which was not asked for: nothing was discarded"
    );
    CliError::new(exit::REFUSED, message)
}
