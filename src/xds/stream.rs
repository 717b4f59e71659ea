//! The loop of one stream: all its I/O, and no decision of the protocol.
//!
//! ```text
//!  requests ─┐
//!  snapshots ┼─▶ session ──poll, when there is room──▶ frames ──▶ a channel of one frame ──▶ HTTP/2
//!  secrets  ─┤
//!  time     ─┘
//! ```

use std::pin::pin;
use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::core::v3::node::UserAgentVersionType;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use futures::FutureExt;
use prost::Message;
use tokio::sync::mpsc;
use tokio_stream::StreamExt;
use tokio_stream::wrappers::WatchStream;
use tokio_util::sync::CancellationToken;
use tonic::Status;

use super::admission::{Admission, Limits, Place};
use super::auth::{self, NodeError, ProxyIdentity, Secrets};
use super::beginnings::Beginnings;
use super::frames::Frames;
use super::learn::{self, Learn};
use super::name_pool::NamePool;
use super::registry::{Registration, Registry, lock};
use super::requests::Requests;
use super::session::{Patience, Protocol, RequestError, Session};
use super::status::ProxyStatus;
use super::steps::Steps;
use super::subscription::SubscriptionError;
use crate::snapshot::Generation;

/// Requests that are taken before the next response is made, so that only the newest of a type is answered (rule 35).
const BATCH: usize = 64;

/// A request of either form of the protocol.
pub(crate) trait Request: Send + 'static {
    /// The form.
    const PROTOCOL: Protocol;
    /// Who sends it; on the first request of a stream only (rule 1).
    fn node(&self) -> Option<&Node>;
    /// Gives it to the session.
    fn apply(self, session: &mut Session, now: Instant) -> Result<(), RequestError>;
}

impl Request for DeltaDiscoveryRequest {
    const PROTOCOL: Protocol = Protocol::Delta;

    fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    fn apply(self, session: &mut Session, now: Instant) -> Result<(), RequestError> {
        session.delta(self, now)
    }
}

impl Request for DiscoveryRequest {
    const PROTOCOL: Protocol = Protocol::StateOfTheWorld;

    fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    fn apply(self, session: &mut Session, now: Instant) -> Result<(), RequestError> {
        session.state_of_the_world(self, now)
    }
}

/// What all streams of a server share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) secrets: Arc<dyn Secrets>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) learn: Arc<dyn Learn>,
    pub(crate) patience: Patience,
    pub(crate) names: Arc<NamePool>,
    pub(crate) beginnings: Arc<Beginnings>,
    pub(crate) steps: Arc<Steps>,
    pub(crate) shutdown: CancellationToken,
    pub(crate) frames: Arc<Frames>,
    pub(crate) admission: Arc<Admission>,
    pub(crate) limits: Arc<Limits>,
}

/// Serves one stream until it ends; `Err` is the status that it ends with.
pub(crate) async fn serve<R: Request + Message + Default>(
    shared: Shared,
    identity: ProxyIdentity,
    peer: String,
    place: Arc<Place>,
    mut requests: Requests<R>,
    responses: mpsc::Sender<Result<Bytes, Status>>,
) -> Result<(), Status> {
    let first = tokio::select! {
        request = requests.message() => request?,
        () = shared.shutdown.cancelled() => return Err(draining()),
    };
    let Some(first) = first else { return Ok(()) };
    let node = first.node().ok_or(NodeError::Missing).map_err(refuse_node)?;
    let proxy = auth::admit(&identity, &node.id).map_err(refuse_node)?;
    tracing::info!(%proxy, identity = %identity.spiffe, peer, delta = R::PROTOCOL == Protocol::Delta, "proxy connected");
    let about = ProxyStatus {
        proxy: proxy.clone(),
        identity: identity.spiffe.clone(),
        peer,
        envoy_version: version(node),
        connected_at: SystemTime::now(),
        delta: R::PROTOCOL == Protocol::Delta,
        types: Default::default(),
    };
    let secrets = shared.secrets.clone();
    let session = Session::new(R::PROTOCOL, proxy.clone(), identity.spiffe, secrets, shared.patience);
    let session = session.sharing(shared.names.clone(), shared.beginnings.clone(), shared.steps.clone());
    let session = session.of_generation(generation(node));
    let session = Arc::new(Mutex::new(session));
    let registration = shared.registry.enter(about, session.clone());
    let ended = run(&shared, &session, registration, &place, first, requests, responses).await;
    tracing::info!(%proxy, reason = ended.as_ref().err().map(|status| status.message()), "proxy disconnected");
    ended
}

