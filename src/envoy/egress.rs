//! The outbound side of a sidecar that may call only some hosts outside the mesh.
//!
//! ```text
//!  in the mesh's ranges           ─▶ as in outbound.rs, which knows nothing of TLS
//!  an address that is allowed     ─▶ on to it, whatever is spoken
//!  HTTP, by Host and port         ─▶ an address that this name stands for; else 403
//!  TLS, by SNI and port           ─▶ an address that this name stands for
//!  anything else                  ─▶ closed
//! ```
//!
//! What is allowed by name goes to where the *name* leads, and not to the address that the application connected to: an
//! allowed name would otherwise open every address. Clusters of hosts are asked for when they are first called.
//!
//! Envoy looks at a connection's port first, then its destination, SNI, transport and application protocol, and never
//! goes back. So every port that is named has all chains of its own, and in the mesh's ranges TLS has a chain: what it
//! negotiates inside (`h2`) would otherwise be taken for HTTP.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, FilterChainMatch, Listener};
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::route::Action;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    DirectResponseAction, HeaderMatcher, Route, RouteConfiguration, RouteMatch, VirtualHost,
};
use envoy_types::pb::envoy::extensions::filters::http::dynamic_forward_proxy::v3::FilterConfig as HttpForwardProxy;
use envoy_types::pb::envoy::extensions::filters::http::dynamic_forward_proxy::v3::filter_config::ImplementationSpecifier;
use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3::FilterConfig as SniForwardProxy;
use envoy_types::pb::envoy::extensions::filters::network::sni_dynamic_forward_proxy::v3::filter_config::PortSpecifier;
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use ipnet::IpNet;

use super::message::{boolean, http_filter, listener_filter, network_filter};
use super::names::{self, DESTINATION_HEADER, EGRESS, EGRESS_DENIED, EGRESS_WILDCARD, PASSTHROUGH};
use super::outbound::{self, HTTP, TcpPorts, in_ranges, on_demand, router, tcp_on_demand, tcp_proxy};
use super::{cluster, inbound, rbac, route, traffic_policy};
use crate::mesh::object::{EgressHost, RequestSettings};
use crate::policy::{EgressPlan, Telemetry};

/// What an application reads when no Egress allows its request. It knows all of it already.
const NOT_ALLOWED: &str =
    "Weft: no Egress allows this workload to call %REQ(:AUTHORITY)% at %DOWNSTREAM_LOCAL_ADDRESS%\n";

/// Connections that a sidecar finds in clear, as the TLS inspector says it.
const IN_CLEAR: &str = "raw_buffer";

/// The outbound listener for this plan in a mesh of these ranges. `parsed` are the ports that some Service declares as
/// something that is looked into.
pub fn listener(
    ranges: &[IpNet],
    tcp: &TcpPorts,
    parsed: &BTreeSet<u16>,
    plan: &EgressPlan,
    telemetry: &Telemetry,
) -> Listener {
    let by_name: BTreeSet<u16> = plan.http.iter().chain(&plan.tls).map(|(_, port)| *port).collect();
    let by_address = plan.addresses.iter().filter_map(|(port, _)| *port);
    let ports: BTreeSet<u16> = tcp.at.keys().chain(&by_name).copied().chain(by_address).collect();
    let groups = ports.into_iter().map(Some).chain([None]);
    let filter_chains = groups.flat_map(|port| {
        // A port that every Service declares TCP is looked into for the names outside alone.
        let is_tcp = port.is_some_and(|port| tcp.everywhere.contains(&port));
        let mesh =
            outbound::mesh_chains(ranges, tcp, port, telemetry).into_iter().filter(|chain| !(is_tcp && is_http(chain)));
        let mut chains: Vec<FilterChain> = mesh.flat_map(beside_tls).collect();
        chains.extend(to_addresses(tcp, plan, port, telemetry));
        chains.push(http(plan, port, telemetry));
        chains.extend(plan.tls.iter().filter(|(_, at)| Some(*at) == port).map(|(host, at)| tls(host, *at, telemetry)));
        chains
    });
    let by_address = tcp.everywhere.iter().chain(plan.tcp.difference(parsed));
    let first_of_server = by_address.copied().filter(|port| !by_name.contains(port)).collect();
    let inspected = |mut filter: envoy_types::pb::envoy::config::listener::v3::ListenerFilter| {
        filter.filter_disabled = outbound::on_ports(&first_of_server);
        filter
    };
    Listener {
        listener_filters: vec![
            listener_filter("envoy.filters.listener.original_dst", OriginalDst {}),
            inspected(listener_filter("envoy.filters.listener.tls_inspector", TlsInspector::default())),
            inspected(listener_filter("envoy.filters.listener.http_inspector", HttpInspector {})),
        ],
        filter_chains: filter_chains.collect(),
        default_filter_chain: Some(FilterChain {
            name: EGRESS_DENIED.to_owned(),
            // There is no such cluster: the connection is closed.
            filters: vec![tcp_proxy(EGRESS_DENIED, EGRESS_DENIED, None, telemetry)],
            ..Default::default()
        }),
        ..outbound::bare_listener(ranges)
    }
}

