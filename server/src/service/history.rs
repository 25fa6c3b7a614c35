//! Where old checkpoints, commits and audit records are: recent ones from memory, the others from the index on disk. The one
//! place that puts such questions.

use std::sync::Arc;

use fencepost::log::v1::Fact;
use fencepost::{Lsn, Reason};
use tonic::Status;

use super::status::status;
use super::{Backend, facts};
use crate::error::Refusal;
use crate::index::IndexError;
use crate::sequencer::View;

/// How soon a question is worth asking again.
const RETRY_AFTER_MS: u64 = 1_000;

/// Where the facts are that gave the branch checkpoints of these sequences, as far as they are retained. By the time that the
/// answer is there, the state may have gone on, and has the last word on whether they still count.
pub(super) async fn places(
    backend: &Backend,
    pipeline: &str,
    branch: &str,
    sequences: Vec<u64>,
) -> Result<Vec<(u64, Lsn)>, Refusal> {
    let (pipeline, branch) = (pipeline.to_owned(), branch.to_owned());
    let look = move |view: &View| {
        let (known, asked) = view.state.whereabouts(&pipeline, &branch, &sequences);
        Ok((known, view.index.history(&pipeline, &branch, asked)))
    };
    let ((mut found, history), _) = backend.sequencer.read(look).await?;
    let places = history.complete(&backend.cold).await.map_err(refusal)?;
    found.extend(places.into_iter().map(|place| (place.sequence, place.lsn)));
    found.sort_unstable_by_key(|(sequence, _)| std::cmp::Reverse(*sequence));
    Ok(found)
}

/// The same of one.
pub(super) async fn place(
    backend: &Backend,
    pipeline: &str,
    branch: &str,
    sequence: u64,
) -> Result<Option<Lsn>, Refusal> {
    let found = places(backend, pipeline, branch, vec![sequence]).await?;
    Ok(found.first().map(|(_, lsn)| *lsn))
}

/// Where a checkpoint of a pipeline is that is being imported. All that is there of it counts as retained, also what is
/// older than the policy keeps and has no savepoint yet.
pub(super) async fn imported_place(
    backend: &Backend,
    pipeline: &str,
    branch: &str,
    sequence: u64,
) -> Result<Option<Lsn>, Refusal> {
    let (pipeline, branch) = (pipeline.to_owned(), branch.to_owned());
    let look = move |view: &View| Ok(view.index.history(&pipeline, &branch, [sequence]));
    let (history, _) = backend.sequencer.read(look).await?;
    let places = history.complete(&backend.cold).await.map_err(refusal)?;
    Ok(places.first().map(|place| place.lsn))
}

/// Where a commit with this id is whose checkpoints are retained, however old it is.
pub(super) async fn commit_id(backend: &Backend, pipeline: &str, commit_id: &str) -> Result<Option<Lsn>, Refusal> {
    let (pipeline, commit_id) = (pipeline.to_owned(), commit_id.to_owned());
    let (found, _) = backend.sequencer.read(move |view| Ok(view.index.commit_id(&pipeline, &commit_id))).await?;
    found.complete(&backend.cold).await.map_err(refusal)
}

/// The newest facts about the pipeline below `before` that say who did what and why, newest first; of one branch, if it is
/// not empty. One that cannot be read may be of any branch.
pub(super) async fn audit(
    backend: &Backend,
    pipeline: String,
    branch: String,
    mut before: Lsn,
    limit: usize,
) -> Result<Vec<(Lsn, Result<Fact, Refusal>)>, Status> {
    let newest = before;
    let mut found = Vec::new();
    while found.len() < limit {
        let of = pipeline.clone();
        let look = move |view: &View| Ok(view.index.audit(&of, before, limit));
        let (audit, _) = backend.sequencer.read(look).await.map_err(status)?;
        let lsns = audit.complete(&backend.cold).await.map_err(|error| status(refusal(error)))?;
        let Some(oldest) = lsns.last() else { break };
        before = *oldest;
        let (log, branch) = (Arc::clone(&backend.log), branch.clone());
        let facts = facts::blocking(move || {
            let mut facts = Vec::with_capacity(lsns.len());
            for lsn in lsns {
                match facts::find(&log, lsn) {
                    // Old records are removed at any time.
                    Ok(None) => {}
                    Ok(Some(fact)) if !branch.is_empty() && fact.branches().all(|name| name != branch) => {}
                    Ok(Some(fact)) => facts.push((lsn, Ok(without_payload(fact)))),
                    Err(unreadable) => facts.push((lsn, Err(unreadable))),
                }
            }
            Ok(facts)
        });
        found.extend(facts.await?);
    }
    // A new generation ended the leases of every pipeline. It is kept for good.
    let oldest = if found.len() < limit { Lsn::ZERO } else { found.last().map_or(Lsn::ZERO, |(lsn, _)| *lsn) };
    let (generations, _) =
        backend.sequencer.read(|view| Ok(view.state.generations().to_vec())).await.map_err(status)?;
    let log = Arc::clone(&backend.log);
    let generations = generations.into_iter().filter(move |lsn| *lsn < newest && *lsn > oldest);
    let generations: Vec<Lsn> = generations.collect();
    let started = facts::blocking(move || {
        Ok(generations.into_iter().map(|lsn| (lsn, facts::read(&log, lsn))).collect::<Vec<_>>())
    });
    found.extend(started.await?);
    found.sort_unstable_by_key(|(lsn, _)| std::cmp::Reverse(*lsn));
    found.truncate(limit);
    Ok(found)
}

fn refusal(error: IndexError) -> Refusal {
    let refusal = Refusal::new(Reason::IndexRebuilding, error.to_string()).with("retry_after_ms", RETRY_AFTER_MS);
    match error {
        IndexError::Unread { .. } => Refusal::new(Reason::Corrupt, error.to_string()),
        IndexError::Rebuilding { applied } => refusal.with("index_lsn", applied.as_u64()),
        IndexError::Failed { .. } | IndexError::Inconsistent { .. } => refusal,
    }
}

fn without_payload(mut fact: Fact) -> Fact {
    fact.take_out(|_| true);
    fact
}
