//! What operators and owners do to the history of a pipeline: policies, savepoints, rewinds, forks, and who did them.

use fencepost::log::v1::fact::Kind;
use fencepost::v1::pipeline_service_server::PipelineService;
use fencepost::v1::{
    AuditRecord, CreateSavepointRequest, CreateSavepointResponse, DeclareSchemaRequest, DeclareSchemaResponse,
    DeleteSavepointRequest, DeleteSavepointResponse, FenceGroupRequest, FenceGroupResponse, ForkRequest, ForkResponse,
    GetPolicyRequest, GetPolicyResponse, ListAuditRequest, ListAuditResponse, ListSavepointsRequest,
    ListSavepointsResponse, ListSchemasRequest, ListSchemasResponse, RewindRequest, RewindResponse, Savepoint,
    SetPolicyRequest, SetPolicyResponse, fork_request, rewind_request,
};
use fencepost::{Lsn, Reason};
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::status::status;
use super::{Backend, audit, facts, fence, history, schema, shape};
use crate::error::Refusal;
use crate::log::Log;
use crate::sequencer::Decision;
use crate::state::{
    self, Place, SavepointVerdict, check_asked_by, check_name, check_pipeline, check_policy, with_defaults,
};

pub(super) struct Service(pub(super) Backend);

#[tonic::async_trait]
impl PipelineService for Service {
    async fn declare_schema(
        &self,
        request: Request<DeclareSchemaRequest>,
    ) -> Result<Response<DeclareSchemaResponse>, Status> {
        schema::declare(&self.0, request.into_inner()).await
    }

    async fn list_schemas(
        &self,
        request: Request<ListSchemasRequest>,
    ) -> Result<Response<ListSchemasResponse>, Status> {
        schema::list(&self.0, request.into_inner()).await
    }

    async fn fence_group(&self, request: Request<FenceGroupRequest>) -> Result<Response<FenceGroupResponse>, Status> {
        fence::group(&self.0, request.into_inner()).await
    }

    async fn get_policy(&self, request: Request<GetPolicyRequest>) -> Result<Response<GetPolicyResponse>, Status> {
        let sequencer = &self.0.sequencer;
        let GetPolicyRequest { cluster, pipeline } = request.into_inner();
        check_pipeline("pipeline", &pipeline).map_err(status)?;
        let (set, seen) = sequencer
            .read(move |view| {
                view.state.check_cluster(cluster.as_ref())?;
                Ok(view.state.known_pipeline(&pipeline)?.policy().map(|set| set.policy))
            })
            .await
            .map_err(status)?;
        let policy = Some(with_defaults(set.as_ref()));
        let header = Some(sequencer.header(seen));
        Ok(Response::new(GetPolicyResponse { header, policy, is_set: set.is_some() }))
    }

    async fn set_policy(&self, request: Request<SetPolicyRequest>) -> Result<Response<SetPolicyResponse>, Status> {
        let sequencer = &self.0.sequencer;
        let request = request.into_inner();
        check_pipeline("pipeline", &request.pipeline).map_err(status)?;
        let missing = || Refusal::field(Reason::InvalidField, "policy", "", "a policy");
        let policy = request.policy.ok_or_else(missing).map_err(status)?;
        check_policy(&policy).map_err(status)?;
        check_asked_by(&request.actor, &request.reason).map_err(status)?;
        let decided = sequencer
            .decide(request.encoded_len(), move |state, _| {
                let set = state.evaluate_policy(&request)?;
                Ok(Decision { fact: set.map(Kind::PolicySet), answer: () })
            })
            .await
            .map_err(status)?;
        let header = Some(sequencer.header(decided.seen));
        Ok(Response::new(SetPolicyResponse { header, policy: Some(with_defaults(Some(&policy))) }))
    }

    async fn create_savepoint(
        &self,
        request: Request<CreateSavepointRequest>,
    ) -> Result<Response<CreateSavepointResponse>, Status> {
        let Backend { sequencer, log, .. } = &self.0;
        let request = request.into_inner();
        check_branch(&request.pipeline, &request.branch)?;
        check_name("name", &request.name).map_err(status)?;
        check_asked_by(&request.actor, &request.reason).map_err(status)?;
        let found = self.find(&request.pipeline, &request.branch, request.sequence).await?;
        let (pipeline, name) = (request.pipeline.clone(), request.name.clone());
        let decided = sequencer
            .decide(request.encoded_len(), move |state, _| {
                state.check_ready(&request.pipeline)?;
                Ok(match state.evaluate_savepoint_create(&request, found)? {
                    SavepointVerdict::Repeat(known) => Decision { fact: None, answer: Some(known.created) },
                    SavepointVerdict::Create(created) => {
                        Decision { fact: Some(Kind::SavepointCreated(created)), answer: None }
                    }
                })
            })
            .await
            .map_err(status)?;
        let created = decided.answer.or(decided.lsn).unwrap_or_default();
        let log = log.clone();
        let savepoint = facts::blocking(move || savepoint(&log, &pipeline, &name, created)).await?;
        let header = Some(sequencer.header(decided.seen));
        Ok(Response::new(CreateSavepointResponse { header, savepoint: Some(savepoint) }))
    }

