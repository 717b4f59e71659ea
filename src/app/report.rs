//! What became of a load: counts by code and by responder, latencies, the first errors.

use std::collections::BTreeMap;
use std::fmt;
use std::time::Duration;

use serde::Serialize;
use serde::ser::{SerializeStruct, Serializer};

use super::caller::{Code, Outcome};

/// How many distinct error texts are kept.
const MAX_ERRORS: usize = 5;

/// The sum of many outcomes.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Report {
    /// How many calls ended as expected.
    pub succeeded: u64,
    /// How many did not.
    pub failed: u64,
    /// How many calls ended with each code.
    pub codes: BTreeMap<Code, u64>,
    /// How many calls each workload answered (`NAME VERSION`).
    pub responders: BTreeMap<String, u64>,
    /// The first few distinct texts of failures.
    pub errors: Vec<String>,
    /// From the first call to the end of the last.
    pub duration: Duration,
    /// In microseconds; a call longer than an hour counts as one.
    latencies: Vec<u32>,
}

impl Report {
    /// Counts one outcome; with nothing expected, every answer that is no error is a success.
    pub fn add(&mut self, outcome: &Outcome, expect: &[String]) {
        let code = outcome.code.to_string();
        let succeeded = if expect.is_empty() { outcome.code.succeeded() } else { expect.contains(&code) };
        if succeeded {
            self.succeeded += 1;
        } else {
            self.failed += 1;
            self.note(&outcome.error.clone().unwrap_or_else(|| unexpected(outcome, &code)));
        }
        *self.codes.entry(outcome.code).or_default() += 1;
        if let Some(responder) = &outcome.responder {
            *self.responders.entry(responder.clone()).or_default() += 1;
        }
        self.latencies.push(u32::try_from(outcome.latency.as_micros()).unwrap_or(u32::MAX));
    }

    /// Adds the calls of another report.
    pub fn merge(&mut self, other: Self) {
        self.succeeded += other.succeeded;
        self.failed += other.failed;
        for (code, count) in other.codes {
            *self.codes.entry(code).or_default() += count;
        }
        for (responder, count) in other.responders {
            *self.responders.entry(responder).or_default() += count;
        }
        for error in &other.errors {
            self.note(error);
        }
        self.duration = self.duration.max(other.duration);
        self.latencies.extend(other.latencies);
    }

    /// All calls.
    pub fn requests(&self) -> u64 {
        self.succeeded + self.failed
    }

    /// The latencies, if there were calls.
    pub fn latency(&self) -> Option<Latency> {
        let mut sorted = self.latencies.clone();
        sorted.sort_unstable();
        let milliseconds = |microseconds: u32| f64::from(microseconds) / 1e3;
        // The nearest rank: the smallest latency that so many per cent of all calls do not exceed.
        let rank = |percent: usize| {
            let rank = (sorted.len() * percent).div_ceil(100).max(1);
            sorted.get(rank - 1).copied().map(milliseconds)
        };
        Some(Latency { p50: rank(50)?, p90: rank(90)?, p99: rank(99)?, max: rank(100)? })
    }

    fn note(&mut self, error: &str) {
        if self.errors.len() < MAX_ERRORS && !self.errors.iter().any(|known| known == error) {
            self.errors.push(error.to_owned());
        }
    }
}

/// What an answer says that is there but not what was expected, without its whole body.
fn unexpected(outcome: &Outcome, code: &str) -> String {
    let body = String::from_utf8_lossy(&outcome.body);
    let who = outcome.responder.as_deref().unwrap_or("a proxy or another server");
    let said = serde_json::from_str::<serde_json::Value>(&body).ok();
    let said = said.as_ref().and_then(|json| json.get("error")?.as_str()).unwrap_or_else(|| body.trim());
    let said: String = said.chars().take(120).collect();
    format!("{code} from {who}: {said}")
}

/// Latencies in milliseconds.
#[derive(Clone, Copy, PartialEq, Debug, Serialize)]
#[allow(missing_docs, reason = "the names say it")]
pub struct Latency {
    pub p50: f64,
    pub p90: f64,
    pub p99: f64,
    pub max: f64,
}

