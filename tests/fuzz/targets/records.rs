//! The fuzz target `records`: see `src/records.rs`.
#![no_main]
#![allow(clippy::disallowed_methods)] // The macro writes a file if libFuzzer asks for one.

use fencepost_fuzz::{records, seeds};

libfuzzer_sys::fuzz_target!(init: seeds::write(records::seeds), |data: &[u8]| records::run(data));
