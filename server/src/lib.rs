//! The Fencepost server. The log holds only facts, and everything else is made from it.
//!
//! The modules, each of which uses only those above it:

pub mod clock;
pub mod disk;
pub mod log;
