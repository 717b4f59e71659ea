//! `weft proxy stats`: Envoy's `/stats?format=json`.

use std::fmt::Write;

use serde::Serialize;
use serde_json::Value;

use super::config_dump::{items, text};
use crate::cli::output::Table;

/// Counters and gauges, and the quantiles of histograms.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct Stats {
    stats: Vec<Stat>,
    histograms: Vec<Histogram>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
struct Stat {
    name: String,
    value: Value,
}

/// Quantiles since the proxy's start; those of time are in milliseconds.
#[derive(Clone, PartialEq, Debug, Serialize)]
struct Histogram {
    name: String,
    p50: f64,
    p90: f64,
    p99: f64,
    max: f64,
}

/// What to ask for. Envoy matches the filter anywhere in a name.
pub(super) fn path(filter: Option<&str>, all: bool) -> String {
    let mut path = "/stats?format=json".to_owned();
    if !all {
        path.push_str("&usedonly");
    }
    if let Some(filter) = filter {
        path.push_str("&filter=");
        for byte in filter.bytes() {
            match byte {
                b'a'..=b'z' | b'A'..=b'Z' | b'0'..=b'9' | b'-' | b'.' | b'_' | b'~' => path.push(char::from(byte)),
                _ => drop(write!(path, "%{byte:02X}")), // writing to a String cannot fail
            }
        }
    }
    path
}

/// All that the body tells; a histogram without a value is left out.
pub(super) fn read(body: &Value) -> Stats {
    let mut read = Stats { stats: Vec::new(), histograms: Vec::new() };
    for item in items(body, "stats") {
        match item.get("histograms") {
            Some(histograms) => {
                let supported: Vec<f64> = items(histograms, "supported_quantiles").filter_map(Value::as_f64).collect();
                read.histograms
                    .extend(items(histograms, "computed_quantiles").filter_map(|each| histogram(&supported, each)));
            }
            None => read.stats.push(Stat { name: text(item, "name").to_owned(), value: item["value"].clone() }),
        }
    }
    read.stats.sort_by(|a, b| a.name.cmp(&b.name));
    read.histograms.sort_by(|a, b| a.name.cmp(&b.name));
    read
}

fn histogram(supported: &[f64], item: &Value) -> Option<Histogram> {
    let at = |quantile: f64| {
        let index = supported.iter().position(|supported| *supported == quantile)?;
        item["values"][index]["cumulative"].as_f64()
    };
    let name = text(item, "name").to_owned();
    Some(Histogram { name, p50: at(50.0)?, p90: at(90.0)?, p99: at(99.0)?, max: at(100.0)? })
}

/// The tables for reading.
pub(super) fn table(read: &Stats) -> String {
    // Names of a few hundred letters come last, so that they push nothing out of sight.
    let mut stats = Table::new(["VALUE", "STAT"]);
    for stat in &read.stats {
        stats.row([stat.value.as_str().map_or_else(|| stat.value.to_string(), str::to_owned), stat.name.clone()]);
    }
    let mut text = stats.to_string();
    if !read.histograms.is_empty() {
        let mut histograms = Table::new(["P50", "P90", "P99", "MAX", "HISTOGRAM"]);
        for each in &read.histograms {
            let [p50, p90, p99, max] = [each.p50, each.p90, each.p99, each.max].map(|value| format!("{value:.1}"));
            histograms.row([p50, p90, p99, max, each.name.clone()]);
        }
        text = format!("{text}\n{histograms}");
    }
    text
}
