//! The CustomResourceDefinitions of what Weft reads: `weft crds` prints them, and helm/weft/crds/ holds them.
//!
//! Schemas are made of the types that read the objects, so that there is no field which an API server would drop and
//! Weft would read. Of a kind with several versions the newest is stored; the others are converted by Weft's webhook.

use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use kube::CustomResourceExt as _;
use kube::core::schema::{OptionalEnum, OptionalIntOrString, StructuralSchemaRewriter};
use schemars::JsonSchema;
use schemars::generate::SchemaSettings;
use schemars::transform::AddNullable;
use serde_json::{Value, json};

use super::manifest::config::MeshConfig;
use super::manifest::egress::Egress;
use super::manifest::fault::TrafficFault;
use super::manifest::smi::{http, layer4, split, target};
use super::manifest::traffic_policy::TrafficPolicy;
use crate::mesh;

/// The Service of the webhooks.
pub const WEBHOOK_SERVICE: &str = "weft-webhook";
/// Its namespace.
pub const WEBHOOK_NAMESPACE: &str = "weft-system";
/// Its port.
pub const WEBHOOK_PORT: u16 = 443;
/// The path of conversion.
pub const CONVERT_PATH: &str = "/convert";

/// A kind, and what its definition says beside the schemas.
struct Kind {
    group: &'static str,
    names: Names,
    namespaced: bool,
    /// Name, JSON path and type of each column that `kubectl get` prints before AGE.
    columns: &'static [(&'static str, &'static str, &'static str)],
    /// Each version and its schema, the newest last.
    versions: Vec<(&'static str, Value)>,
}

/// kind, plural, short name, category.
struct Names(&'static str, &'static str, Option<&'static str>, &'static str);

/// Every definition, ordered by name. `conversion.webhook.clientConfig.caBundle` is for the control plane to fill in.
pub fn all() -> Vec<CustomResourceDefinition> {
    let mut all: Vec<_> = kinds().into_iter().filter_map(definition).collect();
    all.sort_by(|a, b| a.metadata.name.cmp(&b.metadata.name));
    all
}

/// All of them as YAML documents.
pub fn to_yaml() -> String {
    let documents = all()
        .iter()
        .filter_map(|crd| serde_saphyr::to_string(&serde_json::to_value(crd).ok()?).ok())
        .collect::<Vec<_>>();
    format!("# Made by `weft crds`; do not edit.\n{}", documents.join("---\n"))
}

/// The fields that one of Weft's own kinds has at a path such as `spec.targetRefs[0]` (empty: at the top); none where
/// there is no such place.
pub(super) fn fields(kind: mesh::Kind, path: &str) -> Vec<String> {
    let name = kind.to_string();
    let of_kind = kinds().into_iter().find(|kind| kind.names.0 == name);
    let Some((_, schema)) = of_kind.and_then(|kind| kind.versions.into_iter().next_back()) else { return Vec::new() };
    let inside = |schema: &Value, segment: &str| {
        let name = segment.split('[').next().unwrap_or_default();
        let field = schema.get("properties")?.get(name)?;
        Some(if segment.contains('[') { field.get("items")? } else { field }.clone())
    };
    let place = path.split('.').filter(|segment| !segment.is_empty()).try_fold(schema, |at, one| inside(&at, one));
    let fields = place.and_then(|schema| schema.get("properties")?.as_object().cloned());
    fields.map(|fields| fields.keys().cloned().collect()).unwrap_or_default()
}

