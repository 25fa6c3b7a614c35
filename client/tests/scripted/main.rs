//! The client against a server that does as it is told: loses answers, breaks streams, refuses, falls silent.
//!
//! Client and server talk over memory, and time stands still unless everybody waits, so that no test depends on how fast
//! the machine is.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod commits;
mod fake;
mod fake_history;
mod history;
mod leases;
mod maintenance;
mod reading;
