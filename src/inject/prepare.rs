//! What the init container does in a pod: `weft internal prepare`.

use std::collections::BTreeMap;
use std::fs;
use std::io;
use std::net::IpAddr;
use std::path::{Path, PathBuf};

use crate::local::bootstrap::{self, Bootstrap, Directories, XdsProtocol, XdsProtocolError};
use crate::local::intercept::{self, ExclusionError, Exclusions, SidecarSockets};
use crate::local::probes::AskedProbe;
use crate::local::tools::{Tool, ToolError};
use crate::mesh::id::{PodKey, ProxyId, WorkloadKey};

/// Where the sidecar finds what is written here: a volume in memory, so that nothing needs a file system to write to.
pub const FILES: &str = "/run/weft/proxy";
/// Where it finds its token.
pub const TOKEN: &str = "/run/weft/token";
/// Where it finds the mesh's root.
pub const ROOT: &str = "/run/weft/root";
/// The script of its preStop hook, in [`FILES`].
pub const PRE_STOP: &str = "pre-stop.sh";
/// The script of a classic sidecar's postStart hook, in [`FILES`].
pub const POST_START: &str = "post-start.sh";

/// What is known of the pod.
#[derive(Debug, Clone)]
pub struct Preparation {
    /// The pod.
    pub pod: PodKey,
    /// The name of its workload.
    pub workload: String,
    /// The zone of its node, where it is known.
    pub zone: Option<String>,
    /// Its addresses, the primary one first.
    pub ips: Vec<IpAddr>,
    /// The DNS name of the control plane, which its certificate must carry.
    pub control_plane: String,
    /// The annotations that say how: the form of xDS, what is not intercepted.
    pub annotations: BTreeMap<String, String>,
    /// What the sidecar asks in the kubelet's place.
    pub probes: Vec<AskedProbe>,
    /// Whether the rules of interception are loaded; else somebody else does.
    pub intercept: bool,
}

/// Why a pod could not be prepared. The kubelet tries again.
#[derive(Debug, thiserror::Error)]
pub enum PrepareError {
    /// An annotation.
    #[error(transparent)]
    Exclusions(#[from] ExclusionError),
    /// An annotation.
    #[error(transparent)]
    XdsProtocol(#[from] XdsProtocolError),
    /// A file.
    #[error("cannot write {}: {error}; the volume weft-proxy must be mounted there", path.display())]
    Write {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// The rules.
    #[error("{0}; the container needs the capability NET_ADMIN, or a CNI plugin that intercepts in its place")]
    Rules(#[from] ToolError),
}

impl Preparation {
    /// Writes the files and loads the rules. Doing it again gives the same.
    ///
    /// # Errors
    /// When the sidecar could not run.
    pub fn run(&self) -> Result<(), PrepareError> {
        self.write(Path::new(FILES))?;
        if !self.intercept {
            return Ok(());
        }
        if self.ips.iter().any(IpAddr::is_ipv6) {
            // From ::6 the sidecar calls its application; 127.0.0.6 every Linux has.
            Tool::Ip.batch("address replace ::6/128 dev lo\n", "give the pod the address ::6")?;
        }
        let exclusions = Exclusions::from_annotations(&self.annotations)?;
        Ok(intercept::apply(SidecarSockets::Uid(intercept::SIDECAR_UID), &exclusions)?)
    }

    /// Writes the files, which the sidecar will see in [`FILES`].
    ///
    /// # Errors
    /// When an annotation or the directory cannot be used.
    pub fn write(&self, directory: &Path) -> Result<(), PrepareError> {
        let bootstrap = Bootstrap {
            node: &ProxyId(self.pod.clone()),
            workload: &WorkloadKey::new(self.pod.namespace.clone(), self.workload.as_str()),
            zone: self.zone.as_deref(),
            control_plane: &self.control_plane,
            control_plane_name: &self.control_plane,
            protocol: XdsProtocol::from_annotations(&self.annotations)?,
            sockets: SidecarSockets::Uid(intercept::SIDECAR_UID),
            directories: Directories { files: FILES, token: TOKEN, root: ROOT },
            pod_ip: self.ips.first().copied(),
            probes: &self.probes,
        };
        let scripts = [
            (PRE_STOP, include_str!("../../envoy-bootstrap/pre-stop.sh").to_owned()),
            (POST_START, include_str!("../../envoy-bootstrap/post-start.sh").to_owned()),
        ];
        for (name, text) in bootstrap::render(&bootstrap).into_iter().chain(scripts) {
            let path = directory.join(name);
            fs::write(&path, text).map_err(|error| PrepareError::Write { path, error })?;
        }
        Ok(())
    }
}
