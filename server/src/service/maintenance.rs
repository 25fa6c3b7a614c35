//! Long work on the whole store. It goes on if its caller leaves, except for an export, which is nobody else's.

use std::ops::ControlFlow;
use std::path::{Path, PathBuf};
use std::sync::Arc;

use bytes::Bytes;
use fencepost::log::v1::fact::Kind;
use fencepost::log::v1::{Fact, ImportStarted};
use fencepost::v1::maintenance_service_server::MaintenanceService;
use fencepost::v1::{
    ClusterRef, CompactRequest, CompactResponse, CreateSnapshotRequest, CreateSnapshotResponse, ExportPipelineRequest,
    ExportPipelineResponse, Header, ImportPipelineRequest, ImportPipelineResponse,
};
use fencepost::{Lsn, Reason};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::{ReceiverStream, UnboundedReceiverStream};
use tonic::{Request, Response, Status, Streaming};

use super::status::status;
use super::{Backend, facts, history};
use crate::error::Refusal;
use crate::ops::open::transfer_file;
use crate::ops::transfer::{self, Export};
use crate::ops::{BadSnapshot, snapshot};
use crate::sequencer::Decision;
use crate::state::{ImportVerdict, check_asked_by, check_pipeline};
use crate::upkeep::Progress;

/// Size of a piece of an export.
const PIECE_BYTES: usize = 256 << 10;

/// What a fact may have beyond the request that it was once: digest, numbers, times.
const FACT_EXTRA_BYTES: usize = 64 << 10;

/// Pieces of an export that wait for a caller who reads slowly.
const PIECES_AHEAD: usize = 4;

pub(super) struct Service(pub(super) Backend);

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
        let (sender, receiver) = mpsc::channel(PIECES_AHEAD);
        let backend = self.0.clone();
        tokio::task::spawn_blocking(move || {
            let file = Scratch::new(&backend);
            if let Err(error) = export(&backend, &header, &pipeline, &file, &sender) {
                // A caller who has left does not hear it.
                drop(sender.blocking_send(Err(status(refusal(&error, None)))));
            }
        });
        Ok(Response::new(ReceiverStream::new(receiver)))
    }

    async fn import_pipeline(
        &self,
        request: Request<Streaming<ImportPipelineRequest>>,
    ) -> Result<Response<ImportPipelineResponse>, Status> {
        let mut pieces = request.into_inner();
        let missing = || status(Refusal::field(Reason::InvalidField, "data", "", "the pieces of an export file"));
        let first = pieces.message().await?.ok_or_else(missing)?;
        let header = self.header(first.cluster.clone()).await?;
        check_asked_by(&first.actor, &first.reason).map_err(status)?;
        if !first.pipeline.is_empty() {
            check_pipeline("pipeline", &first.pipeline).map_err(status)?;
        }
        let file = Arc::new(Scratch::new(&self.0));
        let digest = self.receive(&file, first.data.clone(), &mut pieces).await?;
        let opened = Arc::clone(&file);
        let export = facts::blocking(move || Export::open(&*opened.backend.disk, &opened.path).map_err(bad_file));
        let export = export.await?;
        let fact_bytes_max = self.0.config.request_bytes_max + FACT_EXTRA_BYTES;
        if export.fact_bytes > fact_bytes_max {
            let expected = format!("at most {fact_bytes_max} bytes in a fact: raise request_bytes_max of this server");
            let found = format!("a fact of {} bytes", export.fact_bytes);
            return Err(status(Refusal::field(Reason::TooLarge, "data", found, &expected)));
        }
        let name = if first.pipeline.is_empty() { export.contents.pipeline.clone() } else { first.pipeline };
        check_pipeline("pipeline", &name).map_err(status)?;
        let started = ImportStarted {
            pipeline: name.clone(),
            digest,
            actor: first.actor,
            reason: first.reason,
            ..export.started.clone()
        };
        let contents = export.contents.clone();
        self.import(export, started).await?;
        Ok(Response::new(ImportPipelineResponse {
            header: Some(header),
            pipeline: name,
            branches: contents.branches,
            checkpoints: contents.checkpoints,
            savepoints: contents.savepoints,
        }))
    }
}

impl Service {
    async fn header(&self, cluster: Option<ClusterRef>) -> Result<Header, Status> {
        let checked = self.0.sequencer.read(move |view| view.state.check_cluster(cluster.as_ref()));
        let ((), seen) = checked.await.map_err(status)?;
        Ok(self.0.sequencer.header(seen))
    }

