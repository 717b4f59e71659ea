//! Conversions, each from YAML as a user would write it.

use std::collections::BTreeSet;
use std::net::IpAddr;

use super::protocol;
use crate::mesh::object::{
    AuthorizationMode, DiscoveryMode, MtlsMode, Object, Pod, Probe, Protocol, Service, TargetPort, TargetRule,
    TrafficSplit, TrafficTarget, ZonePreference,
};
use crate::mesh::{PodKey, ServiceAccountKey, ServiceKey, WorkloadKey};
use crate::source::Event;
use crate::source::directory::catalog::{Catalog, Content};

/// The object that `text` comes to, without a complaint.
fn clean(text: &str) -> Option<Object> {
    let file = vec![("f.yaml".into(), Content::Bytes(text.into()))];
    let mut events = Catalog::new().update(std::time::Instant::now(), file);
    match (events.pop(), events.pop()) {
        (Some(Event::Apply { object, warnings, .. }), None) => {
            assert_eq!(warnings, [], "{text}");
            object
        }
        other => panic!("{text}: {other:?}"),
    }
}

fn service(text: &str) -> Service {
    match clean(&format!("apiVersion: v1\nkind: Service\nmetadata: {{name: cart, namespace: shop}}\n{text}")) {
        Some(Object::Service(service)) => service,
        other => panic!("{other:?}"),
    }
}

fn pod(text: &str) -> Option<Pod> {
    match clean(&format!("apiVersion: v1\nkind: Pod\n{text}")) {
        Some(Object::Pod(pod)) => Some(pod),
        None => None,
        other => panic!("{other:?}"),
    }
}

fn split(version: &str, spec: &str) -> TrafficSplit {
    let head = format!("apiVersion: split.smi-spec.io/{version}\nkind: TrafficSplit\n");
    match clean(&format!("{head}metadata: {{name: cart, namespace: shop}}\nspec: {spec}\n")) {
        Some(Object::TrafficSplit(split)) => split,
        other => panic!("{other:?}"),
    }
}

fn target(version: &str, spec: &str) -> TrafficTarget {
    let head = format!("apiVersion: access.smi-spec.io/{version}\nkind: TrafficTarget\n");
    match clean(&format!("{head}metadata: {{name: t, namespace: shop}}\nspec: {spec}\n")) {
        Some(Object::TrafficTarget(target)) => target,
        other => panic!("{other:?}"),
    }
}

fn ip(text: &str) -> IpAddr {
    text.parse().expect("an address")
}

#[test]
fn a_ports_protocol_comes_from_app_protocol_then_name_then_number() {
    for (app_protocol, name, port, expected) in [
        (Some("http"), "tcp-x", 3306, Protocol::Http),
        (Some("HTTP"), "", 80, Protocol::Http),
        (Some("kubernetes.io/h2c"), "", 80, Protocol::Http2),
        (Some("kubernetes.io/ws"), "", 80, Protocol::Http),
        (Some("kubernetes.io/wss"), "http", 80, Protocol::Tcp),
        (Some("grpc"), "", 80, Protocol::Grpc),
        (Some("example.com/own"), "http", 80, Protocol::Tcp),
        (Some(""), "http", 80, Protocol::Http),
        (None, "http", 80, Protocol::Http),
        (None, "http-web", 80, Protocol::Http),
        (None, "http2-web", 80, Protocol::Http2),
        (None, "grpc", 80, Protocol::Grpc),
        (None, "grpc-web", 80, Protocol::Http),
        (None, "grpc-api", 80, Protocol::Grpc),
        (None, "https", 443, Protocol::Tcp),
        (None, "mysql", 80, Protocol::Tcp),
        (None, "httpx", 80, Protocol::Detect),
        (None, "web", 80, Protocol::Detect),
        (None, "", 3306, Protocol::Tcp),
        (None, "web", 25, Protocol::Tcp),
        (None, "http", 25, Protocol::Http),
        (None, "", 4222, Protocol::Tcp),
        (None, "", 5432, Protocol::Detect),
        (None, "", 27017, Protocol::Detect),
    ] {
        assert_eq!(protocol::of(app_protocol, name, &[port]), expected, "{app_protocol:?} {name} {port}");
    }
    assert_eq!(protocol::of(None, "db", &[80, 3306]), Protocol::Tcp, "the target port speaks first");
}

