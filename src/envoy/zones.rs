//! Endpoints by zone, so that calls stay in their caller's zone while it has a healthy endpoint.
//!
//! A locality is a zone, and Envoy compares it with that of its own node: what is said here is the same for every caller,
//! and stays shared. Envoy looks at zones instead of the weights of localities, so that a split's shares become weights
//! of endpoints. They are the same within each zone, which holds only where each backend has an endpoint in it:
//!
//! ```text
//!  90 v1: a, b   10 v2: a, b   ─▶ a: v1 900000, v2 100000   b: v1 900000, v2 100000     within the zone
//!  90 v1: a, b   10 v2: a      ─▶ any: v1 450000, v1 450000, v2 100000                  the shares come first
//! ```
//!
//! What is not known to be in a zone is in none that a caller could be in: its locality has a `sub_zone`, and no node has
//! one.

use std::collections::BTreeMap;
use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::load_balancing_policy::Policy;
use envoy_types::pb::envoy::config::cluster::v3::{LoadBalancingPolicy, OutlierDetection};
use envoy_types::pb::envoy::config::core::v3::Locality;
use envoy_types::pb::envoy::config::endpoint::v3::{LbEndpoint, LocalityLbEndpoints};
use envoy_types::pb::envoy::extensions::load_balancing_policies::common::v3::locality_lb_config::{
    LocalityConfigSpecifier, ZoneAwareLbConfig, zone_aware_lb_config::ForceLocalZone,
};
use envoy_types::pb::envoy::extensions::load_balancing_policies::common::v3::{LocalityLbConfig, SlowStartConfig};
use envoy_types::pb::envoy::extensions::load_balancing_policies::least_request::v3::LeastRequest;
use envoy_types::pb::envoy::extensions::load_balancing_policies::round_robin::v3::RoundRobin;
use envoy_types::pb::google::protobuf::UInt64Value;

use super::cluster::lb_endpoint;
use super::message::{duration, extension, uint32};
use super::shares::Share;
use crate::mesh::object::{Algorithm, ConnectionSettings, ZonePreference};
use crate::policy::EndpointPlan;

/// What the weights of a zone's endpoints add up to, about, where a split gives them any.
const PRECISION: u64 = 1_000_000;

/// Errors one after the other that leave an endpoint without calls for a while: a request is tried three times, and so
/// the last time elsewhere.
const ERRORS: u32 = 2;
/// For how long, times how often it was.
const EJECTION: Duration = Duration::from_secs(10);
/// The longest time.
const LONGEST_EJECTION: Duration = Duration::from_secs(60);

/// How a cluster chooses an endpoint, the zone first; `None` where zones do not count.
pub(super) fn balancing(settings: &ConnectionSettings) -> Option<LoadBalancingPolicy> {
    if settings.zone != Some(ZonePreference::Prefer) {
        return None;
    }
    let zones = LocalityConfigSpecifier::ZoneAwareLbConfig(ZoneAwareLbConfig {
        // Envoy's own minimum of six endpoints is for proxies that share a zone's calls among each other.
        min_cluster_size: Some(UInt64Value { value: 1 }),
        force_local_zone: Some(ForceLocalZone { min_size: uint32(1) }),
        ..Default::default()
    });
    let locality_lb_config = Some(LocalityLbConfig { locality_config_specifier: Some(zones) });
    let slow_start_config =
        settings.slow_start.map(|window| SlowStartConfig { slow_start_window: duration(window), ..Default::default() });
    let policy = match settings.algorithm {
        Algorithm::RoundRobin => {
            let config = RoundRobin { slow_start_config, locality_lb_config };
            extension("envoy.load_balancing_policies.round_robin", config)
        }
        Algorithm::LeastRequest => {
            let config = LeastRequest { slow_start_config, locality_lb_config, ..Default::default() };
            extension("envoy.load_balancing_policies.least_request", config)
        }
        // A hash leads to its endpoint, whatever its zone; `source::convert` and `policy::zone` say so.
        Algorithm::RingHash | Algorithm::Maglev => return None,
    };
    Some(LoadBalancingPolicy { policies: vec![Policy { typed_extension_config: Some(policy) }] })
}

