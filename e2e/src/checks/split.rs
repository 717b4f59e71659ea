//! Shares of TrafficSplits.

use super::{Seen, Site, access};
use crate::load::Summary;

fn seen(summary: &Summary, responder: &str, expected: f64, tolerance: f64) -> Seen {
    let share = summary.share(responder);
    let ok = summary.failed == 0 && (share - expected).abs() <= tolerance;
    Seen::new(ok, format!("{share:.1} % on {responder}; {}", summary.said()))
}

pub(super) fn http(mesh: &dyn Site) -> anyhow::Result<Seen> {
    let summary = mesh.calls("shop/shell", &["-n", "2000", "-c", "10", "http://catalog/"])?;
    Ok(seen(&summary, "catalog v2", 10.0, 2.0))
}

pub(super) fn grpc(mesh: &dyn Site) -> anyhow::Result<Seen> {
    access::allow(mesh)?;
    let summary = mesh.calls("shop/shell", &["-n", "2000", "-c", "10", "grpc://inventory.warehouse:9090"])?;
    Ok(seen(&summary, "inventory v2", 10.0, 2.0))
}

/// After [`grpc`], which opened the warehouse.
pub(super) fn tcp(mesh: &dyn Site) -> anyhow::Result<Seen> {
    let summary = mesh.calls("shop/shell", &["-n", "400", "-c", "10", "tcp://ledger.warehouse:7000"])?;
    mesh.remove(access::TARGETS)?;
    Ok(seen(&summary, "ledger v2", 50.0, 2.0))
}

pub(super) fn change(mesh: &dyn Site) -> anyhow::Result<Seen> {
    const FILE: &str = "split-catalog.yaml";
    let load = mesh.load("shop/shell", &["-c", "10", "--rate", "500", "http://catalog/"])?;
    let weights = |from: [u32; 2], to: [u32; 2]| {
        move |text: String| {
            let [a, b] = from;
            let [c, d] = to;
            text.replace(&format!("weight: {a}\n"), &format!("weight: #{c}\n"))
                .replace(&format!("weight: {b}\n"), &format!("weight: #{d}\n"))
                .replace('#', "")
        }
    };
    let mut times = Vec::new();
    for (from, to) in [([90, 10], [20, 80]), ([20, 80], [70, 30]), ([70, 30], [50, 60]), ([50, 60], [500, 500])] {
        times.push(mesh.edit(FILE, &weights(from, to))?);
    }
    let after = mesh.calls("shop/shell", &["-n", "1000", "-c", "10", "http://catalog/"])?;
    let under = load.stop()?;
    mesh.edit(FILE, &|text| {
        text.replacen("weight: 500\n", "weight: 90\n", 1).replacen("weight: 500\n", "weight: 10\n", 1)
    })?;
    let slowest = times.iter().max().map_or(0, std::time::Duration::as_millis);
    let share = after.share("catalog v2");
    let ok = under.failed == 0 && after.failed == 0 && (share - 50.0).abs() <= 3.0;
    Ok(Seen::new(ok, format!("{}; {share:.1} % on v2; write to last ACK at most {slowest} ms", under.said())))
}
