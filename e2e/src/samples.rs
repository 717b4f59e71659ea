//! What a sidecar counts, in the text that Prometheus reads.

use std::collections::BTreeMap;

use anyhow::Context;

use crate::mesh::Mesh;

/// One series and its value.
#[derive(Clone, PartialEq, Debug)]
pub struct Sample {
    /// The metric.
    pub name: String,
    /// Its labels, without those that are empty: to Prometheus they are not there.
    pub labels: BTreeMap<String, String>,
    /// Its value.
    pub value: f64,
}

impl Sample {
    /// `NAME{LABEL="VALUE",…} NUMBER`; `None` for a comment.
    fn parse(line: &str) -> Option<Self> {
        let (series, value) = line.rsplit_once(' ')?;
        let (name, labels) = series.split_once('{').unwrap_or((series, "}"));
        let labels = labels.strip_suffix('}')?.split("\",").filter_map(|label| {
            let (name, value) = label.split_once("=\"")?;
            let value = value.trim_end_matches('"');
            (!value.is_empty()).then(|| (name.to_owned(), value.to_owned()))
        });
        Some(Self { name: name.to_owned(), labels: labels.collect(), value: value.parse().ok()? })
    }

    fn has(&self, wanted: &[(&str, &str)]) -> bool {
        wanted.iter().all(|(label, value)| self.labels.get(*label).map_or("", String::as_str) == *value)
    }

    /// The labels, as `name=value` with spaces between.
    pub fn labels(&self) -> String {
        self.labels.iter().map(|(name, value)| format!("{name}={value}")).collect::<Vec<_>>().join(" ")
    }
}

/// The golden metrics of one sidecar.
#[derive(Clone, Debug, Default)]
pub struct Samples(pub Vec<Sample>);

impl Samples {
    /// Reads them from the sidecar of a pod.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn of(mesh: &Mesh, pod: &str) -> anyhow::Result<Self> {
        let text = mesh.admin(pod, "/stats/prometheus?filter=%5Eweft")?;
        let lines = text.lines().filter(|line| !line.starts_with('#') && !line.is_empty());
        let samples = lines.map(|line| Sample::parse(line).with_context(|| format!("a sample: {line}")));
        Ok(Self(samples.collect::<anyhow::Result<_>>()?))
    }

    /// The series of `envoy_weft_METRIC` with these labels; an empty value stands for a label that is not there.
    pub fn with<'a>(&'a self, metric: &str, wanted: &'a [(&'a str, &'a str)]) -> impl Iterator<Item = &'a Sample> {
        let name = format!("envoy_weft_{metric}");
        self.0.iter().filter(move |sample| sample.name == name && sample.has(wanted))
    }

    /// The sum of [`Samples::with`].
    pub fn sum(&self, metric: &str, wanted: &[(&str, &str)]) -> f64 {
        // The sum of nothing would be -0.
        self.with(metric, wanted).fold(0.0, |sum, sample| sum + sample.value)
    }

    /// The sums of [`Samples::with`] by a label: `200: 5, 404: 3`.
    pub fn by(&self, label: &str, metric: &str, wanted: &[(&str, &str)]) -> String {
        let mut sums: BTreeMap<&str, f64> = BTreeMap::new();
        for sample in self.with(metric, wanted) {
            *sums.entry(sample.labels.get(label).map_or("", String::as_str)).or_default() += sample.value;
        }
        sums.iter().map(|(value, sum)| format!("{value}: {sum}")).collect::<Vec<_>>().join(", ")
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_line_is_read_as_prometheus_reads_it() {
        let line = r#"envoy_weft_requests_total{reporter="source",grpc_status="",code="200",p="spiffe://a/b"} 7"#;
        let sample = Sample::parse(line).expect("a sample");
        assert_eq!(sample.labels(), "code=200 p=spiffe://a/b reporter=source");
        let samples = Samples(vec![sample]);
        assert_eq!(samples.by("code", "requests_total", &[("reporter", "source"), ("grpc_status", "")]), "200: 7");
        assert_eq!(samples.sum("requests_total", &[("grpc_status", "0")]), 0.0);
    }
}
