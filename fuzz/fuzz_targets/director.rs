//! Any frames, in any order, through a director.
#![no_main]

#[path = "../director.rs"]
mod director;

libfuzzer_sys::fuzz_target!(|input: &[u8]| director::scenario(input));