    async fn list_savepoints(
        &self,
        request: Request<ListSavepointsRequest>,
    ) -> Result<Response<ListSavepointsResponse>, Status> {
        let Backend { sequencer, log, .. } = &self.0;
        let ListSavepointsRequest { cluster, pipeline, page_size, page_token } = request.into_inner();
        check_pipeline("pipeline", &pipeline).map_err(status)?;
        let page_size = shape::page_size(page_size).map_err(status)?;
        let of = pipeline.clone();
        let (found, seen) = sequencer
            .read(move |view| {
                view.state.check_cluster(cluster.as_ref())?;
                let savepoints = view.state.known_pipeline(&of)?.savepoints_after(&page_token).take(page_size);
                Ok(savepoints.map(|(name, savepoint)| (name.to_owned(), savepoint.clone())).collect::<Vec<_>>())
            })
            .await
            .map_err(status)?;
        let is_full = found.len() == page_size;
        let next_page_token = found.last().filter(|_| is_full).map_or_else(String::new, |(name, _)| name.clone());
        let log = log.clone();
        let savepoints = facts::blocking(move || {
            let row = |(name, known): (String, state::Savepoint)| {
                facts::row(savepoint(&log, &pipeline, &name, known.created), |unreadable| Savepoint {
                    pipeline: pipeline.clone(),
                    name: name.clone(),
                    branch: known.branch,
                    sequence: known.sequence,
                    lsn: known.lsn.as_u64(),
                    created_at_ms: known.created_at_ms,
                    unreadable,
                    ..Savepoint::default()
                })
            };
            Ok(found.into_iter().filter_map(row).collect())
        })
        .await?;
        Ok(Response::new(ListSavepointsResponse { header: Some(sequencer.header(seen)), savepoints, next_page_token }))
    }

    async fn delete_savepoint(
        &self,
        request: Request<DeleteSavepointRequest>,
    ) -> Result<Response<DeleteSavepointResponse>, Status> {
        let sequencer = &self.0.sequencer;
        let request = request.into_inner();
        check_pipeline("pipeline", &request.pipeline).map_err(status)?;
        check_name("name", &request.name).map_err(status)?;
        check_asked_by(&request.actor, &request.reason).map_err(status)?;
        let decided = sequencer
            .decide(request.encoded_len(), move |state, _| {
                let deleted = state.evaluate_savepoint_delete(&request)?;
                Ok(Decision { fact: Some(Kind::SavepointDeleted(deleted)), answer: () })
            })
            .await
            .map_err(status)?;
        Ok(Response::new(DeleteSavepointResponse { header: Some(sequencer.header(decided.seen)) }))
    }

    async fn rewind(&self, request: Request<RewindRequest>) -> Result<Response<RewindResponse>, Status> {
        let sequencer = &self.0.sequencer;
        let request = request.into_inner();
        check_branch(&request.pipeline, &request.branch)?;
        check_asked_by(&request.actor, &request.reason).map_err(status)?;
        shape::reason(&request.reason, "a rewind abandons checkpoints that were acknowledged").map_err(status)?;
        let found = match &request.to {
            Some(rewind_request::To::Sequence(sequence)) => {
                self.find(&request.pipeline, &request.branch, *sequence).await?
            }
            Some(rewind_request::To::Savepoint(name)) => {
                check_name("savepoint", name).map_err(status)?;
                let asked = request.clone();
                let judged = sequencer.read(move |view| view.state.evaluate_rewind(&asked, None)).await;
                let to = Lsn::from_u64(judged.map_err(status)?.0.to_lsn);
                Some(self.read(&request.pipeline, &request.branch, to).await?)
            }
            None => None,
        };
        let decided = sequencer
            .decide(request.encoded_len(), move |state, _| {
                let rewound = state.evaluate_rewind(&request, found)?;
                Ok(Decision { fact: Some(Kind::Rewound(rewound.clone())), answer: rewound })
            })
            .await
            .map_err(status)?;
        let rewound = decided.answer;
        Ok(Response::new(RewindResponse {
            header: Some(sequencer.header(decided.seen)),
            sequence: rewound.to_sequence,
            token: rewound.token,
            previous_holder: rewound.previous_holder,
            previous_token: rewound.previous_token,
        }))
    }

