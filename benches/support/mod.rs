//! What the benches share: load, and the ceilings.

pub mod echo;
pub mod load;
pub mod log_alone;
pub mod server;
