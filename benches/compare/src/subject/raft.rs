//! raft-engine, the log of TiKV. Each caller is a Raft group of its own, as it takes the entries of a group from one
//! thread at a time, in order. Nothing is purged.
//!
//! By itself it has the file system promise blocks (fallocate) shortly before it writes them. It can also write files
//! ahead when it is opened, as our log does all the time; both are measured.

use std::fs::File;
use std::path::Path;

use protobuf::well_known_types::BytesValue;
use raft_engine::{Config, Engine, LogBatch, MessageExt, ReadableSize};

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
    /// With its defaults.
    pub(super) fn open(dir: &Path) -> RaftEngine {
        RaftEngine::with(dir, Config::default())
    }

    /// With files written ahead, enough for a turn.
    pub(super) fn open_prefilled(dir: &Path) -> RaftEngine {
        let engine = RaftEngine::with(
            dir,
            Config {
                target_file_size: ReadableSize::mb(16),
                prefill_for_recycle: true,
                prefill_limit: Some(ReadableSize::mb(640)),
                // No payload of a turn is long enough for it, and the long one below must stay long.
                batch_compression_threshold: ReadableSize(0),
                ..Config::default()
            },
        );
        // It leaves them to the page cache; in a log that has run for a while they are on the disk.
        for entry in std::fs::read_dir(dir).expect("the directory is there") {
            let file = File::open(entry.expect("the directory can be read").path());
            file.and_then(|file| file.sync_all()).expect("the disk works");
        }
        // The first file is never one of them: it is filled before the turn.
        engine.caller(usize::MAX >> 1, 16 << 20)();
        engine
    }

    fn with(dir: &Path, config: Config) -> RaftEngine {
        let dir = dir.to_str().expect("temporary directories have plain names").to_owned();
        RaftEngine(Engine::open(Config { dir, ..config }).expect("an engine can be made"))
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
