//! What a pipeline keeps ([`Policy`]), what is kept for longer ([`Pipeline::create_savepoint`]), and who did what to it
//! ([`Pipeline::audit`]).

use std::time::Duration;

use fencepost::{Reason, v1};

use crate::error::Result;
use crate::listing::Listing;
use crate::pipeline::{Branch, Pipeline};
use crate::rpc::pipelines;

/// What a pipeline keeps. A checkpoint is kept if either of the first two rules says so; heads and checkpoints with a
/// savepoint are always kept.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
#[non_exhaustive]
pub struct Policy {
    /// So many newest checkpoints of each branch: 1 to 1,000,000. 0: the server's default, 10.
    pub keep_last: u64,
    /// Also those that were committed no longer than this before the branch's newest. Zero: none.
    pub keep_for: Duration,
    /// How long who, when and why can be listed. Zero: the server's default, 30 days.
    pub audit_for: Duration,
    /// Every checkpoint must say its row counts, and they must add up: rows in = rows out + filtered + dead, and as many dead
    /// letters come with it as rows are dead.
    pub reconcile_rows: bool,
    /// Every checkpoint must have the fingerprint of a declared schema: that of the head, or one that succeeds it.
    pub declared_schemas_only: bool,
}

impl Policy {
    /// The server's defaults.
    pub fn new() -> Policy {
        Policy::default()
    }

    /// Refuses checkpoints whose row counts do not add up.
    #[must_use]
    pub fn reconcile_rows(mut self) -> Policy {
        self.reconcile_rows = true;
        self
    }

    /// Refuses checkpoints whose schema is not declared or does not follow the head's.
    #[must_use]
    pub fn declared_schemas_only(mut self) -> Policy {
        self.declared_schemas_only = true;
        self
    }

    /// Keeps so many newest checkpoints of each branch.
    #[must_use]
    pub fn keep_last(mut self, checkpoints: u64) -> Policy {
        self.keep_last = checkpoints;
        self
    }

    /// Also keeps what was committed no longer than this before the branch's newest checkpoint. The branch's own time
    /// counts and not the wall clock: a branch that stands still keeps what it has.
    #[must_use]
    pub fn keep_for(mut self, time: Duration) -> Policy {
        self.keep_for = time;
        self
    }

    /// Lets [`Pipeline::audit`] look back so far.
    #[must_use]
    pub fn audit_for(mut self, time: Duration) -> Policy {
        self.audit_for = time;
        self
    }

    fn from_message(message: Option<v1::Policy>) -> Policy {
        let message = message.unwrap_or_default();
        Policy {
            keep_last: message.keep_last,
            keep_for: Duration::from_millis(message.keep_for_ms),
            audit_for: Duration::from_millis(message.audit_for_ms),
            reconcile_rows: message.reconcile_rows,
            declared_schemas_only: message.declared_schemas_only,
        }
    }

    fn into_message(self) -> v1::Policy {
        let millis = |time: Duration| u64::try_from(time.as_millis()).unwrap_or(u64::MAX);
        v1::Policy {
            keep_last: self.keep_last,
            keep_for_ms: millis(self.keep_for),
            audit_for_ms: millis(self.audit_for),
            reconcile_rows: self.reconcile_rows,
            declared_schemas_only: self.declared_schemas_only,
        }
    }
}

/// A change of a pipeline's policy. Begin with [`Pipeline::set_policy`].
#[derive(Clone, Debug)]
#[must_use = "nothing is sent before `send`"]
pub struct SetPolicy {
    pipeline: Pipeline,
    request: v1::SetPolicyRequest,
}

/// A savepoint that is about to be made. Begin with [`Pipeline::create_savepoint`].
#[derive(Clone, Debug)]
#[must_use = "nothing is sent before `send`"]
pub struct CreateSavepoint {
    pipeline: Pipeline,
    request: v1::CreateSavepointRequest,
}

/// A savepoint that is about to be taken away. Begin with [`Pipeline::delete_savepoint`].
#[derive(Clone, Debug)]
#[must_use = "nothing is sent before `send`"]
pub struct DeleteSavepoint {
    pipeline: Pipeline,
    request: v1::DeleteSavepointRequest,
}

/// Gives requests that are recorded a who and a why.
macro_rules! recorded {
    ($($change:ty),+ $(,)?) => {
        $(
            impl $change {
                /// Who asks, for whoever reads the audit later. At most 128 characters. Default: nobody in particular.
                pub fn actor(mut self, actor: impl Into<String>) -> Self {
                    self.request.actor = actor.into();
                    self
                }

                /// Why, for whoever reads the audit later. At most 1 KiB.
                pub fn reason(mut self, reason: impl Into<String>) -> Self {
                    self.request.reason = reason.into();
                    self
                }
            }
        )+
    };
}
pub(crate) use recorded;

recorded!(SetPolicy, CreateSavepoint, DeleteSavepoint);

impl Pipeline {
    /// What the pipeline keeps, with the defaults filled in.
    pub async fn policy(&self) -> Result<Policy> {
        let rpc = &self.client().shared.rpc;
        let request = v1::GetPolicyRequest { cluster: None, pipeline: self.name().to_owned() };
        let answer = rpc
            .ask(
                request,
                rpc.deadline(),
                |channel, request| async move { pipelines(channel).get_policy(request).await },
            )
            .await?;
        Ok(Policy::from_message(answer.policy))
    }

    /// Replaces the whole policy. The pipeline need not exist yet. Checkpoints that are gone do not come back.
    pub fn set_policy(&self, policy: Policy) -> SetPolicy {
        let request = v1::SetPolicyRequest {
            pipeline: self.name().to_owned(),
            policy: Some(policy.into_message()),
            ..Default::default()
        };
        SetPolicy { pipeline: self.clone(), request }
    }

