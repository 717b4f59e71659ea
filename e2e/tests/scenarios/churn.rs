//! Nothing is lost while everything changes.

use std::time::Duration;

use weft_e2e::churn::{Churn, Discovery};

use crate::{scenarios, start};

#[test]
fn nothing_is_lost_while_everything_changes() {
    run("default", &[Discovery::OnDemand, Discovery::Eager]);
}

#[cfg(feature = "slow")]
#[test]
fn nothing_is_lost_while_everything_changes_on_the_oldest_envoy() {
    run("oldest", &[Discovery::OnDemand]);
}

/// A round of changes from each of the modes; with `WEFT_SOAK_SECONDS`, as many as fit in that time.
fn run(line: &str, modes: &[Discovery]) {
    let seconds = std::env::var("WEFT_SOAK_SECONDS").map_or(0, |text| text.parse().expect("a number of seconds"));
    let lasts = Duration::from_secs(seconds) / u32::try_from(modes.len()).expect("few");
    let mesh = start("churn", line);
    let mut checks = scenarios(&mesh, line);
    for (seed, discovery) in (1..).step_by(1000).zip(modes) {
        let churn = Churn { discovery: *discovery, seed, lasts };
        if !churn.run(&mesh, &mut checks).expect("it runs") {
            break;
        }
    }
    if seconds > 0 {
        println!("{}", checks.table());
    }
    checks.end(mesh).expect("every scenario holds");
}
