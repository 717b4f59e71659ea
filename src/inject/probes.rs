//! Has the kubelet ask the sidecar for the probes that cannot pass it: see [`crate::local::probes`].

use serde_json::{Value, json};

use super::view::{Container, PodView, Probe};
use crate::local::intercept::Exclusions;
use crate::local::probes::{AskedProbe, HEALTH_PORT};

/// How often the kubelet asks where a probe does not say.
const PERIOD: u32 = 10;

/// Rewrites them in `pod`, and tells what the sidecar has to ask: each once.
pub(super) fn ask_through_sidecar(pod: &mut Value, view: &PodView, exclude: &Exclusions) -> Vec<AskedProbe> {
    let mut asked: Vec<AskedProbe> = Vec::new();
    for (list, containers) in [("initContainers", &view.spec.init_containers), ("containers", &view.spec.containers)] {
        for (index, container) in containers.iter().enumerate() {
            for (name, probe) in [
                ("startupProbe", &container.startup_probe),
                ("livenessProbe", &container.liveness_probe),
                ("readinessProbe", &container.readiness_probe),
            ] {
                let Some((probe, query)) = probe.as_ref().and_then(|probe| asked_for(probe, container, exclude)) else {
                    continue;
                };
                let written = pod.get_mut("spec").and_then(|spec| spec.get_mut(list)?.get_mut(index)?.get_mut(name));
                if let Some(written) = written.and_then(Value::as_object_mut) {
                    written.remove("tcpSocket");
                    let mut http = json!({"path": format!("{}{query}", probe.asked_path()), "port": HEALTH_PORT});
                    if let Some(headers) = written.get("httpGet").and_then(|http| http.get("httpHeaders")) {
                        http["httpHeaders"] = headers.clone();
                    }
                    written.insert("httpGet".to_owned(), http);
                    note(&mut asked, probe);
                }
            }
        }
    }
    asked
}

/// What the sidecar has to ask in the kubelet's place, with the query of an HTTPS probe; `None` where the kubelet can go
/// on asking the application.
fn asked_for(probe: &Probe, container: &Container, exclude: &Exclusions) -> Option<(AskedProbe, String)> {
    let here = |host: &Option<String>| host.as_deref().is_none_or(str::is_empty);
    let intercepted = |port: &u16| !exclude.inbound_ports.contains(port) && *port != HEALTH_PORT;
    if let Some(http) = &probe.http_get {
        let https = http.scheme.as_deref().is_some_and(|scheme| scheme.eq_ignore_ascii_case("https"));
        if !https || !here(&http.host) {
            return None;
        }
        let port = container.port(&http.port).filter(intercepted)?;
        let path = http.path.as_deref().unwrap_or("/");
        let (path, query) = path.split_at(path.find(['?', '#']).unwrap_or(path.len()));
        let path = if path.starts_with('/') { path.to_owned() } else { format!("/{path}") };
        return Some((AskedProbe::Https { port, path }, query.to_owned()));
    }
    let tcp = probe.tcp_socket.as_ref().filter(|tcp| here(&tcp.host))?;
    let port = container.port(&tcp.port).filter(intercepted)?;
    Some((AskedProbe::Tcp { port, period: probe.period_seconds.filter(|s| *s > 0).unwrap_or(PERIOD) }, String::new()))
}

/// Adds the probe; of several of one TCP port there is one, with the shortest period.
fn note(asked: &mut Vec<AskedProbe>, probe: AskedProbe) {
    if let AskedProbe::Tcp { port, period } = probe {
        for known in &mut *asked {
            if let AskedProbe::Tcp { port: same, period: shortest } = known
                && *same == port
            {
                *shortest = period.min(*shortest);
                return;
            }
        }
    }
    if !asked.contains(&probe) {
        asked.push(probe);
    }
}
