//! The way in: one [`Client`] per process, shared by all its workers.
//!
//! A client owns one connection, one task that renews all leases ([`crate::lease`]) and one task that sends all commits
//! ([`crate::stream`]). Both end with the last clone of the client and the last of its workers. A second connection is made
//! when the log is first followed ([`crate::tail`]).

use std::sync::Arc;
use std::time::Duration;

use fencepost::{Lsn, v1};
use tokio::time::Instant;
use tonic::transport::{Channel, Endpoint};

use crate::error::{Error, Result, innermost};
use crate::lease::Keeper;
use crate::listing::Listing;
use crate::pipeline::Pipeline;
use crate::rpc::{Rpc, checkpoints, commits};
use crate::stream::CommitRoad;
use crate::tail::{FactStream, Tail};

/// How large a part of the stream of answers may be on its way before this side has read it.
const WINDOW_BYTES: u32 = 4 << 20;
const CONNECTION_WINDOW_BYTES: u32 = 16 << 20;
/// The longest time that can be set: as good as for ever, and no clock overflows.
pub(crate) const LONGEST: Duration = Duration::from_hours(24 * 365);
/// How often a silent connection is asked whether it is still there, and how long it may take to say so.
const PING_INTERVAL: Duration = Duration::from_secs(10);
const PING_TIMEOUT: Duration = Duration::from_secs(5);

/// The road that commits take.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub enum Transport {
    /// One stream for all workers of the client. Ten times faster or more when several of them commit. Commits of more
    /// than 1 MiB go beside it, each in a call of its own, so that they do not hold up the others.
    #[default]
    Stream,
    /// One call for each commit, for networks whose proxies do not carry long streams.
    Unary,
}

/// What can be set on a client.
#[derive(Clone, Debug)]
pub(crate) struct Options {
    pub(crate) connect_timeout: Duration,
    pub(crate) request_timeout: Duration,
    pub(crate) commit_deadline: Duration,
    pub(crate) transport: Transport,
}

impl Default for Options {
    fn default() -> Options {
        Options {
            connect_timeout: Duration::from_secs(5),
            request_timeout: Duration::from_secs(10),
            commit_deadline: Duration::from_secs(30),
            transport: Transport::Stream,
        }
    }
}

/// Settings of a client that is about to be made. Begin with [`Client::builder`].
#[derive(Clone, Debug, Default)]
#[must_use = "settings do nothing until `connect` or `over`"]
pub struct ClientBuilder {
    options: Options,
}

impl ClientBuilder {
    /// How long [`ClientBuilder::connect`] tries, and how long each later attempt to connect again may take. Default 5 s.
    pub fn connect_timeout(mut self, timeout: Duration) -> ClientBuilder {
        self.options.connect_timeout = timeout.min(LONGEST);
        self
    }

    /// How long any request but a commit may take, repetitions included. Default 10 s.
    pub fn request_timeout(mut self, timeout: Duration) -> ClientBuilder {
        self.options.request_timeout = timeout.min(LONGEST);
        self
    }

    /// How long a commit may take, with all its attempts and with finding out how they ended. Default 30 s.
    pub fn commit_deadline(mut self, deadline: Duration) -> ClientBuilder {
        self.options.commit_deadline = deadline.min(LONGEST);
        self
    }

    /// The road that commits take. Default [`Transport::Stream`].
    pub fn transport(mut self, transport: Transport) -> ClientBuilder {
        self.options.transport = transport;
        self
    }

    /// Connects to `http://host:port` or `host:port`, and asks the server who it is.
    pub async fn connect(self, endpoint: impl Into<String>) -> Result<Client> {
        let endpoint = with_scheme(endpoint.into())?;
        let unreachable = |cause| Error::Unreachable { endpoint: endpoint.clone(), cause };
        let deadline = Instant::now() + self.options.connect_timeout;
        let configured = configure(&endpoint, &self.options)?;
        let channel = tokio::time::timeout_at(deadline, configured.connect())
            .await
            .map_err(|_| unreachable(format!("no connection within {:?}", self.options.connect_timeout)))?
            .map_err(|error| unreachable(innermost(&error)))?;
        let client = self.over_named(endpoint, channel, configured.connect_lazy());
        client.shared.rpc.status(deadline).await?;
        Ok(client)
    }

