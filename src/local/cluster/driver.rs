//! The task that owns the [`Cluster`]: feeds it, and carries out what it says.
//!
//! ```text
//!  objects ─┐                        ┌─▶ StateDir, nft, DNS zone, diagnostics
//!  events ──┼─▶ batch ─▶ Cluster ────┤
//!  probers ─┘      ▲                 └─▶ PodAction ─▶ machine
//!                  └── clock, when the cluster wants it
//! ```

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use k8s_openapi::jiff::Timestamp;
use tokio::sync::mpsc;
use tokio::task::{AbortHandle, JoinSet};
use tokio_util::sync::CancellationToken;

use super::dns::Zone;
use super::probe::{self, ProbeEvent, Reach};
use super::state::{StateDir, StateError};
use super::{Cluster, Input, Output, PodAction, PodEvent, PodSpecToRun, service_proxy};
use crate::mesh::{Diagnostic, PodKey};

/// Inputs that wait together are taken together, but never more than this, so that actions are not held back for long.
const MOST_AT_ONCE: usize = 4096;

/// What the driver hands on.
#[derive(Clone, PartialEq, Debug)]
pub enum Effect {
    /// For the machine side.
    Pod(PodAction),
    /// Kill one container of a pod, since its probe says so; [`PodEvent::Exited`] must follow.
    KillContainer {
        /// Which pod.
        pod: PodKey,
        /// Which container.
        container: String,
    },
    /// To be shown to the user.
    Diagnostic(Diagnostic),
    /// All that [`Input::Synced`] came after has been said.
    Synced,
}

/// Whether the driver carries out the service proxy's rules itself.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum ServiceProxy {
    /// With `nft`, in the network namespace of this process.
    Nft,
    /// Not at all, for tests of other parts.
    Off,
}

/// Everything around the cluster.
pub struct Driver {
    /// The cluster.
    pub cluster: Cluster,
    /// Where documents go.
    pub state: StateDir,
    /// Where the DNS server looks.
    pub zone: Arc<ArcSwap<Zone>>,
    /// How Services are translated.
    pub service_proxy: ServiceProxy,
    /// The ways into pods, for probes.
    pub reach: Reach,
    /// The receiver of actions. It must not wait for this task.
    pub effects: mpsc::UnboundedSender<Effect>,
}

impl Driver {
    /// Runs until `shutdown`, or until the senders of `inputs` have gone. Pods are not stopped: what ends the
    /// playground ends them with it.
    ///
    /// # Errors
    /// If the state directory cannot be written: then the mesh would no longer see what happens.
    pub async fn run(
        mut self,
        mut inputs: mpsc::UnboundedReceiver<Input>,
        shutdown: CancellationToken,
    ) -> Result<(), StateError> {
        let mut probers = Probers::new(self.reach.clone());
        let mut batch = Vec::new();
        loop {
            let wakes_at = self.cluster.wakes_at();
            tokio::select! {
                biased;
                () = shutdown.cancelled() => return Ok(()),
                count = inputs.recv_many(&mut batch, MOST_AT_ONCE) => if count == 0 {
                    return Ok(());
                },
                (pod, event) = probers.next() => match event {
                    ProbeEvent::Ready(ready) => batch.push(Input::Pod(PodEvent::Ready { pod, ready })),
                    ProbeEvent::Unhealthy { container } => {
                        self.effect(Effect::KillContainer { pod, container });
                        continue;
                    }
                },
                () = sleep_until(wakes_at) => {}
            }
            for input in &batch {
                if let Input::Pod(event) = input {
                    probers.pod_event(event);
                }
            }
            let synced = batch.contains(&Input::Synced);
            let tick = Input::Tick(Timestamp::now());
            let outputs = self.cluster.apply_all(std::iter::once(tick).chain(batch.drain(..)));
            for output in outputs {
                self.carry_out(output, &mut probers).await?;
            }
            if synced {
                self.effect(Effect::Synced);
            }
        }
    }

