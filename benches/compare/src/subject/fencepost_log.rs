//! The log of Fencepost, one fact in each entry, which is the most expensive way to use it.

use std::path::Path;
use std::sync::{Arc, Mutex, mpsc};

use fencepost::LogIndex;
use fencepost_server::clock::{Clock, random_id};
use fencepost_server::disk::RealDisk;
use fencepost_server::log::{EntryBuilder, Log, LogConfig};

use super::{Subject, payload};

pub(super) struct FencepostLog {
    log: Log,
    /// Entries follow each other without gaps, so that one caller at a time takes the next index.
    last: Mutex<LogIndex>,
}

impl FencepostLog {
    pub(super) fn open(dir: &Path) -> FencepostLog {
        let log = Log::open(Arc::new(RealDisk), dir, LogConfig::default(), Clock::real(), random_id());
        FencepostLog { log: log.expect("a log can be made"), last: Mutex::new(LogIndex::ZERO) }
    }
}

impl Subject for FencepostLog {
    fn caller(&self, number: usize, bytes: usize) -> Box<dyn FnMut() + '_> {
        let payload = payload(number, bytes);
        let (done, durable) = mpsc::channel();
        Box::new(move || {
            let mut last = self.last.lock().expect("no caller panics");
            let mut entry = EntryBuilder::new(last.next());
            entry.push(&payload);
            let done = done.clone();
            self.log.append(entry.finish(*last, 0), move |result| drop(done.send(result)));
            *last = last.next();
            drop(last);
            durable.recv().expect("the log answers every append").expect("the disk works and has space");
        })
    }
}
