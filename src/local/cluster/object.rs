//! What the cluster is given: the kinds it acts upon, typed, and all others as they are written.

use std::path::PathBuf;
use std::sync::Arc;

use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::mesh::{Kind, ObjectRef};

/// An object of the user's directory.
///
/// A missing `metadata.namespace` means `default`.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs, reason = "each variant holds the kind of the same name")]
pub enum Object {
    Namespace(Box<Namespace>),
    Deployment(Box<Deployment>),
    StatefulSet(Box<StatefulSet>),
    Pod(Box<Pod>),
    Service(Box<Service>),
    EndpointSlice(Box<EndpointSlice>),
    /// Any other kind: goes to the state directory as it is.
    Other {
        /// Which object.
        object: ObjectRef,
        /// Its document.
        yaml: String,
    },
}

impl Object {
    /// Which object this is.
    pub fn object_ref(&self) -> ObjectRef {
        match self {
            Self::Namespace(o) => ObjectRef { namespace: None, ..object_ref(Kind::Namespace, &o.metadata) },
            Self::Deployment(o) => object_ref(Kind::Deployment, &o.metadata),
            Self::StatefulSet(o) => object_ref(Kind::StatefulSet, &o.metadata),
            Self::Pod(o) => object_ref(Kind::Pod, &o.metadata),
            Self::Service(o) => object_ref(Kind::Service, &o.metadata),
            Self::EndpointSlice(o) => object_ref(Kind::EndpointSlice, &o.metadata),
            Self::Other { object, .. } => object.clone(),
        }
    }
}

/// The reference of a namespaced object.
pub(super) fn object_ref(kind: Kind, metadata: &ObjectMeta) -> ObjectRef {
    ObjectRef { kind, namespace: Some(namespace(metadata).into()), name: name(metadata).into() }
}

/// An object's namespace, `default` when it says none.
pub(super) fn namespace(metadata: &ObjectMeta) -> &str {
    metadata.namespace.as_deref().filter(|namespace| !namespace.is_empty()).unwrap_or("default")
}

/// An object's name.
pub(super) fn name(metadata: &ObjectMeta) -> &str {
    metadata.name.as_deref().unwrap_or_default()
}

/// A label of an object.
pub(super) fn label<'a>(metadata: &'a ObjectMeta, key: &str) -> Option<&'a str> {
    metadata.labels.as_ref()?.get(key).map(String::as_str)
}

/// Whether the names of `object` are ones that Kubernetes takes; only such become names of files.
pub(super) fn is_writable(object: &ObjectRef) -> bool {
    let fits = |name: &str| {
        let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-' || c == '.';
        !name.is_empty() && name.len() <= 200 && !name.starts_with('.') && name.chars().all(allowed)
    };
    fits(&object.name) && object.namespace.as_ref().is_none_or(|namespace| fits(namespace.as_str()))
}

/// Where an object stands in the state directory: `KIND/NAMESPACE/NAME.yaml`, `KIND/NAME.yaml` without a namespace.
pub(super) fn path(object: &ObjectRef) -> Arc<PathBuf> {
    let mut path = PathBuf::from(object.kind.to_string());
    if let Some(namespace) = &object.namespace {
        path.push(namespace.as_str());
    }
    path.push(format!("{}.yaml", object.name));
    Arc::new(path)
}
