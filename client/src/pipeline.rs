//! Names of things on the server and what can be read or asked of them: [`Pipeline`] and [`Branch`].

use std::num::NonZero;

use fencepost::{Reason, Token, v1};

use crate::checkpoint::StoredCheckpoint;
use crate::client::Client;
use crate::error::Result;
use crate::listing::Listing;
use crate::resume::Resume;
use crate::rpc::{checkpoints, leases};
use crate::worker::Worker;

/// A pipeline: the unit of ownership and of atomicity. Only a name; nothing is sent to make one.
#[derive(Clone, Debug)]
pub struct Pipeline {
    client: Client,
    name: String,
}

impl Pipeline {
    pub(crate) fn new(client: Client, name: String) -> Pipeline {
        Pipeline { client, name }
    }

    /// `namespace/name`.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The branch of that name.
    pub fn branch(&self, branch: impl Into<String>) -> Branch {
        Branch { client: self.client.clone(), pipeline: self.name.clone(), name: branch.into() }
    }

    /// Its branches with their leases and heads, in the order of their names.
    pub fn branches(&self) -> Listing<v1::BranchInfo> {
        self.client.list_branches(self.name.clone(), false)
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }
}

/// One independently progressing part of a pipeline. Only a name; nothing is sent to make one.
#[derive(Clone, Debug)]
pub struct Branch {
    client: Client,
    pipeline: String,
    name: String,
}

impl Branch {
    /// Takes the branch: mints a new fencing token, so that no earlier worker can move the branch any more, and returns
    /// a worker that stands at the last acknowledged commit.
    ///
    /// `resume` is the holder's name, or a [`Resume`] where more is to be said. The call is repeated under one request
    /// id until it is answered, so that a lost answer does not mint two tokens.
    pub async fn resume(&self, resume: impl Into<Resume>) -> Result<Worker> {
        resume.into().take(self).await
    }

    /// The newest committed checkpoint, or a `STATE_MISSING` refusal if there is none. Taking nothing, it can be old by
    /// the time it is looked at.
    pub async fn head(&self) -> Result<StoredCheckpoint> {
        self.verified(self.get_head(false).await?)
    }

    /// The sequence of the head, or a `STATE_MISSING` refusal if there is none.
    pub(crate) async fn head_sequence(&self) -> Result<u64> {
        Ok(self.head_without_state().await?.sequence)
    }

    /// The newest committed checkpoint without its state, or a `STATE_MISSING` refusal if there is none.
    pub(crate) async fn head_without_state(&self) -> Result<v1::StoredCheckpoint> {
        Ok(self.get_head(true).await?.unwrap_or_default())
    }

    /// What is staged, without the checkpoint itself. Only a list tells, so it reads those of the branches before it too.
    pub(crate) async fn staged(&self) -> Result<Option<v1::StagedCheckpoint>> {
        let mut branches = self.client.list_branches(self.pipeline.clone(), false);
        while let Some(branch) = branches.next().await? {
            if branch.branch == self.name {
                return Ok(branch.staged);
            }
        }
        Ok(None)
    }

    async fn get_head(&self, without_state: bool) -> Result<Option<v1::StoredCheckpoint>> {
        let rpc = &self.client.shared.rpc;
        let (pipeline, branch) = (self.pipeline.clone(), self.name.clone());
        let request = v1::GetHeadRequest { cluster: None, pipeline, branch, without_state };
        let answer = rpc
            .ask(
                request,
                rpc.deadline(),
                |channel, request| async move { checkpoints(channel).get_head(request).await },
            )
            .await?;
        Ok(answer.head)
    }

    /// The checkpoint of that sequence.
    pub async fn checkpoint(&self, sequence: u64) -> Result<StoredCheckpoint> {
        let rpc = &self.client.shared.rpc;
        let request = v1::GetCheckpointRequest {
            cluster: None,
            pipeline: self.pipeline.clone(),
            branch: self.name.clone(),
            sequence,
            without_state: false,
        };
        let answer = rpc
            .ask(request, rpc.deadline(), |channel, request| async move {
                checkpoints(channel).get_checkpoint(request).await
            })
            .await?;
        self.verified(answer.checkpoint)
    }

    /// Its checkpoints, newest first, without their states.
    pub fn checkpoints(&self) -> Listing<StoredCheckpoint> {
        self.list_checkpoints(String::new())
    }

    /// Those of its checkpoints that were made in this trace ([`TraceParent::trace_id`](fencepost::TraceParent::trace_id)),
    /// newest first, without their states. The server reads through all that are kept.
    pub fn checkpoints_of_trace(&self, trace_id: NonZero<u128>) -> Listing<StoredCheckpoint> {
        self.list_checkpoints(format!("{trace_id:032x}"))
    }

    fn list_checkpoints(&self, trace_id: String) -> Listing<StoredCheckpoint> {
        let branch = self.clone();
        Listing::new(move |before: String| {
            let (branch, trace_id) = (branch.clone(), trace_id.clone());
            async move {
                let rpc = &branch.client.shared.rpc;
                let request = v1::ListCheckpointsRequest {
                    cluster: None,
                    pipeline: branch.pipeline,
                    branch: branch.name,
                    before_sequence: before.parse().unwrap_or(0),
                    trace_id,
                    ..v1::ListCheckpointsRequest::default()
                };
                let answer = rpc
                    .ask(request, rpc.deadline(), |channel, request| async move {
                        checkpoints(channel).list_checkpoints(request).await
                    })
                    .await?;
                let next = Some(answer.next_before_sequence).filter(|before| *before != 0);
                let page = answer.checkpoints.into_iter().map(StoredCheckpoint::from_message).collect();
                Ok((page, next.map(|before| before.to_string())))
            }
        })
    }

    /// Gives the branch back on behalf of the worker that holds `token`. For operators and for a process that knows its
    /// predecessor's token; a worker releases itself with [`Worker::release`].
    ///
    /// `FENCED` if `token` does not hold the branch. After an attempt that was not answered that is success: the branch
    /// was given back, and somebody who waited for it has it.
    pub async fn release(&self, token: Token) -> Result<()> {
        let rpc = &self.client.shared.rpc;
        let lease = v1::LeaseRef { pipeline: self.pipeline.clone(), branch: self.name.clone(), token: token.as_u64() };
        let request = v1::ReleaseRequest { cluster: None, lease: Some(lease) };
        let asked = rpc
            .ask_each(request, rpc.options.request_timeout, rpc.deadline(), |channel, request| async move {
                leases(channel).release(request).await
            })
            .await;
        match asked.result {
            Err(error) if asked.one_was_lost && error.reason() == Some(Reason::Fenced) => Ok(()),
            result => result.map(drop),
        }
    }

    /// `namespace/name` of its pipeline.
    pub fn pipeline(&self) -> &str {
        &self.pipeline
    }

    /// Its own name.
    pub fn name(&self) -> &str {
        &self.name
    }

    pub(crate) fn client(&self) -> &Client {
        &self.client
    }

    fn verified(&self, message: Option<v1::StoredCheckpoint>) -> Result<StoredCheckpoint> {
        let named = v1::StoredCheckpoint {
            pipeline: self.pipeline.clone(),
            branch: self.name.clone(),
            ..message.unwrap_or_default()
        };
        let stored = StoredCheckpoint::from_message(named);
        stored.verify()?;
        Ok(stored)
    }
}
