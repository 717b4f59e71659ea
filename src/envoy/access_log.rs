//! Access logs: an entry for each request or connection, at either end of a hop.
//!
//! One list of fields makes the line of text, the line of JSON and the attributes of an OpenTelemetry record.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::accesslog::v3::access_log::ConfigType;
use envoy_types::pb::envoy::config::accesslog::v3::access_log_filter::FilterSpecifier;
use envoy_types::pb::envoy::config::accesslog::v3::{
    AccessLog as Logger, AccessLogFilter, AndFilter, ComparisonFilter, ExtensionFilter, GrpcStatusFilter, HeaderFilter,
    LogTypeFilter, OrFilter, ResponseFlagFilter, StatusCodeFilter, comparison_filter, extension_filter,
    grpc_status_filter,
};
use envoy_types::pb::envoy::config::core::v3::substitution_format_string::Format;
use envoy_types::pb::envoy::config::core::v3::{DataSource, RuntimeUInt32, SubstitutionFormatString, data_source};
use envoy_types::pb::envoy::config::route::v3::{HeaderMatcher, header_matcher::HeaderMatchSpecifier};
use envoy_types::pb::envoy::data::accesslog::v3::AccessLogType;
use envoy_types::pb::envoy::extensions::access_loggers::filters::cel::v3::ExpressionFilter;
use envoy_types::pb::envoy::extensions::access_loggers::open_telemetry::v3::OpenTelemetryAccessLogConfig;
use envoy_types::pb::envoy::extensions::access_loggers::stream::v3::StdoutAccessLog;
use envoy_types::pb::envoy::extensions::access_loggers::stream::v3::stdout_access_log::AccessLogFormat;
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};
use envoy_types::pb::google::protobuf::{Any, Struct, Value, value::Kind};
use envoy_types::pb::opentelemetry::proto::common::v1::{AnyValue, KeyValue, KeyValueList, any_value};
use envoy_types::util::pack_any;
use prost::{Message, Name};

use super::names::ACCESS_LOG;
use super::tracing::grpc_service;
use crate::mesh::telemetry::{AccessLog, AccessLogMode, LogFormat, LogOutput};

/// Which end of a hop logs.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Side {
    /// The callee's.
    Inbound,
    /// The caller's.
    Outbound,
}

/// What of a hop is logged.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum What {
    Request,
    Connection,
}

/// The loggers of an HTTP connection manager.
pub(super) fn of_requests(log: Option<&AccessLog>, side: Side) -> Vec<Logger> {
    log.map(|log| logger(log, side, What::Request)).into_iter().collect()
}

/// The loggers of a TCP proxy.
pub(super) fn of_connections(log: Option<&AccessLog>, side: Side) -> Vec<Logger> {
    log.map(|log| logger(log, side, What::Connection)).into_iter().collect()
}

fn logger(log: &AccessLog, side: Side, what: What) -> Logger {
    let fields = fields(side, what);
    let (name, config) = match (&log.output, log.format) {
        (LogOutput::Stdout, LogFormat::Text) => ("envoy.access_loggers.stdout", text(&fields)),
        (LogOutput::Stdout, LogFormat::Json) => ("envoy.access_loggers.stdout", json(&fields)),
        (LogOutput::OtlpGrpc(_), _) => ("envoy.access_loggers.open_telemetry", otlp(&fields, what)),
    };
    let errors = (log.mode == AccessLogMode::Errors).then(|| errors(what));
    // A TCP proxy tells its loggers of more than the end of a connection where others want to hear of it.
    let ended = (what == What::Connection).then(|| of_types([AccessLogType::TcpConnectionEnd]));
    let filter = match (ended, errors) {
        (Some(ended), Some(errors)) => Some(all_of(vec![ended, errors])),
        (ended, errors) => ended.or(errors),
    };
    Logger { name: name.to_owned(), filter, config_type: Some(ConfigType::TypedConfig(config)) }
}

type Field = (&'static str, &'static str);

