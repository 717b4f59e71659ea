//! Where the shop stands: in the playground, or on an API server (`kube::Shop`).

use std::net::{IpAddr, SocketAddr, TcpStream};
use std::time::Duration;

use crate::load::{Load, Summary};
use crate::mesh::Mesh;

/// What the checks that hold everywhere need. Each method is that of [`Mesh`] with its name, and fails as that does.
#[allow(missing_docs, clippy::missing_errors_doc, reason = "Mesh says it")]
pub trait Site: Sync {
    fn call(&self, pod: &str, arguments: &[&str]) -> anyhow::Result<String>;
    fn calls(&self, pod: &str, arguments: &[&str]) -> anyhow::Result<Summary>;
    fn code(&self, pod: &str, arguments: &[&str]) -> anyhow::Result<String>;
    fn load(&self, pod: &str, arguments: &[&str]) -> anyhow::Result<Load>;
    fn admin(&self, pod: &str, path: &str) -> anyhow::Result<String>;
    fn resolve(&self, pod: &str, name: &str) -> anyhow::Result<IpAddr>;
    fn dial(&self, pod: &str, to: SocketAddr) -> anyhow::Result<TcpStream>;
    fn read(&self, file: &str) -> anyhow::Result<String>;
    fn put(&self, file: &str, text: &str) -> anyhow::Result<()>;
    fn write(&self, file: &str, text: &str) -> anyhow::Result<Duration>;
    fn remove(&self, file: &str) -> anyhow::Result<Duration>;
    fn wait_for_pods(&self, namespace: &str, workload: &str, count: usize) -> anyhow::Result<()>;

    /// How many pods are ready, of how many.
    fn ready_pods(&self) -> anyhow::Result<(usize, usize)>;

    fn edit(&self, file: &str, edit: &dyn Fn(String) -> String) -> anyhow::Result<Duration> {
        let before = self.read(file)?;
        let after = edit(before.clone());
        anyhow::ensure!(before != after, "the edit of {file} changes nothing");
        self.write(file, &after)
    }

    fn stats(&self, pod: &str, filter: &str) -> anyhow::Result<Vec<(String, u64)>> {
        let text = self.admin(pod, &format!("/stats?filter={filter}"))?;
        let parse = |line: &str| Some((line.split_once(": ")?.0.to_owned(), line.split_once(": ")?.1.parse().ok()?));
        Ok(text.lines().filter_map(parse).collect())
    }
}

impl Site for Mesh {
    fn call(&self, pod: &str, arguments: &[&str]) -> anyhow::Result<String> {
        Mesh::call(self, pod, arguments)
    }

    fn calls(&self, pod: &str, arguments: &[&str]) -> anyhow::Result<Summary> {
        Mesh::calls(self, pod, arguments)
    }

    fn code(&self, pod: &str, arguments: &[&str]) -> anyhow::Result<String> {
        Mesh::code(self, pod, arguments)
    }

    fn load(&self, pod: &str, arguments: &[&str]) -> anyhow::Result<Load> {
        Mesh::load(self, pod, arguments)
    }

    fn admin(&self, pod: &str, path: &str) -> anyhow::Result<String> {
        Mesh::admin(self, pod, path)
    }

    fn resolve(&self, pod: &str, name: &str) -> anyhow::Result<IpAddr> {
        Mesh::resolve(self, pod, name)
    }

    fn dial(&self, pod: &str, to: SocketAddr) -> anyhow::Result<TcpStream> {
        Mesh::dial(self, pod, to)
    }

    fn read(&self, file: &str) -> anyhow::Result<String> {
        Mesh::read(self, file)
    }

    fn put(&self, file: &str, text: &str) -> anyhow::Result<()> {
        Mesh::put(self, file, text)
    }

    fn write(&self, file: &str, text: &str) -> anyhow::Result<Duration> {
        Mesh::write(self, file, text)
    }

    fn remove(&self, file: &str) -> anyhow::Result<Duration> {
        Mesh::remove(self, file)
    }

    fn wait_for_pods(&self, namespace: &str, workload: &str, count: usize) -> anyhow::Result<()> {
        Mesh::wait_for_pods(self, namespace, workload, count)
    }

    fn ready_pods(&self) -> anyhow::Result<(usize, usize)> {
        let pods = self.client().status()?.pods;
        Ok((pods.iter().filter(|pod| pod.ready).count(), pods.len()))
    }
}
