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
    cpu: Cpu,
}

/// CPU time that was used.
#[derive(Clone, Copy, Debug)]
struct Cpu {
    /// By this process: callers and log.
    own: Duration,
    /// By the whole machine, this process included.
    all: Duration,
}

impl Done {
    /// Appends per second.
    pub(crate) fn rate(&self) -> f64 {
        self.appends as f64 / self.elapsed.as_secs_f64()
    }

    /// Microseconds of CPU for each append.
    pub(crate) fn cpu_us(&self) -> f64 {
        self.cpu.own.as_secs_f64() * 1e6 / self.appends.max(1) as f64
    }

    /// How many CPUs others used, on average. Counts the kernel's work for us too.
    pub(crate) fn others(&self) -> f64 {
        self.cpu.all.saturating_sub(self.cpu.own).as_secs_f64() / self.elapsed.as_secs_f64()
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
        let before = appends.load(Ordering::Relaxed);
        let done = idle(turn);
        let after = appends.load(Ordering::Relaxed);
        is_over.store(true, Ordering::Relaxed);
        Done { appends: after - before, ..done }
    })
}

/// Waits, and says what happened on the machine in the meantime.
pub(crate) fn idle(time: Duration) -> Done {
    let (begun, before) = (Instant::now(), Cpu::now());
    thread::sleep(time);
    let (elapsed, after) = (begun.elapsed(), Cpu::now());
    let cpu = Cpu { own: after.own.saturating_sub(before.own), all: after.all.saturating_sub(before.all) };
    Done { appends: 0, elapsed, cpu }
}

impl Cpu {
    /// Since the beginning, in steps of 10 ms.
    fn now() -> Cpu {
        // After the name, which ends with the last parenthesis: user time is field 12, system time field 13.
        let own = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
        let own = own.rsplit(')').next().map_or(Duration::ZERO, |fields| ticks(fields, 11, 2));
        // The first line is that of all CPUs: user, nice, system.
        let all = std::fs::read_to_string("/proc/stat").unwrap_or_default();
        Cpu { own, all: all.lines().next().map_or(Duration::ZERO, |line| ticks(line, 1, 3)) }
    }
}

/// The sum of some fields that count in 1/100 s.
fn ticks(fields: &str, skip: usize, take: usize) -> Duration {
    let fields = fields.split_whitespace().skip(skip).take(take);
    Duration::from_millis(fields.filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>() * 10)
}
