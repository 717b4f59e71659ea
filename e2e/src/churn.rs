//! Constant load from several callers while everything changes that may change without a loss.
//!
//! ```text
//!  changes (cycles of steps) ──mixed by a seed──▶ one step at a time: write, wait for the last ACK, look at counters
//!  loads: HTTP/1.1, HTTP/2, gRPC and TCP, connections kept and new ──▶ no failed request
//!  watch: counters of every sidecar                                ──▶ no reset, no retry, no failed connection
//! ```

mod changes;
mod chaos;
mod watch;

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::Context;

pub use self::changes::Discovery;
use self::changes::{Change, Pods, Step};
pub use self::chaos::Chaos;
use self::watch::Watch;
use crate::held::Held;
use crate::load::{Load, Summary};
use crate::mesh::{Mesh, PATIENCE};
use crate::scenario::Scenarios;
use crate::until;

/// The namespace of all that is called.
const WORK: &str = "work";

/// From which pod, what, how.
const LOADS: &[(&str, &str, &[&str])] = &[
    ("app/a", "http://root.work/", &[]),
    ("app/a", "http://root.work/", &["-H", "x-beta: yes", "--no-keepalive"]),
    ("app/a", "http://root.work/", &["--http2"]),
    ("app/a", "grpc://root.work:9090", &[]),
    ("app/a", "tcp://root.work:7000", &[]),
    ("app/b", "http://root.work/", &["-H", "x-beta: yes"]),
    ("app/b", "grpc://root.work:9090", &[]),
    ("app/b", "http://rolling.work/", &[]),
    ("app/b", "http://rolling.work/", &["--http2"]),
    ("app/b", "grpc://rolling.work:9090", &[]),
    ("app/b", "tcp://rolling.work:7000", &[]),
    ("app/a", "http://moving.work/", &[]),
    ("app/a", "grpc://moving.work:9090", &[]),
    ("app/a", "tcp://moving.work:7000", &[]),
    ("app/a", "http://ported.work/", &[]),
    ("app/b", "http://ported.work/", &["--http2"]),
    // The address of a pod: a connection that is kept would outlive the pod.
    ("app/b", "http://headless.work:8080/", &["--no-keepalive"]),
    ("app/b", "tcp://headless.work:7000", &[]),
];

/// Loads on the Service that comes and goes.
const GUEST: &[(&str, &str, &[&str])] = &[
    ("app/a", "http://guest.work/", &[]),
    ("app/b", "http://guest.work/", &["--http2"]),
    ("app/b", "grpc://guest.work:9090", &[]),
    ("app/a", "tcp://guest.work:7000", &[]),
];

/// TCP connections that last as long as a round, to pods that do.
const HELD: &[(&str, &str)] = &[("app/a", "root.work"), ("app/b", "root.work"), ("app/b", "moving.work")];

/// What is checked.
#[derive(Clone, Copy, Debug)]
pub struct Churn {
    /// The mode that it begins with.
    pub discovery: Discovery,
    /// What decides the order of the steps.
    pub seed: u64,
    /// Rounds are begun until then: in each, every change goes once around its cycle. There is one at least.
    pub lasts: Duration,
}

impl Churn {
    /// Runs it in a mesh of e2e/scenarios/churn, adds what was seen, and says whether all is well.
    ///
    /// # Errors
    /// When a change does not come about.
    pub fn run(&self, mesh: &Mesh, scenarios: &mut Scenarios) -> anyhow::Result<bool> {
        let changes = changes::harmless(self.discovery);
        begin(mesh, &changes)?;
        let started = Instant::now();
        for round in self.seed.. {
            self.round(mesh, &changes, round, scenarios)?;
            if !scenarios.hold() || started.elapsed() >= self.lasts {
                break;
            }
        }
        Ok(scenarios.hold())
    }

    fn round(&self, mesh: &Mesh, changes: &[Change], seed: u64, scenarios: &mut Scenarios) -> anyhow::Result<()> {
        let mut running = Running::start(mesh)?;
        let started = Instant::now();
        let mut order: Vec<_> = changes.iter().flat_map(|change| vec![change.name; change.steps.len()]).collect();
        fastrand::Rng::with_seed(seed).shuffle(&mut order);
        let mut steps: BTreeMap<_, _> = changes.iter().map(|change| (change.name, change.steps.iter())).collect();
        let done = order.into_iter().try_for_each(|name| {
            let step = steps.get_mut(name).and_then(Iterator::next).context("a step")?;
            running.step(name, step)
        });
        let steps = done.map(|()| started.elapsed());
        running.end(&format!("churn: {:?}, seed {seed}", self.discovery), &steps, scenarios)
    }
}

/// Writes the state that every change begins with: that of its last step.
fn begin(mesh: &Mesh, changes: &[Change]) -> anyhow::Result<()> {
    let mut awaited = Vec::new();
    for step in changes.iter().filter_map(|change| change.steps.last()) {
        let Step::Write { files, pods, .. } = step else { continue };
        for (file, text) in files {
            if let Some(text) = text {
                mesh.put(file, text)?;
            }
        }
        awaited.extend(pods);
    }
    for pods in awaited {
        mesh.wait_for_pods(WORK, pods.workload, pods.count)?;
    }
    barrier(mesh, 0)
}

/// A round under way.
struct Running<'a> {
    mesh: &'a Mesh,
    loads: Vec<(String, Load)>,
    guests: Vec<(String, Load)>,
    ended: Vec<(String, Summary)>,
    held: Vec<(String, Held)>,
    watch: Watch,
    alarms: Vec<String>,
    done: Vec<String>,
}

