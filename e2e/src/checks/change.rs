//! What a change, a mistake or a failure does to traffic.

use std::fs;
use std::time::Duration;

use anyhow::Context;
use weft::inspect::proto::{Proxy, ResourceType};

use super::{Seen, Site};
use crate::mesh::{Mesh, PATIENCE, repository};
use crate::until;

pub(super) fn pods(mesh: &dyn Site) -> anyhow::Result<Seen> {
    const FILE: &str = "catalog.yaml";
    let load = mesh.load("shop/shell", &["-c", "10", "--rate", "300", "http://catalog/"])?;
    let one = mesh.read(FILE)?;
    let scaled = one.replacen("replicas: 1\n", "replicas: 3\n", 1);
    anyhow::ensure!(one != scaled, "{FILE} states `replicas: 1`");
    mesh.put(FILE, &scaled)?;
    mesh.wait_for_pods("shop", "catalog-v1", 3)?;
    mesh.put(FILE, &one)?;
    mesh.wait_for_pods("shop", "catalog-v1", 1)?;
    let summary = load.stop()?;
    Ok(Seen::new(summary.failed == 0, format!("1 pod, 3 pods, 1 pod; {}", summary.said())))
}

pub(super) fn broken(mesh: &Mesh) -> anyhow::Result<Seen> {
    const FILE: &str = "split-catalog.yaml";
    let good = mesh.read(FILE)?;
    let steps = repository().join("examples/shop-steps/broken.yaml");
    let bad = fs::read_to_string(&steps).with_context(|| steps.display().to_string())?;
    mesh.put(FILE, &bad)?;
    let reported = until("the report of the broken document", Duration::from_secs(5), || {
        let line = mesh.log().into_iter().find(|line| line.contains(FILE) && line.contains("weight"));
        Ok(line.ok_or_else(|| mesh.log().last().cloned().unwrap_or_default()))
    })?;
    let after = mesh.calls("shop/shell", &["-n", "300", "-c", "10", "http://catalog/"])?;
    mesh.put(FILE, &good)?;
    let share = after.share("catalog v2");
    let located = reported.contains(&format!("{FILE}:11")) && reported.contains("spec.backends[0].weight");
    let ok = after.failed == 0 && (share - 10.0).abs() <= 4.0 && located;
    let place = reported.split_once(FILE).map_or(reported.as_str(), |(_, rest)| rest);
    Ok(Seen::new(ok, format!("{share:.1} % on v2 as before; {FILE}{}", place.chars().take(60).collect::<String>())))
}

pub(super) fn restart(mesh: &Mesh) -> anyhow::Result<Seen> {
    let connected = mesh.inspection()?.proxies()?.len();
    let load = mesh.load("shop/shell", &["-c", "10", "--rate", "300", "http://frontend/"])?;
    mesh.client().kill_control_plane()?;
    // Calls go on without a control plane before there is another.
    let alone = mesh.calls("shop/shell", &["-n", "200", "-c", "5", "http://catalog/"])?;
    mesh.client().start_control_plane(PATIENCE)?;
    let mut inspection = mesh.inspection()?;
    let proxies = until("all proxies to be back", PATIENCE, || {
        let proxies = inspection.proxies()?;
        let settled = inspection.convergence()?.behind == 0;
        let back = proxies.len() == connected && settled && proxies.iter().all(has_all_it_had);
        Ok(if back { Ok(proxies) } else { Err(format!("{} of {connected}", proxies.len())) })
    })?;
    let sent: u64 = proxies.iter().map(sent_again).sum();
    let under = load.stop()?;
    let ok = under.failed + alone.failed == 0 && sent == 0;
    Ok(Seen::new(
        ok,
        format!("{connected} proxies back, {sent} resources sent again, new certificates aside; {}", under.said()),
    ))
}

/// It has subscribed to its listeners and clusters again, and has both.
fn has_all_it_had(proxy: &Proxy) -> bool {
    let has = |kind: ResourceType| {
        proxy.types.iter().any(|status| status.r#type == kind as i32 && status.resources > 0 && !status.pending)
    };
    has(ResourceType::Listener) && has(ResourceType::Cluster)
}

fn sent_again(proxy: &Proxy) -> u64 {
    let types = proxy.types.iter().filter(|status| status.r#type != ResourceType::Secret as i32);
    types.map(|status| status.resources_sent).sum()
}
