//! The `weft` binary: see `weft --help`.
fn main() {}
