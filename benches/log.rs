//! The log against a raw loop of the same shape: a queue, one writer thread, one write and one fdatasync for all that
//! is queued, on a file of zeros, without framing, CRCs, tables or rotation. Measured in turns in one run, so that what
//! the machine does in the meantime meets both; only the ratio means something.
//!
//! `cargo bench --bench log [-- seconds per turn]`

#![allow(clippy::disallowed_methods, clippy::print_stdout)] // It measures time and the disk itself, and prints.

use std::fs::File;
use std::os::unix::fs::FileExt;
use std::path::Path;
use std::sync::atomic::{AtomicBool, AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex};
use std::thread;
use std::time::{Duration, Instant};

use fencepost::LogIndex;
use fencepost_server::clock::{Clock, random_id};
use fencepost_server::disk::RealDisk;
use fencepost_server::log::{EntryBuilder, Log, LogConfig, Room};
use tokio::runtime::{Builder, Runtime};
use tokio::sync::oneshot;

const CALLERS: [usize; 4] = [1, 16, 64, 256];
const PAYLOADS: [usize; 2] = [256, 4096];
const TURNS: usize = 3;
const WRITE_BYTES_MAX: usize = 1 << 20;
const RAW_FILE_BYTES: u64 = 64 << 20;

/// Something that makes payloads durable.
trait Target: Send + Sync + 'static {
    fn submit(&self, payload: &[u8], done: oneshot::Sender<()>);
}

/// The log, with one fact in each entry.
struct FencepostLog {
    log: Log,
    next: Mutex<LogIndex>,
}

impl Target for FencepostLog {
    fn submit(&self, payload: &[u8], done: oneshot::Sender<()>) {
        let mut next = self.next.lock().expect("no caller panics");
        let mut builder = EntryBuilder::new(*next);
        builder.push(payload);
        let entry = builder.finish(LogIndex(next.0 - 1), 0);
        self.log.reserve(entry.len_bytes(), Room::Ordinary).expect("the disk has space");
        *next = next.next();
        self.log.append(entry, move |result| {
            result.expect("the disk works");
            let _ = done.send(());
        });
    }
}

/// The loop that the log is compared with.
struct Raw {
    queue: Mutex<Vec<(Vec<u8>, oneshot::Sender<()>)>>,
    work: Condvar,
    closed: AtomicBool,
}

impl Raw {
    fn write(&self, file: &File) {
        let (mut offset, mut gathered) = (0, Vec::new());
        let mut taken = Vec::new();
        loop {
            {
                let mut queue = self.queue.lock().expect("no caller panics");
                while queue.is_empty() {
                    if self.closed.load(Ordering::Relaxed) {
                        return;
                    }
                    queue = self.work.wait(queue).expect("no caller panics");
                }
                std::mem::swap(&mut *queue, &mut taken);
            }
            gathered.clear();
            for (payload, _) in &taken {
                gathered.extend_from_slice(payload);
            }
            assert!(gathered.len() <= WRITE_BYTES_MAX + (1 << 20), "the callers are bounded");
            if offset + gathered.len() as u64 > RAW_FILE_BYTES {
                offset = 0;
            }
            file.write_all_at(&gathered, offset).expect("the disk works");
            file.sync_data().expect("the disk works");
            offset += gathered.len() as u64;
            for (_, done) in taken.drain(..) {
                let _ = done.send(());
            }
        }
    }
}

impl Target for Raw {
    fn submit(&self, payload: &[u8], done: oneshot::Sender<()>) {
        let mut queue = self.queue.lock().expect("no caller panics");
        queue.push((payload.to_vec(), done));
        let was_empty = queue.len() == 1;
        drop(queue);
        if was_empty {
            self.work.notify_one();
        }
    }
}

/// Lets callers submit one payload after another, each after the answer to the one before. Answers payloads a second.
fn drive(runtime: &Runtime, target: &Arc<impl Target>, callers: usize, payload_bytes: usize, turn: Duration) -> f64 {
    let done = Arc::new(AtomicU64::new(0));
    let start = Instant::now();
    let caller = |number: usize| {
        let (target, done) = (Arc::clone(target), Arc::clone(&done));
        runtime.spawn(async move {
            let payload = vec![number as u8 | 1; payload_bytes];
            while start.elapsed() < turn {
                let (tell, told) = oneshot::channel();
                target.submit(&payload, tell);
                told.await.expect("every payload is answered for");
                done.fetch_add(1, Ordering::Relaxed);
            }
        })
    };
    let callers: Vec<_> = (0..callers).map(caller).collect();
    runtime.block_on(async {
        for caller in callers {
            caller.await.expect("no caller panics");
        }
    });
    done.load(Ordering::Relaxed) as f64 / start.elapsed().as_secs_f64()
}

