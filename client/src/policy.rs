//! When a worker commits ([`CommitPolicy`]), and what keeps count of it in the worker's loop ([`Cadence`]).

mod adaptive;

use std::time::Duration;

pub use adaptive::{Adaptive, Observed};
use tokio::time::Instant;

/// When to commit: after so many records, bytes or seconds, at the end of a unit, or as often as pays ([`Adaptive`]),
/// whichever comes first. With no bound at all, after every record.
///
/// What a pipeline keeps of its commits is another matter: [`Policy`](crate::Policy).
///
/// ```
/// # use std::time::Duration;
/// # use fencepost_client::{Checkpoint, CommitPolicy, Result, Worker};
/// # use tokio::time::Instant;
/// # async fn load(worker: Worker, lines: Vec<String>) -> Result<()> {
/// let policy = CommitPolicy::new().records(10_000).bytes(64 << 20).every(Duration::from_secs(30));
/// let mut cadence = policy.cadence();
/// for (number, line) in lines.iter().enumerate() {
///     // Write the line to its sink here.
///     cadence.record(line.len() as u64);
///     if cadence.is_due() {
///         let begin = Instant::now();
///         worker.commit(Checkpoint::at((number + 1).to_string())).await?;
///         cadence.committed(begin.elapsed());
///     }
/// }
/// # Ok(())
/// # }
/// ```
#[derive(Clone, Copy, Debug, Default, PartialEq)]
pub struct CommitPolicy {
    records: Option<u64>,
    bytes: Option<u64>,
    every: Option<Duration>,
    unit_ends: bool,
    adaptive: Option<Adaptive>,
}

impl CommitPolicy {
    /// No bound yet.
    pub fn new() -> CommitPolicy {
        CommitPolicy::default()
    }

    /// Commits after so many records.
    #[must_use]
    pub fn records(mut self, records: u64) -> CommitPolicy {
        self.records = Some(records);
        self
    }

    /// Commits after so many bytes, as the worker counts them.
    #[must_use]
    pub fn bytes(mut self, bytes: u64) -> CommitPolicy {
        self.bytes = Some(bytes);
        self
    }

    /// Commits when so much time has gone by since the commit before.
    #[must_use]
    pub fn every(mut self, interval: Duration) -> CommitPolicy {
        self.every = Some(interval);
        self
    }

    /// Commits at the end of each unit: a file, a page, whatever the worker calls one.
    #[must_use]
    pub fn unit_ends(mut self) -> CommitPolicy {
        self.unit_ends = true;
        self
    }

    /// Commits at intervals chosen by what a commit costs and how often the worker fails.
    #[must_use]
    pub fn adaptive(mut self, adaptive: Adaptive) -> CommitPolicy {
        self.adaptive = Some(adaptive);
        self
    }

    /// Begins to count. Time counts from now.
    pub fn cadence(self) -> Cadence {
        Cadence {
            observed: self.adaptive.unwrap_or_default().beginning(),
            policy: self,
            since: Instant::now(),
            records: 0,
            bytes: 0,
            pending: false,
            unit_ended: false,
        }
    }
}

/// What a worker's loop asks whether to commit. It counts from the last commit on; nothing is due before something was
/// recorded.
#[derive(Clone, Debug)]
pub struct Cadence {
    policy: CommitPolicy,
    /// Up to `since`.
    observed: Observed,
    since: Instant,
    records: u64,
    bytes: u64,
    pending: bool,
    unit_ended: bool,
}

impl Cadence {
    /// A record was processed, of so many bytes.
    pub fn record(&mut self, bytes: u64) {
        self.records += 1;
        self.bytes = self.bytes.saturating_add(bytes);
        self.pending = true;
    }

    /// A unit has ended: the next record belongs to another one.
    pub fn end_of_unit(&mut self) {
        self.pending = true;
        self.unit_ended = true;
    }

    /// Whether to commit now.
    pub fn is_due(&self) -> bool {
        let CommitPolicy { records, bytes, every, unit_ends, adaptive } = self.policy;
        let is_bounded = records.is_some() || bytes.is_some() || every.is_some() || unit_ends || adaptive.is_some();
        let is_full = records.is_some_and(|bound| self.records >= bound)
            || bytes.is_some_and(|bound| self.bytes >= bound)
            || (unit_ends && self.unit_ended)
            || !is_bounded;
        (self.pending && is_full) || self.due_at().is_some_and(|at| at <= Instant::now())
    }

    /// When time alone will make a commit due, for a loop that waits for its input and for this together. `None` while
    /// nothing is recorded, or if the policy knows no time.
    pub fn due_at(&self) -> Option<Instant> {
        let chosen = self.policy.adaptive.map(|adaptive| adaptive.interval(self.observed));
        let interval = self.policy.every.into_iter().chain(chosen).min()?;
        self.since.checked_add(interval).filter(|_| self.pending)
    }

    /// Everything recorded so far was committed, which took `cost`.
    pub fn committed(&mut self, cost: Duration) {
        self.observed.learn_cost(cost);
        self.begin_anew();
    }

    /// The worker failed and has resumed from the head: what was recorded since the last commit will be done again. A
    /// worker that comes back as a new process begins with what was [`observed`](Cadence::observed) before instead.
    pub fn failed(&mut self) {
        self.observed.failures += 1;
        self.begin_anew();
    }

    /// What this worker, and those before it that it was told of, have seen up to now. To be stored in the state of a
    /// checkpoint, so that [`Adaptive::observed`] does not begin with nothing after a restart.
    pub fn observed(&self) -> Observed {
        let mut observed = self.observed;
        observed.over = observed.over.saturating_add(self.since.elapsed());
        observed
    }

    fn begin_anew(&mut self) {
        self.observed = self.observed();
        (self.since, self.records, self.bytes) = (Instant::now(), 0, 0);
        (self.pending, self.unit_ended) = (false, false);
    }
}

#[cfg(test)]
mod tests;

#[cfg(test)]
mod simulation;
