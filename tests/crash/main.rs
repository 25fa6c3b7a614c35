//! What the log promises about crashes, torn writes, failing disks and damage, tried on the simulated disk.
//!
//! * `compaction`: the same for compaction, with readers in the middle;
//! * `copies`: snapshots, and logs cut at each fact;
//! * `crashes`: the machine stops at every write, sync and rename, and any part of what was unsynced survives;
//! * `faults`: every operation fails, once and for good;
//! * `damage`: every byte of a log is changed;
//! * `verdicts`: each row of the table in `server/src/log/recovery.rs`;
//! * `random`: long random histories against a model.

#![allow(clippy::unwrap_used, clippy::print_stdout)] // A panic is how a test says no, and counts are printed.

mod compaction;
mod copies;
mod crashes;
mod damage;
mod faults;
mod random;
mod verdicts;
mod workload;
