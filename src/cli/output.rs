//! How commands print data: tables as kubectl's, or JSON or YAML for scripts.

use std::io::{self, Write};
use std::time::Duration;

use comfy_table::{ContentArrangement, presets};
use serde::Serialize;

/// The form of a command's output.
#[derive(Clone, Copy, PartialEq, Eq, Debug, Default, clap::ValueEnum)]
pub enum Format {
    /// Columns for reading; not a stable format.
    #[default]
    Table,
    /// JSON.
    Json,
    /// YAML.
    Yaml,
}

/// A table without borders, its columns as wide as their content.
#[derive(Debug)]
pub struct Table(comfy_table::Table);

impl Table {
    /// A table with these column headings.
    pub fn new<const N: usize>(headings: [&str; N]) -> Self {
        let mut table = comfy_table::Table::new();
        table.load_style(presets::NOTHING).set_content_arrangement(ContentArrangement::Disabled);
        table.set_header(headings);
        Self(table)
    }

    /// Adds a row; an empty cell is shown as `-`, so that columns can be told apart by `awk`.
    pub fn row<const N: usize>(&mut self, cells: [String; N]) {
        self.0.add_row(cells.map(|cell| if cell.is_empty() { "-".to_owned() } else { cell }));
    }
}

impl std::fmt::Display for Table {
    /// The lines, each ended by a line feed and without trailing blanks.
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        // Without borders every line begins with the padding of its first column.
        self.0.lines().try_for_each(|line| writeln!(f, "{}", line.strip_prefix(' ').unwrap_or(&line).trim_end()))
    }
}

/// Renders `value` in `format`; `table` renders it for reading.
pub fn render<T: Serialize>(format: Format, value: &T, table: impl FnOnce(&T) -> String) -> anyhow::Result<String> {
    Ok(match format {
        Format::Table => table(value),
        Format::Json => serde_json::to_string_pretty(value)? + "\n",
        Format::Yaml => serde_saphyr::to_string(value)?,
    })
}

/// Writes to standard output. A reader that has seen enough (`| head`) is no error.
pub fn print(text: &str) -> io::Result<()> {
    match io::stdout().lock().write_all(text.as_bytes()) {
        Err(error) if error.kind() == io::ErrorKind::BrokenPipe => Ok(()),
        result => result,
    }
}

/// A duration in its two largest units, as kubectl shows ages: `45s`, `5m12s`, `2h3m`, `4d2h`.
pub fn age(duration: Duration) -> String {
    let seconds = duration.as_secs();
    let two = |large: u64, large_unit: &str, small: u64, small_unit: &str| match small {
        0 => format!("{large}{large_unit}"),
        small => format!("{large}{large_unit}{small}{small_unit}"),
    };
    match seconds {
        0..60 => format!("{seconds}s"),
        60..3600 => two(seconds / 60, "m", seconds % 60, "s"),
        3600..86_400 => two(seconds / 3600, "h", seconds % 3600 / 60, "m"),
        _ => two(seconds / 86_400, "d", seconds % 86_400 / 3600, "h"),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn ages_have_two_units() {
        for (seconds, expected) in [
            (0, "0s"),
            (59, "59s"),
            (60, "1m"),
            (312, "5m12s"),
            (7380, "2h3m"),
            (86_399, "23h59m"),
            (356_400, "4d3h"),
            (315_360_000, "3650d"),
        ] {
            assert_eq!(age(Duration::from_secs(seconds)), expected);
        }
    }

    #[test]
    fn a_table_has_no_borders_and_no_trailing_blanks() {
        let mut table = Table::new(["NAME", "AGE"]);
        table.row(["a-long-name".to_owned(), "5s".to_owned()]);
        table.row(["b".to_owned(), String::new()]);
        assert_eq!(table.to_string(), "NAME         AGE\na-long-name  5s\nb            -\n");
    }
}
