//! The loop of one stream: all its I/O, and no decision of the protocol.
//!
//! ```text
//!  requests ─┐
//!  snapshots ┼─▶ session ──poll, when there is room──▶ a channel of one frame ──▶ HTTP/2
//!  secrets  ─┤
//!  time     ─┘
//! ```

use std::sync::{Arc, Mutex};
use std::time::{Instant, SystemTime};

use bytes::Bytes;
use envoy_types::pb::envoy::config::core::v3::Node;
use envoy_types::pb::envoy::config::core::v3::node::UserAgentVersionType;
use envoy_types::pb::envoy::service::discovery::v3::{DeltaDiscoveryRequest, DiscoveryRequest};
use futures::FutureExt;
use tokio::sync::{mpsc, watch};
use tokio_util::sync::CancellationToken;
use tonic::{Status, Streaming};

use super::auth::{self, NodeError, ProxyIdentity, Secrets};
use super::learn::{self, Learn};
use super::registry::{Registration, Registry, lock};
use super::session::{Patience, Protocol, RequestError, Session};
use super::status::ProxyStatus;
use super::subscription::SubscriptionError;
use super::wire;
use crate::mesh::ProxyId;
use crate::snapshot::{ResourceName, Snapshot};

/// Requests that are taken before the next response is made, so that only the newest of a type is answered (rule 35).
const BATCH: usize = 64;

/// A request of either form of the protocol.
pub(crate) trait Request: Send + 'static {
    /// The form.
    const PROTOCOL: Protocol;
    /// Who sends it; on the first request of a stream only (rule 1).
    fn node(&self) -> Option<&Node>;
    /// The clusters that it says are used.
    fn uses(&self) -> Vec<ResourceName>;
    /// Gives it to the session.
    fn apply(self, session: &mut Session, now: Instant) -> Result<(), RequestError>;
}

impl Request for DeltaDiscoveryRequest {
    const PROTOCOL: Protocol = Protocol::Delta;

    fn node(&self) -> Option<&Node> {
        self.node.as_ref()
    }

    fn uses(&self) -> Vec<ResourceName> {
        learn::of_delta(self)
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

    fn uses(&self) -> Vec<ResourceName> {
        learn::of_state_of_the_world(self)
    }

    fn apply(self, session: &mut Session, now: Instant) -> Result<(), RequestError> {
        session.state_of_the_world(self, now)
    }
}

/// What all streams of a server share.
#[derive(Clone)]
pub(crate) struct Shared {
    pub(crate) snapshots: watch::Receiver<Option<Arc<Snapshot>>>,
    pub(crate) secrets: Arc<dyn Secrets>,
    pub(crate) registry: Arc<Registry>,
    pub(crate) learn: Arc<dyn Learn>,
    pub(crate) patience: Patience,
    pub(crate) shutdown: CancellationToken,
}

/// Serves one stream until it ends; `Err` is the status that it ends with.
pub(crate) async fn serve<R: Request>(
    shared: Shared,
    identity: ProxyIdentity,
    peer: String,
    mut requests: Streaming<R>,
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
    let session = Arc::new(Mutex::new(session));
    let registration = shared.registry.enter(about, session.clone());
    let ended = run(&shared, &proxy, &session, registration, first, requests, responses).await;
    tracing::info!(%proxy, reason = ended.as_ref().err().map(|status| status.message()), "proxy disconnected");
    ended
}

async fn run<R: Request>(
    shared: &Shared,
    proxy: &ProxyId,
    session: &Mutex<Session>,
    mut registration: Registration,
    first: R,
    mut requests: Streaming<R>,
    responses: mpsc::Sender<Result<Bytes, Status>>,
) -> Result<(), Status> {
    let mut snapshots = shared.snapshots.clone();
    let mut secrets = shared.secrets.changes();
    let mut secrets_live = true;
    if let Some(snapshot) = snapshots.borrow_and_update().clone() {
        lock(session).publish(snapshot);
    }
    apply(shared, proxy, session, first)?;
    let mut more = true; // there may be something to say
    loop {
        let deadline = lock(session).deadline(Instant::now());
        tokio::select! {
            () = shared.shutdown.cancelled() => return Err(draining()),
            room = responses.reserve(), if more => {
                let Ok(room) = room else { return Ok(()) }; // the client went away
                let (response, settled) = {
                    let mut session = lock(session);
                    (session.poll(Instant::now()), session.settled())
                };
                if let Some(number) = settled {
                    registration.settle(number);
                }
                match response {
                    Some(response) => room.send(Ok(wire::encode(R::PROTOCOL, response))),
                    None => more = false,
                }
                continue;
            }
            request = requests.message() => {
                let Some(request) = request? else { return Ok(()) };
                apply(shared, proxy, session, request)?;
                for _ in 1..BATCH {
                    let Some(request) = requests.message().now_or_never() else { break };
                    let Some(request) = request? else { return Ok(()) };
                    apply(shared, proxy, session, request)?;
                }
            }
            changed = snapshots.changed() => {
                if changed.is_err() {
                    return Err(draining()); // whoever publishes has ended
                }
                if let Some(snapshot) = snapshots.borrow_and_update().clone() {
                    lock(session).publish(snapshot);
                }
            }
            changed = secrets.changed(), if secrets_live => match changed {
                Ok(()) => lock(session).secrets_changed(),
                Err(_) => secrets_live = false,
            },
            () = sleep_until(deadline) => {}
        }
        more = true;
    }
}

/// Gives a request to the session, and tells what it uses.
fn apply<R: Request>(shared: &Shared, proxy: &ProxyId, session: &Mutex<Session>, request: R) -> Result<(), Status> {
    let uses = request.uses();
    request.apply(&mut lock(session), Instant::now()).map_err(refuse_request)?;
    if !uses.is_empty() {
        shared.learn.uses(proxy, uses);
    }
    Ok(())
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
