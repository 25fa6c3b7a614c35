//! Taking, keeping and giving back branches.

use std::sync::Arc;

use fencepost::v1::lease_service_server::LeaseService;
use fencepost::v1::{
    KeepAliveRequest, KeepAliveResponse, KeepAliveResult, ReleaseRequest, ReleaseResponse, ResumeMode, ResumeRequest,
    ResumeResponse, StagedCheckpoint,
};
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::status::{message, status};
use super::{Backend, facts, shape};
use crate::sequencer::{Readable, Resumed, Unread};
use crate::state::{Head, Staged};

pub(super) struct Service(pub(super) Backend);

#[tonic::async_trait]
impl LeaseService for Service {
    async fn resume(&self, request: Request<ResumeRequest>) -> Result<Response<ResumeResponse>, Status> {
        let Backend { sequencer, log, config, clock, .. } = &self.0;
        let request = request.into_inner();
        let without_state = request.mode() == ResumeMode::Soft;
        let (pipeline, branch) = (request.pipeline.clone(), request.branch.clone());
        let (resume, wait) = shape::resume(request, config.lease_ttl_default_ms).map_err(status)?;
        // Every byte of the newest segment was written or checked by this process.
        let mut readable = Readable { after: log.sealed_through(), ..Readable::default() };
        let deadline = clock.now().plus(wait);
        let granted = loop {
            let wait = deadline.since(clock.now());
            match sequencer.resume(resume.clone(), wait, readable.clone()).await.map_err(status)? {
                Resumed::Granted(granted) => break granted,
                Resumed::ReadFirst { unread: Unread::Head(at), arrived } => {
                    let head = facts::read_checkpoint(log, at, pipeline.clone(), branch.clone(), true).await?;
                    readable.scope = head.checkpoint.map(|checkpoint| checkpoint.scope).unwrap_or_default();
                    (readable.at, readable.arrived) = (at, Some(arrived));
                }
                Resumed::ReadFirst { unread: Unread::Staged(at), arrived } => {
                    let (log, pipeline, branch) = (Arc::clone(log), pipeline.clone(), branch.clone());
                    facts::blocking(move || facts::staged_checkpoint(&log, at, &pipeline, &branch, true)).await?;
                    (readable.staged, readable.arrived) = (at, Some(arrived));
                }
            }
        };
        let (log, lsn, head, staged) = (Arc::clone(log), granted.lsn, granted.head, granted.staged);
        let (predecessor, head, staged) = facts::blocking(move || {
            let read = |head: Head| facts::checkpoint(&log, head.lsn, &pipeline, &branch, without_state);
            let read_staged = |staged: Staged| {
                let checkpoint = facts::staged_checkpoint(&log, staged.lsn, &pipeline, &branch, without_state)?;
                Ok(StagedCheckpoint { checkpoint: Some(checkpoint), ..staged.told() })
            };
            let found = facts::predecessor(&log, lsn)
                .and_then(|it| Ok((it, head.map(read).transpose()?, staged.map(read_staged).transpose()?)));
            // The grant is in force all the same.
            found.map_err(|refusal| refusal.with("applied", "unknown"))
        })
        .await?;
        Ok(Response::new(ResumeResponse {
            header: Some(sequencer.header(granted.seen)),
            token: granted.token.as_u64(),
            ttl_ms: granted.ttl.as_millis() as u64,
            head,
            predecessor,
            staged,
            barriers: granted.barriers,
        }))
    }

    async fn keep_alive(&self, request: Request<KeepAliveRequest>) -> Result<Response<KeepAliveResponse>, Status> {
        let sequencer = &self.0.sequencer;
        let request = request.into_inner();
        shape::keep_alive(&request).map_err(status)?;
        let _permit = sequencer.permit(request.encoded_len()).map_err(status)?;
        let kept = sequencer.keep_alive(request).await.map_err(status)?;
        let results = kept.leases.into_iter().map(|lease| match lease {
            Ok(ttl) => KeepAliveResult { ttl_ms: ttl.as_millis() as u64, refusal: None },
            Err(refusal) => KeepAliveResult { ttl_ms: 0, refusal: Some(message(refusal)) },
        });
        Ok(Response::new(KeepAliveResponse { header: Some(sequencer.header(kept.seen)), results: results.collect() }))
    }

    async fn release(&self, request: Request<ReleaseRequest>) -> Result<Response<ReleaseResponse>, Status> {
        let sequencer = &self.0.sequencer;
        let request = request.into_inner();
        let lease = shape::lease(request.lease).map_err(status)?;
        let released = sequencer.release(request.cluster, lease).await.map_err(status)?;
        Ok(Response::new(ReleaseResponse { header: Some(sequencer.header(released.seen)) }))
    }
}
