//! A node for tests: what a kubelet, a service proxy and a cluster DNS do for the pods of an API server, and no more.
//!
//! ```text
//!  API server ─watch─▶ pods ──▶ bound to this node, each with a thread that lives its life ─▶ status
//!             ─watch─▶ Services, EndpointSlices ──▶ nft (service proxy), DNS: the playground's own
//! ```
//!
//! A pod has a network namespace of its own; each of its processes has `/etc`, `/run` and its volumes for itself, its
//! user and its capabilities. Programs stand for images; the rest of the files is this machine's. Nothing is scheduled:
//! every pod is this node's. Not there: pid namespaces, cgroups, seccomp, read-only root file systems, NetworkPolicies,
//! and restart policies other than Always.

mod container;
mod kubelet;
mod life;
mod pod;
mod probe;
mod volume;
mod watched;

use std::collections::{BTreeMap, BTreeSet};
use std::fs;
use std::io::Write;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::Path;
use std::process::{Command, Stdio};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow, bail, ensure};
use arc_swap::ArcSwap;
use k8s_openapi::api::core::v1::Service;
use k8s_openapi::api::discovery::v1::EndpointSlice;
use rustix::process::Signal;
use serde_json::{Value, json};
use weft::ca::token::AUDIENCE;
use weft::local::cluster::{dns, service_proxy};
use weft::local::node::{DNS_IP, NODE_IP};

use self::life::Life;
use self::pod::Pod;
pub(crate) use self::pod::lock;
use self::watched::{Watched, path_of, watch};
use super::{Api, Clock, Kubernetes, http_request, network, objects};
use crate::load::{Load, Summary};
use crate::mesh::{get, weft_app_call};
use crate::scenario::Traffic;
use crate::until;

pub use self::container::Programs;

/// The node's name.
const NAME: &str = "node";
/// Where the API server finds its kubelet.
const KUBELET: u16 = 10250;
/// How long pods may take to start or end.
pub const PATIENCE: Duration = Duration::from_secs(90);
/// Between two looks at what has come from the API server.
const TICK: Duration = Duration::from_millis(5);

/// A node that runs.
pub struct Node {
    shared: Arc<Shared>,
    traffic: Arc<Traffic>,
    running: Option<JoinHandle<()>>,
}

#[derive(Default)]
struct Shared {
    pods: Mutex<BTreeMap<String, Arc<Pod>>>,
    seen: Arc<Watched>,
    stop: AtomicBool,
}

impl Node {
    /// Starts it for an API server on its network ([`Kubernetes::start_for_a_node`]), on the thread that started that.
    ///
    /// # Errors
    /// When it cannot be known to the API server, or a part of it does not start.
    pub fn start(kubernetes: &Kubernetes, programs: Programs) -> anyhow::Result<Self> {
        let api = Api::clone(kubernetes);
        let port = kubernetes.port()?;
        api.put(&json!({
            "apiVersion": "v1", "kind": "Node",
            "metadata": {"name": NAME, "labels": {"kubernetes.io/hostname": NAME}},
            "status": {
                "addresses": [{"type": "InternalIP", "address": NODE_IP.to_string()}],
                "daemonEndpoints": {"kubeletEndpoint": {"Port": KUBELET}},
            },
        }))?;
        api.put(&json!({
            "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
            "metadata": {"namespace": "default", "name": "kubernetes",
                "labels": {"kubernetes.io/service-name": "kubernetes"}},
            "ports": [{"name": "https", "port": port, "protocol": "TCP"}],
            "endpoints": [{"addresses": [NODE_IP.to_string()], "conditions": {"ready": true}}],
        }))?;
        let zone = Arc::new(ArcSwap::from_pointee(dns::Zone::default()));
        let at = SocketAddr::from((DNS_IP, 53));
        let server = api.block_on(dns::Server::bind(at, at, Arc::clone(&zone), None))?;
        kubernetes.spawn(server.run());
        let shared = Arc::new(Shared::default());
        let listener = api.block_on(tokio::net::TcpListener::bind((NODE_IP, KUBELET)))?;
        kubernetes.spawn(kubelet::serve(listener, shared.clone()));
        for (kind, path) in [
            ("pods", "/api/v1/pods"),
            ("services", "/api/v1/services"),
            ("endpointslices", "/apis/discovery.k8s.io/v1/endpointslices"),
        ] {
            kubernetes.spawn(watch(api.client(), Arc::clone(&shared.seen), kind, path));
        }
        let directory = kubernetes.directory().join("node");
        fs::create_dir_all(&directory)?;
        let running = {
            let shared = Arc::clone(&shared);
            std::thread::spawn(move || run(&api, &shared, &zone, &programs, &directory))
        };
        Ok(Self { shared, traffic: Arc::default(), running: Some(running) })
    }

