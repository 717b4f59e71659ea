//! Many calls at once, counted: by number, for a time, or until told to stop.

use std::num::{NonZeroU32, NonZeroU64};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::{Duration, Instant};

use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::caller::{Call, Caller};
use super::report::Report;

/// How much is to be called, and how fast.
#[derive(Clone, Debug)]
pub struct Load {
    /// What is called.
    pub call: Call,
    /// Stop after so many calls.
    pub count: Option<NonZeroU64>,
    /// Stop after this time; calls that are under way come to their end.
    pub duration: Option<Duration>,
    /// How many callers there are, each with its own connections.
    pub concurrency: NonZeroU32,
    /// So many calls a second by all callers together at most; none: as many as are answered.
    pub rate: Option<Rate>,
    /// How long one call may take.
    pub timeout: Duration,
    /// Connections are kept for the next call.
    pub keepalive: bool,
    /// The codes, in the words of [`super::caller::Code`], that count as success; none: those that are no error.
    pub expect: Vec<String>,
}

/// Calls a second: positive and finite.
#[derive(Clone, Copy, PartialEq, PartialOrd, Debug)]
pub struct Rate(f64);

/// The number is no rate.
#[derive(Clone, PartialEq, Eq, Debug, thiserror::Error)]
#[error("{0:?} is not a rate: write calls a second, as in 100 or 0.5")]
pub struct NotARate(String);

impl std::str::FromStr for Rate {
    type Err = NotARate;

    fn from_str(text: &str) -> Result<Self, NotARate> {
        let rate: Option<f64> = text.parse().ok();
        rate.filter(|rate| rate.is_finite() && *rate > 0.0).map(Self).ok_or_else(|| NotARate(text.to_owned()))
    }
}

impl Rate {
    /// When the call with this number is due, counted from the start.
    fn due(self, number: u64) -> Duration {
        Duration::try_from_secs_f64(number as f64 / self.0).unwrap_or(Duration::MAX)
    }
}

impl Load {
    /// Calls until the load is done or `stop` is cancelled; calls that are under way then come to their end.
    pub async fn run(self, stop: CancellationToken) -> Report {
        let started = Instant::now();
        let load = Arc::new(self);
        let next = Arc::new(AtomicU64::new(0));
        let done = stop.child_token();
        let mut callers = JoinSet::new();
        for _ in 0..load.concurrency.get() {
            callers.spawn(load.clone().one_caller(started, next.clone(), done.clone()));
        }
        let limit = load.duration.unwrap_or(Duration::MAX);
        let mut report = Report::default();
        let ended = async {
            while let Some(part) = callers.join_next().await {
                match part {
                    Ok(part) => report.merge(part),
                    Err(error) => tracing::error!(%error, "a caller died; its calls are not in the report"),
                }
            }
        };
        let limited = async {
            tokio::time::sleep(limit).await;
            done.cancel();
            std::future::pending().await
        };
        tokio::select! {
            () = ended => {}
            () = limited => {}
        }
        report.duration = started.elapsed();
        report
    }

    async fn one_caller(self: Arc<Self>, started: Instant, next: Arc<AtomicU64>, done: CancellationToken) -> Report {
        let caller = if self.keepalive { Caller::new(self.timeout) } else { Caller::without_keepalive(self.timeout) };
        let mut report = Report::default();
        while !done.is_cancelled() {
            let number = next.fetch_add(1, Ordering::Relaxed);
            if self.count.is_some_and(|count| number >= count.get()) {
                break;
            }
            if let Some(rate) = self.rate {
                let wait = rate.due(number).saturating_sub(started.elapsed());
                if !wait.is_zero() && done.run_until_cancelled(tokio::time::sleep(wait)).await.is_none() {
                    break;
                }
            }
            let outcome = caller.call(&self.call).await;
            report.add(&outcome, &self.expect);
        }
        report
    }
}
