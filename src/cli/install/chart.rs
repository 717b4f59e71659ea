//! The Helm chart of this version, which is a part of the program.

use std::fs;
use std::io;
use std::path::Path;

use crate::source::crds;

/// Each file's path in the chart, and its text; the definitions are made.
const FILES: &[(&str, &str)] = include!(concat!(env!("OUT_DIR"), "/chart.rs"));

/// Writes the chart into a directory, which is made.
///
/// # Errors
/// When it cannot be written.
pub(super) fn write(directory: &Path) -> io::Result<()> {
    let definitions = crds::to_yaml();
    for (name, text) in FILES.iter().copied().chain([("crds/crds.yaml", definitions.as_str())]) {
        let path = directory.join(name);
        path.parent().map_or(Ok(()), fs::create_dir_all)?;
        fs::write(path, text)?;
    }
    Ok(())
}

#[cfg(test)]
mod tests {
    use std::collections::BTreeMap;
    use std::path::PathBuf;

    use super::*;

    /// Each file below a directory.
    fn files(root: &Path, below: &Path) -> BTreeMap<PathBuf, String> {
        let mut found = BTreeMap::new();
        for entry in fs::read_dir(below).unwrap() {
            let path = entry.unwrap().path();
            if path.is_dir() {
                found.extend(files(root, &path));
            } else {
                found.insert(path.strip_prefix(root).unwrap().to_owned(), fs::read_to_string(&path).unwrap());
            }
        }
        found
    }

    #[test]
    fn what_is_written_is_the_chart_of_the_repository() {
        let directory = tempfile::tempdir().unwrap();
        let there = directory.path().join("weft");
        write(&there).unwrap();
        let chart = Path::new(env!("CARGO_MANIFEST_DIR")).join("helm/weft");
        let (written, original) = (files(&there, &there), files(&chart, &chart));
        assert!(original.len() > 20, "{}", original.len());
        assert!(written == original, "{:?} and {:?}", written.keys(), original.keys());
    }
}
