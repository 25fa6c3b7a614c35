//! Setting a branch back, after showing what that means.

use clap::Args;
use fencepost_client::{Branch, BranchInfo, Client, Error, Reason, RewindTo, Savepoint, StoredCheckpoint};

use super::actor::Actor;
use super::confirm::Confirm;
use super::error::CliError;
use super::exit;
use super::inspect::find_branch;
use super::output::{Cell, Output, readable, time};

/// Set a branch back to an earlier checkpoint.
///
/// Whoever has the branch is fenced: what it still commits is refused. Checkpoints above the new head are abandoned:
/// nothing leads there any more, and their commit ids are free again. What workers wrote to sinks stays there; take it
/// out, or let the sink drop rows of older tokens, before a worker resumes.
///
/// Shows what will happen and asks first. Where there is no terminal to ask on, --yes is needed.
#[derive(Args)]
pub(crate) struct Rewind {
    /// NAMESPACE/NAME.
    pipeline: String,
    /// The branch.
    #[arg(long, short, default_value = "main")]
    branch: String,
    #[command(flatten)]
    target: Target,
    /// Why, for the audit.
    #[arg(long, short)]
    reason: String,
    #[command(flatten)]
    confirm: Confirm,
    #[command(flatten)]
    actor: Actor,
}

#[derive(Args)]
#[group(required = true, multiple = false)]
struct Target {
    /// The number of the checkpoint that is to be the head; 0: before the first.
    #[arg(long, value_name = "SEQUENCE")]
    to: Option<u64>,
    /// The savepoint whose checkpoint is to be the head.
    #[arg(long, value_name = "NAME")]
    savepoint: Option<String>,
}

/// What a rewind would do.
struct Plan {
    branch: Branch,
    now: BranchInfo,
    to: u64,
    /// When the target was committed and the position it has; `None` before the first.
    target: Option<(u64, String)>,
}

impl Rewind {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        let branch = client.pipeline(&self.pipeline).branch(&self.branch);
        let (to, savepoint) = self.target.find(client, &branch).await?;
        let plan = Plan::make(client, branch, to, savepoint).await?;
        self.confirm.ask("rewind", &plan.words())?;
        let to = self.target.savepoint.map_or(RewindTo::Sequence(plan.to), RewindTo::Savepoint);
        let rewind = plan.branch.rewind_to(to).expected_head(plan.now.head_sequence);
        let done = rewind.actor(self.actor.name()).reason(self.reason).send().await.map_err(CliError::of_change)?;
        let (holder, token) =
            done.fenced.map_or((Cell::none(false), 0), |(holder, token)| (Cell::text(holder), token.as_u64()));
        output.record(vec![
            ("pipeline", Cell::text(self.pipeline)),
            ("branch", Cell::text(self.branch)),
            ("head_sequence", Cell::count(done.sequence)),
            ("abandoned", Cell::count(done.from.saturating_sub(done.sequence))),
            ("fenced", Cell::token(token)),
            ("holder", holder),
            ("by_token", Cell::token(done.token.as_u64())),
        ])
    }
}

impl Target {
    /// The sequence that is meant, and the savepoint that names it.
    async fn find(&self, client: &Client, branch: &Branch) -> Result<(u64, Option<Savepoint>), CliError> {
        let Some(name) = &self.savepoint else {
            return Ok((self.to.expect("clap asks for one of the two"), None));
        };
        let pipeline = branch.pipeline();
        let mut savepoints = client.pipeline(pipeline).savepoints();
        while let Some(savepoint) = savepoints.next().await? {
            if savepoint.name != *name {
                continue;
            }
            if savepoint.branch != branch.name() {
                let message = format!(
                    "savepoint '{name}' of '{pipeline}' is of branch '{}', not '{}': say --branch {}",
                    savepoint.branch,
                    branch.name(),
                    savepoint.branch
                );
                return Err(CliError::new(exit::REFUSED, message));
            }
            return Ok((savepoint.sequence, Some(savepoint)));
        }
        let message = format!(
            "pipeline '{pipeline}' has no savepoint '{name}': 'fencepost savepoint list {pipeline}' shows what it has"
        );
        Err(CliError::new(exit::NOT_FOUND, message))
    }
}

