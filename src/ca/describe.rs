//! Certificates made readable.

use time::OffsetDateTime;
use x509_parser::extensions::GeneralName;
use x509_parser::pem::Pem;
use x509_parser::prelude::X509Certificate;

/// Why a certificate cannot be read.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum DescribeError {
    /// There is no PEM block `CERTIFICATE`.
    #[error("no PEM certificate (a block that begins with -----BEGIN CERTIFICATE-----) found")]
    NoCertificate,
    /// The PEM armour is damaged.
    #[error("the PEM text is damaged: {0}")]
    Pem(String),
    /// What the armour holds is no X.509 certificate.
    #[error("the PEM block holds no X.509 certificate: {0}")]
    X509(String),
}

/// What a reader wants to know of a certificate.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct CertificateSummary {
    /// URI names, for a workload its SPIFFE ID.
    pub uris: Vec<String>,
    /// DNS names.
    pub dns_names: Vec<String>,
    /// IP addresses.
    pub ips: Vec<String>,
    /// The subject alternative name extension is critical.
    pub names_critical: bool,
    /// The subject, empty for a workload.
    pub subject: String,
    /// The issuer.
    pub issuer: String,
    /// The serial number, as hexadecimal octets separated by colons.
    pub serial: String,
    /// The beginning of its validity.
    pub not_before: OffsetDateTime,
    /// The end of its validity.
    pub not_after: OffsetDateTime,
    /// It may sign other certificates.
    pub is_ca: bool,
    /// Its SubjectPublicKeyInfo, DER.
    pub public_key_info: Vec<u8>,
}

impl CertificateSummary {
    /// The names that are SPIFFE IDs.
    pub fn spiffe_ids(&self) -> impl Iterator<Item = &str> {
        self.uris.iter().map(String::as_str).filter(|uri| uri.starts_with("spiffe://"))
    }
}

/// Describes the first certificate of a PEM text: the leaf of a chain.
pub fn describe(pem: &[u8]) -> Result<CertificateSummary, DescribeError> {
    describe_all(pem)?.into_iter().next().ok_or(DescribeError::NoCertificate)
}

/// Describes every certificate of a PEM text, in its order. Blocks that are no certificates are passed over.
pub fn describe_all(pem: &[u8]) -> Result<Vec<CertificateSummary>, DescribeError> {
    let mut summaries = Vec::new();
    for block in Pem::iter_from_buffer(pem) {
        let block = block.map_err(|error| DescribeError::Pem(error.to_string()))?;
        if block.label == "CERTIFICATE" {
            let certificate = block.parse_x509().map_err(|error| DescribeError::X509(error.to_string()))?;
            summaries.push(summary(&certificate)?);
        }
    }
    if summaries.is_empty() { Err(DescribeError::NoCertificate) } else { Ok(summaries) }
}

fn summary(certificate: &X509Certificate<'_>) -> Result<CertificateSummary, DescribeError> {
    let names = certificate.subject_alternative_name().map_err(|error| DescribeError::X509(error.to_string()))?;
    let mut summary = CertificateSummary {
        uris: Vec::new(),
        dns_names: Vec::new(),
        ips: Vec::new(),
        names_critical: names.as_ref().is_some_and(|names| names.critical),
        subject: certificate.subject().to_string(),
        issuer: certificate.issuer().to_string(),
        serial: certificate.raw_serial_as_string(),
        not_before: certificate.validity().not_before.to_datetime(),
        not_after: certificate.validity().not_after.to_datetime(),
        is_ca: certificate.is_ca(),
        public_key_info: certificate.public_key().raw.to_vec(),
    };
    for name in names.iter().flat_map(|names| &names.value.general_names) {
        match name {
            GeneralName::URI(uri) => summary.uris.push((*uri).to_owned()),
            GeneralName::DNSName(name) => summary.dns_names.push((*name).to_owned()),
            GeneralName::IPAddress(octets) => summary.ips.extend(ip(octets)),
            _ => {}
        }
    }
    Ok(summary)
}

fn ip(octets: &[u8]) -> Option<String> {
    let v4 = <[u8; 4]>::try_from(octets).map(|octets| std::net::Ipv4Addr::from(octets).to_string());
    let v6 = <[u8; 16]>::try_from(octets).map(|octets| std::net::Ipv6Addr::from(octets).to_string());
    v4.or(v6).ok()
}
