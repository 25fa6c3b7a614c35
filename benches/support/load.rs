//! Closed loops: each caller begins its next operation when its last one was answered.

use std::sync::Arc;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::time::{Duration, Instant};

/// How much is done.
#[derive(Clone, Copy, Debug)]
pub(crate) enum Load {
    /// So many operations, by all callers together.
    Operations(u64),
    /// As many as fit into this time.
    Time(Duration),
}

/// What was done.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Done {
    pub operations: u64,
    pub elapsed: Duration,
    /// Of the whole process: callers, servers, log.
    pub(crate) cpu: Duration,
}

impl Done {
    /// Operations per second.
    pub(crate) fn rate(&self) -> f64 {
        self.operations as f64 / self.elapsed.as_secs_f64()
    }

    /// Microseconds of CPU for each operation. Less at the mercy of a busy machine than the rate.
    pub(crate) fn cpu_us(&self) -> f64 {
        self.cpu.as_secs_f64() * 1e6 / self.operations.max(1) as f64
    }
}

/// Tells callers whether to go on.
#[derive(Debug)]
pub(crate) struct Meter {
    begun: AtomicU64,
    limit: u64,
    is_over: AtomicBool,
}

impl Meter {
    pub(crate) fn new(load: Load) -> Arc<Meter> {
        let limit = match load {
            Load::Operations(operations) => operations,
            Load::Time(_) => u64::MAX,
        };
        Arc::new(Meter { begun: AtomicU64::new(0), limit, is_over: AtomicBool::new(false) })
    }

    /// Whether another operation is to be begun.
    pub(crate) fn begin(&self) -> bool {
        !self.is_over.load(Ordering::Relaxed) && self.begun.fetch_add(1, Ordering::Relaxed) < self.limit
    }

    pub(crate) fn stop(&self) {
        self.is_over.store(true, Ordering::Relaxed);
    }
}

/// Runs one loop for each caller.
pub(crate) async fn closed_loop<C, F, Fut>(load: Load, callers: Vec<C>, operation: F) -> Done
where
    C: Clone + Send + 'static,
    F: Fn(C) -> Fut + Clone + Send + 'static,
    Fut: Future<Output = ()> + Send,
{
    let meter = Meter::new(load);
    let (begun, cpu) = (Instant::now(), cpu_time());
    let loops: Vec<_> = callers
        .into_iter()
        .map(|caller| {
            let (meter, operation) = (Arc::clone(&meter), operation.clone());
            tokio::spawn(async move {
                let mut operations = 0;
                while meter.begin() {
                    operation(caller.clone()).await;
                    operations += 1;
                }
                operations
            })
        })
        .collect();
    if let Load::Time(time) = load {
        tokio::time::sleep(time).await;
        meter.stop();
    }
    let mut operations = 0;
    for done in loops {
        operations += done.await.expect("a caller does not panic");
    }
    Done { operations, elapsed: begun.elapsed(), cpu: cpu_time().saturating_sub(cpu) }
}

/// CPU time that this process has used, in steps of 10 ms.
pub(crate) fn cpu_time() -> Duration {
    let stat = std::fs::read_to_string("/proc/self/stat").unwrap_or_default();
    // After the name, which ends with the last parenthesis: user time is field 12, system time field 13, in 1/100 s.
    let fields = stat.rsplit(')').next().unwrap_or("").split_whitespace();
    Duration::from_millis(fields.skip(11).take(2).filter_map(|ticks| ticks.parse::<u64>().ok()).sum::<u64>() * 10)
}
