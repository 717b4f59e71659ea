//! TrafficSplit.

use std::fmt;

use kube::CustomResource;
use schemars::JsonSchema;
use serde::de::{Deserializer, Error, Visitor};
use serde::{Deserialize, Serialize};

/// Weights are quantities.
pub mod v1alpha1 {
    use super::*;

    /// What a TrafficSplit asks for.
    #[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
    #[kube(group = "split.smi-spec.io", version = "v1alpha1", kind = "TrafficSplit", namespaced, shortname = "ts")]
    #[kube(derive = "PartialEq")]
    pub struct TrafficSplitSpec {
        /// The root Service.
        pub service: String,
        /// The Services that share the root's traffic.
        pub backends: Vec<Backend>,
    }

    /// A Service and its share.
    #[derive(Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
    pub struct Backend {
        /// The Service's name.
        pub service: String,
        /// Its share, relative to the other backends'.
        #[schemars(with = "crate::source::manifest::IntOrText")]
        pub weight: Quantity,
    }

    /// A Kubernetes quantity as it was written, `500m`; a number is read as its text.
    #[derive(Serialize, Clone, PartialEq, Eq, Debug)]
    pub struct Quantity(pub String);

    impl<'de> Deserialize<'de> for Quantity {
        fn deserialize<D: Deserializer<'de>>(deserializer: D) -> Result<Self, D::Error> {
            struct QuantityVisitor;
            impl Visitor<'_> for QuantityVisitor {
                type Value = Quantity;

                fn expecting(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
                    f.write_str("a quantity, such as `1` or `500m`")
                }

                fn visit_u64<E: Error>(self, number: u64) -> Result<Quantity, E> {
                    Ok(Quantity(number.to_string()))
                }

                fn visit_i64<E: Error>(self, number: i64) -> Result<Quantity, E> {
                    Ok(Quantity(number.to_string()))
                }

                fn visit_f64<E: Error>(self, number: f64) -> Result<Quantity, E> {
                    Ok(Quantity(number.to_string()))
                }

                fn visit_str<E: Error>(self, text: &str) -> Result<Quantity, E> {
                    Ok(Quantity(text.to_owned()))
                }
            }
            deserializer.deserialize_any(QuantityVisitor)
        }
    }
}

/// Without `matches`.
pub mod v1alpha2 {
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

/// A version with `matches`.
macro_rules! with_matches {
    ($module:ident, $version:tt) => {
        /// With `matches`.
        pub mod $module {
            use super::*;

            /// What a TrafficSplit asks for.
            #[derive(CustomResource, Serialize, Deserialize, JsonSchema, Clone, PartialEq, Debug)]
            #[kube(group = "split.smi-spec.io", version = $version, kind = "TrafficSplit", namespaced)]
            #[kube(shortname = "ts", derive = "PartialEq")]
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
    };
}
with_matches!(v1alpha3, "v1alpha3");
with_matches!(v1alpha4, "v1alpha4");

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
                // The CRDs of SMI's SDK allow any number, so `50.0` may be in store.
                if weight.fract() == 0.0 && weight.abs() <= f64::from(u32::MAX) {
                    #[allow(clippy::cast_possible_truncation, reason = "it is whole and fits 33 bits")]
                    return self.visit_i64(weight as i64);
                }
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
