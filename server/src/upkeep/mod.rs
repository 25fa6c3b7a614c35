//! What keeps the store small, fast to open, and checked: away from the sequencer's thread, from sealed segments alone.
//!
//! ```text
//! a segment was sealed -> load the hot state of the pass before, replay what was sealed since (the code of start-up)
//!                      -> save it              so that a start replays only what comes after
//!                      -> feed the index       with what that state still needs
//!                      -> compact              what that state does not need, in segments that it covers
//! ```
//!
//! A pass depends on nothing but files, and each of its steps is complete before the next, so it may be cut short anywhere.
//! Beside it the scrub reads all sealed segments at its own slow rate.

mod ballast;
mod board;
mod choose;
mod compaction;
mod damage;
mod feed;
pub mod hot_state;
mod pace;
mod pass;
mod replay;
mod scrub;

use std::path::PathBuf;
use std::sync::mpsc::{Receiver, RecvTimeoutError, Sender, channel};
use std::sync::{Arc, Mutex, PoisonError};
use std::thread::{self, JoinHandle};
use std::time::Duration;

use fencepost::{LogIndex, Lsn};
use tokio::runtime::Handle;

pub use board::UpkeepStatus;
pub use damage::{Damages, Found};
pub use pace::Stop;
pub use pass::{CompactionDone, Progress, Trouble};
pub use replay::{ReplayError, replay, take_in};

use crate::clock::Clock;
use crate::disk::Disk;
use crate::index::ColdIndex;
use crate::log::Log;
use board::Board;
use pass::Pass;

/// How long it takes until a pass that failed is tried again, or until it is seen that the index was found damaged.
const AGAIN_AFTER: Duration = Duration::from_secs(10);

/// How much background work may do.
#[derive(Clone, Debug)]
pub struct Settings {
    /// Length of a new segment of the log.
    pub segment_bytes: u64,
    /// Bytes read and written by compaction in a second, as long as it does not fall behind. 0: as many as it can.
    pub compaction_bytes_per_second: u64,
    /// Bytes that the scrub reads in a second. 0: it does not run.
    pub scrub_bytes_per_second: u64,
    /// How long the scrub rests between two passes.
    pub scrub_every: Duration,
}

/// What upkeep works on.
#[derive(Clone)]
pub struct Store {
    /// Where the files are.
    pub disk: Arc<dyn Disk>,
    /// The data directory.
    pub data_dir: PathBuf,
    /// The facts.
    pub log: Arc<Log>,
    /// Fed by upkeep alone.
    pub cold: ColdIndex,
    /// The only clock.
    pub clock: Clock,
}

/// Tells those who keep recent facts in memory that the index has them, all through this one.
pub type Fed = Box<dyn Fn(LogIndex) + Send>;

enum Order {
    /// There is a new sealed segment.
    Sealed,
    /// Somebody wants the store small now, and hears how it goes.
    Compact(Box<dyn FnMut(Progress) + Send>),
    Stop,
}

/// The background threads. Dropping it stops them.
pub struct Upkeep {
    orders: Sender<Order>,
    stop: Stop,
    board: Board,
    damages: Damages,
    threads: Mutex<Vec<JoinHandle<()>>>,
}

impl Upkeep {
    /// Starts the threads. Called in the Tokio runtime of the server.
    pub fn start(store: Store, settings: Settings, fed: Fed) -> std::io::Result<Upkeep> {
        let (orders, ordered) = channel();
        let (stop, board, damages) = (Stop::default(), Board::default(), Damages::new(store.cold.clone()));
        let mut seals = store.log.seals();
        let sealed = orders.clone();
        Handle::current().spawn(async move {
            while seals.changed().await.is_ok() {
                if sealed.send(Order::Sealed).is_err() {
                    return;
                }
            }
        });
        let (met, mut damage_met) = tokio::sync::mpsc::unbounded_channel();
        store.log.tell_damage(met);
        let found = damages.clone();
        Handle::current().spawn(async move {
            while let Some(damage) = damage_met.recv().await {
                found.add(damage);
            }
        });
        let mut threads = Vec::new();
        let scrub = {
            let (log, clock, settings) = (Arc::clone(&store.log), store.clock.clone(), settings.clone());
            let (stop, board, damages) = (stop.clone(), board.clone(), damages.clone());
            move || scrub::scrub(&log, &settings, &clock, &stop, &board, &damages)
        };
        threads.push(thread::Builder::new().name("scrub".to_owned()).spawn(scrub)?);
        let pass = Pass::new(store, settings, stop.clone(), board.clone(), damages.clone(), fed);
        threads.push(thread::Builder::new().name("upkeep".to_owned()).spawn(move || work(pass, &ordered))?);
        Ok(Upkeep { orders, stop, board, damages, threads: Mutex::new(threads) })
    }

    /// How far it is.
    pub fn status(&self) -> UpkeepStatus {
        self.board.status()
    }

    /// What was found damaged, by whomever.
    pub fn damages(&self) -> &Damages {
        &self.damages
    }

    /// Makes the store small now. `progress` hears how far it is, last of all the result; never, if the server stops.
    pub fn compact(&self, progress: impl FnMut(Progress) + Send + 'static) {
        // A thread that is gone tells nobody, which is what the caller expects of a server that stops.
        let _ = self.orders.send(Order::Compact(Box::new(progress)));
    }

    /// Ends the threads, in the middle of what they do.
    pub fn stop(&self) {
        self.stop.now();
        let _ = self.orders.send(Order::Stop);
        for thread in std::mem::take(&mut *self.threads.lock().unwrap_or_else(PoisonError::into_inner)) {
            if thread.join().is_err() {
                tracing::error!("a thread of the upkeep had panicked");
            }
        }
    }
}

impl Drop for Upkeep {
    fn drop(&mut self) {
        self.stop();
    }
}

/// Makes what is missing of the index, in the foreground, on a store that nobody else has open: the part of a pass that
/// does so. `at` hears which entry is read, twice from the first to the last. Answers how far the index goes. Called in a Tokio
/// runtime.
pub fn make_index(store: Store, settings: Settings, at: &mut dyn FnMut(LogIndex)) -> Result<Lsn, Trouble> {
    alone(store, settings).index(at)
}

/// Makes a store small that nobody else has open, in the foreground: a pass as after [`Upkeep::compact`]. Called in a Tokio
/// runtime.
pub fn compact_now(
    store: Store,
    settings: Settings,
    progress: impl FnMut(Progress) + Send + 'static,
) -> Result<CompactionDone, Trouble> {
    let mut progress: Box<dyn FnMut(Progress) + Send> = Box::new(progress);
    Ok(alone(store, settings).whole(Some(&mut progress))?.unwrap_or_default())
}

fn alone(store: Store, settings: Settings) -> Pass {
    let damages = Damages::new(store.cold.clone());
    Pass::new(store, settings, Stop::default(), Board::default(), damages, Box::new(|_| ()))
}

fn work(mut pass: Pass, orders: &Receiver<Order>) {
    // What was left undone by the process before.
    let mut next = Ok(Order::Sealed);
    loop {
        match next {
            Ok(Order::Stop) | Err(RecvTimeoutError::Disconnected) => return,
            Ok(Order::Sealed) | Err(RecvTimeoutError::Timeout) => pass.run(None),
            Ok(Order::Compact(mut progress)) => pass.run(Some(&mut progress)),
        }
        next = orders.recv_timeout(AGAIN_AFTER);
    }
}