/// Why a callee closed a connection, in plain words; Envoy's own stand in `details` and `failure`. Whom no TrafficTarget
/// allows any TCP port is refused in the handshake, of which older Envoys do not say what it failed at. There is no such
/// attribute as the last one: of what was not denied, nothing is said.
const DENIED: &str = "%CEL(\
    has(connection.transport_failure_reason) && connection.transport_failure_reason.contains('SAN matcher') \
    ? 'no TrafficTarget allows this caller a TCP port of this workload' \
    : has(connection.transport_failure_reason) && connection.transport_failure_reason.contains('CERTIFICATE_VERIFY_FAILED') \
    ? 'the identity or the certificate of this caller is refused' \
    : has(connection.termination_details) && connection.termination_details.startsWith('rbac_access_denied') \
    ? 'no TrafficTarget allows this caller this TCP port' \
    : connection.nothing)%";

/// The name and the format string of each field.
fn fields(side: Side, what: What) -> Vec<Field> {
    let mut fields = vec![("time", "%START_TIME%")];
    fields.extend(match side {
        Side::Outbound => [
            ("direction", "outbound"),
            ("caller", "%UPSTREAM_LOCAL_URI_SAN%"),
            ("callee", "%UPSTREAM_PEER_URI_SAN%"),
            ("destination", "%UPSTREAM_CLUSTER%"),
        ],
        Side::Inbound => [
            ("direction", "inbound"),
            ("caller", "%DOWNSTREAM_PEER_URI_SAN%"),
            ("callee", "%DOWNSTREAM_LOCAL_URI_SAN%"),
            // The SNI that the caller states: `80.cart.shop.svc.cluster.local`.
            ("destination", "%REQUESTED_SERVER_NAME%"),
        ],
    });
    if what == What::Request {
        fields.extend([
            ("host", "%REQ(:AUTHORITY)%"),
            ("method", "%REQ(:METHOD)%"),
            ("path", "%REQ(:PATH)%"),
            ("protocol", "%PROTOCOL%"),
            ("code", "%RESPONSE_CODE%"),
            ("grpc_status", "%GRPC_STATUS%"),
            // Why a request was denied, for one.
            ("details", "%RESPONSE_CODE_DETAILS%"),
        ]);
    } else {
        fields.push(("details", "%CONNECTION_TERMINATION_DETAILS%"));
        if side == Side::Inbound {
            fields.push(("denied", DENIED));
        }
    }
    fields.extend([
        ("flags", "%RESPONSE_FLAGS%"),
        (
            "failure",
            match side {
                Side::Outbound => "%UPSTREAM_TRANSPORT_FAILURE_REASON%",
                Side::Inbound => "%DOWNSTREAM_TRANSPORT_FAILURE_REASON%",
            },
        ),
        ("duration_ms", "%DURATION%"),
    ]);
    if what == What::Request {
        fields.push(("first_byte_ms", "%RESPONSE_DURATION%"));
    }
    fields.extend([("bytes_received", "%BYTES_RECEIVED%"), ("bytes_sent", "%BYTES_SENT%")]);
    if what == What::Request {
        fields.extend([("request_id", "%REQ(X-REQUEST-ID)%"), ("trace_id", "%TRACE_ID%")]);
    }
    fields.extend([
        ("from", "%DOWNSTREAM_REMOTE_ADDRESS%"),
        // Where the caller meant to go.
        ("to", "%DOWNSTREAM_LOCAL_ADDRESS%"),
        ("upstream", "%UPSTREAM_HOST%"),
    ]);
    fields
}

/// `name="value" …`.
fn text(fields: &[Field]) -> Any {
    let words = Vec::from_iter(fields.iter().map(|(name, format)| format!("{name}=\"{format}\"")));
    let line = DataSource {
        specifier: Some(data_source::Specifier::InlineString(words.join(" ") + "\n")),
        ..Default::default()
    };
    pack_any(stdout(Format::TextFormatSource(line)))
}

/// A JSON object. `Struct.fields` is a map, which prost writes in a random order; equal plans must give equal bytes.
/// Protobuf merges messages that are written one after the other, so the logger is written once for each field.
fn json(fields: &[Field]) -> Any {
    let one = |(name, format): &Field| {
        let value = Value { kind: Some(Kind::StringValue((*format).to_owned())) };
        stdout(Format::JsonFormat(Struct { fields: HashMap::from([((*name).to_owned(), value)]) })).encode_to_vec()
    };
    Any { type_url: StdoutAccessLog::type_url(), value: fields.iter().flat_map(one).collect() }
}

fn stdout(format: Format) -> StdoutAccessLog {
    let format = SubstitutionFormatString { format: Some(format), ..Default::default() };
    StdoutAccessLog { access_log_format: Some(AccessLogFormat::LogFormat(format)) }
}

