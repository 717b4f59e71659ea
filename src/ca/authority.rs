//! The certificate authority: signs the leafs of workloads and of the control plane, with a root or with an intermediate
//! certificate below one.

use std::fmt;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::{Duration, SystemTime};

use arc_swap::ArcSwap;
use rcgen::string::Ia5String;
use rcgen::{
    BasicConstraints, CertificateParams, DistinguishedName, DnType, ExtendedKeyUsagePurpose, IsCa, KeyPair,
    KeyUsagePurpose, SanType, SerialNumber,
};
use time::OffsetDateTime;

use super::describe::DescribeError;
use super::material::{Material, Origin, Signer};
use super::{CLOCK_TOLERANCE, Clock, PrivateKey, root_files};
use crate::mesh::{SpiffeId, TrustDomain};

/// How long a new root is valid.
const ROOT_LIFETIME: Duration = Duration::from_secs(10 * 365 * 24 * 3600);
/// A root is believed from long before it is made: it stays, whatever the clock was that made it.
const ROOT_BACKDATE: Duration = Duration::from_hours(24);
/// A root with less time than this left is not started with: its leafs would soon have to be shorter than asked for.
pub(super) const ROOT_MARGIN: Duration = Duration::from_secs(7 * 24 * 3600);

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
        "{origin}: the certificate of `{subject}` may not sign others (basicConstraints is not CA:TRUE); put a root certificate there, or an intermediate one"
    )]
    NotACa {
        /// Where it came from.
        origin: String,
        /// Its subject.
        subject: String,
    },
    /// The root key cannot be read.
    #[error(
        "{origin}: not a private key in PEM that can sign (ECDSA P-256 or P-384, or RSA); restore it from a backup"
    )]
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
    /// An intermediate certificate without its root.
    #[error("{origin}: the certificate is not self-signed, and there is no {roots}; put the root certificate there")]
    NoRoot {
        /// Where the certificate came from.
        origin: String,
        /// Where its root should be.
        roots: String,
    },
    /// No way leads from the signing certificate to a root.
    #[error(
        "{origin}: the certificate of `{subject}` is not signed by {by}; put the certificates in order, the signing one first, and the root that they end at in ca.crt"
    )]
    BrokenWay {
        /// Where the certificates came from.
        origin: String,
        /// Whose is not signed.
        subject: String,
        /// By whom it should be.
        by: String,
    },
    /// What was put in place of what is used has another root.
    #[error(
        "{origin}: it has another root than the one that this process started with, and is not taken up: sidecars would no longer believe each other; put the old one back, or restart every replica and every sidecar"
    )]
    OtherRoot {
        /// Where it is.
        origin: String,
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
        "{origin}: the certificate expires at {not_after}; replace it (to have a new root made, remove what is kept of the old one)"
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

/// What signs, and what peers trust.
pub struct Authority {
    trust_domain: TrustDomain,
    /// What peers trust. It stays as it is for as long as the authority lives.
    root_pem: String,
    signer: ArcSwap<Signer>,
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
        let root = Material::new_root(&trust_domain, clock.now())?;
        let [certificates, key] = ["the new root", "the new root's key"].map(str::to_owned);
        let origin = Origin { roots: certificates.clone(), certificates, key };
        Self::from_material(&root, &origin, trust_domain, clock)
    }

    /// The authority whose root is kept in `dir` (`root.pem`, `root-key.pem`), which are made when neither exists.
    ///
    /// Of several processes that start at once, one makes the root and the others read it.
    pub fn load_or_create(dir: &Path, trust_domain: TrustDomain, clock: Clock) -> Result<Self, CaError> {
        let files = root_files::RootFiles::in_dir(dir);
        let (certificates, key) = files.load_or_create(|| {
            let root = Material::new_root(&trust_domain, clock.now())?;
            Ok((root.certificates, root.key))
        })?;
        let (certificate, key_file) = (files.certificate.display().to_string(), files.key.display().to_string());
        let origin = Origin { roots: certificate.clone(), certificates: certificate, key: key_file };
        Self::from_material(&Material { certificates, key, roots: None }, &origin, trust_domain, clock)
    }

    /// Takes what exists, if it can be used.
    pub fn from_material(
        material: &Material,
        origin: &Origin,
        trust_domain: TrustDomain,
        clock: Clock,
    ) -> Result<Self, CaError> {
        let signer = material.check(origin, &trust_domain, clock.now().into())?;
        Ok(Self { trust_domain, root_pem: signer.roots_pem.clone(), signer: ArcSwap::from_pointee(signer), clock })
    }

    /// Signs with `material` from now on, which must end at the same roots.
    ///
    /// # Errors
    /// When it cannot be used or has other roots; what was used before stays.
    pub fn renew(&self, material: &Material, origin: &Origin) -> Result<(), CaError> {
        let signer = material.check(origin, &self.trust_domain, self.clock.now().into())?;
        if signer.roots_pem != self.root_pem {
            return Err(CaError::OtherRoot { origin: origin.roots.clone() });
        }
        self.signer.store(Arc::new(signer));
        Ok(())
    }

    /// The root certificate as PEM: what every proxy trusts. There may be several.
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
        let signer = self.signer.load();
        let not_after = (now + lifetime).min(signer.not_after.into());
        let mut params = params(vec![san(name.try_into().map_err(failed)?)], now, not_after);
        params.is_ca = IsCa::ExplicitNoCa;
        params.use_authority_key_identifier_extension = true;
        params.key_usages = vec![KeyUsagePurpose::DigitalSignature];
        params.extended_key_usages = usages.to_vec();
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.signed_by(&key, &signer.issuer).map_err(failed)?;
        Ok(issued(certificate.pem() + &signer.chain_pem, &key, now, not_after))
    }
}

