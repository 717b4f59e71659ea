//! The node's network: the namespace in which the control plane runs and through which pods reach each other.
//!
//! ```text
//!   pod netns                        node netns
//!   eth0 10.244.0.7/32 ───veth─── p10.244.0.7      lo 10.244.0.1/32 (node), 10.96.0.10/32 (DNS)
//!   default via 10.244.0.1           route 10.244.0.7/32
//! ```
//!
//! There is no bridge: every packet between pods is routed, so that the node's nftables see it and can act as
//! kube-proxy. The pods' gateway is the node's own address, for which the node answers ARP on every interface.

use std::fs;
use std::net::{IpAddr, Ipv4Addr, Ipv6Addr, SocketAddr};

use super::tools::{Tool, ToolError};

pub use super::cluster::{DNS_ADDRESS as DNS_IP, NODE_ADDRESS as NODE_IP, NODE_ADDRESS_IPV6 as NODE_IPV6};

/// Where the control plane serves health, metrics and inspection: on the node's address, so that pods may scrape it.
pub const CONTROL_PLANE_ADMIN: SocketAddr = SocketAddr::new(IpAddr::V4(NODE_IP), 15014);

/// Why the network could not be made.
#[derive(Debug, thiserror::Error)]
pub enum NetworkError {
    /// A tool failed or is missing.
    #[error(transparent)]
    Tool(#[from] ToolError),
    /// A kernel setting could not be written.
    #[error("cannot set {setting}: {source}")]
    Setting {
        /// The file below `/proc/sys`.
        setting: &'static str,
        /// What the kernel answered.
        source: std::io::Error,
    },
}

/// Sets up this network namespace as the node's.
pub fn set_up(dual_stack: bool) -> Result<(), NetworkError> {
    // A new namespace takes these from the host: strict reverse-path filters would drop what is redirected.
    set("net/ipv4/ip_forward", "1")?;
    set("net/ipv4/conf/all/rp_filter", "0")?;
    set("net/ipv4/conf/default/rp_filter", "0")?;
    no_link_local_addresses("default");
    if dual_stack {
        set("net/ipv6/conf/all/disable_ipv6", "0")?;
        set("net/ipv6/conf/default/disable_ipv6", "0")?;
        set("net/ipv6/conf/all/forwarding", "1")?;
    }
    let ipv6 = match dual_stack {
        true => format!(
            "address add {NODE_IPV6}/128 dev lo\nroute add unreachable fd00:10:244::/64\nroute add fd00:10:96::/64 dev lo\n"
        ),
        false => String::new(),
    };
    let batch = format!(
        "link set lo up\naddress add {NODE_IP}/32 dev lo\naddress add {DNS_IP}/32 dev lo\n\
         route add unreachable 10.244.0.0/16\n{ipv6}"
    );
    Ok(Tool::Ip.batch(&batch, "set up the node's network")?)
}

/// Connects the pod whose network namespace process `pid` is in (a pid as this process sees it).
pub fn connect_pod(pod: Ipv4Addr, ipv6: Option<Ipv6Addr>, pid: i32) -> Result<(), NetworkError> {
    let link = link_name(pod);
    // Neighbours are asked for on the link itself, so the node has its address there too; from its link-local one it asks
    // for those to whom it only forwards.
    let ipv6 = ipv6.map_or_else(String::new, |pod| {
        format!("address add {NODE_IPV6}/128 dev {link} nodad\naddress add fe80::1/64 dev {link} nodad\nroute add {pod}/128 dev {link}\n")
    });
    let batch = format!(
        "link add {link} type veth peer name eth0 netns {pid}\n\
         link set {link} up\n\
         route add {pod}/32 dev {link} src {NODE_IP}\n{ipv6}"
    );
    Ok(Tool::Ip.batch(&batch, &format!("connect pod {pod}"))?)
}

/// Removes the pod's link. It goes with the pod's namespace anyway, but later: its address could be in use again.
pub(crate) fn disconnect_pod(pod: Ipv4Addr) -> Result<(), NetworkError> {
    Ok(Tool::Ip.batch(&format!("link delete {}\n", link_name(pod)), &format!("disconnect pod {pod}"))?)
}

/// Sets up the pod's end, from inside its network namespace.
pub fn set_up_pod(pod: Ipv4Addr, ipv6: Option<Ipv6Addr>) -> Result<(), NetworkError> {
    set("net/ipv4/conf/all/rp_filter", "0")?;
    set("net/ipv4/conf/default/rp_filter", "0")?;
    no_link_local_addresses("eth0");
    // As in a container runtime: an unprivileged application may listen on port 80.
    set("net/ipv4/ip_unprivileged_port_start", "0")?;
    if ipv6.is_some() {
        set("net/ipv6/conf/all/disable_ipv6", "0")?;
    }
    // From ::6 the sidecar calls its application.
    let ipv6 = ipv6.map_or_else(String::new, |pod| {
        format!(
            "address add ::6/128 dev lo\n\
             address add {pod}/128 dev eth0 nodad\n\
             route add {NODE_IPV6}/128 dev eth0\n\
             route add ::/0 via {NODE_IPV6} dev eth0 src {pod}\n"
        )
    });
    let batch = format!(
        "link set lo up\n\
         address add {pod}/32 dev eth0\n\
         link set eth0 up\n\
         route add {NODE_IP}/32 dev eth0 scope link\n\
         route add default via {NODE_IP} dev eth0 src {pod}\n{ipv6}"
    );
    Ok(Tool::Ip.batch(&batch, &format!("set up the network of pod {pod}"))?)
}

/// At most 15 characters, Linux's limit: `p` and the longest address of 10.244.0.0/16 are exactly that.
fn link_name(pod: Ipv4Addr) -> String {
    format!("p{pod}")
}

/// Pods have no IPv6 addresses but those that are given to them; a link-local one would only cost the wait for duplicates.
fn no_link_local_addresses(of: &str) {
    // A kernel without IPv6 does not have the setting.
    let _ = fs::write(format!("/proc/sys/net/ipv6/conf/{of}/addr_gen_mode"), "1");
}

fn set(setting: &'static str, value: &str) -> Result<(), NetworkError> {
    fs::write(format!("/proc/sys/{setting}"), value).map_err(|source| NetworkError::Setting { setting, source })
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn the_longest_address_still_names_a_link() {
        assert_eq!(link_name(Ipv4Addr::new(10, 244, 255, 255)).len(), 15);
    }
}
