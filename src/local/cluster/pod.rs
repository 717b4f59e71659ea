//! A pod that exists: its life, and how the API server would show it.

use k8s_openapi::api::core::v1::{
    ContainerState, ContainerStateRunning, ContainerStateTerminated, ContainerStateWaiting, ContainerStatus, HostIP,
    Pod, PodCondition, PodIP, PodStatus,
};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::Time;
use k8s_openapi::jiff::{SignedDuration, Timestamp};

use super::{NODE_ADDRESS, PodSpecToRun, SIDECAR};
use crate::mesh::{PodKey, WorkloadKey};

/// After this long without an end, a pod counts as healthy and its back-off starts anew.
const HEALTHY: SignedDuration = SignedDuration::from_secs(60);
const LONGEST_BACK_OFF: SignedDuration = SignedDuration::from_secs(30);

/// Where a pod's containers are.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Phase {
    /// Not yet running.
    Pending,
    /// Running since then.
    Running(Timestamp),
    /// Ended, to be started again then.
    Waiting { code: i32, until: Timestamp },
    /// Started again, not yet running.
    Restarting { code: i32 },
    /// Ended for good.
    Ended { code: i32 },
}

/// Who made a pod, and from which version of its text.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) enum Origin {
    /// A Deployment, with the hash of its template.
    Deployment(WorkloadKey, String),
    /// A StatefulSet, with the hash of its template.
    StatefulSet(WorkloadKey, String),
    /// The user, with the hash of what makes the pod run.
    Declared(String),
}

/// A pod that exists, from its creation until nothing of it is left.
#[derive(Clone, Debug)]
pub(super) struct LivePod {
    /// Its number in the order of creation.
    pub(super) number: u64,
    pub(super) origin: Origin,
    /// Metadata and spec.
    pub(super) object: Pod,
    pub(super) run: PodSpecToRun,
    pub(super) phase: Phase,
    /// `checked` and `served`.
    pub(super) ready: bool,
    /// By its probes, if it has any.
    pub(super) checked: bool,
    /// Its sidecar serves, if it has one.
    pub(super) served: bool,
    pub(super) ready_changed: Timestamp,
    pub(super) deleted: Option<Timestamp>,
    pub(super) restarts: i32,
    /// Ends in quick succession.
    pub(super) failures: u32,
}

impl LivePod {
    pub(super) fn key(&self) -> &PodKey {
        &self.run.key
    }

    /// `spec.terminationGracePeriodSeconds`.
    pub(super) fn grace_seconds(&self) -> i64 {
        self.object.spec.as_ref().and_then(|spec| spec.termination_grace_period_seconds).unwrap_or(30).max(0)
    }

    /// It will not run again.
    pub(super) fn finished(&self) -> bool {
        matches!(self.phase, Phase::Ended { .. })
    }

    pub(super) fn set_ready(&mut self, checked: bool, now: Timestamp) {
        self.checked = checked;
        self.update_ready(now);
    }

    pub(super) fn set_served(&mut self, served: bool, now: Timestamp) {
        self.served = served;
        self.update_ready(now);
    }

    fn update_ready(&mut self, now: Timestamp) {
        let ready = self.checked && self.served;
        if self.ready != ready {
            self.ready = ready;
            self.ready_changed = now;
        }
    }

    /// Its containers run. Without a probe that could object, it is ready.
    pub(super) fn started(&mut self, now: Timestamp) {
        self.phase = Phase::Running(now);
        if self.run.probes.iter().all(|probes| probes.startup.is_none() && probes.readiness.is_none()) {
            self.set_ready(true, now);
        }
    }

    /// A container has ended: it is started again as `restartPolicy` says, at once the first time, then after 1 s,
    /// 2 s, 4 s, … (Kubernetes waits ten times as long, which helps nobody who is trying something out).
    pub(super) fn exited(&mut self, code: i32, now: Timestamp) {
        let since = match self.phase {
            Phase::Pending | Phase::Restarting { .. } => None,
            Phase::Running(since) => Some(since),
            // A further container of a pod that is being dealt with already.
            Phase::Waiting { .. } | Phase::Ended { .. } => return,
        };
        self.set_ready(false, now);
        let policy = self.object.spec.as_ref().and_then(|spec| spec.restart_policy.as_deref());
        if self.deleted.is_some() || policy == Some("Never") || (policy == Some("OnFailure") && code == 0) {
            self.phase = Phase::Ended { code };
            return;
        }
        if since.is_some_and(|since| now.duration_since(since) >= HEALTHY) {
            self.failures = 0;
        }
        let wait = match self.failures {
            0 => SignedDuration::ZERO,
            n => SignedDuration::from_secs(1 << (n - 1).min(5)).min(LONGEST_BACK_OFF),
        };
        self.failures += 1;
        self.phase = Phase::Waiting { code, until: now + wait };
    }

