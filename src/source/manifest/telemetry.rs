//! `MeshConfig.spec.tracing` and `spec.accessLog`: what sidecars tell of the traffic that they carry.

use schemars::JsonSchema;
use serde::{Deserialize, Serialize};

use super::config::mode;
use crate::mesh::object;

/// Traces.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
pub struct Tracing {
    /// Where spans go: one of `otlp` and `zipkin`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub provider: Option<TraceProvider>,
    /// How many of the requests that come without a decision are traced, in percent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub sampling: Option<f64>,
    /// Tags that every span has besides Envoy's own.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub tags: Option<Vec<Tag>>,
}

/// The collector of spans.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
pub struct TraceProvider {
    /// OpenTelemetry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otlp: Option<Otlp>,
    /// The URL of a collector that takes Zipkin's JSON: `http://HOST:PORT/api/v2/spans`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub zipkin: Option<String>,
}

/// An OpenTelemetry collector: one of the two.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
pub struct Otlp {
    /// `HOST:PORT`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub grpc: Option<String>,
    /// `http://HOST:PORT/v1/traces`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub http: Option<String>,
}

/// A tag: its name, and one of the others.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
pub struct Tag {
    /// Its name.
    #[serde(default)]
    pub name: String,
    /// The request's header that holds its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub header: Option<String>,
    /// Its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub literal: Option<String>,
    /// The variable of the sidecar's environment that holds its value.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub environment: Option<String>,
}

/// Access logs.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
pub struct AccessLog {
    /// Which requests and connections are logged.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub mode: Option<AccessLogMode>,
    /// The form of an entry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub format: Option<LogFormat>,
    /// Where entries go; the sidecar's standard output when absent.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub output: Option<LogOutput>,
}

/// Where entries go.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
pub struct LogOutput {
    /// OpenTelemetry.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub otlp: Option<OtlpLogs>,
}

/// An OpenTelemetry collector of logs.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
pub struct OtlpLogs {
    /// `HOST:PORT`.
    #[serde(default)]
    pub grpc: String,
}

mode!(
    /// Which requests and connections are logged.
    AccessLogMode {
        Off | "off": "None.",
        Errors | "errors": "Those that went wrong.",
        All | "all": "All.",
    }
);
mode!(
    /// The form of an entry on standard output.
    LogFormat { Text | "text": "A line of text.", Json | "json": "A line of JSON." }
);
