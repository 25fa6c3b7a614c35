//! Real processes: servers that are killed, stopped and stalled, and programs under `fencepost run`.
//!
//! Every process is killed when its test ends, however it ends.

// A test that cannot go on ends where it is.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]
// The tests look into scratch files of their own, where the server's one door to the file system is of no use.
#![allow(clippy::disallowed_methods)]

mod backup;
mod crash;
mod job;
mod kill;
mod kill_copies;
mod lifecycle;
mod load;
mod run;
mod run_handover;
mod run_once;
mod settings;
mod stall;
mod support;
