//! A pod's life on this machine.
//!
//! ```text
//!  Start ─▶ namespaces ─▶ sidecar ─ready▶ application ─▶ Running, Ready
//!  Stop  ─▶ callers left ─▶ sidecar drained ─▶ application ended ─▶ sidecar ended ─▶ namespaces gone ─▶ Gone
//! ```
//!
//! When a container of the application ends, the cluster decides when it starts again; a sidecar that ends, and a pod
//! whose first process ends, are started again with back-off.

mod container;
mod protocol;
mod runner;
mod sandbox;
mod stop;

use std::collections::BTreeSet;
use std::path::PathBuf;
use std::sync::{Arc, Mutex, OnceLock, PoisonError};
use std::time::Duration;

use rustix::process::Signal;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio::time::Instant;
use tokio_util::sync::CancellationToken;

pub use self::container::run as run_container;
pub(crate) use self::protocol::{Files, Process, Rights};
pub(crate) use self::runner::dial;
pub use self::runner::{run as run_pod, start as start_pod};
pub(crate) use self::sandbox::{Killing, Running, Sandbox, blocking};
use super::backoff::Backoff;
use super::cluster::{ContainerToRun, PodEvent, PodSpecToRun};
use super::control::PodStatus;
use super::intercept::{self, Exclusions};
use super::log::Log;
use super::playground::Machine;
use super::sidecar::{self, Sidecar};
use super::{PlaygroundError, Setup, init};

/// The exit code of what could not be started, as a shell has it.
const CANNOT_START: i32 = 126;

/// A pod on this machine.
pub(crate) struct Pod {
    pub(crate) spec: PodSpecToRun,
    sandbox: Mutex<Option<Arc<Sandbox>>>,
    progress: watch::Sender<Progress>,
    stop: Stop,
    killed: watch::Sender<Option<String>>,
    again: watch::Sender<()>,
}

/// How far the pod is.
#[derive(Debug, Default, Clone, PartialEq, Eq)]
struct Progress {
    sidecar_ready: bool,
    running: BTreeSet<String>,
    restarts: u32,
    message: Option<String>,
}

/// How the pod is stopped.
#[derive(Debug, Clone, Copy)]
pub(crate) struct StopOrder {
    /// From the order to SIGKILL.
    pub grace: Duration,
    /// Whether callers are waited for and connections are drained; not when the whole playground stops.
    pub drain: bool,
}

#[derive(Default)]
struct Stop {
    order: OnceLock<(StopOrder, Instant)>,
    ordered: CancellationToken,
    application: CancellationToken,
    sidecar: CancellationToken,
}

impl Pod {
    pub(crate) fn new(spec: PodSpecToRun) -> Arc<Self> {
        Arc::new(Self {
            spec,
            sandbox: Mutex::default(),
            progress: watch::Sender::default(),
            stop: Stop::default(),
            killed: watch::Sender::default(),
            again: watch::Sender::default(),
        })
    }

    /// Orders its end; a second order changes nothing.
    pub(crate) fn stop(&self, order: StopOrder) {
        let _ = self.stop.order.set((order, Instant::now() + order.grace));
        self.stop.ordered.cancel();
    }

    /// Starts those of the application's containers that do not run.
    pub(crate) fn start_again(&self) {
        self.again.send_replace(());
    }

    pub(crate) fn is_ready(&self) -> bool {
        self.progress.borrow().is_ready(&self.spec)
    }

    pub(crate) fn sandbox(&self) -> Option<Arc<Sandbox>> {
        self.sandbox.lock().unwrap_or_else(PoisonError::into_inner).clone()
    }

    /// Kills a container with SIGKILL; false if the pod has none of this name.
    pub(crate) fn kill(&self, container: &str) -> bool {
        let known = (self.spec.meshed && container == sidecar::CONTAINER)
            || self.spec.containers.iter().any(|c| c.name == container);
        if known {
            self.killed.send_replace(Some(container.to_owned()));
        }
        known
    }

    pub(crate) fn status(&self) -> PodStatus {
        let progress = self.progress.borrow();
        PodStatus {
            namespace: self.spec.key.namespace.to_string(),
            name: self.spec.key.name.to_string(),
            workload: self.spec.workload.name.to_string(),
            ip: self.spec.ip,
            meshed: self.spec.meshed,
            ready: progress.is_ready(&self.spec),
            restarts: progress.restarts,
            message: progress.message.clone(),
        }
    }

    fn set(&self, change: impl FnOnce(&mut Progress)) {
        self.progress.send_modify(change);
    }

