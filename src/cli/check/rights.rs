//! What the control plane may do, as the chart's roles say; and what whoever installs it has to be allowed.

/// Rights on resources.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::cli) struct Rights {
    pub(in crate::cli) group: &'static str,
    pub(in crate::cli) resources: &'static [&'static str],
    /// Empty: whatever their names.
    pub(in crate::cli) names: &'static [&'static str],
    pub(in crate::cli) verbs: &'static [&'static str],
    /// In the control plane's own namespace, and not everywhere.
    pub(in crate::cli) own: bool,
}

/// One of them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(in crate::cli) struct Right {
    pub(in crate::cli) group: String,
    pub(in crate::cli) resource: String,
    pub(in crate::cli) name: String,
    pub(in crate::cli) verb: String,
    pub(in crate::cli) own: bool,
}

impl std::fmt::Display for Right {
    /// `watch pods`, `patch trafficsplits/status.split.smi-spec.io`, `get secrets weft-ca`.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        write!(f, "{} {}", self.verb, self.resource)?;
        if !self.group.is_empty() {
            write!(f, ".{}", self.group)?;
        }
        if !self.name.is_empty() {
            write!(f, " {}", self.name)?;
        }
        Ok(())
    }
}

const fn everywhere(group: &'static str, resources: &'static [&'static str], verbs: &'static [&'static str]) -> Rights {
    Rights { group, resources, names: &[], verbs, own: false }
}

const READ: &[&str] = &["list", "watch"];
const KEEP: &[&str] = &["get", "patch"];

/// Those of the control plane. The name `weft-ca` stands for the Secret of the root, whichever it is.
pub(in crate::cli) const CONTROL_PLANE: &[Rights] = &[
    everywhere("", &["namespaces", "pods", "services"], READ),
    everywhere("discovery.k8s.io", &["endpointslices"], READ),
    everywhere("split.smi-spec.io", &["trafficsplits"], READ),
    everywhere("specs.smi-spec.io", &["httproutegroups", "tcproutes", "udproutes"], READ),
    everywhere("access.smi-spec.io", &["traffictargets"], READ),
    everywhere("weft.dev", &["meshconfigs", "trafficfaults", "trafficpolicies", "egresses"], READ),
    everywhere("authentication.k8s.io", &["tokenreviews"], &["create"]),
    everywhere("", &["configmaps"], &["create"]),
    Rights { names: &["weft-root"], ..everywhere("", &["configmaps"], &["get", "list", "watch", "patch"]) },
    Rights {
        names: &["weft-injector"],
        ..everywhere("admissionregistration.k8s.io", &["mutatingwebhookconfigurations"], KEEP)
    },
    Rights {
        names: &["weft-validator"],
        ..everywhere("admissionregistration.k8s.io", &["validatingwebhookconfigurations"], KEEP)
    },
    Rights {
        names: &[
            "trafficsplits.split.smi-spec.io",
            "httproutegroups.specs.smi-spec.io",
            "tcproutes.specs.smi-spec.io",
            "udproutes.specs.smi-spec.io",
            "traffictargets.access.smi-spec.io",
            "meshconfigs.weft.dev",
            "trafficfaults.weft.dev",
            "trafficpolicies.weft.dev",
            "egresses.weft.dev",
        ],
        ..everywhere("apiextensions.k8s.io", &["customresourcedefinitions"], KEEP)
    },
    everywhere("split.smi-spec.io", &["trafficsplits/status"], &["patch"]),
    everywhere("specs.smi-spec.io", &["httproutegroups/status", "tcproutes/status", "udproutes/status"], &["patch"]),
    everywhere("access.smi-spec.io", &["traffictargets/status"], &["patch"]),
    everywhere(
        "weft.dev",
        &["meshconfigs/status", "trafficfaults/status", "trafficpolicies/status", "egresses/status"],
        &["patch"],
    ),
    everywhere("", &["events"], &["create", "get", "patch"]),
    Rights { own: true, ..everywhere("", &["secrets"], &["create"]) },
    Rights { own: true, names: &["weft-ca"], ..everywhere("", &["secrets"], &["get"]) },
    Rights { own: true, names: &["weft-webhook-tls"], ..everywhere("", &["secrets"], &["get", "update"]) },
    Rights { own: true, ..everywhere("coordination.k8s.io", &["leases"], &["create"]) },
    Rights { own: true, names: &["weft"], ..everywhere("coordination.k8s.io", &["leases"], &["get", "update"]) },
    Rights { own: true, names: &["weft-warm-sets"], ..everywhere("", &["configmaps"], &["get", "update"]) },
];

/// Helm looks for what it makes, and applies it.
const MAKE: &[&str] = &["get", "create", "patch"];

/// Those that an installation with Helm takes, or an upgrade, beside those that it gives.
pub(in crate::cli) const INSTALLATION: &[Rights] = &[
    everywhere("", &["namespaces"], &["create"]),
    everywhere("apiextensions.k8s.io", &["customresourcedefinitions"], MAKE),
    everywhere("rbac.authorization.k8s.io", &["clusterroles", "clusterrolebindings"], MAKE),
    everywhere(
        "admissionregistration.k8s.io",
        &["mutatingwebhookconfigurations", "validatingwebhookconfigurations"],
        MAKE,
    ),
    everywhere("weft.dev", &["meshconfigs"], MAKE),
    Rights { own: true, ..everywhere("apps", &["deployments"], MAKE) },
    Rights { own: true, ..everywhere("", &["services", "serviceaccounts", "configmaps"], MAKE) },
    // What Helm knows of a release.
    Rights { own: true, ..everywhere("", &["secrets"], &["get", "list", "create", "update"]) },
    Rights { own: true, ..everywhere("policy", &["poddisruptionbudgets"], MAKE) },
    Rights { own: true, ..everywhere("networking.k8s.io", &["networkpolicies"], MAKE) },
    Rights { own: true, ..everywhere("rbac.authorization.k8s.io", &["roles", "rolebindings"], MAKE) },
];

/// That which lets somebody give what they may not do themselves.
pub(in crate::cli) const ESCALATION: &[Rights] =
    &[everywhere("rbac.authorization.k8s.io", &["clusterroles", "roles"], &["escalate"])];

const REMOVE: &[&str] = &["get", "delete"];

/// Those that the end of an installation takes.
pub(in crate::cli) const UNINSTALLATION: &[Rights] = &[
    everywhere("", &["pods", "namespaces", "configmaps"], &["list"]),
    everywhere("", &["configmaps"], &["delete"]),
    everywhere(
        "admissionregistration.k8s.io",
        &["mutatingwebhookconfigurations", "validatingwebhookconfigurations"],
        REMOVE,
    ),
    everywhere("rbac.authorization.k8s.io", &["clusterroles", "clusterrolebindings"], REMOVE),
    everywhere("weft.dev", &["meshconfigs"], REMOVE),
    Rights { own: true, ..everywhere("apps", &["deployments"], REMOVE) },
    Rights { own: true, ..everywhere("", &["services", "serviceaccounts", "configmaps"], REMOVE) },
    Rights { own: true, ..everywhere("", &["secrets"], &["get", "list", "update", "delete"]) },
    Rights { own: true, ..everywhere("coordination.k8s.io", &["leases"], REMOVE) },
    Rights { own: true, ..everywhere("policy", &["poddisruptionbudgets"], REMOVE) },
    Rights { own: true, ..everywhere("networking.k8s.io", &["networkpolicies"], REMOVE) },
    Rights { own: true, ..everywhere("rbac.authorization.k8s.io", &["roles", "rolebindings"], REMOVE) },
];

/// Those that the end of the definitions takes.
pub(in crate::cli) const DEFINITIONS: &[Rights] =
    &[everywhere("apiextensions.k8s.io", &["customresourcedefinitions"], &["get", "patch", "delete"])];

/// Those that this command itself takes.
pub(in crate::cli) const CHECK: &[Rights] = &[
    everywhere("", &["namespaces", "pods", "services"], READ),
    everywhere("apiextensions.k8s.io", &["customresourcedefinitions"], &["get"]),
    everywhere(
        "admissionregistration.k8s.io",
        &["mutatingwebhookconfigurations", "validatingwebhookconfigurations"],
        &["get"],
    ),
    everywhere("authorization.k8s.io", &["subjectaccessreviews"], &["create"]),
    everywhere("", &["configmaps"], &["list"]),
    Rights { own: true, ..everywhere("apps", &["deployments"], &["get"]) },
    Rights { own: true, ..everywhere("", &["secrets"], &["get"]) },
];

/// Each of them by itself; `ca_secret` is the Secret of the root.
pub(in crate::cli) fn each(rights: &[Rights], ca_secret: &str) -> Vec<Right> {
    let mut all = Vec::new();
    for Rights { group, resources, names, verbs, own } in rights {
        for resource in *resources {
            for verb in *verbs {
                let right = |name: &str| Right {
                    group: (*group).to_owned(),
                    resource: (*resource).to_owned(),
                    name: if name == "weft-ca" { ca_secret } else { name }.to_owned(),
                    verb: (*verb).to_owned(),
                    own: *own,
                };
                match names {
                    [] => all.push(right("")),
                    names => all.extend(names.iter().map(|name| right(name))),
                }
            }
        }
    }
    all
}
