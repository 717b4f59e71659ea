//! The objects that Weft reads, in their Kubernetes form: typed, and otherwise as they were written.
//!
//! [`Manifest::read`] makes one from a document's JSON; `source::convert` reduces it to what the mesh uses. The
//! playground, which acts as the API server of its pods, makes them itself and writes them with [`Manifest::to_yaml`].

pub mod config;
pub mod egress;
pub mod fault;
pub mod smi;
pub mod telemetry;
pub mod traffic_policy;

use std::borrow::Cow;

use k8s_openapi::Resource as _;
use k8s_openapi::api::apps::v1::{Deployment, StatefulSet};
use k8s_openapi::api::core::v1::{Namespace, Pod, Service, ServiceAccount};
use k8s_openapi::api::discovery::v1::EndpointSlice;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::Serialize;
use serde::de::DeserializeOwned;
use serde_json::Value;

use crate::mesh::{Kind, ObjectRef};
use config::MeshConfig;
use egress::Egress;
use fault::TrafficFault;
use smi::layer4::v1alpha4::UDPRoute;
use traffic_policy::TrafficPolicy;

pub use smi::{HTTPRouteGroup, TCPRoute, TrafficSplit, TrafficTarget};

/// One object of a kind that Weft reads.
#[derive(Clone, PartialEq, Debug)]
#[allow(missing_docs, reason = "each variant holds the kind of the same name")]
pub enum Manifest {
    Namespace(Box<Namespace>),
    ServiceAccount(Box<ServiceAccount>),
    Pod(Box<Pod>),
    Deployment(Box<Deployment>),
    StatefulSet(Box<StatefulSet>),
    Service(Box<Service>),
    EndpointSlice(Box<EndpointSlice>),
    TrafficSplit(TrafficSplit),
    HTTPRouteGroup(HTTPRouteGroup),
    TCPRoute(TCPRoute),
    UDPRoute(Box<UDPRoute>),
    TrafficTarget(TrafficTarget),
    TrafficFault(Box<TrafficFault>),
    TrafficPolicy(Box<TrafficPolicy>),
    MeshConfig(Box<MeshConfig>),
    Egress(Box<Egress>),
}

/// Runs `$body` with `$object` bound to the Kubernetes object within `$manifest`, whichever its type.
macro_rules! each {
    ($manifest:expr, $object:ident => $body:expr) => {
        match $manifest {
            Manifest::Namespace($object) => $body,
            Manifest::ServiceAccount($object) => $body,
            Manifest::Pod($object) => $body,
            Manifest::Deployment($object) => $body,
            Manifest::StatefulSet($object) => $body,
            Manifest::Service($object) => $body,
            Manifest::EndpointSlice($object) => $body,
            Manifest::TrafficSplit(TrafficSplit::V1alpha1($object)) => $body,
            Manifest::TrafficSplit(TrafficSplit::V1alpha2($object)) => $body,
            Manifest::TrafficSplit(TrafficSplit::V1alpha3($object)) => $body,
            Manifest::TrafficSplit(TrafficSplit::V1alpha4($object)) => $body,
            Manifest::HTTPRouteGroup(HTTPRouteGroup::V1alpha1($object)) => $body,
            Manifest::HTTPRouteGroup(HTTPRouteGroup::V1alpha2($object)) => $body,
            Manifest::HTTPRouteGroup(HTTPRouteGroup::V1alpha3($object)) => $body,
            Manifest::HTTPRouteGroup(HTTPRouteGroup::V1alpha4($object)) => $body,
            Manifest::TCPRoute(TCPRoute::V1alpha1($object)) => $body,
            Manifest::TCPRoute(TCPRoute::V1alpha2($object)) => $body,
            Manifest::TCPRoute(TCPRoute::V1alpha3($object)) => $body,
            Manifest::TCPRoute(TCPRoute::V1alpha4($object)) => $body,
            Manifest::UDPRoute($object) => $body,
            Manifest::TrafficTarget(TrafficTarget::V1alpha1($object)) => $body,
            Manifest::TrafficTarget(TrafficTarget::V1alpha2($object)) => $body,
            Manifest::TrafficTarget(TrafficTarget::V1alpha3($object)) => $body,
            Manifest::TrafficFault($object) => $body,
            Manifest::TrafficPolicy($object) => $body,
            Manifest::MeshConfig($object) => $body,
            Manifest::Egress($object) => $body,
        }
    };
}

