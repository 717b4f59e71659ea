//! What sidecars report of calls that enforcement would deny: `envoy.service.accesslog.v3.AccessLogService`.
//!
//! A report is read no faster than [`RATE`] says. What a sidecar cannot send in time it drops (`logs_dropped` of its
//! statistics): then the calls that are counted are fewer than those that were made.

use std::fmt;
use std::sync::Arc;

use envoy_types::pb::envoy::config::core::v3::{Address, RequestMethod, address, socket_address};
use envoy_types::pb::envoy::data::accesslog::v3::tls_properties::certificate_properties::subject_alt_name::San;
use envoy_types::pb::envoy::data::accesslog::v3::{
    AccessLogCommon, AccessLogType, HttpAccessLogEntry, TcpAccessLogEntry,
};
use envoy_types::pb::envoy::service::accesslog::v3::StreamAccessLogsMessage;
use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::LogEntries;
use tonic::Status;

use super::auth::{self, NodeError, ProxyIdentity};
use super::requests::{Rate, Requests};
use crate::mesh::{ProxyId, SpiffeId};

/// Messages of one sidecar, each of which holds at most a second's worth of calls, or some 20 to 30 of them.
pub(crate) const RATE: Rate = Rate { per_second: 4, burst: 40 };

/// One call that enforcement would have denied.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Denial {
    /// Who called; `None` outside the mesh's mTLS.
    pub caller: Option<SpiffeId>,
    /// The pod's port.
    pub port: u16,
    /// What kind of call it was.
    pub call: Call,
}

/// A kind of call.
#[derive(Clone, PartialEq, Eq, Debug)]
pub enum Call {
    /// An HTTP request with this method.
    Request(&'static str),
    /// A raw connection, which has ended.
    Connection,
    /// A raw connection that goes on; it is told of again.
    OpenConnection,
}

/// Whoever wants to know what would be denied. It is called while a report is read: it may not wait.
pub trait Denials: Send + Sync + fmt::Debug {
    /// The callee's proxy reports these calls.
    fn denied(&self, callee: &ProxyId, denials: Vec<Denial>);
}

impl Denials for super::learn::Nobody {
    fn denied(&self, _: &ProxyId, _: Vec<Denial>) {}
}

/// Reads a sidecar's report until it ends; `Err` is the status that it ends with.
pub(crate) async fn read(
    identity: &ProxyIdentity,
    mut messages: Requests<StreamAccessLogsMessage>,
    denials: Arc<dyn Denials>,
) -> Result<(), Status> {
    let mut callee = None;
    while let Some(message) = messages.message().await? {
        // Only the first message says who reports.
        if let Some(node) = message.identifier.and_then(|identifier| identifier.node) {
            callee = Some(auth::admit(identity, &node.id).map_err(refuse)?);
        }
        let callee = callee.as_ref().ok_or(NodeError::Missing).map_err(refuse)?;
        let found = match message.log_entries {
            Some(LogEntries::HttpLogs(entries)) => entries.log_entry.iter().filter_map(request).collect(),
            Some(LogEntries::TcpLogs(entries)) => entries.log_entry.iter().filter_map(connection).collect(),
            None => Vec::new(),
        };
        denials.denied(callee, found);
    }
    Ok(())
}

fn refuse(error: NodeError) -> Status {
    Status::permission_denied(error.to_string())
}

fn request(entry: &HttpAccessLogEntry) -> Option<Denial> {
    let method = entry.request.as_ref().map(|request| request.request_method());
    // Envoy has a name for the methods of RFC 9110 and for PATCH, and none for all others.
    let method = match method.unwrap_or_default() {
        RequestMethod::MethodUnspecified => "OTHER",
        method => method.as_str_name(),
    };
    denial(entry.common_properties.as_ref()?, Call::Request(method))
}

fn connection(entry: &TcpAccessLogEntry) -> Option<Denial> {
    let common = entry.common_properties.as_ref()?;
    let ended = common.access_log_type() == AccessLogType::TcpConnectionEnd;
    denial(common, if ended { Call::Connection } else { Call::OpenConnection })
}

fn denial(common: &AccessLogCommon, call: Call) -> Option<Denial> {
    let certificate = common.tls_properties.as_ref().and_then(|tls| tls.peer_certificate_properties.as_ref());
    let mut names = certificate.into_iter().flat_map(|certificate| &certificate.subject_alt_name);
    let caller = names.find_map(|name| match name.san.as_ref()? {
        San::Uri(uri) => uri.parse().ok(),
        San::Dns(_) => None,
    });
    Some(Denial { caller, port: port(common.downstream_local_address.as_ref()?)?, call })
}

fn port(address: &Address) -> Option<u16> {
    let Some(address::Address::SocketAddress(address)) = &address.address else { return None };
    match address.port_specifier {
        Some(socket_address::PortSpecifier::PortValue(port)) => u16::try_from(port).ok(),
        _ => None,
    }
}

#[cfg(test)]
mod tests {
    use std::sync::Mutex;

