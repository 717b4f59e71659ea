//! How much is written in a time. Pure.

use tokio::time::Instant;

/// So many at once, and then so many a second.
#[derive(Debug)]
pub(super) struct Limit {
    left: f64,
    most: f64,
    per_second: f64,
    at: Instant,
}

impl Limit {
    pub(super) fn new((most, per_second): (u32, f64), now: Instant) -> Self {
        Self { left: f64::from(most), most: f64::from(most), per_second, at: now }
    }

    /// Whether one more may be written now.
    pub(super) fn take(&mut self, now: Instant) -> bool {
        let passed = now.saturating_duration_since(self.at).as_secs_f64();
        self.left = (self.left + passed * self.per_second).min(self.most);
        self.at = now;
        let may = self.left >= 1.0;
        if may {
            self.left -= 1.0;
        }
        may
    }
}
