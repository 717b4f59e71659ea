//! TrafficPolicy.

use std::collections::BTreeSet;
use std::time::Duration;

use crate::duration::HumanDuration;
use crate::mesh::object::{
    Algorithm, ConnectionSettings, HashKey, OutlierDetection, RateLimit, RequestSettings, Retries, RetryBudget,
    TrafficPolicy, ZonePreference,
};
use crate::source::manifest::traffic_policy as manifest;

use super::attachment::{targets, time};
use super::{Findings, name_of, namespace_of};

/// The conditions of Envoy's router that a policy may name.
const CONDITIONS: [&str; 13] = [
    "5xx",
    "gateway-error",
    "reset",
    "reset-before-request",
    "connect-failure",
    "refused-stream",
    "retriable-4xx",
    "envoy-ratelimited",
    "cancelled",
    "deadline-exceeded",
    "internal",
    "resource-exhausted",
    "unavailable",
];

/// A TrafficPolicy.
pub(super) fn policy(policy: &manifest::TrafficPolicy, findings: &mut Findings) -> Option<TrafficPolicy> {
    let (metadata, spec) = (&policy.metadata, &policy.spec);
    let namespace = namespace_of(metadata);
    let targets = targets(&spec.target_refs, &namespace, findings);
    let any = |field: &str, value: Option<HumanDuration>, findings: &mut Findings| {
        value.and_then(|value| time(field, value, Duration::MAX, findings))
    };
    let timeouts = spec.timeouts.as_ref();
    let timeout = any("spec.timeouts.request", timeouts.and_then(|timeouts| timeouts.request), findings);
    let idle = any("spec.timeouts.idle", timeouts.and_then(|timeouts| timeouts.idle), findings);
    let retries = spec.retries.as_ref().map(|retries| self::retries(retries, findings));
    let retry_budget = spec.retries.as_ref().and_then(|retries| retries.budget.as_ref());
    let retry_budget = retry_budget.map(|budget| RetryBudget {
        percent: number("spec.retries.budget.percent", Some(budget.percent), 0..=100, findings).unwrap_or_default(),
        min_concurrent: number("spec.retries.budget.minConcurrent", budget.min_concurrent, COUNT, findings)
            .unwrap_or(3),
    });
    let limit = |name: &str, value: Option<i64>, findings: &mut Findings| {
        number(&format!("spec.limits.{name}"), value, COUNT, findings)
    };
    let limits = spec.limits.as_ref();
    let max_connections = limit("connections", limits.and_then(|limits| limits.connections), findings);
    let max_pending = limit("pendingRequests", limits.and_then(|limits| limits.pending_requests), findings);
    let max_requests = limit("requests", limits.and_then(|limits| limits.requests), findings);
    let outliers = spec.outlier_detection.as_ref().map(|outliers| self::outliers(outliers, findings));
    let (algorithm, hash, slow_start) =
        spec.load_balancing.as_ref().map(|balancing| self::balancing(balancing, findings)).unwrap_or_default();
    let zone = spec.load_balancing.as_ref().and_then(|balancing| zone(balancing, algorithm, findings));
    let max_age = spec.connections.as_ref().and_then(|connections| connections.max_age);
    Some(TrafficPolicy {
        namespace,
        name: name_of(metadata),
        created: metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        targets,
        requests: RequestSettings { timeout, idle, retries, hash },
        connections: ConnectionSettings {
            max_connections,
            max_pending,
            max_requests,
            retry_budget,
            outliers,
            algorithm,
            zone,
            slow_start,
            max_age: any("spec.connections.maxAge", max_age, findings),
        },
        rate: spec.rate_limit.as_ref().and_then(|rate| self::rate(rate, findings)),
    })
}

/// A number of things.
const COUNT: std::ops::RangeInclusive<u32> = 0..=1_000_000_000;

