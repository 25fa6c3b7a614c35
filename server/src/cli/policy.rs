//! What a pipeline keeps.

use std::time::Duration;

use clap::{Args, Subcommand};
use fencepost_client::{Client, Policy, Reason};

use super::actor::Actor;
use super::duration;
use super::error::CliError;
use super::output::{Cell, Output};

#[derive(Subcommand)]
pub(crate) enum PolicyCommand {
    /// Show what a pipeline keeps, with the defaults filled in.
    Show {
        /// NAMESPACE/NAME.
        pipeline: String,
    },
    Set(Set),
}

/// Change what a pipeline keeps. What is not given stays as it is.
///
/// A checkpoint is kept if it is among the last N of its branch, or if it was committed no longer than --keep-for before
/// the branch's newest. Heads and checkpoints with a savepoint are always kept. Time is the branch's own: one that stands
/// still keeps what it has. Checkpoints that are gone do not come back when a policy is widened.
#[derive(Args)]
pub(crate) struct Set {
    /// NAMESPACE/NAME; need not exist yet.
    pipeline: String,
    #[command(flatten)]
    rules: Rules,
    /// Why, for the audit.
    #[arg(long, short, default_value = "", hide_default_value = true)]
    reason: String,
    #[command(flatten)]
    actor: Actor,
}

#[derive(Args, Default)]
#[group(required = true, multiple = true)]
struct Rules {
    /// Keep so many newest checkpoints of each branch.
    #[arg(long, value_name = "N", value_parser = clap::value_parser!(u64).range(1..=1_000_000))]
    keep_last: Option<u64>,
    /// Also keep what was committed so long before the branch's newest, such as 7d or 12h; 0s: nothing more.
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    keep_for: Option<u64>,
    /// Let `audit` look back so far, such as 90d.
    #[arg(long, value_name = "TIME", value_parser = duration::parse)]
    audit_for: Option<u64>,
    /// Refuse checkpoints whose row counts do not add up: rows in = rows out + filtered + dead, with a dead letter for each
    /// dead row. `=false` takes it back.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    reconcile_rows: Option<bool>,
    /// Refuse checkpoints whose schema is not declared (`fencepost schema declare`), or does not follow that of the head.
    /// `=false` takes it back.
    #[arg(long, value_name = "BOOL", num_args = 0..=1, require_equals = true, default_missing_value = "true")]
    declared_schemas_only: Option<bool>,
}

impl PolicyCommand {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        match self {
            PolicyCommand::Show { pipeline } => print(&pipeline, client.pipeline(&pipeline).policy().await?, output),
            PolicyCommand::Set(Set { pipeline, rules, reason, actor }) => {
                let of = client.pipeline(&pipeline);
                let present = match of.policy().await {
                    Err(error) if error.reason() == Some(Reason::StateMissing) => Policy::new(),
                    present => present?,
                };
                let policy = rules.over(present);
                let policy = of.set_policy(policy).actor(actor.name()).reason(reason).send().await?;
                print(&pipeline, policy, output)
            }
        }
    }
}

impl Rules {
    /// What was given, and the rest as it was.
    fn over(self, present: Policy) -> Policy {
        let time = |given: Option<u64>, present: Duration| given.map_or(present, Duration::from_millis);
        let mut policy = Policy::new()
            .keep_last(self.keep_last.unwrap_or(present.keep_last))
            .keep_for(time(self.keep_for, present.keep_for))
            .audit_for(time(self.audit_for, present.audit_for));
        policy.reconcile_rows = self.reconcile_rows.unwrap_or(present.reconcile_rows);
        policy.declared_schemas_only = self.declared_schemas_only.unwrap_or(present.declared_schemas_only);
        policy
    }
}

fn print(pipeline: &str, policy: Policy, output: &Output) -> Result<(), CliError> {
    let time = |time: Duration| Cell::exact_duration(u64::try_from(time.as_millis()).unwrap_or(u64::MAX));
    output.record(vec![
        ("pipeline", Cell::text(pipeline)),
        ("keep_last", Cell::count(policy.keep_last)),
        ("keep_for_ms", time(policy.keep_for)),
        ("audit_for_ms", time(policy.audit_for)),
        ("reconcile_rows", Cell::flag(policy.reconcile_rows)),
        ("declared_schemas_only", Cell::flag(policy.declared_schemas_only)),
    ])
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn rules_that_are_not_given_stay_as_they_were() {
        let day = Duration::from_hours(24);
        let present = Policy::new().keep_last(20).keep_for(day).audit_for(day * 30).reconcile_rows();
        let rules = Rules { keep_for: Some(0), ..Rules::default() };
        assert_eq!(rules.over(present), present.keep_for(Duration::ZERO));
        let rules = Rules { keep_last: Some(3), audit_for: Some(1_000), ..Rules::default() };
        assert_eq!(rules.over(present), present.keep_last(3).audit_for(Duration::from_secs(1)));
        let rules = Rules { reconcile_rows: Some(false), declared_schemas_only: Some(true), ..Rules::default() };
        let expected = Policy::new().keep_last(20).keep_for(day).audit_for(day * 30).declared_schemas_only();
        assert_eq!(rules.over(present), expected);
    }
}
