use proptest::collection::vec;
use proptest::option::of;
use proptest::prelude::*;
use serde_json::{Map, Value, json};

use super::*;
use crate::mesh::object::Object;
use crate::source::convert::convert as model;

const SPLITS: &[&str] = &[
    "split.smi-spec.io/v1alpha1",
    "split.smi-spec.io/v1alpha2",
    "split.smi-spec.io/v1alpha3",
    "split.smi-spec.io/v1alpha4",
];
const SPECS: &[&str] = &[
    "specs.smi-spec.io/v1alpha1",
    "specs.smi-spec.io/v1alpha2",
    "specs.smi-spec.io/v1alpha3",
    "specs.smi-spec.io/v1alpha4",
];
const TARGETS: &[&str] = &["access.smi-spec.io/v1alpha1", "access.smi-spec.io/v1alpha2", "access.smi-spec.io/v1alpha3"];

/// What the mesh makes of an object.
fn meant(object: &Value) -> Option<Object> {
    let text = |key: &str| object[key].as_str().expect("text");
    let version = version(text("kind"), text("apiVersion")).expect("a version that is read");
    let manifest = Manifest::read(version, object.clone()).expect("an object that can be read");
    model(&manifest).expect("an object that can be used").object
}

fn to(object: &Value, api_version: &str) -> Value {
    convert(object.clone(), api_version).expect("an object that can be converted")
}

/// Fields with a value.
fn fields<const N: usize>(fields: [(&str, Option<Value>); N]) -> Value {
    let present = fields.into_iter().filter_map(|(name, value)| Some((name.to_owned(), value?)));
    Value::Object(present.collect::<Map<String, Value>>())
}

fn object(api_version: &str, kind: &str, annotated: bool, body: Value) -> Value {
    let mut object = fields([
        ("apiVersion", Some(api_version.into())),
        ("kind", Some(kind.into())),
        (
            "metadata",
            Some(fields([
                ("name", Some("one".into())),
                ("namespace", Some("shop".into())),
                ("creationTimestamp", Some("2026-01-02T03:04:05Z".into())),
                ("annotations", annotated.then(|| json!({"team": "cart"}))),
            ])),
        ),
    ]);
    let (fields, Value::Object(body)) = (object.as_object_mut().expect("an object"), body) else { return object };
    fields.extend(body);
    object
}

fn name() -> impl Strategy<Value = String> {
    "[a-c][a-z0-9]{0,3}"
}

fn a_split() -> impl Strategy<Value = Value> {
    let weight = (0_u32..200, prop::sample::select(vec!["", "m", "k", ".5", ".25"]));
    let backends = prop::collection::btree_map(name(), weight, 1..4);
    let matches = of(vec(name(), 0..3));
    (0..SPLITS.len(), any::<bool>(), name(), backends, matches).prop_map(
        |(version, annotated, root, backends, matches)| {
            let backends = backends.into_iter().map(|(service, (weight, suffix))| match version {
                0 => json!({"service": service, "weight": format!("{weight}{suffix}")}),
                _ => json!({"service": service, "weight": weight}),
            });
            let matches = matches.map(|names| {
                names.into_iter().map(|name| json!({"kind": "HTTPRouteGroup", "name": name})).collect::<Vec<_>>().into()
            });
            let spec = fields([
                ("service", Some(root.into())),
                ("backends", Some(backends.collect::<Vec<_>>().into())),
                ("matches", matches.filter(|_| version >= 2)),
            ]);
            object(SPLITS[version], "TrafficSplit", annotated, json!({ "spec": spec }))
        },
    )
}

fn a_group() -> impl Strategy<Value = Value> {
    let one =
        (of("/[a-z]{0,4}"), of(vec(prop::sample::select(vec!["GET", "POST", "*"]), 1..3)), of("[a-z]{1,3}\\.\\*"));
    let matches = prop::collection::btree_map(name(), one, 0..5);
    (0..SPECS.len(), any::<bool>(), matches).prop_map(|(version, annotated, matches)| {
        let matches = matches.into_iter().map(|(name, (path, methods, header))| {
            fields([
                ("name", Some(name.into())),
                ("pathRegex", path.map(Into::into)),
                ("methods", methods.map(Into::into)),
                ("headers", header.filter(|_| version > 0).map(|regex| json!([{"x-user": regex}]))),
            ])
        });
        let matches = json!({"matches": matches.collect::<Vec<_>>()});
        let body = if version < 2 { matches } else { json!({ "spec": matches }) };
        object(SPECS[version], "HTTPRouteGroup", annotated, body)
    })
}

fn a_tcp_route() -> impl Strategy<Value = Value> {
    (0..SPECS.len(), any::<bool>(), of(vec(1_u16.., 0..3))).prop_map(|(version, annotated, ports)| {
        let matches = ports.filter(|_| version == 3).map(|ports| json!({ "ports": ports }));
        let spec = (version >= 2).then(|| fields([("matches", matches)]));
        object(SPECS[version], "TCPRoute", annotated, fields([("spec", spec)]))
    })
}

