//! What is spoken on a Service port: `appProtocol`, else the port's name, else its number, else the first bytes decide.

use crate::mesh::object::Protocol;

/// The protocol of a port. `numbers` are the port and, when it is a number, the target port.
pub(super) fn of(app_protocol: Option<&str>, name: &str, numbers: &[u16]) -> Protocol {
    if let Some(declared) = app_protocol.filter(|text| !text.is_empty()) {
        // Declared, and as nothing that is HTTP: an opaque stream, whatever it is.
        return known(&declared.to_ascii_lowercase()).unwrap_or(Protocol::Tcp);
    }
    if let Some(protocol) = by_name(&name.to_ascii_lowercase()) {
        return protocol;
    }
    match numbers.iter().any(|number| Protocol::SERVER_FIRST.contains(number)) {
        true => Protocol::Tcp,
        false => Protocol::Detect,
    }
}

/// `http`, `http-api` or `grpc-web-public`: the longest known name before a dash.
fn by_name(name: &str) -> Option<Protocol> {
    match name.starts_with("grpc-web") {
        true => Some(Protocol::Http),
        false => known(name.split('-').next().unwrap_or(name)),
    }
}

/// The well-known names, those of Kubernetes (KEP-3726) and those that other meshes have made usual.
fn known(name: &str) -> Option<Protocol> {
    Some(match name {
        // gRPC-Web is HTTP/1.1 as well as HTTP/2, and its trailers are in the body. WebSocket begins as HTTP/1.1.
        "http" | "http1" | "kubernetes.io/ws" | "ws" | "grpc-web" => Protocol::Http,
        "http2" | "h2c" | "kubernetes.io/h2c" => Protocol::Http2,
        "grpc" => Protocol::Grpc,
        "tcp" | "tls" | "https" | "kubernetes.io/wss" | "wss" | "mysql" | "postgres" | "postgresql" | "mongo"
        | "mongodb" | "redis" | "amqp" | "kafka" | "nats" | "smtp" | "ldap" | "memcached" => Protocol::Tcp,
        _ => return None,
    })
}
