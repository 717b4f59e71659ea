//! The process that runs the playground: pods on the cluster's request, the control plane, the control socket.
//!
//! ```text
//!  cluster ──PodAction──▶ pods (one task each) ──PodEvent──▶ cluster
//!     └──── node rules ──▶ nft                  control socket ──▶ exec, dial, status, …
//! ```

use std::collections::BTreeMap;
use std::fs::File;
use std::io;
use std::net::{IpAddr, Ipv4Addr, TcpStream as StdTcpStream};
use std::os::fd::OwnedFd;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::Duration;

use futures::future::BoxFuture;
use tokio::net::TcpStream;
use tokio::sync::{mpsc, watch};
use tokio::task::JoinSet;
use tokio_util::sync::CancellationToken;

use super::cluster::driver::Effect;
use super::cluster::{Input, PodAction, PodEvent, PodSpecToRun};
use super::control::{ControlPlaneStatus, PodSelector, PodStatus, Status, select};
use super::control_plane::ControlPlane;
pub use super::control_plane::ControlPlaneCommand;
use super::outer::FromOuter;
use super::pod::{self, Killing, Pod, Sandbox, StopOrder, blocking};
use super::wire::Channel;
use super::{PlaygroundError, Setup, node, server};
use crate::mesh::id::PodKey;

/// How long pods have to end when the whole playground stops.
const STOP_GRACE: Duration = Duration::from_secs(5);
/// Between two looks at whether all is ready: the probes' word stands in a file.
const LOOK: Duration = Duration::from_millis(50);

/// Makes the token that a pod's sidecar presents to the control plane.
pub type TokenSigner = Box<dyn Fn(&PodSpecToRun) -> String + Send + Sync>;
/// Completes when no caller sends to the pod any more, its endpoint having been removed.
pub type CallersLeft = Box<dyn Fn(&PodKey) -> BoxFuture<'static, ()> + Send + Sync>;

/// What the playground is put together from.
pub struct Wiring {
    /// What the cluster wants.
    pub effects: mpsc::UnboundedReceiver<Effect>,
    /// What the cluster is told. Without a bound: the cluster may be busy asking, and neither may wait for the other.
    pub inputs: mpsc::UnboundedSender<Input>,
    /// Whether the cluster holds a pod for ready: that is, with its probes.
    pub is_ready: Box<dyn Fn(&PodKey) -> bool + Send + Sync>,
    /// See [`TokenSigner`].
    pub token: TokenSigner,
    /// How long such a token is good.
    pub token_lifetime: Duration,
    /// The mesh's root certificates, PEM, written by the control plane.
    pub root_bundle: PathBuf,
    /// See [`CallersLeft`].
    pub callers_left: CallersLeft,
    /// The control plane; without one, meshed pods never become ready.
    pub control_plane: Option<ControlPlaneCommand>,
}

/// The pods of this machine, and the ways into them.
pub struct Pods {
    setup: Setup,
    table: Mutex<BTreeMap<PodKey, Arc<Pod>>>,
}

impl Pods {
    pub(crate) fn table(&self) -> MutexGuard<'_, BTreeMap<PodKey, Arc<Pod>>> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }

    fn find(&self, key: &PodKey) -> io::Result<(Arc<Pod>, Arc<Sandbox>)> {
        let pod = self.table().get(key).cloned();
        let found = pod.and_then(|pod| pod.sandbox().map(|sandbox| (pod, sandbox)));
        found.ok_or_else(|| io::Error::new(io::ErrorKind::NotFound, format!("pod {key} is not running")))
    }

    /// Connects to 127.0.0.1:`port` in a pod.
    ///
    /// # Errors
    /// If the pod is not running or nobody listens.
    pub async fn dial(&self, key: &PodKey, port: u16) -> io::Result<TcpStream> {
        let (_, sandbox) = self.find(key)?;
        let socket = sandbox.dial((Ipv4Addr::LOCALHOST, port).into()).await.map_err(io::Error::other)?;
        let stream = StdTcpStream::from(socket);
        stream.set_nonblocking(true)?;
        TcpStream::from_std(stream)
    }