    /// A process like those of the application's container `container`.
    pub(crate) fn process(&self, container: Option<&ContainerToRun>, argv: Vec<String>, setup: &Setup) -> Process {
        let mut env: Vec<(String, String)> = ["PATH", "HOME", "USER", "LANG", "TERM"]
            .iter()
            .filter_map(|name| Some(((*name).to_owned(), std::env::var(name).ok()?)))
            .collect();
        // As in Weft's own image, `weft` is found without a path.
        if let Some((_, path)) = env.iter_mut().find(|(name, _)| name == "PATH") {
            path.push_str(":/run/weft/bin");
        }
        env.push(("HOSTNAME".to_owned(), self.spec.hostname.clone()));
        // Where a command of this machine finds files that the mesh's YAML lies beside.
        env.push(("WEFT_DIR".to_owned(), setup.dir.display().to_string()));
        env.extend(container.into_iter().flat_map(|c| c.env.clone()));
        Process {
            argv,
            env,
            workdir: container.and_then(|c| c.workdir.clone()).unwrap_or_else(|| PathBuf::from("/")),
            rights: Rights::Application,
            files: self.files(setup),
        }
    }

    /// Where the pod's files are on the playground's tmpfs.
    pub(crate) fn directory(&self) -> PathBuf {
        PathBuf::from("/run/weft/pods").join(&self.spec.uid)
    }

    /// What every container of the pod sees: its own names, the executables, and nothing else of `/run`.
    pub(crate) fn files(&self, setup: &Setup) -> Files {
        let mut files = Files { over: Vec::new(), run: vec![("/run/weft/bin".into(), "/run/weft/bin".into())] };
        for name in ["resolv.conf", "hosts", "hostname"] {
            let source = self.directory().join(name);
            // Often a symbolic link into /run; a machine without the file has nothing to show it over.
            match PathBuf::from("/etc").join(name).canonicalize() {
                Ok(target) if target.starts_with("/run") => files.run.push((source, target)),
                Ok(target) => files.over.push((source, target)),
                Err(_) => {}
            }
        }
        let kept = init::kept_of_run(setup).into_iter().filter_map(|path| path.canonicalize().ok());
        for path in kept.filter(|path| path.starts_with("/run")) {
            if !files.run.iter().any(|(_, to)| *to == path) {
                files.run.push((path.clone(), path));
            }
        }
        files
    }

    fn write_files(&self) -> std::io::Result<()> {
        let directory = self.directory();
        std::fs::create_dir_all(&directory)?;
        let PodSpecToRun { ip, ipv6, hostname, dns, .. } = &self.spec;
        let ipv6 = ipv6.map_or_else(String::new, |ip| format!("{ip}\t{hostname}\n"));
        let resolv_conf = format!("nameserver {}\nsearch {}\noptions ndots:5\n", dns.nameserver, dns.search.join(" "));
        std::fs::write(directory.join("resolv.conf"), resolv_conf)?;
        let hosts =
            format!("127.0.0.1\tlocalhost\n::1\tlocalhost ip6-localhost ip6-loopback\n{ip}\t{hostname}\n{ipv6}");
        std::fs::write(directory.join("hosts"), hosts)?;
        std::fs::write(directory.join("hostname"), format!("{hostname}\n"))
    }
}

impl Progress {
    fn is_running(&self, spec: &PodSpecToRun) -> bool {
        spec.containers.iter().all(|container| self.running.contains(&container.name))
    }

    fn is_ready(&self, spec: &PodSpecToRun) -> bool {
        self.is_running(spec) && (self.sidecar_ready || !spec.meshed)
    }
}

/// Runs the pod until it is stopped, telling `events` how it goes.
pub(crate) async fn live(pod: Arc<Pod>, machine: Arc<Machine>, events: mpsc::Sender<PodEvent>) {
    let key = pod.spec.key.clone();
    let telling = tokio::spawn(tell(Arc::clone(&pod), events.clone()));
    let mut backoff = Backoff::new();
    while !pod.stop.ordered.is_cancelled() {
        backoff.starting();
        if let Err(error) = live_once(&pod, &machine, &events).await {
            tracing::error!(pod = %key, %error, "the pod cannot run");
            pod.set(|progress| progress.message = Some(error.to_string()));
        }
        *pod.sandbox.lock().unwrap_or_else(PoisonError::into_inner) = None;
        pod.set(|progress| {
            progress.sidecar_ready = false;
            progress.running.clear();
        });
        tokio::select! {
            () = pod.stop.ordered.cancelled() => {}
            () = tokio::time::sleep(backoff.failed()) => {}
        }
    }
    telling.abort();
    let directory = pod.directory();
    let _ = blocking(move || std::fs::remove_dir_all(directory)).await;
    // The receiver is gone only when the whole playground ends.
    let _ = events.send(PodEvent::Gone { pod: key }).await;
}

