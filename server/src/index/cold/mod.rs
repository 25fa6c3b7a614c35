//! The index on disk. It is derived from the log, checked on every way in and out, and made again at any doubt.
//!
//! sled is useful and not trusted: on damaged files it loses entries without a word, panics or hangs. So
//! * it lives on a thread of its own ([`worker`]), inside `catch_unwind`, and nobody waits for it without a bound;
//! * every entry has its own CRC, and the meta record, which is in every batch, says how many entries there are and the sum of
//!   their hashes: opening reads everything and compares ([`store`]);
//! * a database that is in doubt is deleted and a new one begun under a name never used before, so that threads of the
//!   old one that still run cannot touch it.
//!
//! Whoever owns the index feeds it: it asks [`ColdIndex::status`] from where on, feeds what is there since, and
//! says [`ColdIndex::ready`]. Nobody else needs to know that it was made again: questions are refused until then.

mod layout;
mod messages;
mod segments;
mod store;
#[cfg(test)]
mod tests;
mod worker;

use std::ops::RangeInclusive;
use std::path::PathBuf;
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::mpsc::{RecvTimeoutError, sync_channel};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fencepost::{LogIndex, Lsn};
use tokio::sync::oneshot;
use uuid::Uuid;

pub use self::messages::{Change, FeedError, GivenUp, IndexError, Located, SegmentUse, Status};
use self::store::{Problem, Store};
use self::worker::{Job, Worker, begin};
use super::{Horizon, Place};
use crate::state::Digest;

/// Checkpoints that [`ColdIndex::at`] lists.
const LOCATED_MAX: usize = 100;

/// Entries that are looked at before others get their turn.
const SCAN_ROWS: usize = 20_000;

/// Bounds of the index.
#[derive(Clone, Debug)]
pub struct ColdSettings {
    /// Memory for pages that were read or written.
    pub cache_bytes: u64,
    /// How long one question, one feed of the changes of a segment, or a part of opening may take before the database is
    /// given up.
    pub patience: Duration,
    /// How long stopping may take.
    pub stop_patience: Duration,
}

impl Default for ColdSettings {
    fn default() -> ColdSettings {
        ColdSettings {
            cache_bytes: 64 << 20,
            patience: Duration::from_secs(120),
            stop_patience: Duration::from_secs(5),
        }
    }
}

/// The index on disk, by way of the thread that owns it. Cheap to clone; clones are the same index.
#[derive(Clone)]
pub struct ColdIndex {
    owner: Arc<Owner>,
}

/// Ends the thread once nobody can ask it any more.
struct Owner(Arc<Shared>);

impl Drop for Owner {
    fn drop(&mut self) {
        self.0.inner().jobs = None;
    }
}

/// What the thread and those who ask have in common.
struct Shared {
    dir: PathBuf,
    log_id: Uuid,
    needed: Horizon,
    settings: ColdSettings,
    /// Counts what the worker has got done, so that one that is slow is not taken for one that hangs.
    progress: AtomicU64,
    inner: Mutex<Inner>,
}

struct Inner {
    status: Status,
    /// Which worker is in charge. One that hangs is left to itself and followed by another.
    epoch: u64,
    jobs: Option<std::sync::mpsc::Sender<Job>>,
    /// What was last found wrong with a database.
    given_up: Option<GivenUp>,
    /// It was said that none can be made.
    is_failure_told: bool,
}

impl Shared {
    fn inner(&self) -> MutexGuard<'_, Inner> {
        // Nothing is left half done under this lock.
        self.inner.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn go_on(&self) {
        self.progress.fetch_add(1, Ordering::Relaxed);
    }

    fn progress(&self) -> u64 {
        self.progress.load(Ordering::Relaxed)
    }
}

impl ColdIndex {
    /// Opens the index in `dir`, which may be missing, in the background. One that ends before `needed.after` is not ready
    /// until it was fed; one that goes beyond `needed.through` belongs to a log that was set back.
    pub fn start(dir: PathBuf, log_id: Uuid, needed: Horizon, settings: ColdSettings) -> ColdIndex {
        let inner =
            Mutex::new(Inner { status: Status::Opening, epoch: 0, jobs: None, given_up: None, is_failure_told: false });
        let shared = Arc::new(Shared { dir, log_id, needed, settings, progress: AtomicU64::new(0), inner });
        begin(&shared, worker::Start::Open);
        ColdIndex { owner: Arc::new(Owner(shared)) }
    }

    /// How it is just now.
    pub fn status(&self) -> Status {
        self.shared().inner().status.clone()
    }

    /// Tries again, if it failed: perhaps there is room on the disk now.
    pub fn retry(&self) {
        if matches!(self.status(), Status::Failed { .. }) {
            begin(self.shared(), worker::Start::Open);
        }
    }

