//! Long work on the store: compaction, snapshots, and carrying a pipeline from one store to another.
//!
//! Compaction and snapshots go on if the caller leaves; [`Work`] only watches them. None of this is repeated by itself:
//! whoever started long work looks at what became of it before starting it again. It takes the road that tails take, so
//! that a slow reader of an export holds up no keepalive.

use std::fmt;
use std::pin::Pin;

use fencepost::v1;
use tokio::io::{AsyncRead, AsyncReadExt as _, AsyncWrite, AsyncWriteExt as _};
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::Channel;
use tonic::{Request, Response, Status, Streaming};

use crate::client::Client;
use crate::error::{Error, Result};
use crate::rpc::{Answer, Question, maintenance};

/// Size of the pieces that a file is sent in.
const PIECE_BYTES: u64 = 256 << 10;
/// Pieces that are read ahead of the network.
const PIECES_WAITING_MAX: usize = 4;

/// How far long work is.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Progress {
    /// Bytes dealt with so far.
    pub bytes_done: u64,
    /// Of so many, as far as is known now.
    pub bytes_total: u64,
}

/// Long work that the server does. It goes on if this is dropped.
#[must_use = "only `result` tells how it ended"]
pub struct Work<T> {
    steps: Pin<Box<dyn Stream<Item = Result<Step<T>>> + Send>>,
    result: Option<T>,
}

enum Step<T> {
    Progress(Progress),
    Done(T),
}

impl<T> Work<T> {
    /// Waits for the next sign of progress; `None` once the work is done.
    pub async fn progress(&mut self) -> Result<Option<Progress>> {
        if self.result.is_some() {
            return Ok(None);
        }
        match self.steps.next().await {
            Some(Ok(Step::Progress(progress))) => Ok(Some(progress)),
            Some(Ok(Step::Done(result))) => {
                self.result = Some(result);
                Ok(None)
            }
            Some(Err(error)) => Err(error),
            // `start` puts an error at the end of every stream that was cut short.
            None => Ok(None),
        }
    }

    /// Waits for the end, and returns what the work came to.
    pub async fn result(mut self) -> Result<T> {
        while self.progress().await?.is_some() {}
        let lost = || Error::Unanswered { endpoint: "the server".to_owned(), cause: "its end was lost".to_owned() };
        self.result.ok_or_else(lost)
    }
}

impl<T> fmt::Debug for Work<T> {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Work").field("is_done", &self.result.is_some()).finish_non_exhaustive()
    }
}

impl Client {
    /// Removes what no policy keeps from the log, now and at full speed. Nothing that can still be read is touched.
    ///
    /// ```
    /// # use fencepost_client::{Client, Result};
    /// # async fn make_room(client: Client) -> Result<()> {
    /// let mut work = client.compact().await?;
    /// while let Some(progress) = work.progress().await? {
    ///     println!("{} of {} bytes", progress.bytes_done, progress.bytes_total);
    /// }
    /// let compacted = work.result().await?;
    /// println!("{} bytes before, {} after", compacted.log_bytes_before, compacted.log_bytes_after);
    /// # Ok(())
    /// # }
    /// ```
    pub async fn compact(&self) -> Result<Work<v1::CompactResponse>> {
        let send = |channel, request| async move { maintenance(channel).compact(request).await };
        self.work(v1::CompactRequest::default(), send, |answer: &v1::CompactResponse| {
            let v1::CompactResponse { bytes_done, bytes_total, .. } = *answer;
            (!answer.done).then_some(Progress { bytes_done, bytes_total })
        })
        .await
    }

    /// Makes a consistent copy of the store in a directory of the *server's* machine: an absolute path that does not
    /// exist, or an empty directory.
    pub async fn create_snapshot(&self, directory: impl Into<String>) -> Result<Work<v1::CreateSnapshotResponse>> {
        let request = v1::CreateSnapshotRequest { cluster: None, directory: directory.into() };
        let send = |channel, request| async move { maintenance(channel).create_snapshot(request).await };
        self.work(request, send, |answer: &v1::CreateSnapshotResponse| {
            let v1::CreateSnapshotResponse { bytes_done, bytes_total, .. } = *answer;
            (!answer.done).then_some(Progress { bytes_done, bytes_total })
        })
        .await
    }

    /// Writes a pipeline to `writer` as a portable file, and returns the file's length in bytes. After an error what was
    /// written is of no use.
    pub async fn export_pipeline(
        &self,
        pipeline: impl Into<String>,
        mut writer: impl AsyncWrite + Unpin,
    ) -> Result<u64> {
        let request = v1::ExportPipelineRequest { cluster: None, pipeline: pipeline.into() };
        let send = |channel, request| async move { maintenance(channel).export_pipeline(request).await };
        let mut pieces: Streaming<v1::ExportPipelineResponse> = self.open(request, send).await?;
        let failed = |cause: std::io::Error| Error::Local { what: "writing the export", cause: cause.to_string() };
        let (mut written, mut total) = (0, 0);
        while let Some(piece) = pieces.message().await.map_err(|status| self.failed(&status))? {
            self.shared.rpc.cluster.observe(piece.header())?;
            writer.write_all(&piece.data).await.map_err(failed)?;
            written += piece.data.len() as u64;
            total = piece.bytes_total;
        }
        if written < total {
            return Err(self.cut_short(&format!("the export ended after {written} of {total} bytes")));
        }
        writer.flush().await.map_err(failed)?;
        Ok(written)
    }

