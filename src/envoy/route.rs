//! The outbound routes: of each destination whose requests matter, found by [`DESTINATION_HEADER`]; everything else
//! goes to the cluster that the header names.
//!
//! ```text
//!  x-weft-dst ─ a map ─┬─▶ 10.96.0.5:80 ─ weft.source, where callers matter ─▶ routes: faults × split, then the rest
//!                      └─▶ any other ─▶ the cluster that it names
//! ```
//!
//! The map is a match tree, so what a request costs does not grow with the number of Services that have routes.
//! `vhost_header` would do the same, but Envoy 1.36 does not know it, and would send everything to the root without a
//! word.

use std::collections::{BTreeMap, BTreeSet, HashMap};
use std::net::SocketAddr;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    Route, RouteAction, RouteConfiguration, RouteList, RouteMatch, VirtualHost, route,
};
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatcher;
use envoy_types::pb::xds::r#type::matcher::v3::Matcher;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::matcher_list::{FieldMatcher, Predicate};
use envoy_types::pb::xds::r#type::matcher::v3::matcher::matcher_tree::{MatchMap, TreeType};
use envoy_types::pb::xds::r#type::matcher::v3::matcher::on_match::OnMatch as Outcome;
use envoy_types::pb::xds::r#type::matcher::v3::matcher::{MatcherTree, MatcherType, OnMatch};
use prost::Message;

use super::matching::{header_input, take};
use super::message::boolean;
use super::names::{self, DESTINATION_HEADER, OUTBOUND, SOURCE_STATE, UNSERVED_HEADER};
use super::rbac::{header_matchers, path_header, prefix_regex};
use super::{fault, matching, traffic_policy};
use crate::mesh::ServiceAccountKey;
use crate::mesh::object::{HttpMatch, Percentage, RequestSettings};
use crate::policy::FaultPlan;

/// A destination whose requests are treated by what they are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Destination {
    /// Where the application meant to go.
    pub address: SocketAddr,
    /// Splits by name, in the order in which they are tried. A request that any of a split's matches fits goes to the
    /// cluster [`names::split`]; others to [`names::destination`].
    pub splits: Vec<(Arc<str>, Vec<HttpMatch>)>,
    /// What goes wrong with them; of those that fit a request, the first counts.
    pub faults: Vec<FaultPlan>,
    /// How each of them is treated.
    pub requests: RequestSettings,
}

impl Destination {
    /// Whether its requests need routes.
    pub fn needs_routes(&self) -> bool {
        !self.splits.is_empty() || !self.faults.is_empty() || self.requests != RequestSettings::default()
    }
}

/// The route configuration of every sidecar, encoded.
pub fn configuration<'a>(destinations: impl IntoIterator<Item = &'a Destination>) -> Vec<u8> {
    let by_header = ClusterSpecifier::ClusterHeader(DESTINATION_HEADER.to_owned());
    let any_other = to(any_request(), by_header, &RequestSettings::default());
    let host = VirtualHost {
        name: OUTBOUND.to_owned(),
        domains: vec!["*".to_owned()],
        request_headers_to_remove: vec![DESTINATION_HEADER.to_owned()],
        response_headers_to_remove: vec![UNSERVED_HEADER.to_owned()],
        retry_policy: Some(traffic_policy::retry(None)),
        ..Default::default()
    };
    let mut destinations = destinations.into_iter().peekable();
    let host = if destinations.peek().is_none() {
        VirtualHost { routes: vec![any_other], ..host }.encode_to_vec()
    } else {
        // The map is written in the order of the destinations: protobuf merges messages that are written one after the
        // other, and prost would write a map in a random order. Equal destinations must give equal bytes.
        let by_destination = Matcher {
            matcher_type: Some(MatcherType::MatcherTree(MatcherTree {
                input: Some(header_input(DESTINATION_HEADER)),
                ..Default::default()
            })),
            on_no_match: Some(Box::new(take("any-other", any_other))),
        };
        let mut host = VirtualHost { matcher: Some(by_destination), ..host }.encode_to_vec();
        for destination in destinations {
            host.extend(VirtualHost { matcher: Some(entry(destination)), ..Default::default() }.encode_to_vec());
        }
        host
    };
    // Clusters come when they are first called.
    let configuration =
        RouteConfiguration { name: OUTBOUND.to_owned(), validate_clusters: boolean(false), ..Default::default() };
    let mut bytes = configuration.encode_to_vec();
    prost::encoding::bytes::encode(VIRTUAL_HOSTS, &host, &mut bytes);
    bytes
}

