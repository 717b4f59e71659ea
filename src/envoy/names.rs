//! Every name of an Envoy resource, and the constants that both ends of a hop must agree on.
//!
//! A resource name is formatted here and nowhere else.

use std::collections::BTreeSet;
use std::net::{IpAddr, SocketAddr};

use crate::mesh::object::ConnectionSettings;
use crate::mesh::{ServiceAccountKey, ServiceKey, SpiffeId};
use crate::snapshot::ResourceName;

/// The listener that an application's outgoing connections are redirected to.
pub const OUTBOUND: &str = "outbound";
/// The listener that a pod's incoming connections are redirected to, and the cluster that leads to the application.
pub const INBOUND: &str = "inbound";
/// The routes of what arrives outside the mesh's mTLS.
pub const INBOUND_IN_CLEAR: &str = "inbound-in-clear";
/// The cluster that leads to the control plane; it is in the bootstrap of every sidecar.
pub const CONTROL_PLANE: &str = "xds";
/// The cluster for destinations outside the mesh: on to where the application meant to go.
pub const PASSTHROUGH: &str = "passthrough";
/// The cluster of the collector of spans.
pub const TRACING: &str = "tracing";
/// The cluster of the collector of access logs.
pub const ACCESS_LOG: &str = "access-log";

/// The routes of requests to hosts outside the mesh, where an Egress must allow them.
pub const EGRESS: &str = "egress";
/// Statistics of what leaves for an allowed host are called [`EGRESS`]; those of connections that no Egress allows, this.
pub const EGRESS_DENIED: &str = "egress_denied";
/// The cluster for hosts outside the mesh that are allowed by a wildcard: to whichever the request or the SNI names.
pub const EGRESS_WILDCARD: &str = "egress/wildcard";

/// The port of [`OUTBOUND`].
pub const OUTBOUND_PORT: u16 = 15001;
/// The port of [`INBOUND`].
pub const INBOUND_PORT: u16 = 15006;

pub use crate::ca::{MESH_ROOT as SECRET_ROOT, WORKLOAD as SECRET_WORKLOAD};

/// Carries the original destination from the connection to the choice of route and cluster; removed before the
/// request leaves.
pub const DESTINATION_HEADER: &str = "x-weft-dst";

/// The variable of a sidecar's environment that has the pod's ServiceAccount, `NAMESPACE/NAME`.
pub const SERVICE_ACCOUNT_VARIABLE: &str = "WEFT_SERVICE_ACCOUNT";

/// The filter state of an application's connection by which routes that are for some callers only know whose it is. All
/// sidecars have the same routes.
pub const SOURCE_STATE: &str = "weft.source";

/// The value of [`SOURCE_STATE`]: that of [`SERVICE_ACCOUNT_VARIABLE`], or `-` where there is none.
pub const SOURCE_FORMAT: &str = "%ENVIRONMENT(WEFT_SERVICE_ACCOUNT)%";

/// What a callee's sidecar adds to its 503 when no connection to the application came about: nobody has seen the
/// request, so the caller's sidecar may ask another endpoint. Neither application gets to see it.
pub const UNSERVED_HEADER: &str = "x-weft-unserved";

/// The original destination of a connection, in the form of a cluster's name.
pub const DESTINATION_FORMAT: &str = "%DOWNSTREAM_LOCAL_ADDRESS%";

/// ALPN between sidecars. A private value tells the mesh's TLS from an application's own, and says what is inside:
/// the callee chooses its filter chain by it. HTTP/1.0 is among HTTP/1.1.
pub const ALPN_HTTP1: &str = "weft:HTTP/1.1";
/// See [`ALPN_HTTP1`].
pub const ALPN_HTTP2: &str = "weft:HTTP/2";
/// See [`ALPN_HTTP1`].
pub const ALPN_TCP: &str = "weft:TCP";

/// The cluster (and its endpoints) of a destination: `10.96.0.5:80`, `[fd00::5]:80`.
pub fn destination(address: SocketAddr) -> ResourceName {
    address.to_string().into()
}

/// A caller as [`SOURCE_STATE`] names it: `shop/web`.
pub fn source(account: &ServiceAccountKey) -> String {
    account.to_string()
}

/// An address as it stands before the port in [`destination`]: `10.96.0.5`, `[fd00::5]`.
pub fn host(ip: IpAddr) -> String {
    match ip {
        IpAddr::V4(ip) => ip.to_string(),
        IpAddr::V6(ip) => format!("[{ip}]"),
    }
}

