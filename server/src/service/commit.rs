//! Moving progress: single commits, many over one stream, and how a commit ended whose answer was lost.

use std::collections::HashMap;
use std::pin::Pin;
use std::sync::Arc;
use std::task::{Context, Poll, ready};

use fencepost::v1::commit_response::Outcome;
use fencepost::v1::commit_service_server::CommitService;
use fencepost::v1::resolve_commit_response::Outcome as Resolved;
use fencepost::v1::{
    CommitRequest, CommitResponse, CommitStreamRequest, CommitStreamResponse, DiscardStagedRequest,
    DiscardStagedResponse, Header, ResolveCommitRequest, ResolveCommitResponse, SessionResult, StageRequest,
    StageResponse, session_result,
};
use fencepost::{Lsn, Reason};
use prost::Message as _;
use tokio::sync::{Semaphore, mpsc, watch};
use tokio_stream::Stream;
use tonic::{Request, Response, Status, Streaming};

use super::oversized::name_oversized_status;
use super::status::{message, status};
use super::{Backend, facts, history, shape, staged, trace};
use crate::config::limits;
use crate::error::Refusal;
use crate::sequencer::{CommitDone, CommitReply, Sequencer, Session, SessionAnswer, Submission, View};
use crate::state::{Resolution, WINDOW_COMMITS, check_id, check_name, check_pipeline};

pub(super) struct Service(pub(super) Backend);

#[tonic::async_trait]
impl CommitService for Service {
    type CommitStreamStream = Answers;

    async fn commit(&self, request: Request<CommitRequest>) -> Result<Response<CommitResponse>, Status> {
        let sequencer = &self.0.sequencer;
        let traceparent = trace::of_call(&request);
        let mut request = request.into_inner();
        for moved in &mut request.branches {
            trace::fill_in(traceparent.as_deref(), moved.checkpoint.as_mut(), &mut moved.dead_letters);
        }
        let permit = sequencer.permit(request.encoded_len()).map_err(status)?;
        let commit = shape::commit(request).map_err(status)?;
        let done = sequencer.commit_once(commit, permit).await.map_err(status)?;
        Ok(Response::new(response(done, Some(sequencer.header(done.seen)))))
    }

    async fn stage(&self, request: Request<StageRequest>) -> Result<Response<StageResponse>, Status> {
        staged::stage(&self.0, request).await.map(Response::new)
    }

    async fn discard_staged(
        &self,
        request: Request<DiscardStagedRequest>,
    ) -> Result<Response<DiscardStagedResponse>, Status> {
        staged::discard(&self.0, request.into_inner()).await.map(Response::new)
    }

    async fn commit_stream(
        &self,
        request: Request<Streaming<CommitStreamRequest>>,
    ) -> Result<Response<Answers>, Status> {
        let sequencer = self.0.sequencer.clone();
        let unanswered = Arc::new(Semaphore::new(limits::STREAM_UNANSWERED_MAX));
        let (answers_in, answers) = mpsc::unbounded_channel();
        let (failure_in, failure) = mpsc::channel(1);
        let mut inbound = Inbound {
            sequencer: sequencer.clone(),
            sessions: HashMap::new(),
            answers: answers_in,
            unanswered: Arc::clone(&unanswered),
            stopping: self.0.stopping.clone(),
        };
        let commits = request.into_inner();
        tokio::spawn(async move {
            if let Err(failed) = inbound.run(commits).await {
                // If the caller is gone nobody needs to know why its stream ended.
                let _ = failure_in.send(failed).await;
            }
        });
        Ok(Response::new(Answers { sequencer, answers, failure, unanswered, buffer: Vec::new(), seen: Lsn::ZERO }))
    }

