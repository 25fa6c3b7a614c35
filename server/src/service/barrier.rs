//! Barriers and merges: where the branches of a pipeline meet.

use std::convert::identity;
use std::sync::Arc;

use fencepost::log::v1::fact::Kind;
use fencepost::log::v1::{AbortedParticipant, BarrierAborted, Fact};
use fencepost::v1::barrier::State as Standing;
use fencepost::v1::barrier_service_server::BarrierService;
use fencepost::v1::{
    AbortBarrierRequest, AbortBarrierResponse, ArriveRequest, ArriveResponse, AwaitBarrierRequest,
    AwaitBarrierResponse, Barrier, ClusterRef, ListBarriersRequest, ListBarriersResponse, MergeRequest, MergeResponse,
    OpenBarrierRequest, OpenBarrierResponse, Participant,
};
use fencepost::{Lsn, Reason};
use prost::Message as _;
use tokio::sync::mpsc;
use tokio_stream::wrappers::ReceiverStream;
use tonic::{Request, Response, Status};

use super::status::status;
use super::waiter::Waiter;
use super::{Backend, facts, lease_of, merge, shape};
use crate::error::Refusal;
use crate::log::Log;
use crate::sequencer::{BARRIER_BYTES_MAX, Decision, View};
use crate::state::{
    AbortVerdict, ArriveVerdict, ClosedBarrier, KnownBarrier, OpenVerdict, check_asked_by, check_id, check_name,
    check_pipeline, named, other_participants,
};

/// How many pipelines, barriers and participants are looked at in one read: commits wait meanwhile.
const LOOKED_AT_MAX: usize = 10_000;

/// Participants that end a page: their names and holders make the most of it.
const PARTICIPANTS_MAX: usize = 10_000;

pub(super) struct Service(pub(super) Backend);

#[tonic::async_trait]
impl BarrierService for Service {
    type AwaitBarrierStream = ReceiverStream<Result<AwaitBarrierResponse, Status>>;

    async fn open_barrier(
        &self,
        request: Request<OpenBarrierRequest>,
    ) -> Result<Response<OpenBarrierResponse>, Status> {
        let sequencer = &self.0.sequencer;
        let request = shape::open_barrier(request.into_inner()).map_err(status)?;
        let (pipeline, name, wanted) = (request.pipeline.clone(), request.name.clone(), request.participants.clone());
        let decided = sequencer
            .decide(request.encoded_len(), move |state, now_ms| {
                Ok(match state.evaluate_open_barrier(&request, now_ms)? {
                    OpenVerdict::Open(opened) => Decision { fact: Some(Kind::BarrierOpened(opened)), answer: None },
                    OpenVerdict::Repeat => Decision { fact: None, answer: None },
                    OpenVerdict::Closed(closed) => Decision { fact: None, answer: Some(closed) },
                })
            })
            .await
            .map_err(status)?;
        let (barrier, seen) = match decided.answer {
            None => outcome(&self.0, &pipeline, &name).await?,
            Some(closed) => {
                let known = read_closed(&self.0.log, &pipeline, &name, closed, untold).await?;
                let participants = known.participants.iter().map(|participant| &participant.branch);
                if !known.participants.is_empty() && !participants.eq(&wanted) {
                    let participants = known.participants.iter().map(|participant| participant.branch.as_str());
                    return Err(status(other_participants(&pipeline, &name, &named(participants))));
                }
                (known, decided.seen)
            }
        };
        Ok(Response::new(OpenBarrierResponse { header: Some(sequencer.header(seen)), barrier: Some(barrier) }))
    }

    async fn arrive(&self, request: Request<ArriveRequest>) -> Result<Response<ArriveResponse>, Status> {
        let Backend { sequencer, log, .. } = &self.0;
        let request = request.into_inner();
        check_barrier(&request.pipeline, "barrier", &request.barrier)?;
        check_name("branch", &request.branch).map_err(status)?;
        check_id("stage_id", &request.stage_id).map_err(status)?;
        let (asked, holder) = (request.clone(), lease_of(&request.pipeline, &request.branch, request.token));
        let decided = sequencer
            .decide_as(Some(holder.clone()), BARRIER_BYTES_MAX, move |state, now_ms| {
                Ok(match state.evaluate_arrive(&asked, now_ms)? {
                    ArriveVerdict::Arrived(fact) => Decision { fact: Some(Kind::BarrierArrived(fact)), answer: None },
                    ArriveVerdict::Completed(fact) => Decision { fact: Some(Kind::Committed(fact)), answer: None },
                    ArriveVerdict::Repeat => Decision { fact: None, answer: None },
                    ArriveVerdict::Late(closed, refusal) => Decision { fact: None, answer: Some((closed, refusal)) },
                })
            })
            .await
            .map_err(status)?;
        let (barrier, seen) = match decided.answer {
            None => outcome(&self.0, &request.pipeline, &request.barrier).await?,
            Some((closed, refusal)) => {
                let log = Arc::clone(log);
                match facts::blocking(move || Ok(unless_late(&log, &request, closed, refusal))).await? {
                    Ok(barrier) => (barrier, decided.seen),
                    Err(refusal) => return Err(status(sequencer.refuse(holder, refusal).await)),
                }
            }
        };
        Ok(Response::new(ArriveResponse { header: Some(sequencer.header(seen)), barrier: Some(barrier) }))
    }

