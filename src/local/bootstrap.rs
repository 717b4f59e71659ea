//! A sidecar's bootstrap configuration, from the templates in `envoy-bootstrap/`.

use std::collections::BTreeMap;
use std::net::{IpAddr, Ipv4Addr};

use crate::mesh::id::{ProxyId, WorkloadKey};

use super::intercept::SidecarSockets;
use super::probes::{AskedProbe, Fragments};

/// The control plane's DNS name in the playground.
pub const CONTROL_PLANE_NAME: &str = crate::control_plane::DNS_NAME;
/// Where the control plane serves xDS.
pub const XDS_PORT: u16 = 15010;

/// Arguments by which Envoy writes its access log out within a second, and not when ten have passed: whoever has just
/// turned it on is waiting for it.
pub const LOGS_SOON: [&str; 2] = ["--file-flush-interval-msec", "1000"];

const SIDECAR: &str = include_str!("../../envoy-bootstrap/sidecar.yaml");
const TOKEN: &str = include_str!("../../envoy-bootstrap/sds-token.yaml");
const ROOT: &str = include_str!("../../envoy-bootstrap/sds-root.yaml");

/// The pod annotation that chooses the [`XdsProtocol`].
pub const XDS_ANNOTATION: &str = "weft.dev/xds";

/// The form of xDS that a sidecar asks for.
#[derive(Debug, Default, Clone, Copy, PartialEq, Eq)]
pub enum XdsProtocol {
    /// Only what changed is sent: `delta`, the default.
    #[default]
    Delta,
    /// Everything of a type is sent again when any of it changed: `sotw`.
    StateOfTheWorld,
}

/// Why the annotation cannot be used.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
#[error("the annotation {XDS_ANNOTATION} has `{0}`, which is no form of xDS: use `delta` or `sotw`")]
pub struct XdsProtocolError(String);

impl XdsProtocol {
    /// What a pod's annotations ask for.
    ///
    /// # Errors
    /// When they ask for something else.
    pub fn from_annotations(annotations: &BTreeMap<String, String>) -> Result<Self, XdsProtocolError> {
        match annotations.get(XDS_ANNOTATION).map(String::as_str) {
            None | Some("delta") => Ok(Self::Delta),
            Some("sotw") => Ok(Self::StateOfTheWorld),
            Some(other) => Err(XdsProtocolError(other.to_owned())),
        }
    }

    /// `ApiConfigSource.api_type`.
    fn api_type(self) -> &'static str {
        match self {
            Self::Delta => "DELTA_GRPC",
            Self::StateOfTheWorld => "GRPC",
        }
    }
}

/// What distinguishes one sidecar's bootstrap from another's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bootstrap<'a> {
    /// `node.id`.
    pub node: &'a ProxyId,
    /// `node.cluster` is `WORKLOAD.NAMESPACE`.
    pub workload: &'a WorkloadKey,
    /// `node.locality.zone`: the zone in which its calls stay where they can.
    pub zone: Option<&'a str>,
    /// Where the control plane is: an address or a DNS name.
    pub control_plane: &'a str,
    /// Its DNS name, which its certificate must carry.
    pub control_plane_name: &'a str,
    /// The form of xDS that it speaks.
    pub protocol: XdsProtocol,
    /// How interception recognises the sidecar's sockets.
    pub sockets: SidecarSockets,
    /// Where its files are.
    pub directories: Directories<'a>,
    /// The pod's primary address, where it is known before the sidecar starts: Kubernetes tells it. An IPv6 address has
    /// the health port listen by IPv6.
    pub pod_ip: Option<IpAddr>,
    /// Probes of the application that the sidecar asks. They need `pod_ip`.
    pub probes: &'a [AskedProbe],
}

/// The directories of a sidecar's files, as it sees them. Those of the token and the root are swapped as the kubelet
/// does it.
#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub struct Directories<'a> {
    /// Holds the rendered files.
    pub files: &'a str,
    /// Holds `token`.
    pub token: &'a str,
    /// Holds `root.pem`.
    pub root: &'a str,
}

