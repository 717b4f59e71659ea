//! `weft diagnostics`: what the control plane has to say of the objects that it reads.

use std::process::ExitCode;

use anyhow::Context;
use tonic::transport::Channel;

use super::deliveries::object_name;
use super::output::{self, Format, Table};
use super::proxy::reach::{self, Reach};
use super::together;
use super::way::Way;
use crate::inspect::proto::inspection_client::InspectionClient;
use crate::inspect::proto::{Diagnostic, ListDiagnosticsRequest, ListDiagnosticsResponse, ObjectName, Severity};

/// Show what is wrong with the objects that the control plane reads.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
error    the object is not used; its last good version, if there is one, stays
warning  the object is used, except for what is said: it names what does not exist, for one
The same is in the control plane's log. `weft validate DIR` tells it before the objects are applied.

Examples:
  weft diagnostics                     of all objects
  weft diagnostics -n shop             of those of one namespace
  weft diagnostics -o json             for a program

Exit codes: 0 no error (there may be warnings), 1 an error; 2 wrong usage.")]
pub struct Args {
    /// Only objects of this namespace
    #[arg(short, long)]
    namespace: Option<String>,
    /// Output format
    #[arg(short, long, value_enum, default_value_t)]
    output: Format,
    #[command(flatten)]
    way: Way,
}

/// Runs the command. `playground` opens the way to the playground of a name, if the options do not tell another way.
pub fn run(args: Args, playground: impl FnOnce(&str) -> anyhow::Result<Box<dyn Reach>>) -> anyhow::Result<ExitCode> {
    let reach = args.way.open(playground)?;
    let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build()?;
    let found = runtime.block_on(fetch(reach.as_ref(), args.namespace.unwrap_or_default()))?;
    output::print(&output::render(args.output, &found, table)?)?;
    let is_error = |found: &Diagnostic| found.severity() == Severity::Error;
    Ok(if found.diagnostics.iter().any(is_error) { ExitCode::FAILURE } else { ExitCode::SUCCESS })
}

async fn fetch(reach: &dyn Reach, namespace: String) -> anyhow::Result<ListDiagnosticsResponse> {
    let ask = async |mut client: InspectionClient<Channel>| {
        let answer = client.list_diagnostics(ListDiagnosticsRequest { namespace: namespace.clone() }).await;
        Ok(answer.context("the control plane did not tell what is wrong")?.into_inner())
    };
    reach::ask_all(reach, ask, together::diagnostics).await
}

/// A row a finding, what is worst first.
fn table(found: &ListDiagnosticsResponse) -> String {
    if found.diagnostics.is_empty() {
        return "Nothing is wrong with the objects that the control plane reads.\n".to_owned();
    }
    let mut rows: Vec<&Diagnostic> = found.diagnostics.iter().collect();
    rows.sort_by_key(|found| std::cmp::Reverse(found.severity));
    let mut table = Table::new(["SEVERITY", "OBJECT", "FIELD", "WHAT, AND WHAT TO DO"]);
    for found in rows {
        let Diagnostic { kind, namespace, name, field, reason, help, .. } = found.clone();
        let object = match kind.is_empty() {
            true => String::new(),
            false => object_name(Some(&ObjectName { kind, namespace, name })),
        };
        table.row([severity(found).to_owned(), object, field, format!("{reason}; {help}")]);
    }
    table.to_string()
}

fn severity(found: &Diagnostic) -> &'static str {
    match found.severity() {
        Severity::Error => "error",
        Severity::Warning => "warning",
        Severity::Unspecified => "",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn found() -> ListDiagnosticsResponse {
        let one = |severity: Severity, kind: &str, namespace: &str, name: &str, field: &str| Diagnostic {
            severity: severity.into(),
            kind: kind.to_owned(),
            namespace: namespace.to_owned(),
            name: name.to_owned(),
            field: field.to_owned(),
            reason: "it is wrong".to_owned(),
            help: "mend it".to_owned(),
            ..Default::default()
        };
        ListDiagnosticsResponse {
            diagnostics: vec![
                one(Severity::Warning, "TrafficTarget", "shop", "t", "spec.rules[0].name"),
                one(Severity::Error, "MeshConfig", "", "default", "spec.mtsl"),
                one(Severity::Error, "", "", "", ""),
            ],
        }
    }

    #[test]
    fn a_row_a_finding_and_the_worst_first() {
        assert_eq!(
            table(&found()),
            "SEVERITY  OBJECT                FIELD               WHAT, AND WHAT TO DO\n\
             error     MeshConfig default    spec.mtsl           it is wrong; mend it\n\
             error     -                     -                   it is wrong; mend it\n\
             warning   TrafficTarget shop/t  spec.rules[0].name  it is wrong; mend it\n"
        );
        assert!(table(&ListDiagnosticsResponse::default()).starts_with("Nothing is wrong"));
    }

    #[test]
    fn the_json_says_how_bad_it_is_in_words() {
        let text = output::render(Format::Json, &found(), table).unwrap();
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let severities: Vec<_> = json["diagnostics"].as_array().unwrap().iter().map(|one| &one["severity"]).collect();
        assert_eq!(severities, ["warning", "error", "error"]);
        assert_eq!(json["diagnostics"][1]["field"], "spec.mtsl");
    }
}
