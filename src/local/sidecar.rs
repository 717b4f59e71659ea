//! The sidecar of a meshed pod: its files, its readiness, its draining.
//!
//! Its directory on the playground's tmpfs, seen by it as `/run/weft/proxy` and by no other container:
//!
//! ```text
//!  bootstrap.yaml  sds-token.yaml  sds-root.yaml
//!  token/token    ─▶ ..data/token   ..data ─▶ ..1    (a new directory and a swap of ..data, as the kubelet does)
//!  root/root.pem  ─▶ ..data/root.pem
//! ```

use std::collections::BTreeMap;
use std::fs::{self, DirBuilder};
use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::{DirBuilderExt, chown, symlink};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use http::{Method, StatusCode};
use serde::Deserialize;
use tokio::time::{Instant, MissedTickBehavior};

use super::bootstrap::{self, Bootstrap, Directories, XdsProtocol};
pub(crate) use super::cluster::SIDECAR as CONTAINER;
use super::intercept::{SIDECAR_UID, SidecarSockets};
use super::node::NODE_IP;
use super::playground::Machine;
use super::pod::{Files, Pod, Process, Rights, Sandbox, blocking};
use super::{ENVOY_EXE, PlaygroundError, Privilege, admin};
use crate::envoy::names::SERVICE_ACCOUNT_VARIABLE;
use crate::mesh::id::ProxyId;

/// The directory, as the sidecar sees it.
const SEEN_AS: &str = "/run/weft/proxy";
const TOKEN: &str = "/run/weft/proxy/token";
const ROOT: &str = "/run/weft/proxy/root";
const ADMIN: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15000);
const HEALTH: SocketAddr = SocketAddr::new(std::net::IpAddr::V4(Ipv4Addr::LOCALHOST), 15020);
/// Between two looks at readiness or at draining.
const LOOK: Duration = Duration::from_millis(50);
/// After this time without readiness, somebody should hear of it.
const LONG: Duration = Duration::from_secs(20);
/// How often the root is compared with what the sidecars have.
const ROOT_LOOK: Duration = Duration::from_secs(1);

/// A sidecar's files and how to run it.
pub(crate) struct Sidecar {
    pod: Arc<Pod>,
    machine: Arc<Machine>,
    directory: PathBuf,
    files: Files,
}

impl Sidecar {
    /// Writes its files.
    pub(crate) fn prepare(pod: Arc<Pod>, machine: Arc<Machine>) -> Result<Self, PlaygroundError> {
        if let Err(why) = &machine.setup.envoy {
            return Err(PlaygroundError::NoEnvoy(why.clone()));
        }
        let protocol = XdsProtocol::from_annotations(&pod.spec.annotations)?;
        let directory = pod.directory().join("proxy");
        let mut files = pod.files(&machine.setup);
        files.run.push((directory.clone(), SEEN_AS.into()));
        let sidecar = Self { pod, machine, directory, files };
        sidecar.write(protocol).map_err(PlaygroundError::io("write the sidecar's files"))?;
        Ok(sidecar)
    }

    fn write(&self, protocol: XdsProtocol) -> io::Result<()> {
        let spec = &self.pod.spec;
        let _ = fs::remove_dir_all(&self.directory); // of an earlier life of the pod
        self.make_dir(&self.directory)?;
        let bootstrap = Bootstrap {
            node: &ProxyId(spec.key.clone()),
            workload: &spec.workload,
            zone: spec.zone.as_deref(),
            control_plane: &NODE_IP.to_string(),
            control_plane_name: bootstrap::CONTROL_PLANE_NAME,
            protocol,
            sockets: SidecarSockets::from(self.machine.setup.privilege),
            directories: Directories { files: SEEN_AS, token: TOKEN, root: ROOT },
            pod_ip: None,
            probes: &[],
        };
        for (name, text) in bootstrap::render(&bootstrap) {
            self.write_file(&self.directory.join(name), text.as_bytes())?;
        }
        self.write_token(0)?;
        self.write_root(0, &fs::read(&self.machine.root_bundle).unwrap_or_default())
    }

    fn write_token(&self, generation: u64) -> io::Result<()> {
        self.publish("token", "token", generation, (self.machine.token)(&self.pod.spec).as_bytes())
    }

    fn write_root(&self, generation: u64, pem: &[u8]) -> io::Result<()> {
        self.publish("root", "root.pem", generation, pem)
    }

