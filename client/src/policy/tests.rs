//! When a commit is due, and what the adaptive interval makes of what it is told. Time is Tokio's, paused.

use tokio::time::advance;

use super::*;

const fn secs(secs: u64) -> Duration {
    Duration::from_secs(secs)
}

fn observed(failures: u64, over: Duration, cost: Duration) -> Observed {
    Observed { failures, over, cost, commits: 100 }
}

#[tokio::test(start_paused = true)]
async fn a_commit_is_due_after_so_many_records() {
    let mut cadence = CommitPolicy::new().records(3).cadence();
    for _ in 0..2 {
        cadence.record(1);
        assert!(!cadence.is_due());
    }
    cadence.record(1);
    assert!(cadence.is_due());
    cadence.committed(secs(1));
    cadence.record(1);
    assert!(!cadence.is_due(), "it counts from the commit on");
}

#[tokio::test(start_paused = true)]
async fn a_commit_is_due_after_so_many_bytes() {
    let mut cadence = CommitPolicy::new().bytes(100).cadence();
    cadence.record(99);
    assert!(!cadence.is_due());
    cadence.record(u64::MAX);
    assert!(cadence.is_due());
    cadence.committed(secs(1));
    assert!(!cadence.is_due());
}

#[tokio::test(start_paused = true)]
async fn a_commit_is_due_when_its_time_has_come() {
    let mut cadence = CommitPolicy::new().every(secs(30)).cadence();
    advance(secs(10)).await;
    cadence.record(1);
    assert_eq!(cadence.due_at(), Some(Instant::now() + secs(20)), "time counts from the beginning");
    advance(secs(19)).await;
    assert!(!cadence.is_due());
    advance(secs(1)).await;
    assert!(cadence.is_due());
    cadence.committed(secs(1));
    cadence.record(1);
    assert_eq!(cadence.due_at(), Some(Instant::now() + secs(30)));
}

#[tokio::test(start_paused = true)]
async fn nothing_is_due_while_nothing_is_recorded() {
    let mut cadence = CommitPolicy::new().every(secs(1)).records(0).cadence();
    advance(secs(60)).await;
    assert!(!cadence.is_due());
    assert_eq!(cadence.due_at(), None);
    cadence.end_of_unit();
    assert!(cadence.is_due(), "a unit without records is progress too");
}

#[tokio::test(start_paused = true)]
async fn a_unit_end_makes_a_commit_due_only_if_the_policy_says_so() {
    let mut at_ends = CommitPolicy::new().records(10).unit_ends().cadence();
    at_ends.record(1);
    assert!(!at_ends.is_due());
    at_ends.end_of_unit();
    assert!(at_ends.is_due());
    at_ends.committed(secs(1));
    at_ends.record(1);
    assert!(!at_ends.is_due(), "the end was that of the unit before");

    let mut elsewhere = CommitPolicy::new().records(10).cadence();
    elsewhere.record(1);
    elsewhere.end_of_unit();
    assert!(!elsewhere.is_due());
}

#[tokio::test(start_paused = true)]
async fn whichever_bound_is_reached_first_counts() {
    let policy = CommitPolicy::new().records(2).bytes(100).every(secs(30)).unit_ends();
    let mut by_bytes = policy.cadence();
    by_bytes.record(100);
    assert!(by_bytes.is_due());
    let mut by_records = policy.cadence();
    by_records.record(1);
    by_records.record(1);
    assert!(by_records.is_due());
    let mut by_time = policy.adaptive(Adaptive::new().at_least(secs(60))).cadence();
    by_time.record(1);
    assert_eq!(by_time.due_at(), Some(Instant::now() + secs(30)), "the shorter of two intervals");
}

#[tokio::test(start_paused = true)]
async fn without_a_bound_every_record_is_due() {
    let mut cadence = CommitPolicy::new().cadence();
    assert!(!cadence.is_due());
    cadence.record(0);
    assert!(cadence.is_due());
}

#[tokio::test(start_paused = true)]
async fn an_interval_without_end_is_never_due() {
    let mut cadence = CommitPolicy::new().every(Duration::MAX).cadence();
    cadence.record(1);
    assert_eq!((cadence.due_at(), cadence.is_due()), (None, false));
}

#[tokio::test(start_paused = true)]
async fn a_failure_is_counted_and_what_was_pending_is_forgotten() {
    let mut cadence = CommitPolicy::new().records(1).cadence();
    cadence.record(1);
    advance(secs(5)).await;
    cadence.failed();
    assert!(!cadence.is_due());
    advance(secs(2)).await;
    cadence.record(1);
    cadence.committed(secs(1));
    advance(secs(1)).await;
    assert_eq!(cadence.observed(), Observed { failures: 1, over: secs(8), cost: secs(1), commits: 1 });
}

