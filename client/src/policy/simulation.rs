//! Shows by simulation what [`Adaptive`] costs, compared with the best of all fixed intervals.
//!
//! Failures come at random times (exponential) while a worker works, commits or restarts. Everything that the same work
//! without failures and commits would not take is counted: the time of commits, work and commits that a failure undid, and
//! restarts. `Adaptive` knows nothing when it begins. After a failure a new process resumes with what the last commit had
//! stored, as a real one would. Every interval meets the same failures.
//!
//! `cargo test -p fencepost-client simulation -- --nocapture` prints the table.

use tokio::time::advance;

use super::*;

/// Mean cost of a commit, in seconds, slow ones included. Times between failures are from 300 to 300,000 of it.
const COST: f64 = 2.0;
/// Seconds from a failure to the first record after it.
const RESTART: f64 = 5.0;
/// Expected failures in a run: how long it has to learn.
const FAILURES: f64 = 50.0;
const RUNS: u64 = 80;

/// SplitMix64 (G. L. Steele, D. Lea, C. H. Flood, "Fast splittable pseudorandom number generators", OOPSLA 2014).
struct Random(u64);

impl Random {
    /// Evenly from (0, 1].
    fn unit(&mut self) -> f64 {
        self.0 = self.0.wrapping_add(0x9e37_79b9_7f4a_7c15);
        let mut z = self.0;
        z = (z ^ (z >> 30)).wrapping_mul(0xbf58_476d_1ce4_e5b9);
        z = (z ^ (z >> 27)).wrapping_mul(0x94d0_49bb_1331_11eb);
        (((z ^ (z >> 31)) >> 11) + 1) as f64 / (1_u64 << 53) as f64
    }

    fn exponential(&mut self, mean: f64) -> f64 {
        -mean * self.unit().ln()
    }

    /// From half to one and a half of the usual; one in a hundred takes ten times as long.
    fn cost(&mut self) -> f64 {
        let usual = COST / 1.09 * (0.5 + self.unit());
        if self.unit() < 0.01 { usual * 10.0 } else { usual }
    }
}

/// What decides when to commit.
trait Pace {
    /// Seconds of work until the next commit.
    fn interval(&mut self) -> f64;
    /// The work and the commit went well.
    async fn committed(&mut self, work: f64, cost: f64);
    /// After so many seconds since the last commit the worker failed, and has restarted.
    async fn failed(&mut self, after: f64);
}

struct Fixed(f64);

impl Pace for Fixed {
    fn interval(&mut self) -> f64 {
        self.0
    }
    async fn committed(&mut self, _: f64, _: f64) {}
    async fn failed(&mut self, _: f64) {}
}

struct Learning {
    cadence: Cadence,
    /// In the state of the last commit.
    stored: Observed,
}

impl Learning {
    fn resume(observed: Observed) -> Cadence {
        let adaptive = Adaptive::new().observed(observed).at_most(Duration::MAX);
        CommitPolicy::new().adaptive(adaptive).cadence()
    }
}

impl Pace for Learning {
    fn interval(&mut self) -> f64 {
        self.cadence.record(1);
        (self.cadence.due_at().unwrap() - Instant::now()).as_secs_f64()
    }

    async fn committed(&mut self, work: f64, cost: f64) {
        let cost = Duration::from_secs_f64(cost);
        advance(Duration::from_secs_f64(work) + cost).await;
        let after = self.cadence.observed();
        // The state was made before the commit took its time.
        self.stored = Observed { over: after.over - cost, ..after };
        self.cadence.committed(cost);
    }

    async fn failed(&mut self, after: f64) {
        advance(Duration::from_secs_f64(after)).await;
        self.cadence = Learning::resume(Observed { failures: self.stored.failures + 1, ..self.stored });
    }
}

/// Seconds that were not work that lasted.
#[derive(Clone, Copy, Default)]
struct Lost {
    commits: f64,
    again: f64,
    restarts: f64,
}

impl Lost {
    fn total(self) -> f64 {
        self.commits + self.again + self.restarts
    }
}