/// The number of `RouteConfiguration.virtual_hosts`.
const VIRTUAL_HOSTS: u32 = 2;

/// The destination's entry of the map.
fn entry(destination: &Destination) -> Matcher {
    let map = HashMap::from([(names::destination(destination.address).to_string(), routes_by_caller(destination))]);
    let tree = MatcherTree { tree_type: Some(TreeType::ExactMatchMap(MatchMap { map })), ..Default::default() };
    Matcher { matcher_type: Some(MatcherType::MatcherTree(tree)), on_no_match: None }
}

/// The destination's routes, where faults are for some callers only: the routes of each.
fn routes_by_caller(destination: &Destination) -> OnMatch {
    let callers: BTreeSet<_> = destination.faults.iter().flat_map(|fault| fault.callers.iter().flatten()).collect();
    let routes = |caller: Option<&ServiceAccountKey>| {
        let hits = |fault: &&FaultPlan| {
            fault.callers.as_ref().is_none_or(|callers| caller.is_some_and(|c| callers.contains(c)))
        };
        routes(destination, &destination.faults.iter().filter(hits).collect::<Vec<_>>())
    };
    let anybody = take("routes", RouteList { routes: routes(None) });
    if callers.is_empty() {
        return anybody;
    }
    // Callers that are hit alike stand together.
    let mut alike: BTreeMap<Vec<bool>, Vec<&ServiceAccountKey>> = BTreeMap::new();
    for caller in callers {
        let hits = destination.faults.iter().map(|fault| fault.callers.as_ref().is_none_or(|c| c.contains(caller)));
        alike.entry(hits.collect()).or_default().push(caller);
    }
    let matchers = alike.into_values().map(|callers| FieldMatcher {
        predicate: Some(is_any_of(&callers)),
        on_match: Some(take("routes", RouteList { routes: routes(callers.first().copied()) })),
    });
    let by_caller = matching::first_of(matchers.collect(), anybody);
    OnMatch { on_match: Some(Outcome::Matcher(Box::new(by_caller))), ..Default::default() }
}

/// The routes of one destination, with these faults of it. What fits none of them goes to the destination itself.
fn routes(destination: &Destination, faults: &[&FaultPlan]) -> Vec<Route> {
    let address = destination.address;
    let itself = ClusterSpecifier::Cluster(names::destination(address).to_string());
    let any = HttpMatch::any();
    let ways = || {
        let splits = destination.splits.iter().flat_map(|(name, matches)| {
            let split = ClusterSpecifier::Cluster(names::split(address, name).to_string());
            matches.iter().map(move |one| (one, split.clone()))
        });
        splits.chain(std::iter::once((&any, itself.clone())))
    };
    let to = |match_, cluster| to(match_, cluster, &destination.requests);
    let mut routes = Vec::new();
    for (position, fault) in faults.iter().enumerate() {
        let hit = || fault.matches.iter().flat_map(|hit| ways().map(move |(way, cluster)| (hit, way, cluster)));
        routes.extend(hit().map(|(hit, way, cluster)| Route {
            name: format!("TrafficFault {}", fault.name),
            typed_per_filter_config: fault::of_route(&fault.harm),
            ..to(RouteMatch { runtime_fraction: share(fault.percentage), ..both(hit, way) }, cluster)
        }));
        // Whom it spares is not for the next fault to hit.
        let is_last = position + 1 == faults.len();
        if fault.percentage < Percentage::ALL && !is_last {
            routes.extend(hit().map(|(hit, way, cluster)| to(both(hit, way), cluster)));
        }
    }
    routes.extend(ways().map(|(way, cluster)| to(both(&any, way), cluster)));
    routes
}

