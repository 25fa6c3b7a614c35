//! The fuzz target `text`: see `src/text.rs`.
#![no_main]
#![allow(clippy::disallowed_methods)] // The macro writes a file if libFuzzer asks for one.

use fencepost_fuzz::{seeds, text};

libfuzzer_sys::fuzz_target!(init: seeds::write(text::seeds), |data: &[u8]| text::run(data));
