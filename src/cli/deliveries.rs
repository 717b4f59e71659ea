//! `weft deliveries`: where the changes of objects are.

mod which;

use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use prost_types::Timestamp;
use tonic::transport::Channel;

use super::output::{self, Format, Table, age};
use super::proxy::reach::{self, Reach};
use super::together;
use super::way::Way;
use crate::inspect::proto::inspection_client::InspectionClient;
use crate::inspect::proto::{
    Answers, DeliveryState, HeldBack, ListDeliveriesRequest, ListDeliveriesResponse, ObjectDelivery, ObjectName,
    PodName, ResourceType,
};
use which::Which;

/// Show where the changes of objects are: which sidecars have them, wait or refuse, and how long it took.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
OBJECT is KIND or KIND/NAME: service, service/cart, pod/web-1, meshconfig. A change of a TrafficSplit, TrafficFault or
TrafficPolicy is delivered as the Service that it is about, one of a TrafficTarget as the Pods.
PROXIES counts those that have acknowledged the newest version, of those that use it. TOOK is from the change to the
last acknowledgement. Kept since the control plane started.

Examples:
  weft deliveries                              every object
  weft deliveries service/cart -n shop         one object; then what is wrong with it
  weft deliveries --pending                    what has not reached all
  weft deliveries service/cart -n shop -o json with its resources, and who is pending

Exit codes: 0 done, 1 error, or something that is shown was refused, 2 wrong usage.")]
pub struct Args {
    /// Only these objects.
    #[arg(value_name = "OBJECT")]
    object: Option<Which>,
    /// Only objects of this namespace.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Only what has not been acknowledged by all who use it.
    #[arg(long)]
    pending: bool,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    way: Way,
}

impl Args {
    fn request(&self) -> ListDeliveriesRequest {
        let (kind, name) = match self.object.clone() {
            Some(Which { kind, name }) => (kind.to_string(), name),
            None => Default::default(),
        };
        let namespace = self.namespace.clone().unwrap_or_default();
        ListDeliveriesRequest { namespace, kind, name, pending_only: self.pending }
    }
}

/// Runs the command. `playground` opens the way to the playground of a name, if the options do not tell another way.
pub fn run(args: Args, playground: impl FnOnce(&str) -> anyhow::Result<Box<dyn Reach>>) -> anyhow::Result<ExitCode> {
    let reach = args.way.open(playground)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let (text, code) = runtime.block_on(execute(&args, reach.as_ref(), SystemTime::now()))?;
    output::print(&text)?;
    Ok(code)
}

async fn execute(args: &Args, reach: &dyn Reach, now: SystemTime) -> anyhow::Result<(String, ExitCode)> {
    let deliveries = fetch(reach, args.request()).await?;
    let refused = |object: &ObjectDelivery| matches!(object.state(), DeliveryState::Refused | DeliveryState::HeldBack);
    let code = if deliveries.objects.iter().any(refused) { ExitCode::FAILURE } else { ExitCode::SUCCESS };
    Ok((output::render(args.output, &deliveries, |deliveries| text(deliveries, now))?, code))
}

/// Asks the control plane.
pub(super) async fn fetch(reach: &dyn Reach, request: ListDeliveriesRequest) -> anyhow::Result<ListDeliveriesResponse> {
    // What has reached all proxies of one replica may not have reached those of another.
    let whole = ListDeliveriesRequest { pending_only: false, ..request.clone() };
    let ask = async |mut client: InspectionClient<Channel>| {
        let answer = client.list_deliveries(whole.clone()).await;
        Ok(answer.context("the control plane did not tell where changes are")?.into_inner())
    };
    let mut all = reach::ask_all(reach, ask, together::deliveries).await?;
    all.objects.retain(|object| !(request.pending_only && object.state() == DeliveryState::Delivered));
    Ok(all)
}

/// A row an object, then what is wrong.
fn text(deliveries: &ListDeliveriesResponse, now: SystemTime) -> String {
    if deliveries.objects.is_empty() {
        return "Nothing to show. Changes are delivered as the Services and Pods that they are about: see --help.\n"
            .to_owned();
    }
    let mut table = Table::new(["OBJECT", "RESOURCES", "PROXIES", "TOOK", "AGE", "STATE"]);
    for object in &deliveries.objects {
        let answers = object.answers.clone().unwrap_or_default();
        table.row([
            object_name(object.object.as_ref()),
            resources(object),
            format!("{}/{}", answers.acknowledged, answers.proxies),
            answers.took.and_then(|took| Duration::try_from(took).ok()).map(took).unwrap_or_default(),
            ago(now, object.changed_at),
            state(object, &answers),
        ]);
    }
    let mut text = table.to_string();
    for object in &deliveries.objects {
        write_pending(&mut text, object, now);
    }
    for object in &deliveries.objects {
        write_refusals(&mut text, object, now);
    }
    text
}