    /// Writes what comes to the file, and returns its BLAKE3 digest.
    async fn receive(
        &self,
        file: &Arc<Scratch>,
        first: Bytes,
        pieces: &mut Streaming<ImportPipelineRequest>,
    ) -> Result<Bytes, Status> {
        let (mut next, mut at, mut hasher) = (Some(first), 0, blake3::Hasher::new());
        while let Some(piece) = next {
            hasher.update(&piece);
            let (file, length) = (Arc::clone(file), piece.len() as u64);
            facts::blocking(move || file.write(&piece, at)).await?;
            at += length;
            next = pieces.message().await?.map(|request| request.data);
        }
        Ok(Bytes::copy_from_slice(hasher.finalize().as_bytes()))
    }

    /// Appends the facts of an export. What an earlier try of the same file has appended is passed over.
    async fn import(&self, export: Export, started: ImportStarted) -> Result<(), Status> {
        let (name, digest) = (started.pipeline.clone(), started.digest.clone());
        let begin = move |state: &crate::state::State, _| {
            Ok(match state.evaluate_import_start(started)? {
                ImportVerdict::Start(started) => Decision { fact: Some(Kind::ImportStarted(started)), answer: () },
                ImportVerdict::GoOn(_) => Decision { fact: None, answer: () },
            })
        };
        self.0.sequencer.decide(0, begin).await.map_err(status)?;
        let named = export.named.clone();
        let mut places = std::collections::BTreeMap::new();
        let (sender, mut read) = mpsc::channel::<Result<(Lsn, Fact), BadSnapshot>>(64);
        // Ends by itself when the receiver is gone.
        tokio::task::spawn_blocking(move || {
            for fact in export.facts() {
                if sender.blocking_send(fact).is_err() {
                    return;
                }
            }
        });
        while let Some(fact) = read.recv().await {
            let (source, fact) = fact.map_err(|error| status(bad_file(error)))?;
            let bytes = fact.encoded_len();
            let Some(kind) = fact.kind else { continue };
            let place = match &kind {
                Kind::SavepointCreated(created) => match places.get(&created.checkpoint_lsn) {
                    Some(lsn) => Some(*lsn),
                    // From an earlier try.
                    None => history::imported_place(&self.0, &name, &created.branch, created.sequence)
                        .await
                        .map_err(status)?,
                },
                _ => None,
            };
            let decided = match transfer::renamed(kind, &name, |_| place) {
                Kind::Imported(imported) => {
                    let judge = move |state: &crate::state::State, _| {
                        let fact = state.evaluate_imported(imported)?.map(Kind::Imported);
                        Ok(Decision { fact, answer: () })
                    };
                    self.0.sequencer.decide(bytes, judge).await
                }
                Kind::SavepointCreated(created) => {
                    let judge = move |state: &crate::state::State, _| {
                        let fact = state.evaluate_imported_savepoint(created)?.map(Kind::SavepointCreated);
                        Ok(Decision { fact, answer: () })
                    };
                    self.0.sequencer.decide(bytes, judge).await
                }
                Kind::PolicySet(set) => {
                    let judge = move |state: &crate::state::State, _| {
                        let fact = state.evaluate_imported_policy(set)?.map(Kind::PolicySet);
                        Ok(Decision { fact, answer: () })
                    };
                    self.0.sequencer.decide(bytes, judge).await
                }
                Kind::ImportFinished(_) => {
                    let (name, digest) = (name.clone(), digest.clone());
                    let judge = move |state: &crate::state::State, _| {
                        let fact = state.evaluate_import_finish(&name, &digest)?.map(Kind::ImportFinished);
                        Ok(Decision { fact, answer: () })
                    };
                    self.0.sequencer.decide(bytes, judge).await
                }
                _ => continue,
            };
            let decided = decided.map_err(status)?;
            if named.contains_key(&source.as_u64()) {
                places.extend(decided.lsn.map(|lsn| (source.as_u64(), lsn)));
            }
        }
        Ok(())
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

type PieceSender = mpsc::Sender<Result<ExportPipelineResponse, Status>>;

fn export(
    backend: &Backend,
    header: &Header,
    pipeline: &str,
    file: &Scratch,
    sender: &PieceSender,
) -> Result<(), BadSnapshot> {
    let Backend { disk, log, config, stopping, .. } = backend;
    let mut pace = |_| {
        let is_over = sender.is_closed() || *stopping.borrow();
        if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    transfer::export(disk, &config.data_dir, log, pipeline, &file.path, &mut pace)?;
    let io = |source| BadSnapshot::Io { action: "read", path: file.path.clone(), source };
    let open = disk.open(&file.path).map_err(io)?;
    let (bytes_total, mut at) = (open.size_bytes().map_err(io)?, 0);
    while at < bytes_total {
        let mut piece = vec![0; PIECE_BYTES.min((bytes_total - at) as usize)];
        open.read_at(&mut piece, at).map_err(io)?;
        at += piece.len() as u64;
        let piece = ExportPipelineResponse { header: Some(header.clone()), data: piece.into(), bytes_total };
        if sender.blocking_send(Ok(piece)).is_err() {
            return Err(BadSnapshot::Stopped);
        }
    }
    Ok(())
}

/// A file in the data directory that goes with this.
struct Scratch {
    backend: Backend,
    path: PathBuf,
}

impl Scratch {
    fn new(backend: &Backend) -> Scratch {
        Scratch { backend: backend.clone(), path: transfer_file(&backend.config.data_dir) }
    }

    fn write(&self, piece: &[u8], at: u64) -> Result<(), Refusal> {
        let disk = &self.backend.disk;
        let file = if at == 0 { disk.create(&self.path) } else { disk.open_rw(&self.path) };
        let written = file.and_then(|file| file.write_at(piece, at));
        let failed = |source| BadSnapshot::Io { action: "write", path: self.path.clone(), source };
        written.map_err(|source| refusal(&failed(source), None))
    }
}

impl Drop for Scratch {
    fn drop(&mut self) {
        // It may never have been made.
        let _ = self.backend.disk.remove(&self.path);
    }
}

/// What a caller is told who wants a copy in this directory of the server's, or a pipeline as a file.
fn refusal(error: &BadSnapshot, dir: Option<&Path>) -> Refusal {
    let reason = match error {
        BadSnapshot::Damaged { .. } => Reason::IntegrityMismatch,
        error if error.is_full() => Reason::NoSpace,
        // Only the directory is the caller's choice.
        BadSnapshot::Io { path, .. } if !dir.is_some_and(|dir| path.starts_with(dir)) => Reason::Corrupt,
        BadSnapshot::Log(_) => Reason::Corrupt,
        BadSnapshot::Stopped => Reason::ShuttingDown,
        BadSnapshot::Newer { .. } | BadSnapshot::NotEmpty { .. } | BadSnapshot::Refused(_) | BadSnapshot::Io { .. } => {
            Reason::InvalidField
        }
    };
    let refusal = Refusal::new(reason, error.to_string());
    if let BadSnapshot::Newer { found, supported, .. } = error {
        let expected = format!("a file of a format up to {supported}");
        return refusal
            .with("field", "data")
            .with("value", found)
            .with("expected", expected)
            .with("newer_format", found);
    }
    match reason {
        Reason::NoSpace | Reason::ShuttingDown => refusal.with("retry_after_ms", 1_000),
        Reason::InvalidField if dir.is_some() => {
            refusal.with("field", "directory").with("expected", "a place that can be used")
        }
        Reason::InvalidField => {
            refusal.with("field", "pipeline").with("expected", "a pipeline that a file has room for")
        }
        _ => refusal,
    }
}

/// What is wrong with a file that was sent. Its sender does not know it under the name that it has here.
fn bad_file(error: BadSnapshot) -> Refusal {
    let file = PathBuf::from("the file that was sent");
    let error = match error {
        BadSnapshot::Damaged { what, .. } => BadSnapshot::Damaged { file, what },
        BadSnapshot::Newer { found, supported, .. } => BadSnapshot::Newer { file, found, supported },
        error => error,
    };
    refusal(&error, None)
}

#[cfg(test)]
mod tests {
    use std::io;

    use super::*;

    #[test]
    fn a_full_disk_is_no_damage_and_no_fault_of_the_caller() {
        let (dir, scratch) = (Path::new("/backup"), Path::new("/data/1.transfer"));
        let io = |path: &Path, kind: io::ErrorKind| BadSnapshot::Io {
            action: "write",
            path: path.to_owned(),
            source: kind.into(),
        };
        for kind in [io::ErrorKind::StorageFull, io::ErrorKind::QuotaExceeded] {
            for path in [&dir.join("log/1.seg"), scratch] {
                assert_eq!(refusal(&io(path, kind), Some(dir)).reason, Reason::NoSpace);
                assert_eq!(refusal(&io(path, kind), None).reason, Reason::NoSpace);
            }
        }
        let denied = io::ErrorKind::PermissionDenied;
        let refused = refusal(&io(&dir.join("log"), denied), Some(dir));
        assert_eq!((refused.reason, refused.detail("field")), (Reason::InvalidField, Some("directory")));
        for dir in [None, Some(dir)] {
            let refused = refusal(&io(scratch, denied), dir);
            assert_eq!((refused.reason, refused.detail("field")), (Reason::Corrupt, None));
        }
    }
}