/// Tells when all containers run, each time anew, and whether the sidecar serves: while it does not, nobody can reach
/// the application, and callers must know.
async fn tell(pod: Arc<Pod>, events: mpsc::Sender<PodEvent>) {
    let mut progress = pod.progress.subscribe();
    let (mut was_running, mut was_served) = (false, true);
    loop {
        let (running, served) = {
            let progress = progress.borrow_and_update();
            (progress.is_running(&pod.spec), progress.sidecar_ready)
        };
        if running && !was_running {
            let _ = events.send(PodEvent::Running { pod: pod.spec.key.clone() }).await;
        }
        was_running = running;
        if pod.spec.meshed && served != was_served {
            let _ = events.send(PodEvent::Sidecar { pod: pod.spec.key.clone(), serves: served }).await;
            was_served = served;
        }
        if progress.changed().await.is_err() {
            return;
        }
    }
}

async fn live_once(
    pod: &Arc<Pod>,
    machine: &Arc<Machine>,
    events: &mpsc::Sender<PodEvent>,
) -> Result<(), PlaygroundError> {
    pod.write_files().map_err(PlaygroundError::io("write the pod's files"))?;
    let interception = match pod.spec.meshed {
        true => {
            let exclusions = Exclusions::from_annotations(&pod.spec.annotations)?;
            Some(intercept::ruleset(machine.setup.privilege.into(), &exclusions))
        }
        false => None,
    };
    let sidecar = match pod.spec.meshed {
        true => {
            tokio::select! {
                () = sidecar::root_is_there(machine) => {}
                () = pod.stop.ordered.cancelled() => return Ok(()),
            }
            Some(Arc::new(Sidecar::prepare(Arc::clone(pod), Arc::clone(machine))?))
        }
        false => None,
    };
    let sandbox =
        Arc::new(Sandbox::create((pod.spec.ip, pod.spec.ipv6), pod.spec.hostname.clone(), interception).await?);
    *pod.sandbox.lock().unwrap_or_else(PoisonError::into_inner) = Some(Arc::clone(&sandbox));

    let mut application = JoinSet::new();
    for container in pod.spec.containers.clone() {
        let task = ContainerTask::new(pod, &sandbox, &container.name, pod.stop.application.clone());
        let (pod, machine, events) = (Arc::clone(pod), Arc::clone(machine), events.clone());
        application.spawn(async move { run_application(task, pod, machine, container, events).await });
    }
    let mut beside = JoinSet::new();
    if let Some(sidecar) = &sidecar {
        let task = ContainerTask::new(pod, &sandbox, sidecar::CONTAINER, pod.stop.sidecar.clone());
        beside.spawn(run_sidecar(task, Arc::clone(pod), Arc::clone(sidecar), Arc::clone(&sandbox)));
        beside.spawn(Arc::clone(sidecar).keep_credentials_fresh());
    }
    tokio::select! {
        () = sandbox.ended().cancelled() => {
            tracing::warn!(pod = %pod.spec.key, "the pod's first process ended: the pod starts again");
        }
        () = pod.stop.ordered.cancelled() => stop(pod, machine, &sandbox, &mut application).await,
    }
    if pod.stop.ordered.is_cancelled() {
        pod.stop.sidecar.cancel();
        // The sidecar's own task ends it; the one that keeps credentials fresh has no end of its own.
        let _ = beside.join_next().await;
    }
    sandbox.remove().await;
    Ok(())
}

/// The stop sequence up to the end of the application. All of it fits into the grace period.
async fn stop(pod: &Pod, machine: &Machine, sandbox: &Arc<Sandbox>, application: &mut JoinSet<()>) {
    stop::before_the_application(pod, machine, sandbox).await;
    pod.stop.application.cancel();
    while application.join_next().await.is_some() {}
}

/// What it takes to keep one container running.
struct ContainerTask {
    sandbox: Arc<Sandbox>,
    log: Log,
    backoff: Backoff,
    stop: CancellationToken,
    killed: watch::Receiver<Option<String>>,
    name: String,
}

impl ContainerTask {
    fn new(pod: &Pod, sandbox: &Arc<Sandbox>, name: &str, stop: CancellationToken) -> Self {
        Self {
            sandbox: Arc::clone(sandbox),
            log: Log::new(format!("{} {name}", pod.spec.key)),
            backoff: Backoff::new(),
            stop,
            killed: pod.killed.subscribe(),
            name: name.to_owned(),
        }
    }

    async fn start(&mut self, process: Process) -> Result<Running, PlaygroundError> {
        self.backoff.starting();
        self.killed.mark_unchanged();
        let stdio = || -> std::io::Result<_> {
            let null = std::fs::File::open("/dev/null")?;
            Ok([null.into(), self.log.writer()?, self.log.writer()?])
        };
        self.sandbox.run(process, stdio().map_err(PlaygroundError::io("make the container's output"))?).await
    }