    /// Writes a new generation of a file and swaps it in atomically. Envoy watches the directory for the rename.
    fn publish(&self, directory: &str, name: &str, generation: u64, content: &[u8]) -> io::Result<()> {
        let directory = self.directory.join(directory);
        if generation == 0 {
            self.make_dir(&directory)?;
            symlink(Path::new("..data").join(name), directory.join(name))?;
        }
        let new = format!("..{generation}");
        self.make_dir(&directory.join(&new))?;
        self.write_file(&directory.join(&new).join(name), content)?;
        symlink(&new, directory.join("..data_new"))?;
        fs::rename(directory.join("..data_new"), directory.join("..data"))?;
        match generation.checked_sub(1) {
            Some(old) => fs::remove_dir_all(directory.join(format!("..{old}"))),
            None => Ok(()),
        }
    }

    fn make_dir(&self, path: &Path) -> io::Result<()> {
        DirBuilder::new().mode(0o700).create(path)?;
        self.give(path)
    }

    fn write_file(&self, path: &Path, content: &[u8]) -> io::Result<()> {
        // The directory that it is in is closed to all others before this file appears.
        fs::write(path, content)?;
        fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        self.give(path)
    }

    fn give(&self, path: &Path) -> io::Result<()> {
        match self.machine.setup.privilege {
            Privilege::Root => chown(path, Some(SIDECAR_UID), Some(SIDECAR_UID)),
            Privilege::Rootless => Ok(()),
        }
    }

    /// Replaces the token in good time, and the root whenever it changes. Never ends.
    pub(crate) async fn keep_credentials_fresh(self: Arc<Self>) {
        let mut roots = fs::read(&self.machine.root_bundle).unwrap_or_default();
        let (mut token_generation, mut root_generation) = (0, 0);
        // A fifth of the lifetime is left when it is replaced, as the kubelet does.
        let lifetime = self.machine.token_lifetime * 4 / 5;
        let mut replace_token = Instant::now() + lifetime;
        let mut look = tokio::time::interval(ROOT_LOOK);
        look.set_missed_tick_behavior(MissedTickBehavior::Delay);
        loop {
            tokio::select! {
                () = tokio::time::sleep_until(replace_token) => {
                    token_generation += 1;
                    replace_token = Instant::now() + lifetime;
                    let sidecar = Arc::clone(&self);
                    self.report(blocking(move || sidecar.write_token(token_generation)).await, "token");
                }
                _ = look.tick() => {
                    let Ok(now) = tokio::fs::read(&self.machine.root_bundle).await else { continue };
                    if now != roots {
                        root_generation += 1;
                        roots.clone_from(&now);
                        let sidecar = Arc::clone(&self);
                        self.report(blocking(move || sidecar.write_root(root_generation, &now)).await, "root");
                    }
                }
            }
        }
    }

    fn report(&self, written: Result<io::Result<()>, PlaygroundError>, what: &str) {
        if let Ok(Err(error)) = written {
            tracing::error!(pod = %self.pod.spec.key, %error, "cannot replace the sidecar's {what}");
        }
    }

    /// Who it is: for the faults that it is to suffer (`envoy::fault`), the labels of its metrics (`envoy::metrics`) and its
    /// spans (`envoy::tracing`).
    fn environment(&self) -> Vec<(String, String)> {
        let spec = &self.pod.spec;
        let version = spec.version.clone().map(|version| ("WEFT_VERSION", version));
        let names = [
            (SERVICE_ACCOUNT_VARIABLE, spec.account.to_string()),
            ("WEFT_NAMESPACE", spec.key.namespace.to_string()),
            ("WEFT_WORKLOAD", spec.workload.name.to_string()),
        ];
        let names = names.into_iter().chain(version).map(|(name, value)| (name.to_owned(), value));
        names.chain([bootstrap::environment(&ProxyId(spec.key.clone()), &spec.workload)]).collect()
    }

    /// The Envoy process.
    pub(crate) fn process(&self) -> Process {
        let level = self.pod.spec.annotations.get("weft.dev/proxy-log-level").map_or("warning", String::as_str);
        let configuration = format!("{SEEN_AS}/bootstrap.yaml");
        // Network namespaces do not isolate the shared memory of hot restart.
        let argv = [ENVOY_EXE, "-c", &configuration, "--concurrency", "1", "--disable-hot-restart", "-l", level];
        let drain_time = drain_time(&self.pod.spec.annotations).map(|seconds| seconds.to_string());
        let drain_time = drain_time.iter().flat_map(|seconds| ["--drain-time-s", seconds]);
        Process {
            argv: argv.into_iter().chain(bootstrap::LOGS_SOON).chain(drain_time).map(str::to_owned).collect(),
            env: self.environment(),
            workdir: "/".into(),
            rights: match self.machine.setup.privilege {
                Privilege::Root => Rights::SidecarUser(SIDECAR_UID),
                Privilege::Rootless => Rights::SidecarMark,
            },
            files: self.files.clone(),
        }
    }
}

