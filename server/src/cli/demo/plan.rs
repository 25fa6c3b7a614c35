//! The seed, and what follows from it: who is hit by what, and when.
//!
//! Moments are told in sequence numbers, not in seconds, so that a seed means the same on a slow machine and on a fast one.
//! Only the short delays inside a batch are times.

use std::time::Duration;

use rand::rngs::StdRng;
use rand::seq::SliceRandom as _;
use rand::{Rng as _, SeedableRng as _};

use super::flights::{Expected, ORIGINS};
use crate::cli::error::CliError;
use crate::cli::exit;

/// About how many batches each worker has to do, whatever the size of the input.
const BATCHES: u64 = 36;

/// Everything that is decided before anything runs.
#[derive(Clone, Debug, PartialEq, Eq)]
pub(super) struct Plan {
    pub(super) seed: u64,
    /// Killed with SIGKILL in the middle of a batch.
    pub(super) kill: Fault,
    /// Frozen with SIGSTOP in the middle of a batch, until another has its branch.
    pub(super) freeze: Fault,
    /// The server is killed when the frozen worker's successor has committed this sequence.
    pub(super) server: Fault,
    /// How long a batch takes, by branch.
    paces: [Duration; 3],
    batch_rows: [u64; 3],
}

/// One moment: a branch, a sequence, and how long after it was reached.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) struct Fault {
    pub(super) origin: &'static str,
    pub(super) sequence: u64,
    pub(super) delay: Duration,
}

impl Plan {
    pub(super) fn draw(seed: u64, expected: &Expected) -> Result<Plan, CliError> {
        let mut batch_rows = [0; 3];
        for ((rows, totals), origin) in batch_rows.iter_mut().zip(&expected.totals).zip(ORIGINS) {
            let flights = totals.flights();
            if flights < BATCHES {
                let problem = format!("the input has {flights} flights from {origin}; expected at least {BATCHES}");
                return Err(CliError::new(exit::INTEGRITY, problem));
            }
            *rows = flights.div_ceil(BATCHES);
        }
        let mut dice = StdRng::seed_from_u64(seed);
        let mut victims = ORIGINS;
        victims.shuffle(&mut dice);
        let delay = |dice: &mut StdRng| Duration::from_millis(dice.random_range(30..250));
        let kill = Fault { origin: victims[0], sequence: dice.random_range(3..=5), delay: delay(&mut dice) };
        let freeze = Fault { origin: victims[1], sequence: dice.random_range(7..=9), delay: delay(&mut dice) };
        let later = freeze.sequence + dice.random_range(3..=6);
        let server = Fault { origin: freeze.origin, sequence: later, delay: delay(&mut dice) };
        let paces = std::array::from_fn(|_| Duration::from_millis(dice.random_range(200..260)));
        Ok(Plan { seed, kill, freeze, server, paces, batch_rows })
    }

    /// How long the worker of a branch takes for a batch.
    pub(super) fn pace(&self, origin: &str) -> Duration {
        self.paces[place(origin)]
    }

    /// How many flights of a branch make a batch.
    pub(super) fn batch_rows(&self, origin: &str) -> u64 {
        self.batch_rows[place(origin)]
    }

    /// The batch in which the first worker of a branch is hit, if it is.
    pub(super) fn hit(&self, origin: &str) -> Option<u64> {
        [self.kill, self.freeze].iter().find(|fault| fault.origin == origin).map(|fault| fault.sequence)
    }
}

fn place(origin: &str) -> usize {
    ORIGINS.iter().position(|known| *known == origin).expect("only the three airports have workers")
}

#[cfg(test)]
mod tests {
    use super::super::flights::Totals;
    use super::*;

    fn expected(flights: u64) -> Expected {
        let mut totals = Totals::default();
        (0..flights).for_each(|_| totals.add("2013-01-01", "UA", Some(1)));
        Expected { totals: [totals.clone(), totals.clone(), totals] }
    }

    #[test]
    fn a_seed_always_gives_the_same_plan() {
        let input = expected(1000);
        assert_eq!(Plan::draw(7, &input).unwrap(), Plan::draw(7, &input).unwrap());
        let plans: Vec<Plan> = (0..20).map(|seed| Plan::draw(seed, &input).unwrap()).collect();
        assert!(plans.iter().any(|plan| plan.kill != plans[0].kill), "and another seed another one");
    }

    #[test]
    fn every_fault_falls_before_its_victim_has_finished() {
        for flights in [BATCHES, BATCHES + 1, 100, 1000, 100_000] {
            for seed in 0..50 {
                let plan = Plan::draw(seed, &expected(flights)).unwrap();
                let batches = flights.div_ceil(plan.batch_rows("EWR"));
                assert!(plan.kill.sequence < plan.freeze.sequence && plan.freeze.sequence < plan.server.sequence);
                assert!(plan.server.sequence + 2 < batches, "{plan:?} of {batches} batches");
                assert_ne!(plan.kill.origin, plan.freeze.origin);
            }
        }
    }

    #[test]
    fn too_small_an_input_is_refused() {
        assert!(Plan::draw(1, &expected(BATCHES - 1)).is_err());
    }
}
