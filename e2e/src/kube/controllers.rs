//! Kubernetes' own controllers, where a test needs what becomes of a Deployment.

use std::process::Command;

use super::{Kubernetes, Process, binary};

/// Those that make pods of Deployments, and end what has lost its owner.
const CONTROLLERS: &str =
    "deployment-controller,replicaset-controller,disruption-controller,garbage-collector-controller";

impl Kubernetes {
    /// Runs those that make pods of Deployments, as long as the process lives. There are no nodes, and no kubelet: pods
    /// stay as they are made.
    ///
    /// # Errors
    /// When they cannot be started.
    pub fn controllers(&self) -> anyhow::Result<Process> {
        let mut command = Command::new(binary()?);
        command.args(["kube-controller-manager", "--kubeconfig"]).arg(self.kubeconfig());
        command.args(["--leader-elect=false", "--secure-port=0", "--controllers", CONTROLLERS]);
        Process::start(&mut command, &self.directory().join("kube-controller-manager.log"))
    }
}
