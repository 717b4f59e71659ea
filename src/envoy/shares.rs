//! The shares of a Service's backends as localities that have no endpoint in common.
//!
//! Envoy knows an address once in a cluster: one that stands in two localities is left out of the second without a
//! word (measured on 1.36 and 1.40), and the shares would be others than those that were asked for. Services do have
//! pods in common: the root of a TrafficSplit that is among its own backends usually selects the pods of the others as
//! well. So the endpoints that the same backends have in common become a locality of their own:
//!
//! ```text
//!  root 1: a, b        ┬─▶ root 1: a            a has 1/2 of root's share
//!  root-v2 1: b        ┴─▶ root+root-v2 3: b    b has the other half, and all of root-v2's
//! ```

use std::collections::BTreeMap;

use crate::policy::{Backend, EndpointPlan};

/// What the weights of localities add up to, about, where they have to be made anew.
const PRECISION: u128 = 1_000_000;

/// A locality.
#[derive(PartialEq, Debug)]
pub(super) struct Share<'a> {
    /// The backends whose endpoints these are, `NAMESPACE/NAME`, with `+` between them.
    pub(super) name: String,
    /// Its weight, relative to the others'.
    pub(super) weight: u32,
    /// Its endpoints; never empty.
    pub(super) endpoints: Vec<&'a EndpointPlan>,
}

/// The localities of these backends, ordered by name.
pub(super) fn of(backends: &[Backend]) -> Vec<Share<'_>> {
    // A Service that is named twice is one backend: Envoy refuses equal localities.
    let mut merged: BTreeMap<String, Share<'_>> = BTreeMap::new();
    for backend in backends.iter().filter(|backend| !backend.endpoints.is_empty()) {
        let name = backend.service.to_string();
        let share = merged.entry(name.clone()).or_insert_with(|| {
            let endpoints = backend.endpoints.iter().collect();
            Share { name, weight: 0, endpoints }
        });
        share.weight = share.weight.saturating_add(backend.weight);
    }
    let shares: Vec<Share<'_>> = merged.into_values().collect();
    let mut owners: BTreeMap<&EndpointPlan, Vec<&Share<'_>>> = BTreeMap::new();
    for share in &shares {
        for endpoint in &share.endpoints {
            owners.entry(endpoint).or_default().push(share);
        }
    }
    match owners.values().any(|owners| owners.len() > 1) {
        true => disjoint(&shares, &owners),
        false => shares,
    }
}

fn disjoint<'a>(shares: &[Share<'a>], owners: &BTreeMap<&'a EndpointPlan, Vec<&Share<'a>>>) -> Vec<Share<'a>> {
    let total: u128 = shares.iter().map(|share| u128::from(share.weight)).sum::<u128>().max(1);
    // Of one endpoint: the sum of what each of its backends gives each of its own.
    let part = |owners: &[&Share<'_>], count: usize| -> u128 {
        let of = |owner: &&Share<'_>| {
            u128::from(owner.weight) * count as u128 * PRECISION / (owner.endpoints.len().max(1) as u128 * total)
        };
        owners.iter().map(of).sum()
    };
    let mut groups: BTreeMap<String, (&[&Share<'_>], Vec<&'a EndpointPlan>)> = BTreeMap::new();
    for (endpoint, owners) in owners {
        let name = owners.iter().map(|owner| owner.name.as_str()).collect::<Vec<_>>().join("+");
        groups.entry(name).or_insert((owners, Vec::new())).1.push(endpoint);
    }
    let locality = |(name, (owners, endpoints)): (String, (&[&Share<'_>], Vec<&'a EndpointPlan>))| Share {
        name,
        weight: u32::try_from(part(owners, endpoints.len())).unwrap_or(u32::MAX).max(1),
        endpoints,
    };
    groups.into_iter().map(locality).collect()
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::ServiceKey;

    fn backend(name: &str, weight: u32, hosts: &[u8]) -> Backend {
        let endpoint = |host: &u8| EndpointPlan {
            address: ([10, 244, 0, *host], 8080).into(),
            identity: None,
            workload: None,
            zone: None,
        };
        Backend { service: ServiceKey::new("shop", name), weight, endpoints: hosts.iter().map(endpoint).collect() }
    }

    fn shares(backends: &[Backend]) -> Vec<String> {
        let host = |endpoint: &&EndpointPlan| endpoint.address.ip().to_string().replace("10.244.0.", "");
        let line = |share: Share<'_>| {
            let hosts: Vec<String> = share.endpoints.iter().map(host).collect();
            format!("{} {} {}", share.name, share.weight, hosts.join(","))
        };
        of(backends).into_iter().map(line).collect()
    }

    #[test]
    fn backends_with_nothing_in_common_stay_as_they_are() {
        let backends = [backend("b", 10, &[3]), backend("a", 90, &[1, 2]), backend("none", 5, &[])];
        assert_eq!(shares(&backends), ["shop/a 90 1,2", "shop/b 10 3"]);
    }

    #[test]
    fn a_service_that_is_named_twice_is_one() {
        assert_eq!(shares(&[backend("a", 1, &[1]), backend("a", 2, &[1])]), ["shop/a 3 1"]);
    }

    #[test]
    fn endpoints_in_common_have_the_sum_of_what_each_backend_gives_them() {
        let backends = [backend("root", 1, &[1, 2]), backend("v2", 1, &[2])];
        assert_eq!(shares(&backends), ["shop/root 250000 1", "shop/root+shop/v2 750000 2"]);
        let backends = [backend("root", 90, &[1, 2, 3, 4]), backend("v2", 10, &[3, 4]), backend("v3", 100, &[4, 5])];
        assert_eq!(
            shares(&backends),
            [
                "shop/root 225000 1,2",
                "shop/root+shop/v2 137500 3",
                "shop/root+shop/v2+shop/v3 387500 4",
                "shop/v3 250000 5"
            ]
        );
    }

    #[test]
    fn twice_the_same_endpoints_are_one_locality_and_the_smallest_share_is_not_lost() {
        assert_eq!(shares(&[backend("a", 1, &[1]), backend("b", 9, &[1])]), ["shop/a+shop/b 1000000 1"]);
        let tiny = [backend("a", u32::MAX - 1, &[1, 2]), backend("b", 1, &[2, 3])];
        assert_eq!(shares(&tiny).last().map(String::as_str), Some("shop/b 1 3"));
    }
}