impl Manifest {
    /// The object's kind.
    pub fn kind(&self) -> Kind {
        match self {
            Self::Namespace(_) => Kind::Namespace,
            Self::ServiceAccount(_) => Kind::ServiceAccount,
            Self::Pod(_) => Kind::Pod,
            Self::Deployment(_) => Kind::Deployment,
            Self::StatefulSet(_) => Kind::StatefulSet,
            Self::Service(_) => Kind::Service,
            Self::EndpointSlice(_) => Kind::EndpointSlice,
            Self::TrafficSplit(_) => Kind::TrafficSplit,
            Self::HTTPRouteGroup(_) => Kind::HTTPRouteGroup,
            Self::TCPRoute(_) => Kind::TCPRoute,
            Self::UDPRoute(_) => Kind::UDPRoute,
            Self::TrafficTarget(_) => Kind::TrafficTarget,
            Self::TrafficFault(_) => Kind::TrafficFault,
            Self::TrafficPolicy(_) => Kind::TrafficPolicy,
            Self::MeshConfig(_) => Kind::MeshConfig,
            Self::Egress(_) => Kind::Egress,
        }
    }

    /// The object's metadata. A manifest that came from a source has a name and, if its kind is namespaced, a
    /// namespace (`default` where the document has none).
    pub fn metadata(&self) -> &ObjectMeta {
        each!(self, object => &object.metadata)
    }

    /// The object's metadata, to change it.
    pub fn metadata_mut(&mut self) -> &mut ObjectMeta {
        each!(self, object => &mut object.metadata)
    }

    /// Which object this is; a missing namespace means `default`, as for kubectl.
    pub fn object_ref(&self) -> ObjectRef {
        let (kind, metadata) = (self.kind(), self.metadata());
        ObjectRef {
            kind,
            namespace: is_namespaced(kind).then(|| metadata.namespace.as_deref().unwrap_or("default").into()),
            name: metadata.name.as_deref().unwrap_or_default().into(),
        }
    }

    /// The object as one YAML document, as `kubectl get -o yaml` would print it.
    ///
    /// # Errors
    /// When the serializer fails, which no value of these types makes it do.
    pub fn to_yaml(&self) -> Result<String, serde_saphyr::ser_error::Error> {
        serde_saphyr::to_string(&self.to_json())
    }

    /// The object as JSON.
    pub(crate) fn to_json(&self) -> Value {
        // These types have string keys only, so that it does not fail; null would say that nothing is known of it.
        each!(self, object => serde_json::to_value(object).unwrap_or_default())
    }

