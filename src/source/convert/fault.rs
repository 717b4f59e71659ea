//! TrafficFault.

use std::collections::BTreeSet;
use std::num::NonZeroU64;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::mesh::object::{Abort, Harm, Percentage, Requests, TrafficFault};
use crate::source::manifest::{fault as manifest, smi as smi_manifest};

use super::attachment::{targets, time};
use super::smi::{Identity, http_match};
use super::{Findings, name_of, namespace_of};

/// Nobody waits longer for a delay on purpose.
const LONGEST_DELAY: Duration = Duration::from_secs(3600);

/// The names of the gRPC status codes, each at its number.
const GRPC_CODES: [&str; 17] = [
    "OK",
    "CANCELLED",
    "UNKNOWN",
    "INVALID_ARGUMENT",
    "DEADLINE_EXCEEDED",
    "NOT_FOUND",
    "ALREADY_EXISTS",
    "PERMISSION_DENIED",
    "RESOURCE_EXHAUSTED",
    "FAILED_PRECONDITION",
    "ABORTED",
    "OUT_OF_RANGE",
    "UNIMPLEMENTED",
    "INTERNAL",
    "UNAVAILABLE",
    "DATA_LOSS",
    "UNAUTHENTICATED",
];

/// A TrafficFault. Requests that cannot be told are left out, which can only narrow what is hit.
pub(super) fn fault(fault: &manifest::TrafficFault, findings: &mut Findings) -> Option<TrafficFault> {
    let (metadata, spec) = (&fault.metadata, &fault.spec);
    let namespace = namespace_of(metadata);
    let targets = targets(&spec.target_refs, &namespace, findings);
    let callers = spec.callers.as_ref().map(|callers| {
        not_empty("spec.callers", callers, "caller", findings);
        let account =
            |(index, caller)| Identity::from(caller).account(&format!("spec.callers[{index}]"), &namespace, findings);
        callers.iter().enumerate().filter_map(account).collect::<BTreeSet<_>>()
    });
    let requests = spec.requests.as_ref().map(|requests| {
        not_empty("spec.requests", requests, "request", findings);
        let one = |(index, one)| self::requests(&format!("spec.requests[{index}]"), one, findings);
        requests.iter().enumerate().filter_map(one).collect::<Vec<_>>()
    });
    let percentage = spec.percentage.map_or(Some(Percentage::ALL), |share| percentage(share, findings));
    let harm = Harm {
        delay: spec.delay.as_ref().and_then(|d| time("spec.delay.fixed", d.fixed, LONGEST_DELAY, findings)),
        abort: spec.abort.as_ref().and_then(|abort| self::abort(abort, findings)),
        response_kib: spec.bandwidth.as_ref().and_then(|bandwidth| rate(&bandwidth.response, findings)),
    };
    if (&spec.delay, &spec.abort, &spec.bandwidth) == (&None, &None, &None) {
        findings.error("spec", "nothing goes wrong", "set delay, abort or bandwidth");
    }
    let expires_after = spec.expires_after.and_then(|after| time("spec.expiresAfter", after, Duration::MAX, findings));
    Some(TrafficFault {
        namespace,
        name: name_of(metadata),
        created: metadata.creation_timestamp.as_ref().map_or(0, |time| time.0.as_second()),
        targets,
        callers,
        requests,
        percentage: percentage?,
        harm,
        expires_after,
    })
}

/// An empty list could be read as all or as none.
fn not_empty<T>(field: &str, list: &[T], what: &str, findings: &mut Findings) {
    if list.is_empty() {
        findings.error(
            field,
            format!("the list is empty, so no {what} is hit"),
            format!("name a {what}, or remove the field to hit every {what}"),
        );
    }
}

