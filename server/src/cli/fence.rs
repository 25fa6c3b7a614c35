//! Ending all leases of a pipeline at once.

use clap::Args;
use fencepost_client::{BranchInfo, Client, Token};
use serde_json::{Value, json};

use super::actor::Actor;
use super::confirm::Confirm;
use super::error::CliError;
use super::output::{Cell, Output};

/// End every lease of a pipeline in one step: for a change of the number of its branches.
///
/// Whoever has a branch is fenced: what it still commits is refused. Nobody is left who could commit between the old
/// workers and the new ones. Heads and what is staged stay; arrivals at open barriers are void. What workers write to
/// places that do not compare tokens cannot be stopped from here, so stop them too if you can.
///
/// Shows who will be fenced and asks first. Where there is no terminal to ask on, --yes is needed.
///
/// Example: `fencepost fence prod/orders --reason "3 branches become 5"`
#[derive(Args)]
pub(crate) struct Fence {
    /// NAMESPACE/NAME.
    pipeline: String,
    /// Why, for the audit.
    #[arg(long, short)]
    reason: String,
    #[command(flatten)]
    confirm: Confirm,
    #[command(flatten)]
    actor: Actor,
}

impl Fence {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        let pipeline = client.pipeline(&self.pipeline);
        let branches = pipeline.branches().all().await?;
        self.confirm.ask("fence", &plan(&self.pipeline, &branches))?;
        let done = pipeline.fence(self.actor.name(), self.reason).await.map_err(CliError::of_change)?;
        let words =
            done.fenced.iter().map(|it| format!("{} ({}, {})", it.branch, it.holder, Token::from_u64(it.token)));
        let values = done.fenced.iter().map(
            |it| json!({ "branch": it.branch, "holder": it.holder, "token": Token::from_u64(it.token).to_string() }),
        );
        output.record(vec![
            ("pipeline", Cell::text(self.pipeline)),
            ("by_token", Cell::token(done.token.as_u64())),
            ("leases", Cell::count(done.leases)),
            (
                "fenced",
                Cell::maybe(&words.collect::<Vec<_>>().join(", ")).with_value(values.collect::<Vec<Value>>().into()),
            ),
        ])
    }
}

/// How many holders a person is shown before the fence.
const HOLDERS_SHOWN_MAX: usize = 20;

fn plan(pipeline: &str, branches: &[BranchInfo]) -> String {
    let count = match branches.len() {
        1 => "1 branch".to_owned(),
        many => format!("{many} branches"),
    };
    let held: Vec<_> = branches.iter().filter_map(|branch| Some((&branch.branch, branch.lease.as_ref()?))).collect();
    let mut lines = vec![format!("{pipeline}: {count}, {} of them held", held.len())];
    lines.extend(
        held.iter()
            .take(HOLDERS_SHOWN_MAX)
            .map(|(branch, lease)| format!("'{}' holds '{branch}' and is fenced", lease.holder)),
    );
    if held.len() > HOLDERS_SHOWN_MAX {
        lines.push(format!("and so are {} more", held.len() - HOLDERS_SHOWN_MAX));
    }
    lines.join("\n")
}

#[cfg(test)]
mod tests {
    use fencepost_client::LeaseInfo;

    use super::*;

    #[test]
    fn a_plan_names_whom_it_stops_but_not_a_thousand() {
        let branch = |i: usize, is_held: bool| BranchInfo {
            branch: format!("b{i}"),
            lease: is_held.then(|| LeaseInfo { holder: format!("loader-{i}"), ..Default::default() }),
            ..Default::default()
        };
        let few: Vec<_> = (0..2).map(|i| branch(i, i == 1)).collect();
        assert_eq!(
            plan("prod/orders", &few),
            "prod/orders: 2 branches, 1 of them held\n'loader-1' holds 'b1' and is fenced"
        );
        let many: Vec<_> = (0..1_000).map(|i| branch(i, true)).collect();
        let words = plan("prod/orders", &many);
        assert_eq!(words.lines().count(), 22);
        assert!(words.ends_with("'loader-19' holds 'b19' and is fenced\nand so are 980 more"), "{words}");
    }
}
