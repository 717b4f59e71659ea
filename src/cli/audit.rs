//! `weft audit`: what enforcement would deny, and the TrafficTargets that would allow it.

use std::collections::{BTreeMap, BTreeSet};
use std::fmt::Write;
use std::process::ExitCode;
use std::time::{Duration, SystemTime};

use anyhow::Context;
use tonic::transport::Channel;

use super::output::{self, Format, Table, age};
use super::proxy::reach::{self, Reach};
use super::together;
use super::way::Way;
use crate::inspect::proto::inspection_client::InspectionClient;
use crate::inspect::proto::{Denial, ListDenialsRequest, ListDenialsResponse};
use crate::mesh::{ServiceAccountKey, SpiffeId};

/// Show the calls that authorisation would deny where it is audited.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Authorisation is audited where MeshConfig says spec.authorization.mode: Audit, or a Namespace has the annotation
weft.dev/authorization: Audit. Nothing is denied there; what `Enforce` would deny is counted since the control plane
started. CALLER and CALLEE are ServiceAccount and workload; PORT is the pod's. A caller `in clear` has no sidecar.

Examples:
  weft audit                            everything that would be denied
  weft audit -n shop --since 10m        calls to workloads of one namespace, of the last ten minutes
  weft audit -n shop -o smi > t.yaml    TrafficTargets that would allow them, to be read before they are applied
  weft audit -o json                    for a program

Exit codes: 0 nothing would be denied, 1 something would be, or an error; 2 wrong usage.")]
pub struct Args {
    /// Only callees of this namespace.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Only calls that were made within this time.
    #[arg(long, value_name = "DURATION")]
    since: Option<crate::duration::HumanDuration>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    output: AuditFormat,
    #[command(flatten)]
    way: Way,
}

/// The form of the output.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
enum AuditFormat {
    /// Columns for reading; not a stable format.
    #[default]
    Table,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
    /// TrafficTargets that would allow it, with their routes.
    Smi,
}

