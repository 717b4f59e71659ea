//! A pod's inbound listener: what arrives over the mesh's TLS, what arrives in clear, and who may do what.
//!
//! ```text
//!  TLS, ALPN weft:HTTP/1.1 ─▶ http-1  ┬─▶ authorisation by request (routes) ─▶ the application
//!  TLS, ALPN weft:HTTP/2   ─▶ http-2  ┘
//!  TLS, ALPN weft:TCP      ─▶ tcp       ─▶ authorisation by connection ─▶ the application
//!  in clear, HTTP          ─▶ plaintext-http  (routes: in_clear.rs)
//!  anything else           ─▶ plaintext       (strict: closed)
//! ```
//!
//! What may be requested stands in the routes and not in the listener: a change of it counts for the next request of
//! every connection that is open, while connections stay on the listener they came by. A port whose mode of mTLS is
//! not the pod's has all of these chains for itself.

use std::collections::{BTreeMap, BTreeSet};
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use envoy_types::pb::envoy::config::accesslog::v3::access_log_filter::FilterSpecifier;
use envoy_types::pb::envoy::config::accesslog::v3::{
    AccessLog as Logger, AccessLogFilter, ComparisonFilter, ResponseFlagFilter, StatusCodeFilter, comparison_filter,
};
use envoy_types::pb::envoy::config::core::v3::header_value_option::HeaderAppendAction;
use envoy_types::pb::envoy::config::core::v3::substitution_format_string::Format;
use envoy_types::pb::envoy::config::core::v3::{
    DataSource, HeaderValue, HeaderValueOption, RuntimeUInt32, SubstitutionFormatString, TrafficDirection,
    TransportSocket, data_source,
};
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, FilterChainMatch, Listener, ListenerFilter};
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route,
};
use envoy_types::pb::envoy::extensions::filters::http::rbac::v3::{Rbac as HttpRbac, RbacPerRoute};
use envoy_types::pb::envoy::extensions::filters::listener::http_inspector::v3::HttpInspector;
use envoy_types::pb::envoy::extensions::filters::listener::original_dst::v3::OriginalDst;
use envoy_types::pb::envoy::extensions::filters::listener::tls_inspector::v3::TlsInspector;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::{
    CodecType, ForwardClientCertDetails, RouteSpecifier, SetCurrentClientCertDetails,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, LocalReplyConfig, Rds, ResponseMapper,
};
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::UpstreamConnectMode;
use envoy_types::pb::google::protobuf::Any;

use super::access_log::{self, Side};
use super::message::{
    address, ads, boolean, duration, http_filter_of_routes, ipv6_too, listener_filter, network_filter, uint32,
};
use super::metrics::{self, Reporter};
use super::names::{
    ALPN_HTTP1, ALPN_HTTP2, ALPN_TCP, INBOUND, INBOUND_IN_CLEAR, INBOUND_PORT, OUTBOUND_PORT, UNSERVED_HEADER,
};
use super::outbound::{
    HTTP, connection_manager, router_that_does_not_count, tcp_proxy_config, tell_of_connections, told_of_requests,
};
use super::{denials, rbac, tls, tracing, traffic_policy};
use crate::mesh::SpiffeId;
use crate::mesh::object::{AuthorizationMode, MtlsMode, RateLimit};
use crate::mesh::telemetry::{AccessLog, AccessLogMode, Tracing};
use crate::policy::{Allow, InboundPlan, Telemetry, Traffic};

/// What a caller without the mesh's TLS reads when its request is refused.
const NEEDS_MTLS: &str = "Weft: this workload accepts this request over the mesh's mTLS only\n";

/// What a caller reads when no TrafficTarget allows its request. The caller knows all of it already.
const NOT_ALLOWED: &str = "Weft: no TrafficTarget allows %DOWNSTREAM_PEER_URI_SAN% to %REQ(:METHOD)% %REQ(:PATH)% at %DOWNSTREAM_LOCAL_URI_SAN%\n";