    /// Waits until it is opened, found damaged, or takes too long for that and is made anew; and says how it is then. Blocks.
    pub fn opened(&self) -> Status {
        // This stands in the queue behind the opening; what comes of it is in the status.
        let _ = self.call(|_| Ok(()));
        self.status()
    }

    /// Takes in the changes that the facts after `after` through `applied` made, and all of them or, after a crash, some.
    /// Blocks until they are on disk. To be called by one thread, the owner's.
    pub fn feed(&self, after: Lsn, changes: Vec<Change>, applied: Lsn) -> Result<(), FeedError> {
        let fed = self.call(move |store| {
            if store.applied() != after {
                return Ok(Err(store.applied()));
            }
            store.feed(changes, applied).map(Ok)
        })?;
        fed.map_err(|applied| FeedError::OutOfStep { applied })
    }

    /// The owner has fed all that there is: questions are answered from now on.
    pub fn ready(&self) -> Result<(), IndexError> {
        let applied = self.call(|store| Ok(store.applied()))?;
        let mut inner = self.shared().inner();
        if let Status::Rebuilding { applied: now } = inner.status
            && now == applied
        {
            inner.status = Status::Ready { applied };
        }
        Ok(())
    }

    /// Deletes the index and begins an empty one. Blocks.
    pub fn reset(&self, why: &str) {
        let why = why.to_owned();
        // That it fails is what is asked for.
        let _ = self.call::<()>(move |_| Err(Problem::Doubt(why)));
    }

    /// Closes the database, and leaves it as it is if that takes too long.
    pub fn stop(&self) {
        let Some(jobs) = self.shared().inner().jobs.take() else { return };
        let (done_sender, done) = sync_channel(1);
        if jobs.send(Job::Stop(done_sender)).is_ok() && done.recv_timeout(self.shared().settings.stop_patience).is_err()
        {
            tracing::warn!(
                "the index of old checkpoints does not stop: left as it is, it is checked at the next start"
            );
        }
        self.shared().inner().epoch += 1;
    }

    /// The checkpoints of these sequences, each of which was retained at the horizon: what is missing was removed since
    /// (`None`), or the index is damaged.
    pub async fn commits(
        &self,
        horizon: Horizon,
        pipeline: &str,
        branch: &str,
        sequences: Vec<u64>,
    ) -> Result<Vec<Option<Place>>, IndexError> {
        let (pipeline, branch) = (pipeline.to_owned(), branch.to_owned());
        self.ask(horizon.after, move |store| {
            let places = store.commits(&pipeline, &branch, &sequences)?;
            let hole = sequences.iter().zip(&places).find(|(_, place)| place.is_none());
            match hole {
                Some((sequence, _)) if store.applied() <= horizon.through => match store.unread() {
                    Some(indexes) => Ok(Err(IndexError::Unread { indexes })),
                    None => {
                        Err(Problem::Doubt(format!("checkpoint {sequence} of '{branch}' of '{pipeline}' is not in it")))
                    }
                },
                _ => Ok(Ok(places)),
            }
        })
        .await?
    }

    /// Where the newest commit with this id is, if a checkpoint of it is retained.
    pub async fn commit_id(&self, horizon: Horizon, pipeline: &str, key: Digest) -> Result<Option<Lsn>, IndexError> {
        let pipeline = pipeline.to_owned();
        let answer = self.ask(horizon.after, move |store| Ok((store.commit_id(&pipeline, &key)?, store.unread())));
        match answer.await? {
            (None, Some(indexes)) => Err(IndexError::Unread { indexes }),
            (found, _) => Ok(found),
        }
    }

    /// At most `limit` audit records of the pipeline before `before`, newest first.
    pub async fn audit(
        &self,
        horizon: Horizon,
        pipeline: &str,
        before: Lsn,
        limit: usize,
    ) -> Result<Vec<Lsn>, IndexError> {
        let pipeline = pipeline.to_owned();
        self.ask(horizon.after, move |store| store.audit(&pipeline, before, limit)).await
    }

    /// Which checkpoints lie in these entries of the log, at most 100, and whether there are more. Reads everything, and lets
    /// other questions through in between.
    pub async fn at(&self, indexes: RangeInclusive<LogIndex>) -> Result<(Vec<Located>, bool), IndexError> {
        let (mut found, mut next) = (Vec::new(), Some(b"h".to_vec()));
        while let Some(previous) = next.take().filter(|_| found.len() <= LOCATED_MAX) {
            let indexes = indexes.clone();
            let (more, rest) = self.ask(Lsn::ZERO, move |store| store.located(&indexes, &previous, SCAN_ROWS)).await?;
            found.extend(more);
            next = rest;
        }
        let is_more = found.len() > LOCATED_MAX;
        found.truncate(LOCATED_MAX);
        Ok((found, is_more))
    }

