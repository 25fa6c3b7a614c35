//! The thread of the sequencer: queue in, log and outbox out.

use std::sync::Arc;
use std::sync::mpsc::{Receiver, RecvTimeoutError};
use std::time::Duration;

use fencepost::Reason;
use tokio::sync::watch;

use super::core::{Core, shutting_down};
use super::outbox::{Outbox, log_failed};
use super::{BARRIER_BYTES_MAX, GRANT_BYTES_MAX, SequencerConfig, Work, lease_clock};
use crate::error::Refusal;
use crate::log::{Log, LogError, Room};

/// Entries on their way to the disk before the next is gathered: one being written, one ready to follow it.
const ENTRIES_IN_FLIGHT_MAX: u64 = 2;

/// A write that takes longer than this stops lease time.
const DISK_STALL: Duration = Duration::from_millis(250);

/// What the end of an entry takes.
const ENTRY_EXTRA_BYTES: usize = 1024;

/// Drives the core: queue in, log and outbox out.
pub(super) struct Driver {
    pub(super) core: Core,
    pub(super) outbox: Arc<Outbox>,
    pub(super) log: Arc<Log>,
    pub(super) config: SequencerConfig,
    pub(super) requests: Receiver<Work>,
    pub(super) keepalives: Receiver<Work>,
    pub(super) failed: watch::Sender<Option<Refusal>>,
}

impl Driver {
    pub(super) fn run(mut self) {
        let mut stopping = false;
        while !stopping {
            // While the log has enough to do, what comes in is left in the queue: it is decided together, and nobody is
            // woken for each.
            self.outbox.wait_below(ENTRIES_IN_FLIGHT_MAX);
            self.hand_over();
            let Some(drained) = self.drain() else { break };
            self.core.look_at_clock(self.log.stalled_for() > DISK_STALL);
            // Whoever said in time that it is there must not lose its branch to somebody else in the queue.
            while let Ok(keepalive) = self.keepalives.try_recv() {
                self.decide(keepalive, 0);
            }
            // What comes too late must not find the barrier still open.
            while self.core.is_overdue() {
                self.make_room(BARRIER_BYTES_MAX, Room::Ordinary);
                if !self.core.give_up_overdue() {
                    break;
                }
            }
            for (work, bytes) in drained {
                stopping |= matches!(work, Work::Stop);
                self.decide(work, bytes);
            }
            for waiter in self.core.due_waiters() {
                self.decide(Work::Resume(Box::new(waiter)), GRANT_BYTES_MAX);
            }
            self.hand_over();
        }
        self.finish();
    }

    /// What is in the queue, up to a bound, each with the room that it may need; waits if there is nothing. `None`: nobody
    /// can ever ask again.
    fn drain(&mut self) -> Option<Vec<(Work, usize)>> {
        let first = if self.core.needs_ticks() {
            match self.requests.recv_timeout(lease_clock::TICK) {
                Ok(work) => Some(work),
                Err(RecvTimeoutError::Timeout) => None,
                Err(RecvTimeoutError::Disconnected) => return None,
            }
        } else {
            Some(self.requests.recv().ok()?)
        };
        let (mut drained, mut bytes, mut next) = (Vec::new(), 0, first);
        while let Some(work) = next {
            let room = work.bytes();
            bytes += room;
            drained.push((work, room));
            next = if bytes < self.config.batch_bytes_max { self.requests.try_recv().ok() } else { None };
        }
        Some(drained)
    }

    /// Decides one request, with room for `bytes` in the entry and in the log made sure of before.
    fn decide(&mut self, work: Work, bytes: usize) {
        if bytes > 0 {
            // A full disk is no reason to sit on a branch that nobody works on.
            let room = if matches!(work, Work::Release { .. }) { Room::Essential } else { Room::Ordinary };
            self.make_room(bytes, room);
        }
        self.core.decide(work);
    }

    /// Makes sure of room for `bytes` in the entry and in the log, or tells the core that there is none.
    fn make_room(&mut self, bytes: usize, room: Room) {
        let is_full = self.core.is_full(self.config.batch_bytes_max);
        if is_full || self.core.batch_bytes() + bytes + ENTRY_EXTRA_BYTES > self.config.entry_bytes_max {
            self.outbox.wait_below(ENTRIES_IN_FLIGHT_MAX);
            self.hand_over();
        }
        let reserved = self.log.reserve(self.core.batch_bytes() + bytes + ENTRY_EXTRA_BYTES, room);
        self.core.set_no_space(reserved.err().map(|error| no_room(&error)));
    }

    /// Gives the batch to the log if the log can take it, and answers that rest on no new fact to the outbox.
    fn hand_over(&mut self) {
        if let Some((index, answers)) = self.core.take_answers() {
            self.outbox.put(index, answers);
        }
        if self.outbox.in_flight() >= ENTRIES_IN_FLIGHT_MAX {
            return;
        }
        let Some((entry, index, answers)) = self.core.take_batch() else { return };
        self.outbox.put(index, answers);
        if self.outbox.failure().is_some() {
            return;
        }
        let (outbox, failed) = (Arc::clone(&self.outbox), self.failed.clone());
        self.log.append(entry, move |result| {
            outbox.advance(result.map_err(|error| error.to_string()));
            if let Some(failure) = outbox.failure() {
                failed.send_replace(Some(failure));
            }
        });
    }

    /// Decides nothing more; writes and answers what was decided, and refuses the rest.
    fn finish(mut self) {
        self.core.hurry();
        self.outbox.wait_below(1);
        self.hand_over();
        self.outbox.wait_below(1);
        self.hand_over();
        self.requests.try_iter().chain(self.keepalives.try_iter()).for_each(refuse);
    }
}

/// Tells the caller of a request that came too late.
pub(super) fn refuse(work: Work) {
    match work {
        Work::Commits(submissions) => submissions.into_iter().for_each(|it| it.reply.send(Err(shutting_down()))),
        Work::Resume(waiter) => drop(waiter.reply.send(Err(shutting_down()))),
        Work::KeepAlive { reply, .. } => drop(reply.send(Err(shutting_down()))),
        Work::Release { reply, .. } => drop(reply.send(Err(shutting_down()))),
        Work::Decide { decide, .. } => decide(None),
        Work::Read(_) | Work::Forget(..) | Work::Nudge | Work::Hurry | Work::Stop => {}
    }
}

/// What a caller is told when the log cannot take what it asks for.
fn no_room(error: &LogError) -> Refusal {
    match error {
        LogError::NoSpace { .. } => {
            let message = format!("{error}; nothing was applied: make room on the disk, the server goes on by itself");
            Refusal::new(Reason::NoSpace, message).with("retry_after_ms", 1000)
        }
        LogError::Failed(_) => log_failed(&error.to_string()),
        LogError::Closed => shutting_down(),
        LogError::TooLarge { .. } => Refusal::new(Reason::TooLarge, error.to_string()).with("field", "request"),
    }
}
