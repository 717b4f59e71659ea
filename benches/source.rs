//! From a written file to its event, and what a large mesh takes of memory: `make bench`.

#![allow(clippy::expect_used, clippy::indexing_slicing, missing_docs, reason = "a benchmark is a test")]

#[path = "../tests/support/mesh.rs"]
mod mesh;

use std::fmt::Write;
use std::path::Path;

use divan::Bencher;
use mesh::{Endpoints, Mesh};
use tokio::sync::mpsc;
use weft::source::{DirectorySource, Event};

/// A line of its own before the table.
fn main() {
    let before = resident_kb();
    let mesh = Mesh::with(10_000, 1, Endpoints::Sliced);
    let after = resident_kb();
    println!(
        "10000 Services, 10000 pods with sidecars: {} MB in World, Translator and Snapshot",
        (after - before) / 1024
    );
    drop(mesh);
    divan::main();
}

fn resident_kb() -> usize {
    let status = std::fs::read_to_string("/proc/self/status").expect("the process's own status");
    let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).expect("the resident size");
    line.trim().trim_end_matches(" kB").parse().expect("a number")
}

/// A file of this many Services.
fn write(directory: &Path, file: usize, objects: usize, port: usize) {
    let mut text = String::new();
    for object in 0..objects {
        let name = format!("app-{file}-{object}");
        let spec = format!("{{selector: {{app: {name}}}, ports: [{{name: http, port: {port}}}]}}");
        writeln!(text, "---\napiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: shop}}\nspec: {spec}")
            .expect("text");
    }
    let unfinished = directory.join(format!(".{file}"));
    std::fs::write(&unfinished, text).expect("written");
    std::fs::rename(unfinished, directory.join(format!("{file}.yaml"))).expect("renamed");
}

/// One file of ten objects is replaced, beside others.
#[divan::bench(args = [10, 1_000])]
fn file_to_event(bencher: Bencher, files: usize) {
    let directory = tempfile::tempdir().expect("a directory");
    (0..files).for_each(|file| write(directory.path(), file, 10, 80));
    let runtime =
        tokio::runtime::Builder::new_multi_thread().worker_threads(1).enable_all().build().expect("a runtime");
    let (sender, mut batches) = mpsc::channel(16);
    let source = DirectorySource::open(directory.path()).expect("a source");
    runtime.spawn(source.run(sender));
    let first = runtime.block_on(batches.recv()).expect("everything");
    assert_eq!(first.last(), Some(&Event::Synced));
    let mut port = 80;
    bencher.bench_local(|| {
        port = 8080 + (port + 1) % 1_000;
        write(directory.path(), 5, 10, port);
        let batch = runtime.block_on(batches.recv()).expect("a batch");
        assert_eq!(batch.len(), 10);
    });
}
