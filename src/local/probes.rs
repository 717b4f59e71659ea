//! Probes that the sidecar asks for the kubelet, at its health port.
//!
//! ```text
//!  kubelet ──GET :15020/probe/tcp/5432──▶ sidecar ──connects every period──▶ application
//!  kubelet ──GET :15020/probe/https/8443/healthz──▶ sidecar ──TLS──▶ application
//! ```
//!
//! HTTP and gRPC probes reach the application as they are: the sidecar knows their ports and paths. The two others
//! cannot. A TCP probe would always pass, since the sidecar takes every connection; the TLS of an HTTPS probe cannot be
//! told from a foreign caller's, whom strict mode refuses. So the injector has the kubelet ask the sidecar.

use std::collections::BTreeSet;
use std::fmt::{self, Write as _};
use std::net::IpAddr;
use std::str::FromStr;

/// The port that the kubelet asks.
pub const HEALTH_PORT: u16 = 15020;

/// A probe of the application that the sidecar asks.
#[derive(Debug, Clone, PartialEq, Eq, PartialOrd, Ord)]
pub enum AskedProbe {
    /// The application takes connections.
    Tcp {
        /// The port.
        port: u16,
        /// How often it is tried while it succeeds, in seconds: the shortest period of the probes of this port.
        period: u32,
    },
    /// The application answers by HTTPS; its certificate is not verified, as the kubelet does not.
    Https {
        /// The port.
        port: u16,
        /// The path, without its query; begins with `/`.
        path: String,
    },
}

/// A text is no [`AskedProbe`].
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("`{0}` is no probe: write tcp:PORT:SECONDS or https:PORT/PATH")]
pub struct NotAProbe(String);

impl AskedProbe {
    /// The path at [`HEALTH_PORT`] that the kubelet asks for.
    pub fn asked_path(&self) -> String {
        match self {
            Self::Tcp { port, .. } => format!("/probe/tcp/{port}"),
            Self::Https { port, path } => format!("/probe/https/{port}{path}"),
        }
    }
}

impl fmt::Display for AskedProbe {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        match self {
            Self::Tcp { port, period } => write!(f, "tcp:{port}:{period}"),
            Self::Https { port, path } => write!(f, "https:{port}{path}"),
        }
    }
}

impl FromStr for AskedProbe {
    type Err = NotAProbe;

    fn from_str(text: &str) -> Result<Self, NotAProbe> {
        let read = || match text.split_once(':')? {
            ("tcp", rest) => {
                let (port, period) = rest.split_once(':')?;
                Some(Self::Tcp { port: port.parse().ok()?, period: period.parse().ok()? })
            }
            ("https", rest) => {
                let (port, path) = rest.split_at(rest.find('/')?);
                Some(Self::Https { port: port.parse().ok()?, path: path.to_owned() })
            }
            _ => None,
        };
        read().ok_or_else(|| NotAProbe(text.to_owned()))
    }
}

/// What the probes add to the bootstrap, as lines of YAML that begin with a line break; empty without probes.
#[derive(Debug, Default)]
pub(super) struct Fragments {
    /// Entries of `virtual_hosts[].routes`.
    pub(super) routes: String,
    /// Entries of `http_filters`.
    pub(super) filters: String,
    /// Entries of `clusters`.
    pub(super) clusters: String,
}

impl Fragments {
    /// Those for a pod at `ip`.
    pub(super) fn of(probes: &[AskedProbe], ip: IpAddr) -> Self {
        let mut fragments = Self::default();
        // From these addresses the sidecar calls its application: the rules of interception let them pass.
        let from = if ip.is_ipv4() { "127.0.0.6" } else { "::6" };
        let mut https_ports = BTreeSet::new();
        for probe in probes {
            // Writing to a String cannot fail.
            match probe {
                AskedProbe::Tcp { port, period } => {
                    let _ = write!(
                        fragments.filters,
                        r#"
          - name: probe-tcp-{port}
            typed_config:
              "@type": type.googleapis.com/envoy.extensions.filters.http.health_check.v3.HealthCheck
              pass_through_mode: false
              headers: [{{name: ":path", string_match: {{exact: "{path}"}}}}]
              cluster_min_healthy_percentages: {{"probe-tcp-{port}": {{value: 100}}}}"#,
                        path = probe.asked_path(),
                    );
                    let _ = write!(
                        fragments.clusters,
                        r#"
  - name: probe-tcp-{port}
    type: STATIC
    connect_timeout: 1s
    upstream_bind_config: {{source_address: {{address: "{from}", port_value: 0}}}}
    health_checks:
    - timeout: 1s
      interval: {period}s
      no_traffic_interval: {period}s
      # Until it listens it is tried each second, so that it is ready soon.
      unhealthy_interval: 1s
      unhealthy_threshold: 1
      healthy_threshold: 1
      tcp_health_check: {{}}
    load_assignment: {assignment}"#,
                        assignment = assignment("tcp", *port, ip),
                    );
                }
                AskedProbe::Https { port, path } => {
                    let _ = write!(
                        fragments.routes,
                        "\n              - {{match: {{path: {asked}}}, route: {{cluster: probe-https-{port}, \
                         prefix_rewrite: {path}, timeout: 0s}}}}",
                        asked = quoted(&probe.asked_path()),
                        path = quoted(path),
                    );
                    if https_ports.insert(*port) {
                        let _ = write!(
                            fragments.clusters,
                            r#"
  - name: probe-https-{port}
    type: STATIC
    connect_timeout: 1s
    upstream_bind_config: {{source_address: {{address: "{from}", port_value: 0}}}}
    transport_socket:
      name: envoy.transport_sockets.tls
      typed_config: {{"@type": type.googleapis.com/envoy.extensions.transport_sockets.tls.v3.UpstreamTlsContext}}
    load_assignment: {assignment}"#,
                            assignment = assignment("https", *port, ip),
                        );
                    }
                }
            }
        }
        fragments
    }
}

fn assignment(kind: &str, port: u16, ip: IpAddr) -> String {
    format!(
        r#"{{cluster_name: probe-{kind}-{port}, endpoints: [{{lb_endpoints: [{{endpoint: {{address: {{socket_address: {{address: "{ip}", port_value: {port}}}}}}}}}]}}]}}"#
    )
}

/// A path is a user's text: in quotes and escaped, JSON is YAML.
fn quoted(text: &str) -> String {
    serde_json::Value::from(text).to_string()
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_probe_reads_as_it_prints() {
        for text in ["tcp:5432:10", "https:8443/", "https:8443/healthz/ready:now"] {
            assert_eq!(text.parse::<AskedProbe>().map(|probe| probe.to_string()), Ok(text.to_owned()));
        }
        for text in ["", "tcp:5432", "tcp:x:1", "tcp:70000:1", "https:8443", "https:/x", "http:80/x"] {
            assert!(text.parse::<AskedProbe>().is_err(), "{text}");
        }
    }
}
