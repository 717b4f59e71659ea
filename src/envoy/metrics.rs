//! Golden metrics: who called whom, how often, how fast, and how it ended, counted by both sidecars of a hop.
//!
//! ```text
//!  a request, a connection ─▶ access log ─▶ stats access logger ─▶ envoy_weft_…{labels}, at 15020/stats/prometheus
//!
//!  own side:   the sidecar's environment (WEFT_NAMESPACE, …), so that the outbound listener stays the same for all
//!  other side: at the caller the metadata of cluster and endpoint, at the callee the certificate and the SNI
//! ```
//!
//! No label has a value that an application can make up: neither path nor method nor header. What the other side of a
//! hop decides (status codes) is bounded by what Envoy forwards, and [`MAX_COUNTERS`] ends what a sidecar that lies
//! could do.

use std::collections::{BTreeSet, HashMap};

use envoy_types::pb::envoy::config::accesslog::v3::access_log::ConfigType;
use envoy_types::pb::envoy::config::accesslog::v3::access_log_filter::FilterSpecifier;
use envoy_types::pb::envoy::config::accesslog::v3::{AccessLog, AccessLogFilter, AndFilter, HeaderFilter};
use envoy_types::pb::envoy::config::core::v3::Metadata;
use envoy_types::pb::envoy::config::route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier};
use envoy_types::pb::envoy::data::accesslog::v3::AccessLogType;
use envoy_types::pb::envoy::extensions::access_loggers::stats::v3::Config;
use envoy_types::pb::envoy::extensions::access_loggers::stats::v3::config::{Counter, Histogram, Stat, Tag, histogram};
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use envoy_types::pb::envoy::r#type::v3::Scope;
use envoy_types::pb::google::protobuf::{Struct, UInt64Value, Value, value::Kind};
use envoy_types::util::pack_any;

use super::access_log::{self, Side};
use super::message::uint32;
use crate::mesh::object::{MetricsMode, Probe};
use crate::mesh::{Namespace, ServiceKey};
use crate::policy::Workload;

/// The access logger. Older Envoys than 1.39 do not have it, or not with the limits below: see [`crate::xds`].
const LOGGER: &str = "envoy.access_loggers.stats";

/// What the names of the metrics begin with; Envoy puts `envoy_` before it.
const PREFIX: &str = "weft";

/// The most counters that one logger makes; what comes later is not counted. A workload with a hundred destinations, each
/// with ten outcomes, stays below.
const MAX_COUNTERS: u32 = 4_000;
/// As [`MAX_COUNTERS`]: a histogram has no outcomes, but takes more memory.
const MAX_HISTOGRAMS: u32 = 1_000;

/// Where the metadata of clusters and endpoints has what the labels say.
const METADATA: &str = "weft";

/// Where a listener's side of a hop is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Reporter {
    /// The caller's sidecar.
    Source,
    /// The callee's sidecar, for what arrives over the mesh's TLS.
    Destination,
    /// The callee's sidecar, for what arrives in clear: nothing is known of the caller.
    DestinationOfPlaintext,
}

/// The access loggers that count requests.
pub(super) fn of_requests(mode: MetricsMode, reporter: Reporter) -> Vec<AccessLog> {
    let edge = reporter.edge();
    let outcome = [
        ("protocol", "%PROTOCOL%"),
        ("response_code", "%RESPONSE_CODE%"),
        ("response_flags", "%RESPONSE_FLAGS%"),
        ("grpc_status", "%GRPC_STATUS_NUMBER%"),
    ];
    let mut counters =
        vec![count("requests_total", [&edge, reporter.principals(), &outcome[..], reporter.audit()].concat())];
    // Once for each call, to spare each the time: by the caller's sidecar, where there is one.
    if reporter != Reporter::Destination {
        counters.push(sum("request_bytes_total", &edge, "%BYTES_RECEIVED%"));
        counters.push(sum("response_bytes_total", &edge, "%BYTES_SENT%"));
    }
    let duration = Histogram {
        stat: stat("request_duration_milliseconds", &edge),
        unit: histogram::Unit::Milliseconds.into(),
        value_format: "%DURATION%".to_owned(),
    };
    logger(mode, counters, vec![duration], None).into_iter().collect()
}