#[test]
fn a_service_keeps_its_tcp_ports_and_leaves_udp_out() {
    let service = service(
        "spec:\n  clusterIP: 10.96.0.10\n  clusterIPs: [10.96.0.10, 'fd00::a']\n  selector: {app: cart}\n  ports:\n  \
         - {name: http, port: 80, targetPort: web}\n  - {name: db, port: 81, targetPort: 3306}\n  \
         - {name: dns, port: 80, protocol: UDP}\n  - {name: self, port: 82, protocol: TCP}\n",
    );
    assert_eq!(service.key, ServiceKey::new("shop", "cart"));
    assert_eq!(service.cluster_ips, [ip("10.96.0.10"), ip("fd00::a")]);
    assert!(!service.headless);
    let ports: Vec<_> = service.ports.iter().map(|port| (port.port, port.target.clone(), port.protocol)).collect();
    assert_eq!(
        ports,
        [
            (80, TargetPort::Name("web".to_owned()), Protocol::Http),
            (81, TargetPort::Number(3306), Protocol::Tcp),
            (82, TargetPort::Number(82), Protocol::Detect),
        ]
    );
}

#[test]
fn headless_and_external_services_are_told_apart() {
    let headless = service("spec: {clusterIP: None, ports: [{port: 80}]}\n");
    assert!(headless.headless && headless.cluster_ips.is_empty());
    let unallocated = service("spec: {ports: [{port: 80}]}\n");
    assert!(!unallocated.headless && unallocated.cluster_ips.is_empty());
    let external =
        "apiVersion: v1\nkind: Service\nmetadata: {name: x}\nspec: {type: ExternalName, externalName: a.b}\n";
    assert_eq!(clean(external), None);
}

const POD: &str = "
metadata:
  name: cart-v1-5d8f-x2x
  namespace: shop
  labels: {app: cart, pod-template-hash: 5d8f}
  annotations: {weft.dev/upstreams: 'db, other/mail, queue.other:5672'}
  ownerReferences:
  - {apiVersion: apps/v1, kind: ReplicaSet, name: cart-v1-5d8f, uid: u, controller: true}
spec:
  serviceAccountName: cart
  initContainers:
  - {name: once, ports: [{containerPort: 1}]}
  - {name: weft-proxy, restartPolicy: Always, ports: [{containerPort: 15020}]}
  - {name: log, restartPolicy: Always, ports: [{containerPort: 2}]}
  containers:
  - name: main
    ports: [{name: web, containerPort: 8080}, {name: dns, containerPort: 53, protocol: UDP}]
    resources: {limits: {cpu: 1}}
    livenessProbe: {httpGet: {path: /live?x=1, port: web}}
    readinessProbe: {tcpSocket: {port: 9090}}
    startupProbe: {grpc: {port: 9091}}
status:
  phase: Running
  podIP: 10.244.0.7
  podIPs: [{ip: 10.244.0.7}, {ip: 'fd00::7'}]
";

#[test]
fn a_pod_has_its_workload_account_ports_and_probes() {
    let pod = pod(POD).expect("a pod with an address");
    assert_eq!(pod.key, PodKey::new("shop", "cart-v1-5d8f-x2x"));
    assert_eq!(pod.workload, WorkloadKey::new("shop", "cart-v1"));
    assert_eq!(pod.account, ServiceAccountKey::new("shop", "cart"));
    assert_eq!(pod.ips, [ip("10.244.0.7"), ip("fd00::7")]);
    assert!(pod.meshed && !pod.host_network && !pod.terminating);
    assert_eq!(pod.ports.iter().map(|port| port.port).collect::<Vec<_>>(), [2, 8080]);
    let probes = [Probe::Http(8080, "/live".to_owned()), Probe::Tcp(9090), Probe::Grpc(9091)];
    assert_eq!(pod.probes, BTreeSet::from(probes));
    assert_eq!(
        pod.upstreams,
        BTreeSet::from(["db.shop", "mail.other", "queue.other:5672"].map(|u| u.parse().expect("one")))
    );
}

#[test]
fn a_pod_without_an_address_or_a_life_is_no_object() {
    assert_eq!(pod(&POD.replace("  podIP: 10.244.0.7\n  podIPs: [{ip: 10.244.0.7}, {ip: 'fd00::7'}]\n", "")), None);
    assert_eq!(pod(&POD.replace("Running", "Succeeded")), None);
    assert_eq!(pod("metadata: {name: x}\n"), None);
}

