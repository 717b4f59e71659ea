//! `weft graph`: who calls whom, as the control plane has learned it or was told.

use std::fmt::Write;
use std::process::ExitCode;
use std::time::SystemTime;

use anyhow::Context;
use tonic::transport::Channel;

use super::output::{self, Format, Table, age};
use super::proxy::reach::{self, Reach};
use super::together;
use super::way::Way;
use crate::inspect::graph::Document;
use crate::inspect::proto::GetGraphRequest;
use crate::inspect::proto::inspection_client::InspectionClient;

/// Show which workload calls which Service.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Learned: a sidecar asked for the destination. Declared: a TrafficTarget or the annotation weft.dev/upstreams names it.
PODS counts the connected pods of the caller that have the destination.

Examples:
  weft graph                           all calls
  weft graph -n shop -o json           for a program
  weft graph -o dot | dot -Tsvg        as a picture")]
pub struct Args {
    /// Only callers of this namespace.
    #[arg(short, long)]
    namespace: Option<String>,
    /// Output format.
    #[arg(short, long, value_enum, default_value_t)]
    output: GraphFormat,
    #[command(flatten)]
    way: Way,
}

/// The form of the output.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
enum GraphFormat {
    /// Columns for reading; not a stable format.
    #[default]
    Table,
    /// JSON, as the control plane's /graph answers.
    Json,
    /// YAML.
    Yaml,
    /// Graphviz.
    Dot,
}

/// Runs the command. `playground` opens the way to the playground of a name, if the options do not tell another way.
pub fn run(args: Args, playground: impl FnOnce(&str) -> anyhow::Result<Box<dyn Reach>>) -> anyhow::Result<ExitCode> {
    let reach = args.way.open(playground)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let graph = runtime.block_on(fetch(reach.as_ref(), args.namespace.unwrap_or_default()))?;
    output::print(&render(&graph, args.output, SystemTime::now())?)?;
    Ok(ExitCode::SUCCESS)
}

async fn fetch(reach: &dyn Reach, namespace: String) -> anyhow::Result<Document> {
    let ask = async |mut client: InspectionClient<Channel>| {
        let answer = client.get_graph(GetGraphRequest { namespace: namespace.clone() }).await;
        Ok(answer.context("the control plane did not tell who calls whom")?.into_inner())
    };
    Ok(reach::ask_all(reach, ask, together::graph).await?.into())
}

fn render(graph: &Document, format: GraphFormat, now: SystemTime) -> anyhow::Result<String> {
    Ok(match format {
        GraphFormat::Table => table(graph, now),
        GraphFormat::Json => output::render(Format::Json, graph, |_| String::new())?,
        GraphFormat::Yaml => output::render(Format::Yaml, graph, |_| String::new())?,
        GraphFormat::Dot => dot(graph),
    })
}

fn table(graph: &Document, now: SystemTime) -> String {
    if graph.edges.is_empty() {
        return "No call is known.\n".to_owned();
    }
    let mut table = Table::new(["CALLER", "DESTINATION", "SINCE", "KNOWN", "PODS"]);
    for call in &graph.edges {
        let since = call.since_time.map(|since| age(now.duration_since(since).unwrap_or_default()));
        let since = since.unwrap_or_default();
        let origin = call.origin.to_uppercase();
        table.row([call.caller.clone(), call.destination.clone(), since, origin, call.pods.to_string()]);
    }
    table.to_string()
}

/// A dashed arrow for what was never seen to happen.
fn dot(graph: &Document) -> String {
    let mut text = "digraph mesh {\n  rankdir=LR;\n".to_owned();
    for call in &graph.edges {
        let style = if call.origin == "declared" { " [style=dashed]" } else { "" };
        let _ = writeln!(text, "  {:?} -> {:?}{style};", call.caller, call.destination);
    }
    text + "}\n"
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::inspect::graph::Call;

    fn graph() -> Document {
        let call = |caller: &str, destination: &str, origin, since: Option<u64>, pods| Call {
            caller: caller.to_owned(),
            destination: destination.to_owned(),
            origin,
            since: None,
            since_time: since.map(|seconds| SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)),
            pods,
        };
        let declared = call("bank/teller", "vault.bank:443", "declared", None, 0);
        Document { edges: vec![declared, call("shop/web", "cart.shop:80", "learned", Some(88), 2)] }
    }

    #[test]
    fn it_reads_as_a_table_and_as_a_picture() {
        let now = SystemTime::UNIX_EPOCH + Duration::from_secs(400);
        assert_eq!(
            render(&graph(), GraphFormat::Table, now).unwrap(),
            "CALLER       DESTINATION     SINCE  KNOWN     PODS\n\
             bank/teller  vault.bank:443  -      DECLARED  0\n\
             shop/web     cart.shop:80    5m12s  LEARNED   2\n"
        );
        assert_eq!(
            render(&graph(), GraphFormat::Dot, now).unwrap(),
            "digraph mesh {\n  rankdir=LR;\n  \"bank/teller\" -> \"vault.bank:443\" [style=dashed];\n  \
             \"shop/web\" -> \"cart.shop:80\";\n}\n"
        );
        assert_eq!(render(&Document { edges: Vec::new() }, GraphFormat::Table, now).unwrap(), "No call is known.\n");
    }
}
