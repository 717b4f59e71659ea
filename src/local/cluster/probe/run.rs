//! The loops that ask.

use std::net::Ipv4Addr;
use std::time::Duration;

use futures::future::join_all;
use tokio::sync::{mpsc, watch};

use super::checks::{Reach, ask};
use super::{ContainerProbes, Probe};
use crate::mesh::PodKey;

/// How often a probe is asked until it first passes, if its period is longer.
const EAGER: Duration = Duration::from_secs(1);

/// What the probes of a pod come to.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum ProbeEvent {
    /// All its containers are ready, or no longer. Said at first, and on change.
    Ready(bool),
    /// This container's startup or liveness probe has failed too often: kill it.
    Unhealthy {
        /// The container.
        container: String,
    },
}

/// Counts answers in a row.
#[derive(Debug, Default)]
struct Threshold {
    passes: u32,
    failures: u32,
}

impl Threshold {
    /// `Some(true)` when the answer is that it passes, `Some(false)` when it fails, `None` while that is open.
    fn count(&mut self, probe: &Probe, asked_each: Duration, passed: bool) -> Option<bool> {
        if passed {
            *self = Self { passes: self.passes.saturating_add(1), failures: 0 };
            (self.passes >= probe.success_threshold).then_some(true)
        } else {
            *self = Self { passes: 0, failures: self.failures.saturating_add(1) };
            // Asked more often than declared, it may fail more often too.
            let times = u32::try_from(probe.period.as_millis() / asked_each.as_millis().max(1)).unwrap_or(1).max(1);
            (self.failures >= probe.failure_threshold.saturating_mul(times)).then_some(false)
        }
    }
}

/// Probes a pod whose containers were just started, until dropped (or until nobody listens to `events`).
pub async fn run(
    pod: PodKey,
    ip: Ipv4Addr,
    probes: Vec<ContainerProbes>,
    reach: Reach,
    events: mpsc::UnboundedSender<ProbeEvent>,
) {
    let (ready, mut readiness): (Vec<_>, Vec<_>) = probes.iter().map(|_| watch::channel(false)).unzip();
    let containers = probes.iter().zip(&ready).map(|(probes, ready)| {
        let target = Target { pod: &pod, container: &probes.container, ip, reach: &reach, events: &events };
        target.container(probes, ready)
    });
    let report = async {
        let mut said = None;
        loop {
            let now = readiness.iter_mut().all(|ready| *ready.borrow_and_update());
            if said != Some(now) && events.send(ProbeEvent::Ready(now)).is_err() {
                return;
            }
            said = Some(now);
            if readiness.is_empty() {
                return;
            }
            let changes = readiness.iter_mut().map(|ready| Box::pin(ready.changed()));
            if futures::future::select_all(changes).await.0.is_err() {
                return;
            }
        }
    };
    tokio::select! {
        // The report first, so that the pod is said to be not ready before a probe can say that it is.
        biased;
        () = report => {}
        _ = join_all(containers) => {}
        () = events.closed() => {}
    }
}

/// Whom the probes of one container ask.
struct Target<'a> {
    pod: &'a PodKey,
    container: &'a str,
    ip: Ipv4Addr,
    reach: &'a Reach,
    events: &'a mpsc::UnboundedSender<ProbeEvent>,
}

impl Target<'_> {
    async fn container(self, probes: &ContainerProbes, ready: &watch::Sender<bool>) {
        if let Some(startup) = &probes.startup {
            self.judge("startup", startup, EAGER, |passed| {
                if !passed {
                    self.unhealthy();
                }
                passed
            })
            .await;
        }
        let readiness = async {
            match &probes.readiness {
                None => {
                    ready.send_replace(true);
                }
                Some(probe) => {
                    self.judge("readiness", probe, EAGER, |passed| {
                        ready.send_if_modified(|ready| std::mem::replace(ready, passed) != passed);
                        false
                    })
                    .await;
                }
            }
            std::future::pending::<()>().await;
        };
        let liveness = async {
            if let Some(probe) = &probes.liveness {
                tokio::time::sleep(probe.initial_delay).await;
                self.judge("liveness", probe, probe.period, |passed| {
                    if !passed {
                        self.unhealthy();
                    }
                    false
                })
                .await;
            }
        };
        tokio::join!(readiness, liveness);
    }

    /// Asks periodically, each `eager` until it first passes, and hands over the verdicts until `verdict` says that it
    /// is enough.
    async fn judge(&self, name: &str, probe: &Probe, eager: Duration, verdict: impl Fn(bool) -> bool) {
        let mut threshold = Threshold::default();
        let mut passed_once = false;
        loop {
            let answer = ask(&probe.check, (self.pod, self.container), self.ip, probe.timeout, self.reach).await;
            if let Err(failure) = &answer {
                tracing::debug!(pod = %self.pod, container = self.container, probe = name, %failure, "probe failed");
            }
            passed_once |= answer.is_ok();
            let wait = if passed_once { probe.period } else { probe.period.min(eager) };
            if threshold.count(probe, wait, answer.is_ok()).is_some_and(&verdict) {
                return;
            }
            tokio::time::sleep(wait).await;
        }
    }

    fn unhealthy(&self) {
        // Nobody listening means that the pod is being stopped.
        let _ = self.events.send(ProbeEvent::Unhealthy { container: self.container.to_owned() });
    }
}