/// The types of an object's resources: `cluster, 2 endpoints`.
fn resources(object: &ObjectDelivery) -> String {
    let mut counts = Vec::<(ResourceType, usize)>::new();
    for resource in &object.resources {
        match counts.iter_mut().find(|(kind, _)| *kind == resource.r#type()) {
            Some((_, count)) => *count += 1,
            None => counts.push((resource.r#type(), 1)),
        }
    }
    let part = |(kind, count): (ResourceType, usize)| match (type_name(kind), count) {
        (name, 1) => name.to_owned(),
        ("endpoints", count) => format!("{count} endpoints"),
        (name, count) => format!("{count} {name}s"),
    };
    counts.into_iter().map(part).collect::<Vec<_>>().join(", ")
}

fn state(object: &ObjectDelivery, answers: &Answers) -> String {
    match object.state() {
        DeliveryState::Delivered => "delivered".to_owned(),
        DeliveryState::Pending if answers.sent < answers.proxies => {
            format!("pending {}, tried by {}", answers.pending, answers.sent)
        }
        DeliveryState::Pending => format!("pending {}", answers.pending),
        DeliveryState::Refused => format!("refused by {}", answers.refusing),
        DeliveryState::HeldBack => "held back".to_owned(),
        DeliveryState::Unspecified => String::new(),
    }
}

/// What has not been answered, by whom, and since when.
pub(super) fn write_pending(text: &mut String, object: &ObjectDelivery, now: SystemTime) {
    /// So many pods are named; `-o json` names more.
    const NAMED: usize = 5;
    let Some(answers) = object.answers.as_ref().filter(|answers| answers.pending > 0) else { return };
    let mut names: Vec<_> = answers.pending_proxies.iter().take(NAMED).map(pod_name).collect();
    let more = (answers.pending as usize).saturating_sub(names.len());
    if more > 0 {
        names.push(format!("{more} more"));
    }
    // The oldest of what is missing.
    let missing = object.resources.iter().filter(|resource| resource.answers.as_ref().is_some_and(|a| a.pending > 0));
    let since = missing.filter_map(|resource| moment(resource.changed_at)).min();
    let since = since.map(|at| age(now.duration_since(at).unwrap_or_default())).unwrap_or_default();
    let _ = writeln!(text, "\nPENDING {} for {since}: {}", object_name(object.object.as_ref()), names.join(", "));
}

fn write_refusals(text: &mut String, object: &ObjectDelivery, now: SystemTime) {
    for held in object.resources.iter().filter_map(|resource| resource.held_back.as_ref()) {
        write_held_back(text, held, now);
    }
    let held = |version: &str| {
        object.resources.iter().filter_map(|resource| resource.held_back.as_ref()).any(|held| held.version == version)
    };
    for refusal in object.answers.iter().flat_map(|answers| &answers.refusals).filter(|each| !held(&each.version)) {
        let (by, resource) = (refusal.proxy.as_ref().map(pod_name), type_name(refusal.r#type()));
        let (object, by) = (object_name(object.object.as_ref()), by.unwrap_or_default());
        let (name, ago, message) = (&refusal.name, ago(now, refusal.at), &refusal.message);
        let _ = writeln!(text, "\nREFUSED {object}: {resource} {name}, by {by} {ago} ago:\n  {message}");
    }
}

/// What is held back, why, and what follows.
pub(super) fn write_held_back(text: &mut String, held: &HeldBack, now: SystemTime) {
    let by = held.proxy.as_ref().map(pod_name).unwrap_or_default();
    let (object, resource) = (object_name(held.object.as_ref()), type_name(held.r#type()));
    let (name, ago, message) = (&held.name, ago(now, held.at), &held.message);
    let _ = writeln!(
        text,
        "\nHELD BACK {object}: {resource} {name}, refused by {by} {ago} ago; it is tried again when the object changes:\n  {message}"
    );
}

/// `Service shop/cart`; `the mesh` for what belongs to it as a whole.
pub(super) fn object_name(object: Option<&ObjectName>) -> String {
    match object {
        None => "the mesh".to_owned(),
        Some(ObjectName { kind, .. }) if kind.is_empty() => "the mesh".to_owned(),
        Some(ObjectName { kind, namespace, name }) if namespace.is_empty() => format!("{kind} {name}"),
        Some(ObjectName { kind, namespace, name }) => format!("{kind} {namespace}/{name}"),
    }
}

fn pod_name(pod: &PodName) -> String {
    format!("{}/{}", pod.namespace, pod.pod)
}

fn type_name(kind: ResourceType) -> &'static str {
    match kind {
        ResourceType::Cluster => "cluster",
        ResourceType::Endpoints => "endpoints",
        ResourceType::Listener => "listener",
        ResourceType::Route => "route",
        ResourceType::Secret => "secret",
        ResourceType::Unspecified => "other",
    }
}

fn moment(at: Option<Timestamp>) -> Option<SystemTime> {
    at.and_then(|at| at.try_into().ok())
}

fn ago(now: SystemTime, at: Option<Timestamp>) -> String {
    moment(at).map(|at| age(now.duration_since(at).unwrap_or_default())).unwrap_or_default()
}

/// `4ms`, `1.2s`; nothing for what concerned nobody.
fn took(took: Duration) -> String {
    match took.as_millis() {
        _ if took.is_zero() => String::new(),
        millis @ 0..1_000 => format!("{millis}ms"),
        _ => format!("{:.1}s", took.as_secs_f64()),
    }
}

#[cfg(test)]
mod tests;
