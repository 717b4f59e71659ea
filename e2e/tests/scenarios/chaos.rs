//! What goes wrong while everything changes at random is what was meant to.

use std::time::Duration;

use weft_e2e::churn::Chaos;
use weft_e2e::mesh::Mesh;

use crate::{scenarios, stock_envoy, weft};

/// As many seconds as `WEFT_CHAOS_SECONDS`, or 60; with the seed `WEFT_CHAOS_SEED`, or 1.
#[test]
fn what_fails_is_explained_while_everything_changes_at_random() {
    let number = |name: &str, otherwise| std::env::var(name).map_or(otherwise, |text| text.parse().expect("a number"));
    let chaos =
        Chaos { seed: number("WEFT_CHAOS_SEED", 1), lasts: Duration::from_secs(number("WEFT_CHAOS_SECONDS", 60)) };
    let envoy = Some(stock_envoy("default"));
    let mesh = Mesh::start("e2e/scenarios/churn", "chaos", &weft(), envoy, &[]).expect("the mesh starts");
    let mut checks = scenarios(&mesh, "default");
    chaos.run(&mesh, &mut checks).expect("it runs");
    checks.end(mesh).expect("every scenario holds");
}
