//! A mesh in which everything is there, and what is said when something is added that names what is not.

use super::*;
use crate::mesh::diagnostic::Severity;
use crate::source::directory::read_once;

const WHOLE: &str = "
apiVersion: v1
kind: Namespace
metadata: {name: shop, labels: {weft.dev/inject: enabled}}
---
apiVersion: v1
kind: ServiceAccount
metadata: {name: web, namespace: shop}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: cart, namespace: shop}
spec:
  selector: {matchLabels: {app: cart}}
  template:
    metadata: {labels: {app: cart}, annotations: {weft.dev/upstreams: cart}}
    spec:
      serviceAccountName: cart
      containers: [{name: cart, image: cart, ports: [{name: http, containerPort: 8080}]}]
---
apiVersion: v1
kind: Service
metadata: {name: cart, namespace: shop}
spec:
  selector: {app: cart}
  ports: [{name: http, port: 80, targetPort: http}]
---
apiVersion: specs.smi-spec.io/v1alpha4
kind: HTTPRouteGroup
metadata: {name: api, namespace: shop}
spec: {matches: [{name: read, methods: [GET]}]}
---
apiVersion: access.smi-spec.io/v1alpha3
kind: TrafficTarget
metadata: {name: whole, namespace: shop}
spec:
  destination: {kind: ServiceAccount, name: cart, namespace: shop}
  sources: [{kind: ServiceAccount, name: web, namespace: shop}]
  rules: [{kind: HTTPRouteGroup, name: api, matches: [read]}]
---
";

/// Kind and spec of what is added as `shop/x`, and what is said: `FIELD: REASON`, of `KIND shop/x`.
const ADDED: &[(&str, &str, &str, &[&str])] = &[
    (
        "split.smi-spec.io/v1alpha4",
        "TrafficSplit",
        "{service: nowhere, backends: [{service: cart, weight: 1}]}",
        &["spec.service: Service shop/nowhere does not exist"],
    ),
    (
        "split.smi-spec.io/v1alpha4",
        "TrafficSplit",
        "{service: cart, backends: [{service: cart, weight: 1}, {service: nowhere, weight: 1}]}",
        &["spec.backends[1].service: Service shop/nowhere does not exist"],
    ),
    (
        "split.smi-spec.io/v1alpha4",
        "TrafficSplit",
        "{service: cart, backends: [{service: cart, weight: 1}], matches: [{kind: HTTPRouteGroup, name: gone}]}",
        &["spec.matches[0].name: there is no HTTPRouteGroup shop/gone"],
    ),
    (
        "access.smi-spec.io/v1alpha3",
        "TrafficTarget",
        "{destination: {kind: ServiceAccount, name: nobody, namespace: shop}, \
          sources: [{kind: ServiceAccount, name: stranger, namespace: far}], \
          rules: [{kind: HTTPRouteGroup, name: gone}, {kind: TCPRoute, name: gone}]}",
        &[
            "spec.rules[0].name: there is no HTTPRouteGroup shop/gone",
            "spec.rules[1].name: there is no TCPRoute shop/gone",
            "spec.destination: no pod runs under ServiceAccount shop/nobody",
            "spec.sources: there is no ServiceAccount far/stranger",
        ],
    ),
    (
        "access.smi-spec.io/v1alpha3",
        "TrafficTarget",
        "{destination: {kind: ServiceAccount, name: cart, namespace: shop}, \
          sources: [{kind: ServiceAccount, name: default, namespace: shop}], \
          rules: [{kind: HTTPRouteGroup, name: api, matches: [raed]}]}",
        &["spec.rules[0].matches: HTTPRouteGroup shop/api has no match `raed`"],
    ),
    (
        "weft.dev/v1alpha1",
        "TrafficFault",
        "{targetRefs: [{kind: Service, name: nowhere}], delay: {fixed: 1s}, \
          callers: [{kind: ServiceAccount, name: nobody, namespace: shop}]}",
        &[
            "spec.targetRefs[0]: Service shop/nowhere does not exist",
            "spec.callers: there is no ServiceAccount shop/nobody",
        ],
    ),
    (
        "weft.dev/v1alpha1",
        "TrafficFault",
        "{targetRefs: [{kind: Service, name: cart, port: 81}], delay: {fixed: 1s}, requests: [{routeGroup: gone}]}",
        &[
            "spec.targetRefs[0].port: Service shop/cart has no port 81",
            "spec.requests[0].routeGroup: there is no HTTPRouteGroup shop/gone",
        ],
    ),
    (
        "weft.dev/v1alpha1",
        "TrafficPolicy",
        "{targetRefs: [{kind: Service, name: nowhere}], timeouts: {request: 1s}}",
        &["spec.targetRefs[0]: Service shop/nowhere does not exist"],
    ),
    (
        "weft.dev/v1alpha1",
        "Egress",
        "{hosts: [a.example], sources: [{kind: ServiceAccount, name: nobody}]}",
        &["spec.sources: there is no ServiceAccount shop/nobody"],
    ),
    (
        "v1",
        "Service",
        "{selector: {app: cart}, ports: [{port: 80, targetPort: web}]}",
        &["spec.ports[0].targetPort: no pod of the Service has a port named `web`"],
    ),
    (
        "v1",
        "Service",
        "{selector: {app: card}, ports: [{port: 80}]}",
        &["spec.selector: no pod of shop has the labels `app: card`"],
    ),
    (
        "apps/v1",
        "Deployment",
        "{selector: {}, template: {metadata: {annotations: {weft.dev/upstreams: 'cart:81, nowhere'}}, \
          spec: {containers: [{name: a, image: a}]}}}",
        &[
            "spec.template.metadata.annotations.weft.dev/upstreams: there is no Service `cart.shop:81`",
            "spec.template.metadata.annotations.weft.dev/upstreams: there is no Service `nowhere.shop`",
        ],
    ),
    (
        "apps/v1",
        "StatefulSet",
        "{selector: {}, serviceName: x, template: {metadata: {labels: {a: b}}, \
          spec: {containers: [{name: a, image: a, ports: [{containerPort: 0}]}]}}}",
        &["spec.template.spec.containers[0].ports[0].containerPort: 0 is not a port"],
    ),
    ("v1", "Pod", "{containers: [{name: a, image: a}], serviceAccountName: solo}", &[]),
];

