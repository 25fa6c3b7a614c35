//! Looking at pipelines, branches and checkpoints.

use std::num::NonZero;

use clap::Args;
use fencepost::v1::{BranchInfo, Merge};
use fencepost_client::{Branch, Client, StoredCheckpoint};
use serde_json::{Value, json};

use super::error::CliError;
use super::exit;
use super::fact::{merge_json, merge_words};
use super::output::{Cell, Output, UNREADABLE, hex, readable, write_raw};
use super::traceparent;

#[derive(Args)]
pub(crate) struct Pipelines {
    /// Only names that start so, such as `prod/`.
    #[arg(default_value = "")]
    prefix: String,
}

#[derive(Args)]
pub(crate) struct Branches {
    /// NAMESPACE/NAME; without it, all pipelines.
    pipeline: Option<String>,
}

#[derive(Args)]
pub(crate) struct Checkpoints {
    /// NAMESPACE/NAME.
    pipeline: String,
    /// The branch.
    #[arg(default_value = "main")]
    branch: String,
    /// How many, newest first.
    #[arg(long, short = 'n', default_value_t = 20)]
    limit: usize,
    /// Only those of this trace: 32 hexadecimal digits, or a whole traceparent.
    #[arg(long, value_name = "TRACE_ID", value_parser = traceparent::parse_id)]
    trace: Option<NonZero<u128>>,
}

#[derive(Args)]
pub(crate) struct Show {
    /// NAMESPACE/NAME.
    pipeline: String,
    /// The branch.
    #[arg(default_value = "main")]
    branch: String,
    /// The checkpoint's number in its branch; without it, the head.
    #[arg(long, short)]
    sequence: Option<u64>,
    /// Write the state to standard output, byte for byte, and nothing else.
    #[arg(long)]
    state: bool,
}

impl Pipelines {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        let none = match self.prefix.as_str() {
            "" => "no pipelines yet: 'fencepost run' or a client makes the first".to_owned(),
            prefix => format!("no pipeline's name begins with '{prefix}'"),
        };
        let pipelines = client.pipelines(self.prefix).all().await?;
        let rows = pipelines.into_iter().map(|pipeline| {
            vec![
                Cell::text(pipeline.pipeline),
                Cell::count(pipeline.branches),
                Cell::count(pipeline.leases),
                Cell::count(pipeline.commits),
                Cell::count(pipeline.dead_letters),
                Cell::time(pipeline.last_committed_at_ms),
            ]
        });
        let columns = ["pipeline", "branches", "leases", "commits", "dead_letters", "last_commit"];
        output.rows(&columns, rows.collect(), &none)
    }
}

impl Branches {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        let branches = match self.pipeline {
            Some(pipeline) => client.pipeline(pipeline).branches().all().await?,
            None => client.branches().all().await?,
        };
        print_branches(branches, output, "no branches yet")
    }
}

/// Branches with who holds them and where they are.
pub(super) fn print_branches(branches: Vec<BranchInfo>, output: &Output, none: &str) -> Result<(), CliError> {
    let rows = branches.into_iter().map(|branch| {
        let lease = branch.lease.as_ref();
        vec![
            Cell::text(branch.pipeline),
            Cell::text(branch.branch),
            Cell::count(branch.head_sequence),
            Cell::time(branch.head_committed_at_ms),
            Cell::token(lease.map_or(0, |lease| lease.token)),
            lease.map_or_else(|| Cell::none(false), |lease| Cell::text(&lease.holder)),
            lease.map_or_else(|| Cell::none(true), |lease| Cell::duration(lease.remaining_ms)),
        ]
    });
    let columns = ["pipeline", "branch", "sequence", "last_commit", "token", "holder", "claimable_in_ms"];
    output.rows(&columns, rows.collect(), none)
}

/// Who holds the branch and where it is.
pub(super) async fn find_branch(client: &Client, branch: &Branch) -> Result<BranchInfo, CliError> {
    let mut branches = client.pipeline(branch.pipeline()).branches();
    while let Some(info) = branches.next().await? {
        if info.branch == branch.name() {
            return Ok(info);
        }
    }
    let message = format!("pipeline '{}' has no branch '{}'", branch.pipeline(), branch.name());
    Err(CliError::new(exit::NOT_FOUND, message))
}