    /// Runs a command in a container and returns its exit code. When the future is dropped, the command ends.
    ///
    /// # Errors
    /// If the pod is not running.
    pub async fn exec(&self, key: &PodKey, container: &str, argv: Vec<String>) -> io::Result<i32> {
        let (pod, sandbox) = self.find(key)?;
        let container = pod.spec.containers.iter().find(|known| known.name == container);
        let process = pod.process(container, argv, &self.setup);
        let null = || File::options().read(true).write(true).open("/dev/null").map(OwnedFd::from);
        let running = sandbox.run(process, [null()?, null()?, null()?]).await.map_err(io::Error::other)?;
        Ok(Killing::new(sandbox, running).exited().await)
    }
}

/// What every pod needs.
pub(crate) struct Machine {
    pub(crate) setup: Setup,
    pub(crate) token: TokenSigner,
    pub(crate) token_lifetime: Duration,
    pub(crate) root_bundle: PathBuf,
    pub(crate) callers_left: CallersLeft,
}

/// The running playground, as the control socket sees it.
pub(crate) struct World {
    pub(crate) machine: Arc<Machine>,
    pub(crate) control_plane: ControlPlane,
    pub(crate) stop: CancellationToken,
    pods: Arc<Pods>,
    is_ready: Box<dyn Fn(&PodKey) -> bool + Send + Sync>,
    settled: watch::Sender<bool>,
}

