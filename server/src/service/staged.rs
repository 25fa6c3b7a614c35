//! Phase one of two-phase commits. The second phase is a commit like any other.

use fencepost::Lsn;
use fencepost::log::v1::fact::Kind;
use fencepost::v1::{DiscardStagedRequest, DiscardStagedResponse, StageRequest, StageResponse};
use prost::Message as _;
use tonic::{Request, Status};

use super::status::status;
use super::{Backend, lease_of, shape, trace};
use crate::config::limits;
use crate::sequencer::Decision;
use crate::state::{StageVerdict, check_bytes, check_id, check_name, check_pipeline};

/// Stages a checkpoint.
pub(super) async fn stage(backend: &Backend, request: Request<StageRequest>) -> Result<StageResponse, Status> {
    let sequencer = &backend.sequencer;
    let traceparent = trace::of_call(&request);
    let mut request = request.into_inner();
    trace::fill_in(traceparent.as_deref(), request.checkpoint.as_mut(), &mut request.dead_letters);
    let (bytes, holder) = (request.encoded_len(), lease_of(&request.pipeline, &request.branch, request.token));
    let _permit = sequencer.permit(bytes).map_err(status)?;
    let stage = shape::stage(request).map_err(status)?;
    let decided = sequencer
        .decide_as(Some(holder), bytes, move |state, now_ms| {
            Ok(match state.evaluate_stage(stage, now_ms)? {
                StageVerdict::Stage(staged) => Decision { fact: Some(Kind::Staged(*staged)), answer: None },
                StageVerdict::AlreadyStaged(lsn) => Decision { fact: None, answer: Some(lsn) },
            })
        })
        .await
        .map_err(status)?;
    Ok(StageResponse {
        header: Some(sequencer.header(decided.seen)),
        lsn: decided.answer.or(decided.lsn).map_or(0, Lsn::as_u64),
        already: decided.answer.is_some(),
    })
}

/// Gives up what is staged.
pub(super) async fn discard(backend: &Backend, request: DiscardStagedRequest) -> Result<DiscardStagedResponse, Status> {
    let sequencer = &backend.sequencer;
    check_pipeline("pipeline", &request.pipeline).map_err(status)?;
    check_name("branch", &request.branch).map_err(status)?;
    check_id("stage_id", &request.stage_id).map_err(status)?;
    check_bytes("reason", request.reason.len(), limits::REASON_BYTES_MAX).map_err(status)?;
    let (bytes, holder) = (request.encoded_len(), lease_of(&request.pipeline, &request.branch, request.token));
    let decided = sequencer
        .decide_as(Some(holder), bytes, move |state, _| {
            let discarded = state.evaluate_discard_staged(&request)?;
            Ok(Decision { fact: Some(Kind::StagedDiscarded(discarded)), answer: () })
        })
        .await
        .map_err(status)?;
    Ok(DiscardStagedResponse { header: Some(sequencer.header(decided.seen)) })
}