#[test]
fn a_workload_is_the_owner_or_the_pod_itself() {
    let workload = |from: &str, to: &str| pod(&POD.replace(from, to)).expect("a pod").workload.name;
    assert_eq!(&*workload("kind: ReplicaSet, name: cart-v1-5d8f", "kind: StatefulSet, name: db"), "db");
    assert_eq!(&*workload(", pod-template-hash: 5d8f", ""), "cart-v1-5d8f");
    assert_eq!(&*workload("kind: ReplicaSet, name: cart-v1-5d8f", "kind: Node, name: node-1"), "cart-v1-5d8f-x2x");
    let bare = pod("metadata: {name: x}\nstatus: {podIP: 10.0.0.1}\n").expect("a pod");
    assert_eq!(bare.workload, WorkloadKey::new("default", "x"));
    assert_eq!(bare.account, ServiceAccountKey::new("default", "default"));
}

#[test]
fn an_endpoint_slice_keeps_what_is_known_of_each_endpoint() {
    let object = clean(
        "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
         metadata: {name: cart-1, namespace: shop, labels: {kubernetes.io/service-name: cart}}\n\
         ports: [{name: http, port: 8080}, {port: 9, protocol: UDP}]\nendpoints:\n\
         - {addresses: [10.0.0.1], zone: a, targetRef: {kind: Pod, name: cart-1}}\n\
         - {addresses: [10.0.0.2], conditions: {ready: false, terminating: true}}\n",
    );
    let Some(Object::EndpointSlice(slice)) = object else { panic!("{object:?}") };
    assert_eq!(slice.service, ServiceKey::new("shop", "cart"));
    assert_eq!(slice.ports, [("http".to_owned(), 8080)].into());
    assert_eq!(slice.endpoints[0].pod, Some(PodKey::new("shop", "cart-1")));
    assert!(slice.endpoints[0].ready && !slice.endpoints[0].terminating);
    assert!(!slice.endpoints[1].ready && slice.endpoints[1].terminating);
}

#[test]
fn an_endpoint_is_for_the_zone_that_its_hints_say() {
    let zone = |endpoint: &str| {
        let object = clean(&format!(
            "apiVersion: discovery.k8s.io/v1\nkind: EndpointSlice\naddressType: IPv4\n\
             metadata: {{name: x, labels: {{kubernetes.io/service-name: cart}}}}\n\
             endpoints: [{{addresses: [10.0.0.1], {endpoint}}}]\n"
        ));
        let Some(Object::EndpointSlice(slice)) = object else { panic!("{object:?}") };
        slice.endpoints[0].zone.as_deref().map(str::to_owned)
    };
    for (endpoint, expected) in [
        ("zone: a", Some("a")),
        ("zone: a, hints: {forZones: [{name: b}]}", Some("b")),
        ("zone: a, hints: {forZones: [{name: b}, {name: a}]}", Some("a")),
        ("zone: a, hints: {}", Some("a")),
        ("hints: {forZones: [{name: b}]}", Some("b")),
        ("zone: ''", None),
        ("nodeName: node-1", None),
    ] {
        assert_eq!(zone(endpoint).as_deref(), expected, "{endpoint}");
    }
}

#[test]
fn a_service_says_that_calls_stay_in_their_zone() {
    let zone = |annotations: &str, spec: &str| {
        let object = clean(&format!(
            "apiVersion: v1\nkind: Service\nmetadata: {{name: cart, annotations: {{{annotations}}}}}\n\
             spec: {{{spec}, ports: [{{port: 80}}]}}\n"
        ));
        let Some(Object::Service(service)) = object else { panic!("{object:?}") };
        service.zone
    };
    let (any, prefer) = (ZonePreference::Any, ZonePreference::Prefer);
    for (annotations, spec, expected) in [
        ("", "clusterIP: 10.96.0.1", any),
        ("", "trafficDistribution: PreferClose", prefer),
        ("", "trafficDistribution: PreferSameZone", prefer),
        ("service.kubernetes.io/topology-mode: Auto", "clusterIP: 10.96.0.1", prefer),
        ("service.kubernetes.io/topology-aware-hints: auto", "clusterIP: 10.96.0.1", prefer),
        ("service.kubernetes.io/topology-mode: Disabled", "clusterIP: 10.96.0.1", any),
        ("service.kubernetes.io/topology-mode: Disabled", "trafficDistribution: PreferClose", prefer),
    ] {
        assert_eq!(zone(annotations, spec), expected, "{annotations} {spec}");
    }
}