/// The access loggers that count requests in clear, except for the kubelet's probes: many a workload has more of them
/// than of requests.
pub(super) fn of_plaintext_requests(mode: MetricsMode, probes: &BTreeSet<Probe>) -> Vec<AccessLog> {
    let paths: BTreeSet<&str> = probes.iter().filter_map(Probe::path).collect();
    let other_than = |pattern| {
        let path = StringMatcher { match_pattern: Some(pattern), ..Default::default() };
        let header = HeaderMatcher {
            name: ":path".to_owned(),
            invert_match: true,
            header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(path)),
            ..Default::default()
        };
        let filter = FilterSpecifier::HeaderFilter(HeaderFilter { header: Some(header) });
        AccessLogFilter { filter_specifier: Some(filter) }
    };
    let with_query = |path: &str| MatchPattern::Prefix(format!("{path}?"));
    let filters = paths
        .iter()
        .flat_map(|path| [other_than(MatchPattern::Exact((*path).to_owned())), other_than(with_query(path))]);
    let filter = (!paths.is_empty()).then(|| AccessLogFilter {
        filter_specifier: Some(FilterSpecifier::AndFilter(AndFilter { filters: filters.collect() })),
    });
    let mut logs = of_requests(mode, Reporter::DestinationOfPlaintext);
    logs.iter_mut().for_each(|log| log.filter.clone_from(&filter));
    logs
}

/// The access loggers that count connections which are not HTTP. They want to be told when one is opened, too
/// (`flush_access_log_on_connected`).
pub(super) fn of_connections(mode: MetricsMode, reporter: Reporter) -> Vec<AccessLog> {
    let edge = [&reporter.edge()[..], reporter.principals()].concat();
    // A callee denies a connection in the handshake where it can, and else by its rules. The reason as Envoy words it
    // quotes the certificate.
    let termination = match reporter.side() {
        Side::Outbound => "%CONNECTION_TERMINATION_DETAILS%",
        Side::Inbound => {
            "%CONNECTION_TERMINATION_DETAILS%\
             %CEL(connection.transport_failure_reason.contains('SAN matcher') ? 'san_denied' : '')%"
        }
    };
    let outcome = [("response_flags", "%RESPONSE_FLAGS%"), ("termination", termination)];
    let opened = vec![count("tcp_connections_opened_total", edge.clone())];
    let closed = vec![
        count("tcp_connections_closed_total", [&edge, &outcome[..]].concat()),
        sum("tcp_received_bytes_total", &edge, "%BYTES_RECEIVED%"),
        sum("tcp_sent_bytes_total", &edge, "%BYTES_SENT%"),
    ];
    let opened = logger(mode, opened, Vec::new(), Some(AccessLogType::TcpUpstreamConnected));
    opened.into_iter().chain(logger(mode, closed, Vec::new(), Some(AccessLogType::TcpConnectionEnd))).collect()
}

/// What the cluster of a Service's port says of it.
pub(super) fn of_service(service: &ServiceKey, port: u16) -> Option<Metadata> {
    let ServiceKey { namespace, name } = service;
    metadata(of_strings([("namespace", namespace.as_str()), ("port", &port.to_string()), ("service", name)]))
}

/// What the cluster of a pod's address says of it.
pub(super) fn of_pod(namespace: &Namespace) -> Option<Metadata> {
    metadata(of_strings([("namespace", namespace.as_str())]))
}

/// What an endpoint says of itself, with the key that it says it under.
pub(super) fn of_workload(workload: &Workload) -> (String, Struct) {
    let version = workload.version.as_deref().map(|version| ("version", version));
    (METADATA.to_owned(), of_strings(version.into_iter().chain([("workload", &*workload.name)])))
}

fn metadata(value: Struct) -> Option<Metadata> {
    Some(Metadata { filter_metadata: HashMap::from([(METADATA.to_owned(), value)]), ..Default::default() })
}

fn of_strings<'a>(fields: impl IntoIterator<Item = (&'a str, &'a str)>) -> Struct {
    let value = |text: &str| Value { kind: Some(Kind::StringValue(text.to_owned())) };
    let fields: Vec<_> = fields.into_iter().map(|(name, text)| (name.to_owned(), value(text))).collect();
    Struct { fields: in_order(&fields) }
}

