//! The certificate authority: one self-signed root, which signs the leafs of workloads and of the control plane.

use std::fmt;
use std::path::{Path, PathBuf};
use std::time::{Duration, SystemTime};

use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, Issuer, KeyPair,
    KeyUsagePurpose, PublicKeyData, SanType, SerialNumber,
};
use time::OffsetDateTime;

use super::describe::{DescribeError, describe};
use super::{Clock, PrivateKey, root_files};
use crate::mesh::{SpiffeId, TrustDomain};

/// How long a new root is valid.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A root with less time than this left is not started with: its leafs would soon have to be shorter than asked for.
const ROOT_MARGIN: Duration = Duration::from_secs(7 * 24 * 3600);
/// Certificates are valid from a little before they are made: the clocks of two machines differ.
const BACKDATE: Duration = Duration::from_secs(60);

/// Why an authority could not be made or could not sign.
#[derive(Debug, thiserror::Error)]
pub enum CaError {
    /// A file or its directory could not be read or written.
    #[error("{path}: {source}; the CA directory must be readable and writable by this user alone")]
    Io {
        /// The file.
        path: PathBuf,
        /// What the system said.
        source: std::io::Error,
    },
    /// The root key is readable by others.
    #[error(
        "{path} has mode {mode:04o}: a root key must be its owner's alone; run `chmod 600 {path}`, and replace the root if others may have read it"
    )]
    KeyExposed {
        /// The key file.
        path: PathBuf,
        /// Its permission bits.
        mode: u32,
    },
    /// One of the two files is missing.
    #[error(
        "{missing} is missing while {present} exists; restore it, or remove both to have a new root made (every proxy must then be given the new root)"
    )]
    HalfRoot {
        /// The file that is not there.
        missing: PathBuf,
        /// The file that is.
        present: PathBuf,
    },
    /// The root certificate cannot be read.
    #[error("{origin}: not a usable root certificate: {source}; restore it from a backup")]
    Certificate {
        /// Where it came from.
        origin: String,
        /// What is wrong with it.
        source: DescribeError,
    },
    /// The certificate is no CA's.
    #[error(
        "{origin}: the certificate may not sign others (basicConstraints is not CA:TRUE); put a root certificate there"
    )]
    NotACa {
        /// Where it came from.
        origin: String,
    },
    /// The root key cannot be read.
    #[error("{origin}: not an ECDSA P-256 key in PKCS #8 PEM; restore it from a backup")]
    Key {
        /// Where it came from. What is wrong with the key is not said: it could quote it.
        origin: String,
    },
    /// The root certificate's public key is another.
    #[error(
        "{certificate} and {key} do not belong together: the certificate was made for another key; restore both from the same backup"
    )]
    Mismatch {
        /// The certificate.
        certificate: String,
        /// The key.
        key: String,
    },
    /// The root certificate's trust domain is another.
    #[error(
        "{origin}: the root is of trust domain `{found}`, but the mesh's is `{wanted}`; set MeshConfig's spec.trustDomain to `{found}` or use another CA directory"
    )]
    OtherTrustDomain {
        /// Where the root came from.
        origin: String,
        /// Its trust domain.
        found: String,
        /// The mesh's.
        wanted: TrustDomain,
    },
    /// The root has expired or soon will.
    #[error(
        "{origin}: the root certificate expires at {not_after}; replace the root (remove both files of the directory to have a new one made)"
    )]
    Expires {
        /// Where the root came from.
        origin: String,
        /// When.
        not_after: OffsetDateTime,
    },
    /// An identity of another mesh was asked for.
    #[error("{id} is not of the trust domain `{wanted}`, which is the only one that this authority vouches for")]
    ForeignIdentity {
        /// The identity.
        id: SpiffeId,
        /// The authority's trust domain.
        wanted: TrustDomain,
    },
    /// rcgen failed: no randomness, or a name that a certificate cannot hold.
    #[error("could not make a certificate for {subject}: {source}")]
    Sign {
        /// For whom.
        subject: String,
        /// What rcgen said.
        source: rcgen::Error,
    },
}

/// A certificate with its key.
#[derive(Clone, Debug)]
pub struct Issued {
    /// The certificate chain as PEM, the leaf first, without the root.
    pub chain_pem: String,
    /// The leaf's key.
    pub key: PrivateKey,
    /// When its validity began.
    pub not_before: SystemTime,
    /// When its validity ends.
    pub not_after: SystemTime,
}

/// The root certificate and its key.
pub struct Authority {
    trust_domain: TrustDomain,
    root_pem: String,
    not_after: SystemTime,
    issuer: Issuer<'static, KeyPair>,
    clock: Clock,
}

impl fmt::Debug for Authority {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Authority").field("trust_domain", &self.trust_domain).finish_non_exhaustive()
    }
}

impl Authority {
    /// An authority with a new root that is gone when the process ends.
    pub fn in_memory(trust_domain: TrustDomain, clock: Clock) -> Result<Self, CaError> {
        let root = new_root(&trust_domain, clock.now())?;
        Self::from_pem(&root.chain_pem, &root.key, "the new root", "the new root's key", trust_domain, clock)
    }

    /// The authority whose root is kept in `dir` (`root.pem`, `root-key.pem`), which are made when neither exists.
    ///
    /// Of several processes that start at once, one makes the root and the others read it.
    pub fn load_or_create(dir: &Path, trust_domain: TrustDomain, clock: Clock) -> Result<Self, CaError> {
        let files = root_files::RootFiles::in_dir(dir);
        let (certificate, key) = files.load_or_create(|| {
            let root = new_root(&trust_domain, clock.now())?;
            Ok((root.chain_pem, root.key))
        })?;
        let (certificate_name, key_name) = (files.certificate.display().to_string(), files.key.display().to_string());
        Self::from_pem(&certificate, &key, &certificate_name, &key_name, trust_domain, clock)
    }

