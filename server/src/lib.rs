//! The Fencepost server. The log holds only facts, and everything else is made from it.
//!
//! The modules, each of which uses only those above it:

pub mod clock;
pub mod config;
pub mod error;
pub mod metrics;

pub mod disk;
pub mod log;

pub mod state;

pub mod index;

pub mod upkeep;

pub mod sequencer;

pub mod ops;

pub mod service;

pub mod connections;
pub mod server;

pub mod embedded;
