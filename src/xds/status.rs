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

/// What became of the newest content of an object's resources, as far as they changed since the server started.
#[derive(Clone, PartialEq, Debug)]
pub struct ObjectDelivery {
    /// The object; `None`: what belongs to the mesh as a whole.
    pub object: Option<ObjectRef>,
    /// When its newest change was read from the source.
    pub changed_at: SystemTime,
    /// The answers to all its resources; a proxy that uses several of them counts once.
    pub answers: Answers,
    /// Ordered by type, name and proxy.
    pub resources: Vec<Delivery>,
}

/// What became of the newest content of a resource.
#[derive(Clone, PartialEq, Debug)]
pub struct Delivery {
    /// Its type.
    pub kind: ResourceType,
    /// Its name.
    pub name: ResourceName,
    /// Whose it is, if that proxy has it for itself.
    pub proxy: Option<ProxyId>,
    /// The version that is served; `None` if it was removed.
    pub version: Option<Version>,
    /// When the change was read from the source.
    pub changed_at: SystemTime,
    /// The answers to it.
    pub answers: Answers,
    /// Newer content that is served to nobody, since it was refused.
    pub held_back: Option<HeldBackStatus>,
}

/// The answers to what changed.
#[derive(Clone, PartialEq, Debug, Default)]
pub struct Answers {
    /// Connected proxies that use it.
    pub proxies: u64,
    /// Those of them that it was sent to; fewer while a few try it first.
    pub sent: u64,
    /// Those that have acknowledged the newest content: none of what is held back.
    pub acknowledged: u64,
    /// Those that have neither acknowledged nor refused it.
    pub pending: u64,
    /// Their names, but not more than [`Answers::NAMED`].
    pub pending_proxies: Vec<ProxyId>,
    /// Those that refuse it.
    pub refusing: u64,
    /// Their refusals, but not more than [`Answers::NAMED`].
    pub refusals: Vec<ResourceRefusal>,
    /// From the change to the last answer; `None` while one is missing, and for what is held back; 0 if it concerned
    /// nobody.
    pub took: Option<Duration>,
}

impl Answers {
    /// So many proxies are named.
    pub const NAMED: usize = 100;
}

/// A resource that a proxy refused, and that it is not sent again.
#[derive(Clone, PartialEq, Debug)]
pub struct ResourceRefusal {
    /// Who refused it.
    pub proxy: ProxyId,
    /// When.
    pub at: SystemTime,
    /// The resource's type.
    pub kind: ResourceType,
    /// The resource's name.
    pub name: ResourceName,
    /// The refused version.
    pub version: Version,
    /// In Envoy's words.
    pub message: String,
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

    /// What became of the changes of each object that is `wanted`, ordered by object.
    fn deliveries(&self, wanted: &dyn Fn(Option<&ObjectRef>) -> bool) -> Vec<ObjectDelivery>;

    /// What was refused and is held back from all.
    fn held_back(&self) -> Vec<HeldBackStatus>;
}
