//! Clusters and their endpoints.

use std::collections::{BTreeSet, HashMap};
use std::net::{Ipv4Addr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::cluster::common_lb_config::{
    LocalityConfigSpecifier, LocalityWeightedLbConfig,
};
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    ClusterDiscoveryType, CommonLbConfig, CustomClusterType, DiscoveryType, DnsLookupFamily, EdsClusterConfig,
    LbPolicy, TransportSocketMatch,
};
use envoy_types::pb::envoy::config::cluster::v3::{CircuitBreakers, Cluster};
use envoy_types::pb::envoy::config::core::v3::{
    BindConfig, DnsResolverOptions, ExtraSourceAddress, HttpProtocolOptions as CommonHttpOptions, Locality, Metadata,
    TypedExtensionConfig,
};
use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;
use envoy_types::pb::envoy::config::endpoint::v3::{ClusterLoadAssignment, Endpoint, LbEndpoint, LocalityLbEndpoints};
use envoy_types::pb::envoy::extensions::clusters::common::dns::v3::DnsLookupFamily as DnsFamily;
use envoy_types::pb::envoy::extensions::clusters::dns::v3::DnsCluster;
use envoy_types::pb::envoy::extensions::clusters::dynamic_forward_proxy::v3::ClusterConfig as DynamicForwardProxy;
use envoy_types::pb::envoy::extensions::clusters::dynamic_forward_proxy::v3::cluster_config::ClusterImplementationSpecifier;
use envoy_types::pb::envoy::extensions::common::dynamic_forward_proxy::v3::DnsCacheConfig;
use envoy_types::pb::envoy::extensions::network::dns_resolver::cares::v3::CaresDnsResolverConfig;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::HttpProtocolOptions;
use envoy_types::pb::envoy::extensions::upstreams::http::v3::http_protocol_options::{
    UpstreamProtocolOptions, UseDownstreamHttpConfig,
};
use envoy_types::pb::google::protobuf::{Struct, Value, value::Kind};
use envoy_types::util::pack_any;

use prost::{Message, Name};

use super::http;
use super::message::{address, ads, by_name, duration, extension, socket_address, uint32};
use super::names::{EGRESS_WILDCARD, INBOUND, PASSTHROUGH};
use super::shares::{self, Share};
use super::{metrics, names, tls, traffic_policy, zones};
use crate::mesh::object::{ConnectionSettings, ZonePreference};
use crate::mesh::{SpiffeId, TrustDomain};
use crate::policy::{Backend, EndpointPlan, Workload};

/// How long Envoy waits for a TCP connection before it tries another endpoint.
const CONNECT_TIMEOUT: Duration = Duration::from_secs(5);

/// How long Envoy waits for a cluster's first endpoints before it answers 503. They come right behind the cluster.
const ENDPOINTS_PATIENCE: Duration = Duration::from_secs(5);

/// How long a connection to the application may be idle before the sidecar closes it: less than the keep-alive of
/// common servers (5 s in Node.js and Uvicorn), so that no request meets a connection that is being closed.
const APPLICATION_IDLE: Duration = Duration::from_secs(3);

/// The source address of a sidecar's connections to its application. The redirect leaves it alone, so that a pod which
/// calls its own Service passes its inbound listener once, and not for ever.
const TO_APPLICATION: Ipv4Addr = Ipv4Addr::new(127, 0, 0, 6);

/// The same where the application is called by IPv6; an address of the pod's loopback interface.
const TO_APPLICATION_IPV6: Ipv6Addr = Ipv6Addr::new(0, 0, 0, 0, 0, 0, 0, 6);

/// The key of the endpoint metadata that `transport_socket_matches` look at.
const TRANSPORT_SOCKET_MATCH: &str = "envoy.transport_socket_match";

/// The cluster of a Service port, with endpoints by EDS under the name `endpoints`.
pub fn service(
    name: &str,
    endpoints: &str,
    stat_name: String,
    sni: String,
    identities: &BTreeSet<SpiffeId>,
    trust_domain: &TrustDomain,
    settings: &ConnectionSettings,
) -> Cluster {
    let (lb_policy, lb_config) = traffic_policy::balancing(settings);
    let shares_by_locality = || LocalityConfigSpecifier::LocalityWeightedLbConfig(LocalityWeightedLbConfig::default());
    let by_zone = zones::balancing(settings);
    Cluster {
        name: name.to_owned(),
        alt_stat_name: stat_name,
        lb_policy: lb_policy.into(),
        lb_config,
        outlier_detection: traffic_policy::outliers(settings),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into())),
        eds_cluster_config: Some(EdsClusterConfig {
            eds_config: Some(ads(ENDPOINTS_PATIENCE)),
            service_name: endpoints.to_owned(),
        }),
        transport_socket_matches: mesh_or_plaintext(sni, identities, trust_domain),
        // Set whether or not there is a split: then a change of weights is a change of endpoints only.
        common_lb_config: Some(CommonLbConfig {
            // Envoy would otherwise keep changes of weights back for up to a second after another change.
            update_merge_window: duration(Duration::ZERO),
            locality_config_specifier: by_zone.is_none().then(shares_by_locality),
            ..Default::default()
        }),
        load_balancing_policy: by_zone,
        ..common(None, settings)
    }
}