fn number(
    field: &str,
    value: Option<i64>,
    allowed: std::ops::RangeInclusive<u32>,
    findings: &mut Findings,
) -> Option<u32> {
    let value = value?;
    let number = u32::try_from(value).ok().filter(|number| allowed.contains(number));
    if number.is_none() {
        let help = format!("use a number from {} to {}", allowed.start(), allowed.end());
        findings.error(field, format!("{value} is not a number that can be set here"), help);
    }
    number
}

fn retries(retries: &manifest::Retries, findings: &mut Findings) -> Retries {
    let mut on = BTreeSet::new();
    for (index, condition) in retries.on.iter().flatten().enumerate() {
        if CONDITIONS.contains(&condition.as_str()) {
            on.insert(condition.clone());
        } else {
            findings.error(
                format!("spec.retries.on[{index}]"),
                format!("`{condition}` is not a condition for a retry"),
                format!("use one of {}; HTTP statuses go into codes", CONDITIONS.join(", ")),
            );
        }
    }
    let mut statuses = BTreeSet::new();
    for (index, code) in retries.codes.iter().flatten().enumerate() {
        match u16::try_from(*code).ok().filter(|code| (400..600).contains(code)) {
            Some(code) => drop(statuses.insert(code)),
            None => findings.error(
                format!("spec.retries.codes[{index}]"),
                format!("{code} is not the status of an error"),
                "use a number from 400 to 599",
            ),
        }
    }
    let time_of = |field: &str, value, findings: &mut Findings| time(field, value, Duration::MAX, findings);
    let backoff = retries.backoff.as_ref().and_then(|backoff| {
        let base = time_of("spec.retries.backoff.base", backoff.base, findings)?;
        let max = match backoff.max {
            Some(max) => time_of("spec.retries.backoff.max", max, findings)?,
            None => base.saturating_mul(10),
        };
        if max < base {
            findings.error("spec.retries.backoff.max", "it is less than base", "use base, or more");
        }
        Some((base, max))
    });
    Retries {
        on: on.into_iter().collect(),
        statuses: statuses.into_iter().collect(),
        attempts: number("spec.retries.attempts", retries.attempts, 0..=100, findings).unwrap_or(2),
        per_try_timeout: retries
            .per_try_timeout
            .and_then(|value| time_of("spec.retries.perTryTimeout", value, findings)),
        backoff,
    }
}

fn outliers(outliers: &manifest::OutlierDetection, findings: &mut Findings) -> OutlierDetection {
    let mut time_of = |name: &str, value: Option<HumanDuration>, default: u64| {
        let value =
            value.and_then(|value| time(&format!("spec.outlierDetection.{name}"), value, Duration::MAX, findings));
        value.unwrap_or(Duration::from_secs(default))
    };
    let interval = time_of("interval", outliers.interval, 10);
    let ejection_time = time_of("ejectionTime", outliers.ejection_time, 30);
    let mut number_of =
        |name: &str, value, allowed| number(&format!("spec.outlierDetection.{name}"), value, allowed, findings);
    OutlierDetection {
        consecutive_errors: number_of("consecutiveErrors", outliers.consecutive_errors, 1..=*COUNT.end()).unwrap_or(5),
        interval,
        ejection_time,
        max_ejected_percent: number_of("maxEjectedPercent", outliers.max_ejected_percent, 1..=100).unwrap_or(50),
    }
}

