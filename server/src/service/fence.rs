//! Ending all leases of a pipeline at once.

use fencepost::log::v1::fact::Kind;
use fencepost::v1::{FenceGroupRequest, FenceGroupResponse, FencedHolder};
use prost::Message as _;
use tonic::{Response, Status};

use super::status::status;
use super::{Backend, shape};
use crate::sequencer::Decision;
use crate::state::{Grant, check_asked_by, check_pipeline};

/// Holders that are told by name.
const NAMED_MAX: usize = 1_000;

pub(super) async fn group(
    backend: &Backend,
    request: FenceGroupRequest,
) -> Result<Response<FenceGroupResponse>, Status> {
    let sequencer = &backend.sequencer;
    check_pipeline("pipeline", &request.pipeline).map_err(status)?;
    check_asked_by(&request.actor, &request.reason).map_err(status)?;
    shape::reason(&request.reason, "it takes every branch from workers that may be alive").map_err(status)?;
    let decided = sequencer
        .decide(request.encoded_len(), move |state, _| {
            let fenced = state.evaluate_fence_group(&request)?;
            let holders = state.known_pipeline(&request.pipeline)?.leases().take(NAMED_MAX);
            let answer = FenceGroupResponse {
                header: None,
                token: fenced.token,
                fenced: holders.map(|(branch, grant)| holder(branch, grant)).collect(),
                fenced_count: fenced.leases,
            };
            Ok(Decision { fact: Some(Kind::GroupFenced(fenced)), answer })
        })
        .await
        .map_err(status)?;
    Ok(Response::new(FenceGroupResponse { header: Some(sequencer.header(decided.seen)), ..decided.answer }))
}

fn holder(branch: &str, grant: &Grant) -> FencedHolder {
    FencedHolder { branch: branch.to_owned(), holder: grant.holder.to_string(), token: grant.token.as_u64() }
}
