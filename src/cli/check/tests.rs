use std::collections::{BTreeMap, BTreeSet};

use k8s_openapi::api::apps::v1::Deployment;
use k8s_openapi::api::core::v1::Pod;
use k8s_openapi::apiextensions_apiserver::pkg::apis::apiextensions::v1::CustomResourceDefinition;
use serde_json::{Value, json};
use time::{Duration, OffsetDateTime};

use super::facts::{After, Before, MeshFacts, Read};
use super::rights::{self, Right};
use super::{Finding, Outcome, judge, table};
use crate::ca::{Authority, Clock};
use crate::mesh::{Diagnostic, Kind, ObjectRef, TrustDomain};
use crate::source::crds;

fn of<T: serde::de::DeserializeOwned>(json: Value) -> T {
    serde_json::from_value(json).expect("an object")
}

fn root() -> String {
    thread_local! {
        static ROOT: String = Authority::in_memory(TrustDomain::default(), Clock::system()).expect("a root").root_pem().to_owned();
    }
    ROOT.with(Clone::clone)
}

fn deployment(replicas: i32, ready: i32, version: &str) -> Deployment {
    of(json!({
        "metadata": {"labels": {"app.kubernetes.io/version": version}},
        "spec": {"replicas": replicas, "selector": {}, "template": {}},
        "status": {"readyReplicas": ready},
    }))
}

fn pod(name: &str, metadata: Value, spec: Value) -> Pod {
    let mut pod = json!({"metadata": {"namespace": "shop", "name": name}, "spec": {"containers": [{"name": "app"}]}});
    for (part, more) in [("metadata", metadata), ("spec", spec)] {
        for (key, value) in more.as_object().cloned().unwrap_or_default() {
            pod[part][key] = value;
        }
    }
    of(pod)
}

fn meshed(name: &str, version: &str) -> Pod {
    let proxy = json!({"initContainers": [{"name": "weft-proxy", "restartPolicy": "Always"}]});
    pod(name, json!({"annotations": {"weft.dev/injected": version}}), proxy)
}

fn definitions() -> BTreeMap<String, Read<Option<CustomResourceDefinition>>> {
    let with_bundle = |definition: CustomResourceDefinition| {
        let mut json = json!(definition);
        if let Some(client) = json.pointer_mut("/spec/conversion/webhook/clientConfig") {
            client["caBundle"] = json!(k8s_openapi::ByteString(root().into_bytes()));
        }
        json["status"] = json!({"conditions": [{"type": "Established", "status": "True"}]});
        let definition: CustomResourceDefinition = of(json);
        (definition.metadata.name.clone().unwrap(), Ok(Some(definition)))
    };
    crds::all().into_iter().map(with_bundle).collect()
}

/// A cluster where everything is as it should be.
fn healthy() -> After {
    let own = env!("CARGO_PKG_VERSION");
    After {
        version: (1, 35),
        namespace: "weft-system".to_owned(),
        now: OffsetDateTime::now_utc(),
        denied: Ok(Vec::new()),
        control_plane_denied: Ok(Vec::new()),
        definitions: definitions(),
        webhooks: BTreeMap::from([
            ("MutatingWebhookConfiguration weft-injector".to_owned(), Ok(Some(vec![root(), root()]))),
            ("ValidatingWebhookConfiguration weft-validator".to_owned(), Ok(Some(vec![root()]))),
        ]),
        certificates: BTreeMap::from([
            ("weft-ca".to_owned(), Ok(Some(root()))),
            ("weft-webhook-tls".to_owned(), Ok(Some(root()))),
        ]),
        deployments: BTreeMap::from([
            ("weft".to_owned(), Ok(Some(deployment(2, 2, own)))),
            ("weft-webhook".to_owned(), Ok(Some(deployment(2, 2, own)))),
        ]),
        roots: Ok(BTreeMap::from([("weft-system".to_owned(), root()), ("shop".to_owned(), root())])),
        mesh: Ok(MeshFacts {
            meshed: BTreeSet::from(["shop".to_owned()]),
            pods: vec![
                meshed("cart-1", own),
                pod("opted-out", json!({"labels": {"weft.dev/inject": "false"}}), json!({})),
                pod("said", json!({"annotations": {"weft.dev/not-injected": "hostNetwork"}}), json!({})),
                pod("host", json!({}), json!({"hostNetwork": true})),
                pod("elsewhere", json!({"namespace": "other"}), json!({})),
            ],
            diagnostics: Vec::new(),
        }),
    }
}

