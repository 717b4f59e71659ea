//! A sidecar's bootstrap configuration, from the templates in `envoy-bootstrap/`.

use crate::mesh::id::{ProxyId, WorkloadKey};

use super::intercept::SidecarSockets;

/// The control plane's DNS name, which its certificate must carry.
pub const CONTROL_PLANE_NAME: &str = crate::control_plane::DNS_NAME;
/// Where the control plane serves xDS.
pub const XDS_PORT: u16 = 15010;

const SIDECAR: &str = include_str!("../../envoy-bootstrap/sidecar.yaml");
const TOKEN: &str = include_str!("../../envoy-bootstrap/sds-token.yaml");
const ROOT: &str = include_str!("../../envoy-bootstrap/sds-root.yaml");

/// What distinguishes one sidecar's bootstrap from another's.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Bootstrap<'a> {
    /// `node.id`.
    pub node: &'a ProxyId,
    /// `node.cluster` is `WORKLOAD.NAMESPACE`.
    pub workload: &'a WorkloadKey,
    /// Where the control plane is: an address or a DNS name.
    pub control_plane: &'a str,
    /// How interception recognises the sidecar's sockets.
    pub sockets: SidecarSockets,
    /// The directory, as the sidecar sees it, that holds the rendered files, `token/token` and `root/root.pem`.
    pub directory: &'a str,
}

/// The files of a sidecar, as (name, text), to be written to [`Bootstrap::directory`]. Names of Kubernetes objects
/// are DNS labels and subdomains, so that no value needs quoting in YAML.
pub fn render(bootstrap: &Bootstrap<'_>) -> [(&'static str, String); 3] {
    let WorkloadKey { namespace, name } = bootstrap.workload;
    // SOL_SOCKET (1), SO_MARK (36), on every upstream socket before it connects.
    let socket_options = match bootstrap.sockets {
        SidecarSockets::Uid(_) => "[]".to_owned(),
        SidecarSockets::Mark(mark) => format!("[{{level: 1, name: 36, int_value: {mark}, state: STATE_PREBIND}}]"),
    };
    let values = [
        ("${NODE_ID}", bootstrap.node.to_string()),
        ("${NODE_CLUSTER}", format!("{name}.{namespace}")),
        ("${SOCKET_OPTIONS}", socket_options),
        ("${XDS_ADDRESS}", bootstrap.control_plane.to_owned()),
        ("${XDS_PORT}", XDS_PORT.to_string()),
        ("${XDS_NAME}", CONTROL_PLANE_NAME.to_owned()),
        ("${DIR}", bootstrap.directory.to_owned()),
    ];
    let fill = |template: &str| values.iter().fold(template.to_owned(), |text, (key, value)| text.replace(key, value));
    [("bootstrap.yaml", fill(SIDECAR)), ("sds-token.yaml", fill(TOKEN)), ("sds-root.yaml", fill(ROOT))]
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
                control_plane: "10.244.0.1",
                sockets,
                directory: "/run/weft/proxy",
            };
            for (name, text) in render(&bootstrap) {
                let filled: String = text.lines().filter(|line| !line.starts_with('#')).collect();
                assert!(!filled.contains("${"), "{name}: {text}");
                let _: serde_json::Value = serde_saphyr::from_str(&text).expect(name);
            }
            let text = &render(&bootstrap)[0].1;
            assert!(text.contains("id: \"cart-1.shop\", cluster: \"cart.shop\""), "{text}");
            assert_eq!(text.contains("int_value: 1337"), sockets == SidecarSockets::Mark(1337));
        }
    }
}
