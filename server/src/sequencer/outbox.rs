//! Answers that wait until what they saw is durable.
//!
//! The state runs ahead of the disk, so an answer given from it, yes or no, may rest on a fact that a crash would still
//! undo. Every answer therefore waits here for the newest entry it could have seen. The log delivers them in order, or,
//! once it has failed, tells everybody that the outcome is unknown.

use std::collections::VecDeque;
use std::sync::{Condvar, Mutex, MutexGuard, PoisonError};

use fencepost::{LogIndex, Reason};

use super::reply::Answer;
use crate::error::Refusal;

#[derive(Debug, Default)]
pub(super) struct Outbox {
    inner: Mutex<Inner>,
    progress: Condvar,
}

#[derive(Debug, Default)]
struct Inner {
    proposed: LogIndex,
    durable: LogIndex,
    failure: Option<Refusal>,
    waiting: VecDeque<(LogIndex, Vec<Answer>)>,
}

impl Outbox {
    pub(super) fn new(durable: LogIndex) -> Outbox {
        Outbox { inner: Mutex::new(Inner { proposed: durable, durable, ..Inner::default() }), progress: Condvar::new() }
    }

    /// Sends the answers once the entry at `index` is durable; at once if it is.
    pub(super) fn put(&self, index: LogIndex, answers: Vec<Answer>) {
        let mut inner = self.lock();
        inner.proposed = inner.proposed.max(index);
        if inner.failure.is_none() && index > inner.durable {
            inner.waiting.push_back((index, answers));
            return;
        }
        let failure = inner.failure.clone();
        drop(inner);
        deliver(answers, failure.as_ref());
    }

    /// The log reached `index`, or failed for good.
    pub(super) fn advance(&self, result: Result<LogIndex, String>) {
        let mut inner = self.lock();
        let ready = match result {
            Ok(index) => {
                inner.durable = inner.durable.max(index);
                let ready = inner.waiting.partition_point(|(waits_for, _)| *waits_for <= index);
                inner.waiting.drain(..ready).collect::<Vec<_>>()
            }
            Err(failure) => {
                inner.failure.get_or_insert_with(|| log_failed(&failure));
                inner.waiting.drain(..).collect()
            }
        };
        let failure = inner.failure.clone();
        drop(inner);
        self.progress.notify_all();
        for (_, answers) in ready {
            deliver(answers, failure.as_ref());
        }
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

/// What everybody is told once the log has failed.
pub(super) fn log_failed(failure: &str) -> Refusal {
    let message = format!(
        "the log stopped taking writes: {failure}; whether this request took effect is not known: ask ResolveCommit \
         once the server was restarted"
    );
    Refusal::new(Reason::LogFailed, message)
}

fn deliver(answers: Vec<Answer>, failure: Option<&Refusal>) {
    for answer in answers {
        answer.deliver(failure);
    }
}