    /// Uses a connection that the caller made, for everything. Must be called within a Tokio runtime.
    pub fn over(self, channel: Channel) -> Client {
        self.over_named("the given channel".to_owned(), channel.clone(), channel)
    }

    fn over_named(self, endpoint: String, channel: Channel, tail_channel: Channel) -> Client {
        let rpc = Arc::new(Rpc::new(endpoint, channel, tail_channel, self.options));
        Client { shared: Arc::new(Shared { keeper: Keeper::start(&rpc), road: CommitRoad::start(&rpc), rpc }) }
    }
}

/// A connection to Fencepost. Clones share it.
///
/// Remembers which cluster answered first and the highest generation of its history, and refuses answers of another
/// cluster or of a lower generation.
#[derive(Clone, Debug)]
pub struct Client {
    pub(crate) shared: Arc<Shared>,
}

#[derive(Debug)]
pub(crate) struct Shared {
    pub(crate) rpc: Arc<Rpc>,
    pub(crate) keeper: Keeper,
    pub(crate) road: CommitRoad,
}

impl Client {
    /// Connects to `http://host:port` or `host:port` with the default settings.
    pub async fn connect(endpoint: impl Into<String>) -> Result<Client> {
        Client::builder().connect(endpoint).await
    }

    /// Settings, to be followed by [`ClientBuilder::connect`].
    pub fn builder() -> ClientBuilder {
        ClientBuilder::default()
    }

    /// Uses a connection that the caller made, with the default settings. Must be called within a Tokio runtime.
    pub fn from_channel(channel: Channel) -> Client {
        Client::builder().over(channel)
    }

    /// The pipeline `namespace/name`. Nothing is sent; a name that breaks the rules is refused when it is used.
    pub fn pipeline(&self, pipeline: impl Into<String>) -> Pipeline {
        Pipeline::new(self.clone(), pipeline.into())
    }

    /// What the server is, how far its log goes and what it holds.
    pub async fn status(&self) -> Result<v1::GetStatusResponse> {
        let rpc = &self.shared.rpc;
        rpc.ask(v1::GetStatusRequest {}, rpc.deadline(), |channel, request| async move {
            v1::cluster_service_client::ClusterServiceClient::new(channel).get_status(request).await
        })
        .await
    }

    /// All pipelines whose names start with `prefix`, in the order of their names.
    pub fn pipelines(&self, prefix: impl Into<String>) -> Listing<v1::PipelineInfo> {
        let (rpc, prefix) = (self.shared.rpc.clone(), prefix.into());
        Listing::new(move |page_token: String| {
            let (rpc, prefix) = (rpc.clone(), prefix.clone());
            async move {
                let request = v1::ListPipelinesRequest { prefix, page_token, ..Default::default() };
                let answer = rpc
                    .ask(request, rpc.deadline(), |channel, request| async move {
                        checkpoints(channel).list_pipelines(request).await
                    })
                    .await?;
                let next = Some(answer.next_page_token).filter(|token| !token.is_empty());
                Ok((answer.pipelines, next))
            }
        })
    }

    /// The branches of all pipelines, with their leases and heads. [`Pipeline::branches`] lists those of one.
    pub fn branches(&self) -> Listing<v1::BranchInfo> {
        self.list_branches(String::new(), false)
    }

    /// The branches of all pipelines that somebody holds now.
    pub fn leases(&self) -> Listing<v1::BranchInfo> {
        self.list_branches(String::new(), true)
    }

    pub(crate) fn list_branches(&self, pipeline: String, leased_only: bool) -> Listing<v1::BranchInfo> {
        let rpc = self.shared.rpc.clone();
        Listing::new(move |page_token: String| {
            let (rpc, pipeline) = (rpc.clone(), pipeline.clone());
            async move {
                let request = v1::ListBranchesRequest { pipeline, leased_only, page_token, ..Default::default() };
                let answer = rpc
                    .ask(request, rpc.deadline(), |channel, request| async move {
                        checkpoints(channel).list_branches(request).await
                    })
                    .await?;
                let next = Some(answer.next_page_token).filter(|token| !token.is_empty());
                Ok((answer.branches, next))
            }
        })
    }