/// The routes of requests that leave: by their Host, and the port that the application connected to.
pub fn routes(plan: &EgressPlan) -> RouteConfiguration {
    let mut by_host: BTreeMap<&EgressHost, Vec<Route>> = BTreeMap::new();
    for (host, port) in &plan.http {
        by_host.entry(host).or_default().push(allowed(host, *port));
    }
    let hosts = by_host.into_iter().map(|(host, mut routes)| {
        routes.push(denied());
        virtual_host(host.to_string(), routes)
    });
    RouteConfiguration {
        name: EGRESS.to_owned(),
        virtual_hosts: hosts.chain([virtual_host("*".to_owned(), vec![denied()])]).collect(),
        // Clusters come when they are first called.
        validate_clusters: boolean(false),
        // `api.example.com:8080` is the host `api.example.com`.
        ignore_port_in_host_matching: true,
        ..Default::default()
    }
}

/// A chain of the mesh where TLS is told apart: one that is for HTTP is for HTTP in clear only, and what is for all
/// else has a twin for TLS.
fn beside_tls(chain: FilterChain) -> Vec<FilterChain> {
    let Some(fits) = chain.filter_chain_match.clone() else { return vec![chain] };
    let twin = (!is_http(&chain)).then(|| FilterChain {
        name: format!("{}-tls", chain.name),
        filter_chain_match: Some(FilterChainMatch { transport_protocol: "tls".to_owned(), ..fits.clone() }),
        ..chain.clone()
    });
    let in_clear = FilterChain {
        filter_chain_match: Some(FilterChainMatch { transport_protocol: IN_CLEAR.to_owned(), ..fits }),
        ..chain
    };
    [in_clear].into_iter().chain(twin).collect()
}

fn is_http(chain: &FilterChain) -> bool {
    chain.filter_chain_match.as_ref().is_some_and(|fits| !fits.application_protocols.is_empty())
}

fn named(name: &str, port: Option<u16>) -> String {
    port.map_or_else(|| name.to_owned(), |port| format!("{name}-{port}"))
}

/// On to addresses that are allowed on this port, whatever is spoken.
fn to_addresses(tcp: &TcpPorts, plan: &EgressPlan, port: Option<u16>, telemetry: &Telemetry) -> Option<FilterChain> {
    let fits = |of: &Option<u16>| of.is_none() || *of == port;
    // Envoy refuses two chains for one destination.
    let is_a_service = |range: &IpNet| {
        let declared = port.and_then(|port| tcp.at.get(&port)).into_iter().flatten();
        declared.copied().any(|ip| IpNet::from(ip) == *range)
    };
    let ranges = plan.addresses.iter().filter(|(of, range)| fits(of) && !is_a_service(range));
    let ranges: BTreeSet<IpNet> = ranges.map(|(_, range)| *range).collect();
    (!ranges.is_empty()).then(|| FilterChain {
        name: named("egress-addresses", port),
        filter_chain_match: Some(in_ranges(&Vec::from_iter(ranges), port)),
        filters: vec![tcp_proxy(EGRESS, PASSTHROUGH, None, telemetry)],
        ..Default::default()
    })
}

