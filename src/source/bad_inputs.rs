//! Every kind of bad input, and what its author is told: a table.

use std::path::PathBuf;
use std::time::Instant;

use super::Event;
use super::directory::catalog::{Catalog, Content};
use crate::mesh::Diagnostic;
use crate::mesh::diagnostic::Severity;

/// A file, and the one finding that it must lead to.
struct Case {
    text: &'static str,
    severity: Severity,
    line: u32,
    field: &'static str,
    reason: &'static str,
    help: &'static str,
}

const fn error(text: &'static str, line: u32, field: &'static str, reason: &'static str, help: &'static str) -> Case {
    Case { text, severity: Severity::Error, line, field, reason, help }
}

const fn warning(text: &'static str, line: u32, field: &'static str, reason: &'static str, help: &'static str) -> Case {
    Case { text, severity: Severity::Warning, line, field, reason, help }
}

/// A document with the kind, apiVersion and metadata on lines 1 to 3; what follows begins on line 4.
macro_rules! object {
    ($version:literal $kind:literal $name:literal $rest:literal) => {
        concat!(
            "apiVersion: ",
            $version,
            "\nkind: ",
            $kind,
            "\nmetadata: {name: ",
            $name,
            ", namespace: shop}\n",
            $rest
        )
    };
}
macro_rules! service {
    ($rest:literal) => {
        object!("v1" "Service" "cart" $rest)
    };
}
macro_rules! pod {
    ($rest:literal) => {
        object!("v1" "Pod" "cart-1" $rest)
    };
}
macro_rules! slice {
    ($rest:literal) => {
        concat!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\n",
            "metadata: {name: x, labels: {kubernetes.io/service-name: cart}}\n",
            $rest
        )
    };
}
macro_rules! split {
    ($rest:literal) => {
        object!("split.smi-spec.io/v1alpha2" "TrafficSplit" "cart" $rest)
    };
}
macro_rules! group {
    ($rest:literal) => {
        object!("specs.smi-spec.io/v1alpha4" "HTTPRouteGroup" "api" $rest)
    };
}
macro_rules! target {
    ($rest:literal) => {
        object!("access.smi-spec.io/v1alpha2" "TrafficTarget" "t" $rest)
    };
}
macro_rules! config {
    ($rest:literal) => {
        concat!("apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\n", $rest)
    };
}

macro_rules! fault {
    ($rest:literal) => {
        object!("weft.dev/v1alpha1" "TrafficFault" "f" $rest)
    };
}

macro_rules! policy {
    ($rest:literal) => {
        object!("weft.dev/v1alpha1" "TrafficPolicy" "p" $rest)
    };
}

const YAML: &[Case] = &[
    error("kind: [\n", 1, "", "not YAML", "correct the YAML"),
    error("kind: A\n bad: 1\n", 2, "", "not YAML", "correct the YAML"),
    error("# fine\n---\na: \"open\n---\n", 3, "", "not YAML", "correct the YAML"),
    error("a: 1\nb: 2\na: 3\n", 3, "", "duplicate", "correct the YAML"),
    error("a: *nowhere\n", 1, "", "not YAML", "correct the YAML"),
    error("a:\n\t- tab\n", 2, "", "not YAML", "correct the YAML"),
    error("a: .nan\n", 1, "", "not YAML", "correct the YAML"),
    error("just text\n", 1, "", "not a Kubernetes object", "mapping"),
    error("- a\n- b\n", 1, "", "not a Kubernetes object", "mapping"),
];

const IDENTITY: &[Case] = &[
    error("kind: Service\nmetadata: {name: x}\n", 1, "apiVersion", "missing", "apiVersion: v1"),
    error("apiVersion: 1\nkind: Service\n", 1, "apiVersion", "not text", "apiVersion: v1"),
    error("apiVersion: v1\nmetadata: {name: x}\n", 1, "kind", "missing", "kind: Service"),
    error("apiVersion: v1\nkind: Service\n", 1, "metadata.name", "has no name", "set metadata.name"),
    error("apiVersion: v1\nkind: Pod\nmetadata:\n  generateName: x-\n", 3, "metadata.name", "no name", "API server"),
    error("apiVersion: v1\nkind: Service\nmetadata:\n  name: 7\n", 4, "metadata.name", "not text", "quotes"),
    error("apiVersion: v1\nkind: Service\nmetadata:\n  name: a.b\n", 4, "metadata.name", "not the name", "at most 63"),
    error("apiVersion: v1\nkind: Pod\nmetadata:\n  name: A_b\n", 4, "metadata.name", "not the name", "a-z"),
    error(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: a\n  namespace: x.y\n",
        5,
        "metadata.namespace",
        "not the name",
        "a-z",
    ),
    error("apiVersion: v1\nkind: Deployment\nmetadata: {name: a}\n", 1, "apiVersion", "not read as v1", "apps/v1"),
    error(
        "apiVersion: split.smi-spec.io/v1alpha9\nkind: TrafficSplit\nmetadata: {name: a}\n",
        1,
        "apiVersion",
        "not read as",
        "v1alpha4",
    ),
    warning("apiVersion: v1\nkind: Sevice\nmetadata: {name: a}\n", 2, "kind", "does not read", "mean `Service`?"),
    warning("apiVersion: serving.knative.dev/v1\nkind: Service\n", 2, "kind", "passes over", "said once"),
    warning("apiVersion: v1\nkind: ConfigMap\n", 2, "kind", "does not read", "leave it"),
    error("apiVersion: v1\nkind: List\nitems: 3\n", 3, "items", "not a sequence", "`- …`"),
    error("apiVersion: v1\nkind: List\nitems:\n- {}\n", 4, "apiVersion", "missing", "apiVersion: v1"),
    error("apiVersion: v1\nkind: List\nitems:\n- 5\n", 4, "", "not a Kubernetes object", "mapping"),
];

