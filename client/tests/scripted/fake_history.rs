//! The part of the scripted server that keeps and changes history, and does long work.

use std::collections::{BTreeMap, VecDeque};
use std::pin::Pin;

use fencepost::log::v1::fact::Kind;
use fencepost::log::v1::{Fact, Forked, Rewound};
use fencepost::{Reason, v1};
use tokio_stream::{Stream, StreamExt as _};
use tonic::{Request, Response, Status, Streaming};

use crate::fake::{CallFate, Fake, State, broken, status};

/// What becomes of the next call.
pub(crate) enum HistoryFate {
    /// It does not arrive, or is refused, as the fate says.
    Call(CallFate),
    /// It is done; the connection breaks before the answer.
    LoseAnswer,
    /// It is done and the answer lost; then a worker takes the branch up and moves its head to this sequence.
    LoseAnswerAndMoveTo(u64),
}

/// What this part has seen, and what it is to do.
#[derive(Default)]
pub(crate) struct HistoryScript {
    pub(crate) fates: VecDeque<HistoryFate>,
    pub(crate) policy: v1::Policy,
    pub(crate) savepoints: BTreeMap<String, v1::Savepoint>,
    /// Of the one branch there is.
    pub(crate) head: u64,
    /// Rewinds and forks that arrived, done or not.
    pub(crate) asked: u64,
    /// What they did, from LSN 1 on.
    pub(crate) facts: Vec<Fact>,
    /// What long work says, and the bytes of an import.
    pub(crate) progress: Vec<u64>,
    pub(crate) imports: Vec<v1::ImportPipelineRequest>,
}

impl HistoryScript {
    pub(crate) fn newest(&self) -> u64 {
        self.facts.len() as u64
    }

    /// What a tail gets of these facts; `None` if there are none, so that the script of the log counts.
    pub(crate) fn facts_from(&self, request: &v1::TailRequest) -> Option<Vec<v1::TailFact>> {
        let numbered = (1..).zip(&self.facts).filter(|(lsn, _)| *lsn >= request.from_lsn);
        let facts = numbered.map(|(lsn, fact)| v1::TailFact { lsn, fact: Some(fact.clone()) });
        (!self.facts.is_empty()).then(|| facts.collect())
    }

    fn record(&mut self, kind: Kind) -> u64 {
        self.facts.push(Fact { at_ms: 1, kind: Some(kind) });
        self.newest()
    }
}

impl Fake {
    /// The branch `main` at this head, with a fact in the log that is about something else.
    pub(crate) fn with_head(&self, head: u64) {
        self.script(|state| {
            let stored = |sequence| v1::StoredCheckpoint { sequence, ..Default::default() };
            state.branches.insert("main".to_owned(), (7, (1..=head).map(stored).collect()));
            state.history.head = head;
            state.history.record(Kind::PolicySet(fencepost::log::v1::PolicySet::default()));
        });
    }

    pub(crate) fn history_fate(&self, fate: HistoryFate) {
        self.script(|state| state.history.fates.push_back(fate));
    }

    /// Answers with what `act` does, unless the script has something else for it.
    async fn history<A>(&self, act: impl FnOnce(&mut State) -> Result<A, Status>) -> Result<Response<A>, Status> {
        let fate = self.change(|state| state.history.fates.pop_front());
        if let Some(HistoryFate::Call(fate)) = fate {
            self.meet(|_| Some(fate)).await?;
            return self.change(act).map(Response::new);
        }
        let answer = self.change(act)?;
        match fate {
            None => return Ok(Response::new(answer)),
            Some(HistoryFate::LoseAnswerAndMoveTo(head)) => self.script(|state| state.history.head = head),
            Some(_) => {}
        }
        Err(broken())
    }
}

#[tonic::async_trait]
impl v1::pipeline_service_server::PipelineService for Fake {
    async fn declare_schema(
        &self,
        _: Request<v1::DeclareSchemaRequest>,
    ) -> Result<Response<v1::DeclareSchemaResponse>, Status> {
        Err(broken())
    }

    async fn list_schemas(
        &self,
        _: Request<v1::ListSchemasRequest>,
    ) -> Result<Response<v1::ListSchemasResponse>, Status> {
        Err(broken())
    }

    async fn fence_group(&self, _: Request<v1::FenceGroupRequest>) -> Result<Response<v1::FenceGroupResponse>, Status> {
        Err(broken())
    }

