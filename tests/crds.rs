//! The CustomResourceDefinitions: what the chart carries is what the types give, the schemas are structural, and every
//! document of the examples and the scenarios fits them and loses nothing.

#![allow(clippy::expect_used, clippy::panic, clippy::unwrap_used, reason = "a test may, and here its helpers do")]

use std::collections::BTreeMap;
use std::fs;
use std::path::{Path, PathBuf};

use serde_json::{Value, json};
use weft::source::crds;

const CHART: &str = "helm/weft/crds/crds.yaml";

fn root() -> &'static Path {
    Path::new(env!("CARGO_MANIFEST_DIR"))
}

/// Each version's `GROUP/VERSION KIND`, and its schema.
fn schemas() -> BTreeMap<String, Value> {
    let versions = crds::all().into_iter().flat_map(|crd| {
        let (group, kind) = (crd.spec.group, crd.spec.names.kind);
        crd.spec.versions.into_iter().map(move |version| {
            let schema = version.schema.and_then(|schema| schema.open_api_v3_schema).expect("a schema");
            (format!("{group}/{} {kind}", version.name), json!(schema))
        })
    });
    versions.collect()
}

#[test]
fn the_chart_carries_what_the_types_give() {
    let path = root().join(CHART);
    if std::env::var_os("INSTA_UPDATE").is_some_and(|update| update == "always") {
        fs::write(&path, crds::to_yaml()).unwrap();
    }
    let carried = fs::read_to_string(&path).unwrap_or_default();
    assert!(carried == crds::to_yaml(), "{CHART} is out of date: target/debug/weft crds > {CHART}");
}

#[test]
fn every_kind_is_served_in_every_version_and_stored_in_the_newest() {
    let all = crds::all();
    let names: Vec<_> = all.iter().map(|crd| crd.metadata.name.clone().unwrap()).collect();
    assert_eq!(
        names,
        [
            "egresses.weft.dev",
            "httproutegroups.specs.smi-spec.io",
            "meshconfigs.weft.dev",
            "tcproutes.specs.smi-spec.io",
            "trafficfaults.weft.dev",
            "trafficpolicies.weft.dev",
            "trafficsplits.split.smi-spec.io",
            "traffictargets.access.smi-spec.io",
            "udproutes.specs.smi-spec.io",
        ]
    );
    assert_eq!(schemas().len(), 4 + 4 + 4 + 1 + 3 + 4, "the versions of docs/smi.md, and one of each of Weft's own");
    for crd in all {
        let versions = &crd.spec.versions;
        let stored: Vec<_> = versions.iter().filter(|version| version.storage).map(|version| &version.name).collect();
        assert_eq!(stored, [&versions.last().unwrap().name], "{:?}", crd.metadata.name);
        assert!(versions.iter().all(|version| version.served));
        assert_eq!(crd.spec.conversion.is_some(), versions.len() > 1, "{:?}", crd.metadata.name);
    }
}

#[test]
fn schemas_are_structural_and_say_what_each_field_is() {
    for (name, schema) in schemas() {
        structural(&schema, &name);
        let fields = schema["properties"].as_object().unwrap();
        fields
            .iter()
            .filter(|(field, _)| *field != "status")
            .for_each(|(field, schema)| described(schema, &format!("{name} {field}")));
    }
}

/// Kubernetes' rules for structural schemas, as far as they concern what is used here.
fn structural(schema: &Value, at: &str) {
    let words = schema.as_object().unwrap_or_else(|| panic!("{at}: {schema}"));
    let known = [
        "type",
        "description",
        "properties",
        "items",
        "required",
        "enum",
        "format",
        "minimum",
        "maximum",
        "nullable",
        "additionalProperties",
        "minLength",
        "maxLength",
        "x-kubernetes-int-or-string",
        "x-kubernetes-preserve-unknown-fields",
        "x-kubernetes-list-type",
        "x-kubernetes-list-map-keys",
    ];
    for word in words.keys() {
        assert!(known.contains(&word.as_str()), "{at}: {word}");
    }
    let open = ["x-kubernetes-int-or-string", "x-kubernetes-preserve-unknown-fields"];
    assert!(words.contains_key("type") || open.iter().any(|word| words.contains_key(*word)), "{at} has no type");
    assert!(!(words.contains_key("properties") && words.contains_key("additionalProperties")), "{at}: both");
    let format = words.get("format").and_then(Value::as_str);
    assert!(
        format.is_none_or(|format| ["int32", "int64", "double", "date-time"].contains(&format)),
        "{at}: {format:?}"
    );
    for (field, schema) in words.get("properties").and_then(Value::as_object).into_iter().flatten() {
        structural(schema, &format!("{at}.{field}"));
    }
    for word in ["items", "additionalProperties"] {
        if let Some(schema) = words.get(word) {
            structural(schema, &format!("{at}.{word}"));
        }
    }
}

