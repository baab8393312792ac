#![no_main]

libfuzzer_sys::fuzz_target!(|input: &[u8]| thalweg::frame::fuzz::target(input));