/// The filter that authorises requests, by its name in a listener and in routes.
const HTTP_RBAC: &str = "envoy.filters.http.rbac";

/// How long a plaintext connection may say nothing before it is taken for a protocol whose server speaks first. The
/// mesh's own connections begin with TLS at once.
const INSPECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// Statistics of what enforcement would deny carry this prefix, `http.inbound.rbac.audit.shadow_denied`, and so does
/// what is noted of a call, `auditshadow_engine_result`.
pub(super) const AUDIT: &str = "audit";

/// Rate limits by pod port.
pub(super) type Rates = BTreeMap<u16, (Traffic, RateLimit)>;

/// The inbound listener of a pod with this plan.
///
/// The application hears of a raw connection when its caller has proven who it is. Envoy would connect to it at once: it
/// would see, and the metrics would count, connections of callers that are refused in the handshake.
pub fn listener(plan: &InboundPlan) -> Listener {
    listener_that_connects(plan, UpstreamConnectMode::OnDownstreamTlsHandshake)
}

/// The same for Envoys that cannot wait for the handshake, or cannot load something else of the plan.
pub fn listener_for_older(plan: &InboundPlan) -> Listener {
    listener_that_connects(plan.for_older().as_ref().unwrap_or(plan), UpstreamConnectMode::Immediate)
}

