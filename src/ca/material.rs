//! What an authority signs with, as it is kept: certificates and a key in PEM, checked before they are used.
//!
//! ```text
//!  tls.crt: the signing certificate, then those between it and the root      ca.crt: the root(s) that peers trust
//!  tls.key: the signing certificate's key
//! ```
//!
//! A root that signs leafs itself stands alone in `tls.crt`. cert-manager writes the same three, and its keys in PKCS #1
//! or SEC 1.

use rcgen::{Issuer, KeyPair, PublicKeyData};
use rustls::pki_types::PrivatePkcs8KeyDer;
use time::OffsetDateTime;
use x509_parser::certificate::X509Certificate;
use x509_parser::pem::Pem;

use super::PrivateKey;
use super::authority::{CaError, ROOT_MARGIN};
use super::describe::{CertificateSummary, DescribeError, describe_all};
use crate::mesh::TrustDomain;

/// Certificates and a key, as they are kept.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Material {
    /// The signing certificate, and behind it those between it and the root, PEM.
    pub certificates: String,
    /// The signing certificate's key, PEM.
    pub key: PrivateKey,
    /// What peers trust, PEM; `None` where the signing certificate is the root.
    pub roots: Option<String>,
}

/// Where the parts of a [`Material`] are, for messages.
#[derive(Clone, Debug)]
pub struct Origin {
    /// The certificates.
    pub certificates: String,
    /// The key.
    pub key: String,
    /// The roots.
    pub roots: String,
}

/// A [`Material`] that can be used.
pub(super) struct Signer {
    pub(super) issuer: Issuer<'static, KeyPair>,
    /// What is presented behind a leaf: the way to the root, without the root.
    pub(super) chain_pem: String,
    /// What peers trust.
    pub(super) roots_pem: String,
    /// When the first certificate of the way ends, and no leaf may outlive it.
    pub(super) not_after: OffsetDateTime,
}

impl Material {
    /// Checks that leafs which are signed with it will be believed.
    pub(super) fn check(
        &self,
        origin: &Origin,
        trust_domain: &TrustDomain,
        now: OffsetDateTime,
    ) -> Result<Signer, CaError> {
        let unreadable = |origin: &str| {
            let origin = origin.to_owned();
            move |source| CaError::Certificate { origin, source }
        };
        let way = blocks(&self.certificates).map_err(unreadable(&origin.certificates))?;
        let summaries = describe_all(self.certificates.as_bytes()).map_err(unreadable(&origin.certificates))?;
        if let Some(summary) = summaries.iter().find(|summary| !summary.is_ca) {
            let (origin, subject) = (origin.certificates.clone(), summary.subject.clone());
            return Err(CaError::NotACa { origin, subject });
        }
        let signing =
            summaries.first().ok_or(DescribeError::NoCertificate).map_err(unreadable(&origin.certificates))?;
        let pair = key_pair(&self.key).ok_or_else(|| CaError::Key { origin: origin.key.clone() })?;
        if pair.subject_public_key_info() != signing.public_key_info {
            return Err(CaError::Mismatch { certificate: origin.certificates.clone(), key: origin.key.clone() });
        }
        let roots_pem = match &self.roots {
            Some(roots) => roots.clone(),
            None if is_self_signed(signing) => self.certificates.clone(),
            None => {
                return Err(CaError::NoRoot { origin: origin.certificates.clone(), roots: origin.roots.clone() });
            }
        };
        let roots = describe_all(roots_pem.as_bytes()).map_err(unreadable(&origin.roots))?;
        check_way(&way, &blocks(&roots_pem).map_err(unreadable(&origin.roots))?, origin)?;
        check_trust_domain(summaries.iter().chain(&roots), trust_domain, &origin.certificates)?;
        let ends = |all: &[CertificateSummary]| all.iter().map(|summary| summary.not_after).min();
        // Of several roots one is enough; those that have ended are left over from a rotation.
        let roots_end = roots.iter().map(|root| root.not_after).max();
        let not_after = ends(&summaries).into_iter().chain(roots_end).min().unwrap_or(now);
        if not_after < now + ROOT_MARGIN {
            return Err(CaError::Expires { origin: origin.certificates.clone(), not_after });
        }
        let issuer = Issuer::from_ca_cert_pem(&self.certificates, pair)
            .map_err(|source| CaError::Sign { subject: origin.certificates.clone(), source })?;
        let chain_pem = way.iter().zip(&summaries).filter(|(_, summary)| !is_self_signed(summary));
        let chain_pem = chain_pem.map(|(block, _)| to_pem(block)).collect();
        Ok(Signer { issuer, chain_pem, roots_pem, not_after })
    }
}

/// The certificates of a PEM text.
fn blocks(pem: &str) -> Result<Vec<Pem>, DescribeError> {
    let blocks = Pem::iter_from_buffer(pem.as_bytes()).collect::<Result<Vec<_>, _>>();
    let mut blocks = blocks.map_err(|error| DescribeError::Pem(error.to_string()))?;
    blocks.retain(|block| block.label == "CERTIFICATE");
    Ok(blocks)
}

fn to_pem(block: &Pem) -> String {
    let lines = pem::EncodeConfig::new().set_line_ending(pem::LineEnding::LF);
    pem::encode_config(&pem::Pem::new(block.label.as_str(), block.contents.as_slice()), lines)
}

fn is_self_signed(summary: &CertificateSummary) -> bool {
    summary.issuer == summary.subject
}

