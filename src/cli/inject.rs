//! `weft inject`: adds sidecars to YAML, as the webhook does at admission.

use std::io::{Read, Write};
use std::path::{Path, PathBuf};
use std::process::ExitCode;

use anyhow::Context as _;

use crate::inject::documents::inject_all;
use crate::inject::options::SidecarForm;
use crate::inject::{Options, options};

/// Add the sidecar to the pods and pod templates of a YAML file, as the webhook does.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  weft inject -f deployment.yaml | kubectl apply -f -
  kubectl get deployment cart -o yaml | weft inject -f - --classic
  weft inject -f shop.yaml --options inject.yaml

Documents without pods are printed as they are. A pod with the label weft.dev/inject: \"false\" gets no sidecar, and one
that has it already does not change. Warnings go to standard error.
Exit code: 0, or 1 when a pod cannot be injected; then nothing is printed.")]
pub struct Args {
    /// The file, or - for standard input
    #[arg(short, long, value_name = "FILE")]
    file: PathBuf,
    /// The options of injection: the chart's ConfigMap weft-inject has them
    #[arg(long, value_name = "FILE")]
    options: Option<PathBuf>,
    /// Write sidecars as ordinary containers, for Kubernetes before 1.29
    #[arg(long)]
    classic: bool,
}

/// Runs the command.
///
/// # Errors
/// When a file cannot be read, or a pod cannot be injected.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let mut options = read_options(args.options.as_deref())?;
    if args.classic {
        options.sidecar = SidecarForm::Classic;
    }
    let mut text = String::new();
    match args.file.as_os_str() == "-" {
        true => std::io::stdin().read_to_string(&mut text).context("cannot read standard input")?,
        false => {
            text =
                std::fs::read_to_string(&args.file).with_context(|| format!("cannot read {}", args.file.display()))?;
            0
        }
    };
    let injected = inject_all(&text, &options)?;
    let mut errors = std::io::stderr().lock();
    injected.warnings.iter().try_for_each(|warning| writeln!(errors, "warning: {warning}"))?;
    std::io::stdout().lock().write_all(injected.text.as_bytes())?;
    Ok(ExitCode::SUCCESS)
}

/// The options of a file; the defaults without one.
pub(super) fn read_options(path: Option<&Path>) -> anyhow::Result<options::Options> {
    let Some(path) = path else { return Ok(Options::default()) };
    let text = std::fs::read_to_string(path).with_context(|| format!("cannot read {}", path.display()))?;
    Options::from_yaml(&text).with_context(|| path.display().to_string())
}
