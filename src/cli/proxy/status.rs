//! `weft proxy status`: what the control plane tells of the connected proxies.

use std::fmt::Write;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use prost_types::Timestamp;
use serde::{Serialize, Serializer};
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;
use tonic::transport::Channel;

use super::pod::KnownPod;
use super::reach::{self, Reach};
use crate::cli::deliveries::{write_held_back, write_pending};
use crate::cli::output::{Table, age};
use crate::cli::together;
use crate::inspect::proto::inspection_client::InspectionClient;
use crate::inspect::proto::{
    self, GetConvergenceRequest, HeldBack, ListDeliveriesRequest, ListDeliveriesResponse, ListHeldBackRequest,
    ListProxiesRequest, ObjectDelivery, ResourceType,
};
use crate::mesh::{PodKey, WorkloadKey};

/// The order of the columns: the order in which xDS delivers.
const TYPES: [ResourceType; 5] =
    [ResourceType::Cluster, ResourceType::Endpoints, ResourceType::Listener, ResourceType::Route, ResourceType::Secret];

/// The answer to `status`.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct Report {
    /// The number of the newest snapshot.
    snapshot: u64,
    /// Connected proxies, of the whole mesh.
    connected: u64,
    /// How many of them do not have it all yet.
    behind: u64,
    proxies: Vec<Proxy>,
    /// What no proxy is served, of the whole mesh.
    held_back: Vec<HeldBack>,
    /// The objects whose changes not all have acknowledged.
    #[serde(skip)]
    pending: Vec<ObjectDelivery>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
struct Proxy {
    namespace: String,
    pod: String,
    workload: String,
    identity: String,
    peer: String,
    envoy_version: String,
    #[serde(serialize_with = "moment")]
    connected_at: Option<SystemTime>,
    protocol: &'static str,
    types: Vec<TypeReport>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
struct TypeReport {
    r#type: &'static str,
    #[serde(skip)]
    kind: ResourceType,
    subscribed: u64,
    wildcard: bool,
    resources: u64,
    sent: u64,
    acknowledged: u64,
    refused: u64,
    resources_sent: u64,
    #[serde(serialize_with = "moment")]
    last_sent: Option<SystemTime>,
    #[serde(serialize_with = "moment")]
    last_acknowledged: Option<SystemTime>,
    pending: bool,
    refusal: Option<RefusalReport>,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
struct RefusalReport {
    #[serde(serialize_with = "moment")]
    at: Option<SystemTime>,
    message: String,
    resources: Vec<String>,
}

/// What one replica tells.
#[derive(Default)]
struct Told {
    proxies: Vec<proto::Proxy>,
    convergence: proto::Convergence,
    held_back: Vec<HeldBack>,
    pending: ListDeliveriesResponse,
}

impl Told {
    fn together(all: Vec<Self>) -> Self {
        let (mut proxies, mut convergence, mut held_back, mut pending) = (vec![], vec![], vec![], vec![]);
        for one in all {
            proxies.extend(one.proxies);
            convergence.push(one.convergence);
            held_back.push(one.held_back);
            pending.push(one.pending);
        }
        Self {
            proxies,
            convergence: together::convergence(convergence),
            held_back: together::held_back(held_back),
            pending: together::deliveries(pending),
        }
    }
}

async fn ask(mut client: InspectionClient<Channel>) -> anyhow::Result<Told> {
    let failed = "the control plane did not tell its proxies";
    let proxies = client.list_proxies(ListProxiesRequest::default()).await.context(failed)?.into_inner().proxies;
    let convergence = client.get_convergence(GetConvergenceRequest {}).await.context(failed)?.into_inner();
    let held_back = client.list_held_back(ListHeldBackRequest {}).await.context(failed)?.into_inner().held_back;
    let unfinished = ListDeliveriesRequest { pending_only: true, ..Default::default() };
    let pending = client.list_deliveries(unfinished).await.context(failed)?.into_inner();
    Ok(Told { proxies, convergence, held_back, pending })
}

/// Asks the control plane.
pub(super) async fn fetch(reach: &dyn Reach) -> anyhow::Result<Report> {
    let Told { proxies, convergence, held_back, pending } = reach::ask_all(reach, ask, Told::together).await?;
    let mut proxies: Vec<Proxy> = proxies.into_iter().map(proxy).collect();
    proxies.sort_by(|a, b| (&a.namespace, &a.pod).cmp(&(&b.namespace, &b.pod)));
    let proto::Convergence { snapshot, connected, behind, .. } = convergence;
    let pending = pending.objects;
    Ok(Report { snapshot, connected, behind, proxies, held_back, pending })
}

fn proxy(proxy: proto::Proxy) -> Proxy {
    Proxy {
        namespace: proxy.namespace,
        pod: proxy.pod,
        workload: proxy.workload,
        identity: proxy.identity,
        peer: proxy.peer,
        envoy_version: proxy.envoy_version,
        connected_at: time(proxy.connected_at),
        protocol: if proxy.delta { "delta" } else { "state of the world" },
        types: proxy.types.into_iter().map(type_report).collect(),
    }
}

fn type_report(status: proto::TypeStatus) -> TypeReport {
    let kind = status.r#type();
    TypeReport {
        r#type: type_name(kind),
        kind,
        subscribed: status.subscribed,
        wildcard: status.wildcard,
        resources: status.resources,
        sent: status.sent,
        acknowledged: status.acknowledged,
        refused: status.refused,
        resources_sent: status.resources_sent,
        last_sent: time(status.last_sent),
        last_acknowledged: time(status.last_acknowledged),
        pending: status.pending,
        refusal: status.refusal.map(|refusal| RefusalReport {
            at: time(refusal.at),
            message: refusal.message,
            resources: refusal.resources.into_iter().map(|each| format!("{}@{}", each.name, each.version)).collect(),
        }),
    }
}

fn type_name(kind: ResourceType) -> &'static str {
    match kind {
        ResourceType::Cluster => "clusters",
        ResourceType::Endpoints => "endpoints",
        ResourceType::Listener => "listeners",
        ResourceType::Route => "routes",
        ResourceType::Secret => "secrets",
        ResourceType::Unspecified => "other",
    }
}

fn time(at: Option<Timestamp>) -> Option<SystemTime> {
    at.and_then(|at| at.try_into().ok())
}

fn moment<S: Serializer>(at: &Option<SystemTime>, serializer: S) -> Result<S::Ok, S::Error> {
    let text = at.and_then(|at| OffsetDateTime::from(at).format(&Rfc3339).ok());
    text.serialize(serializer)
}

fn since(now: SystemTime, at: Option<SystemTime>) -> String {
    at.map(|at| age(now.duration_since(at).unwrap_or(Duration::ZERO))).unwrap_or_default()
}

impl Report {
    /// The pods of the proxies.
    pub(super) fn known_pods(&self) -> impl Iterator<Item = KnownPod> {
        self.proxies.iter().map(|proxy| KnownPod {
            key: proxy.key(),
            workload: Some(&proxy.workload)
                .filter(|name| !name.is_empty())
                .map(|name| WorkloadKey::new(proxy.namespace.as_str(), name.as_str())),
        })
    }

