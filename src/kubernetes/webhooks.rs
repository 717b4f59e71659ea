//! The webhooks, for the API server to believe and to know: kept by the holder of the Lease.
//!
//! ```text
//!  authority ──certificate──▶ Secret weft-webhook-tls ──mounted──▶ weft webhook
//!      └─root─▶ caBundle of weft-injector and weft-validator
//!      └─root─▶ CustomResourceDefinitions, as this version of Weft needs them, with who converts them
//! ```
//!
//! Helm installs the definitions once and never changes them, so that they would stay behind an upgrade; and a
//! certificate in a chart would be made anew by each `helm template`, and never renewed.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::Secret;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::{Patch, PatchParams, PostParams};
use kube::core::{ApiResource, DynamicObject, GroupVersionKind};
use serde_json::{Value, json};
use time::OffsetDateTime;
use tokio::time::sleep;

use super::{Cluster, Report, RequestError, send};
use crate::backoff::about;
use crate::ca::{Authority, CaError, describe};
use crate::mesh::Diagnostic;

/// The Secret of the webhooks' certificate.
pub const SECRET: &str = "weft-webhook-tls";
/// The configuration that injects.
pub const INJECTOR: &str = "weft-injector";
/// The configuration that validates.
pub const VALIDATOR: &str = "weft-validator";
/// The annotation of the Secret: for which root and name it was made.
const MADE_FOR: &str = "weft.dev/made-for";

/// How long the certificate lives; it is renewed at half of that. The kubelet needs a minute to bring a new one to a pod.
const LIFETIME: Duration = Duration::from_hours(7 * 24);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(10);
/// So many looks from one writing of the definitions to the next.
const DEFINITIONS: u32 = 6;
/// Who we are to server-side apply: of an object that Helm writes, the fields that are written here are ours.
const MANAGER: &str = "weft";

/// Sees to the webhooks.
pub struct Webhooks<'a> {
    cluster: Cluster,
    authority: &'a Authority,
    served: Served,
    report: Arc<dyn Report>,
}

/// What the webhooks are for.
pub struct Served {
    /// Their Service, in the control plane's own namespace.
    pub service: &'static str,
    /// The definitions of the kinds that they check and convert.
    pub definitions: Vec<CustomResourceDefinition>,
}

/// Why something could not be seen to.
enum Failure {
    Request(RequestError),
    Ca(CaError),
}

impl<'a> Webhooks<'a> {
    /// Those of this control plane.
    pub fn new(cluster: &Cluster, authority: &'a Authority, served: Served, report: Arc<dyn Report>) -> Self {
        Self { cluster: cluster.clone(), authority, served, report }
    }

    /// Keeps them as they should be, until the future is dropped.
    pub async fn keep(&self) {
        for look in (0..DEFINITIONS).cycle() {
            let secret = format!("Secret {}/{SECRET}", self.cluster.namespace());
            self.say(&secret, "secrets", self.certificate().await);
            for (kind, name) in
                [("MutatingWebhookConfiguration", INJECTOR), ("ValidatingWebhookConfiguration", VALIDATOR)]
            {
                let done = self.configuration(kind, name).await.map_err(Failure::Request);
                self.say(&format!("{kind} {name}"), &format!("{}s", kind.to_lowercase()), done);
            }
            for definition in self.served.definitions.iter().filter(|_| look == 0) {
                let name = definition.metadata.name.clone().unwrap_or_default();
                let done = self.definition(&name, json!(definition)).await.map_err(Failure::Request);
                self.say(&format!("CustomResourceDefinition {name}"), "customresourcedefinitions", done);
            }
            sleep(about(LOOK)).await;
        }
    }

    fn say(&self, of: &str, resource: &str, done: Result<(), Failure>) {
        // Somebody else was faster: the next look tells what there is now.
        let failure = done.err().filter(|failure| !matches!(failure, Failure::Request(RequestError::Conflict)));
        let found = failure.map(|failure| match failure {
            Failure::Request(RequestError::Missing) => {
                let reason = format!("{of} is missing, so pods get no sidecar, or objects are stored unchecked");
                Diagnostic::warning("", reason, "install Weft's chart (docs/install.md); it is looked for")
            }
            Failure::Request(error) => {
                let help = error.help(resource);
                Diagnostic::warning(
                    "",
                    format!("{of}: {error}; the API server may not be able to ask the webhooks"),
                    help,
                )
            }
            Failure::Ca(error) => {
                Diagnostic::warning("", format!("{of}: {error}"), "see the message; it is tried again")
            }
        });
        self.report.report(of, found);
    }