/// Takes so many of the requests; which ones is decided once for a request, however often it is matched.
fn share(percentage: Percentage) -> Option<RuntimeFractionalPercent> {
    (percentage < Percentage::ALL)
        .then(|| RuntimeFractionalPercent { default_value: Some(fault::fraction(percentage)), ..Default::default() })
}

pub(super) fn to(match_: RouteMatch, cluster: ClusterSpecifier, settings: &RequestSettings) -> Route {
    let action = RouteAction { cluster_specifier: Some(cluster), ..Default::default() };
    let action = traffic_policy::route_action(action, settings);
    Route { r#match: Some(match_), action: Some(route::Action::Route(action)), ..Default::default() }
}

pub(super) fn any_request() -> RouteMatch {
    RouteMatch { path_specifier: Some(PathSpecifier::Prefix("/".to_owned())), ..Default::default() }
}

/// Fits what fits both. A route has one regex for its path, so the second one of two is asked of the header `:path`,
/// which has the query as well: a regex that ends with `$` or reaches beyond a `?` sees the difference.
fn both(one: &HttpMatch, other: &HttpMatch) -> RouteMatch {
    let mut regexes = [one, other].into_iter().filter_map(|match_| match_.path_regex.as_deref()).map(prefix_regex);
    let path = regexes.next();
    let path_specifier = match path {
        Some(regex) => Some(PathSpecifier::SafeRegex(RegexMatcher { regex, ..Default::default() })),
        None => any_request().path_specifier,
    };
    let headers = [one, other].into_iter().flat_map(header_matchers).chain(regexes.map(path_header)).collect();
    RouteMatch { path_specifier, headers, ..Default::default() }
}

/// The caller is one of these, of which there is at least one.
fn is_any_of(callers: &[&ServiceAccountKey]) -> Predicate {
    let is = |caller: &&ServiceAccountKey| matching::filter_state(SOURCE_STATE, names::source(caller));
    matching::any_of(callers.iter().map(is).collect())
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::fixture::{account, fault};

    fn destination(last: u8) -> Destination {
        let plan = |name: &str, callers: Option<&[&str]>| FaultPlan {
            name: name.to_owned(),
            callers: callers.map(|callers| callers.iter().map(|caller| account(caller)).collect()),
            matches: vec![HttpMatch::any()],
            percentage: Percentage(500_000),
            harm: fault("shop/f", &[]).harm,
        };
        Destination {
            address: SocketAddr::from(([10, 96, 0, last], 80)),
            splits: Vec::new(),
            faults: vec![plan("shop/some", Some(&["shop/web", "shop/api"])), plan("shop/all", None)],
            requests: RequestSettings::default(),
        }
    }

    #[test]
    fn equal_destinations_give_equal_bytes_and_each_is_an_entry_of_the_map() {
        let encode = || configuration(&(1..=20).map(destination).collect::<Vec<_>>());
        let bytes = encode();
        assert!((0..20).all(|_| encode() == bytes));
        let read = RouteConfiguration::decode(bytes.as_slice()).expect("a route configuration");
        let matcher = read.virtual_hosts.first().and_then(|host| host.matcher.clone()).expect("a matcher");
        let Some(MatcherType::MatcherTree(tree)) = matcher.matcher_type else { panic!("a tree") };
        let Some(TreeType::ExactMatchMap(MatchMap { map })) = tree.tree_type else { panic!("a map") };
        assert_eq!((read.virtual_hosts.len(), map.len()), (1, 20));
        assert!(tree.input.is_some() && matcher.on_no_match.is_some());
    }

    #[test]
    fn whom_a_fault_spares_is_not_for_the_next_fault_and_callers_that_are_hit_alike_share_their_routes() {
        let destination = destination(1);
        let both: Vec<_> = destination.faults.iter().collect();
        let names: Vec<_> = routes(&destination, &both).into_iter().map(|route| route.name).collect();
        assert_eq!(names, ["TrafficFault shop/some", "", "TrafficFault shop/all", ""]);
        let Some(Outcome::Matcher(by_caller)) = routes_by_caller(&destination).on_match else { panic!("a matcher") };
        let Some(MatcherType::MatcherList(list)) = by_caller.matcher_type else { panic!("a list") };
        assert_eq!(list.matchers.len(), 1);
    }
}
