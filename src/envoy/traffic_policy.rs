//! What a TrafficPolicy changes of routes and clusters.

use std::time::Duration;

use envoy_types::pb::envoy::config::cluster::v3::OutlierDetection as EnvoyOutliers;
use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::Thresholds;
use envoy_types::pb::envoy::config::cluster::v3::circuit_breakers::thresholds::RetryBudget as EnvoyBudget;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{
    LbConfig, LbPolicy, LeastRequestLbConfig, RoundRobinLbConfig, SlowStartConfig,
};
use envoy_types::pb::envoy::config::core::v3::RuntimeFractionalPercent;
use envoy_types::pb::envoy::config::listener::v3::listener_filter_chain_match_predicate::Rule;
use envoy_types::pb::envoy::config::listener::v3::{ListenerFilter, ListenerFilterChainMatchPredicate};
use envoy_types::pb::envoy::config::route::v3::header_matcher::HeaderMatchSpecifier;
use envoy_types::pb::envoy::config::route::v3::rate_limit::Action;
use envoy_types::pb::envoy::config::route::v3::rate_limit::action::ActionSpecifier;
use envoy_types::pb::envoy::config::route::v3::retry_policy::{RetryBackOff, RetryHostPredicate, retry_host_predicate};
use envoy_types::pb::envoy::config::route::v3::route_action::HashPolicy;
use envoy_types::pb::envoy::config::route::v3::route_action::hash_policy::{Cookie, Header, PolicySpecifier};
use envoy_types::pb::envoy::config::route::v3::{HeaderMatcher, RateLimit as EnvoyRateLimit, RetryPolicy, RouteAction};
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::LocalRateLimitDescriptor;
use envoy_types::pb::envoy::extensions::common::ratelimit::v3::rate_limit_descriptor::Entry;
use envoy_types::pb::envoy::extensions::filters::http::local_ratelimit::v3::LocalRateLimit as HttpRateLimit;
use envoy_types::pb::envoy::extensions::filters::listener::local_ratelimit::v3::LocalRateLimit as ConnectionRateLimit;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpFilter;
use envoy_types::pb::envoy::extensions::matching::common_inputs::network::v3::DestinationPortInput;
use envoy_types::pb::envoy::extensions::retry::host::previous_hosts::v3::PreviousHostsPredicate;
use envoy_types::pb::envoy::r#type::v3::{Int32Range, Percent, TokenBucket};
use envoy_types::pb::google::protobuf::Any;
use envoy_types::util::pack_any;

use super::fault::fraction;
use super::message::{boolean, duration, extension, http_filter_of_routes, listener_filter, uint32};
use super::names::UNSERVED_HEADER;
use super::zones;
use crate::mesh::object::{Algorithm, ConnectionSettings, HashKey, Percentage, RateLimit, RequestSettings, Retries};

/// What is retried whatever a policy says: requests that the first endpoint has certainly not seen, since its sidecar was
/// not reached, or said that the application was not.
const NEVER_SERVED: &str = "connect-failure,refused-stream,reset-before-request,retriable-headers";

/// How often that is retried without a policy.
const RETRIES: u32 = 2;

/// The filter that limits the rate of requests, by its name in a listener and in routes.
const RATE_LIMIT: &str = "envoy.filters.http.local_ratelimit";

/// Applies a policy to the action of a route.
pub(super) fn route_action(action: RouteAction, settings: &RequestSettings) -> RouteAction {
    RouteAction {
        // Without a policy the application's own time-out decides.
        timeout: duration(settings.timeout.unwrap_or(Duration::ZERO)),
        idle_timeout: settings.idle.and_then(duration),
        retry_policy: settings.retries.as_ref().map(|retries| retry(Some(retries))),
        hash_policy: settings.hash.iter().map(hash).collect(),
        ..action
    }
}

