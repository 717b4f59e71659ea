//! A mesh as a directory of Kubernetes YAML: Services, an EndpointSlice each in a file of its own, and a pod for each
//! sidecar.
//!
//! Pods are the endpoints of the Services in turn. Each slice has one endpoint more, whose address is what a change
//! changes.

use std::fmt::Write as _;
use std::net::Ipv4Addr;
use std::path::{Path, PathBuf};
use std::{fs, io};

const NAMESPACE: &str = "bench";
const PODS_OF_A_WORKLOAD: usize = 10;
const DOCUMENTS_OF_A_FILE: usize = 500;

/// The size of a mesh.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct Size {
    /// Services.
    pub services: usize,
    /// Sidecars, each in a pod of its own.
    pub proxies: usize,
    /// Every sidecar is given everything; otherwise on demand.
    pub eager: bool,
}

/// A mesh on disk.
#[derive(Debug)]
pub struct MeshDirectory {
    path: PathBuf,
    size: Size,
}

impl MeshDirectory {
    /// Writes the mesh into an empty directory.
    pub fn write(path: &Path, size: Size) -> io::Result<Self> {
        let mesh = Self { path: path.to_owned(), size };
        fs::create_dir_all(path.join("slices"))?;
        let mode = if size.eager { "Eager" } else { "OnDemand" };
        let config = format!(
            "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: default}}\n\
             spec: {{discovery: {{mode: {mode}}}, network: {{ranges: [10.96.0.0/12, 10.128.0.0/9]}}}}\n---\n\
             apiVersion: v1\nkind: Namespace\nmetadata: {{name: {NAMESPACE}, labels: {{weft.dev/inject: enabled}}}}\n"
        );
        fs::write(path.join("mesh.yaml"), config)?;
        mesh.bulk("services", size.services, Self::service)?;
        mesh.bulk("pods", size.proxies, Self::pod)?;
        (0..size.services).try_for_each(|service| fs::write(mesh.slice_file(service), mesh.slice(service, 0)))?;
        Ok(mesh)
    }

    /// The directory.
    pub fn path(&self) -> &Path {
        &self.path
    }

    /// The size it was written with.
    pub fn size(&self) -> Size {
        self.size
    }

    /// The `node.id` of a sidecar.
    pub fn node(proxy: usize) -> String {
        format!("{}.{NAMESPACE}", Self::pod_name(proxy))
    }

    /// The namespace of everything.
    pub fn namespace() -> &'static str {
        NAMESPACE
    }

    /// The pod of a sidecar.
    pub fn pod_name(proxy: usize) -> String {
        format!("p-{proxy}")
    }

    /// The ServiceAccount of a sidecar.
    pub fn account(proxy: usize) -> String {
        format!("w-{}", proxy / PODS_OF_A_WORKLOAD)
    }

    /// The name of a Service's cluster and endpoints.
    pub fn destination(service: usize) -> String {
        format!("{}:80", address([10, 96, 0, 0], service + 1))
    }

    /// Changes a Service's endpoints; another `serial` is another address.
    pub fn change(&self, service: usize, serial: usize) -> io::Result<()> {
        // Renamed into place, so that it is seen once and whole; a hidden file is not looked at.
        let (file, next) = (self.slice_file(service), self.path.join(format!("slices/.{service}")));
        fs::write(&next, self.slice(service, serial))?;
        fs::rename(next, file)
    }

    /// Replaces a pod: another address in the EndpointSlice and a Pod of that address, as two files of two objects.
    pub fn replace_pod(&self, service: usize, serial: usize) -> io::Result<()> {
        let next = self.path.join(format!("slices/.pod-{service}"));
        let ip = Self::moving(serial);
        let pod = format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: moving-{service}, namespace: {NAMESPACE}}}\n\
             spec: {{containers: [{{name: app, image: app}}]}}\nstatus: {{phase: Running, podIP: {ip}}}\n"
        );
        fs::write(&next, pod)?;
        fs::rename(next, self.path.join(format!("slices/pod-{service}.yaml")))?;
        self.change(service, serial)
    }

    fn bulk(&self, name: &str, count: usize, document: fn(&Self, usize) -> String) -> io::Result<()> {
        for (number, first) in (0..count).step_by(DOCUMENTS_OF_A_FILE).enumerate() {
            let last = count.min(first + DOCUMENTS_OF_A_FILE);
            let documents: Vec<_> = (first..last).map(|index| document(self, index)).collect();
            fs::write(self.path.join(format!("{name}-{number}.yaml")), documents.join("---\n"))?;
        }
        Ok(())
    }

    fn service(&self, service: usize) -> String {
        let ip = address([10, 96, 0, 0], service + 1);
        format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: svc-{service}, namespace: {NAMESPACE}}}\n\
             spec: {{clusterIP: {ip}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n"
        )
    }

    fn pod(&self, proxy: usize) -> String {
        let (name, account, ip) = (Self::pod_name(proxy), Self::account(proxy), Self::pod_ip(proxy));
        format!(
            "apiVersion: v1\nkind: Pod\nmetadata:\n  name: {name}\n  namespace: {NAMESPACE}\n  \
             labels: {{app: {account}, pod-template-hash: abcde}}\n  \
             ownerReferences: [{{apiVersion: apps/v1, kind: ReplicaSet, name: {account}-abcde, uid: u, controller: true}}]\n\
             spec:\n  serviceAccountName: {account}\n  containers:\n  \
             - {{name: app, image: app, ports: [{{name: http, containerPort: 8080}}]}}\n  \
             - {{name: weft-proxy, image: envoy}}\nstatus: {{phase: Running, podIP: {ip}}}\n"
        )
    }

    fn slice(&self, service: usize, serial: usize) -> String {
        let mut text = format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: svc-{service}-1\n  \
             namespace: {NAMESPACE}\n  labels: {{kubernetes.io/service-name: svc-{service}}}\n\
             addressType: IPv4\nports: [{{name: http, port: 8080, protocol: TCP}}]\nendpoints:\n\
             - {{addresses: [{}], conditions: {{ready: true}}}}\n",
            if serial == 0 { address([10, 248, 0, 0], service + 1) } else { Self::moving(serial) }
        );
        for proxy in (service..self.size.proxies).step_by(self.size.services) {
            let (ip, name) = (Self::pod_ip(proxy), Self::pod_name(proxy));
            let target = format!("{{kind: Pod, name: {name}, namespace: {NAMESPACE}}}");
            // Writing to a String does not fail.
            let _ = writeln!(text, "- {{addresses: [{ip}], conditions: {{ready: true}}, targetRef: {target}}}");
        }
        text
    }

    fn slice_file(&self, service: usize) -> PathBuf {
        self.path.join(format!("slices/svc-{service}.yaml"))
    }

    fn pod_ip(proxy: usize) -> Ipv4Addr {
        address([10, 128, 0, 0], proxy + 1)
    }

    fn moving(serial: usize) -> Ipv4Addr {
        address([10, 192, 0, 0], serial)
    }
}

/// The address so many after `base`.
fn address(base: [u8; 4], offset: usize) -> Ipv4Addr {
    Ipv4Addr::from(u32::from_be_bytes(base).wrapping_add(offset as u32))
}
