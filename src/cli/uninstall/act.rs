//! What removes.

use std::time::Duration;

use anyhow::{Context as _, bail};
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::coordination::v1::Lease;
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{DeleteParams, ListParams, Patch, PatchParams};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use serde_json::json;
use tokio::time::{Instant, sleep};

use super::plan::{Kind, Object, Step};
use crate::cli::api_server::text;
use crate::cli::check::judge::named;
use crate::cli::install::helm::Helm;
use crate::cli::install::progress::OURS;
use crate::cli::install::release::Release;

/// Between two looks.
const LOOK: Duration = Duration::from_millis(500);

/// What removes, and how long it waits for what takes its time.
pub(super) struct Act<'a> {
    pub(super) client: Client,
    pub(super) helm: &'a Helm,
    /// The control plane's.
    pub(super) namespace: &'a str,
    pub(super) timeout: Duration,
}

impl Act<'_> {
    /// Does one step. What is gone already is no error.
    ///
    /// # Errors
    /// With what could not be removed, and why.
    pub(super) async fn step(&self, step: &Step) -> anyhow::Result<()> {
        match step {
            Step::Remove(objects) => {
                for object in objects {
                    self.remove(object).await.map_err(|error| anyhow::anyhow!("cannot delete {object}: {error}"))?;
                }
                Ok(())
            }
            Step::Release(release) => self.release(release).await,
            Step::Gone => self.gone().await,
            Step::Definitions(names) => {
                for name in names {
                    self.definition(name).await.with_context(|| format!("CustomResourceDefinition {name}"))?;
                }
                Ok(())
            }
        }
    }

    async fn remove(&self, object: &Object) -> Result<(), String> {
        let (client, namespace, name) = (self.client.clone(), object.namespace.as_str(), object.name.as_str());
        match object.kind {
            Kind::Injector => delete::<MutatingWebhookConfiguration>(&Api::all(client), name).await,
            Kind::Validator => delete::<ValidatingWebhookConfiguration>(&Api::all(client), name).await,
            Kind::Secret => delete::<Secret>(&Api::namespaced(client, namespace), name).await,
            Kind::Lease => delete::<Lease>(&Api::namespaced(client, namespace), name).await,
            Kind::ConfigMap => delete::<ConfigMap>(&Api::namespaced(client, namespace), name).await,
        }
    }

    async fn release(&self, Release { name, namespace, .. }: &Release) -> anyhow::Result<()> {
        let timeout = format!("{}s", self.timeout.as_secs());
        let arguments = ["uninstall", name, "--namespace", namespace, "--wait", "--timeout", &timeout];
        self.helm.ask(&format!("Helm could not uninstall the release {name}"), arguments).await?;
        Ok(())
    }

    /// Waits for the end of the pods.
    async fn gone(&self) -> anyhow::Result<()> {
        let api = Api::<Pod>::namespaced(self.client.clone(), self.namespace);
        let end = Instant::now() + self.timeout;
        loop {
            let pods = api.list_metadata(&ListParams::default().labels(OURS)).await;
            let pods = pods.map_err(|error| anyhow::anyhow!("the pods cannot be read: {}", text(error)))?;
            let names = Vec::from_iter(pods.items.iter().filter_map(|pod| pod.metadata.name.as_deref()));
            if names.is_empty() {
                return Ok(());
            }
            if Instant::now() > end {
                bail!(
                    "pods in {} have not ended: {}; see why: kubectl -n {} describe pods; then `weft uninstall` again",
                    self.namespace,
                    named(&names),
                    self.namespace
                );
            }
            sleep(LOOK).await;
        }
    }

    /// Removes a definition and waits until all its objects are gone.
    async fn definition(&self, name: &str) -> anyhow::Result<()> {
        let api = Api::<CustomResourceDefinition>::all(self.client.clone());
        // The API server reads every object once more to delete it; who would convert an old one is gone.
        let unconverted = json!({"spec": {"conversion": {"strategy": "None", "webhook": null}}});
        match api.patch(name, &PatchParams::default(), &Patch::Merge(unconverted)).await {
            Ok(_) => {}
            Err(kube::Error::Api(status)) if status.code == 404 => return Ok(()),
            Err(error) => bail!("its conversion cannot be ended: {}", text(error)),
        }
        delete(&api, name).await.map_err(|error| anyhow::anyhow!("it cannot be deleted: {error}"))?;
        let end = Instant::now() + self.timeout;
        loop {
            match api.get_opt(name).await {
                Ok(None) => return Ok(()),
                Ok(Some(_)) if Instant::now() > end => {
                    bail!("it is not gone yet: objects of it have finalizers; see them: kubectl get {name} -A -o yaml")
                }
                Ok(Some(_)) => sleep(LOOK).await,
                Err(error) => bail!("it cannot be read: {}", text(error)),
            }
        }
    }
}

async fn delete<T>(api: &Api<T>, name: &str) -> Result<(), String>
where
    T: Clone + DeserializeOwned + std::fmt::Debug + Resource,
{
    match api.delete(name, &DeleteParams::default()).await {
        Ok(_) => Ok(()),
        Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
        Err(error) => Err(text(error)),
    }
}
