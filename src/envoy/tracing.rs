//! Traces: a span for each request at either end of a hop, sent to the collector that MeshConfig names.
//!
//! ```text
//!  application ─▶ outbound: client span ══ traceparent, B3 ══▶ inbound: server span ─▶ application
//! ```
//!
//! A request that comes with a trace context keeps it and the decision in it. Of others a share begins a trace; the
//! decision travels with the request, so that a trace is whole or not there.

use envoy_types::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use envoy_types::pb::envoy::config::core::v3::{GrpcService, HttpService, HttpUri, TypedExtensionConfig, http_uri};
use envoy_types::pb::envoy::config::trace::v3::tracing::{Http as Provider, http};
use envoy_types::pb::envoy::config::trace::v3::zipkin_config::{CollectorEndpointVersion, TraceContextOption};
use envoy_types::pb::envoy::config::trace::v3::{OpenTelemetryConfig, ZipkinConfig};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::Tracing as HttpTracing;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, RequestIdExtension,
};
use envoy_types::pb::envoy::extensions::request_id::uuid::v3::UuidRequestIdConfig;
use envoy_types::pb::envoy::extensions::tracers::opentelemetry::resource_detectors::v3::EnvironmentResourceDetectorConfig;
use envoy_types::pb::envoy::extensions::tracers::opentelemetry::samplers::v3::{
    ParentBasedSamplerConfig, TraceIdRatioBasedSamplerConfig,
};
use envoy_types::pb::envoy::r#type::tracing::v3::CustomTag;
use envoy_types::pb::envoy::r#type::tracing::v3::custom_tag::{Environment, Header, Literal, Type};
use envoy_types::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use envoy_types::pb::envoy::r#type::v3::{FractionalPercent, Percent};
use envoy_types::util::pack_any;
use prost::{Message, Name};

use super::collector::TIMEOUT;
use super::message::{boolean, duration, extension};
use super::names::TRACING;
use crate::mesh::telemetry::{HostPort, Sampling, SpanNames, TagValue, TraceProvider, TraceTag, Tracing};

/// Whether a request is gRPC, as Envoy's expression language asks it.
const IS_GRPC: &str =
    "'content-type' in request.headers && request.headers['content-type'].startsWith('application/grpc')";

/// Traces what comes through `manager`.
pub(super) fn trace(manager: &mut HttpConnectionManager, tracing: &Tracing) {
    let samples_itself = matches!(tracing.provider, TraceProvider::OtlpGrpc(_) | TraceProvider::OtlpHttp(..));
    manager.tracing = Some(HttpTracing {
        // Left to the tracer where it can: Envoy's own choice is made from the request's id, and a request whose id is
        // the application's own and no UUID would never be traced.
        random_sampling: (!samples_itself).then(|| percent(tracing.sampling)),
        provider: Some(provider(&tracing.provider, tracing.sampling)),
        custom_tags: tracing.tags.iter().map(tag).collect(),
        operation: operation(tracing.spans),
        ..Default::default()
    });
    // A request's id is not changed to say that the request is traced: the trace context says it.
    let ids = UuidRequestIdConfig {
        pack_trace_reason: boolean(false),
        use_request_id_for_trace_sampling: boolean(!samples_itself),
    };
    manager.request_id_extension = Some(RequestIdExtension { typed_config: Some(pack_any(ids)) });
}

/// `GET cart.shop`, and the method of gRPC: `/weft.app.v1.Echo/Echo`.
fn operation(names: SpanNames) -> String {
    match names {
        SpanNames::OfRequests => format!(
            "%CEL({IS_GRPC} ? request.path : request.method)%%CEL({IS_GRPC} ? '' : ' ')%%CEL({IS_GRPC} ? '' : request.host)%"
        ),
        SpanNames::OfEnvoy => String::new(),
    }
}

fn provider(provider: &TraceProvider, sampling: Sampling) -> Provider {
    match provider {
        TraceProvider::OtlpGrpc(_) => {
            opentelemetry(OpenTelemetryConfig { grpc_service: Some(grpc_service(TRACING)), ..otlp(sampling) })
        }
        TraceProvider::OtlpHttp(at, path) => {
            opentelemetry(OpenTelemetryConfig { http_service: Some(http_service(at, path)), ..otlp(sampling) })
        }
        TraceProvider::Zipkin(at, path) => named(
            "envoy.tracers.zipkin",
            ZipkinConfig {
                collector_cluster: TRACING.to_owned(),
                collector_endpoint: path.clone(),
                collector_hostname: at.to_string(),
                collector_endpoint_version: CollectorEndpointVersion::HttpJson.into(),
                trace_id_128bit: true,
                // The callee's span has an id of its own, as with OpenTelemetry.
                shared_span_context: boolean(false),
                trace_context_option: TraceContextOption::UseB3WithW3cPropagation.into(),
                ..Default::default()
            },
        ),
    }
}

fn opentelemetry(config: OpenTelemetryConfig) -> Provider {
    named("envoy.tracers.opentelemetry", config)
}

fn named<T: Message + Name>(name: &str, config: T) -> Provider {
    Provider { name: name.to_owned(), config_type: Some(http::ConfigType::TypedConfig(pack_any(config))) }
}

/// What is the same over gRPC and HTTP.
fn otlp(sampling: Sampling) -> OpenTelemetryConfig {
    let ratio = TraceIdRatioBasedSamplerConfig {
        sampling_percentage: Some(FractionalPercent {
            numerator: sampling.of_ten_thousand().into(),
            denominator: DenominatorType::TenThousand.into(),
        }),
    };
    let of_roots = extension("envoy.tracers.opentelemetry.samplers.trace_id_ratio_based", ratio);
    let by_parent = ParentBasedSamplerConfig { wrapped_sampler: Some(of_roots) };
    OpenTelemetryConfig {
        sampler: Some(extension("envoy.tracers.opentelemetry.samplers.parent_based", by_parent)),
        // All sidecars share their listener: whose spans these are, each has in its environment.
        resource_detectors: vec![environment()],
        ..Default::default()
    }
}

/// `OTEL_RESOURCE_ATTRIBUTES`.
fn environment() -> TypedExtensionConfig {
    extension("envoy.tracers.opentelemetry.resource_detectors.environment", EnvironmentResourceDetectorConfig {})
}

/// A service of Envoy's that a cluster leads to.
pub(super) fn grpc_service(cluster: &str) -> GrpcService {
    GrpcService {
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
            cluster_name: cluster.to_owned(),
            ..Default::default()
        })),
        timeout: duration(TIMEOUT),
        ..Default::default()
    }
}

fn http_service(at: &HostPort, path: &str) -> HttpService {
    HttpService {
        http_uri: Some(HttpUri {
            uri: format!("http://{at}{path}"),
            timeout: duration(TIMEOUT),
            http_upstream_type: Some(http_uri::HttpUpstreamType::Cluster(TRACING.to_owned())),
        }),
        ..Default::default()
    }
}

fn tag(tag: &TraceTag) -> CustomTag {
    let value = match &tag.value {
        TagValue::Header(name) => Type::RequestHeader(Header { name: name.clone(), ..Default::default() }),
        TagValue::Literal(value) => Type::Literal(Literal { value: value.clone() }),
        TagValue::Environment(name) => Type::Environment(Environment { name: name.clone(), ..Default::default() }),
    };
    CustomTag { tag: tag.name.clone(), r#type: Some(value) }
}

fn percent(sampling: Sampling) -> Percent {
    Percent { value: f64::from(sampling.of_ten_thousand()) / 100.0 }
}
