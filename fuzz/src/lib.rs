//! What the fuzz targets do with an input. `tests/fuzz.rs` compiles it too, and runs it on random input, so that it keeps
//! up with the code.

pub mod directory_source;
pub mod xds_session;
