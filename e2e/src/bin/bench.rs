//! `make bench`: from the write of a file to the last acknowledgement of 20 Envoys, and what the control plane needs.
//!
//! All 20 sidecars use the Service whose split changes, so each change goes to all of them. The way includes the
//! playground's own step, which writes the objects as an API server would. Writes target/bench/playground.json.

use std::process::ExitCode;

use anyhow::Context;
use serde::Serialize;
use weft_e2e::mesh::{Mesh, repository};

const CHANGES: usize = 100;

#[derive(Serialize)]
struct Result {
    changes: usize,
    proxies: usize,
    p50_ms: f64,
    p99_ms: f64,
    max_ms: f64,
    rss_mb: f64,
}

fn main() -> anyhow::Result<ExitCode> {
    let weft = std::env::current_exe()?.with_file_name("weft");
    println!("Starting 20 pods with a sidecar each …");
    let mesh = Mesh::start("e2e/bench/playground", "bench", &weft, None, &[])?;
    let rss_mb = mesh.control_plane_memory()?;
    let pods = mesh.client().status()?.pods;
    for pod in &pods {
        let code = mesh.code(&format!("{}/{}", pod.namespace, pod.name), &["http://root.bench/"])?;
        anyhow::ensure!(code == "200", "{} calls and gets {code}", pod.name);
    }
    println!("Changing the split {CHANGES} times …");
    let mut times = Vec::new();
    for change in 0..CHANGES {
        let text = format!("weight: {}", 101 + change);
        let before = format!("weight: {}", 100 + change);
        times.push(mesh.edit("split.yaml", |split| split.replacen(&before, &text, 1))?.as_secs_f64() * 1000.0);
    }
    times.sort_by(f64::total_cmp);
    let at = |percent: usize| times[(times.len() * percent).div_ceil(100) - 1];
    let result =
        Result { changes: CHANGES, proxies: pods.len(), p50_ms: at(50), p99_ms: at(99), max_ms: at(100), rss_mb };
    mesh.stop()?;
    let path = repository().join("target/bench/playground.json");
    std::fs::create_dir_all(path.parent().context("a folder")?)?;
    let json = serde_json::to_string_pretty(&result)?;
    std::fs::write(&path, format!("{json}\n"))?;
    println!("{json}\ntarget/bench/playground.json has the same. Targets: p99_ms at most 250, rss_mb at most 30.");
    Ok(if result.p99_ms <= 250.0 && rss_mb <= 30.0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}
