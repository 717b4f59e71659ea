//! The chart's values: those that were set before, then the files, then `--set`; each counts over those before it.

use std::ffi::OsString;
use std::io::{Read as _, Write as _};
use std::path::Path;

use anyhow::Context as _;
use serde_json::Value;

use super::helm::{self, Helm};
use super::release::Release;

/// What is given on the command line.
#[derive(clap::Args, Clone, Debug)]
pub(super) struct Given {
    /// Set a value of the chart, as Helm's --set does
    #[arg(long = "set", value_name = "KEY=VALUE")]
    set: Vec<String>,
    /// Values of the chart: a YAML file, - for standard input, or a URL
    #[arg(short = 'f', long = "values", value_name = "FILE")]
    files: Vec<String>,
    /// Forget the values that were set before
    #[arg(long)]
    reset_values: bool,
}

/// The values of an installation.
pub(super) struct Values {
    /// As Helm's arguments.
    pub(super) arguments: Vec<OsString>,
    /// The names of those that were set before and are kept.
    pub(super) kept: Vec<String>,
}

impl Values {
    /// Those that are given, and those of the release. Each file is read once, into `directory`, since Helm is asked more
    /// than once, and a pipe tells what it holds only once.
    ///
    /// # Errors
    /// When a file cannot be read, or Helm cannot tell what was set before.
    pub(super) async fn gather(
        given: &Given,
        helm: &Helm,
        release: Option<&Release>,
        directory: &Path,
    ) -> anyhow::Result<Self> {
        let mut values = Self { arguments: Vec::new(), kept: Vec::new() };
        if let Some(Release { name, namespace, .. }) = release.filter(|_| !given.reset_values) {
            let what = format!("cannot ask Helm for the values of the release {name}");
            let said = helm.ask(&what, ["get", "values", name, "--namespace", namespace, "--output", "json"]).await?;
            let before: Value = serde_json::from_str(&said).with_context(|| what)?;
            values.kept = names(&before);
            values.add(directory, "kept", &said)?;
        }
        for (at, file) in given.files.iter().enumerate() {
            match file.as_str() {
                url if url.contains("://") => values.arguments.extend(["--values".into(), url.into()]),
                file => {
                    let text = read(file)?;
                    values.add(directory, &format!("given-{at}"), &text)?;
                }
            }
        }
        values.arguments.extend(given.set.iter().flat_map(|set| ["--set".into(), set.into()]));
        Ok(values)
    }

    fn add(&mut self, directory: &Path, name: &str, text: &str) -> anyhow::Result<()> {
        let path = directory.join(format!("{name}.yaml"));
        let written = std::fs::File::create_new(&path).and_then(|mut file| file.write_all(text.as_bytes()));
        written.with_context(|| format!("cannot write {}", path.display()))?;
        self.arguments.extend(["--values".into(), helm::path(&path)]);
        Ok(())
    }
}

fn read(file: &str) -> anyhow::Result<String> {
    if file == "-" {
        let mut text = String::new();
        std::io::stdin().read_to_string(&mut text).context("cannot read values from standard input")?;
        return Ok(text);
    }
    std::fs::read_to_string(file).with_context(|| format!("cannot read the values of {file}"))
}

/// The paths of all values: `controlPlane.replicas`.
fn names(values: &Value) -> Vec<String> {
    let Some(fields) = values.as_object() else { return Vec::new() };
    let of = |(name, value): (&String, &Value)| match names(value) {
        below if below.is_empty() => vec![name.clone()],
        below => below.into_iter().map(|below| format!("{name}.{below}")).collect(),
    };
    fields.iter().flat_map(of).collect()
}

#[cfg(test)]
mod tests {
    use serde_json::json;

    use super::*;

    #[test]
    fn values_are_named_by_their_paths() {
        let values = json!({"controlPlane": {"replicas": 3, "tolerations": []}, "meshConfig": {"spec": {}}, "a": null});
        assert_eq!(names(&values), ["controlPlane.replicas", "controlPlane.tolerations", "meshConfig.spec", "a"]);
        assert_eq!(names(&Value::Null), Vec::<String>::new());
    }
}