#[test]
fn every_form_of_a_splits_root_means_the_same_service() {
    for root in ["cart", "cart.shop", "cart.shop.svc", "cart.shop.svc.cluster.local", "cart.shop.svc.my.domain"] {
        let split = split("v1alpha2", &format!("{{service: {root}, backends: [{{service: a, weight: 90}}]}}"));
        assert_eq!(split.root, ServiceKey::new("shop", "cart"), "{root}");
        assert_eq!(split.backends[0].weight, 90);
        assert_eq!(split.created, 0);
    }
}

#[test]
fn a_split_of_v1alpha4_has_matches() {
    let spec = "{service: cart, backends: [{service: a, weight: 1}], matches: [{kind: HTTPRouteGroup, name: beta}]}";
    assert_eq!(split("v1alpha4", spec).matches, ["beta".into()]);
}

#[test]
fn the_oldest_versions_mean_what_the_newest_mean() {
    let weights = |version: &str, first: &str, second: &str| {
        let spec =
            format!("{{service: cart, backends: [{{service: a, weight: {first}}}, {{service: b, weight: {second}}}]}}");
        split(version, &spec).backends.iter().map(|backend| backend.weight).collect::<Vec<_>>()
    };
    assert_eq!(weights("v1alpha1", "1", "500m"), [1000, 500]);
    assert_eq!(weights("v1alpha1", "0.5", "'2'"), [500, 2000]);
    assert_eq!(weights("v1alpha1", "90", "10"), weights("v1alpha4", "90", "10.0"));

    let specs = |version: &str, kind: &str, body: &str| {
        clean(&format!(
            "apiVersion: specs.smi-spec.io/{version}\nkind: {kind}\nmetadata: {{name: x, namespace: shop}}\n{body}\n"
        ))
    };
    let matches = "matches: [{name: a, pathRegex: /a, headers: {x-user: b}}]";
    let newest = specs("v1alpha4", "HTTPRouteGroup", &format!("spec: {{{matches}}}"));
    for version in ["v1alpha1", "v1alpha2"] {
        assert_eq!(specs(version, "HTTPRouteGroup", matches), newest, "{version}: headers narrow it");
    }
    let every = specs("v1alpha4", "TCPRoute", "spec: {matches: {ports: []}}");
    for (version, body) in [("v1alpha1", ""), ("v1alpha2", ""), ("v1alpha3", "spec: {}")] {
        assert_eq!(specs(version, "TCPRoute", body), every, "{version}");
    }

    let body = "destination: {kind: ServiceAccount, name: db, port: 80}, sources: [{kind: ServiceAccount, name: web}]";
    let rule = "[{kind: TCPRoute, name: x}]";
    let head = "apiVersion: access.smi-spec.io/v1alpha1\nkind: TrafficTarget\nmetadata: {name: t, namespace: shop}\n";
    let old = clean(&format!("{head}{}\nspecs: {rule}\n", body.replace(", sources", "\nsources")));
    let new = target("v1alpha2", &format!("{{{body}, rules: {rule}}}"));
    assert_eq!(old, Some(Object::TrafficTarget(new)));
}

#[test]
fn headers_are_read_as_a_list_and_as_a_map() {
    for headers in ["[{User-Agent: curl.*}, {host: a}]", "{User-Agent: curl.*, host: a}"] {
        let object = clean(&format!(
            "apiVersion: specs.smi-spec.io/v1alpha4\nkind: HTTPRouteGroup\nmetadata: {{name: api}}\n\
             spec: {{matches: [{{name: m, pathRegex: /api, methods: [get, '*'], headers: {headers}}}, {{methods: [get]}}]}}\n"
        ));
        let Some(Object::HttpRouteGroup(group)) = object else { panic!("{object:?}") };
        let expected = [("host".to_owned(), "a".to_owned()), ("user-agent".to_owned(), "curl.*".to_owned())];
        assert_eq!(BTreeSet::from_iter(group.matches[0].headers.clone()), BTreeSet::from(expected));
        assert!(group.matches[0].methods.is_empty(), "`*` is any method");
        assert_eq!(group.matches[1].methods, BTreeSet::from(["GET".to_owned()]));
    }
}

#[test]
fn a_match_with_a_bad_regex_is_lost_alone() {
    let text = "apiVersion: specs.smi-spec.io/v1alpha4\nkind: HTTPRouteGroup\nmetadata: {name: api}\n\
                spec: {matches: [{name: bad, pathRegex: '(?=a)'}, {name: good, pathRegex: /a}]}\n";
    let file = vec![("f.yaml".into(), Content::Bytes(text.into()))];
    let events = Catalog::new().update(std::time::Instant::now(), file);
    let [Event::Apply { object: Some(Object::HttpRouteGroup(group)), warnings, .. }] = &events[..] else {
        panic!("{events:?}")
    };
    assert_eq!(warnings.len(), 1);
    assert_eq!(group.matches.iter().map(|one| &*one.name).collect::<Vec<_>>(), ["good"]);
}