/// A map that is written in the order of its keys. Equal plans have to give equal bytes, prost writes a map as it
/// iterates, and the order in that is another for every `HashMap`: so a few of them are made until one is in order.
pub(super) fn in_order<V: Clone>(entries: &[(String, V)]) -> HashMap<String, V> {
    loop {
        let map: HashMap<String, V> = entries.iter().cloned().collect();
        if map.keys().is_sorted() {
            return map;
        }
    }
}

type Label = (&'static str, &'static str);

impl Reporter {
    /// Which end of a hop it is.
    pub(super) fn side(self) -> Side {
        match self {
            Self::Source => Side::Outbound,
            Self::Destination | Self::DestinationOfPlaintext => Side::Inbound,
        }
    }

    /// Who called whom, in as few labels as can be: each takes time whenever it is counted.
    fn edge(self) -> Vec<Label> {
        match self {
            Self::Source => vec![
                ("reporter", "source"),
                ("source_namespace", "%ENVIRONMENT(WEFT_NAMESPACE)%"),
                ("source_workload", "%ENVIRONMENT(WEFT_WORKLOAD)%"),
                ("source_version", "%ENVIRONMENT(WEFT_VERSION)%"),
                ("destination_namespace", "%CLUSTER_METADATA(weft:namespace)%"),
                ("destination_service", "%CLUSTER_METADATA(weft:service)%"),
                ("destination_port", "%CLUSTER_METADATA(weft:port)%"),
                ("destination_workload", "%UPSTREAM_METADATA(weft:workload)%"),
                ("destination_version", "%UPSTREAM_METADATA(weft:version)%"),
            ],
            Self::Destination => [
                &Self::DestinationOfPlaintext.edge()[..],
                &[
                    ("source_principal", "%DOWNSTREAM_PEER_URI_SAN%"),
                    // `80.cart.shop.svc.cluster.local`: there are no operators that would take it apart.
                    ("destination_sni", "%REQUESTED_SERVER_NAME%"),
                ],
            ]
            .concat(),
            Self::DestinationOfPlaintext => vec![
                ("reporter", "destination"),
                ("destination_namespace", "%ENVIRONMENT(WEFT_NAMESPACE)%"),
                ("destination_workload", "%ENVIRONMENT(WEFT_WORKLOAD)%"),
                ("destination_version", "%ENVIRONMENT(WEFT_VERSION)%"),
            ],
        }
    }

    /// What is known of the identities beyond that.
    fn principals(self) -> &'static [Label] {
        match self {
            Self::Source => &[
                ("source_principal", "%UPSTREAM_LOCAL_URI_SAN%"),
                ("destination_principal", "%UPSTREAM_PEER_URI_SAN%"),
            ],
            Self::Destination => &[("destination_principal", "%DOWNSTREAM_LOCAL_URI_SAN%")],
            Self::DestinationOfPlaintext => &[],
        }
    }

    /// What enforcement would have said, where authorisation is in audit mode.
    fn audit(self) -> &'static [Label] {
        match self {
            Self::Source => &[],
            // The prefix of the shadow rules' statistics (`inbound::AUDIT`) and Envoy's own key, with nothing between.
            Self::Destination | Self::DestinationOfPlaintext => {
                &[("audit", "%DYNAMIC_METADATA(envoy.filters.http.rbac:auditshadow_engine_result)%")]
            }
        }
    }
}

fn stat(name: &str, labels: &[Label]) -> Option<Stat> {
    let tag = |(name, format): &Label| Tag {
        name: (*name).to_owned(),
        value_format: (*format).to_owned(),
        ..Default::default()
    };
    Some(Stat { name: name.to_owned(), tags: labels.iter().map(tag).collect() })
}

fn count(name: &str, labels: Vec<Label>) -> Counter {
    Counter { stat: stat(name, &labels), value_fixed: Some(UInt64Value { value: 1 }), ..Default::default() }
}

fn sum(name: &str, labels: &[Label], of: &str) -> Counter {
    Counter { stat: stat(name, labels), value_format: of.to_owned(), ..Default::default() }
}