/// The cluster of one pod's address and port.
pub fn pod(name: &str, stat_name: String, sni: String, endpoint: &EndpointPlan, trust_domain: &TrustDomain) -> Cluster {
    let identities = endpoint.identity.iter().cloned().collect();
    Cluster {
        name: name.to_owned(),
        alt_stat_name: stat_name,
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into())),
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: name.to_owned(),
            endpoints: vec![LocalityLbEndpoints { lb_endpoints: vec![lb_endpoint(endpoint)], ..Default::default() }],
            ..Default::default()
        }),
        transport_socket_matches: mesh_or_plaintext(sni, &identities, trust_domain),
        ..common(None, &ConnectionSettings::default())
    }
}

/// The cluster for destinations outside the mesh.
pub fn passthrough() -> Cluster {
    original_destination(PASSTHROUGH, PASSTHROUGH.to_owned())
}

/// A cluster that leads to the address which the application meant, under a name of its own.
pub fn original_destination(name: &str, stat_name: String) -> Cluster {
    Cluster {
        name: name.to_owned(),
        alt_stat_name: stat_name,
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst.into())),
        lb_policy: LbPolicy::ClusterProvided.into(),
        ..common(None, &ConnectionSettings::default())
    }
}

/// The cluster of a host outside the mesh: to an address that its name stands for, whatever the application connected to.
pub fn outside(host: &str, port: u16) -> Cluster {
    let endpoint = Endpoint { address: Some(by_name(host, port)), ..Default::default() };
    let name = names::egress(host, port).to_string();
    Cluster {
        load_assignment: Some(ClusterLoadAssignment {
            cluster_name: name.clone(),
            endpoints: vec![LocalityLbEndpoints {
                lb_endpoints: vec![LbEndpoint {
                    host_identifier: Some(HostIdentifier::Endpoint(endpoint)),
                    ..Default::default()
                }],
                ..Default::default()
            }],
            ..Default::default()
        }),
        name,
        alt_stat_name: names::egress_stat_name(host, port),
        cluster_discovery_type: Some(custom(
            "envoy.clusters.dns",
            DnsCluster {
                respect_dns_ttl: true,
                dns_lookup_family: DnsFamily::V4Preferred.into(),
                typed_dns_resolver_config: Some(resolver()),
                // New connections go to what the name stands for now, and those that are open stay.
                all_addresses_in_single_endpoint: true,
                ..Default::default()
            },
        )),
        ..common(None, &ConnectionSettings::default())
    }
}

/// The cluster of all hosts outside the mesh that are allowed by a wildcard.
pub fn outside_by_wildcard() -> Cluster {
    let config = DynamicForwardProxy {
        cluster_implementation_specifier: Some(ClusterImplementationSpecifier::DnsCacheConfig(dns_cache())),
        // It has no TLS of its own whose names would have to be checked.
        allow_insecure_cluster_options: true,
        ..Default::default()
    };
    Cluster {
        name: EGRESS_WILDCARD.to_owned(),
        cluster_discovery_type: Some(custom("envoy.clusters.dynamic_forward_proxy", config)),
        lb_policy: LbPolicy::ClusterProvided.into(),
        ..common(None, &ConnectionSettings::default())
    }
}

fn custom<T: Message + Name>(name: &str, config: T) -> ClusterDiscoveryType {
    ClusterDiscoveryType::ClusterType(CustomClusterType { name: name.to_owned(), typed_config: Some(pack_any(config)) })
}

/// The hosts that were called by a wildcard: those that are not called for some minutes are forgotten.
pub(super) fn dns_cache() -> DnsCacheConfig {
    DnsCacheConfig {
        name: names::EGRESS.to_owned(),
        dns_lookup_family: DnsLookupFamily::V4Preferred.into(),
        typed_dns_resolver_config: Some(resolver()),
        ..Default::default()
    }
}

/// Names of hosts outside are whole: none of the cluster's search domains is tried with them.
fn resolver() -> TypedExtensionConfig {
    let options = DnsResolverOptions { no_default_search_domain: true, ..Default::default() };
    let config = CaresDnsResolverConfig { dns_resolver_options: Some(options), ..Default::default() };
    extension("envoy.network.dns_resolver.cares", config)
}

