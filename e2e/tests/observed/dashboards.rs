//! Every panel of every dashboard shows something while the shop runs.

use std::fs;

use anyhow::Context;
use serde_json::Value;
use weft_e2e::mesh::repository;
use weft_e2e::prometheus::{PATIENCE, Prometheus};
use weft_e2e::until;

use crate::start;

/// What is chosen in the dashboards' lists.
const CHOSEN: [(&str, &str); 4] =
    [("namespace", "shop"), ("service", "catalog"), ("workload", "frontend"), ("canary", "catalog-v2")];

/// A query as Grafana would send it.
fn fill(query: &str) -> String {
    let query = query.replace("$__rate_interval", "15s").replace("$__range", "1m");
    CHOSEN.iter().fold(query, |query, (name, value)| query.replace(&format!("${name}"), value))
}

/// The queries of all panels, each with the panel's title.
fn queries(panels: &Value) -> Vec<(String, String)> {
    let mut queries = Vec::new();
    for panel in panels.as_array().into_iter().flatten() {
        let title = panel["title"].as_str().unwrap_or("untitled");
        for target in panel["targets"].as_array().into_iter().flatten() {
            queries.push((title.to_owned(), target["expr"].as_str().unwrap_or_default().to_owned()));
        }
        queries.extend(self::queries(&panel["panels"]));
    }
    queries
}

/// What is wrong with a list from which people choose: it does not offer what is chosen here.
fn list_without_choice(prometheus: &Prometheus<'_>, variable: &Value) -> anyhow::Result<Option<String>> {
    let name = variable["name"].as_str().context("a variable's name")?;
    if variable["type"] != "query" {
        return Ok(None);
    }
    let query = fill(variable["query"]["query"].as_str().or(variable["query"].as_str()).context("a query")?);
    let inside = query.strip_prefix("label_values(").and_then(|rest| rest.strip_suffix(')')).context(query.clone())?;
    let (selector, label) = inside.rsplit_once(',').context(query.clone())?;
    let offered = prometheus.label_values(selector.trim(), label.trim())?;
    let chosen = CHOSEN.iter().find(|(known, _)| *known == name).with_context(|| format!("a choice for {name}"))?.1;
    Ok((!offered.iter().any(|value| value == chosen)).then(|| format!("${name} offers {offered:?}")))
}

#[test]
fn every_panel_has_data() {
    let (mesh, mut checks) = start("examples/shop", "observed-dashboards");
    let prometheus = Prometheus::start(&mesh).expect("Prometheus");
    let load = mesh.load("shop/shell", &["--rate", "20", "http://frontend/"]).expect("a load");
    let denied = mesh.load("shop/shell", &["--rate", "2", "--expect", "403", "http://cart/"]).expect("a load");

    // Something for the control plane to deliver, between two scrapes of Prometheus.
    let split = mesh.read("split-catalog.yaml").expect("a split");
    let mut changes = (0..).map(|number| split.replacen("weight: 90", &format!("weight: {}", 80 + number % 10), 1));

    let folder = repository().join("helm/weft/dashboards");
    let mut files: Vec<_> = fs::read_dir(&folder).expect("dashboards").flatten().map(|entry| entry.path()).collect();
    files.sort();
    assert!(files.len() >= 5, "{files:?}");
    for file in files {
        let name = file.file_stem().map(|name| name.to_string_lossy().into_owned()).unwrap_or_default();
        checks.holds(&format!("metrics-dashboard {name}"), "data in every panel", || {
            let dashboard: Value = serde_json::from_str(&fs::read_to_string(&file)?)?;
            let queries = queries(&dashboard["panels"]);
            let variables = dashboard["templating"]["list"].as_array().context("templating")?;
            let mut wrong = Vec::new();
            let _ = until(&name, PATIENCE, || {
                wrong.clear();
                mesh.write("split-catalog.yaml", &changes.next().context("endless")?)?;
                for variable in variables {
                    wrong.extend(list_without_choice(&prometheus, variable)?);
                }
                for (title, query) in &queries {
                    let query = fill(query);
                    let points = prometheus.query(&query)?;
                    if query.contains('$') || points.is_empty() || points.iter().all(|(_, value)| value.is_nan()) {
                        wrong.push(format!("{title}: nothing for {query}"));
                    }
                }
                Ok(if wrong.is_empty() { Ok(()) } else { Err(wrong.join("; ")) })
            });
            let ok = wrong.is_empty() && queries.len() >= 5 && dashboard["uid"].is_string();
            Ok((ok, format!("{} queries; {}", queries.len(), wrong.join("; "))))
        });
    }
    checks.holds("metrics-dashboard, the load that they showed", "nothing unexpected", || {
        let (load, denied) = (load.stop()?, denied.end()?);
        Ok((load.failed + denied.failed == 0, format!("{}; {}", load.said(), denied.said())))
    });
    checks.end(mesh).expect("every scenario holds");
}
