//! A pod's inbound listener: what arrives over the mesh's TLS, what arrives in clear, and who may do what.
//!
//! ```text
//!  TLS, ALPN weft:HTTP/1.x ─▶ http-1  ┬─▶ authorisation by request (routes) ─▶ the application
//!  TLS, ALPN weft:HTTP/2   ─▶ http-2  ┘
//!  TLS, ALPN weft:TCP      ─▶ tcp       ─▶ authorisation by connection ─▶ the application
//!  in clear, HTTP          ─▶ plaintext-http  (strict: probes only, everything else is 403)
//!  anything else           ─▶ plaintext       (strict: closed)
//! ```
//!
//! What may be requested stands in the routes and not in the listener: a change of it counts for the next request of
//! every connection that is open, while connections stay on the listener they came by.

use std::collections::BTreeMap;
use std::net::{Ipv4Addr, SocketAddr};
use std::time::Duration;

use envoy_types::pb::envoy::config::accesslog::v3::access_log_filter::FilterSpecifier;
use envoy_types::pb::envoy::config::accesslog::v3::{
    AccessLog, AccessLogFilter, ComparisonFilter, StatusCodeFilter, comparison_filter,
};
use envoy_types::pb::envoy::config::core::v3::substitution_format_string::Format;
use envoy_types::pb::envoy::config::core::v3::{
    DataSource, RuntimeUInt32, SubstitutionFormatString, TrafficDirection, data_source,
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
    HttpConnectionManager, HttpFilter, LocalReplyConfig, Rds, ResponseMapper,
};
use envoy_types::pb::envoy::extensions::filters::network::rbac::v3::Rbac as NetworkRbac;
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

use super::message::{
    address, ads, boolean, duration, http_filter, http_filter_any, listener_filter, network_filter, uint32,
};
use super::metrics::{self, Reporter};
use super::names::{ALPN_HTTP1, ALPN_HTTP2, ALPN_TCP, INBOUND, INBOUND_PORT, OUTBOUND_PORT};
use super::outbound::{HTTP, connection_manager, router, tcp_proxy};
use super::{rbac, tls, traffic_policy};
use crate::mesh::object::{AuthorizationMode, MetricsMode, MtlsMode, RateLimit};
use crate::policy::{InboundPlan, Traffic};

/// What a caller without the mesh's TLS reads when its request is refused.
const NEEDS_MTLS: &str = "Weft: this workload accepts connections over the mesh's mTLS only\n";

/// What a caller reads when no TrafficTarget allows its request. The caller knows all of it already.
const NOT_ALLOWED: &str = "Weft: no TrafficTarget allows %DOWNSTREAM_PEER_URI_SAN% to %REQ(:METHOD)% %REQ(:PATH)% at %DOWNSTREAM_LOCAL_URI_SAN%\n";

/// The filter that authorises requests, by its name in a listener and in routes.
const HTTP_RBAC: &str = "envoy.filters.http.rbac";

/// How long a plaintext connection may say nothing before it is taken for a protocol whose server speaks first. The
/// mesh's own connections begin with TLS at once.
const INSPECTION_TIMEOUT: Duration = Duration::from_secs(1);

/// Statistics of what enforcement would deny carry this prefix: `http.inbound.rbac.audit.shadow_denied`.
const AUDIT: &str = "audit";

/// Rate limits by pod port.
type Rates = BTreeMap<u16, (Traffic, RateLimit)>;

