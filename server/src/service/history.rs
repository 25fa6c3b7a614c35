//! Where old checkpoints and audit records are. The one place that knows where that is looked up.

use std::collections::VecDeque;

use fencepost::Lsn;
use fencepost::log::v1::Fact;
use fencepost::log::v1::fact::Kind;
use tonic::Status;

use super::{Backend, facts};
use crate::error::Refusal;
use crate::sequencer::View;

/// Where the newest facts are that gave the branch checkpoints of these sequences, as far as history knows them. The
/// state has the last word on whether they still count.
pub(super) async fn places(
    backend: &Backend,
    pipeline: &str,
    branch: &str,
    sequences: Vec<u64>,
) -> Result<Vec<(u64, Lsn)>, Refusal> {
    let (pipeline, branch) = (pipeline.to_owned(), branch.to_owned());
    let look = move |view: &View| {
        let place = |sequence| Some((sequence, view.index.commit(&pipeline, &branch, sequence)?));
        Ok(sequences.into_iter().filter_map(place).collect())
    };
    Ok(backend.sequencer.read(look).await?.0)
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

/// The newest facts about the pipeline below `before` that say who did what and why, newest first; of one branch, if it is
/// not empty.
pub(super) async fn audit(
    backend: &Backend,
    pipeline: String,
    branch: String,
    before: Lsn,
    limit: usize,
) -> Result<Vec<(Lsn, Fact)>, Status> {
    let log = backend.log.clone();
    facts::blocking(move || {
        let mut newest = VecDeque::with_capacity(limit);
        for fact in log.scan(Lsn::ZERO) {
            let (lsn, payload) = fact.map_err(facts::unreadable)?;
            if lsn >= before {
                break;
            }
            let fact = facts::decode(lsn, payload)?;
            let of_branch = branch.is_empty() || fact.branches().any(|name| name == branch);
            if !of_branch || !is_audited(&fact, &pipeline) {
                continue;
            }
            if newest.len() == limit {
                newest.pop_front();
            }
            newest.push_back((lsn, without_payload(fact)));
        }
        Ok(newest.into_iter().rev().collect())
    })
    .await
}

fn is_audited(fact: &Fact, pipeline: &str) -> bool {
    match &fact.kind {
        Some(Kind::GenerationStarted(_)) => true,
        Some(
            Kind::LeaseGranted(_)
            | Kind::Rewound(_)
            | Kind::Forked(_)
            | Kind::SavepointCreated(_)
            | Kind::SavepointDeleted(_)
            | Kind::PolicySet(_)
            | Kind::ImportStarted(_),
        ) => fact.pipeline() == Some(pipeline),
        _ => false,
    }
}

fn without_payload(mut fact: Fact) -> Fact {
    fact.checkpoints_mut().for_each(|checkpoint| *checkpoint = None);
    fact
}