/// Does `work` seconds of work, committing at the end too.
async fn simulate(mut pace: impl Pace, work: f64, between_failures: f64, seed: u64) -> Lost {
    let (mut failures, mut costs) = (Random(seed), Random(!seed));
    let (mut lost, mut done, mut now) = (Lost::default(), 0.0, 0.0);
    let mut failure = failures.exponential(between_failures);
    while done < work {
        let (interval, cost) = (pace.interval().min(work - done), costs.cost());
        if now + interval + cost <= failure {
            pace.committed(interval, cost).await;
            now += interval + cost;
            done += interval;
            lost.commits += cost;
            continue;
        }
        pace.failed(failure - now).await;
        lost.again += failure - now;
        now = failure;
        // A restart that is cut short begins again.
        let mut up = now + RESTART;
        while failure < up {
            (now, failure) = (failure, failure + failures.exponential(between_failures));
            up = now + RESTART;
            lost.restarts += (failure - now).min(RESTART);
        }
        now = up;
    }
    lost
}

/// The same work under as many traces of failures as there are runs.
async fn runs<P: Pace>(pace: impl Fn() -> P, between_failures: f64) -> Vec<Lost> {
    let mut runs = Vec::new();
    for seed in 1..=RUNS {
        runs.push(simulate(pace(), FAILURES * between_failures, between_failures, seed * 7_919).await);
    }
    runs
}

fn total(runs: &[Lost]) -> f64 {
    runs.iter().map(|lost| lost.total()).sum()
}

/// How far `Adaptive` was above the best fixed interval, as a share of that, with the standard error of this share. Prints
/// a line of the table.
async fn excess(between_failures: f64) -> (f64, f64) {
    // Young's interval in the middle, four steps to twice as long.
    let grid = (-5..=5).map(|step| (2.0 * COST * between_failures).sqrt() * 2.0_f64.powf(f64::from(step) / 4.0));
    let mut fixed = Vec::new();
    for interval in grid {
        fixed.push((interval, runs(|| Fixed(interval), between_failures).await));
    }
    let best = (0..fixed.len()).min_by(|a, b| total(&fixed[*a].1).total_cmp(&total(&fixed[*b].1))).unwrap();
    assert!(0 < best && best + 1 < fixed.len(), "the best interval is inside of the grid");
    let (interval, best) = &fixed[best];

    let learning = || Learning { cadence: Learning::resume(Observed::default()), stored: Observed::default() };
    let adaptive = runs(learning, between_failures).await;
    let mean = total(best) / RUNS as f64;
    let excesses: Vec<f64> = adaptive.iter().zip(best).map(|(a, b)| (a.total() - b.total()) / mean).collect();
    let excess = excesses.iter().sum::<f64>() / RUNS as f64;
    let variance = excesses.iter().map(|each| (each - excess).powi(2)).sum::<f64>() / (RUNS - 1) as f64;
    let error = (variance / RUNS as f64).sqrt();

    let percent = |part: fn(&Lost) -> f64, runs: &[Lost]| {
        100.0 * runs.iter().map(part).sum::<f64>() / (RUNS as f64 * FAILURES * between_failures)
    };
    let parts = |runs: &[Lost]| {
        [percent(|lost| lost.commits, runs), percent(|lost| lost.again, runs), percent(|lost| lost.restarts, runs)]
            .map(|share| format!("{share:>6.2}"))
            .join(" ")
    };
    println!(
        "{:>6.0} min {interval:>6.0} s  {}    {}    {:>+5.2} +- {:.2} %",
        between_failures / 60.0,
        parts(best),
        parts(&adaptive),
        excess * 100.0,
        error * 100.0
    );
    (excess, error)
}

#[tokio::test(start_paused = true)]
async fn adaptive_is_within_five_percent_of_the_best_fixed_interval_over_three_decades() {
    println!("   mean time  best    best fixed, % of work  adaptive, % of work    adaptive above");
    println!("   between    fixed   ---------------------  ---------------------  best fixed");
    println!("   failures   intvl.  commit  again restart  commit  again restart");
    for minutes in [10.0, 100.0, 1_000.0, 10_000.0] {
        let (excess, error) = excess(minutes * 60.0).await;
        assert!(error < 0.01, "{minutes} min: {error:.4} is too much noise to judge by");
        assert!(excess + 2.0 * error < 0.05, "{minutes} min: {excess:.4} +- {error:.4}");
    }
}
