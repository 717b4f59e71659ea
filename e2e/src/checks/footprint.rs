//! What the mesh costs a sidecar.

use std::fmt::Write;

use anyhow::Context;
use serde_json::Value;

use super::Seen;
use crate::mesh::{Mesh, PATIENCE};
use crate::until;

/// As many Services as this come on top.
const MORE: usize = 500;
const FILE: &str = "more.yaml";

/// Adds the Services, which [`heap`] uses as well.
pub(super) fn first_call(mesh: &Mesh) -> anyhow::Result<Seen> {
    let mut text = String::new();
    for number in 0..MORE {
        // Each has the frontend's pod behind it.
        write!(
            text,
            "apiVersion: v1\nkind: Service\nmetadata: {{name: more-{number}, namespace: shop}}\n\
             spec: {{selector: {{app: frontend}}, ports: [{{name: http, port: 80, targetPort: http}}]}}\n---\n"
        )?;
    }
    mesh.write(FILE, &text)?;
    until("the last of them to be called", PATIENCE, || {
        let code = mesh.code("shop/shell", &[&format!("http://more-{}/healthz", MORE - 1)])?;
        Ok(if code == "200" { Ok(()) } else { Err(code) })
    })?;
    // The median of some first calls, each to a destination of its own, body and name resolution included.
    let mut first = (0..9)
        .map(|number| {
            let summary = mesh.calls("shop/shell", &[&format!("http://more-{number}/healthz")])?;
            anyhow::ensure!(summary.failed == 0, "{}", summary.said());
            Ok(summary.latency_ms.max)
        })
        .collect::<anyhow::Result<Vec<f64>>>()?;
    first.sort_by(f64::total_cmp);
    let (median, slowest) = (first[first.len() / 2], first[first.len() - 1]);
    Ok(Seen::new(slowest <= 20.0, format!("median {median:.1} ms, slowest of {} {slowest:.1} ms", first.len())))
}

/// The heap of sidecars that call none of them, with the Services and after they are gone.
pub(super) fn heap(mesh: &Mesh) -> anyhow::Result<Seen> {
    let with = allocated(mesh)?;
    mesh.remove(FILE)?;
    let without = allocated(mesh)?;
    let ratio = with / without;
    Ok(Seen::new(
        (0.9..=1.1).contains(&ratio),
        format!("{:.2} MB with, {:.2} MB without: {:+.1} %", with / 1e6, without / 1e6, (ratio - 1.0) * 100.0),
    ))
}

fn allocated(mesh: &Mesh) -> anyhow::Result<f64> {
    let memory: Value = serde_json::from_str(&mesh.admin("shop/deploy/cart", "/memory")?)?;
    memory["allocated"].as_str().and_then(|bytes| bytes.parse().ok()).context("the allocated bytes of /memory")
}