impl Serialize for Report {
    fn serialize<S: Serializer>(&self, serializer: S) -> Result<S::Ok, S::Error> {
        let codes: BTreeMap<String, u64> = self.codes.iter().map(|(code, count)| (code.to_string(), *count)).collect();
        let mut report = serializer.serialize_struct("Report", 8)?;
        report.serialize_field("requests", &self.requests())?;
        report.serialize_field("succeeded", &self.succeeded)?;
        report.serialize_field("failed", &self.failed)?;
        report.serialize_field("codes", &codes)?;
        report.serialize_field("responders", &self.responders)?;
        report.serialize_field("latency_ms", &self.latency())?;
        report.serialize_field("errors", &self.errors)?;
        report.serialize_field("duration_s", &self.duration.as_secs_f64())?;
        report.end()
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let seconds = self.duration.as_secs_f64();
        let per_second = if seconds > 0.0 { self.requests() as f64 / seconds } else { 0.0 };
        let failed = self.failed;
        writeln!(f, "requests    {} in {seconds:.1} s ({per_second:.0}/s), {failed} failed", self.requests())?;
        let codes = self.codes.iter().map(|(code, count)| (code.to_string(), *count));
        self.share(f, "codes", codes)?;
        self.share(f, "responders", self.responders.iter().map(|(name, count)| (name.clone(), *count)))?;
        if let Some(Latency { p50, p90, p99, max }) = self.latency() {
            writeln!(f, "latency ms  p50 {p50:.1}, p90 {p90:.1}, p99 {p99:.1}, max {max:.1}")?;
        }
        for (at, error) in self.errors.iter().enumerate() {
            writeln!(f, "{:<10}  {error}", if at == 0 { "errors" } else { "" })?;
        }
        Ok(())
    }
}

impl Report {
    /// A row for each name, with its share of all calls.
    fn share(&self, f: &mut fmt::Formatter<'_>, title: &str, rows: impl Iterator<Item = (String, u64)>) -> fmt::Result {
        for (at, (name, count)) in rows.enumerate() {
            let percent = 100.0 * count as f64 / self.requests().max(1) as f64;
            writeln!(f, "{:<10}  {name:<20} {count:>8}  {percent:>5.1} %", if at == 0 { title } else { "" })?;
        }
        Ok(())
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use axum::http::HeaderMap;
    use bytes::Bytes;

    fn outcome(code: Code, milliseconds: u64) -> Outcome {
        Outcome {
            code,
            latency: Duration::from_millis(milliseconds),
            responder: matches!(code, Code::Http(_)).then(|| "cart v1".to_owned()),
            version: None,
            headers: HeaderMap::new(),
            body: Bytes::from_static(b"{\"error\":\"why\"}"),
            error: (code == Code::Connect).then(|| "refused".to_owned()),
        }
    }

    #[test]
    fn sums_what_each_caller_saw() {
        let mut report = Report::default();
        for milliseconds in 1..=99 {
            report.add(&outcome(Code::Http(200), milliseconds), &[]);
        }
        let mut other = Report::default();
        other.add(&outcome(Code::Http(503), 100), &[]);
        other.add(&outcome(Code::Connect, 101), &[]);
        other.add(&outcome(Code::Connect, 101), &[]);
        report.merge(other);
        let json = serde_json::to_value(&report).unwrap();
        assert_eq!(
            (json["requests"].as_u64(), json["succeeded"].as_u64(), json["failed"].as_u64()),
            (Some(102), Some(99), Some(3))
        );
        assert_eq!(json["codes"], serde_json::json!({"200": 99, "503": 1, "connect error": 2}));
        assert_eq!(json["responders"], serde_json::json!({"cart v1": 100}));
        assert_eq!(json["errors"], serde_json::json!(["503 from cart v1: why", "refused"]));
        assert_eq!(json["latency_ms"], serde_json::json!({"p50": 51.0, "p90": 92.0, "p99": 101.0, "max": 101.0}));
    }

    #[test]
    fn what_is_expected_is_no_failure_and_all_else_is() {
        let mut report = Report::default();
        for code in [Code::Http(403), Code::Closed, Code::Http(200)] {
            report.add(&outcome(code, 1), &["403".to_owned(), "closed".to_owned()]);
        }
        assert_eq!((report.succeeded, report.failed), (2, 1));
    }

    #[test]
    fn no_calls_have_no_latency() {
        assert_eq!(Report::default().latency(), None);
        assert!(Report::default().to_string().starts_with("requests    0 in"));
    }
}
