//! What is to be known of a cluster, read from its API server. What cannot be read is known as such.

use std::collections::{BTreeMap, BTreeSet};
use std::time::Duration;

use futures::{StreamExt, stream};
use k8s_openapi::api::admissionregistration::v1::{MutatingWebhookConfiguration, ValidatingWebhookConfiguration};
use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::authorization::v1::{
    ResourceAttributes, SelfSubjectAccessReview, SelfSubjectAccessReviewSpec, SubjectAccessReview,
    SubjectAccessReviewSpec,
};
use k8s_openapi::api::core::v1::{ConfigMap, Pod, Secret};
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::api::{ListParams, PostParams};
use kube::{Api, Client, Resource};
use serde::de::DeserializeOwned;
use time::OffsetDateTime;
use tokio::sync::mpsc;

use super::rights::{self, Right, Rights};
use crate::cli::api_server::{self, text};
use crate::envoy::Translator;
use crate::inject::wanted;
use crate::kubernetes::{Cluster, root_bundle, root_secret, webhooks};
use crate::mesh::{self, Diagnostic, Dirty, World};
use crate::source::kube::KubeSource;
use crate::source::manifest::Manifest;
use crate::source::{Event, crds};

/// How long all objects may take to be read.
const READING: Duration = Duration::from_secs(60);
/// Questions that are asked at once.
const AT_ONCE: usize = 8;

/// Something that was read; or the API server's words, or why it does not answer.
pub(in crate::cli) type Read<T> = Result<T, String>;

/// What an installation is judged by.
pub(in crate::cli) struct Before {
    /// Kubernetes' own: major, minor.
    pub(in crate::cli) version: (u32, u32),
    /// What whoever asks may not, of what an installation takes.
    pub(in crate::cli) denied: Read<Vec<Right>>,
    /// The definitions that Weft needs, by name, and those of that name.
    pub(in crate::cli) definitions: BTreeMap<String, Read<Option<CustomResourceDefinition>>>,
    /// The other meshes' injectors: MutatingWebhookConfigurations that inject into pods, by name.
    pub(in crate::cli) injectors: Read<Vec<String>>,
}

/// What an installed Weft is judged by.
pub(in crate::cli) struct After {
    pub(in crate::cli) version: (u32, u32),
    pub(in crate::cli) namespace: String,
    pub(in crate::cli) now: OffsetDateTime,
    /// What whoever asks may not, of what this takes.
    pub(in crate::cli) denied: Read<Vec<Right>>,
    /// What the control plane may not.
    pub(in crate::cli) control_plane_denied: Read<Vec<Right>>,
    pub(in crate::cli) definitions: BTreeMap<String, Read<Option<CustomResourceDefinition>>>,
    /// `caBundle` of each webhook, by kind and name of the configuration.
    pub(in crate::cli) webhooks: BTreeMap<String, Read<Option<Vec<String>>>>,
    /// The first certificate of each Secret, by name.
    pub(in crate::cli) certificates: BTreeMap<String, Read<Option<String>>>,
    /// The Deployments, by name.
    pub(in crate::cli) deployments: BTreeMap<String, Read<Option<Deployment>>>,
    /// The root in each namespace's ConfigMap.
    pub(in crate::cli) roots: Read<BTreeMap<String, String>>,
    pub(in crate::cli) mesh: Read<MeshFacts>,
}

/// What the mesh's objects say.
#[derive(Default)]
pub(in crate::cli) struct MeshFacts {
    /// Namespaces that are labelled.
    pub(in crate::cli) meshed: BTreeSet<String>,
    /// Pods that run, or are to run.
    pub(in crate::cli) pods: Vec<Pod>,
    pub(in crate::cli) diagnostics: Vec<Diagnostic>,
}

/// Kubernetes' version.
///
/// # Errors
/// When the server does not answer.
pub(in crate::cli) async fn server_version(cluster: &Cluster) -> anyhow::Result<(u32, u32)> {
    let info = tokio::time::timeout(Duration::from_secs(10), cluster.client().apiserver_version()).await??;
    // Some distributions write `29+`.
    let number = |text: &str| text.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().unwrap_or_default();
    Ok((number(&info.major), number(&info.minor)))
}

/// Reads what an installation is judged by.
pub(in crate::cli) async fn before(cluster: &Cluster, version: (u32, u32)) -> Before {
    let client = cluster.client();
    let injectors = Api::<MutatingWebhookConfiguration>::all(client.clone()).list(&ListParams::default()).await;
    let injectors = injectors.map(|list| list.items.into_iter().filter_map(injector).collect()).map_err(text);
    Before { version, denied: denied_to_install(cluster).await, definitions: definitions(&client).await, injectors }
}