/// The cluster that takes the requests of a destination which the `matches` of this TrafficSplit fit:
/// `10.96.0.5:80/split/beta`.
pub fn split(address: SocketAddr, split: &str) -> ResourceName {
    format!("{address}/split/{split}").into()
}

/// The endpoints of a cluster whose pods prove these identities: `10.96.0.5:80@3f2a9c1e`. While a cluster with other
/// identities warms, the one in use goes on with the endpoints that it believes: under one name it would be given
/// those of the new one too early, and refuse to connect to them. A cluster with other settings warms beside the one in
/// use likewise.
pub fn endpoints(
    cluster: &ResourceName,
    identities: &BTreeSet<SpiffeId>,
    settings: &ConnectionSettings,
) -> ResourceName {
    let mut hash = xxhash_rust::xxh3::Xxh3::new();
    for identity in identities {
        hash.update(identity.to_string().as_bytes());
        hash.update(b"\n");
    }
    if *settings != ConnectionSettings::default() {
        hash.update(format!("{settings:?}").as_bytes());
    }
    format!("{cluster}@{:08x}", hash.digest() as u32).into()
}

/// The destination that a cluster's name states, if it is one.
pub fn parse_destination(name: &ResourceName) -> Option<SocketAddr> {
    let address: SocketAddr = name.as_str().parse().ok()?;
    // One destination has one name: `[::ffff:10.0.0.1]:80` and `[0::1]:80` are no names of ours.
    (address.to_string() == name.as_str()).then_some(address)
}

/// The destination whose calls this cluster takes, all of them or those that a split's `matches` fit.
pub fn called_destination(name: &ResourceName) -> Option<SocketAddr> {
    match name.as_str().split_once("/split/") {
        Some((address, _)) => parse_destination(&address.into()),
        None => parse_destination(name),
    }
}

/// How a Service's cluster is called in statistics: `shop/cart/80`. No dots, which separate the parts of a statistic.
pub fn stat_name(service: &ServiceKey, port: u16) -> String {
    format!("{}/{}/{port}", service.namespace, service.name)
}

/// What the name of a TrafficSplit's cluster in statistics ends with, after [`stat_name`]: `/split/beta`.
pub fn split_stat_suffix(split: &str) -> String {
    format!("/split/{}", split.replace('.', "_"))
}

/// How a cluster of a bare address is called in statistics: `pod/10_244_0_7/8080`.
pub fn address_stat_name(kind: &str, ip: IpAddr, port: u16) -> String {
    format!("{kind}/{}/{port}", ip.to_string().replace(['.', ':'], "_"))
}

/// The cluster of a host outside the mesh: `egress/api.example.com:443`.
pub fn egress(host: &str, port: u16) -> ResourceName {
    format!("egress/{host}:{port}").into()
}

/// The host outside the mesh that a cluster's name states, if it is one.
pub fn parse_egress(name: &ResourceName) -> Option<(&str, u16)> {
    let (host, port) = name.as_str().strip_prefix("egress/")?.rsplit_once(':')?;
    let port = port.parse().ok()?;
    (egress(host, port) == *name && !host.is_empty()).then_some((host, port))
}

/// How the cluster of a host outside the mesh is called in statistics: `egress/api_example_com/443`.
pub fn egress_stat_name(host: &str, port: u16) -> String {
    format!("egress/{}/{port}", host.replace('.', "_"))
}

/// The SNI of the mesh's TLS: `80.cart.shop.svc.cluster.local`.
pub fn sni(service: &ServiceKey, port: u16) -> String {
    format!("{port}.{}.{}.svc.cluster.local", service.name, service.namespace)
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_destination_has_one_name() {
        for text in ["10.96.0.5:80", "[fd00::5]:80"] {
            let address = parse_destination(&text.into()).expect("a destination");
            assert_eq!(destination(address).as_str(), text);
        }
        let split = split("[fd00::5]:80".parse().expect("an address"), "beta.v2");
        assert_eq!(called_destination(&split).map(|at| at.to_string()), Some("[fd00::5]:80".to_owned()));
        assert_eq!(called_destination(&"10.96.0.5:80".into()).map(|at| at.port()), Some(80));
        for text in ["", "cart", "10.96.0.5", "10.96.0.5:080", "[0:0::1]:80", "10.96.0.5:80/split/a", "10.96.0.5:99999"]
        {
            assert_eq!(parse_destination(&text.into()), None, "{text}");
        }
    }
}