fn kinds() -> Vec<Kind> {
    let of = |crd: CustomResourceDefinition| {
        let version = crd.spec.versions.into_iter().next();
        json!(version.and_then(|version| version.schema?.open_api_v3_schema))
    };
    let smi = |kind, plural, short| Names(kind, plural, Some(short), "smi");
    let own = |kind, plural| Names(kind, plural, None, "weft");
    let single = |crd| vec![("v1alpha1", of(crd))];
    const SERVICES: (&str, &str, &str) = ("Services", ".spec.targetRefs[*].name", "string");
    vec![
        Kind {
            group: "split.smi-spec.io",
            names: smi("TrafficSplit", "trafficsplits", "ts"),
            namespaced: true,
            columns: &[("Service", ".spec.service", "string")],
            versions: vec![
                ("v1alpha1", of(split::v1alpha1::TrafficSplit::crd())),
                ("v1alpha2", of(split::v1alpha2::TrafficSplit::crd())),
                ("v1alpha3", of(split::v1alpha3::TrafficSplit::crd())),
                ("v1alpha4", of(split::v1alpha4::TrafficSplit::crd())),
            ],
        },
        Kind {
            group: "specs.smi-spec.io",
            names: smi("HTTPRouteGroup", "httproutegroups", "htr"),
            namespaced: true,
            columns: &[],
            versions: vec![
                ("v1alpha1", schema_of::<http::v1alpha1::HTTPRouteGroup>()),
                ("v1alpha2", schema_of::<http::v1alpha1::HTTPRouteGroup>()),
                ("v1alpha3", of(http::v1alpha3::HTTPRouteGroup::crd())),
                ("v1alpha4", of(http::v1alpha4::HTTPRouteGroup::crd())),
            ],
        },
        Kind {
            group: "specs.smi-spec.io",
            names: smi("TCPRoute", "tcproutes", "tr"),
            namespaced: true,
            columns: &[],
            versions: vec![
                ("v1alpha1", schema_of::<layer4::v1alpha1::TCPRoute>()),
                ("v1alpha2", schema_of::<layer4::v1alpha1::TCPRoute>()),
                ("v1alpha3", schema_of::<layer4::v1alpha1::TCPRoute>()),
                ("v1alpha4", of(layer4::v1alpha4::TCPRoute::crd())),
            ],
        },
        Kind {
            group: "specs.smi-spec.io",
            names: smi("UDPRoute", "udproutes", "ur"),
            namespaced: true,
            columns: &[],
            versions: vec![("v1alpha4", of(layer4::v1alpha4::UDPRoute::crd()))],
        },
        Kind {
            group: "access.smi-spec.io",
            names: smi("TrafficTarget", "traffictargets", "tt"),
            namespaced: true,
            columns: &[],
            versions: vec![
                ("v1alpha1", schema_of::<target::v1alpha1::TrafficTarget>()),
                ("v1alpha2", of(target::v1alpha2::TrafficTarget::crd())),
                ("v1alpha3", of(target::v1alpha3::TrafficTarget::crd())),
            ],
        },
        Kind {
            group: "weft.dev",
            names: own("MeshConfig", "meshconfigs"),
            namespaced: false,
            columns: &[
                ("mTLS", ".spec.mtls.mode", "string"),
                ("Authorization", ".spec.authorization.mode", "string"),
                ("Egress", ".spec.egress.mode", "string"),
            ],
            versions: single(MeshConfig::crd()),
        },
        Kind {
            group: "weft.dev",
            names: own("TrafficFault", "trafficfaults"),
            namespaced: true,
            columns: &[
                SERVICES,
                ("Percentage", ".spec.percentage", "number"),
                ("Expires", ".spec.expiresAfter", "string"),
            ],
            versions: single(TrafficFault::crd()),
        },
        Kind {
            group: "weft.dev",
            names: own("TrafficPolicy", "trafficpolicies"),
            namespaced: true,
            columns: &[SERVICES],
            versions: single(TrafficPolicy::crd()),
        },
        Kind {
            group: "weft.dev",
            names: own("Egress", "egresses"),
            namespaced: true,
            columns: &[("Hosts", ".spec.hosts", "string"), ("Addresses", ".spec.addresses", "string")],
            versions: single(Egress::crd()),
        },
    ]
}

/// The schema of a version whose fields stand beside `metadata`, as kube's derive makes that of one with `spec`.
fn schema_of<T: JsonSchema>() -> Value {
    let settings = SchemaSettings::openapi3().with(|settings| {
        settings.inline_subschemas = true;
        settings.meta_schema = None;
    });
    let settings = settings
        .with_transform(AddNullable::default())
        .with_transform(StructuralSchemaRewriter)
        .with_transform(OptionalEnum)
        .with_transform(OptionalIntOrString);
    json!(settings.into_generator().into_root_schema_for::<T>())
}