/// What an installation takes and gives: nobody may give what they may not do, unless they may `escalate`.
async fn denied_to_install(cluster: &Cluster) -> Read<Vec<Right>> {
    let mut all = denied(cluster, rights::INSTALLATION, root_secret::NAME, None).await?;
    if !denied(cluster, rights::ESCALATION, root_secret::NAME, None).await?.is_empty() {
        all.extend(denied(cluster, rights::CONTROL_PLANE, root_secret::NAME, None).await?);
    }
    Ok(all)
}

/// The name of a configuration that changes pods as they are made, and is not ours.
fn injector(configuration: MutatingWebhookConfiguration) -> Option<String> {
    let name = configuration.metadata.name?;
    let mut rules = configuration.webhooks?.into_iter().flat_map(|webhook| webhook.rules.unwrap_or_default());
    let pods = rules.any(|rule| rule.resources.is_some_and(|resources| resources.iter().any(|of| of == "pods")));
    (pods && name != webhooks::INJECTOR).then_some(name)
}

/// Reads what an installed Weft is judged by.
pub(in crate::cli) async fn after(cluster: &Cluster, version: (u32, u32)) -> After {
    let (client, namespace) = (cluster.client(), cluster.namespace().to_owned());
    let mut deployments = BTreeMap::new();
    for name in ["weft", "weft-webhook"] {
        deployments.insert(name.to_owned(), api_server::get::<Deployment>(&client, &namespace, name).await);
    }
    let ca_secret = deployments.get("weft").and_then(|found| ca_secret(found.as_ref().ok()?.as_ref()?));
    let ca_secret = ca_secret.unwrap_or_else(|| root_secret::NAME.to_owned());
    let account = format!("system:serviceaccount:{namespace}:weft");
    let mut certificates = BTreeMap::new();
    for name in [ca_secret.as_str(), webhooks::SECRET] {
        let secret = get::<Secret>(&Api::namespaced(client.clone(), &namespace), name).await;
        let certificate = |secret: Secret| {
            let bytes = secret.data.and_then(|mut data| data.remove("tls.crt")).unwrap_or_default();
            String::from_utf8_lossy(&bytes.0).into_owned()
        };
        certificates.insert(name.to_owned(), secret.map(|secret| secret.map(certificate)));
    }
    let bundle =
        |client: Option<k8s_openapi::ByteString>| String::from_utf8_lossy(&client.unwrap_or_default().0).into_owned();
    let injector = get::<MutatingWebhookConfiguration>(&Api::all(client.clone()), webhooks::INJECTOR).await;
    let injector = injector.map(|found| {
        found.map(|found| {
            let webhooks = found.webhooks.unwrap_or_default().into_iter();
            webhooks.map(|webhook| bundle(webhook.client_config.ca_bundle)).collect::<Vec<_>>()
        })
    });
    let validator = get::<ValidatingWebhookConfiguration>(&Api::all(client.clone()), webhooks::VALIDATOR).await;
    let validator = validator.map(|found| {
        found.map(|found| {
            let webhooks = found.webhooks.unwrap_or_default().into_iter();
            webhooks.map(|webhook| bundle(webhook.client_config.ca_bundle)).collect::<Vec<_>>()
        })
    });
    After {
        version,
        now: OffsetDateTime::now_utc(),
        denied: denied(cluster, rights::CHECK, &ca_secret, None).await,
        control_plane_denied: denied(cluster, rights::CONTROL_PLANE, &ca_secret, Some(account)).await,
        definitions: definitions(&client).await,
        webhooks: BTreeMap::from([
            (format!("MutatingWebhookConfiguration {}", webhooks::INJECTOR), injector),
            (format!("ValidatingWebhookConfiguration {}", webhooks::VALIDATOR), validator),
        ]),
        certificates,
        deployments,
        roots: roots(&client).await,
        mesh: mesh(client).await,
        namespace,
    }
}

/// The Secret that the control plane's arguments name.
fn ca_secret(deployment: &Deployment) -> Option<String> {
    let containers = &deployment.spec.template.spec.as_ref()?.containers;
    let mut arguments = containers.iter().flat_map(|container| container.args.iter().flatten());
    arguments.find_map(|argument| argument.strip_prefix("--ca-secret=").map(str::to_owned))
}

async fn definitions(client: &Client) -> BTreeMap<String, Read<Option<CustomResourceDefinition>>> {
    let api = Api::<CustomResourceDefinition>::all(client.clone());
    let mut found = BTreeMap::new();
    for name in crds::all().into_iter().filter_map(|definition| definition.metadata.name) {
        found.insert(name.clone(), get(&api, &name).await);
    }
    found
}

async fn roots(client: &Client) -> Read<BTreeMap<String, String>> {
    let only = ListParams::default().fields(&format!("metadata.name={}", root_bundle::NAME));
    let list = Api::<ConfigMap>::all(client.clone()).list(&only).await.map_err(text)?;
    let root = |map: ConfigMap| Some((map.metadata.namespace?, map.data?.remove(root_bundle::KEY)?));
    Ok(list.items.into_iter().filter_map(root).collect())
}