fn described(schema: &Value, at: &str) {
    if !["apiVersion", "kind", "metadata"].iter().any(|name| at.ends_with(name)) {
        assert!(schema["description"].as_str().is_some_and(|text| text.len() > 3), "{at} has no description");
    }
    for (field, schema) in schema["properties"].as_object().into_iter().flatten() {
        described(schema, &format!("{at}.{field}"));
    }
}

/// Every YAML document below the folders, with its place.
fn documents() -> Vec<(String, Value)> {
    let mut folders: Vec<PathBuf> =
        ["examples", "e2e/scenarios", "tests/golden"].iter().map(|folder| root().join(folder)).collect();
    let mut found = Vec::new();
    while let Some(folder) = folders.pop() {
        for entry in fs::read_dir(&folder).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                folders.push(path);
            } else if path.extension().is_some_and(|extension| extension == "yaml") {
                let text = fs::read_to_string(&path).unwrap();
                for (number, document) in format!("\n{text}").split("\n---").enumerate() {
                    if let Ok(value @ Value::Object(_)) = serde_saphyr::from_str::<Value>(document) {
                        found.push((format!("{}#{number}", path.display()), value));
                    }
                }
            }
        }
    }
    found
}

#[test]
fn every_document_fits_its_schema_and_loses_nothing() {
    let schemas = schemas();
    let (mut checked, mut wrong) = (0, Vec::new());
    for (place, document) in documents() {
        let name =
            format!("{} {}", document["apiVersion"].as_str().unwrap_or(""), document["kind"].as_str().unwrap_or(""));
        let Some(schema) = schemas.get(&name) else { continue };
        // What examples are for showing what goes wrong says so in its name.
        if place.contains("broken") || place.contains("bad") {
            continue;
        }
        checked += 1;
        validate(schema, &document, &format!("{place}: {name}"), true, &mut wrong);
    }
    assert!(wrong.is_empty(), "{}", wrong.join("\n"));
    assert!(checked > 60, "{checked} documents");
}

/// What an API server says of a value: what does not fit, and what it would drop.
fn validate(schema: &Value, value: &Value, at: &str, top: bool, wrong: &mut Vec<String>) {
    let mut say = |what: String| wrong.push(format!("{at}: {what}"));
    if schema["x-kubernetes-int-or-string"] == true {
        if !(value.is_i64() || value.is_string()) {
            say(format!("{value} is neither a number nor text"));
        }
        return;
    }
    let open = schema["x-kubernetes-preserve-unknown-fields"] == true && schema["properties"].is_null();
    if open || value.is_null() && schema["nullable"] == true {
        return;
    }
    let fits = match schema["type"].as_str() {
        Some("object") => value.is_object(),
        Some("array") => value.is_array(),
        Some("string") => value.is_string(),
        Some("integer") => value.as_f64().is_some_and(|number| number.fract() == 0.0),
        Some("number") => value.is_number(),
        Some("boolean") => value.is_boolean(),
        _ => true,
    };
    if !fits {
        return say(format!("{value} is no {}", schema["type"]));
    }
    if let Some(allowed) = schema["enum"].as_array()
        && !allowed.contains(value)
    {
        say(format!("{value} is none of {allowed:?}"));
    }
    if let (Some(least), Some(number)) = (schema["minimum"].as_f64(), value.as_f64())
        && number < least
    {
        say(format!("{value} is less than {least}"));
    }
    for required in schema["required"].as_array().into_iter().flatten() {
        if value.get(required.as_str().unwrap()).is_none() {
            say(format!("{required} is missing"));
        }
    }
    for (field, inner) in value.as_object().into_iter().flatten() {
        if top && ["apiVersion", "kind", "metadata"].contains(&field.as_str()) {
            continue;
        }
        match (schema["properties"].get(field), &schema["additionalProperties"]) {
            (Some(known), _) => validate(known, inner, &format!("{at}.{field}"), false, wrong),
            (None, Value::Null) if schema["x-kubernetes-preserve-unknown-fields"] == true => {}
            (None, Value::Null) => wrong.push(format!("{at}.{field} would be dropped")),
            (None, any) => validate(any, inner, &format!("{at}.{field}"), false, wrong),
        }
    }
    for (index, item) in value.as_array().into_iter().flatten().enumerate() {
        validate(&schema["items"], item, &format!("{at}[{index}]"), false, wrong);
    }
}