impl Material {
    /// A new self-signed root.
    pub fn new_root(trust_domain: &TrustDomain, now: SystemTime) -> Result<Self, CaError> {
        let failed = |source| CaError::Sign { subject: format!("the root of {trust_domain}"), source };
        let not_after = now + ROOT_LIFETIME;
        let id = format!("spiffe://{trust_domain}").try_into().map_err(failed)?;
        let mut params = params(vec![SanType::URI(id)], now, not_after);
        params.not_before = (now - ROOT_BACKDATE).into();
        params.distinguished_name.push(DnType::OrganizationName, "weft");
        params.distinguished_name.push(DnType::CommonName, format!("weft root of {trust_domain}"));
        params.is_ca = IsCa::Ca(BasicConstraints::Constrained(0));
        params.key_usages = vec![KeyUsagePurpose::KeyCertSign, KeyUsagePurpose::CrlSign];
        let key = KeyPair::generate().map_err(failed)?;
        let certificate = params.self_signed(&key).map_err(failed)?;
        Ok(Self { certificates: certificate.pem(), key: PrivateKey::from_pem(key.serialize_pem()), roots: None })
    }
}

/// What all certificates have in common.
fn params(names: Vec<SanType>, now: SystemTime, not_after: SystemTime) -> CertificateParams {
    let mut params = CertificateParams::default();
    // RFC 5280, 4.1.2.2: positive and at most 20 octets; 127 bits are random.
    let mut serial: [u8; 16] = rand::random();
    serial[0] &= 0x7f;
    params.serial_number = Some(SerialNumber::from_slice(&serial));
    params.not_before = (now - CLOCK_TOLERANCE).into();
    params.not_after = not_after.into();
    params.distinguished_name = DistinguishedName::new();
    params.subject_alt_names = names;
    params
}

fn issued(chain_pem: String, key: &KeyPair, now: SystemTime, not_after: SystemTime) -> Issued {
    Issued { chain_pem, key: PrivateKey::from_pem(key.serialize_pem()), not_before: now - CLOCK_TOLERANCE, not_after }
}

#[cfg(test)]
mod tests;
