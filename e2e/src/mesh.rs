//! A mesh on this machine for a test to use: its files, its pods, its control plane.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use http_body_util::{BodyExt, Empty};
use hyper::body::Bytes;
use hyper_util::rt::TokioIo;
use tempfile::TempDir;
use weft::local::control::{PodSelector, PodStatus};
use weft::local::node::CONTROL_PLANE_ADMIN;
use weft::local::{Client, Options, Playground};

use crate::inspection::Inspection;
use crate::load::{Load, Summary};
use crate::scenario::Traffic;
use crate::until;

/// How long pods may take to start or stop.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The admin interface of a sidecar, from inside its pod.
const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(std::net::Ipv4Addr::LOCALHOST), 15000);

/// A running playground on a copy of a directory.
#[derive(Debug)]
pub struct Mesh {
    name: String,
    playground: Playground,
    directory: TempDir,
    traffic: Arc<Traffic>,
    /// Held last, so that the next mesh starts when this one is gone.
    _turn: MutexGuard<'static, ()>,
}

/// One mesh at a time: two would starve each other of the machine's CPUs, and pods fail their probes for it.
static TURN: Mutex<()> = Mutex::new(());

/// The root of the repository.
pub fn repository() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR")).parent().unwrap_or(Path::new("."))
}

/// The stock Envoy of this version that `make setup-all` installed.
///
/// # Errors
/// When it is not there.
pub fn envoy(version: &str) -> anyhow::Result<PathBuf> {
    let path = repository().join("target/envoy").join(version).join("envoy");
    if !path.exists() {
        bail!("there is no Envoy {version} at {}: run `make setup-all`", path.display());
    }
    Ok(path)
}

/// The version of a line of envoy-bootstrap/VERSIONS: `default` or `oldest`.
///
/// # Errors
/// When there is no such line.
pub fn pinned_version(line: &str) -> anyhow::Result<String> {
    let path = repository().join("envoy-bootstrap/VERSIONS");
    let versions = fs::read_to_string(&path).with_context(|| path.display().to_string())?;
    let pinned = versions.lines().find_map(|text| text.strip_prefix(line)?.strip_prefix(' '));
    Ok(pinned.with_context(|| format!("no `{line}` in {}", path.display()))?.trim().to_owned())
}

/// The `weft` that was built with the test that asks.
///
/// # Errors
/// When it was not.
pub fn weft_beside_tests() -> anyhow::Result<PathBuf> {
    let test = std::env::current_exe()?;
    let weft = test.ancestors().nth(2).context("the folder of the build")?.join("weft");
    if !weft.exists() {
        bail!("there is no {}: run `cargo build` first", weft.display());
    }
    Ok(weft)
}

impl Mesh {
    /// Runs a copy of the directory `source` of this repository with `weft` at `weft_exe`, and waits until all is ready.
    ///
    /// # Errors
    /// When it does not start; the error has the end of the log.
    pub fn start(
        source: &str,
        name: &str,
        weft_exe: &Path,
        envoy: Option<PathBuf>,
        arguments: &[&str],
    ) -> anyhow::Result<Self> {
        let turn = TURN.lock().unwrap_or_else(PoisonError::into_inner);
        let directory = tempfile::Builder::new().prefix("weft-mesh-").tempdir()?;
        let source = repository().join(source);
        for entry in fs::read_dir(&source).with_context(|| source.display().to_string())? {
            let path = entry?.path();
            if let (Some("yaml"), Some(name)) = (path.extension().and_then(|e| e.to_str()), path.file_name()) {
                fs::copy(&path, directory.path().join(name))?;
            }
        }
        let playground = Playground::start(Options {
            dir: directory.path().to_owned(),
            name: format!("{name}-{}", std::process::id()),
            weft_exe: weft_exe.to_owned(),
            envoy,
            arguments: arguments.iter().map(|argument| (*argument).to_owned()).collect(),
            ready_within: PATIENCE,
        })?;
        let mesh = Self { name: name.to_owned(), playground, directory, traffic: Arc::default(), _turn: turn };
        // The pods are ready; the control plane is about to hear of it.
        mesh.inspection()?.converged_after(0, Instant::now())?;
        Ok(mesh)
    }

    /// As it was called at the start.
    pub fn name(&self) -> &str {
        &self.name
    }

    /// The calls that were made in it.
    pub fn traffic(&self) -> &Arc<Traffic> {
        &self.traffic
    }

    /// The playground's control socket.
    pub fn client(&self) -> &Client {
        self.playground.client()
    }

    /// What `weft up` has logged.
    pub fn log(&self) -> Vec<String> {
        self.playground.log()
    }