fn a_target() -> impl Strategy<Value = Value> {
    let subject = || (name(), of(name()));
    let rule = (prop::sample::select(vec!["HTTPRouteGroup", "TCPRoute"]), name(), of(vec(name(), 0..2)));
    let parts = (0..TARGETS.len(), any::<bool>(), name(), of(1_u16..), vec(subject(), 0..3), vec(rule, 0..4));
    parts.prop_map(|(version, annotated, destination, port, sources, rules)| {
        let sources = sources.into_iter().map(|(name, namespace)| {
            fields([
                ("kind", Some("ServiceAccount".into())),
                ("name", Some(name.into())),
                ("namespace", namespace.map(Into::into)),
            ])
        });
        let rules = rules.into_iter().map(|(kind, name, matches)| {
            fields([("kind", Some(kind.into())), ("name", Some(name.into())), ("matches", matches.map(Into::into))])
        });
        let body = fields([
            (
                "destination",
                Some(fields([
                    ("kind", Some("ServiceAccount".into())),
                    ("name", Some(destination.into())),
                    ("port", port.filter(|_| version < 2).map(Into::into)),
                ])),
            ),
            ("sources", Some(sources.collect::<Vec<_>>().into())),
            (if version == 0 { "specs" } else { "rules" }, Some(rules.collect::<Vec<_>>().into())),
        ]);
        let body = if version == 0 { body } else { json!({ "spec": body }) };
        object(TARGETS[version], "TrafficTarget", annotated, body)
    })
}

/// There and back over every other version, by itself and by a third one, the object is as it was; and everywhere it
/// means the same.
fn loses_nothing(object: &Value, versions: &[&str]) -> Result<(), TestCaseError> {
    let own = object["apiVersion"].as_str().expect("text");
    for there in versions {
        let converted = to(object, there);
        prop_assert_eq!(&converted["apiVersion"], there);
        prop_assert_eq!(meant(&converted), meant(object), "{}", converted);
        prop_assert_eq!(&to(&converted, own), object, "by way of {}", converted);
        for third in versions {
            let further = to(&converted, third);
            prop_assert_eq!(meant(&further), meant(object), "{}", further);
            prop_assert_eq!(&to(&further, own), object, "by way of {} and {}", converted, further);
        }
    }
    Ok(())
}

proptest! {
    // Each is converted in all ways.
    #![proptest_config(ProptestConfig::with_cases(64))]

    #[test]
    fn a_split_loses_nothing(split in a_split()) {
        loses_nothing(&split, SPLITS)?;
    }

    #[test]
    fn a_group_loses_nothing(group in a_group()) {
        loses_nothing(&group, SPECS)?;
    }

    #[test]
    fn a_tcp_route_loses_nothing(route in a_tcp_route()) {
        loses_nothing(&route, SPECS)?;
    }

    #[test]
    fn a_target_loses_nothing(target in a_target()) {
        loses_nothing(&target, TARGETS)?;
    }

    /// A client of v1alpha1 that keeps no annotations.
    #[test]
    fn a_group_without_its_annotations_is_narrower(group in a_group()) {
        let mut old = to(&group, SPECS[0]);
        old["metadata"].as_object_mut().expect("metadata").remove("annotations");
        let (Some(Object::HttpRouteGroup(all)), Some(Object::HttpRouteGroup(left))) = (meant(&group), meant(&old)) else {
            panic!("two groups");
        };
        prop_assert!(left.matches.iter().all(|one| all.matches.contains(one)));
    }

    /// Clients of v1alpha2 decode integers.
    #[test]
    fn weights_are_whole_numbers_in_every_version_but_the_first(split in a_split()) {
        for version in &SPLITS[1..] {
            let converted = to(&split, version);
            let backends = converted["spec"]["backends"].as_array().expect("backends");
            prop_assert!(backends.iter().all(|backend| backend["weight"].is_u64()), "{}", converted);
        }
    }
}

fn split_of(version: usize, spec: Value) -> Value {
    object(SPLITS[version], "TrafficSplit", false, json!({ "spec": spec }))
}