/// Runs the command. `playground` opens the way to the playground of a name, if the options do not tell another way.
pub fn run(args: Args, playground: impl FnOnce(&str) -> anyhow::Result<Box<dyn Reach>>) -> anyhow::Result<ExitCode> {
    let reach = args.way.open(playground)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let denials = runtime.block_on(fetch(reach.as_ref(), args.namespace.clone().unwrap_or_default()))?;
    let now = SystemTime::now();
    let denials = since(denials, args.since.map(|since| since.0), now);
    output::print(&render(&denials, args.output, now)?)?;
    let nothing = denials.denials.is_empty() && denials.uncounted == 0;
    Ok(if nothing { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

async fn fetch(reach: &dyn Reach, namespace: String) -> anyhow::Result<ListDenialsResponse> {
    let ask = async |mut client: InspectionClient<Channel>| {
        let answer = client.list_denials(ListDenialsRequest { namespace: namespace.clone() }).await;
        Ok(answer.context("the control plane did not tell what would be denied")?.into_inner())
    };
    reach::ask_all(reach, ask, together::denials).await
}

fn since(mut denials: ListDenialsResponse, within: Option<Duration>, now: SystemTime) -> ListDenialsResponse {
    denials.denials.retain(|denial| within.is_none_or(|within| ago(denial, now).is_some_and(|ago| ago <= within)));
    denials
}

/// How long ago the last of the calls was reported.
fn ago(denial: &Denial, now: SystemTime) -> Option<Duration> {
    let last = SystemTime::try_from(denial.last_at?).ok()?;
    Some(now.duration_since(last).unwrap_or_default())
}

fn render(denials: &ListDenialsResponse, format: AuditFormat, now: SystemTime) -> anyhow::Result<String> {
    Ok(match format {
        AuditFormat::Table => table(denials, now),
        AuditFormat::Json => output::render(Format::Json, denials, |_| String::new())?,
        AuditFormat::Yaml => output::render(Format::Yaml, denials, |_| String::new())?,
        AuditFormat::Smi => targets(&denials.denials),
    })
}

fn table(denials: &ListDenialsResponse, now: SystemTime) -> String {
    if denials.denials.is_empty() {
        return "Nothing would be denied, of what was called where authorisation is audited.\n".to_owned();
    }
    let mut table = Table::new(["CALLER", "CALLEE", "PORT", "WOULD BE DENIED", "LAST"]);
    for denial in &denials.denials {
        let what = match (denial.http, denial.calls) {
            (true, 1) => format!("1 request: {}", denial.methods.join(", ")),
            (true, calls) => format!("{calls} requests: {}", denial.methods.join(", ")),
            (false, 1) => "1 connection".to_owned(),
            (false, calls) => format!("{calls} connections"),
        };
        let callee = format!("{}/{}", denial.namespace, denial.workload);
        let last = ago(denial, now).map(|ago| format!("{} ago", age(ago))).unwrap_or_default();
        table.row([caller(denial), callee, denial.port.to_string(), what, last]);
    }
    let mut text = table.to_string();
    if denials.uncounted > 0 {
        let _ = writeln!(text, "\nand {} calls between further workloads", denials.uncounted);
    }
    text
}

fn identity(denial: &Denial) -> Option<SpiffeId> {
    denial.caller.parse().ok()
}

fn caller(denial: &Denial) -> String {
    match identity(denial) {
        Some(id) => format!("{}/{}", id.account.namespace, id.account.name),
        None => "in clear".to_owned(),
    }
}

/// What one account is called for by another.
#[derive(Default)]
struct Wanted<'a> {
    methods: BTreeSet<&'a str>,
    http_ports: BTreeSet<u32>,
    tcp_ports: BTreeSet<u32>,
}

/// A TrafficTarget for each pair of ServiceAccounts and kind of call: requests by methods and ports, raw TCP by ports.
fn targets(denials: &[Denial]) -> String {
    let mut wanted: BTreeMap<(&str, &str, SpiffeId), Wanted<'_>> = BTreeMap::new();
    let mut in_clear = BTreeSet::new();
    for denial in denials {
        let Some(caller) = identity(denial) else {
            in_clear.insert(format!("{}/{} port {}", denial.namespace, denial.workload, denial.port));
            continue;
        };
        let wanted = wanted.entry((&denial.namespace, &denial.account, caller)).or_default();
        wanted.methods.extend(denial.methods.iter().map(String::as_str));
        let ports = if denial.http { &mut wanted.http_ports } else { &mut wanted.tcp_ports };
        ports.insert(denial.port);
    }
    let mut text = String::new();
    for callee in in_clear {
        let _ = writeln!(text, "# {callee} is called in clear: give the caller a sidecar; no target can allow it.");
    }
    for ((namespace, account, caller), Wanted { methods, http_ports, tcp_ports }) in wanted {
        let source = &caller.account;
        let name = format!("{account}-from-{}-{}", source.namespace, source.name);
        let ports = |ports: BTreeSet<u32>| {
            let ports = Vec::from_iter(ports.iter().map(u32::to_string)).join(", ");
            format!("matches: {{ports: [{ports}]}}")
        };
        if !http_ports.is_empty() {
            // A method that has no name in Envoy can only be allowed with all others.
            let any = methods.contains("OTHER");
            let methods = if any { "\"*\"".to_owned() } else { Vec::from_iter(methods).join(", ") };
            let matches = format!("matches:\n  - {{name: seen, methods: [{methods}]}}");
            text += &route("HTTPRouteGroup", namespace, &name, &matches);
            text += &route("TCPRoute", namespace, &name, &ports(http_ports));
            text += &target(&["HTTPRouteGroup", "TCPRoute"], namespace, account, &name, source);
        }
        if !tcp_ports.is_empty() {
            let name = format!("{name}-tcp");
            text += &route("TCPRoute", namespace, &name, &ports(tcp_ports));
            text += &target(&["TCPRoute"], namespace, account, &name, source);
        }
    }
    text
}

fn route(kind: &str, namespace: &str, name: &str, spec: &str) -> String {
    format!(
        "---\napiVersion: specs.smi-spec.io/v1alpha4\nkind: {kind}\n\
         metadata: {{name: {name:?}, namespace: {namespace}}}\nspec:\n  {spec}\n"
    )
}

fn target(kinds: &[&str], namespace: &str, account: &str, name: &str, source: &ServiceAccountKey) -> String {
    let rules: Vec<_> = kinds.iter().map(|kind| format!("{{kind: {kind}, name: {name:?}}}")).collect();
    format!(
        "---\napiVersion: access.smi-spec.io/v1alpha3\nkind: TrafficTarget\n\
         metadata: {{name: {name:?}, namespace: {namespace}}}\nspec:\n  \
         destination: {{kind: ServiceAccount, name: {account:?}, namespace: {namespace}}}\n  \
         sources: [{{kind: ServiceAccount, name: {:?}, namespace: {}}}]\n  \
         rules: [{}]\n",
        source.name,
        source.namespace,
        rules.join(", ")
    )
}

#[cfg(test)]
mod tests {
    use super::*;

    fn denial(caller: &str, port: u32, methods: &[&str], calls: u64) -> Denial {
        Denial {
            caller: caller.to_owned(),
            namespace: "shop".to_owned(),
            workload: "cart".to_owned(),
            account: "cart".to_owned(),
            port,
            http: !methods.is_empty(),
            methods: methods.iter().map(|method| (*method).to_owned()).collect(),
            calls,
            first_at: None,
            last_at: Some((SystemTime::UNIX_EPOCH + Duration::from_secs(100)).into()),
        }
    }

    fn denials() -> ListDenialsResponse {
        let web = "spiffe://cluster.local/ns/web/sa/front";
        let denials = vec![
            denial("", 8080, &["GET"], 1),
            denial(web, 8080, &["GET", "POST"], 12),
            denial(web, 7000, &[], 1),
            denial(web, 7001, &[], 3),
        ];
        ListDenialsResponse { denials, uncounted: 2 }
    }

    fn now() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(165)
    }

    #[test]
    fn it_reads_as_a_table() {
        assert_eq!(
            render(&denials(), AuditFormat::Table, now()).unwrap(),
            "CALLER     CALLEE     PORT  WOULD BE DENIED         LAST\n\
             in clear   shop/cart  8080  1 request: GET          1m5s ago\n\
             web/front  shop/cart  8080  12 requests: GET, POST  1m5s ago\n\
             web/front  shop/cart  7000  1 connection            1m5s ago\n\
             web/front  shop/cart  7001  3 connections           1m5s ago\n\
             \nand 2 calls between further workloads\n"
        );
        let nothing = render(&ListDenialsResponse::default(), AuditFormat::Table, now()).unwrap();
        assert!(nothing.starts_with("Nothing would be denied"), "{nothing}");
        assert_eq!(since(denials(), Some(Duration::from_secs(65)), now()).denials.len(), 4);
        assert_eq!(since(denials(), Some(Duration::from_secs(64)), now()).denials.len(), 0);
    }

    #[test]
    fn the_targets_are_read_as_they_are_written_and_allow_what_was_seen() {
        let text = render(&denials(), AuditFormat::Smi, now()).unwrap();
        assert!(text.starts_with("# shop/cart port 8080 is called in clear"), "{text}");
        let directory = tempfile::tempdir().unwrap();
        let file = directory.path().join("targets.yaml");
        std::fs::write(&file, &text).unwrap();
        let events = crate::source::directory::read_once(&file).unwrap();
        let objects: Vec<_> = events
            .into_iter()
            .filter_map(|event| match event {
                crate::source::Event::Apply { object, warnings, .. } => {
                    assert_eq!(warnings, [], "{text}");
                    object
                }
                crate::source::Event::Rejected(diagnostic) => panic!("{diagnostic}: {text}"),
                _ => None,
            })
            .collect();
        assert_eq!(objects.len(), 5, "{text}");
        assert!(text.contains("methods: [GET, POST]") && text.contains("ports: [7000, 7001]"), "{text}");
        let other = render(
            &ListDenialsResponse {
                denials: vec![denial("spiffe://a/ns/b/sa/c", 1, &["GET", "OTHER"], 1)],
                uncounted: 0,
            },
            AuditFormat::Smi,
            now(),
        );
        assert!(other.unwrap().contains("methods: [\"*\"]"));
    }
}