impl World {
    fn pods(&self) -> MutexGuard<'_, BTreeMap<PodKey, Arc<Pod>>> {
        self.pods.table()
    }

    /// Finds a pod, or says why there is none.
    pub(crate) fn pod(&self, selector: &PodSelector) -> Result<Arc<Pod>, String> {
        let pods = self.pods();
        let known: Vec<_> =
            pods.iter().map(|(key, pod)| (key.clone(), pod.spec.workload.name.to_string(), pod.is_ready())).collect();
        let key = select(selector, &known)?;
        pods.get(&key).cloned().ok_or_else(|| format!("pod {key} is gone"))
    }

    /// Finds a pod that has its namespaces.
    pub(crate) fn sandbox(&self, selector: &PodSelector) -> Result<(Arc<Pod>, Arc<Sandbox>), String> {
        let pod = self.pod(selector)?;
        let sandbox = pod.sandbox().ok_or_else(|| match pod.status().message {
            Some(message) => format!("pod {} is not running: {message}", pod.spec.key),
            None => format!("pod {} is not running yet", pod.spec.key),
        })?;
        Ok((pod, sandbox))
    }

    pub(crate) fn status(&self) -> Status {
        let status = |pod: &Arc<Pod>| {
            let status = pod.status();
            PodStatus { ready: status.ready && (self.is_ready)(&pod.spec.key), ..status }
        };
        let pods: Vec<_> = self.pods().values().map(status).collect();
        let control_plane = self.control_plane.status();
        let serves = matches!(control_plane, ControlPlaneStatus::Ready | ControlPlaneStatus::None);
        Status { ready: *self.settled.borrow() && serves && pods.iter().all(|pod| pod.ready), control_plane, pods }
    }

    /// Waits until everything is ready at once.
    pub(crate) async fn ready(&self) {
        let mut settled = self.settled.subscribe();
        let _ = settled.wait_for(|settled| *settled).await;
        loop {
            self.control_plane.ready().await;
            if self.status().ready {
                return;
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

/// Runs the playground until it is told to stop. `wire` is called inside the runtime, in the node's network namespace.
pub fn run(
    setup: Setup,
    wire: impl AsyncFnOnce(&Setup, Arc<Pods>) -> Result<Wiring, PlaygroundError>,
) -> Result<ExitCode, PlaygroundError> {
    // Children get a standard input of their own; the socket to `weft up` is kept aside.
    let outer = rustix::io::fcntl_dupfd_cloexec(rustix::stdio::stdin(), 3)
        .map_err(|e| PlaygroundError::io("keep the socket to weft up")(e.into()))?;
    let runtime = tokio::runtime::Builder::new_multi_thread()
        .worker_threads(2)
        .enable_all()
        .build()
        .map_err(PlaygroundError::io("start the runtime"))?;
    runtime.block_on(serve(setup, outer, wire))?;
    // What still blocks somewhere must not hold up the end: pid 1 ends with this process, and all others with it.
    runtime.shutdown_background();
    Ok(ExitCode::SUCCESS)
}

async fn serve(
    setup: Setup,
    outer: OwnedFd,
    wire: impl AsyncFnOnce(&Setup, Arc<Pods>) -> Result<Wiring, PlaygroundError>,
) -> Result<(), PlaygroundError> {
    let outer = Channel::new(outer).map_err(PlaygroundError::io("use the socket to weft up"))?;
    let listener = match outer.receive().await {
        Ok(Some((FromOuter::Listen, mut descriptors))) => descriptors.pop().ok_or(PlaygroundError::NotByHand)?,
        _ => return Err(PlaygroundError::NotByHand),
    };
    let dual_stack = setup.dual_stack;
    blocking(move || node::set_up(dual_stack)).await??;
    let pods = Arc::new(Pods { setup: setup.clone(), table: Mutex::default() });
    let wiring = wire(&setup, Arc::clone(&pods)).await?;
    let stop = CancellationToken::new();
    // The control plane outlives the pods: it is stopped when they are gone.
    let stop_control_plane = CancellationToken::new();
    let (control_plane, supervisor) = ControlPlane::start(wiring.control_plane, stop_control_plane.clone());
    let Wiring { token, token_lifetime, root_bundle, callers_left, .. } = wiring;
    let world = Arc::new(World {
        machine: Arc::new(Machine { setup, token, token_lifetime, root_bundle, callers_left }),
        control_plane,
        stop: stop.clone(),
        pods,
        is_ready: wiring.is_ready,
        settled: watch::Sender::new(false),
    });
    tokio::spawn(server::serve(listener, Arc::clone(&world)));
    tokio::spawn(announce(Arc::clone(&world)));
    let pods = run_pods(Arc::clone(&world), wiring.effects, wiring.inputs);
    tokio::pin!(pods);
    tokio::select! {
        () = &mut pods => {}
        _ = outer.receive::<FromOuter>() => {
            stop.cancel();
            pods.await;
        }
    }
    stop_control_plane.cancel();
    let _ = supervisor.await;
    tracing::info!("stopped; nothing is left behind");
    Ok(())
}

/// Carries out what the cluster wants until the playground stops, and then until the last pod is gone.
async fn run_pods(
    world: Arc<World>,
    mut effects: mpsc::UnboundedReceiver<Effect>,
    inputs: mpsc::UnboundedSender<Input>,
) {
    let mut lives = JoinSet::new();
    let (told, mut tell) = mpsc::channel(64);
    loop {
        tokio::select! {
            () = world.stop.cancelled() => break,
            Some(effect) = effects.recv() => match effect {
                Effect::Pod(PodAction::Start(spec)) => {
                    let known = world.pods().get(&spec.key).cloned();
                    match known {
                        Some(pod) => pod.start_again(),
                        None => {
                            let pod = Pod::new(spec);
                            world.pods().insert(pod.spec.key.clone(), Arc::clone(&pod));
                            lives.spawn(pod::live(pod, Arc::clone(&world.machine), told.clone()));
                        }
                    }
                }
                Effect::Pod(PodAction::Stop { pod, grace }) => {
                    if let Some(pod) = world.pods().get(&pod) {
                        pod.stop(StopOrder { grace, drain: true });
                    }
                }
                Effect::KillContainer { pod, container } => {
                    if let Some(pod) = world.pods().get(&pod) {
                        tracing::warn!(pod = %pod.spec.key, %container, "killing the container: its probe failed");
                        pod.kill(&container);
                    }
                }
                Effect::Diagnostic(diagnostic) => tracing::warn!("{diagnostic}"),
                Effect::Synced => {
                    world.settled.send_replace(true);
                }
            },
            Some(event) = tell.recv() => {
                if let PodEvent::Gone { pod } = &event {
                    world.pods().remove(pod);
                }
                // Nobody listens any more only when the playground stops.
                let _ = inputs.send(Input::Pod(event));
            }
            Some(_) = lives.join_next() => {}
        }
    }
    let count = world.pods().len();
    tracing::info!("stopping {count} pods");
    for pod in world.pods().values() {
        pod.stop(StopOrder { grace: STOP_GRACE, drain: false });
    }
    // From here on nobody needs to be told; the tasks must not wait for room either.
    drop(tell);
    drop(effects);
    while lives.join_next().await.is_some() {}
}

async fn announce(world: Arc<World>) {
    world.ready().await;
    let status = world.status();
    let Setup { name, .. } = &world.machine.setup;
    tracing::info!(
        "{} pods are ready; `weft exec --name {name} -n NAMESPACE POD -- COMMAND` runs a command in one",
        status.pods.len()
    );
    for pod in &status.pods {
        let kind = if pod.meshed { "meshed" } else { "without a sidecar" };
        tracing::info!("  {}/{} at {}, {kind}", pod.namespace, pod.name, IpAddr::from(pod.ip));
    }
}
