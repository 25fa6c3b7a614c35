//! How the branches of a pipeline have fared.

use std::collections::HashMap;

use fencepost::v1::BranchInfo;
use fencepost_client::Client;
use fencepost_server::clock::Clock;
use serde_json::json;

use super::error::CliError;
use super::output::{Cell, Output};

/// One line for each branch of the pipeline.
pub(super) async fn run(pipeline: String, client: &Client, output: &Output) -> Result<(), CliError> {
    let branches = client.pipeline(pipeline).branches().all().await?;
    let now_ms = Clock::real().wall_ms();
    let columns = [
        "branch",
        "holder",
        "commits",
        "head_age_ms",
        "grants",
        "losses",
        "recoveries",
        "last_recovery_ms",
        "longest_recovery_ms",
        "dead_letters",
        "staged",
        "refusals",
    ];
    let rows = branches.into_iter().map(|branch| row(branch, now_ms)).collect();
    output.rows(&columns, rows, "no branches yet")
}

fn row(branch: BranchInfo, now_ms: u64) -> Vec<Cell> {
    let health = branch.health.unwrap_or_default();
    let age = (branch.head_sequence != 0).then(|| now_ms.saturating_sub(branch.head_committed_at_ms));
    let recovery = |ms| if health.recoveries == 0 { Cell::none(true) } else { Cell::duration(ms) };
    vec![
        Cell::text(branch.branch),
        Cell::maybe(branch.lease.as_ref().map_or("", |lease| &lease.holder)),
        Cell::count(branch.head_sequence),
        age.map_or_else(|| Cell::none(true), Cell::duration),
        Cell::count(health.grants),
        Cell::count(health.losses),
        Cell::count(health.recoveries),
        recovery(health.last_recovery_ms),
        recovery(health.longest_recovery_ms),
        Cell::count(branch.dead_letters),
        Cell::maybe(branch.staged.as_ref().map_or("", |staged| &staged.stage_id)),
        refusals(&health.refusals),
    ]
}

/// How often what was refused.
pub(super) fn refusals(counts: &HashMap<String, u64>) -> Cell {
    let mut sorted: Vec<_> = counts.iter().collect();
    sorted.sort();
    let words: Vec<_> = sorted.iter().map(|(reason, count)| format!("{reason} {count}")).collect();
    Cell::text(words.join(", ")).with_value(json!(counts))
}
