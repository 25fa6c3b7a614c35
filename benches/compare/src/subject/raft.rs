//! raft-engine, the log of TiKV. Each caller is a Raft group of its own, as it takes the entries of a group from one
//! thread at a time, in order. Nothing is purged.

use std::path::Path;

use protobuf::well_known_types::BytesValue;
use raft_engine::{Config, Engine, LogBatch, MessageExt};

use super::{Subject, payload};

pub(super) struct RaftEngine(Engine);

/// Entries whose first eight bytes are their index.
struct Indexed;

impl MessageExt for Indexed {
    type Entry = BytesValue;

    fn index(entry: &BytesValue) -> u64 {
        let index = entry.value.first_chunk().expect("a payload has room for its index");
        u64::from_le_bytes(*index)
    }
}

impl RaftEngine {
    pub(super) fn open(dir: &Path) -> RaftEngine {
        let dir = dir.to_str().expect("temporary directories have plain names").to_owned();
        RaftEngine(Engine::open(Config { dir, ..Config::default() }).expect("an engine can be made"))
    }
}

impl Subject for RaftEngine {
    fn caller(&self, number: usize, bytes: usize) -> Box<dyn FnMut() + '_> {
        let group = number as u64 + 1;
        let mut entry = BytesValue::new();
        entry.set_value(payload(number, bytes));
        let (mut index, mut batch) = (0_u64, LogBatch::default());
        Box::new(move || {
            index += 1;
            entry.value[..8].copy_from_slice(&index.to_le_bytes());
            batch.add_entries::<Indexed>(group, std::slice::from_ref(&entry)).expect("the entry fits into a batch");
            self.0.write(&mut batch, true).expect("the disk works");
        })
    }
}
