//! What TrafficFault and TrafficPolicy have in common: what they are attached to, and durations.

use std::time::Duration;

use crate::duration::HumanDuration;
use crate::mesh::object::Attachment;
use crate::mesh::{Namespace, ServiceKey};
use crate::source::manifest::fault::TargetRef;

use super::Findings;
use super::smi::is_service_name;

/// `spec.targetRefs`.
pub(super) fn targets(refs: &[TargetRef], namespace: &Namespace, findings: &mut Findings) -> Vec<Attachment> {
    if refs.is_empty() {
        findings.error("spec.targetRefs", "there is no target", "name a Service of the same namespace");
    }
    let target = |(index, target): (usize, &TargetRef)| {
        let field = |name: &str| format!("spec.targetRefs[{index}].{name}");
        if !matches!(target.group.as_str(), "" | "core") {
            let reason = format!("`{}` is not the group of a Service", target.group);
            findings.error(field("group"), reason, "leave it empty");
        } else if target.kind != "Service" {
            let reason = format!("a {} cannot be a target", target.kind);
            findings.error(field("kind"), reason, "name a Service");
        }
        if !is_service_name(&target.name) {
            let reason = format!("`{}` is not the name of a Service", target.name);
            findings.error(field("name"), reason, "use the name of a Service in the object's own namespace");
        }
        let port = target.port.map(|port| findings.port(&field("port"), port));
        Some(Attachment {
            service: ServiceKey::new(namespace.clone(), target.name.as_str()),
            port: port.map_or(Some(None), |port| port.map(Some))?,
        })
    };
    refs.iter().enumerate().filter_map(target).collect()
}

/// The longest time that anything here may be set to.
const LONGEST: Duration = Duration::from_secs(365 * 24 * 3600);

/// A time that passes: more than nothing, and at most `longest`.
pub(super) fn time(
    field: &str,
    HumanDuration(time): HumanDuration,
    longest: Duration,
    findings: &mut Findings,
) -> Option<Duration> {
    // Envoy reads durations of less than a millisecond as none.
    let allowed = Duration::from_millis(1)..=longest.min(LONGEST);
    if allowed.contains(&time) {
        return Some(time);
    }
    let help = format!("use a time from 1ms to {:?}", allowed.end());
    findings.error(field, format!("{} is not a time that can be set here", HumanDuration(time)), help);
    None
}