const KUBERNETES: &[Case] = &[
    warning(
        service!("spec:\n  trafficDistribution: Nearby\n  ports:\n  - port: 80\n"),
        5,
        "spec.trafficDistribution",
        "`Nearby` is not known",
        "PreferSameZone",
    ),
    warning(
        service!("spec:\n  trafficDistribution: PreferSameNode\n  ports:\n  - port: 80\n"),
        5,
        "spec.trafficDistribution",
        "counts as `PreferSameZone`",
        "PreferSameZone",
    ),
    warning(
        service!("spec:\n  clusterIP: None\n  trafficDistribution: PreferClose\n  ports:\n  - port: 80\n"),
        6,
        "spec.trafficDistribution",
        "a headless Service",
        "cluster IP",
    ),
    error(service!("spec:\n  ports:\n  - port: x\n"), 6, "spec.ports[0].port", "invalid type", "kubectl explain"),
    error(service!("spec:\n  ports:\n  - port: 70000\n"), 6, "spec.ports[0].port", "70000 is not a port", "65535"),
    error(service!("spec:\n  ports:\n  - name: a\n"), 6, "spec.ports[0].port", "0 is not a port", "from 1"),
    error(
        service!("spec:\n  ports:\n  - {name: a, port: 1}\n  - {port: 2}\n"),
        7,
        "spec.ports[1].name",
        "has no name",
        "give each port a name",
    ),
    error(
        service!("spec:\n  ports:\n  - {name: a, port: 1}\n  - {name: a, port: 2}\n"),
        7,
        "spec.ports[1].name",
        "two ports are named `a`",
        "of its own",
    ),
    error(
        service!("spec:\n  ports:\n  - {name: a, port: 1}\n  - {name: b, port: 1}\n"),
        7,
        "spec.ports[1].port",
        "twice",
        "remove",
    ),
    error(
        service!("spec:\n  ports:\n  - port: 80\n    protocol: HTTP\n"),
        7,
        "spec.ports[0].protocol",
        "`HTTP` is not a transport",
        "appProtocol",
    ),
    error(
        service!("spec:\n  ports:\n  - port: 80\n    targetPort: '8080'\n"),
        7,
        "spec.ports[0].targetPort",
        "not the name of a port",
        "without quotes: 8080",
    ),
    error(service!("spec:\n  clusterIP: here\n"), 5, "spec.clusterIP", "`here` is not an IP", "IPv4"),
    error(service!("spec:\n  selector:\n    v: 2\n"), 6, "spec.selector.v", "expected a string", "quotes"),
    warning(service!("spec:\n  selectors: {a: b}\n"), 5, "spec.selectors", "no such field", "correct its name"),
    error(
        pod!("spec:\n  containers:\n  - name: a\n    ports:\n    - containerPort: 0\n"),
        8,
        "spec.containers[0].ports[0].containerPort",
        "0 is not a port",
        "65535",
    ),
    error(
        pod!("spec:\n  containers:\n  - name: a\n    env:\n    - name: PORT\n      value: 80\n"),
        9,
        "spec.containers[0].env[0].value",
        "expected a string",
        "quotes",
    ),
    error(pod!("status:\n  podIP: 10.0.0\n"), 5, "status.podIP", "not an IP address", "IPv4"),
    warning(
        pod!("spec:\n  containers:\n  - name: a\n    livenessProbe:\n      httpGet: {port: web}\n"),
        8,
        "spec.containers[0].livenessProbe.httpGet.port",
        "no port named `web`",
        "its number",
    ),
    warning(
        pod!("spec:\n  containers:\n  - name: a\n    livenessProbe:\n      httpGet: {port: 1, scheme: HTTPS}\n"),
        8,
        "spec.containers[0].livenessProbe.httpGet.scheme",
        "HTTPS",
        "use scheme HTTP",
    ),
    error(
        slice!("addressType: IPv4\nendpoints:\n- addresses: []\n"),
        6,
        "endpoints[0].addresses",
        "no address",
        "give it one",
    ),
    error(
        slice!("addressType: IPv4\nendpoints:\n- addresses:\n  - one\n"),
        7,
        "endpoints[0].addresses[0]",
        "`one` is not an IP",
        "IPv6",
    ),
    warning(slice!("addressType: FQDN\n"), 4, "addressType", "`FQDN`", "IPv4 or IPv6"),
    warning(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\nmetadata:\n  name: x\naddressType: IPv4\n",
        3,
        "metadata.labels",
        "no Service",
        "service-name",
    ),
    error(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: x\n  annotations:\n    weft.dev/mtls: stric\n",
        6,
        "metadata.annotations.weft.dev/mtls",
        "`stric` is not a mode",
        "`Strict`, `Permissive`",
    ),
    warning(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: x\n  annotations:\n    weft.dev/mtls: permisive\nspec: {containers: [{name: a, image: a}]}\n",
        6,
        "metadata.annotations.weft.dev/mtls",
        "`permisive` is no mode, so the pod is held to be strict",
        "`permissive`",
    ),
    warning(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: x\n  annotations:\n    weft.dev/mtls-ports: http=permissive\nspec: {containers: [{name: a, image: a}]}\n",
        6,
        "metadata.annotations.weft.dev/mtls-ports",
        "names no port",
        "PORT=strict",
    ),
    warning(
        "apiVersion: v1\nkind: Pod\nmetadata:\n  name: x\n  annotations:\n    weft.dev/exclude-inbound-ports: '8080, metrics'\nspec: {containers: [{name: a, image: a}]}\n",
        6,
        "metadata.annotations.weft.dev/exclude-inbound-ports",
        "`metrics` is left out",
        "port numbers",
    ),
    warning(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: x\n  labels:\n    weft.dev/inject: 'true'\n",
        6,
        "metadata.labels.weft.dev/inject",
        "no sidecar",
        "`enabled`",
    ),
];

