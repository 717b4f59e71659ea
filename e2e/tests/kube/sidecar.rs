//! A stock Envoy with a sidecar's bootstrap and a projected token, at a control plane that an API server feeds.

use std::fs;
use std::net::{Ipv4Addr, SocketAddr};
use std::os::unix::fs::symlink;
use std::path::Path;
use std::process::Command;
use std::time::{Duration, Instant};

use anyhow::ensure;
use serde_json::json;
use weft::local::bootstrap::{self, Bootstrap, Directories, XdsProtocol};
use weft::local::intercept::SidecarSockets;
use weft::mesh::{PodKey, ProxyId, WorkloadKey};
use weft_e2e::kube::{Kubernetes, Process, Replica, endpoint_slice, free_port, http, meshed_pod, namespace, service};
use weft_e2e::mesh::{envoy, pinned_version};
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

use crate::root::root_of;
use crate::status::condition;
use crate::{account, finish, install, tail};

const PATIENCE: Duration = Duration::from_secs(60);
/// Where sidecars call the control plane, in their bootstrap.
const XDS: &str = "port_value: 15010";

#[test]
fn a_stock_envoy_is_configured_from_an_api_server() {
    sidecar("default");
}

#[test]
fn the_oldest_stock_envoy_is_configured_from_an_api_server() {
    sidecar("oldest");
}

fn sidecar(line: &str) {
    let version = pinned_version(line).expect("a version");
    let mut kubernetes = Kubernetes::start().expect("an API server");
    let mut rows = Scenarios::of(&format!("sidecar-{line}"), &version);
    let kubeconfig = install(&kubernetes).expect("installed");
    shop(&kubernetes).expect("a shop");
    let mut replica = Replica::start(kubernetes.directory(), "one", &kubeconfig, &[]).expect("started");
    replica.wait_until_ready().expect("ready");
    let sidecar = Sidecar::start(&kubernetes, &replica, &version).expect("an Envoy");

    rows.holds("kube-sidecar: an Envoy with a projected token becomes ready", "LIVE", || {
        let ready = until("it is ready", PATIENCE, || {
            Ok(match sidecar.admin("/ready") {
                Ok(ready) if ready.trim() == "LIVE" => Ok(ready),
                Ok(other) => Err(format!("{other}{}", tail(&sidecar.log()))),
                Err(error) => Err(format!("{error:#}\n{}", tail(&sidecar.log()))),
            })
        })?;
        let listeners = sidecar.admin("/listeners")?;
        Ok((
            listeners.contains("15001") && listeners.contains("15006"),
            format!("{}, {}", ready.trim(), listeners.trim()),
        ))
    });
    rows.holds(
        "kube-sidecar: its certificate is its ServiceAccount's, of the root in the Secret",
        "spiffe://…/ns/shop/sa/cart",
        || {
            let found = until("it has a certificate", PATIENCE, || {
                let certificates = sidecar.admin("/certs")?;
                let own = certificates.contains("spiffe://cluster.local/ns/shop/sa/cart");
                Ok(if own { Ok("spiffe://cluster.local/ns/shop/sa/cart") } else { Err(certificates) })
            })?;
            Ok((true, found.to_owned()))
        },
    );
    rows.holds(
        "kube-sidecar: what its pod declares is warm, with the endpoints of the API server",
        "10.244.0.31:8080",
        || Ok((true, sidecar.endpoint("10.244.0.31:8080", true)?)),
    );
    rows.holds(
        "kube-sidecar: an endpoint that changes in the API server changes in the Envoy",
        "10.244.0.32:8080, and the first is gone",
        || {
            let began = Instant::now();
            kubernetes.put(&endpoint_slice("shop", "catalog", &[("catalog-2", "10.244.0.32")]))?;
            sidecar.endpoint("10.244.0.32:8080", true)?;
            let took = began.elapsed();
            sidecar.endpoint("10.244.0.31:8080", false)?;
            Ok((true, format!("after {} ms", took.as_millis())))
        },
    );
    rows.holds(
        "kube-status: an object says which proxies have it, and how long it took",
        "True Delivered … 1/1 proxies, … ms",
        || {
            let policy = |seconds: u32| {
                json!({
                    "apiVersion": "weft.dev/v1alpha1", "kind": "TrafficPolicy",
                    "metadata": {"namespace": "shop", "name": "catalog"},
                    "spec": {"targetRefs": [{"kind": "Service", "name": "catalog"}],
                        "timeouts": {"request": format!("{seconds}s")}},
                })
            };
            kubernetes.put(&policy(5))?;
            let first = condition(&kubernetes, "catalog", "Delivered", "True Delivered of generation 1")?;
            kubernetes.put(&policy(6))?;
            let second = condition(&kubernetes, "catalog", "Delivered", "True Delivered of generation 2")?;
            let timed = [&first, &second].iter().all(|said| said.contains("1/1 proxies, ") && said.ends_with('s'));
            Ok((timed, format!("{first}; {second}")))
        },
    );
    rows.holds(
        "kube-sidecar: with API server and control plane away it keeps what it has, and is found again",
        "LIVE, then a change",
        || {
            kubernetes.kill_server()?;
            let xds = replica.xds();
            drop(replica); // SIGKILL
            sidecar.endpoint("10.244.0.32:8080", true)?;
            ensure!(sidecar.admin("/ready")?.trim() == "LIVE");
            kubernetes.start_server()?;
            let at = xds.to_string();
            let mut next = Replica::start(kubernetes.directory(), "two", &kubeconfig, &["--xds", &at])?;
            next.wait_until_ready()?;
            kubernetes.put(&endpoint_slice("shop", "catalog", &[("catalog-1", "10.244.0.31")]))?;
            sidecar.endpoint("10.244.0.31:8080", true)?;
            let refused = sidecar.admin("/stats?filter=update_rejected")?;
            next.stop()?;
            Ok((
                refused.lines().all(|line| line.ends_with(": 0")),
                "LIVE, then a change; nothing was refused".to_owned(),
            ))
        },
    );
    finish(rows, || tail(&sidecar.log()));
}

