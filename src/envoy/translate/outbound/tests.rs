use std::sync::Arc;

use crate::envoy::{Translator, names};
use crate::mesh::fixture::*;
use crate::mesh::object::{AccessLogMode, MeshConfig, Object, Pod};
use crate::mesh::telemetry::{AccessLog, LogOutput, SpanNames, TraceProvider, Tracing};
use crate::mesh::{Event, ProxyId, World};
use crate::snapshot::{Resource, ResourceType, Snapshot};

#[derive(Default)]
struct Mesh {
    world: World,
    translator: Translator,
    snapshot: Snapshot,
}

impl Mesh {
    /// How many resources the event led to encode.
    fn apply(&mut self, object: Object) -> usize {
        let dirty = self.world.apply(Event::Apply(object));
        let translated = self.translator.translate(&self.world, &dirty);
        self.snapshot = self.snapshot.with(translated.changes);
        translated.work.encoded
    }

    fn outbound(&self, pod: &str) -> Arc<Resource> {
        let proxy = ProxyId(pod_key(pod));
        self.snapshot.get(&proxy, ResourceType::Listener, &names::OUTBOUND.into()).expect("a listener")
    }

    fn shared(&self) -> Arc<Resource> {
        self.snapshot.shared(ResourceType::Listener, &names::OUTBOUND.into()).expect("a listener").clone()
    }

    /// Which of the clusters of collectors a pod is pushed.
    fn collectors(&self, pod: &str) -> Vec<String> {
        let seen = self.snapshot.seen_by(&ProxyId(pod_key(pod))).expect("a proxy");
        let names = seen.wildcard(ResourceType::Cluster).into_iter().map(|cluster| cluster.name.to_string());
        let mut names =
            Vec::from_iter(names.filter(|name| [names::TRACING, names::ACCESS_LOG].contains(&name.as_str())));
        names.sort();
        names
    }
}

fn sampled(key: &str, ip: &str, share: &str) -> Object {
    Object::Pod(Pod { sampling: share.parse().ok(), ..pod(key, ip) })
}

fn traced() -> MeshConfig {
    let tracing = Tracing {
        provider: TraceProvider::OtlpGrpc("jaeger.observability:4317".parse().expect("a collector")),
        sampling: "1".parse().expect("a share"),
        tags: Vec::new(),
        spans: SpanNames::OfRequests,
    };
    MeshConfig { tracing: Some(tracing), ..MeshConfig::default() }
}

#[test]
fn a_pod_has_its_own_listener_only_while_its_telemetry_is_not_the_meshs() {
    let mut mesh = Mesh::default();
    mesh.apply(Object::MeshConfig(traced()));
    mesh.apply(Object::Pod(pod("shop/a-1", "10.244.0.2")));
    mesh.apply(sampled("shop/same-1", "10.244.0.3", "1"));
    assert_eq!(mesh.apply(sampled("shop/b-1", "10.244.0.4", "50")), 4, "inbound, its routes, outbound");
    assert_eq!(mesh.apply(sampled("shop/b-2", "10.244.0.5", "50")), 0, "what b-1 has");
    let own = mesh.outbound("shop/b-1");
    assert!(Arc::ptr_eq(&mesh.outbound("shop/a-1"), &mesh.shared()));
    assert!(Arc::ptr_eq(&mesh.outbound("shop/same-1"), &mesh.shared()));
    assert!(Arc::ptr_eq(&mesh.outbound("shop/b-2"), &own));
    assert_ne!(own.version, mesh.shared().version);

    let before = mesh.shared();
    mesh.apply(Object::Service(service("shop/db").ip("10.96.0.9").port(
        5432,
        5432,
        crate::mesh::object::Protocol::Tcp,
    )));
    assert_ne!(mesh.shared().version, before.version, "a port that is TCP");
    assert_ne!(mesh.outbound("shop/b-1").version, own.version, "it hears of the port, too");
    assert!(Arc::ptr_eq(&mesh.outbound("shop/b-1"), &mesh.outbound("shop/b-2")));

    mesh.apply(Object::Pod(pod("shop/b-1", "10.244.0.4")));
    assert!(Arc::ptr_eq(&mesh.outbound("shop/b-1"), &mesh.shared()), "the annotation is gone");
    let half = Tracing { sampling: "50".parse().expect("a share"), ..traced().tracing.expect("tracing") };
    mesh.apply(Object::MeshConfig(MeshConfig { tracing: Some(half), ..MeshConfig::default() }));
    assert!(Arc::ptr_eq(&mesh.outbound("shop/b-2"), &mesh.shared()), "the mesh is as the pod now");
    mesh.apply(Object::MeshConfig(MeshConfig::default()));
    assert!(Arc::ptr_eq(&mesh.outbound("shop/b-2"), &mesh.shared()), "nothing is traced");
}

#[test]
fn collectors_are_pushed_as_long_as_they_are_named() {
    let mut mesh = Mesh::default();
    mesh.apply(Object::Pod(pod("shop/a-1", "10.244.0.2")));
    assert_eq!(mesh.collectors("shop/a-1"), [""; 0]);
    let output = LogOutput::OtlpGrpc("10.0.0.9:4317".parse().expect("a collector"));
    let log = AccessLog { mode: AccessLogMode::All, output, ..AccessLog::default() };
    mesh.apply(Object::MeshConfig(MeshConfig { access_log: log, ..traced() }));
    assert_eq!(mesh.collectors("shop/a-1"), [names::ACCESS_LOG, names::TRACING]);
    mesh.apply(Object::MeshConfig(traced()));
    assert_eq!(mesh.collectors("shop/a-1"), [names::TRACING]);
    mesh.apply(Object::MeshConfig(MeshConfig::default()));
    assert_eq!(mesh.collectors("shop/a-1"), [""; 0]);
}