#[tokio::test(start_paused = true)]
async fn a_resumed_worker_goes_on_from_what_was_observed_before() {
    let before = observed(3, secs(3_600), secs(2));
    let mut cadence = CommitPolicy::new().adaptive(Adaptive::new().observed(before)).cadence();
    advance(secs(60)).await;
    assert_eq!(cadence.observed(), observed(3, secs(3_660), secs(2)));
    cadence.record(1);
    let expected = Adaptive::new().interval(before);
    assert_eq!(cadence.due_at(), Some(Instant::now() - secs(60) + expected));
}

#[tokio::test(start_paused = true)]
async fn a_worker_that_does_not_fail_commits_ever_more_seldom() {
    let mut cadence = CommitPolicy::new().adaptive(Adaptive::new()).cadence();
    let mut intervals = Vec::new();
    for _ in 0..200 {
        let begin = Instant::now();
        cadence.record(1);
        intervals.push(cadence.due_at().unwrap() - begin);
        advance(intervals[intervals.len() - 1]).await;
        assert!(cadence.is_due());
        advance(Duration::from_millis(50)).await;
        cadence.committed(Duration::from_millis(50));
    }
    assert_eq!(intervals[0], Duration::from_millis(100), "nothing is known yet");
    assert!(intervals.is_sorted(), "{intervals:?}");
    assert!(intervals[199] > secs(5), "{intervals:?}");
}

#[test]
fn the_interval_is_that_of_daly() {
    // From the formula, by hand: sqrt(2 * 8 * 100) = 40, 8 / 200 = 0.04: 40 * (1 + 0.2 / 3 + 0.04 / 9) - 8.
    let adaptive = Adaptive::new().mean_time_between_failures(secs(100));
    let interval = adaptive.interval(observed(0, secs(0), secs(8)));
    assert!((interval.as_secs_f64() - 34.844_444).abs() < 1e-3, "{interval:?}");
    // From 2M on it is M, and the formula is near M before.
    assert_eq!(adaptive.interval(observed(0, secs(0), secs(200))), secs(100));
    let below = adaptive.interval(observed(0, secs(0), secs(199))).as_secs_f64();
    assert!((80.0..=100.0).contains(&below), "{below}");
}

#[test]
fn the_failure_rate_is_learned_with_half_a_failure_in_hand() {
    let cost = secs(2);
    let learned = Adaptive::new().interval(observed(7, secs(7_500), cost));
    let known = Adaptive::new().mean_time_between_failures(secs(1_000)).interval(observed(0, secs(0), cost));
    assert_eq!(learned, known);
}

#[test]
fn the_bounds_hold_whatever_is_observed() {
    let adaptive = Adaptive::new().at_least(secs(1)).at_most(secs(600));
    let times = [Duration::ZERO, Duration::from_nanos(1), secs(1), secs(1 << 40), Duration::MAX];
    for failures in [0, 1, u64::MAX] {
        for (over, cost) in times.iter().flat_map(|over| times.map(|cost| (*over, cost))) {
            let interval = adaptive.interval(observed(failures, over, cost));
            assert!((secs(1)..=secs(600)).contains(&interval), "{failures} in {over:?} at {cost:?}: {interval:?}");
        }
    }
    assert_eq!(
        adaptive.interval(observed(0, secs(1_000), Duration::ZERO)),
        secs(1),
        "what costs nothing is done often"
    );
    assert_eq!(adaptive.interval(observed(0, secs(1 << 40), secs(1))), secs(600), "who never fails commits seldom");
    assert_eq!(Adaptive::new().at_most(secs(5)).at_least(secs(9)).interval(Observed::default()), secs(5));
}

#[test]
fn one_slow_commit_does_not_throw_the_mean_over() {
    let mut observed = Observed::default();
    let usual = Duration::from_millis(10);
    for _ in 0..50 {
        observed.learn_cost(usual);
    }
    assert_eq!(observed.cost, usual);
    observed.learn_cost(secs(100));
    assert!(observed.cost <= usual * 3 / 2, "{:?}", observed.cost);
    for _ in 0..20 {
        observed.learn_cost(usual);
    }
    assert!(observed.cost < usual * 11 / 10, "{:?}", observed.cost);
}

#[test]
fn a_first_commit_that_is_slow_is_soon_forgotten() {
    let mut observed = Observed::default();
    observed.learn_cost(secs(10));
    for _ in 0..60 {
        observed.learn_cost(Duration::from_millis(10));
    }
    assert!(observed.cost < Duration::from_millis(20), "{:?}", observed.cost);
}

#[test]
fn a_lasting_change_of_cost_is_followed() {
    let mut observed = Observed::default();
    for cost_ms in [0, 20, 500] {
        for _ in 0..60 {
            observed.learn_cost(Duration::from_millis(cost_ms));
        }
        let cost = observed.cost.as_secs_f64() * 1_000.0;
        assert!((cost - cost_ms as f64).abs() <= 0.05 * cost_ms as f64 + 0.001, "{cost} instead of {cost_ms}");
    }
}
