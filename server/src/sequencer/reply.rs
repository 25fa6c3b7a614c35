//! Where an answer goes. Whatever becomes of a request, its caller hears something: a reply that is dropped says that
//! the outcome is unknown.

use std::fmt;
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, AtomicUsize, Ordering};

use fencepost::{Lsn, Reason};
use tokio::sync::{mpsc, oneshot};

use crate::error::Refusal;

/// How a commit went.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub struct CommitDone {
    /// Where the commit is in the log.
    pub lsn: Lsn,
    /// Whether an earlier attempt had put it there.
    pub already: bool,
    /// The newest fact when the answer was decided.
    pub seen: Lsn,
}

/// One ordered conversation on a commit stream. After its first refusal nothing it sends is applied.
#[derive(Debug)]
pub struct Session {
    /// The caller's number for it.
    pub id: u64,
    /// The number of the first refused commit, plus one; 0 while there is none.
    poisoned: AtomicU64,
}

impl Session {
    /// A session that nothing was refused in yet.
    pub fn new(id: u64) -> Arc<Session> {
        Arc::new(Session { id, poisoned: AtomicU64::new(0) })
    }

    /// Remembers the first refusal.
    pub fn poison(&self, number: u64) {
        let first = number.saturating_add(1);
        // Only the first counts; a later one finds the place taken.
        let _ = self.poisoned.compare_exchange(0, first, Ordering::SeqCst, Ordering::SeqCst);
    }

    /// The refusal of everything after the first refusal.
    pub fn check(&self) -> Result<(), Refusal> {
        let Some(first) = self.poisoned.load(Ordering::SeqCst).checked_sub(1) else { return Ok(()) };
        let message = format!(
            "commit {first} of session {} was refused, so nothing the session sent after it is applied: settle that \
             one and go on in a new session",
            self.id
        );
        Err(Refusal::new(Reason::SessionPoisoned, message).with("first_failing", first))
    }
}

/// An answer for one commit of a stream.
#[derive(Debug)]
pub struct SessionAnswer {
    /// The caller's session.
    pub session: u64,
    /// The caller's number for the commit.
    pub number: u64,
    /// How it went.
    pub result: Result<CommitDone, Refusal>,
}

/// Takes the answer of one commit to its caller, once.
#[derive(Debug)]
pub struct CommitReply {
    way: Option<Way>,
    _permit: Option<Permit>,
}

#[derive(Debug)]
enum Way {
    Once(oneshot::Sender<Result<CommitDone, Refusal>>),
    Stream { answers: mpsc::UnboundedSender<SessionAnswer>, session: Arc<Session>, number: u64 },
}

impl CommitReply {
    /// To a caller that waits for this one answer.
    pub fn once(permit: Permit) -> (CommitReply, oneshot::Receiver<Result<CommitDone, Refusal>>) {
        let (answer, receiver) = oneshot::channel();
        (CommitReply { way: Some(Way::Once(answer)), _permit: Some(permit) }, receiver)
    }

    /// To a stream that carries many.
    pub fn stream(
        answers: mpsc::UnboundedSender<SessionAnswer>,
        session: Arc<Session>,
        number: u64,
        permit: Option<Permit>,
    ) -> CommitReply {
        CommitReply { way: Some(Way::Stream { answers, session, number }), _permit: permit }
    }

    /// Refuses what comes after the first refusal of the session.
    pub(super) fn check_session(&self) -> Result<(), Refusal> {
        match &self.way {
            Some(Way::Stream { session, .. }) => session.check(),
            _ => Ok(()),
        }
    }

    /// Makes the session refuse all that comes after this commit.
    pub(super) fn poison_session(&self) {
        if let Some(Way::Stream { session, number, .. }) = &self.way {
            session.poison(*number);
        }
    }

    /// Sends the answer. A caller that is gone does not hear it.
    pub(super) fn send(mut self, result: Result<CommitDone, Refusal>) {
        self.send_once(result);
    }

    fn send_once(&mut self, result: Result<CommitDone, Refusal>) {
        match self.way.take() {
            Some(Way::Once(answer)) => drop(answer.send(result)),
            Some(Way::Stream { answers, session, number }) => {
                drop(answers.send(SessionAnswer { session: session.id, number, result }));
            }
            None => {}
        }
    }
}

impl Drop for CommitReply {
    fn drop(&mut self) {
        self.send_once(Err(super::outbox::log_failed("the server stopped in the middle of the request")));
    }
}

/// Takes an answer to its caller. Called with the failure of the log, if it failed.
type Deliver = Box<dyn FnOnce(Option<&Refusal>) + Send>;

/// An answer that is decided, on its way to a caller.
pub(super) enum Answer {
    Commit(CommitReply, Result<CommitDone, Refusal>),
    Other(Deliver),
}

impl Answer {
    /// Any answer to a caller that waits for it.
    pub(super) fn once<T: Send + 'static>(
        answer: oneshot::Sender<Result<T, Refusal>>,
        result: Result<T, Refusal>,
    ) -> Answer {
        Answer::Other(Box::new(move |failure| {
            let result = failure.map_or(result, |failure| Err(failure.clone()));
            drop(answer.send(result));
        }))
    }

    /// Whether it goes to a stream that carries many.
    pub(super) fn is_streamed(&self) -> bool {
        matches!(self, Answer::Commit(CommitReply { way: Some(Way::Stream { .. }), .. }, _))
    }

    pub(super) fn deliver(self, failure: Option<&Refusal>) {
        match self {
            Answer::Commit(reply, result) => reply.send(failure.map_or(result, |failure| Err(failure.clone()))),
            Answer::Other(deliver) => deliver(failure),
        }
    }
}

impl fmt::Debug for Answer {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str(match self {
            Answer::Commit(..) => "Answer::Commit",
            Answer::Other(_) => "Answer::Other",
        })
    }
}

/// Bounds the memory of requests in hand.
#[derive(Debug)]
pub(super) struct Budget {
    used: AtomicUsize,
    bytes_max: usize,
}

impl Budget {
    pub(super) fn new(bytes_max: usize) -> Arc<Budget> {
        Arc::new(Budget { used: AtomicUsize::new(0), bytes_max })
    }

    /// Room for a request of this size, until the permit is dropped.
    pub(super) fn acquire(self: &Arc<Budget>, bytes: usize) -> Result<Permit, Refusal> {
        let used = self.used.fetch_add(bytes, Ordering::Relaxed) + bytes;
        let permit = Permit { budget: Arc::clone(self), bytes };
        if used <= self.bytes_max {
            return Ok(permit);
        }
        let message = format!(
            "the server has {} of requests in hand, and its limit is {}: send fewer at a time, or try again",
            used - bytes,
            self.bytes_max
        );
        Err(Refusal::new(Reason::RateLimited, message).with("retry_after_ms", 50))
    }
}

/// Room that one request takes up.
#[derive(Debug)]
pub struct Permit {
    budget: Arc<Budget>,
    bytes: usize,
}

impl Drop for Permit {
    fn drop(&mut self) {
        self.budget.used.fetch_sub(self.bytes, Ordering::Relaxed);
    }
}
