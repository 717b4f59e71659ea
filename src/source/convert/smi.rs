//! The SMI kinds, each in its newest version.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::mesh::object::{HttpMatch, HttpRouteGroup, SplitBackend, TargetRule, TcpRoute, TrafficSplit, TrafficTarget};
use crate::mesh::{Namespace, ServiceAccountKey, ServiceKey};
use crate::source::manifest::smi::{http, layer4, split, target};
use crate::source::versions;

use super::{Findings, name_of, namespace_of, re2};

/// A TrafficSplit.
pub(super) fn split(split: &split::v1alpha4::TrafficSplit, findings: &mut Findings) -> Option<TrafficSplit> {
    let split::v1alpha4::TrafficSplit { metadata, spec } = split;
    let split::v1alpha4::TrafficSplitSpec { service, backends, matches } = spec;
    let namespace = namespace_of(metadata);
    let root = root(service, &namespace, findings);
    if backends.is_empty() {
        findings.error("spec.backends", "there is no backend", "name at least one Service with a weight");
    }
    let mut seen = BTreeSet::new();
    let backends: Vec<_> = backends
        .iter()
        .enumerate()
        .map(|(index, backend)| {
            let field = format!("spec.backends[{index}].service");
            if !is_service_name(&backend.service) {
                findings.error(
                    &field,
                    format!("`{}` is not the name of a Service", backend.service),
                    "use the name of a Service in the split's own namespace",
                );
            }
            if !seen.insert(&backend.service) {
                findings.error(
                    &field,
                    format!("`{}` is a backend twice", backend.service),
                    "add their weights up in one",
                );
            }
            let service = ServiceKey::new(namespace.clone(), backend.service.as_str());
            SplitBackend { service, weight: backend.weight.0 }
        })
        .collect();
    // Envoy adds weights up in 32 bits and refuses a cluster list that overflows.
    let total: u64 = backends.iter().map(|backend| u64::from(backend.weight)).sum();
    if total > u64::from(u32::MAX) {
        findings.error(
            "spec.backends",
            format!("the weights add up to {total}"),
            format!("divide them all until they add up to at most {}", u32::MAX),
        );
    } else if total == 0 && !backends.is_empty() {
        findings.warning(
            "spec.backends",
            "all weights are 0, so every request is answered with 503",
            "give a backend a weight, or delete the split",
        );
    }
    let matches = matches.iter().flatten().enumerate().filter_map(|(index, reference)| {
        if reference.kind == "HTTPRouteGroup" {
            return Some(reference.name.as_str().into());
        }
        findings.error(
            format!("spec.matches[{index}].kind"),
            format!("a split cannot be limited to a {}", reference.kind),
            "name an HTTPRouteGroup",
        );
        None
    });
    let matches = matches.collect();
    Some(TrafficSplit {
        namespace,
        name: name_of(metadata),
        root: root?,
        backends,
        matches,
        created: metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
    })
}

/// `NAME`, `NAME.NAMESPACE`, `NAME.NAMESPACE.svc` or `NAME.NAMESPACE.svc.DOMAIN` (Flagger writes a host).
fn root(service: &str, namespace: &Namespace, findings: &mut Findings) -> Option<ServiceKey> {
    let mut parts = service.trim_end_matches('.').splitn(4, '.');
    let (name, of, svc) = (parts.next().unwrap_or_default(), parts.next(), parts.next());
    if !is_service_name(name) || svc.is_some_and(|svc| svc != "svc") {
        findings.error(
            "spec.service",
            format!("`{service}` is not a Service"),
            "write NAME, NAME.NAMESPACE, NAME.NAMESPACE.svc or NAME.NAMESPACE.svc.DOMAIN",
        );
        return None;
    }
    if of.is_some_and(|of| of != namespace.as_str()) {
        findings.error(
            "spec.service",
            format!("`{service}` is not in the split's namespace, {namespace}"),
            "move the split to the namespace of its root Service",
        );
        return None;
    }
    Some(ServiceKey::new(namespace.clone(), name))
}

pub(super) fn is_service_name(name: &str) -> bool {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    (1..=63).contains(&name.len()) && name.chars().all(allowed) && !name.starts_with('-') && !name.ends_with('-')
}

