//! What several branches, sinks and workers do together, with the real server in this process and a road to it on which
//! requests and answers are lost where a test says so.

#![allow(clippy::unwrap_used, reason = "a test that cannot go on has failed")]

mod barrier;
mod dead_letters;
mod merge;
mod pipeline;
mod road;
mod sink;
mod staged;
