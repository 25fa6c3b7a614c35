//! Long work on the whole store. It goes on if its caller leaves, except for an export, which is nobody else's.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};

use fencepost::Reason;
use fencepost::v1::maintenance_service_server::MaintenanceService;
use fencepost::v1::{
    ClusterRef, CompactRequest, CompactResponse, CreateSnapshotRequest, CreateSnapshotResponse, ExportPipelineRequest,
    ExportPipelineResponse, Header, ImportPipelineRequest, ImportPipelineResponse,
};
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::status::status;
use super::transfer::{Turns, refusal};
use super::{Backend, export, import};
use crate::error::Refusal;
use crate::ops::snapshot;
use crate::ops::transfer::Contents;
use crate::state::check_pipeline;
use crate::upkeep::Progress;

pub(super) struct Service(pub(super) Backend, pub(super) Turns);

#[tonic::async_trait]
impl MaintenanceService for Service {
    type CompactStream = UnboundedReceiverStream<Result<CompactResponse, Status>>;
    type CreateSnapshotStream = UnboundedReceiverStream<Result<CreateSnapshotResponse, Status>>;
    type ExportPipelineStream = ReceiverStream<Result<ExportPipelineResponse, Status>>;

    async fn compact(&self, request: Request<CompactRequest>) -> Result<Response<Self::CompactStream>, Status> {
        let header = self.header(request.into_inner().cluster).await?;
        let (sender, receiver) = mpsc::unbounded_channel();
        let mut steps = Steps::default();
        // A caller who has left does not hear it.
        self.0.upkeep.compact(move |progress| match progress {
            Progress::Bytes { done, total } => {
                if steps.is_due(done, total) {
                    let progress =
                        CompactResponse { bytes_done: done, bytes_total: total, ..CompactResponse::default() };
                    drop(sender.send(Ok(CompactResponse { header: Some(header.clone()), ..progress })));
                }
            }
            Progress::Done(Ok(done)) => drop(sender.send(Ok(CompactResponse {
                header: Some(header.clone()),
                done: true,
                log_bytes_before: done.bytes_before,
                log_bytes_after: done.bytes_after,
                damaged: done.damaged,
                ..CompactResponse::default()
            }))),
            Progress::Done(Err(why)) => drop(sender.send(Err(Status::aborted(format!(
                "compaction did not come to its end, and is tried again in the background: {why}"
            ))))),
        });
        Ok(Response::new(UnboundedReceiverStream::new(receiver)))
    }

    async fn create_snapshot(
        &self,
        request: Request<CreateSnapshotRequest>,
    ) -> Result<Response<Self::CreateSnapshotStream>, Status> {
        let CreateSnapshotRequest { cluster, directory } = request.into_inner();
        let header = self.header(cluster).await?;
        let dir = PathBuf::from(&directory);
        if !dir.is_absolute() {
            let expected = "an absolute path on the server's machine";
            return Err(status(Refusal::field(Reason::InvalidField, "directory", directory, expected)));
        }
        let (sender, receiver) = mpsc::unbounded_channel();
        let backend = self.0.clone();
        tokio::task::spawn_blocking(move || {
            let result = create_snapshot(&backend, &header, &dir, &sender);
            // A caller who has left does not hear it; the snapshot is there all the same.
            drop(sender.send(result));
        });
        Ok(Response::new(UnboundedReceiverStream::new(receiver)))
    }

    async fn export_pipeline(
        &self,
        request: Request<ExportPipelineRequest>,
    ) -> Result<Response<Self::ExportPipelineStream>, Status> {
        let ExportPipelineRequest { cluster, pipeline } = request.into_inner();
        check_pipeline("pipeline", &pipeline).map_err(status)?;
        let of = pipeline.clone();
        let checked = self.0.sequencer.read(move |view| {
            view.state.check_cluster(cluster.as_ref())?;
            view.state.check_ready(&of)?;
            view.state.pipeline(&of).map(drop).ok_or_else(|| {
                let message = format!("there is no pipeline '{of}'; 'fencepost pipelines' lists what is there");
                Refusal::new(Reason::StateMissing, message).with("pipeline", of)
            })
        });
        let ((), seen) = checked.await.map_err(status)?;
        let header = self.0.sequencer.header(seen);
        let turn = self.1.export().map_err(status)?;
        Ok(Response::new(export::begin(self.0.clone(), header, pipeline, turn)))
    }

    async fn import_pipeline(
        &self,
        request: Request<Streaming<ImportPipelineRequest>>,
    ) -> Result<Response<ImportPipelineResponse>, Status> {
        let mut pieces = request.into_inner();
        let missing = || status(Refusal::field(Reason::InvalidField, "data", "", "the pieces of an export file"));
        let first = pieces.message().await?.ok_or_else(missing)?;
        let header = self.header(first.cluster.clone()).await?;
        let turn = self.1.import().map_err(status)?;
        let taken_in = import::import(&self.0, first, &mut pieces).await;
        drop(turn);
        let (pipeline, Contents { branches, checkpoints, savepoints, .. }) = taken_in?;
        Ok(Response::new(ImportPipelineResponse { header: Some(header), pipeline, branches, checkpoints, savepoints }))
    }
}

impl Service {
    async fn header(&self, cluster: Option<ClusterRef>) -> Result<Header, Status> {
        let checked = self.0.sequencer.read(move |view| view.state.check_cluster(cluster.as_ref()));
        let ((), seen) = checked.await.map_err(status)?;
        Ok(self.0.sequencer.header(seen))
    }
}

/// Not every step of a long work is told.
#[derive(Default)]
struct Steps {
    told_percent: u64,
}

impl Steps {
    fn is_due(&mut self, done: u64, total: u64) -> bool {
        let percent = done * 100 / total.max(1);
        percent != std::mem::replace(&mut self.told_percent, percent)
    }
}

type SnapshotSender = mpsc::UnboundedSender<Result<CreateSnapshotResponse, Status>>;

fn create_snapshot(
    backend: &Backend,
    header: &Header,
    dir: &Path,
    sender: &SnapshotSender,
) -> Result<CreateSnapshotResponse, Status> {
    let Backend { disk, log, config, clock, stopping, .. } = backend;
    let (mut bytes_done, bytes_total, mut steps) = (0, log.status().bytes, Steps::default());
    let mut pace = |bytes| {
        bytes_done += bytes;
        if steps.is_due(bytes_done, bytes_total) {
            let header = Some(header.clone());
            let told = CreateSnapshotResponse { header, bytes_done, bytes_total, ..CreateSnapshotResponse::default() };
            drop(sender.send(Ok(told)));
        }
        if *stopping.borrow() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    let created = snapshot::create(&**disk, log, &config.data_dir, header.generation, dir, clock, &mut pace);
    let created = created.map_err(|error| status(refusal(&error, Some(dir))))?;
    tracing::info!(dir = %dir.display(), lsn = %created.manifest.lsn(), "made a snapshot");
    Ok(CreateSnapshotResponse {
        header: Some(header.clone()),
        bytes_done: bytes_total,
        bytes_total,
        done: true,
        lsn: created.manifest.lsn,
        files: created.manifest.files.len() as u64,
        bytes: created.manifest.bytes(),
        bytes_copied: created.bytes_copied,
    })
}
