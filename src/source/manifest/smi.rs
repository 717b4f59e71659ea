//! The SMI kinds as custom resources, one type a served version.
//!
//! The specification is archived, so these shapes are final. Where its text and its CRDs differ (`headers`), both are
//! read and the CRDs' form is written.

use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;
use kube::CustomResource;
use schemars::JsonSchema;
use serde::de::{Deserializer, Error, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Serialize};

/// TrafficSplit without `matches`.
pub mod split_v1alpha2 {
    use super::*;

    /// What a TrafficSplit asks for.
    #[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
    #[kube(group = "split.smi-spec.io", version = "v1alpha2", kind = "TrafficSplit", namespaced, shortname = "ts")]
    #[kube(derive = "PartialEq")]
    pub struct TrafficSplitSpec {
        /// The root Service.
        pub service: String,
        /// The Services that share the root's traffic.
        pub backends: Vec<Backend>,
    }
}

/// TrafficSplit with `matches`.
pub mod split_v1alpha4 {
    use super::*;

    /// What a TrafficSplit asks for.
    #[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
    #[kube(group = "split.smi-spec.io", version = "v1alpha4", kind = "TrafficSplit", namespaced, shortname = "ts")]
    #[kube(derive = "PartialEq")]
    pub struct TrafficSplitSpec {
        /// The root Service.
        pub service: String,
        /// The Services that share the root's traffic.
        pub backends: Vec<Backend>,
        /// The HTTPRouteGroups whose requests are split; absent means all.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub matches: Option<Vec<LocalReference>>,
    }
}

/// A Service and its share.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
pub struct Backend {
    /// The Service's name.
    pub service: String,
    /// Its share, relative to the other backends'.
    pub weight: Weight,
}

/// An object of the same namespace.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
pub struct LocalReference {
    /// `specs.smi-spec.io`.
    #[serde(rename = "apiGroup", default, skip_serializing_if = "Option::is_none")]
    pub api_group: Option<String>,
    /// `HTTPRouteGroup`.
    pub kind: String,
    /// The object's name.
    pub name: String,
}

/// A whole number that is not negative.
///
/// v1alpha1 had Kubernetes quantities here (`500m`), so the error for one says what to write instead.
#[derive(Serialize, JsonSchema, Clone, Copy, PartialEq, Eq, Debug)]
pub struct Weight(pub u32);

impl<'de> Deserialize<'de> for Weight {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct WeightVisitor;
        impl Visitor<'_> for WeightVisitor {
            type Value = Weight;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a whole number that is not negative")
            }

            fn visit_u64<E: Error>(self, weight: u64) -> Result<Weight, E> {
                u32::try_from(weight).map(Weight).map_err(|_| {
                    E::custom(format_args!("the weight {weight} is too large; use weights up to {}", u32::MAX))
                })
            }

            fn visit_i64<E: Error>(self, weight: i64) -> Result<Weight, E> {
                match u64::try_from(weight) {
                    Ok(weight) => self.visit_u64(weight),
                    Err(_) => Err(E::custom(format_args!("the weight {weight} is negative; use 0 for no traffic"))),
                }
            }

            fn visit_f64<E: Error>(self, weight: f64) -> Result<Weight, E> {
                Err(E::custom(format_args!("the weight {weight} is not whole; multiply all weights until they are")))
            }

            fn visit_str<E: Error>(self, weight: &str) -> Result<Weight, E> {
                Err(E::custom(format_args!(
                    "the weight `{weight}` is text, or a quantity as in v1alpha1; write whole numbers, such as 2 and 1 \
                     for `1` and `500m`"
                )))
            }
        }
        deserializer.deserialize_any(WeightVisitor)
    }
}

/// HTTPRouteGroup as of v1alpha3.
pub mod http_v1alpha3 {
    use super::*;

    /// What an HTTPRouteGroup asks for.
    #[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
    #[kube(group = "specs.smi-spec.io", version = "v1alpha3", kind = "HTTPRouteGroup", namespaced, shortname = "htr")]
    #[kube(derive = "PartialEq")]
    pub struct HTTPRouteGroupSpec {
        /// The matches, any of which suffices.
        #[serde(default)]
        pub matches: Vec<HttpMatch>,
    }
}

/// HTTPRouteGroup as of v1alpha4.
pub mod http_v1alpha4 {
    use super::*;

    /// What an HTTPRouteGroup asks for.
    #[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
    #[kube(group = "specs.smi-spec.io", version = "v1alpha4", kind = "HTTPRouteGroup", namespaced, shortname = "htr")]
    #[kube(derive = "PartialEq")]
    pub struct HTTPRouteGroupSpec {
        /// The matches, any of which suffices.
        #[serde(default)]
        pub matches: Vec<HttpMatch>,
    }
}

