//! The life of a pod: what a kubelet does from its assignment to its end.
//!
//! ```text
//!  volumes ─▶ init containers, sidecars, one after the other ─▶ containers ─▶ Ready, as probes say
//!  deletion ─▶ all preStop hooks ─▶ SIGTERM to containers ─▶ their end ─▶ SIGTERM to sidecars, the last first ─▶ gone
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::net::Ipv4Addr;
use std::process::{Child, Stdio};
use std::sync::atomic::Ordering;
use std::sync::{Arc, OnceLock};
use std::time::{Duration, Instant};

use anyhow::Context;
use k8s_openapi::jiff::Timestamp;
use rustix::process::{Pid, Signal};
use serde_json::{Value, json};
use weft::local::node::{DNS_IP, NODE_IP};

use super::Api;
use super::container::{self, Programs, Surroundings};
use super::network::PodNetwork;
use super::pod::{Pod, lock};
use super::probe::{Prober, Verdict};
use super::volume::Volumes;

/// Between two looks at everything.
const TICK: Duration = Duration::from_millis(20);
/// Between two looks at what volumes hold.
const REFRESH: Duration = Duration::from_secs(1);

/// What a container is in its pod.
#[derive(Clone, Copy, PartialEq, Eq)]
enum Kind {
    /// It runs to its end before the next one starts.
    Init,
    /// It runs from before the containers to after them.
    Sidecar,
    Main,
}

/// A container, and how far it is.
struct Container {
    spec: Value,
    kind: Kind,
    process: Option<Child>,
    /// Of an init container: it has ended well.
    done: bool,
    started: bool,
    ready: bool,
    starts: u32,
    again: Instant,
    startup: Option<Prober>,
    readiness: Option<Prober>,
    liveness: Option<Prober>,
    hook: Option<Hook>,
    terminated: bool,
}

/// A preStop hook that runs.
enum Hook {
    Process(Child),
    Sleep(Instant),
}

impl Hook {
    fn done(&mut self) -> bool {
        match self {
            Self::Process(child) => !matches!(child.try_wait(), Ok(None)),
            Self::Sleep(until) => Instant::now() >= *until,
        }
    }
}

impl Container {
    fn new(spec: &Value, init: bool) -> Self {
        let kind = match (init, spec["restartPolicy"] == "Always") {
            (true, true) => Kind::Sidecar,
            (true, false) => Kind::Init,
            (false, _) => Kind::Main,
        };
        let now = Instant::now();
        Self {
            spec: spec.clone(),
            kind,
            process: None,
            done: false,
            started: false,
            ready: false,
            starts: 0,
            again: now,
            startup: None,
            readiness: None,
            liveness: None,
            hook: None,
            terminated: false,
        }
    }

    fn name(&self) -> &str {
        self.spec["name"].as_str().unwrap_or_default()
    }

    /// Notes that its process runs.
    fn starts(&mut self, process: Child, ip: Ipv4Addr) {
        self.process = Some(process);
        self.starts += 1;
        let prober = |probe| Prober::of(&self.spec, probe, ip);
        (self.startup, self.readiness, self.liveness) =
            (prober("startupProbe"), prober("readinessProbe"), prober("livenessProbe"));
        self.started = self.startup.is_none();
        self.ready = self.started && self.readiness.is_none();
    }

    /// Notes the end of its process: it is started again at once, then after a second, two, four …
    fn reap(&mut self) -> Option<bool> {
        let status = self.process.as_mut()?.try_wait().ok()??;
        self.process = None;
        (self.started, self.ready) = (false, false);
        self.done = self.kind == Kind::Init && status.success();
        let wait = if self.starts <= 1 { 0 } else { 1 << (self.starts - 2).min(4) };
        self.again = Instant::now() + Duration::from_secs(wait);
        Some(status.success())
    }

    /// Asks its probes; whether its liveness has it end.
    fn probe(&mut self) -> bool {
        if self.process.is_none() {
            return false;
        }
        if !self.started {
            match self.startup.as_mut().and_then(Prober::ask) {
                Some(Verdict::Healthy) => {
                    self.started = true;
                    self.ready = self.readiness.is_none();
                }
                Some(Verdict::Unhealthy) => return true,
                None => {}
            }
            return false;
        }
        if let Some(verdict) = self.readiness.as_mut().and_then(Prober::ask) {
            self.ready = verdict == Verdict::Healthy;
        }
        self.liveness.as_mut().and_then(Prober::ask) == Some(Verdict::Unhealthy)
    }

    fn status(&self) -> Value {
        let state = match (&self.process, self.done) {
            (Some(_), _) => json!({"running": {}}),
            (None, true) => json!({"terminated": {"exitCode": 0, "reason": "Completed"}}),
            (None, false) => {
                json!({"waiting": {"reason": if self.starts == 0 { "PodInitializing" } else { "CrashLoopBackOff" }}})
            }
        };
        json!({
            "name": self.name(), "image": self.spec["image"], "imageID": "", "state": state,
            "ready": self.ready || self.done, "started": self.started, "restartCount": self.starts.saturating_sub(1),
        })
    }
}