fn http(plan: &EgressPlan, port: Option<u16>, telemetry: &Telemetry) -> FilterChain {
    let wildcard = plan.http.iter().any(|(host, _)| matches!(host, EgressHost::Below(_)));
    let forward = wildcard.then(|| {
        let config = HttpForwardProxy {
            implementation_specifier: Some(ImplementationSpecifier::DnsCacheConfig(cluster::dns_cache())),
            ..Default::default()
        };
        http_filter("envoy.filters.http.dynamic_forward_proxy", config)
    });
    let filters = [on_demand()].into_iter().chain(forward).chain([router()]).collect();
    let manager = HttpConnectionManager {
        local_reply_config: Some(inbound::local_replies(NOT_ALLOWED)),
        ..outbound::by_destination(EGRESS, filters, telemetry)
    };
    FilterChain {
        name: named("egress-http", port),
        filter_chain_match: Some(FilterChainMatch {
            transport_protocol: IN_CLEAR.to_owned(),
            application_protocols: HTTP.map(str::to_owned).into(),
            ..in_ranges(&[], port)
        }),
        filters: vec![network_filter("envoy.filters.network.http_connection_manager", manager)],
        ..Default::default()
    }
}

fn tls(host: &EgressHost, port: u16, telemetry: &Telemetry) -> FilterChain {
    let filters: Vec<Filter> = match host {
        EgressHost::Exactly(name) => {
            vec![tcp_proxy(EGRESS, names::egress(name, port).as_str(), Some(tcp_on_demand()), telemetry)]
        }
        EgressHost::Below(_) => {
            let config = SniForwardProxy {
                dns_cache_config: Some(cluster::dns_cache()),
                port_specifier: Some(PortSpecifier::PortValue(port.into())),
                ..Default::default()
            };
            let forward = network_filter("envoy.filters.network.sni_dynamic_forward_proxy", config);
            vec![forward, tcp_proxy(EGRESS, EGRESS_WILDCARD, Some(tcp_on_demand()), telemetry)]
        }
    };
    FilterChain {
        name: format!("egress-tls-{host}-{port}"),
        filter_chain_match: Some(FilterChainMatch {
            server_names: vec![host.to_string()],
            transport_protocol: "tls".to_owned(),
            ..in_ranges(&[], Some(port))
        }),
        filters,
        ..Default::default()
    }
}

fn virtual_host(domain: String, routes: Vec<Route>) -> VirtualHost {
    VirtualHost {
        name: if domain == "*" { EGRESS_DENIED.to_owned() } else { domain.clone() },
        domains: vec![domain],
        routes,
        request_headers_to_remove: vec![DESTINATION_HEADER.to_owned()],
        retry_policy: Some(traffic_policy::retry(None)),
        ..Default::default()
    }
}

fn allowed(host: &EgressHost, port: u16) -> Route {
    let ends = StringMatcher { match_pattern: Some(MatchPattern::Suffix(format!(":{port}"))), ..Default::default() };
    let mut headers = vec![HeaderMatcher {
        name: DESTINATION_HEADER.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(ends)),
        ..Default::default()
    }];
    let cluster = match host {
        EgressHost::Exactly(name) => names::egress(name, port).to_string(),
        EgressHost::Below(_) => {
            headers.push(states_port(port));
            EGRESS_WILDCARD.to_owned()
        }
    };
    let fits = RouteMatch { headers, ..route::any_request() };
    route::to(fits, ClusterSpecifier::Cluster(cluster), &RequestSettings::default())
}

/// By a wildcard, a request goes to the port that its Host states, or else to 80: that must be the one that is allowed.
fn states_port(port: u16) -> HeaderMatcher {
    let port = if port == 80 { "(:80)?".to_owned() } else { format!(":{port}") };
    rbac::header(":authority", format!("[^:]*{port}"))
}

fn denied() -> Route {
    Route {
        r#match: Some(route::any_request()),
        action: Some(Action::DirectResponse(DirectResponseAction { status: 403, ..Default::default() })),
        ..Default::default()
    }
}
