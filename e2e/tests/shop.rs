//! Every check of the demonstration, on each Envoy that Weft is tested with.

#![allow(clippy::expect_used, clippy::panic, reason = "a test may, and here its helpers do")]

use std::path::PathBuf;

use weft_e2e::checks::{Setting, run};
use weft_e2e::mesh::{envoy, repository};

/// The `weft` that was built with these tests.
fn weft() -> PathBuf {
    let tests = std::env::current_exe().expect("the path of this test");
    let weft = tests.ancestors().nth(2).expect("the folder of the build").join("weft");
    assert!(weft.exists(), "there is no {}: run `cargo build` first", weft.display());
    weft
}

fn every_check_holds(name: &'static str, version: &str) {
    let envoy = envoy(version).expect("make setup-all");
    let report = run(Setting { name, weft: weft(), envoy: Some(envoy), timed: false }, |_| ()).expect("the shop runs");
    report.write(&repository().join(format!("target/e2e/shop-{version}.json"))).expect("a report");
    assert!(report.holds(), "\n{report}");
}

fn version(line: &str) -> String {
    let versions = std::fs::read_to_string(repository().join("envoy-bootstrap/VERSIONS")).expect("the pinned versions");
    let pinned = versions.lines().find_map(|text| text.strip_prefix(line)).map(|rest| rest.trim_matches(['=', ' ']));
    pinned.unwrap_or_else(|| panic!("no `{line}` in envoy-bootstrap/VERSIONS")).to_owned()
}

/// One after the other: they measure shares and times on the same cores.
#[test]
fn the_shop_holds_on_the_newest_and_the_oldest_envoy() {
    every_check_holds("newest", &version("default"));
    every_check_holds("oldest", &version("oldest"));
}
