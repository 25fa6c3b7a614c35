//! Tonic servers that take the same messages, do nothing and answer: what gRPC itself costs.

use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use bytes::Bytes;
use fencepost::v1::commit_response::Outcome;
use fencepost::v1::commit_service_client::CommitServiceClient;
use fencepost::v1::commit_service_server::{CommitService, CommitServiceServer};
use fencepost::v1::{
    BranchCommit, Checkpoint, CommitRequest, CommitResponse, CommitStreamRequest, CommitStreamResponse, Header,
    ResolveCommitRequest, ResolveCommitResponse, SessionCommit, SessionResult, session_result,
};
use tokio::net::TcpListener;
use tokio::sync::{Mutex, mpsc, oneshot};
use tokio_stream::Stream;
use tokio_stream::StreamExt as _;
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnboundedReceiverStream};
use tonic::transport::{Channel, Endpoint};
use tonic::{Request, Response, Status, Streaming};

use super::load::{Done, Load, closed_loop};

pub(crate) struct Echo {
    channel: Channel,
    _stop: oneshot::Sender<()>,
}

impl Echo {
    pub(crate) async fn start() -> Echo {
        let listener = TcpListener::bind("127.0.0.1:0").await.expect("a free port");
        let endpoint = format!("http://{}", listener.local_addr().expect("an address"));
        let (stop, stopped) = oneshot::channel::<()>();
        let connections = TcpListenerStream::new(listener).map(|connection| {
            let connection = connection?;
            connection.set_nodelay(true)?;
            Ok::<_, std::io::Error>(connection)
        });
        let serving = tonic::transport::Server::builder()
            .initial_stream_window_size(1 << 20)
            .initial_connection_window_size(8 << 20)
            .add_service(CommitServiceServer::new(Service))
            .serve_with_incoming_shutdown(connections, async { drop(stopped.await) });
        tokio::spawn(serving);
        let endpoint = Endpoint::from_shared(endpoint).expect("an address").tcp_nodelay(true);
        let endpoint = endpoint.initial_stream_window_size(1 << 20).initial_connection_window_size(8 << 20);
        let channel = endpoint.connect_timeout(Duration::from_secs(5)).connect().await.expect("a connection");
        Echo { channel, _stop: stop }
    }

    pub(crate) async fn run(&self, load: Load, callers: usize, bytes: usize, is_stream: bool) -> Done {
        if is_stream { self.stream(load, callers, bytes).await } else { self.unary(load, callers, bytes).await }
    }

    async fn unary(&self, load: Load, callers: usize, bytes: usize) -> Done {
        let client = CommitServiceClient::new(self.channel.clone());
        let request = request(bytes);
        closed_loop(load, vec![client; callers], move |mut client| {
            let request = request.clone();
            async move {
                client.commit(request).await.expect("an answer");
            }
        })
        .await
    }

    /// All callers share one stream, and whatever is ready goes in one message, as in the client crate.
    async fn stream(&self, load: Load, callers: usize, bytes: usize) -> Done {
        let (send, requests) = mpsc::channel(16);
        let mut client = CommitServiceClient::new(self.channel.clone());
        let answers = client.commit_stream(ReceiverStream::new(requests)).await.expect("a stream").into_inner();
        let (queue, mut queued) = mpsc::unbounded_channel::<SessionCommit>();
        tokio::spawn(async move {
            let mut commits = Vec::new();
            while queued.recv_many(&mut commits, 1024).await > 0 {
                let message = CommitStreamRequest { commits: std::mem::take(&mut commits), closed_sessions: vec![] };
                if send.send(message).await.is_err() {
                    return;
                }
            }
        });
        let mut answered = Vec::new();
        let mut callers_sides = Vec::new();
        for session in 0..callers as u64 {
            let (tell, told) = mpsc::channel::<()>(1);
            answered.push(tell);
            callers_sides.push((session, Arc::new(Mutex::new(told))));
        }
        tokio::spawn(dispatch(answers, answered));
        let request = request(bytes);
        closed_loop(load, callers_sides, move |(session, told)| {
            let (queue, request) = (queue.clone(), request.clone());
            async move {
                let commit = SessionCommit { session, number: 1, commit: Some(request) };
                queue.send(commit).expect("the stream is there");
                told.lock().await.recv().await.expect("an answer");
            }
        })
        .await
    }
}

async fn dispatch(mut answers: Streaming<CommitStreamResponse>, callers: Vec<mpsc::Sender<()>>) {
    while let Ok(Some(message)) = answers.message().await {
        for result in message.results {
            let _ = callers[result.session as usize].try_send(());
        }
    }
}

fn request(bytes: usize) -> CommitRequest {
    let checkpoint = Checkpoint {
        position: Bytes::from_static(b"offset=42"),
        state: Bytes::from(vec![7; bytes]),
        payload_crc32: Some(1),
        integrity: None,
        ..Checkpoint::default()
    };
    let branch = BranchCommit {
        branch: "b0".to_owned(),
        token: 1 << 48,
        sequence: 1,
        checkpoint: Some(checkpoint),
        ..BranchCommit::default()
    };
    CommitRequest {
        pipeline: "bench/commits".to_owned(),
        commit_id: "g1.e1:1".to_owned(),
        branches: vec![branch],
        ..CommitRequest::default()
    }
}

fn response(header: Option<Header>) -> CommitResponse {
    CommitResponse { header, lsn: 1 << 20, outcome: Outcome::Applied.into() }
}

fn header() -> Header {
    Header { cluster_id: "00000000-0000-0000-0000-000000000000".to_owned(), generation: 1, lsn: 1 << 20 }
}

struct Service;

#[tonic::async_trait]
impl CommitService for Service {
    type CommitStreamStream = Pin<Box<dyn Stream<Item = Result<CommitStreamResponse, Status>> + Send>>;

    async fn commit(&self, _: Request<CommitRequest>) -> Result<Response<CommitResponse>, Status> {
        Ok(Response::new(response(Some(header()))))
    }

    async fn stage(
        &self,
        _: Request<fencepost::v1::StageRequest>,
    ) -> Result<Response<fencepost::v1::StageResponse>, Status> {
        Err(Status::unimplemented("the echo only commits"))
    }

    async fn discard_staged(
        &self,
        _: Request<fencepost::v1::DiscardStagedRequest>,
    ) -> Result<Response<fencepost::v1::DiscardStagedResponse>, Status> {
        Err(Status::unimplemented("the echo only commits"))
    }

    async fn commit_stream(
        &self,
        request: Request<Streaming<CommitStreamRequest>>,
    ) -> Result<Response<Self::CommitStreamStream>, Status> {
        let mut commits = request.into_inner();
        let (send, answers) = mpsc::unbounded_channel();
        tokio::spawn(async move {
            while let Ok(Some(message)) = commits.message().await {
                let results = message.commits.into_iter().map(|commit| SessionResult {
                    session: commit.session,
                    number: commit.number,
                    result: Some(session_result::Result::Committed(response(None))),
                });
                let _ = send.send(Ok(CommitStreamResponse { results: results.collect(), header: Some(header()) }));
            }
        });
        Ok(Response::new(Box::pin(UnboundedReceiverStream::new(answers))))
    }

    async fn resolve_commit(
        &self,
        _: Request<ResolveCommitRequest>,
    ) -> Result<Response<ResolveCommitResponse>, Status> {
        Err(Status::unimplemented("an echo has nothing to resolve"))
    }
}