    use bytes::Bytes;
    use envoy_types::pb::envoy::config::core::v3::{Node, SocketAddress};
    use envoy_types::pb::envoy::data::accesslog::v3::tls_properties::CertificateProperties;
    use envoy_types::pb::envoy::data::accesslog::v3::tls_properties::certificate_properties::SubjectAltName;
    use envoy_types::pb::envoy::data::accesslog::v3::{HttpRequestProperties, TlsProperties};
    use envoy_types::pb::envoy::service::accesslog::v3::stream_access_logs_message::{
        HttpAccessLogEntries, Identifier, TcpAccessLogEntries,
    };
    use prost::Message;

    use super::*;

    #[derive(Debug, Default)]
    struct Told(Mutex<Vec<(ProxyId, Vec<Denial>)>>);

    impl Denials for Told {
        fn denied(&self, callee: &ProxyId, denials: Vec<Denial>) {
            self.0.lock().unwrap().push((callee.clone(), denials));
        }
    }

    fn common(caller: &str, kind: AccessLogType) -> Option<AccessLogCommon> {
        let san = SubjectAltName { san: Some(San::Uri(caller.to_owned())) };
        let certificate = CertificateProperties { subject_alt_name: vec![san], ..Default::default() };
        let local = SocketAddress {
            address: "10.244.0.2".to_owned(),
            port_specifier: Some(socket_address::PortSpecifier::PortValue(8080)),
            ..Default::default()
        };
        Some(AccessLogCommon {
            tls_properties: (!caller.is_empty())
                .then(|| TlsProperties { peer_certificate_properties: Some(certificate), ..Default::default() }),
            downstream_local_address: Some(Address { address: Some(address::Address::SocketAddress(local)) }),
            access_log_type: kind.into(),
            ..Default::default()
        })
    }

    fn requests(node: &str, methods: &[RequestMethod], caller: &str) -> StreamAccessLogsMessage {
        let entry = |method: &RequestMethod| HttpAccessLogEntry {
            common_properties: common(caller, AccessLogType::DownstreamEnd),
            request: Some(HttpRequestProperties { request_method: (*method).into(), ..Default::default() }),
            ..Default::default()
        };
        let node = (!node.is_empty()).then(|| Node { id: node.to_owned(), ..Default::default() });
        StreamAccessLogsMessage {
            identifier: node.map(|node| Identifier { node: Some(node), log_name: String::new() }),
            log_entries: Some(LogEntries::HttpLogs(HttpAccessLogEntries {
                log_entry: methods.iter().map(entry).collect(),
            })),
        }
    }

    async fn told(messages: &[StreamAccessLogsMessage]) -> (Result<(), tonic::Code>, Vec<(ProxyId, Vec<Denial>)>) {
        let mut bytes = Vec::new();
        for message in messages {
            bytes.push(0);
            bytes.extend(u32::try_from(message.encoded_len()).unwrap().to_be_bytes());
            message.encode(&mut bytes).unwrap();
        }
        let body = tonic::body::Body::new(http_body_util::Full::new(Bytes::from(bytes)));
        let identity = ProxyIdentity {
            spiffe: "spiffe://cluster.local/ns/shop/sa/cart".parse().unwrap(),
            pod: Some("cart-1.shop".parse::<ProxyId>().unwrap().0),
        };
        let told = Arc::new(Told::default());
        let ended = read(&identity, Requests::new(body, RATE), told.clone()).await;
        let told = told.0.lock().unwrap().clone();
        (ended.map_err(|status| status.code()), told)
    }

    #[tokio::test]
    async fn a_report_says_who_called_what() {
        let web = "spiffe://cluster.local/ns/shop/sa/web";
        let (ended, told) = told(&[
            requests("cart-1.shop", &[RequestMethod::Get, RequestMethod::MethodUnspecified], web),
            requests("", &[RequestMethod::Patch], ""),
            StreamAccessLogsMessage {
                identifier: None,
                log_entries: Some(LogEntries::TcpLogs(TcpAccessLogEntries {
                    log_entry: [AccessLogType::TcpPeriodic, AccessLogType::TcpConnectionEnd]
                        .map(|kind| TcpAccessLogEntry { common_properties: common(web, kind), ..Default::default() })
                        .into(),
                })),
            },
        ])
        .await;
        let by = |caller: &str, call| Denial { caller: caller.parse().ok(), port: 8080, call };
        let callee: ProxyId = "cart-1.shop".parse().unwrap();
        assert_eq!(ended, Ok(()));
        assert_eq!(
            told,
            [
                (callee.clone(), vec![by(web, Call::Request("GET")), by(web, Call::Request("OTHER"))]),
                (callee.clone(), vec![by("", Call::Request("PATCH"))]),
                (callee, vec![by(web, Call::OpenConnection), by(web, Call::Connection)]),
            ]
        );
    }

    #[tokio::test]
    async fn nobody_reports_for_another_pod_or_for_nobody() {
        for node in ["cart-2.shop", ""] {
            let (ended, told) = told(&[requests(node, &[RequestMethod::Get], "")]).await;
            assert_eq!((ended, told), (Err(tonic::Code::PermissionDenied), vec![]), "{node}");
        }
    }
}
