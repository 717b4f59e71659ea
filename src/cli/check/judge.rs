//! From facts to findings. Pure.

use std::collections::BTreeMap;

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use time::OffsetDateTime;

use super::facts::{After, Before, MeshFacts, Read};
use super::rights::Right;
use super::{Finding, Outcome};
use crate::ca::describe;
use crate::inject::{INJECTED, NOT_INJECTED, wanted};
use crate::mesh::Diagnostic;
use crate::mesh::diagnostic::Severity;
use crate::source::convert::has_sidecar;
use crate::source::crds;

/// The oldest Kubernetes that Weft runs on, and the oldest with native sidecars.
const OLDEST: (u32, u32) = (1, 27);
const NATIVE: (u32, u32) = (1, 29);
/// A root that ends sooner is warned of.
const ROOT_DAYS: i64 = 30;
/// A certificate that is renewed at half of its life is late when less than this is left.
const RENEWED_DAYS: i64 = 1;
/// So many of a sort are named.
const NAMED: usize = 5;

/// The findings of a check: one that it is as it should be, if there are no others.
pub(in crate::cli) fn check(
    name: &'static str,
    ok: impl Into<String>,
    found: Vec<(Outcome, String, String)>,
) -> Vec<Finding> {
    if found.is_empty() {
        return vec![Finding { check: name, outcome: Outcome::Ok, found: ok.into(), todo: String::new() }];
    }
    found.into_iter().map(|(outcome, found, todo)| Finding { check: name, outcome, found, todo }).collect()
}

pub(in crate::cli) fn failed(found: impl Into<String>, todo: impl Into<String>) -> (Outcome, String, String) {
    (Outcome::Failed, found.into(), todo.into())
}

pub(in crate::cli) fn warning(found: impl Into<String>, todo: impl Into<String>) -> (Outcome, String, String) {
    (Outcome::Warning, found.into(), todo.into())
}

/// What could not be read is not known to be right.
fn unread(what: &str, error: &str) -> (Outcome, String, String) {
    failed(format!("{what} cannot be read: {error}"), "ask with an account that may read it")
}

/// Whether Weft can be installed.
pub(in crate::cli) fn before(facts: &Before) -> Vec<Finding> {
    let mut findings = version(facts.version);
    findings.extend(match &facts.denied {
        Ok(denied) => check(
            "permissions",
            "you may install",
            of_rights(denied, "you may not", |_| {
                "install with an account that may, as one with the ClusterRole cluster-admin".to_owned()
            }),
        ),
        Err(error) => check("permissions", "", vec![unread("what you may", error)]),
    });
    let mut found = Vec::new();
    for (name, definition) in &facts.definitions {
        match definition {
            Ok(Some(definition)) if !is_ours(definition) => found.push(warning(
                format!("{name} is there already, and not Weft's"),
                "nothing, if its objects are for Weft: the control plane brings the definition up to date",
            )),
            Ok(_) => {}
            Err(error) => found.push(unread(name, error)),
        }
    }
    findings.extend(check("definitions", "nothing stands in the way", found));
    findings.extend(match &facts.injectors {
        Ok(others) => {
            let todo = "nothing, if it adds no proxy; else keep it away from namespaces with weft.dev/inject";
            let found = others.iter().map(|name| warning(format!("{name} changes pods, too"), todo));
            check("injectors", "no other", found.collect())
        }
        Err(error) => check("injectors", "", vec![unread("the webhook configurations", error)]),
    });
    findings
}

/// Whether what is installed works.
pub(in crate::cli) fn after(facts: &After) -> Vec<Finding> {
    let mut findings = version(facts.version);
    findings.extend(match &facts.denied {
        Ok(denied) => check(
            "permissions",
            "you may read all that is looked at",
            of_rights(denied, "you may not", |_| {
                "ask with an account that may; what is not read below cannot be judged".to_owned()
            }),
        ),
        Err(error) => check("permissions", "", vec![unread("what you may", error)]),
    });
    let account = format!("system:serviceaccount:{}:weft", facts.namespace);
    findings.extend(match &facts.control_plane_denied {
        Ok(denied) => check(
            "rights",
            "the control plane may do all that it has to",
            of_rights(denied, "the control plane may not", |right| {
                format!(
                    "allow {account} the verb {} on {}, as the chart does: helm upgrade",
                    right.verb, right.resource
                )
            }),
        ),
        Err(error) => check("rights", "", vec![unread("what the control plane may", error)]),
    });
    let root = facts.roots.as_ref().ok().and_then(|roots| roots.get(&facts.namespace));
    findings.extend(definitions(&facts.definitions, root));
    findings.extend(webhooks(facts, root));
    findings.extend(certificates(facts, root));
    findings.extend(control_plane(facts));
    findings.extend(roots(facts, root));
    match &facts.mesh {
        Ok(mesh) => {
            findings.extend(sidecars(mesh));
            findings.extend(namespaces(mesh));
            findings.extend(resources(&mesh.diagnostics));
        }
        Err(error) => findings.extend(check("resources", "", vec![unread("the mesh", error)])),
    }
    findings
}