#[test]
fn quantities_of_one_and_500m_are_two_to_one_everywhere_and_matches_survive_an_update() {
    let backends = json!([{"service": "a", "weight": "1"}, {"service": "b", "weight": "500m"}]);
    let written = split_of(0, json!({"service": "cart", "backends": backends}));
    let mut stored = to(&written, SPLITS[3]);
    assert_eq!(stored["spec"]["backends"], json!([{"service": "a", "weight": 1000}, {"service": "b", "weight": 500}]));
    stored["spec"]["matches"] = json!([{"kind": "HTTPRouteGroup", "name": "beta"}]);
    // A client of v1alpha2 that knows nothing of matches changes the weights.
    let mut read = to(&stored, SPLITS[1]);
    assert_eq!(read["spec"].get("matches"), None);
    read["spec"]["backends"] = json!([{"service": "a", "weight": 2}, {"service": "b", "weight": 1}]);
    let updated = to(&read, SPLITS[3]);
    assert_eq!(updated["spec"]["matches"], stored["spec"]["matches"]);
    let old = to(&updated, SPLITS[0]);
    assert_eq!(
        old["spec"]["backends"],
        json!([{"service": "a", "weight": "2"}, {"service": "b", "weight": "1"}]),
        "what was kept of weights that are no more does not come back"
    );
}

#[test]
fn matches_that_are_gone_do_not_come_back() {
    let spec = json!({"service": "cart", "backends": [{"service": "a", "weight": 1}]});
    let mut split = split_of(3, spec);
    split["metadata"]["annotations"] = json!({MATCHES: r#"[{"kind":"HTTPRouteGroup","name":"old"}]"#});
    let back = to(&to(&split, SPLITS[1]), SPLITS[3]);
    assert_eq!(back["spec"].get("matches"), None);
    assert_eq!(back["metadata"].get("annotations"), None);
}

#[test]
fn a_port_stays_a_constraint_and_an_old_client_can_change_it() {
    let destination = json!({"kind": "ServiceAccount", "name": "db", "port": 8080});
    let body = json!({"destination": destination, "sources": [], "specs": [{"kind": "TCPRoute", "name": "r"}]});
    let written = object(TARGETS[0], "TrafficTarget", true, body);
    let stored = to(&written, TARGETS[2]);
    assert_eq!(stored["spec"]["destination"].get("port"), None);
    assert_eq!(stored["metadata"]["annotations"], json!({"team": "cart", PORT: "8080"}));
    let mut read = to(&stored, TARGETS[1]);
    assert_eq!(read["metadata"]["annotations"], json!({"team": "cart"}));
    read["spec"]["destination"]["port"] = 9090.into();
    assert!(matches!(meant(&to(&read, TARGETS[2])), Some(Object::TrafficTarget(target)) if target.port == Some(9090)));
}

#[test]
fn metadata_is_as_it_came_but_for_annotations() {
    let mut split = split_of(3, json!({"service": "cart", "backends": [{"service": "a", "weight": 1}]}));
    split["metadata"]["creationTimestamp"] = Value::Null;
    split["metadata"]["aFieldOfTomorrow"] = json!({"a": [1]});
    assert_eq!(to(&split, SPLITS[1])["metadata"], split["metadata"]);
}

#[test]
fn what_cannot_be_converted_is_named() {
    let weight =
        |weight: &str| split_of(0, json!({"service": "cart", "backends": [{"service": "a", "weight": weight}]}));
    let mut broken = split_of(1, json!({"service": "cart", "backends": []}));
    broken["metadata"]["annotations"] = json!({MATCHES: "{"});
    let port = json!({"destination": {"kind": "ServiceAccount", "name": "a", "port": 1}});
    let with_ports = object(SPECS[1], "TCPRoute", false, json!({"spec": {"matches": {"ports": [1]}}}));
    for (object, version, expected) in [
        (weight("-1"), SPLITS[3], "TrafficSplit shop/one: spec.backends[0].weight: the weight `-1` is negative"),
        (weight("x"), SPLITS[1], "TrafficSplit shop/one: spec.backends[0].weight: `x` is not a quantity"),
        (broken, SPLITS[3], "TrafficSplit shop/one: metadata.annotations.weft.dev/smi-matches: it keeps"),
        (split_of(3, json!({"service": 1})), SPLITS[1], "TrafficSplit shop/one: spec.service: invalid type"),
        (
            object(TARGETS[2], "TrafficTarget", false, json!({"spec": port})),
            TARGETS[1],
            "spec.destination.port: a Traffic",
        ),
        (with_ports, SPECS[3], "TCPRoute shop/one: spec.matches: a TCPRoute of specs.smi-spec.io/v1alpha2 names no"),
        (
            weight("1"),
            TARGETS[0],
            "TrafficSplit shop/one cannot be converted from split.smi-spec.io/v1alpha1 to access",
        ),
        (json!({"apiVersion": "v1", "kind": "Pod"}), "v2", "Pod / cannot be converted from v1 to v2"),
        (json!(5), SPLITS[0], "cannot be converted"),
    ] {
        let error = convert(object, version).expect_err(expected).to_string();
        assert!(error.contains(expected), "{error}");
    }
    let good = weight("1");
    assert_eq!(convert_all([good.clone(), good.clone()], SPLITS[3]).map(|all| all.len()), Ok(2));
    assert!(convert_all([good, weight("-1")], SPLITS[3]).is_err());
}
