//! What operators do with a whole store: snapshots, and stores made from them.

mod admit;
pub mod check;
mod exported;
mod holdings;
mod manifest;
pub mod offline;
pub mod open;
pub mod restore;
pub mod snapshot;
pub mod transfer;

use fencepost::Lsn;
use fencepost::log::v1::Fact;
use fencepost::log::v1::fact::Kind;
use prost::Message as _;

pub use manifest::{BadSnapshot, MANIFEST, Manifest, ManifestFile};
pub use open::BadStore;

use crate::clock::Clock;
use crate::log::{EntryBuilder, Log, LogError};

/// Appends one fact to a log that nobody else writes to, and waits until it is durable.
pub fn append(log: &Log, clock: &Clock, kind: Kind) -> Result<Lsn, LogError> {
    let fact = Fact { at_ms: clock.wall_ms(), kind: Some(kind) };
    let last = log.last_index();
    let mut entry = EntryBuilder::new(last.next());
    entry
        .push_with(fact.encoded_len(), |buffer| fact.encode(buffer).expect("a growing buffer has room for every fact"));
    let (done_sender, done) = std::sync::mpsc::channel();
    log.append(entry.finish(last, 0), move |result| drop(done_sender.send(result)));
    done.recv().expect("the log answers every append").map(|index| Lsn::new(index, 0))
}
