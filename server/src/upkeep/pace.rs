//! How fast background work may read and write, so that it leaves the disk and the processor to commits.

use std::ops::ControlFlow;
use std::sync::{Arc, Condvar, Mutex, PoisonError};
use std::time::Duration;

use crate::clock::{Clock, Monotonic};

/// Tells background threads to end, and wakes those that rest.
#[derive(Clone, Debug, Default)]
pub struct Stop(Arc<(Mutex<bool>, Condvar)>);

impl Stop {
    /// From now on all work ends as soon as it can.
    pub fn now(&self) {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner) = true;
        self.0.1.notify_all();
    }

    /// Whether it is time to end.
    pub fn is_set(&self) -> bool {
        *self.0.0.lock().unwrap_or_else(PoisonError::into_inner)
    }

    /// Rests for so long, or until it is time to end. Breaks if it is.
    pub fn rest(&self, time: Duration) -> ControlFlow<()> {
        let stopped = self.0.0.lock().unwrap_or_else(PoisonError::into_inner);
        let waited = self.0.1.wait_timeout_while(stopped, time, |stopped| !*stopped);
        if *waited.unwrap_or_else(PoisonError::into_inner).0 {
            ControlFlow::Break(())
        } else {
            ControlFlow::Continue(())
        }
    }
}

/// Bytes per second that a piece of work may use.
#[derive(Debug)]
pub(super) struct Pace {
    stop: Stop,
    clock: Clock,
    /// Zero: as many as there are.
    bytes_per_second: u64,
    /// When what was used so far would have been due.
    due: Monotonic,
}

impl Pace {
    pub(super) fn new(stop: Stop, clock: Clock, bytes_per_second: u64) -> Pace {
        let due = clock.now();
        Pace { stop, clock, bytes_per_second, due }
    }

    /// Accounts for bytes that were just used, and rests if that was too fast. Breaks if it is time to end.
    pub(super) fn used(&mut self, bytes: u64) -> ControlFlow<()> {
        if self.bytes_per_second == 0 {
            return if self.stop.is_set() { ControlFlow::Break(()) } else { ControlFlow::Continue(()) };
        }
        let now = self.clock.now();
        // Time in which nothing was used is not saved up.
        let cost = Duration::from_secs_f64(bytes as f64 / self.bytes_per_second as f64);
        self.due = self.due.max(now).plus(cost);
        self.stop.rest(self.due.since(now))
    }
}