/// The files of a sidecar, as (name, text), to be written to [`Directories::files`]. Names of Kubernetes objects are
/// DNS labels and subdomains: only a zone, the value of a label, needs quotes in YAML, lest `0` is a number.
pub fn render(bootstrap: &Bootstrap<'_>) -> [(&'static str, String); 3] {
    let WorkloadKey { namespace, name } = bootstrap.workload;
    // SOL_SOCKET (1), SO_MARK (36), on every upstream socket before it connects.
    let socket_options = match bootstrap.sockets {
        SidecarSockets::Uid(_) => "[]".to_owned(),
        SidecarSockets::Mark(mark) => format!("[{{level: 1, name: 36, int_value: {mark}, state: STATE_PREBIND}}]"),
    };
    let ip = bootstrap.pod_ip.unwrap_or(IpAddr::V4(Ipv4Addr::UNSPECIFIED));
    let probes = bootstrap.pod_ip.map(|ip| Fragments::of(bootstrap.probes, ip)).unwrap_or_default();
    let values = [
        ("${NODE_ID}", bootstrap.node.to_string()),
        ("${NODE_CLUSTER}", format!("{name}.{namespace}")),
        ("${ZONE}", bootstrap.zone.unwrap_or_default().to_owned()),
        ("${SOCKET_OPTIONS}", socket_options),
        ("${XDS_API_TYPE}", bootstrap.protocol.api_type().to_owned()),
        ("${XDS_ADDRESS}", bootstrap.control_plane.to_owned()),
        ("${XDS_PORT}", XDS_PORT.to_string()),
        ("${XDS_NAME}", bootstrap.control_plane_name.to_owned()),
        ("${FILES}", bootstrap.directories.files.to_owned()),
        ("${TOKEN}", bootstrap.directories.token.to_owned()),
        ("${ROOT}", bootstrap.directories.root.to_owned()),
        ("${HEALTH_ADDRESS}", if ip.is_ipv4() { "0.0.0.0" } else { "::" }.to_owned()),
        ("${PROBE_ROUTES}", probes.routes),
        ("${PROBE_FILTERS}", probes.filters),
        ("${PROBE_CLUSTERS}", probes.clusters),
    ];
    let fill = |template: &str| values.iter().fold(template.to_owned(), |text, (key, value)| text.replace(key, value));
    [("bootstrap.yaml", fill(SIDECAR)), ("sds-token.yaml", fill(TOKEN)), ("sds-root.yaml", fill(ROOT))]
}

/// The environment of a sidecar's Envoy: whose its spans are, for the OpenTelemetry tracer. That is configured in the
/// listener that all sidecars share, and says nothing of the pod.
pub fn environment(node: &ProxyId, workload: &WorkloadKey) -> (String, String) {
    let (pod, WorkloadKey { namespace, name }) = (&node.0.name, workload);
    let attributes = format!("service.name={name}.{namespace},k8s.namespace.name={namespace},k8s.pod.name={pod}");
    ("OTEL_RESOURCE_ATTRIBUTES".to_owned(), attributes)
}

#[cfg(test)]
mod tests {
    use super::*;
    use crate::mesh::id::PodKey;

    #[test]
    fn nothing_is_left_to_fill_in_and_the_result_is_yaml() {
        let (node, workload) = (ProxyId(PodKey::new("shop", "cart-1")), WorkloadKey::new("shop", "cart"));
        for sockets in [SidecarSockets::Uid(1337), SidecarSockets::Mark(0x539)] {
            let bootstrap = Bootstrap {
                node: &node,
                workload: &workload,
                zone: Some("zone-a"),
                control_plane: "10.244.0.1",
                control_plane_name: CONTROL_PLANE_NAME,
                protocol: XdsProtocol::Delta,
                sockets,
                directories: Directories { files: "/run/weft/proxy", token: "/run/weft/token", root: "/run/weft/root" },
                pod_ip: None,
                probes: &[],
            };
            for (name, text) in render(&bootstrap) {
                let filled: String = text.lines().filter(|line| !line.starts_with('#')).collect();
                assert!(!filled.contains("${"), "{name}: {text}");
                let _: serde_json::Value = serde_saphyr::from_str(&text).expect(name);
            }
            let text = &render(&bootstrap)[0].1;
            assert!(text.contains("id: \"cart-1.shop\", cluster: \"cart.shop\""), "{text}");
            assert_eq!(text.matches("locality: {zone: \"zone-a\"}").count(), 2, "its own, and its local cluster's");
            let (_, attributes) = environment(&node, &workload);
            assert_eq!(attributes, "service.name=cart.shop,k8s.namespace.name=shop,k8s.pod.name=cart-1");
            assert_eq!(text.contains("int_value: 1337"), sockets == SidecarSockets::Mark(1337));
        }
    }

    #[test]
    fn an_annotation_chooses_the_form_of_xds() {
        let asked = |value: &str| {
            XdsProtocol::from_annotations(&BTreeMap::from([(XDS_ANNOTATION.to_owned(), value.to_owned())]))
        };
        assert_eq!(XdsProtocol::from_annotations(&BTreeMap::new()), Ok(XdsProtocol::Delta));
        assert_eq!(asked("sotw"), Ok(XdsProtocol::StateOfTheWorld));
        let refused = asked("rest").unwrap_err().to_string();
        assert!(refused.contains("weft.dev/xds") && refused.contains("`rest`"), "{refused}");
    }
}
