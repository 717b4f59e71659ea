//! `make bench`: the heap of a sidecar whose workload calls five Services, in a mesh of 10 and in one of 10,000.
//!
//! In each, a new pod is started, calls the five, and is asked how much its Envoy has allocated. Writes
//! target/bench/footprint.json.

use std::fmt::Write;
use std::fs;
use std::process::ExitCode;
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};
use serde::Serialize;
use weft_e2e::mesh::{Mesh, repository};
use weft_e2e::until;

const SMALL: usize = 10;
const LARGE: usize = 10_000;
const CALLED: usize = 5;
/// The larger heap is at most this much larger.
const TOLERANCE: f64 = 0.05;

#[derive(Serialize)]
struct Result {
    called: usize,
    services: [usize; 2],
    heap_mb: [f64; 2],
    ratio: f64,
    /// Of the control plane with all Services.
    control_plane_rss_mb: f64,
}

fn main() -> anyhow::Result<ExitCode> {
    let weft = std::env::current_exe()?.with_file_name("weft");
    let mesh = Mesh::start("e2e/bench/footprint", "footprint", &weft, None, &[])?;
    let mut heap_mb = [0.0; 2];
    for (services, heap) in [SMALL, LARGE].into_iter().zip(&mut heap_mb) {
        let start = Instant::now();
        mesh.put("services.yaml", &self::services(services)?)?;
        *heap = self::heap(&mesh, &format!("caller-{services}"), services)?;
        println!("{services} Services: {heap:.2} MB, after {:.1} s", start.elapsed().as_secs_f64());
    }
    let ratio = heap_mb[1] / heap_mb[0];
    let control_plane_rss_mb = mesh.control_plane_memory()?;
    mesh.stop()?;
    let result = Result { called: CALLED, services: [SMALL, LARGE], heap_mb, ratio, control_plane_rss_mb };
    let path = repository().join("target/bench/footprint.json");
    fs::create_dir_all(path.parent().context("a folder")?)?;
    let json = serde_json::to_string_pretty(&result)?;
    fs::write(&path, format!("{json}\n"))?;
    println!("{json}\ntarget/bench/footprint.json has the same. Target: ratio at most {}.", 1.0 + TOLERANCE);
    Ok(if ratio <= 1.0 + TOLERANCE { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

fn services(count: usize) -> anyhow::Result<String> {
    let mut text = String::new();
    for number in 0..count {
        write!(
            text,
            "apiVersion: v1\nkind: Service\nmetadata: {{name: s{number}, namespace: bench}}\n\
             spec: {{selector: {{app: callee}}, ports: [{{name: http, port: 80, targetPort: 8080}}]}}\n---\n"
        )?;
    }
    Ok(text)
}

/// The heap of a new pod's sidecar, once its workload has called the first Services; the mesh has all of them by then,
/// since the last can be called too, by another.
fn heap(mesh: &Mesh, caller: &str, services: usize) -> anyhow::Result<f64> {
    let last = format!("http://s{}/healthz", services - 1);
    until("the last Service to be called", Duration::from_secs(300), || {
        let code = mesh.code("bench/callee", &[&last])?;
        Ok(if code == "200" { Ok(()) } else { Err(code) })
    })?;
    mesh.put(
        &format!("{caller}.yaml"),
        &format!(
            "apiVersion: v1\nkind: Pod\nmetadata: {{name: {caller}, namespace: bench}}\nspec:\n  containers:\n    \
             - {{name: app, image: ghcr.io/weft-mesh/weft:0.1.0, args: [app, serve, --name={caller}, --http=8080]}}\n"
        ),
    )?;
    mesh.wait_for_pods("bench", caller, 1)?;
    let pod = format!("bench/{caller}");
    for number in 0..CALLED {
        let code = mesh.code(&pod, &[&format!("http://s{number}/healthz")])?;
        ensure!(code == "200", "{caller} calls s{number} and gets {code}");
    }
    mesh.heap(&pod)
}
