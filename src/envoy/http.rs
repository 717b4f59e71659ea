//! What both ends of a hop say of HTTP itself, so that what one application says reaches the other as it was said.

use envoy_types::pb::envoy::config::core::v3::{Http1ProtocolOptions, Http2ProtocolOptions, HttpProtocolOptions};

use super::message::uint32;

/// The longest headers of a request or an answer, together: Envoy's own limit of 60 KiB leaves nothing for what a
/// sidecar adds to headers that an application may send.
pub(super) const MAX_HEADERS_KB: u32 = 96;

/// How many headers a request or an answer may have. Envoy's own limit is 100.
const MAX_HEADERS: u32 = 1000;

/// The host of a request of HTTP/1.0 that names none. Envoy would refuse it.
pub(super) const UNKNOWN_HOST: &str = "unknown";

/// HTTP/1.1 with trailers, which Envoy would drop.
pub(super) fn http1() -> Http1ProtocolOptions {
    Http1ProtocolOptions { enable_trailers: true, ..Default::default() }
}

/// HTTP/2 with extended CONNECT, by which WebSocket is opened there (RFC 8441).
pub(super) fn http2() -> Http2ProtocolOptions {
    Http2ProtocolOptions { allow_connect: true, ..Default::default() }
}

/// What HTTP/1.1 and HTTP/2 have in common.
pub(super) fn common() -> HttpProtocolOptions {
    HttpProtocolOptions { max_headers_count: uint32(MAX_HEADERS), ..Default::default() }
}
