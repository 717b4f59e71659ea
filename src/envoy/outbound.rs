//! The one outbound listener of all sidecars. It names no service.
//!
//! ```text
//!  redirected connection ─▶ original destination
//!     in the mesh's ranges, HTTP  ─▶ x-weft-dst := destination ─▶ route ─▶ cluster of that name (asked for on demand)
//!     in the mesh's ranges, other ─▶ tcp_proxy to the cluster of that name (asked for on demand)
//!     elsewhere                   ─▶ passthrough
//! ```
//!
//! It depends on the mesh's ranges, on the declared TCP ports, and on what the sidecar is to tell of its traffic, and on
//! nothing else.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr, SocketAddr};
use std::time::Duration;

use envoy_types::pb::envoy::config::accesslog::v3::AccessLog;
use envoy_types::pb::envoy::config::common::mutation_rules::v3::{HeaderMutation as Mutation, header_mutation};
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::substitution_format_string::Format;
use envoy_types::pb::envoy::config::core::v3::{
    DataSource, HeaderValue, HeaderValueOption, Http1ProtocolOptions, SubstitutionFormatString, TrafficDirection,
    data_source,
};
use envoy_types::pb::envoy::config::listener::v3::listener_filter_chain_match_predicate::{MatchSet, Rule};
use envoy_types::pb::envoy::config::listener::v3::{
    Filter, FilterChain, FilterChainMatch, Listener, ListenerFilterChainMatchPredicate,
};
use envoy_types::pb::envoy::extensions::filters::common::set_filter_state::v3::FilterStateValue;
use envoy_types::pb::envoy::extensions::filters::common::set_filter_state::v3::filter_state_value::{
    Key, SharedWithUpstream, Value,
};
use envoy_types::pb::envoy::extensions::filters::http::on_demand::v3::{OnDemand, OnDemandCds};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType, RouteSpecifier, ServerHeaderTransformation, UpgradeConfig,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, HttpFilter, Rds,
};
use envoy_types::pb::envoy::extensions::filters::network::set_filter_state::v3::Config as NetworkFilterState;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::tcp_proxy::{
    ClusterSpecifier, OnDemand as TcpOnDemand, TcpAccessLogOptions,
};
use envoy_types::pb::envoy::extensions::http::early_header_mutation::header_mutation::v3::HeaderMutation;
use envoy_types::pb::envoy::r#type::v3::Int32Range;
use ipnet::IpNet;

use super::access_log;
use super::fault;
use super::http;
use super::message::{
    address, ads, boolean, cidr, duration, extension, http_filter, ipv6_too, listener_filter, network_filter, uint32,
};
use super::metrics::{self, Reporter};
use super::names::{
    ALPN_HTTP2, ALPN_TCP, DESTINATION_FORMAT, DESTINATION_HEADER, OUTBOUND, OUTBOUND_PORT, PASSTHROUGH, SOURCE_FORMAT,
    SOURCE_STATE,
};
use super::tracing;
use crate::policy::Telemetry;

/// How long a first call waits for its destination before it fails.
pub(super) const ON_DEMAND_TIMEOUT: Duration = Duration::from_secs(5);

/// What the HTTP inspector recognises.
pub(super) const HTTP: [&str; 3] = [HTTP1.inspected[0], HTTP1.inspected[1], HTTP2.inspected[0]];

/// A version of HTTP that has a chain of its own.
struct HttpVersion {
    chain: &'static str,
    /// What the HTTP inspector calls it.
    inspected: &'static [&'static str],
    codec: CodecType,
    /// What a callee's sidecar hears of it, where that is not what the cluster says by itself ([`super::tls::upstream`]).
    alpn: Option<&'static str>,
}

const HTTP1: HttpVersion =
    HttpVersion { chain: "http-1", inspected: &["http/1.0", "http/1.1"], codec: CodecType::Http1, alpn: None };
const HTTP2: HttpVersion =
    HttpVersion { chain: "http-2", inspected: &["h2c"], codec: CodecType::Http2, alpn: Some(ALPN_HTTP2) };