#[test]
fn a_target_keeps_its_port_its_sources_and_its_rules() {
    let spec = |port: &str| {
        format!(
            "{{destination: {{kind: ServiceAccount, name: db{port}}}, \
             sources: [{{kind: ServiceAccount, name: web}}, {{kind: ServiceAccount, name: job, namespace: ops}}], \
             rules: [{{kind: HTTPRouteGroup, name: api, matches: [a]}}, {{kind: HTTPRouteGroup, name: all}}, \
             {{kind: TCPRoute, name: tcp}}]}}"
        )
    };
    let old = target("v1alpha2", &spec(", port: 8080"));
    assert_eq!(old.port, Some(8080));
    assert_eq!(target("v1alpha2", &spec(", port: '8080'")), old, "it may be written as text");
    let new = target("v1alpha3", &spec(""));
    assert_eq!(new.port, None);
    assert_eq!(new.destination, ServiceAccountKey::new("shop", "db"));
    assert_eq!(
        new.sources,
        BTreeSet::from([ServiceAccountKey::new("shop", "web"), ServiceAccountKey::new("ops", "job")])
    );
    let expected = [
        TargetRule::Http("api".into(), Some(BTreeSet::from(["a".into()]))),
        TargetRule::Http("all".into(), None),
        TargetRule::Tcp("tcp".into()),
    ];
    assert_eq!(new.rules, expected);
}

#[test]
fn modes_are_read_in_both_cases_and_default() {
    let config = |spec: &str| match clean(&format!(
        "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: default}}\nspec: {spec}\n"
    )) {
        Some(Object::MeshConfig(config)) => config,
        other => panic!("{other:?}"),
    };
    assert_eq!(config("{}"), crate::mesh::object::MeshConfig::default());
    for (mtls, authorization, discovery) in [("Permissive", "Enforce", "Eager"), ("permissive", "enforce", "eager")] {
        let read = config(&format!(
            "{{trustDomain: a.b, mtls: {{mode: {mtls}}}, authorization: {{mode: {authorization}}}, \
             discovery: {{mode: {discovery}}}, network: {{ranges: [10.0.0.0/8]}}}}"
        ));
        assert_eq!(read.trust_domain.as_str(), "a.b");
        assert_eq!((read.mtls, read.authorization), (MtlsMode::Permissive, AuthorizationMode::Enforce));
        assert_eq!(read.discovery, DiscoveryMode::Eager);
        assert_eq!(read.ranges, ["10.0.0.0/8".parse().expect("a range")]);
    }
}

#[test]
fn a_namespace_overrides_the_modes() {
    let object = clean(
        "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: shop\n  labels: {weft.dev/inject: enabled}\n  \
         annotations: {weft.dev/mtls: permissive, weft.dev/authorization: Audit}\n",
    );
    let Some(Object::Namespace(namespace)) = object else { panic!("{object:?}") };
    assert!(namespace.inject);
    assert_eq!(namespace.mtls, Some(MtlsMode::Permissive));
    assert_eq!(namespace.authorization, Some(AuthorizationMode::Audit));
}

#[test]
fn what_is_written_as_yaml_reads_back_as_the_same_object() {
    let read = |text: &str| {
        let file = vec![("f.yaml".into(), Content::Bytes(text.into()))];
        match Catalog::new().update(std::time::Instant::now(), file).pop() {
            Some(Event::Apply { manifest, .. }) => manifest,
            other => panic!("{text}: {other:?}"),
        }
    };
    for text in [
        format!("apiVersion: v1\nkind: Pod\n{POD}"),
        "apiVersion: v1\nkind: Namespace\nmetadata: {name: 'y', annotations: {a: 'true', b: '1', d: '0644', e: 'no', f: '~', g: '1e3', c: \"l1\\nl2\\n\"}}\n"
            .to_owned(),
        "apiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\nmetadata: {name: a}\n\
         spec: {service: s, backends: [{service: a, weight: 1}]}\n"
            .to_owned(),
        "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {name: default}\nspec: {mtls: {mode: strict}}\n"
            .to_owned(),
    ] {
        let manifest = read(&text);
        let written = manifest.to_yaml().expect("YAML");
        assert_eq!(read(&written), manifest, "{written}");
    }
}