/// The cluster that leads to the application of the pod itself.
pub fn inbound() -> Cluster {
    Cluster {
        upstream_bind_config: Some(BindConfig {
            source_address: Some(socket_address(TO_APPLICATION.into(), 0)),
            extra_source_addresses: vec![ExtraSourceAddress {
                address: Some(socket_address(TO_APPLICATION_IPV6.into(), 0)),
                ..Default::default()
            }],
            ..Default::default()
        }),
        cluster_discovery_type: Some(ClusterDiscoveryType::Type(DiscoveryType::OriginalDst.into())),
        lb_policy: LbPolicy::ClusterProvided.into(),
        name: INBOUND.to_owned(),
        ..common(Some(APPLICATION_IDLE), &ConnectionSettings::default())
    }
}

/// The endpoints of a Service port. Each backend is a locality, and the shares are the localities' weights: so a
/// TrafficSplit works for requests and connections alike. Where callers prefer their zone, [`zones`] are the localities.
pub fn endpoints(name: &str, backends: &[Backend], settings: &ConnectionSettings) -> ClusterLoadAssignment {
    let locality = |share: Share<'_>| LocalityLbEndpoints {
        locality: Some(Locality { sub_zone: share.name, ..Default::default() }),
        lb_endpoints: share.endpoints.into_iter().map(lb_endpoint).collect(),
        load_balancing_weight: uint32(share.weight),
        ..Default::default()
    };
    let shares = shares::of(backends);
    ClusterLoadAssignment {
        cluster_name: name.to_owned(),
        endpoints: match settings.zone {
            Some(ZonePreference::Prefer) => zones::localities(&shares),
            None | Some(ZonePreference::Any) => shares.into_iter().map(locality).collect(),
        },
        ..Default::default()
    }
}

/// What every cluster has.
fn common(idle_timeout: Option<Duration>, settings: &ConnectionSettings) -> Cluster {
    // The mesh keeps what the application speaks: HTTP/1.1 stays HTTP/1.1 and HTTP/2 stays HTTP/2.
    let http = HttpProtocolOptions {
        common_http_protocol_options: Some(CommonHttpOptions {
            idle_timeout: idle_timeout.and_then(duration),
            max_connection_duration: settings.max_age.and_then(duration),
            max_response_headers_kb: uint32(http::MAX_HEADERS_KB),
            ..http::common()
        }),
        upstream_protocol_options: Some(UpstreamProtocolOptions::UseDownstreamProtocolConfig(
            UseDownstreamHttpConfig {
                http_protocol_options: Some(http::http1()),
                http2_protocol_options: Some(http::http2()),
                ..Default::default()
            },
        )),
        ..Default::default()
    };
    Cluster {
        connect_timeout: duration(CONNECT_TIMEOUT),
        circuit_breakers: Some(CircuitBreakers {
            thresholds: vec![traffic_policy::limits(settings)],
            ..Default::default()
        }),
        typed_extension_protocol_options: HashMap::from([(
            "envoy.extensions.upstreams.http.v3.HttpProtocolOptions".to_owned(),
            pack_any(http),
        )]),
        ..Default::default()
    }
}

fn mesh_or_plaintext(
    sni: String,
    identities: &BTreeSet<SpiffeId>,
    trust_domain: &TrustDomain,
) -> Vec<TransportSocketMatch> {
    vec![
        TransportSocketMatch {
            name: "mesh".to_owned(),
            r#match: Some(mesh_metadata()),
            transport_socket: Some(tls::upstream(sni, identities, trust_domain)),
        },
        TransportSocketMatch {
            name: "plaintext".to_owned(),
            r#match: Some(Struct::default()),
            transport_socket: Some(tls::plaintext()),
        },
    ]
}

pub(super) fn lb_endpoint(endpoint: &EndpointPlan) -> LbEndpoint {
    let tls = endpoint.identity.is_some().then(|| (TRANSPORT_SOCKET_MATCH.to_owned(), mesh_metadata()));
    let parts = Vec::from_iter(tls.into_iter().chain(endpoint.workload.as_ref().map(metrics::of_workload)));
    let metadata =
        (!parts.is_empty()).then(|| Metadata { filter_metadata: metrics::in_order(&parts), ..Default::default() });
    LbEndpoint {
        host_identifier: Some(HostIdentifier::Endpoint(Endpoint {
            address: address(endpoint.address),
            ..Default::default()
        })),
        metadata,
        ..Default::default()
    }
}

/// `tls: mesh`.
fn mesh_metadata() -> Struct {
    let mesh = Value { kind: Some(Kind::StringValue("mesh".to_owned())) };
    Struct { fields: HashMap::from([("tls".to_owned(), mesh)]) }
}

/// The stated address as an endpoint of a pod's own cluster.
pub(super) fn at(address: SocketAddr, identity: Option<SpiffeId>, workload: Workload) -> EndpointPlan {
    EndpointPlan { address, identity, workload: Some(workload), zone: None }
}