    /// The calls that were made in its pods.
    pub fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    /// The names of a workload's pods that are ready and not on their way out, by the label that names it.
    pub fn ready(&self, namespace: &str, label: (&str, &str)) -> Vec<String> {
        let pods = lock(&self.shared.pods);
        let fits = |pod: &&Arc<Pod>| {
            pod.namespace() == namespace
                && pod.object["metadata"]["labels"][label.0] == label.1
                && pod.ready.load(Ordering::Acquire)
                && lock(&pod.end).is_none()
        };
        pods.values().filter(fits).map(|pod| pod.name().to_owned()).collect()
    }

    /// The names of all pods of a workload, by the label that names it.
    pub fn pods(&self, namespace: &str, label: (&str, &str)) -> Vec<String> {
        let pods = lock(&self.shared.pods);
        let fits =
            |pod: &&Arc<Pod>| pod.namespace() == namespace && pod.object["metadata"]["labels"][label.0] == label.1;
        pods.values().filter(fits).map(|pod| pod.name().to_owned()).collect()
    }

    /// Waits until a workload has exactly so many pods, and all of them are ready.
    ///
    /// # Errors
    /// When that takes too long, with what the pods' logs say.
    pub fn wait_for(&self, namespace: &str, label: (&str, &str), count: usize) -> anyhow::Result<Vec<String>> {
        until(&format!("{count} pods of {namespace} with {}={}", label.0, label.1), PATIENCE, || {
            let ready = self.ready(namespace, label);
            let all = self.pods(namespace, label).len();
            match (ready.len(), all) == (count, count) {
                true => Ok(Ok(ready)),
                false => Ok(Err(format!("{} of {all} are ready\n{}", ready.len(), self.log(namespace)))),
            }
        })
    }

    /// As [`Node::wait_for`], of a Deployment.
    ///
    /// # Errors
    /// As that.
    pub fn wait_for_workload(&self, namespace: &str, deployment: &str, count: usize) -> anyhow::Result<()> {
        let begins = format!("{deployment}-");
        until(&format!("{count} pods of {namespace}/{deployment}"), PATIENCE, || {
            let pods = lock(&self.shared.pods);
            let of = || pods.values().filter(|pod| pod.namespace() == namespace && pod.name().starts_with(&begins));
            let (ready, all) = (of().filter(|pod| pod.ready.load(Ordering::Acquire)).count(), of().count());
            Ok(if (ready, all) == (count, count) { Ok(()) } else { Err(format!("{ready} of {all} are ready")) })
        })
    }

    /// How many pods of all namespaces but one are ready, of how many.
    pub fn ready_outside(&self, namespace: &str) -> (usize, usize) {
        let pods = lock(&self.shared.pods);
        let others = || pods.values().filter(|pod| pod.namespace() != namespace);
        (others().filter(|pod| pod.ready.load(Ordering::Acquire)).count(), others().count())
    }

    /// The end of all logs of the pods of a namespace.
    pub fn log(&self, namespace: &str) -> String {
        let pods: Vec<_> = lock(&self.shared.pods).values().cloned().collect();
        let mut text = self.shared.seen.problems();
        for pod in pods.iter().filter(|pod| pod.namespace() == namespace) {
            let files = fs::read_dir(&pod.directory).into_iter().flatten().flatten();
            for path in files.map(|entry| entry.path()).filter(|path| path.extension().is_some_and(|e| e == "log")) {
                let log = fs::read_to_string(&path).unwrap_or_default();
                let lines: Vec<_> = log.lines().collect();
                let name = path.file_stem().unwrap_or_default().to_string_lossy().into_owned();
                for line in &lines[lines.len().saturating_sub(8)..] {
                    text += &format!("{} {name}: {line}\n", pod.name());
                }
            }
        }
        text
    }