async fn run<R: Request + Message + Default>(
    shared: &Shared,
    session: &Mutex<Session>,
    registration: Registration,
    place: &Place,
    first: R,
    mut requests: Requests<R>,
    responses: mpsc::Sender<Result<Bytes, Status>>,
) -> Result<(), Status> {
    // What is waited for all the time is made once, and so enters its list of those who wait once.
    let mut shutdown = pin!(shared.shutdown.cancelled());
    let mut drained = pin!(place.drain.cancelled());
    let mut secrets = WatchStream::from_changes(shared.secrets.changes());
    let mut secrets_live = true;
    let mut timer = pin!(tokio::time::sleep_until(tokio::time::Instant::now()));
    let mut armed = None; // the deadline that the timer is set to
    // What a client claims to have is compared with what there is; whatever changes meanwhile comes by `take_stock`.
    if let Some(snapshot) = registration.served() {
        lock(session).publish(snapshot);
    }
    first.apply(&mut lock(session), Instant::now()).map_err(refuse_request)?;
    take_stock(session, &registration, &*shared.learn);
    let mut more = true; // there may be something to say
    let mut settled = None; // the snapshot that the client has answered everything of
    let mut new = true; // it takes turns with other newcomers until it has settled once
    let mut leave_by = None; // the connection is to be closed
    loop {
        if leave_by.is_some() && !more && settled.is_some() {
            return Ok(()); // nothing is on its way
        }
        let deadline = lock(session).deadline(Instant::now());
        if deadline != armed {
            armed = deadline;
            armed.into_iter().for_each(|at| timer.as_mut().reset(at.into()));
        }
        tokio::select! {
            () = &mut shutdown => return Err(draining()),
            room = responses.reserve(), if more => {
                let Ok(room) = room else { return Ok(()) }; // the client went away
                let turn = if new { shared.admission.turn().await } else { None };
                let (response, answered) = {
                    let mut session = lock(session);
                    let response = session.poll(Instant::now());
                    settled = session.settled();
                    (response, session.answered())
                };
                new &= settled.is_none();
                match response {
                    Some(response) => room.send(Ok(shared.frames.frame(R::PROTOCOL, response))),
                    None => more = false,
                }
                if let Some(revision) = answered.filter(|_| !more) {
                    registration.answered(revision);
                }
                drop(turn);
                continue;
            }
            request = requests.message() => {
                let Some(request) = request? else { return Ok(()) };
                request.apply(&mut lock(session), Instant::now()).map_err(refuse_request)?;
                for _ in 1..BATCH {
                    let Some(request) = requests.message().now_or_never() else { break };
                    let Some(request) = request? else { return Ok(()) };
                    request.apply(&mut lock(session), Instant::now()).map_err(refuse_request)?;
                }
            }
            () = registration.woken() => {}
            changed = secrets.next(), if secrets_live => match changed {
                Some(_) => lock(session).secrets_changed(),
                None => secrets_live = false,
            },
            () = &mut timer, if armed.is_some() => armed = None,
            () = &mut drained, if leave_by.is_none() => {
                leave_by = Some((tokio::time::Instant::now() + shared.limits.grace).into_std());
            }
            () = sleep_until(leave_by) => return Ok(()),
        }
        take_stock(session, &registration, &*shared.learn);
        more = true;
    }
}

