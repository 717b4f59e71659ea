//! How a pod ends without a loss. Whoever injects sidecars elsewhere does the same by other means (docs/pod-life.md).
//!
//! ```text
//!  order ─┬─▶ callers have left ─▶ sidecar drained ─┬─▶ SIGTERM to the application ─▶ its end ─▶ the sidecar's end
//!         └─▶ preStop hooks of its containers ──────┘
//!  after 3/4 of the grace period: SIGTERM, whatever is left; after all of it: SIGKILL
//! ```
//!
//! The endpoint has been taken out before the order comes. Until the last caller knows that, new connections and
//! requests are served as before; then the sidecar asks those who keep connections to go elsewhere, and waits until
//! nothing is in flight.

use std::sync::Arc;

use futures::future::join_all;
use http::Method;
use tokio::time::Instant;

use super::{Killing, Log, Pod, Sandbox};
use crate::local::cluster::{ContainerToRun, PreStop};
use crate::local::playground::Machine;
use crate::local::{admin, sidecar};

/// Everything up to SIGTERM, within the grace period.
pub(super) async fn before_the_application(pod: &Pod, machine: &Machine, sandbox: &Arc<Sandbox>) {
    let Some((order, end)) = pod.stop.order.get().copied() else { return };
    if !order.drain {
        return;
    }
    // A part of the grace period is left for the application to end by itself.
    let deadline = end - order.grace / 4;
    let hooks = pod.spec.containers.iter().map(|container| hook(pod, machine, sandbox, container, deadline));
    tokio::join!(join_all(hooks), drain(pod, machine, sandbox, deadline));
}

async fn drain(pod: &Pod, machine: &Machine, sandbox: &Arc<Sandbox>, deadline: Instant) {
    // The cluster has removed the endpoint already. Callers that have not noticed yet are still served.
    if tokio::time::timeout_at(deadline, (machine.callers_left)(&pod.spec.key)).await.is_err() {
        tracing::warn!(pod = %pod.spec.key, "callers did not leave within the grace period");
    }
    if !pod.progress.borrow().sidecar_ready {
        return;
    }
    match tokio::time::timeout_at(deadline, sidecar::drain(sandbox)).await {
        Ok(Ok(())) => {}
        Ok(Err(error)) => tracing::warn!(pod = %pod.spec.key, %error, "cannot drain the sidecar"),
        Err(_) => tracing::warn!(pod = %pod.spec.key, "requests were still active at the end of the grace period"),
    }
}

/// Runs a container's hook. What becomes of it stops nothing, as in Kubernetes.
async fn hook(pod: &Pod, machine: &Machine, sandbox: &Arc<Sandbox>, container: &ContainerToRun, deadline: Instant) {
    let Some(hook) = &container.pre_stop else { return };
    if !pod.progress.borrow().running.contains(&container.name) {
        return;
    }
    let done = async {
        match hook {
            PreStop::Sleep(time) => {
                tokio::time::sleep(*time).await;
                Ok(())
            }
            PreStop::Http { port, path } => {
                let to = (std::net::Ipv4Addr::LOCALHOST, *port).into();
                let socket = sandbox.dial(to).await.map_err(|error| error.to_string())?;
                match admin::request(socket, Method::GET, path).await {
                    Ok((status, _)) if status.is_success() || status.is_redirection() => Ok(()),
                    Ok((status, _)) => Err(format!("{path} answered {status}")),
                    Err(error) => Err(error.to_string()),
                }
            }
            PreStop::Exec(argv) => {
                let log = Log::new(format!("{} {} preStop", pod.spec.key, container.name));
                let stdio = || -> std::io::Result<_> {
                    Ok([std::fs::File::open("/dev/null")?.into(), log.writer()?, log.writer()?])
                };
                let process = pod.process(Some(container), argv.clone(), &machine.setup);
                let stdio = stdio().map_err(|error| error.to_string())?;
                let running = sandbox.run(process, stdio).await.map_err(|error| error.to_string())?;
                match Killing::new(Arc::clone(sandbox), running).exited().await {
                    0 => Ok(()),
                    code => Err(format!("it ended with code {code}")),
                }
            }
        }
    };
    let (pod, container) = (&pod.spec.key, &container.name);
    match tokio::time::timeout_at(deadline, done).await {
        Ok(Ok(())) => tracing::debug!(%pod, container, "the preStop hook is done"),
        Ok(Err(reason)) => tracing::warn!(%pod, container, reason, "the preStop hook failed"),
        Err(_) => tracing::warn!(%pod, container, "the preStop hook was still running and is cut off"),
    }
}