fn listener_that_connects(plan: &InboundPlan, connects: UpstreamConnectMode) -> Listener {
    let own_ports = [OUTBOUND_PORT, INBOUND_PORT];
    let mut filter_chains: Vec<FilterChain> = own_ports.map(refuse).into();
    for (port, mode) in plan.mtls_ports.iter().filter(|(port, _)| !own_ports.contains(port)) {
        // A chain that names a port hides the chains that do not, and the default one.
        filter_chains.extend(chains(plan, Some(*port), connects));
        filter_chains.extend(["raw_buffer", "tls"].map(|transport| FilterChain {
            name: format!("plaintext-{transport}-{port}"),
            filter_chain_match: Some(chain_match(transport, &[], Some(*port))),
            filters: if is_raw_open(plan, *mode) { tcp_in_clear(plan) } else { nowhere() },
            ..Default::default()
        }));
    }
    filter_chains.extend(chains(plan, None, connects));
    Listener {
        name: INBOUND.to_owned(),
        address: address(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), INBOUND_PORT)),
        additional_addresses: ipv6_too(INBOUND_PORT, plan.ipv6),
        traffic_direction: TrafficDirection::Inbound.into(),
        listener_filters: [listener_filter("envoy.filters.listener.original_dst", OriginalDst {})]
            .into_iter()
            .chain(connection_rates(&plan.rates))
            .chain([
                listener_filter("envoy.filters.listener.tls_inspector", TlsInspector::default()),
                listener_filter("envoy.filters.listener.http_inspector", HttpInspector {}),
            ])
            .collect(),
        listener_filters_timeout: duration(INSPECTION_TIMEOUT),
        continue_on_listener_filters_timeout: true,
        filter_chains,
        default_filter_chain: is_raw_open(plan, plan.mtls).then(|| FilterChain {
            name: "plaintext".to_owned(),
            filters: tcp_in_clear(plan),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Whether raw connections in clear are served. Under enforcement nobody without an identity is allowed, and RBAC would
/// say so only at a client's first byte: a server that speaks first would have been heard by then.
fn is_raw_open(plan: &InboundPlan, mode: MtlsMode) -> bool {
    mode == MtlsMode::Permissive && plan.authorization != AuthorizationMode::Enforce
}

/// The chains of everything but raw plaintext, for one port or for all that have none of their own. They do not depend
/// on a mode of mTLS or of authorisation, so that connections stay where they are when it changes; but for raw TCP,
/// which has no routes.
fn chains(plan: &InboundPlan, port: Option<u16>, connects: UpstreamConnectMode) -> [FilterChain; 4] {
    let name = |chain: &str| port.map_or_else(|| chain.to_owned(), |port| format!("{chain}-{port}"));
    let mesh = |chain: &str, alpn: &[&str], socket: TransportSocket, filters: Vec<Filter>| FilterChain {
        name: name(chain),
        filter_chain_match: Some(chain_match("tls", alpn, port)),
        transport_socket: Some(socket),
        filters,
        ..Default::default()
    };
    let anyone = || tls::downstream(&plan.trust_domain);
    let for_tcp = match plan.authorization {
        AuthorizationMode::Permissive | AuthorizationMode::Audit => anyone(),
        AuthorizationMode::Enforce => tls::downstream_from(tcp_callers(plan).into_iter(), &plan.trust_domain),
    };
    let requests = |codec| {
        let told = told_of_requests(&plan.telemetry, Reporter::Destination);
        manager(codec, INBOUND, NOT_ALLOWED, told, plan.telemetry.tracing.as_ref())
    };
    [
        mesh("http-1", &[ALPN_HTTP1], anyone(), requests(CodecType::Http1)),
        mesh("http-2", &[ALPN_HTTP2], anyone(), requests(CodecType::Http2)),
        mesh("tcp", &[ALPN_TCP], for_tcp, tcp(plan, Reporter::Destination, connects)),
        FilterChain {
            name: name("plaintext-http"),
            filter_chain_match: Some(chain_match("raw_buffer", &HTTP, port)),
            filters: manager(CodecType::Auto, INBOUND_IN_CLEAR, NEEDS_MTLS, told_in_clear(plan), None),
            ..Default::default()
        },
    ]
}

/// Who may connect at all. RBAC, which knows of ports, judges a connection by its client's first byte; whoever may
/// connect to no port does not get so far as to hear a server that speaks first.
fn tcp_callers(plan: &InboundPlan) -> BTreeSet<&SpiffeId> {
    let tcp = plan.allow.iter().filter(|policy| matches!(policy.allow, Allow::Tcp { .. }));
    tcp.flat_map(|policy| &policy.sources).collect()
}

/// Raw TCP that arrives in clear, where there is no handshake to wait for.
fn tcp_in_clear(plan: &InboundPlan) -> Vec<Filter> {
    tcp(plan, Reporter::DestinationOfPlaintext, UpstreamConnectMode::Immediate)
}

/// Raw TCP to the application, if that is allowed.
fn tcp(plan: &InboundPlan, reporter: Reporter, connects: UpstreamConnectMode) -> Vec<Filter> {
    let mut proxy = tcp_proxy_config(INBOUND, INBOUND, None);
    proxy.upstream_connect_mode = connects.into();
    // Nothing is read before the application is there, as when it is connected to at once.
    proxy.max_early_data_bytes = uint32(0).filter(|_| connects != UpstreamConnectMode::Immediate);
    tell_of_connections(&mut proxy, &plan.telemetry, reporter);
    if plan.authorization == AuthorizationMode::Audit {
        denials::log_connections(&mut proxy);
    }
    let to_the_application = network_filter("envoy.filters.network.tcp_proxy", proxy);
    authorize_tcp(plan).into_iter().chain([to_the_application]).collect()
}

/// Closes the connection: there is no such cluster.
fn nowhere() -> Vec<Filter> {
    vec![network_filter("envoy.filters.network.tcp_proxy", tcp_proxy_config(INBOUND, "none", None))]
}

/// Closes what is addressed to a port of the sidecar itself, which would otherwise be handed on to it for ever.
fn refuse(port: u16) -> FilterChain {
    FilterChain {
        name: format!("refuse-{port}"),
        filter_chain_match: Some(FilterChainMatch { destination_port: uint32(port.into()), ..Default::default() }),
        filters: nowhere(),
        ..Default::default()
    }
}

fn chain_match(transport_protocol: &str, application_protocols: &[&str], port: Option<u16>) -> FilterChainMatch {
    FilterChainMatch {
        transport_protocol: transport_protocol.to_owned(),
        application_protocols: application_protocols.iter().map(|protocol| (*protocol).to_owned()).collect(),
        destination_port: port.and_then(|port| uint32(port.into())),
        ..Default::default()
    }
}

/// The routes of what arrives over the mesh's TLS: all to the application, with who may request what.
pub fn routes(plan: &InboundPlan) -> RouteConfiguration {
    let policies = rbac::http_policies(&plan.allow);
    let rules = match plan.authorization {
        AuthorizationMode::Permissive => None,
        AuthorizationMode::Audit => Some(would_enforce(&policies)),
        AuthorizationMode::Enforce => Some(enforce(&policies)),
    };
    to_the_application(INBOUND, rules, &plan.rates)
}

/// What is told of requests in clear, most of which are probes: those are not counted, and what went wrong is logged. In
/// every mode alike, so that connections stay where they are when it changes.
fn told_in_clear(plan: &InboundPlan) -> Vec<Logger> {
    let Telemetry { tracing: _, access_log, metrics } = &plan.telemetry;
    let what_went_wrong = |log: AccessLog| AccessLog { mode: AccessLogMode::Errors, ..log };
    let logged = access_log::of_requests(access_log.clone().map(what_went_wrong).as_ref(), Side::Inbound);
    metrics::of_plaintext_requests(*metrics, &plan.probes).into_iter().chain(logged).collect()
}

/// A manager that asks for its routes by name.
fn manager(codec: CodecType, routes: &str, denied: &str, told: Vec<Logger>, tracing: Option<&Tracing>) -> Vec<Filter> {
    // The rules are in the routes; what the statistics are called is decided here alone.
    let authorize = HttpRbac { shadow_rules_stat_prefix: AUDIT.to_owned(), ..Default::default() };
    let mut manager = HttpConnectionManager {
        codec_type: codec.into(),
        route_specifier: Some(RouteSpecifier::Rds(Rds {
            // A proxy does not serve before it knows whom, however long that takes.
            config_source: Some(ads(Duration::ZERO)),
            route_config_name: routes.to_owned(),
        })),
        // Whatever the caller claims about certificates is replaced by what its own certificate says.
        forward_client_cert_details: ForwardClientCertDetails::SanitizeSet.into(),
        set_current_client_cert_details: Some(SetCurrentClientCertDetails { uri: true, ..Default::default() }),
        // Authorisation and the application must see the same path.
        normalize_path: boolean(true),
        local_reply_config: Some(local_replies(denied)),
        access_log: told.into_iter().chain([denials::log_requests()]).collect(),
        ..connection_manager(
            INBOUND,
            vec![
                http_filter_of_routes(HTTP_RBAC, authorize),
                traffic_policy::rate_filter(),
                router_that_does_not_count(),
            ],
        )
    };
    if let Some(tracing) = tracing {
        tracing::trace(&mut manager, tracing);
    }
    vec![network_filter("envoy.filters.network.http_connection_manager", manager)]
}

/// Everything to the application, by these rules ([`enforce`], [`would_enforce`]) and no faster than this.
pub(super) fn to_the_application(name: &str, rules: Option<Any>, rates: &Rates) -> RouteConfiguration {
    let action = RouteAction {
        cluster_specifier: Some(ClusterSpecifier::Cluster(INBOUND.to_owned())),
        // The caller's time-out decides.
        timeout: duration(Duration::ZERO),
        ..Default::default()
    };
    let http =
        rates.iter().filter(|(_, (traffic, _))| *traffic == Traffic::Http).map(|(port, (_, rate))| (*port, rate));
    let everything = Route {
        r#match: Some(RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..Default::default() }),
        action: Some(route::Action::Route(action)),
        typed_per_filter_config: traffic_policy::rates_of_route(http).into_iter().collect(),
        ..Default::default()
    };
    RouteConfiguration {
        name: name.to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: INBOUND.to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![everything],
            // What the application says of this is not believed.
            response_headers_to_remove: vec![UNSERVED_HEADER.to_owned()],
            typed_per_filter_config: rules.map(|rules| (HTTP_RBAC.to_owned(), rules)).into_iter().collect(),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// Closes what is more than the rate of a TCP port, before anything is read of it.
fn connection_rates(rates: &Rates) -> impl Iterator<Item = ListenerFilter> {
    let tcp = rates.iter().filter(|(_, (traffic, _))| *traffic == Traffic::Tcp);
    tcp.map(|(port, (_, rate))| traffic_policy::connection_rate(*port, rate))
}

/// Puts `text` into the 403 that the sidecar itself gives, and says so when the application was not reached; what the
/// application answers passes untouched.
pub(super) fn local_replies(text: &str) -> LocalReplyConfig {
    let forbidden = AccessLogFilter {
        filter_specifier: Some(FilterSpecifier::StatusCodeFilter(StatusCodeFilter {
            comparison: Some(ComparisonFilter {
                op: comparison_filter::Op::Eq.into(),
                value: Some(RuntimeUInt32 { default_value: 403, runtime_key: "weft.forbidden".to_owned() }),
            }),
        })),
    };
    // UF: no connection to the upstream came about.
    let flags = vec!["UF".to_owned()];
    let not_reached =
        AccessLogFilter { filter_specifier: Some(FilterSpecifier::ResponseFlagFilter(ResponseFlagFilter { flags })) };
    let text =
        DataSource { specifier: Some(data_source::Specifier::InlineString(text.to_owned())), ..Default::default() };
    let unserved = HeaderValue { key: UNSERVED_HEADER.to_owned(), value: "true".to_owned(), ..Default::default() };
    LocalReplyConfig {
        mappers: vec![
            ResponseMapper {
                filter: Some(forbidden),
                body_format_override: Some(SubstitutionFormatString {
                    format: Some(Format::TextFormatSource(text)),
                    ..Default::default()
                }),
                ..Default::default()
            },
            ResponseMapper {
                filter: Some(not_reached),
                headers_to_add: vec![HeaderValueOption {
                    header: Some(unserved),
                    append_action: HeaderAppendAction::OverwriteIfExistsOrAdd.into(),
                    ..Default::default()
                }],
                ..Default::default()
            },
        ],
        ..Default::default()
    }
}

/// The rules of a route: what no policy allows is refused.
pub(super) fn enforce(policies: &[rbac::Named]) -> Any {
    rbac::filter(policies, |rules| RbacPerRoute { rbac: Some(HttpRbac { rules: Some(rules), ..Default::default() }) })
}

/// The rules of a route: what no policy allows is counted and reported.
pub(super) fn would_enforce(policies: &[rbac::Named]) -> Any {
    rbac::filter(policies, |rules| RbacPerRoute {
        rbac: Some(HttpRbac {
            shadow_rules: Some(rules),
            shadow_rules_stat_prefix: AUDIT.to_owned(),
            ..Default::default()
        }),
    })
}

fn authorize_tcp(plan: &InboundPlan) -> Option<Filter> {
    let policies = rbac::tcp_policies(&plan.allow);
    let config = match plan.authorization {
        AuthorizationMode::Permissive => return None,
        AuthorizationMode::Enforce => rbac::filter(&policies, |rules| NetworkRbac {
            rules: Some(rules),
            stat_prefix: "tcp".to_owned(),
            ..Default::default()
        }),
        AuthorizationMode::Audit => rbac::filter(&policies, |rules| NetworkRbac {
            shadow_rules: Some(rules),
            stat_prefix: "tcp".to_owned(),
            shadow_rules_stat_prefix: AUDIT.to_owned(),
            ..Default::default()
        }),
    };
    Some(Filter {
        name: "envoy.filters.network.rbac".to_owned(),
        config_type: Some(envoy_types::pb::envoy::config::listener::v3::filter::ConfigType::TypedConfig(config)),
    })
}

#[cfg(test)]
mod tests;
