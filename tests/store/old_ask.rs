//! What version 1 could be asked, and the answers as text that stays the same for ever.

use std::collections::BTreeMap;

use fencepost::log::v1::Fact;
use fencepost::log::v1::fact::Kind;
use fencepost::v1::checkpoint_service_client::CheckpointServiceClient;
use fencepost::v1::commit_service_client::CommitServiceClient;
use fencepost::v1::log_service_client::LogServiceClient;
use fencepost::v1::{
    BranchCommit, Checkpoint, CommitRequest, CommitResponse, GetCheckpointRequest, GetHeadRequest, Integrity,
    ListBranchesRequest, ListCheckpointsRequest, ListPipelinesRequest, ResolveCommitRequest, StoredCheckpoint,
    TailRequest,
};
use prost::Message as _;
use tonic::transport::Channel;
use tonic::{Response, Status};
use tonic_types::StatusExt as _;

/// The reason of a refusal.
fn told<T>(answer: Result<Response<T>, Status>, tell: impl FnOnce(T) -> String) -> String {
    match answer {
        Ok(answer) => tell(answer.into_inner()),
        Err(status) => status.get_details_error_info().map_or_else(|| format!("{status:?}"), |info| info.reason),
    }
}

fn shown(found: Option<StoredCheckpoint>) -> String {
    let found = found.expect("an answer has a checkpoint");
    let StoredCheckpoint { sequence, token, lsn, commit_id, committed_at_ms, state_bytes, .. } = found;
    let Checkpoint { position, state, payload_crc32, integrity, .. } = found.checkpoint.unwrap_or_default();
    let Integrity { rows_in, rows_out, rows_filtered, rows_dead, schema_fingerprint } = integrity.unwrap_or_default();
    format!(
        "{sequence} token {token} lsn {lsn} id {commit_id} at {committed_at_ms} position {} state {state_bytes} {:08x} \
         payload {payload_crc32:?} rows {rows_in:?} {rows_out:?} {rows_filtered:?} {rows_dead:?} schema {}",
        position.escape_ascii(),
        crc32fast::hash(&state),
        schema_fingerprint.escape_ascii(),
    )
}

/// All facts, with their places.
pub(crate) async fn facts(channel: &Channel) -> Vec<(u64, Fact)> {
    let mut log = LogServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20);
    let request = TailRequest { allow_gaps: true, ..TailRequest::default() };
    let mut tail = log.tail(request).await.unwrap().into_inner();
    let mut facts = Vec::new();
    while let Some(more) = tail.message().await.unwrap() {
        facts.extend(more.facts.into_iter().map(|it| (it.lsn, it.fact.unwrap())));
    }
    facts
}