    async fn resolve_commit(
        &self,
        request: Request<ResolveCommitRequest>,
    ) -> Result<Response<ResolveCommitResponse>, Status> {
        let sequencer = &self.0.sequencer;
        let request = request.into_inner();
        check_pipeline("pipeline", &request.pipeline).map_err(status)?;
        check_id("commit_id", &request.commit_id).map_err(status)?;
        if !request.branch.is_empty() {
            check_name("branch", &request.branch).map_err(status)?;
        }
        let ResolveCommitRequest { pipeline, commit_id, branch, sequence, .. } = request.clone();
        let resolved = sequencer.read(move |view| {
            let ResolveCommitRequest { cluster, pipeline, commit_id, branch, sequence } = request;
            let known = (!branch.is_empty()).then_some((branch.as_str(), sequence));
            view.state.resolve_commit(cluster.as_ref(), &pipeline, &commit_id, known)
        });
        let (resolution, seen) = match resolved.await {
            // Of a commit whose checkpoints are still retained the index knows the id.
            Err(refusal) if refusal.reason == Reason::DedupeWindowExceeded => {
                match history::commit_id(&self.0, &pipeline, &commit_id).await.map_err(status)? {
                    Some(lsn) => (Resolution::Perhaps(lsn), lsn),
                    None => return Err(status(refusal)),
                }
            }
            resolved => resolved.map_err(status)?,
        };
        let (lsn, seen) = match resolution {
            Resolution::Applied(lsn) => (Some(lsn), seen),
            Resolution::NotApplied => (None, seen),
            Resolution::Perhaps(lsn) => self.unless_undone(lsn, &commit_id).await?,
            Resolution::AskHistory => {
                let place = match history::place(&self.0, &pipeline, &branch, sequence).await.map_err(status)? {
                    None => history::commit_id(&self.0, &pipeline, &commit_id).await.map_err(status)?,
                    place => place,
                };
                match place {
                    Some(lsn) => self.unless_undone(lsn, &commit_id).await?,
                    None => return Err(status(forgotten(&pipeline, &branch, sequence, &commit_id))),
                }
            }
        };
        let outcome = if lsn.is_some() { Resolved::Applied } else { Resolved::NotApplied };
        Ok(Response::new(ResolveCommitResponse {
            header: Some(sequencer.header(seen)),
            outcome: outcome.into(),
            lsn: lsn.map_or(0, Lsn::as_u64),
        }))
    }
}

impl Service {
    /// Whether the commit at `lsn` is the one with this id, and no rewind has left any of it behind.
    async fn unless_undone(&self, lsn: Lsn, commit_id: &str) -> Result<(Option<Lsn>, Lsn), Status> {
        let Backend { sequencer, log, .. } = &self.0;
        let log = log.clone();
        let found = facts::blocking(move || facts::commit(&log, lsn)).await?;
        let found = found.filter(|found| found.commit_id == commit_id);
        let counts = move |view: &View| Ok(found.is_some_and(|found| !view.state.is_undone(lsn, &found)));
        let (counts, seen) = sequencer.read(counts).await.map_err(status)?;
        Ok((counts.then_some(lsn), seen))
    }
}

/// What a caller is told who asks so late that retention has removed the commit, if it was one.
fn forgotten(pipeline: &str, branch: &str, sequence: u64, commit_id: &str) -> Refusal {
    let message = format!(
        "commit '{commit_id}' is not among the newest {WINDOW_COMMITS} of '{pipeline}', and checkpoint {sequence} of branch \
         '{branch}' is not kept any more: the branch is past it, so read the head and go on from there"
    );
    Refusal::new(Reason::DedupeWindowExceeded, message).with("commit_id", commit_id)
}

fn response(done: CommitDone, header: Option<Header>) -> CommitResponse {
    let outcome = if done.already { Outcome::AlreadyApplied } else { Outcome::Applied };
    CommitResponse { header, lsn: done.lsn.as_u64(), outcome: outcome.into() }
}

/// Takes the commits of one stream to the sequencer, in their order.
struct Inbound {
    sequencer: Sequencer,
    sessions: HashMap<u64, Arc<Session>>,
    answers: mpsc::UnboundedSender<SessionAnswer>,
    unanswered: Arc<Semaphore>,
    stopping: watch::Receiver<bool>,
}

