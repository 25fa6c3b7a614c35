//! A store in the test's own process, the shortest ways to speak to it, and what every refusal must look like.

use std::collections::HashMap;
use std::os::unix::fs::FileExt as _;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use fencepost::v1::barrier_service_client::BarrierServiceClient;
use fencepost::v1::checkpoint_service_client::CheckpointServiceClient;
use fencepost::v1::cluster_service_client::ClusterServiceClient;
use fencepost::v1::commit_service_client::CommitServiceClient;
use fencepost::v1::dead_letter_service_client::DeadLetterServiceClient;
use fencepost::v1::lease_service_client::LeaseServiceClient;
use fencepost::v1::log_service_client::LogServiceClient;
use fencepost::v1::pipeline_service_client::PipelineServiceClient;
use fencepost::v1::{
    BranchCommit, Checkpoint, CommitRequest, CommitResponse, CreateSavepointRequest, GetCheckpointRequest,
    GetHeadRequest, GetStatusRequest, LeaseRef, OnMissing, Policy, ResumeRequest, ResumeResponse, RewindRequest,
    RewindResponse, Savepoint, SetPolicyRequest, StageRequest, StageResponse, StoredCheckpoint, TailFact, TailRequest,
    rewind_request,
};
use fencepost::{Action, ERROR_DOMAIN, Reason};
use fencepost_server::config::Config;
use fencepost_server::embedded::Embedded;
use tempfile::TempDir;
use tonic::Status;
use tonic::transport::Channel;
use tonic_types::StatusExt as _;

/// The pipeline of most tests.
pub(crate) const ORDERS: &str = "prod/orders";

/// Nothing here takes this long unless it hangs.
pub(crate) const PATIENCE: Duration = Duration::from_secs(20);

/// Larger than any answer.
const ANSWER_BYTES_MAX: usize = 128 << 20;

/// A store of its own for one test; gone with it.
pub(crate) struct Store {
    embedded: Embedded,
    config: Config,
    dir: TempDir,
}

impl Store {
    pub(crate) async fn open() -> Store {
        Store::open_with(|_| ()).await
    }

    /// With settings other than the defaults.
    pub(crate) async fn open_with(set: impl FnOnce(&mut Config)) -> Store {
        let dir = tempfile::tempdir().unwrap();
        let mut config = Config { data_dir: dir.path().join("data"), segment_bytes: 24 << 20, ..Config::default() };
        set(&mut config);
        Store::open_in(config, dir).await
    }

    async fn open_in(config: Config, dir: TempDir) -> Store {
        let store = Store { embedded: Embedded::open_with(config.clone()).await.unwrap(), config, dir };
        // A machine that has much to do may be slow to make the index, and questions about history are refused until then.
        let is_ready = async || {
            let status = store.cluster().get_status(GetStatusRequest {}).await.unwrap().into_inner();
            status.store.unwrap().index_state == "READY"
        };
        while !is_ready().await {
            tokio::time::sleep(Duration::from_millis(5)).await;
        }
        store
    }

    /// The same store after a restart of its server.
    pub(crate) async fn restarted(self) -> Store {
        self.embedded.close().await.unwrap();
        Store::open_in(self.config, self.dir).await
    }

    pub(crate) fn channel(&self) -> Channel {
        self.embedded.channel()
    }

