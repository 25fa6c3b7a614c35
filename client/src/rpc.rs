//! One call to the server: its deadline, the cluster it is meant for, what its answer teaches, and repetition where that
//! is harmless.
//!
//! Everything that leaves this crate, the commit stream aside, goes through [`Rpc::once`].

use std::sync::OnceLock;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fencepost::{Applied, Reason, v1};
use tokio::time::Instant;
use tonic::transport::Channel;
use tonic::{Request, Response, Status};

use crate::client::Options;
use crate::error::{Error, Result};
use crate::retry::{Backoff, repeatable};

/// Larger than any answer: a head with 4 MiB of state and 64 KiB of position, or a page of positions.
const ANSWER_BYTES_MAX: usize = 128 << 20;

/// How a request ended that may have been sent several times.
#[derive(Debug)]
pub(crate) struct Asked<A> {
    /// What the last attempt came to.
    pub(crate) result: Result<A>,
    /// When the last attempt was sent.
    pub(crate) sent: Instant,
    /// Whether an attempt before the last may have had its effect unseen.
    pub(crate) one_was_lost: bool,
}

/// The connection and what is known about who is at its other end.
#[derive(Debug)]
pub(crate) struct Rpc {
    pub(crate) endpoint: String,
    pub(crate) options: Options,
    pub(crate) cluster: Cluster,
    channel: Channel,
    tail_channel: Channel,
}

impl Rpc {
    /// Tails go over `tail_channel`; it may be a clone of `channel`.
    pub(crate) fn new(endpoint: String, channel: Channel, tail_channel: Channel, options: Options) -> Rpc {
        Rpc { cluster: Cluster::new(endpoint.clone()), endpoint, options, channel, tail_channel }
    }

    /// Sends one request and waits for its answer until `deadline`.
    pub(crate) async fn once<Q, A, F>(
        &self,
        mut question: Q,
        deadline: Instant,
        send: impl FnOnce(Channel, Request<Q>) -> F,
    ) -> Result<A>
    where
        Q: Question,
        A: Answer,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        question.address(self.cluster.reference());
        let timeout = deadline.saturating_duration_since(Instant::now());
        let mut request = Request::new(question);
        request.set_timeout(timeout);
        let answer = match tokio::time::timeout_at(deadline, send(self.channel.clone(), request)).await {
            Ok(Ok(answer)) => answer.into_inner(),
            Ok(Err(status)) => return Err(Error::from_status(&status, &self.endpoint)),
            Err(_) => return Err(self.too_slow(timeout)),
        };
        self.cluster.observe(answer.header())?;
        Ok(answer)
    }

    /// Sends a request that may arrive any number of times with one effect, until it is answered or `deadline` passes.
    /// No attempt takes longer than the request timeout.
    pub(crate) async fn ask<Q, A, F>(
        &self,
        question: Q,
        deadline: Instant,
        send: impl Fn(Channel, Request<Q>) -> F,
    ) -> Result<A>
    where
        Q: Question + Clone,
        A: Answer,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        self.ask_each(question, self.options.request_timeout, deadline, send).await.result
    }

    /// The same for a request that the server is slow to answer on purpose, where each attempt may take `attempt`, and for
    /// callers who have to know how many it took.
    pub(crate) async fn ask_each<Q, A, F>(
        &self,
        question: Q,
        attempt: Duration,
        deadline: Instant,
        send: impl Fn(Channel, Request<Q>) -> F,
    ) -> Asked<A>
    where
        Q: Question + Clone,
        A: Answer,
        F: Future<Output = Result<Response<A>, Status>>,
    {
        let mut backoff = Backoff::ordinary();
        let mut one_was_lost = false;
        loop {
            let sent = Instant::now();
            let asked = |result| Asked { result, sent, one_was_lost };
            let error = match self.once(question.clone(), deadline.min(sent + attempt), &send).await {
                Ok(answer) => return asked(Ok(answer)),
                Err(error) => error,
            };
            let worth_it = match error.reason() {
                // The history was restored since the last answer. Whom the client believes it speaks to is out of date.
                Some(Reason::StaleGeneration) => match self.learn(deadline).await {
                    Ok(is_newer) => is_newer,
                    Err(error) => return asked(Err(error)),
                },
                _ => repeatable(&error),
            };
            if !worth_it || !backoff.wait(error.retry_after(), deadline).await {
                return asked(Err(error));
            }
            one_was_lost |= error.applied() == Applied::Unknown;
            tracing::debug!(%error, "asking again");
        }
    }

    /// Asks the server who it is. Returns whether the generation is newer than before.
    pub(crate) async fn learn(&self, deadline: Instant) -> Result<bool> {
        let before = self.cluster.generation();
        self.status(deadline).await?;
        Ok(self.cluster.generation() > before)
    }

    /// What the server says about itself.
    pub(crate) async fn status(&self, deadline: Instant) -> Result<v1::GetStatusResponse> {
        self.once(v1::GetStatusRequest {}, deadline, |channel, request| async move {
            v1::cluster_service_client::ClusterServiceClient::new(channel).get_status(request).await
        })
        .await
    }

    /// When a request that starts now is given up.
    pub(crate) fn deadline(&self) -> Instant {
        Instant::now() + self.options.request_timeout
    }

    /// For what is no single call: the stream of commits.
    pub(crate) fn channel(&self) -> Channel {
        self.channel.clone()
    }

    /// For those who read the log, which is more than all other answers together.
    pub(crate) fn tail_channel(&self) -> Channel {
        self.tail_channel.clone()
    }

    fn too_slow(&self, timeout: Duration) -> Error {
        Error::Unanswered { endpoint: self.endpoint.clone(), cause: format!("nothing came within {timeout:?}") }
    }
}