const SMI: &[Case] = &[
    error(
        split!("spec:\n  service: cart\n  backends:\n  - service: a\n    weight: 500m\n"),
        8,
        "spec.backends[0].weight",
        "`500m` is text, or a quantity",
        "2 and 1",
    ),
    error(
        split!("spec:\n  service: cart\n  backends:\n  - service: a\n    weight: -1\n"),
        8,
        "spec.backends[0].weight",
        "negative",
        "use 0",
    ),
    error(
        split!("spec:\n  service: cart\n  backends:\n  - service: a\n    weight: 0.5\n"),
        8,
        "spec.backends[0].weight",
        "not whole",
        "multiply",
    ),
    error(
        split!("spec:\n  service: cart\n  backends:\n  - service: a\n    weight: 4294967296\n"),
        8,
        "spec.backends[0].weight",
        "too large",
        "4294967295",
    ),
    error(
        split!(
            "spec:\n  service: cart\n  backends:\n  - {service: a, weight: 4294967295}\n  - {service: b, weight: 1}\n"
        ),
        6,
        "spec.backends",
        "add up to 4294967296",
        "divide",
    ),
    error(
        split!("spec:\n  service: cart\n  backends:\n  - service: a\n"),
        7,
        "spec.backends[0].weight",
        "missing",
        "set it",
    ),
    error(split!("spec:\n  backends: []\n"), 4, "spec.service", "missing", "set it"),
    error(split!("spec:\n  service: cart\n  backends: []\n"), 6, "spec.backends", "no backend", "at least one"),
    error(
        split!("spec:\n  service: cart.other\n  backends:\n  - {service: a, weight: 1}\n"),
        5,
        "spec.service",
        "not in the split's namespace, shop",
        "move the split",
    ),
    error(
        split!("spec:\n  service: cart.shop.pod\n  backends:\n  - {service: a, weight: 1}\n"),
        5,
        "spec.service",
        "not a Service",
        "NAME.NAMESPACE.svc",
    ),
    error(
        split!("spec:\n  service: cart\n  backends:\n  - {service: a.shop, weight: 1}\n"),
        7,
        "spec.backends[0].service",
        "`a.shop` is not the name",
        "own namespace",
    ),
    error(
        split!("spec:\n  service: cart\n  backends:\n  - {service: a, weight: 1}\n  - {service: a, weight: 2}\n"),
        8,
        "spec.backends[1].service",
        "twice",
        "add their weights up",
    ),
    warning(
        split!("spec:\n  service: cart\n  backends:\n  - {service: a, weight: 0}\n"),
        6,
        "spec.backends",
        "all weights are 0",
        "give a backend",
    ),
    error(
        object!("split.smi-spec.io/v1alpha4" "TrafficSplit" "cart" "spec:\n  service: cart\n  backends: [{service: a, weight: 1}]\n  matches:\n  - {kind: TCPRoute, name: x}\n"),
        8,
        "spec.matches[0].kind",
        "limited to a TCPRoute",
        "HTTPRouteGroup",
    ),
    warning(
        split!(
            "spec:\n  service: cart\n  backends: [{service: a, weight: 1}]\n  matches: [{kind: HTTPRouteGroup, name: x}]\n"
        ),
        7,
        "spec.matches",
        "no such field",
        "correct its name",
    ),
    warning(
        group!("spec:\n  matches:\n  - name: a\n    pathRegex: (?=x)\n"),
        7,
        "spec.matches[0].pathRegex",
        "the match is left out",
        "RE2",
    ),
    warning(
        group!("spec:\n  matches:\n  - name: a\n    headers:\n    - x: (\n"),
        8,
        "spec.matches[0].headers[0].x",
        "the match is left out",
        "RE2",
    ),
    warning(
        group!("spec:\n  matches:\n  - name: a\n    headers:\n      'a b': x\n"),
        7,
        "spec.matches[0].headers[0].a b",
        "not a header's name",
        "authority",
    ),
    warning(
        group!("spec:\n  matches:\n  - name: a\n    methods: [FETCH]\n"),
        7,
        "spec.matches[0].methods[0]",
        "`FETCH` is not an HTTP method",
        "GET",
    ),
    error(
        group!("spec:\n  matches:\n  - name: a\n  - name: a\n"),
        7,
        "spec.matches[1].name",
        "two matches are named `a`",
        "of its own",
    ),
    warning(group!("spec: {}\n"), 4, "spec.matches", "no match", "add a match"),
    error(
        object!("specs.smi-spec.io/v1alpha4" "TCPRoute" "t" "spec:\n  matches:\n    ports: [8080, 65536]\n"),
        6,
        "spec.matches.ports[1]",
        "65536 is not a port",
        "65535",
    ),
    error(
        target!(
            "spec:\n  destination:\n    kind: Pod\n    name: a\n  sources: [{kind: ServiceAccount, name: b}]\n  rules: [{kind: TCPRoute, name: x}]\n"
        ),
        6,
        "spec.destination.kind",
        "a Pod is not an identity",
        "ServiceAccount",
    ),
    error(
        target!("spec:\n  destination: {kind: ServiceAccount, name: a}\n  sources:\n  - {kind: Group, name: b}\n"),
        7,
        "spec.sources[0].kind",
        "a Group is not an identity",
        "ServiceAccount",
    ),
    error(
        target!(
            "spec:\n  destination: {kind: ServiceAccount, name: a}\n  sources: [{kind: ServiceAccount, name: b}]\n  rules:\n  - {kind: GRPCRoute, name: x}\n"
        ),
        8,
        "spec.rules[0].kind",
        "GRPCRoute",
        "HTTPRouteGroup or a TCPRoute",
    ),
    error(
        target!(
            "spec:\n  destination: {kind: ServiceAccount, name: a, port: web}\n  sources: [{kind: ServiceAccount, name: b}]\n"
        ),
        5,
        "spec.destination.port",
        "`web` is not a port",
        "65535",
    ),
    warning(
        target!(
            "spec:\n  destination: {kind: ServiceAccount, name: a, namespace: other}\n  sources: [{kind: ServiceAccount, name: b}]\n  rules: [{kind: TCPRoute, name: x}]\n"
        ),
        5,
        "spec.destination.namespace",
        "the target is ignored",
        "to the namespace other",
    ),
    warning(
        target!("spec:\n  destination: {kind: ServiceAccount, name: a}\n  rules: [{kind: TCPRoute, name: x}]\n"),
        4,
        "spec.sources",
        "nobody is allowed",
        "ServiceAccount",
    ),
    error(target!("spec:\n  destination: {kind: ServiceAccount}\n"), 5, "spec.destination.name", "missing", "set it"),
    error(
        object!("split.smi-spec.io/v1alpha1" "TrafficSplit" "cart" "spec:\n  service: cart\n  backends:\n  - service: a\n    weight: half\n"),
        8,
        "spec.backends[0].weight",
        "`half` is not a quantity",
        "1 or 500m",
    ),
    error(
        object!("split.smi-spec.io/v1alpha1" "TrafficSplit" "cart" "spec:\n  service: cart\n  backends:\n  - {service: a, weight: 1}\n  - {service: b, weight: -500m}\n"),
        8,
        "spec.backends[1].weight",
        "`-500m` is negative",
        "use 0",
    ),
    error(
        object!("split.smi-spec.io/v1alpha1" "TrafficSplit" "cart" "spec:\n  service: cart\n  backends:\n  - {service: a, weight: 1}\n  - {service: b, weight: 1u}\n"),
        8,
        "spec.backends[1].weight",
        "`1u` is finer than 1m",
        "multiply",
    ),
    error(
        object!("split.smi-spec.io/v1alpha1" "TrafficSplit" "cart" "spec:\n  service: cart\n  backends:\n  - {service: a, weight: 5M}\n  - {service: b, weight: 500m}\n"),
        7,
        "spec.backends[0].weight",
        "too large",
        "divide",
    ),
    error(
        object!("split.smi-spec.io/v1alpha3" "TrafficSplit" "cart" "spec:\n  service: cart\n  backends:\n  - service: a\n    weight: half\n"),
        8,
        "spec.backends[0].weight",
        "`half` is text",
        "whole numbers",
    ),
    error(
        "apiVersion: split.smi-spec.io/v1alpha2\nkind: TrafficSplit\nmetadata:\n  name: cart\n  annotations:\n    weft.dev/smi-matches: beta\nspec: {service: cart, backends: [{service: a, weight: 1}]}\n",
        6,
        "metadata.annotations.weft.dev/smi-matches",
        "cannot be read",
        "remove the annotation",
    ),
    error(
        "apiVersion: split.smi-spec.io/v1alpha2\nkind: TrafficSplit\nmetadata:\n  name: cart\n  annotations:\n    weft.dev/smi-matches: '[{\"kind\": \"TCPRoute\", \"name\": \"x\"}]'\nspec: {service: cart, backends: [{service: a, weight: 1}]}\n",
        6,
        "metadata.annotations.weft.dev/smi-matches",
        "limited to a TCPRoute",
        "HTTPRouteGroup",
    ),
    warning(
        object!("specs.smi-spec.io/v1alpha1" "HTTPRouteGroup" "api" "matches:\n- name: a\n  pathRegex: (?=x)\n"),
        6,
        "matches[0].pathRegex",
        "the match is left out",
        "RE2",
    ),
    error(
        object!("specs.smi-spec.io/v1alpha2" "HTTPRouteGroup" "api" "matches:\n- name: a\n- name: a\n"),
        6,
        "matches[1].name",
        "two matches are named `a`",
        "of its own",
    ),
    error(
        object!("specs.smi-spec.io/v1alpha3" "TCPRoute" "t" "spec:\n  matches:\n    ports: [8080]\n"),
        5,
        "spec.matches",
        "names no ports and means every port",
        "v1alpha4",
    ),
    warning(
        object!("specs.smi-spec.io/v1alpha4" "UDPRoute" "u" "spec:\n  matches:\n    ports: [53]\n"),
        4,
        "spec",
        "UDP does not go through the sidecars",
        "NetworkPolicy",
    ),
    error(
        object!("specs.smi-spec.io/v1alpha3" "UDPRoute" "u" "spec: {}\n"),
        1,
        "apiVersion",
        "UDPRoute is not read as",
        "v1alpha4",
    ),
    error(
        object!("access.smi-spec.io/v1alpha1" "TrafficTarget" "t" "destination: {kind: ServiceAccount, name: a}\nsources: [{kind: ServiceAccount, name: b}]\nspecs:\n- {kind: Ingress, name: x}\n"),
        7,
        "specs[0].kind",
        "cannot name a Ingress",
        "TCPRoute",
    ),
    error(
        object!("access.smi-spec.io/v1alpha1" "TrafficTarget" "t" "destination: {kind: ServiceAccount, name: a, port: 0}\nsources: [{kind: ServiceAccount, name: b}]\nspecs: [{kind: TCPRoute, name: x}]\n"),
        4,
        "destination.port",
        "0 is not a port",
        "65535",
    ),
    error(
        object!("access.smi-spec.io/v1alpha1" "TrafficTarget" "t" "spec: {}\n"),
        1,
        "destination",
        "missing",
        "set it",
    ),
    error(
        object!("access.smi-spec.io/v1alpha3" "TrafficTarget" "t" "spec:\n  destination: {kind: ServiceAccount, name: a, port: 80}\n  sources: [{kind: ServiceAccount, name: b}]\n  rules: [{kind: TCPRoute, name: x}]\n"),
        5,
        "spec.destination.port",
        "every port would be opened",
        "TCPRoute",
    ),
    error(
        "apiVersion: access.smi-spec.io/v1alpha3\nkind: TrafficTarget\nmetadata:\n  name: t\n  annotations:\n    weft.dev/smi-port: web\nspec: {destination: {kind: ServiceAccount, name: a}, sources: [{kind: ServiceAccount, name: b}], rules: [{kind: TCPRoute, name: x}]}\n",
        6,
        "metadata.annotations.weft.dev/smi-port",
        "cannot be read",
        "remove the annotation",
    ),
    warning(
        target!(
            "spec:\n  destination: {kind: ServiceAccount, name: a}\n  sources: [{kind: ServiceAccount, name: b}]\n  rules:\n  - {kind: UDPRoute, name: x}\n"
        ),
        8,
        "spec.rules[0].kind",
        "this rule allows nothing",
        "NetworkPolicy",
    ),
    warning(
        target!(
            "spec:\n  destination: {kind: ServiceAccount, name: a}\n  sources: [{kind: ServiceAccount, name: b}]\n"
        ),
        4,
        "spec.rules",
        "nothing is allowed",
        "HTTPRouteGroup",
    ),
];