/// An HTTPRouteGroup. A match that cannot be used is left out, which can only narrow what is allowed or split.
pub(super) fn http_group(group: &http::v1alpha4::HTTPRouteGroup, findings: &mut Findings) -> HttpRouteGroup {
    let matches = &group.spec.matches;
    if matches.is_empty() {
        findings.warning("spec.matches", "the group has no match, so no request belongs to it", "add a match");
    }
    let mut names = BTreeSet::new();
    let mut converted = Vec::new();
    for (index, one) in matches.iter().enumerate() {
        let field = format!("spec.matches[{index}]");
        if !one.name.is_empty() && !names.insert(&one.name) {
            findings.error(
                format!("{field}.name"),
                format!("two matches are named `{}`", one.name),
                "give each match a name of its own",
            );
        }
        converted.extend(http_match(&field, one, findings));
    }
    HttpRouteGroup { namespace: namespace_of(&group.metadata), name: name_of(&group.metadata), matches: converted }
}

/// The match, or `None` and the warnings that say why.
pub(super) fn http_match(field: &str, one: &http::HttpMatch, findings: &mut Findings) -> Option<HttpMatch> {
    let before = findings.warnings.len();
    let path_regex = one.path_regex.clone().filter(|regex| !regex.is_empty());
    if let Some(regex) = &path_regex {
        check_regex(format!("{field}.pathRegex"), regex, findings);
    }
    let mut methods = BTreeSet::new();
    let mut any_method = false;
    for (index, method) in one.methods.iter().flatten().enumerate() {
        let upper = method.to_ascii_uppercase();
        match upper.as_str() {
            "*" => any_method = true,
            "GET" | "HEAD" | "POST" | "PUT" | "PATCH" | "DELETE" | "OPTIONS" | "TRACE" | "CONNECT" => {
                methods.insert(upper);
            }
            _ => findings.warning(
                format!("{field}.methods[{index}]"),
                format!("`{method}` is not an HTTP method, and the match is left out"),
                "use GET, HEAD, POST, PUT, PATCH, DELETE, OPTIONS, TRACE, CONNECT or `*`",
            ),
        }
    }
    if any_method {
        methods.clear();
    }
    let mut headers = BTreeMap::new();
    let listed = one.headers.iter().flat_map(|headers| headers.0.iter().enumerate());
    for (index, (name, regex)) in listed.flat_map(|(index, map)| map.iter().map(move |entry| (index, entry))) {
        let field = format!("{field}.headers[{index}].{name}");
        let lower = name.to_ascii_lowercase();
        if ::http::HeaderName::from_bytes(lower.as_bytes()).is_err() {
            findings.warning(
                &field,
                format!("`{name}` is not a header's name, and the match is left out"),
                "use a header's name, and `host` for the authority",
            );
        }
        check_regex(&field, regex, findings);
        if headers.insert(lower, regex.clone()).is_some_and(|other| other != *regex) {
            findings.warning(
                &field,
                format!("the header `{name}` has two regexes, and the match is left out"),
                "write one regex for each header",
            );
        }
    }
    let headers = headers.into_iter().collect();
    (findings.warnings.len() == before).then(|| HttpMatch {
        name: one.name.as_str().into(),
        path_regex,
        methods,
        headers,
    })
}

fn check_regex(field: impl Into<String>, regex: &str, findings: &mut Findings) {
    if let Err(reason) = re2::check(regex) {
        findings.warning(
            field,
            format!("`{}` is not a regex that Envoy takes, and the match is left out: {reason}", shortened(regex)),
            "use the syntax of RE2, which has no look-around and no back-references",
        );
    }
}

fn shortened(text: &str) -> String {
    match text.char_indices().nth(60) {
        Some((cut, _)) => format!("{}…", &text[..cut]),
        None => text.to_owned(),
    }
}

/// A TCPRoute.
pub(super) fn tcp_route(route: &layer4::v1alpha4::TCPRoute, findings: &mut Findings) -> TcpRoute {
    let ports = route.spec.matches.as_ref().map(|matches| matches.ports.as_slice()).unwrap_or_default();
    let port = |(index, port): (usize, &i32)| findings.port(&format!("spec.matches.ports[{index}]"), *port);
    let ports = ports.iter().enumerate().filter_map(port).collect();
    TcpRoute { namespace: namespace_of(&route.metadata), name: name_of(&route.metadata), ports }
}

/// A UDPRoute, which comes to nothing.
pub(super) fn udp_route(findings: &mut Findings) {
    findings.warning(
        "spec",
        "UDP does not go through the sidecars, so this route neither allows nor denies anything",
        "use a NetworkPolicy for UDP",
    );
}

/// A reference to a ServiceAccount.
pub(super) struct Identity<'a> {
    kind: &'a str,
    name: &'a str,
    namespace: Option<&'a str>,
}

