//! Commits of what was merged from committed checkpoints.

use std::sync::Arc;

use fencepost::Lsn;
use fencepost::log::v1::fact::Kind;
use fencepost::v1::{MergeInput, MergeRequest, MergeResponse};
use prost::Message as _;
use tonic::Status;

use super::status::status;
use super::{Backend, facts, history, lease_of, shape};
use crate::error::Refusal;
use crate::log::Log;
use crate::sequencer::{BARRIER_BYTES_MAX, Decision};
use crate::state::{Input, MergeCommit, MergeVerdict};

/// Reads the inputs, and commits what they were merged into.
pub(super) async fn merge(backend: &Backend, request: MergeRequest) -> Result<MergeResponse, Status> {
    let sequencer = &backend.sequencer;
    let (bytes, holder) = (request.encoded_len(), lease_of(&request.pipeline, &request.branch, request.token));
    let _permit = sequencer.permit(bytes).map_err(status)?;
    let (commit, mut merge) = shape::merge(request).map_err(status)?;
    let pipeline = commit.request.pipeline.clone();
    let inputs = find_inputs(backend, &pipeline, std::mem::take(&mut merge.inputs)).await?;
    let (branch, sequence) = (commit.request.branches[0].branch.clone(), commit.request.branches[0].sequence);
    // The places of the inputs come on top.
    let decided = sequencer
        .decide_as(Some(holder), bytes + BARRIER_BYTES_MAX, move |state, now_ms| {
            Ok(match state.evaluate_merge(MergeCommit { commit, merge, inputs }, now_ms)? {
                MergeVerdict::Apply(committed) => Decision { fact: Some(Kind::Committed(*committed)), answer: None },
                MergeVerdict::Already(lsn, branch, sequence) => {
                    Decision { fact: None, answer: Some((lsn, branch.to_string(), sequence)) }
                }
            })
        })
        .await
        .map_err(status)?;
    let already = decided.answer.is_some();
    let (lsn, branch, sequence) = decided.answer.unwrap_or_else(|| (decided.lsn.unwrap_or_default(), branch, sequence));
    let header = Some(sequencer.header(decided.seen));
    Ok(MergeResponse { header, branch, sequence, lsn: lsn.as_u64(), already })
}

/// Finds and reads the checkpoints that were merged. Why one of them could not be is for the state to weigh.
async fn find_inputs(
    backend: &Backend,
    pipeline: &str,
    wanted: Vec<MergeInput>,
) -> Result<Result<Vec<Input>, Refusal>, Status> {
    let Backend { sequencer, log, .. } = backend;
    let mut found = Vec::with_capacity(wanted.len());
    for input in wanted {
        match history::place(backend, pipeline, &input.branch, input.sequence).await {
            Ok(place) => found.push((input, place)),
            Err(refusal) => return Ok(Err(refusal)),
        }
    }
    let of = pipeline.to_owned();
    let placed = sequencer.read(move |view| {
        let place = |(input, found): (MergeInput, Option<Lsn>)| {
            let lsn = view.state.check_place(&of, &input.branch, input.sequence, found)?;
            Ok(MergeInput { lsn: lsn.as_u64(), ..input })
        };
        found.into_iter().map(place).collect::<Result<Vec<MergeInput>, Refusal>>()
    });
    let placed = match placed.await {
        Ok((placed, _)) => placed,
        Err(refusal) => return Ok(Err(refusal)),
    };
    let (log, of) = (Arc::clone(log), pipeline.to_owned());
    facts::blocking(move || Ok(placed.into_iter().map(|input| read_input(&log, &of, input)).collect())).await
}

fn read_input(log: &Log, pipeline: &str, input: MergeInput) -> Result<Input, Refusal> {
    let stored = facts::checkpoint(log, Lsn::from_u64(input.lsn), pipeline, &input.branch, true)?;
    let integrity = stored.checkpoint.and_then(|checkpoint| checkpoint.integrity);
    Ok(Input { input, schema: integrity.map_or_else(Box::default, |it| it.schema_fingerprint[..].into()) })
}