    /// Writes a certificate if there is none that is good for a while.
    async fn certificate(&self) -> Result<(), Failure> {
        let api: Api<Secret> = Api::namespaced(self.cluster.client(), self.cluster.namespace());
        let name = format!("{}.{}.svc", self.served.service, self.cluster.namespace());
        let made_for = format!("{name} {:016x}", xxhash_rust::xxh3::xxh3_64(self.authority.root_pem().as_bytes()));
        let found = match send("get", api.get(SECRET)).await {
            Ok(secret) => Some(secret),
            Err(RequestError::Missing) => None,
            Err(error) => return Err(Failure::Request(error)),
        };
        let now = OffsetDateTime::from(self.authority.clock().now());
        if found.as_ref().is_some_and(|secret| is_good(secret, &made_for, now)) {
            return Ok(());
        }
        let issued = self.authority.issue_server(&name, LIFETIME).map_err(Failure::Ca)?;
        let data = [
            ("tls.crt", issued.chain_pem.as_str()),
            ("tls.key", issued.key.expose_pem()),
            ("ca.crt", self.authority.root_pem()),
        ];
        let resource_version = found.and_then(|secret| secret.metadata.resource_version);
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(SECRET.to_owned()),
                labels: Some(BTreeMap::from([("app.kubernetes.io/managed-by".to_owned(), "weft".to_owned())])),
                annotations: Some(BTreeMap::from([(MADE_FOR.to_owned(), made_for)])),
                resource_version: resource_version.clone(),
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/tls".to_owned()),
            data: Some(data.map(|(key, text)| (key.to_owned(), ByteString(text.as_bytes().to_vec()))).into()),
            ..Secret::default()
        };
        let params = PostParams::default();
        let written = match resource_version {
            Some(_) => send("update", api.replace(SECRET, &params, &secret)).await,
            None => send("create", api.create(&params, &secret)).await,
        };
        written.map_err(Failure::Request)?;
        tracing::info!(secret = SECRET, "made a certificate for the webhooks");
        Ok(())
    }

    /// Has the API server believe the webhooks' certificate.
    async fn configuration(&self, kind: &str, name: &str) -> Result<(), RequestError> {
        let api = self.api("admissionregistration.k8s.io", kind);
        let found = send("get", api.get(name)).await?;
        let bundle = json!(ByteString(self.authority.root_pem().as_bytes().to_vec()));
        let webhooks = found.data["webhooks"].as_array().map(Vec::as_slice).unwrap_or_default();
        if webhooks.iter().all(|webhook| webhook["clientConfig"]["caBundle"] == bundle) {
            return Ok(());
        }
        let believe = |webhook: &Value| json!({"name": webhook["name"], "clientConfig": {"caBundle": bundle}});
        let wanted = json!({
            "apiVersion": "admissionregistration.k8s.io/v1", "kind": kind, "metadata": {"name": name},
            "webhooks": webhooks.iter().map(believe).collect::<Vec<_>>(),
        });
        send("patch", api.patch(name, &PatchParams::apply(MANAGER).force(), &Patch::Apply(wanted))).await?;
        tracing::info!(configuration = name, "the API server believes the webhooks by the mesh's root");
        Ok(())
    }

    /// Brings a definition up to date.
    async fn definition(&self, name: &str, mut definition: Value) -> Result<(), RequestError> {
        let api = self.api("apiextensions.k8s.io", "CustomResourceDefinition");
        match send("get", api.get(name)).await {
            // Only Helm, or a person, makes one; whoever reads the kind says that it is missing.
            Err(RequestError::Missing) => return Ok(()),
            found => drop(found?),
        }
        if let Some(client) = definition.pointer_mut("/spec/conversion/webhook/clientConfig") {
            client["service"]["namespace"] = self.cluster.namespace().into();
            client["caBundle"] = json!(ByteString(self.authority.root_pem().as_bytes().to_vec()));
        }
        // What is as it should be is not written again: then the server keeps the object's version.
        let params = PatchParams::apply(MANAGER).force();
        send("patch", api.patch(name, &params, &Patch::Apply(definition))).await?;
        Ok(())
    }

    fn api(&self, group: &str, kind: &str) -> Api<DynamicObject> {
        let resource = ApiResource::from_gvk(&GroupVersionKind::gvk(group, "v1", kind));
        Api::all_with(self.cluster.client(), &resource)
    }
}

/// Whether a certificate was made for this root and name, and half of its life is yet to come.
fn is_good(secret: &Secret, made_for: &str, now: OffsetDateTime) -> bool {
    let annotation = secret.metadata.annotations.as_ref().and_then(|annotations| annotations.get(MADE_FOR));
    let data = |key: &str| secret.data.as_ref()?.get(key).filter(|bytes| !bytes.0.is_empty());
    let (Some(certificate), Some(_)) = (data("tls.crt"), data("tls.key")) else { return false };
    let Ok(summary) = describe(&certificate.0) else { return false };
    let (begins, ends) = (summary.not_before, summary.not_after);
    annotation.is_some_and(|annotation| annotation == made_for) && now >= begins && now < begins + (ends - begins) / 2
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::ca::Clock;
    use crate::mesh::TrustDomain;

    #[test]
    fn a_certificate_is_good_for_its_root_and_name_and_half_of_its_life() {
        let authority = Authority::in_memory(TrustDomain::default(), Clock::system()).expect("an authority");
        let issued = authority.issue_server("weft-webhook.weft-system.svc", LIFETIME).expect("a certificate");
        let secret = |certificate: &str, key: &str| Secret {
            metadata: ObjectMeta {
                annotations: Some(BTreeMap::from([(MADE_FOR.to_owned(), "this".to_owned())])),
                ..ObjectMeta::default()
            },
            data: Some(
                [("tls.crt", certificate), ("tls.key", key)]
                    .map(|(key, text)| (key.to_owned(), ByteString(text.as_bytes().to_vec())))
                    .into(),
            ),
            ..Secret::default()
        };
        let (whole, now) = (secret(&issued.chain_pem, issued.key.expose_pem()), OffsetDateTime::now_utc());
        assert!(is_good(&whole, "this", now));
        assert!(is_good(&whole, "this", now + LIFETIME / 2 - Duration::from_hours(1)));
        assert!(!is_good(&whole, "this", now + LIFETIME / 2 + Duration::from_hours(1)), "it is renewed in good time");
        assert!(!is_good(&whole, "that", now), "another root, or another name");
        assert!(!is_good(&secret("damaged", "key"), "this", now));
        assert!(!is_good(&secret(&issued.chain_pem, ""), "this", now));
        assert!(!is_good(&Secret::default(), "this", now));
    }
}
