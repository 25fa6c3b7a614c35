//! The API from outside: every call, what it does and each way in which it says no.
//!
//! The store runs in the test's own process, behind the same gRPC services as ever. Tests of what the network can do to
//! a server use a real socket.

// A test that cannot go on ends where it is.
#![allow(clippy::unwrap_used, clippy::print_stdout, clippy::print_stderr)]

mod audit;
mod barrier;
mod catalogue;
mod checkpoint;
mod cluster;
mod commit;
mod damage;
mod dead_letters;
mod fence_group;
mod fork;
mod health;
mod hostile;
mod lease;
mod limits;
mod merge;
mod order;
mod policy;
mod questions;
mod resolve;
mod rewind;
mod row_counts;
mod savepoint;
mod schema;
mod scope;
mod staged;
mod stream;
mod support;
mod tail;
mod trace;
mod wait;
