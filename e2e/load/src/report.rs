//! What was measured: a table for people, and JSON.

use std::collections::BTreeMap;
use std::time::Duration;

use serde::Serialize;

use crate::server::Kind;

/// One case against one server.
#[derive(Clone, Debug, Serialize)]
#[allow(missing_docs, reason = "the names are those of the JSON")]
pub struct Case {
    pub case: &'static str,
    pub server: Kind,
    pub proxies: usize,
    pub services: usize,
    pub p50_ms: f64,
    pub p99_ms: f64,
    pub max_ms: f64,
    pub cpu_us_per_proxy: f64,
    pub rss_mb: f64,
    /// What the connected proxies added to the server's memory, for each of them.
    pub rss_kb_per_proxy: f64,
    pub bytes: u64,
    /// Figures of this case alone.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    pub more: BTreeMap<&'static str, f64>,
}

/// All of a run.
#[derive(Debug, Default, Serialize)]
pub struct Report {
    /// Each case.
    pub cases: Vec<Case>,
    /// `CASE/SERVER/FIGURE`: how many times as much as Weft at the same size.
    pub ratios: BTreeMap<String, f64>,
}

/// The value below which a share of the times are, in milliseconds.
pub fn percentile(times: &mut [Duration], percent: usize) -> f64 {
    times.sort();
    let place = (times.len() * percent).div_ceil(100).max(1) - 1;
    times.get(place).copied().unwrap_or_default().as_secs_f64() * 1000.0
}

impl Report {
    /// Adds a case and prints it.
    pub fn add(&mut self, case: Case) {
        if self.cases.is_empty() {
            println!(
                "{:<20} {:<11} {:>7} {:>8} {:>9} {:>9} {:>9} {:>10} {:>7} {:>9} {:>10}",
                "case",
                "server",
                "proxies",
                "services",
                "p50 ms",
                "p99 ms",
                "max ms",
                "CPU us/px",
                "RSS MB",
                "KB/proxy",
                "MB read"
            );
        }
        let server = match case.server {
            Kind::Weft => "weft",
            Kind::GoSnapshot => "go-snapshot",
            Kind::GoLinear => "go-linear",
        };
        println!(
            "{:<20} {server:<11} {:>7} {:>8} {:>9.2} {:>9.2} {:>9.2} {:>10.1} {:>7.1} {:>9.1} {:>10.2}",
            case.case,
            case.proxies,
            case.services,
            case.p50_ms,
            case.p99_ms,
            case.max_ms,
            case.cpu_us_per_proxy,
            case.rss_mb,
            case.rss_kb_per_proxy,
            case.bytes as f64 / 1e6
        );
        for (name, value) in &case.more {
            println!("{:20}   {name} = {value:.3}", "");
        }
        self.cases.push(case);
        self.compare();
    }

    fn compare(&mut self) {
        for case in &self.cases {
            let same = |other: &&Case| {
                (other.case, other.proxies, other.services) == (case.case, case.proxies, case.services)
                    && other.server == Kind::Weft
            };
            let Some(weft) = self.cases.iter().find(same).filter(|_| case.server != Kind::Weft) else { continue };
            let server = serde_json::to_value(case.server).unwrap_or_default();
            let figures = [
                ("p50_ms", case.p50_ms, weft.p50_ms),
                ("p99_ms", case.p99_ms, weft.p99_ms),
                ("max_ms", case.max_ms, weft.max_ms),
                ("cpu_us_per_proxy", case.cpu_us_per_proxy, weft.cpu_us_per_proxy),
                ("rss_kb_per_proxy", case.rss_kb_per_proxy, weft.rss_kb_per_proxy),
                ("bytes", case.bytes as f64, weft.bytes as f64),
            ];
            for (figure, theirs, ours) in figures {
                let name = format!("{}/{}/{figure}", case.case, server.as_str().unwrap_or_default());
                if ours > 0.0 {
                    self.ratios.insert(name, theirs / ours);
                }
            }
        }
    }
}