/// Tells the registry what the stream subscribes to and refused, and only then asks it what to serve: so no change is
/// missed between the two. By that the session may count clusters as subscribed to that the client has already, of
/// which the registry is told in turn.
pub(super) fn take_stock(session: &Mutex<Session>, registration: &Registration, learn: &dyn Learn) {
    loop {
        let (changes, refused) = {
            let mut session = lock(session);
            (session.take_changes(), session.take_refused())
        };
        if !changes.is_empty() {
            let used = learn::used(&changes);
            if !used.is_empty() {
                learn.uses(registration.proxy(), used);
            }
            registration.subscribed(changes);
        }
        for refused in refused {
            registration.refused(refused);
        }
        let Some(snapshot) = registration.served() else { return };
        let mut session = lock(session);
        session.publish(snapshot);
        if !session.has_changes() {
            return;
        }
    }
}

async fn sleep_until(deadline: Option<Instant>) {
    match deadline {
        Some(deadline) => tokio::time::sleep_until(deadline.into()).await,
        None => std::future::pending().await,
    }
}

fn version(node: &Node) -> String {
    match &node.user_agent_version_type {
        Some(UserAgentVersionType::UserAgentVersion(text)) => text.chars().take(64).collect(),
        Some(UserAgentVersionType::UserAgentBuildVersion(build)) => build
            .version
            .as_ref()
            .map(|v| format!("{}.{}.{}", v.major_number, v.minor_number, v.patch))
            .unwrap_or_default(),
        None => String::new(),
    }
}

/// The stats access logger in its present form came with this release: `stats_scope`, which limits it.
const STATS_LOGGER: (&str, (u32, u32)) = ("envoy.access_loggers.stats", (1, 39));

/// What the proxy can load, by what it says of itself.
fn generation(node: &Node) -> Generation {
    let (extension, since) = STATS_LOGGER;
    let release = match &node.user_agent_version_type {
        Some(UserAgentVersionType::UserAgentBuildVersion(build)) => {
            build.version.as_ref().map(|version| (version.major_number, version.minor_number))
        }
        _ => None,
    };
    let has_it = node.extensions.iter().any(|listed| listed.name == extension && !listed.disabled);
    match has_it && release.is_some_and(|release| release >= since) {
        true => Generation::Current,
        false => Generation::Older,
    }
}

fn draining() -> Status {
    Status::unavailable("this control plane is shutting down; connect again")
}

fn refuse_node(error: NodeError) -> Status {
    match error {
        NodeError::Missing | NodeError::NotAProxy(_) => Status::invalid_argument(error.to_string()),
        NodeError::OtherPod { .. } => Status::permission_denied(error.to_string()),
    }
}

fn refuse_request(error: RequestError) -> Status {
    match error {
        RequestError::Subscription(SubscriptionError::TooManyNames) => Status::resource_exhausted(error.to_string()),
        _ => Status::invalid_argument(error.to_string()),
    }
}

#[cfg(test)]
mod tests {
    use envoy_types::pb::envoy::config::core::v3::{BuildVersion, Extension};
    use envoy_types::pb::envoy::r#type::v3::SemanticVersion;

    use super::*;
    use crate::mesh::ProxyId;
    use crate::snapshot::ResourceType::Cluster;
    use crate::snapshot::{Change, ResourceName, Snapshot};
    use crate::xds::Canary;
    use crate::xds::testing::*;

    #[derive(Debug, Default)]
    struct Taught(Mutex<Vec<ResourceName>>);

    impl Learn for Taught {
        fn uses(&self, _: &ProxyId, clusters: Vec<ResourceName>) {
            lock(&self.0).extend(clusters);
        }
    }

    /// A stream of a proxy that connects again with the clusters a and b.
    struct Reconnected {
        registry: Arc<Registry>,
        snapshot: Snapshot,
        session: Arc<Mutex<Session>>,
        registration: Registration,
        taught: Taught,
    }

