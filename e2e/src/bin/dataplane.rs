//! `make bench`: what one hop through two sidecars costs, against two Envoys with a minimal mTLS configuration by hand.
//!
//! ```text
//!  direct  caller ───────────────────────────────▶ app
//!  hand    caller ─▶ Envoy ══ mTLS ══▶ Envoy ────▶ app     caller.yaml, callee.yaml: static, nothing intercepted
//!  weft    caller ─▶ sidecar ══ mTLS ══▶ sidecar ─▶ app    as `weft up` runs it, golden metrics off and on
//! ```
//!
//! Metrics on and off are two meshes, one after the other, each with the other paths: sidecars drain the connections of
//! a mode that was changed for minutes, and would measure both.
//!
//! All in one mesh round by round, so that what the machine does meanwhile befalls each alike. `wrk` calls: one
//! connection for latencies, many for requests a second. Writes target/bench/dataplane.json.

use std::collections::BTreeMap;
use std::fs;
use std::path::Path;
use std::process::ExitCode;

use anyhow::{Context, bail, ensure};
use rcgen::{BasicConstraints, CertificateParams, CertifiedIssuer, DnType, IsCa, KeyPair};
use serde::Serialize;
use weft::cli::output::Table;
use weft::local::control::PodSelector;
use weft_e2e::mesh::{Mesh, repository};

const ROUNDS: usize = 21;
const SECONDS: &str = "1s";
const BENCH: &str = "e2e/bench/dataplane";
const MESH: &str = "mesh.yaml";

/// What the sidecars count: `MeshConfig.spec.metrics.mode`, with the share by which the sidecars may exceed what was
/// configured by hand.
const MODES: [(&str, f64); 2] = [("Basic", 0.10), ("Full", 0.20)];

/// A way from a caller to the app.
struct Way {
    name: &'static str,
    pod: &'static str,
    url: &'static str,
}

const DIRECT: Way = Way { name: "direct", pod: "plain/caller", url: "http://callee.plain:8080/healthz" };
const HAND: Way = Way { name: "hand", pod: "plain/caller", url: "http://127.0.0.1:9000/healthz" };
const WEFT: Way = Way { name: "weft", pod: "meshed/caller", url: "http://callee.meshed/healthz" };

/// Latency and throughput of one path.
#[derive(Clone, Copy, Debug, Default, Serialize)]
struct Figures {
    p50_us: f64,
    p99_us: f64,
    /// What the path adds to calling directly.
    added_p50_us: f64,
    added_p99_us: f64,
    requests_per_second: f64,
}

/// Weft's figures as multiples of the other's.
#[derive(Clone, Copy, Debug, Serialize)]
struct Ratios {
    added_p50: f64,
    added_p99: f64,
    requests_per_second: f64,
}

/// The figures of each way by its name.
type Figured = BTreeMap<&'static str, Figures>;

/// Medians over the rounds of one mesh.
#[derive(Serialize)]
struct Run {
    rounds: usize,
    paths: Figured,
    /// The median of the rounds' own ratios.
    weft_to_hand: Ratios,
}