/// Each certificate must be signed by the next one, and the last one by a root (or be one).
fn check_way(way: &[Pem], roots: &[Pem], origin: &Origin) -> Result<(), CaError> {
    let unreadable = |error: x509_parser::nom::Err<x509_parser::error::X509Error>| CaError::Certificate {
        origin: origin.certificates.clone(),
        source: DescribeError::X509(error.to_string()),
    };
    let read =
        |blocks: &[Pem]| blocks.iter().map(|block| block.parse_x509().map(|_| ())).collect::<Result<Vec<_>, _>>();
    read(way).and(read(roots)).map_err(unreadable)?;
    let way: Vec<X509Certificate<'_>> = way.iter().filter_map(|block| block.parse_x509().ok()).collect();
    let roots: Vec<X509Certificate<'_>> = roots.iter().filter_map(|block| block.parse_x509().ok()).collect();
    let signs = |signer: &X509Certificate<'_>, signed: &X509Certificate<'_>| {
        signer.subject() == signed.issuer() && signed.verify_signature(Some(signer.public_key())).is_ok()
    };
    let broken = |certificate: &X509Certificate<'_>, by: &str| CaError::BrokenWay {
        origin: origin.certificates.clone(),
        subject: certificate.subject().to_string(),
        by: by.to_owned(),
    };
    if let Some([certificate, _]) = way.array_windows().find(|[signed, signer]| !signs(signer, signed)) {
        return Err(broken(certificate, "the one behind it"));
    }
    match way.last() {
        Some(last) if !roots.iter().any(|root| signs(root, last)) => {
            Err(broken(last, &format!("a root of {}", origin.roots)))
        }
        _ => Ok(()),
    }
}

/// A certificate that was not made by Weft may have no SPIFFE ID; one that has another is another mesh's.
fn check_trust_domain<'a>(
    mut all: impl Iterator<Item = &'a CertificateSummary>,
    trust_domain: &TrustDomain,
    origin: &str,
) -> Result<(), CaError> {
    let own = format!("spiffe://{trust_domain}");
    match all.find_map(|summary| summary.spiffe_ids().find(|id| **id != own)) {
        Some(found) => Err(CaError::OtherTrustDomain {
            origin: origin.to_owned(),
            found: found.trim_start_matches("spiffe://").to_owned(),
            wanted: trust_domain.clone(),
        }),
        None => Ok(()),
    }
}

/// The key, whichever way its PEM is written. What is wrong with one is not said: it could quote it.
fn key_pair(key: &PrivateKey) -> Option<KeyPair> {
    let block = Pem::iter_from_buffer(key.expose_pem().as_bytes())
        .find_map(|block| block.ok().filter(|block| block.label.ends_with("PRIVATE KEY")))?;
    let pkcs8 = match block.label.as_str() {
        "PRIVATE KEY" => block.contents,
        "EC PRIVATE KEY" => der::pkcs8_of_sec1(&block.contents)?,
        "RSA PRIVATE KEY" => der::pkcs8_of_pkcs1(&block.contents),
        _ => return None,
    };
    KeyPair::try_from(&PrivatePkcs8KeyDer::from(pkcs8)).ok()
}

/// PKCS #8 (RFC 5208) around keys in their older forms.
mod der {
    const SEQUENCE: u8 = 0x30;
    const OCTETS: u8 = 0x04;
    const VERSION: [u8; 3] = [0x02, 0x01, 0x00];
    /// 1.2.840.10045.2.1, id-ecPublicKey.
    const EC: [u8; 9] = [0x06, 0x07, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x02, 0x01];
    /// 1.2.840.10045.3.1.7, P-256.
    const P256: [u8; 10] = [0x06, 0x08, 0x2a, 0x86, 0x48, 0xce, 0x3d, 0x03, 0x01, 0x07];
    /// 1.3.132.0.34, P-384.
    const P384: [u8; 7] = [0x06, 0x05, 0x2b, 0x81, 0x04, 0x00, 0x22];
    /// 1.2.840.113549.1.1.1, rsaEncryption, and NULL for its parameters.
    const RSA: [u8; 13] = [0x06, 0x09, 0x2a, 0x86, 0x48, 0x86, 0xf7, 0x0d, 0x01, 0x01, 0x01, 0x05, 0x00];

    /// SEC 1, appendix C.4: it names its curve, which PKCS #8 wants outside.
    pub(super) fn pkcs8_of_sec1(key: &[u8]) -> Option<Vec<u8>> {
        let names = |curve: &[u8]| key.windows(curve.len()).any(|window| window == curve);
        let curve = if names(&P256) {
            &P256[..]
        } else if names(&P384) {
            &P384[..]
        } else {
            return None;
        };
        Some(pkcs8(&[&EC, curve].concat(), key))
    }

    /// RFC 8017, appendix A.1.2.
    pub(super) fn pkcs8_of_pkcs1(key: &[u8]) -> Vec<u8> {
        pkcs8(&RSA, key)
    }

    fn pkcs8(algorithm: &[u8], key: &[u8]) -> Vec<u8> {
        tagged(SEQUENCE, &[&VERSION, &tagged(SEQUENCE, algorithm)[..], &tagged(OCTETS, key)].concat())
    }

    fn tagged(tag: u8, content: &[u8]) -> Vec<u8> {
        let length = content.len().to_be_bytes();
        let significant = &length[length.iter().take_while(|byte| **byte == 0).count()..];
        let head = match content.len() {
            short @ 0..0x80 => vec![tag, u8::try_from(short).unwrap_or_default()],
            _ => [&[tag, 0x80 | u8::try_from(significant.len()).unwrap_or_default()], significant].concat(),
        };
        [&head[..], content].concat()
    }
}

#[cfg(test)]
mod tests;
