//! `weft validate`: says what Weft would say about a directory of YAML, without running anything.

use std::fmt::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use super::output;
use crate::control_plane::rehearsal;
use crate::mesh::Diagnostic;
use crate::mesh::diagnostic::Severity;
use crate::source::Event;
use crate::source::directory::Reading;

/// Check a directory or a file of Kubernetes YAML as Weft reads it
///
/// Each document is read as by `weft serve`, and the mesh that they make together is planned as by `weft serve`: what
/// names something that is not there is told, with its place.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
error    the object is not used
warning  the object is used, except for what is said: it names a Service that does not exist, for one, which
         may be in another directory

Examples:
  weft validate examples/shop
  weft validate examples/shop --strict     in CI, for a directory that holds all of a mesh
  weft validate mesh.yaml -o json

Exit codes: 0 no error, and with --strict no warning; 1 there is one, or nothing could be read; 2 wrong usage.")]
pub struct Args {
    /// A directory (read with those below it) or a file
    pub path: PathBuf,
    /// Count a warning as an error in the exit code
    #[arg(long)]
    pub strict: bool,
    /// The form of what is printed
    #[arg(short, long, value_enum, default_value_t)]
    pub output: Output,
}

/// The form of what is printed.
#[derive(clap::ValueEnum, Clone, Copy, PartialEq, Eq, Debug, Default)]
pub enum Output {
    /// `FILE:LINE: error: OBJECT: FIELD: REASON; HELP`, one a line, and a summary
    #[default]
    Text,
    /// One JSON document: {"objects": N, "diagnostics": [{severity, file, line, object, field, reason, help}]}
    Json,
}

/// What was found.
#[derive(Serialize)]
struct Report {
    objects: usize,
    diagnostics: Vec<Entry>,
}

#[derive(Serialize)]
struct Entry {
    severity: &'static str,
    file: Option<String>,
    line: Option<u32>,
    object: Option<String>,
    field: String,
    reason: String,
    help: String,
}

/// Runs the command.
///
/// # Errors
/// When the path cannot be read at all, or the output cannot be written.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let (text, code) = execute(&args)?;
    output::print(&text)?;
    Ok(code)
}

/// What the command prints, and its exit code.
fn execute(args: &Args) -> anyhow::Result<(String, ExitCode)> {
    let reading = Reading::of(&args.path)?;
    let planned = rehearsal::diagnostics(&reading.events).into_iter().map(|found| {
        let place = found.object.as_ref().and_then(|object| reading.place(object, &found.field));
        Diagnostic { location: place, ..found }
    });
    let mut diagnostics: Vec<Diagnostic> = planned.collect();
    let mut objects = 0;
    for event in &reading.events {
        match event {
            Event::Apply { warnings, .. } => {
                objects += 1;
                diagnostics.extend(warnings.iter().cloned());
            }
            Event::Rejected(diagnostic) => diagnostics.push(diagnostic.clone()),
            Event::Delete(_) | Event::Trouble { .. } | Event::Synced => {}
        }
    }
    diagnostics.sort_by_key(|diagnostic| diagnostic.location.as_ref().map(|at| (at.file.clone(), at.line)));
    let errors = diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Error).count();
    let warnings = diagnostics.len() - errors;
    let text = match args.output {
        Output::Text => {
            let mut text: String = diagnostics.iter().map(|diagnostic| line(diagnostic) + "\n").collect();
            let counted = [(objects, "object"), (errors, "error"), (warnings, "warning")].map(count).join(", ");
            // Writing to a String cannot fail.
            let _ = writeln!(text, "{counted}");
            text
        }
        Output::Json => {
            let report = Report { objects, diagnostics: diagnostics.into_iter().map(entry).collect() };
            serde_json::to_string_pretty(&report)? + "\n"
        }
    };
    let passes = errors == 0 && (warnings == 0 || !args.strict);
    Ok((text, if passes { ExitCode::SUCCESS } else { ExitCode::FAILURE }))
}

fn count((number, what): (usize, &str)) -> String {
    format!("{number} {what}{}", if number == 1 { "" } else { "s" })
}

