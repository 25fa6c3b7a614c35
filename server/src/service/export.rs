//! A pipeline on its way out: into a file of this server first, so that nothing of the log waits for whoever reads it.

use std::ops::ControlFlow;
use std::sync::Arc;
use std::time::Duration;

use fencepost::v1::{ExportPipelineResponse, Header};
use tokio::sync::{OwnedSemaphorePermit, mpsc};
use tokio_stream::wrappers::ReceiverStream;
use tonic::Status;

use super::status::status;
use super::transfer::{PATIENCE, Scratch, refusal, too_slow};
use super::{Backend, facts};
use crate::error::Refusal;
use crate::ops::{BadSnapshot, transfer};

/// Size of a piece of an export.
const PIECE_BYTES: usize = 256 << 10;

/// Pieces of an export that wait for a caller who reads slowly.
const PIECES_AHEAD: usize = 4;

type Piece = Result<ExportPipelineResponse, Status>;

/// Begins an export. It ends with its caller, or when its caller reads nothing for long.
pub(super) fn begin(
    backend: Backend,
    header: Header,
    pipeline: String,
    turn: OwnedSemaphorePermit,
) -> ReceiverStream<Piece> {
    // One more, for what went wrong.
    let (sender, receiver) = mpsc::channel(PIECES_AHEAD + 1);
    tokio::spawn(async move {
        // A caller who has left wants nothing.
        let Ok(end) = sender.clone().reserve_owned().await else { return };
        let file = Arc::new(Scratch::new(&backend));
        if let Err(refused) = export(&file, header, pipeline, &sender).await {
            drop(end.send(Err(refused)));
        }
        // Removing a long file takes its time. Nobody is told of a failure.
        let _ = tokio::task::spawn_blocking(move || drop((file, turn))).await;
    });
    ReceiverStream::new(receiver)
}

async fn export(
    file: &Arc<Scratch>,
    header: Header,
    pipeline: String,
    sender: &mpsc::Sender<Piece>,
) -> Result<(), Status> {
    let (scratch, caller) = (Arc::clone(file), sender.clone());
    let written = facts::blocking(move || {
        write(&scratch, &pipeline, &caller).map_err(|error| refusal(&error, None))?;
        let open = scratch.backend.disk.open(&scratch.path);
        let open = open.and_then(|open| open.size_bytes().map(|bytes| (open, bytes)));
        open.map_err(|source| scratch.failed("open", source))
    });
    let (open, bytes_total) = written.await?;
    let mut stopping = file.backend.stopping.clone();
    let mut at = 0;
    while at < bytes_total {
        let (scratch, open) = (Arc::clone(file), Arc::clone(&open));
        let length = PIECE_BYTES.min((bytes_total - at) as usize);
        let piece = facts::blocking(move || {
            let mut piece = vec![0; length];
            open.read_at(&mut piece, at).map_err(|source| scratch.failed("read", source))?;
            Ok(piece)
        });
        let piece = piece.await?;
        at += piece.len() as u64;
        let piece = ExportPipelineResponse { header: Some(header.clone()), data: piece.into(), bytes_total };
        tokio::select! {
            given = give(sender, Ok(piece), PATIENCE) => given.map_err(status)?,
            _ = stopping.wait_for(|is_stopping| *is_stopping) => {
                return Err(status(refusal(&BadSnapshot::Stopped, None)));
            }
        }
    }
    Ok(())
}

/// Writes the pipeline to the file, as long as there is somebody who wants it. Blocks.
fn write(file: &Scratch, pipeline: &str, caller: &mpsc::Sender<Piece>) -> Result<(), BadSnapshot> {
    let Backend { disk, log, config, stopping, .. } = &file.backend;
    let mut pace = |_| {
        let is_over = caller.is_closed() || *stopping.borrow();
        if is_over { ControlFlow::Break(()) } else { ControlFlow::Continue(()) }
    };
    transfer::export(disk, &config.data_dir, log, pipeline, &file.path, &mut pace).map(drop)
}

/// Gives the caller a piece, if it takes one in time.
async fn give(sender: &mpsc::Sender<Piece>, piece: Piece, patience: Duration) -> Result<(), Refusal> {
    match tokio::time::timeout(patience, sender.send(piece)).await {
        Ok(Ok(())) => Ok(()),
        Ok(Err(_)) => Err(refusal(&BadSnapshot::Stopped, None)),
        Err(_) => Err(too_slow("nobody took a piece of the export", patience)),
    }
}

#[cfg(test)]
mod tests {
    use fencepost::Reason;

    use super::*;

    #[tokio::test]
    async fn a_reader_who_takes_nothing_for_long_is_given_up() {
        let (sender, mut receiver) = mpsc::channel(1);
        let piece = || Ok(ExportPipelineResponse::default());
        give(&sender, piece(), PATIENCE).await.unwrap();
        let (given, taken) = tokio::join!(give(&sender, piece(), PATIENCE), receiver.recv());
        assert!(given.is_ok() && taken.is_some());
        let given_up = give(&sender, piece(), Duration::from_millis(1)).await.unwrap_err();
        assert_eq!(given_up.reason, Reason::RateLimited, "{given_up}");
        drop(receiver);
        assert_eq!(give(&sender, piece(), PATIENCE).await.unwrap_err().reason, Reason::ShuttingDown);
    }
}
