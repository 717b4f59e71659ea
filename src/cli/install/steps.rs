//! What is asked of Helm, and what is waited for.

use std::ffi::OsString;
use std::path::Path;
use std::pin::pin;
use std::process::Stdio;
use std::time::Duration;

use anyhow::Context as _;
use tokio::time::{Instant, interval, sleep};

use super::helm::{self, Helm};
use super::values::Values;
use super::{Told, progress};
use crate::cli::check::{Finding, Outcome, facts, judge};
use crate::cli::logging;
use crate::kubernetes::Cluster;

/// How long the control plane may take, once it is ready, to make itself known to the API server and to the namespaces.
const SETTLING: Duration = Duration::from_secs(60);
/// What it does then.
const SETTLES: [&str; 5] = ["definitions", "webhooks", "certificates", "control-plane", "root"];
/// Between two looks.
const LOOK: Duration = Duration::from_secs(1);

/// An installation.
pub(super) struct Steps<'a> {
    pub(super) helm: &'a Helm,
    pub(super) cluster: &'a Cluster,
    pub(super) chart: &'a Path,
    pub(super) values: &'a Values,
    /// The release's name.
    pub(super) release: &'a str,
}

impl Steps<'_> {
    /// The chart's objects with the values, as YAML. Helm holds the values against their schema.
    ///
    /// # Errors
    /// When a value is wrong.
    pub(super) async fn rendered(&self, (major, minor): (u32, u32)) -> anyhow::Result<String> {
        let version = format!("{major}.{minor}.0");
        let mut arguments: Vec<OsString> = vec!["template".into(), self.release.into(), helm::path(self.chart)];
        arguments.extend(["--namespace".into(), self.cluster.namespace().into()]);
        arguments.extend(["--kube-version".into(), version.into()]);
        arguments.extend(self.values.arguments.iter().cloned());
        let what = "nothing was changed, as the chart cannot be made with these values";
        Ok(self.helm.ask(what, arguments).await?)
    }

    /// Installs the chart, or upgrades it, and waits until all its pods are ready.
    ///
    /// # Errors
    /// When Helm refuses, or they do not become ready in time.
    pub(super) async fn installed(&self, timeout: Duration, told: &mut Told) -> anyhow::Result<()> {
        let (client, namespace) = (self.cluster.client(), self.cluster.namespace());
        let mut arguments: Vec<OsString> = vec!["upgrade".into(), "--install".into(), self.release.into()];
        arguments.extend([helm::path(self.chart), "--namespace".into(), namespace.into()]);
        // What was set before is among the values.
        arguments.extend(["--create-namespace", "--reset-values"].map(OsString::from));
        // They are there; Helm 4 would apply them as well, and see a conflict in what the control plane has written.
        arguments.extend(["--skip-crds", "--wait", "--timeout"].map(OsString::from));
        arguments.push(format!("{}s", timeout.as_secs()).into());
        arguments.extend(self.values.arguments.iter().cloned());
        told.say("install", format!("helm upgrade --install {}, and waiting for its pods", self.release))?;
        let mut command = self.helm.command(arguments);
        let helm = command.stdout(Stdio::piped()).stderr(Stdio::piped()).spawn().context("cannot run Helm")?;
        let process = helm.id();
        let mut done = pin!(helm.wait_with_output());
        let mut stop = pin!(logging::stop_requested());
        let (mut looks, mut last, mut stopped) = (interval(LOOK), String::new(), false);
        let done = loop {
            tokio::select! {
                done = &mut done => break done.context("cannot run Helm")?,
                // Helm marks the release as failed and ends.
                () = &mut stop, if !stopped => { stopped = true; end(process); }
                _ = looks.tick() => last = self.ready(last, told).await?,
            }
        };
        self.ready(last, told).await?;
        anyhow::ensure!(!stopped, "stopped; the release is as far as Helm came: `weft install` goes on from there");
        match helm::printed("Helm could not install the chart", &done) {
            Ok(_) => Ok(()),
            Err(error) => {
                let reasons = progress::reasons(&client, namespace).await.unwrap_or_default();
                let reasons: String = reasons.iter().map(|reason| format!("\n  {reason}")).collect();
                Err(anyhow::Error::from(error).context(format!(
                    "the installation is not complete; mend what is said, and `weft install` again goes on{reasons}"
                )))
            }
        }
    }

    /// Tells how many pods are ready, unless that was told last.
    async fn ready(&self, last: String, told: &mut Told) -> anyhow::Result<String> {
        let now = progress::readiness(&self.cluster.client(), self.cluster.namespace()).await.unwrap_or_default();
        if now.is_empty() || now == last {
            return Ok(last);
        }
        told.say("ready", now.clone())?;
        Ok(now)
    }

    /// What `weft check` says, when the control plane has had the time to do what it does first.
    ///
    /// # Errors
    /// When the API server no longer answers.
    pub(super) async fn settled(&self) -> anyhow::Result<Vec<Finding>> {
        let end = Instant::now() + SETTLING;
        loop {
            let version = facts::server_version(self.cluster).await.context("the API server does not answer")?;
            let findings = judge::after(&facts::after(self.cluster, version).await);
            let failed = |finding: &Finding| finding.outcome == Outcome::Failed && SETTLES.contains(&finding.check);
            if !findings.iter().any(failed) || Instant::now() > end {
                return Ok(findings);
            }
            sleep(LOOK).await;
        }
    }
}

/// Asks a process to end.
fn end(process: Option<u32>) {
    let process = process.and_then(|id| rustix::process::Pid::from_raw(i32::try_from(id).ok()?));
    if let Some(process) = process {
        // It may just have ended.
        let _ = rustix::process::kill_process(process, rustix::process::Signal::TERM);
    }
}
