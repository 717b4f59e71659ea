//! Authorisation as Envoy's role-based access control.
//!
//! All policies of a pod stand in one filter, where they are OR-ed: rules per route would let the first matching route
//! shadow a later allow. A policy without principals is never emitted, since that could be read as anyone.

use std::collections::{BTreeSet, HashMap};

use envoy_types::pb::envoy::config::rbac::v3::principal::{Authenticated, Identifier};
use envoy_types::pb::envoy::config::rbac::v3::{Permission, Policy, Principal, Rbac, permission};
use envoy_types::pb::envoy::config::route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier};
use envoy_types::pb::envoy::r#type::matcher::v3::path_matcher::Rule as PathRule;
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{PathMatcher, RegexMatcher, StringMatcher};
use envoy_types::pb::google::protobuf::Any;
use prost::{Message, Name};

use crate::mesh::SpiffeId;
use crate::mesh::object::{GRPC_HEALTH_CHECK, HttpMatch, Probe};
use crate::policy::{Allow, AllowPolicy};

/// One named policy of the filter.
pub(super) type Named = (String, Policy);

/// Policies for requests.
pub(super) fn http_policies(allow: &[AllowPolicy]) -> Vec<Named> {
    policies(allow, |allow| match allow {
        Allow::Http { ports, matches } => {
            let any_match = any_of(matches.iter().map(request).collect());
            Some(match ports {
                Some(ports) => all_of(vec![on_ports(ports), any_match]),
                None => any_match,
            })
        }
        Allow::Tcp { .. } => None,
    })
}

/// Policies for connections that are not HTTP.
pub(super) fn tcp_policies(allow: &[AllowPolicy]) -> Vec<Named> {
    policies(allow, |allow| match allow {
        Allow::Tcp { only: Some(ports), .. } => Some(on_ports(ports)),
        Allow::Tcp { only: None, except } if except.is_empty() => Some(any_permission()),
        Allow::Tcp { only: None, except } => Some(permission(permission::Rule::NotRule(Box::new(on_ports(except))))),
        Allow::Http { .. } => None,
    })
}

/// What the kubelet may ask in clear: the probes' own ports and paths.
pub(super) fn probe_policies(probes: &BTreeSet<Probe>) -> Vec<Named> {
    let at = |port: u16, path: &str| {
        let exact = StringMatcher { match_pattern: Some(MatchPattern::Exact(path.to_owned())), ..Default::default() };
        let path = PathMatcher { rule: Some(PathRule::Path(exact)) };
        all_of(vec![
            permission(permission::Rule::DestinationPort(port.into())),
            permission(permission::Rule::UrlPath(path)),
        ])
    };
    let permissions: Vec<_> = probes
        .iter()
        .filter_map(|probe| match probe {
            Probe::Http(port, path) => Some(at(*port, path)),
            Probe::Grpc(port) => Some(at(*port, GRPC_HEALTH_CHECK)),
            // A TCP probe only connects, and Envoy accepts every connection.
            Probe::Tcp(_) => None,
        })
        .collect();
    if permissions.is_empty() { Vec::new() } else { vec![to_anyone("probes", permissions)] }
}

/// A policy that allows any caller on these pod ports; on all but these if `except`.
pub(super) fn ports_policy(name: &str, ports: &BTreeSet<u16>, except: bool) -> Named {
    let on = on_ports(ports);
    let on = if except { permission(permission::Rule::NotRule(Box::new(on))) } else { on };
    to_anyone(name, vec![on])
}

fn to_anyone(name: &str, permissions: Vec<Permission>) -> Named {
    let anyone = Principal { identifier: Some(Identifier::Any(true)) };
    (name.to_owned(), Policy { permissions, principals: vec![anyone], ..Default::default() })
}

