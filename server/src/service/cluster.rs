//! The state of the service itself.

use fencepost::v1::cluster_service_server::ClusterService;
use fencepost::v1::{GetStatusRequest, GetStatusResponse, LogStatus};
use fencepost::{Lsn, Reason};
use tonic::{Request, Response, Status};

use super::status::status;
use super::{Backend, store_status};

pub(super) struct Service(pub(super) Backend);

#[tonic::async_trait]
impl ClusterService for Service {
    async fn get_status(&self, _request: Request<GetStatusRequest>) -> Result<Response<GetStatusResponse>, Status> {
        let Backend { sequencer, log, clock, started, .. } = &self.0;
        let read = sequencer.read(|view| Ok((view.state.counts(), view.state.applied()))).await;
        // A server whose log has failed still says so.
        let ((pipelines, branches, leases), seen) = match read {
            Ok(((counts, _), seen)) => (counts, seen),
            Err(refusal) if refusal.reason == Reason::LogFailed => ((0, 0, 0), Lsn::ZERO),
            Err(refusal) => return Err(status(refusal)),
        };
        let log_status = log.status();
        Ok(Response::new(GetStatusResponse {
            header: Some(sequencer.header(seen)),
            version: env!("CARGO_PKG_VERSION").to_owned(),
            uptime_ms: clock.now().since(*started).as_millis() as u64,
            durable_lsn: seen.as_u64(),
            log: Some(LogStatus {
                segments: log_status.segments as u64,
                bytes: log_status.bytes,
                failure: log_status.failure.map_or_else(String::new, |failure| failure.to_string()),
            }),
            pipelines,
            branches,
            leases,
            counters: Some(sequencer.counters().snapshot()),
            store: Some(store_status::store_status(&self.0)),
        }))
    }
}