const CONFIG: &[Case] = &[
    error(config!("spec:\n  mtls:\n    mode: off\n"), 6, "spec.mtls.mode", "invalid type", "quotes"),
    error(config!("spec:\n  mtls:\n    mode: None\n"), 6, "spec.mtls.mode", "`None` is not a mode", "`Permissive`"),
    error(
        config!("spec:\n  authorization:\n    mode: deny\n"),
        6,
        "spec.authorization.mode",
        "`deny` is not a mode",
        "`Enforce`",
    ),
    error(
        config!("spec:\n  discovery:\n    mode: lazy\n"),
        6,
        "spec.discovery.mode",
        "`lazy` is not a mode",
        "`OnDemand`, `Eager`",
    ),
    error(
        config!("spec:\n  metrics:\n    mode: some\n"),
        6,
        "spec.metrics.mode",
        "`some` is not a mode",
        "`Full`, `Basic`",
    ),
    error(config!("spec:\n  trustDomain: Weft!\n"), 5, "spec.trustDomain", "not a trust domain", "lower-case"),
    error(
        config!("spec:\n  network:\n    ranges:\n    - 10.0.0.0/8\n    - 10.0.0.0/40\n"),
        8,
        "spec.network.ranges[1]",
        "not an address range",
        "10.244.0.0/16",
    ),
    warning(
        config!("spec:\n  network:\n    ranges: [10.1.2.3/8]\n"),
        6,
        "spec.network.ranges[0]",
        "read as 10.0.0.0/8",
        "write 10.0.0.0/8",
    ),
    error(
        "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata:\n  name: mine\nspec: {}\n",
        4,
        "metadata.name",
        "named `mine`",
        "name it `default`",
    ),
    error(config!("spec:\n  mtsl: {mode: Strict}\n"), 5, "spec.mtsl", "no such field", "did you mean `mtls`?"),
    error(
        config!("spec:\n  authorisation: {mode: Enforce}\n"),
        5,
        "spec.authorisation",
        "MeshConfig has no such field, so the object is not used",
        "did you mean `authorization`?",
    ),
    error(config!("spec:\n  mtls: {strict: true}\n"), 5, "spec.mtls.strict", "no such field", "use one of `mode`"),
    error(
        config!("spec: {}\nauthorization: {mode: Enforce}\n"),
        5,
        "authorization",
        "no such field",
        "use one of `spec`",
    ),
    warning(
        "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata:\n  name: default\n  lables: {a: b}\nspec: {}\n",
        5,
        "metadata.lables",
        "no such field",
        "correct its name",
    ),
];