    /// The object that a document's `json` is, or the field that its type refuses and why.
    pub(crate) fn read(version: Version, json: Value) -> Result<Self, FieldError> {
        Ok(match version {
            Version::Namespace => Self::Namespace(typed(json)?),
            Version::ServiceAccount => Self::ServiceAccount(typed(json)?),
            Version::Pod => Self::Pod(typed(json)?),
            Version::Deployment => Self::Deployment(typed(json)?),
            Version::StatefulSet => Self::StatefulSet(typed(json)?),
            Version::Service => Self::Service(typed(json)?),
            Version::EndpointSlice => Self::EndpointSlice(typed(json)?),
            Version::TrafficSplitV1alpha1 => Self::TrafficSplit(TrafficSplit::V1alpha1(typed(json)?)),
            Version::TrafficSplitV1alpha2 => Self::TrafficSplit(TrafficSplit::V1alpha2(typed(json)?)),
            Version::TrafficSplitV1alpha3 => Self::TrafficSplit(TrafficSplit::V1alpha3(typed(json)?)),
            Version::TrafficSplitV1alpha4 => Self::TrafficSplit(TrafficSplit::V1alpha4(typed(json)?)),
            Version::HTTPRouteGroupV1alpha1 => Self::HTTPRouteGroup(HTTPRouteGroup::V1alpha1(typed(json)?)),
            Version::HTTPRouteGroupV1alpha2 => Self::HTTPRouteGroup(HTTPRouteGroup::V1alpha2(typed(json)?)),
            Version::HTTPRouteGroupV1alpha3 => Self::HTTPRouteGroup(HTTPRouteGroup::V1alpha3(typed(json)?)),
            Version::HTTPRouteGroupV1alpha4 => Self::HTTPRouteGroup(HTTPRouteGroup::V1alpha4(typed(json)?)),
            Version::TCPRouteV1alpha1 => Self::TCPRoute(TCPRoute::V1alpha1(typed(json)?)),
            Version::TCPRouteV1alpha2 => Self::TCPRoute(TCPRoute::V1alpha2(typed(json)?)),
            Version::TCPRouteV1alpha3 => Self::TCPRoute(TCPRoute::V1alpha3(typed(json)?)),
            Version::TCPRouteV1alpha4 => Self::TCPRoute(TCPRoute::V1alpha4(typed(json)?)),
            Version::UDPRouteV1alpha4 => Self::UDPRoute(typed(json)?),
            Version::TrafficTargetV1alpha1 => Self::TrafficTarget(TrafficTarget::V1alpha1(typed(json)?)),
            Version::TrafficTargetV1alpha2 => Self::TrafficTarget(TrafficTarget::V1alpha2(typed(json)?)),
            Version::TrafficTargetV1alpha3 => Self::TrafficTarget(TrafficTarget::V1alpha3(typed(json)?)),
            Version::TrafficFault => Self::TrafficFault(typed(json)?),
            Version::TrafficPolicy => Self::TrafficPolicy(typed(json)?),
            Version::MeshConfig => Self::MeshConfig(typed(json)?),
            Version::Egress => Self::Egress(typed(json)?),
        })
    }
}

/// A field that does not have the type it should have.
#[derive(Debug)]
pub(crate) struct FieldError {
    /// The field's path; empty for the whole document.
    pub(crate) field: String,
    /// What serde says.
    pub(crate) message: String,
}

/// An object of a type, or the field that the type refuses and why.
pub(crate) fn typed<T: DeserializeOwned + Serialize>(json: Value) -> Result<Box<T>, FieldError> {
    serde_path_to_error::deserialize(json).map(Box::new).map_err(|error| {
        let field = error.path().to_string();
        FieldError { field: if field == "." { String::new() } else { field }, message: error.into_inner().to_string() }
    })
}

/// The schema of what is a number or text.
pub(crate) struct IntOrText;

impl JsonSchema for IntOrText {
    fn schema_name() -> Cow<'static, str> {
        "IntOrText".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({"x-kubernetes-int-or-string": true})
    }
}

/// Whether objects of `kind` are in a namespace.
pub(crate) fn is_namespaced(kind: Kind) -> bool {
    !matches!(kind, Kind::Namespace | Kind::MeshConfig)
}

/// The kinds that are read.
pub(crate) const KINDS: [Kind; 16] = [
    Kind::Namespace,
    Kind::ServiceAccount,
    Kind::Pod,
    Kind::Deployment,
    Kind::StatefulSet,
    Kind::Service,
    Kind::EndpointSlice,
    Kind::TrafficSplit,
    Kind::HTTPRouteGroup,
    Kind::TCPRoute,
    Kind::UDPRoute,
    Kind::TrafficTarget,
    Kind::TrafficFault,
    Kind::TrafficPolicy,
    Kind::MeshConfig,
    Kind::Egress,
];

