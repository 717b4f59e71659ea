//! A real Jaeger in the mesh, and the traces that it has, over its query API.

use std::collections::BTreeMap;
use std::time::Duration;

use anyhow::{Context, ensure};
use serde::Deserialize;
use weft_e2e::mesh::{Mesh, PATIENCE, repository};
use weft_e2e::until;

/// The pod that Jaeger is in.
const POD: &str = "observability/jaeger";
/// Its file in the mesh.
const FILE: &str = "jaeger.yaml";
const QUERY: u16 = 16686;

/// How long a span may be on its way: Envoy sends after a second.
const ON_ITS_WAY: Duration = Duration::from_secs(20);

/// Adds the example's Jaeger to the mesh, as `e2e/scripts/jaeger` built it, and waits until it serves.
pub(super) fn add(mesh: &Mesh) -> anyhow::Result<()> {
    let jaeger = repository().join("target/jaeger/jaeger");
    ensure!(jaeger.exists(), "there is no {}: run e2e/scripts/jaeger", jaeger.display());
    let config = repository().join("e2e/jaeger/config.yaml");
    let example = std::fs::read_to_string(repository().join("examples/observability/jaeger.yaml"))?;
    let command = format!("exec {} --config {}", jaeger.display(), config.display());
    mesh.put(FILE, &example.replace("exec jaeger", &command))?;
    mesh.wait_for_pods("observability", "jaeger", 1)
}

/// Takes it away.
pub(super) fn remove(mesh: &Mesh) -> anyhow::Result<()> {
    mesh.delete(FILE)?;
    mesh.wait_for_pods("observability", "jaeger", 0)
}

#[derive(Clone, Debug, Deserialize)]
struct Answer {
    data: Option<Vec<Trace>>,
}

/// A trace as Jaeger tells it.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Trace {
    #[serde(rename = "traceID")]
    pub(super) id: String,
    pub(super) spans: Vec<Span>,
    processes: BTreeMap<String, Process>,
}

#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
struct Process {
    service_name: String,
    #[serde(default)]
    tags: Vec<Tag>,
}

/// A span.
#[derive(Clone, Debug, Deserialize)]
#[serde(rename_all = "camelCase")]
pub(super) struct Span {
    #[serde(rename = "spanID")]
    id: String,
    pub(super) operation_name: String,
    references: Vec<Reference>,
    /// In microseconds.
    pub(super) duration: u64,
    tags: Vec<Tag>,
    #[serde(rename = "processID")]
    process: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Reference {
    #[serde(rename = "spanID")]
    span: String,
}

#[derive(Clone, Debug, Deserialize)]
struct Tag {
    key: String,
    value: serde_json::Value,
}

impl Span {
    /// A tag's value; `-` for one that is not there.
    pub(super) fn tag(&self, key: &str) -> String {
        value(&self.tags, key)
    }

    /// The span that it names as its parent, in this trace or not.
    pub(super) fn parent(&self) -> Option<&str> {
        self.references.first().map(|reference| reference.span.as_str())
    }
}

fn value(tags: &[Tag], key: &str) -> String {
    let tag = tags.iter().find(|tag| tag.key == key);
    tag.map_or_else(|| "-".to_owned(), |tag| tag.value.as_str().map_or_else(|| tag.value.to_string(), str::to_owned))
}

impl Trace {
    /// The service of a span, whichever version of it.
    pub(super) fn service(&self, span: &Span) -> String {
        let service = self.processes.get(&span.process).map_or("?", |process| process.service_name.as_str());
        service.replace("-v1.", ".").replace("-v2.", ".")
    }

    /// A tag of the process that a span is of.
    pub(super) fn process_tag(&self, span: &Span, key: &str) -> String {
        self.processes.get(&span.process).map_or_else(|| "?".to_owned(), |process| value(&process.tags, key))
    }

    /// The spans without a parent in this trace.
    pub(super) fn roots(&self) -> Vec<&Span> {
        let known = |parent: &str| self.spans.iter().any(|span| span.id == parent);
        self.spans.iter().filter(|span| !span.parent().is_some_and(known)).collect()
    }

    /// `SERVICE KIND OPERATION [CHILD, CHILD]`, children in the order of their text.
    pub(super) fn tree(&self) -> String {
        let mut roots = Vec::from_iter(self.roots().into_iter().map(|root| self.subtree(root)));
        roots.sort();
        roots.join(" and ")
    }

    fn subtree(&self, span: &Span) -> String {
        let of_span = |child: &&Span| child.parent() == Some(span.id.as_str());
        let mut children = Vec::from_iter(self.spans.iter().filter(of_span).map(|child| self.subtree(child)));
        children.sort();
        let own = format!("{} {} {}", self.service(span), span.tag("span.kind"), span.operation_name);
        if children.is_empty() { own } else { format!("{own} [{}]", children.join(", ")) }
    }
}

/// The traces that hold a request of this id, as they are now.
pub(super) fn now(mesh: &Mesh, service: &str, request_id: &str) -> anyhow::Result<Vec<Trace>> {
    // {"guid:x-request-id":"ID"}
    let tags = format!("%7B%22guid%3Ax-request-id%22%3A%22{request_id}%22%7D");
    let text = mesh.get(POD, QUERY, &format!("/api/traces?service={service}&limit=100&lookback=1h&tags={tags}"))?;
    let answer: Answer = serde_json::from_str(&text).with_context(|| text.clone())?;
    Ok(answer.data.unwrap_or_default())
}

/// The trace of the request of this id, when it has so many spans.
pub(super) fn trace(mesh: &Mesh, service: &str, request_id: &str, spans: usize) -> anyhow::Result<Trace> {
    trace_within(ON_ITS_WAY, mesh, service, request_id, spans)
}

/// As [`trace`], with less patience.
pub(super) fn trace_within(
    within: Duration,
    mesh: &Mesh,
    service: &str,
    request_id: &str,
    spans: usize,
) -> anyhow::Result<Trace> {
    until(&format!("{spans} spans of {request_id} at {service}"), within, || {
        std::thread::sleep(Duration::from_millis(50)); // Jaeger shares the machine.
        let traces = now(mesh, service, request_id)?;
        let complete = traces.iter().find(|trace| trace.spans.len() >= spans);
        Ok(complete.cloned().ok_or_else(|| format!("{:?}", traces.iter().map(Trace::tree).collect::<Vec<_>>())))
    })
}

/// The services that Jaeger has heard of.
pub(super) fn services(mesh: &Mesh) -> anyhow::Result<Vec<String>> {
    #[derive(Deserialize)]
    struct Services {
        data: Option<Vec<String>>,
    }
    let text = mesh.get(POD, QUERY, "/api/services")?;
    let services: Services = serde_json::from_str(&text).with_context(|| text.clone())?;
    let mut services = services.data.unwrap_or_default();
    services.sort();
    Ok(services)
}

/// What Jaeger's process printed of the logs that it was sent, when one of its lines has `text`.
pub(super) fn printed(mesh: &Mesh, text: &str) -> anyhow::Result<Vec<String>> {
    until(&format!("a log record with {text}"), PATIENCE, || {
        std::thread::sleep(Duration::from_millis(50));
        let lines = Vec::from_iter(mesh.log().into_iter().filter(|line| line.contains("jaeger jaeger]")));
        Ok(if lines.iter().any(|line| line.contains(text)) { Ok(lines) } else { Err(format!("{} lines", lines.len())) })
    })
}
