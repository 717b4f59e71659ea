//! HTTPRouteGroup.

use std::borrow::Cow;
use std::collections::BTreeMap;
use std::fmt;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::CustomResource;
use schemars::{JsonSchema, Schema, SchemaGenerator};
use serde::de::{Deserializer, MapAccess, SeqAccess, Visitor, value::MapAccessDeserializer};
use serde::{Deserialize, Serialize};

/// v1alpha1 and v1alpha2, which have no `spec`. The text of v1alpha1 has no headers either; its CRD has.
pub mod v1alpha1 {
    use super::*;

    /// An HTTPRouteGroup whose matches stand at the top.
    #[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
    #[serde(rename_all = "camelCase")]
    pub struct HTTPRouteGroup {
        /// `specs.smi-spec.io/v1alpha1` or `specs.smi-spec.io/v1alpha2`.
        #[schemars(skip)]
        pub api_version: String,
        /// `HTTPRouteGroup`.
        #[schemars(skip)]
        pub kind: String,
        /// Standard metadata.
        #[serde(default)]
        #[schemars(skip)]
        pub metadata: ObjectMeta,
        /// The matches, any of which suffices.
        #[serde(default)]
        pub matches: Vec<HttpMatch>,
    }
}

/// A version with `spec`.
macro_rules! with_spec {
    ($module:ident, $version:tt) => {
        /// With `spec`.
        pub mod $module {
            use super::*;

            /// What an HTTPRouteGroup asks for.
            #[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
            #[kube(group = "specs.smi-spec.io", version = $version, kind = "HTTPRouteGroup", namespaced)]
            #[kube(shortname = "htr", derive = "PartialEq")]
            pub struct HTTPRouteGroupSpec {
                /// The matches, any of which suffices.
                #[serde(default)]
                pub matches: Vec<HttpMatch>,
            }
        }
    };
}
with_spec!(v1alpha3, "v1alpha3");
with_spec!(v1alpha4, "v1alpha4");

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
#[derive(Serialize, Clone, PartialEq, Debug)]
pub struct Headers(pub Vec<BTreeMap<String, String>>);

/// A structural schema cannot say that it is one of two types; what is read says what is wrong.
impl JsonSchema for Headers {
    fn schema_name() -> Cow<'static, str> {
        "Headers".into()
    }

    fn inline_schema() -> bool {
        true
    }

    fn json_schema(_: &mut SchemaGenerator) -> Schema {
        schemars::json_schema!({"x-kubernetes-preserve-unknown-fields": true})
    }
}

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