    /// All that the container of a pod has said.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn log_of(&self, pod: &str, container: &str) -> anyhow::Result<String> {
        Ok(fs::read_to_string(self.pod(pod)?.log_of(container))?)
    }

    /// The address of a pod.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn address(&self, pod: &str) -> anyhow::Result<Ipv4Addr> {
        Ok(self.pod(pod)?.ip)
    }

    /// Kills a container's process with SIGKILL, and waits until that is noticed: the pod is not ready then. It is
    /// started again, unless `held`: then the pod stays as it is.
    ///
    /// # Errors
    /// When it does not run, or does not end.
    pub fn kill(&self, pod: &str, container: &str, held: bool) -> anyhow::Result<()> {
        let pod = self.pod(pod)?;
        pod.held.store(held, Ordering::Release);
        let killed = pod.signal(container, Signal::KILL)?;
        until("the process has ended", PATIENCE, || {
            let now = lock(&pod.processes).get(container).copied();
            Ok(if now == Some(killed) { Err(format!("{killed:?} is there")) } else { Ok(()) })
        })
    }

    /// Asks a container's process to end, as [`Node::kill`] does with SIGTERM in its place; the pod stays as it is then.
    ///
    /// # Errors
    /// When it does not run.
    pub fn stop(&self, pod: &str, container: &str) -> anyhow::Result<()> {
        let pod = self.pod(pod)?;
        pod.held.store(true, Ordering::Release);
        pod.signal(container, Signal::TERM).map(drop)
    }

    /// Has a pod's processes take the time to be so many seconds later than it is, or earlier: those that start from now on,
    /// and those that did since this was said first.
    ///
    /// # Errors
    /// When there is no such pod, or no C compiler.
    pub fn set_clock(&self, pod: &str, ahead: i64) -> anyhow::Result<()> {
        let pod = self.pod(pod)?;
        let clock = &pod.surroundings.get().context("the pod has not begun")?.clock;
        if clock.get().is_none() {
            let _ = clock.set(Clock::create(pod.directory.join("clock"))?); // none was set: this is the only thread
        }
        clock.get().context("a clock")?.set(ahead)
    }

    /// Has the control plane's token in a pod be another one, as when the kubelet replaces it.
    ///
    /// # Errors
    /// When the pod has none.
    pub fn replace_token(&self, pod: &str, token: &str) -> anyhow::Result<()> {
        let pod = self.pod(pod)?;
        let volumes = &pod.surroundings.get().context("the pod has not begun")?.volumes;
        for volume in pod.object["spec"]["volumes"].as_array().into_iter().flatten() {
            for source in volume["projected"]["sources"].as_array().into_iter().flatten() {
                let source = &source["serviceAccountToken"];
                if source["audience"] == AUDIENCE {
                    let (name, path) = (volume["name"].as_str().context("a name")?, source["path"].as_str());
                    return volume::replace(&volumes.join(name), path.context("a path")?, token);
                }
            }
        }
        bail!("the pod has no token for {AUDIENCE}")
    }

    /// Lets a pod's containers start again.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn release(&self, pod: &str) -> anyhow::Result<()> {
        self.pod(pod)?.held.store(false, Ordering::Release);
        Ok(())
    }

    /// Has nothing come from a pod any more, as when its machine has lost its network: no reset, no answer.
    ///
    /// # Errors
    /// When there is no such pod.
    pub fn cut_off(&self, pod: &str) -> anyhow::Result<()> {
        let ip = self.pod(pod)?.ip;
        nft(&format!(
            "table ip cut-off {{ chain pods {{ type filter hook prerouting priority -300; ip saddr {ip} drop; }}; }}\n"
        ))
    }

    /// Ends what [`Node::cut_off`] did.
    ///
    /// # Errors
    /// When no pod is cut off.
    pub fn connect_again(&self) -> anyhow::Result<()> {
        nft("delete table ip cut-off\n")
    }

    /// Runs `weft app call ARGUMENTS` in a pod's first container; what it printed, whatever its exit code.
    ///
    /// # Errors
    /// When it could not be run.
    pub fn call(&self, pod: &str, arguments: &[&str]) -> anyhow::Result<String> {
        self.traffic.call();
        self.output(pod, &weft_app_call(arguments))
    }

    /// As [`Node::call`], with a summary of all calls.
    ///
    /// # Errors
    /// When it could not be run.
    pub fn calls(&self, pod: &str, arguments: &[&str]) -> anyhow::Result<Summary> {
        let summary = self.summary(pod, arguments)?;
        self.traffic.load(&summary);
        Ok(summary)
    }

    /// How one call ended: `200`, `403`, `ok`, `closed`, …
    ///
    /// # Errors
    /// When it could not be made.
    pub fn code(&self, pod: &str, arguments: &[&str]) -> anyhow::Result<String> {
        self.traffic.call();
        self.summary(pod, arguments)?.codes.into_keys().next().context("a call that ended somehow")
    }

    fn summary(&self, pod: &str, arguments: &[&str]) -> anyhow::Result<Summary> {
        Summary::parse(&self.output(pod, &weft_app_call(&[&["-o", "json"], arguments].concat()))?)
    }

    /// Calls that go on until they are stopped.
    ///
    /// # Errors
    /// When they cannot be started.
    pub fn load(&self, pod: &str, arguments: &[&str]) -> anyhow::Result<Load> {
        let argv = weft_app_call(&[&["-o", "json", "--until-stdin-closes"], arguments].concat());
        let pod = self.pod(pod)?;
        let run = move |stdio: [std::os::fd::BorrowedFd<'_>; 3]| {
            let [stdin, stdout, stderr] = stdio.map(|fd| fd.try_clone_to_owned().map(Stdio::from));
            let mut child = start(&pod, &argv, [stdin?, stdout?, stderr?])?;
            Ok(child.wait()?.code().unwrap_or(-1))
        };
        Load::start(run, self.traffic.clone())
    }

    /// What a sidecar's admin interface answers to a GET.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn admin(&self, pod: &str, path: &str) -> anyhow::Result<String> {
        get(self.dial(pod, SocketAddr::from((Ipv4Addr::LOCALHOST, 15000)))?, path)
            .with_context(|| format!("{pod} {path}"))
    }

    /// A connection from inside a pod.
    ///
    /// # Errors
    /// When it is refused.
    pub fn dial(&self, pod: &str, to: SocketAddr) -> anyhow::Result<TcpStream> {
        self.shared.dial(pod, to)
    }

    /// The address that a name stands for in a pod.
    ///
    /// # Errors
    /// When it stands for none.
    pub fn resolve(&self, pod: &str, name: &str) -> anyhow::Result<IpAddr> {
        let text = self.output(pod, &["getent", "ahostsv4", name].map(str::to_owned))?;
        let address = text.split_whitespace().next().with_context(|| format!("{name} in {pod}"))?;
        Ok(address.parse()?)
    }

    fn output(&self, pod: &str, argv: &[String]) -> anyhow::Result<String> {
        let pod = self.pod(pod)?;
        let child = start(&pod, argv, [Stdio::null(), Stdio::piped(), Stdio::piped()])?;
        let done = child.wait_with_output()?;
        let [out, err] = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
        Ok(out + &err)
    }

    fn pod(&self, pod: &str) -> anyhow::Result<Arc<Pod>> {
        self.shared.pod(pod)
    }
}

