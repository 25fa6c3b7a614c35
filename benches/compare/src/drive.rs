//! Closed loops: each caller is a thread that begins its next append when its last one is durable.

use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::thread;
use std::time::{Duration, Instant};

use crate::subject::Subject;

/// What was done in a turn.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    appends: u64,
    elapsed: Duration,
    /// Of the whole process: callers and log.
    cpu: Duration,
}

impl Done {
    /// Appends per second.
    pub(crate) fn rate(&self) -> f64 {
        self.appends as f64 / self.elapsed.as_secs_f64()
    }

    /// Microseconds of CPU for each append.
    pub(crate) fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.appends.max(1) as f64
    }
}

/// Runs the callers for a turn, and for a fifth of it before, which is not counted: what a log does once after it was
/// opened is no part of its pace.
pub(crate) fn closed_loops(subject: &dyn Subject, callers: usize, bytes: usize, turn: Duration) -> Done {
    let (appends, is_over) = (AtomicU64::new(0), AtomicBool::new(false));
    thread::scope(|scope| {
        for number in 0..callers {
            let (appends, is_over) = (&appends, &is_over);
            scope.spawn(move || {
                let mut append = subject.caller(number, bytes);
                while !is_over.load(Ordering::Relaxed) {
                    append();
                    appends.fetch_add(1, Ordering::Relaxed);
                }
            });
        }
        thread::sleep(turn / 5);
        let (before, begun, cpu) = (appends.load(Ordering::Relaxed), Instant::now(), cpu_time());
        thread::sleep(turn);
        let (after, elapsed, cpu) = (appends.load(Ordering::Relaxed), begun.elapsed(), cpu_time().saturating_sub(cpu));
        is_over.store(true, Ordering::Relaxed);
        Done { appends: after - before, elapsed, cpu }
    })
}

/// CPU time that this process has used, in steps of 10 ms.
fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name, which ends with the last parenthesis: user time is field 12, system time field 13, in 1/100 s.
    let fields = stat.rsplit(')').next().unwrap_or("").split_whitespace();
    Duration::from_millis(fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>() * 10)
}
