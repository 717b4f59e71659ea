//! An xDS session and arbitrary requests.
#![no_main]

libfuzzer_sys::fuzz_target!(|data: &[u8]| weft_fuzz::xds_session::run(data));