    async fn await_barrier(
        &self,
        request: Request<AwaitBarrierRequest>,
    ) -> Result<Response<Self::AwaitBarrierStream>, Status> {
        let request = request.into_inner();
        check_barrier(&request.pipeline, "name", &request.name)?;
        let changes = self.0.sequencer.barriers();
        let change = changes.borrow().of(&request.pipeline);
        // A name that nobody knows is refused at once.
        let first = look(&self.0, request.cluster.clone(), &request.pipeline, &request.name, identity).await?;
        let (messages, stream) = mpsc::channel(1);
        tokio::spawn(Waiter { backend: self.0.clone(), request, changes, change, messages }.run(first));
        Ok(Response::new(ReceiverStream::new(stream)))
    }

    async fn abort_barrier(
        &self,
        request: Request<AbortBarrierRequest>,
    ) -> Result<Response<AbortBarrierResponse>, Status> {
        let sequencer = &self.0.sequencer;
        let request = request.into_inner();
        check_barrier(&request.pipeline, "name", &request.name)?;
        check_asked_by(&request.actor, &request.reason).map_err(status)?;
        shape::reason(&request.reason, "an abort discards what has arrived").map_err(status)?;
        let (pipeline, name) = (request.pipeline.clone(), request.name.clone());
        sequencer
            .decide(BARRIER_BYTES_MAX, move |state, _| {
                Ok(match state.evaluate_abort_barrier(&request)? {
                    AbortVerdict::Abort(aborted) => Decision { fact: Some(Kind::BarrierAborted(aborted)), answer: () },
                    AbortVerdict::Repeat(_) => Decision { fact: None, answer: () },
                })
            })
            .await
            .map_err(status)?;
        let (barrier, seen) = outcome(&self.0, &pipeline, &name).await?;
        Ok(Response::new(AbortBarrierResponse { header: Some(sequencer.header(seen)), barrier: Some(barrier) }))
    }

    async fn list_barriers(
        &self,
        request: Request<ListBarriersRequest>,
    ) -> Result<Response<ListBarriersResponse>, Status> {
        let Backend { sequencer, log, .. } = &self.0;
        let request = request.into_inner();
        let page_size = shape::page_size(request.page_size).map_err(status)?;
        if !request.pipeline.is_empty() {
            check_pipeline("pipeline", &request.pipeline).map_err(status)?;
        }
        if !is_place(&request) {
            return Err(status(shape::bad_page(&request.page_token)));
        }
        let mut after = request.page_token.clone();
        let (found, next, seen) = loop {
            let request = request.clone();
            let part = sequencer.read(move |view| some_barriers(view, &request, &after, page_size));
            let ((found, next), seen) = part.await.map_err(status)?;
            if !found.is_empty() || next.is_empty() {
                break (found, next, seen);
            }
            after = next;
        };
        let (log, of) = (Arc::clone(log), request.pipeline);
        let (barriers, next_page_token) = facts::blocking(move || {
            let row = |found| match found {
                Found::Open(barrier) => Some(barrier),
                Found::Closed(name, closed) => facts::row(self::closed(&log, &of, &name, closed), |unreadable| {
                    let reason = format!("what became of it cannot be read: {unreadable}");
                    Barrier { reason, ..outline(&of, &name, closed) }
                }),
            };
            let (mut barriers, mut participants, mut last) = (Vec::new(), 0, String::new());
            for found in found {
                if participants >= PARTICIPANTS_MAX {
                    return Ok((barriers, last));
                }
                last = found.place();
                let barrier = row(found);
                participants += barrier.as_ref().map_or(0, |barrier| barrier.participants.len());
                barriers.extend(barrier);
            }
            Ok((barriers, next))
        })
        .await?;
        let header = Some(sequencer.header(seen));
        Ok(Response::new(ListBarriersResponse { header, barriers, next_page_token }))
    }

    async fn merge(&self, request: Request<MergeRequest>) -> Result<Response<MergeResponse>, Status> {
        merge::merge(&self.0, request.into_inner()).await.map(Response::new)
    }
}

/// A barrier as it is found in the state.
enum Found {
    Open(Barrier),
    Closed(String, ClosedBarrier),
}

