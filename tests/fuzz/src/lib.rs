//! What the fuzz targets do with an input, and what must hold whatever it says. A broken promise is a panic.
//!
//! Each module has `run`, one input, and `seeds`, inputs to begin with, which are made here and not kept in the tree.
//! `tests/fuzz/run` builds and runs them.

pub mod frames;
pub mod image;
pub mod input;
pub mod layout;
pub mod records;
pub mod requests;
pub mod seeds;
pub mod text;
pub mod together;