    pub(crate) fn leases(&self) -> LeaseServiceClient<Channel> {
        LeaseServiceClient::new(self.channel()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(crate) fn commits(&self) -> CommitServiceClient<Channel> {
        CommitServiceClient::new(self.channel())
    }

    pub(crate) fn checkpoints(&self) -> CheckpointServiceClient<Channel> {
        CheckpointServiceClient::new(self.channel()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(crate) fn pipelines(&self) -> PipelineServiceClient<Channel> {
        PipelineServiceClient::new(self.channel())
    }

    pub(crate) fn barriers(&self) -> BarrierServiceClient<Channel> {
        BarrierServiceClient::new(self.channel())
    }

    pub(crate) fn dead_letters(&self) -> DeadLetterServiceClient<Channel> {
        DeadLetterServiceClient::new(self.channel()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(crate) fn logs(&self) -> LogServiceClient<Channel> {
        LogServiceClient::new(self.channel()).max_decoding_message_size(ANSWER_BYTES_MAX)
    }

    pub(crate) fn cluster(&self) -> ClusterServiceClient<Channel> {
        ClusterServiceClient::new(self.channel())
    }

    pub(crate) async fn resume(&self, request: ResumeRequest) -> Result<ResumeResponse, Status> {
        Ok(self.leases().resume(request).await?.into_inner())
    }

    /// Takes a branch of [`ORDERS`] and returns its token.
    pub(crate) async fn take(&self, branch: &str) -> u64 {
        self.resume(resume(branch)).await.unwrap().token
    }

    pub(crate) async fn commit(&self, request: CommitRequest) -> Result<CommitResponse, Status> {
        Ok(self.commits().commit(request).await?.into_inner())
    }

    pub(crate) async fn stage(&self, request: StageRequest) -> Result<StageResponse, Status> {
        Ok(self.commits().stage(request).await?.into_inner())
    }

    /// The sequence of the head of a branch of [`ORDERS`]; 0 if there is none.
    pub(crate) async fn head(&self, branch: &str) -> u64 {
        match self.checkpoints().get_head(head(branch)).await {
            Ok(answer) => answer.into_inner().head.unwrap().sequence,
            Err(status) => {
                refusal(&status, Reason::StateMissing);
                0
            }
        }
    }

    pub(crate) async fn stored_head(&self, branch: &str) -> StoredCheckpoint {
        self.checkpoints().get_head(head(branch)).await.unwrap().into_inner().head.unwrap()
    }

    /// Takes a branch and commits it so often; returns its token.
    pub(crate) async fn with_history(&self, branch: &str, commits: u64) -> u64 {
        let token = self.take(branch).await;
        for sequence in 1..=commits {
            self.commit(commit(branch, token, sequence)).await.unwrap();
        }
        token
    }

    /// Sets how many checkpoints of each branch of [`ORDERS`] are kept.
    pub(crate) async fn keep_last(&self, keep_last: u64) {
        self.pipelines().set_policy(keep(Policy { keep_last, ..Policy::default() })).await.unwrap();
    }

    pub(crate) async fn checkpoint(&self, branch: &str, sequence: u64) -> Result<StoredCheckpoint, Status> {
        let request = GetCheckpointRequest {
            pipeline: ORDERS.to_owned(),
            branch: branch.to_owned(),
            sequence,
            ..GetCheckpointRequest::default()
        };
        Ok(self.checkpoints().get_checkpoint(request).await?.into_inner().checkpoint.unwrap())
    }

    pub(crate) async fn rewind(&self, request: RewindRequest) -> Result<RewindResponse, Status> {
        Ok(self.pipelines().rewind(request).await?.into_inner())
    }

    pub(crate) async fn create_savepoint(&self, request: CreateSavepointRequest) -> Result<Savepoint, Status> {
        Ok(self.pipelines().create_savepoint(request).await?.into_inner().savepoint.unwrap())
    }

    /// Every fact that matches, up to what is durable now.
    pub(crate) async fn facts(&self, request: TailRequest) -> Result<Vec<TailFact>, Status> {
        let mut stream = self.logs().tail(request).await?.into_inner();
        let mut facts = Vec::new();
        while let Some(message) = stream.message().await? {
            facts.extend(message.facts);
        }
        Ok(facts)
    }

    /// Changes a bit of the log behind the server's back, at the first place where these bytes are.
    #[allow(clippy::disallowed_methods)] // That is what a bad disk does.
    pub(crate) fn damage(&self, bytes: &str) {
        for file in std::fs::read_dir(self.dir.path().join("data/log")).unwrap() {
            let path = file.unwrap().path();
            let content = std::fs::read(&path).unwrap();
            if let Some(at) = content.windows(bytes.len()).position(|found| found == bytes.as_bytes()) {
                let file = std::fs::File::options().write(true).open(&path).unwrap();
                return file.write_all_at(&[content[at] ^ 1], at as u64).unwrap();
            }
        }
        panic!("'{bytes}' is nowhere in the log");
    }

    /// Asks the server something else, several times: what was sent on this connection before has then been looked at.
    pub(crate) async fn settle(&self) {
        for _ in 0..20 {
            self.cluster().get_status(GetStatusRequest {}).await.unwrap();
        }
    }
}

/// A number that no other call in this process gets.
pub(crate) fn unique() -> u64 {
    static NEXT: AtomicU64 = AtomicU64::new(1);
    NEXT.fetch_add(1, Ordering::Relaxed)
}

/// Takes a branch of [`ORDERS`], fresh if need be, without waiting.
pub(crate) fn resume(branch: &str) -> ResumeRequest {
    ResumeRequest {
        pipeline: ORDERS.to_owned(),
        branch: branch.to_owned(),
        holder: "loader-1".to_owned(),
        request_id: format!("request-{}", unique()),
        on_missing: OnMissing::StartFresh.into(),
        ..ResumeRequest::default()
    }
}

/// The same for another holder.
pub(crate) fn resume_as(holder: &str, branch: &str) -> ResumeRequest {
    ResumeRequest { holder: holder.to_owned(), ..resume(branch) }
}

/// A commit of [`ORDERS`] that moves one branch.
pub(crate) fn commit(branch: &str, token: u64, sequence: u64) -> CommitRequest {
    commit_of([(branch, token, sequence)])
}

/// A commit of [`ORDERS`] that moves several.
pub(crate) fn commit_of<'a>(branches: impl IntoIterator<Item = (&'a str, u64, u64)>) -> CommitRequest {
    let branches = branches.into_iter().map(|(branch, token, sequence)| BranchCommit {
        branch: branch.to_owned(),
        token,
        sequence,
        checkpoint: Some(checkpoint(&format!("offset {sequence}"))),
        ..BranchCommit::default()
    });
    CommitRequest {
        pipeline: ORDERS.to_owned(),
        commit_id: format!("commit-{}", unique()),
        branches: branches.collect(),
        ..CommitRequest::default()
    }
}

/// Stages a checkpoint of a branch of [`ORDERS`].
pub(crate) fn stage(branch: &str, token: u64, sequence: u64, stage_id: &str) -> StageRequest {
    StageRequest {
        pipeline: ORDERS.to_owned(),
        branch: branch.to_owned(),
        token,
        sequence,
        stage_id: stage_id.to_owned(),
        checkpoint: Some(checkpoint(&format!("offset {sequence}"))),
        ..StageRequest::default()
    }
}

/// A commit of what a branch of [`ORDERS`] has staged.
pub(crate) fn commit_staged(branch: &str, token: u64, sequence: u64, stage_id: &str) -> CommitRequest {
    let mut request = commit(branch, token, sequence);
    request.branches[0].checkpoint = None;
    stage_id.clone_into(&mut request.branches[0].staged);
    request
}

pub(crate) fn checkpoint(position: &str) -> Checkpoint {
    Checkpoint {
        position: position.as_bytes().to_vec().into(),
        state: format!("state at {position}").into_bytes().into(),
        ..Checkpoint::default()
    }
}

pub(crate) fn head(branch: &str) -> GetHeadRequest {
    GetHeadRequest { pipeline: ORDERS.to_owned(), branch: branch.to_owned(), ..GetHeadRequest::default() }
}

/// Sets the policy of [`ORDERS`].
pub(crate) fn keep(policy: Policy) -> SetPolicyRequest {
    SetPolicyRequest { pipeline: ORDERS.to_owned(), policy: Some(policy), ..SetPolicyRequest::default() }
}

/// Sets a branch of [`ORDERS`] back.
pub(crate) fn rewind(branch: &str, expected_head: u64, sequence: u64) -> RewindRequest {
    RewindRequest {
        pipeline: ORDERS.to_owned(),
        branch: branch.to_owned(),
        to: Some(rewind_request::To::Sequence(sequence)),
        expected_head,
        actor: "ops".to_owned(),
        reason: "bad input".to_owned(),
        ..RewindRequest::default()
    }
}

/// Sets a branch of [`ORDERS`] back to a savepoint.
pub(crate) fn rewind_to(branch: &str, expected_head: u64, savepoint: &str) -> RewindRequest {
    let to = Some(rewind_request::To::Savepoint(savepoint.to_owned()));
    RewindRequest { to, ..rewind(branch, expected_head, 0) }
}

/// Names a checkpoint of [`ORDERS`].
pub(crate) fn name(name: &str, branch: &str, sequence: u64) -> CreateSavepointRequest {
    CreateSavepointRequest {
        pipeline: ORDERS.to_owned(),
        name: name.to_owned(),
        branch: branch.to_owned(),
        sequence,
        actor: "ops".to_owned(),
        reason: "before the release".to_owned(),
        ..CreateSavepointRequest::default()
    }
}

pub(crate) fn lease(branch: &str, token: u64) -> LeaseRef {
    LeaseRef { pipeline: ORDERS.to_owned(), branch: branch.to_owned(), token }
}

/// Checks that a failed call is a refusal for this reason, in the form that all have, and returns its details.
#[track_caller]
pub(crate) fn refusal(status: &Status, reason: Reason) -> HashMap<String, String> {
    let info = status.get_details_error_info();
    let info = info.unwrap_or_else(|| panic!("expected {reason}, got a status without details: {status:?}"));
    assert_eq!((info.domain.as_str(), info.reason.as_str()), (ERROR_DOMAIN, reason.as_str()), "{status:?}");
    assert_eq!(status.code(), reason.code(), "{status:?}");
    let waits = status.get_details_retry_info().is_some_and(|retry| retry.retry_delay.is_some());
    assert_eq!(waits, reason.action() == Action::Retry, "RetryInfo is where waiting helps: {status:?}");
    message(status.message(), &info.metadata, reason);
    info.metadata
}

/// The same for a refusal inside a message.
#[track_caller]
pub(crate) fn inner_refusal(refusal: Option<&fencepost::v1::Refusal>, reason: Reason) -> HashMap<String, String> {
    let refusal = refusal.unwrap_or_else(|| panic!("expected a refusal for {reason}"));
    assert_eq!(refusal.reason, reason.as_str(), "{refusal:?}");
    message(&refusal.message, &refusal.metadata, reason);
    refusal.metadata.clone()
}

#[track_caller]
fn message(message: &str, metadata: &HashMap<String, String>, reason: Reason) {
    assert_eq!(metadata.get("applied").map(String::as_str), Some(reason.applied().as_str()), "{message}");
    assert!(message.len() > 20, "a message says what happened and what to do: '{message}'");
    assert!(message.len() < 2_000, "whatever came in, a message is short: {} bytes", message.len());
    // What is wrong with a field is said in words, too.
    for key in ["field", "value", "expected"] {
        if let Some(value) = metadata.get(key) {
            assert!(message.contains(value.as_str()), "the message does not name the {key} '{value}': {message}");
        }
    }
}

/// Checks that a call was refused because of one field.
#[track_caller]
pub(crate) fn refused_field(status: &Status, reason: Reason, field: &str) {
    let metadata = refusal(status, reason);
    assert_eq!(metadata.get("field").map(String::as_str), Some(field), "{status:?}");
}
