//! The kubelet's probes: what a container declares, and the loop that asks.
//!
//! ```text
//!  startup, until it has passed ──▶ readiness ──▶ ProbeEvent::Ready, when the pod's answer changes
//!                              └──▶ liveness ───▶ ProbeEvent::Unhealthy: the container must be killed
//! ```
//!
//! HTTP and gRPC probes go to the pod's address from the node, as a kubelet's do, so that they take the way through
//! the sidecar that they take in a cluster. A TCP probe is dialled inside the pod: from outside, a sidecar would
//! accept it whether or not the application listens.

use std::time::Duration;

use k8s_openapi::api::core::v1::{self as core, Container};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::mesh::Diagnostic;

mod checks;
mod run;
#[cfg(test)]
mod tests;

pub use checks::{Exec, Reach};
pub use run::{ProbeEvent, run};

/// The probes of one container.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct ContainerProbes {
    /// The container's name.
    pub container: String,
    /// Holds back the others until it has passed.
    pub startup: Option<Probe>,
    /// Whether the pod gets traffic.
    pub readiness: Option<Probe>,
    /// Whether the container must be restarted.
    pub liveness: Option<Probe>,
}

/// One probe, with Kubernetes' defaults filled in and its port resolved.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Probe {
    /// What is asked.
    pub check: Check,
    /// `initialDelaySeconds`. Only liveness heeds it: the others ask at once, so that a demo starts quickly.
    pub initial_delay: Duration,
    /// `periodSeconds`. Until the first success it is at most a second.
    pub period: Duration,
    /// `timeoutSeconds`.
    pub timeout: Duration,
    /// `failureThreshold`.
    pub failure_threshold: u32,
    /// `successThreshold`.
    pub success_threshold: u32,
}

/// What a probe asks.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Check {
    /// GET over HTTP/1.1: a status from 200 to 399 passes.
    Http {
        /// The port on the pod.
        port: u16,
        /// The path with its query, `/…`.
        path: String,
        /// `httpHeaders`.
        headers: Vec<(String, String)>,
    },
    /// A connection passes.
    Tcp {
        /// The port on the pod.
        port: u16,
    },
    /// `grpc.health.v1.Health/Check`: SERVING passes.
    Grpc {
        /// The port on the pod.
        port: u16,
        /// The service that is asked about; empty: the server as a whole.
        service: String,
    },
    /// A command in the container: exit code 0 passes.
    Exec {
        /// The command.
        argv: Vec<String>,
    },
}

/// The probes that a container declares; what cannot be asked here is said. `field` is the container's path.
pub(super) fn of_container(
    container: &Container,
    field: &str,
    diagnostics: &mut Vec<Diagnostic>,
) -> Option<ContainerProbes> {
    let mut parse = |probe: &Option<core::Probe>, name: &str| {
        let parsed = parse(container, probe.as_ref()?);
        parsed
            .map_err(|(reason, help)| diagnostics.push(Diagnostic::warning(format!("{field}.{name}"), reason, help)))
            .ok()
    };
    let probes = ContainerProbes {
        container: container.name.clone(),
        startup: parse(&container.startup_probe, "startupProbe"),
        readiness: parse(&container.readiness_probe, "readinessProbe"),
        liveness: parse(&container.liveness_probe, "livenessProbe"),
    };
    let any = probes.startup.is_some() || probes.readiness.is_some() || probes.liveness.is_some();
    any.then_some(probes)
}

fn parse(container: &Container, probe: &core::Probe) -> Result<Probe, (String, &'static str)> {
    let seconds = |value: Option<i32>, default: u64| {
        Duration::from_secs(value.and_then(|v| v.try_into().ok()).unwrap_or(default))
    };
    let count = |value: Option<i32>, default: u32| value.and_then(|v| v.try_into().ok()).unwrap_or(default).max(1);
    Ok(Probe {
        check: check(container, probe)?,
        initial_delay: seconds(probe.initial_delay_seconds, 0),
        period: seconds(probe.period_seconds, 10).max(Duration::from_secs(1)),
        timeout: seconds(probe.timeout_seconds, 1).max(Duration::from_secs(1)),
        failure_threshold: count(probe.failure_threshold, 3),
        success_threshold: count(probe.success_threshold, 1),
    })
}

fn check(container: &Container, probe: &core::Probe) -> Result<Check, (String, &'static str)> {
    if let Some(http) = &probe.http_get {
        if http.scheme.as_deref() == Some("HTTPS") {
            return Err(("the playground does not probe over HTTPS".to_owned(), "use tcpSocket or exec"));
        }
        if http.host.as_ref().is_some_and(|host| !host.is_empty()) {
            return Err(("the playground probes only the pod itself".to_owned(), "leave `host` out"));
        }
        let path = http.path.as_deref().unwrap_or("/");
        let headers = http.http_headers.iter().flatten().map(|h| (h.name.clone(), h.value.clone())).collect();
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        return Ok(Check::Http { port: port(container, &http.port)?, path, headers });
    }
    if let Some(tcp) = &probe.tcp_socket {
        return Ok(Check::Tcp { port: port(container, &tcp.port)? });
    }
    if let Some(grpc) = &probe.grpc {
        let port = port(container, &IntOrString::Int(grpc.port))?;
        return Ok(Check::Grpc { port, service: grpc.service.clone().unwrap_or_default() });
    }
    match probe.exec.as_ref().and_then(|exec| exec.command.clone()) {
        Some(argv) if !argv.is_empty() => Ok(Check::Exec { argv }),
        _ => Err(("it asks nothing".to_owned(), "give one of httpGet, tcpSocket, grpc, exec")),
    }
}

pub(super) fn port(container: &Container, port: &IntOrString) -> Result<u16, (String, &'static str)> {
    let number = match port {
        IntOrString::Int(number) => Some(*number),
        IntOrString::String(name) => {
            let named = container.ports.iter().flatten().find(|port| port.name.as_ref() == Some(name));
            named.map(|port| port.container_port).or_else(|| name.parse().ok())
        }
    };
    let number = number.and_then(|number| u16::try_from(number).ok()).filter(|number| *number != 0);
    number.ok_or_else(|| {
        (format!("the container has no port `{}`", show(port)), "name one of its `ports`, or give a number up to 65535")
    })
}

fn show(port: &IntOrString) -> String {
    match port {
        IntOrString::Int(number) => number.to_string(),
        IntOrString::String(name) => name.clone(),
    }
}
