//! What is installed already: Helm's release, and the installation that the cluster itself shows.

use k8s_openapi::api::admissionregistration::v1::MutatingWebhookConfiguration;
use k8s_openapi::api::rbac::v1::ClusterRole;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::{Api, Client};
use serde::{Deserialize, Serialize};

use super::helm::{Helm, HelmError};
use crate::cli::check::facts::{Read, get};
use crate::cli::check::judge::{check, failed, warning};
use crate::cli::check::{Finding, Outcome};
use crate::kubernetes::webhooks;

/// The release's name when there is none yet.
pub(in crate::cli) const NAME: &str = "weft";
/// One of the chart's ClusterRoles.
const ROLE: &str = "weft-xds";

/// Who has made what the cluster has one of: names of the chart are fixed, so that there is one Weft in a cluster.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(in crate::cli) enum Owner {
    /// Nobody: there is none of it.
    Nobody,
    /// A release of Helm.
    Release { name: String, namespace: String },
    /// Somebody without Helm: an object that says nothing of a release.
    Other { object: String },
}

impl Owner {
    /// Who has made what there is.
    ///
    /// # Errors
    /// When that cannot be read.
    pub(in crate::cli) async fn find(client: &Client) -> Read<Self> {
        let injector = get::<MutatingWebhookConfiguration>(&Api::all(client.clone()), webhooks::INJECTOR).await?;
        if let Some(found) = injector {
            return Ok(Self::of(&format!("MutatingWebhookConfiguration {}", webhooks::INJECTOR), &found.metadata));
        }
        // An installation that was given up halfway has none.
        let role = get::<ClusterRole>(&Api::all(client.clone()), ROLE).await?;
        Ok(role.map_or(Self::Nobody, |found| Self::of(&format!("ClusterRole {ROLE}"), &found.metadata)))
    }

    fn of(object: &str, metadata: &ObjectMeta) -> Self {
        let says = |key: &str| metadata.annotations.as_ref()?.get(&format!("meta.helm.sh/release-{key}")).cloned();
        match (says("name"), says("namespace")) {
            (Some(name), Some(namespace)) => Self::Release { name, namespace },
            _ => Self::Other { object: object.to_owned() },
        }
    }

    /// The name of the release in this namespace: its own, or the one that it will have.
    pub(in crate::cli) fn release(&self, of: &str) -> &str {
        match self {
            Self::Release { name, namespace } if namespace == of => name,
            _ => NAME,
        }
    }
}

/// A release as Helm knows it.
#[derive(Clone, PartialEq, Eq, Debug, Serialize)]
pub(in crate::cli) struct Release {
    pub(in crate::cli) name: String,
    pub(in crate::cli) namespace: String,
    /// How often it was installed and changed.
    pub(in crate::cli) revision: u32,
    /// `deployed`, `failed`, `pending-upgrade`, …
    pub(in crate::cli) status: String,
    /// Weft's version.
    pub(in crate::cli) version: String,
}

/// A line of `helm history -o json`.
#[derive(Deserialize)]
struct Revision {
    revision: u32,
    status: String,
    #[serde(default)]
    app_version: String,
}

impl Release {
    /// The release of this name; `None` when there is none, or none any more.
    ///
    /// # Errors
    /// When Helm cannot tell.
    pub(in crate::cli) async fn find(helm: &Helm, name: &str, namespace: &str) -> Result<Option<Self>, HelmError> {
        let what = format!("cannot ask Helm for the release {name} in {namespace}");
        let asked = ["history", name, "--namespace", namespace, "--max", "1", "--output", "json"];
        let said = match helm.ask(&what, asked).await {
            Ok(said) => said,
            Err(HelmError::Refused { said, .. }) if said.contains("not found") => return Ok(None),
            Err(error) => return Err(error),
        };
        let history: Vec<Revision> =
            serde_json::from_str(&said).map_err(|error| HelmError::Refused { what, said: error.to_string() })?;
        let newest = history.into_iter().max_by_key(|revision| revision.revision);
        Ok(newest.filter(|revision| revision.status != "uninstalled").map(|revision| Self {
            name: name.to_owned(),
            namespace: namespace.to_owned(),
            revision: revision.revision,
            status: revision.status,
            version: revision.app_version,
        }))
    }
}