fn severity(diagnostic: &Diagnostic) -> &'static str {
    match diagnostic.severity {
        Severity::Error => "error",
        Severity::Warning => "warning",
    }
}

/// The form that editors and CI systems recognise in compilers' output.
fn line(diagnostic: &Diagnostic) -> String {
    let place = diagnostic.location.as_ref().map(|location| format!("{location}: ")).unwrap_or_default();
    let rest = Diagnostic { location: None, ..diagnostic.clone() };
    format!("{place}{}: {rest}", severity(diagnostic))
}

fn entry(diagnostic: Diagnostic) -> Entry {
    Entry {
        severity: severity(&diagnostic),
        file: diagnostic.location.as_ref().map(|location| location.file.display().to_string()),
        line: diagnostic.location.as_ref().map(|location| location.line),
        object: diagnostic.object.map(|object| object.to_string()),
        field: diagnostic.field,
        reason: diagnostic.reason,
        help: diagnostic.help,
    }
}

#[cfg(test)]
mod tests {
    use std::fs;

    use super::*;

    const NAMESPACE: &str = "apiVersion: v1\nkind: Namespace\nmetadata: {name: shop}\n";
    const DANGLING: &str = "---\napiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\n\
                            metadata: {name: s, namespace: shop}\nspec:\n  service: cart\n  backends: [{service: a, weight: 1}]\n";

    /// The text and the exit code for a directory with this file.
    fn validated(yaml: &str, strict: bool, output: Output) -> (String, ExitCode) {
        let directory = tempfile::tempdir().unwrap();
        fs::write(directory.path().join("mesh.yaml"), yaml).unwrap();
        let args = Args { path: directory.path().to_owned(), strict, output };
        let (text, code) = execute(&args).unwrap();
        (text.replace(&format!("{}/", directory.path().display()), ""), code)
    }

    #[test]
    fn a_warning_fails_only_where_that_is_asked_for_and_an_error_does_always() {
        let warned = NAMESPACE.to_owned() + DANGLING;
        let refused = NAMESPACE.to_owned()
            + "---\napiVersion: weft.dev/v1alpha1\nkind: MeshConfig\n\
                      metadata: {name: default}\nspec:\n  authorisation: {mode: Enforce}\n";
        for (yaml, strict, passes) in [
            (NAMESPACE, false, true),
            (NAMESPACE, true, true),
            (&warned, false, true),
            (&warned, true, false),
            (&refused, false, false),
            (&refused, true, false),
        ] {
            let (text, code) = validated(yaml, strict, Output::Text);
            let expected = if passes { ExitCode::SUCCESS } else { ExitCode::FAILURE };
            assert_eq!(code, expected, "{strict} {text}");
        }
    }

    #[test]
    fn a_finding_has_file_and_line_of_its_field() {
        let (text, _) = validated(&(NAMESPACE.to_owned() + DANGLING), false, Output::Text);
        assert_eq!(
            text,
            "mesh.yaml:9: warning: TrafficSplit shop/s: spec.service: Service shop/cart does not exist, so there are no \
             calls to split; create it, or correct the name\n2 objects, 0 errors, 1 warning\n"
        );
        let (text, _) = validated(&(NAMESPACE.to_owned() + DANGLING), false, Output::Json);
        let json: serde_json::Value = serde_json::from_str(&text).unwrap();
        let found = &json["diagnostics"][0];
        assert_eq!((&found["file"], &found["line"]), (&"mesh.yaml".into(), &9.into()), "{json}");
        assert_eq!((&found["object"], &found["field"]), (&"TrafficSplit shop/s".into(), &"spec.service".into()));
    }

    #[test]
    fn the_examples_pass_strictly() {
        for directory in ["examples/shop", "examples/observability"] {
            let args = Args { path: directory.into(), strict: true, output: Output::Text };
            let (text, code) = execute(&args).unwrap();
            assert_eq!(code, ExitCode::SUCCESS, "{directory}: {text}");
        }
    }
}
