//! Prometheus metrics, read when a scrape asks for them. No label takes its values from the mesh's objects, so the number
//! of series is fixed.

use std::collections::BTreeMap;
use std::fmt;
use std::sync::Arc;

use prometheus_client::collector::Collector;
use prometheus_client::encoding::{DescriptorEncoder, EncodeMetric};
use prometheus_client::metrics::MetricType;
use prometheus_client::metrics::counter::ConstCounter;
use prometheus_client::metrics::gauge::ConstGauge;
use prometheus_client::registry::Registry;

use crate::snapshot::ResourceType;
use crate::xds::admission::Counts;
use crate::xds::status::{Proxies, Totals};

fn label(kind: ResourceType) -> &'static str {
    match kind {
        ResourceType::Cluster => "cluster",
        ResourceType::Endpoints => "endpoints",
        ResourceType::Listener => "listener",
        ResourceType::Route => "route",
        ResourceType::Secret => "secret",
    }
}

/// Adds what the xDS server sent and heard, connected proxies, refusals that hold, certificates minted (as `minted`
/// says), resident memory.
pub fn register(registry: &mut Registry, proxies: Arc<dyn Proxies>, minted: impl Fn() -> u64 + Send + Sync + 'static) {
    registry.register_collector(Box::new(AtScrape { proxies, minted: Box::new(minted) }));
}

/// Adds how the xDS server does under pressure, as `counts` says.
pub fn register_pressure(registry: &mut Registry, counts: impl Fn() -> Counts + Send + Sync + 'static) {
    registry.register_collector(Box::new(Pressure(Box::new(counts))));
}

struct Pressure(Box<dyn Fn() -> Counts + Send + Sync>);

impl fmt::Debug for Pressure {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Pressure")
    }
}

impl Collector for Pressure {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        let counts = (self.0)();
        let gauges = [
            ("weft_xds_connections", "Open xDS connections", counts.connections),
            ("weft_xds_admission_waiting", "Newcomers' steps that wait for their turn", counts.waiting),
        ];
        for (name, help, value) in gauges {
            let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        let counters = [
            ("weft_xds_admission_admitted", "Streams let in", counts.admitted),
            ("weft_xds_admission_refused", "Connections too many, and streams without a good token", counts.refused),
            ("weft_xds_connections_aged", "Connections closed for their age", counts.aged),
            ("weft_xds_frames_encoded", "Responses encoded", counts.frames_encoded),
            ("weft_xds_frames_shared", "Responses whose bytes were encoded for another stream", counts.frames_shared),
        ];
        for (name, help, value) in counters {
            let metric = ConstCounter::new(value);
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)?;
        }
        Ok(())
    }
}

struct AtScrape {
    proxies: Arc<dyn Proxies>,
    minted: Box<dyn Fn() -> u64 + Send + Sync>,
}

impl fmt::Debug for AtScrape {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("AtScrape")
    }
}

impl Collector for AtScrape {
    fn encode(&self, mut encoder: DescriptorEncoder<'_>) -> fmt::Result {
        encode_totals(&mut encoder, &self.proxies.totals())?;
        let proxies = self.proxies.proxies();
        let refusing =
            proxies.iter().filter(|proxy| proxy.types.values().any(|status| status.refusal.is_some())).count();
        let mut gauge = |name: &str, help: &str, value: u64| {
            let metric = ConstGauge::new(i64::try_from(value).unwrap_or(i64::MAX));
            metric.encode(encoder.encode_descriptor(name, help, None, metric.metric_type())?)
        };
        gauge("weft_xds_connected_proxies", "Proxies with an open stream", proxies.len() as u64)?;
        gauge("weft_xds_refusing_proxies", "Connected proxies with a refusal that holds", refusing as u64)?;
        if let Some(bytes) = resident_memory() {
            gauge("process_resident_memory_bytes", "Resident memory of this process", bytes)?;
        }
        let minted = ConstCounter::new((self.minted)());
        let name = "weft_ca_certificates_minted";
        minted.encode(encoder.encode_descriptor(name, "Workload certificates minted", None, minted.metric_type())?)
    }
}

fn encode_totals(encoder: &mut DescriptorEncoder<'_>, totals: &BTreeMap<ResourceType, Totals>) -> fmt::Result {
    let (name, help) = ("weft_xds_responses", "Responses by type and by what became of them");
    let mut responses = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (kind, totals) in totals {
        let events = [("sent", totals.sent), ("acknowledged", totals.acknowledged), ("refused", totals.refused)];
        for (event, count) in events {
            let labels = [("type", label(*kind)), ("event", event)];
            ConstCounter::new(count).encode(responses.encode_family(&labels)?)?;
        }
    }
    let (name, help) = ("weft_xds_resources_sent", "Resources in the responses sent");
    let mut resources = encoder.encode_descriptor(name, help, None, MetricType::Counter)?;
    for (kind, totals) in totals {
        ConstCounter::new(totals.resources_sent).encode(resources.encode_family(&[("type", label(*kind))])?)?;
    }
    Ok(())
}

/// `VmRSS` of proc_pid_status(5); `None` where there is no /proc.
fn resident_memory() -> Option<u64> {
    let status = std::fs::read_to_string("/proc/self/status").ok()?;
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:"))?;
    Some(line.trim().strip_suffix(" kB")?.parse::<u64>().ok()? * 1024)
}
