//! `weft proxy certs`: the certificates in a proxy's secrets, read with x509-parser.

use std::time::{Duration, SystemTime};

use serde::Serialize;
use time::OffsetDateTime;
use time::format_description::well_known::Rfc3339;

use super::config_dump::{Entry, Type};
use crate::ca::{CertificateSummary, describe_all};
use crate::cli::output::{Table, age};

/// One certificate, or why a secret's could not be read.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct Certificate {
    secret: String,
    /// `certificate` (the proxy's own, the leaf first) or `root` (what peers are verified with).
    role: &'static str,
    state: &'static str,
    #[serde(flatten)]
    content: Content,
}

#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(untagged)]
enum Content {
    Read {
        /// URI and DNS names; for a workload its SPIFFE ID.
        names: Vec<String>,
        subject: String,
        issuer: String,
        serial: String,
        not_before: String,
        not_after: String,
        /// Rounded down; negative after the end.
        days_left: i64,
        #[serde(skip)]
        left: String,
    },
    Unreadable {
        error: String,
    },
}

/// The certificates of all secrets. Keys are not looked at.
pub(super) fn read(entries: &[Entry], now: SystemTime) -> Vec<Certificate> {
    let mut certificates = Vec::new();
    for entry in entries.iter().filter(|entry| entry.r#type == Type::Secrets) {
        for (role, path) in
            [("certificate", "/tls_certificate/certificate_chain"), ("root", "/validation_context/trusted_ca")]
        {
            let Some(source) = entry.resource.pointer(path) else { continue };
            let content = match source["inline_string"].as_str().map(|pem| describe_all(pem.as_bytes())) {
                Some(Ok(summaries)) => summaries.iter().map(|summary| content(summary, now)).collect(),
                Some(Err(error)) => vec![Content::Unreadable { error: error.to_string() }],
                None => vec![Content::Unreadable { error: "it is not inline in the configuration".to_owned() }],
            };
            let certificate = |content| Certificate { secret: entry.name.clone(), role, state: entry.state, content };
            certificates.extend(content.into_iter().map(certificate));
        }
    }
    certificates
}

fn content(summary: &CertificateSummary, now: SystemTime) -> Content {
    let left = summary.not_after - OffsetDateTime::from(now);
    let moment = |at: OffsetDateTime| at.format(&Rfc3339).unwrap_or_else(|_| at.to_string());
    Content::Read {
        names: summary.uris.iter().chain(&summary.dns_names).cloned().collect(),
        subject: summary.subject.clone(),
        issuer: summary.issuer.clone(),
        serial: summary.serial.clone(),
        not_before: moment(summary.not_before),
        not_after: moment(summary.not_after),
        days_left: left.whole_seconds().div_euclid(86_400),
        left: Duration::try_from(left).map_or("EXPIRED".to_owned(), age),
    }
}

/// The table for reading.
pub(super) fn table(certificates: &[Certificate]) -> String {
    if certificates.is_empty() {
        return "The proxy has no certificate.\n".to_owned();
    }
    let mut table = Table::new(["SECRET", "ROLE", "NAMES", "ISSUER", "NOT BEFORE", "NOT AFTER", "LEFT", "SERIAL"]);
    for each in certificates {
        let (secret, role) = (each.secret.clone(), each.role.to_owned());
        match &each.content {
            Content::Read { names, issuer, serial, not_before, not_after, left, .. } => table.row([
                secret,
                role,
                names.join(","),
                issuer.clone(),
                not_before.clone(),
                not_after.clone(),
                left.clone(),
                serial.clone(),
            ]),
            Content::Unreadable { error } => {
                let [blank, issuer, not_before, not_after, left] = [(); 5].map(|()| String::new());
                table.row([secret, role, format!("unreadable: {error}"), issuer, not_before, not_after, left, blank]);
            }
        }
    }
    table.to_string()
}