/// Encodes a filter that holds policies in the order given.
///
/// `Rbac.policies` is a map, which prost writes in a random order; equal plans must give equal bytes. Protobuf merges
/// messages that are written one after the other, so the filter is written once for each policy.
pub(super) fn filter<T: Message + Name>(policies: &[Named], wrap: impl Fn(Rbac) -> T) -> Any {
    let mut value = wrap(Rbac::default()).encode_to_vec();
    for (name, policy) in policies {
        let rules = Rbac { policies: HashMap::from([(name.clone(), policy.clone())]), ..Default::default() };
        value.extend(wrap(rules).encode_to_vec());
    }
    Any { type_url: T::type_url(), value }
}

fn policies(allow: &[AllowPolicy], permit: impl Fn(&Allow) -> Option<Permission>) -> Vec<Named> {
    let policy = |allowed: &AllowPolicy| {
        let principals: Vec<_> = allowed.sources.iter().map(identity).collect();
        let permissions = vec![permit(&allowed.allow)?];
        (!principals.is_empty())
            .then(|| (allowed.target.clone(), Policy { permissions, principals, ..Default::default() }))
    };
    allow.iter().filter_map(policy).collect()
}

fn identity(id: &SpiffeId) -> Principal {
    let exact = StringMatcher { match_pattern: Some(MatchPattern::Exact(id.to_string())), ..Default::default() };
    Principal { identifier: Some(Identifier::Authenticated(Authenticated { principal_name: Some(exact) })) }
}

fn request(match_: &HttpMatch) -> Permission {
    let mut parts = Vec::new();
    if let Some(regex) = &match_.path_regex {
        let regex = PathMatcher { rule: Some(PathRule::Path(full_match(prefix_regex(regex)))) };
        parts.push(permission(permission::Rule::UrlPath(regex)));
    }
    parts.extend(header_matchers(match_).into_iter().map(|header| permission(permission::Rule::Header(header))));
    all_of(parts)
}

/// SMI anchors a path's regex at the beginning only; Envoy's must match the whole.
pub(super) fn prefix_regex(regex: &str) -> String {
    format!("(?:{regex}).*")
}

/// The methods and headers of a match; all of them must fit.
pub(super) fn header_matchers(match_: &HttpMatch) -> Vec<HeaderMatcher> {
    let methods = match_.methods.iter().map(String::as_str).collect::<Vec<_>>().join("|");
    let methods = (!methods.is_empty()).then(|| header(":method", methods));
    let headers = match_.headers.iter().map(|(name, value)| {
        let name = if name == "host" { ":authority" } else { name };
        header(name, value.clone())
    });
    methods.into_iter().chain(headers).collect()
}

/// Fits a path, with its query, that the whole regex fits.
pub(super) fn path_header(regex: String) -> HeaderMatcher {
    header(":path", regex)
}

pub(super) fn header(name: &str, regex: String) -> HeaderMatcher {
    HeaderMatcher {
        name: name.to_owned(),
        header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(full_match(regex))),
        ..Default::default()
    }
}

fn full_match(regex: String) -> StringMatcher {
    let regex = RegexMatcher { regex, ..Default::default() };
    StringMatcher { match_pattern: Some(MatchPattern::SafeRegex(regex)), ..Default::default() }
}

fn on_ports(ports: &BTreeSet<u16>) -> Permission {
    any_of(ports.iter().map(|port| permission(permission::Rule::DestinationPort((*port).into()))).collect())
}

fn permission(rule: permission::Rule) -> Permission {
    Permission { rule: Some(rule) }
}

fn any_permission() -> Permission {
    permission(permission::Rule::Any(true))
}

/// All of these; of nothing, everything fits.
fn all_of(mut rules: Vec<Permission>) -> Permission {
    match rules.len() {
        0 => any_permission(),
        1 => rules.remove(0),
        _ => permission(permission::Rule::AndRules(permission::Set { rules })),
    }
}

/// Any of these; the callers never ask for none.
fn any_of(mut rules: Vec<Permission>) -> Permission {
    match rules.len() {
        1 => rules.remove(0),
        _ => permission(permission::Rule::OrRules(permission::Set { rules })),
    }
}
