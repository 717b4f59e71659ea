//! How long to wait before something that failed is tried again.

use std::time::Duration;

use tokio::time::Instant;

const FIRST: Duration = Duration::from_millis(500);
const LONGEST: Duration = Duration::from_secs(10);
/// Who has lived this long starts anew with the shortest wait.
const GOOD_LIFE: Duration = Duration::from_secs(30);

/// Doubles from 500 ms to 10 s (Kubernetes: 10 s to 5 min, which is long for somebody who watches).
#[derive(Debug)]
pub(crate) struct Backoff {
    next: Duration,
    started: Instant,
}

impl Backoff {
    pub(crate) fn new() -> Self {
        Self { next: FIRST, started: Instant::now() }
    }

    /// To be called at each start.
    pub(crate) fn starting(&mut self) {
        self.started = Instant::now();
    }

    /// The wait after a failure now.
    pub(crate) fn failed(&mut self) -> Duration {
        if self.started.elapsed() >= GOOD_LIFE {
            self.next = FIRST;
        }
        let wait = self.next;
        self.next = (self.next * 2).min(LONGEST);
        wait
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[tokio::test(start_paused = true)]
    async fn waits_double_up_to_a_limit_and_a_good_life_resets_them() {
        let mut backoff = Backoff::new();
        let waits: Vec<u128> = (0..7).map(|_| backoff.failed().as_millis()).collect();
        assert_eq!(waits, [500, 1000, 2000, 4000, 8000, 10_000, 10_000]);
        backoff.starting();
        tokio::time::advance(GOOD_LIFE).await;
        assert_eq!(backoff.failed(), FIRST);
    }
}
