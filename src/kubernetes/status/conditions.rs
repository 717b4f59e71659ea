//! What the conditions of an object should say. Pure.
//!
//! | type | status | reason | when |
//! | --- | --- | --- | --- |
//! | `Accepted` | True | `Accepted` | all of it is used |
//! | | True | `PartlyUsed` | there are warnings |
//! | | False | `Rejected` | it is not used; its last good version stays |
//! | `Delivered` | True | `Delivered` | all proxies that use it have acknowledged it, whichever replica they are at |
//! | | True | `Unused` | no proxy uses it |
//! | | False | `Pending` | some have yet to answer, or a replica has yet to say so |
//! | | False | `Refused` | Envoy refuses what comes of it |
//! | | False | `NotAccepted` | see `Accepted` |

use std::time::Duration;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::{Condition, Time};
use k8s_openapi::jiff::Timestamp;

use super::Observed;
use super::events::Saying;
use super::whole::Whole;
use crate::mesh::Diagnostic;
use crate::mesh::diagnostic::Severity;

/// The types of conditions.
const ACCEPTED: &str = "Accepted";
const DELIVERED: &str = "Delivered";
/// A reason of `Delivered` that is an event, too.
pub(super) const REFUSED: &str = "Refused";
const PENDING: &str = "Pending";
const NOT_ACCEPTED: &str = "NotAccepted";
/// So many proxies that are waited for are named, and so many replicas.
const NAMED: usize = 3;
/// Bytes of a message; the definitions allow for more.
pub(super) const MESSAGE: usize = 1_000;

/// What a condition should say.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Wanted {
    pub(super) kind: &'static str,
    pub(super) holds: bool,
    pub(super) reason: &'static str,
    pub(super) message: String,
}

impl Wanted {
    fn new(kind: &'static str, holds: bool, reason: &'static str, message: String) -> Self {
        Self { kind, holds, reason, message: shortened(&message) }
    }

    fn status(&self) -> &'static str {
        if self.holds { "True" } else { "False" }
    }

    /// The condition, for the generation that was seen; it keeps the time of its last transition.
    pub(super) fn condition(&self, seen: &Observed) -> Condition {
        let before = of_type(&seen.conditions, self.kind).filter(|before| before.status == self.status());
        Condition {
            type_: self.kind.to_owned(),
            status: self.status().to_owned(),
            reason: self.reason.to_owned(),
            message: self.message.clone(),
            observed_generation: Some(seen.generation),
            last_transition_time: before.map_or_else(|| Time(now()), |before| before.last_transition_time.clone()),
        }
    }
}

/// Whether the control plane uses the object.
pub(super) fn accepted(found: &[Diagnostic]) -> Wanted {
    let of = |severity: Severity| -> Vec<String> {
        found.iter().filter(|found| found.severity == severity).map(text).collect()
    };
    let (errors, warnings) = (of(Severity::Error), of(Severity::Warning));
    if !errors.is_empty() {
        return Wanted::new(ACCEPTED, false, "Rejected", errors.join("\n"));
    }
    if !warnings.is_empty() {
        return Wanted::new(ACCEPTED, true, "PartlyUsed", warnings.join("\n"));
    }
    Wanted::new(ACCEPTED, true, "Accepted", "it is used".to_owned())
}

/// What `Delivered` says where nothing has to be looked up: the object is not used, or this generation was delivered.
pub(super) fn settled(seen: &Observed, accepted: &Wanted) -> Option<Wanted> {
    if !accepted.holds {
        let message = "this version is not used; the last good one stays".to_owned();
        return Some(Wanted::new(DELIVERED, false, NOT_ACCEPTED, message));
    }
    let there = of_type(&seen.conditions, DELIVERED)?;
    let reason = ["Delivered", "Unused"].into_iter().find(|reason| *reason == there.reason)?;
    let settled = there.status == "True" && there.observed_generation == Some(seen.generation);
    settled.then(|| Wanted::new(DELIVERED, true, reason, there.message.clone()))
}

