//! Kubernetes' own controllers, where a test needs what becomes of a Deployment.

use std::process::Command;

use super::{Kubernetes, Process, binary};

/// Those that make pods of Deployments, and end what has lost its owner.
const CONTROLLERS: &str =
    "deployment-controller,replicaset-controller,disruption-controller,garbage-collector-controller";
/// Those that pods need to run and to be found. Nobody schedules, and nobody judges nodes.
const OF_A_NODE: &str = "endpointslice-controller,serviceaccount-controller,root-ca-certificate-publisher-controller";

impl Kubernetes {
    /// Runs those that make pods of Deployments, as long as the process lives. There are no nodes, and no kubelet: pods
    /// stay as they are made.
    ///
    /// # Errors
    /// When they cannot be started.
    pub fn controllers(&self) -> anyhow::Result<Process> {
        self.run_controllers(CONTROLLERS, &[])
    }

    /// Runs those and the ones that the pods of a [`super::Node`] need.
    pub(super) fn controllers_for_a_node(&self) -> anyhow::Result<Process> {
        let root = format!("--root-ca-file={}", self.directory().join("ca.pem").display());
        self.run_controllers(&format!("{CONTROLLERS},{OF_A_NODE}"), &[root])
    }

    fn run_controllers(&self, controllers: &str, arguments: &[String]) -> anyhow::Result<Process> {
        let mut command = Command::new(binary()?);
        command.args(["kube-controller-manager", "--kubeconfig"]).arg(self.kubeconfig());
        command.args(["--leader-elect=false", "--secure-port=0", "--controllers", controllers]).args(arguments);
        Process::start(&mut command, &self.directory().join("kube-controller-manager.log"))
    }
}
