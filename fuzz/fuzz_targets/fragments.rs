//! Any fragments, in any order, over several workers.
#![no_main]

#[path = "../fragments.rs"]
mod fragments;

libfuzzer_sys::fuzz_target!(|input: &[u8]| fragments::scenario(input));