const TELEMETRY: &[Case] = &[
    error(
        config!("spec:\n  tracing:\n    provider: {otlp: {grpc: jaeger}}\n"),
        6,
        "spec.tracing.provider.otlp.grpc",
        "`jaeger` is not a host and port",
        "jaeger.observability:4317",
    ),
    error(
        config!("spec:\n  tracing:\n    provider: {otlp: {http: \"https://jaeger:4318\"}}\n"),
        6,
        "spec.tracing.provider.otlp.http",
        "not a URL that spans can be sent to",
        "http://HOST:PORT/v1/traces",
    ),
    error(
        config!("spec:\n  tracing:\n    provider: {zipkin: \"http://:9411\"}\n"),
        6,
        "spec.tracing.provider.zipkin",
        "not a URL",
        "/api/v2/spans",
    ),
    error(
        config!("spec:\n  tracing:\n    provider: {otlp: {grpc: \"a:1\"}, zipkin: \"http://a\"}\n"),
        6,
        "spec.tracing.provider",
        "one collector",
        "one of `otlp.grpc`, `otlp.http` and `zipkin`",
    ),
    error(
        config!("spec:\n  tracing:\n    provider: {zipkin: \"http://a\"}\n    sampling: 101\n"),
        7,
        "spec.tracing.sampling",
        "`101` is not a percentage",
        "0.01 to 100",
    ),
    error(
        config!("spec:\n  tracing:\n    provider: {zipkin: \"http://a\"}\n    sampling: all\n"),
        7,
        "spec.tracing.sampling",
        "invalid type",
        "kubectl explain",
    ),
    error(
        config!(
            "spec:\n  tracing:\n    provider: {zipkin: \"http://a\"}\n    tags:\n    - {name: a, header: \"x y\"}\n"
        ),
        8,
        "spec.tracing.tags[0].header",
        "not a header's name",
        "letters",
    ),
    error(
        config!(
            "spec:\n  tracing:\n    provider: {zipkin: \"http://a\"}\n    tags:\n    - {name: a, header: x, literal: z}\n"
        ),
        8,
        "spec.tracing.tags[0]",
        "tag `a` is to come from one place",
        "one of `header`",
    ),
    error(
        config!(
            "spec:\n  tracing:\n    provider: {zipkin: \"http://a\"}\n    tags:\n    - {name: a, header: x}\n    - {name: a, literal: z}\n"
        ),
        9,
        "spec.tracing.tags[1].name",
        "two tags are named `a`",
        "of its own",
    ),
    error(
        config!("spec:\n  tracing:\n    provider: {zipkin: \"http://a\"}\n    tags:\n    - {header: x}\n"),
        8,
        "spec.tracing.tags[0].name",
        "has no name",
        "set it",
    ),
    warning(
        config!("spec:\n  tracing:\n    sampling: 10\n"),
        5,
        "spec.tracing.provider",
        "no collector is named",
        "jaeger.observability:4317",
    ),
    error(
        config!("spec:\n  accessLog:\n    mode: Some\n"),
        6,
        "spec.accessLog.mode",
        "`Some` is not a mode",
        "`Off`, `Errors`, `All`",
    ),
    error(config!("spec:\n  accessLog:\n    mode: off\n"), 6, "spec.accessLog.mode", "invalid type", "quotes"),
    error(
        config!("spec:\n  accessLog:\n    output: {otlp: {grpc: \"http://a:1\"}}\n"),
        6,
        "spec.accessLog.output.otlp.grpc",
        "not a host and port",
        "jaeger.observability:4317",
    ),
    warning(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  annotations:\n    weft.dev/trace-sampling: most\n",
        6,
        "metadata.annotations.weft.dev/trace-sampling",
        "`most` is not a percentage",
        "0.01 to 100",
    ),
    warning(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: a\n  annotations:\n    weft.dev/access-log: loud\n",
        6,
        "metadata.annotations.weft.dev/access-log",
        "`loud` is not a mode",
        "`Errors`",
    ),
];

