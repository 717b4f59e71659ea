//! What is served to callers outside the mesh's mTLS, who have no identity.
//!
//! Requests are judged by routes, so that a port which becomes strict refuses the next request of connections that are
//! open. Raw connections are judged by the filter chain that they come by (inbound.rs): one that is open stays until it
//! ends, or until its chain is drained.

use std::collections::{BTreeMap, BTreeSet};

use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::google::protobuf::Any;

use super::inbound::{enforce, to_the_application, would_enforce};
use super::names::INBOUND_IN_CLEAR;
use super::rbac;
use crate::mesh::object::{AuthorizationMode, MtlsMode};
use crate::policy::InboundPlan;

/// The routes: all to the application, with what may be requested in clear.
pub(super) fn routes(plan: &InboundPlan) -> RouteConfiguration {
    // Probes are never too many: where nothing else comes in clear, there is no limit.
    let only_probes = plan.mtls == MtlsMode::Strict && plan.mtls_ports.is_empty();
    let rates = if only_probes { &BTreeMap::new() } else { &plan.rates };
    to_the_application(INBOUND_IN_CLEAR, rules(plan), rates)
}

/// The probes may always come. Under enforcement they are all that is left, since TrafficTargets allow identities.
fn rules(plan: &InboundPlan) -> Option<Any> {
    let probes = rbac::probe_policies(&plan.probes);
    let others: BTreeSet<u16> = plan.mtls_ports.keys().copied().collect();
    let open = match (plan.mtls, others.is_empty()) {
        _ if plan.authorization == AuthorizationMode::Enforce => return Some(enforce(&probes)),
        (MtlsMode::Strict, true) => return Some(enforce(&probes)),
        (MtlsMode::Strict, false) => Some(rbac::ports_policy("permissive", &others, false)),
        (MtlsMode::Permissive, false) => Some(rbac::ports_policy("permissive", &others, true)),
        (MtlsMode::Permissive, true) => None,
    };
    let audit = (plan.authorization == AuthorizationMode::Audit).then(|| would_enforce(&probes));
    let enforced = open.map(|open| enforce(&probes.into_iter().chain([open]).collect::<Vec<_>>()));
    match (enforced, audit) {
        // Messages that are written one after the other are one.
        (Some(enforced), Some(audit)) => Some(Any { value: [enforced.value, audit.value].concat(), ..audit }),
        (enforced, audit) => enforced.or(audit),
    }
}
