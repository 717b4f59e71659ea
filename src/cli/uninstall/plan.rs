//! From what there is to what is done, and to what is said before. Pure.
//!
//! The order counts. The webhooks go first, since the API server asks for each pod of a meshed namespace as long as
//! they are registered, and creates none when nobody answers (`failurePolicy: Fail`). The control plane goes before the
//! resources, so that sidecars keep the policies that they have, and never see them go one by one.

use std::fmt;

use super::facts::Facts;
use crate::cli::check::judge::{counted, named};
use crate::cli::install::release::Release;
use crate::kubernetes::{root_bundle, root_secret};

/// What of Weft's is removed beside Helm's release.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Kind {
    /// MutatingWebhookConfiguration.
    Injector,
    /// ValidatingWebhookConfiguration.
    Validator,
    /// Secret.
    Secret,
    /// Lease.
    Lease,
    /// ConfigMap.
    ConfigMap,
}

/// One of them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Object {
    pub(super) kind: Kind,
    /// Empty: the cluster's.
    pub(super) namespace: String,
    pub(super) name: String,
}

impl Object {
    /// An object in a namespace.
    pub(super) fn new(kind: Kind, namespace: &str, name: &str) -> Self {
        Self { kind, namespace: namespace.to_owned(), name: name.to_owned() }
    }

    /// An object of the cluster.
    pub(super) fn cluster(kind: Kind, name: &str) -> Self {
        Self::new(kind, "", name)
    }
}

impl fmt::Display for Object {
    /// `Secret weft-system/weft-ca`.
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let kind = match self.kind {
            Kind::Injector => "MutatingWebhookConfiguration",
            Kind::Validator => "ValidatingWebhookConfiguration",
            Kind::Secret => "Secret",
            Kind::Lease => "Lease",
            Kind::ConfigMap => "ConfigMap",
        };
        match self.namespace.as_str() {
            "" => write!(f, "{kind} {}", self.name),
            namespace => write!(f, "{kind} {namespace}/{}", self.name),
        }
    }
}

/// How much is removed.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Extent {
    /// What runs. People's resources and the mesh's root stay.
    Program,
    /// And the definitions, with all resources.
    Definitions,
    /// And the mesh's root.
    Everything,
}

/// What is done, in its order.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Step {
    /// Remove objects.
    Remove(Vec<Object>),
    /// Have Helm remove its release.
    Release(Release),
    /// Wait until no pod of the control plane is left, which would write again what is removed.
    Gone,
    /// Remove definitions, and with them all their objects.
    Definitions(Vec<String>),
}

/// What is to be done; empty when there is nothing of Weft.
pub(super) fn steps(facts: &Facts, extent: Extent) -> Vec<Step> {
    let (mut webhooks, mut written) = (Vec::new(), Vec::new());
    for object in &facts.there {
        match object.kind {
            Kind::Injector | Kind::Validator => webhooks.push(object.clone()),
            _ if goes(facts, object, extent) => written.push(object.clone()),
            _ => {}
        }
    }
    let definitions = facts.definitions.keys().filter(|_| extent >= Extent::Definitions).cloned();
    let definitions = Vec::from_iter(definitions);
    let mut steps = Vec::new();
    steps.extend((!webhooks.is_empty()).then_some(Step::Remove(webhooks)));
    steps.extend(facts.release.clone().map(Step::Release));
    let more = !written.is_empty() || !definitions.is_empty();
    steps.extend((facts.release.is_some() || more).then_some(Step::Gone));
    steps.extend((!written.is_empty()).then_some(Step::Remove(written)));
    steps.extend((!definitions.is_empty()).then_some(Step::Definitions(definitions)));
    steps
}

/// Whether an object that the control plane has written goes.
fn goes(facts: &Facts, object: &Object, extent: Extent) -> bool {
    match (object.kind, object.name.as_str()) {
        // Pods with a sidecar mount it: a container of theirs that is started again needs it.
        (Kind::ConfigMap, root_bundle::NAME) if facts.in_use(&object.namespace) => false,
        // By this one a control plane knows that there was a root, and must not make another.
        (Kind::ConfigMap, root_bundle::NAME) if object.namespace == facts.namespace => extent == Extent::Everything,
        (Kind::Secret, root_secret::NAME) => extent == Extent::Everything,
        _ => true,
    }
}