macro_rules! egress {
    ($rest:literal) => {
        object!("weft.dev/v1alpha1" "Egress" "e" $rest)
    };
}

const EGRESS: &[Case] = &[
    error(
        egress!("spec:\n  hosts: [a.example]\n  port: [80]\n"),
        6,
        "spec.port",
        "Egress has no such field",
        "did you mean `ports`?",
    ),
    error(egress!("spec: {}\n"), 4, "spec", "allows nothing", "spec.hosts or spec.addresses"),
    error(
        egress!("spec:\n  hosts:\n  - a.example\n  - https://a.example\n"),
        7,
        "spec.hosts[1]",
        "not the name of a host",
        "without scheme",
    ),
    error(egress!("spec:\n  hosts: [\"a.example:443\"]\n"), 5, "spec.hosts[0]", "not the name of a host", "spec.ports"),
    error(egress!("spec:\n  hosts: [192.0.2.1]\n"), 5, "spec.hosts[0]", "not the name of a host", "spec.addresses"),
    error(egress!("spec:\n  hosts: [\"*\"]\n"), 5, "spec.hosts[0]", "not the name of a host", "0.0.0.0/0"),
    error(
        egress!("spec:\n  hosts: [api.*.example]\n"),
        5,
        "spec.hosts[0]",
        "not the name of a host",
        "`*.` and a DNS name",
    ),
    error(egress!("spec:\n  addresses: [a.example]\n"), 5, "spec.addresses[0]", "not an address range", "spec.hosts"),
    warning(
        egress!("spec:\n  addresses: [192.0.2.1/24]\n"),
        5,
        "spec.addresses[0]",
        "read as 192.0.2.0/24",
        "write 192.0.2.0/24",
    ),
    error(
        egress!("spec:\n  hosts: [a.example]\n  ports: [{number: 0}]\n"),
        6,
        "spec.ports[0].number",
        "not a port",
        "65535",
    ),
    error(
        egress!("spec:\n  addresses: [192.0.2.1]\n  ports: [{number: 53, protocol: UDP}]\n"),
        6,
        "spec.ports[0].protocol",
        "`UDP` is not a protocol",
        "HTTP, TLS or TCP",
    ),
    error(
        egress!("spec:\n  hosts: [a.example]\n  ports: [{number: 25, protocol: TCP}]\n"),
        6,
        "spec.ports",
        "nothing in TCP tells",
        "spec.addresses",
    ),
    error(
        egress!("spec:\n  hosts: [a.example]\n  sources: [{kind: Group, name: a}]\n"),
        6,
        "spec.sources[0].kind",
        "a Group",
        "ServiceAccount",
    ),
    error(
        egress!("spec:\n  hosts: [a.example]\n  sources: [{name: a, namespace: bank}]\n"),
        6,
        "spec.sources[0].namespace",
        "cannot allow accounts of bank",
        "an Egress in bank",
    ),
    warning(
        egress!("spec:\n  hosts: [a.example]\n  sources: []\n"),
        6,
        "spec.sources",
        "allows nobody",
        "ServiceAccount",
    ),
    error(
        config!("spec:\n  egress:\n    mode: none\n"),
        6,
        "spec.egress.mode",
        "`none` is not a mode",
        "`Allow`, `Deny`",
    ),
];

