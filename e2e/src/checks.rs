//! What must hold of the shop in a mesh (examples/shop), each as a row: check, expected, observed.

mod access;
mod change;
mod encryption;
mod footprint;
mod site;
mod split;

use std::path::PathBuf;
use std::time::Duration;

use anyhow::Context;
use serde_json::Value;

use crate::mesh::Mesh;
use crate::report::{Report, Row};

pub use site::Site;

/// How long certificates live while the checks run: short, so that they are renewed under load.
pub const CERTIFICATE_LIFETIME: Duration = Duration::from_secs(20);

/// What to run.
#[derive(Debug)]
pub struct Setting {
    /// The playground's name.
    pub name: &'static str,
    /// The `weft` executable.
    pub weft: PathBuf,
    /// The Envoy executable; without one the playground's own choice.
    pub envoy: Option<PathBuf>,
    /// Whether what is measured in time is checked too.
    pub timed: bool,
}

/// A check: its name, what is expected, and how it is seen.
type Check<See> = (&'static str, &'static str, See);
type OnSite = fn(&dyn Site) -> anyhow::Result<Seen>;
type OnMesh = fn(&Mesh) -> anyhow::Result<Seen>;

/// What was seen, and whether that is what was expected.
struct Seen {
    observed: String,
    ok: bool,
}

impl Seen {
    fn new(ok: bool, observed: impl Into<String>) -> Self {
        Self { observed: observed.into(), ok }
    }
}

/// What holds of the shop wherever it stands, in the order in which it is run.
const CORE: &[Check<OnSite>] = &[
    ("a call chain", "frontend, cart, inventory, ledger and catalog answer", call_chain),
    ("TLS between pods", "TLS 1.3 only, and the callee sees both SPIFFE IDs", encryption::identities),
    ("a caller outside the mesh, strict", "refused, while the probes of all pods pass", encryption::strict),
    ("a caller outside the mesh, permissive", "served, and refused again after", encryption::permissive),
    ("a connection that is silent at first", "its request is served as any other", access::silent_at_first),
    ("denied by default", "HTTP 403, gRPC PERMISSION_DENIED, TCP closed", access::denied),
    ("allowed by TrafficTarget", "HTTP 200, gRPC OK, TCP ok; denied again when the target goes", access::allowed),
    ("HTTP split 90/10", "10 % ± 2 of 2000 requests on v2", split::http),
    ("gRPC split 90/10", "10 % ± 2 of 2000 requests on v2", split::grpc),
    ("TCP split 50/50", "50 % ± 2 of 400 connections on v2", split::tcp),
    ("weights changed under load", "no failed request; 50 % ± 3 on v2 after the last ACK", split::change),
    ("a pod added and removed under load", "no failed request", change::pods),
    ("certificates rotated under load", "no failed request; every sidecar has a new one", encryption::rotation),
];

/// What is seen in the playground only.
const PLAYGROUND: &[Check<OnMesh>] = &[
    ("bytes between pods", "the request is readable inside the pod and nowhere between pods", encryption::no_plaintext),
    ("a broken document", "changes nothing, is reported with file, line and field", change::broken),
    ("the control plane killed and restarted under load", "no failed request; nothing unchanged sent", change::restart),
    ("a sidecar in a mesh of 500 more Services", "the same heap within 10 %", footprint::heap),
];

/// What is measured in time, which says something of a release build on a quiet machine only.
const TIMED: &[Check<OnMesh>] =
    &[("a first call to a new destination", "at most 20 ms, each of nine", footprint::first_call)];

/// Runs the shop and every check; `progress` is told each row as it comes.
///
/// # Errors
/// When the shop does not start or does not stop; a check that cannot be made is a row that does not hold.
pub fn run(setting: Setting, mut progress: impl FnMut(&Row)) -> anyhow::Result<Report> {
    let lifetime = format!("{}s", CERTIFICATE_LIFETIME.as_secs());
    let arguments = ["--certificate-lifetime", &lifetime];
    let mesh = Mesh::start("examples/shop", setting.name, &setting.weft, setting.envoy, &arguments)?;
    let mut report = Report::default();
    let timed = if setting.timed { TIMED } else { &[] };
    let core = CORE.iter().map(|(check, expected, see)| row(check, expected, see(&mesh)));
    let own = PLAYGROUND.iter().chain(timed).map(|(check, expected, see)| row(check, expected, see(&mesh)));
    for row in core.chain(own) {
        progress(&row);
        report.0.push(row);
    }
    mesh.stop()?;
    Ok(report)
}

/// What holds of the shop wherever it stands; each check is made when its row is asked for.
pub fn core(site: &dyn Site) -> impl Iterator<Item = Row> {
    CORE.iter().map(move |(check, expected, see)| row(check, expected, see(site)))
}

/// What came of a check; one that cannot be made does not hold.
fn row(check: &str, expected: &str, seen: anyhow::Result<Seen>) -> Row {
    let seen = seen.unwrap_or_else(|error| Seen::new(false, format!("{error:#}")));
    Row { check: check.into(), expected: expected.into(), observed: seen.observed, ok: seen.ok }
}

fn call_chain(mesh: &dyn Site) -> anyhow::Result<Seen> {
    let body = mesh.call("shop/shell", &["http://frontend/"])?;
    let answer: Value = serde_json::from_str(&body).with_context(|| body.clone())?;
    let mut names = Vec::new();
    names_in(&answer, &mut names);
    names.sort();
    names.dedup();
    Ok(Seen::new(names == ["cart", "catalog", "frontend", "inventory", "ledger"], names.join(", ")))
}

/// Every `name` in an answer and those nested in it. Over TCP, it is the first word of the answer.
fn names_in(answer: &Value, names: &mut Vec<String>) {
    match answer {
        Value::Object(fields) => {
            let over_tcp = fields.get("url").and_then(Value::as_str).is_some_and(|url| url.starts_with("tcp:"));
            let text = if over_tcp { fields.get("body") } else { fields.get("name") };
            names.extend(text.and_then(Value::as_str).and_then(|text| text.split(' ').next()).map(str::to_owned));
            fields.values().for_each(|value| names_in(value, names));
        }
        Value::Array(values) => values.iter().for_each(|value| names_in(value, names)),
        _ => {}
    }
}
