//! When to try again: exponential back-off with full jitter. The crate's only door to randomness.
//!
//! Full jitter spreads the retries of many workers over the whole interval, so that a server that comes back is not met by
//! all of them at once.

use std::time::Duration;

use backon::{BackoffBuilder as _, ExponentialBackoff, ExponentialBuilder};
use fencepost::{Action, Reason};
use tokio::time::Instant;

use crate::error::Error;

/// The first interval of an ordinary retry.
const FIRST: Duration = Duration::from_millis(20);
/// The longest interval of an ordinary retry.
const LONGEST: Duration = Duration::from_secs(2);

/// A series of waiting times, each drawn evenly from zero to a ceiling that doubles.
#[derive(Debug)]
pub(crate) struct Backoff {
    ceilings: ExponentialBackoff,
    jittered: ExponentialBackoff,
}

impl Backoff {
    /// For requests that somebody waits for.
    pub(crate) fn ordinary() -> Backoff {
        Backoff::between(FIRST, LONGEST)
    }

    /// A series whose ceilings go from `first` to `longest`.
    pub(crate) fn between(first: Duration, longest: Duration) -> Backoff {
        let plain =
            ExponentialBuilder::new().with_min_delay(first.min(longest)).with_max_delay(longest).without_max_times();
        Backoff { ceilings: plain.build(), jittered: plain.with_jitter().build() }
    }

    /// How long to wait now.
    pub(crate) fn draw(&mut self) -> Duration {
        // backon adds its jitter, drawn from zero to the ceiling, to the ceiling. Full jitter is the drawn part alone.
        let ceiling = self.ceilings.next().unwrap_or(LONGEST);
        self.jittered.next().unwrap_or(ceiling).saturating_sub(ceiling)
    }

    /// Waits before the next attempt, at least as long as the server asked for. Returns false, without waiting, if that
    /// would be after `deadline`.
    pub(crate) async fn wait(&mut self, least: Option<Duration>, deadline: Instant) -> bool {
        let wake = Instant::now() + least.unwrap_or_default() + self.draw();
        if wake >= deadline {
            return false;
        }
        tokio::time::sleep_until(wake).await;
        true
    }
}

/// Whether a request that has the same effect however often it arrives is worth sending again.
pub(crate) fn repeatable(error: &Error) -> bool {
    // The server has already waited for the lease for as long as the caller wanted.
    error.reason() != Some(Reason::LeaseHeld) && matches!(error.action(), Action::Retry | Action::ResolveThenRetry)
}

/// An identity that nobody else has.
#[expect(clippy::disallowed_methods, reason = "this is the door")]
pub(crate) fn unique_id() -> String {
    uuid::Uuid::now_v7().to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_draw_lies_between_zero_and_its_doubling_ceiling() {
        let mut backoff = Backoff::between(Duration::from_millis(10), Duration::from_millis(80));
        for ceiling_ms in [10, 20, 40, 80, 80, 80] {
            assert!(backoff.draw() <= Duration::from_millis(ceiling_ms));
        }
    }

    #[test]
    fn draws_are_spread_over_the_whole_interval() {
        let ceiling = Duration::from_millis(100);
        let mut backoff = Backoff::between(ceiling, ceiling);
        let draws: Vec<Duration> = (0..500).map(|_| backoff.draw()).collect();
        assert!(draws.iter().any(|draw| *draw < ceiling / 5), "full jitter draws from zero on");
        assert!(draws.iter().any(|draw| *draw > ceiling * 4 / 5));
    }

    #[test]
    fn ids_differ() {
        assert_ne!(unique_id(), unique_id());
    }
}
