//! The fuzz targets' code (`make fuzz`) on random input: it compiles with the rest, and finds the shallow faults at once.

#[allow(unreachable_pub, reason = "it is a library for `make fuzz`")]
#[path = "../fuzz/src/lib.rs"]
mod targets;

use proptest::collection::vec;
use proptest::prelude::{any, proptest};

proptest! {
    #[test]
    fn an_xds_session_stands_any_input(data in vec(any::<u8>(), 0..400)) {
        targets::xds_session::run(&data);
    }

    #[test]
    fn the_directory_source_stands_any_input(data in vec(any::<u8>(), 0..400)) {
        targets::directory_source::run(&data);
    }

    /// Bytes that YAML gives a meaning to.
    #[test]
    fn the_directory_source_stands_what_looks_like_yaml(data in "([\\x00\\x01@a]|[a-c:{}\\[\\],|>&*!?# \\n-]|kind: Pod\\n|metadata: |name: a\\n|---\\n){0,60}") {
        targets::directory_source::run(data.as_bytes());
    }
}
