//! What the control plane does with a Kubernetes API server beside reading the mesh from it.
//!
//! ```text
//!  TokenReviews ◀── token_review: who a sidecar is                 every replica
//!  Secret       ◀─▶ root_secret: what the mesh's root is           every replica; the holder puts it back
//!  Lease        ◀─▶ lease: which replica is the holder             every replica
//!  ConfigMap    ◀─▶ warm_sets: what each workload calls            every replica
//!  ConfigMaps   ◀── root_bundle: the root, for sidecars to trust   the holder
//!  Secret, webhook configurations, CustomResourceDefinitions
//!               ◀─▶ webhooks: their certificate, and who asks them the holder
//!  conditions, Events
//!               ◀── status: what became of objects              the holder
//! ```
//!
//! Whatever fails here is said with the verb and the resource, is tried again, and takes nothing from what sidecars have.

pub mod lease;
pub mod root_bundle;
pub mod root_secret;
pub mod status;
pub mod token_review;
pub mod warm_sets;
pub mod webhooks;

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::Duration;

use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};

use crate::mesh::Diagnostic;

/// How long one request may take.
const REQUEST: Duration = Duration::from_secs(10);

/// An API server, and who we are to it.
#[derive(Clone)]
pub struct Cluster {
    client: Client,
    /// The control plane's own namespace.
    namespace: String,
    /// The name of this replica: its pod's.
    replica: String,
}

impl fmt::Debug for Cluster {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Cluster").field("namespace", &self.namespace).field("replica", &self.replica).finish()
    }
}

/// Why there is no API server to talk to.
#[derive(Debug, thiserror::Error)]
pub enum ConnectError {
    /// The file cannot be used.
    #[error("cannot use the kubeconfig {}: {error}", path.display())]
    Kubeconfig {
        /// The file.
        path: PathBuf,
        /// Why not.
        error: String,
    },
    /// The kubeconfig has no such context, or one that cannot be used.
    #[error("cannot use the context {context}: {error}; `kubectl config get-contexts` lists those that there are")]
    Context {
        /// Its name.
        context: String,
        /// Why not.
        error: String,
    },
    /// Nothing says where an API server is.
    #[error("no API server is known: {0}; give --kubeconfig FILE, or run in a pod with a ServiceAccount token")]
    Nowhere(String),
    /// The client cannot be made.
    #[error("cannot set up the client of the API server: {0}")]
    Client(String),
}

impl Cluster {
    /// The API server that `kubeconfig` names; without one, that of the environment's `KUBECONFIG`, or of the pod that
    /// this runs in. No connection is made yet.
    ///
    /// # Errors
    /// When nothing tells where it is, or what does cannot be used.
    pub async fn connect(kubeconfig: Option<&Path>, namespace: String, replica: String) -> Result<Self, ConnectError> {
        Self::connect_by(kubeconfig, None, namespace, replica).await
    }

    /// As [`Cluster::connect`], by a context of the kubeconfig that need not be its current one.
    ///
    /// # Errors
    /// When nothing tells where it is, or what does cannot be used.
    pub async fn connect_by(
        kubeconfig: Option<&Path>,
        context: Option<&str>,
        namespace: String,
        replica: String,
    ) -> Result<Self, ConnectError> {
        let options = KubeConfigOptions { context: context.map(str::to_owned), ..KubeConfigOptions::default() };
        let mut config = match (kubeconfig, context) {
            (Some(path), _) => {
                let unusable = |error: String| ConnectError::Kubeconfig { path: path.to_owned(), error };
                let read = Kubeconfig::read_from(path).map_err(|error| unusable(error.to_string()))?;
                let chosen = Config::from_custom_kubeconfig(read, &options).await;
                chosen.map_err(|error| unusable(error.to_string()))?
            }
            (None, Some(context)) => {
                let unusable = |error: String| ConnectError::Context { context: context.to_owned(), error };
                Config::from_kubeconfig(&options).await.map_err(|error| unusable(error.to_string()))?
            }
            (None, None) => Config::infer().await.map_err(|error| ConnectError::Nowhere(error.to_string()))?,
        };
        config.connect_timeout = Some(Duration::from_secs(5));
        // Each task tries again by itself, and says so.
        config.default_retry = false;
        let client = Client::try_from(config).map_err(|error| ConnectError::Client(error.to_string()))?;
        Ok(Self { client, namespace, replica })
    }

    /// Its client.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// The control plane's own namespace.
    pub fn namespace(&self) -> &str {
        &self.namespace
    }
}

/// Who is told how it stands with the control plane's own objects.
pub trait Report: Send + Sync {
    /// What is wrong with `of` (`Secret weft-system/weft-ca`) now; `None`: nothing any more.
    fn report(&self, of: &str, found: Option<Diagnostic>);
}

/// A request that failed.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub(crate) enum RequestError {
    /// There is no such object.
    #[error("there is none")]
    Missing,
    /// Somebody else was faster.
    #[error("it was changed by another at the same time")]
    Conflict,
    /// We may not.
    #[error("the control plane may not {verb} it: {message}")]
    Forbidden {
        /// `get`, `create`, …
        verb: &'static str,
        /// The server's words.
        message: String,
    },
    /// The server refuses it.
    #[error("the API server refuses to {verb} it: {message}")]
    Refused {
        /// `get`, `create`, …
        verb: &'static str,
        /// The server's words.
        message: String,
    },
    /// There is no answer.
    #[error("the API server does not answer: {0}")]
    Unanswered(String),
}

impl RequestError {
    fn new(verb: &'static str, error: kube::Error) -> Self {
        match error {
            kube::Error::Api(status) => match status.code {
                404 => Self::Missing,
                409 => Self::Conflict,
                403 => Self::Forbidden { verb, message: status.message },
                429 | 500.. => Self::Unanswered(format!("{}: {}", status.code, status.message)),
                _ => Self::Refused { verb, message: status.message },
            },
            error => Self::Unanswered(error.to_string()),
        }
    }

    /// What to do about it.
    fn help(&self, resource: &str) -> String {
        match self {
            Self::Forbidden { verb, .. } => {
                format!("allow the control plane's ServiceAccount the verb {verb} on {resource}; it is tried again")
            }
            Self::Unanswered(_) => "see that the API server can be reached; it is tried again".to_owned(),
            _ => "see the message; it is tried again".to_owned(),
        }
    }
}

/// Sends a request, for at most as long as one may take.
async fn send<T>(verb: &'static str, request: impl Future<Output = kube::Result<T>>) -> Result<T, RequestError> {
    match tokio::time::timeout(REQUEST, request).await {
        Ok(answer) => answer.map_err(|error| RequestError::new(verb, error)),
        Err(_) => Err(RequestError::Unanswered(format!("nothing within {REQUEST:?}"))),
    }
}