fn version((major, minor): (u32, u32)) -> Vec<Finding> {
    let found = match (major, minor) {
        version if version < OLDEST => {
            vec![failed(format!("Kubernetes {major}.{minor}"), "Weft needs Kubernetes 1.27: upgrade the cluster")]
        }
        version if version < NATIVE => vec![warning(
            format!("Kubernetes {major}.{minor} has no native sidecars"),
            "see docs/install.md for what classic sidecars cannot do, or upgrade to 1.29",
        )],
        _ => Vec::new(),
    };
    check("kubernetes", format!("version {major}.{minor}"), found)
}

pub(in crate::cli) fn of_rights(
    denied: &[Right],
    who: &str,
    todo: impl Fn(&Right) -> String,
) -> Vec<(Outcome, String, String)> {
    denied.iter().map(|right| failed(format!("{who} {right}"), todo(right))).collect()
}

pub(in crate::cli) fn is_ours(definition: &CustomResourceDefinition) -> bool {
    let labels = definition.metadata.labels.as_ref();
    labels.and_then(|labels| labels.get("app.kubernetes.io/part-of")).is_some_and(|part| part == "weft")
}

fn definitions(
    found: &BTreeMap<String, Read<Option<CustomResourceDefinition>>>,
    root: Option<&String>,
) -> Vec<Finding> {
    let apply = "weft crds | kubectl apply --server-side --force-conflicts -f -";
    let mut findings = Vec::new();
    for wanted in crds::all() {
        let name = wanted.metadata.name.clone().unwrap_or_default();
        let definition = match found.get(&name) {
            Some(Ok(Some(definition))) => definition,
            Some(Err(error)) => {
                findings.push(unread(&name, error));
                continue;
            }
            Some(Ok(None)) | None => {
                findings.push(failed(format!("{name} is missing"), apply));
                continue;
            }
        };
        let served = |version: &str| definition.spec.versions.iter().any(|found| found.name == version && found.served);
        let missing: Vec<_> = wanted
            .spec
            .versions
            .iter()
            .map(|version| version.name.as_str())
            .filter(|version| !served(version))
            .collect();
        let conditions = definition.status.as_ref().and_then(|status| status.conditions.as_ref());
        let mut conditions = conditions.into_iter().flatten();
        let client = |definition: &CustomResourceDefinition| {
            definition.spec.conversion.clone()?.webhook?.client_config?.ca_bundle.map(|bundle| bundle.0)
        };
        if !missing.is_empty() {
            findings.push(failed(format!("{name} does not serve {}", missing.join(", ")), apply));
        } else if let Some(refused) = conditions.find(|one| one.type_ == "Established" && one.status != "True") {
            let why = refused.message.clone().unwrap_or_default();
            findings.push(failed(format!("{name} is not in use: {why}"), "see its status: kubectl describe crd"));
        } else if let Some(root) = root
            && wanted.spec.conversion.is_some()
            && client(definition).is_none_or(|bundle| bundle != root.as_bytes())
        {
            let todo = "see the log of the replica that holds the lease: it writes caBundle within a minute";
            findings.push(failed(format!("{name}: the API server does not believe who converts it"), todo));
        }
    }
    check("definitions", format!("{} kinds, in every version", found.len()), findings)
}