/// Everything that can be asked about these facts with what version 1 has, by question; the same text for ever.
pub(crate) async fn ask(channel: &Channel, facts: &[(u64, Fact)]) -> BTreeMap<String, String> {
    let mut answers = BTreeMap::new();
    let mut heads: BTreeMap<(&str, &str), u64> = BTreeMap::new();
    for (lsn, fact) in facts {
        let bytes = fact.encode_to_vec();
        let text = format!("at {}, {} bytes, {:08x}", fact.at_ms, bytes.len(), crc32fast::hash(&bytes));
        answers.insert(format!("fact {lsn:012}"), text);
        match fact.kind.as_ref().unwrap() {
            Kind::LeaseGranted(granted) => {
                heads.entry((&granted.pipeline, &granted.branch)).or_default();
                let moved = BranchCommit {
                    branch: granted.branch.clone(),
                    token: granted.token,
                    sequence: u64::MAX,
                    checkpoint: Some(Checkpoint::default()),
                    ..BranchCommit::default()
                };
                let answer = commit(channel, &granted.pipeline, "never applied", vec![moved], 0).await;
                let question = format!("token {} {} {}", granted.pipeline, granted.branch, granted.token);
                answers.insert(question, told(answer, |it| format!("{it:?}")));
            }
            Kind::Committed(committed) => {
                for moved in &committed.branches {
                    heads.insert((&committed.pipeline, &moved.branch), moved.sequence);
                }
                ask_of_commit(channel, committed, &mut answers).await;
            }
            _ => {}
        }
    }
    let mut checkpoints = CheckpointServiceClient::new(channel.clone()).max_decoding_message_size(64 << 20);
    for ((pipeline, branch), head) in heads {
        let (pipeline, branch) = (pipeline.to_owned(), branch.to_owned());
        let of = format!("{pipeline} {branch}");
        let request =
            GetHeadRequest { pipeline: pipeline.clone(), branch: branch.clone(), ..GetHeadRequest::default() };
        answers.insert(format!("head {of}"), told(checkpoints.get_head(request).await, |it| shown(it.head)));
        for sequence in 1..=head + 1 {
            let (pipeline, branch) = (pipeline.clone(), branch.clone());
            let request = GetCheckpointRequest { pipeline, branch, sequence, ..GetCheckpointRequest::default() };
            let answer = told(checkpoints.get_checkpoint(request).await, |it| shown(it.checkpoint));
            answers.insert(format!("checkpoint {of} {sequence:03}"), answer);
        }
        let request = ListCheckpointsRequest { pipeline, branch, ..ListCheckpointsRequest::default() };
        let listed = told(checkpoints.list_checkpoints(request).await, |it| {
            let rows: Vec<String> = it.checkpoints.iter().map(|it| format!("{} at {}", it.sequence, it.lsn)).collect();
            rows.join(", ")
        });
        answers.insert(format!("history {of}"), listed);
    }
    let found = checkpoints.list_branches(ListBranchesRequest::default()).await.unwrap().into_inner();
    for it in found.branches {
        let lease = it.lease.map(|it| format!("{} {} {} since {}", it.token, it.holder, it.ttl_ms, it.granted_at_ms));
        let text = format!(
            "{} at {} ({}), last token {}",
            it.head_sequence, it.head_lsn, it.head_committed_at_ms, it.last_token
        );
        answers.insert(format!("branch {} {}", it.pipeline, it.branch), format!("{text}, lease {lease:?}"));
    }
    let found = checkpoints.list_pipelines(ListPipelinesRequest::default()).await.unwrap().into_inner();
    for it in found.pipelines {
        let text = format!("{} {} {} {}", it.branches, it.leases, it.commits, it.last_committed_at_ms);
        answers.insert(format!("pipeline {}", it.pipeline), text);
    }
    answers
}

async fn ask_of_commit(
    channel: &Channel,
    committed: &fencepost::log::v1::Committed,
    answers: &mut BTreeMap<String, String>,
) {
    let (pipeline, commit_id) = (committed.pipeline.clone(), committed.commit_id.clone());
    let mut commits = CommitServiceClient::new(channel.clone());
    for branch in [None, committed.branches.first()] {
        let request = ResolveCommitRequest {
            cluster: None,
            pipeline: pipeline.clone(),
            commit_id: commit_id.clone(),
            branch: branch.map(|it| it.branch.clone()).unwrap_or_default(),
            sequence: branch.map(|it| it.sequence).unwrap_or_default(),
        };
        let question = format!("resolve {pipeline} {commit_id} {}", request.branch);
        let answer = told(commits.resolve_commit(request).await, |it| format!("{:?} at {}", it.outcome(), it.lsn));
        answers.insert(question, answer);
    }
    // Should the store have lost it, it is not applied now.
    let moved = committed.branches.iter().map(|it| BranchCommit {
        branch: it.branch.clone(),
        token: it.token,
        sequence: it.sequence,
        checkpoint: it.checkpoint.clone(),
        ..BranchCommit::default()
    });
    let again = commit(channel, &pipeline, &commit_id, moved.collect(), 1).await;
    answers
        .insert(format!("again {pipeline} {commit_id}"), told(again, |it| format!("{:?} at {}", it.outcome(), it.lsn)));
}

pub(crate) async fn commit(
    channel: &Channel,
    pipeline: &str,
    commit_id: &str,
    branches: Vec<BranchCommit>,
    not_after_ms: u64,
) -> Result<Response<CommitResponse>, Status> {
    let (pipeline, commit_id) = (pipeline.to_owned(), commit_id.to_owned());
    let request = CommitRequest { cluster: None, pipeline, commit_id, branches, not_after_ms };
    CommitServiceClient::new(channel.clone()).commit(request).await
}