    /// Waits for the process to end by itself, or for the order to stop, which it carries out. The code, or `None` if
    /// it was stopped.
    async fn supervise(&mut self, running: &mut Running, pod: &Pod) -> Option<i32> {
        loop {
            tokio::select! {
                code = running.exited() => return Some(code),
                () = self.stop.cancelled() => {
                    end(&self.sandbox, running, pod.stop.order.get().map(|(_, deadline)| *deadline)).await;
                    return None;
                }
                Ok(()) = self.killed.changed() => {
                    if self.killed.borrow_and_update().as_deref() == Some(&self.name) {
                        self.sandbox.signal(running, Signal::KILL).await;
                    }
                }
            }
        }
    }

    /// Waits before the next start; false if the container is to stop.
    async fn wait(&mut self) -> bool {
        tokio::select! {
            () = self.stop.cancelled() => false,
            () = tokio::time::sleep(self.backoff.failed()) => true,
        }
    }
}

/// SIGTERM, and SIGKILL at the deadline.
async fn end(sandbox: &Sandbox, running: &mut Running, deadline: Option<Instant>) {
    sandbox.signal(running, Signal::TERM).await;
    // The sidecar ends last, perhaps when nothing of the grace period is left: it still gets a moment.
    let soon = Instant::now() + Duration::from_secs(1);
    let deadline = deadline.map_or(soon, |deadline| deadline.max(soon));
    if tokio::time::timeout_at(deadline, running.exited()).await.is_err() {
        sandbox.signal(running, Signal::KILL).await;
        running.exited().await;
    }
}

async fn run_application(
    mut task: ContainerTask,
    pod: Arc<Pod>,
    machine: Arc<Machine>,
    container: ContainerToRun,
    events: mpsc::Sender<PodEvent>,
) {
    if pod.spec.meshed {
        // An application that calls out before its sidecar serves would see connections refused.
        let mut progress = pod.progress.subscribe();
        tokio::select! {
            ready = async { progress.wait_for(|progress| progress.sidecar_ready).await.is_ok() } => if !ready { return },
            () = task.stop.cancelled() => return,
        }
    }
    let mut again = pod.again.subscribe();
    loop {
        again.mark_unchanged();
        let process = pod.process(Some(&container), container.argv.clone(), &machine.setup);
        match task.start(process).await {
            Ok(mut running) => {
                pod.set(|progress| {
                    progress.running.insert(container.name.clone());
                    progress.message = None;
                });
                let ended = task.supervise(&mut running, &pod).await;
                pod.set(|progress| {
                    progress.running.remove(&container.name);
                });
                let Some(code) = ended else { return };
                let message = format!("container {} ended with code {code}", container.name);
                tracing::warn!(pod = %pod.spec.key, container = %container.name, code, "the container ended");
                pod.set(|progress| progress.message = Some(message));
                let _ = events.send(PodEvent::Exited { pod: pod.spec.key.clone(), code }).await;
            }
            Err(error) => {
                tracing::error!(pod = %pod.spec.key, container = %container.name, %error, "cannot start the container");
                let _ = events.send(PodEvent::Exited { pod: pod.spec.key.clone(), code: CANNOT_START }).await;
            }
        }
        tokio::select! {
            // The cluster's back-off (`restartPolicy: Always`).
            changed = again.changed() => if changed.is_err() { return },
            () = task.stop.cancelled() => return,
        }
        pod.set(|progress| progress.restarts += 1);
    }
}

async fn run_sidecar(mut task: ContainerTask, pod: Arc<Pod>, sidecar: Arc<Sidecar>, sandbox: Arc<Sandbox>) {
    loop {
        match task.start(sidecar.process()).await {
            Ok(mut running) => {
                let log = task.log.clone();
                let became_ready = sidecar::ready(&sandbox, |waited| {
                    let message = sidecar::not_ready(waited, &log.tail());
                    tracing::warn!(pod = %pod.spec.key, "{message}");
                    pod.set(|progress| progress.message = Some(message));
                });
                let supervised = async {
                    tokio::select! {
                        ended = task.supervise(&mut running, &pod) => Some(ended),
                        () = became_ready => None,
                    }
                };
                let ended = match supervised.await {
                    Some(ended) => ended,
                    None => {
                        pod.set(|progress| {
                            progress.sidecar_ready = true;
                            progress.message = None;
                        });
                        task.supervise(&mut running, &pod).await
                    }
                };
                pod.set(|progress| progress.sidecar_ready = false);
                let Some(code) = ended else { return };
                let message = format!("the sidecar ended with code {code}; its last lines: {}", log.tail().join(" | "));
                tracing::error!(pod = %pod.spec.key, "{message}");
                pod.set(|progress| progress.message = Some(message));
            }
            Err(error) => tracing::error!(pod = %pod.spec.key, %error, "cannot start the sidecar"),
        }
        if !task.wait().await {
            return;
        }
        pod.set(|progress| progress.restarts += 1);
    }
}
