//! End-to-end tests of Weft on stock Envoys: a mesh on this machine, and what can be seen of it.
//!
//! ```text
//!  bin/demo, bin/bench ─┬─▶ checks, churn (what must hold) ──▶ mesh (start, change, call, look) ──▶ weft::local
//!  tests/ ──▶ scenario ─┘
//! ```

pub mod checks;
pub mod churn;
pub mod held;
pub mod inspection;
pub mod kube;
pub mod load;
pub mod mesh;
pub mod prometheus;
pub mod report;
pub mod samples;
pub mod scenario;

use std::time::{Duration, Instant};

use anyhow::bail;

/// Asks until there is an answer.
///
/// # Errors
/// When there is none in time, with the last reason why not; and at once when asking itself fails.
pub fn until<T>(
    what: &str,
    within: Duration,
    mut ask: impl FnMut() -> anyhow::Result<Result<T, String>>,
) -> anyhow::Result<T> {
    let start = Instant::now();
    loop {
        match ask()? {
            Ok(answer) => return Ok(answer),
            Err(reason) if start.elapsed() > within => bail!("{what}: not within {within:?}: {reason}"),
            Err(_) => std::thread::sleep(Duration::from_millis(2)),
        }
    }
}
