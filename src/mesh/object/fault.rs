//! TrafficFault: what goes wrong on purpose.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use super::{Attachment, HttpMatch};
use crate::mesh::{Namespace, ServiceAccountKey};

/// A TrafficFault.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct TrafficFault {
    /// Its namespace.
    pub namespace: Namespace,
    /// Its name.
    pub name: Arc<str>,
    /// `metadata.creationTimestamp` in seconds since the epoch; 0 when absent. The oldest fault of a request counts.
    pub created: i64,
    /// `spec.targetRefs`: the Services whose calls it hits.
    pub targets: Vec<Attachment>,
    /// `spec.callers`; `None`: every caller.
    pub callers: Option<BTreeSet<ServiceAccountKey>>,
    /// `spec.requests`, any of which; `None`: every request.
    pub requests: Option<Vec<Requests>>,
    /// `spec.percentage`: how many of these requests.
    pub percentage: Percentage,
    /// What happens to them.
    pub harm: Harm,
    /// `spec.expiresAfter`, counted from the creation.
    pub expires_after: Option<Duration>,
}

/// Some requests.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Requests {
    /// Those of an HTTPRouteGroup of the same namespace, or of the matches of it that are named (`None`: all).
    Group(Arc<str>, Option<BTreeSet<Arc<str>>>),
    /// Those that this fits.
    Inline(HttpMatch),
}

/// What happens to a request. At least one of these does.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub struct Harm {
    /// It waits this long at the caller.
    pub delay: Option<Duration>,
    /// It is answered at the caller, after the delay.
    pub abort: Option<Abort>,
    /// The body of its response comes at this rate, in KiB a second.
    pub response_kib: Option<NonZeroU64>,
}

/// What a request is answered with in place of its callee.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Abort {
    /// An HTTP status, 200 to 599.
    Http(u16),
    /// A gRPC status, 1 to 16.
    Grpc(u8),
}

/// A share, in millionths.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub struct Percentage(pub u32);

impl Percentage {
    /// All of them.
    pub const ALL: Self = Self(1_000_000);
}