impl<'a> From<&'a target::Subject> for Identity<'a> {
    fn from(subject: &'a target::Subject) -> Self {
        Self { kind: &subject.kind, name: &subject.name, namespace: subject.namespace.as_deref() }
    }
}

impl<'a> From<&'a target::Destination> for Identity<'a> {
    fn from(subject: &'a target::Destination) -> Self {
        Self { kind: &subject.kind, name: &subject.name, namespace: subject.namespace.as_deref() }
    }
}

impl Identity<'_> {
    pub(super) fn account(&self, field: &str, own: &Namespace, findings: &mut Findings) -> Option<ServiceAccountKey> {
        if self.kind != "ServiceAccount" {
            findings.error(
                format!("{field}.kind"),
                format!("a {} is not an identity of the mesh", self.kind),
                "use kind ServiceAccount",
            );
            return None;
        }
        if self.name.is_empty() {
            findings.error(format!("{field}.name"), "the ServiceAccount has no name", "name it");
            return None;
        }
        let namespace = self.namespace.filter(|namespace| !namespace.is_empty());
        Some(ServiceAccountKey::new(namespace.map_or_else(|| own.clone(), Into::into), self.name))
    }
}

/// A TrafficTarget; `None` when it would open another namespace's workloads.
pub(super) fn target(target: &target::v1alpha3::TrafficTarget, findings: &mut Findings) -> Option<TrafficTarget> {
    let target::v1alpha3::TrafficTarget { metadata, spec } = target;
    let namespace = namespace_of(metadata);
    let destination = Identity::from(&spec.destination).account("spec.destination", &namespace, findings);
    let port = findings.of(versions::target::port(metadata)).flatten();
    let port = port.and_then(|port| target_port(&port, findings));
    let sources = spec.sources.iter().enumerate().filter_map(|(index, source)| {
        Identity::from(source).account(&format!("spec.sources[{index}]"), &namespace, findings)
    });
    let sources = sources.collect::<BTreeSet<_>>();
    if spec.sources.is_empty() {
        findings.warning("spec.sources", "there is no source, so nobody is allowed", "name a ServiceAccount");
    }
    let rules = target_rules(&spec.rules, findings);
    let destination = destination?;
    if destination.namespace != namespace {
        findings.warning(
            "spec.destination.namespace",
            format!("the destination is not in the target's namespace, {namespace}, and the target is ignored"),
            format!("move the TrafficTarget to the namespace {}", destination.namespace),
        );
        return None;
    }
    Some(TrafficTarget { namespace, name: name_of(metadata), destination, port, sources, rules })
}

/// The port that an older version can name. When it is none, that is an error, since without it every port is opened.
fn target_port(port: &IntOrString, findings: &mut Findings) -> Option<u16> {
    let field = format!("metadata.annotations.{}", versions::PORT);
    match port {
        IntOrString::Int(number) => findings.port(&field, *number),
        IntOrString::String(text) => match text.parse() {
            Ok(number) => findings.port(&field, number),
            Err(_) => {
                findings.error(field, format!("`{text}` is not a port"), "use a number from 1 to 65535");
                None
            }
        },
    }
}

fn target_rules(rules: &[target::Rule], findings: &mut Findings) -> Vec<TargetRule> {
    if rules.is_empty() {
        findings.warning(
            "spec.rules",
            "there is no rule, so nothing is allowed",
            "name an HTTPRouteGroup or a TCPRoute",
        );
    }
    let rule = |(index, rule): (usize, &target::Rule)| match rule.kind.as_str() {
        "HTTPRouteGroup" => {
            let names = rule.matches.as_ref();
            let names = names.map(|names| names.iter().map(|name| Arc::from(name.as_str())).collect());
            Some(TargetRule::Http(rule.name.as_str().into(), names))
        }
        "TCPRoute" => Some(TargetRule::Tcp(rule.name.as_str().into())),
        "UDPRoute" => {
            findings.warning(
                format!("spec.rules[{index}].kind"),
                "UDP does not go through the sidecars, so this rule allows nothing",
                "remove the rule, and use a NetworkPolicy for UDP",
            );
            None
        }
        kind => {
            findings.error(
                format!("spec.rules[{index}].kind"),
                format!("a rule cannot name a {kind}"),
                "name an HTTPRouteGroup or a TCPRoute",
            );
            None
        }
    };
    rules.iter().enumerate().filter_map(rule).collect()
}
