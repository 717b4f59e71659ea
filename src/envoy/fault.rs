//! Faults as Envoy's fault filter, which stands in the chain of every sidecar and does what a route tells it.

use std::collections::HashMap;

use envoy_types::pb::envoy::config::accesslog::v3::access_log_filter::FilterSpecifier;
use envoy_types::pb::envoy::config::accesslog::v3::{AccessLogFilter, ResponseFlagFilter};
use envoy_types::pb::envoy::config::core::v3::substitution_format_string::Format;
use envoy_types::pb::envoy::config::core::v3::{DataSource, SubstitutionFormatString, data_source};
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::fault_delay::FaultDelaySecifier;
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::fault_rate_limit::{FixedLimit, LimitType};
use envoy_types::pb::envoy::extensions::filters::common::fault::v3::{FaultDelay, FaultRateLimit};
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::fault_abort::ErrorType;
use envoy_types::pb::envoy::extensions::filters::http::fault::v3::{FaultAbort, HttpFault};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpFilter, LocalReplyConfig, ResponseMapper,
};
use envoy_types::pb::envoy::r#type::v3::FractionalPercent;
use envoy_types::pb::envoy::r#type::v3::fractional_percent::DenominatorType;
use envoy_types::pb::google::protobuf::Any;
use envoy_types::util::pack_any;

use super::message::{duration, http_filter_of_routes};
use crate::mesh::object::{Abort, Harm, Percentage};

/// The filter, by its name in a listener and in routes.
const FAULT: &str = "envoy.filters.http.fault";

/// The filter of every sidecar, for the requests of a fault's routes.
pub(super) fn filter() -> HttpFilter {
    http_filter_of_routes(FAULT, HttpFault { disable_downstream_cluster_stats: true, ..Default::default() })
}

/// What the filter does to the requests of a route: to all of them, since the route is chosen by the fault's
/// percentage. With percentages of its own the filter would throw the dice again for each kind of harm.
pub(super) fn of_route(harm: &Harm) -> HashMap<String, Any> {
    let percentage = Some(fraction(Percentage::ALL));
    let delay = harm.delay.map(|delay| FaultDelay {
        percentage,
        fault_delay_secifier: duration(delay).map(FaultDelaySecifier::FixedDelay),
    });
    let abort = harm.abort.map(|abort| FaultAbort {
        percentage,
        error_type: Some(match abort {
            Abort::Http(status) => ErrorType::HttpStatus(status.into()),
            Abort::Grpc(status) => ErrorType::GrpcStatus(status.into()),
        }),
        ..Default::default()
    });
    let response_rate_limit = harm.response_kib.map(|kib| FaultRateLimit {
        percentage,
        limit_type: Some(LimitType::FixedLimit(FixedLimit { limit_kbps: kib.get() })),
    });
    let fault =
        HttpFault { delay, abort, response_rate_limit, disable_downstream_cluster_stats: true, ..Default::default() };
    HashMap::from([(FAULT.to_owned(), pack_any(fault))])
}

/// Says in an answer that was given on purpose which fault gave it.
pub(super) fn name_the_fault() -> LocalReplyConfig {
    let text = "Weft: %ROUTE_NAME% answers in place of the callee\n".to_owned();
    let text = DataSource { specifier: Some(data_source::Specifier::InlineString(text)), ..Default::default() };
    LocalReplyConfig {
        mappers: vec![ResponseMapper {
            filter: Some(AccessLogFilter {
                filter_specifier: Some(FilterSpecifier::ResponseFlagFilter(ResponseFlagFilter {
                    flags: vec![FAULT_INJECTED.to_owned()],
                })),
            }),
            body_format_override: Some(SubstitutionFormatString {
                format: Some(Format::TextFormatSource(text)),
                ..Default::default()
            }),
            ..Default::default()
        }],
        ..Default::default()
    }
}

/// Envoy's response flag for an answer of the fault filter.
const FAULT_INJECTED: &str = "FI";

/// A share as Envoy writes it.
pub(super) fn fraction(Percentage(millionths): Percentage) -> FractionalPercent {
    FractionalPercent { numerator: millionths, denominator: DenominatorType::Million.into() }
}
