//! The outbound routes: one for each match of a destination whose requests matter, told by [`DESTINATION_HEADER`];
//! everything else goes to the cluster that the header names.
//!
//! A virtual host for each destination, found by `vhost_header`, would be looked up and not searched for; but Envoy
//! 1.36 does not know that field, and would send everything to the root without a word.

use std::net::SocketAddr;
use std::time::Duration;

use envoy_types::pb::envoy::config::route::v3::retry_policy::{RetryHostPredicate, retry_host_predicate};
use envoy_types::pb::envoy::config::route::v3::route_action::ClusterSpecifier;
use envoy_types::pb::envoy::config::route::v3::route_match::PathSpecifier;
use envoy_types::pb::envoy::config::route::v3::{
    RetryPolicy, Route, RouteAction, RouteConfiguration, RouteMatch, VirtualHost, route,
};
use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use envoy_types::pb::envoy::r#type::matcher::v3::RegexMatcher;
use envoy_types::util::pack_any;

use super::message::{boolean, duration, uint32};
use super::names::{self, DESTINATION_HEADER, OUTBOUND};
use super::rbac::{exact_header, header_matchers, prefix_regex};
use crate::mesh::object::HttpMatch;

/// A destination whose requests are split by what they are.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Destination {
    /// Where the application meant to go.
    pub address: SocketAddr,
    /// A request that any of these fits goes to the cluster [`names::split`]; others to [`names::destination`].
    pub matches: Vec<HttpMatch>,
}

/// The route configuration of every sidecar.
pub fn configuration<'a>(destinations: impl IntoIterator<Item = &'a Destination>) -> RouteConfiguration {
    let mut routes: Vec<_> = destinations.into_iter().flat_map(split).collect();
    let by_header = ClusterSpecifier::ClusterHeader(DESTINATION_HEADER.to_owned());
    routes.push(to(RouteMatch { path_specifier: Some(any_path()), ..Default::default() }, by_header));
    RouteConfiguration {
        name: OUTBOUND.to_owned(),
        virtual_hosts: vec![VirtualHost {
            name: OUTBOUND.to_owned(),
            domains: vec!["*".to_owned()],
            routes,
            request_headers_to_remove: vec![DESTINATION_HEADER.to_owned()],
            retry_policy: Some(retry_what_was_never_served()),
            ..Default::default()
        }],
        // Clusters come when they are first called.
        validate_clusters: boolean(false),
        ..Default::default()
    }
}

/// The routes of what is split; what none of them fits goes to the destination itself.
fn split(destination: &Destination) -> impl Iterator<Item = Route> {
    let split = ClusterSpecifier::Cluster(names::split(destination.address).to_string());
    destination.matches.iter().map(move |match_| to(route_match(destination.address, match_), split.clone()))
}

pub(super) fn to(match_: RouteMatch, cluster: ClusterSpecifier) -> Route {
    let action = RouteAction {
        cluster_specifier: Some(cluster),
        // The application's own time-out decides.
        timeout: duration(Duration::ZERO),
        ..Default::default()
    };
    Route { r#match: Some(match_), action: Some(route::Action::Route(action)), ..Default::default() }
}

pub(super) fn any_path() -> PathSpecifier {
    PathSpecifier::Prefix("/".to_owned())
}

fn route_match(destination: SocketAddr, match_: &HttpMatch) -> RouteMatch {
    let path = match &match_.path_regex {
        Some(regex) => PathSpecifier::SafeRegex(RegexMatcher { regex: prefix_regex(regex), ..Default::default() }),
        None => any_path(),
    };
    // First the cheapest, which decides most often.
    let mut headers = vec![exact_header(DESTINATION_HEADER, names::destination(destination).to_string())];
    headers.extend(header_matchers(match_));
    RouteMatch { path_specifier: Some(path), headers, ..Default::default() }
}

/// Another endpoint is tried when the first has certainly not seen the request. Nothing else is retried unless a
/// policy asks for it.
pub(super) fn retry_what_was_never_served() -> RetryPolicy {
    RetryPolicy {
        retry_on: "connect-failure,refused-stream,reset-before-request".to_owned(),
        num_retries: uint32(2),
        retry_host_predicate: vec![RetryHostPredicate {
            name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
            config_type: Some(retry_host_predicate::ConfigType::TypedConfig(pack_any(PreviousHostsPredicate {}))),
        }],
        host_selection_retry_max_attempts: 5,
        ..Default::default()
    }
}
