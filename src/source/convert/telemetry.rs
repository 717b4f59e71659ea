//! Traces and access logs: MeshConfig's settings, and the annotations that override them.

use std::collections::BTreeSet;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::mesh::telemetry as model;
use crate::mesh::telemetry::{
    AccessLogMode, HostPort, LogOutput, Sampling, SpanNames, TagValue, TraceProvider, TraceTag,
};
use crate::source::manifest::telemetry::{self as manifest, AccessLog, Otlp, Tag, Tracing};

use super::Findings;

/// What share of a namespace's or a pod's requests begins a trace.
const SAMPLING: &str = "weft.dev/trace-sampling";
/// Which requests and connections of a namespace or a pod are logged.
const ACCESS_LOG: &str = "weft.dev/access-log";

/// The paths that collectors take spans at when the URL names none.
const OTLP_PATH: &str = "/v1/traces";
const ZIPKIN_PATH: &str = "/api/v2/spans";

/// The annotation [`SAMPLING`]. One that cannot be read leaves the object in use: the wider setting holds.
pub(super) fn sampling(metadata: &ObjectMeta, findings: &mut Findings) -> Option<Sampling> {
    annotation(metadata, SAMPLING, findings, |text| text.parse::<Sampling>().map_err(|error| error.to_string()))
}

/// The annotation [`ACCESS_LOG`], likewise.
pub(super) fn access_log_mode(metadata: &ObjectMeta, findings: &mut Findings) -> Option<AccessLogMode> {
    annotation(metadata, ACCESS_LOG, findings, |text| {
        manifest::AccessLogMode::try_from(text.to_owned()).map(Into::into)
    })
}

fn annotation<T>(
    metadata: &ObjectMeta,
    key: &str,
    findings: &mut Findings,
    read: impl FnOnce(&str) -> Result<T, String>,
) -> Option<T> {
    let text = metadata.annotations.as_ref()?.get(key)?;
    read(text)
        .map_err(|message| {
            let (reason, help) = split(&message);
            let reason = format!("{reason}, so the annotation is left out");
            findings.warning(format!("metadata.annotations.{key}"), reason, help);
        })
        .ok()
}

/// A message of the form `REASON; HELP`.
fn split(message: &str) -> (&str, &str) {
    message.split_once("; ").unwrap_or((message, "correct it"))
}

/// `spec.tracing`; `None` as long as no provider is named.
pub(super) fn tracing(tracing: &Tracing, findings: &mut Findings) -> Option<model::Tracing> {
    let sampling = match tracing.sampling.map(Sampling::percent).transpose() {
        Ok(sampling) => sampling.unwrap_or_default(),
        Err(error) => {
            let message = error.to_string();
            let (reason, help) = split(&message);
            findings.error("spec.tracing.sampling", reason, help);
            return None;
        }
    };
    let mut names = BTreeSet::new();
    let tags = tracing.tags.iter().flatten().enumerate();
    let tags = Vec::from_iter(tags.filter_map(|(index, written)| {
        let field = format!("spec.tracing.tags[{index}]");
        let tag = tag(written, &field, findings)?;
        if !names.insert(written.name.as_str()) {
            findings.error(
                format!("{field}.name"),
                format!("two tags are named `{}`", tag.name),
                "give each tag a name of its own",
            );
        }
        Some(tag)
    }));
    let Some(provider) = &tracing.provider else {
        findings.warning(
            "spec.tracing.provider",
            "nothing is traced, since no collector is named",
            "name one, as `provider: {otlp: {grpc: jaeger.observability:4317}}`, or remove spec.tracing",
        );
        return None;
    };
    Some(model::Tracing { provider: self::provider(provider, findings)?, sampling, tags, spans: SpanNames::OfRequests })
}

fn provider(provider: &manifest::TraceProvider, findings: &mut Findings) -> Option<TraceProvider> {
    match (&provider.otlp, &provider.zipkin) {
        (Some(Otlp { grpc: Some(grpc), http: None }), None) => {
            host_port(grpc, "spec.tracing.provider.otlp.grpc", findings).map(TraceProvider::OtlpGrpc)
        }
        (Some(Otlp { grpc: None, http: Some(http) }), None) => {
            let (at, path) = url(http, OTLP_PATH, "spec.tracing.provider.otlp.http", findings)?;
            Some(TraceProvider::OtlpHttp(at, path))
        }
        (None, Some(zipkin)) => {
            let (at, path) = url(zipkin, ZIPKIN_PATH, "spec.tracing.provider.zipkin", findings)?;
            Some(TraceProvider::Zipkin(at, path))
        }
        _ => {
            findings.error(
                "spec.tracing.provider",
                "one collector is to be named",
                "name one of `otlp.grpc`, `otlp.http` and `zipkin`",
            );
            None
        }
    }
}

fn host_port(text: &str, field: &str, findings: &mut Findings) -> Option<HostPort> {
    text.parse()
        .map_err(|error: model::HostPortError| {
            let message = error.to_string();
            let (reason, help) = split(&message);
            findings.error(field, reason, help);
        })
        .ok()
}

/// The host and the path of `http://HOST[:PORT][/PATH]`.
fn url(text: &str, default_path: &str, field: &str, findings: &mut Findings) -> Option<(HostPort, String)> {
    let read = || {
        let rest = text.strip_prefix("http://")?;
        let (host, path) = rest.find('/').map_or((rest, ""), |at| rest.split_at(at));
        let path = if matches!(path, "" | "/") { default_path } else { path };
        let printable = path.chars().all(|c| c.is_ascii_graphic() && c != '%' && c != '#');
        Some((HostPort::with_default(host, 80).ok()?, printable.then(|| path.to_owned())?))
    };
    let url = read();
    if url.is_none() {
        findings.error(
            field,
            format!("`{text}` is not a URL that spans can be sent to"),
            format!("write it as http://HOST:PORT{default_path}"),
        );
    }
    url
}

fn tag(tag: &Tag, field: &str, findings: &mut Findings) -> Option<TraceTag> {
    if tag.name.is_empty() {
        findings.error(format!("{field}.name"), "the tag has no name", "set it");
        return None;
    }
    let value = match (&tag.header, &tag.literal, &tag.environment) {
        (Some(header), None, None) => {
            let Ok(header) = http::HeaderName::try_from(header) else {
                findings.error(
                    format!("{field}.header"),
                    format!("`{header}` is not a header's name"),
                    "use letters, digits and `-`",
                );
                return None;
            };
            TagValue::Header(header.as_str().to_owned())
        }
        (None, Some(literal), None) if !literal.is_empty() => TagValue::Literal(literal.clone()),
        (None, None, Some(variable)) if !variable.is_empty() => TagValue::Environment(variable.clone()),
        _ => {
            findings.error(
                field,
                format!("the value of tag `{}` is to come from one place", tag.name),
                "set one of `header`, `literal` and `environment`",
            );
            return None;
        }
    };
    Some(TraceTag { name: tag.name.clone(), value })
}

/// `spec.accessLog`.
pub(super) fn access_log(log: &AccessLog, findings: &mut Findings) -> model::AccessLog {
    let otlp = log.output.as_ref().and_then(|output| output.otlp.as_ref());
    let output = otlp.and_then(|otlp| host_port(&otlp.grpc, "spec.accessLog.output.otlp.grpc", findings));
    model::AccessLog {
        mode: log.mode.map(Into::into).unwrap_or_default(),
        format: log.format.map(Into::into).unwrap_or_default(),
        output: output.map(LogOutput::OtlpGrpc).unwrap_or_default(),
    }
}
