//! The servers that are compared: how each is started, changed, and checked.

use std::net::{Ipv4Addr, SocketAddr};
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use weft::ca::Clock;
use weft::ca::token::TokenSigner;
use weft::mesh::ServiceAccountKey;

use crate::catalog::{Catalog, NameId};
use crate::fleet::Target;
use crate::mesh::{MeshDirectory, Size};
use crate::process::{self, Process};
use crate::sidecar::Persona;

/// Which server.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug, clap::ValueEnum, serde::Serialize)]
#[serde(rename_all = "kebab-case")]
pub enum Kind {
    /// `weft serve` on a directory.
    Weft,
    /// go-control-plane with a snapshot cache, of which every proxy has its own snapshot.
    GoSnapshot,
    /// go-control-plane with a linear cache of each type.
    GoLinear,
}

/// The programs.
#[derive(Clone, Debug)]
pub struct Programs {
    /// The `weft` binary.
    pub weft: PathBuf,
    /// The go-control-plane server's binary.
    pub go: PathBuf,
}

/// A running server.
pub struct Server {
    kind: Kind,
    program: PathBuf,
    arguments: Vec<String>,
    log: PathBuf,
    control: SocketAddr,
    /// The process.
    pub process: Process,
    /// Where it serves.
    pub target: Target,
    mesh: MeshDirectory,
    signer: TokenSigner,
    /// Its files.
    _directory: tempfile::TempDir,
}

/// The name in the Go server's certificate.
const GO_NAME: &str = "go-control-plane";

impl Server {
    /// Starts a server with a mesh of this size, and waits until it is ready.
    pub async fn start(kind: Kind, programs: &Programs, size: Size) -> anyhow::Result<Self> {
        let directory = tempfile::tempdir()?;
        let path = directory.path();
        let signer = TokenSigner::generate(Clock::system())?;
        let (xds, control) = (loopback(process::free_port()?), loopback(process::free_port()?));
        let mesh = MeshDirectory::write(&path.join("mesh"), size)?;
        let text = |path: &Path| path.display().to_string();
        let (program, arguments, root, name) = match kind {
            Kind::Weft => {
                let key = path.join("token-key.pem");
                std::fs::write(&key, signer.public_key_pem())?;
                let ca = path.join("ca");
                let arguments = vec![
                    "serve".to_owned(),
                    format!("--source=dir:{}", text(mesh.path())),
                    format!("--ca-dir={}", text(&ca)),
                    format!("--token-key={}", text(&key)),
                    format!("--xds={xds}"),
                    format!("--admin={control}"),
                ];
                (programs.weft.clone(), arguments, ca.join("root.pem"), weft::control_plane::DNS_NAME)
            }
            Kind::GoSnapshot | Kind::GoLinear => {
                let (certificate, key) = (path.join("server.pem"), path.join("server-key.pem"));
                let made = rcgen::generate_simple_self_signed([GO_NAME.to_owned()])?;
                std::fs::write(&certificate, made.cert.pem())?;
                std::fs::write(&key, made.signing_key.serialize_pem())?;
                let arguments = vec![
                    format!("--listen={xds}"),
                    format!("--control={control}"),
                    format!("--cache={}", if kind == Kind::GoSnapshot { "snapshot" } else { "linear" }),
                    format!("--services={}", size.services),
                    format!("--endpoints-per-service={}", 1 + size.proxies / size.services),
                    format!("--tls-cert={}", text(&certificate)),
                    format!("--tls-key={}", text(&key)),
                ];
                (programs.go.clone(), arguments, certificate, GO_NAME)
            }
        };
        let log = path.join("server.log");
        let mut process = start(&program, &arguments, &log)?;
        ready(kind, &mut process, control).await.with_context(|| tail(&log))?;
        let target = Target::new(xds, name, &std::fs::read(root)?)?;
        Ok(Self { kind, program, arguments, log, control, process, target, mesh, signer, _directory: directory })
    }

    /// Which server it is.
    pub fn kind(&self) -> Kind {
        self.kind
    }

    /// The mesh that it serves.
    pub fn mesh(&self) -> &MeshDirectory {
        &self.mesh
    }

    /// Who connects to it, with their tokens.
    pub fn personas(&self, catalog: &Catalog) -> anyhow::Result<Vec<(Persona, String)>> {
        let secrets: &[&str] = match self.kind {
            Kind::Weft => &[weft::ca::WORKLOAD, weft::ca::MESH_ROOT],
            _ => &[], // it serves none
        };
        let secrets: Arc<[NameId]> = secrets.iter().map(|name| catalog.name(name)).collect();
        let persona = |proxy| {
            let account = ServiceAccountKey::new(MeshDirectory::namespace(), MeshDirectory::account(proxy));
            let token = self.signer.sign(&account, &MeshDirectory::pod_name(proxy), Duration::from_secs(3600))?;
            let persona = Persona { node: MeshDirectory::node(proxy), secrets: secrets.clone(), refuses: false };
            Ok((persona, token))
        };
        (0..self.mesh.size().proxies).map(persona).collect()
    }

    /// The name of a Service's cluster.
    pub fn destination(&self, service: usize) -> String {
        match self.kind {
            Kind::Weft => MeshDirectory::destination(service),
            _ => format!("svc-{service}"),
        }
    }

    /// Changes a Service's endpoints; `serial` counts the changes from 1.
    pub async fn change(&self, service: usize, serial: usize) -> anyhow::Result<()> {
        match self.kind {
            Kind::Weft => Ok(self.mesh.change(service, serial)?),
            _ => self.post(service, serial).await,
        }
    }

    /// Replaces a pod of a Service.
    pub async fn replace_pod(&self, service: usize, serial: usize) -> anyhow::Result<()> {
        match self.kind {
            Kind::Weft => Ok(self.mesh.replace_pod(service, serial)?),
            _ => self.post(service, serial).await,
        }
    }

    async fn post(&self, service: usize, serial: usize) -> anyhow::Result<()> {
        let port = 1 + (serial + 20_000) % 60_000; // never the port from before any change
        let path = format!("/change?service={service}&value={port}");
        ensure!(process::http(self.control, "POST", &path).await?, "the server refuses {path}");
        Ok(())
    }

    /// Ends the process and starts it again on the same ports and files. Returns when it was ready.
    pub async fn restart(&mut self) -> anyhow::Result<Instant> {
        self.process.kill()?;
        self.process = start(&self.program, &self.arguments, &self.log)?;
        ready(self.kind, &mut self.process, self.control).await.with_context(|| tail(&self.log))?;
        Ok(Instant::now())
    }

    /// The end of what it logged.
    pub fn log_tail(&self) -> String {
        tail(&self.log)
    }
}

fn start(program: &Path, arguments: &[String], log: &Path) -> anyhow::Result<Process> {
    Process::start(program, arguments, log)
}

async fn ready(kind: Kind, process: &mut Process, control: SocketAddr) -> anyhow::Result<()> {
    process::ready(process, control, if kind == Kind::Weft { "/readyz" } else { "/ready" }).await
}

fn tail(log: &Path) -> String {
    let text = std::fs::read_to_string(log).unwrap_or_default();
    let lines: Vec<_> = text.lines().collect();
    format!("the server's log ends:\n{}", lines[lines.len().saturating_sub(8)..].join("\n"))
}

fn loopback(port: u16) -> SocketAddr {
    SocketAddr::from((Ipv4Addr::LOCALHOST, port))
}
