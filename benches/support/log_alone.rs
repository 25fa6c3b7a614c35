//! The log with no network before it: threads that each append one fact and wait until it is durable.

use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Mutex, mpsc};
use std::time::Instant;

use fencepost::LogIndex;
use fencepost_server::clock::{Clock, random_id};
use fencepost_server::disk::RealDisk;
use fencepost_server::log::{EntryBuilder, Log, LogConfig, Room};
use tempfile::TempDir;

use super::load::{Done, Load, Meter, cpu_time};

pub(crate) struct LogAlone {
    log: Arc<Log>,
    /// Appends follow each other without gaps, so that one caller at a time takes the next index.
    next: Arc<Mutex<LogIndex>>,
    _dir: TempDir,
}

impl LogAlone {
    pub(crate) fn open() -> LogAlone {
        let dir = tempfile::tempdir().expect("a temporary directory");
        let log = Log::open(Arc::new(RealDisk), dir.path(), LogConfig::default(), Clock::real(), random_id());
        let log = Arc::new(log.expect("a new log"));
        LogAlone { next: Arc::new(Mutex::new(log.last_index())), log, _dir: dir }
    }

    pub(crate) fn run(&self, load: Load, callers: usize, bytes: usize) -> Done {
        let (meter, operations) = (Meter::new(load), AtomicU64::new(0));
        let payload = vec![7; bytes];
        let (begun, cpu) = (Instant::now(), cpu_time());
        std::thread::scope(|scope| {
            for _ in 0..callers {
                scope.spawn(|| {
                    let (done, durable) = mpsc::channel();
                    while meter.begin() {
                        self.append(&payload, done.clone());
                        durable.recv().expect("the log answers every append").expect("the entry is durable");
                        operations.fetch_add(1, Ordering::Relaxed);
                    }
                });
            }
            if let Load::Time(time) = load {
                std::thread::sleep(time);
                meter.stop();
            }
        });
        let cpu = cpu_time().saturating_sub(cpu);
        Done { operations: operations.into_inner(), elapsed: begun.elapsed(), cpu }
    }

    fn append(&self, payload: &[u8], done: mpsc::Sender<Result<LogIndex, fencepost_server::log::LogError>>) {
        let mut last = self.next.lock().expect("no caller panics");
        let based_on = *last;
        *last = based_on.next();
        let mut entry = EntryBuilder::new(*last);
        entry.push(payload);
        self.log.reserve(EntryBuilder::len_bytes_max(1, payload.len()), Room::Ordinary).expect("room in the log");
        self.log.append(entry.finish(based_on, 0), move |result| drop(done.send(result)));
    }
}