fn logger(
    mode: MetricsMode,
    counters: Vec<Counter>,
    histograms: Vec<Histogram>,
    only: Option<AccessLogType>,
) -> Option<AccessLog> {
    if mode == MetricsMode::Basic {
        return None;
    }
    let config = Config {
        stats_scope: Some(Scope {
            prefix: PREFIX.to_owned(),
            max_counters: uint32(MAX_COUNTERS),
            max_histograms: uint32(MAX_HISTOGRAMS),
            ..Default::default()
        }),
        counters,
        histograms,
        ..Default::default()
    };
    Some(AccessLog {
        name: LOGGER.to_owned(),
        filter: only.map(|only| access_log::of_types([only])),
        config_type: Some(ConfigType::TypedConfig(pack_any(config))),
    })
}

#[cfg(test)]
mod tests {
    use prost::Message;

    use super::*;

    /// The operators whose values the mesh decides, or Envoy.
    const OPERATORS: [&str; 15] = [
        "ENVIRONMENT(WEFT_",
        "CLUSTER_METADATA(weft:",
        "UPSTREAM_METADATA(weft:",
        "DYNAMIC_METADATA(envoy.filters.http.rbac:",
        "UPSTREAM_LOCAL_URI_SAN%",
        "UPSTREAM_PEER_URI_SAN%",
        "DOWNSTREAM_LOCAL_URI_SAN%",
        "DOWNSTREAM_PEER_URI_SAN%",
        "REQUESTED_SERVER_NAME%",
        "PROTOCOL%",
        "RESPONSE_CODE%",
        "RESPONSE_FLAGS%",
        "GRPC_STATUS_NUMBER%",
        "CONNECTION_TERMINATION_DETAILS%",
        // One of two values.
        "CEL(connection.transport_failure_reason.contains('SAN matcher') ? 'san_denied' : '')%",
    ];

    /// The formats of all labels.
    fn formats(log: &AccessLog) -> Vec<String> {
        let Some(ConfigType::TypedConfig(any)) = &log.config_type else { panic!("{log:?}") };
        let config = Config::decode(&*any.value).expect("the logger's configuration");
        let counters = config.counters.into_iter().filter_map(|counter| counter.stat);
        let stats = counters.chain(config.histograms.into_iter().filter_map(|histogram| histogram.stat));
        stats.flat_map(|stat| stat.tags).map(|tag| tag.value_format).collect()
    }

    #[test]
    fn no_label_comes_from_what_an_application_says() {
        for reporter in [Reporter::Source, Reporter::Destination, Reporter::DestinationOfPlaintext] {
            let logs = [of_requests(MetricsMode::Full, reporter), of_connections(MetricsMode::Full, reporter)].concat();
            assert_eq!(logs.len(), 3);
            for format in logs.iter().flat_map(formats).filter(|format| format.contains('%')) {
                let is_known = |operator: &str| OPERATORS.iter().any(|known| format!("{operator}%").starts_with(known));
                let is_whole = format.starts_with('%') && format.ends_with('%');
                assert!(is_whole && format.trim_matches('%').split("%%").all(is_known), "{format}");
                // In clear, a stranger chooses the name.
                assert!(reporter != Reporter::DestinationOfPlaintext || format != "%REQUESTED_SERVER_NAME%");
            }
        }
    }

    #[test]
    fn basic_is_nothing_more() {
        assert!(of_requests(MetricsMode::Basic, Reporter::Source).is_empty());
        assert!(of_connections(MetricsMode::Basic, Reporter::Destination).is_empty());
    }

    #[test]
    fn equal_metadata_has_equal_bytes() {
        let bytes = || {
            let (key, value) = of_workload(&Workload { name: "cart".into(), version: Some("v1".into()) });
            let both = [(key, value), ("a".to_owned(), of_strings([("tls", "mesh")]))];
            let both = Some(Metadata { filter_metadata: in_order(&both), ..Default::default() });
            let service = of_service(&ServiceKey::new("shop", "cart"), 80);
            [both, service].map(|metadata| metadata.expect("metadata").encode_to_vec())
        };
        let first = bytes();
        assert!((0..50).all(|_| bytes() == first));
    }
}