/// Whether what is there already stands in the way of an installation into this namespace.
pub(super) fn judge(owner: &Read<Owner>, release: Option<&Release>, namespace: &str) -> Vec<Finding> {
    let mut found = Vec::new();
    match owner {
        Err(error) => found.push(failed(
            format!("what is installed cannot be read: {error}"),
            "ask with an account that may read webhook configurations and ClusterRoles",
        )),
        Ok(owner) => found.extend(elsewhere(owner, namespace)),
    }
    let Some(release) = release else { return check("release", "none yet", found) };
    let Release { name, namespace, revision, status, version } = release;
    if status.starts_with("pending") || status == "uninstalling" {
        let found_so =
            format!("the release {name} in {namespace} is {status}: another Helm works on it, or was killed");
        let back = match status.as_str() {
            "pending-install" | "uninstalling" => format!("helm uninstall {name} --namespace {namespace}"),
            _ => format!("helm rollback {name} --namespace {namespace}"),
        };
        found.push(failed(found_so, format!("wait for it; if no Helm runs: {back}")));
    }
    let own = env!("CARGO_PKG_VERSION");
    if numbers(version) > numbers(own) {
        found.push(warning(
            format!("Weft {version} is installed, this program brings {own}, which is older"),
            format!("use the weft of {version}, unless you want to go back"),
        ));
    }
    check("release", format!("{name}, revision {revision}, Weft {version}, {status}"), found)
}

/// What is installed in another way or place.
pub(in crate::cli) fn elsewhere(owner: &Owner, namespace: &str) -> Option<(Outcome, String, String)> {
    match owner {
        Owner::Nobody => None,
        Owner::Release { namespace: other, .. } if other == namespace => None,
        Owner::Release { name, namespace: other } => Some(failed(
            format!("Weft is installed in the namespace {other}, by the release {name}; a cluster can have one"),
            format!("say --namespace {other} to mean that one"),
        )),
        Owner::Other { object } => Some(failed(
            format!("{object} is there, and no release of Helm has made it"),
            "go on as it was installed: helm template … | kubectl apply -f -, or delete -f -",
        )),
    }
}

/// `1.2.3-rc.1` as far as it is numbers.
fn numbers(version: &str) -> Vec<u32> {
    version.split(['.', '-', '+']).map_while(|part| part.parse().ok()).collect()
}

#[cfg(test)]
mod tests {
    use super::*;

    fn release(status: &str, version: &str) -> Release {
        Release {
            name: "weft".to_owned(),
            namespace: "weft-system".to_owned(),
            revision: 3,
            status: status.to_owned(),
            version: version.to_owned(),
        }
    }

    fn of(name: &str, namespace: &str) -> Read<Owner> {
        Ok(Owner::Release { name: name.to_owned(), namespace: namespace.to_owned() })
    }

    #[test]
    fn what_is_there_already_is_an_upgrade_or_stands_in_the_way() {
        let other = Ok(Owner::Other { object: "ClusterRole weft-xds".to_owned() });
        let own = env!("CARGO_PKG_VERSION");
        for (owner, release, outcome, words) in [
            (Ok(Owner::Nobody), None, Outcome::Ok, "none yet"),
            (of("mesh", "weft-system"), Some(release("deployed", own)), Outcome::Ok, "weft, revision 3, Weft"),
            (of("weft", "weft-system"), Some(release("failed", own)), Outcome::Ok, "failed"),
            (of("weft", "mesh"), None, Outcome::Failed, "installed in the namespace mesh, by the release weft"),
            (other, None, Outcome::Failed, "ClusterRole weft-xds is there"),
            (Err("no".to_owned()), None, Outcome::Failed, "cannot be read: no"),
            (of("weft", "weft-system"), Some(release("deployed", "99.0.0")), Outcome::Warning, "which is older"),
            (of("weft", "weft-system"), Some(release("pending-upgrade", own)), Outcome::Failed, "is pending-upgrade"),
        ] {
            let findings = judge(&owner, release.as_ref(), "weft-system");
            let [finding] = findings.as_slice() else { panic!("{words}: {findings:?}") };
            assert!(finding.outcome == outcome && finding.found.contains(words), "{words}: {finding:?}");
            assert_eq!(finding.todo.is_empty(), outcome == Outcome::Ok, "{finding:?}");
        }
        let todo = |status: &str| judge(&Ok(Owner::Nobody), Some(&release(status, own)), "weft-system")[0].todo.clone();
        assert!(todo("pending-install").ends_with("helm uninstall weft --namespace weft-system"));
        assert!(todo("pending-rollback").ends_with("helm rollback weft --namespace weft-system"));
    }

    #[test]
    fn versions_are_compared_as_numbers() {
        assert!(numbers("0.10.0") > numbers("0.9.12"));
        assert!(numbers("1.0.0") > numbers("0.9.12-rc.1"));
        assert_eq!(numbers("0.1.0+build"), numbers("0.1.0"));
    }

    #[test]
    fn a_release_keeps_the_name_that_it_has() {
        assert_eq!(of("mesh", "a").unwrap().release("a"), "mesh");
        assert_eq!(of("mesh", "a").unwrap().release("b"), "weft");
        assert_eq!(Owner::Nobody.release("a"), "weft");
    }
}
