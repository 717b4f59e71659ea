//! What the server knows of each connected proxy, as plain data for the inspection API.

use std::collections::BTreeMap;
use std::ops::AddAssign;
use std::time::{Duration, SystemTime};

use crate::mesh::{ObjectRef, ProxyId, SpiffeId};
use crate::snapshot::{ResourceName, ResourceType, Version};

/// One connected proxy.
#[derive(Clone, PartialEq, Debug)]
pub struct ProxyStatus {
    /// Its node id.
    pub proxy: ProxyId,
    /// The identity of its token.
    pub identity: SpiffeId,
    /// The peer's address, for reading only.
    pub peer: String,
    /// The Envoy version that its Node message states, `1.40.0`; empty when it states none.
    pub envoy_version: String,
    /// When the stream was opened.
    pub connected_at: SystemTime,
    /// Incremental (`DeltaAggregatedResources`) or state of the world.
    pub delta: bool,
    /// Per subscribed type.
    pub types: BTreeMap<ResourceType, TypeStatus>,
}

/// What a proxy has of one type.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct TypeStatus {
    /// Names subscribed to, without the wildcard.
    pub subscribed: usize,
    /// It subscribed to the wildcard.
    pub wildcard: bool,
    /// Resources that it was sent on this stream or said it had when it connected.
    pub resources: usize,
    /// Responses sent on this stream.
    pub sent: u64,
    /// Resources in those responses.
    pub resources_sent: u64,
    /// Responses acknowledged.
    pub acknowledged: u64,
    /// Responses refused.
    pub refused: u64,
    /// When the last response was sent, if any.
    pub last_sent: Option<SystemTime>,
    /// When the last acknowledgement came, if any.
    pub last_acknowledged: Option<SystemTime>,
    /// A response is on its way: sent and neither acknowledged nor refused.
    pub pending: bool,
    /// The last refusal that still holds, in Envoy's words.
    pub refusal: Option<Refusal>,
}

/// A response that a proxy refused.
#[derive(Clone, PartialEq, Debug)]
pub struct Refusal {
    /// When.
    pub at: SystemTime,
    /// `error_detail.message`.
    pub message: String,
    /// The resources of the refused response, with their versions.
    pub resources: Vec<(ResourceName, Version)>,
}

/// What was said and heard of one type.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default)]
pub struct Totals {
    /// Responses sent.
    pub sent: u64,
    /// Resources in those responses.
    pub resources_sent: u64,
    /// Responses acknowledged.
    pub acknowledged: u64,
    /// Responses refused.
    pub refused: u64,
}

impl AddAssign for Totals {
    fn add_assign(&mut self, other: Self) {
        self.sent += other.sent;
        self.resources_sent += other.resources_sent;
        self.acknowledged += other.acknowledged;
        self.refused += other.refused;
    }
}

/// What became of the newest content of a resource that has changed since the server started.
#[derive(Clone, PartialEq, Debug)]
pub struct Delivery {
    /// Its type.
    pub kind: ResourceType,
    /// Its name.
    pub name: ResourceName,
    /// Its version; `None` if it was removed.
    pub version: Option<Version>,
    /// The object that it was made for.
    pub origin: Option<ObjectRef>,
    /// When the change was read from the source.
    pub changed_at: SystemTime,
    /// How many streams the change went to.
    pub sent: u64,
    /// How many streams subscribe to it now.
    pub subscribed: u64,
    /// The proxies that have neither acknowledged nor refused it.
    pub pending: Vec<ProxyId>,
    /// From the change to the last answer; `None` while one is missing.
    pub took: Option<Duration>,
}

/// Content that a proxy refused and that no proxy is served until its object changes.
#[derive(Clone, PartialEq, Debug)]
pub struct HeldBackStatus {
    /// Its type.
    pub kind: ResourceType,
    /// Its name.
    pub name: ResourceName,
    /// The version that is held back.
    pub version: Version,
    /// The object that it was made for.
    pub origin: Option<ObjectRef>,
    /// Who refused it.
    pub by: ProxyId,
    /// When.
    pub at: SystemTime,
    /// In Envoy's words.
    pub message: String,
}

/// Whoever can tell the status of the connected proxies.
pub trait Proxies: Send + Sync {
    /// All connected proxies, ordered by id.
    fn proxies(&self) -> Vec<ProxyStatus>;

    /// The sums over all streams since the server started, ended ones included.
    fn totals(&self) -> BTreeMap<ResourceType, Totals>;

    /// What became of each resource that changed, ordered by type and name.
    fn deliveries(&self) -> Vec<Delivery>;

    /// What was refused and is held back from all.
    fn held_back(&self) -> Vec<HeldBackStatus>;
}
