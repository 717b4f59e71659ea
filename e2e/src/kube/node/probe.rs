//! The kubelet's probes of a container.

use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::time::{Duration, Instant};

use serde_json::Value;

/// A probe, and what it has come to.
pub(super) struct Prober {
    spec: Value,
    to: Option<(SocketAddr, String)>,
    next: Instant,
    successes: u64,
    failures: u64,
}

/// What a probe says for good.
#[derive(Clone, Copy, Debug, PartialEq, Eq)]
pub(super) enum Verdict {
    Healthy,
    Unhealthy,
}

impl Prober {
    /// That of a container which has just started; none when it has no such probe, or one of a sort that this node does
    /// not know: such a container is healthy.
    pub(super) fn of(container: &Value, probe: &str, ip: Ipv4Addr) -> Option<Self> {
        let spec = container.get(probe)?.clone();
        let get = spec.get("httpGet")?;
        let ports = container["ports"].as_array().into_iter().flatten();
        let port = match get["port"].as_str() {
            None => get["port"].as_u64(),
            Some(name) => ports.into_iter().find(|port| port["name"] == name).and_then(|p| p["containerPort"].as_u64()),
        };
        let port = port.and_then(|port| u16::try_from(port).ok());
        let path = get["path"].as_str().unwrap_or("/").to_owned();
        let next = Instant::now() + Duration::from_secs(spec["initialDelaySeconds"].as_u64().unwrap_or(0));
        let to = port.map(|port| (SocketAddr::from((ip, port)), path));
        Some(Self { spec, to, next, successes: 0, failures: 0 })
    }

    /// Asks when it is time.
    pub(super) fn ask(&mut self) -> Option<Verdict> {
        if Instant::now() < self.next {
            return None;
        }
        let seconds = |field: &str, default| Duration::from_secs(self.spec[field].as_u64().unwrap_or(default));
        let healthy = self.to.as_ref().is_some_and(|(to, path)| get(*to, path, seconds("timeoutSeconds", 1)));
        self.next = Instant::now() + seconds("periodSeconds", 10);
        let threshold = |field: &str, default| self.spec[field].as_u64().unwrap_or(default);
        match healthy {
            true => {
                (self.successes, self.failures) = (self.successes + 1, 0);
                (self.successes >= threshold("successThreshold", 1)).then_some(Verdict::Healthy)
            }
            false => {
                (self.successes, self.failures) = (0, self.failures + 1);
                (self.failures >= threshold("failureThreshold", 3)).then_some(Verdict::Unhealthy)
            }
        }
    }
}

/// Whether a GET is answered with success.
fn get(to: SocketAddr, path: &str, within: Duration) -> bool {
    let asked = || -> std::io::Result<bool> {
        let mut socket = TcpStream::connect_timeout(&to, within)?;
        socket.set_read_timeout(Some(within))?;
        write!(socket, "GET {path} HTTP/1.1\r\nHost: {to}\r\nUser-Agent: kube-probe\r\nConnection: close\r\n\r\n")?;
        let mut status = [0; 12];
        socket.read_exact(&mut status)?;
        Ok(matches!(status.get(9), Some(b'2' | b'3')))
    };
    asked().unwrap_or(false)
}
