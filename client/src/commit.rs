//! Moving progress forward, exactly once.
//!
//! A commit is one request with one id, built once and sent as often as needed. Each attempt ends in one of three ways:
//! *applied*; *refused*, which is final unless the refusal passes by itself (a full disk, a server that restarts); or
//! *unknown*, when the connection broke or time ran out. An unknown attempt is settled by asking the server, never by
//! guessing. What is still unknown at the deadline is remembered as the worker's [`Doubt`] and settled before its next
//! commit; so is a commit whose future was dropped.

use std::sync::Arc;

use fencepost::{Action, Applied, Lsn, Reason, v1};
use tokio::sync::{Mutex, MutexGuard};
use tokio::time::Instant;

use crate::checkpoint::Checkpoint;
use crate::client::{Client, Transport};
use crate::error::{Error, Result};
use crate::lease::Loss;
use crate::retry::Backoff;
use crate::rpc::{Question as _, commits};
use crate::staged::nothing_staged;
use crate::stream::{Answer, BATCH_BYTES_MAX, size};
use crate::worker::{Turn, Worker};

/// Most branches of one commit, as the protocol has it.
const BRANCHES_MAX: usize = 128;

/// What a commit did.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct Committed {
    /// The new head's sequence; of the first worker, where there are several.
    pub sequence: u64,
    /// Where the commit is in the log.
    pub lsn: Lsn,
    /// Whether this attempt or an earlier one did it.
    pub outcome: Outcome,
}

/// Whether a commit was applied by the attempt that was answered.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Outcome {
    /// By this one.
    Applied,
    /// By an earlier one whose answer was lost.
    AlreadyApplied,
}

/// A commit that is about to be made: by one worker, or by several of one pipeline, all or none.
#[derive(Debug)]
#[must_use = "nothing is committed before `send`"]
pub struct Commit<'w> {
    /// Each with its checkpoint, or with none for what it has staged.
    parts: Vec<(&'w Worker, Option<Checkpoint>)>,
    id: Option<String>,
    not_after_ms: u64,
}

