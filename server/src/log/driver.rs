//! The two threads of the log, and the board that callers share with them.
//!
//! The writer thread takes what is queued, writes it as one group, and answers. While it waits for the disk the next
//! group gathers: group commit without a timer. The preparer thread keeps the next segment ready.
//!
//! Where each entry goes is decided when it is queued, by the same rule as the writer's, so that [`Board::reserve`]
//! can tell in advance whether an entry will find its place.

use std::collections::VecDeque;
use std::path::{Path, PathBuf};
use std::sync::atomic::{AtomicU64, Ordering};
use std::sync::{Arc, Condvar, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use fencepost::LogIndex;

use super::LogConfig;
use super::catalog::lock;
use super::entry::Entry;
use super::error::{Failure, LogError};
use super::prepare::{self, Prepared};
use super::segment::{self, SEGMENT_HEADER_BYTES};
use super::writer::Writer;
use crate::clock::{Clock, Monotonic};
use crate::disk::Disk;

/// What is kept of a segment for essential entries while the next one cannot be had. Of a small segment, a sixteenth.
const RESERVE_BYTES: u64 = 256 << 10;

/// How long a failed preparation rests before it is tried again.
const PREPARE_AGAIN_AFTER: Duration = Duration::from_secs(1);

/// What is called when an entry's fate is known.
pub type Done = Box<dyn FnOnce(Result<LogIndex, LogError>) + Send>;

/// What an entry may take up.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub enum Room {
    /// Not the last of it: that is kept for what helps to make room.
    Ordinary,
    /// Whatever is left.
    Essential,
}

/// What callers and the threads share.
pub(super) struct Board {
    state: Mutex<State>,
    /// The writer waits here for entries and for a prepared segment.
    work: Condvar,
    /// The preparer waits here for orders, and callers for room.
    room: Condvar,
    clock: Clock,
    segment_bytes: u64,
    entry_bytes_max: u64,
    write_bytes_max: usize,
    /// When the write in flight began, in nanoseconds of the clock plus one; zero if there is none.
    in_flight_since: AtomicU64,
}

struct State {
    queue: VecDeque<Queued>,
    next_index: LogIndex,
    plan: Plan,
    stage: Stage,
    /// Why the last try to have the next segment failed; nothing once one succeeded.
    no_space: Option<String>,
    /// What room there is belongs to others.
    is_held: bool,
    active_segment: u64,
    closed: bool,
    /// The writer's thread has ended.
    ended: bool,
    failure: Option<Arc<Failure>>,
}

/// An entry on its way, with the segment that it will be in.
struct Queued {
    entry: Entry,
    segment: u64,
    waiter: Waiter,
}

/// Where the next entry will go.
#[derive(Clone, Copy, Debug)]
struct Plan {
    segment: u64,
    file_bytes: u64,
    end: u64,
    entries: usize,
}

impl Plan {
    fn with(mut self, entry_bytes: u64, segment_bytes: u64) -> Plan {
        if !segment::fits(self.file_bytes, self.end, self.entries, entry_bytes) {
            let segment = self.segment + 1;
            self = Plan { segment, file_bytes: segment_bytes, end: SEGMENT_HEADER_BYTES, entries: 0 };
        }
        Plan { end: self.end + entry_bytes, entries: self.entries + 1, ..self }
    }
}

/// How far the segment after the active one is.
enum Stage {
    Wanted,
    Working,
    Ready(Prepared),
    Failed { at: Monotonic, reason: String },
}

/// Somebody who waits for an entry. Answers in any case, if only when it is dropped.
struct Waiter {
    index: LogIndex,
    done: Option<Done>,
}

impl Waiter {
    fn answer(mut self, result: Result<(), LogError>) {
        if let Some(done) = self.done.take() {
            done(result.map(|()| self.index));
        }
    }
}

impl Drop for Waiter {
    fn drop(&mut self) {
        if let Some(done) = self.done.take() {
            done(Err(stopped(self.index)));
        }
    }
}

fn stopped(index: LogIndex) -> LogError {
    let reason = format!("the writer ended before it answered for entry {index}");
    LogError::Failed(Arc::new(Failure { action: "write", file: PathBuf::new(), offset: 0, reason }))
}

impl Board {
    pub(super) fn new(config: &LogConfig, clock: Clock, writer: &Writer) -> Board {
        let (segment, file_bytes, end, entries) = writer.position();
        let state = State {
            queue: VecDeque::new(),
            next_index: writer.last_index().next(),
            plan: Plan { segment, file_bytes, end, entries },
            stage: Stage::Wanted,
            no_space: None,
            is_held: false,
            active_segment: segment,
            closed: false,
            ended: false,
            failure: None,
        };
        Board {
            state: Mutex::new(state),
            work: Condvar::new(),
            room: Condvar::new(),
            clock,
            segment_bytes: config.segment_bytes,
            entry_bytes_max: config.entry_bytes_max,
            write_bytes_max: config.write_bytes_max,
            in_flight_since: AtomicU64::new(0),
        }
    }