/// The findings that are not as they should be: `CHECK RESULT: FOUND; WHAT TO DO`.
fn wrong(findings: &[Finding]) -> Vec<String> {
    let wrong = findings.iter().filter(|finding| finding.outcome != Outcome::Ok);
    wrong
        .map(|finding| format!("{} {:?}: {}; {}", finding.check, finding.outcome, finding.found, finding.todo))
        .collect()
}

fn right(resource: &str, verb: &str) -> Right {
    Right {
        group: String::new(),
        resource: resource.to_owned(),
        name: String::new(),
        verb: verb.to_owned(),
        own: false,
    }
}

#[test]
fn where_all_is_well_each_check_has_one_line_and_nothing_to_do() {
    let findings = judge::after(&healthy());
    assert_eq!(wrong(&findings), Vec::<String>::new());
    let checks: Vec<_> = findings.iter().map(|finding| finding.check).collect();
    let all = [
        "kubernetes",
        "permissions",
        "rights",
        "definitions",
        "webhooks",
        "certificates",
        "control-plane",
        "root",
        "sidecars",
        "namespaces",
        "resources",
    ];
    assert_eq!(checks, all);
    assert!(table(&findings).lines().all(|line| line.contains("ok") || line.starts_with("CHECK")));
}

/// What is changed, and how the line that follows begins and goes on.
type Case = (&'static str, fn(&mut After), &'static str, &'static str);

const NO_ROOT: &str = "root Failed: ConfigMap weft-system/weft-root is missing";

fn change_definition(facts: &mut After, name: &str, pointer: &str, value: Value) {
    let mut json = json!(facts.definitions[name].as_ref().unwrap());
    *json.pointer_mut(pointer).unwrap() = value;
    facts.definitions.insert(name.to_owned(), Ok(Some(of(json))));
}

fn mesh(facts: &mut After) -> &mut MeshFacts {
    facts.mesh.as_mut().unwrap()
}

const CASES: &[Case] = &[
    ("too old", |facts| facts.version = (1, 26), "kubernetes Failed: Kubernetes 1.26", "upgrade the cluster"),
    ("no native sidecars", |facts| facts.version = (1, 28), "kubernetes Warning: ", "docs/install.md"),
    (
        "whoever asks may not read pods",
        |facts| facts.denied = Ok(vec![right("pods", "list")]),
        "permissions Failed: you may not list pods",
        "an account that may",
    ),
    (
        "a right of the control plane is gone",
        |facts| facts.control_plane_denied = Ok(vec![right("endpointslices", "watch")]),
        "rights Failed: the control plane may not watch endpointslices",
        "allow system:serviceaccount:weft-system:weft the verb watch on endpointslices",
    ),
    (
        "a definition is missing",
        |facts| drop(facts.definitions.insert("egresses.weft.dev".to_owned(), Ok(None))),
        "definitions Failed: egresses.weft.dev is missing",
        "weft crds | kubectl apply",
    ),
    (
        "a definition is old",
        |facts| change_definition(facts, "trafficsplits.split.smi-spec.io", "/spec/versions/3/served", json!(false)),
        "definitions Failed: trafficsplits.split.smi-spec.io does not serve v1alpha4",
        "weft crds | kubectl apply",
    ),
    (
        "a definition is refused",
        |facts| change_definition(facts, "egresses.weft.dev", "/status/conditions/0/status", json!("False")),
        "definitions Failed: egresses.weft.dev is not in use",
        "kubectl describe crd",
    ),
    (
        "conversion is not believed",
        |facts| {
            let pointer = "/spec/conversion/webhook/clientConfig/caBundle";
            change_definition(facts, "traffictargets.access.smi-spec.io", pointer, json!("AAAA"));
        },
        "definitions Failed: traffictargets.access.smi-spec.io: the API server does not believe who converts it",
        "holds the lease",
    ),
    (
        "a webhook is missing",
        |facts| drop(facts.webhooks.insert("MutatingWebhookConfiguration weft-injector".to_owned(), Ok(None))),
        "webhooks Failed: MutatingWebhookConfiguration weft-injector is missing",
        "helm upgrade",
    ),
    (
        "a webhook's bundle is an old one",
        |facts| {
            let bundles = Ok(Some(vec![root(), "another".to_owned()]));
            facts.webhooks.insert("MutatingWebhookConfiguration weft-injector".to_owned(), bundles);
        },
        "webhooks Failed: MutatingWebhookConfiguration weft-injector: 1 of 2 webhooks are not believed",
        "holds the lease",
    ),
    (
        "the root ends soon",
        |facts| facts.now += Duration::days(365 * 10 - 20),
        "certificates Warning: the mesh's root ends on ",
        "make a new root in time",
    ),
    (
        "a certificate is over",
        |facts| facts.now += Duration::days(365 * 30),
        "certificates Failed: Secret weft-system/weft-webhook-tls ended on ",
        "renews the certificate",
    ),
    (
        "a clock is wrong",
        |facts| facts.now -= Duration::days(30),
        "certificates Failed: the mesh's root begins on ",
        "compare the clocks",
    ),
    (
        "a Secret is damaged",
        |facts| drop(facts.certificates.insert("weft-ca".to_owned(), Ok(Some("no PEM".to_owned())))),
        "certificates Failed: Secret weft-system/weft-ca: ",
        "renew the certificate of the authority",
    ),
    (
        "a Secret is missing",
        |facts| drop(facts.certificates.insert("weft-ca".to_owned(), Ok(None))),
        "certificates Failed: Secret weft-system/weft-ca is missing",
        "/readyz",
    ),
    (
        "a Secret may not be read",
        |facts| drop(facts.certificates.insert("weft-ca".to_owned(), Err("forbidden".to_owned()))),
        "certificates Failed: Secret weft-system/weft-ca cannot be read: forbidden",
        "an account that may",
    ),
    (
        "no replica is ready",
        |facts| {
            drop(facts.deployments.insert("weft".to_owned(), Ok(Some(deployment(2, 0, env!("CARGO_PKG_VERSION"))))))
        },
        "control-plane Failed: Deployment weft-system/weft: 0 of 2 replicas are ready",
        "kubectl -n weft-system logs deployment/weft",
    ),
    (
        "one of two is",
        |facts| {
            drop(facts.deployments.insert("weft".to_owned(), Ok(Some(deployment(2, 1, env!("CARGO_PKG_VERSION"))))))
        },
        "control-plane Warning: Deployment weft-system/weft: 1 of 2 replicas are ready",
        "kubectl -n weft-system describe pods",
    ),
    (
        "another version is installed",
        |facts| drop(facts.deployments.insert("weft".to_owned(), Ok(Some(deployment(2, 2, "0.0.1"))))),
        "control-plane Warning: Deployment weft-system/weft is of Weft 0.0.1",
        "the same version",
    ),
    (
        "nothing is installed",
        |facts| drop(facts.deployments.insert("weft".to_owned(), Ok(None))),
        "control-plane Failed: Deployment weft-system/weft is missing",
        "weft install",
    ),
    ("there is no root", |facts| facts.roots = Ok(BTreeMap::new()), NO_ROOT, "/readyz"),
    (
        "a namespace has no root",
        |facts| drop(facts.roots.as_mut().unwrap().remove("shop")),
        "root Failed: ConfigMap shop/weft-root is missing",
        "holds the lease",
    ),
    (
        "a namespace has another root",
        |facts| drop(facts.roots.as_mut().unwrap().insert("shop".to_owned(), "another".to_owned())),
        "root Failed: ConfigMap shop/weft-root holds another root",
        "holds the lease",
    ),
    (
        "sidecars are old",
        |facts| mesh(facts).pods.extend(["a", "b", "c", "d", "e", "f"].map(|name| meshed(name, "0.0.1"))),
        "sidecars Warning: shop: 6 pods with a sidecar of Weft 0.0.1: a, b, c, d, e and 1 more",
        "kubectl -n shop rollout restart deployment",
    ),
    (
        "a namespace is half-meshed",
        |facts| mesh(facts).pods.push(pod("bare", json!({}), json!({}))),
        "namespaces Failed: shop: 1 pod without a sidecar: bare",
        "kubectl -n shop rollout restart deployment",
    ),
    (
        "an object is not used",
        |facts| {
            let split = ObjectRef { kind: Kind::TrafficSplit, namespace: Some("shop".into()), name: "s".into() };
            mesh(facts)
                .diagnostics
                .push(Diagnostic::error("spec.service", "two splits have it", "delete one").about(split));
        },
        "resources Failed: TrafficSplit shop/s: spec.service: two splits have it",
        "delete one",
    ),
    (
        "a part of an object is not used",
        |facts| mesh(facts).diagnostics.push(Diagnostic::warning("", "unknown", "remove it")),
        "resources Warning: unknown",
        "remove it",
    ),
    (
        "the mesh cannot be read",
        |facts| facts.mesh = Err("it takes too long".to_owned()),
        "resources Failed: the mesh cannot be read: it takes too long",
        "an account that may",
    ),
];

#[test]
fn each_check_fails_when_what_it_looks_at_is_wrong_and_says_what_to_do() {
    for (what, change, begins, todo) in CASES {
        let mut facts = healthy();
        change(&mut facts);
        let wrong = wrong(&judge::after(&facts));
        let found = wrong.iter().find(|line| line.starts_with(begins));
        assert!(found.is_some_and(|line| line.contains(todo)), "{what}: {wrong:#?}");
        // One thing that is wrong is one line, but a time concerns all certificates, and a missing root whatever believes it.
        let many = begins.starts_with("certificates") || *begins == NO_ROOT;
        assert!(wrong.len() == 1 || many, "{what}: {wrong:#?}");
    }
}

#[test]
fn every_check_has_a_case() {
    for finding in judge::after(&healthy()) {
        assert!(CASES.iter().any(|(_, _, begins, _)| begins.starts_with(finding.check)), "{}", finding.check);
    }
}

#[test]
fn before_an_installation_rights_and_what_stands_in_the_way_are_looked_at() {
    let missing =
        crds::all().into_iter().filter_map(|definition| Some((definition.metadata.name?, Ok(None)))).collect();
    let free = || Before {
        version: (1, 31),
        denied: Ok(Vec::new()),
        definitions: BTreeMap::clone(&missing),
        injectors: Ok(Vec::new()),
    };
    let findings = judge::before(&free());
    assert_eq!((wrong(&findings), findings.len()), (Vec::new(), 4));
    let mut taken = free();
    taken.denied = Ok(vec![right("namespaces", "create")]);
    taken.injectors = Ok(vec!["other-injector".to_owned()]);
    let theirs = of(json!({"metadata": {"name": "trafficsplits.split.smi-spec.io"}, "spec":
        {"group": "split.smi-spec.io", "names": {"kind": "TrafficSplit", "plural": "trafficsplits"}, "scope": "Namespaced", "versions": []}}));
    taken.definitions.insert("trafficsplits.split.smi-spec.io".to_owned(), Ok(Some(theirs)));
    let wrong = wrong(&judge::before(&taken));
    for (line, begins) in wrong.iter().zip([
        "permissions Failed: you may not create namespaces; install with an account that may",
        "definitions Warning: trafficsplits.split.smi-spec.io is there already, and not Weft's",
        "injectors Warning: other-injector changes pods, too",
    ]) {
        assert!(line.starts_with(begins), "{line}");
    }
    assert_eq!(wrong.len(), 3);
}

/// The rights that are looked for are those that the chart gives.
#[test]
fn the_rights_are_those_of_the_chart() {
    let chart = std::fs::read_to_string(concat!(env!("CARGO_MANIFEST_DIR"), "/e2e/tests/chart/golden/default.yaml"));
    let mut given = BTreeSet::new();
    for document in format!("\n{}", chart.expect("the golden file")).split("\n---\n") {
        let role: Value = serde_saphyr::from_str(document).unwrap_or_default();
        let list = |rule: &Value, field: &str| -> Vec<String> {
            let list = rule[field].as_array().into_iter().flatten();
            list.filter_map(Value::as_str).map(str::to_owned).collect()
        };
        let own = role["kind"] == "Role";
        if !own && role["kind"] != "ClusterRole"
            || !role["metadata"]["name"].as_str().is_some_and(|name| name.starts_with("weft-"))
        {
            continue;
        }
        for rule in role["rules"].as_array().into_iter().flatten() {
            let names =
                Some(list(rule, "resourceNames")).filter(|names| !names.is_empty()).unwrap_or(vec![String::new()]);
            for group in list(rule, "apiGroups") {
                for (resource, verb, name) in list(rule, "resources")
                    .into_iter()
                    .flat_map(|resource| list(rule, "verbs").into_iter().map(move |verb| (resource.clone(), verb)))
                    .flat_map(|(resource, verb)| {
                        names.iter().map(move |name| (resource.clone(), verb.clone(), name.clone()))
                    })
                {
                    given.insert(Right { group: group.clone(), resource, name, verb, own });
                }
            }
        }
    }
    // A rule gives its resources in each of its groups: those that there are not are no rights.
    let groups = |right: &Right| match right.resource.split('/').next().unwrap_or_default() {
        "trafficsplits" => "split.smi-spec.io",
        "httproutegroups" | "tcproutes" | "udproutes" => "specs.smi-spec.io",
        "traffictargets" => "access.smi-spec.io",
        _ => return true,
    } == right.group;
    let given: BTreeSet<_> = given.into_iter().filter(|right| groups(right)).collect();
    let wanted: BTreeSet<_> = rights::each(rights::CONTROL_PLANE, "weft-ca").into_iter().collect();
    assert!(given.len() > 40, "the chart's roles are read");
    assert_eq!(wanted.difference(&given).collect::<Vec<_>>(), Vec::<&Right>::new(), "not given by the chart");
    assert_eq!(given.difference(&wanted).collect::<Vec<_>>(), Vec::<&Right>::new(), "not looked for");
}
