//! The clusters that lead to collectors. Envoy's own connections are not redirected, and what it sends is not traced.

use std::collections::HashMap;
use std::net::IpAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType, DnsLookupFamily};
use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{
    Address, Http1ProtocolOptions, Http2ProtocolOptions, KeepaliveSettings, SocketAddress, address,
};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints};
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::explicit_http_config::ProtocolConfig;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    ExplicitHttpConfig, UpstreamProtocolOptions,
};
use envoy_types::util::pack_any;

use super::message::{boolean, duration};
use super::names::{ACCESS_LOG, TRACING};
use crate::mesh::object::MeshConfig;
use crate::mesh::telemetry::{HostPort, LogOutput, TraceProvider};

/// How long a sidecar waits for a collector; what it then has not taken is lost, and nothing else.
pub(super) const TIMEOUT: Duration = Duration::from_secs(5);

/// What the collector speaks.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Speaks {
    Http1,
    Grpc,
}

/// The clusters that these settings need.
pub(super) fn clusters(config: &MeshConfig) -> Vec<Cluster> {
    let spans = config.tracing.as_ref().map(|tracing| match &tracing.provider {
        TraceProvider::OtlpGrpc(at) => cluster(TRACING, at, Speaks::Grpc),
        TraceProvider::OtlpHttp(at, _) | TraceProvider::Zipkin(at, _) => cluster(TRACING, at, Speaks::Http1),
    });
    let logs = match &config.access_log.output {
        LogOutput::Stdout => None,
        LogOutput::OtlpGrpc(at) => Some(cluster(ACCESS_LOG, at, Speaks::Grpc)),
    };
    spans.into_iter().chain(logs).collect()
}

fn cluster(name: &str, at: &HostPort, speaks: Speaks) -> Cluster {
    let protocol = match speaks {
        Speaks::Http1 => ProtocolConfig::HttpProtocolOptions(Http1ProtocolOptions::default()),
        // A collector that vanished without a word is noticed.
        Speaks::Grpc => ProtocolConfig::Http2ProtocolOptions(Http2ProtocolOptions {
            connection_keepalive: Some(KeepaliveSettings {
                interval: duration(Duration::from_secs(30)),
                timeout: duration(TIMEOUT),
                ..Default::default()
            }),
            ..Default::default()
        }),
    };
    let http = HttpProtocolOptions {
        upstream_protocol_options: Some(UpstreamProtocolOptions::ExplicitHttpConfig(ExplicitHttpConfig {
            protocol_config: Some(protocol),
        })),
        ..Default::default()
    };
    // The pod's own resolver knows what the name stands for, in a cluster and outside of it.
    let discovery = match at.host.parse::<IpAddr>() {
        Ok(_) => DiscoveryType::Static,
        Err(_) => DiscoveryType::StrictDns,
    };
    Cluster {
        name: name.to_owned(),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(discovery.into())),
        dns_lookup_family: DnsLookupFamily::V4Preferred.into(),
        // Nothing waits for a name that nobody knows.
        wait_for_warm_on_init: boolean(false),
        connect_timeout: duration(TIMEOUT),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: name.to_owned(),
            endpoints: vec![LocalityLbEndpoints { lb_endpoints: vec![endpoint(at)], ..Default::default() }],
            ..Default::default()
        }),
        typed_extension_protocol_options: HashMap::from([(
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(),
            pack_any(http),
        )]),
        ..Default::default()
    }
}

fn endpoint(at: &HostPort) -> LbEndpoint {
    let socket = SocketAddress {
        address: at.host.clone(),
        port_specifier: Some(PortSpecifier::PortValue(at.port.into())),
        ..Default::default()
    };
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: Some(Address { address: Some(address::Address::SocketAddress(socket)) }),
            ..Default::default()
        })),
        ..Default::default()
    }
}
