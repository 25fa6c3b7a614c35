//! The only door to time and to randomness.
//!
//! Safety never depends on either: time decides how soon a successor may start, and a random id only has to be new.

use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant, SystemTime, UNIX_EPOCH};

/// A point on the monotonic clock, counted from an arbitrary start. Meaningless in another process.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq, PartialOrd, Ord)]
pub struct Monotonic(Duration);

impl Monotonic {
    /// The time from `earlier` to this point; zero if `earlier` is not earlier.
    pub fn since(self, earlier: Monotonic) -> Duration {
        self.0.saturating_sub(earlier.0)
    }

    /// This point moved into the past, but not beyond the start.
    #[must_use]
    pub fn minus(self, duration: Duration) -> Monotonic {
        Monotonic(self.0.saturating_sub(duration))
    }

    /// This point moved into the future.
    #[must_use]
    pub fn plus(self, duration: Duration) -> Monotonic {
        Monotonic(self.0.saturating_add(duration))
    }
}

/// Where the time comes from. Cheap to clone; clones tell the same time.
#[derive(Clone, Debug)]
pub struct Clock(Source);

#[derive(Clone, Debug)]
enum Source {
    Real { start: Instant },
    Manual { elapsed_ms: Arc<AtomicU64> },
}

impl Clock {
    /// The machine's clock.
    #[allow(clippy::disallowed_methods)]
    pub fn real() -> Clock {
        Clock(Source::Real { start: Instant::now() })
    }

    /// A clock that stands still until [`Clock::advance`] moves it. For tests.
    pub fn manual() -> Clock {
        Clock(Source::Manual { elapsed_ms: Arc::default() })
    }

    /// Moves a manual clock; a real one goes its own way.
    pub fn advance(&self, duration: Duration) {
        if let Source::Manual { elapsed_ms } = &self.0 {
            elapsed_ms.fetch_add(duration.as_millis() as u64, Ordering::SeqCst);
        }
    }

    /// The monotonic time. It never steps back, and it stands still while the machine sleeps.
    pub fn now(&self) -> Monotonic {
        match &self.0 {
            Source::Real { start } => Monotonic(start.elapsed()),
            Source::Manual { elapsed_ms } => Monotonic(Duration::from_millis(elapsed_ms.load(Ordering::SeqCst))),
        }
    }

    /// Milliseconds since 1970 by the wall clock: for people, retention and `not_after`. It may step either way.
    #[allow(clippy::disallowed_methods)]
    pub fn wall_ms(&self) -> u64 {
        match &self.0 {
            Source::Real { .. } => {
                SystemTime::now().duration_since(UNIX_EPOCH).map_or(0, |since| since.as_millis() as u64)
            }
            Source::Manual { elapsed_ms } => 1_700_000_000_000 + elapsed_ms.load(Ordering::SeqCst),
        }
    }
}

/// A new random id (UUID version 4).
#[allow(clippy::disallowed_methods)]
pub fn random_id() -> uuid::Uuid {
    uuid::Uuid::new_v4()
}
