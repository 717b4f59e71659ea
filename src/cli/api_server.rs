//! How a command reaches the API server: the options that all such commands have.

use std::ffi::OsString;
use std::path::PathBuf;

use crate::kubernetes::{Cluster, ConnectError};

/// Which API server is meant.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct ApiServer {
    /// How to reach the API server [default: KUBECONFIG, ~/.kube/config]
    #[arg(long, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig [default: its current one]
    #[arg(long, value_name = "NAME")]
    context: Option<String>,
}

impl ApiServer {
    /// The API server, with the control plane in this namespace. No connection is made yet.
    ///
    /// # Errors
    /// When nothing tells where it is, or what does cannot be used.
    pub(super) async fn connect(&self, namespace: &str) -> Result<Cluster, ConnectError> {
        let (kubeconfig, context) = (self.kubeconfig.as_deref(), self.context.as_deref());
        Cluster::connect_by(kubeconfig, context, namespace.to_owned(), "weft-cli".to_owned()).await
    }

    /// The arguments by which Helm reaches the same one.
    pub(super) fn for_helm(&self) -> Vec<OsString> {
        let kubeconfig = self.kubeconfig.iter().flat_map(|path| ["--kubeconfig".into(), path.clone().into_os_string()]);
        let context = self.context.iter().flat_map(|context| ["--kube-context".into(), context.into()]);
        kubeconfig.chain(context).collect()
    }

    /// The same, as a person types them for `kubectl` or, with `--kube-context`, for `helm`.
    pub(super) fn typed(&self, context: &str) -> String {
        let kubeconfig = self.kubeconfig.iter().map(|path| format!(" --kubeconfig {}", path.display()));
        kubeconfig.chain(self.context.iter().map(|name| format!(" {context} {name}"))).collect()
    }
}