const FAULT: &[Case] = &[
    error(
        fault!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  percent: 5\n  delay: {fixed: 1s}\n"),
        6,
        "spec.percent",
        "TrafficFault has no such field",
        "did you mean `percentage`?",
    ),
    error(
        fault!("spec:\n  targetRefs: []\n  delay: {fixed: 1s}\n"),
        5,
        "spec.targetRefs",
        "no target",
        "name a Service",
    ),
    error(fault!("spec:\n  delay: {fixed: 1s}\n"), 4, "spec.targetRefs", "missing", "set it"),
    error(
        fault!("spec:\n  targetRefs:\n  - {group: apps, kind: Deployment, name: cart}\n  delay: {fixed: 1s}\n"),
        6,
        "spec.targetRefs[0].group",
        "`apps` is not the group of a Service",
        "leave it empty",
    ),
    error(
        fault!("spec:\n  targetRefs:\n  - {kind: Pod, name: cart}\n  delay: {fixed: 1s}\n"),
        6,
        "spec.targetRefs[0].kind",
        "a Pod cannot be a target",
        "name a Service",
    ),
    error(
        fault!("spec:\n  targetRefs:\n  - {kind: Service, name: cart.shop}\n  delay: {fixed: 1s}\n"),
        6,
        "spec.targetRefs[0].name",
        "`cart.shop` is not the name of a Service",
        "own namespace",
    ),
    error(
        fault!("spec:\n  targetRefs:\n  - {kind: Service, name: cart, port: 0}\n  delay: {fixed: 1s}\n"),
        6,
        "spec.targetRefs[0].port",
        "0 is not a port",
        "1 to 65535",
    ),
    error(fault!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n"), 4, "spec", "nothing goes wrong", "set delay"),
    error(
        fault!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  delay: {fixed: 2}\n"),
        6,
        "spec.delay.fixed",
        "expected a string",
        "quotes",
    ),
    error(
        fault!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  delay: {fixed: soon}\n"),
        6,
        "spec.delay.fixed",
        "\"soon\" is not a duration",
        "50ms",
    ),
    error(
        fault!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  delay: {fixed: 0s}\n"),
        6,
        "spec.delay.fixed",
        "not a time that can be set here",
        "from 1ms to 3600s",
    ),
    error(
        fault!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  delay: {fixed: 24h}\n"),
        6,
        "spec.delay.fixed",
        "not a time that can be set here",
        "from 1ms to 3600s",
    ),
    error(
        fault!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  delay: {fixed: 1s}\n  expiresAfter: 0s\n"),
        7,
        "spec.expiresAfter",
        "not a time that can be set here",
        "from 1ms",
    ),
    error(
        fault!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  delay: {fixed: 1s}\n  percentage: 101\n"),
        7,
        "spec.percentage",
        "101 is not a percentage",
        "0 to 100",
    ),
    error(
        fault!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  abort: {httpStatus: 100}\n"),
        6,
        "spec.abort.httpStatus",
        "100 is not the status of an answer",
        "200 to 599",
    ),
    error(
        fault!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  abort: {grpcStatus: OK}\n"),
        6,
        "spec.abort.grpcStatus",
        "`OK` is not a gRPC status of an error",
        "UNAVAILABLE",
    ),
    error(
        fault!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  abort: {grpcStatus: 17}\n"),
        6,
        "spec.abort.grpcStatus",
        "`17` is not",
        "1 to 16",
    ),
    error(
        fault!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  abort: {grpcStatus: 1, httpStatus: 500}\n"),
        6,
        "spec.abort",
        "one status",
        "not both",
    ),
    error(
        fault!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  bandwidth: {response: 64kbit}\n"),
        6,
        "spec.bandwidth.response",
        "`64kbit` is not",
        "64KiB",
    ),
    error(
        fault!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  bandwidth: {response: 0KiB}\n"),
        6,
        "spec.bandwidth.response",
        "`0KiB` is not",
        "64KiB",
    ),
    error(
        fault!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  delay: {fixed: 1s}\n  callers: []\n"),
        7,
        "spec.callers",
        "the list is empty",
        "remove the field",
    ),
    error(
        fault!(
            "spec:\n  targetRefs: [{kind: Service, name: cart}]\n  delay: {fixed: 1s}\n  callers: [{kind: User, name: x}]\n"
        ),
        7,
        "spec.callers[0].kind",
        "a User is not an identity",
        "ServiceAccount",
    ),
    error(
        fault!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  delay: {fixed: 1s}\n  requests: [{}]\n"),
        7,
        "spec.requests[0]",
        "names no request",
        "routeGroup",
    ),
    error(
        fault!(
            "spec:\n  targetRefs: [{kind: Service, name: cart}]\n  delay: {fixed: 1s}\n  requests:\n  - {routeGroup: g, pathRegex: /x}\n"
        ),
        8,
        "spec.requests[0]",
        "requests of its own",
        "two entries",
    ),
    error(
        fault!(
            "spec:\n  targetRefs: [{kind: Service, name: cart}]\n  delay: {fixed: 1s}\n  requests:\n  - {matches: [m], pathRegex: /x}\n"
        ),
        8,
        "spec.requests[0].matches",
        "none is named",
        "set routeGroup",
    ),
    warning(
        fault!(
            "spec:\n  targetRefs: [{kind: Service, name: cart}]\n  delay: {fixed: 1s}\n  requests:\n  - {pathRegex: '(?=a)'}\n"
        ),
        8,
        "spec.requests[0].pathRegex",
        "not a regex that Envoy takes",
        "RE2",
    ),
    warning(
        fault!(
            "spec:\n  targetRefs: [{kind: Service, name: cart}]\n  delay: {fixed: 1s}\n  requests:\n  - {methods: [FETCH]}\n"
        ),
        8,
        "spec.requests[0].methods[0]",
        "`FETCH` is not an HTTP method",
        "GET",
    ),
];

const POLICY: &[Case] = &[
    error(
        policy!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  timeouts: {request: 0s}\n"),
        6,
        "spec.timeouts.request",
        "not a time",
        "from 1ms",
    ),
    error(
        policy!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  timeouts: {requests: 1s}\n"),
        6,
        "spec.timeouts.requests",
        "TrafficPolicy has no such field",
        "did you mean `request`?",
    ),
    error(
        policy!("spec:\n  targetRefs:\n  - {kind: Service, name: cart, ports: 80}\n  timeouts: {request: 1s}\n"),
        6,
        "spec.targetRefs[0].ports",
        "TrafficPolicy has no such field",
        "did you mean `port`?",
    ),
    error(
        policy!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  retries: {on: [always]}\n"),
        6,
        "spec.retries.on[0]",
        "`always` is not a condition",
        "gateway-error",
    ),
    error(
        policy!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  retries: {codes: [200]}\n"),
        6,
        "spec.retries.codes[0]",
        "200 is not the status of an error",
        "400 to 599",
    ),
    error(
        policy!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  retries: {attempts: -1}\n"),
        6,
        "spec.retries.attempts",
        "-1 is not a number",
        "0 to 100",
    ),
    error(
        policy!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  retries: {perTryTimeout: 1}\n"),
        6,
        "spec.retries.perTryTimeout",
        "expected a string",
        "quotes",
    ),
    error(
        policy!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  retries: {backoff: {base: 1s, max: 10ms}}\n"),
        6,
        "spec.retries.backoff.max",
        "less than base",
        "base, or more",
    ),
    error(
        policy!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  retries: {budget: {percent: 200}}\n"),
        6,
        "spec.retries.budget.percent",
        "200 is not a number",
        "0 to 100",
    ),
    error(
        policy!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  limits: {connections: 99999999999}\n"),
        6,
        "spec.limits.connections",
        "99999999999 is not a number",
        "1000000000",
    ),
    error(
        policy!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  outlierDetection: {maxEjectedPercent: 0}\n"),
        6,
        "spec.outlierDetection.maxEjectedPercent",
        "0 is not a number",
        "1 to 100",
    ),
    error(
        policy!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  outlierDetection: {consecutiveErrors: 0}\n"),
        6,
        "spec.outlierDetection.consecutiveErrors",
        "0 is not a number",
        "1 to",
    ),
    error(
        policy!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  loadBalancing: {algorithm: Random}\n"),
        6,
        "spec.loadBalancing.algorithm",
        "`Random` is not a way",
        "Maglev",
    ),
    error(
        policy!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  loadBalancing: {algorithm: Maglev}\n"),
        6,
        "spec.loadBalancing.hash",
        "nothing is hashed",
        "header or a cookie",
    ),
    error(
        policy!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  loadBalancing: {hash: {header: x-user}}\n"),
        6,
        "spec.loadBalancing.hash",
        "hashes nothing",
        "RingHash",
    ),
    error(
        policy!(
            "spec:\n  targetRefs: [{kind: Service, name: cart}]\n  loadBalancing: {algorithm: RingHash, hash: {}}\n"
        ),
        6,
        "spec.loadBalancing.hash",
        "one thing is hashed",
        "not both",
    ),
    error(
        policy!(
            "spec:\n  targetRefs: [{kind: Service, name: cart}]\n  loadBalancing: {algorithm: RingHash, hash: {header: 'a b'}}\n"
        ),
        6,
        "spec.loadBalancing.hash.header",
        "`a b` is not a name",
        "letters",
    ),
    error(
        policy!(
            "spec:\n  targetRefs: [{kind: Service, name: cart}]\n  loadBalancing:\n    algorithm: RingHash\n    hash: {header: x}\n    slowStart: {window: 1s}\n"
        ),
        9,
        "spec.loadBalancing.slowStart",
        "at once",
        "RoundRobin",
    ),
    error(
        policy!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  loadBalancing: {zone: Local}\n"),
        6,
        "spec.loadBalancing.zone",
        "`Local` says nothing",
        "Prefer or Any",
    ),
    error(
        policy!(
            "spec:\n  targetRefs: [{kind: Service, name: cart}]\n  loadBalancing:\n    algorithm: RingHash\n    hash: {header: x}\n    zone: Prefer\n"
        ),
        9,
        "spec.loadBalancing.zone",
        "whatever the endpoint's zone",
        "RoundRobin",
    ),
    error(
        policy!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  connections: {maxAge: never}\n"),
        6,
        "spec.connections.maxAge",
        "is not a duration",
        "50ms",
    ),
    error(
        policy!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  rateLimit: {count: 0, per: 1s}\n"),
        6,
        "spec.rateLimit.count",
        "0 is not a number",
        "1 to",
    ),
    error(
        policy!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  rateLimit: {count: 1, per: 10ms}\n"),
        6,
        "spec.rateLimit.per",
        "counts in 50 ms",
        "50ms or more",
    ),
    error(
        policy!("spec:\n  targetRefs: [{kind: Service, name: cart}]\n  rateLimit: {count: 10, per: 1s, burst: 5}\n"),
        6,
        "spec.rateLimit.burst",
        "5 is not a number",
        "10 to",
    ),
];

/// What is said of a file on its own, and whether an object came of it.
fn findings(text: &str) -> (Vec<Diagnostic>, usize) {
    let files = vec![(PathBuf::from("f.yaml"), Content::Bytes(text.into()))];
    let (mut found, mut objects) = (Vec::new(), 0);
    for event in Catalog::new().update(Instant::now(), files) {
        match event {
            Event::Apply { warnings, .. } => {
                objects += 1;
                found.extend(warnings);
            }
            Event::Rejected(diagnostic) => found.push(diagnostic),
            Event::Delete(_) | Event::Trouble { .. } | Event::Synced => {}
        }
    }
    (found, objects)
}

#[test]
fn every_bad_input_ends_in_the_intended_finding() {
    let cases: Vec<_> =
        [YAML, IDENTITY, KUBERNETES, SMI, CONFIG, FAULT, POLICY, TELEMETRY, EGRESS].into_iter().flatten().collect();
    assert!(cases.len() >= 45);
    let mut wrong = Vec::new();
    for case in &cases {
        let (found, objects) = findings(case.text);
        let fits = |one: &Diagnostic| {
            one.severity == case.severity
                && one.location.as_ref().is_some_and(|at| at.line == case.line && at.file.ends_with("f.yaml"))
                && one.field == case.field
                && one.reason.contains(case.reason)
                && one.help.contains(case.help)
        };
        // An error keeps the object out; an unknown kind is none.
        let kept = usize::from(case.severity == Severity::Warning && case.field != "kind");
        if found.len() != 1 || !fits(&found[0]) || objects != kept {
            let found: Vec<_> = found.iter().map(ToString::to_string).collect();
            wrong.push(format!(
                "{}  expected {:?} {}: {}: {}; {}\n  found {objects} objects and {found:#?}\n",
                case.text, case.severity, case.line, case.field, case.reason, case.help
            ));
        }
    }
    assert!(wrong.is_empty(), "{} of {}:\n{}", wrong.len(), cases.len(), wrong.join("\n"));
}

#[test]
fn a_bad_document_between_two_good_ones_is_alone_in_being_kept_out() {
    let good = |name: &str| format!("apiVersion: v1\nkind: Namespace\nmetadata: {{name: {name}}}\n");
    for case in [YAML, IDENTITY, KUBERNETES, SMI, CONFIG, FAULT, POLICY, TELEMETRY, EGRESS].into_iter().flatten() {
        let (_, alone) = findings(case.text);
        let bad = case.text.trim_start_matches("# fine\n---\n").trim_end_matches("---\n");
        let (found, objects) = findings(&format!("{}---\n{bad}---\n{}", good("one"), good("two")));
        assert_eq!((found.len(), objects), (1, 2 + alone), "{bad}\n{found:#?}");
    }
}
