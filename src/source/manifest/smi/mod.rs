//! The SMI kinds as custom resources, a file a kind and a type a served version.
//!
//! The specification is archived, so these shapes are final: they are those of its Go types and its CRDs
//! (servicemeshinterface/smi-sdk-go). Where its text and its CRDs differ (`headers`), both are read and the CRDs' form
//! is written. `source::versions` makes one version from another.

pub mod http;
pub mod layer4;
pub mod split;
pub mod target;

use serde::Serialize;

pub use http::{Headers, HttpMatch};
pub use target::Subject;

/// A TrafficSplit in the version it was written in.
#[derive(Serialize, Clone, PartialEq, Debug)]
#[serde(untagged)]
#[allow(missing_docs, reason = "each variant holds the version of the same name")]
pub enum TrafficSplit {
    V1alpha1(Box<split::v1alpha1::TrafficSplit>),
    V1alpha2(Box<split::v1alpha2::TrafficSplit>),
    V1alpha3(Box<split::v1alpha3::TrafficSplit>),
    V1alpha4(Box<split::v1alpha4::TrafficSplit>),
}

/// An HTTPRouteGroup in the version it was written in.
#[derive(Serialize, Clone, PartialEq, Debug)]
#[serde(untagged)]
#[allow(missing_docs, reason = "each variant holds the version of the same name")]
pub enum HTTPRouteGroup {
    V1alpha1(Box<http::v1alpha1::HTTPRouteGroup>),
    V1alpha2(Box<http::v1alpha1::HTTPRouteGroup>),
    V1alpha3(Box<http::v1alpha3::HTTPRouteGroup>),
    V1alpha4(Box<http::v1alpha4::HTTPRouteGroup>),
}

/// A TCPRoute in the version it was written in.
#[derive(Serialize, Clone, PartialEq, Debug)]
#[serde(untagged)]
#[allow(missing_docs, reason = "each variant holds the version of the same name")]
pub enum TCPRoute {
    V1alpha1(Box<layer4::v1alpha1::TCPRoute>),
    V1alpha2(Box<layer4::v1alpha1::TCPRoute>),
    V1alpha3(Box<layer4::v1alpha1::TCPRoute>),
    V1alpha4(Box<layer4::v1alpha4::TCPRoute>),
}

/// A TrafficTarget in the version it was written in.
#[derive(Serialize, Clone, PartialEq, Debug)]
#[serde(untagged)]
#[allow(missing_docs, reason = "each variant holds the version of the same name")]
pub enum TrafficTarget {
    V1alpha1(Box<target::v1alpha1::TrafficTarget>),
    V1alpha2(Box<target::v1alpha2::TrafficTarget>),
    V1alpha3(Box<target::v1alpha3::TrafficTarget>),
}
