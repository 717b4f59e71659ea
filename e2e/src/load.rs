//! Calls made by `weft app call` inside a pod, and what came of them.

use std::collections::BTreeMap;
use std::io::{Read, pipe};
use std::os::fd::{AsFd, BorrowedFd};
use std::sync::Arc;
use std::thread::JoinHandle;

use anyhow::{Context, anyhow, bail};
use serde::Deserialize;

use crate::scenario::Traffic;

/// The summary that `weft app call -o json` prints.
#[derive(Clone, Debug, Deserialize)]
pub struct Summary {
    /// Calls made.
    pub requests: u64,
    /// Calls that came to what was expected.
    pub succeeded: u64,
    /// The others.
    pub failed: u64,
    /// By outcome.
    pub codes: BTreeMap<String, u64>,
    /// By who answered, `NAME VERSION`.
    pub responders: BTreeMap<String, u64>,
    /// In milliseconds.
    pub latency_ms: Latency,
    /// The first few distinct errors.
    pub errors: Vec<String>,
}

/// Latencies of all calls.
#[derive(Clone, Copy, Debug, Deserialize)]
pub struct Latency {
    /// The median.
    pub p50: f64,
    /// 99 of 100 are at most this.
    pub p99: f64,
    /// The longest.
    pub max: f64,
}

impl Summary {
    pub(crate) fn parse(text: &str) -> anyhow::Result<Self> {
        serde_json::from_str(text).with_context(|| format!("the summary of `weft app call`: {text}"))
    }

    /// The share of `responder` in what was answered, in percent.
    pub fn share(&self, responder: &str) -> f64 {
        let count = self.responders.get(responder).copied().unwrap_or(0);
        #[allow(clippy::cast_precision_loss, reason = "counts of requests")]
        if self.succeeded == 0 { 0.0 } else { 100.0 * count as f64 / self.succeeded as f64 }
    }

    /// Adds the calls of another; of the latencies the longer ones stay.
    pub fn add(&mut self, other: Self) {
        self.requests += other.requests;
        self.succeeded += other.succeeded;
        self.failed += other.failed;
        for (code, count) in other.codes {
            *self.codes.entry(code).or_default() += count;
        }
        for (responder, count) in other.responders {
            *self.responders.entry(responder).or_default() += count;
        }
        let Latency { p50, p99, max } = &mut self.latency_ms;
        *p50 = p50.max(other.latency_ms.p50);
        *p99 = p99.max(other.latency_ms.p99);
        *max = max.max(other.latency_ms.max);
        self.errors.extend(other.errors);
    }

    /// `N requests, N failed (what failed)`.
    pub fn said(&self) -> String {
        let mut text = format!("{} requests, {} failed", self.requests, self.failed);
        if self.failed > 0 {
            text += &format!(" {:?} {:?}", self.codes, self.errors);
        }
        text
    }
}

/// Calls that go on in a pod until they are stopped.
#[derive(Debug)]
pub struct Load {
    /// Closing it ends the calls.
    stdin: std::io::PipeWriter,
    running: JoinHandle<anyhow::Result<String>>,
    traffic: Arc<Traffic>,
}

impl Load {
    /// `run` runs `weft app call` in a pod, with its input, output and errors, and returns its exit code.
    pub(crate) fn start(
        run: impl FnOnce([BorrowedFd<'_>; 3]) -> anyhow::Result<i32> + Send + 'static,
        traffic: Arc<Traffic>,
    ) -> anyhow::Result<Self> {
        let (stdin, writer) = pipe()?;
        let (mut reader, stdout) = pipe()?;
        let running = std::thread::spawn(move || {
            let printing = std::thread::spawn(move || {
                let mut text = String::new();
                reader.read_to_string(&mut text).map(|_| text)
            });
            let stderr = std::io::stderr();
            let code = run([stdin.as_fd(), stdout.as_fd(), stderr.as_fd()])?;
            drop(stdout);
            let text = printing.join().map_err(|_| anyhow!("the reader of the calls panicked"))??;
            if text.is_empty() { bail!("the calls ended with {code} and said nothing") } else { Ok(text) }
        });
        Ok(Self { stdin: writer, running, traffic })
    }

    /// Ends the calls, however few they were.
    ///
    /// # Errors
    /// When they could not be made.
    pub fn end(self) -> anyhow::Result<Summary> {
        drop(self.stdin);
        let text = self.running.join().map_err(|_| anyhow!("the load panicked"))??;
        let summary = Summary::parse(&text)?;
        self.traffic.load(&summary);
        Ok(summary)
    }

    /// Ends the calls.
    ///
    /// # Errors
    /// When they could not be made, or were so few that they show nothing.
    pub fn stop(self) -> anyhow::Result<Summary> {
        let summary = self.end()?;
        if summary.requests < 20 {
            bail!("only {} requests were made under this load", summary.requests);
        }
        Ok(summary)
    }
}
