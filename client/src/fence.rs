//! Ending every lease of a pipeline at once ([`Pipeline::fence`]), before its number of branches changes.

use fencepost::log::v1::fact::Kind;
use fencepost::{Token, v1};

use crate::error::{Error, Result};
use crate::once::{Done, Once};
use crate::pipeline::Pipeline;
use crate::rpc::pipelines;

/// What a fence of a pipeline did.
#[derive(Clone, Debug, PartialEq, Eq)]
pub struct PipelineFenced {
    /// The token that it minted, for nobody: every lower one of the pipeline is refused.
    pub token: Token,
    /// How many leases ended.
    pub leases: u64,
    /// Whose, in the order of their branches: at most 1,000. Empty if the answer was lost and the log alone told that it is
    /// done.
    pub fenced: Vec<v1::FencedHolder>,
}

impl Pipeline {
    /// Ends every lease of the pipeline in one fact: no worker of before moves any of its branches any more. For a change of
    /// the number of branches: fence, then start the new workers. What is staged stays; arrivals at open barriers are void.
    ///
    /// `actor` and `reason` are kept for whoever reads the audit later; a reason is needed. After an error whose
    /// [`Error::applied`] is unknown the leases may have ended.
    pub async fn fence(&self, actor: impl Into<String>, reason: impl Into<String>) -> Result<PipelineFenced> {
        let request = v1::FenceGroupRequest {
            cluster: None,
            pipeline: self.name().to_owned(),
            actor: actor.into(),
            reason: reason.into(),
        };
        if request.reason.is_empty() {
            let problem = "a fence needs a reason, which is kept in the log".to_owned();
            return Err(Error::Invalid { field: "reason", problem });
        }
        let call = Once::begin(self.client(), self.name(), "").await?;
        let asked = request.clone();
        let send = async |channel, request| pipelines(channel).fence_group(request).await;
        let (Done::Answered(answer) | Done::Found(_, answer)) =
            call.send(request, send, |kind| did_fence(kind, &asked)).await?;
        Ok(PipelineFenced { token: Token::from_u64(answer.token), leases: answer.fenced_count, fenced: answer.fenced })
    }
}

/// What the server would have answered, as far as the fact tells, if it is what the request asked for.
fn did_fence(kind: Kind, asked: &v1::FenceGroupRequest) -> Option<v1::FenceGroupResponse> {
    let Kind::GroupFenced(fact) = kind else { return None };
    (fact.actor == asked.actor && fact.reason == asked.reason).then_some(v1::FenceGroupResponse {
        header: None,
        token: fact.token,
        fenced: Vec::new(),
        fenced_count: fact.leases,
    })
}
