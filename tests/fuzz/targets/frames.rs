//! The fuzz target `frames`: see `src/frames.rs`.
#![no_main]
#![allow(clippy::disallowed_methods)] // The macro writes a file if libFuzzer asks for one.

use fencepost_fuzz::{frames, seeds};

libfuzzer_sys::fuzz_target!(init: seeds::write(frames::seeds), |data: &[u8]| frames::run(data));