/// Another endpoint is tried when the first has certainly not seen the request. Nothing else is retried unless a
/// policy asks for it, which never takes away from that.
pub(super) fn retry(policy: Option<&Retries>) -> RetryPolicy {
    let mut on = NEVER_SERVED.to_owned();
    for condition in policy.iter().flat_map(|policy| &policy.on) {
        if !NEVER_SERVED.split(',').any(|known| known == condition) {
            on.push(',');
            on.push_str(condition);
        }
    }
    let statuses = policy.map(|policy| policy.statuses.as_slice()).unwrap_or_default();
    if !statuses.is_empty() {
        on.push_str(",retriable-status-codes");
    }
    let backoff = policy.and_then(|policy| policy.backoff);
    RetryPolicy {
        retry_on: on,
        retriable_headers: vec![HeaderMatcher {
            name: UNSERVED_HEADER.to_owned(),
            header_match_specifier: Some(HeaderMatchSpecifier::PresentMatch(true)),
            ..Default::default()
        }],
        retriable_status_codes: statuses.iter().map(|status| (*status).into()).collect(),
        num_retries: uint32(policy.map_or(RETRIES, |policy| policy.attempts)),
        per_try_timeout: policy.and_then(|policy| policy.per_try_timeout).and_then(duration),
        retry_back_off: backoff
            .map(|(base, max)| RetryBackOff { base_interval: duration(base), max_interval: duration(max) }),
        retry_host_predicate: vec![RetryHostPredicate {
            name: "envoy.retry_host_predicates.previous_hosts".to_owned(),
            config_type: Some(retry_host_predicate::ConfigType::TypedConfig(pack_any(PreviousHostsPredicate {}))),
        }],
        host_selection_retry_max_attempts: 5,
        ..Default::default()
    }
}

fn hash(key: &HashKey) -> HashPolicy {
    let specifier = match key {
        HashKey::Header(name) => PolicySpecifier::Header(Header { header_name: name.clone(), ..Default::default() }),
        HashKey::Cookie(name, ttl) => PolicySpecifier::Cookie(Cookie {
            name: name.clone(),
            ttl: duration(ttl.unwrap_or(Duration::ZERO)),
            path: "/".to_owned(),
            ..Default::default()
        }),
    };
    HashPolicy { policy_specifier: Some(specifier), ..Default::default() }
}

/// The limits of a cluster. Envoy's own of 1,024 would refuse calls that the application's own client would have made.
pub(super) fn limits(settings: &ConnectionSettings) -> Thresholds {
    let limit = |limit: Option<u32>| uint32(limit.unwrap_or(u32::MAX));
    let percent = |percent: u32| Some(Percent { value: percent.into() });
    Thresholds {
        max_connections: limit(settings.max_connections),
        max_pending_requests: limit(settings.max_pending),
        max_requests: limit(settings.max_requests),
        max_retries: uint32(u32::MAX),
        retry_budget: settings.retry_budget.map(|budget| EnvoyBudget {
            budget_percent: percent(budget.percent),
            min_retry_concurrency: uint32(budget.min_concurrent),
            ..Default::default()
        }),
        ..Default::default()
    }
}

/// When a cluster's endpoints get nothing for a while.
pub(super) fn outliers(settings: &ConnectionSettings) -> Option<EnvoyOutliers> {
    let Some(outliers) = settings.outliers else { return zones::outliers(settings) };
    Some(EnvoyOutliers {
        consecutive_5xx: uint32(outliers.consecutive_errors),
        enforcing_consecutive_5xx: uint32(100),
        interval: duration(outliers.interval),
        base_ejection_time: duration(outliers.ejection_time),
        // Never less than one time of ejection, which Envoy would refuse.
        max_ejection_time: duration(outliers.ejection_time.saturating_mul(10)),
        max_ejection_percent: uint32(outliers.max_ejected_percent),
        enforcing_success_rate: uint32(0),
        enforcing_consecutive_gateway_failure: uint32(0),
        ..Default::default()
    })
}