/// Reads the mesh as the control plane does.
async fn mesh(client: Client) -> Read<MeshFacts> {
    let (events, mut batches) = mpsc::channel(16);
    let reading = tokio::spawn(KubeSource::new(client).run(events));
    let (mut facts, mut world, mut troubles) = (MeshFacts::default(), World::default(), Vec::new());
    let all = async {
        while let Some(batch) = batches.recv().await {
            for event in batch {
                match event {
                    Event::Apply { manifest, object, warnings } => {
                        note(&mut facts, &manifest);
                        facts.diagnostics.extend(warnings);
                        let applied = object.map_or(mesh::Event::Delete(manifest.object_ref()), mesh::Event::Apply);
                        world.apply(applied);
                    }
                    Event::Rejected(diagnostic) => facts.diagnostics.push(diagnostic),
                    Event::Trouble { found: Some(found), .. } => troubles.push(found.reason),
                    Event::Synced => return,
                    Event::Trouble { found: None, .. } | Event::Delete(_) => {}
                }
            }
        }
    };
    let done = tokio::time::timeout(READING, all).await;
    reading.abort();
    if done.is_err() {
        let why = if troubles.is_empty() { "it takes too long".to_owned() } else { troubles.join("; ") };
        return Err(format!("not everything could be read within {} s: {why}", READING.as_secs()));
    }
    let mut everything = Dirty { config: true, ..Dirty::default() };
    everything.services.extend(world.services().map(|service| service.key.clone()));
    everything.pods.extend(world.pods().map(|pod| pod.key.clone()));
    let mut translator = Translator::default();
    translator.translate(&world, &everything);
    facts.diagnostics.extend(translator.diagnostics());
    Ok(facts)
}

fn note(facts: &mut MeshFacts, manifest: &Manifest) {
    match manifest {
        Manifest::Namespace(namespace) => {
            let name = namespace.metadata.name.clone();
            facts.meshed.extend(name.filter(|_| wanted::is_meshed(&namespace.metadata)));
        }
        Manifest::Pod(pod) => facts.pods.push((**pod).clone()),
        _ => {}
    }
}

/// Those of the rights that are denied: to `user`, or to whoever asks.
pub(in crate::cli) async fn denied(
    cluster: &Cluster,
    of: &[Rights],
    ca_secret: &str,
    user: Option<String>,
) -> Read<Vec<Right>> {
    let questions = rights::each(of, ca_secret).into_iter().map(|right| {
        let (client, namespace, user) = (cluster.client(), cluster.namespace().to_owned(), user.clone());
        async move {
            let allowed = allowed(client, &namespace, user, &right).await?;
            Ok((!allowed).then_some(right))
        }
    });
    let answers: Vec<Read<Option<Right>>> = stream::iter(questions).buffered(AT_ONCE).collect().await;
    let answers: Result<Vec<_>, _> = answers.into_iter().collect();
    Ok(answers?.into_iter().flatten().collect())
}

async fn allowed(client: Client, namespace: &str, user: Option<String>, right: &Right) -> Read<bool> {
    let some = |text: &str| Some(text.to_owned()).filter(|text| !text.is_empty());
    let (resource, subresource) = right.resource.split_once('/').unwrap_or((&right.resource, ""));
    let resource_attributes = Some(ResourceAttributes {
        group: some(&right.group),
        resource: some(resource),
        subresource: some(subresource),
        name: some(&right.name),
        verb: some(&right.verb),
        namespace: right.own.then(|| namespace.to_owned()),
        ..ResourceAttributes::default()
    });
    let params = PostParams::default();
    let status = match user {
        None => {
            let spec = SelfSubjectAccessReviewSpec { resource_attributes, ..SelfSubjectAccessReviewSpec::default() };
            let review = SelfSubjectAccessReview { spec, ..SelfSubjectAccessReview::default() };
            Api::<SelfSubjectAccessReview>::all(client).create(&params, &review).await.map_err(text)?.status
        }
        Some(user) => {
            let groups = ["system:serviceaccounts", "system:authenticated"].map(str::to_owned).to_vec();
            let spec = SubjectAccessReviewSpec {
                resource_attributes,
                user: Some(user),
                groups: Some(groups),
                ..SubjectAccessReviewSpec::default()
            };
            let review = SubjectAccessReview { spec, ..SubjectAccessReview::default() };
            Api::<SubjectAccessReview>::all(client).create(&params, &review).await.map_err(text)?.status
        }
    };
    Ok(status.is_some_and(|status| status.allowed))
}

/// An object; `None` when there is none.
pub(in crate::cli) async fn get<T: Clone + DeserializeOwned + std::fmt::Debug + Resource>(
    api: &Api<T>,
    name: &str,
) -> Read<Option<T>> {
    api.get_opt(name).await.map_err(text)
}