/// The ports that are declared TCP, which must not be parsed as HTTP, nor wait for a client's first bytes.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct TcpPorts {
    /// Port numbers that are TCP wherever they are declared.
    pub everywhere: BTreeSet<u16>,
    /// For port numbers that other Services declare otherwise: the addresses where they are TCP.
    pub at: BTreeMap<u16, BTreeSet<IpAddr>>,
}

/// The listener for a mesh of these ranges.
pub fn listener(ranges: &[IpNet], tcp: &TcpPorts, telemetry: &Telemetry) -> Listener {
    // A chain that names a port hides the chains that do not: HTTP on that port needs its own pair.
    let ports = tcp.at.keys().copied().map(Some).chain([None]);
    let filter_chains = ports.flat_map(|port| mesh_chains(ranges, tcp, port, telemetry)).collect();
    let mut inspector = listener_filter("envoy.filters.listener.http_inspector", HttpInspector {});
    inspector.filter_disabled = on_ports(&tcp.everywhere);
    Listener {
        listener_filters: vec![listener_filter("envoy.filters.listener.original_dst", OriginalDst {}), inspector],
        filter_chains,
        default_filter_chain: Some(FilterChain {
            name: PASSTHROUGH.to_owned(),
            filters: vec![tcp_proxy(PASSTHROUGH, PASSTHROUGH, None, telemetry)],
            ..Default::default()
        }),
        ..bare_listener(ranges)
    }
}

/// The outbound listener of a mesh of these ranges, without its filters.
pub(super) fn bare_listener(ranges: &[IpNet]) -> Listener {
    let ipv6 = ranges.iter().any(|range| matches!(range, IpNet::V6(_)));
    Listener {
        name: OUTBOUND.to_owned(),
        address: address(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), OUTBOUND_PORT)),
        additional_addresses: ipv6_too(OUTBOUND_PORT, ipv6),
        traffic_direction: TrafficDirection::Outbound.into(),
        // A connection is looked at when it says something, however late: HTTP clients keep connections in store, and
        // one that were taken for TCP after a time would be refused where only requests are allowed. Ports whose
        // server speaks first are not inspected.
        listener_filters_timeout: duration(Duration::ZERO),
        ..Default::default()
    }
}

/// The chains for destinations in the mesh's ranges: those of one port, or those of all ports that have none of their
/// own.
pub(super) fn mesh_chains(
    ranges: &[IpNet],
    tcp: &TcpPorts,
    port: Option<u16>,
    telemetry: &Telemetry,
) -> Vec<FilterChain> {
    let named = |name: &str| port.map_or_else(|| name.to_owned(), |port| format!("{name}-{port}"));
    let declared = port.and_then(|port| tcp.at.get(&port)).map(|addresses| {
        let only: Vec<IpNet> = addresses.iter().copied().map(IpNet::from).collect();
        tcp_chain(named("tcp-declared"), &only, port, telemetry)
    });
    let others = (!ranges.is_empty()).then(|| {
        let http = |version: HttpVersion| http_chain(named(version.chain), &version, ranges, port, telemetry);
        [http(HTTP1), http(HTTP2), tcp_chain(named("tcp"), ranges, port, telemetry)]
    });
    declared.into_iter().chain(others.into_iter().flatten()).collect()
}

/// The settings of an HTTP connection manager that changes as little as it can of what passes through.
pub(super) fn connection_manager(stat_prefix: &str, http_filters: Vec<HttpFilter>) -> HttpConnectionManager {
    HttpConnectionManager {
        stat_prefix: stat_prefix.to_owned(),
        codec_type: CodecType::Auto.into(),
        http_filters,
        server_header_transformation: ServerHeaderTransformation::PassThrough.into(),
        preserve_external_request_id: true,
        // Streams of gRPC and WebSocket may be quiet for as long as they like.
        stream_idle_timeout: duration(Duration::ZERO),
        http_protocol_options: Some(Http1ProtocolOptions {
            accept_http_10: true,
            default_host_for_http_10: http::UNKNOWN_HOST.to_owned(),
            ..http::http1()
        }),
        http2_protocol_options: Some(http::http2()),
        common_http_protocol_options: Some(http::common()),
        max_request_headers_kb: uint32(http::MAX_HEADERS_KB),
        // The application says whether it wants the body.
        proxy_100_continue: true,
        upgrade_configs: vec![UpgradeConfig { upgrade_type: "websocket".to_owned(), ..Default::default() }],
        ..Default::default()
    }
}