impl<'w> Commit<'w> {
    /// Moves the branch of each worker to its checkpoint. The workers are of one pipeline and one client: 1 to 128.
    pub fn of(parts: impl IntoIterator<Item = (&'w Worker, Checkpoint)>) -> Commit<'w> {
        let parts = parts.into_iter().map(|(worker, checkpoint)| (worker, Some(checkpoint)));
        Commit { parts: parts.collect(), id: None, not_after_ms: 0 }
    }

    /// Moves the branch of each worker to what it has staged.
    pub fn staged(workers: impl IntoIterator<Item = &'w Worker>) -> Commit<'w> {
        let parts = workers.into_iter().map(|worker| (worker, None));
        Commit { parts: parts.collect(), id: None, not_after_ms: 0 }
    }

    /// The commit's identity in its pipeline, instead of one made from the fencing token. 1 to 128 characters; never used
    /// again for other content.
    pub fn id(mut self, id: impl Into<String>) -> Commit<'w> {
        self.id = Some(id.into());
        self
    }

    /// Void once the server's wall clock has passed this, in milliseconds since 1970.
    pub fn not_after_ms(mut self, not_after_ms: u64) -> Commit<'w> {
        self.not_after_ms = not_after_ms;
        self
    }

    /// Makes the commit: on success every worker's head has moved; on an error whose [`Error::applied`] is `No` none has.
    /// If it still cannot be told at the deadline how an *earlier* commit of one of the workers ended, the error is about
    /// that one, and this one was not sent.
    pub async fn send(mut self) -> Result<Committed> {
        let (client, sequence_of) = self.check()?;
        let deadline = Instant::now() + client.shared.rpc.options.commit_deadline;

        // In the order of their names, so that two commits of the same workers cannot wait for each other.
        self.parts.sort_by(|(one, _), (other, _)| one.branch().cmp(other.branch()));
        let mut turns = Vec::with_capacity(self.parts.len());
        for (worker, _) in &self.parts {
            turns.push(worker.turn.lock().await);
        }
        let mut landed_before = None;
        for ((worker, _), turn) in self.parts.iter().zip(&mut turns) {
            landed_before = worker.settle(turn, deadline).await?.or(landed_before);
        }
        if let Some((doubt, lsn)) = landed_before
            && let Some(sequence) = self.repeats(&doubt, sequence_of)
        {
            return Ok(Committed { sequence, lsn, outcome: Outcome::AlreadyApplied });
        }
        if let Some(loss) = self.parts.iter().find_map(|(worker, _)| worker.lease.gone()) {
            return Err(Error::Lost(loss));
        }

        let sequence = sequence_of.sequence() + 1;
        let workers: Vec<&Worker> = self.parts.iter().map(|(worker, _)| *worker).collect();
        let doubt = Arc::new(Doubt::new(self.into_request(&mut turns[0])?, None));
        for turn in &mut turns {
            turn.doubt = Some(doubt.clone());
        }
        match doubt.carry(&client, &mut turns[0], deadline).await {
            Ok(landed) => {
                close(&doubt, &workers, &mut turns, &landed);
                Ok(Committed { sequence, lsn: landed.lsn, outcome: landed.outcome })
            }
            Err(error) => {
                if error.applied() == Applied::No {
                    for turn in &mut turns {
                        turn.doubt = None;
                    }
                }
                note_refusal(&workers, &doubt.request, &error);
                Err(error)
            }
        }
    }

    /// What is wrong with the request can be seen before anything is sent. Returns the client, and the first worker.
    fn check(&self) -> Result<(Client, &'w Worker)> {
        let invalid = |problem: String| Err(Error::Invalid { field: "commit", problem });
        let Some((first, _)) = self.parts.first() else {
            return invalid("it has no workers; expected 1 to 128".to_owned());
        };
        if self.parts.len() > BRANCHES_MAX {
            return invalid(format!("it has {} workers; expected 1 to {BRANCHES_MAX}", self.parts.len()));
        }
        for (place, (worker, _)) in self.parts.iter().enumerate() {
            if worker.pipeline() != first.pipeline() {
                let (one, other) = (first.pipeline(), worker.pipeline());
                return invalid(format!("its workers are of two pipelines, {one} and {other}; expected one"));
            }
            if !Arc::ptr_eq(&worker.client.shared, &first.client.shared) {
                return invalid("its workers are of two clients; resume them all with clones of one".to_owned());
            }
            if self.parts[..place].iter().any(|(other, _)| other.branch() == worker.branch()) {
                return invalid(format!("branch '{}' is in it twice; expected each once", worker.branch()));
            }
        }
        Ok((first.client.clone(), first))
    }

    /// Whether this is the commit in doubt once more: then it has just been made. It is if it has the same id, one of the
    /// caller's, and the same content; and if all of it is what is staged, because nothing is any more. Returns the sequence
    /// that it has in the branch of `first`.
    fn repeats(&self, doubt: &Doubt, first: &Worker) -> Option<u64> {
        let asked = &doubt.request.branches;
        let is_all_staged = self.id.is_none() && self.parts.iter().all(|(_, checkpoint)| checkpoint.is_none());
        let same_id = is_all_staged || self.id.as_deref() == Some(doubt.request.commit_id.as_str());
        let same_content = asked.len() == self.parts.len()
            && self.parts.iter().zip(asked).all(|((worker, checkpoint), asked)| match checkpoint {
                None => asked.branch == worker.branch() && !asked.staged.is_empty(),
                Some(checkpoint) => *asked == moved(worker, asked.sequence, checkpoint.clone().into_message()),
            });
        let own = asked.iter().find(|branch| branch.branch == first.branch())?;
        (same_id && same_content).then_some(own.sequence)
    }

    fn into_request(self, turn: &mut Turn) -> Result<v1::CommitRequest> {
        let lead = self.parts[0].0;
        let pipeline = lead.pipeline().to_owned();
        let branches = self.parts.into_iter().map(|(worker, checkpoint)| {
            let content = if let Some(checkpoint) = checkpoint {
                checkpoint.into_message()
            } else {
                let staged = worker.staged().ok_or_else(|| nothing_staged(worker.branch()))?;
                v1::BranchCommit { staged: staged.id().to_owned(), ..v1::BranchCommit::default() }
            };
            Ok(moved(worker, worker.sequence() + 1, content))
        });
        let branches = branches.collect::<Result<_>>()?;
        let commit_id = self.id.unwrap_or_else(|| turn.next_id(lead.token()));
        Ok(v1::CommitRequest { cluster: None, pipeline, commit_id, branches, not_after_ms: self.not_after_ms })
    }
}

/// What a commit says of the branch of one worker.
pub(crate) fn moved(worker: &Worker, sequence: u64, content: v1::BranchCommit) -> v1::BranchCommit {
    v1::BranchCommit { branch: worker.branch().to_owned(), token: worker.token().as_u64(), sequence, ..content }
}

/// After a success: every worker stands where the commit put it.
fn close(doubt: &Doubt, workers: &[&Worker], turns: &mut [MutexGuard<'_, Turn>], landed: &Landed) {
    for (worker, turn) in workers.iter().zip(turns) {
        turn.doubt = None;
        worker.advance(doubt, landed.lsn);
        if let Some(sent) = landed.sign_of_life {
            worker.lease.renewed(sent);
        }
    }
}

/// After a failure: a worker whose lease is gone knows it at once. Of several, the refusal may not say which it is; then
/// they all ask. That something is not there may be what was to be committed by reference: then that is what is known.
fn note_refusal(workers: &[&Worker], request: &v1::CommitRequest, error: &Error) {
    let Some(loss) = Loss::of(error) else { return };
    let named = error.refusal().and_then(|refusal| refusal.metadata().get("branch"));
    let is_missing = error.reason() == Some(Reason::StateMissing);
    for (worker, moved) in workers.iter().zip(&request.branches) {
        if is_missing && !moved.staged.is_empty() {
            if workers.len() == 1 || named.is_some_and(|branch| branch == worker.branch()) {
                worker.set_staged(None);
            }
        } else if workers.len() == 1 || named.is_some_and(|branch| branch == worker.branch()) {
            worker.lease.lose(loss.clone());
        } else if named.is_none() {
            worker.client.shared.keeper.keep(worker.lease.clone(), Instant::now());
        }
    }
}

/// A commit that has been begun and of which it is not known how it ends.
#[derive(Debug)]
pub(crate) struct Doubt {
    pub(crate) request: v1::CommitRequest,
    /// From what its checkpoint was merged, if it was.
    pub(crate) merge: Option<v1::Merge>,
    /// The answer to the attempt that is on its way. Kept here, so that it is not lost with whoever waited for it.
    answer: Mutex<Option<Answer>>,
}

/// A commit that is in the log.
#[derive(Debug)]
struct Landed {
    lsn: Lsn,
    outcome: Outcome,
    /// When the attempt was sent that renewed the leases, if one is known to have.
    sign_of_life: Option<Instant>,
}

impl Doubt {
    pub(crate) fn new(request: v1::CommitRequest, merge: Option<v1::Merge>) -> Doubt {
        Doubt { request, merge, answer: Mutex::new(None) }
    }

    /// Sends the commit until it is known how it ended, or `deadline` passes.
    async fn carry(&self, client: &Client, turn: &mut Turn, deadline: Instant) -> Result<Landed> {
        let mut backoff = Backoff::ordinary();
        let mut one_was_lost = false;
        loop {
            let sent = Instant::now();
            let error = match self.attempt(client, turn.session, deadline).await {
                Ok(answer) => return Ok(Landed::answered(&answer, sent)),
                Err(error) => error,
            };
            turn.renew_session(client);
            let passes = passes_by_itself(&error);
            one_was_lost |= error.applied() == Applied::Unknown;
            // A refusal is about its own attempt. It says nothing of an earlier one that was lost.
            if error.applied() == Applied::Unknown || (one_was_lost && !passes) {
                match self.resolve(client, deadline).await {
                    Ok(Some(lsn)) => return Ok(Landed::found(lsn)),
                    Ok(None) => {}
                    Err(cause) => return Err(self.in_doubt(cause)),
                }
            }
            if error.applied() == Applied::No && !passes {
                return Err(error);
            }
            tracing::debug!(%error, commit_id = self.request.commit_id, "sending the commit again");
            if !backoff.wait(error.retry_after(), deadline).await {
                return Err(if one_was_lost { self.in_doubt(error) } else { error });
            }
        }
    }

    async fn attempt(&self, client: &Client, session: u64, deadline: Instant) -> Result<v1::CommitResponse> {
        let rpc = &client.shared.rpc;
        let until = rpc.deadline().min(deadline);
        let mut request = self.request.clone();
        // A large one would hold up the other workers' commits on the stream.
        if rpc.options.transport == Transport::Unary || size(&request) > BATCH_BYTES_MAX {
            return rpc
                .once(request, until, |channel, request| async move { commits(channel).commit(request).await })
                .await;
        }
        request.address(rpc.cluster.reference());
        let mut pending = self.answer.lock().await;
        let answer = pending.insert(client.shared.road.send(session, request));
        let outcome = tokio::time::timeout_at(until, answer).await;
        *pending = None;
        let unanswered =
            |cause: &str| Err(Error::Unanswered { endpoint: rpc.endpoint.clone(), cause: cause.to_owned() });
        match outcome {
            Ok(Ok(outcome)) => outcome,
            Ok(Err(_)) => unanswered("the client's commit stream is gone; is its runtime shutting down?"),
            Err(_) => unanswered("the commit was not answered in time"),
        }
    }

    /// Finds out how a commit ended that nobody waits for any more: where it landed, or `None`.
    pub(crate) async fn settle(&self, client: &Client, deadline: Instant) -> Result<Option<Lsn>> {
        // What is still on its way comes first: asked now, the server could say "not applied" of a commit that waits in
        // this client's own queue.
        let mut pending = self.answer.lock().await;
        if let Some(answer) = pending.as_mut() {
            let until = client.shared.rpc.deadline().min(deadline);
            let outcome = tokio::time::timeout_at(until, answer).await;
            *pending = None;
            if let Ok(Ok(Ok(answer))) = outcome {
                return Ok(Some(Lsn::from_u64(answer.lsn)));
            }
        }
        drop(pending);
        self.resolve(client, deadline).await.map_err(|cause| self.in_doubt(cause))
    }

    async fn resolve(&self, client: &Client, deadline: Instant) -> Result<Option<Lsn>> {
        let branch = &self.request.branches[0];
        let (pipeline, commit_id) = (&self.request.pipeline, &self.request.commit_id);
        client.resolve_until(pipeline, commit_id, Some((&branch.branch, branch.sequence)), deadline).await
    }

    pub(crate) fn in_doubt(&self, cause: Error) -> Error {
        let branch = &self.request.branches[0];
        Error::InDoubt {
            pipeline: self.request.pipeline.clone(),
            commit_id: self.request.commit_id.clone(),
            branch: branch.branch.clone(),
            sequence: branch.sequence,
            cause: Box::new(cause),
        }
    }
}

impl Landed {
    fn answered(answer: &v1::CommitResponse, sent: Instant) -> Landed {
        let earlier = answer.outcome() == v1::commit_response::Outcome::AlreadyApplied;
        Landed {
            lsn: Lsn::from_u64(answer.lsn),
            outcome: if earlier { Outcome::AlreadyApplied } else { Outcome::Applied },
            // That an earlier attempt landed is told to a fenced worker too.
            sign_of_life: (!earlier).then_some(sent),
        }
    }

    fn found(lsn: Lsn) -> Landed {
        Landed { lsn, outcome: Outcome::AlreadyApplied, sign_of_life: None }
    }
}

/// Whether the same request may be accepted a little later.
fn passes_by_itself(error: &Error) -> bool {
    error.action() == Action::Retry || error.reason() == Some(Reason::SessionPoisoned)
}