fn otlp(fields: &[Field], what: What) -> Any {
    let text = |text: &str| AnyValue { value: Some(any_value::Value::StringValue(text.to_owned())) };
    let body = match what {
        What::Request => "%REQ(:METHOD)% %REQ(:AUTHORITY)%%REQ(:PATH)% %RESPONSE_CODE%",
        What::Connection => "%DOWNSTREAM_LOCAL_ADDRESS% %RESPONSE_FLAGS%",
    };
    // The record has a time of its own.
    let fields = fields.iter().filter(|(name, _)| *name != "time");
    let attributes = fields.map(|(name, format)| KeyValue {
        key: (*name).to_owned(),
        value: Some(text(format)),
        ..Default::default()
    });
    pack_any(OpenTelemetryAccessLogConfig {
        grpc_service: Some(grpc_service(ACCESS_LOG)),
        log_name: "weft".to_owned(),
        body: Some(text(body)),
        attributes: Some(KeyValueList { values: attributes.collect() }),
        ..Default::default()
    })
}

/// What went wrong.
fn errors(what: What) -> AccessLogFilter {
    let flagged = filter(FilterSpecifier::ResponseFlagFilter(ResponseFlagFilter::default()));
    match what {
        What::Connection => any_of(vec![flagged, is_denied()]),
        What::Request => any_of(vec![status_400_or_more(), flagged, all_of(vec![is_grpc(), grpc_is_not_ok()])]),
    }
}

fn status_400_or_more() -> AccessLogFilter {
    filter(FilterSpecifier::StatusCodeFilter(StatusCodeFilter {
        comparison: Some(ComparisonFilter {
            op: comparison_filter::Op::Ge.into(),
            value: Some(RuntimeUInt32 { default_value: 400, runtime_key: "weft.log_from_status".to_owned() }),
        }),
    }))
}

/// Envoy makes a gRPC status of every HTTP status, and of 200 it makes UNKNOWN.
fn is_grpc() -> AccessLogFilter {
    let grpc = StringMatcher {
        match_pattern: Some(MatchPattern::Prefix("application/grpc".to_owned())),
        ..Default::default()
    };
    filter(FilterSpecifier::HeaderFilter(HeaderFilter {
        header: Some(HeaderMatcher {
            name: "content-type".to_owned(),
            header_match_specifier: Some(HeaderMatchSpecifier::StringMatch(grpc)),
            ..Default::default()
        }),
    }))
}

/// A connection that authorisation has closed has no response flag: its end says why, or, where it was denied in the
/// handshake, what became of that.
fn is_denied() -> AccessLogFilter {
    let expression = "(has(connection.termination_details) && \
                      connection.termination_details.startsWith('rbac_access_denied')) || \
                      (has(connection.transport_failure_reason) && connection.transport_failure_reason != '')"
        .to_owned();
    filter(FilterSpecifier::ExtensionFilter(ExtensionFilter {
        name: "envoy.access_loggers.extension_filters.cel".to_owned(),
        config_type: Some(extension_filter::ConfigType::TypedConfig(pack_any(ExpressionFilter {
            expression,
            ..Default::default()
        }))),
    }))
}

fn grpc_is_not_ok() -> AccessLogFilter {
    let ok = vec![grpc_status_filter::Status::Ok.into()];
    filter(FilterSpecifier::GrpcStatusFilter(GrpcStatusFilter { statuses: ok, exclude: true }))
}

fn any_of(filters: Vec<AccessLogFilter>) -> AccessLogFilter {
    filter(FilterSpecifier::OrFilter(OrFilter { filters }))
}

/// Takes the entries of these types alone.
pub(super) fn of_types<const N: usize>(types: [AccessLogType; N]) -> AccessLogFilter {
    let types = types.map(Into::into).into();
    filter(FilterSpecifier::LogTypeFilter(LogTypeFilter { types, ..Default::default() }))
}

/// Takes what all of these take.
pub(super) fn all_of(filters: Vec<AccessLogFilter>) -> AccessLogFilter {
    filter(FilterSpecifier::AndFilter(AndFilter { filters }))
}

fn filter(specifier: FilterSpecifier) -> AccessLogFilter {
    AccessLogFilter { filter_specifier: Some(specifier) }
}
