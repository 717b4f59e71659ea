//! The directory source and arbitrary files.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::directory_source::run(data));
