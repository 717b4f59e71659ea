//! What each stage takes for one change, against the size of the mesh: `make bench`.
//!
//! ```text
//!  World::apply ─▶ Translator::translate ─▶ Snapshot::with ─▶ Snapshot::changed
//! ```

#![allow(clippy::expect_used, clippy::indexing_slicing, missing_docs, reason = "a benchmark is a test")]

#[path = "../tests/support/mesh.rs"]
mod mesh;

use std::sync::{Mutex, MutexGuard, OnceLock, PoisonError};

use divan::{Bencher, black_box};
use mesh::{Endpoints, Mesh, PODS};
use weft::mesh::object::Object;
use weft::mesh::{Dirty, Event, ProxyId};
use weft::snapshot::{ResourceType, Snapshot};

const SIZES: [usize; 3] = [100, 1_000, 10_000];

fn main() {
    divan::main();
}

/// Each mesh is made once: at ten thousand Services that takes longer than what is measured.
fn mesh_of(size: usize) -> MutexGuard<'static, Mesh> {
    static MESHES: [OnceLock<Mutex<Mesh>>; SIZES.len()] = [const { OnceLock::new() }; SIZES.len()];
    let slot = SIZES.iter().position(|known| *known == size).expect("one of SIZES");
    let mesh = MESHES[slot].get_or_init(|| Mutex::new(Mesh::of(size, Endpoints::Sliced)));
    mesh.lock().unwrap_or_else(PoisonError::into_inner)
}

/// A change of one object to and fro, so that every application of it is one.
struct Change {
    there: Object,
    back: Object,
    turns: usize,
}

impl Change {
    fn next(&mut self) -> Event {
        self.turns += 1;
        Event::Apply(if self.turns % 2 == 1 { self.there.clone() } else { self.back.clone() })
    }
}

fn pod() -> Change {
    let back = mesh::pod(7, 0);
    let mut there = back.clone();
    there.ips = mesh::pod(0, PODS).ips;
    Change { there: Object::Pod(there), back: Object::Pod(back), turns: 0 }
}

fn endpoint() -> Change {
    let [there, back] = [PODS - 1, PODS].map(|pods| Object::EndpointSlice(mesh::slice(7, pods)));
    Change { there, back, turns: 0 }
}

fn service() -> Change {
    let back = mesh::service(7);
    let mut there = back.clone();
    there.ports[0].port = 81;
    Change { there: Object::Service(there), back: Object::Service(back), turns: 0 }
}

fn split() -> Change {
    let [there, back] = [90, 50].map(|first| Object::TrafficSplit(mesh::split(first)));
    Change { there, back, turns: 0 }
}

fn apply(bencher: Bencher, size: usize, mut change: Change) {
    let mut mesh = mesh_of(size);
    bencher.with_inputs(|| change.next()).bench_local_values(|event| mesh.world.apply(event));
}

fn translate(bencher: Bencher, size: usize, mut change: Change) {
    let Mesh { world, translator, .. } = &mut *mesh_of(size);
    // The translation needs the world as it is after the event: both are in the figure.
    bencher.with_inputs(|| change.next()).bench_local_values(|event| {
        let dirty = world.apply(event);
        translator.translate(world, &dirty)
    });
}

#[divan::bench(args = SIZES)]
fn apply_pod(bencher: Bencher, size: usize) {
    apply(bencher, size, pod());
}

#[divan::bench(args = SIZES)]
fn apply_endpoint(bencher: Bencher, size: usize) {
    apply(bencher, size, endpoint());
}

#[divan::bench(args = SIZES)]
fn apply_service(bencher: Bencher, size: usize) {
    apply(bencher, size, service());
}

#[divan::bench(args = SIZES)]
fn apply_split(bencher: Bencher, size: usize) {
    apply(bencher, size, split());
}

#[divan::bench(args = SIZES)]
fn apply_and_translate_pod(bencher: Bencher, size: usize) {
    translate(bencher, size, pod());
}

#[divan::bench(args = SIZES)]
fn apply_and_translate_endpoint(bencher: Bencher, size: usize) {
    translate(bencher, size, endpoint());
}

#[divan::bench(args = SIZES)]
fn apply_and_translate_service(bencher: Bencher, size: usize) {
    translate(bencher, size, service());
}

#[divan::bench(args = SIZES)]
fn apply_and_translate_split(bencher: Bencher, size: usize) {
    translate(bencher, size, split());
}

/// A snapshot and the next one, in which an endpoint is gone.
fn snapshots(mesh: &mut Mesh) -> (Snapshot, Vec<weft::snapshot::Change>) {
    let mut step = |event| {
        let dirty: Dirty = mesh.world.apply(event);
        mesh.translator.translate(&mesh.world, &dirty).changes
    };
    let mut change = endpoint();
    let changes = step(change.next());
    step(change.next());
    (mesh.snapshot.clone(), changes)
}

#[divan::bench(args = SIZES)]
fn next_snapshot(bencher: Bencher, size: usize) {
    let (snapshot, changes) = snapshots(&mut mesh_of(size));
    bencher.with_inputs(|| changes.clone()).bench_local_values(|changes| snapshot.with(changes));
}

#[divan::bench(args = SIZES)]
fn difference(bencher: Bencher, size: usize) {
    let (base, changes) = snapshots(&mut mesh_of(size));
    let next = base.with(changes);
    let proxy = ProxyId(mesh::pod(1, 0).key);
    bencher.bench_local(|| black_box(next.changed(&base, &proxy, ResourceType::Endpoints, [])));
}
