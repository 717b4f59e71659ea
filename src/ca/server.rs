//! The control plane's own certificate, renewed while the server runs.

use std::sync::Arc;

use arc_swap::ArcSwap;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

use super::LeafPolicy;
use super::authority::{Authority, CaError};

/// A server certificate that is replaced at about half of its life; a TLS handshake uses the current one.
#[derive(Debug)]
pub struct ServerCertificate {
    authority: Arc<Authority>,
    dns_name: String,
    policy: LeafPolicy,
    current: ArcSwap<CertifiedKey>,
}

impl ServerCertificate {
    /// The first certificate for `dns_name`. Whoever makes it also runs [`ServerCertificate::renew_forever`].
    pub fn new(authority: Arc<Authority>, dns_name: &str, policy: LeafPolicy) -> Result<Self, CaError> {
        let current = ArcSwap::from(mint(&authority, dns_name, policy)?);
        Ok(Self { authority, dns_name: dns_name.to_owned(), policy, current })
    }

    /// Renews the certificate at about half of its life, until the future is dropped.
    pub async fn renew_forever(&self) {
        let clock = self.authority.clock();
        let mut term = self.policy.term(clock.now());
        loop {
            while let Some(left) = term.left(clock.now()) {
                tokio::time::sleep(left).await;
            }
            match mint(&self.authority, &self.dns_name, self.policy) {
                Ok(next) => {
                    self.current.store(next);
                    term = self.policy.term(clock.now());
                }
                Err(error) => {
                    tracing::error!(dns_name = %self.dns_name, %error, "the server certificate was not renewed");
                    term = self.policy.retry(clock.now());
                }
            }
        }
    }

    /// TLS 1.3 for a gRPC server, without client certificates: a proxy proves who it is by its token.
    pub fn server_config(self: &Arc<Self>) -> Result<rustls::ServerConfig, rustls::Error> {
        let mut config = rustls::ServerConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])?
            .with_no_client_auth()
            .with_cert_resolver(self.clone());
        config.alpn_protocols = vec![b"h2".to_vec()];
        Ok(config)
    }
}

impl ResolvesServerCert for ServerCertificate {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        Some(self.current.load_full())
    }
}

fn mint(authority: &Authority, dns_name: &str, policy: LeafPolicy) -> Result<Arc<CertifiedKey>, CaError> {
    let issued = authority.issue_server(dns_name, policy.lifetime)?;
    // What was just made is always readable; an error is passed on all the same, as nothing here may panic.
    let unusable = |_| CaError::Sign { subject: dns_name.to_owned(), source: rcgen::Error::CouldNotParseKeyPair };
    let chain =
        CertificateDer::pem_slice_iter(issued.chain_pem.as_bytes()).collect::<Result<_, _>>().map_err(unusable)?;
    let key = PrivateKeyDer::from_pem_slice(issued.key.expose_pem().as_bytes()).map_err(unusable)?;
    let key = ring::sign::any_supported_type(&key)
        .map_err(|_| CaError::Sign { subject: dns_name.to_owned(), source: rcgen::Error::CouldNotParseKeyPair })?;
    Ok(Arc::new(CertifiedKey::new(chain, key)))
}

#[cfg(test)]
mod tests {
    use std::time::{Duration, SystemTime};

    use super::*;
    use crate::ca::describe::describe_all;
    use crate::ca::test_clock::tokio_clock;
    use crate::mesh::TrustDomain;

    fn not_after(server: &ServerCertificate) -> SystemTime {
        let der = server.current.load().cert[0].clone();
        let (_, certificate) = x509_parser::parse_x509_certificate(&der).unwrap();
        certificate.validity().not_after.to_datetime().into()
    }

    #[tokio::test(start_paused = true)]
    async fn a_server_certificate_never_reaches_its_end() {
        let authority = Arc::new(Authority::in_memory(TrustDomain::default(), tokio_clock()).unwrap());
        let policy = LeafPolicy { lifetime: Duration::from_secs(100), jitter: 0.05 };
        let server = Arc::new(ServerCertificate::new(authority.clone(), "weft.weft-system.svc", policy).unwrap());
        let renewing = server.clone();
        let task = tokio::spawn(async move { renewing.renew_forever().await });
        for _ in 0..50 {
            tokio::time::sleep(Duration::from_secs(10)).await;
            let left = not_after(&server).duration_since(authority.clock().now()).unwrap();
            assert!(left >= Duration::from_secs(40), "{left:?}");
        }
        task.abort();
    }

    #[test]
    fn a_client_that_trusts_the_root_accepts_the_dns_name_and_no_other() {
        let authority = Arc::new(Authority::in_memory(TrustDomain::default(), crate::ca::Clock::system()).unwrap());
        let server =
            Arc::new(ServerCertificate::new(authority.clone(), "weft.weft-system.svc", LeafPolicy::default()).unwrap());
        assert!(describe_all(authority.root_pem().as_bytes()).unwrap()[0].is_ca);
        let mut roots = rustls::RootCertStore::empty();
        roots.add(CertificateDer::from_pem_slice(authority.root_pem().as_bytes()).unwrap()).unwrap();
        let client = rustls::ClientConfig::builder_with_provider(Arc::new(ring::default_provider()))
            .with_protocol_versions(&[&rustls::version::TLS13])
            .unwrap()
            .with_root_certificates(roots)
            .with_no_client_auth();
        let client = Arc::new(client);
        let config = Arc::new(server.server_config().unwrap());
        let handshake = |name: &'static str| {
            let mut client = rustls::ClientConnection::new(client.clone(), name.try_into().unwrap()).unwrap();
            let mut server = rustls::ServerConnection::new(config.clone()).unwrap();
            while client.is_handshaking() {
                let mut wire = Vec::new();
                client.write_tls(&mut wire).unwrap();
                server.read_tls(&mut &wire[..]).unwrap();
                server.process_new_packets()?;
                let mut wire = Vec::new();
                server.write_tls(&mut wire).unwrap();
                client.read_tls(&mut &wire[..]).unwrap();
                client.process_new_packets()?;
            }
            Ok::<_, rustls::Error>(())
        };
        handshake("weft.weft-system.svc").unwrap();
        handshake("other.weft-system.svc").unwrap_err();
    }
}
