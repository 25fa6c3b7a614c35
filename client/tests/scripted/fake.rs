//! The server of these tests: one pipeline in memory, judged as the real one judges, with a script for what goes wrong.

use std::collections::{HashMap, VecDeque};
use std::net::SocketAddr;
use std::pin::Pin;
use std::sync::Arc;
use std::time::Duration;

use fencepost::log::v1::fact::Kind;
use fencepost::log::v1::{Committed, CommittedBranch, Fact};
use fencepost::{ERROR_DOMAIN, Reason, v1};
use fencepost_client::{Branch, Client, ClientBuilder, Resume, Worker};
use hyper_util::rt::TokioIo;
use tokio::io::DuplexStream;
use tokio::net::TcpListener;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::wrappers::{ReceiverStream, TcpListenerStream, UnboundedReceiverStream};
use tokio_stream::{Stream, StreamExt as _};
use tonic::transport::server::Router;
use tonic::transport::{Endpoint, Server};
use tonic::{Request, Response, Status, Streaming};
use tonic_types::{ErrorDetails, StatusExt as _};

use crate::fake_history::HistoryScript;

pub(crate) const PIPELINE: &str = "test/orders";
pub(crate) const TTL_MS: u64 = 30_000;
/// The least that a real server can be set to take in one message.
const REQUEST_BYTES_MAX: usize = 2 << 20;

/// What becomes of the next commit.
#[derive(Clone)]
pub(crate) enum Fate {
    /// It is applied; the stream breaks before the answer.
    LoseAnswer,
    /// It never arrives; the stream breaks.
    LoseRequest,
    /// It never arrives; the whole connection breaks, as when a server dies.
    HangUp,
    /// It is refused for this reason, with these details.
    Refuse(&'static str, Vec<(&'static str, String)>),
    /// An attempt before it arrives late and is applied, and this one is refused.
    RefuseAfterLateArrival(&'static str),
    /// It is judged and answered once the gate has a permit.
    Hold(Arc<Semaphore>),
    /// It is applied and never answered; the connection stays.
    Swallow,
}

