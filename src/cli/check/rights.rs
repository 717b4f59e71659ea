//! What the control plane may do, as the chart's roles say; and what whoever installs it has to be allowed.

/// Rights on resources.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Rights {
    pub(super) group: &'static str,
    pub(super) resources: &'static [&'static str],
    /// Empty: whatever their names.
    pub(super) names: &'static [&'static str],
    pub(super) verbs: &'static [&'static str],
    /// In the control plane's own namespace, and not everywhere.
    pub(super) own: bool,
}

/// One of them.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) struct Right {
    pub(super) group: String,
    pub(super) resource: String,
    pub(super) name: String,
    pub(super) verb: String,
    pub(super) own: bool,
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
pub(super) const CONTROL_PLANE: &[Rights] = &[
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
];

/// Those that an installation with Helm takes, beside those that it gives.
pub(super) const INSTALLATION: &[Rights] = &[
    everywhere("", &["namespaces"], &["create"]),
    everywhere("apiextensions.k8s.io", &["customresourcedefinitions"], &["create"]),
    everywhere("rbac.authorization.k8s.io", &["clusterroles", "clusterrolebindings"], &["create"]),
    everywhere(
        "admissionregistration.k8s.io",
        &["mutatingwebhookconfigurations", "validatingwebhookconfigurations"],
        &["create"],
    ),
    everywhere("weft.dev", &["meshconfigs"], &["create"]),
    Rights { own: true, ..everywhere("apps", &["deployments"], &["create"]) },
    Rights { own: true, ..everywhere("", &["services", "serviceaccounts", "configmaps", "secrets"], &["create"]) },
    Rights { own: true, ..everywhere("policy", &["poddisruptionbudgets"], &["create"]) },
    Rights { own: true, ..everywhere("networking.k8s.io", &["networkpolicies"], &["create"]) },
    Rights { own: true, ..everywhere("rbac.authorization.k8s.io", &["roles", "rolebindings"], &["create"]) },
];

/// Those that this command itself takes.
pub(super) const CHECK: &[Rights] = &[
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
pub(super) fn each(rights: &[Rights], ca_secret: &str) -> Vec<Right> {
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
