//! The thread that owns the database, and what becomes of it when the database fails.
//!
//! Databases are directories with numbers for names. The greatest is the one in use; a new one is always greater, so that
//! whatever still runs of an old one works on files that nobody reads.

use std::panic::{AssertUnwindSafe, catch_unwind};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::sync::mpsc::{Receiver, SyncSender, channel};

use super::store::{Problem, Store};
use super::{GivenUp, Horizon, IndexError, Shared, Status};
use crate::disk::{Disk, RealDisk};

/// What the thread is asked to do.
pub(super) enum Job {
    /// Look into the database or change it, and answer.
    Work(Box<dyn FnOnce(&mut Worker) + Send>),
    /// Close the database, and say so.
    Stop(SyncSender<()>),
}

/// What a worker begins with.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Start {
    /// The database that is there.
    Open,
    /// An empty one.
    Fresh,
}

pub(super) struct Worker {
    shared: Arc<Shared>,
    epoch: u64,
    store: Option<Store>,
}

/// Puts a new worker in charge.
pub(super) fn begin(shared: &Arc<Shared>, start: Start) {
    let (jobs_sender, jobs) = channel();
    let mut inner = shared.inner();
    inner.epoch += 1;
    inner.jobs = Some(jobs_sender);
    inner.status = match start {
        Start::Open => Status::Opening,
        Start::Fresh => Status::Rebuilding { applied: fencepost::Lsn::ZERO },
    };
    let worker = Worker { shared: Arc::clone(shared), epoch: inner.epoch, store: None };
    let spawned = std::thread::Builder::new().name("index".to_owned()).spawn(move || worker.work(start, &jobs));
    if let Err(error) = spawned {
        inner.status = Status::Failed { why: format!("its thread cannot start ({error}): restart the server") };
    }
}

impl Worker {
    fn work(mut self, start: Start, jobs: &Receiver<Job>) {
        match start {
            Start::Open => self.open(),
            Start::Fresh => self.create(),
        }
        for job in jobs {
            self.shared.go_on();
            match job {
                Job::Work(work) => work(&mut self),
                Job::Stop(done) => {
                    self.close();
                    // Whoever asked may not wait any more.
                    let _ = done.try_send(());
                    return;
                }
            }
        }
        self.close();
    }

    /// Does something with the database. If that panics or finds a problem, the database is given up.
    pub(super) fn run<T>(&mut self, work: impl FnOnce(&mut Store) -> Result<T, Problem>) -> Result<T, IndexError> {
        let Some(store) = &mut self.store else { return Err(self.without()) };
        let shared = Arc::clone(&self.shared);
        let done = guarded(|| work(store));
        shared.go_on();
        match done {
            Ok(result) => {
                let applied = store.applied();
                self.publish(|status| match status {
                    Status::Ready { .. } => Status::Ready { applied },
                    _ => Status::Rebuilding { applied },
                });
                Ok(result)
            }
            Err(problem) => {
                self.give_up(&problem);
                Err(IndexError::Inconsistent { why: problem.to_string() })
            }
        }
    }

    fn without(&self) -> IndexError {
        match &self.shared.inner().status {
            Status::Failed { why } => IndexError::Failed { why: why.clone() },
            _ => IndexError::Rebuilding { applied: fencepost::Lsn::ZERO },
        }
    }

    fn open(&mut self) {
        let shared = Arc::clone(&self.shared);
        let newest = RealDisk.directories(&shared.dir).ok().and_then(|names| names.into_iter().max());
        let Some(newest) = newest else { return self.create() };
        let dir = shared.dir.join(newest);
        // Threads of a database that was closed just now keep its file locked for a moment. One that is missing, or cannot be
        // read, is for sled to complain about.
        let _ = RealDisk.wait_unlocked(&dir.join("db"));
        let Horizon { after, through } = shared.needed;
        match guarded(|| Store::open(&dir, shared.log_id, through, &shared.settings, || shared.go_on())) {
            Ok(store) => {
                let applied = store.applied();
                self.store = Some(store);
                // It is fed whole entries.
                let is_whole = applied.index() >= after.index();
                self.publish(|_| if is_whole { Status::Ready { applied } } else { Status::Rebuilding { applied } });
            }
            Err(problem) => self.give_up(&problem),
        }
    }