fn webhooks(facts: &After, root: Option<&String>) -> Vec<Finding> {
    let mut found = Vec::new();
    for (of, bundles) in &facts.webhooks {
        match bundles {
            Err(error) => found.push(unread(of, error)),
            Ok(None) => found.push(failed(
                format!("{of} is missing, so pods get no sidecar, or objects are stored unchecked"),
                "put it back: helm upgrade",
            )),
            Ok(Some(bundles)) => {
                let wrong = bundles.iter().filter(|bundle| root.is_none_or(|root| *bundle != root)).count();
                if wrong > 0 {
                    found.push(failed(
                        format!("{of}: {wrong} of {} webhooks are not believed by the mesh's root", bundles.len()),
                        "see the log of the replica that holds the lease: it writes caBundle within seconds",
                    ));
                }
            }
        }
    }
    check("webhooks", "there, and believed by the mesh's root", found)
}

fn certificates(facts: &After, root: Option<&String>) -> Vec<Finding> {
    let mut found = Vec::new();
    if let Some(root) = root {
        let todo = "make a new root in time (docs/mtls.md)";
        found.extend(validity("the mesh's root", root, facts.now, ROOT_DAYS, todo));
    }
    for (name, certificate) in &facts.certificates {
        let (days, todo) = match name == crate::kubernetes::webhooks::SECRET {
            true => (RENEWED_DAYS, "see the log of the replica that holds the lease: it renews the certificate"),
            false => (ROOT_DAYS, "renew the certificate of the authority in this Secret (docs/kubernetes.md)"),
        };
        let of = format!("Secret {}/{name}", facts.namespace);
        found.extend(match certificate {
            Ok(Some(pem)) => validity(&of, pem, facts.now, days, todo),
            Ok(None) => {
                let todo = "see what /readyz and the log of the control plane say";
                Some(failed(format!("{of} is missing"), todo))
            }
            Err(error) => Some(unread(&of, error)),
        });
    }
    check("certificates", "valid", found)
}

/// What is wrong with the time of a certificate, which should last for so many more days.
fn validity(of: &str, pem: &str, now: OffsetDateTime, days: i64, todo: &str) -> Option<(Outcome, String, String)> {
    let summary = match describe(pem.as_bytes()) {
        Ok(summary) => summary,
        Err(error) => return Some(failed(format!("{of}: {error}"), todo)),
    };
    let (begins, ends) = (summary.not_before, summary.not_after);
    if now < begins {
        let clock = "compare the clocks of this machine and of the cluster";
        return Some(failed(format!("{of} begins on {} only", begins.date()), clock));
    }
    if now > ends {
        return Some(failed(format!("{of} ended on {}", ends.date()), todo));
    }
    (ends - now < time::Duration::days(days)).then(|| warning(format!("{of} ends on {}", ends.date()), todo))
}

fn control_plane(facts: &After) -> Vec<Finding> {
    let mut found = Vec::new();
    let mut ready = Vec::new();
    for (name, deployment) in &facts.deployments {
        let of = format!("Deployment {}/{name}", facts.namespace);
        match deployment {
            Err(error) => found.push(unread(&of, error)),
            Ok(None) => found.push(failed(format!("{of} is missing"), "install Weft: weft install (docs/install.md)")),
            Ok(Some(deployment)) => {
                let wanted = deployment.spec.replicas.unwrap_or(1);
                let are = deployment.status.as_ref().and_then(|status| status.ready_replicas).unwrap_or_default();
                let said = format!("{of}: {are} of {wanted} replicas are ready");
                let todo = format!(
                    "see why: kubectl -n {} describe pods; kubectl -n {} logs deployment/{name}",
                    facts.namespace, facts.namespace
                );
                match are {
                    0 => found.push(failed(said, todo)),
                    are if are < wanted => found.push(warning(said, todo)),
                    _ => ready.push(format!("{name} {are}/{wanted}")),
                }
                found.extend(other_version(&of, deployment));
            }
        }
    }
    check("control-plane", ready.join(", "), found)
}

/// The Deployment is of another version of Weft than this program.
fn other_version(of: &str, deployment: &Deployment) -> Option<(Outcome, String, String)> {
    let version = deployment.metadata.labels.as_ref()?.get("app.kubernetes.io/version")?;
    let own = env!("CARGO_PKG_VERSION");
    (version != own).then(|| {
        warning(format!("{of} is of Weft {version}, this program of {own}"), "ask with the weft of the same version")
    })
}