/// How a cluster chooses an endpoint.
pub(super) fn balancing(settings: &ConnectionSettings) -> (LbPolicy, Option<LbConfig>) {
    let slow_start_config =
        settings.slow_start.map(|window| SlowStartConfig { slow_start_window: duration(window), ..Default::default() });
    match settings.algorithm {
        Algorithm::RoundRobin => {
            let config = slow_start_config.is_some().then(|| {
                LbConfig::RoundRobinLbConfig(RoundRobinLbConfig { slow_start_config: slow_start_config.clone() })
            });
            (LbPolicy::RoundRobin, config)
        }
        Algorithm::LeastRequest => {
            let config = LeastRequestLbConfig { slow_start_config, ..Default::default() };
            (LbPolicy::LeastRequest, Some(LbConfig::LeastRequestLbConfig(config)))
        }
        Algorithm::RingHash => (LbPolicy::RingHash, None),
        Algorithm::Maglev => (LbPolicy::Maglev, None),
    }
}

/// The filter that limits the rate of requests, for those of routes with [`rates_of_route`].
pub(super) fn rate_filter() -> HttpFilter {
    http_filter_of_routes(RATE_LIMIT, HttpRateLimit { stat_prefix: "rate".to_owned(), ..Default::default() })
}

/// What the filter does to requests, by the port that they come to. Its own bucket, which counts for all other ports, is
/// never empty.
pub(super) fn rates_of_route<'a>(rates: impl Iterator<Item = (u16, &'a RateLimit)>) -> Option<(String, Any)> {
    let descriptor = |(port, rate): (u16, &RateLimit)| LocalRateLimitDescriptor {
        entries: vec![Entry { key: PORT.to_owned(), value: port.to_string() }],
        token_bucket: Some(bucket(rate)),
        ..Default::default()
    };
    let descriptors: Vec<_> = rates.map(descriptor).collect();
    if descriptors.is_empty() {
        return None;
    }
    let by_port = ActionSpecifier::Extension(extension(PORT, DestinationPortInput {}));
    let action = Action { action_specifier: Some(by_port) };
    let always = RuntimeFractionalPercent { default_value: Some(fraction(Percentage::ALL)), ..Default::default() };
    let limits = HttpRateLimit {
        stat_prefix: "rate".to_owned(),
        token_bucket: Some(bucket(&RateLimit { tokens: u32::MAX, per: Duration::from_secs(1), burst: u32::MAX })),
        always_consume_default_token_bucket: boolean(false),
        // What gRPC says of a limit; Envoy's own choice for 429, UNAVAILABLE, is what clients try again at once.
        rate_limited_as_resource_exhausted: true,
        filter_enabled: Some(always.clone()),
        filter_enforced: Some(always),
        rate_limits: vec![EnvoyRateLimit { actions: vec![action], ..Default::default() }],
        descriptors,
        ..Default::default()
    };
    Some((RATE_LIMIT.to_owned(), pack_any(limits)))
}

/// What requests are told apart by.
const PORT: &str = "port";

/// The filter of a listener that limits the rate of connections to one port.
pub(super) fn connection_rate(port: u16, rate: &RateLimit) -> ListenerFilter {
    let on_port = Rule::DestinationPortRange(Int32Range { start: port.into(), end: i32::from(port) + 1 });
    let elsewhere = Rule::NotMatch(Box::new(ListenerFilterChainMatchPredicate { rule: Some(on_port) }));
    let config =
        ConnectionRateLimit { stat_prefix: "rate".to_owned(), token_bucket: Some(bucket(rate)), ..Default::default() };
    ListenerFilter {
        filter_disabled: Some(ListenerFilterChainMatchPredicate { rule: Some(elsewhere) }),
        ..listener_filter("envoy.filters.listener.local_ratelimit", config)
    }
}

/// A rate as Envoy counts it.
fn bucket(rate: &RateLimit) -> TokenBucket {
    TokenBucket { max_tokens: rate.burst, tokens_per_fill: uint32(rate.tokens), fill_interval: duration(rate.per) }
}