    /// Takes a root that exists, if it can be used. `certificate_name` and `key_name` are for messages.
    fn from_pem(
        certificate: &str,
        key: &PrivateKey,
        certificate_name: &str,
        key_name: &str,
        trust_domain: TrustDomain,
        clock: Clock,
    ) -> Result<Self, CaError> {
        let origin = || certificate_name.to_owned();
        let summary =
            describe(certificate.as_bytes()).map_err(|source| CaError::Certificate { origin: origin(), source })?;
        if !summary.is_ca {
            return Err(CaError::NotACa { origin: origin() });
        }
        let bad_key = || CaError::Key { origin: key_name.to_owned() };
        let pair = KeyPair::from_pkcs8_pem_and_sign_algo(key.expose_pem(), &rcgen::PKCS_ECDSA_P256_SHA256)
            .map_err(|_| bad_key())?;
        if pair.subject_public_key_info() != summary.public_key_info {
            return Err(CaError::Mismatch { certificate: origin(), key: key_name.to_owned() });
        }
        // A root that was not made by Weft may have no SPIFFE ID; one that has another is another mesh's.
        let own = format!("spiffe://{trust_domain}");
        if let Some(found) = summary.uris.iter().find(|uri| uri.starts_with("spiffe://") && **uri != own) {
            let found = found.trim_start_matches("spiffe://").to_owned();
            return Err(CaError::OtherTrustDomain { origin: origin(), found, wanted: trust_domain });
        }
        if summary.not_after < OffsetDateTime::from(clock.now() + ROOT_MARGIN) {
            return Err(CaError::Expires { origin: origin(), not_after: summary.not_after });
        }
        let issuer = Issuer::from_ca_cert_pem(certificate, pair)
            .map_err(|source| CaError::Sign { subject: origin(), source })?;
        Ok(Self { trust_domain, root_pem: certificate.to_owned(), not_after: summary.not_after.into(), issuer, clock })
    }

    /// The root certificate as PEM: what every proxy trusts.
    pub fn root_pem(&self) -> &str {
        &self.root_pem
    }

    /// The trust domain that it vouches for.
    pub fn trust_domain(&self) -> &TrustDomain {
        &self.trust_domain
    }

    /// The clock that it dates certificates by.
    pub fn clock(&self) -> &Clock {
        &self.clock
    }

    /// An X.509-SVID with a new key for `id`, for both ends of a connection.
    ///
    /// The subject is empty, so the subject alternative name is critical (X.509-SVID, section 2; RFC 5280, 4.2.1.6).
    pub fn issue_workload(&self, id: &SpiffeId, lifetime: Duration) -> Result<Issued, CaError> {
        if id.trust_domain != self.trust_domain {
            return Err(CaError::ForeignIdentity { id: id.clone(), wanted: self.trust_domain.clone() });
        }
        let usages = [ExtendedKeyUsagePurpose::ServerAuth, ExtendedKeyUsagePurpose::ClientAuth];
        self.issue(&id.to_string(), SanType::URI, &usages, lifetime)
    }

    /// A certificate with a new key for a server that is called by its DNS name, as the control plane is.
    pub fn issue_server(&self, dns_name: &str, lifetime: Duration) -> Result<Issued, CaError> {
        self.issue(dns_name, SanType::DnsName, &[ExtendedKeyUsagePurpose::ServerAuth], lifetime)
    }

    fn issue(
        &self,
        name: &str,
        san: impl FnOnce(Ia5String) -> SanType,
        usages: &[ExtendedKeyUsagePurpose],
        lifetime: Duration,
    ) -> Result<Issued, CaError> {
        let failed = |source| CaError::Sign { subject: name.to_owned(), source };
        let now = self.clock.now();
        let not_after = (now + lifetime).min(self.not_after);
        let mut params = params(vec![san(name.try_into().map_err(failed)?)], now, not_after);
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages.to_vec();
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &self.issuer).map_err(failed)?;
        Ok(issued(certificate.pem(), &key, now, not_after))
    }
}

fn new_root(trust_domain: &TrustDomain, now: SystemTime) -> Result<Issued, CaError> {
    let failed = |source| CaError::Sign { subject: format!("the root of {trust_domain}"), source };
    let not_after = now + ROOT_LIFETIME;
    let id = format!("spiffe://{trust_domain}").try_into().map_err(failed)?;
    let mut params = params(vec![SanType::URI(id)], now, not_after);
    params.distinguished_name.push(DnType::OrganizationName, "weft");
    params.distinguished_name.push(DnType::CommonName, format!("weft root of {trust_domain}"));
    params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
    params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
    let key = KeyPair::generate().map_err(failed)?;
    let certificate = params.self_signed(&key).map_err(failed)?;
    Ok(issued(certificate.pem(), &key, now, not_after))
}

/// What all certificates have in common.
fn params(names: Vec<SanType>, now: SystemTime, not_after: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    // RFC 5280, 4.1.2.2: positive and at most 20 octets; 127 bits are random.
    let mut serial: [u8; 16] = rand::random();
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = (now - BACKDATE).into();
    params.not_after = not_after.into();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names;
    params
}

fn issued(chain_pem: String, key: &KeyPair, now: SystemTime, not_after: SystemTime) -> Issued {
    Issued { chain_pem, key: PrivateKey::from_pem(key.serialize_pem()), not_before: now - BACKDATE, not_after }
}

#[cfg(test)]
mod tests;