fn main() {
    let turn = std::env::args().find_map(|argument| argument.parse().ok()).unwrap_or(1.0);
    let turn = Duration::from_secs_f64(turn);
    let dir = tempfile::tempdir().expect("a directory can be made");
    let runtime = Builder::new_multi_thread().worker_threads(1).build().expect("a runtime can be made");
    println!("{:>8} {:>8} {:>12} {:>12} {:>7}", "callers", "bytes", "log/s", "raw/s", "ratio");
    for payload_bytes in PAYLOADS {
        for callers in CALLERS {
            let (mut log_rate, mut raw_rate) = (0.0, 0.0);
            for number in 0..TURNS {
                let name = format!("{payload_bytes}-{callers}-{number}");
                log_rate += with_log(&dir.path().join(name), |log| drive(&runtime, log, callers, payload_bytes, turn));
                raw_rate += with_raw(dir.path(), |raw| drive(&runtime, raw, callers, payload_bytes, turn));
            }
            let (log_rate, raw_rate) = (log_rate / TURNS as f64, raw_rate / TURNS as f64);
            let ratio = log_rate / raw_rate;
            println!("{callers:>8} {payload_bytes:>8} {log_rate:>12.0} {raw_rate:>12.0} {ratio:>7.2}");
        }
    }
    compare_files(dir.path());
}

fn with_log(dir: &Path, measure: impl Fn(&Arc<FencepostLog>) -> f64) -> f64 {
    let config = LogConfig { write_bytes_max: WRITE_BYTES_MAX, entry_bytes_max: 60 << 20, ..LogConfig::default() };
    let log = Log::open(Arc::new(RealDisk), dir, config, Clock::real(), random_id()).expect("a log can be made");
    // Making the second segment is no part of a short turn: with a long entry in the first one, room for another is
    // there when the second is ready.
    let mut builder = EntryBuilder::new(LogIndex(1));
    builder.push(&vec![1; 8 << 20]);
    log.append(builder.finish(LogIndex::ZERO, 0), |_| ());
    log.reserve(59 << 20, Room::Ordinary).expect("the disk has space");
    let target = Arc::new(FencepostLog { log, next: Mutex::new(LogIndex(2)) });
    let rate = measure(&target);
    drop(target);
    std::fs::remove_dir_all(dir).expect("the directory can be removed");
    rate
}

fn with_raw(dir: &Path, measure: impl Fn(&Arc<Raw>) -> f64) -> f64 {
    let file = zeros(dir);
    let raw = Arc::new(Raw { queue: Mutex::default(), work: Condvar::new(), closed: AtomicBool::new(false) });
    let writer = thread::spawn({
        let raw = Arc::clone(&raw);
        move || raw.write(&file)
    });
    let rate = measure(&raw);
    raw.closed.store(true, Ordering::Relaxed);
    raw.work.notify_all();
    writer.join().expect("the writer does not panic");
    rate
}

fn zeros(dir: &Path) -> File {
    let file = File::options().read(true).write(true).create(true).truncate(true).open(dir.join("raw"));
    let file = file.expect("a file can be made");
    let chunk = vec![0; 1 << 20];
    for offset in (0..RAW_FILE_BYTES).step_by(chunk.len()) {
        file.write_all_at(&chunk, offset).expect("the disk has space");
    }
    file.sync_all().expect("the disk works");
    file
}

/// What the zeros in a prepared segment are good for: the time of a lone write and sync on them, and on a file that grows.
fn compare_files(dir: &Path) {
    let lone = |file: &File| {
        let start = Instant::now();
        for number in 0..2000_u64 {
            file.write_all_at(&[1; 512], number * 512).expect("the disk has space");
            file.sync_data().expect("the disk works");
        }
        start.elapsed().as_secs_f64() / 2000.0 * 1e6
    };
    let (mut filled_us, mut growing_us) = (0.0, 0.0);
    for _ in 0..TURNS {
        filled_us += lone(&zeros(dir)) / TURNS as f64;
        growing_us += lone(&File::create(dir.join("growing")).expect("a file can be made")) / TURNS as f64;
    }
    let ratio = filled_us / growing_us;
    println!(
        "a lone write and sync: {filled_us:.0} us on zeros, {growing_us:.0} us on a growing file, ratio {ratio:.2}"
    );
}