impl Shared {
    /// `NAMESPACE/POD`, where POD may be the beginning of the name of a pod that is ready, or `deploy/NAME`.
    fn pod(&self, pod: &str) -> anyhow::Result<Arc<Pod>> {
        let (namespace, name) = pod.split_once('/').context("NAMESPACE/POD")?;
        let name = &name.strip_prefix("deploy/").map_or_else(|| name.to_owned(), |deployment| format!("{deployment}-"));
        let pods = lock(&self.pods);
        let exact = pods.values().find(|pod| pod.namespace() == namespace && pod.name() == name);
        let begins = || {
            pods.values().find(|pod| {
                pod.namespace() == namespace && pod.name().starts_with(name) && pod.ready.load(Ordering::Acquire)
            })
        };
        exact.or_else(begins).cloned().with_context(|| format!("there is no pod {pod}"))
    }

    /// A connection from inside a pod.
    fn dial(&self, pod: &str, to: SocketAddr) -> anyhow::Result<TcpStream> {
        let pod = self.pod(pod)?;
        let network = &pod.surroundings.get().context("the pod has not begun")?.network;
        network.inside(|| Ok(TcpStream::connect(to)?))
    }
}

impl Drop for Node {
    /// Ends all pods at once; the API server is not told.
    fn drop(&mut self) {
        self.shared.stop.store(true, Ordering::Release);
        if let Some(running) = self.running.take() {
            let _ = running.join();
        }
    }
}

/// Changes the rules of the network that this thread is in, the node's.
fn nft(rules: &str) -> anyhow::Result<()> {
    let mut nft = Command::new("nft").args(["-f", "-"]).stdin(Stdio::piped()).spawn()?;
    nft.stdin.take().context("an input")?.write_all(rules.as_bytes())?;
    ensure!(nft.wait()?.success(), "nft refused:\n{rules}");
    Ok(())
}

/// A process beside those of a pod's first container.
fn start(pod: &Pod, argv: &[String], stdio: [Stdio; 3]) -> anyhow::Result<std::process::Child> {
    let surroundings = pod.surroundings.get().context("the pod has not begun")?;
    let first = pod.object["spec"]["containers"].get(0).context("a container")?;
    container::start(surroundings, &pod.object, first, argv, stdio)
}