/// Whether the proxies have what came of the object.
pub(super) fn delivered(whole: &Whole) -> Wanted {
    let Whole { answers, changed, unknown } = whole;
    if let Some(refusal) = answers.refusals.first().filter(|_| answers.proxies > 0) {
        let reason = format!("{} refuses it: {}", refusal.proxy, refusal.message.trim());
        return Wanted::new(DELIVERED, false, REFUSED, reason);
    }
    if answers.proxies == 0 && unknown.is_empty() {
        return Wanted::new(DELIVERED, true, "Unused", "no proxy uses it".to_owned());
    }
    let have = format!("{}/{} proxies", answers.acknowledged, answers.proxies);
    let all = answers.pending == 0 && answers.acknowledged == answers.proxies;
    match answers.took.filter(|_| all && unknown.is_empty()) {
        Some(took) => {
            let took = if *changed { format!(", {}", seconds(took)) } else { String::new() };
            Wanted::new(DELIVERED, true, "Delivered", have + &took)
        }
        None => Wanted::new(DELIVERED, false, PENDING, have + &waits(whole)),
    }
}

/// For whom is waited.
fn waits(whole: &Whole) -> String {
    let Whole { answers, unknown, .. } = whole;
    let names: Vec<_> = answers.pending_proxies.iter().take(NAMED).map(ToString::to_string).collect();
    let more = answers.pending.saturating_sub(names.len() as u64);
    let more = if more > 0 { format!(" and {more} more") } else { String::new() };
    let proxies = (!names.is_empty()).then(|| format!("waiting for {}{more}", names.join(", ")));
    proxies.iter().chain(unknown.iter().take(NAMED)).map(|waits| format!("; {waits}")).collect()
}

/// How what an object says differs from what it should say.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug)]
pub(super) enum Difference {
    /// Not at all.
    None,
    /// Only in how far it has come.
    Progress,
    /// In what holds, or of which generation.
    Verdict,
}

/// How what the object says differs from what it should say.
pub(super) fn difference(seen: &Observed, wanted: &[Wanted]) -> Difference {
    let of = |wanted: &Wanted| {
        let Some(there) = of_type(&seen.conditions, wanted.kind) else { return Difference::Verdict };
        let same = (there.status.as_str(), there.reason.as_str(), there.observed_generation)
            == (wanted.status(), wanted.reason, Some(seen.generation));
        match (same, there.message == wanted.message) {
            (false, _) => Difference::Verdict,
            (true, true) => Difference::None,
            (true, false) if wanted.reason == PENDING => Difference::Progress,
            (true, false) => Difference::Verdict,
        }
    };
    wanted.iter().map(of).max().unwrap_or(Difference::None)
}

/// Whether the conditions say so already.
pub(super) fn say(conditions: &[Condition], saying: &Saying) -> bool {
    conditions
        .iter()
        .any(|there| there.message.lines().any(|line| line == saying.message) || there.message == saying.message)
}

/// A finding without the object, which is where it stands.
pub(super) fn text(found: &Diagnostic) -> String {
    Diagnostic { object: None, location: None, ..found.clone() }.to_string().replace('\n', " ")
}

/// A message that is not too long.
pub(super) fn shortened(message: &str) -> String {
    if message.len() <= MESSAGE {
        return message.to_owned();
    }
    let end = message.floor_char_boundary(MESSAGE);
    format!("{}…", message.get(..end).unwrap_or_default())
}

fn of_type<'a>(conditions: &'a [Condition], kind: &str) -> Option<&'a Condition> {
    conditions.iter().find(|condition| condition.type_ == kind)
}

fn seconds(took: Duration) -> String {
    match took.as_secs_f64() {
        short if short < 0.1 => format!("{:.0} ms", short * 1_000.0),
        long => format!("{long:.1} s"),
    }
}

/// Kubernetes' times have whole seconds.
fn now() -> Timestamp {
    let now = Timestamp::now();
    Timestamp::from_second(now.as_second()).unwrap_or(now)
}
