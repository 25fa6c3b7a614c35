//! How often it pays to commit.

use std::time::Duration;

/// The weight of a new cost in the mean, once there were enough.
const COST_WEIGHT: f64 = 1.0 / 8.0;
/// As how many times the mean so far a cost may count.
const COST_FACTOR_MAX: f64 = 4.0;
/// Means below this are not told apart, in seconds.
const COST_MIN: f64 = 0.001;

/// Chooses the interval between commits at which the time spent on commits and the time spent on doing work again after
/// failures are least together.
///
/// The formula is that of J. W. Young ("A first order approximation to the optimum checkpoint interval", Communications of
/// the ACM 17(9), 1974) in the form of J. T. Daly ("A higher order estimate of the optimum checkpoint interval for restart
/// dumps", Future Generation Computer Systems 22(3), 2006). With the cost of a commit *d* and the mean time between
/// failures *M*:
///
/// ```text
/// sqrt(2dM) * (1 + sqrt(d/2M)/3 + (d/2M)/9) - d     if d < 2M
/// M                                                 otherwise
/// ```
///
/// Both are learned while the worker runs:
///
/// * *d* is a moving mean of what [`Cadence::committed`](crate::Cadence::committed) is told. A cost counts as at most four
///   times the mean before it, so that one slow commit does not throw it over.
/// * *M* is the time observed, divided by the failures observed and half a failure more. The half is what is known of a
///   rate before anything was observed (the prior of H. Jeffreys, "An invariant form for the prior probability in
///   estimation problems", Proceedings of the Royal Society A 186, 1946). So a worker without history commits often at
///   first and ever more seldom as it goes without failing.
///
/// What it costs not to know them beforehand was simulated (`simulation.rs` beside this file), for means between failures of
/// 10 minutes to a week and commits of 2 s, 200 runs each. Counted were the time of commits, work done again and restarts.
/// That total was 1.4 to 2.1 % above the one of the best fixed interval over fifty failures, 3.4 to 3.8 % over twenty, and
/// 5 to 7 % over ten.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Adaptive {
    observed: Observed,
    mean_time_between_failures: Option<Duration>,
    at_least: Duration,
    at_most: Duration,
}

/// What workers have seen of their failures and their commits.
#[derive(Clone, Copy, Debug, Default, PartialEq, Eq)]
pub struct Observed {
    /// How often a worker failed.
    pub failures: u64,
    /// In how much time at work.
    pub over: Duration,
    /// What a commit costs, a smoothed mean. Zero: not known yet.
    pub cost: Duration,
    /// How many commits were measured for that.
    pub commits: u64,
}

impl Adaptive {
    /// Knows nothing yet, and keeps intervals between 100 ms and 1 h.
    pub fn new() -> Adaptive {
        Adaptive {
            observed: Observed::default(),
            mean_time_between_failures: None,
            at_least: Duration::from_millis(100),
            at_most: Duration::from_hours(1),
        }
    }

    /// Begins with what was observed before, as far as it was stored. The failure that made the worker begin again is
    /// counted by whoever resumes, who alone knows that there was one.
    #[must_use]
    pub fn observed(mut self, before: Observed) -> Adaptive {
        self.observed = before;
        self
    }

    /// Takes the mean time between failures for known instead of observing it.
    #[must_use]
    pub fn mean_time_between_failures(mut self, time: Duration) -> Adaptive {
        self.mean_time_between_failures = Some(time);
        self
    }

    /// Never commits at shorter intervals. Default 100 ms.
    #[must_use]
    pub fn at_least(mut self, interval: Duration) -> Adaptive {
        self.at_least = interval;
        self
    }

    /// Never commits at longer intervals, which bounds what can be lost; it outweighs `at_least`. Default 1 h.
    #[must_use]
    pub fn at_most(mut self, interval: Duration) -> Adaptive {
        self.at_most = interval;
        self
    }

    /// The interval that it chooses, from the end of one commit to the beginning of the next.
    pub fn interval(&self, observed: Observed) -> Duration {
        let cost = observed.cost.as_secs_f64();
        let between_failures = match self.mean_time_between_failures {
            Some(known) => known.as_secs_f64(),
            None => observed.over.as_secs_f64() / (observed.failures as f64 + 0.5),
        };
        // What is longer than a `Duration` can be is longer than every bound.
        let best = Duration::try_from_secs_f64(daly(cost, between_failures)).unwrap_or(Duration::MAX);
        best.max(self.at_least).min(self.at_most)
    }

    /// What was observed before it began.
    pub(super) fn beginning(&self) -> Observed {
        self.observed
    }
}

impl Default for Adaptive {
    fn default() -> Adaptive {
        Adaptive::new()
    }
}

impl Observed {
    pub(super) fn learn_cost(&mut self, cost: Duration) {
        let (before, cost) = (self.cost.as_secs_f64(), cost.as_secs_f64());
        self.commits = self.commits.saturating_add(1);
        let mean = if self.commits == 1 {
            cost
        } else {
            let cost = cost.min(before.max(COST_MIN) * COST_FACTOR_MAX);
            before + (cost - before) * COST_WEIGHT.max(1.0 / self.commits as f64)
        };
        self.cost = Duration::try_from_secs_f64(mean).unwrap_or(self.cost);
    }
}

/// Daly's interval, all in seconds. Never negative, and without a cost, or without time between failures, zero.
fn daly(cost: f64, between_failures: f64) -> f64 {
    if cost >= 2.0 * between_failures {
        return between_failures;
    }
    let ratio = cost / (2.0 * between_failures);
    (2.0 * cost * between_failures).sqrt() * (1.0 + ratio.sqrt() / 3.0 + ratio / 9.0) - cost
}