impl Found {
    /// Where a list goes on after it.
    fn place(&self) -> String {
        match self {
            Found::Open(barrier) => format!("{} {}", barrier.pipeline, barrier.name),
            Found::Closed(_, closed) => closed.lsn.as_u64().to_string(),
        }
    }
}

/// A failure to say what became of a decision. The decision stands all the same.
fn untold(refusal: Refusal) -> Refusal {
    refusal.with("applied", "unknown")
}

/// The barrier as a decision left it.
async fn outcome(backend: &Backend, pipeline: &str, name: &str) -> Result<(Barrier, Lsn), Status> {
    look(backend, None, pipeline, name, untold).await
}

/// The barrier as it is now. `failed` makes of a failure what the caller is told.
pub(super) async fn look(
    backend: &Backend,
    cluster: Option<ClusterRef>,
    pipeline: &str,
    name: &str,
    failed: fn(Refusal) -> Refusal,
) -> Result<(Barrier, Lsn), Status> {
    let (of, wanted) = (pipeline.to_owned(), name.to_owned());
    let found = backend.sequencer.read(move |view| {
        view.state.check_cluster(cluster.as_ref())?;
        let (known, barrier) = view.state.known_barrier(&of, &wanted)?;
        Ok(match barrier {
            KnownBarrier::Open(open) => Found::Open(known.told_barrier(&of, &wanted, open)),
            KnownBarrier::Closed(closed) => Found::Closed(wanted, closed),
        })
    });
    match found.await.map_err(|refusal| status(failed(refusal)))? {
        (Found::Open(barrier), seen) => Ok((barrier, seen)),
        (Found::Closed(name, closed), seen) => {
            Ok((read_closed(&backend.log, pipeline, &name, closed, failed).await?, seen))
        }
    }
}

async fn read_closed(
    log: &Arc<Log>,
    pipeline: &str,
    name: &str,
    closed: ClosedBarrier,
    failed: fn(Refusal) -> Refusal,
) -> Result<Barrier, Status> {
    let (log, of, name) = (Arc::clone(log), pipeline.to_owned(), name.to_owned());
    facts::blocking(move || self::closed(&log, &of, &name, closed).map_err(failed)).await
}

/// What is known of a closed barrier without its facts.
fn outline(of: &str, name: &str, closed: ClosedBarrier) -> Barrier {
    let state = if closed.is_committed { Standing::Committed } else { Standing::Aborted };
    Barrier {
        pipeline: of.to_owned(),
        name: name.to_owned(),
        state: state.into(),
        closed_lsn: closed.lsn.as_u64(),
        closed_at_ms: closed.at_ms,
        ..Barrier::default()
    }
}

/// A closed barrier, from the fact that closed it and, as long as it is kept, the one that opened it.
fn closed(log: &Log, of: &str, name: &str, closed: ClosedBarrier) -> Result<Barrier, Refusal> {
    let mut barrier = outline(of, name, closed);
    let fact = facts::read(log, closed.lsn)?;
    let opened = fact.barrier().map_or(Lsn::ZERO, |barrier| Lsn::from_u64(barrier.opened_lsn));
    match fact.kind {
        Some(Kind::Committed(committed)) => {
            let participant = |moved: fencepost::log::v1::CommittedBranch| Participant {
                branch: moved.branch,
                arrived: true,
                holder: String::new(),
                sequence: moved.sequence,
            };
            barrier.participants = committed.branches.into_iter().map(participant).collect();
        }
        Some(Kind::BarrierAborted(aborted)) => {
            barrier.reason = [aborted.reason.clone(), missing(&aborted)].join("; ");
            let participant = |it: AbortedParticipant| Participant {
                arrived: it.staged_lsn != 0,
                branch: it.branch,
                holder: it.holder,
                sequence: it.sequence,
            };
            barrier.participants = aborted.participants.into_iter().map(participant).collect();
        }
        _ => return Err(facts::corrupt(closed.lsn, format!("it does not close barrier '{name}' of '{of}'"))),
    }
    // That it was opened is not needed any more, and is kept only for the audit.
    if let Ok(Some(Fact { at_ms, kind: Some(Kind::BarrierOpened(opening)) })) = facts::find(log, opened) {
        barrier.opened_lsn = opened.as_u64();
        barrier.opened_at_ms = at_ms;
        barrier.deadline_ms = opening.deadline_ms;
    }
    Ok(barrier)
}

/// Who had not arrived when a barrier was given up, and whom to look for.
pub(super) fn missing(aborted: &BarrierAborted) -> String {
    let missing = aborted.participants.iter().filter(|participant| participant.staged_lsn == 0);
    let missing: Vec<String> = missing
        .map(|AbortedParticipant { branch, holder, .. }| match &**holder {
            "" => format!("{branch} (never held)"),
            holder => format!("{branch} (of {holder})"),
        })
        .collect();
    if missing.is_empty() {
        return "all had arrived".to_owned();
    }
    format!("missing: {}", named(missing.iter().map(String::as_str)))
}