    /// The control plane's inspection API.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn inspection(&self) -> anyhow::Result<Inspection> {
        Inspection::connect(self.client())
    }

    /// The text of a file of the mesh.
    ///
    /// # Errors
    /// When there is none.
    pub fn read(&self, file: &str) -> anyhow::Result<String> {
        fs::read_to_string(self.directory.path().join(file)).with_context(|| file.to_owned())
    }

    /// Writes a file of the mesh, and waits until every proxy has what comes of it; returns how long that took from
    /// before the write.
    ///
    /// # Errors
    /// When it does not come to that.
    pub fn write(&self, file: &str, text: &str) -> anyhow::Result<Duration> {
        self.change(|directory| fs::write(directory.join(file), text))
    }

    /// As [`Mesh::write`], with the text as `edit` makes it from what is there.
    ///
    /// # Errors
    /// When it does not come to that.
    pub fn edit(&self, file: &str, edit: impl FnOnce(String) -> String) -> anyhow::Result<Duration> {
        let before = self.read(file)?;
        let after = edit(before.clone());
        if before == after {
            bail!("the edit of {file} changes nothing");
        }
        self.write(file, &after)
    }

    /// As [`Mesh::write`], removing the file.
    ///
    /// # Errors
    /// When it does not come to that.
    pub fn remove(&self, file: &str) -> anyhow::Result<Duration> {
        self.change(|directory| fs::remove_file(directory.join(file)))
    }

    fn change(&self, change: impl FnOnce(&Path) -> std::io::Result<()>) -> anyhow::Result<Duration> {
        let mut inspection = self.inspection()?;
        let before = inspection.convergence()?.snapshot;
        let start = Instant::now();
        change(self.directory.path())?;
        inspection.converged_after(before, start)
    }

    /// Writes a file of the mesh without waiting for anything.
    ///
    /// # Errors
    /// When it cannot be written.
    pub fn put(&self, file: &str, text: &str) -> anyhow::Result<()> {
        Ok(fs::write(self.directory.path().join(file), text)?)
    }

    /// Removes a file of the mesh without waiting for anything.
    ///
    /// # Errors
    /// When it cannot be removed.
    pub fn delete(&self, file: &str) -> anyhow::Result<()> {
        Ok(fs::remove_file(self.directory.path().join(file))?)
    }

    /// The pods of a workload.
    ///
    /// # Errors
    /// When the playground does not answer.
    pub fn pods_of(&self, namespace: &str, workload: &str) -> anyhow::Result<Vec<PodStatus>> {
        let pods = self.client().status()?.pods;
        Ok(pods.into_iter().filter(|pod| pod.namespace == namespace && pod.workload == workload).collect())
    }

    /// Waits until the workload has so many pods, all of them ready.
    ///
    /// # Errors
    /// When that takes too long.
    pub fn wait_for_pods(&self, namespace: &str, workload: &str, count: usize) -> anyhow::Result<()> {
        until(&format!("{count} pods of {namespace}/{workload}"), PATIENCE, || {
            let pods = self.pods_of(namespace, workload)?;
            let ready = pods.iter().filter(|pod| pod.ready).count();
            Ok(if (pods.len(), ready) == (count, count) {
                Ok(())
            } else {
                Err(format!("{ready} of {} ready", pods.len()))
            })
        })
    }

    /// Runs `weft app call ARGUMENTS` in a pod (`NAMESPACE/POD`); what it printed, whatever its exit code.
    ///
    /// # Errors
    /// When it could not be run.
    pub fn call(&self, pod: &str, arguments: &[&str]) -> anyhow::Result<String> {
        self.traffic.call();
        self.run(pod, arguments)
    }

    /// As [`Mesh::call`], with a summary.
    ///
    /// # Errors
    /// When it could not be run.
    pub fn calls(&self, pod: &str, arguments: &[&str]) -> anyhow::Result<Summary> {
        let summary = self.summary(pod, arguments)?;
        self.traffic.load(&summary);
        Ok(summary)
    }

    fn summary(&self, pod: &str, arguments: &[&str]) -> anyhow::Result<Summary> {
        Summary::parse(&self.run(pod, &[&["-o", "json"], arguments].concat())?)
    }

    fn run(&self, pod: &str, arguments: &[&str]) -> anyhow::Result<String> {
        let (_, text) = self.client().output(selector(pod)?, weft_app_call(arguments))?;
        Ok(text)
    }

    /// How one call ended: `200`, `403`, `PERMISSION_DENIED`, `ok`, `closed`, …
    ///
    /// # Errors
    /// When it could not be made.
    pub fn code(&self, pod: &str, arguments: &[&str]) -> anyhow::Result<String> {
        self.traffic.call();
        let summary = self.summary(pod, arguments)?;
        summary.codes.into_keys().next().context("a call that ended somehow")
    }

    /// The address that a name stands for in a pod.
    ///
    /// # Errors
    /// When it stands for none.
    pub fn resolve(&self, pod: &str, name: &str) -> anyhow::Result<IpAddr> {
        let argv = ["getent", "ahostsv4", name].map(str::to_owned).to_vec();
        let (_, text) = self.client().output(selector(pod)?, argv)?;
        let address = text.split_whitespace().next().with_context(|| format!("{name} in {pod}"))?;
        Ok(address.parse()?)
    }

    /// A connection from inside a pod.
    ///
    /// # Errors
    /// When it is refused.
    pub fn dial(&self, pod: &str, to: SocketAddr) -> anyhow::Result<TcpStream> {
        Ok(self.client().dial(Some(selector(pod)?), to)?)
    }

    /// Calls that go on until they are stopped.
    ///
    /// # Errors
    /// When they cannot be started.
    pub fn load(&self, pod: &str, arguments: &[&str]) -> anyhow::Result<Load> {
        let arguments = [&["-o", "json", "--until-stdin-closes"], arguments].concat();
        let (client, pod, argv) = (self.client().clone(), selector(pod)?, weft_app_call(&arguments));
        Load::start(move |stdio| Ok(client.exec(pod, argv, stdio)?), self.traffic.clone())
    }

    /// What a sidecar's admin interface answers to a GET.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn admin(&self, pod: &str, path: &str) -> anyhow::Result<String> {
        let socket = self.client().dial(Some(selector(pod)?), ADMIN)?;
        get(socket, path).with_context(|| format!("{pod} {path}"))
    }

    /// What a pod's own `port` answers to a GET from inside it.
    ///
    /// # Errors
    /// When it does not answer with success.
    pub fn get(&self, pod: &str, port: u16, path: &str) -> anyhow::Result<String> {
        let socket = self.client().dial(Some(selector(pod)?), SocketAddr::new(Ipv4Addr::LOCALHOST.into(), port))?;
        get(socket, path).with_context(|| format!("{pod}:{port} {path}"))
    }

    /// The control plane's metrics.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn metrics(&self) -> anyhow::Result<String> {
        get(self.client().dial(None, CONTROL_PLANE_ADMIN)?, "/metrics")
    }

    /// The resident memory of the control plane, in MB, as its metrics say.
    ///
    /// # Errors
    /// When it does not answer, or does not say.
    pub fn control_plane_memory(&self) -> anyhow::Result<f64> {
        let answer = self.metrics()?;
        let line = answer.lines().find_map(|line| line.strip_prefix("process_resident_memory_bytes "));
        Ok(line.context("process_resident_memory_bytes in /metrics")?.parse::<f64>()? / 1e6)
    }

    /// What a sidecar's Envoy has allocated, in MB.
    ///
    /// # Errors
    /// When it does not answer, or does not say.
    pub fn heap(&self, pod: &str) -> anyhow::Result<f64> {
        let memory: serde_json::Value = serde_json::from_str(&self.admin(pod, "/memory")?)?;
        let bytes: Option<f64> = memory["allocated"].as_str().and_then(|bytes| bytes.parse().ok());
        Ok(bytes.context("the allocated bytes of /memory")? / 1e6)
    }

    /// The statistics of a sidecar whose names fit the regex.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn stats(&self, pod: &str, filter: &str) -> anyhow::Result<Vec<(String, u64)>> {
        let text = self.admin(pod, &format!("/stats?filter={filter}"))?;
        let parse = |line: &str| Some((line.split_once(": ")?.0.to_owned(), line.split_once(": ")?.1.parse().ok()?));
        Ok(text.lines().filter_map(parse).collect())
    }

    /// Ends it, and says whether that went well.
    ///
    /// # Errors
    /// When `weft up` did not end with success.
    pub fn stop(self) -> anyhow::Result<()> {
        let status = self.playground.stop()?;
        if status.success() { Ok(()) } else { bail!("weft up ended with {status}") }
    }
}

