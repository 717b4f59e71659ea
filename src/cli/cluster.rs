//! The way into a cluster: to each replica of the control plane and to the proxies, as `kubectl port-forward` goes, through
//! the API server and the kubelet. So nothing has to be reachable from here but the API server, and no NetworkPolicy is in
//! the way.
//!
//! ```text
//!  command ─TCP─▶ a socket of this process ─▶ API server (pods/portforward) ─▶ kubelet ─▶ pod, on its loopback
//! ```

use std::io;
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::sync::mpsc;
use std::time::Duration;

use k8s_openapi::api::core::v1::Pod;
use kube::Api;
use kube::api::ListParams;
use tokio::io::copy_bidirectional;
use tokio::runtime::Runtime;

use super::api_server::{self, ApiServer};
use super::proxy::reach::{KnownPod, Reach, Target};
use crate::kubernetes::Cluster;

/// The pods of the control plane.
const LABELS: &str = "app.kubernetes.io/name=weft,app.kubernetes.io/component=control-plane";
/// Where the control plane tells of itself.
const INSPECTION: u16 = 15014;
/// A sidecar's admin interface.
const ADMIN: u16 = 15000;
/// How long the API server may take.
const PATIENCE: Duration = Duration::from_secs(10);

/// A cluster with a control plane in it.
pub(super) struct InCluster {
    cluster: Cluster,
    /// Carries what goes both ways, beside the command.
    runtime: Runtime,
}

impl InCluster {
    /// The cluster that is meant, with the control plane in this namespace. Nothing is asked yet.
    ///
    /// # Errors
    /// When nothing tells which it is.
    pub(super) fn open(server: &ApiServer, namespace: &str) -> anyhow::Result<Self> {
        let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build()?;
        let cluster = runtime.block_on(server.connect(namespace))?;
        Ok(Self { cluster, runtime })
    }

    /// Does `work` beside the command, which waits for it.
    fn wait_for<T: Send + 'static>(
        &self,
        what: String,
        work: impl Future<Output = Result<T, String>> + Send + 'static,
    ) -> io::Result<T> {
        let (tell, told) = mpsc::sync_channel(1);
        self.runtime.spawn(async move {
            let late = |_| Err(format!("nothing within {PATIENCE:?}"));
            // Nobody waits any more when the command has ended.
            let _ = tell.send(tokio::time::timeout(PATIENCE, work).await.unwrap_or_else(late));
        });
        let done = told.recv().map_err(io::Error::other)?;
        done.map_err(|error| io::Error::other(format!("the API server did not {what}: {error}")))
    }

    /// A socket whose other end is a port of a pod.
    fn forward(&self, namespace: &str, pod: &str, port: u16) -> io::Result<TcpStream> {
        let (ours, theirs) = pair()?;
        let api: Api<Pod> = Api::namespaced(self.cluster.client(), namespace);
        let name = pod.to_owned();
        self.wait_for(format!("forward port {port} of pod {namespace}/{pod}"), async move {
            let mut forwarder = api.portforward(&name, &[port]).await.map_err(api_server::text)?;
            let mut inside = forwarder.take_stream(port).ok_or("the port was not forwarded")?;
            let mut theirs = tokio::net::TcpStream::from_std(theirs).map_err(|error| error.to_string())?;
            // Either end may close it: then the other one sees the end.
            tokio::spawn(async move { drop(copy_bidirectional(&mut theirs, &mut inside).await) });
            Ok(())
        })?;
        Ok(ours)
    }
}

impl Reach for InCluster {
    fn connect(&self, target: &Target) -> io::Result<TcpStream> {
        match target {
            Target::Address(address) => TcpStream::connect(address),
            Target::Admin(pod) => self.forward(pod.namespace.as_str(), &pod.name, ADMIN),
            Target::Replica(name) => self.forward(self.cluster.namespace(), name, INSPECTION),
            Target::ControlPlane => Err(io::Error::other("which replica of it?")),
        }
    }

    fn pods(&self) -> io::Result<Option<Vec<KnownPod>>> {
        Ok(None)
    }

    fn replicas(&self) -> io::Result<Vec<Target>> {
        let (client, namespace) = (self.cluster.client(), self.cluster.namespace().to_owned());
        let pods = self.wait_for(format!("list the pods of {namespace}"), async move {
            let params = ListParams::default().labels(LABELS);
            Ok(api_server::list::<Pod>(&client, Some(&namespace), &params).await?.0)
        })?;
        let ready: Vec<_> =
            pods.iter().filter(|pod| is_ready(pod)).filter_map(|pod| pod.metadata.name.clone()).collect();
        if ready.is_empty() {
            let namespace = self.cluster.namespace();
            return Err(io::Error::other(format!(
                "no replica of the control plane is ready in namespace {namespace} ({} are there); see `weft check -n \
                 {namespace}`, or name another namespace with --weft-namespace",
                pods.len()
            )));
        }
        Ok(ready.into_iter().map(Target::Replica).collect())
    }
}

fn is_ready(pod: &Pod) -> bool {
    let conditions = pod.status.as_ref().and_then(|status| status.conditions.as_deref()).unwrap_or_default();
    conditions.iter().any(|condition| condition.type_ == "Ready" && condition.status == "True")
}

/// Two ends of a connection over loopback.
fn pair() -> io::Result<(TcpStream, TcpStream)> {
    let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, 0))?;
    let ours = TcpStream::connect(listener.local_addr()?)?;
    let from = ours.local_addr()?;
    loop {
        // Who else comes by is not let in.
        let (theirs, by) = listener.accept()?;
        if by == from {
            ours.set_nodelay(true)?;
            theirs.set_nodelay(true)?;
            theirs.set_nonblocking(true)?;
            return Ok((ours, theirs));
        }
    }
}

#[cfg(test)]
mod tests {
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn both_ends_are_of_one_connection() {
        let (mut ours, theirs) = pair().unwrap();
        theirs.set_nonblocking(false).unwrap();
        let mut theirs = theirs;
        ours.write_all(b"there").unwrap();
        let mut bytes = [0; 5];
        theirs.read_exact(&mut bytes).unwrap();
        assert_eq!(&bytes, b"there");
    }
}