    /// Where it says that these checkpoints are. Blocks.
    pub fn places(&self, pipeline: &str, branch: &str, sequences: Vec<u64>) -> Result<Vec<Option<Place>>, IndexError> {
        let (pipeline, branch) = (pipeline.to_owned(), branch.to_owned());
        self.call(move |store| store.commits(&pipeline, &branch, &sequences))
    }

    /// Why a database was given up since the start, if one was.
    pub fn given_up(&self) -> Option<GivenUp> {
        self.shared().inner().given_up.clone()
    }

    /// What is live in each segment, also while the index is not complete. Blocks.
    pub fn segments(&self) -> Result<Vec<SegmentUse>, IndexError> {
        self.call(|store| Ok(store.segments()))
    }

    /// Number of entries. Blocks.
    pub fn entries(&self) -> Result<u64, IndexError> {
        self.call(|store| Ok(store.entries()))
    }

    /// Puts a question that needs all facts through `after`.
    async fn ask<T: Send + 'static>(
        &self,
        after: Lsn,
        work: impl FnOnce(&mut Store) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, IndexError> {
        match self.status() {
            // It is fed whole entries.
            Status::Ready { applied } if applied.index() >= after.index() => {}
            Status::Ready { applied } | Status::Rebuilding { applied } => {
                return Err(IndexError::Rebuilding { applied });
            }
            Status::Opening => return Err(IndexError::Rebuilding { applied: Lsn::ZERO }),
            Status::Failed { why } => return Err(IndexError::Failed { why }),
        }
        let (reply, mut answer) = oneshot::channel();
        let epoch = self.send(work, move |result| drop(reply.send(result)))?;
        loop {
            let before = self.shared().progress();
            match tokio::time::timeout(self.shared().settings.patience, &mut answer).await {
                Ok(Ok(result)) => return result,
                Ok(Err(_)) => return Err(self.lost(epoch)),
                Err(_) if self.shared().progress() == before => return Err(self.abandon(epoch)),
                Err(_) => {}
            }
        }
    }

    /// The same for the owner, who waits and needs nothing to be there.
    fn call<T: Send + 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> Result<T, Problem> + Send + 'static,
    ) -> Result<T, IndexError> {
        let (reply, answer) = sync_channel(1);
        let epoch = self.send(work, move |result| drop(reply.send(result)))?;
        loop {
            let before = self.shared().progress();
            match answer.recv_timeout(self.shared().settings.patience) {
                Ok(result) => return result,
                Err(RecvTimeoutError::Disconnected) => return Err(self.lost(epoch)),
                Err(RecvTimeoutError::Timeout) if self.shared().progress() == before => {
                    return Err(self.abandon(epoch));
                }
                Err(RecvTimeoutError::Timeout) => {}
            }
        }
    }

    fn send<T: 'static>(
        &self,
        work: impl FnOnce(&mut Store) -> Result<T, Problem> + Send + 'static,
        reply: impl FnOnce(Result<T, IndexError>) + Send + 'static,
    ) -> Result<u64, IndexError> {
        let inner = self.shared().inner();
        if let Status::Failed { why } = &inner.status {
            return Err(IndexError::Failed { why: why.clone() });
        }
        let job = Job::Work(Box::new(move |worker: &mut Worker| reply(worker.run(work))));
        let sent = inner.jobs.as_ref().is_some_and(|jobs| jobs.send(job).is_ok());
        if sent { Ok(inner.epoch) } else { Err(stopped()) }
    }

    fn shared(&self) -> &Arc<Shared> {
        &self.owner.0
    }

    /// The worker was replaced, or the index is being stopped, before the answer was there.
    fn lost(&self, epoch: u64) -> IndexError {
        let inner = self.shared().inner();
        if inner.jobs.is_none() || inner.epoch == epoch {
            return stopped();
        }
        IndexError::Rebuilding { applied: Lsn::ZERO }
    }

    /// Leaves a worker that does not answer to itself and starts another with an empty database.
    fn abandon(&self, epoch: u64) -> IndexError {
        let why = "it did not answer in time".to_owned();
        if self.shared().inner().epoch == epoch {
            tracing::warn!(dir = %self.shared().dir.display(), "the index of old checkpoints does not answer: it is made again from the log");
            begin(self.shared(), worker::Start::Fresh);
        }
        IndexError::Inconsistent { why }
    }
}

fn stopped() -> IndexError {
    IndexError::Failed { why: "the server is stopping".to_owned() }
}

impl std::fmt::Debug for ColdIndex {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_tuple("ColdIndex").field(&self.status()).finish()
    }
}
