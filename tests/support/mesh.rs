//! A mesh of any size: `services` Services in namespaces of a hundred, each with `PODS` meshed pods in an EndpointSlice.

#![allow(dead_code, unreachable_pub, reason = "each test and benchmark uses a part of it")]

use std::collections::{BTreeMap, BTreeSet};
use std::net::{IpAddr, Ipv4Addr};

use weft::envoy::Translator;
use weft::mesh::object::{
    Endpoint, EndpointSlice, Labels, Object, Pod, Protocol, Service, ServicePort, SplitBackend, TargetPort,
    TrafficSplit, ZonePreference,
};
use weft::mesh::{Dirty, Event, PodKey, ServiceAccountKey, ServiceKey, WorkloadKey, World};
use weft::snapshot::Snapshot;

/// The pods of each Service.
pub const PODS: usize = 5;

/// Whether each Service has EndpointSlices, as in a cluster, or finds its pods by its selector, as in a directory.
#[derive(Clone, Copy)]
pub enum Endpoints {
    Sliced,
    Selected,
}

/// The whole way from objects to the table.
pub struct Mesh {
    pub world: World,
    pub translator: Translator,
    pub snapshot: Snapshot,
}

impl Mesh {
    /// A mesh of so many Services, each with [`PODS`] pods.
    pub fn of(services: usize, endpoints: Endpoints) -> Self {
        Self::with(services, PODS, endpoints)
    }

    /// A mesh of so many Services, each with so many pods.
    pub fn with(services: usize, pods: usize, endpoints: Endpoints) -> Self {
        let mut mesh = Self { world: World::default(), translator: Translator::default(), snapshot: Snapshot::empty() };
        let mut dirty = Dirty::default();
        for number in 0..services {
            let of_service = (0..pods).map(|replica| pod(number, replica)).map(Object::Pod);
            let slices = matches!(endpoints, Endpoints::Sliced).then(|| Object::EndpointSlice(slice(number, pods)));
            for object in of_service.chain(slices).chain([Object::Service(service(number))]) {
                dirty.merge(mesh.world.apply(Event::Apply(object)));
            }
        }
        let changes = mesh.translator.translate(&mesh.world, &dirty).changes;
        mesh.snapshot = mesh.snapshot.with(changes);
        mesh
    }
}

fn namespace(number: usize) -> String {
    format!("ns-{}", number / 100)
}

fn labels(number: usize) -> Labels {
    [("app", format!("app-{number}")), ("part-of", "mesh".to_owned())]
        .map(|(name, value)| (name.to_owned(), value))
        .into()
}

fn address(network: u32, number: usize) -> IpAddr {
    Ipv4Addr::from(network + u32::try_from(number).expect("small")).into()
}

/// The Service of this number, of one HTTP port.
pub fn service(number: usize) -> Service {
    Service {
        key: ServiceKey::new(namespace(number).as_str(), format!("app-{number}")),
        cluster_ips: vec![address(0x0a60_0001, number)],
        headless: false,
        ports: vec![ServicePort {
            name: "http".to_owned(),
            port: 80,
            target: TargetPort::Number(8080),
            protocol: Protocol::Http,
        }],
        selector: labels(number),
        zone: ZonePreference::Any,
    }
}

/// A meshed pod of the Service of this number.
pub fn pod(number: usize, replica: usize) -> Pod {
    let (namespace, app) = (namespace(number), format!("app-{number}"));
    Pod {
        key: PodKey::new(namespace.as_str(), format!("{app}-{replica}")),
        uid: "".into(),
        ips: vec![address(0x0af4_0000, number * 8 + replica)],
        labels: labels(number),
        account: ServiceAccountKey::new(namespace.as_str(), app.as_str()),
        workload: WorkloadKey::new(namespace.as_str(), app.as_str()),
        meshed: true,
        ports: Vec::new(),
        probes: BTreeSet::new(),
        host_network: false,
        terminating: false,
        upstreams: BTreeSet::new(),
        sampling: None,
        access_log: None,
        direct_ports: BTreeSet::new(),
        mtls: weft::mesh::object::PodMtls::default(),
    }
}

/// An EndpointSlice of the Service's first pods.
pub fn slice(number: usize, pods: usize) -> EndpointSlice {
    let endpoint = |replica| {
        let pod = pod(number, replica);
        Endpoint { ip: pod.ips[0], ready: true, terminating: false, pod: Some(pod.key), zone: None }
    };
    EndpointSlice {
        name: format!("app-{number}-x").into(),
        service: service(number).key,
        ports: BTreeMap::from([("http".to_owned(), 8080)]),
        endpoints: (0..pods).map(endpoint).collect(),
    }
}

/// A split of Service 0 between Services 1 and 2.
pub fn split(first: u32) -> TrafficSplit {
    let backend = |number, weight| SplitBackend { service: service(number).key, weight };
    TrafficSplit {
        namespace: namespace(0).as_str().into(),
        name: "canary".into(),
        root: service(0).key,
        backends: vec![backend(1, first), backend(2, 100 - first)],
        matches: Vec::new(),
        created: 0,
    }
}
