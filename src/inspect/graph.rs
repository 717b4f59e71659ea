//! The graph of calls as a message, and as the JSON of `/graph` and `weft graph -o json`.

use std::time::SystemTime;

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::proto::{self, CallOrigin};
use super::{Edge, How, Origin, Used};

/// The edges of callers in `namespace`, or of all if it is empty.
pub(super) fn message(edges: Vec<Edge>, namespace: &str) -> proto::Graph {
    let wanted = |edge: &Edge| namespace.is_empty() || edge.caller.namespace.as_str() == namespace;
    proto::Graph { edges: edges.into_iter().filter(wanted).map(edge).collect() }
}

fn edge(edge: Edge) -> proto::Edge {
    let origin = match edge.origin {
        Origin::Learned => CallOrigin::Learned,
        Origin::Declared => CallOrigin::Declared,
    };
    proto::Edge {
        caller_namespace: edge.caller.namespace.to_string(),
        caller: edge.caller.name.to_string(),
        destination_namespace: edge.destination.service.namespace.to_string(),
        destination: edge.destination.service.name.to_string(),
        port: edge.destination.port.unwrap_or_default().into(),
        origin: origin.into(),
        since: edge.since.map(Into::into),
        pods: edge.pods as u64,
    }
}

pub(super) fn upstream(used: Used) -> proto::Upstream {
    proto::Upstream {
        cluster: used.cluster.to_string(),
        destination: used.destination.map(|destination| destination.to_string()).unwrap_or_default(),
        warm: used.how == How::Warm,
    }
}

/// The graph for people's own programs.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Document {
    /// Ordered by caller and destination.
    pub edges: Vec<Call>,
}

/// A workload calls a Service.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct Call {
    /// `NAMESPACE/WORKLOAD`.
    pub caller: String,
    /// `SERVICE.NAMESPACE:PORT`.
    pub destination: String,
    /// `learned` or `declared`.
    pub origin: &'static str,
    /// RFC 3339; absent for what is declared only.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub since: Option<String>,
    /// The same, as a time.
    #[serde(skip)]
    pub since_time: Option<SystemTime>,
    /// Connected pods of the caller that have the destination.
    pub pods: u64,
}

impl From<proto::Graph> for Document {
    fn from(graph: proto::Graph) -> Self {
        Self { edges: graph.edges.into_iter().map(call).collect() }
    }
}

fn call(edge: proto::Edge) -> Call {
    let since_time = edge.since.and_then(|since| SystemTime::try_from(since).ok());
    Call {
        caller: format!("{}/{}", edge.caller_namespace, edge.caller),
        destination: format!("{}.{}:{}", edge.destination, edge.destination_namespace, edge.port),
        origin: if edge.origin() == CallOrigin::Learned { "learned" } else { "declared" },
        since: since_time.and_then(|since| OffsetDateTime::from(since).format(&Rfc3339).ok()),
        since_time,
        pods: edge.pods,
    }
}