    /// When it is to be started again.
    pub(super) fn restart_at(&self) -> Option<Timestamp> {
        match self.phase {
            Phase::Waiting { until, .. } if self.deleted.is_none() => Some(until),
            _ => None,
        }
    }

    /// Marks it as started again if it is time.
    pub(super) fn restart_if_due(&mut self, now: Timestamp) -> bool {
        let Phase::Waiting { code, .. } = self.phase else { return false };
        if self.restart_at().is_none_or(|at| at > now) {
            return false;
        }
        self.phase = Phase::Restarting { code };
        self.restarts += 1;
        true
    }

    /// The pod with its status and, on its way out, its deletion timestamp.
    pub(super) fn written(&self) -> Pod {
        let mut pod = self.object.clone();
        if let Some(deleted) = self.deleted {
            let end = deleted + SignedDuration::from_secs(self.grace_seconds().min(1 << 20));
            pod.metadata.deletion_timestamp = Some(Time(end));
            pod.metadata.deletion_grace_period_seconds = Some(self.grace_seconds());
        }
        let condition = |type_: &str, status: bool, since: Timestamp| PodCondition {
            type_: type_.to_owned(),
            status: if status { "True" } else { "False" }.to_owned(),
            last_transition_time: Some(Time(since)),
            ..PodCondition::default()
        };
        let created = pod.metadata.creation_timestamp.as_ref().map_or(Timestamp::UNIX_EPOCH, |time| time.0);
        let phase = match self.phase {
            Phase::Pending => "Pending",
            Phase::Ended { code: 0 } => "Succeeded",
            Phase::Ended { .. } => "Failed",
            Phase::Running(_) | Phase::Waiting { .. } | Phase::Restarting { .. } => "Running",
        };
        let ip = self.run.ip.to_string();
        pod.status = Some(PodStatus {
            phase: Some(phase.to_owned()),
            conditions: Some(vec![
                condition("PodScheduled", true, created),
                condition("Initialized", self.phase != Phase::Pending, created),
                condition("ContainersReady", self.ready, self.ready_changed),
                condition("Ready", self.ready, self.ready_changed),
            ]),
            host_ip: Some(NODE_ADDRESS.to_string()),
            host_ips: Some(vec![HostIP { ip: NODE_ADDRESS.to_string() }]),
            pod_ip: Some(ip.clone()),
            pod_ips: Some(
                [Some(ip), self.run.ipv6.map(|ip| ip.to_string())]
                    .into_iter()
                    .flatten()
                    .map(|ip| PodIP { ip })
                    .collect(),
            ),
            start_time: Some(Time(created)),
            container_statuses: Some(self.container_statuses()),
            ..PodStatus::default()
        });
        pod
    }

    fn container_statuses(&self) -> Vec<ContainerStatus> {
        let waiting = |reason: &str| ContainerState {
            waiting: Some(ContainerStateWaiting { reason: Some(reason.to_owned()), message: None }),
            ..ContainerState::default()
        };
        let ended = |exit_code| ContainerState {
            terminated: Some(ContainerStateTerminated { exit_code, ..ContainerStateTerminated::default() }),
            ..ContainerState::default()
        };
        let (state, last_state) = match self.phase {
            Phase::Pending => (waiting("ContainerCreating"), None),
            Phase::Running(since) => {
                let running = ContainerStateRunning { started_at: Some(Time(since)) };
                (ContainerState { running: Some(running), ..ContainerState::default() }, None)
            }
            Phase::Waiting { code, .. } => (waiting("CrashLoopBackOff"), Some(ended(code))),
            Phase::Restarting { code } => (waiting("ContainerCreating"), Some(ended(code))),
            Phase::Ended { code } => (ended(code), None),
        };
        let spec = self.object.spec.iter().flat_map(|spec| &spec.containers);
        spec.filter(|container| container.name != SIDECAR)
            .map(|container| ContainerStatus {
                name: container.name.clone(),
                image: container.image.clone().unwrap_or_default(),
                ready: self.ready,
                restart_count: self.restarts,
                started: Some(matches!(self.phase, Phase::Running(_))),
                state: Some(state.clone()),
                last_state: last_state.clone(),
                ..ContainerStatus::default()
            })
            .collect()
    }
}
