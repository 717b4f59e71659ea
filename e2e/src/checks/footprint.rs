//! What the mesh costs a sidecar.

use std::fmt::Write;

use super::Seen;
use crate::mesh::{Mesh, PATIENCE};
use crate::until;

/// As many Services as this come on top.
const MORE: usize = 500;
const FILE: &str = "more.yaml";

/// Calls some of them for the first time, each once: name resolution, the way to the control plane and back, the TLS
/// handshake and the answer.
pub(super) fn first_call(mesh: &Mesh) -> anyhow::Result<Seen> {
    add(mesh)?;
    let mut first = (0..9)
        .map(|number| {
            let summary = mesh.calls("shop/shell", &[&format!("http://more-{number}/healthz")])?;
            anyhow::ensure!(summary.failed == 0, "{}", summary.said());
            Ok(summary.latency_ms.max)
        })
        .collect::<anyhow::Result<Vec<f64>>>()?;
    mesh.remove(FILE)?;
    first.sort_by(f64::total_cmp);
    let (fastest, median, slowest) = (first[0], first[first.len() / 2], first[first.len() - 1]);
    Ok(Seen::new(slowest <= 20.0, format!("median {median:.1} ms, from {fastest:.1} to {slowest:.1} ms")))
}

/// The heap of a sidecar that calls none of them, without the Services and with them.
pub(super) fn heap(mesh: &Mesh) -> anyhow::Result<Seen> {
    let without = mesh.heap("shop/deploy/cart")?;
    add(mesh)?;
    let with = mesh.heap("shop/deploy/cart")?;
    mesh.remove(FILE)?;
    let ratio = with / without;
    Ok(Seen::new(
        (0.9..=1.1).contains(&ratio),
        format!("{without:.2} MB without, {with:.2} MB with them: {:+.1} %", (ratio - 1.0) * 100.0),
    ))
}

/// Adds the Services, each with the frontend's pod behind it, and waits until the last of them can be called.
fn add(mesh: &Mesh) -> anyhow::Result<()> {
    let mut text = String::new();
    for number in 0..MORE {
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
    })
}