/// A kind in a version that is read.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(crate) enum Version {
    Namespace,
    ServiceAccount,
    Pod,
    Deployment,
    StatefulSet,
    Service,
    EndpointSlice,
    TrafficSplitV1alpha1,
    TrafficSplitV1alpha2,
    TrafficSplitV1alpha3,
    TrafficSplitV1alpha4,
    HTTPRouteGroupV1alpha1,
    HTTPRouteGroupV1alpha2,
    HTTPRouteGroupV1alpha3,
    HTTPRouteGroupV1alpha4,
    TCPRouteV1alpha1,
    TCPRouteV1alpha2,
    TCPRouteV1alpha3,
    TCPRouteV1alpha4,
    UDPRouteV1alpha4,
    TrafficTargetV1alpha1,
    TrafficTargetV1alpha2,
    TrafficTargetV1alpha3,
    TrafficFault,
    TrafficPolicy,
    MeshConfig,
    Egress,
}

/// Every version that is read, with its kind and `apiVersion`; of one kind, the version to use comes last.
pub(crate) const VERSIONS: [(Kind, &str, Version); 27] = [
    (Kind::Namespace, Namespace::API_VERSION, Version::Namespace),
    (Kind::ServiceAccount, ServiceAccount::API_VERSION, Version::ServiceAccount),
    (Kind::Pod, Pod::API_VERSION, Version::Pod),
    (Kind::Deployment, Deployment::API_VERSION, Version::Deployment),
    (Kind::StatefulSet, StatefulSet::API_VERSION, Version::StatefulSet),
    (Kind::Service, Service::API_VERSION, Version::Service),
    (Kind::EndpointSlice, EndpointSlice::API_VERSION, Version::EndpointSlice),
    (Kind::TrafficSplit, "split.smi-spec.io/v1alpha1", Version::TrafficSplitV1alpha1),
    (Kind::TrafficSplit, "split.smi-spec.io/v1alpha2", Version::TrafficSplitV1alpha2),
    (Kind::TrafficSplit, "split.smi-spec.io/v1alpha3", Version::TrafficSplitV1alpha3),
    (Kind::TrafficSplit, "split.smi-spec.io/v1alpha4", Version::TrafficSplitV1alpha4),
    (Kind::HTTPRouteGroup, "specs.smi-spec.io/v1alpha1", Version::HTTPRouteGroupV1alpha1),
    (Kind::HTTPRouteGroup, "specs.smi-spec.io/v1alpha2", Version::HTTPRouteGroupV1alpha2),
    (Kind::HTTPRouteGroup, "specs.smi-spec.io/v1alpha3", Version::HTTPRouteGroupV1alpha3),
    (Kind::HTTPRouteGroup, "specs.smi-spec.io/v1alpha4", Version::HTTPRouteGroupV1alpha4),
    (Kind::TCPRoute, "specs.smi-spec.io/v1alpha1", Version::TCPRouteV1alpha1),
    (Kind::TCPRoute, "specs.smi-spec.io/v1alpha2", Version::TCPRouteV1alpha2),
    (Kind::TCPRoute, "specs.smi-spec.io/v1alpha3", Version::TCPRouteV1alpha3),
    (Kind::TCPRoute, "specs.smi-spec.io/v1alpha4", Version::TCPRouteV1alpha4),
    (Kind::UDPRoute, "specs.smi-spec.io/v1alpha4", Version::UDPRouteV1alpha4),
    (Kind::TrafficTarget, "access.smi-spec.io/v1alpha1", Version::TrafficTargetV1alpha1),
    (Kind::TrafficTarget, "access.smi-spec.io/v1alpha2", Version::TrafficTargetV1alpha2),
    (Kind::TrafficTarget, "access.smi-spec.io/v1alpha3", Version::TrafficTargetV1alpha3),
    (Kind::TrafficFault, "weft.dev/v1alpha1", Version::TrafficFault),
    (Kind::TrafficPolicy, "weft.dev/v1alpha1", Version::TrafficPolicy),
    (Kind::MeshConfig, "weft.dev/v1alpha1", Version::MeshConfig),
    (Kind::Egress, "weft.dev/v1alpha1", Version::Egress),
];
