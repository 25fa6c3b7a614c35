//! Records that pipelines could not process: those that are open, and giving them up. Replaying one is a commit.

use std::collections::BTreeSet;
use std::sync::Arc;

use bytes::Bytes;
use fencepost::log::v1::Fact;
use fencepost::log::v1::fact::Kind;
use fencepost::v1::dead_letter_service_server::DeadLetterService;
use fencepost::v1::{
    DeadLetterId, DiscardDeadLettersRequest, DiscardDeadLettersResponse, ListDeadLettersRequest,
    ListDeadLettersResponse, StoredDeadLetter,
};
use fencepost::{Lsn, Reason};
use prost::Message as _;
use tonic::{Request, Response, Status};

use super::status::status;
use super::{Backend, facts, shape};
use crate::config::limits;
use crate::error::Refusal;
use crate::log::Log;
use crate::sequencer::Decision;
use crate::state::{check_asked_by, check_name, check_pipeline};

/// Payloads in a page, in bytes. A single one that is longer than that does not exist.
const PAGE_BYTES_MAX: usize = limits::DEAD_LETTERS_BYTES_MAX;

pub(super) struct Service(pub(super) Backend);

#[tonic::async_trait]
impl DeadLetterService for Service {
    async fn list_dead_letters(
        &self,
        request: Request<ListDeadLettersRequest>,
    ) -> Result<Response<ListDeadLettersResponse>, Status> {
        let Backend { sequencer, log, .. } = &self.0;
        let ListDeadLettersRequest { cluster, pipeline, branch, without_payload, page_size, page_token } =
            request.into_inner();
        check_pipeline("pipeline", &pipeline).map_err(status)?;
        if !branch.is_empty() {
            check_name("branch", &branch).map_err(status)?;
        }
        let page_size = shape::page_size(page_size).map_err(status)?;
        let first = place(&page_token).map_err(status)?;
        let of = pipeline.clone();
        let ((found, open), seen) = sequencer
            .read(move |view| {
                view.state.check_cluster(cluster.as_ref())?;
                let known = view.state.known_pipeline(&of)?;
                let found = known.dead_letters_from(first).filter(|(_, of, _)| branch.is_empty() || *of == branch);
                let found = found.take(page_size).map(|(id, branch, sequence)| Found {
                    id,
                    branch: branch.to_owned(),
                    sequence,
                });
                Ok((found.collect::<Vec<_>>(), known.dead_letters()))
            })
            .await
            .map_err(status)?;
        let log = Arc::clone(log);
        let is_full = found.len() == page_size;
        let (letters, next) = facts::blocking(move || Ok(read(&log, &pipeline, found, without_payload))).await?;
        let next = next.filter(|next| is_full || !next.is_last);
        Ok(Response::new(ListDeadLettersResponse {
            header: Some(sequencer.header(seen)),
            letters,
            open,
            next_page_token: next.map_or_else(String::new, |next| format!("{}.{}", next.id.lsn, next.id.number)),
        }))
    }

    async fn discard_dead_letters(
        &self,
        request: Request<DiscardDeadLettersRequest>,
    ) -> Result<Response<DiscardDeadLettersResponse>, Status> {
        let sequencer = &self.0.sequencer;
        let request = request.into_inner();
        check_discard(&request).map_err(status)?;
        let decided = sequencer
            .decide(request.encoded_len(), move |state, _| {
                let discarded = state.evaluate_discard_dead_letters(&request)?;
                Ok(Decision { fact: Some(Kind::DeadLettersDiscarded(discarded)), answer: () })
            })
            .await
            .map_err(status)?;
        Ok(Response::new(DiscardDeadLettersResponse { header: Some(sequencer.header(decided.seen)) }))
    }
}

/// A letter that is open, and the checkpoint that it came with.
struct Found {
    id: DeadLetterId,
    branch: String,
    sequence: u64,
}

/// Where the next page begins.
struct Next {
    id: DeadLetterId,
    /// After all that was looked for.
    is_last: bool,
}

/// Reads letters, as many as a page has room for. One that was handled and removed meanwhile is left out. Blocks.
fn read(log: &Log, pipeline: &str, found: Vec<Found>, without_payload: bool) -> (Vec<StoredDeadLetter>, Option<Next>) {
    let (mut letters, mut bytes, mut next) = (Vec::with_capacity(found.len()), 0, None);
    let mut fact: Option<(u64, Result<Fact, Refusal>)> = None;
    for Found { id, branch, sequence } in found {
        if fact.as_ref().is_none_or(|(lsn, _)| *lsn != id.lsn) {
            fact = Some((id.lsn, facts::read(log, Lsn::from_u64(id.lsn))));
        }
        let stored = StoredDeadLetter {
            id: Some(id),
            pipeline: pipeline.to_owned(),
            branch,
            sequence,
            ..StoredDeadLetter::default()
        };
        let stored = match &fact {
            Some((_, Ok(fact))) => filled(fact, id, stored.clone(), without_payload),
            Some((_, Err(refusal))) if refusal.reason == Reason::Compacted => None,
            Some((_, Err(refusal))) => Some(StoredDeadLetter { unreadable: refusal.message.clone(), ..stored }),
            None => None,
        };
        let payload = stored.as_ref().and_then(|it| it.letter.as_ref()).map_or(0, |letter| letter.payload.len());
        if bytes + payload > PAGE_BYTES_MAX {
            return (letters, Some(Next { id, is_last: false }));
        }
        bytes += payload;
        letters.extend(stored);
        next = Some(Next { id: DeadLetterId { number: id.number.saturating_add(1), ..id }, is_last: true });
    }
    (letters, next)
}

/// What the fact says of its letter; nothing once compaction took it out, because it was handled.
fn filled(fact: &Fact, id: DeadLetterId, stored: StoredDeadLetter, without_payload: bool) -> Option<StoredDeadLetter> {
    let mut letter = fact.dead_letters().nth(id.number as usize)?.clone();
    let payload_bytes = letter.payload.len() as u64;
    // Copies, so that the whole fact does not stay in memory for them.
    letter.payload = if without_payload { Bytes::new() } else { Bytes::copy_from_slice(&letter.payload) };
    letter.source_position = Bytes::copy_from_slice(&letter.source_position);
    let at_ms = fact.committed_at_ms();
    Some(StoredDeadLetter { at_ms, payload_bytes, letter: Some(letter), ..stored })
}

/// Where a page begins.
fn place(page_token: &str) -> Result<DeadLetterId, Refusal> {
    if page_token.is_empty() {
        return Ok(DeadLetterId::default());
    }
    let place = page_token
        .split_once('.')
        .and_then(|(lsn, number)| Some(DeadLetterId { lsn: lsn.parse().ok()?, number: number.parse().ok()? }));
    place.ok_or_else(|| shape::bad_page(page_token))
}

fn check_discard(request: &DiscardDeadLettersRequest) -> Result<(), Refusal> {
    let DiscardDeadLettersRequest { cluster: _, pipeline, letters, actor, reason } = request;
    check_pipeline("pipeline", pipeline)?;
    shape::count("letters", letters.len(), "dead letters", limits::DEAD_LETTERS_MAX)?;
    shape::each_letter_once("letters", letters, &mut BTreeSet::new())?;
    check_asked_by(actor, reason)?;
    shape::reason(reason, "what is discarded is never processed")
}