    async fn carry_out(&self, output: Output, probers: &mut Probers) -> Result<(), StateError> {
        match output {
            Output::Write { path, yaml } => self.state.write(&path, &yaml)?,
            Output::Remove(path) => self.state.remove(&path)?,
            Output::Zone(zone) => self.zone.store(zone),
            Output::Ruleset(rules) if self.service_proxy == ServiceProxy::Nft => {
                // The rules before stay, and the next change tries again.
                if let Err(error) = service_proxy::load(&rules).await {
                    tracing::error!(%error, "ClusterIPs do not lead to the present endpoints");
                }
            }
            Output::Ruleset(_) => {}
            Output::Diagnostic(diagnostic) => self.effect(Effect::Diagnostic(diagnostic)),
            Output::Pod(action) => {
                if let PodAction::Start(pod) = &action {
                    probers.know(pod);
                }
                self.effect(Effect::Pod(action));
            }
        }
        Ok(())
    }

    fn effect(&self, effect: Effect) {
        if self.effects.send(effect).is_err() {
            tracing::debug!("nobody takes the cluster's actions any more");
        }
    }
}

async fn sleep_until(time: Option<Timestamp>) {
    match time {
        Some(time) => {
            let left = time.duration_since(Timestamp::now());
            tokio::time::sleep(Duration::try_from(left).unwrap_or(Duration::ZERO)).await;
        }
        None => std::future::pending().await,
    }
}

/// The probers of the pods that run.
struct Probers {
    reach: Reach,
    /// Pods with probes, as they were last started.
    known: BTreeMap<PodKey, PodSpecToRun>,
    running: BTreeMap<PodKey, AbortHandle>,
    tasks: JoinSet<()>,
    events: mpsc::UnboundedReceiver<(PodKey, ProbeEvent)>,
    sender: mpsc::UnboundedSender<(PodKey, ProbeEvent)>,
}

impl Probers {
    fn new(reach: Reach) -> Self {
        let (sender, events) = mpsc::unbounded_channel();
        Self { reach, known: BTreeMap::new(), running: BTreeMap::new(), tasks: JoinSet::new(), events, sender }
    }

    fn know(&mut self, pod: &PodSpecToRun) {
        if !pod.probes.is_empty() {
            self.known.insert(pod.key.clone(), pod.clone());
        }
    }

    /// A pod is probed from `Running` to `Exited`, and anew after a restart.
    fn pod_event(&mut self, event: &PodEvent) {
        match event {
            PodEvent::Running { pod } => {
                self.end(pod);
                if let Some(spec) = self.known.get(pod) {
                    self.begin(spec.clone());
                }
            }
            PodEvent::Exited { pod, .. } => self.end(pod),
            PodEvent::Gone { pod } => {
                self.end(pod);
                self.known.remove(pod);
            }
            PodEvent::Ready { .. } | PodEvent::Sidecar { .. } => {}
        }
    }

    fn begin(&mut self, spec: PodSpecToRun) {
        let (sender, mut events) = mpsc::unbounded_channel();
        let (key, reach, all) = (spec.key.clone(), self.reach.clone(), self.sender.clone());
        let task = async move {
            let pod = spec.key.clone();
            let forward = async {
                while let Some(event) = events.recv().await {
                    if all.send((pod.clone(), event)).is_err() {
                        return;
                    }
                }
            };
            tokio::join!(probe::run(spec.key, spec.ip, spec.probes, reach, sender), forward);
        };
        let handle = self.tasks.spawn(task);
        self.running.insert(key, handle);
    }

    fn end(&mut self, pod: &PodKey) {
        if let Some(task) = self.running.remove(pod) {
            task.abort();
        }
    }

    /// The next event of a pod that is still probed.
    async fn next(&mut self) -> (PodKey, ProbeEvent) {
        loop {
            tokio::select! {
                Some((pod, event)) = self.events.recv() => if self.running.contains_key(&pod) {
                    return (pod, event);
                },
                Some(_) = self.tasks.join_next() => {}
                else => std::future::pending().await,
            }
        }
    }
}

#[cfg(test)]
mod tests;
