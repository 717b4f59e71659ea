//! The CustomResourceDefinitions. Helm makes those of a chart once and never changes them, so that a release of a newer
//! Weft, which may hold a MeshConfig with newer fields, would meet the old ones.

use std::time::Duration;

use anyhow::Context as _;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{Patch, PatchParams};
use kube::{Api, Client};
use tokio::time::{Instant, sleep};

use crate::cli::api_server::text;
use crate::source::crds;

/// Who we are to server-side apply. The control plane is another: what it alone writes, the webhook's `caBundle`, stays.
const MANAGER: &str = "weft-install";
/// How long the API server may take until it serves what was made.
const SERVED: Duration = Duration::from_secs(60);
/// Between two looks.
const LOOK: Duration = Duration::from_millis(200);

/// What applying one came to.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Applied {
    Made,
    Changed,
    Same,
}

/// All of them, converted by the webhook of this namespace.
pub(super) fn of(namespace: &str) -> Vec<CustomResourceDefinition> {
    let mut all = crds::all();
    for definition in &mut all {
        let webhook = definition.spec.conversion.as_mut().and_then(|conversion| conversion.webhook.as_mut());
        let client = webhook.and_then(|webhook| webhook.client_config.as_mut());
        if let Some(service) = client.and_then(|client| client.service.as_mut()) {
            namespace.clone_into(&mut service.namespace);
        }
    }
    all
}

/// They as YAML documents.
///
/// # Errors
/// Never, as they are made here.
pub(super) fn to_yaml(namespace: &str) -> anyhow::Result<String> {
    let mut text = String::new();
    for definition in of(namespace) {
        text.push_str("---\n");
        text.push_str(&serde_saphyr::to_string(&serde_json::to_value(&definition)?)?);
    }
    Ok(text)
}

/// Applies them all, and waits until they are served; says what was done.
///
/// # Errors
/// When the API server refuses one, or does not serve it in time.
pub(super) async fn apply(client: &Client, namespace: &str) -> anyhow::Result<String> {
    let api = Api::<CustomResourceDefinition>::all(client.clone());
    let (mut done, all) = (Vec::new(), of(namespace));
    for definition in &all {
        let name = definition.metadata.name.as_deref().unwrap_or_default();
        done.push(one(&api, name, definition).await.with_context(|| format!("CustomResourceDefinition {name}"))?);
    }
    for definition in &all {
        served(&api, client, definition).await?;
    }
    Ok(told(&done))
}

async fn one(
    api: &Api<CustomResourceDefinition>,
    name: &str,
    definition: &CustomResourceDefinition,
) -> anyhow::Result<Applied> {
    let generation = |found: &CustomResourceDefinition| found.metadata.generation;
    let before = api.get_opt(name).await.map_err(|error| anyhow::anyhow!("it cannot be read: {}", text(error)))?;
    let params = PatchParams::apply(MANAGER).force();
    let after = api.patch(name, &params, &Patch::Apply(definition)).await;
    let after = after.map_err(|error| anyhow::anyhow!("it cannot be applied: {}", text(error)))?;
    Ok(match before {
        None => Applied::Made,
        Some(before) if generation(&before) == generation(&after) => Applied::Same,
        Some(_) => Applied::Changed,
    })
}

/// Waits until objects of the kind can be written.
async fn served(
    api: &Api<CustomResourceDefinition>,
    client: &Client,
    definition: &CustomResourceDefinition,
) -> anyhow::Result<()> {
    let name = definition.metadata.name.as_deref().unwrap_or_default();
    let newest = definition.spec.versions.iter().find(|version| version.storage).map(|version| version.name.as_str());
    let version = format!("{}/{}", definition.spec.group, newest.unwrap_or_default());
    let end = Instant::now() + SERVED;
    loop {
        let why = match client.list_api_group_resources(&version).await {
            Ok(list) if list.resources.iter().any(|resource| resource.name == definition.spec.names.plural) => {
                return Ok(());
            }
            Ok(_) => not_established(api, name).await,
            Err(error) => text(error),
        };
        if Instant::now() > end {
            anyhow::bail!("CustomResourceDefinition {name} is not served after {} s: {why}", SERVED.as_secs());
        }
        sleep(LOOK).await;
    }
}

/// What the API server says against it.
async fn not_established(api: &Api<CustomResourceDefinition>, name: &str) -> String {
    let found = api.get(name).await.ok().and_then(|found| found.status?.conditions);
    let mut wrong = found.into_iter().flatten().filter(|condition| condition.status != "True");
    wrong.find_map(|condition| condition.message).unwrap_or_else(|| "it does not say why".to_owned())
}

fn told(done: &[Applied]) -> String {
    let count = |of| done.iter().filter(|applied| **applied == of).count();
    let parts =
        [(Applied::Made, "made"), (Applied::Changed, "brought up to date"), (Applied::Same, "as they should be")];
    let parts = parts.into_iter().map(|(of, what)| (count(of), what)).filter(|(count, _)| *count > 0);
    parts.map(|(count, what)| format!("{count} {what}")).collect::<Vec<_>>().join(", ")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_was_done_is_counted() {
        use Applied::{Changed, Made, Same};
        assert_eq!(told(&[Made, Made]), "2 made");
        assert_eq!(told(&[Same, Made, Changed, Same]), "1 made, 1 brought up to date, 2 as they should be");
    }

    #[test]
    fn they_are_converted_by_the_webhook_of_the_namespace_that_is_meant() {
        let services: Vec<_> = of("mesh")
            .into_iter()
            .filter_map(|definition| definition.spec.conversion?.webhook?.client_config?.service)
            .map(|service| (service.namespace, service.name))
            .collect();
        let expected = ("mesh".to_owned(), crds::WEBHOOK_SERVICE.to_owned());
        assert_eq!(services, vec![expected; 4]);
        assert_eq!(to_yaml("mesh").unwrap().matches("\n  name: ").count(), crds::all().len());
    }
}
