//! A Prometheus in the playground, as examples/observability sets it up.

use std::collections::BTreeMap;
use std::fmt::Write as _;
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail, ensure};
use serde_json::Value;

use crate::mesh::{Mesh, repository};
use crate::until;

const POD: &str = "monitoring/prometheus";

/// How long it may take until what has happened can be asked for: a few scrapes, and the 5 s after which an Envoy shows
/// its histograms.
pub const PATIENCE: Duration = Duration::from_secs(60);

/// The shipped configuration, which scrapes more often here.
#[derive(Debug)]
pub struct Prometheus<'a> {
    mesh: &'a Mesh,
}

/// One series of an answer: its labels and its value.
pub type Point = (BTreeMap<String, String>, f64);

impl<'a> Prometheus<'a> {
    /// Adds Prometheus to a mesh, and waits until it has heard of every sidecar.
    ///
    /// # Errors
    /// When it is not installed, or does not come to that.
    pub fn start(mesh: &'a Mesh) -> anyhow::Result<Self> {
        let found = Command::new("prometheus").arg("--version").output().is_ok_and(|output| output.status.success());
        ensure!(
            found,
            "there is no `prometheus` on the PATH: run `make setup-all` (Debian: apt-get install prometheus)"
        );
        let shipped = |file: &str| {
            let path = repository().join("examples/observability").join(file);
            std::fs::read_to_string(&path).with_context(|| path.display().to_string())
        };
        let configuration = shipped("prometheus.conf")?;
        ensure!(configuration.contains("scrape_interval: 5s"), "the interval that is replaced");
        let configuration = configuration.replace("scrape_interval: 5s", "scrape_interval: 1s");
        mesh.put("prometheus.conf", &configuration.replace("refresh_interval: 5s", "refresh_interval: 1s"))?;
        mesh.put("prometheus.yaml", &shipped("prometheus.yaml")?)?;
        mesh.wait_for_pods("monitoring", "prometheus", 1)?;
        let this = Self { mesh };
        let meshed = mesh.client().status()?.pods.iter().filter(|pod| pod.meshed).count();
        until("a scrape of every sidecar", PATIENCE, || {
            let up = this.value("sum(up{job=\"weft-sidecars\"})")?.unwrap_or(0.0);
            #[allow(clippy::cast_precision_loss, reason = "a few pods")]
            Ok(if up == meshed as f64 { Ok(()) } else { Err(format!("{up} of {meshed}")) })
        })?;
        Ok(this)
    }

    /// What an expression comes to now.
    ///
    /// # Errors
    /// When Prometheus does not answer, or does not understand it.
    pub fn query(&self, expression: &str) -> anyhow::Result<Vec<Point>> {
        let answer = self.get(&format!("/api/v1/query?query={}", encode(expression)), expression)?;
        let series = match answer["resultType"].as_str() {
            Some("vector") => answer["result"].as_array().context("series")?.clone(),
            other => bail!("{expression}: {other:?} is no vector"),
        };
        let point = |series: &Value| {
            let labels = serde_json::from_value(series["metric"].clone())?;
            let value = series["value"][1].as_str().context("a value")?.parse()?;
            Ok((labels, value))
        };
        series.iter().map(point).collect()
    }

    /// The one value of an expression; `None` if there is none.
    ///
    /// # Errors
    /// As [`Prometheus::query`], and when there are several.
    pub fn value(&self, expression: &str) -> anyhow::Result<Option<f64>> {
        let points = self.query(expression)?;
        ensure!(points.len() <= 1, "{expression}: {} series", points.len());
        Ok(points.first().map(|(_, value)| *value))
    }

    /// The values of a label among the series that a selector fits.
    ///
    /// # Errors
    /// When Prometheus does not answer.
    pub fn label_values(&self, selector: &str, label: &str) -> anyhow::Result<Vec<String>> {
        let answer = self.get(&format!("/api/v1/label/{label}/values?match[]={}", encode(selector)), selector)?;
        Ok(serde_json::from_value(answer)?)
    }

    /// Waits until a value is as wanted; the last one, whether it came to that or not.
    ///
    /// # Errors
    /// When Prometheus does not answer.
    pub fn settled(&self, expression: &str, wanted: impl Fn(f64) -> bool) -> anyhow::Result<Option<f64>> {
        let mut last = None;
        // Too late is for the caller to see, by the value.
        let _ = until(expression, PATIENCE, || {
            last = self.value(expression)?;
            Ok(if last.is_some_and(&wanted) { Ok(()) } else { Err(format!("{last:?}")) })
        });
        Ok(last)
    }

    fn get(&self, path: &str, what: &str) -> anyhow::Result<Value> {
        let text = self.mesh.get(POD, 9090, path).with_context(|| what.to_owned())?;
        let mut answer: Value = serde_json::from_str(&text)?;
        ensure!(answer["status"] == "success", "{what}: {text}");
        Ok(answer["data"].take())
    }
}

/// Percent-encoding of everything that may need it.
fn encode(text: &str) -> String {
    text.bytes().fold(String::new(), |mut encoded, byte| {
        match byte {
            b'A'..=b'Z' | b'a'..=b'z' | b'0'..=b'9' | b'_' | b'-' | b'.' => encoded.push(byte.into()),
            // Writing to a String cannot fail.
            _ => drop(write!(encoded, "%{byte:02X}")),
        }
        encoded
    })
}