impl Checkpoints {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        let branch = client.pipeline(self.pipeline).branch(self.branch);
        let mut checkpoints = match self.trace {
            Some(trace) => branch.checkpoints_of_trace(trace),
            None => branch.checkpoints(),
        };
        let mut rows = Vec::new();
        while rows.len() < self.limit
            && let Some(checkpoint) = checkpoints.next().await?
        {
            let known = |cell, is_number| if checkpoint.unreadable().is_none() { cell } else { Cell::none(is_number) };
            rows.push(vec![
                Cell::count(checkpoint.sequence()),
                Cell::time(checkpoint.committed_at_ms().unwrap_or(0)),
                Cell::token(checkpoint.token().as_u64()),
                Cell::lsn(checkpoint.lsn().as_u64()),
                known(Cell::opaque(checkpoint.position()), false),
                known(Cell::bytes(checkpoint.state_bytes()), true),
                known(Cell::text(checkpoint.commit_id()), false),
                Cell::maybe(checkpoint.unreadable().unwrap_or_default()),
            ]);
        }
        let columns = ["sequence", "committed", "token", "lsn", "position", "state_bytes", "commit_id", UNREADABLE];
        let none = if self.trace.is_some() { "no checkpoints of that trace" } else { "no checkpoints yet" };
        output.rows(&columns, rows, none)
    }
}

impl Show {
    pub(super) async fn run(self, client: &Client, output: &Output) -> Result<(), CliError> {
        let branch = client.pipeline(self.pipeline).branch(self.branch);
        let checkpoint = match self.sequence {
            Some(sequence) => branch.checkpoint(sequence).await?,
            None => branch.head().await?,
        };
        checkpoint.verify()?;
        if self.state {
            return write_raw(checkpoint.state());
        }
        print_checkpoint(&checkpoint, output)
    }
}

/// How much of a state a person is shown.
const STATE_SHOWN_MAX: usize = 200;

fn scope(checkpoint: &StoredCheckpoint) -> Cell {
    let words = checkpoint.scope().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>();
    let values = checkpoint.scope().map(|(name, value)| (name.to_owned(), json!(value)));
    Cell::maybe(&words.join(", ")).with_value(Value::Object(values.collect()))
}

fn merged(merge: &Merge) -> Cell {
    Cell::text(merge_words(merge)).with_value(merge_json(merge))
}

fn print_checkpoint(checkpoint: &StoredCheckpoint, output: &Output) -> Result<(), CliError> {
    let integrity = checkpoint.integrity().cloned().unwrap_or_default();
    let state = checkpoint.state();
    let shown = if state.len() > STATE_SHOWN_MAX {
        // A character that the cut divides is left out.
        let start = &state[..STATE_SHOWN_MAX];
        let whole = std::str::from_utf8(start).map_or_else(|error| error.valid_up_to(), str::len);
        let start = if whole + 4 > STATE_SHOWN_MAX { &start[..whole] } else { start };
        format!("{}... (all of it: --state)", readable(start))
    } else {
        readable(state)
    };
    output.record(vec![
        ("pipeline", Cell::text(checkpoint.pipeline())),
        ("branch", Cell::text(checkpoint.branch())),
        ("sequence", Cell::count(checkpoint.sequence())),
        ("committed", Cell::time(checkpoint.committed_at_ms().unwrap_or(0))),
        ("token", Cell::token(checkpoint.token().as_u64())),
        ("lsn", Cell::lsn(checkpoint.lsn().as_u64())),
        ("commit_id", Cell::text(checkpoint.commit_id())),
        ("position", Cell::opaque(checkpoint.position())),
        ("size_bytes", Cell::bytes(checkpoint.state_bytes())),
        ("state", Cell::text(shown).with_value(if output.is_json() { json!(readable(state)) } else { json!(null) })),
        ("payload_crc32", Cell::text(format!("{:08x}", checkpoint.payload_crc32().unwrap_or(0)))),
        ("rows_in", Cell::optional(integrity.rows_in)),
        ("rows_out", Cell::optional(integrity.rows_out)),
        ("rows_filtered", Cell::optional(integrity.rows_filtered)),
        ("rows_dead", Cell::optional(integrity.rows_dead)),
        ("schema", Cell::text(hex(&integrity.schema_fingerprint))),
        (
            "format_version",
            Cell::optional(Some(u64::from(checkpoint.format_version())).filter(|version| *version != 0)),
        ),
        ("scope", scope(checkpoint)),
        ("traceparent", Cell::maybe(&checkpoint.traceparent().map(|it| it.to_string()).unwrap_or_default())),
        ("late_for", Cell::maybe(checkpoint.late_for().unwrap_or_default())),
        ("barrier", Cell::maybe(checkpoint.barrier().unwrap_or_default())),
        ("merged_from", checkpoint.merge().map_or_else(|| Cell::none(false), merged)),
        ("dead_letters", Cell::count(u64::from(checkpoint.dead_letters()))),
    ])
}
