//! Requests for branches that somebody else holds, in the order they came.

use std::collections::BTreeMap;

use fencepost::Lsn;
use tokio::sync::oneshot;

use super::{Readable, Resumed};
use crate::clock::Monotonic;
use crate::error::Refusal;
use crate::state::Resume;

pub(super) struct Waiter {
    pub(super) resume: Resume,
    /// After this it is refused instead.
    pub(super) deadline: Monotonic,
    pub(super) readable: Readable,
    /// The newest fact when it was decided for the first time.
    pub(super) arrived: Option<Lsn>,
    pub(super) reply: oneshot::Sender<Result<Resumed, Refusal>>,
}

/// By pipeline and branch; each in the order of arrival.
#[derive(Default)]
pub(super) struct Waiters(BTreeMap<(String, String), Vec<Waiter>>);

impl Waiters {
    pub(super) fn is_empty(&self) -> bool {
        self.0.is_empty()
    }

    pub(super) fn add(&mut self, waiter: Waiter) {
        let request = &waiter.resume.request;
        self.0.entry((request.pipeline.clone(), request.branch.clone())).or_default().push(waiter);
    }

    /// All that wait for one branch.
    pub(super) fn take(&mut self, pipeline: &str, branch: &str) -> Vec<Waiter> {
        if self.0.is_empty() {
            return Vec::new();
        }
        self.0.remove(&(pipeline.to_owned(), branch.to_owned())).unwrap_or_default()
    }

    /// All.
    pub(super) fn take_all(&mut self) -> impl Iterator<Item = Waiter> + use<> {
        std::mem::take(&mut self.0).into_values().flatten()
    }
}