fn balancing(
    balancing: &manifest::LoadBalancing,
    findings: &mut Findings,
) -> (Algorithm, Option<HashKey>, Option<Duration>) {
    let algorithm = match balancing.algorithm.as_deref() {
        None | Some("RoundRobin") => Algorithm::RoundRobin,
        Some("LeastRequest") => Algorithm::LeastRequest,
        Some("RingHash") => Algorithm::RingHash,
        Some("Maglev") => Algorithm::Maglev,
        Some(other) => {
            let reason = format!("`{other}` is not a way to choose an endpoint");
            let help = "use RoundRobin, LeastRequest, RingHash or Maglev";
            findings.error("spec.loadBalancing.algorithm", reason, help);
            return Default::default();
        }
    };
    let hash = balancing.hash.as_ref().and_then(|hash| hash_key(hash, findings));
    let slow_start = balancing.slow_start.as_ref();
    let slow_start =
        slow_start.and_then(|slow| time("spec.loadBalancing.slowStart.window", slow.window, Duration::MAX, findings));
    if algorithm.hashes() && balancing.hash.is_none() {
        let reason = "nothing is hashed, so endpoints would be chosen at random";
        findings.error("spec.loadBalancing.hash", reason, "name a header or a cookie");
    } else if !algorithm.hashes() && balancing.hash.is_some() {
        let reason = "this way to choose an endpoint hashes nothing";
        findings.error("spec.loadBalancing.hash", reason, "use RingHash or Maglev, or remove it");
    }
    if algorithm.hashes() && slow_start.is_some() {
        let reason = "a hash leads to its endpoint at once";
        findings.error("spec.loadBalancing.slowStart", reason, "use RoundRobin or LeastRequest, or remove it");
    }
    (algorithm, hash, slow_start)
}

fn zone(balancing: &manifest::LoadBalancing, algorithm: Algorithm, findings: &mut Findings) -> Option<ZonePreference> {
    let field = "spec.loadBalancing.zone";
    match balancing.zone.as_deref()? {
        "Any" => Some(ZonePreference::Any),
        "Prefer" if algorithm.hashes() => {
            let reason = "a hash leads to its endpoint, whatever the endpoint's zone";
            findings.error(field, reason, "use RoundRobin or LeastRequest, or remove it");
            None
        }
        "Prefer" => Some(ZonePreference::Prefer),
        other => {
            findings.error(field, format!("`{other}` says nothing of zones"), "use Prefer or Any");
            None
        }
    }
}

fn hash_key(hash: &manifest::HashKey, findings: &mut Findings) -> Option<HashKey> {
    let name = |field: &str, name: &str, findings: &mut Findings| {
        let known = http::HeaderName::from_bytes(name.as_bytes()).ok();
        if known.is_none() {
            findings.error(field, format!("`{name}` is not a name"), "use letters, digits and `-`");
        }
        known.is_some()
    };
    match (&hash.header, &hash.cookie) {
        (Some(header), None) if header.eq_ignore_ascii_case("host") => Some(HashKey::Header(":authority".to_owned())),
        (Some(header), None) => {
            let known = name("spec.loadBalancing.hash.header", header, findings);
            known.then(|| HashKey::Header(header.to_ascii_lowercase()))
        }
        (None, Some(cookie)) => {
            let known = name("spec.loadBalancing.hash.cookie.name", &cookie.name, findings);
            let ttl = cookie.ttl.map(|ttl| time("spec.loadBalancing.hash.cookie.ttl", ttl, Duration::MAX, findings));
            known.then(|| HashKey::Cookie(cookie.name.clone(), ttl.flatten()))
        }
        _ => {
            let reason = "one thing is hashed";
            findings.error("spec.loadBalancing.hash", reason, "name a header or a cookie, and not both");
            None
        }
    }
}

fn rate(rate: &manifest::RateLimit, findings: &mut Findings) -> Option<RateLimit> {
    let tokens = number("spec.rateLimit.count", Some(rate.count), 1..=*COUNT.end(), findings)?;
    let per = time("spec.rateLimit.per", rate.per, Duration::MAX, findings)?;
    if per < SHORTEST_FILL {
        findings.error("spec.rateLimit.per", "Envoy counts in 50 ms", "use 50ms or more");
    }
    let burst = match rate.burst {
        Some(burst) => number("spec.rateLimit.burst", Some(burst), tokens..=*COUNT.end(), findings)?,
        None => tokens,
    };
    Some(RateLimit { tokens, per, burst })
}

/// Envoy's shortest `fill_interval`.
const SHORTEST_FILL: Duration = Duration::from_millis(50);