/// What becomes of the next call of any other kind.
#[derive(Clone)]
pub(crate) enum CallFate {
    /// It fails without a reason, as through a broken connection.
    Break,
    /// It is refused for this reason, with these details.
    Refuse(Reason, Vec<(&'static str, String)>),
    /// It is never answered.
    Swallow,
    /// It is judged and answered after this time.
    After(Duration),
    /// It fails as `Break` does, after this time.
    BreakAfter(Duration),
}

/// What the server has seen, and what it is to do.
#[derive(Default)]
pub(crate) struct State {
    pub(crate) generation: u64,
    pub(crate) cluster: String,
    pub(crate) epoch: u64,
    /// By branch: current token, and the checkpoints so far.
    pub(crate) branches: HashMap<String, (u64, Vec<v1::StoredCheckpoint>)>,
    pub(crate) landed: HashMap<String, u64>,
    /// Whether connections are refused.
    pub(crate) down: bool,
    /// How often the server died.
    pub(crate) deaths: u64,
    /// Whether the payload of a resume is damaged on the way.
    pub(crate) damaging: bool,

    pub(crate) commit_fates: VecDeque<Fate>,
    pub(crate) resume_fates: VecDeque<CallFate>,
    pub(crate) resolve_fates: VecDeque<CallFate>,
    pub(crate) keep_alive_fates: VecDeque<CallFate>,
    pub(crate) release_fates: VecDeque<CallFate>,

    pub(crate) commits: Vec<v1::SessionCommit>,
    /// Commits in each message of the stream.
    pub(crate) messages: Vec<usize>,
    pub(crate) closed_sessions: Vec<u64>,
    pub(crate) resumes: Vec<v1::ResumeRequest>,
    pub(crate) resolves: Vec<v1::ResolveCommitRequest>,
    pub(crate) keep_alives: Vec<Vec<u64>>,
    pub(crate) releases: Vec<u64>,
    pub(crate) tails: Vec<v1::TailRequest>,
    /// Facts that left for a tail.
    pub(crate) facts_sent: u64,
    /// Where callers come from, if they come over a socket: of tails, and of resumes.
    pub(crate) callers: [Vec<Option<SocketAddr>>; 2],
    pub(crate) log: LogScript,
    pub(crate) history: HistoryScript,
}

/// The log that tails read: facts at LSN 1 to `newest`.
pub(crate) struct LogScript {
    pub(crate) newest: u64,
    /// Size of each.
    pub(crate) fact_bytes: usize,
    /// A connection breaks after so many.
    pub(crate) breaks_after: u64,
}

impl Default for LogScript {
    fn default() -> LogScript {
        LogScript { newest: 10, fact_bytes: 0, breaks_after: 3 }
    }
}

#[derive(Clone)]
pub(crate) struct Fake {
    pub(crate) state: watch::Sender<State>,
    connections: mpsc::UnboundedSender<std::io::Result<DuplexStream>>,
}

impl Fake {
    pub(crate) fn start() -> Fake {
        let (connections, incoming) = mpsc::unbounded_channel();
        let state = State { generation: 1, cluster: "c1".to_owned(), ..State::default() };
        let fake = Fake { state: watch::Sender::new(state), connections };
        tokio::spawn(fake.router().serve_with_incoming(UnboundedReceiverStream::new(incoming)));
        fake
    }

    /// The same server over a socket. Returns its address.
    pub(crate) async fn listen(&self) -> String {
        let listener = TcpListener::bind("127.0.0.1:0").await.unwrap();
        let address = listener.local_addr().unwrap().to_string();
        tokio::spawn(self.router().serve_with_incoming(TcpListenerStream::new(listener)));
        address
    }

    fn router(&self) -> Router {
        let commits = v1::commit_service_server::CommitServiceServer::new(self.clone());
        let commits = commits.max_decoding_message_size(REQUEST_BYTES_MAX);
        Server::builder()
            .add_service(commits)
            .add_service(v1::lease_service_server::LeaseServiceServer::new(self.clone()))
            .add_service(v1::checkpoint_service_server::CheckpointServiceServer::new(self.clone()))
            .add_service(v1::cluster_service_server::ClusterServiceServer::new(self.clone()))
            .add_service(v1::log_service_server::LogServiceServer::new(self.clone()))
            .add_service(v1::pipeline_service_server::PipelineServiceServer::new(self.clone()))
            .add_service(v1::maintenance_service_server::MaintenanceServiceServer::new(self.clone()))
    }

    pub(crate) fn client(&self) -> Client {
        self.client_with(Client::builder())
    }

    pub(crate) fn client_with(&self, builder: ClientBuilder) -> Client {
        let (connections, state) = (self.connections.clone(), self.state.clone());
        let connector = tower::service_fn(move |_| {
            let (connections, state) = (connections.clone(), state.clone());
            async move {
                if state.borrow().down {
                    return Err(std::io::Error::from(std::io::ErrorKind::ConnectionRefused));
                }
                let ((near, mut near_end), (mut far_end, far)) =
                    (tokio::io::duplex(1 << 20), tokio::io::duplex(1 << 20));
                tokio::spawn(async move {
                    let (born_after, mut state) = (state.borrow().deaths, state.subscribe());
                    tokio::select! {
                        _ = tokio::io::copy_bidirectional(&mut near_end, &mut far_end) => {}
                        _ = state.wait_for(|state| state.deaths > born_after) => {}
                    }
                });
                connections.send(Ok(far)).map_err(std::io::Error::other)?;
                Ok(TokioIo::new(near))
            }
        });
        builder.over(Endpoint::from_static("http://fake").connect_with_connector_lazy(connector))
    }

    pub(crate) fn branch(&self, branch: &str) -> Branch {
        self.client().pipeline(PIPELINE).branch(branch)
    }

    pub(crate) async fn worker(&self) -> Worker {
        self.branch("main").resume(fresh()).await.unwrap()
    }

    pub(crate) fn script(&self, write: impl FnOnce(&mut State)) {
        self.state.send_modify(write);
    }

    /// Grants the branch to somebody else, and returns the token.
    pub(crate) fn replace_worker(&self, branch: &str) -> u64 {
        self.change(|state| state.grant(branch))
    }

    pub(crate) fn fate(&self, fate: Fate) {
        self.script(|state| state.commit_fates.push_back(fate));
    }

    pub(crate) fn see<T>(&self, look: impl FnOnce(&State) -> T) -> T {
        look(&self.state.borrow())
    }

    /// Waits until the server has seen what `condition` asks for.
    pub(crate) async fn until(&self, condition: impl FnMut(&State) -> bool) {
        self.state.subscribe().wait_for(condition).await.unwrap();
    }

    pub(crate) fn change<T>(&self, change: impl FnOnce(&mut State) -> T) -> T {
        let mut result = None;
        self.state.send_modify(|state| result = Some(change(state)));
        result.unwrap()
    }

    /// What the script has for a call of this kind; resolves at once if that is nothing.
    pub(crate) async fn meet(&self, fates: impl FnOnce(&mut State) -> Option<CallFate>) -> Result<(), Status> {
        match self.change(fates) {
            None => Ok(()),
            Some(CallFate::Break) => Err(broken()),
            Some(CallFate::After(time)) => {
                tokio::time::sleep(time).await;
                Ok(())
            }
            Some(CallFate::BreakAfter(time)) => {
                tokio::time::sleep(time).await;
                Err(broken())
            }
            Some(CallFate::Refuse(reason, details)) => Err(status(reason, details)),
            Some(CallFate::Swallow) => std::future::pending().await,
        }
    }

    /// One commit of the stream. `None`: the connection breaks.
    async fn answer(&self, item: v1::SessionCommit) -> Option<Option<v1::SessionResult>> {
        let v1::SessionCommit { session, number, commit } = item;
        let commit = commit.unwrap();
        let fate = self.change(|state| state.commit_fates.pop_front());
        let result = match fate {
            Some(Fate::LoseRequest) => return None,
            Some(Fate::HangUp) => {
                self.script(|state| state.deaths += 1);
                return None;
            }
            Some(Fate::LoseAnswer) => {
                self.change(|state| state.judge(commit)).unwrap();
                return None;
            }
            Some(Fate::Swallow) => {
                self.change(|state| state.judge(commit)).unwrap();
                return Some(None);
            }
            Some(Fate::Refuse(reason, details)) => Err(refusal(reason, details)),
            Some(Fate::RefuseAfterLateArrival(reason)) => {
                self.change(|state| state.judge(commit)).unwrap();
                Err(refusal(reason, vec![]))
            }
            Some(Fate::Hold(gate)) => {
                gate.acquire().await.unwrap().forget();
                self.change(|state| state.judge(commit))
            }
            None => self.change(|state| state.judge(commit)),
        };
        let result = match result {
            Ok(committed) => v1::session_result::Result::Committed(committed),
            Err(refusal) => v1::session_result::Result::Refusal(refusal),
        };
        Some(Some(v1::SessionResult { session, number, result: Some(result) }))
    }
}

/// The resume that most tests make.
pub(crate) fn fresh() -> Resume {
    Resume::new("loader-1").start_fresh()
}

impl State {
    #[allow(clippy::unnecessary_wraps, reason = "as every answer has it")]
    pub(crate) fn header(&self) -> Option<v1::Header> {
        Some(v1::Header { cluster_id: self.cluster.clone(), generation: self.generation, lsn: 1 })
    }

    pub(crate) fn grant(&mut self, branch: &str) -> u64 {
        self.epoch += 1;
        let token = self.generation << 48 | self.epoch;
        self.branches.entry(branch.to_owned()).or_default().0 = token;
        token
    }

    fn judge(&mut self, commit: v1::CommitRequest) -> Result<v1::CommitResponse, v1::Refusal> {
        let header = None;
        if let Some(lsn) = self.landed.get(&commit.commit_id) {
            let outcome = v1::commit_response::Outcome::AlreadyApplied.into();
            return Ok(v1::CommitResponse { header, lsn: *lsn, outcome });
        }
        for part in &commit.branches {
            let (token, stored) = self.branches.entry(part.branch.clone()).or_default();
            if part.token != *token {
                let details = vec![("current_token", token.to_string()), ("holder", "loader-2".to_owned())];
                return Err(refusal("FENCED", details));
            }
            if part.sequence != stored.len() as u64 + 1 {
                return Err(refusal("HEAD_MISMATCH", vec![("actual_head", stored.len().to_string())]));
            }
        }
        let lsn = (self.landed.len() as u64 + 1) << 16;
        self.landed.insert(commit.commit_id.clone(), lsn);
        for part in commit.branches {
            let checkpoint = v1::StoredCheckpoint {
                pipeline: commit.pipeline.clone(),
                branch: part.branch.clone(),
                sequence: part.sequence,
                token: part.token,
                lsn,
                commit_id: commit.commit_id.clone(),
                committed_at_ms: 1,
                state_bytes: 0,
                checkpoint: part.checkpoint,
                unreadable: String::new(),
                ..v1::StoredCheckpoint::default()
            };
            self.branches.entry(part.branch).or_default().1.push(checkpoint);
        }
        Ok(v1::CommitResponse { header, lsn, outcome: v1::commit_response::Outcome::Applied.into() })
    }

    fn renew(&self, lease: &v1::LeaseRef) -> v1::KeepAliveResult {
        match self.check(lease) {
            Ok(()) => v1::KeepAliveResult { ttl_ms: TTL_MS, refusal: None },
            Err(details) => v1::KeepAliveResult { ttl_ms: 0, refusal: Some(refusal("FENCED", details)) },
        }
    }

    fn check(&self, lease: &v1::LeaseRef) -> Result<(), Vec<(&'static str, String)>> {
        let current = self.branches.get(&lease.branch).map_or(0, |(token, _)| *token);
        let fenced = || vec![("current_token", current.to_string()), ("holder", "loader-2".to_owned())];
        if lease.token == current { Ok(()) } else { Err(fenced()) }
    }
}

fn metadata(details: Vec<(&'static str, String)>) -> HashMap<String, String> {
    details.into_iter().map(|(key, value)| (key.to_owned(), value)).collect()
}

fn refusal(reason: &str, details: Vec<(&'static str, String)>) -> v1::Refusal {
    v1::Refusal { reason: reason.to_owned(), message: "refused by script".to_owned(), metadata: metadata(details) }
}

pub(crate) fn broken() -> Status {
    Status::unavailable("the connection broke")
}

pub(crate) fn status(reason: Reason, details: Vec<(&'static str, String)>) -> Status {
    let details = ErrorDetails::with_error_info(reason.as_str(), ERROR_DOMAIN, metadata(details));
    Status::with_error_details(reason.code(), "refused by script", details)
}

#[tonic::async_trait]
impl v1::commit_service_server::CommitService for Fake {
    async fn stage(&self, _: Request<v1::StageRequest>) -> Result<Response<v1::StageResponse>, Status> {
        Err(broken())
    }

    async fn discard_staged(
        &self,
        _: Request<v1::DiscardStagedRequest>,
    ) -> Result<Response<v1::DiscardStagedResponse>, Status> {
        Err(broken())
    }

    async fn commit(&self, request: Request<v1::CommitRequest>) -> Result<Response<v1::CommitResponse>, Status> {
        let item = v1::SessionCommit { session: 0, number: 0, commit: Some(request.into_inner()) };
        self.script(|state| state.commits.push(item.clone()));
        match self.answer(item).await {
            None => Err(broken()),
            Some(None) => std::future::pending().await,
            Some(Some(result)) => match result.result.unwrap() {
                v1::session_result::Result::Committed(committed) => {
                    Ok(Response::new(v1::CommitResponse { header: self.see(State::header), ..committed }))
                }
                v1::session_result::Result::Refusal(refusal) => Err(status(refusal.reason.parse().unwrap(), vec![])),
            },
        }
    }

    type CommitStreamStream = Pin<Box<dyn Stream<Item = Result<v1::CommitStreamResponse, Status>> + Send>>;

    async fn commit_stream(
        &self,
        request: Request<Streaming<v1::CommitStreamRequest>>,
    ) -> Result<Response<Self::CommitStreamStream>, Status> {
        let (answers, stream) = mpsc::channel(16);
        let (fake, mut messages) = (self.clone(), request.into_inner());
        tokio::spawn(async move {
            while let Some(Ok(message)) = messages.next().await {
                fake.script(|state| {
                    state.messages.push(message.commits.len());
                    state.commits.extend(message.commits.clone());
                    state.closed_sessions.extend(message.closed_sessions);
                });
                for commit in message.commits {
                    let Some(result) = fake.answer(commit).await else {
                        let _ = answers.send(Err(broken())).await;
                        return;
                    };
                    let results = result.into_iter().collect();
                    let header = fake.see(State::header);
                    let _ = answers.send(Ok(v1::CommitStreamResponse { results, header })).await;
                }
            }
        });
        Ok(Response::new(Box::pin(ReceiverStream::new(stream))))
    }

    async fn resolve_commit(
        &self,
        request: Request<v1::ResolveCommitRequest>,
    ) -> Result<Response<v1::ResolveCommitResponse>, Status> {
        let request = request.into_inner();
        self.script(|state| state.resolves.push(request.clone()));
        self.meet(|state| state.resolve_fates.pop_front()).await?;
        let (header, lsn) = self.see(|state| (state.header(), state.landed.get(&request.commit_id).copied()));
        let outcome = match lsn {
            Some(_) => v1::resolve_commit_response::Outcome::Applied,
            None => v1::resolve_commit_response::Outcome::NotApplied,
        };
        let lsn = lsn.unwrap_or(0);
        Ok(Response::new(v1::ResolveCommitResponse { header, outcome: outcome.into(), lsn }))
    }
}

#[tonic::async_trait]
impl v1::lease_service_server::LeaseService for Fake {
    async fn resume(&self, request: Request<v1::ResumeRequest>) -> Result<Response<v1::ResumeResponse>, Status> {
        self.script(|state| state.callers[1].push(request.remote_addr()));
        let request = request.into_inner();
        self.script(|state| state.resumes.push(request.clone()));
        self.meet(|state| state.resume_fates.pop_front()).await?;
        let answer = self.change(|state| {
            let token = state.grant(&request.branch);
            let mut head = state.branches[&request.branch].1.last().cloned();
            if let Some(checkpoint) = head.as_mut().and_then(|head| head.checkpoint.as_mut()).filter(|_| state.damaging)
            {
                checkpoint.state = "damaged".into();
            }
            let ttl_ms = if request.ttl_ms == 0 { TTL_MS } else { request.ttl_ms };
            v1::ResumeResponse {
                header: state.header(),
                token,
                ttl_ms,
                head,
                predecessor: None,
                ..v1::ResumeResponse::default()
            }
        });
        Ok(Response::new(answer))
    }

    async fn keep_alive(
        &self,
        request: Request<v1::KeepAliveRequest>,
    ) -> Result<Response<v1::KeepAliveResponse>, Status> {
        let leases = request.into_inner().leases;
        self.script(|state| state.keep_alives.push(leases.iter().map(|lease| lease.token).collect()));
        self.meet(|state| state.keep_alive_fates.pop_front()).await?;
        let (header, results) =
            self.see(|state| (state.header(), leases.iter().map(|lease| state.renew(lease)).collect()));
        Ok(Response::new(v1::KeepAliveResponse { header, results }))
    }

    async fn release(&self, request: Request<v1::ReleaseRequest>) -> Result<Response<v1::ReleaseResponse>, Status> {
        let lease = request.into_inner().lease.unwrap();
        self.script(|state| state.releases.push(lease.token));
        self.meet(|state| state.release_fates.pop_front()).await?;
        self.see(|state| state.check(&lease)).map_err(|details| status(Reason::Fenced, details))?;
        Ok(Response::new(v1::ReleaseResponse { header: self.see(State::header) }))
    }
}

#[tonic::async_trait]
impl v1::checkpoint_service_server::CheckpointService for Fake {
    async fn get_head(&self, request: Request<v1::GetHeadRequest>) -> Result<Response<v1::GetHeadResponse>, Status> {
        let branch = request.into_inner().branch;
        let (header, head) = self
            .see(|state| (state.header(), state.branches.get(&branch).and_then(|(_, stored)| stored.last().cloned())));
        let head = Some(head.ok_or_else(|| status(Reason::StateMissing, vec![]))?);
        Ok(Response::new(v1::GetHeadResponse { header, head }))
    }

    async fn get_checkpoint(
        &self,
        request: Request<v1::GetCheckpointRequest>,
    ) -> Result<Response<v1::GetCheckpointResponse>, Status> {
        let request = request.into_inner();
        let stored = self.see(|state| state.branches[&request.branch].1.get(request.sequence as usize - 1).cloned());
        let checkpoint = Some(stored.ok_or_else(|| status(Reason::StateMissing, vec![]))?);
        Ok(Response::new(v1::GetCheckpointResponse { header: self.see(State::header), checkpoint }))
    }

    /// Pages of two.
    async fn list_checkpoints(
        &self,
        request: Request<v1::ListCheckpointsRequest>,
    ) -> Result<Response<v1::ListCheckpointsResponse>, Status> {
        let request = request.into_inner();
        let before = if request.before_sequence == 0 { u64::MAX } else { request.before_sequence };
        let stored = self.see(|state| state.branches[&request.branch].1.clone());
        let mut checkpoints = stored.into_iter().rev().filter(|stored| stored.sequence < before);
        let page: Vec<_> = checkpoints.by_ref().take(2).collect();
        let next_before_sequence = checkpoints.next().map_or(0, |next| next.sequence + 1);
        let header = self.see(State::header);
        Ok(Response::new(v1::ListCheckpointsResponse { header, checkpoints: page, next_before_sequence }))
    }

    async fn list_pipelines(
        &self,
        _request: Request<v1::ListPipelinesRequest>,
    ) -> Result<Response<v1::ListPipelinesResponse>, Status> {
        Err(Status::unimplemented("no test lists pipelines"))
    }

    /// Pages of one.
    async fn list_branches(
        &self,
        request: Request<v1::ListBranchesRequest>,
    ) -> Result<Response<v1::ListBranchesResponse>, Status> {
        let mut names: Vec<String> = self.see(|state| state.branches.keys().cloned().collect());
        names.sort();
        let mut rest = names.into_iter().filter(|name| *name > request.get_ref().page_token);
        let page: Vec<String> = rest.by_ref().take(1).collect();
        let next_page_token = if rest.next().is_some() { page[0].clone() } else { String::new() };
        let branches = page.into_iter().map(|branch| v1::BranchInfo { branch, ..Default::default() }).collect();
        Ok(Response::new(v1::ListBranchesResponse { header: self.see(State::header), branches, next_page_token }))
    }
}

#[tonic::async_trait]
impl v1::cluster_service_server::ClusterService for Fake {
    async fn get_status(
        &self,
        _request: Request<v1::GetStatusRequest>,
    ) -> Result<Response<v1::GetStatusResponse>, Status> {
        let (header, durable_lsn) = self.see(|state| (state.header(), state.history.newest()));
        Ok(Response::new(v1::GetStatusResponse { header, durable_lsn, ..Default::default() }))
    }
}

#[tonic::async_trait]
impl v1::log_service_server::LogService for Fake {
    type TailStream = Pin<Box<dyn Stream<Item = Result<v1::TailResponse, Status>> + Send>>;

    /// Each fact in a message of its own. Below 1 everything is compacted away.
    async fn tail(&self, request: Request<v1::TailRequest>) -> Result<Response<Self::TailStream>, Status> {
        self.script(|state| state.callers[0].push(request.remote_addr()));
        let request = request.into_inner();
        self.script(|state| state.tails.push(request.clone()));
        if let Some(facts) = self.see(|state| state.history.facts_from(&request)) {
            let (header, next_lsn) = (self.see(State::header), self.see(|state| state.history.newest() + 1));
            let message = v1::TailResponse {
                header: header.map(|header| v1::Header { lsn: next_lsn - 1, ..header }),
                facts,
                next_lsn,
            };
            return Ok(Response::new(Box::pin(tokio_stream::once(Ok(message)))));
        }
        if request.from_lsn == 0 {
            return Err(status(Reason::Compacted, vec![]));
        }
        let (newest, bytes, breaks_after) =
            self.see(|state| (state.log.newest, state.log.fact_bytes, state.log.breaks_after));
        let header = self.see(State::header).map(|header| v1::Header { lsn: newest, ..header });
        let last = newest.min(request.from_lsn.saturating_add(breaks_after - 1));
        let fake = self.clone();
        let facts = tokio_stream::iter(request.from_lsn..=last).map(move |lsn| {
            fake.script(|state| state.facts_sent += 1);
            let facts = vec![v1::TailFact { lsn, fact: Some(fact_of(bytes)) }];
            Ok(v1::TailResponse { header: header.clone(), facts, next_lsn: lsn + 1 })
        });
        let end = if last < newest { vec![Err(broken())] } else { vec![] };
        Ok(Response::new(Box::pin(facts.chain(tokio_stream::iter(end)))))
    }
}

fn fact_of(bytes: usize) -> Fact {
    let checkpoint = Some(v1::Checkpoint { state: vec![7; bytes].into(), ..Default::default() });
    let branches = vec![CommittedBranch { checkpoint, ..Default::default() }];
    Fact { at_ms: 1, kind: Some(Kind::Committed(Committed { branches, ..Default::default() })) }
}
