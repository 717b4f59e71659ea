//! What a command tells while it works: a line a step; and all of it at the end, for programs.

use std::io::{self, Write};
use std::process::ExitCode;

use serde::Serialize;

use super::release::Release;
use crate::cli::check::{self, Finding, Outcome};
use crate::cli::output::{self, Format};

/// What was told.
pub(in crate::cli) struct Told {
    format: Format,
    /// Standard output is for something else.
    aside: bool,
    steps: Vec<Step>,
}

#[derive(Serialize)]
struct Step {
    step: &'static str,
    said: String,
}

/// What a program is told.
#[derive(Serialize)]
struct Report<'a> {
    /// As it is in the end; none when nothing was installed.
    release: Option<Release>,
    steps: &'a [Step],
    findings: &'a [Finding],
}

impl Told {
    /// Nothing yet. `dry_run` prints objects to standard output.
    pub(in crate::cli) fn new(format: Format, dry_run: bool) -> Self {
        Self { format, aside: dry_run || format != Format::Table, steps: Vec::new() }
    }

    /// Tells of a step.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(in crate::cli) fn say(&mut self, step: &'static str, said: impl Into<String>) -> io::Result<()> {
        let said = said.into();
        self.print(&format!("{step}: {said}\n"))?;
        self.steps.push(Step { step, said });
        Ok(())
    }

    /// Tells what is not as it should be, yet stands in nothing's way.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn warn(&mut self, findings: &[Finding]) -> io::Result<()> {
        for finding in findings.iter().filter(|finding| finding.outcome == Outcome::Warning) {
            self.say("warning", format!("{}: {}; {}", finding.check, finding.found, finding.todo))?;
        }
        Ok(())
    }

    /// Ends with what was found.
    ///
    /// # Errors
    /// When it cannot be written.
    pub(super) fn end(&self, release: Option<Release>, findings: &[Finding]) -> anyhow::Result<ExitCode> {
        match self.format {
            Format::Table => self.print(&format!("\n{}", check::table(findings)))?,
            format => {
                let report = Report { release, steps: &self.steps, findings };
                output::print(&output::render(format, &report, |_| String::new())?)?;
            }
        }
        Ok(check::exit_code(findings))
    }

    fn print(&self, text: &str) -> io::Result<()> {
        match self.aside {
            true => io::stderr().lock().write_all(text.as_bytes()),
            false => output::print(text),
        }
    }
}