    async fn get_policy(
        &self,
        _request: Request<v1::GetPolicyRequest>,
    ) -> Result<Response<v1::GetPolicyResponse>, Status> {
        self.history(|state| {
            let policy = Some(state.history.policy);
            Ok(v1::GetPolicyResponse { header: state.header(), policy, is_set: true })
        })
        .await
    }

    async fn set_policy(
        &self,
        request: Request<v1::SetPolicyRequest>,
    ) -> Result<Response<v1::SetPolicyResponse>, Status> {
        self.history(|state| {
            state.history.policy = request.into_inner().policy.unwrap();
            Ok(v1::SetPolicyResponse { header: state.header(), policy: Some(state.history.policy) })
        })
        .await
    }

    async fn create_savepoint(
        &self,
        request: Request<v1::CreateSavepointRequest>,
    ) -> Result<Response<v1::CreateSavepointResponse>, Status> {
        self.history(|state| {
            let v1::CreateSavepointRequest { pipeline, name, branch, sequence, actor, reason, .. } =
                request.into_inner();
            let sequence = if sequence == 0 { state.history.head } else { sequence };
            let made = v1::Savepoint { pipeline, name, branch, sequence, actor, reason, ..Default::default() };
            let there = state.history.savepoints.entry(made.name.clone()).or_insert_with(|| made.clone());
            if *there != made {
                return Err(status(Reason::Exists, vec![]));
            }
            Ok(v1::CreateSavepointResponse { header: state.header(), savepoint: Some(made) })
        })
        .await
    }

    /// Pages of one.
    async fn list_savepoints(
        &self,
        request: Request<v1::ListSavepointsRequest>,
    ) -> Result<Response<v1::ListSavepointsResponse>, Status> {
        self.history(|state| {
            let mut rest = state.history.savepoints.range(request.into_inner().page_token..);
            let savepoints = rest.next().map(|(_, savepoint)| savepoint.clone()).into_iter().collect();
            let next_page_token = rest.next().map_or_else(String::new, |(name, _)| name.clone());
            Ok(v1::ListSavepointsResponse { header: state.header(), savepoints, next_page_token })
        })
        .await
    }

    async fn delete_savepoint(
        &self,
        request: Request<v1::DeleteSavepointRequest>,
    ) -> Result<Response<v1::DeleteSavepointResponse>, Status> {
        self.history(|state| {
            let gone = state.history.savepoints.remove(&request.into_inner().name);
            gone.ok_or_else(|| status(Reason::StateMissing, vec![]))?;
            Ok(v1::DeleteSavepointResponse { header: state.header() })
        })
        .await
    }

    async fn rewind(&self, request: Request<v1::RewindRequest>) -> Result<Response<v1::RewindResponse>, Status> {
        self.history(|state| {
            let request = request.into_inner();
            state.history.asked += 1;
            if request.expected_head != state.history.head {
                return Err(status(Reason::HeadMismatch, vec![("actual_head", state.history.head.to_string())]));
            }
            let (sequence, savepoint) = match request.to.unwrap() {
                v1::rewind_request::To::Sequence(sequence) => (sequence, String::new()),
                v1::rewind_request::To::Savepoint(name) => (state.history.savepoints[&name].sequence, name),
            };
            let fact = Rewound {
                pipeline: request.pipeline,
                branch: request.branch,
                to_sequence: sequence,
                from_sequence: state.history.head,
                token: state.grant("main"),
                previous_holder: "loader-1".to_owned(),
                previous_token: 7,
                actor: request.actor,
                reason: request.reason,
                savepoint,
                ..Default::default()
            };
            let token = fact.token;
            state.history.head = sequence;
            state.history.record(Kind::Rewound(fact));
            let header = state.header();
            let previous_holder = "loader-1".to_owned();
            Ok(v1::RewindResponse { header, sequence, token, previous_holder, previous_token: 7 })
        })
        .await
    }