    impl Reconnected {
        fn to(changes: impl IntoIterator<Item = Change>) -> Self {
            let registry = Arc::new(Registry::new(Canary::default()));
            let secrets = TestSecrets::new();
            let session = Session::new(Protocol::Delta, proxy(), identity("web"), secrets, Patience::default());
            let session = Arc::new(Mutex::new(session));
            let about = ProxyStatus {
                proxy: proxy(),
                identity: identity("web"),
                peer: String::new(),
                envoy_version: String::new(),
                connected_at: SystemTime::UNIX_EPOCH,
                delta: true,
                types: Default::default(),
            };
            let registration = registry.enter(about, session.clone());
            let mut stream =
                Self { registry, snapshot: Snapshot::empty(), session, registration, taught: Taught::default() };
            stream.publish(changes);
            let has = |name: &str| (name.to_owned(), resource(Cluster, name, 1).version.to_string());
            let first = DeltaDiscoveryRequest {
                type_url: Cluster.type_url().into(),
                resource_names_subscribe: vec!["*".into()],
                initial_resource_versions: [has("a"), has("b")].into(),
                ..Default::default()
            };
            lock(&stream.session).delta(first, Instant::now()).expect("a good request");
            stream
        }

        fn publish(&mut self, changes: impl IntoIterator<Item = Change>) {
            self.snapshot = self.snapshot.with(changes);
            self.registry.publish(Arc::new(self.snapshot.clone()), Instant::now());
        }

        fn says(&self) -> Vec<ResourceName> {
            take_stock(&self.session, &self.registration, &self.taught);
            let mut session = lock(&self.session);
            let responses = std::iter::from_fn(|| session.poll(Instant::now()));
            responses.flat_map(|response| response.resources.to_vec()).map(|resource| resource.name.clone()).collect()
        }

        fn is_woken(&self) -> bool {
            self.registration.woken().now_or_never().is_some()
        }
    }

    #[test]
    fn a_proxy_that_does_not_list_the_stats_logger_is_of_an_older_generation() {
        let node = |release: Option<(u32, u32)>, extension: &str, disabled| Node {
            user_agent_version_type: release.map(|(major_number, minor_number)| {
                UserAgentVersionType::UserAgentBuildVersion(BuildVersion {
                    version: Some(SemanticVersion { major_number, minor_number, patch: 0 }),
                    ..Default::default()
                })
            }),
            extensions: vec![Extension { name: extension.to_owned(), disabled, ..Default::default() }],
            ..Default::default()
        };
        let logger = "envoy.access_loggers.stats";
        assert_eq!(generation(&node(Some((1, 40)), logger, false)), Generation::Current);
        for older in [
            node(Some((1, 38)), logger, false), // it cannot limit it
            node(Some((1, 40)), "envoy.access_loggers.file", false),
            node(Some((1, 40)), logger, true),
            node(None, logger, false),
            Node::default(),
        ] {
            assert_eq!(generation(&older), Generation::Older, "{older:?}");
        }
    }

    #[test]
    fn a_change_of_a_cluster_that_is_no_longer_pushed_reaches_the_stream_that_has_it() {
        let mut stream = Reconnected::to([on_demand(&["a"]), put(Cluster, "a", 1), put(Cluster, "b", 1)]);
        assert_eq!(stream.says(), Vec::<ResourceName>::new(), "it has both");
        assert_eq!(*lock(&stream.taught.0), [ResourceName::from("b")], "a is known to be used");
        while stream.is_woken() {}
        stream.publish([put(Cluster, "c", 1)]);
        assert!(!stream.is_woken(), "it does not have it");
        stream.publish([put(Cluster, "b", 2)]);
        assert!(stream.is_woken());
        assert_eq!(stream.says(), [ResourceName::from("b")]);
    }

    #[test]
    fn a_proxy_that_is_not_known_yet_keeps_its_clusters_when_it_is() {
        let mut stream = Reconnected::to([put(Cluster, "a", 1), put(Cluster, "b", 1)]);
        assert_eq!(stream.says(), Vec::<ResourceName>::new());
        assert!(lock(&stream.taught.0).is_empty());
        stream.publish([on_demand(&["a"])]);
        assert!(stream.is_woken());
        assert_eq!(stream.says(), Vec::<ResourceName>::new());
        assert_eq!(*lock(&stream.taught.0), [ResourceName::from("b")]);
        stream.publish([put(Cluster, "b", 2)]);
        assert!(stream.is_woken());
        assert_eq!(stream.says(), [ResourceName::from("b")]);
    }
}