fn requests(field: &str, one: &manifest::Requests, findings: &mut Findings) -> Option<Requests> {
    let inline = smi_manifest::HttpMatch {
        name: String::new(),
        path_regex: one.path_regex.clone(),
        methods: one.methods.clone(),
        headers: one.headers.clone(),
    };
    let has_inline = inline.path_regex.is_some() || inline.methods.is_some() || inline.headers.is_some();
    match (&one.route_group, has_inline) {
        (Some(group), false) => {
            let names = one.matches.as_ref();
            let names = names.map(|names| names.iter().map(|name| Arc::from(name.as_str())).collect());
            Some(Requests::Group(group.as_str().into(), names))
        }
        (None, true) if one.matches.is_none() => http_match(field, &inline, findings).map(Requests::Inline),
        (None, true) => {
            let reason = "`matches` are those of an HTTPRouteGroup, and none is named";
            findings.error(format!("{field}.matches"), reason, "set routeGroup, or remove matches");
            None
        }
        (Some(_), true) => {
            let reason = "it names an HTTPRouteGroup and requests of its own";
            findings.error(field, reason, "make two entries of it");
            None
        }
        (None, false) => {
            let reason = "it names no request";
            findings.error(field, reason, "set routeGroup, or one of pathRegex, methods and headers");
            None
        }
    }
}

fn percentage(share: f64, findings: &mut Findings) -> Option<Percentage> {
    if !(0.0..=100.0).contains(&share) {
        findings.error("spec.percentage", format!("{share} is not a percentage"), "use a number from 0 to 100");
        return None;
    }
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "0 to 1,000,000")]
    Some(Percentage((share * 10_000.0).round() as u32))
}

fn abort(abort: &manifest::Abort, findings: &mut Findings) -> Option<Abort> {
    match (abort.http_status, &abort.grpc_status) {
        (Some(status), None) => match u16::try_from(status).ok().filter(|status| (200..600).contains(status)) {
            Some(status) => Some(Abort::Http(status)),
            None => {
                let reason = format!("{status} is not the status of an answer");
                findings.error("spec.abort.httpStatus", reason, "use a number from 200 to 599");
                None
            }
        },
        (None, Some(status)) => {
            let number = match status {
                IntOrString::Int(number) => usize::try_from(*number).ok(),
                IntOrString::String(name) => GRPC_CODES.iter().position(|code| code == name),
            };
            let known = number.filter(|number| (1..GRPC_CODES.len()).contains(number));
            let known = known.and_then(|number| u8::try_from(number).ok());
            if known.is_none() {
                let shown = match status {
                    IntOrString::Int(number) => number.to_string(),
                    IntOrString::String(name) => name.clone(),
                };
                let reason = format!("`{shown}` is not a gRPC status of an error");
                findings.error("spec.abort.grpcStatus", reason, "use a name, as UNAVAILABLE, or a number from 1 to 16");
            }
            known.map(Abort::Grpc)
        }
        _ => {
            findings.error("spec.abort", "an answer has one status", "set httpStatus or grpcStatus, and not both");
            None
        }
    }
}

/// A rate in KiB a second, rounded up, from bytes with a unit.
fn rate(text: &str, findings: &mut Findings) -> Option<NonZeroU64> {
    const UNITS: [(&str, u64); 11] = [
        ("KiB", 1 << 10),
        ("Ki", 1 << 10),
        ("MiB", 1 << 20),
        ("Mi", 1 << 20),
        ("GiB", 1 << 30),
        ("Gi", 1 << 30),
        ("kB", 1_000),
        ("k", 1_000),
        ("MB", 1_000_000),
        ("M", 1_000_000),
        ("B", 1),
    ];
    let (number, unit) = text.split_at(text.find(|c: char| !c.is_ascii_digit()).unwrap_or(text.len()));
    let worth = UNITS.iter().find(|(name, _)| *name == unit.trim_start()).map(|(_, worth)| *worth);
    let bytes = number.parse().ok().zip(worth).and_then(|(number, worth): (u64, u64)| number.checked_mul(worth));
    let rate = bytes.and_then(|bytes| NonZeroU64::new(bytes.div_ceil(1 << 10)));
    if rate.is_none() {
        let reason = format!("`{text}` is not a number of bytes a second");
        findings.error("spec.bandwidth.response", reason, "write a whole number with its unit, as in 64KiB or 1MiB");
    }
    rate
}
