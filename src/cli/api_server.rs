//! How a command reaches the API server: the options that all such commands have, and how it reads large objects.

use std::ffi::OsString;
use std::path::PathBuf;

use kube::api::{ApiResource, DynamicObject, ListParams};
use kube::{Api, Client, Resource};
use serde::Serialize;
use serde::de::DeserializeOwned;

use crate::kubernetes::{Cluster, ConnectError};
use crate::source::manifest;

/// Which API server is meant.
#[derive(clap::Args, Clone, Debug, Default)]
pub struct ApiServer {
    /// How to reach the API server [default: KUBECONFIG, ~/.kube/config]
    #[arg(long, global = true, value_name = "FILE")]
    kubeconfig: Option<PathBuf>,
    /// The context of the kubeconfig [default: its current one]
    #[arg(long, global = true, value_name = "NAME")]
    context: Option<String>,
}

impl ApiServer {
    /// Whether the user says which.
    pub(super) fn is_chosen(&self) -> bool {
        self.kubeconfig.is_some() || self.context.is_some()
    }

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

/// A page of a namespace's or of all objects, and the token of the next page.
///
/// They are read as the source reads them, by way of JSON: each further way of reading a Pod, or what has its template,
/// is a megabyte of code.
///
/// # Errors
/// In words: what the API server said, or which field is not as it should be.
pub(super) async fn list<T>(
    client: &Client,
    namespace: Option<&str>,
    params: &ListParams,
) -> Result<(Vec<T>, Option<String>), String>
where
    T: Resource<DynamicType = ()> + DeserializeOwned + Serialize,
{
    let kind = ApiResource::erase::<T>(&());
    let api: Api<DynamicObject> = match namespace {
        Some(namespace) => Api::namespaced_with(client.clone(), namespace, &kind),
        None => Api::all_with(client.clone(), &kind),
    };
    let page = api.list(params).await.map_err(text)?;
    let objects = page.items.into_iter().map(typed).collect::<Result<_, _>>()?;
    Ok((objects, page.metadata.continue_.filter(|token| !token.is_empty())))
}

/// An object of a namespace, read in the same way; `None` when there is none.
///
/// # Errors
/// As [`list`].
pub(super) async fn get<T>(client: &Client, namespace: &str, name: &str) -> Result<Option<T>, String>
where
    T: Resource<DynamicType = ()> + DeserializeOwned + Serialize,
{
    let kind = ApiResource::erase::<T>(&());
    let api = Api::<DynamicObject>::namespaced_with(client.clone(), namespace, &kind);
    api.get_opt(name).await.map_err(text)?.map(typed).transpose()
}

fn typed<T: DeserializeOwned + Serialize>(object: DynamicObject) -> Result<T, String> {
    let json = serde_json::to_value(object).map_err(|error| error.to_string())?;
    manifest::typed(json).map(|object| *object).map_err(|error| format!("{}: {}", error.field, error.message))
}

/// The server's words, or why it does not answer.
pub(super) fn text(error: kube::Error) -> String {
    match error {
        kube::Error::Api(status) => status.message,
        error => error.to_string(),
    }
}