    /// Takes in what [`Client::export_pipeline`] wrote, here or elsewhere. The pipeline must not exist.
    ///
    /// After an error whose [`Error::applied`] is unknown, send the same file again: an import that was begun is taken up
    /// where it was, and one that was completed is refused with `EXISTS`.
    pub fn import_pipeline<R: AsyncRead + Unpin>(&self, reader: R) -> Import<R> {
        Import { client: self.clone(), reader, first: v1::ImportPipelineRequest::default() }
    }

    /// Begins work that tells its progress in all messages but the last.
    async fn work<Q, A, F>(
        &self,
        question: Q,
        send: impl FnOnce(Channel, Request<Q>) -> F,
        progress: fn(&A) -> Option<Progress>,
    ) -> Result<Work<A>>
    where
        Q: Question,
        A: Answer + Send + 'static,
        F: Future<Output = Result<Response<Streaming<A>>, Status>>,
    {
        let (stream, client) = (self.open(question, send).await?, self.clone());
        let end = Err(self.cut_short("the server ended the stream before the work was done; it may go on"));
        let steps = stream.map(move |message| {
            let answer = message.map_err(|status| client.failed(&status))?;
            client.shared.rpc.cluster.observe(answer.header())?;
            Ok(progress(&answer).map_or(Step::Done(answer), Step::Progress))
        });
        Ok(Work { steps: Box::pin(steps.chain(tokio_stream::once(end))), result: None })
    }

    async fn open<Q, A, F>(&self, question: Q, send: impl FnOnce(Channel, Request<Q>) -> F) -> Result<Streaming<A>>
    where
        Q: Question,
        F: Future<Output = Result<Response<Streaming<A>>, Status>>,
    {
        let rpc = &self.shared.rpc;
        let channel = rpc.tail_channel();
        rpc.once(question, rpc.deadline(), |_, mut request| {
            // The deadline is for the opening; the work itself has none.
            request.metadata_mut().remove("grpc-timeout");
            send(channel, request)
        })
        .await
    }

    fn failed(&self, status: &Status) -> Error {
        Error::from_status(status, self.endpoint())
    }

    fn cut_short(&self, cause: &str) -> Error {
        Error::Unanswered { endpoint: self.endpoint().to_owned(), cause: cause.to_owned() }
    }
}

/// An import that is about to be sent. Begin with [`Client::import_pipeline`].
#[must_use = "nothing is sent before `send`"]
#[derive(Debug)]
pub struct Import<R> {
    client: Client,
    reader: R,
    first: v1::ImportPipelineRequest,
}

impl<R: AsyncRead + Unpin> Import<R> {
    /// The name to give the pipeline. Default: the one that it had.
    pub fn pipeline(mut self, pipeline: impl Into<String>) -> Import<R> {
        self.first.pipeline = pipeline.into();
        self
    }

    /// Who asks, for whoever reads the audit later. At most 128 characters. Default: nobody in particular.
    pub fn actor(mut self, actor: impl Into<String>) -> Import<R> {
        self.first.actor = actor.into();
        self
    }

    /// Why, for whoever reads the audit later. At most 1 KiB.
    pub fn reason(mut self, reason: impl Into<String>) -> Import<R> {
        self.first.reason = reason.into();
        self
    }

    /// Sends the file, and waits until the pipeline is there.
    pub async fn send(self) -> Result<v1::ImportPipelineResponse> {
        let Import { client, reader, mut first } = self;
        let rpc = &client.shared.rpc;
        first.cluster = rpc.cluster.reference();
        let (pieces, stream) = mpsc::channel(PIECES_WAITING_MAX);
        let mut service = maintenance(rpc.tail_channel());
        let mut call = Box::pin(service.import_pipeline(ReceiverStream::new(stream)));
        let mut feed = Box::pin(feed(reader, first, pieces));
        let answered = tokio::select! {
            // An answer before the end of the file is a refusal, and the rest is not wanted.
            answered = &mut call => answered,
            fed = &mut feed => {
                // A file that could not be read to its end says so itself, by lacking its end; the server refuses it.
                fed?;
                call.await
            }
        };
        let answer = answered.map_err(|status| client.failed(&status))?.into_inner();
        rpc.cluster.observe(answer.header())?;
        Ok(answer)
    }
}

/// Sends what `reader` has, in pieces, the first of them inside `message`.
async fn feed(
    mut reader: impl AsyncRead + Unpin,
    mut message: v1::ImportPipelineRequest,
    pieces: mpsc::Sender<v1::ImportPipelineRequest>,
) -> Result<()> {
    loop {
        let mut piece = Vec::new();
        (&mut reader)
            .take(PIECE_BYTES)
            .read_to_end(&mut piece)
            .await
            .map_err(|cause| Error::Local { what: "reading the file to import", cause: cause.to_string() })?;
        let is_last = (piece.len() as u64) < PIECE_BYTES;
        message.data = piece.into();
        // Nobody takes it only once the call has ended, and then its answer says why.
        if pieces.send(std::mem::take(&mut message)).await.is_err() || is_last {
            return Ok(());
        }
    }
}