    async fn fork(&self, request: Request<ForkRequest>) -> Result<Response<ForkResponse>, Status> {
        let Backend { sequencer, log, .. } = &self.0;
        let request = request.into_inner();
        check_pipeline("source_pipeline", &request.source_pipeline).map_err(status)?;
        check_name("source_branch", &request.source_branch).map_err(status)?;
        check_branch(&request.pipeline, &request.branch)?;
        check_asked_by(&request.actor, &request.reason).map_err(status)?;
        if let Some(fork_request::From::Savepoint(name)) = &request.from {
            check_name("savepoint", name).map_err(status)?;
        }
        let (asked, of, name) = (request.clone(), request.source_pipeline.clone(), request.source_branch.clone());
        let ((sequence, lsn), _) = sequencer.read(move |view| view.state.fork_source(&asked)).await.map_err(status)?;
        let lsn = if let Some(lsn) = lsn {
            lsn
        } else {
            let place = history::place(&self.0, &of, &name, sequence).await.map_err(status)?;
            let (of, name) = (of.clone(), name.clone());
            let checked = sequencer.read(move |view| view.state.check_place(&of, &name, sequence, place));
            checked.await.map_err(status)?.0
        };
        let source = facts::read_checkpoint(log, lsn, of, name, false).await?;
        let checkpoint = source.checkpoint.unwrap_or_default();
        let bytes = request.encoded_len() + checkpoint.encoded_len();
        let _permit = sequencer.permit(bytes).map_err(status)?;
        let decided = sequencer
            .decide(bytes, move |state, _| {
                let forked = state.evaluate_fork(&request, sequence, lsn, checkpoint)?;
                Ok(Decision { fact: Some(Kind::Forked(forked)), answer: () })
            })
            .await
            .map_err(status)?;
        Ok(Response::new(ForkResponse {
            header: Some(sequencer.header(decided.seen)),
            source_sequence: sequence,
            lsn: decided.lsn.map_or(0, Lsn::as_u64),
        }))
    }

    async fn list_audit(&self, request: Request<ListAuditRequest>) -> Result<Response<ListAuditResponse>, Status> {
        let sequencer = &self.0.sequencer;
        let ListAuditRequest { cluster, pipeline, branch, before_lsn, page_size } = request.into_inner();
        check_pipeline("pipeline", &pipeline).map_err(status)?;
        if !branch.is_empty() {
            check_name("branch", &branch).map_err(status)?;
        }
        let page_size = shape::page_size(page_size).map_err(status)?;
        let of = pipeline.clone();
        let ((), seen) = sequencer
            .read(move |view| {
                view.state.check_cluster(cluster.as_ref())?;
                view.state.known_pipeline(&of).map(drop)
            })
            .await
            .map_err(status)?;
        // What comes later than this answer's head is left to a later question.
        let before = if before_lsn == 0 { seen.next() } else { Lsn::from_u64(before_lsn).min(seen.next()) };
        let facts = history::audit(&self.0, pipeline, branch, before, page_size).await?;
        let next_before_lsn = facts.last().filter(|_| facts.len() == page_size).map_or(0, |(lsn, _)| lsn.as_u64());
        let record = |(lsn, fact)| match fact {
            Ok(fact) => audit::record(lsn, fact),
            Err(Refusal { message: unreadable, .. }) => {
                Some(AuditRecord { lsn: lsn.as_u64(), unreadable, ..AuditRecord::default() })
            }
        };
        let records = facts.into_iter().filter_map(record).collect();
        Ok(Response::new(ListAuditResponse { header: Some(sequencer.header(seen)), records, next_before_lsn }))
    }
}

impl Service {
    /// Where history has the checkpoint of this sequence, if it does; whether it counts is for the state to say.
    async fn find(&self, pipeline: &str, branch: &str, sequence: u64) -> Result<Option<Place>, Status> {
        if sequence == 0 {
            return Ok(None);
        }
        let Some(lsn) = history::place(&self.0, pipeline, branch, sequence).await.map_err(status)? else {
            return Ok(None);
        };
        self.read(pipeline, branch, lsn).await.map(Some)
    }

    /// Reads the checkpoint that the fact at `lsn` gave the branch: nothing is set back to one that cannot be read.
    async fn read(&self, pipeline: &str, branch: &str, lsn: Lsn) -> Result<Place, Status> {
        let (pipeline, branch) = (pipeline.to_owned(), branch.to_owned());
        let found = facts::read_checkpoint(&self.0.log, lsn, pipeline, branch, true).await?;
        Ok(Place { lsn, committed_at_ms: found.committed_at_ms })
    }
}

fn check_branch(pipeline: &str, branch: &str) -> Result<(), Status> {
    check_pipeline("pipeline", pipeline).and_then(|()| check_name("branch", branch)).map_err(status)
}

/// The savepoint that the fact at `created` made.
fn savepoint(log: &Log, pipeline: &str, name: &str, created: Lsn) -> Result<Savepoint, Refusal> {
    let fact = facts::read(log, created)?;
    let at_ms = fact.at_ms;
    match fact.kind {
        Some(Kind::SavepointCreated(made)) if made.pipeline == pipeline && made.name == name => Ok(Savepoint {
            pipeline: made.pipeline,
            name: made.name,
            branch: made.branch,
            sequence: made.sequence,
            lsn: made.checkpoint_lsn,
            created_at_ms: at_ms,
            actor: made.actor,
            reason: made.reason,
            unreadable: String::new(),
        }),
        _ => Err(facts::corrupt(created, format!("it does not make savepoint '{name}' of '{pipeline}'"))),
    }
}
