//! What the benches share: load, and the ceilings.

pub(crate) mod echo;
pub(crate) mod load;
pub(crate) mod log_alone;
pub(crate) mod server;