/// One match: all that is present must fit.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
#[serde(rename_all = "camelCase")]
pub struct HttpMatch {
    /// The name that TrafficTargets refer to.
    #[serde(default)]
    pub name: String,
    /// A regex that the path begins with.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub path_regex: Option<String>,
    /// HTTP methods, or `*`.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub methods: Option<Vec<String>>,
    /// Header names and the regexes that their values fit.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub headers: Option<Headers>,
}

/// Headers by name, each with a regex: an array of single-key maps in every CRD, a map in the specification's text.
#[derive(Serialize, JsonSchema, Clone, PartialEq, Debug)]
pub struct Headers(pub Vec<BTreeMap<String, String>>);

impl<'de> Deserialize<'de> for Headers {
    fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
        struct HeadersVisitor;
        impl<'de> Visitor<'de> for HeadersVisitor {
            type Value = Headers;

            fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                f.write_str("a list of maps from a header's name to a regex, or one such map")
            }

            fn visit_seq<A: SeqAccess<'de>>(self, mut access: A) -> Result<Headers, A::Error> {
                let mut headers = Vec::new();
                while let Some(entry) = access.next_element()? {
                    headers.push(entry);
                }
                Ok(Headers(headers))
            }

            fn visit_map<A: MapAccess<'de>>(self, access: A) -> Result<Headers, A::Error> {
                BTreeMap::deserialize(MapAccessDeserializer::new(access)).map(|headers| Headers(vec![headers]))
            }
        }
        deserializer.deserialize_any(HeadersVisitor)
    }
}

/// TCPRoute as of v1alpha3: it has no fields and means every port.
pub mod tcp_v1alpha3 {
    use super::*;

    /// What a TCPRoute asks for.
    #[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
    #[kube(group = "specs.smi-spec.io", version = "v1alpha3", kind = "TCPRoute", namespaced, shortname = "tr")]
    #[kube(derive = "PartialEq")]
    pub struct TCPRouteSpec {
        /// The ports.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub matches: Option<TcpMatch>,
    }
}

/// TCPRoute as of v1alpha4.
pub mod tcp_v1alpha4 {
    use super::*;

    /// What a TCPRoute asks for.
    #[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug, Default)]
    #[kube(group = "specs.smi-spec.io", version = "v1alpha4", kind = "TCPRoute", namespaced, shortname = "tr")]
    #[kube(derive = "PartialEq")]
    pub struct TCPRouteSpec {
        /// The ports.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub matches: Option<TcpMatch>,
    }
}

/// What of TCP a TCPRoute means.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
pub struct TcpMatch {
    /// `name`, which nothing refers to.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub name: Option<String>,
    /// Pod ports; empty means every port.
    #[serde(default)]
    pub ports: Vec<i32>,
}

/// TrafficTarget whose destination may name a port.
pub mod target_v1alpha2 {
    use super::*;

    /// What a TrafficTarget asks for.
    #[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
    #[kube(group = "access.smi-spec.io", version = "v1alpha2", kind = "TrafficTarget", namespaced, shortname = "tt")]
    #[kube(derive = "PartialEq")]
    pub struct TrafficTargetSpec {
        /// Who is called.
        pub destination: PortSubject,
        /// Who may call; empty allows nobody.
        #[serde(default)]
        pub sources: Vec<Subject>,
        /// What may be called.
        #[serde(default)]
        pub rules: Vec<Rule>,
    }

    /// An identity and the only port of it that is opened.
    #[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
    pub struct PortSubject {
        /// `ServiceAccount`.
        pub kind: String,
        /// The ServiceAccount's name.
        pub name: String,
        /// Its namespace; absent means the TrafficTarget's.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        pub namespace: Option<String>,
        /// The pod port.
        #[serde(default, skip_serializing_if = "Option::is_none")]
        #[schemars(with = "Option<i32>")]
        pub port: Option<IntOrString>,
    }
}

/// TrafficTarget without a port.
pub mod target_v1alpha3 {
    use super::*;

    /// What a TrafficTarget asks for.
    #[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
    #[kube(group = "access.smi-spec.io", version = "v1alpha3", kind = "TrafficTarget", namespaced, shortname = "tt")]
    #[kube(derive = "PartialEq")]
    pub struct TrafficTargetSpec {
        /// Who is called.
        pub destination: Subject,
        /// Who may call; empty allows nobody.
        #[serde(default)]
        pub sources: Vec<Subject>,
        /// What may be called.
        #[serde(default)]
        pub rules: Vec<Rule>,
    }
}

/// An identity.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
pub struct Subject {
    /// `ServiceAccount`.
    pub kind: String,
    /// The ServiceAccount's name.
    pub name: String,
    /// Its namespace; absent means the TrafficTarget's.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub namespace: Option<String>,
}

/// A reference to an HTTPRouteGroup or a TCPRoute.
#[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
pub struct Rule {
    /// `HTTPRouteGroup` or `TCPRoute`.
    pub kind: String,
    /// Its name.
    pub name: String,
    /// Names of matches of the HTTPRouteGroup; absent means all of them.
    #[serde(default, skip_serializing_if = "Option::is_none")]
    pub matches: Option<Vec<String>>,
}
