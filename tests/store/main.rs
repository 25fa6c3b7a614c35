//! A store that runs for years: bounded on disk, fast to open, and true to its log whatever happens to its files.

// A panic is how a test says no, counts are printed, and these tests damage files behind the server's back.
#![allow(clippy::disallowed_methods, clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod ask;
mod bounded;
mod damage;
mod drive;
mod faults;
mod full;
mod letters;
mod newer;
mod old;
mod old_ask;
mod prepared;
mod restart;
mod snapshot;
mod staged;
mod start;
mod support;
mod tail;
mod transfer;
mod upkeep;
