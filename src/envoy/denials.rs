//! Reports of what enforcement would deny: access logs of those calls alone, sent to the control plane, which counts
//! them (`xds::access_logs`).
//!
//! A filter of authorisation notes its verdict as dynamic metadata, and the log takes what it marked as denied. Where
//! nothing is audited nothing is marked, so the log of requests can stand in every listener: then a change of the mode
//! of authorisation leaves HTTP connections alone.

use std::time::Duration;

use envoy_types::pb::envoy::config::accesslog::v3::access_log::ConfigType;
use envoy_types::pb::envoy::config::accesslog::v3::access_log_filter::FilterSpecifier;
use envoy_types::pb::envoy::config::accesslog::v3::{AccessLog, AccessLogFilter, MetadataFilter};
use envoy_types::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use envoy_types::pb::envoy::config::core::v3::{ApiVersion, GrpcService};
use envoy_types::pb::envoy::data::accesslog::v3::AccessLogType;
use envoy_types::pb::envoy::extensions::access_loggers::grpc::v3::{
    CommonGrpcAccessLogConfig, HttpGrpcAccessLogConfig, TcpGrpcAccessLogConfig,
};
use envoy_types::pb::envoy::extensions::filters::network::tcp_proxy::v3::TcpProxy;
use envoy_types::pb::envoy::r#type::matcher::v3::metadata_matcher::{PathSegment, path_segment::Segment};
use envoy_types::pb::envoy::r#type::matcher::v3::string_matcher::MatchPattern;
use envoy_types::pb::envoy::r#type::matcher::v3::value_matcher::MatchPattern as ValuePattern;
use envoy_types::pb::envoy::r#type::matcher::v3::{MetadataMatcher, StringMatcher, ValueMatcher};
use envoy_types::util::pack_any;

use super::access_log::{all_of, of_types};
use super::inbound::AUDIT;
use super::message::{boolean, duration};
use super::names::CONTROL_PLANE;

/// A connection that would have been denied and stays open is reported this often: it may do so for days.
const STILL_OPEN: Duration = Duration::from_secs(10);

/// For a connection manager.
pub(super) fn log_requests() -> AccessLog {
    let config = HttpGrpcAccessLogConfig { common_config: Some(to_the_control_plane()), ..Default::default() };
    AccessLog {
        name: "envoy.access_loggers.http_grpc".to_owned(),
        filter: Some(denied_by("envoy.filters.http.rbac")),
        config_type: Some(ConfigType::TypedConfig(pack_any(config))),
    }
}

/// Has a TCP proxy report connections: when they end, and now and then before.
pub(super) fn log_connections(proxy: &mut TcpProxy) {
    let config = TcpGrpcAccessLogConfig { common_config: Some(to_the_control_plane()) };
    proxy.access_log.push(AccessLog {
        name: "envoy.access_loggers.tcp_grpc".to_owned(),
        // Not that it has been opened, which only metrics want to be told (`outbound::tell_of_connections`).
        filter: Some(all_of(vec![
            of_types([AccessLogType::TcpPeriodic, AccessLogType::TcpConnectionEnd]),
            denied_by("envoy.filters.network.rbac"),
        ])),
        config_type: Some(ConfigType::TypedConfig(pack_any(config))),
    });
    proxy.access_log_options.get_or_insert_default().access_log_flush_interval = duration(STILL_OPEN);
}

/// Without a longer buffer: what the control plane does not read in time is dropped, and stays uncounted.
fn to_the_control_plane() -> CommonGrpcAccessLogConfig {
    let control_plane = EnvoyGrpc { cluster_name: CONTROL_PLANE.to_owned(), ..Default::default() };
    CommonGrpcAccessLogConfig {
        log_name: AUDIT.to_owned(),
        grpc_service: Some(GrpcService {
            target_specifier: Some(TargetSpecifier::EnvoyGrpc(control_plane)),
            ..Default::default()
        }),
        transport_api_version: ApiVersion::V3.into(),
        ..Default::default()
    }
}

fn denied_by(filter: &str) -> AccessLogFilter {
    // Envoy puts the prefix before the key as it is.
    let key = PathSegment { segment: Some(Segment::Key(format!("{AUDIT}shadow_engine_result"))) };
    let denied = StringMatcher { match_pattern: Some(MatchPattern::Exact("denied".to_owned())), ..Default::default() };
    let matcher = MetadataMatcher {
        filter: filter.to_owned(),
        path: vec![key],
        value: Some(ValueMatcher { match_pattern: Some(ValuePattern::StringMatch(denied)) }),
        ..Default::default()
    };
    AccessLogFilter {
        filter_specifier: Some(FilterSpecifier::MetadataFilter(MetadataFilter {
            matcher: Some(matcher),
            match_if_key_not_found: boolean(false),
        })),
    }
}