/// What runs a pod.
pub(super) struct Life {
    pod: Arc<Pod>,
    api: Api,
    volumes: Volumes,
    containers: Vec<Container>,
    initialized: bool,
    told: Value,
    since: (bool, String),
}

impl Life {
    /// Makes its network, and where its files are. It begins with [`Life::run`].
    pub(super) fn new(pod: Arc<Pod>, api: Api, programs: Programs) -> anyhow::Result<Self> {
        let fields = pod.fields();
        let volumes = pod.directory.join("volumes");
        std::fs::create_dir_all(&volumes)?;
        let (name, namespace, ip) = (pod.name(), pod.namespace(), pod.ip);
        let resolv_conf = format!(
            "nameserver {DNS_IP}\nsearch {namespace}.svc.cluster.local svc.cluster.local cluster.local\noptions ndots:5\n"
        );
        let environment = BTreeMap::from(
            [
                ("HOSTNAME", name.to_owned()),
                ("KUBERNETES_SERVICE_HOST", "10.96.0.1".to_owned()),
                ("KUBERNETES_SERVICE_PORT", "443".to_owned()),
                ("NO_COLOR", "1".to_owned()),
            ]
            .map(|(name, value)| (name.to_owned(), value)),
        );
        let surroundings = Surroundings {
            network: PodNetwork::create(ip)?,
            programs,
            etc: BTreeMap::from([
                ("resolv.conf", resolv_conf),
                ("hosts", format!("127.0.0.1\tlocalhost\n::1\tlocalhost\n{ip}\t{name}\n")),
                ("hostname", format!("{name}\n")),
            ]),
            volumes: volumes.clone(),
            fields: fields.clone(),
            environment,
            clock: OnceLock::new(),
        };
        let volumes = Volumes::of(&pod.object, volumes, &fields);
        let spec = &pod.object["spec"];
        let list = |name: &str, init| {
            let specs = spec[name].as_array().into_iter().flatten();
            specs.map(move |spec| Container::new(spec, init)).collect::<Vec<_>>()
        };
        let mut containers = list("initContainers", true);
        containers.extend(list("containers", false));
        let _ = pod.surroundings.set(surroundings);
        let since = (false, Timestamp::now().to_string());
        Ok(Self { pod, api, volumes, containers, initialized: false, told: Value::Null, since })
    }

    /// Runs it until its end.
    pub(super) fn run(mut self) {
        let mut refreshed: Option<Instant> = None;
        while lock(&self.pod.end).is_none() {
            let mut problem = None;
            if refreshed.is_none_or(|at| at.elapsed() >= REFRESH) {
                match self.volumes.refresh(&self.api) {
                    Ok(()) => refreshed = Some(Instant::now()),
                    Err(error) => problem = Some(error),
                }
            }
            self.reap();
            if refreshed.is_some()
                && let Err(error) = self.advance()
            {
                problem = Some(error);
            }
            self.probe();
            if let Some(error) = problem {
                self.note(&format!("{error:#}"));
                std::thread::sleep(REFRESH / 4);
            }
            self.tell();
            std::thread::sleep(TICK);
        }
        self.end();
        self.pod.ended.store(true, Ordering::Release);
    }

    /// Starts what is to run next.
    fn advance(&mut self) -> anyhow::Result<()> {
        let surroundings = self.pod.surroundings.get().context("the pod's surroundings")?;
        let held = self.pod.held.load(Ordering::Acquire);
        for container in &mut self.containers {
            if container.kind == Kind::Main {
                self.initialized = true;
            }
            if container.process.is_none() && !container.done && Instant::now() >= container.again && !held {
                let argv = container::command(&container.spec);
                let log = File::options().create(true).append(true).open(self.pod.log_of(container.name()))?;
                let stdio = [Stdio::null(), log.try_clone()?.into(), log.into()];
                let process = container::start(surroundings, &self.pod.object, &container.spec, &argv, stdio)?;
                note_process(&self.pod, container.name(), &process);
                container.starts(process, self.pod.ip);
            }
            match container.kind {
                Kind::Init if !container.done => break,
                Kind::Sidecar if !container.started => break,
                _ => {}
            }
        }
        Ok(())
    }

    fn reap(&mut self) {
        for container in &mut self.containers {
            if container.reap().is_some() {
                // Whoever sees the process gone may not take the pod for ready, told or not.
                self.pod.ready.store(false, Ordering::Release);
                lock(&self.pod.processes).remove(container.name());
            }
        }
    }