    /// Queues an entry. `done` is called on the writer's thread, or on this one if the answer is known at once.
    pub(super) fn append(&self, entry: Entry, done: Done) {
        let waiter = Waiter { index: entry.index(), done: Some(done) };
        let entry_bytes = entry.len_bytes() as u64;
        let mut state = self.state();
        let refusal = state.refusal(entry_bytes, self.entry_bytes_max);
        if let Some(refusal) = refusal {
            drop(state);
            return waiter.answer(Err(refusal));
        }
        let due = state.next_index;
        if entry.index() != due {
            drop(state);
            panic!("entry {} was appended, and {due} is due: entries are contiguous", entry.index());
        }
        state.next_index = due.next();
        state.plan = state.plan.with(entry_bytes, self.segment_bytes);
        let segment = state.plan.segment;
        state.queue.push_back(Queued { entry, segment, waiter });
        let was_empty = state.queue.len() == 1;
        drop(state);
        if was_empty {
            self.work.notify_one();
        }
    }

    /// Waits until it is known whether an entry of this length will find room.
    pub(super) fn reserve(&self, entry_bytes: u64, room: Room) -> Result<(), LogError> {
        let kept_bytes = match room {
            Room::Ordinary => RESERVE_BYTES.min(self.segment_bytes / 16),
            Room::Essential => 0,
        };
        let mut state = self.state();
        loop {
            if let Some(refusal) = state.refusal(entry_bytes, self.entry_bytes_max) {
                return Err(refusal);
            }
            let segment = state.plan.with(entry_bytes + kept_bytes, self.segment_bytes).segment;
            let ready = u64::from(matches!(state.stage, Stage::Ready(_)));
            if segment <= state.active_segment + ready {
                return Ok(());
            }
            self.prepare_again(&mut state);
            if let Stage::Failed { reason, .. } = &state.stage {
                return Err(LogError::NoSpace { wanted_bytes: entry_bytes, reason: reason.clone() });
            }
            state = wait(&self.room, state);
        }
    }

    /// The first failure of the log, if it had one.
    pub(super) fn failure(&self) -> Option<Arc<Failure>> {
        self.state().failure.clone()
    }

    /// Why the next segment cannot be prepared, if the last try failed. Being asked is a reason to try again.
    pub(super) fn no_space(&self) -> Option<String> {
        let mut state = self.state();
        self.prepare_again(&mut state);
        state.no_space.clone()
    }

    /// Has the next segment prepared again, if that failed some time ago.
    fn prepare_again(&self, state: &mut State) {
        if let Stage::Failed { at, .. } = &state.stage
            && !state.is_held
            && self.clock.now().since(*at) >= PREPARE_AGAIN_AFTER
        {
            state.stage = Stage::Wanted;
            self.room.notify_all();
        }
    }