/// Does what is to be done whenever something has changed, until the node stops.
fn run(api: &Api, shared: &Arc<Shared>, zone: &ArcSwap<dns::Zone>, programs: &Programs, directory: &Path) {
    let (mut seen, mut next, mut rules) = (0, 2_u32, String::new());
    let mut lives: Vec<JoinHandle<()>> = Vec::new();
    while !shared.stop.load(Ordering::Acquire) {
        let version = shared.seen.version();
        let ended = lock(&shared.pods).values().any(|pod| pod.ended.load(Ordering::Acquire));
        if version == seen && !ended {
            std::thread::sleep(TICK);
            continue;
        }
        seen = version;
        if let Err(error) = translate(api, shared, zone, &mut rules) {
            shared.seen.complain(&format!("{error:#}"));
        }
        for object in shared.seen.of("pods") {
            if let Err(error) = take(api, shared, &object, programs, directory, &mut next, &mut lives) {
                shared.seen.complain(&format!("{}: {error:#}", path_of(&object)));
            }
        }
        end_those_that_are_gone(shared);
    }
    for pod in lock(&shared.pods).values() {
        pod.stop(Duration::ZERO);
    }
    for life in lives {
        let _ = life.join();
    }
}

/// Binds a pod that is nobody's, begins one that is new, and has one end that was deleted.
fn take(
    api: &Api,
    shared: &Arc<Shared>,
    object: &Value,
    programs: &Programs,
    directory: &Path,
    next: &mut u32,
    lives: &mut Vec<JoinHandle<()>>,
) -> anyhow::Result<()> {
    let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str);
    let uid = text("/metadata/uid").context("a uid")?.to_owned();
    let (namespace, name) =
        (text("/metadata/namespace").unwrap_or_default(), text("/metadata/name").unwrap_or_default());
    let leaves = object["metadata"].get("deletionTimestamp").is_some();
    let known = lock(&shared.pods).get(&uid).cloned();
    match (known, text("/spec/nodeName")) {
        (Some(pod), _) if leaves => {
            let grace = object["metadata"]["deletionGracePeriodSeconds"].as_u64().unwrap_or(0);
            if lock(&pod.end).is_none() {
                pod.stop(Duration::from_secs(grace));
            }
        }
        (Some(_), _) => {}
        (None, None) if !leaves => {
            let path = format!("{}/binding", objects::path("v1", "pods", namespace, name));
            let body = json!({"apiVersion": "v1", "kind": "Binding", "metadata": {"name": name},
                "target": {"apiVersion": "v1", "kind": "Node", "name": NAME}});
            let request = http_request("POST", &path, Some(("application/json", body.to_string())));
            match api.block_on(api.client().request_text(request)) {
                Ok(_) => {}
                // It is bound, and the event of that is on its way.
                Err(kube::Error::Api(status)) if status.code == 409 || status.code == 404 => {}
                Err(error) => return Err(anyhow!(error)),
            }
        }
        (None, Some(NAME)) if !leaves => {
            let ip = Ipv4Addr::from(u32::from(Ipv4Addr::new(10, 244, 1, 0)) + *next);
            *next += 1;
            let directory = directory.join(&uid);
            fs::create_dir_all(&directory)?;
            let pod = Arc::new(Pod::new(object.clone(), ip, directory));
            lock(&shared.pods).insert(uid, Arc::clone(&pod));
            let life = Life::new(pod, api.clone(), programs.clone())?;
            lives.push(std::thread::spawn(move || life.run()));
        }
        _ => {}
    }
    Ok(())
}

/// Forgets pods that have ended, and ends those that were deleted without grace.
fn end_those_that_are_gone(shared: &Shared) {
    let there: BTreeSet<String> =
        shared.seen.of("pods").iter().filter_map(|pod| Some(pod["metadata"]["uid"].as_str()?.to_owned())).collect();
    lock(&shared.pods).retain(|uid, pod| {
        if !there.contains(uid) {
            pod.stop(Duration::ZERO);
        }
        !pod.ended.load(Ordering::Acquire)
    });
}

/// Has the service proxy and the DNS say what the API server does.
fn translate(api: &Api, shared: &Shared, zone: &ArcSwap<dns::Zone>, rules: &mut String) -> anyhow::Result<()> {
    fn typed<T: serde::de::DeserializeOwned>(objects: Vec<Value>) -> Result<Vec<T>, serde_json::Error> {
        objects.into_iter().map(serde_json::from_value).collect()
    }
    let services: Vec<Service> = typed(shared.seen.of("services"))?;
    let slices: Vec<EndpointSlice> = typed(shared.seen.of("endpointslices"))?;
    zone.store(Arc::new(dns::Zone::new(&services, &slices, [], std::iter::empty::<(String, IpAddr)>())));
    let now = service_proxy::ruleset(&services, &slices);
    if now != *rules {
        api.block_on(service_proxy::load(&now))?;
        *rules = now;
    }
    Ok(())
}
