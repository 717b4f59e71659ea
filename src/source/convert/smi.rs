//! The SMI kinds, whichever version they were written in.

use std::collections::{BTreeMap, BTreeSet};
use std::sync::Arc;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::mesh::object::{HttpMatch, HttpRouteGroup, SplitBackend, TargetRule, TcpRoute, TrafficSplit, TrafficTarget};
use crate::mesh::{Namespace, ServiceAccountKey, ServiceKey};
use crate::source::manifest::smi::{self, target_v1alpha2};

use super::{Findings, name_of, namespace_of, re2};

/// A TrafficSplit.
pub(super) fn split(
    metadata: &ObjectMeta,
    service: &str,
    backends: &[smi::Backend],
    matches: &[smi::LocalReference],
    findings: &mut Findings,
) -> Option<TrafficSplit> {
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
    let matches = matches.iter().enumerate().filter_map(|(index, reference)| {
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
pub(super) fn http_group(metadata: &ObjectMeta, matches: &[smi::HttpMatch], findings: &mut Findings) -> HttpRouteGroup {
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
    HttpRouteGroup { namespace: namespace_of(metadata), name: name_of(metadata), matches: converted }
}

/// The match, or `None` and the warnings that say why.
pub(super) fn http_match(field: &str, one: &smi::HttpMatch, findings: &mut Findings) -> Option<HttpMatch> {
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
        if http::HeaderName::from_bytes(lower.as_bytes()).is_err() {
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
pub(super) fn tcp_route(metadata: &ObjectMeta, matches: Option<&smi::TcpMatch>, findings: &mut Findings) -> TcpRoute {
    let ports = matches.map(|matches| matches.ports.as_slice()).unwrap_or_default();
    let port = |(index, port): (usize, &i32)| findings.port(&format!("spec.matches.ports[{index}]"), *port);
    let ports = ports.iter().enumerate().filter_map(port).collect();
    TcpRoute { namespace: namespace_of(metadata), name: name_of(metadata), ports }
}

/// What a TrafficTarget of any version says.
pub(super) struct Target<'a> {
    pub(super) destination: Identity<'a>,
    pub(super) port: Option<&'a IntOrString>,
    pub(super) sources: &'a [smi::Subject],
    pub(super) rules: &'a [smi::Rule],
}

/// A reference to a ServiceAccount.
pub(super) struct Identity<'a> {
    kind: &'a str,
    name: &'a str,
    namespace: Option<&'a str>,
}

impl<'a> From<&'a smi::Subject> for Identity<'a> {
    fn from(subject: &'a smi::Subject) -> Self {
        Self { kind: &subject.kind, name: &subject.name, namespace: subject.namespace.as_deref() }
    }
}

impl<'a> From<&'a target_v1alpha2::PortSubject> for Identity<'a> {
    fn from(subject: &'a target_v1alpha2::PortSubject) -> Self {
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

impl Target<'_> {
    /// The TrafficTarget; `None` when it would open another namespace's workloads.
    pub(super) fn convert(&self, metadata: &ObjectMeta, findings: &mut Findings) -> Option<TrafficTarget> {
        let namespace = namespace_of(metadata);
        let destination = self.destination.account("spec.destination", &namespace, findings);
        let port = self.port(findings);
        let sources = self.sources.iter().enumerate().filter_map(|(index, source)| {
            Identity::from(source).account(&format!("spec.sources[{index}]"), &namespace, findings)
        });
        let sources = sources.collect::<BTreeSet<_>>();
        if self.sources.is_empty() {
            findings.warning("spec.sources", "there is no source, so nobody is allowed", "name a ServiceAccount");
        }
        let rules = self.rules(findings);
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

    fn port(&self, findings: &mut Findings) -> Option<u16> {
        let field = "spec.destination.port";
        match self.port? {
            IntOrString::Int(number) => findings.port(field, *number),
            IntOrString::String(text) => match text.parse() {
                Ok(number) => findings.port(field, number),
                Err(_) => {
                    findings.error(field, format!("`{text}` is not a port"), "use a number from 1 to 65535");
                    None
                }
            },
        }
    }

    fn rules(&self, findings: &mut Findings) -> Vec<TargetRule> {
        let rule = |(index, rule): (usize, &smi::Rule)| match rule.kind.as_str() {
            "HTTPRouteGroup" => {
                let names = rule.matches.as_ref();
                let names = names.map(|names| names.iter().map(|name| Arc::from(name.as_str())).collect());
                Some(TargetRule::Http(rule.name.as_str().into(), names))
            }
            "TCPRoute" => Some(TargetRule::Tcp(rule.name.as_str().into())),
            kind => {
                findings.error(
                    format!("spec.rules[{index}].kind"),
                    format!("a rule cannot name a {kind}"),
                    "name an HTTPRouteGroup or a TCPRoute",
                );
                None
            }
        };
        self.rules.iter().enumerate().filter_map(rule).collect()
    }
}
