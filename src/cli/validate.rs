//! `weft validate`: says what Weft would say about a directory of YAML, without running anything.

use std::io::Write;
use std::path::PathBuf;
use std::process::ExitCode;

use serde::Serialize;

use crate::mesh::Diagnostic;
use crate::mesh::diagnostic::Severity;
use crate::source::{Event, directory};

/// Check a directory or a file of Kubernetes YAML as Weft reads it.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  weft validate examples/shop
  weft validate mesh.yaml -o json

Exit code: 0 when everything can be used (there may be warnings), 1 when something cannot.")]
pub struct Args {
    /// A directory (read with those below it) or a file
    pub path: PathBuf,
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
    let (mut objects, mut diagnostics) = (0, Vec::new());
    for event in directory::read_once(&args.path)? {
        match event {
            Event::Apply { warnings, .. } => {
                objects += 1;
                diagnostics.extend(warnings);
            }
            Event::Rejected(diagnostic) => diagnostics.push(diagnostic),
            Event::Delete(_) | Event::Trouble { .. } | Event::Synced => {}
        }
    }
    diagnostics.sort_by_key(|diagnostic| diagnostic.location.as_ref().map(|at| (at.file.clone(), at.line)));
    let errors = diagnostics.iter().filter(|diagnostic| diagnostic.severity == Severity::Error).count();
    let mut out = std::io::stdout().lock();
    match args.output {
        Output::Text => {
            diagnostics.iter().try_for_each(|diagnostic| writeln!(out, "{}", line(diagnostic)))?;
            let warnings = diagnostics.len() - errors;
            writeln!(out, "{objects} objects, {errors} errors, {warnings} warnings")?;
        }
        Output::Json => {
            let report = Report { objects, diagnostics: diagnostics.into_iter().map(entry).collect() };
            writeln!(out, "{}", serde_json::to_string_pretty(&report)?)?;
        }
    }
    Ok(if errors == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
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