/// What people should know before: what depends on Weft, and how to end that; empty when nothing does.
pub(super) fn consequences(facts: &Facts, kubectl: &str, extent: Extent) -> Vec<String> {
    let mut said = Vec::new();
    let all = facts.sidecars.values().flat_map(|owners| owners.values()).map(Vec::len).sum::<usize>();
    if all > 0 {
        said.push(format!(
            "{} with a sidecar, which keeps what it has and gets no new certificate: when its own ends, within 24 hours \
             by default, its calls in the mesh fail",
            counted(all)
        ));
    }
    for (namespace, owners) in &facts.sidecars {
        let pods = Vec::from_iter(owners.values().flatten().map(String::as_str));
        said.push(format!("  {namespace}: {}", named(&pods)));
    }
    let meshed = Vec::from_iter(facts.meshed.iter().map(String::as_str));
    if !meshed.is_empty() {
        said.push(format!("namespaces with the label weft.dev/inject: {}; the label stays", named(&meshed)));
    }
    let commands = commands(facts, kubectl);
    if !commands.is_empty() {
        said.push("take them out of the mesh, best before it goes:".to_owned());
        said.extend(commands.into_iter().map(|command| format!("  {command}")));
    }
    for (name, count) in facts.definitions.iter().filter(|_| extent >= Extent::Definitions) {
        match count {
            Ok(0) => {}
            Ok(count) => said.push(format!("{count} {name} will be DELETED")),
            Err(error) => said.push(format!("all {name} will be DELETED; they cannot be counted: {error}")),
        }
    }
    let root = facts.there.iter().any(|object| object.name == root_secret::NAME);
    if extent == Extent::Everything && root && all > 0 {
        said.push(
            "the mesh's root will be DELETED: these sidecars will not trust those of a new installation".to_owned(),
        );
    }
    said
}

/// What gives pods without a sidecar.
fn commands(facts: &Facts, kubectl: &str) -> Vec<String> {
    let label = facts.meshed.iter().map(|namespace| format!("{kubectl} label namespace {namespace} weft.dev/inject-"));
    let mut commands = Vec::from_iter(label);
    for (namespace, owners) in &facts.sidecars {
        let restarts = ["deployment/", "statefulset/", "daemonset/"];
        let (restart, alone): (Vec<_>, Vec<_>) =
            owners.keys().partition(|owner| restarts.iter().any(|kind| owner.starts_with(kind)));
        let join = |owners: Vec<&String>| owners.into_iter().map(String::as_str).collect::<Vec<_>>().join(" ");
        if !restart.is_empty() {
            commands.push(format!("{kubectl} -n {namespace} rollout restart {}", join(restart)));
        }
        if !alone.is_empty() {
            commands.push(format!("{kubectl} -n {namespace} delete {}   # and create anew", join(alone)));
        }
    }
    commands
}

/// What has stayed on purpose, and how to remove it.
pub(super) fn left(facts: &Facts, kubectl: &str) -> Vec<String> {
    let mut said = Vec::new();
    let of = |kind: Kind, name: &str| facts.there.contains(&Object::new(kind, &facts.namespace, name));
    if !facts.definitions.is_empty() {
        let objects = match facts.definitions.values().filter_map(|count| count.as_ref().ok()).sum::<usize>() {
            1 => "1 object".to_owned(),
            objects => format!("{objects} objects"),
        };
        said.push(format!(
            "{} CustomResourceDefinitions with {objects}, until Weft is back in their newest version only: \
             weft uninstall --crds",
            facts.definitions.len()
        ));
    }
    if of(Kind::Secret, root_secret::NAME) {
        said.push(format!(
            "Secret {}/{}, the mesh's root, which the next installation takes up: weft uninstall --purge",
            facts.namespace,
            root_secret::NAME
        ));
    }
    let roots = facts.there.iter().filter(|object| object.kind == Kind::ConfigMap && object.name == root_bundle::NAME);
    let kept = roots.map(|object| object.namespace.as_str()).filter(|namespace| facts.in_use(namespace));
    let kept = Vec::from_iter(kept);
    if !kept.is_empty() {
        said.push(format!(
            "ConfigMap {} in {}, whose pods mount it: weft uninstall again, when they are gone",
            root_bundle::NAME,
            named(&kept)
        ));
    }
    said.push(format!("the namespace {}: {kubectl} delete namespace {}", facts.namespace, facts.namespace));
    said
}

/// In one line: what a step removes.
pub(super) fn told(step: &Step) -> (&'static str, String) {
    match step {
        Step::Remove(objects) => {
            let names = Vec::from_iter(objects.iter().map(ToString::to_string));
            let webhooks = objects.iter().any(|object| matches!(object.kind, Kind::Injector | Kind::Validator));
            let what = if webhooks { "webhooks" } else { "written" };
            (what, format!("removed {}", named(&names.iter().map(String::as_str).collect::<Vec<_>>())))
        }
        Step::Release(release) => {
            ("release", format!("{}, revision {}, is uninstalled", release.name, release.revision))
        }
        Step::Gone => ("pods", "those of the control plane have ended".to_owned()),
        Step::Definitions(names) => ("definitions", format!("removed {}", names.join(", "))),
    }
}