    /// The same report about one proxy.
    pub(super) fn only(mut self, pod: &PodKey) -> Self {
        self.proxies.retain(|proxy| proxy.key() == *pod);
        let by = |held: &HeldBack| {
            held.proxy.as_ref().is_some_and(|by| PodKey::new(by.namespace.as_str(), by.pod.as_str()) == *pod)
        };
        self.held_back.retain(by);
        self.pending.clear(); // its own types say what it has not answered
        self
    }

    /// The same report about one namespace's proxies and objects.
    pub(super) fn in_namespace(mut self, namespace: Option<&str>) -> Self {
        let Some(namespace) = namespace else { return self };
        let its = |object: &Option<proto::ObjectName>| object.as_ref().is_some_and(|o| o.namespace == namespace);
        self.proxies.retain(|proxy| proxy.namespace == namespace);
        self.pending.retain(|delivery| its(&delivery.object));
        self.held_back
            .retain(|held| its(&held.object) || held.proxy.as_ref().is_some_and(|proxy| proxy.namespace == namespace));
        self
    }

    /// One of its proxies has a refusal that holds, or something is held back from all.
    pub(super) fn is_refusing(&self) -> bool {
        !self.held_back.is_empty()
            || self.proxies.iter().flat_map(|proxy| &proxy.types).any(|status| status.refusal.is_some())
    }