/// The router, without the headers that tell an application about its proxies.
pub(super) fn router() -> HttpFilter {
    http_filter("envoy.filters.http.router", plain_router())
}

/// The router that counts no answers by code. For where all go to one cluster: the connection manager counts the same.
pub(super) fn router_that_does_not_count() -> HttpFilter {
    http_filter("envoy.filters.http.router", Router { dynamic_stats: boolean(false), ..plain_router() })
}

fn plain_router() -> Router {
    Router { suppress_envoy_headers: true, ..Default::default() }
}

/// Connections to this cluster, or to the one that filter state names, with what telemetry tells of them.
pub(super) fn tcp_proxy(
    stat_prefix: &str,
    cluster: &str,
    on_demand: Option<TcpOnDemand>,
    telemetry: &Telemetry,
) -> Filter {
    let mut proxy = tcp_proxy_config(stat_prefix, cluster, on_demand);
    tell_of_connections(&mut proxy, telemetry, Reporter::Source);
    network_filter("envoy.filters.network.tcp_proxy", proxy)
}

/// Has a TCP proxy tell what telemetry tells of its connections.
pub(super) fn tell_of_connections(proxy: &mut TcpProxy, telemetry: &Telemetry, reporter: Reporter) {
    let counted = metrics::of_connections(telemetry.metrics, reporter);
    proxy.access_log_options = (!counted.is_empty())
        .then(|| TcpAccessLogOptions { flush_access_log_on_connected: true, ..Default::default() });
    let logged = access_log::of_connections(telemetry.access_log.as_ref(), reporter.side());
    proxy.access_log = counted.into_iter().chain(logged).collect();
}

/// The loggers of a connection manager that tell what telemetry tells of its requests.
pub(super) fn told_of_requests(telemetry: &Telemetry, reporter: Reporter) -> Vec<AccessLog> {
    let counted = metrics::of_requests(telemetry.metrics, reporter);
    let logged = access_log::of_requests(telemetry.access_log.as_ref(), reporter.side());
    counted.into_iter().chain(logged).collect()
}

pub(super) fn tcp_proxy_config(stat_prefix: &str, cluster: &str, on_demand: Option<TcpOnDemand>) -> TcpProxy {
    TcpProxy {
        stat_prefix: stat_prefix.to_owned(),
        cluster_specifier: Some(ClusterSpecifier::Cluster(cluster.to_owned())),
        on_demand,
        // The application's own keep-alive and time-outs decide, as without a mesh.
        idle_timeout: duration(Duration::ZERO),
        ..Default::default()
    }
}

fn http_chain(
    name: String,
    version: &HttpVersion,
    ranges: &[IpNet],
    port: Option<u16>,
    telemetry: &Telemetry,
) -> FilterChain {
    let manager = HttpConnectionManager {
        codec_type: version.codec.into(),
        local_reply_config: Some(fault::name_the_fault()),
        ..by_destination(OUTBOUND, vec![fault::filter(), on_demand(), router()], telemetry)
    };
    FilterChain {
        name,
        filter_chain_match: Some(FilterChainMatch {
            application_protocols: version.inspected.iter().map(|protocol| (*protocol).to_owned()).collect(),
            ..in_ranges(ranges, port)
        }),
        filters: vec![
            on_connection([source()].into_iter().chain(version.alpn.map(speaks)).collect()),
            network_filter("envoy.filters.network.http_connection_manager", manager),
        ],
        ..Default::default()
    }
}

/// A connection manager whose routes know each request's destination by its header, with what telemetry tells of them.
pub(super) fn by_destination(routes: &str, filters: Vec<HttpFilter>, telemetry: &Telemetry) -> HttpConnectionManager {
    let mut manager = HttpConnectionManager {
        access_log: told_of_requests(telemetry, Reporter::Source),
        early_header_mutation_extensions: vec![extension(
            "envoy.http.early_header_mutation.header_mutation",
            HeaderMutation { mutations: vec![write_header(DESTINATION_HEADER, DESTINATION_FORMAT)] },
        )],
        // A proxy does not serve before it has its routes, however long that takes.
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            config_source: Some(ads(Duration::ZERO)),
            route_config_name: routes.to_owned(),
        })),
        ..connection_manager(routes, filters)
    };
    if let Some(tracing) = &telemetry.tracing {
        tracing::trace(&mut manager, tracing);
    }
    manager
}

