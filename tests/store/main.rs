//! A store that runs for years: bounded on disk, fast to open, and true to its log whatever happens to its files.

#![allow(clippy::disallowed_methods, clippy::unwrap_used)]

mod ask;
mod bounded;
mod damage;
mod drive;
mod faults;
mod prepared;
mod restart;
mod snapshot;
mod start;
mod support;
mod tail;
mod transfer;