    /// A row a proxy, then the refusals.
    pub(super) fn table(&self, now: SystemTime) -> String {
        let mut table = Table::new([
            "NAMESPACE",
            "POD",
            "ENVOY",
            "CONNECTED",
            "CLUSTERS",
            "ENDPOINTS",
            "LISTENERS",
            "ROUTES",
            "SECRETS",
        ]);
        for proxy in &self.proxies {
            let [clusters, endpoints, listeners, routes, secrets] = TYPES.map(|kind| {
                let status = proxy.types.iter().find(|status| status.kind == kind);
                status.map(|status| status.cell(now)).unwrap_or_default()
            });
            table.row([
                proxy.namespace.clone(),
                proxy.pod.clone(),
                proxy.envoy_version.clone(),
                since(now, proxy.connected_at),
                clusters,
                endpoints,
                listeners,
                routes,
                secrets,
            ]);
        }
        let mut text = if self.proxies.is_empty() { "No proxy is connected.\n".to_owned() } else { table.to_string() };
        self.write_refusals(&mut text, now);
        self.held_back.iter().for_each(|held| write_held_back(&mut text, held, now));
        self.write_pending(&mut text, now);
        let (snapshot, behind, connected) = (self.snapshot, self.behind, self.connected);
        let _ = match behind {
            0 => writeln!(text, "\nSnapshot {snapshot}: all {connected} proxies are up to date."),
            _ => writeln!(text, "\nSnapshot {snapshot}: {behind} of {connected} proxies are not yet up to date."),
        };
        text
    }

    /// A row a type of each proxy.
    pub(super) fn detail(&self, now: SystemTime) -> String {
        let mut text = String::new();
        for proxy in &self.proxies {
            let mut table = Table::new([
                "TYPE",
                "SUBSCRIBED",
                "RESOURCES",
                "SENT",
                "ACKNOWLEDGED",
                "REFUSED",
                "RESOURCES SENT",
                "LAST SENT",
                "LAST ACKNOWLEDGED",
                "STATE",
            ]);
            for status in &proxy.types {
                let names = if status.subscribed == 0 { String::new() } else { status.subscribed.to_string() };
                let subscribed = match (status.wildcard, names.is_empty()) {
                    (true, true) => "*".to_owned(),
                    (true, false) => format!("*,{names}"),
                    (false, _) => names,
                };
                table.row([
                    status.r#type.to_owned(),
                    subscribed,
                    status.resources.to_string(),
                    status.sent.to_string(),
                    status.acknowledged.to_string(),
                    status.refused.to_string(),
                    status.resources_sent.to_string(),
                    since(now, status.last_sent),
                    since(now, status.last_acknowledged),
                    status.state().to_owned(),
                ]);
            }
            let _ = write!(
                text,
                "Proxy:      {}/{}\nIdentity:   {}\nEnvoy:      {}\nPeer:       {}\nConnected:  {} ago, {}\n\n{table}",
                proxy.namespace,
                proxy.pod,
                proxy.identity,
                proxy.envoy_version,
                proxy.peer,
                since(now, proxy.connected_at),
                proxy.protocol,
            );
        }
        self.write_refusals(&mut text, now);
        self.held_back.iter().for_each(|held| write_held_back(&mut text, held, now));
        text
    }

    fn write_pending(&self, text: &mut String, now: SystemTime) {
        /// So many objects are named: one proxy that stalls may have missed them all.
        const NAMED: usize = 10;
        let pending = || self.pending.iter().filter(|object| object.answers.as_ref().is_some_and(|a| a.pending > 0));
        pending().take(NAMED).for_each(|object| write_pending(text, object, now));
        let more = pending().count().saturating_sub(NAMED);
        if more > 0 {
            let _ = writeln!(text, "\nPENDING {more} more objects: see weft deliveries --pending");
        }
    }

    fn write_refusals(&self, text: &mut String, now: SystemTime) {
        for proxy in &self.proxies {
            for status in &proxy.types {
                if let Some(refusal) = &status.refusal {
                    let (pod, kind, ago) = (proxy.key(), status.r#type, since(now, refusal.at));
                    let resources = refusal.resources.join(", ");
                    let _ =
                        writeln!(text, "\nREFUSED by {pod}, {kind}, {ago} ago ({resources}):\n  {}", refusal.message);
                }
            }
        }
    }
}

impl Proxy {
    fn key(&self) -> PodKey {
        PodKey::new(self.namespace.as_str(), self.pod.as_str())
    }
}

impl TypeReport {
    fn state(&self) -> &'static str {
        match self {
            Self { refusal: Some(_), .. } => "refused",
            Self { pending: true, .. } => "sent",
            Self { last_sent: Some(_), .. } => "acked",
            // What it said it had when it connected was right.
            Self { resources: 1.., .. } => "unchanged",
            _ => "waiting",
        }
    }

    /// `4 acked 12s`: the resources that it has, and what last became of a response, how long ago.
    fn cell(&self, now: SystemTime) -> String {
        let at = match self {
            Self { refusal: Some(refusal), .. } => refusal.at,
            Self { pending: true, .. } => self.last_sent,
            _ => self.last_acknowledged,
        };
        let parts = [self.resources.to_string(), self.state().to_owned(), since(now, at)];
        parts.into_iter().filter(|part| !part.is_empty()).collect::<Vec<_>>().join(" ")
    }
}