    async fn fork(&self, request: Request<v1::ForkRequest>) -> Result<Response<v1::ForkResponse>, Status> {
        self.history(|state| {
            let request = request.into_inner();
            state.history.asked += 1;
            if state.branches.contains_key(&request.branch) {
                return Err(status(Reason::Exists, vec![]));
            }
            state.branches.insert(request.branch.clone(), (0, vec![v1::StoredCheckpoint::default()]));
            let source_sequence = match request.from {
                Some(v1::fork_request::From::Sequence(sequence)) if sequence != 0 => sequence,
                _ => state.history.head,
            };
            let fact = Forked {
                pipeline: request.pipeline,
                branch: request.branch,
                source_pipeline: request.source_pipeline,
                source_branch: request.source_branch,
                source_sequence,
                actor: request.actor,
                reason: request.reason,
                ..Default::default()
            };
            let lsn = state.history.record(Kind::Forked(fact));
            Ok(v1::ForkResponse { header: state.header(), source_sequence, lsn })
        })
        .await
    }

    /// Records 5 to 1, two at a time.
    async fn list_audit(
        &self,
        request: Request<v1::ListAuditRequest>,
    ) -> Result<Response<v1::ListAuditResponse>, Status> {
        self.history(|state| {
            let v1::ListAuditRequest { before_lsn, branch, .. } = request.into_inner();
            let newest = if before_lsn == 0 { 5 } else { before_lsn - 1 };
            let records: Vec<_> = (newest.saturating_sub(1).max(1)..=newest)
                .rev()
                .map(|lsn| v1::AuditRecord { lsn, branch: branch.clone(), ..Default::default() })
                .collect();
            let next_before_lsn = records.last().map_or(0, |last| if last.lsn > 1 { last.lsn } else { 0 });
            Ok(v1::ListAuditResponse { header: state.header(), records, next_before_lsn })
        })
        .await
    }
}

type Answers<A> = Pin<Box<dyn Stream<Item = Result<A, Status>> + Send>>;

#[tonic::async_trait]
impl v1::maintenance_service_server::MaintenanceService for Fake {
    type CompactStream = Answers<v1::CompactResponse>;

    /// One message for each sign of progress of the script; a total of 100 is the end.
    async fn compact(&self, _request: Request<v1::CompactRequest>) -> Result<Response<Self::CompactStream>, Status> {
        let (header, progress) = self.see(|state| (state.header(), state.history.progress.clone()));
        let steps = progress.into_iter().map(move |bytes_done| {
            let (done, header) = (bytes_done == 100, header.clone());
            Ok(v1::CompactResponse {
                header,
                bytes_done,
                bytes_total: 100,
                done,
                log_bytes_after: 40,
                ..Default::default()
            })
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(steps.collect::<Vec<_>>()))))
    }

    type CreateSnapshotStream = Answers<v1::CreateSnapshotResponse>;

    async fn create_snapshot(
        &self,
        request: Request<v1::CreateSnapshotRequest>,
    ) -> Result<Response<Self::CreateSnapshotStream>, Status> {
        if !request.get_ref().directory.starts_with('/') {
            return Err(status(Reason::InvalidField, vec![("field", "directory".to_owned())]));
        }
        let done =
            v1::CreateSnapshotResponse { header: self.see(State::header), done: true, lsn: 9, ..Default::default() };
        Ok(Response::new(Box::pin(tokio_stream::once(Ok(done)))))
    }

    type ExportPipelineStream = Answers<v1::ExportPipelineResponse>;

    /// A piece for each sign of progress of the script, of so many bytes; a total of 100.
    async fn export_pipeline(
        &self,
        _request: Request<v1::ExportPipelineRequest>,
    ) -> Result<Response<Self::ExportPipelineStream>, Status> {
        let (header, progress) = self.see(|state| (state.header(), state.history.progress.clone()));
        let pieces = progress.into_iter().map(move |bytes| {
            let (header, data) = (header.clone(), vec![bytes as u8; bytes as usize].into());
            Ok(v1::ExportPipelineResponse { header, data, bytes_total: 100 })
        });
        Ok(Response::new(Box::pin(tokio_stream::iter(pieces.collect::<Vec<_>>()))))
    }

    async fn import_pipeline(
        &self,
        request: Request<Streaming<v1::ImportPipelineRequest>>,
    ) -> Result<Response<v1::ImportPipelineResponse>, Status> {
        let mut messages = request.into_inner();
        while let Some(message) = messages.next().await {
            let message = message?;
            self.script(|state| state.history.imports.push(message));
            if let Some(HistoryFate::Call(fate)) = self.change(|state| state.history.fates.pop_front()) {
                self.meet(|_| Some(fate)).await?;
            }
        }
        let header = self.see(State::header);
        Ok(Response::new(v1::ImportPipelineResponse { header, branches: 3, ..Default::default() }))
    }
}