/// The inbound listener of a pod with this plan, with metrics in this mode.
pub fn listener(plan: &InboundPlan, metrics: MetricsMode) -> Listener {
    let http = |codec| {
        let routes = RouteSpecifier::Rds(Rds {
            // A proxy does not serve before it knows whom, however long that takes.
            config_source: Some(ads(Duration::ZERO)),
            route_config_name: INBOUND.to_owned(),
        });
        // The rules are in the routes; what the statistics are called is decided here alone.
        let authorize = HttpRbac { shadow_rules_stat_prefix: AUDIT.to_owned(), ..Default::default() };
        let filters = vec![http_filter(HTTP_RBAC, authorize), traffic_policy::rate_filter()];
        manager(codec, filters, routes, NOT_ALLOWED, metrics::of_requests(metrics, Reporter::Destination))
    };
    let mesh = |name: &str, alpn: &[&str], filters: Vec<Filter>| FilterChain {
        name: name.to_owned(),
        filter_chain_match: Some(chain_match("tls", alpn)),
        transport_socket: Some(tls::downstream(&plan.trust_domain)),
        filters,
        ..Default::default()
    };
    let plaintext_http = match plan.mtls {
        MtlsMode::Permissive => {
            let mut filters = authorize_plaintext(plan);
            filters.push(traffic_policy::rate_filter());
            let routes = RouteSpecifier::RouteConfig(to_the_application(None, &plan.rates));
            manager(
                CodecType::Auto,
                filters,
                routes,
                NOT_ALLOWED,
                metrics::of_plaintext_requests(metrics, &plan.probes),
            )
        }
        MtlsMode::Strict => {
            let probes = rbac::filter(&rbac::probe_policies(&plan.probes), enforce_http);
            let routes = RouteSpecifier::RouteConfig(to_the_application(None, &BTreeMap::new()));
            let authorize = vec![http_filter_any(HTTP_RBAC, probes)];
            let logs = metrics::of_plaintext_requests(metrics, &plan.probes);
            manager(CodecType::Auto, authorize, routes, NEEDS_MTLS, logs)
        }
    };
    let tcp = |reporter| {
        let mut filters: Vec<Filter> = authorize_tcp(plan).into_iter().collect();
        filters.push(tcp_proxy(INBOUND, INBOUND, None, metrics::of_connections(metrics, reporter)));
        filters
    };
    Listener {
        name: INBOUND.to_owned(),
        address: address(SocketAddr::new(Ipv4Addr::UNSPECIFIED.into(), INBOUND_PORT)),
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
        filter_chains: vec![
            refuse(OUTBOUND_PORT),
            refuse(INBOUND_PORT),
            mesh("http-1", &ALPN_HTTP1, http(CodecType::Http1)),
            mesh("http-2", &[ALPN_HTTP2], http(CodecType::Http2)),
            mesh("tcp", &[ALPN_TCP], tcp(Reporter::Destination)),
            FilterChain {
                name: "plaintext-http".to_owned(),
                filter_chain_match: Some(chain_match("raw_buffer", &HTTP)),
                filters: plaintext_http,
                ..Default::default()
            },
        ],
        default_filter_chain: (plan.mtls == MtlsMode::Permissive).then(|| FilterChain {
            name: "plaintext".to_owned(),
            filters: tcp(Reporter::DestinationOfPlaintext),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// Closes what is addressed to a port of the sidecar itself, which would otherwise be handed on to it for ever.
fn refuse(port: u16) -> FilterChain {
    FilterChain {
        name: format!("refuse-{port}"),
        filter_chain_match: Some(FilterChainMatch { destination_port: uint32(port.into()), ..Default::default() }),
        filters: vec![tcp_proxy(INBOUND, "none", None, Vec::new())],
        ..Default::default()
    }
}

fn chain_match(transport_protocol: &str, application_protocols: &[&str]) -> FilterChainMatch {
    FilterChainMatch {
        transport_protocol: transport_protocol.to_owned(),
        application_protocols: application_protocols.iter().map(|protocol| (*protocol).to_owned()).collect(),
        ..Default::default()
    }
}

/// The routes of what arrives over the mesh's TLS: all to the application, with who may request what.
pub fn routes(plan: &InboundPlan) -> RouteConfiguration {
    let rules =
        http_rbac(plan.authorization, &rbac::http_policies(&plan.allow), |rbac| RbacPerRoute { rbac: Some(rbac) });
    to_the_application(rules, &plan.rates)
}

fn manager(
    codec: CodecType,
    mut filters: Vec<HttpFilter>,
    routes: RouteSpecifier,
    denied: &str,
    logs: Vec<AccessLog>,
) -> Vec<Filter> {
    filters.push(router());
    let manager = HttpConnectionManager {
        codec_type: codec.into(),
        route_specifier: Some(routes),
        // Whatever the caller claims about certificates is replaced by what its own certificate says.
        forward_client_cert_details: ForwardClientCertDetails::SanitizeSet.into(),
        set_current_client_cert_details: Some(SetCurrentClientCertDetails { uri: true, ..Default::default() }),
        // Authorisation and the application must see the same path.
        normalize_path: boolean(true),
        local_reply_config: Some(explain_refusal(denied)),
        access_log: logs,
        ..connection_manager(INBOUND, filters)
    };
    vec![network_filter("envoy.filters.network.http_connection_manager", manager)]
}

/// All requests to the application.
fn to_the_application(rules: Option<Any>, rates: &Rates) -> RouteConfiguration {
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
        name: INBOUND.to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: INBOUND.to_owned(),
            domains: vec!["*".to_owned()],
            routes: vec![everything],
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

/// Puts `text` into the 403 that the sidecar itself gives; the application's own pass untouched.
fn explain_refusal(text: &str) -> LocalReplyConfig {
    let forbidden = AccessLogFilter {
        filter_specifier: Some(FilterSpecifier::StatusCodeFilter(StatusCodeFilter {
            comparison: Some(ComparisonFilter {
                op: comparison_filter::Op::Eq.into(),
                value: Some(RuntimeUInt32 { default_value: 403, runtime_key: "weft.forbidden".to_owned() }),
            }),
        })),
    };
    let text =
        DataSource { specifier: Some(data_source::Specifier::InlineString(text.to_owned())), ..Default::default() };
    LocalReplyConfig {
        mappers: vec![ResponseMapper {
            filter: Some(forbidden),
            body_format_override: Some(SubstitutionFormatString {
                format: Some(Format::TextFormatSource(text)),
                ..Default::default()
            }),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// In clear nobody has an identity: under enforcement the probes are all that is left.
fn authorize_plaintext(plan: &InboundPlan) -> Vec<HttpFilter> {
    let rules = http_rbac(plan.authorization, &rbac::probe_policies(&plan.probes), std::convert::identity);
    rules.map(|rules| http_filter_any(HTTP_RBAC, rules)).into_iter().collect()
}

/// The rules in the form that `wrap` gives them; `None` where everything is allowed.
fn http_rbac<T: Message + Name>(
    mode: AuthorizationMode,
    policies: &[rbac::Named],
    wrap: impl Fn(HttpRbac) -> T,
) -> Option<Any> {
    match mode {
        AuthorizationMode::Permissive => None,
        AuthorizationMode::Enforce => Some(rbac::filter(policies, |rules| wrap(enforce_http(rules)))),
        AuthorizationMode::Audit => Some(rbac::filter(policies, |rules| {
            wrap(HttpRbac {
                shadow_rules: Some(rules),
                shadow_rules_stat_prefix: AUDIT.to_owned(),
                ..Default::default()
            })
        })),
    }
}

fn enforce_http(rules: envoy_types::pb::envoy::config::rbac::v3::Rbac) -> HttpRbac {
    HttpRbac { rules: Some(rules), ..Default::default() }
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
