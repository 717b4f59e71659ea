//! Counts in Prometheus are those of whoever made the calls, and Flagger's built-in checks are answered.

use std::collections::BTreeMap;

use weft_e2e::load::Summary;
use weft_e2e::prometheus::Prometheus;
use weft_e2e::until;

use crate::start;

const CLIENT: &str = "app/client";

/// What Flagger's observers ask (fluxcd/flagger 1.44, pkg/metrics/observers): the success rate in percent, and the 99th
/// percentile in milliseconds. Its templates' `{{ namespace }}`, `{{ target }}` and `{{ interval }}` are to be filled in.
const OBSERVERS: [(&str, &str, &str); 3] = [
    (
        "osm",
        r#"sum(rate(osm_request_total{destination_namespace="{{ namespace }}", destination_kind="Deployment", destination_name="{{ target }}", response_code!~"5.*"}[{{ interval }}])) / sum(rate(osm_request_total{destination_namespace="{{ namespace }}", destination_kind="Deployment", destination_name="{{ target }}"}[{{ interval }}])) * 100"#,
        r#"histogram_quantile(0.99, sum(rate(osm_request_duration_ms_bucket{destination_namespace="{{ namespace }}", destination_kind="Deployment", destination_name="{{ target }}"}[{{ interval }}])) by (le))"#,
    ),
    (
        "istio",
        r#"sum(rate(istio_requests_total{reporter="destination", destination_workload_namespace="{{ namespace }}", destination_workload=~"{{ target }}", response_code!~"5.*"}[{{ interval }}])) / sum(rate(istio_requests_total{reporter="destination", destination_workload_namespace="{{ namespace }}", destination_workload=~"{{ target }}"}[{{ interval }}])) * 100"#,
        r#"histogram_quantile(0.99, sum(rate(istio_request_duration_milliseconds_bucket{reporter="destination", destination_workload_namespace="{{ namespace }}", destination_workload=~"{{ target }}"}[{{ interval }}])) by (le))"#,
    ),
    (
        "linkerd",
        r#"sum(rate(response_total{namespace="{{ namespace }}", deployment=~"{{ target }}", classification!="failure", direction="inbound"}[{{ interval }}])) / sum(rate(response_total{namespace="{{ namespace }}", deployment=~"{{ target }}", direction="inbound"}[{{ interval }}])) * 100"#,
        r#"histogram_quantile(0.99, sum(rate(response_latency_ms_bucket{namespace="{{ namespace }}", deployment=~"{{ target }}", direction="inbound"}[{{ interval }}])) by (le))"#,
    ),
];

fn fill(template: &str) -> String {
    let values = [("namespace", "app"), ("target", "web-primary"), ("interval", "15s")];
    values.iter().fold(template.to_owned(), |text, (name, value)| text.replace(&format!("{{{{ {name} }}}}"), value))
}

/// The requests to `web` by status, as one side of the calls counts them.
fn by_code(prometheus: &Prometheus<'_>, reporter: &str) -> anyhow::Result<BTreeMap<String, u64>> {
    let counted = prometheus.query(&format!(
        "sum by (response_code) (envoy_weft_requests_total{{reporter=\"{reporter}\", destination_service=\"web\"}})"
    ))?;
    #[allow(clippy::cast_possible_truncation, clippy::cast_sign_loss, reason = "counts")]
    let code =
        |(labels, value): (BTreeMap<String, String>, f64)| Some((labels.get("response_code")?.clone(), value as u64));
    Ok(counted.into_iter().filter_map(code).collect())
}

#[test]
fn prometheus_counts_what_was_called_and_flagger_is_answered() {
    let (mesh, mut checks) = start("e2e/scenarios/metrics", "observed-flagger");
    let prometheus = Prometheus::start(&mesh).expect("Prometheus");

    let broken = ["-X", "POST", "-H", "content-type: application/json", "-d", r#"{"errorRate":0.2}"#];
    let control = |body: &[&str]| mesh.call(CLIENT, &[body, &["http://web-primary/control"]].concat());
    control(&broken).expect("an answer");
    let load: Summary = mesh.calls(CLIENT, &["-n", "500", "-c", "4", "http://web/"]).expect("calls");
    for reporter in ["source", "destination"] {
        checks.holds(&format!("metrics-success rate equals the load's own, by the {reporter}"), "equal counts", || {
            let expected = format!("{:?}", load.codes);
            let mut counted = String::new();
            let equal = until("the load's count", weft_e2e::prometheus::PATIENCE, || {
                counted = format!("{:?}", by_code(&prometheus, reporter)?);
                Ok(if counted == expected { Ok(()) } else { Err(counted.clone()) })
            });
            Ok((equal.is_ok() && load.failed > 0, format!("{counted}, and the load {expected}")))
        });
    }

    control(&["-X", "POST", "-H", "content-type: application/json", "-d", r#"{"errorRate":0}"#]).expect("an answer");
    // Three of four succeed.
    let good = mesh.load(CLIENT, &["--rate", "30", "-c", "4", "http://web-primary/?delay=60ms"]).expect("a load");
    let bad =
        mesh.load(CLIENT, &["--rate", "10", "-c", "4", "--expect", "503", "http://web-primary/?delay=60ms&status=503"]);
    let bad = bad.expect("a load");
    for (provider, success_rate, duration) in OBSERVERS {
        checks.holds(&format!("metrics-flagger {provider}, success rate"), "75 % of 30 and 10 a second", || {
            let close = |percent: f64| (percent - 75.0).abs() < 2.0;
            let percent = prometheus.settled(&fill(success_rate), close)?;
            Ok((percent.is_some_and(close), format!("{percent:?} %")))
        });
        checks.holds(&format!("metrics-flagger {provider}, request duration"), "more than 60 ms", || {
            let likely = |milliseconds: f64| milliseconds > 60.0 && milliseconds < 1_000.0;
            let milliseconds = prometheus.settled(&fill(duration), likely)?;
            Ok((milliseconds.is_some_and(likely), format!("{milliseconds:?} ms")))
        });
    }
    checks.holds("metrics-flagger, the load that it watched", "nothing unexpected", || {
        let (good, bad) = (good.stop()?, bad.stop()?);
        Ok((good.failed + bad.failed == 0, format!("{}; {}", good.said(), bad.said())))
    });
    checks.end(mesh).expect("every scenario holds");
}
