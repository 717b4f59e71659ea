//! All of it at random, without waiting for one change before the next, and with harm that is meant: every call that
//! comes to nothing is one that a fault or a denial counts.
//!
//! ```text
//!  changes ──by a seed──▶ one step every few hundred ms, whatever the others are at
//!  loads                ──▶ 200, or 418 as often as faults were injected, or 403 as often as access was denied
//!  watch                ──▶ no refused configuration, no broken connection
//! ```

use std::collections::{BTreeMap, BTreeSet};
use std::time::{Duration, Instant};

use anyhow::{Context, ensure};

use super::changes::{self, Change, Pods, Step};
use super::watch::Watch;
use super::{GUEST, LOADS, WORK, barrier, begin, put, start};
use crate::load::{Load, Summary};
use crate::mesh::{Mesh, PATIENCE};
use crate::scenario::Scenarios;
use crate::until;

/// From the start of one step to that of the next, in milliseconds: two or three are under way at once.
const PACE: std::ops::Range<u64> = 60..400;

/// Loads that are denied now and then.
const DENIED: &[(&str, &str, &[&str])] = &[
    ("app/a", "http://guarded.work/", &[]),
    ("app/b", "http://guarded.work/", &[]),
    ("app/b", "http://guarded.work/", &["--http2"]),
    ("app/b", "grpc://guarded.work:9090", &[]),
];

/// What a call may come to, and which counter of which pods says how often that was meant.
const EXPLAINED: &[(&[&str], &str, &[&str])] = &[
    (&["418"], "^http.outbound.fault.aborts_injected$", &["app/a", "app/b"]),
    (&["403", "PERMISSION_DENIED"], "^http.inbound.rbac.denied$", &["work/deploy/guarded"]),
];

/// What is checked.
#[derive(Clone, Copy, Debug)]
pub struct Chaos {
    /// What decides which step comes when.
    pub seed: u64,
    /// How long it goes on.
    pub lasts: Duration,
}

impl Chaos {
    /// Runs it in a mesh of e2e/scenarios/churn, and adds what was seen.
    ///
    /// # Errors
    /// When a change does not come about.
    pub fn run(&self, mesh: &Mesh, scenarios: &mut Scenarios) -> anyhow::Result<()> {
        let changes = changes::all();
        begin(mesh, &changes)?;
        let before = counted(mesh)?;
        let mut watch = Watch::for_refusals();
        watch.look(mesh)?;
        let mut running = Running { mesh, loads: start(mesh, LOADS)?, guests: Vec::new(), ended: Vec::new() };
        running.loads.extend(start(mesh, DENIED)?);
        let taken = self.steps(&mut running, &changes)?;
        // What the last steps have brought reaches all before the loads end.
        barrier(mesh, taken.len() + 1)?;
        let ended = running.end()?;
        let mut row = |check: &str, expected: &str, ok, observed: String| {
            let name = format!("chaos: seed {}: {check}", self.seed);
            scenarios.holds(&name, expected, || Ok((ok, observed)));
        };
        let kinds: BTreeSet<_> = taken.iter().map(|(change, _)| *change).collect();
        let said = format!("{} steps in {} s", taken.len(), self.lasts.as_secs());
        row("changes", "each of them has taken a step", kinds.len() == changes.len(), said);
        let harm = |code: &str| EXPLAINED.iter().any(|(codes, ..)| codes.contains(&code));
        for (name, summary) in &ended {
            let left = summary.codes.iter().filter(|(code, _)| !fine(code) && !harm(code)).count();
            row(
                name,
                "nothing but what a fault or a denial explains",
                left == 0 && summary.requests > 0,
                told(summary),
            );
        }
        for ((codes, counter, _), meant) in EXPLAINED.iter().zip(counted(mesh)?.iter().zip(before)) {
            let meant = meant.0 - meant.1;
            let seen: u64 =
                ended.iter().flat_map(|(_, load)| codes.iter().filter_map(|code| load.codes.get(*code))).sum();
            let expected = "as many as the sidecars count, and some";
            row(&codes.join(", "), expected, seen == meant && seen > 0, format!("{seen}, {counter} {meant}"));
        }
        let alarms = watch.look(mesh)?;
        row("counters", "no refused configuration", alarms.is_empty(), alarms.join("\n"));
        let refused =
            mesh.inspection()?.proxies()?.into_iter().flat_map(|proxy| proxy.types).filter(|of| of.refused > 0);
        let refused: Vec<_> = refused.map(|of| format!("{of:?}")).collect();
        row("proxies", "none has refused anything", refused.is_empty(), refused.join("\n"));
        if !scenarios.hold() {
            let log = mesh.log().into_iter().filter(|line| !line.contains(" 418 ") && !line.contains(" 403 "));
            println!("{taken:?}\n{}", Vec::from_iter(log).join("\n"));
        }
        Ok(())
    }

