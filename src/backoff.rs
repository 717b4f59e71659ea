//! How long to wait before something is tried again.

use std::time::Duration;

use rand::Rng;

/// Waits that double from one failure to the next, each cut at random by up to a half, so that many who failed at the
/// same time do not come back at the same time.
#[derive(Clone, Debug)]
pub(crate) struct Backoff {
    first: Duration,
    longest: Duration,
    next: Duration,
}

impl Backoff {
    /// From about `first` up to `longest`.
    pub(crate) fn new(first: Duration, longest: Duration) -> Self {
        Self { first, longest, next: first }
    }

    /// It failed (again): how long to wait now.
    pub(crate) fn failed(&mut self) -> Duration {
        let wait = self.next;
        self.next = (wait * 2).min(self.longest);
        wait.mul_f64(rand::rng().random_range(0.5..=1.0))
    }

    /// It worked: the next wait is a short one.
    pub(crate) fn succeeded(&mut self) {
        self.next = self.first;
    }
}

/// About this long, give or take a fifth.
pub(crate) fn about(time: Duration) -> Duration {
    time.mul_f64(rand::rng().random_range(0.8..=1.2))
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn waits_double_up_to_the_longest_and_begin_anew_after_a_success() {
        let (first, longest) = (Duration::from_millis(100), Duration::from_millis(350));
        let mut backoff = Backoff::new(first, longest);
        for most in [100, 200, 350, 350] {
            let (wait, most) = (backoff.failed(), Duration::from_millis(most));
            assert!(wait >= most / 2 && wait <= most, "{wait:?} of {most:?}");
        }
        backoff.succeeded();
        assert!(backoff.failed() <= first);
    }
}
