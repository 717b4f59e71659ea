//! What was expected and what was seen, as a table and as JSON.

use std::fmt;
use std::fs;
use std::path::Path;

use anyhow::Context;
use serde::Serialize;
use weft::cli::output::Table;

/// One check.
#[derive(Clone, Debug, Serialize)]
pub struct Row {
    /// What was checked.
    pub check: String,
    /// What has to be seen.
    pub expected: String,
    /// What was seen.
    pub observed: String,
    /// Whether it holds.
    pub ok: bool,
}

/// The checks of a run.
#[derive(Clone, Debug, Default)]
pub struct Report(pub Vec<Row>);

impl Report {
    /// Whether all of them hold; a run without checks shows nothing.
    pub fn holds(&self) -> bool {
        !self.0.is_empty() && self.0.iter().all(|row| row.ok)
    }

    /// Writes the rows as a JSON array.
    ///
    /// # Errors
    /// When the file cannot be written.
    pub fn write(&self, path: &Path) -> anyhow::Result<()> {
        let folder = path.parent().context("a file in a folder")?;
        fs::create_dir_all(folder).with_context(|| folder.display().to_string())?;
        fs::write(path, serde_json::to_string_pretty(&self.0)? + "\n").with_context(|| path.display().to_string())
    }
}

impl fmt::Display for Report {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        let mut table = Table::new(["CHECK", "EXPECTED", "OBSERVED", "OK"]);
        for row in &self.0 {
            let ok = if row.ok { "yes" } else { "NO" };
            table.row([row.check.clone(), row.expected.clone(), row.observed.clone(), ok.to_owned()]);
        }
        write!(f, "{table}")
    }
}