impl Inbound {
    /// Ends with the stream, or when the server is about to stop; what was taken is still answered.
    async fn run(&mut self, mut commits: Streaming<CommitStreamRequest>) -> Result<(), Status> {
        let mut stopping = self.stopping.clone();
        loop {
            let message = tokio::select! {
                biased;
                _ = stopping.wait_for(|is_stopping| *is_stopping) => return Ok(()),
                message = commits.message() => message.map_err(name_oversized_status)?,
            };
            let Some(message) = message else { return Ok(()) };
            let mut submissions = Vec::with_capacity(message.commits.len());
            for commit in message.commits {
                if self.unanswered.available_permits() == 0 {
                    self.sequencer.commit(std::mem::take(&mut submissions));
                }
                // Whoever does not read its answers has to wait; nobody else does.
                let Ok(permit) = self.unanswered.acquire().await else { return Ok(()) };
                permit.forget();
                let session = self.session(commit.session)?;
                submissions.push(self.submission(session, commit.number, commit.commit));
            }
            self.sequencer.commit(submissions);
            for closed in message.closed_sessions {
                self.sessions.remove(&closed);
            }
        }
    }

    fn session(&mut self, id: u64) -> Result<Arc<Session>, Status> {
        if let Some(session) = self.sessions.get(&id) {
            return Ok(Arc::clone(session));
        }
        if self.sessions.len() >= limits::SESSIONS_MAX {
            let expected = format!("at most {} sessions at a time: close some", limits::SESSIONS_MAX);
            return Err(status(Refusal::field(Reason::InvalidField, "session", id, &expected)));
        }
        let session = Session::new(id);
        self.sessions.insert(id, Arc::clone(&session));
        Ok(session)
    }

    /// Even what is refused here takes its turn in the sequencer, so that the session is poisoned in order.
    fn submission(&self, session: Arc<Session>, number: u64, commit: Option<CommitRequest>) -> Submission {
        let mut permit = None;
        let commit =
            commit.ok_or_else(|| Refusal::field(Reason::InvalidField, "commit", "", "a commit")).and_then(|request| {
                permit = Some(self.sequencer.permit(request.encoded_len())?);
                shape::commit(request)
            });
        Submission { commit, reply: CommitReply::stream(self.answers.clone(), session, number, permit) }
    }
}

/// The answers of one stream: all that are ready go out in one message.
pub(super) struct Answers {
    sequencer: Sequencer,
    answers: mpsc::UnboundedReceiver<SessionAnswer>,
    failure: mpsc::Receiver<Status>,
    unanswered: Arc<Semaphore>,
    buffer: Vec<SessionAnswer>,
    /// The newest fact that any answer of this stream saw.
    seen: Lsn,
}

/// Answers in one message, at most.
const ANSWERS_MAX: usize = 1024;

impl Stream for Answers {
    type Item = Result<CommitStreamResponse, Status>;

    fn poll_next(mut self: Pin<&mut Self>, context: &mut Context<'_>) -> Poll<Option<Self::Item>> {
        let this = &mut *self;
        if ready!(this.answers.poll_recv_many(context, &mut this.buffer, ANSWERS_MAX)) == 0 {
            // All that was taken is answered; why no more was taken comes last.
            return Poll::Ready(ready!(this.failure.poll_recv(context)).map(Err));
        }
        this.unanswered.add_permits(this.buffer.len());
        let seen = &mut this.seen;
        let results = this.buffer.drain(..).map(|answer| {
            let result = match answer.result {
                Ok(done) => {
                    *seen = done.seen.max(*seen);
                    session_result::Result::Committed(response(done, None))
                }
                Err(refusal) => session_result::Result::Refusal(message(refusal)),
            };
            SessionResult { session: answer.session, number: answer.number, result: Some(result) }
        });
        let results = results.collect();
        Poll::Ready(Some(Ok(CommitStreamResponse { results, header: Some(this.sequencer.header(this.seen)) })))
    }
}

impl Drop for Answers {
    fn drop(&mut self) {
        // The inbound side may be waiting for answers to be read that nobody will read any more.
        self.unanswered.close();
    }
}