    fn probe(&mut self) {
        for container in &mut self.containers {
            if container.probe() {
                let _ = self.pod.signal(container.name(), Signal::TERM);
            }
        }
    }

    /// Writes the pod's status when it has changed.
    fn tell(&mut self) {
        let of = |init| {
            let fits = move |container: &&Container| (container.kind != Kind::Main) == init;
            self.containers.iter().filter(fits).map(Container::status).collect::<Vec<_>>()
        };
        let ready = self.initialized && self.containers.iter().all(|container| container.ready || container.done);
        if self.since.0 != ready {
            self.since = (ready, Timestamp::now().to_string());
        }
        let condition = |kind: &str, holds: bool| json!({"type": kind, "status": if holds { "True" } else { "False" }, "lastTransitionTime": self.since.1});
        let ip = self.pod.ip.to_string();
        let status = json!({
            "phase": if self.initialized { "Running" } else { "Pending" },
            "hostIP": NODE_IP.to_string(), "podIP": ip, "podIPs": [{"ip": ip}],
            "conditions": [
                condition("PodScheduled", true),
                condition("Initialized", self.initialized),
                condition("ContainersReady", ready),
                condition("Ready", ready),
            ],
            "initContainerStatuses": of(true), "containerStatuses": of(false),
        });
        if status == self.told {
            return;
        }
        let name = format!("{}/status", self.pod.name());
        match self.api.patch(("v1", "pods", self.pod.namespace(), &name), &json!({"status": status})) {
            Ok(()) => {
                self.pod.ready.store(ready, Ordering::Release);
                self.told = status;
            }
            Err(error) => self.note(&format!("the status cannot be written: {error:#}")),
        }
    }

    fn end(&mut self) {
        self.begin_hooks();
        loop {
            self.reap();
            let now = Instant::now();
            if self.containers.iter().all(|container| container.process.is_none()) {
                break;
            }
            if lock(&self.pod.end).is_none_or(|by| now >= by) {
                for container in &mut self.containers {
                    if let Some(process) = &mut container.process {
                        let _ = process.kill();
                        let _ = process.wait();
                        container.process = None;
                    }
                }
                break;
            }
            self.terminate();
            self.probe_readiness();
            self.tell();
            std::thread::sleep(TICK);
        }
        if let Err(error) = self.api.delete("v1", "pods", self.pod.namespace(), self.pod.name()) {
            self.note(&format!("{error:#}"));
        }
    }

    fn begin_hooks(&mut self) {
        let Some(surroundings) = self.pod.surroundings.get() else { return };
        for container in &mut self.containers {
            let hook = &container.spec["lifecycle"]["preStop"];
            if container.process.is_none() || hook.is_null() {
                continue;
            }
            if let Some(seconds) = hook["sleep"]["seconds"].as_u64() {
                container.hook = Some(Hook::Sleep(Instant::now() + Duration::from_secs(seconds)));
            } else if let Some(argv) = hook["exec"]["command"].as_array() {
                let argv: Vec<_> = argv.iter().filter_map(|word| Some(word.as_str()?.to_owned())).collect();
                let stdio = [Stdio::null(), Stdio::null(), Stdio::null()];
                let process = container::start(surroundings, &self.pod.object, &container.spec, &argv, stdio);
                container.hook = process.ok().map(Hook::Process);
            }
        }
    }

    /// SIGTERM to those whose turn it is.
    fn terminate(&mut self) {
        let main_runs = self.containers.iter().any(|c| c.kind != Kind::Sidecar && c.process.is_some());
        for container in self.containers.iter_mut().rev() {
            if container.process.is_none() {
                continue;
            }
            let turn = container.kind != Kind::Sidecar || !main_runs;
            let hook_done = container.hook.as_mut().is_none_or(Hook::done);
            if turn && hook_done && !container.terminated {
                container.terminated = self.pod.signal(container.name(), Signal::TERM).is_ok();
            }
            if container.kind == Kind::Sidecar {
                return; // those before it wait for its end
            }
        }
    }

    /// Those that end are still asked whether they serve.
    fn probe_readiness(&mut self) {
        for container in &mut self.containers {
            if let (Some(_), Some(verdict)) = (&container.process, container.readiness.as_mut().and_then(Prober::ask)) {
                container.ready = verdict == Verdict::Healthy;
            }
        }
    }

    fn note(&self, text: &str) {
        let log = File::options().create(true).append(true).open(self.pod.log_of("node"));
        if let Ok(mut log) = log {
            let _ = std::io::Write::write_all(&mut log, format!("{text}\n").as_bytes());
        }
    }
}

fn note_process(pod: &Pod, container: &str, process: &Child) {
    if let Some(pid) = i32::try_from(process.id()).ok().and_then(Pid::from_raw) {
        lock(&pod.processes).insert(container.to_owned(), pid);
    }
}