    /// If there was no room for the next segment, none is prepared as long as the result lives.
    pub(super) fn hold(&self) -> Option<Held<'_>> {
        let mut state = self.state();
        while state.no_space.is_some() && !state.ended {
            if matches!(state.stage, Stage::Failed { .. }) {
                state.is_held = true;
                return Some(Held(self));
            }
            state = wait(&self.room, state);
        }
        None
    }

    /// How long the write in flight has been waiting for the disk.
    pub(super) fn stalled_for(&self) -> Duration {
        let since = self.in_flight_since.load(Ordering::Acquire);
        if since == 0 { Duration::ZERO } else { Duration::from_nanos(self.now_nanos().saturating_sub(since)) }
    }

    /// Takes nothing more; the threads end when what is queued is done.
    pub(super) fn close(&self) {
        self.state().closed = true;
        self.work.notify_all();
        self.room.notify_all();
    }

    /// There will be no writer.
    pub(super) fn abandon(&self) {
        self.state().ended = true;
        self.close();
    }

    fn now_nanos(&self) -> u64 {
        self.clock.now().since(Monotonic::default()).as_nanos() as u64 + 1
    }

    fn state(&self) -> MutexGuard<'_, State> {
        lock(&self.state)
    }

    /// Ends the log: everybody who waits, and who comes later, gets this failure.
    fn fail(&self, failure: Failure) -> Arc<Failure> {
        let failure = Arc::new(failure);
        let mut state = self.state();
        state.failure.get_or_insert_with(|| Arc::clone(&failure));
        let queue = std::mem::take(&mut state.queue);
        drop(state);
        self.room.notify_all();
        self.work.notify_all();
        for queued in queue {
            queued.waiter.answer(Err(LogError::Failed(Arc::clone(&failure))));
        }
        failure
    }

    /// What the writer's thread does.
    pub(super) fn write(&self, mut writer: Writer) {
        let _fence = Fence(self);
        let (mut group, mut waiters) = (Vec::new(), Vec::new());
        while let Some(segment) = self.take_group(&mut group, &mut waiters) {
            self.in_flight_since.store(self.now_nanos(), Ordering::Release);
            let outcome = self.write_group(&mut writer, segment, &mut group);
            self.in_flight_since.store(0, Ordering::Release);
            group.clear();
            let answer = match outcome {
                Ok(()) => Ok(()),
                Err(failure) => {
                    tracing::error!("{failure}");
                    Err(LogError::Failed(self.fail(failure)))
                }
            };
            for waiter in waiters.drain(..) {
                waiter.answer(answer.clone());
            }
            if answer.is_err() {
                return;
            }
        }
    }

    /// Waits for entries and takes those that go into one write. None if the log is closed and all is done.
    fn take_group(&self, group: &mut Vec<Entry>, waiters: &mut Vec<Waiter>) -> Option<u64> {
        let mut state = self.state();
        while state.queue.is_empty() {
            if state.closed {
                return None;
            }
            state = wait(&self.work, state);
        }
        let segment = state.queue.front().map(|first| first.segment)?;
        let mut bytes = 0;
        while bytes < self.write_bytes_max
            && let Some(queued) = state.queue.pop_front_if(|next| next.segment == segment)
        {
            bytes += queued.entry.len_bytes();
            group.push(queued.entry);
            waiters.push(queued.waiter);
        }
        Some(segment)
    }

    fn write_group(&self, writer: &mut Writer, segment: u64, group: &mut [Entry]) -> Result<(), Failure> {
        if segment != writer.segment() {
            writer.rotate(self.take_prepared()?)?;
            let mut state = self.state();
            state.active_segment = writer.segment();
            drop(state);
            self.room.notify_all();
        }
        writer.write(group)
    }

    /// Waits for the next segment. Fails if it cannot be had: whoever appends without [`Board::reserve`] risks this.
    fn take_prepared(&self) -> Result<Prepared, Failure> {
        let mut state = self.state();
        loop {
            match std::mem::replace(&mut state.stage, Stage::Wanted) {
                Stage::Ready(prepared) => return Ok(prepared),
                Stage::Failed { reason, .. } => {
                    let (action, file) =
                        ("prepare a segment after", PathBuf::from(segment::file_name(state.active_segment)));
                    return Err(Failure { action, file, offset: 0, reason });
                }
                waiting => state.stage = waiting,
            }
            state = wait(&self.work, state);
        }
    }

    /// What the preparer's thread does.
    pub(super) fn prepare(&self, disk: &dyn Disk, dir: &Path) {
        let mut prepared_last = 0;
        let mut state = self.state();
        loop {
            if state.ended {
                return;
            }
            let number = state.active_segment + 1;
            if !matches!(state.stage, Stage::Wanted) || number == prepared_last {
                state = wait(&self.room, state);
                continue;
            }
            state.stage = Stage::Working;
            drop(state);
            let outcome = prepare::prepare(disk, dir, number, self.segment_bytes);
            state = self.state();
            state.stage = match outcome {
                Ok(prepared) => {
                    prepared_last = number;
                    if state.no_space.take().is_some() {
                        tracing::info!("the next segment of the log is ready: there is room again");
                    }
                    Stage::Ready(prepared)
                }
                Err(failed) => {
                    let reason = format!("cannot {} {}: {}", failed.action, failed.path.display(), failed.source);
                    if state.no_space.replace(reason.clone()).is_none() {
                        tracing::warn!("the next segment of the log is not ready, trying again every second: {reason}");
                    }
                    Stage::Failed { at: self.clock.now(), reason }
                }
            };
            self.room.notify_all();
            self.work.notify_all();
        }
    }
}

impl State {
    /// Why an entry of this length cannot be taken now or ever.
    fn refusal(&self, bytes: u64, bytes_max: u64) -> Option<LogError> {
        if let Some(failure) = &self.failure {
            return Some(LogError::Failed(Arc::clone(failure)));
        }
        if self.closed {
            return Some(LogError::Closed);
        }
        (bytes > bytes_max).then_some(LogError::TooLarge { bytes, bytes_max })
    }
}

/// Tells the others that the writer's thread has ended, for whatever reason, a panic included.
struct Fence<'a>(&'a Board);

impl Drop for Fence<'_> {
    fn drop(&mut self) {
        if std::thread::panicking() {
            let reason = "the writer's thread panicked".to_owned();
            self.0.fail(Failure { action: "write", file: PathBuf::new(), offset: 0, reason });
        }
        self.0.state().ended = true;
        self.0.room.notify_all();
    }
}

/// Keeps the preparer from trying.
pub(super) struct Held<'a>(&'a Board);

impl Drop for Held<'_> {
    fn drop(&mut self) {
        self.0.state().is_held = false;
    }
}

fn wait<'a>(condition: &Condvar, state: MutexGuard<'a, State>) -> MutexGuard<'a, State> {
    condition.wait(state).unwrap_or_else(PoisonError::into_inner)
}