fn definition(kind: Kind) -> Option<CustomResourceDefinition> {
    let Kind { group, names: Names(name, plural, short, category), namespaced, columns, versions } = kind;
    let stored = versions.len().checked_sub(1)?;
    let conversion = (stored > 0).then(|| {
        json!({"strategy": "Webhook", "webhook": {"conversionReviewVersions": ["v1"], "clientConfig": {"service":
            {"namespace": WEBHOOK_NAMESPACE, "name": WEBHOOK_SERVICE, "path": CONVERT_PATH, "port": WEBHOOK_PORT}}}})
    });
    let columns: Vec<_> = columns
        .iter()
        .copied()
        .chain([
            ("Accepted", ".status.conditions[?(@.type==\"Accepted\")].status", "string"),
            ("Age", ".metadata.creationTimestamp", "date"),
        ])
        .map(|(name, path, kind)| json!({"name": name, "jsonPath": path, "type": kind}))
        .collect();
    let version = |(index, (version, schema)): (usize, (&str, Value))| {
        json!({
            "name": version, "served": true, "storage": index == stored,
            "schema": {"openAPIV3Schema": completed(schema)},
            "subresources": {"status": {}},
            "additionalPrinterColumns": columns,
        })
    };
    let definition = json!({
        "apiVersion": "apiextensions.k8s.io/v1",
        "kind": "CustomResourceDefinition",
        "metadata": {"name": format!("{plural}.{group}"), "labels": {"app.kubernetes.io/part-of": "weft"}},
        "spec": {
            "group": group,
            "scope": if namespaced { "Namespaced" } else { "Cluster" },
            "names": {"kind": name, "listKind": format!("{name}List"), "plural": plural,
                "singular": name.to_lowercase(), "shortNames": short.map(|short| [short]),
                "categories": [category]},
            "conversion": conversion,
            "versions": versions.into_iter().enumerate().map(version).collect::<Vec<_>>(),
        },
    });
    // Its own test says that it always is one.
    serde_json::from_value(definition).ok()
}

/// The schema with a status, without what an API server does not know of JSON Schema.
fn completed(mut schema: Value) -> Value {
    known_words(&mut schema);
    schema["type"] = "object".into();
    // kube's derive says of the whole how it came about.
    let derived = schema["description"].as_str().is_some_and(|text| text.starts_with("Auto-generated"));
    if let Some(description) = schema.pointer("/properties/spec/description").filter(|_| derived).cloned() {
        schema["description"] = description;
    }
    schema["properties"]["status"] = json!({
        "description": "What became of it; written by the control plane.",
        "type": "object",
        "x-kubernetes-preserve-unknown-fields": true,
        "properties": {
            "observedGeneration": {"type": "integer", "format": "int64"},
            "conditions": {
                "type": "array",
                "x-kubernetes-list-type": "map",
                "x-kubernetes-list-map-keys": ["type"],
                "items": {
                    "type": "object",
                    "required": ["type", "status", "lastTransitionTime", "reason", "message"],
                    "properties": {
                        "type": {"type": "string", "maxLength": 316},
                        "status": {"type": "string", "enum": ["True", "False", "Unknown"]},
                        "observedGeneration": {"type": "integer", "format": "int64", "minimum": 0},
                        "lastTransitionTime": {"type": "string", "format": "date-time"},
                        "reason": {"type": "string", "minLength": 1, "maxLength": 1024},
                        "message": {"type": "string", "maxLength": 32768},
                    },
                },
            },
        },
    });
    schema
}

/// Rust's unsigned formats, titles and serde's defaults are no words of a structural schema, or are warned of; a default
/// would be written into objects that others compare.
fn known_words(schema: &mut Value) {
    let Some(words) = schema.as_object_mut() else { return };
    words.shift_remove("title");
    words.shift_remove("default");
    if words.get("format").and_then(Value::as_str).is_some_and(|format| format.starts_with("uint")) {
        words.insert("format".to_owned(), "int64".into());
    }
    if let Some(properties) = words.get_mut("properties").and_then(Value::as_object_mut) {
        properties.values_mut().for_each(known_words);
    }
    for word in ["items", "additionalProperties"] {
        if let Some(schema) = words.get_mut(word) {
            known_words(schema);
        }
    }
}