/// Has a request wait for a cluster that the proxy does not have yet.
pub(super) fn on_demand() -> HttpFilter {
    let odcds = OnDemandCds {
        source: Some(ads(ON_DEMAND_TIMEOUT)),
        timeout: duration(ON_DEMAND_TIMEOUT),
        ..Default::default()
    };
    http_filter("envoy.filters.http.on_demand", OnDemand { odcds: Some(odcds) })
}

/// Has a connection wait for a cluster that the proxy does not have yet.
pub(super) fn tcp_on_demand() -> TcpOnDemand {
    TcpOnDemand {
        odcds_config: Some(ads(ON_DEMAND_TIMEOUT)),
        timeout: duration(ON_DEMAND_TIMEOUT),
        ..Default::default()
    }
}

fn tcp_chain(name: String, ranges: &[IpNet], port: Option<u16>, telemetry: &Telemetry) -> FilterChain {
    FilterChain {
        name,
        filter_chain_match: Some(in_ranges(ranges, port)),
        filters: vec![
            on_connection(vec![filter_state("envoy.tcp_proxy.cluster", DESTINATION_FORMAT), speaks(ALPN_TCP)]),
            // The filter state names the cluster; the one named here is for a listener that forgot to set it.
            tcp_proxy(OUTBOUND, PASSTHROUGH, Some(tcp_on_demand()), telemetry),
        ],
        ..Default::default()
    }
}

pub(super) fn in_ranges(ranges: &[IpNet], port: Option<u16>) -> FilterChainMatch {
    FilterChainMatch {
        prefix_ranges: ranges.iter().map(cidr).collect(),
        destination_port: port.and_then(|port| uint32(port.into())),
        ..Default::default()
    }
}

/// The header := the value, overwriting what a client sent.
fn write_header(header: &str, format: &str) -> Mutation {
    let header = HeaderValue { key: header.to_owned(), value: format.to_owned(), ..Default::default() };
    Mutation {
        action: Some(header_mutation::Action::Append(HeaderValueOption {
            header: Some(header),
            append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
            ..Default::default()
        })),
    }
}

/// Notes these of each connection, which costs its requests nothing.
fn on_connection(values: Vec<FilterStateValue>) -> Filter {
    let state = NetworkFilterState { on_new_connection: values, ..Default::default() };
    network_filter("envoy.filters.network.set_filter_state", state)
}

/// What the mesh's TLS says is inside.
fn speaks(alpn: &str) -> FilterStateValue {
    filter_state("envoy.network.application_protocols", alpn)
}

/// Whose connection it is, for the routes.
fn source() -> FilterStateValue {
    FilterStateValue {
        factory_key: "envoy.string".to_owned(),
        shared_with_upstream: SharedWithUpstream::None.into(),
        ..filter_state(SOURCE_STATE, SOURCE_FORMAT)
    }
}

fn filter_state(key: &str, format: &str) -> FilterStateValue {
    let text =
        DataSource { specifier: Some(data_source::Specifier::InlineString(format.to_owned())), ..Default::default() };
    FilterStateValue {
        key: Some(Key::ObjectKey(key.to_owned())),
        value: Some(Value::FormatString(SubstitutionFormatString {
            format: Some(Format::TextFormatSource(text)),
            ..Default::default()
        })),
        shared_with_upstream: SharedWithUpstream::Once.into(),
        ..Default::default()
    }
}

/// Fits the ports; `None` when there are none.
pub(super) fn on_ports(ports: &BTreeSet<u16>) -> Option<ListenerFilterChainMatchPredicate> {
    let on = |port: &u16| ListenerFilterChainMatchPredicate {
        rule: Some(Rule::DestinationPortRange(Int32Range { start: (*port).into(), end: i32::from(*port) + 1 })),
    };
    let mut rules: Vec<_> = ports.iter().map(on).collect();
    match rules.len() {
        0 | 1 => rules.pop(),
        _ => Some(ListenerFilterChainMatchPredicate { rule: Some(Rule::OrMatch(MatchSet { rules })) }),
    }
}