/// Which endpoints are not healthy when no policy says so. A retry chooses among the endpoints of the zone again: when
/// none of them takes requests, it leaves the zone only if they are known not to.
pub(super) fn outliers(settings: &ConnectionSettings) -> Option<OutlierDetection> {
    balancing(settings)?;
    Some(OutlierDetection {
        // 502, 503, 504, or no connection. An application's own errors are no reason to call another.
        consecutive_gateway_failure: uint32(ERRORS),
        enforcing_consecutive_gateway_failure: uint32(100),
        enforcing_consecutive_5xx: uint32(0),
        enforcing_success_rate: uint32(0),
        interval: duration(Duration::from_secs(1)),
        base_ejection_time: duration(EJECTION),
        max_ejection_time: duration(LONGEST_EJECTION),
        // A zone goes away whole. When more than half of all endpoints are out, Envoy calls all of them (its panic).
        max_ejection_percent: uint32(100),
        ..Default::default()
    })
}

/// The localities of endpoints with these shares.
pub(super) fn localities(shares: &[Share<'_>]) -> Vec<LocalityLbEndpoints> {
    let mut zones: BTreeMap<Option<&str>, Vec<Vec<&EndpointPlan>>> = BTreeMap::new();
    for (position, share) in shares.iter().enumerate() {
        for endpoint in &share.endpoints {
            let of_shares = zones.entry(endpoint.zone.as_deref()).or_insert_with(|| vec![Vec::new(); shares.len()]);
            of_shares.get_mut(position).into_iter().for_each(|endpoints| endpoints.push(endpoint));
        }
    }
    if zones.values().flatten().any(Vec::is_empty) {
        let all = shares.iter().map(|share| share.endpoints.clone()).collect();
        return vec![locality(Locality { sub_zone: "any".to_owned(), ..Default::default() }, shares, all)];
    }
    let locality_of = |(zone, endpoints): (Option<&str>, _)| {
        let name = match zone {
            Some(zone) => Locality { zone: zone.to_owned(), ..Default::default() },
            None => Locality { sub_zone: "unknown".to_owned(), ..Default::default() },
        };
        locality(name, shares, endpoints)
    };
    zones.into_iter().map(locality_of).collect()
}

/// A locality of these endpoints, by share.
fn locality(name: Locality, shares: &[Share<'_>], endpoints: Vec<Vec<&EndpointPlan>>) -> LocalityLbEndpoints {
    let total: u64 = shares.iter().map(|share| u64::from(share.weight)).sum::<u64>().max(1);
    let weight = |share: &Share<'_>, count: usize| {
        let count = u64::try_from(count).unwrap_or(u64::MAX).max(1);
        let weight = u64::from(share.weight).saturating_mul(PRECISION) / total / count;
        u32::try_from(weight).unwrap_or(u32::MAX).max(1)
    };
    let of_share = |(share, endpoints): (&Share<'_>, Vec<&EndpointPlan>)| -> Vec<LbEndpoint> {
        let weight = (shares.len() > 1).then(|| weight(share, endpoints.len())).and_then(uint32);
        let weighted = |endpoint: &EndpointPlan| LbEndpoint { load_balancing_weight: weight, ..lb_endpoint(endpoint) };
        endpoints.into_iter().map(weighted).collect()
    };
    LocalityLbEndpoints {
        locality: Some(name),
        lb_endpoints: shares.iter().zip(endpoints).flat_map(of_share).collect(),
        ..Default::default()
    }
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::envoy::shares;
    use crate::mesh::ServiceKey;
    use crate::policy::Backend;
    use envoy_types::pb::envoy::config::core::v3::address::Address;
    use envoy_types::pb::envoy::config::endpoint::v3::lb_endpoint::HostIdentifier;

    /// Endpoints by the last number of their address, with their zone.
    fn backend(name: &str, weight: u32, hosts: &[(u8, &str)]) -> Backend {
        let endpoint = |(host, zone): &(u8, &str)| EndpointPlan {
            address: ([10, 244, 0, *host], 8080).into(),
            identity: None,
            workload: None,
            zone: (!zone.is_empty()).then(|| (*zone).into()),
        };
        Backend { service: ServiceKey::new("shop", name), weight, endpoints: hosts.iter().map(endpoint).collect() }
    }

    /// A line a locality: its name and its endpoints, each with its weight if it has one.
    fn lines(backends: &[Backend]) -> Vec<String> {
        let host = |endpoint: LbEndpoint| {
            let Some(HostIdentifier::Endpoint(at)) = &endpoint.host_identifier else { panic!("{endpoint:?}") };
            let Some(Address::SocketAddress(at)) = at.address.as_ref().and_then(|at| at.address.as_ref()) else {
                panic!("{endpoint:?}")
            };
            let host = at.address.replace("10.244.0.", "");
            endpoint.load_balancing_weight.map_or(host.clone(), |weight| format!("{host}*{}", weight.value))
        };
        let line = |locality: LocalityLbEndpoints| {
            let Locality { zone, sub_zone, .. } = locality.locality.expect("a name");
            let hosts: Vec<String> = locality.lb_endpoints.into_iter().map(host).collect();
            format!("{zone}/{sub_zone} {}", hosts.join(" "))
        };
        localities(&shares::of(backends)).into_iter().map(line).collect()
    }

    #[test]
    fn a_zone_is_a_locality_and_an_unknown_one_is_nobodys() {
        let cart = backend("cart", 1, &[(1, "b"), (2, "a"), (3, ""), (4, "a")]);
        assert_eq!(lines(&[cart]), ["/unknown 3", "a/ 2 4", "b/ 1"]);
        assert_eq!(lines(&[backend("cart", 1, &[])]), [""; 0]);
    }

    #[test]
    fn shares_are_the_same_in_each_zone() {
        let (v1, v2) = (backend("v1", 90, &[(1, "a"), (2, "a"), (3, "b")]), backend("v2", 10, &[(4, "a"), (5, "b")]));
        assert_eq!(lines(&[v1, v2]), ["a/ 1*450000 2*450000 4*100000", "b/ 3*900000 5*100000"]);
        let nobody = backend("v2", 10, &[]);
        let v1 = backend("v1", 90, &[(1, "a"), (2, "b")]);
        assert_eq!(lines(&[v1, nobody]), ["a/ 1", "b/ 2"], "a backend without endpoints has no share");
    }

    #[test]
    fn shares_come_first_where_a_zone_lacks_a_backend() {
        let (v1, v2) = (backend("v1", 90, &[(1, "a"), (2, "b")]), backend("v2", 10, &[(3, "a")]));
        assert_eq!(lines(&[v1, v2]), ["/any 1*450000 2*450000 3*100000"]);
        let (v1, v2) = (backend("v1", 90, &[(1, "a"), (2, "")]), backend("v2", 10, &[(3, "a")]));
        assert_eq!(lines(&[v1, v2]), ["/any 1*450000 2*450000 3*100000"]);
    }

    #[test]
    fn the_smallest_share_is_not_lost_and_the_largest_fits() {
        let (v1, v2) = (backend("v1", u32::MAX, &[(1, "a")]), backend("v2", 1, &[(2, "a")]));
        assert_eq!(lines(&[v1, v2]), ["a/ 1*999999 2*1"]);
    }

    #[test]
    fn a_hash_knows_no_zones() {
        let settings = |algorithm, zone| ConnectionSettings { algorithm, zone, ..Default::default() };
        let prefer = Some(ZonePreference::Prefer);
        for (algorithm, zone, expected) in [
            (Algorithm::RoundRobin, prefer, true),
            (Algorithm::LeastRequest, prefer, true),
            (Algorithm::Maglev, prefer, false),
            (Algorithm::RoundRobin, Some(ZonePreference::Any), false),
            (Algorithm::RoundRobin, None, false),
        ] {
            let settings = settings(algorithm, zone);
            assert_eq!((balancing(&settings).is_some(), outliers(&settings).is_some()), (expected, expected));
        }
    }
}