fn said(yaml: &str) -> Vec<Diagnostic> {
    let directory = tempfile::tempdir().unwrap();
    let file = directory.path().join("mesh.yaml");
    std::fs::write(&file, yaml).unwrap();
    let events = read_once(&file).unwrap();
    for event in &events {
        assert!(!matches!(event, Event::Rejected(_)), "{event:?}");
    }
    diagnostics(&events)
}

#[test]
fn of_a_whole_mesh_nothing_is_said_and_of_what_is_missing_everything() {
    assert_eq!(said(WHOLE), []);
    for (version, kind, spec, expected) in ADDED {
        let added =
            format!("apiVersion: {version}\nkind: {kind}\nmetadata: {{name: x, namespace: shop}}\nspec: {spec}\n");
        let found: Vec<_> = said(&format!("{WHOLE}{added}")).iter().map(ToString::to_string).collect();
        let fits = |said: &String, expected: &&str| said.starts_with(&format!("{kind} shop/x: {expected}"));
        let all = expected.iter().all(|expected| found.iter().any(|said| fits(said, expected)));
        assert!(all && found.len() == expected.len(), "{added}\nexpected {expected:#?}\nfound {found:#?}");
    }
}

#[test]
fn a_target_of_pods_without_a_sidecar_is_enforced_by_nobody() {
    let found = said(&WHOLE.replace(", labels: {weft.dev/inject: enabled}", ""));
    let found: Vec<_> = found.iter().map(ToString::to_string).collect();
    assert_eq!(found.len(), 1, "{found:?}");
    assert!(found[0].contains("no pod of ServiceAccount shop/cart has a sidecar"), "{found:?}");
}

#[test]
fn a_template_whose_pods_cannot_be_used_is_an_error() {
    let bad = WHOLE.replace("containerPort: 8080", "containerPort: 80800");
    let found = said(&bad);
    let error = found.iter().find(|found| found.severity == Severity::Error).unwrap();
    assert!(error.to_string().starts_with("Deployment shop/cart: spec.template.spec.containers[0]"), "{error}");
}