    /// Names a checkpoint, by default the head of branch `main`, so that no policy ever removes it.
    ///
    /// ```
    /// # use fencepost_client::{Client, Result};
    /// # async fn before_the_migration(client: Client) -> Result<()> {
    /// let orders = client.pipeline("prod/orders");
    /// orders.create_savepoint("before-v2").branch("jfk").actor("ada").reason("schema migration").send().await?;
    /// # Ok(())
    /// # }
    /// ```
    pub fn create_savepoint(&self, name: impl Into<String>) -> CreateSavepoint {
        let request = v1::CreateSavepointRequest {
            pipeline: self.name().to_owned(),
            name: name.into(),
            branch: "main".to_owned(),
            ..Default::default()
        };
        CreateSavepoint { pipeline: self.clone(), request }
    }

    /// Its savepoints, in the order of their names.
    pub fn savepoints(&self) -> Listing<v1::Savepoint> {
        let pipeline = self.clone();
        Listing::new(move |page_token: String| {
            let pipeline = pipeline.clone();
            async move {
                let rpc = &pipeline.client().shared.rpc;
                let pipeline = pipeline.name().to_owned();
                let request = v1::ListSavepointsRequest { cluster: None, pipeline, page_size: 0, page_token };
                let answer = rpc
                    .ask(request, rpc.deadline(), |channel, request| async move {
                        pipelines(channel).list_savepoints(request).await
                    })
                    .await?;
                let next = Some(answer.next_page_token).filter(|token| !token.is_empty());
                Ok((answer.savepoints, next))
            }
        })
    }

    /// Takes a savepoint's name away. The checkpoint lives on for as long as the policy keeps it.
    pub fn delete_savepoint(&self, name: impl Into<String>) -> DeleteSavepoint {
        let request =
            v1::DeleteSavepointRequest { pipeline: self.name().to_owned(), name: name.into(), ..Default::default() };
        DeleteSavepoint { pipeline: self.clone(), request }
    }

    /// Who did what to the pipeline, when and why. Newest first, as far back as its policy keeps the audit.
    pub fn audit(&self) -> Listing<v1::AuditRecord> {
        audit(self.clone(), String::new())
    }
}

impl Branch {
    /// Who did what to the branch, when and why. Newest first, as far back as the pipeline's policy keeps the audit.
    pub fn audit(&self) -> Listing<v1::AuditRecord> {
        audit(self.client().pipeline(self.pipeline()), self.name().to_owned())
    }
}

impl SetPolicy {
    /// Sends it until it is answered, and returns the policy with the defaults filled in.
    pub async fn send(self) -> Result<Policy> {
        let rpc = &self.pipeline.client().shared.rpc;
        let answer = rpc
            .ask(self.request, rpc.deadline(), |channel, request| async move {
                pipelines(channel).set_policy(request).await
            })
            .await?;
        Ok(Policy::from_message(answer.policy))
    }
}

impl CreateSavepoint {
    /// Of a checkpoint of this branch. Default `main`.
    pub fn branch(mut self, branch: impl Into<String>) -> CreateSavepoint {
        self.request.branch = branch.into();
        self
    }

    /// Of this checkpoint, which must be kept still. Default: the head at the time of sending.
    pub fn sequence(mut self, sequence: u64) -> CreateSavepoint {
        self.request.sequence = sequence;
        self
    }

    /// Sends it until it is answered. The same savepoint again is success; another checkpoint under a name that is taken is
    /// refused with `EXISTS`.
    pub async fn send(mut self) -> Result<v1::Savepoint> {
        if self.request.sequence == 0 {
            // Named here, because a repetition that says "the head" could name another checkpoint than the first attempt.
            self.request.sequence = self.pipeline.branch(&self.request.branch).head_sequence().await?;
        }
        let rpc = &self.pipeline.client().shared.rpc;
        let answer = rpc
            .ask(self.request, rpc.deadline(), |channel, request| async move {
                pipelines(channel).create_savepoint(request).await
            })
            .await?;
        Ok(answer.savepoint.unwrap_or_default())
    }
}

impl DeleteSavepoint {
    /// Sends it until it is answered. `STATE_MISSING` if there is no such savepoint; after an attempt that was not answered
    /// that is success.
    pub async fn send(self) -> Result<()> {
        let rpc = &self.pipeline.client().shared.rpc;
        let asked = rpc
            .ask_each(self.request, rpc.options.request_timeout, rpc.deadline(), |channel, request| async move {
                pipelines(channel).delete_savepoint(request).await
            })
            .await;
        match asked.result {
            Err(error) if asked.one_was_lost && error.reason() == Some(Reason::StateMissing) => Ok(()),
            result => result.map(drop),
        }
    }
}

fn audit(pipeline: Pipeline, branch: String) -> Listing<v1::AuditRecord> {
    Listing::new(move |before: String| {
        let (pipeline, branch) = (pipeline.clone(), branch.clone());
        async move {
            let rpc = &pipeline.client().shared.rpc;
            let request = v1::ListAuditRequest {
                cluster: None,
                pipeline: pipeline.name().to_owned(),
                branch,
                before_lsn: before.parse().unwrap_or(0),
                page_size: 0,
            };
            let answer =
                rpc.ask(request, rpc.deadline(), |channel, request| async move {
                    pipelines(channel).list_audit(request).await
                })
                .await?;
            let next = Some(answer.next_before_lsn).filter(|before| *before != 0);
            Ok((answer.records, next.map(|before| before.to_string())))
        }
    })
}
