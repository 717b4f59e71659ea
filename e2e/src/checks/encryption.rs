//! What goes between pods, and with which identities.

use std::collections::BTreeSet;
use std::io::{Read, pipe};
use std::os::fd::AsFd;
use std::time::Duration;

use anyhow::{Context, anyhow};
use serde_json::Value;

use super::{CERTIFICATE_LIFETIME, Seen, Site};
use crate::mesh::{Mesh, selector};
use crate::until;

pub(super) fn identities(mesh: &dyn Site) -> anyhow::Result<Seen> {
    let body = mesh.call("shop/shell", &["http://frontend/"])?;
    let answer: Value = serde_json::from_str(&body).with_context(|| body.clone())?;
    let header = answer["headers"]["x-forwarded-client-cert"].as_str().unwrap_or_default().to_owned();
    let versions = mesh.stats("shop/deploy/frontend", "^listener.*ssl.versions")?;
    let versions: BTreeSet<&str> = versions
        .iter()
        .filter(|(_, count)| *count > 0)
        .filter_map(|(name, _)| name.split_once("versions.").map(|(_, version)| version))
        .collect();
    let part = |name| header.split(';').find_map(|part| part.strip_prefix(name)).unwrap_or("nobody");
    let (callee, caller) = (part("By="), part("URI="));
    let both =
        callee == "spiffe://cluster.local/ns/shop/sa/frontend" && caller == "spiffe://cluster.local/ns/shop/sa/shell";
    let versions = versions.into_iter().collect::<Vec<_>>().join(", ");
    Ok(Seen::new(both && versions == "TLSv1.3", format!("{versions}: {caller} to {callee}")))
}

/// Captures on the interface between pods and on the loopback inside, where the sidecar hands the request on.
pub(super) fn no_plaintext(mesh: &Mesh) -> anyhow::Result<Seen> {
    const MARK: &str = "only-for-the-frontend-4711";
    let (outside, inside) = std::thread::scope(|scope| {
        let outside = scope.spawn(|| capture(mesh, "eth0"));
        let inside = scope.spawn(|| capture(mesh, "lo"));
        for _ in 0..10 {
            mesh.call("shop/shell", &["-H", &format!("x-secret: {MARK}"), "http://frontend/"])?;
        }
        let done = |captured: std::thread::ScopedJoinHandle<'_, anyhow::Result<Vec<u8>>>| {
            captured.join().map_err(|_| anyhow!("the capture panicked"))?
        };
        anyhow::Ok((done(outside)?, done(inside)?))
    })?;
    let readable = |bytes: &[u8]| bytes.windows(MARK.len()).any(|window| window == MARK.as_bytes());
    let ok = !readable(&outside) && readable(&inside) && outside.len() > 4000;
    let word = |bytes: &[u8]| if readable(bytes) { "readable" } else { "not readable" };
    Ok(Seen::new(
        ok,
        format!(
            "{} in {} bytes between pods; {} in {} bytes inside",
            word(&outside),
            outside.len(),
            word(&inside),
            inside.len()
        ),
    ))
}

/// What tcpdump sees in the frontend's pod within a bounded time.
fn capture(mesh: &Mesh, interface: &str) -> anyhow::Result<Vec<u8>> {
    let argv = ["timeout", "-s", "INT", "2", "tcpdump", "-U", "-s0", "-w", "-", "-i", interface, "tcp"];
    let (mut reader, writer) = pipe()?;
    let reading = std::thread::spawn(move || {
        let mut bytes = Vec::new();
        reader.read_to_end(&mut bytes).map(|_| bytes)
    });
    let null = std::fs::File::open("/dev/null")?;
    let argv = argv.map(str::to_owned).to_vec();
    let (mut messages, stderr) = pipe()?;
    mesh.client().exec(selector("shop/deploy/frontend")?, argv, [null.as_fd(), writer.as_fd(), stderr.as_fd()])?;
    drop((writer, stderr));
    let bytes = reading.join().map_err(|_| anyhow!("the reader of the capture panicked"))??;
    let mut said = String::new();
    messages.read_to_string(&mut said)?;
    if bytes.is_empty() { Err(anyhow!("tcpdump captured nothing: {said}")) } else { Ok(bytes) }
}

pub(super) fn strict(mesh: &dyn Site) -> anyhow::Result<Seen> {
    let http = mesh.code("outside/stranger", &["http://frontend.shop/"])?;
    let tcp = mesh.code("outside/stranger", &["tcp://ledger.warehouse:7000"])?;
    let (ready, pods) = mesh.ready_pods()?;
    let ok = http == "403" && tcp == "closed" && ready == pods;
    Ok(Seen::new(ok, format!("HTTP {http}, TCP {tcp}; {ready} of {pods} pods ready")))
}

pub(super) fn permissive(mesh: &dyn Site) -> anyhow::Result<Seen> {
    const FILE: &str = "mesh.yaml";
    let before = mesh.read(FILE)?;
    mesh.edit(FILE, &|text| {
        text.replace("mode: Strict", "mode: Permissive").replace("mode: Enforce", "mode: Permissive")
    })?;
    let open = [
        mesh.code("outside/stranger", &["http://frontend.shop/"])?,
        mesh.code("outside/stranger", &["tcp://ledger.warehouse:7000"])?,
        mesh.code("shop/shell", &["http://frontend/"])?,
    ];
    mesh.write(FILE, &before)?;
    let after = mesh.code("outside/stranger", &["http://frontend.shop/"])?;
    Ok(Seen::new(open == ["200", "ok", "200"] && after == "403", format!("{}, then {after}", open.join(", "))))
}

pub(super) fn rotation(mesh: &dyn Site) -> anyhow::Result<Seen> {
    let pods = ["shop/shell", "shop/deploy/frontend", "shop/deploy/cart", "warehouse/deploy/inventory-v1"];
    let load = mesh.load("shop/shell", &["-c", "5", "--rate", "100", "http://frontend/"])?;
    let before = pods.iter().map(|pod| serial(mesh, pod)).collect::<anyhow::Result<Vec<_>>>()?;
    until("new certificates", CERTIFICATE_LIFETIME + Duration::from_secs(5), || {
        let now = pods.iter().map(|pod| serial(mesh, pod)).collect::<anyhow::Result<Vec<_>>>()?;
        let same = before.iter().zip(&now).filter(|(before, now)| before == now).count();
        std::thread::sleep(Duration::from_millis(100));
        Ok(if same == 0 { Ok(()) } else { Err(format!("{same} of {} are the same", pods.len())) })
    })?;
    let summary = load.stop()?;
    Ok(Seen::new(summary.failed == 0, format!("{} of {} are new; {}", pods.len(), pods.len(), summary.said())))
}

/// The serial number of the certificate that a sidecar uses.
fn serial(mesh: &dyn Site, pod: &str) -> anyhow::Result<String> {
    let certificates: Value = serde_json::from_str(&mesh.admin(pod, "/certs")?)?;
    let own = certificates["certificates"].as_array().into_iter().flatten();
    let serials = own.flat_map(|entry| entry["cert_chain"].as_array().into_iter().flatten());
    let mut serials: Vec<&str> = serials.filter_map(|certificate| certificate["serial_number"].as_str()).collect();
    serials.sort_unstable();
    serials.dedup();
    if serials.is_empty() { Err(anyhow!("{pod} has no certificate")) } else { Ok(serials.join(" ")) }
}
