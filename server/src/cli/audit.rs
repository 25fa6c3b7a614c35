//! Who did what to a pipeline.

use clap::Args;
use fencepost_client::{AuditAction, AuditRecord, Client};
use serde_json::json;

use super::error::CliError;
use super::output::{Cell, Output, UNREADABLE};

/// Show who did what to a pipeline, when, to which checkpoint and why, newest first.
///
/// Who took a branch, by force or in turn; rewinds, forks, savepoints, policies, imports, restores. How far back it goes
/// is a matter of policy (`fencepost policy set --audit-for`).
#[derive(Args)]
pub(crate) struct Audit {
    /// NAMESPACE/NAME.
    pipeline: String,
    /// Only what concerns this branch.
    #[arg(long, short)]
    branch: Option<String>,
    /// How many, newest first.
    #[arg(long, short = 'n', default_value_t = 20)]
    limit: usize,
}

impl Audit {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        let pipeline = client.pipeline(self.pipeline);
        let mut records = self.branch.map_or_else(|| pipeline.audit(), |branch| pipeline.branch(branch).audit());
        let mut rows = Vec::new();
        while rows.len() < self.limit
            && let Some(record) = records.next().await?
        {
            rows.push(row(record));
        }
        let columns = ["at", "actor", "action", "branch", "sequence", "token", "reason", "detail", "lsn", UNREADABLE];
        output.rows(&columns, rows, "nothing was done yet, or nothing that the audit still keeps")
    }
}

fn row(record: AuditRecord) -> Vec<Cell> {
    let (words, value) = action(record.action());
    vec![
        Cell::time(record.at_ms),
        Cell::maybe(&record.actor),
        Cell::text(words).with_value(json!(value)),
        Cell::maybe(&record.branch),
        Cell::optional(Some(record.sequence).filter(|sequence| *sequence != 0)),
        Cell::token(record.token),
        Cell::maybe(&record.reason),
        Cell::maybe(&record.detail),
        Cell::lsn(record.lsn),
        Cell::maybe(&record.unreadable),
    ]
}

/// For people and for programs.
fn action(action: AuditAction) -> (&'static str, &'static str) {
    match action {
        AuditAction::Unspecified => ("unknown", "unknown"),
        AuditAction::LeaseGranted => ("took the branch", "lease_granted"),
        AuditAction::LeaseTakenOver => ("took it over", "lease_taken_over"),
        AuditAction::Rewound => ("rewound", "rewound"),
        AuditAction::Forked => ("forked", "forked"),
        AuditAction::SavepointCreated => ("named it", "savepoint_created"),
        AuditAction::SavepointDeleted => ("took a name away", "savepoint_deleted"),
        AuditAction::PolicySet => ("set the policy", "policy_set"),
        AuditAction::Imported => ("imported", "imported"),
        AuditAction::GenerationStarted => ("restored the store", "generation_started"),
        AuditAction::StagedDiscarded => ("discarded what was staged", "staged_discarded"),
        AuditAction::BarrierOpened => ("opened a barrier", "barrier_opened"),
        AuditAction::BarrierAborted => ("aborted a barrier", "barrier_aborted"),
        AuditAction::DeadLettersDiscarded => ("discarded dead letters", "dead_letters_discarded"),
        AuditAction::SchemaDeclared => ("declared a schema", "schema_declared"),
        AuditAction::GroupFenced => ("fenced the pipeline", "group_fenced"),
    }
}
