//! Printing the facts of the log, one a line.

use clap::Args;
use fencepost::log::v1::Fact;
use fencepost::log::v1::fact::Kind;
use fencepost::{Lsn, Token};
use fencepost_client::{Client, Tail};
use serde_json::{Value, json};

use super::error::CliError;
use super::output::{Output, human_duration, readable, time, write};

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

/// For a person.
fn line(lsn: Lsn, fact: &Fact) -> String {
    let token = |token: u64| Token::from_u64(token);
    let what = match &fact.kind {
        Some(Kind::ClusterCreated(created)) => {
            format!("created    cluster {}, generation {}", created.cluster_id, created.generation)
        }
        Some(Kind::LeaseGranted(granted)) => {
            let after = match (granted.previous_token, granted.previous_silent_ms) {
                (0, _) => String::new(),
                (previous, None) => format!(", after {} ({} released)", granted.previous_holder, token(previous)),
                (previous, Some(ms)) => {
                    let silent = human_duration(ms);
                    format!(", from {} ({} silent for {silent})", granted.previous_holder, token(previous))
                }
            };
            let reason =
                if granted.reason.is_empty() { String::new() } else { format!(", because: {}", granted.reason) };
            format!(
                "granted    {}/{} to {} as {} at sequence {}{after}{reason}",
                granted.pipeline,
                granted.branch,
                granted.holder,
                token(granted.token),
                granted.resumed_sequence
            )
        }
        Some(Kind::LeaseReleased(released)) => {
            format!("released   {}/{} by {}", released.pipeline, released.branch, token(released.token))
        }
        Some(Kind::Committed(committed)) => {
            let moved = committed.branches.iter().map(|moved| {
                let position = moved.checkpoint.as_ref().map_or_else(String::new, |saved| readable(&saved.position));
                let (branch, sequence) = (&moved.branch, moved.sequence);
                format!("{}/{branch} to {sequence} at '{position}' by {}", committed.pipeline, token(moved.token))
            });
            format!("committed  {}", moved.collect::<Vec<_>>().join(", "))
        }
        _ => "unknown    a kind of fact that this version does not know".to_owned(),
    };
    format!("{:<8} {}  {what}", lsn.to_string(), time(fact.at_ms))
}

/// For a program.
fn json(lsn: Lsn, fact: &Fact) -> Value {
    let (kind, what) = match &fact.kind {
        Some(Kind::ClusterCreated(created)) => {
            ("cluster_created", json!({ "cluster_id": created.cluster_id, "generation": created.generation }))
        }
        Some(Kind::LeaseGranted(granted)) => (
            "lease_granted",
            json!({
                "pipeline": granted.pipeline, "branch": granted.branch,
                "token": Token::from_u64(granted.token).to_string(),
                "holder": granted.holder, "ttl_ms": granted.ttl_ms, "lock_delay_ms": granted.lock_delay_ms,
                "takeover": granted.takeover().as_str_name(), "reason": granted.reason,
                "resumed_sequence": granted.resumed_sequence, "previous_holder": granted.previous_holder,
                "previous_token": (granted.previous_token != 0)
                    .then(|| Token::from_u64(granted.previous_token).to_string()),
                "previous_silent_ms": granted.previous_silent_ms,
            }),
        ),
        Some(Kind::LeaseReleased(released)) => (
            "lease_released",
            json!({
                "pipeline": released.pipeline, "branch": released.branch,
                "token": Token::from_u64(released.token).to_string(),
            }),
        ),
        Some(Kind::Committed(committed)) => {
            let branches = committed.branches.iter().map(|moved| {
                let saved = moved.checkpoint.as_ref();
                json!({
                    "branch": moved.branch, "sequence": moved.sequence,
                    "token": Token::from_u64(moved.token).to_string(),
                    "position": saved.map(|saved| readable(&saved.position)),
                })
            });
            let branches = branches.collect::<Vec<_>>();
            let what = json!({
                "pipeline": committed.pipeline, "commit_id": committed.commit_id, "branches": branches,
            });
            ("committed", what)
        }
        _ => ("unknown", json!({})),
    };
    let mut line = json!({ "lsn": lsn.to_string(), "at": time(fact.at_ms), "kind": kind });
    if let (Some(line), Value::Object(what)) = (line.as_object_mut(), what) {
        line.extend(what);
    }
    line
}