/// The service that grants branches.
pub(crate) fn leases(channel: Channel) -> v1::lease_service_client::LeaseServiceClient<Channel> {
    v1::lease_service_client::LeaseServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// The service that reads progress.
pub(crate) fn checkpoints(channel: Channel) -> v1::checkpoint_service_client::CheckpointServiceClient<Channel> {
    v1::checkpoint_service_client::CheckpointServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// The service that moves progress.
pub(crate) fn commits(channel: Channel) -> v1::commit_service_client::CommitServiceClient<Channel> {
    v1::commit_service_client::CommitServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// The service that follows the log.
pub(crate) fn logs(channel: Channel) -> v1::log_service_client::LogServiceClient<Channel> {
    v1::log_service_client::LogServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// The service that changes and tells the history of pipelines.
pub(crate) fn pipelines(channel: Channel) -> v1::pipeline_service_client::PipelineServiceClient<Channel> {
    v1::pipeline_service_client::PipelineServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// The service at which branches move together.
pub(crate) fn barriers(channel: Channel) -> v1::barrier_service_client::BarrierServiceClient<Channel> {
    v1::barrier_service_client::BarrierServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// The service for what could not be processed.
pub(crate) fn dead_letters(channel: Channel) -> v1::dead_letter_service_client::DeadLetterServiceClient<Channel> {
    v1::dead_letter_service_client::DeadLetterServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// The service for long work on the store.
pub(crate) fn maintenance(channel: Channel) -> v1::maintenance_service_client::MaintenanceServiceClient<Channel> {
    v1::maintenance_service_client::MaintenanceServiceClient::new(channel).max_decoding_message_size(ANSWER_BYTES_MAX)
}

/// Whom this client speaks to: the cluster of the first answer, and the highest generation of all answers. Neither ever
/// goes back.
#[derive(Debug)]
pub(crate) struct Cluster {
    endpoint: String,
    id: OnceLock<String>,
    generation: AtomicU64,
}

impl Cluster {
    fn new(endpoint: String) -> Cluster {
        Cluster { endpoint, id: OnceLock::new(), generation: AtomicU64::new(0) }
    }

    /// For a request: whom it is meant for. Absent before the first answer.
    pub(crate) fn reference(&self) -> Option<v1::ClusterRef> {
        let cluster_id = self.id.get()?.clone();
        Some(v1::ClusterRef { cluster_id, generation: self.generation() })
    }

    /// From an answer: refuses another cluster and a generation that is over. An answer without a header is believed.
    pub(crate) fn observe(&self, header: Option<&v1::Header>) -> Result<()> {
        let Some(header) = header else { return Ok(()) };
        let expected = self.id.get_or_init(|| header.cluster_id.clone());
        if *expected != header.cluster_id {
            return Err(Error::WrongCluster {
                endpoint: self.endpoint.clone(),
                expected: expected.clone(),
                answered: header.cluster_id.clone(),
            });
        }
        let seen = self.generation.fetch_max(header.generation, Ordering::AcqRel);
        if seen > header.generation {
            return Err(Error::RolledBack { endpoint: self.endpoint.clone(), seen, answered: header.generation });
        }
        Ok(())
    }

    pub(crate) fn generation(&self) -> u64 {
        self.generation.load(Ordering::Acquire)
    }
}

/// A request that says whom it is meant for.
pub(crate) trait Question {
    /// Writes it in.
    fn address(&mut self, cluster: Option<v1::ClusterRef>);
}

/// An answer that says who gave it.
pub(crate) trait Answer {
    /// Who gave it.
    fn header(&self) -> Option<&v1::Header>;
}

macro_rules! calls {
    ($($question:ident => $answer:ident),+ $(,)?) => {
        $(
            impl Question for v1::$question {
                fn address(&mut self, cluster: Option<v1::ClusterRef>) {
                    self.cluster = cluster;
                }
            }
            impl Answer for v1::$answer {
                fn header(&self) -> Option<&v1::Header> {
                    self.header.as_ref()
                }
            }
        )+
    };
}

calls! {
    CommitRequest => CommitResponse,
    ResolveCommitRequest => ResolveCommitResponse,
    ResumeRequest => ResumeResponse,
    KeepAliveRequest => KeepAliveResponse,
    ReleaseRequest => ReleaseResponse,
    GetHeadRequest => GetHeadResponse,
    GetCheckpointRequest => GetCheckpointResponse,
    ListCheckpointsRequest => ListCheckpointsResponse,
    ListPipelinesRequest => ListPipelinesResponse,
    ListBranchesRequest => ListBranchesResponse,
    GetPolicyRequest => GetPolicyResponse,
    SetPolicyRequest => SetPolicyResponse,
    CreateSavepointRequest => CreateSavepointResponse,
    ListSavepointsRequest => ListSavepointsResponse,
    DeleteSavepointRequest => DeleteSavepointResponse,
    RewindRequest => RewindResponse,
    ForkRequest => ForkResponse,
    ListAuditRequest => ListAuditResponse,
    CompactRequest => CompactResponse,
    CreateSnapshotRequest => CreateSnapshotResponse,
    ExportPipelineRequest => ExportPipelineResponse,
    ImportPipelineRequest => ImportPipelineResponse,
    StageRequest => StageResponse,
    DiscardStagedRequest => DiscardStagedResponse,
    OpenBarrierRequest => OpenBarrierResponse,
    ArriveRequest => ArriveResponse,
    AbortBarrierRequest => AbortBarrierResponse,
    ListBarriersRequest => ListBarriersResponse,
    MergeRequest => MergeResponse,
    ListDeadLettersRequest => ListDeadLettersResponse,
    DiscardDeadLettersRequest => DiscardDeadLettersResponse,
    DeclareSchemaRequest => DeclareSchemaResponse,
    ListSchemasRequest => ListSchemasResponse,
    FenceGroupRequest => FenceGroupResponse,
}

impl Question for v1::GetStatusRequest {
    fn address(&mut self, _cluster: Option<v1::ClusterRef>) {
        // Whoever asks who is there does not know yet.
    }
}

impl Answer for v1::GetStatusResponse {
    fn header(&self) -> Option<&v1::Header> {
        self.header.as_ref()
    }
}

/// The opening of a stream; each of its messages has a header of its own.
impl<A> Answer for tonic::Streaming<A> {
    fn header(&self) -> Option<&v1::Header> {
        None
    }
}

impl Question for v1::TailRequest {
    fn address(&mut self, cluster: Option<v1::ClusterRef>) {
        self.cluster = cluster;
    }
}

impl Question for v1::AwaitBarrierRequest {
    fn address(&mut self, cluster: Option<v1::ClusterRef>) {
        self.cluster = cluster;
    }
}
