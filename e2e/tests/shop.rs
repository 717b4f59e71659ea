//! Every check of the demonstration, on each Envoy that Weft is tested with.

#![allow(clippy::expect_used, reason = "a test may, and here its helpers do")]

use weft_e2e::checks::{Setting, run};
use weft_e2e::mesh::{envoy, pinned_version, repository, weft_beside_tests};

/// On the Envoy of a line of envoy-bootstrap/VERSIONS.
fn every_check_holds(name: &'static str, line: &str) {
    let version = pinned_version(line).expect("a pinned version");
    let envoy = envoy(&version).expect("make setup-all");
    let weft = weft_beside_tests().expect("cargo build");
    let report = run(Setting { name, weft, envoy: Some(envoy), timed: false }, |_| ()).expect("the shop runs");
    report.write(&repository().join(format!("target/e2e/shop-{version}.json"))).expect("a report");
    assert!(report.holds(), "\n{report}");
}

/// One after the other: they measure shares and times on the same cores.
#[test]
fn the_shop_holds_on_the_newest_and_the_oldest_envoy() {
    every_check_holds("newest", "default");
    every_check_holds("oldest", "oldest");
}