/// `NAMESPACE/POD`, where POD may be a prefix or `deploy/NAME`.
pub(crate) fn selector(pod: &str) -> anyhow::Result<PodSelector> {
    let (namespace, pod) = pod.split_once('/').context("NAMESPACE/POD")?;
    Ok(PodSelector::new(namespace, pod))
}

/// The body of the answer to a GET.
pub(crate) fn get(socket: std::net::TcpStream, path: &str) -> anyhow::Result<String> {
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    socket.set_nonblocking(true)?;
    runtime.block_on(async {
        let socket = TokioIo::new(tokio::net::TcpStream::from_std(socket)?);
        let (mut client, connection) = hyper::client::conn::http1::handshake(socket).await?;
        tokio::spawn(connection);
        let request = hyper::Request::get(path).header("host", "admin").body(Empty::<Bytes>::new())?;
        let answer = client.send_request(request).await?;
        let status = answer.status();
        let body = String::from_utf8(answer.into_body().collect().await?.to_bytes().to_vec())?;
        if status.is_success() { Ok(body) } else { bail!("{status}: {body}") }
    })
}

pub(crate) fn weft_app_call(arguments: &[&str]) -> Vec<String> {
    ["weft", "app", "call"].iter().chain(arguments).map(|argument| (*argument).to_owned()).collect()
}