impl Plan {
    async fn make(client: &Client, branch: Branch, to: u64, savepoint: Option<Savepoint>) -> Result<Plan, CliError> {
        let target = if to == 0 {
            None
        } else {
            let found = branch.checkpoint(to).await;
            if let Some(savepoint) = savepoint.filter(|it| is_of_another_past(it, &found)) {
                return Err(another_past(&savepoint));
            }
            let checkpoint = found?;
            Some((checkpoint.committed_at_ms().unwrap_or(0), readable(checkpoint.position())))
        };
        Ok(Plan { now: find_branch(client, &branch).await?, branch, to, target })
    }

    fn words(&self) -> String {
        let Plan { now, to, .. } = self;
        let target = self.target.as_ref().map_or_else(
            || "before the first checkpoint".to_owned(),
            |(at_ms, position)| format!("checkpoint {to}, of {}, at '{position}'", time(*at_ms)),
        );
        let abandoned = match now.head_sequence.saturating_sub(*to) {
            0 => "nothing is abandoned".to_owned(),
            1 => format!("checkpoint {} is abandoned", now.head_sequence),
            many => format!("{many} checkpoints are abandoned: {} to {}", to + 1, now.head_sequence),
        };
        let holder = now.lease.as_ref().map_or_else(
            || "nobody holds the branch".to_owned(),
            |lease| format!("'{}' holds the branch and is fenced", lease.holder),
        );
        let head = match now.head_sequence {
            0 => "it has no checkpoint".to_owned(),
            head => format!("its head is {head}, of {}", time(now.head_committed_at_ms)),
        };
        let (pipeline, name) = (&now.pipeline, &now.branch);
        format!("{pipeline}/{name}: {head}\nback to {target}\n{abandoned}\n{holder}")
    }
}

/// Whether the branch has no checkpoint of that number, or another one: it was rewound since.
fn is_of_another_past(savepoint: &Savepoint, found: &Result<StoredCheckpoint, Error>) -> bool {
    match found {
        Ok(checkpoint) => checkpoint.lsn().as_u64() != savepoint.lsn,
        // One of this past would be there, and kept.
        Err(error) => matches!(error.reason(), Some(Reason::StateMissing | Reason::Compacted)),
    }
}

/// As the server would say it.
fn another_past(savepoint: &Savepoint) -> CliError {
    let Savepoint { pipeline, name, branch, sequence, .. } = savepoint;
    let message = format!(
        "savepoint '{name}' of '{pipeline}' names checkpoint {sequence} of branch '{branch}' from before the branch was \
         rewound, so it is not of this branch's past any more: fork the savepoint to a new branch instead"
    );
    CliError::new(exit::REFUSED, message)
}

#[cfg(test)]
mod tests {
    use super::*;
    use fencepost_client::LeaseInfo;

    #[tokio::test]
    async fn a_plan_says_what_is_lost_and_whom_it_stops() {
        let channel = tonic::transport::Endpoint::from_static("http://nobody.invalid").connect_lazy();
        let branch = Client::from_channel(channel).pipeline("prod/orders").branch("jfk");
        let lease = Some(LeaseInfo { holder: "loader-1".to_owned(), ..Default::default() });
        let now = BranchInfo {
            pipeline: "prod/orders".to_owned(),
            branch: "jfk".to_owned(),
            lease,
            head_sequence: 7,
            head_committed_at_ms: 1_000,
            ..Default::default()
        };
        let mut plan = Plan { branch, now, to: 4, target: Some((500, "offset=4".to_owned())) };
        assert_eq!(
            plan.words(),
            "prod/orders/jfk: its head is 7, of 1970-01-01T00:00:01.000Z\n\
             back to checkpoint 4, of 1970-01-01T00:00:00.500Z, at 'offset=4'\n\
             3 checkpoints are abandoned: 5 to 7\n\
             'loader-1' holds the branch and is fenced"
        );
        (plan.to, plan.target, plan.now.lease, plan.now.head_sequence) = (0, None, None, 1);
        let words = plan.words();
        assert!(words.contains("before the first") && words.contains("checkpoint 1 is abandoned"), "{words}");
        assert!(words.contains("nobody holds"), "{words}");
    }
}