    /// Drops the database, whatever state it is in, and begins an empty one.
    fn give_up(&mut self, problem: &Problem) {
        let (dir, why) = (self.shared.dir.display(), problem.to_string());
        let mut inner = self.shared.inner();
        if !inner.is_failure_told {
            tracing::warn!(%dir, why, "the index of old checkpoints cannot be trusted: it is made again from the log");
        }
        inner.given_up = Some(GivenUp { why, is_damaged: !matches!(problem, Problem::OtherFormat(_)) });
        drop(inner);
        if let Some(store) = self.store.take() {
            // It may hang, so nobody waits for it.
            let dropping = move || drop(catch_unwind(AssertUnwindSafe(|| drop(store))));
            drop(std::thread::Builder::new().name("index-drop".to_owned()).spawn(dropping));
        }
        self.create();
    }

    /// Begins an empty database under a new name and deletes what was there before.
    fn create(&mut self) {
        if !self.is_in_charge() {
            return;
        }
        let shared = Arc::clone(&self.shared);
        let created = fresh_dir(&shared.dir).and_then(|(dir, old)| {
            let store = guarded(|| Store::create(&dir, shared.log_id, &shared.settings)).map_err(|problem| {
                // The one that was there before may turn out to be good.
                let _ = RealDisk.remove_tree(&dir);
                problem.to_string()
            })?;
            for old in old {
                // What stays behind is not in the way, and is tried again next time.
                let _ = RealDisk.remove_tree(&old);
            }
            Ok(store)
        });
        match created {
            Ok(store) => {
                self.store = Some(store);
                self.shared.inner().is_failure_told = false;
                self.publish(|_| Status::Rebuilding { applied: fencepost::Lsn::ZERO });
            }
            Err(why) => {
                let dir = shared.dir.display();
                let why = format!("a new one cannot be made in {dir} ({why}), and is tried again: see to the disk");
                if !std::mem::replace(&mut self.shared.inner().is_failure_told, true) {
                    tracing::warn!("the index of old checkpoints cannot be used: {why}");
                }
                self.publish(|_| Status::Failed { why });
            }
        }
    }

    fn close(&mut self) {
        if let Some(store) = self.store.take() {
            drop(guarded(|| store.flush()));
            drop(catch_unwind(AssertUnwindSafe(|| drop(store))));
        }
    }

    fn is_in_charge(&self) -> bool {
        self.shared.inner().epoch == self.epoch
    }

    fn publish(&self, change: impl FnOnce(&Status) -> Status) {
        let mut inner = self.shared.inner();
        if inner.epoch == self.epoch {
            inner.status = change(&inner.status);
        }
    }
}

/// A directory that was never used, and those that were.
fn fresh_dir(dir: &Path) -> Result<(PathBuf, Vec<PathBuf>), String> {
    RealDisk.create_dir_all(dir).map_err(|error| error.to_string())?;
    let names = RealDisk.directories(dir).map_err(|error| error.to_string())?;
    let greatest = names.iter().filter_map(|name| name.parse::<u64>().ok()).max().unwrap_or(0);
    let fresh = dir.join(format!("{:010}", greatest + 1));
    Ok((fresh, names.into_iter().map(|name| dir.join(name)).collect()))
}

/// Runs what touches sled: a panic is a problem like any other.
fn guarded<T>(work: impl FnOnce() -> Result<T, Problem>) -> Result<T, Problem> {
    match catch_unwind(AssertUnwindSafe(work)) {
        Ok(result) => result,
        Err(panic) => {
            let said = panic.downcast_ref::<String>().map(String::as_str);
            let said = said.or_else(|| panic.downcast_ref::<&str>().copied()).unwrap_or("no message");
            Err(Problem::Doubt(format!("sled panicked: {said}")))
        }
    }
}