    /// Follows the log. The stream ends with its first error that is not a broken connection.
    pub fn tail(&self, tail: Tail) -> FactStream {
        tail.start(self.shared.rpc.clone())
    }

    /// Tells how a commit ended: where it is in the log, or `None` if it is not there. An attempt still on its way can
    /// yet arrive.
    ///
    /// One branch of the commit and the sequence that it asked for settle the question for ever; without them the server
    /// knows only the commits that it remembers by id.
    pub async fn resolve_commit(
        &self,
        pipeline: &str,
        commit_id: &str,
        branch: Option<(&str, u64)>,
    ) -> Result<Option<Lsn>> {
        let deadline = self.shared.rpc.deadline();
        self.resolve_until(pipeline, commit_id, branch, deadline).await
    }

    pub(crate) async fn resolve_until(
        &self,
        pipeline: &str,
        commit_id: &str,
        branch: Option<(&str, u64)>,
        deadline: Instant,
    ) -> Result<Option<Lsn>> {
        let (branch, sequence) = branch.unwrap_or_default();
        let request = v1::ResolveCommitRequest {
            cluster: None,
            pipeline: pipeline.to_owned(),
            commit_id: commit_id.to_owned(),
            branch: branch.to_owned(),
            sequence,
        };
        let answer = self
            .shared
            .rpc
            .ask(request, deadline, |channel, request| async move { commits(channel).resolve_commit(request).await })
            .await?;
        let applied = answer.outcome() == v1::resolve_commit_response::Outcome::Applied;
        Ok(applied.then_some(Lsn::from_u64(answer.lsn)))
    }

    /// The address that the client was made with.
    pub fn endpoint(&self) -> &str {
        &self.shared.rpc.endpoint
    }

    /// The highest generation of the cluster's history that any answer has shown; 0 before the first.
    pub fn generation(&self) -> u64 {
        self.shared.rpc.cluster.generation()
    }
}

fn with_scheme(endpoint: String) -> Result<String> {
    if endpoint.starts_with("https://") {
        let problem = format!("'{endpoint}' asks for TLS, which this client does not speak; use http://");
        return Err(Error::Invalid { field: "endpoint", problem });
    }
    Ok(if endpoint.contains("://") { endpoint } else { format!("http://{endpoint}") })
}

fn configure(endpoint: &str, options: &Options) -> Result<Endpoint> {
    let invalid = |cause: &dyn std::fmt::Display| Error::Invalid {
        field: "endpoint",
        problem: format!("'{endpoint}' is no address ({cause}); expected a form such as http://127.0.0.1:7411"),
    };
    let configured = Endpoint::from_shared(endpoint.to_owned()).map_err(|error| invalid(&innermost(&error)))?;
    if configured.uri().host().is_none() {
        return Err(invalid(&"no host"));
    }
    Ok(configured
        .connect_timeout(options.connect_timeout)
        .tcp_nodelay(true)
        .initial_stream_window_size(WINDOW_BYTES)
        .initial_connection_window_size(CONNECTION_WINDOW_BYTES)
        .http2_keep_alive_interval(PING_INTERVAL)
        .keep_alive_timeout(PING_TIMEOUT)
        .keep_alive_while_idle(true))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn an_address_may_leave_out_its_scheme() {
        assert_eq!(with_scheme("127.0.0.1:7411".into()).unwrap(), "http://127.0.0.1:7411");
        assert_eq!(with_scheme("http://db:7411".into()).unwrap(), "http://db:7411");
    }

    #[test]
    fn a_useless_address_is_refused_with_an_example_of_a_good_one() {
        let options = Options::default();
        let error = configure("http://not an address", &options).unwrap_err().to_string();
        assert!(error.contains("expected a form such as http://127.0.0.1:7411"), "{error}");
        assert!(with_scheme("https://db:7411".into()).unwrap_err().to_string().contains("use http://"));
    }
}
