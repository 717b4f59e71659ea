//! The mesh's TLS: version 1.3, both sides prove a SPIFFE identity, and a private ALPN says what is inside.

use std::collections::BTreeSet;
use std::time::Duration;

use envoy_types::pb::envoy::config::core::v3::TransportSocket;
use envoy_types::pb::envoy::extensions::transport_sockets::raw_buffer::v3::RawBuffer;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::common_tls_context::{
    CombinedCertificateValidationContext, ValidationContextType,
};
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::subject_alt_name_matcher::SanType;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::tls_parameters::TlsProtocol;
use envoy_types::pb::envoy::extensions::transport_sockets::tls::v3::{
    CertificateValidationContext, CommonTlsContext, DownstreamTlsContext, SdsSecretConfig, SubjectAltNameMatcher,
    TlsParameters, UpstreamTlsContext,
};
use envoy_types::pb::envoy::r#type::matcher::v3::{StringMatcher, string_matcher::MatchPattern};

use super::message::{ads, boolean, transport_socket};
use super::names::{ALPN_HTTP1, ALPN_HTTP2, ALPN_TCP, SECRET_ROOT, SECRET_WORKLOAD};
use crate::mesh::{SpiffeId, TrustDomain};

/// What a caller does with an endpoint that has a sidecar: only these identities are believed.
pub(super) fn upstream(sni: String, identities: &BTreeSet<SpiffeId>, trust_domain: &TrustDomain) -> TransportSocket {
    let patterns = exactly(identities.iter(), trust_domain);
    // What most connections are. The listener states it for the others; of HTTP/1.1 it does not, since whatever is stated
    // costs each request that picks a connection of the pool.
    let context = UpstreamTlsContext {
        common_tls_context: Some(common(vec![ALPN_HTTP1.to_owned()], patterns)),
        sni,
        ..Default::default()
    };
    transport_socket("envoy.transport_sockets.tls", context)
}

/// What a callee asks of a caller: any identity of the mesh. Who may do what is authorisation's question.
pub(super) fn downstream(trust_domain: &TrustDomain) -> TransportSocket {
    accepting(vec![MatchPattern::Prefix(format!("spiffe://{trust_domain}/ns/"))])
}

/// What a callee asks of a caller where nobody else may say or hear anything: one of these identities.
pub(super) fn downstream_from<'a>(
    identities: impl Iterator<Item = &'a SpiffeId>,
    trust_domain: &TrustDomain,
) -> TransportSocket {
    accepting(exactly(identities, trust_domain))
}

fn exactly<'a>(identities: impl Iterator<Item = &'a SpiffeId>, trust_domain: &TrustDomain) -> Vec<MatchPattern> {
    let mut patterns: Vec<_> = identities.map(|id| MatchPattern::Exact(id.to_string())).collect();
    if patterns.is_empty() {
        // An empty list would mean anyone: this is the name of nobody.
        patterns.push(MatchPattern::Exact(format!("spiffe://{trust_domain}/")));
    }
    patterns
}

fn accepting(identities: Vec<MatchPattern>) -> TransportSocket {
    let alpn = [ALPN_HTTP1, ALPN_HTTP2, ALPN_TCP].map(str::to_owned).into();
    let context = DownstreamTlsContext {
        common_tls_context: Some(common(alpn, identities)),
        require_client_certificate: boolean(true),
        ..Default::default()
    };
    transport_socket("envoy.transport_sockets.tls", context)
}

/// In clear.
pub(super) fn plaintext() -> TransportSocket {
    transport_socket("envoy.transport_sockets.raw_buffer", RawBuffer {})
}

fn common(alpn_protocols: Vec<String>, identities: Vec<MatchPattern>) -> CommonTlsContext {
    let names = identities.into_iter().map(|pattern| SubjectAltNameMatcher {
        san_type: SanType::Uri.into(),
        matcher: Some(StringMatcher { match_pattern: Some(pattern), ..Default::default() }),
        ..Default::default()
    });
    let validation = CombinedCertificateValidationContext {
        default_validation_context: Some(CertificateValidationContext {
            match_typed_subject_alt_names: names.collect(),
            ..Default::default()
        }),
        validation_context_sds_secret_config: Some(secret(SECRET_ROOT)),
        ..Default::default()
    };
    CommonTlsContext {
        // Envoy as a client would otherwise stop at 1.2.
        tls_params: Some(TlsParameters {
            tls_minimum_protocol_version: TlsProtocol::TlSv13.into(),
            tls_maximum_protocol_version: TlsProtocol::TlSv13.into(),
            ..Default::default()
        }),
        tls_certificate_sds_secret_configs: vec![secret(SECRET_WORKLOAD)],
        alpn_protocols,
        validation_context_type: Some(ValidationContextType::CombinedValidationContext(validation)),
        ..Default::default()
    }
}

/// A proxy does not serve before it has its certificates, however long that takes: it waits without a limit.
fn secret(name: &str) -> SdsSecretConfig {
    SdsSecretConfig { name: name.to_owned(), sds_config: Some(ads(Duration::ZERO)) }
}