fn shop(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    kubernetes.put(&namespace("shop"))?;
    for name in ["cart", "catalog"] {
        kubernetes.put(&account("shop", name))?;
        kubernetes.put(&service("shop", name, 80))?;
    }
    let mut cart = meshed_pod("shop", "cart-1", "cart", "10.244.0.11");
    cart["metadata"]["annotations"] = json!({"weft.dev/upstreams": "catalog.shop:80"});
    kubernetes.put(&cart)?;
    for (name, ip) in [("catalog-1", "10.244.0.31"), ("catalog-2", "10.244.0.32")] {
        kubernetes.put(&meshed_pod("shop", name, "catalog", ip))?;
    }
    kubernetes.put(&endpoint_slice("shop", "catalog", &[("catalog-1", "10.244.0.31")]))
}

struct Sidecar {
    _process: Process,
    admin: SocketAddr,
    log: std::path::PathBuf,
}

impl Sidecar {
    /// The sidecar of pod shop/cart-1. Its listeners are on this machine, and nobody calls them.
    fn start(kubernetes: &Kubernetes, replica: &Replica, version: &str) -> anyhow::Result<Self> {
        let directory = kubernetes.directory().join("proxy");
        fs::create_dir(&directory)?;
        mounted(
            &directory.join("token"),
            "token",
            &kubernetes.token("shop", "cart", Some("weft-xds"), Some("cart-1"), 3_600)?,
        )?;
        mounted(&directory.join("root"), "root.pem", &root_of(kubernetes, "shop")?)?;
        let seen_as = directory.display().to_string();
        let (token, root) = (format!("{seen_as}/token"), format!("{seen_as}/root"));
        let bootstrap = Bootstrap {
            node: &ProxyId(PodKey::new("shop", "cart-1")),
            workload: &WorkloadKey::new("shop", "cart"),
            zone: None,
            control_plane: "127.0.0.1",
            control_plane_name: bootstrap::CONTROL_PLANE_NAME,
            protocol: XdsProtocol::Delta,
            sockets: SidecarSockets::Uid(1337),
            directories: Directories { files: &seen_as, token: &token, root: &root },
            pod_ip: None,
            probes: &[],
        };
        let (admin, health) = (free_port()?, free_port()?);
        for (name, text) in bootstrap::render(&bootstrap) {
            let text = text
                .replace("port_value: 15000", &format!("port_value: {admin}"))
                .replace("port_value: 15020", &format!("port_value: {health}"))
                .replace(XDS, &format!("port_value: {}", replica.xds().port()));
            fs::write(directory.join(name), text)?;
        }
        let log = kubernetes.directory().join("envoy.log");
        let process = Process::start(
            Command::new(envoy(version)?)
                .args(["--disable-hot-restart", "--concurrency", "1", "-l", "warning", "-c"])
                .arg(directory.join("bootstrap.yaml"))
                .env(weft::envoy::names::SERVICE_ACCOUNT_VARIABLE, "shop/cart"),
            &log,
        )?;
        Ok(Self { _process: process, admin: SocketAddr::from((Ipv4Addr::LOCALHOST, admin)), log })
    }

    fn admin(&self, path: &str) -> anyhow::Result<String> {
        http(self.admin, "GET", path, "")
    }

    fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// Waits until it has, or no longer has, an endpoint.
    fn endpoint(&self, address: &str, wanted: bool) -> anyhow::Result<String> {
        until(&format!("endpoint {address}: {wanted}"), PATIENCE, || {
            let clusters = self.admin("/clusters")?;
            let line = clusters.lines().find(|line| line.contains(address));
            Ok(match (line, wanted) {
                (Some(line), true) => Ok(line.to_owned()),
                (None, false) => Ok(String::new()),
                _ => Err(format!("{clusters}{}", tail(&self.log()))),
            })
        })
    }
}

/// A file as a kubelet mounts it: behind a link that it swaps.
fn mounted(directory: &Path, name: &str, content: &str) -> anyhow::Result<()> {
    fs::create_dir_all(directory.join("..1"))?;
    fs::write(directory.join("..1").join(name), content)?;
    symlink("..1", directory.join("..data"))?;
    symlink(Path::new("..data").join(name), directory.join(name))?;
    Ok(())
}