/// The barrier, if the fact that closed it says that this very arrival was part of it; otherwise the refusal, which says who
/// was missing where that was so.
fn unless_late(log: &Log, request: &ArriveRequest, at: ClosedBarrier, refusal: Refusal) -> Result<Barrier, Refusal> {
    let ArriveRequest { pipeline, barrier, branch, stage_id, .. } = request;
    match facts::read(log, at.lsn).map_err(untold)?.kind {
        Some(Kind::Committed(committed)) => {
            let moved = committed.branches.iter().find(|moved| moved.branch == *branch && moved.staged_lsn != 0);
            let staged = moved.map(|moved| facts::find(log, Lsn::from_u64(moved.staged_lsn))).transpose();
            match staged.map_err(untold)?.flatten().and_then(|fact| fact.kind) {
                Some(Kind::Staged(staged)) if staged.stage_id == *stage_id => {
                    closed(log, pipeline, barrier, at).map_err(untold)
                }
                _ => Err(refusal),
            }
        }
        Some(Kind::BarrierAborted(aborted)) if refusal.reason == Reason::BarrierAborted => {
            let message = format!("{} ({}; {})", refusal.message, aborted.reason, missing(&aborted));
            Err(Refusal { message, ..refusal })
        }
        _ => Err(refusal),
    }
}

/// The next barriers, at most `wanted`, and where to go on if these may not be all. A place is the pipeline and the name of
/// the last open barrier that was looked at, with a space between; or, among the closed ones of the one pipeline that was asked
/// for, the LSN that the last one was closed at.
fn some_barriers(
    view: &View,
    request: &ListBarriersRequest,
    after: &str,
    wanted: usize,
) -> Result<(Vec<Found>, String), Refusal> {
    view.state.check_cluster(request.cluster.as_ref())?;
    let only = Some(request.pipeline.as_str()).filter(|name| !name.is_empty());
    let (last_pipeline, last_name) = after.split_once(' ').unwrap_or_default();
    let begun = only.unwrap_or(last_pipeline);
    let first = view.state.pipeline(begun).map(|pipeline| (begun, pipeline, last_name));
    if only.is_some() && first.is_none() {
        let message = format!("there is no pipeline '{begun}'; 'fencepost pipelines' lists what is there");
        return Err(Refusal::new(Reason::StateMissing, message).with("pipeline", begun));
    }
    let mut found = Vec::new();
    let closed_before: Option<u64> = after.parse().ok();
    if closed_before.is_none() {
        let others = view.state.pipelines_after(last_pipeline, "").take_while(|_| only.is_none());
        let pipelines = first.into_iter().chain(others.map(|(name, pipeline)| (name, pipeline, "")));
        let looks = pipelines.flat_map(|(of, pipeline, after)| {
            let open = pipeline.open_barriers_after(after);
            std::iter::once((of, pipeline, after, None))
                .chain(open.map(move |(name, it)| (of, pipeline, name, Some(it))))
        });
        let mut looked_at = 0;
        for (of, pipeline, name, open) in looks {
            looked_at += 1 + open.map_or(0, |open| open.participants.len());
            found.extend(open.map(|open| Found::Open(pipeline.told_barrier(of, name, open))));
            if found.len() == wanted || looked_at >= LOOKED_AT_MAX {
                return Ok((found, format!("{of} {name}")));
            }
        }
    }
    let Some((_, pipeline, _)) = first.filter(|_| only.is_some() && !request.open_only) else {
        return Ok((found, String::new()));
    };
    let older =
        pipeline.closed_barriers().filter(|(_, closed)| closed_before.is_none_or(|lsn| closed.lsn.as_u64() < lsn));
    for (name, closed) in older {
        found.push(Found::Closed(name.to_owned(), *closed));
        if found.len() == wanted {
            return Ok((found, closed.lsn.as_u64().to_string()));
        }
    }
    Ok((found, String::new()))
}

/// Whether a page of this list may begin there.
fn is_place(request: &ListBarriersRequest) -> bool {
    let ListBarriersRequest { pipeline: only, page_token: after, .. } = request;
    let is_any = |of: &str| if only.is_empty() { check_pipeline("", of).is_ok() } else { of == only };
    let is_open = |(of, name): (&str, &str)| is_any(of) && (name.is_empty() || check_name("", name).is_ok());
    let is_closed = || !only.is_empty() && after.parse::<u64>().is_ok();
    after.is_empty() || after.split_once(' ').is_some_and(is_open) || is_closed()
}

fn check_barrier(pipeline: &str, field: &str, name: &str) -> Result<(), Status> {
    check_pipeline("pipeline", pipeline).and_then(|()| check_name(field, name)).map_err(status)
}
