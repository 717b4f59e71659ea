//! `weft proxy clusters`: Envoy's `/clusters?format=json` (`envoy.admin.v3.Clusters`), a row an endpoint.

use serde::Serialize;
use serde_json::Value;

use super::config_dump::{address, items, text};
use crate::cli::output::Table;

/// One endpoint of one cluster, with its counters since the proxy learnt of it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct EndpointStatus {
    cluster: String,
    /// The readable name that its statistics have.
    stat_name: String,
    /// `None` for a cluster without endpoints.
    endpoint: Option<String>,
    /// As discovered, or why the proxy does not use it.
    health: String,
    weight: u64,
    zone: String,
    requests: u64,
    /// Requests that ended in an error of the endpoint or of the connection to it.
    failures: u64,
    active_requests: u64,
    connections: u64,
    connect_failures: u64,
}

/// All endpoints, by cluster.
pub(super) fn endpoints(clusters: &Value) -> Vec<EndpointStatus> {
    let mut all = Vec::new();
    for cluster in items(clusters, "cluster_statuses") {
        let before = all.len();
        all.extend(items(cluster, "host_statuses").map(|host| endpoint(cluster, Some(host))));
        if all.len() == before {
            all.push(endpoint(cluster, None));
        }
    }
    all.sort_by(|a: &EndpointStatus, b| (&a.cluster, &a.endpoint).cmp(&(&b.cluster, &b.endpoint)));
    all
}

fn endpoint(cluster: &Value, host: Option<&Value>) -> EndpointStatus {
    let absent = Value::Null;
    let status = host.unwrap_or(&absent);
    let stat = |name: &str| items(status, "stats").find(|stat| text(stat, "name") == name).map_or(0, value);
    EndpointStatus {
        cluster: text(cluster, "name").to_owned(),
        stat_name: text(cluster, "observability_name").to_owned(),
        endpoint: host.map(|host| address(&host["address"])),
        health: host.map(|host| health(&host["health_status"])).unwrap_or_default(),
        weight: status["weight"].as_u64().unwrap_or(0),
        zone: text(&status["locality"], "zone").to_owned(),
        requests: stat("rq_total"),
        failures: stat("rq_error"),
        active_requests: stat("rq_active"),
        connections: stat("cx_active"),
        connect_failures: stat("cx_connect_fail"),
    }
}

/// A counter; protobuf's JSON writes 64-bit numbers as text and leaves out zero.
fn value(stat: &Value) -> u64 {
    text(stat, "value").parse().unwrap_or(0)
}

/// Every flag of `envoy.admin.v3.HostHealthStatus` that is set tells why the endpoint is not used.
fn health(status: &Value) -> String {
    let flags: Vec<&str> = status
        .as_object()
        .into_iter()
        .flatten()
        .filter(|(_, value)| **value == true)
        .map(|(name, _)| name.as_str())
        .collect();
    match (flags.is_empty(), text(status, "eds_health_status")) {
        (false, _) => flags.join(","),
        (true, "") => "UNKNOWN".to_owned(),
        (true, discovered) => discovered.to_owned(),
    }
}

/// The table for reading.
pub(super) fn table(endpoints: &[EndpointStatus]) -> String {
    let mut table = Table::new([
        "CLUSTER",
        "STAT NAME",
        "ENDPOINT",
        "HEALTH",
        "REQUESTS",
        "FAILURES",
        "ACTIVE",
        "CONNECTIONS",
        "CONNECT FAILURES",
    ]);
    for each in endpoints {
        // A cluster is named twice only if its two names differ.
        let stat_name = if each.stat_name == each.cluster { String::new() } else { each.stat_name.clone() };
        let count = |count: u64| if each.endpoint.is_some() { count.to_string() } else { String::new() };
        table.row([
            each.cluster.clone(),
            stat_name,
            each.endpoint.clone().unwrap_or("none".to_owned()),
            each.health.clone(),
            count(each.requests),
            count(each.failures),
            count(each.active_requests),
            count(each.connections),
            count(each.connect_failures),
        ]);
    }
    table.to_string()
}
