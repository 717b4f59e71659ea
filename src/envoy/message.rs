//! Small parts that many messages are made of.

use std::net::{IpAddr, Ipv6Addr, SocketAddr};
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{
    Address, AggregatedConfigSource, ApiVersion, CidrRange, ConfigSource, SocketAddress, TransportSocket,
    TypedExtensionConfig, address, config_source, transport_socket,
};
use envoy_types::pb::envoy::config::listener::v3::{
    AdditionalAddress, Filter, ListenerFilter, filter, listener_filter,
};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{HttpFilter, http_filter};
use envoy_types::pb::google::protobuf::{Any, BoolValue, Duration as ProtoDuration, UInt32Value};
use envoy_types::util::pack_any;
use ipnet::IpNet;
use prost::{Message, Name};

pub(super) fn uint32(value: u32) -> Option<UInt32Value> {
    Some(UInt32Value { value })
}

pub(super) fn boolean(value: bool) -> Option<BoolValue> {
    Some(BoolValue { value })
}

/// A duration of a constant of ours; all of them fit.
pub(super) fn duration(value: Duration) -> Option<ProtoDuration> {
    let seconds = i64::try_from(value.as_secs()).unwrap_or(i64::MAX);
    let nanos = i32::try_from(value.subsec_nanos()).unwrap_or(0);
    Some(ProtoDuration { seconds, nanos })
}

pub(super) fn socket_address(ip: IpAddr, port: u16) -> SocketAddress {
    SocketAddress {
        address: ip.to_string(),
        port_specifier: Some(PortSpecifier::PortValue(port.into())),
        ..Default::default()
    }
}

pub(super) fn address(socket: SocketAddr) -> Option<Address> {
    Some(Address { address: Some(address::Address::SocketAddress(socket_address(socket.ip(), socket.port()))) })
}

/// A port of a host that is known by its DNS name.
pub(super) fn by_name(host: &str, port: u16) -> Address {
    let address = SocketAddress {
        address: host.to_owned(),
        port_specifier: Some(PortSpecifier::PortValue(port.into())),
        ..Default::default()
    };
    Address { address: Some(address::Address::SocketAddress(address)) }
}

/// The same port of every IPv6 address, beside a listener on every IPv4 address. Only where there is IPv6: a kernel without
/// it refuses the listener.
pub(super) fn ipv6_too(port: u16, is_there: bool) -> Vec<AdditionalAddress> {
    let any = AdditionalAddress {
        address: address(SocketAddr::new(Ipv6Addr::UNSPECIFIED.into(), port)),
        ..Default::default()
    };
    is_there.then_some(any).into_iter().collect()
}

pub(super) fn cidr(range: &IpNet) -> CidrRange {
    CidrRange { address_prefix: range.network().to_string(), prefix_len: uint32(range.prefix_len().into()) }
}

/// From the stream that everything comes over. `patience` is how long Envoy waits for the first answer before it goes
/// on without one; zero waits for ever.
pub(super) fn ads(patience: Duration) -> ConfigSource {
    ConfigSource {
        config_source_specifier: Some(config_source::ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
        initial_fetch_timeout: duration(patience),
        resource_api_version: ApiVersion::V3.into(),
        ..Default::default()
    }
}

pub(super) fn network_filter<T: Message + Name>(name: &str, config: T) -> Filter {
    Filter { name: name.to_owned(), config_type: Some(filter::ConfigType::TypedConfig(pack_any(config))) }
}

pub(super) fn http_filter<T: Message + Name>(name: &str, config: T) -> HttpFilter {
    http_filter_any(name, pack_any(config))
}

/// A filter for the requests of routes that configure it, alone: the others do not pay for it.
pub(super) fn http_filter_of_routes<T: Message + Name>(name: &str, config: T) -> HttpFilter {
    HttpFilter { disabled: true, ..http_filter(name, config) }
}

pub(super) fn http_filter_any(name: &str, config: Any) -> HttpFilter {
    HttpFilter {
        name: name.to_owned(),
        config_type: Some(http_filter::ConfigType::TypedConfig(config)),
        ..Default::default()
    }
}

pub(super) fn listener_filter<T: Message + Name>(name: &str, config: T) -> ListenerFilter {
    ListenerFilter {
        name: name.to_owned(),
        config_type: Some(listener_filter::ConfigType::TypedConfig(pack_any(config))),
        ..Default::default()
    }
}

pub(super) fn transport_socket<T: Message + Name>(name: &str, config: T) -> TransportSocket {
    TransportSocket {
        name: name.to_owned(),
        config_type: Some(transport_socket::ConfigType::TypedConfig(pack_any(config))),
    }
}

pub(super) fn extension<T: Message + Name>(name: &str, config: T) -> TypedExtensionConfig {
    TypedExtensionConfig { name: name.to_owned(), typed_config: Some(pack_any(config)) }
}