impl<'a> Running<'a> {
    fn start(mesh: &'a Mesh) -> anyhow::Result<Self> {
        let mut watch = Watch::for_losses();
        watch.look(mesh)?; // what was counted before this round is no matter of it
        let held = HELD.iter().map(|(pod, host)| {
            anyhow::Ok((format!("{pod} holds a connection to {host}"), Held::start(mesh, pod, host, 7000)?))
        });
        Ok(Self {
            mesh,
            loads: start(mesh, LOADS)?,
            guests: Vec::new(),
            ended: Vec::new(),
            held: held.collect::<anyhow::Result<_>>()?,
            watch,
            alarms: Vec::new(),
            done: vec!["the loads begin".to_owned()],
        })
    }

    fn step(&mut self, change: &str, step: &Step) -> anyhow::Result<()> {
        let (what, result) = match step {
            Step::Write { what, files, pods } => {
                let written = write(self.mesh, files, pods.as_ref());
                (*what, written.and_then(|()| barrier(self.mesh, self.done.len())))
            }
            Step::Call => ("called", start(self.mesh, GUEST).map(|loads| self.guests = loads)),
            Step::HangUp => ("called no more", self.hang_up()),
        };
        let name = format!("{}: {change}: {what}", self.done.len());
        let alarms = self.watch.look(self.mesh);
        self.done.push(name.clone());
        self.alarms.extend(alarms?.into_iter().map(|alarm| format!("({name}) {alarm}")));
        result.with_context(|| name)
    }

    fn hang_up(&mut self) -> anyhow::Result<()> {
        for (name, load) in self.guests.drain(..) {
            self.ended.push((name, load.end()?));
        }
        Ok(())
    }

    /// Stops the loads, and says what became of them.
    fn end(mut self, round: &str, steps: &anyhow::Result<Duration>, scenarios: &mut Scenarios) -> anyhow::Result<()> {
        self.hang_up()?;
        for (name, load) in self.loads.drain(..) {
            self.ended.push((name, load.end()?));
        }
        let mut row = |check: String, expected: &str, ok, observed| {
            scenarios.holds(&format!("{round}: {check}"), expected, || Ok((ok, observed)));
        };
        row(
            format!("{} steps", self.done.len() - 1),
            "each reached all",
            steps.is_ok(),
            steps.as_ref().map_or_else(|e| format!("{e:#}"), |took| format!("done in {} s", took.as_secs())),
        );
        for (name, summary) in &self.ended {
            row(name.clone(), "no failed request", summary.failed == 0 && summary.requests > 0, summary.said());
        }
        for (name, held) in self.held {
            let lines = held.stop();
            let said = lines.as_ref().map_or_else(|error| format!("{error:#}"), |lines| format!("{lines} lines"));
            row(name, "every line comes back", lines.is_ok(), said);
        }
        self.alarms.extend(self.watch.look(self.mesh)?);
        row("counters".to_owned(), "no reset, retry or refusal", self.alarms.is_empty(), self.alarms.join("\n"));
        Ok(())
    }
}

fn start(mesh: &Mesh, loads: &[(&str, &str, &[&str])]) -> anyhow::Result<Vec<(String, Load)>> {
    let load = |(pod, url, how): &(&str, &str, &[&str])| {
        // Connections that are made anew cost a handshake each.
        let anew = url.starts_with("tcp:") || how.contains(&"--no-keepalive");
        let rate = ["-c", "2", "--rate", if anew { "5" } else { "10" }];
        let arguments = [&rate[..], how, &[url]].concat();
        Ok(([&[*pod][..], how, &[url]].concat().join(" "), mesh.load(pod, &arguments)?))
    };
    loads.iter().map(load).collect()
}

/// Waits until every proxy has what came of all that was written before: some of it may change nothing for proxies,
/// so a Service that nobody calls changes after it.
fn barrier(mesh: &Mesh, number: usize) -> anyhow::Result<()> {
    let mut inspection = mesh.inspection()?;
    let snapshot = inspection.convergence()?.snapshot;
    mesh.put("barrier.yaml", &changes::barrier(number))?;
    inspection.converged_after(snapshot, Instant::now())?;
    Ok(())
}

/// Writes, and waits until the pods are as it says.
fn write(mesh: &Mesh, files: &[(&str, Option<String>)], pods: Option<&Pods>) -> anyhow::Result<()> {
    let names = |pods: &Pods| -> anyhow::Result<BTreeSet<String>> {
        Ok(mesh.pods_of(WORK, pods.workload)?.into_iter().map(|pod| pod.name).collect())
    };
    let old = pods.filter(|pods| pods.new).map(names).transpose()?.unwrap_or_default();
    put(mesh, files)?;
    let Some(pods) = pods else { return Ok(()) };
    until(&format!("new pods of {}", pods.workload), PATIENCE, || {
        let left = names(pods)?.intersection(&old).count();
        Ok(if left > 0 { Err(format!("{left} old ones are left")) } else { Ok(()) })
    })?;
    mesh.wait_for_pods(WORK, pods.workload, pods.count)
}

/// Writes or removes files, and waits for nothing.
fn put(mesh: &Mesh, files: &[(&str, Option<String>)]) -> anyhow::Result<()> {
    files.iter().try_for_each(|(file, text)| match text {
        Some(text) => mesh.put(file, text),
        None => mesh.delete(file),
    })
}
