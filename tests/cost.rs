//! What a change costs follows the change and not the size of the mesh, counted and not timed.

#![allow(clippy::expect_used, clippy::indexing_slicing, reason = "a test may, and here its helpers do")]

#[path = "support/mesh.rs"]
mod mesh;

use mesh::{Endpoints, Mesh, PODS};
use weft::envoy::Work;
use weft::mesh::Event;
use weft::mesh::object::{Object, Protocol};

/// What an event leads to: services and pods that are dirty, what the translation took, and the steps that follow.
fn cost(mesh: &mut Mesh, object: Object) -> (usize, usize, Work, usize) {
    let dirty = mesh.world.apply(Event::Apply(object));
    let translated = mesh.translator.translate(&mesh.world, &dirty);
    (dirty.services.len(), dirty.pods.len(), translated.work, translated.changes.len())
}

/// One change of each kind.
fn costs(size: usize, endpoints: Endpoints) -> Vec<(usize, usize, Work, usize)> {
    let mut mesh = Mesh::of(size, endpoints);
    let mut moved = mesh::pod(7, 0);
    moved.ips = mesh::pod(0, PODS).ips;
    let mut service = mesh::service(7);
    service.ports[0].port = 81;
    let mut tcp = mesh::service(8);
    tcp.ports[0].port = 5432;
    tcp.ports[0].protocol = Protocol::Tcp;
    let changes = [
        Object::Pod(moved),
        Object::EndpointSlice(mesh::slice(7, PODS - 1)),
        Object::Service(service),
        Object::Service(tcp),
        Object::TrafficSplit(mesh::split(90)),
        Object::TrafficSplit(mesh::split(50)),
    ];
    changes.into_iter().map(|object| cost(&mut mesh, object)).collect()
}

#[test]
fn a_change_costs_the_same_in_a_mesh_of_any_size() {
    for endpoints in [Endpoints::Sliced, Endpoints::Selected] {
        assert_eq!(costs(100, endpoints), costs(3_000, endpoints));
    }
}

#[test]
fn an_endpoint_that_goes_is_one_pod_and_one_resource() {
    let mut mesh = Mesh::of(10, Endpoints::Sliced);
    let (services, pods, work, changes) = cost(&mut mesh, Object::EndpointSlice(mesh::slice(7, PODS - 1)));
    assert_eq!((services, pods, changes), (1, 1, 1));
    assert_eq!(work, Work { plans: 2, encoded: 1 });
}

#[test]
fn pods_of_equal_plans_are_encoded_once() {
    let mut mesh = Mesh::of(100, Endpoints::Sliced);
    let (.., work, changes) = cost(&mut mesh, Object::Pod(mesh::pod(7, PODS)));
    assert_eq!((work.encoded, changes), (0, 2), "a view and its address");
}