fn main() -> anyhow::Result<ExitCode> {
    let directory = tempfile::Builder::new().prefix("weft-dataplane-").tempdir()?;
    certificates(directory.path())?;
    let plain = by_hand(directory.path())?;
    let mut runs = BTreeMap::new();
    for (mode, _) in MODES {
        runs.insert(mode, run(mode, &plain)?);
    }
    print(&runs);
    let path = repository().join("target/bench/dataplane.json");
    fs::create_dir_all(path.parent().context("a folder")?)?;
    fs::write(&path, serde_json::to_string_pretty(&runs)? + "\n")?;
    println!("target/bench/dataplane.json has the same.");
    println!("Targets: weft within 10 % of hand with Basic metrics, within 20 % with Full ones.");
    let within = |(mode, share): &(&str, f64)| {
        let ratios = runs[mode].weft_to_hand;
        ratios.added_p50 <= 1.0 + share && ratios.added_p99 <= 1.0 + share && ratios.requests_per_second >= 1.0 - share
    };
    Ok(if MODES.iter().all(within) { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// All ways, round by round, in a mesh of this mode.
fn run(mode: &str, plain: &str) -> anyhow::Result<Run> {
    let weft = std::env::current_exe()?.with_file_name("weft");
    let mesh = Mesh::start(BENCH, "dataplane", &weft, None, &[])?;
    mesh.put(MESH, &mesh.read(MESH)?.replacen("spec:\n", &format!("spec:\n  metrics: {{mode: {mode}}}\n"), 1))?;
    mesh.put("plain.yaml", plain)?;
    mesh.wait_for_pods("plain", "caller", 1)?;
    mesh.wait_for_pods("plain", "callee", 1)?;
    let mut rounds: Vec<Figured> = Vec::new();
    for round in 0..=ROUNDS {
        let mut figures = Figured::new();
        for way in [DIRECT, HAND, WEFT] {
            figures.insert(way.name, measure(&mesh, &way)?);
        }
        let direct = figures[DIRECT.name];
        for way in figures.values_mut() {
            way.added_p50_us = way.p50_us - direct.p50_us;
            way.added_p99_us = way.p99_us - direct.p99_us;
        }
        // The first warms up: connections, clusters, caches.
        if round > 0 {
            rounds.push(figures);
            println!("{mode}: round {round} of {ROUNDS}");
        }
    }
    mesh.stop()?;
    Ok(summarize(&rounds))
}

fn measure(mesh: &Mesh, way: &Way) -> anyhow::Result<Figures> {
    let one = wrk(mesh, way, 1)?;
    let many = wrk(mesh, way, 32)?;
    Ok(Figures { requests_per_second: many.requests_per_second, ..one })
}

/// Calls for a while; everything has to be answered with 200.
fn wrk(mesh: &Mesh, way: &Way, connections: usize) -> anyhow::Result<Figures> {
    let connections = connections.to_string();
    let argv = ["wrk", "-t1", "-c", &connections, "-d", SECONDS, "--latency", way.url].map(str::to_owned).to_vec();
    let (namespace, pod) = way.pod.split_once('/').context("NAMESPACE/POD")?;
    let (code, text) = mesh.client().output(PodSelector::new(namespace, pod), argv)?;
    ensure!(code == 0, "wrk in {} ended with {code} (is it installed? `make bench` does): {text}", way.pod);
    ensure!(!text.contains("Non-2xx") && !text.contains("Socket errors"), "{}: {text}", way.url);
    let after = |label: &str| {
        let line = text.lines().map(str::trim).find_map(|line| line.strip_prefix(label));
        line.map(|rest| rest.trim().to_owned()).with_context(|| format!("no `{label}` in what wrk says: {text}"))
    };
    Ok(Figures {
        p50_us: microseconds(&after("50%")?)?,
        p99_us: microseconds(&after("99%")?)?,
        requests_per_second: after("Requests/sec:")?.parse()?,
        ..Figures::default()
    })
}

/// As wrk writes times: `88.00us`, `1.20ms`, `2.00s`.
fn microseconds(text: &str) -> anyhow::Result<f64> {
    for (unit, factor) in [("us", 1.0), ("ms", 1e3), ("s", 1e6)] {
        if let Some(number) = text.strip_suffix(unit) {
            return Ok(number.parse::<f64>()? * factor);
        }
    }
    bail!("`{text}` is no time of wrk's")
}

fn median(mut values: Vec<f64>) -> f64 {
    values.sort_by(f64::total_cmp);
    values[values.len() / 2]
}

fn summarize(rounds: &[Figured]) -> Run {
    let over = |pick: &dyn Fn(&Figured) -> f64| median(rounds.iter().map(pick).collect());
    let figures = |name: &'static str| Figures {
        p50_us: over(&|round| round[name].p50_us),
        p99_us: over(&|round| round[name].p99_us),
        added_p50_us: over(&|round| round[name].added_p50_us),
        added_p99_us: over(&|round| round[name].added_p99_us),
        requests_per_second: over(&|round| round[name].requests_per_second),
    };
    let ratio = |pick: &dyn Fn(&Figures) -> f64| over(&|round| pick(&round[WEFT.name]) / pick(&round[HAND.name]));
    Run {
        rounds: rounds.len(),
        paths: [DIRECT, HAND, WEFT].into_iter().map(|way| (way.name, figures(way.name))).collect(),
        weft_to_hand: Ratios {
            added_p50: ratio(&|figures| figures.added_p50_us),
            added_p99: ratio(&|figures| figures.added_p99_us),
            requests_per_second: ratio(&|figures| figures.requests_per_second),
        },
    }
}

fn print(runs: &BTreeMap<&str, Run>) {
    let mut table = Table::new(["METRICS", "PATH", "P50", "P99", "ADDED P50", "ADDED P99", "REQUESTS/S", "TO HAND"]);
    for (mode, run) in runs {
        for way in [DIRECT, HAND, WEFT] {
            let figures = run.paths[way.name];
            let Ratios { added_p50, added_p99, requests_per_second } = run.weft_to_hand;
            let ratios = format!("{added_p50:.2}, {added_p99:.2}, {requests_per_second:.2}");
            table.row([
                (*mode).to_owned(),
                way.name.to_owned(),
                format!("{:.0} us", figures.p50_us),
                format!("{:.0} us", figures.p99_us),
                format!("{:.0} us", figures.added_p50_us),
                format!("{:.0} us", figures.added_p99_us),
                format!("{:.0}", figures.requests_per_second),
                if way.name == WEFT.name { ratios } else { String::new() },
            ]);
        }
    }
    println!("\n{table}");
}

/// A root, and a certificate for each of the two Envoys by hand.
fn certificates(directory: &Path) -> anyhow::Result<()> {
    let mut root = CertificateParams::default();
    root.distinguished_name.push(DnType::CommonName, "dataplane");
    root.is_ca = IsCa::Ca(BasicConstraints::Unconstrained);
    let root = CertifiedIssuer::self_signed(root, KeyPair::generate()?)?;
    fs::write(directory.join("root.pem"), root.pem())?;
    for name in ["caller", "callee"] {
        let key = KeyPair::generate()?;
        let certificate = CertificateParams::new(vec![name.to_owned()])?.signed_by(&key, &root)?;
        fs::write(directory.join(format!("{name}.pem")), certificate.pem())?;
        fs::write(directory.join(format!("{name}-key.pem")), key.serialize_pem())?;
    }
    Ok(())
}

/// The pods without a sidecar: an app, and an Envoy beside it that was configured by hand.
fn by_hand(directory: &Path) -> anyhow::Result<String> {
    let envoy = repository().join("target/envoy/default/envoy");
    ensure!(envoy.exists(), "there is no {}: run `make setup`", envoy.display());
    let mut pods = Vec::new();
    for name in ["caller", "callee"] {
        let template = fs::read_to_string(repository().join(BENCH).join(format!("{name}.yaml")))?;
        let configuration = directory.join(format!("{name}.yaml"));
        fs::write(&configuration, template.replace("${DIR}", &directory.display().to_string()))?;
        pods.push(format!(
            "apiVersion: v1
kind: Pod
metadata:
  name: {name}
  namespace: plain
  labels: {{app: {name}}}
  annotations:
    weft.dev/local-command.envoy: {} -c {} --concurrency 1 --disable-hot-restart -l warn
spec:
  containers:
    - {{name: app, image: ghcr.io/weft-mesh/weft:0.1.0, args: [app, serve, --name={name}, --http=8080]}}
    - {{name: envoy, image: envoyproxy/envoy}}
",
            envoy.display(),
            configuration.display()
        ));
    }
    Ok(pods.join("---\n"))
}
