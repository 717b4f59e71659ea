//! What a pod's annotations ask of its sidecar.

use std::collections::BTreeMap;
use std::str::FromStr;

use serde_json::Value;

use super::InjectError;
use super::options::LogLevel;
use crate::local::bootstrap::{XDS_ANNOTATION, XdsProtocol};
use crate::local::intercept::Exclusions;

type Annotations = BTreeMap<String, String>;

/// The annotations that are handed on to the init container as they are.
const HANDED_ON: [&str; 4] = [
    "weft.dev/exclude-inbound-ports",
    "weft.dev/exclude-outbound-ports",
    "weft.dev/exclude-outbound-ranges",
    XDS_ANNOTATION,
];

/// Annotations that say something of the sidecar's resources: the list and the resource that they stand for.
const RESOURCES: [(&str, &str, &str); 4] = [
    ("weft.dev/proxy-cpu", "requests", "cpu"),
    ("weft.dev/proxy-memory", "requests", "memory"),
    ("weft.dev/proxy-cpu-limit", "limits", "cpu"),
    ("weft.dev/proxy-memory-limit", "limits", "memory"),
];

/// What is asked; what is not is as the options say.
#[derive(Debug, Default)]
pub(super) struct Wishes {
    pub(super) exclusions: Exclusions,
    /// For the init container.
    pub(super) handed_on: Vec<(&'static str, String)>,
    pub(super) log_level: Option<LogLevel>,
    pub(super) concurrency: Option<u32>,
    pub(super) drain_seconds: Option<u32>,
    /// `requests` or `limits`, a resource, and how much of it.
    pub(super) resources: Vec<(&'static str, &'static str, String)>,
    /// More volumes of the pod.
    pub(super) volumes: Vec<Value>,
    /// Where the sidecar sees them.
    pub(super) volume_mounts: Vec<Value>,
}

impl Wishes {
    pub(super) fn read(annotations: &Annotations) -> Result<Self, InjectError> {
        let exclusions = Exclusions::from_annotations(annotations).map_err(|error| InjectError::Annotation {
            annotation: error.annotation,
            reason: format!("`{}` is not {}", error.value, error.expected),
            help: "write a list, separated by commas",
        })?;
        XdsProtocol::from_annotations(annotations).map_err(|_| InjectError::Annotation {
            annotation: XDS_ANNOTATION,
            reason: "it is no form of xDS".to_owned(),
            help: "write `delta` or `sotw`",
        })?;
        let handed_on = HANDED_ON.into_iter().filter_map(|key| Some((key, annotations.get(key)?.clone())));
        let mut resources = Vec::new();
        for (annotation, list, resource) in RESOURCES {
            if let Some(amount) = annotations.get(annotation) {
                if !is_quantity(amount) {
                    let reason = format!("`{amount}` is no quantity");
                    return Err(InjectError::Annotation { annotation, reason, help: "write it as 100m or 128Mi" });
                }
                resources.push((list, resource, amount.clone()));
            }
        }
        let log_level = annotations.get("weft.dev/proxy-log-level").map(|text| {
            LogLevel::parse(text).ok_or_else(|| InjectError::Annotation {
                annotation: "weft.dev/proxy-log-level",
                reason: format!("`{text}` is no log level of Envoy"),
                help: "write trace, debug, info, warning, error, critical or off",
            })
        });
        Ok(Self {
            exclusions,
            handed_on: handed_on.collect(),
            log_level: log_level.transpose()?,
            concurrency: number(annotations, "weft.dev/proxy-concurrency")?.map(|n: u32| n.max(1)),
            drain_seconds: number(annotations, "weft.dev/drain-seconds")?,
            resources,
            volumes: objects(annotations, "weft.dev/proxy-volumes")?,
            volume_mounts: objects(annotations, "weft.dev/proxy-volume-mounts")?,
        })
    }
}

fn number<T: FromStr>(annotations: &Annotations, annotation: &'static str) -> Result<Option<T>, InjectError> {
    let text = annotations.get(annotation).map(|text| text.trim());
    text.map(|text| {
        let reason = format!("`{text}` is no whole number");
        text.parse().map_err(|_| InjectError::Annotation { annotation, reason, help: "write one, such as 2" })
    })
    .transpose()
}

/// A JSON array of objects, as volumes and their mounts are.
fn objects(annotations: &Annotations, annotation: &'static str) -> Result<Vec<Value>, InjectError> {
    let Some(text) = annotations.get(annotation) else { return Ok(Vec::new()) };
    let wrong = |reason: String| InjectError::Annotation {
        annotation,
        reason,
        help: r#"write a JSON array of objects, each with a name: [{"name": "certs", …}]"#,
    };
    let items: Vec<Value> =
        serde_json::from_str(text).map_err(|error| wrong(format!("it is no JSON array: {error}")))?;
    match items.iter().all(|item| item.get("name").is_some_and(Value::is_string)) {
        true => Ok(items),
        false => Err(wrong("an entry has no name".to_owned())),
    }
}

/// Whether Kubernetes takes it for an amount of CPU or memory.
fn is_quantity(text: &str) -> bool {
    let (number, suffix) = text.split_at(text.find(|c: char| !(c.is_ascii_digit() || c == '.')).unwrap_or(text.len()));
    let whole = number.parse::<f64>().is_ok() && number.starts_with(|c: char| c.is_ascii_digit());
    whole && matches!(suffix, "" | "m" | "k" | "M" | "G" | "T" | "Ki" | "Mi" | "Gi" | "Ti")
}