/// How many seconds connections may stay on what has been replaced in a sidecar: a filter chain, a listener. Envoy's
/// own time, 600, holds where the annotation says nothing that can be read.
fn drain_time(annotations: &BTreeMap<String, String>) -> Option<u32> {
    annotations.get("weft.dev/drain-seconds")?.parse().ok()
}

/// Waits until the control plane has written its root: an Envoy that starts without one complains and connects late.
pub(crate) async fn root_is_there(machine: &Machine) {
    while !tokio::fs::metadata(&machine.root_bundle).await.is_ok_and(|file| file.len() > 0) {
        tokio::time::sleep(LOOK).await;
    }
}

/// Waits until the sidecar serves; calls `late` each time that it has taken long.
pub(crate) async fn ready(sandbox: &Sandbox, late: impl Fn(Duration)) {
    let started = Instant::now();
    let mut patience = LONG;
    while get(sandbox, HEALTH, Method::GET, "/healthz/ready").await.is_err() {
        if started.elapsed() >= patience {
            late(started.elapsed());
            patience *= 2;
        }
        tokio::time::sleep(LOOK).await;
    }
}

/// What to say when it takes long.
pub(crate) fn not_ready(waited: Duration, log: &[String]) -> String {
    let log = match log {
        [] => "it printed nothing, so it is probably waiting for the control plane's first answer".to_owned(),
        lines => format!("its last lines: {}", lines.join(" | ")),
    };
    format!("the sidecar is not ready after {} s, and the application waits for it; {log}", waited.as_secs())
}

/// Makes callers go elsewhere, then waits until nothing is in flight. Never gives up by itself.
pub(crate) async fn drain(sandbox: &Sandbox) -> io::Result<()> {
    get(sandbox, ADMIN, Method::POST, "/healthcheck/fail").await?;
    get(sandbox, ADMIN, Method::POST, "/drain_listeners?inboundonly&graceful&skip_exit").await?;
    loop {
        let stats = get(sandbox, ADMIN, Method::GET, InFlight::PATH).await?;
        if serde_json::from_slice::<InFlight>(&stats)?.is_none() {
            return Ok(());
        }
        tokio::time::sleep(LOOK).await;
    }
}

async fn get(sandbox: &Sandbox, to: SocketAddr, method: Method, path: &str) -> io::Result<bytes::Bytes> {
    let socket = sandbox.dial(to).await.map_err(io::Error::other)?;
    match admin::request(socket, method, path).await? {
        (StatusCode::OK, body) => Ok(body),
        (status, _) => Err(io::Error::other(format!("{path} answered {status}"))),
    }
}

/// Envoy's statistics of the inbound side, in JSON.
#[derive(Deserialize)]
struct InFlight {
    stats: Vec<Stat>,
}

#[derive(Deserialize)]
struct Stat {
    name: Option<String>,
    value: Option<serde_json::Value>,
}

impl InFlight {
    /// The listener on 15006 counts connections; its connection managers, whose `stat_prefix` begins with `inbound`,
    /// count their connections and the requests on them.
    const PATH: &str = "/stats?format=json&filter=\
        ^(listener%5C..*15006%5C.downstream_cx_active|http%5C.inbound.*%5C.downstream_(cx|rq)_active)$";

    /// An HTTP connection without a request is not in flight: its caller finds another one. A TCP connection is.
    fn is_none(&self) -> bool {
        let sum = |prefix: &str, suffix: &str| -> u64 {
            let fits = |stat: &&Stat| stat.name.as_ref().is_some_and(|n| n.starts_with(prefix) && n.ends_with(suffix));
            self.stats.iter().filter(fits).filter_map(|stat| stat.value.as_ref()?.as_u64()).sum()
        };
        let requests = sum("http.inbound", "downstream_rq_active");
        requests == 0 && sum("listener.", "downstream_cx_active") <= sum("http.inbound", "downstream_cx_active")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn in_flight(listener: u64, http: u64, requests: u64) -> InFlight {
        let text = serde_json::json!({"stats": [
            {"name": "listener.0.0.0.0_15006.downstream_cx_active", "value": listener},
            {"name": "http.inbound_8080.downstream_cx_active", "value": http},
            {"name": "http.inbound_8080.downstream_rq_active", "value": requests},
            {"histograms": {}},
        ]});
        serde_json::from_value(text).expect("statistics")
    }

    #[test]
    fn requests_and_tcp_connections_are_in_flight_and_idle_http_connections_are_not() {
        assert!(in_flight(0, 0, 0).is_none());
        assert!(in_flight(3, 3, 0).is_none(), "idle HTTP connections");
        assert!(!in_flight(3, 3, 1).is_none(), "a request");
        assert!(!in_flight(3, 2, 0).is_none(), "a TCP connection");
    }
}