    /// Takes steps until the time is over; which, and when.
    fn steps(&self, running: &mut Running<'_>, changes: &[Change]) -> anyhow::Result<Vec<(&'static str, Duration)>> {
        let mut random = fastrand::Rng::with_seed(self.seed);
        let mut under_way: Vec<UnderWay<'_>> = changes.iter().map(UnderWay::new).collect();
        let started = Instant::now();
        let mut taken = Vec::new();
        while started.elapsed() < self.lasts {
            let next = &mut under_way[random.usize(..changes.len())];
            let due = started.elapsed() + Duration::from_millis(random.u64(PACE));
            if next.is_free(running.mesh)? {
                taken.push((next.change.name, started.elapsed()));
                next.step(running, taken.len()).with_context(|| format!("after {taken:?}"))?;
            }
            // The pace is the subject here, nothing is waited for.
            std::thread::sleep(due.saturating_sub(started.elapsed()));
        }
        until("all pods", PATIENCE, || {
            let busy = under_way.iter_mut().map(|change| Ok((change.change.name, change.is_free(running.mesh)?)));
            let busy: Vec<_> =
                busy.collect::<anyhow::Result<Vec<_>>>()?.into_iter().filter(|(_, free)| !free).collect();
            Ok(if busy.is_empty() { Ok(()) } else { Err(format!("{busy:?}")) })
        })?;
        Ok(taken)
    }
}

/// A change, and the pods that its last step is to bring about.
struct UnderWay<'a> {
    change: &'a Change,
    next: usize,
    awaited: Option<(&'a Pods, BTreeSet<String>)>,
}

impl<'a> UnderWay<'a> {
    fn new(change: &'a Change) -> Self {
        Self { change, next: 0, awaited: None }
    }

    /// Whether the pods of the last step are there; nobody shifts calls to a version that has not started.
    fn is_free(&mut self, mesh: &Mesh) -> anyhow::Result<bool> {
        let Some((pods, old)) = &self.awaited else { return Ok(true) };
        let there = mesh.pods_of(WORK, pods.workload)?;
        let free = there.len() == pods.count && there.iter().all(|pod| pod.ready && !old.contains(&pod.name));
        if free {
            self.awaited = None;
        }
        Ok(free)
    }

    fn step(&mut self, running: &mut Running<'_>, number: usize) -> anyhow::Result<()> {
        let step = &self.change.steps[self.next];
        self.next = (self.next + 1) % self.change.steps.len();
        match step {
            Step::Write { files, pods, .. } => {
                let old = pods.as_ref().map(|pods| running.names(pods)).transpose()?;
                self.awaited = pods.as_ref().zip(old);
                put(running.mesh, files)
            }
            Step::Call => {
                // A Service is called when it is there: else its address is nobody's, and no sidecar's business.
                barrier(running.mesh, number)?;
                running.guests = start(running.mesh, GUEST)?;
                Ok(())
            }
            Step::HangUp => running.hang_up(),
        }
    }
}

/// The loads under way.
struct Running<'a> {
    mesh: &'a Mesh,
    loads: Vec<(String, Load)>,
    guests: Vec<(String, Load)>,
    ended: Vec<(String, Summary)>,
}

impl Running<'_> {
    /// The pods that are to go.
    fn names(&self, pods: &Pods) -> anyhow::Result<BTreeSet<String>> {
        let names = if pods.new { self.mesh.pods_of(WORK, pods.workload)? } else { Vec::new() };
        Ok(names.into_iter().map(|pod| pod.name).collect())
    }

    fn hang_up(&mut self) -> anyhow::Result<()> {
        for (name, load) in self.guests.drain(..) {
            self.ended.push((name, load.end()?));
        }
        Ok(())
    }

    /// Ends all; the calls of one load that came and went are one.
    fn end(mut self) -> anyhow::Result<Vec<(String, Summary)>> {
        self.hang_up()?;
        for (name, load) in self.loads.drain(..) {
            self.ended.push((name, load.end()?));
        }
        let mut ended: BTreeMap<String, Summary> = BTreeMap::new();
        for (name, more) in self.ended {
            match ended.get_mut(&name) {
                Some(summary) => summary.add(more),
                None => _ = ended.insert(name, more),
            }
        }
        Ok(ended.into_iter().collect())
    }
}

/// The codes of calls that came to what their callers wanted.
fn fine(code: &str) -> bool {
    ["200", "OK", "ok"].contains(&code)
}

fn told(summary: &Summary) -> String {
    let Summary { codes, errors, .. } = summary;
    format!("{codes:?} {errors:?}")
}

/// What the counters of [`EXPLAINED`] say.
fn counted(mesh: &Mesh) -> anyhow::Result<Vec<u64>> {
    let of = |(_, counter, pods): &(&[&str], &str, &[&str])| {
        let values = pods.iter().map(|pod| {
            let stats = mesh.stats(pod, counter)?;
            ensure!(stats.len() <= 1, "{pod} has {stats:?}");
            Ok(stats.first().map_or(0, |(_, value)| *value))
        });
        values.sum()
    };
    EXPLAINED.iter().map(of).collect()
}
