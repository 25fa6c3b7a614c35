//! Answers that wait until what they saw is durable.
//!
//! The state runs ahead of the disk, so an answer given from it, yes or no, may rest on a fact that a crash would still
//! undo. Every answer therefore waits here for the newest entry it could have seen. The log delivers them in order, or,
//! once it has failed, tells everybody that the outcome is unknown.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use fencepost::{LogIndex, Reason};
use tokio::sync::mpsc;

use super::reply::Answer;
use crate::error::Refusal;

#[derive(Debug)]
pub(super) struct Outbox {
    inner: Mutex<Inner>,
    progress: Condvar,
}

#[derive(Debug)]
struct Inner {
    proposed: LogIndex,
    durable: LogIndex,
    failure: Option<Refusal>,
    waiting: VecDeque<(LogIndex, Vec<Answer>)>,
    ready: mpsc::UnboundedSender<Ready>,
}

/// Answers whose time has come, and the failure of the log if it failed.
#[derive(Debug)]
pub(super) struct Ready {
    answers: Vec<Answer>,
    failure: Option<Refusal>,
}

impl Ready {
    /// Sends each to its caller.
    pub(super) fn deliver(self) {
        for answer in self.answers {
            answer.deliver(self.failure.as_ref());
        }
    }
}

/// Delivers what is ready until nothing more can come. One task does it, so that the log's thread wakes one task for all
/// answers of an entry and not one for each; that task wakes the others where it costs little.
pub(super) async fn deliver(mut ready: mpsc::UnboundedReceiver<Ready>) {
    while let Some(ready) = ready.recv().await {
        ready.deliver();
    }
}

impl Outbox {
    /// An outbox, and where its answers come out.
    pub(super) fn new(durable: LogIndex) -> (Outbox, mpsc::UnboundedReceiver<Ready>) {
        let (ready, delivery) = mpsc::unbounded_channel();
        let inner = Inner { proposed: durable, durable, failure: None, waiting: VecDeque::new(), ready };
        (Outbox { inner: Mutex::new(inner), progress: Condvar::new() }, delivery)
    }

    /// Sends the answers once the entry at `index` is durable; at once if it is.
    pub(super) fn put(&self, index: LogIndex, answers: Vec<Answer>) {
        let mut inner = self.lock();
        inner.proposed = inner.proposed.max(index);
        if inner.failure.is_none() && index > inner.durable {
            inner.waiting.push_back((index, answers));
        } else {
            inner.send(answers);
        }
    }

    /// The log reached `index`, or failed for good.
    pub(super) fn advance(&self, result: Result<LogIndex, String>) {
        let mut inner = self.lock();
        match result {
            Ok(index) => inner.durable = inner.durable.max(index),
            Err(failure) => {
                inner.failure.get_or_insert_with(|| log_failed(&failure));
            }
        }
        while let Some((_, answers)) = inner.pop_ready() {
            inner.send(answers);
        }
        drop(inner);
        self.progress.notify_all();
    }

    /// Number of entries on their way to the disk.
    pub(super) fn in_flight(&self) -> u64 {
        let inner = self.lock();
        if inner.failure.is_some() { 0 } else { inner.proposed.0 - inner.durable.0 }
    }

    /// Waits until fewer than `entries` are on their way.
    pub(super) fn wait_below(&self, entries: u64) {
        let guard = self.lock();
        let busy = |inner: &mut Inner| inner.failure.is_none() && inner.proposed.0 - inner.durable.0 >= entries;
        drop(self.progress.wait_while(guard, busy).unwrap_or_else(PoisonError::into_inner));
    }

    /// Why nothing more can be written, if so.
    pub(super) fn failure(&self) -> Option<Refusal> {
        self.lock().failure.clone()
    }

    /// Nothing panics while it holds the lock, so a poisoned one still guards good data.
    fn lock(&self) -> MutexGuard<'_, Inner> {
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    /// The oldest answers, if nothing that they saw can be undone any more, or nothing more can become durable.
    fn pop_ready(&mut self) -> Option<(LogIndex, Vec<Answer>)> {
        let (durable, failed) = (self.durable, self.failure.is_some());
        self.waiting.pop_front_if(|(waits_for, _)| failed || *waits_for <= durable)
    }

    /// Answers of a stream go straight there, since many of them wake its one task once. The others go by way of the
    /// delivering task, unless there is only one, who is better off without the detour.
    fn send(&self, answers: Vec<Answer>) {
        let failure = self.failure.as_ref();
        let (streamed, mut single): (Vec<_>, Vec<_>) = answers.into_iter().partition(Answer::is_streamed);
        for answer in streamed {
            answer.deliver(failure);
        }
        if single.len() > 1 {
            // If nobody delivers any more the answers are dropped, and each says so as it is.
            let _ = self.ready.send(Ready { answers: single, failure: failure.cloned() });
        } else if let Some(answer) = single.pop() {
            answer.deliver(failure);
        }
    }
}

/// What everybody is told once the log has failed.
pub(super) fn log_failed(failure: &str) -> Refusal {
    let message = format!(
        "the log stopped taking writes: {failure}; whether this request took effect is not known: ask ResolveCommit \
         once the server was restarted"
    );
    Refusal::new(Reason::LogFailed, message)
}