fn roots(facts: &After, root: Option<&String>) -> Vec<Finding> {
    let of = |namespace: &str| format!("ConfigMap {namespace}/weft-root");
    let keeps = "see the log of the replica that holds the lease: it keeps this ConfigMap";
    let roots = match &facts.roots {
        Ok(roots) => roots,
        Err(error) => return check("root", "", vec![unread("ConfigMaps weft-root", error)]),
    };
    let Some(root) = root else {
        let todo = "see what /readyz and the log of the control plane say";
        return check(
            "root",
            "",
            vec![failed(format!("{} is missing: there is no mesh yet", of(&facts.namespace)), todo)],
        );
    };
    let meshed = facts.mesh.as_ref().map(|mesh| mesh.meshed.clone()).unwrap_or_default();
    let found = meshed.iter().filter_map(|namespace| match roots.get(namespace) {
        Some(there) if there == root => None,
        Some(_) => Some(failed(format!("{} holds another root than the mesh's", of(namespace)), keeps)),
        None => Some(failed(format!("{} is missing, so new pods wait for it", of(namespace)), keeps)),
    });
    check("root", format!("one, in {} namespaces", roots.len()), found.collect())
}

fn sidecars(mesh: &MeshFacts) -> Vec<Finding> {
    let own = env!("CARGO_PKG_VERSION");
    let mut old: BTreeMap<(&str, &str), Vec<&str>> = BTreeMap::new();
    let mut injected = 0;
    for pod in &mesh.pods {
        let Some(version) = annotation(pod, INJECTED) else { continue };
        injected += 1;
        if version != own {
            old.entry((namespace(pod), version)).or_default().push(name(pod));
        }
    }
    let found = old.into_iter().map(|((namespace, version), pods)| {
        let found = format!("{namespace}: {} with a sidecar of Weft {version}: {}", counted(pods.len()), named(&pods));
        warning(found, format!("give them that of {own}: kubectl -n {namespace} rollout restart deployment"))
    });
    check("sidecars", format!("{injected}, all of Weft {own}"), found.collect())
}

fn namespaces(mesh: &MeshFacts) -> Vec<Finding> {
    let mut without: BTreeMap<&str, Vec<&str>> = BTreeMap::new();
    for pod in mesh.pods.iter().filter(|pod| mesh.meshed.contains(namespace(pod))) {
        let wants_none = !wanted::wants_sidecar(true, &pod.metadata) || annotation(pod, NOT_INJECTED).is_some();
        let cannot = pod.spec.as_ref().is_some_and(|spec| spec.host_network == Some(true));
        if !has_sidecar(pod) && !wants_none && !cannot {
            without.entry(namespace(pod)).or_default().push(name(pod));
        }
    }
    let found = without.into_iter().map(|(namespace, pods)| {
        let found = format!("{namespace}: {} without a sidecar: {}", counted(pods.len()), named(&pods));
        let todo = format!(
            "create them anew: kubectl -n {namespace} rollout restart deployment; or label them weft.dev/inject: \"false\""
        );
        failed(found, todo)
    });
    check("namespaces", format!("{} meshed, every pod with a sidecar", mesh.meshed.len()), found.collect())
}

fn resources(diagnostics: &[Diagnostic]) -> Vec<Finding> {
    let found = diagnostics.iter().map(|diagnostic| {
        let outcome = match diagnostic.severity {
            Severity::Error => Outcome::Failed,
            Severity::Warning => Outcome::Warning,
        };
        let parts = [
            diagnostic.object.as_ref().map(ToString::to_string),
            Some(diagnostic.field.clone()).filter(|field| !field.is_empty()),
            Some(diagnostic.reason.clone()),
        ];
        (outcome, parts.into_iter().flatten().collect::<Vec<_>>().join(": "), diagnostic.help.clone())
    });
    check("resources", "none is in conflict, all of each is used", found.collect())
}

fn annotation<'a>(pod: &'a Pod, key: &str) -> Option<&'a str> {
    pod.metadata.annotations.as_ref()?.get(key).map(String::as_str)
}

fn namespace(pod: &Pod) -> &str {
    pod.metadata.namespace.as_deref().unwrap_or_default()
}

fn name(pod: &Pod) -> &str {
    pod.metadata.name.as_deref().unwrap_or_default()
}

pub(in crate::cli) fn counted(pods: usize) -> String {
    if pods == 1 { "1 pod".to_owned() } else { format!("{pods} pods") }
}

pub(in crate::cli) fn named(pods: &[&str]) -> String {
    let more = pods.len().saturating_sub(NAMED);
    let names = pods.iter().take(NAMED).copied().collect::<Vec<_>>().join(", ");
    if more > 0 { format!("{names} and {more} more") } else { names }
}
