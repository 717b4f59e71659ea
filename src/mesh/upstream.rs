//! What a workload calls, by name: it stays true when a Service is made again with another address.

use std::fmt;
use std::str::FromStr;

use super::{Namespace, ServiceKey};

/// A Service, or one port of it. Shown as `cart.shop:80`, or `cart.shop` for every port.
#[derive(Clone, PartialEq, Eq, PartialOrd, Ord, Hash)]
pub struct Upstream {
    /// The Service.
    pub service: ServiceKey,
    /// Its port; `None` means every port.
    pub port: Option<u16>,
}

/// Why a text names no Service.
#[derive(Debug, Clone, PartialEq, Eq, thiserror::Error)]
pub enum UpstreamError {
    /// RFC 1123: the form of a label, which the names of Services and namespaces have.
    #[error("`{0}` is not the name of a Service or namespace: lower-case letters, digits and `-`, at most 63")]
    Name(String),
    /// Too many dots or slashes.
    #[error("`{0}` names no Service: write SERVICE, SERVICE.NAMESPACE or NAMESPACE/SERVICE")]
    Form(String),
    /// What follows the colon.
    #[error("`{0}` is not a port: use a number from 1 to 65535")]
    Port(String),
}

impl Upstream {
    /// Reads `SERVICE`, `SERVICE.NAMESPACE` or `NAMESPACE/SERVICE`, each with `:PORT` or without; a Service without a
    /// namespace is in `namespace`.
    pub fn parse(text: &str, namespace: &Namespace) -> Result<Self, UpstreamError> {
        let (name, port) = match text.split_once(':') {
            Some((name, port)) => {
                let number = port.parse().ok().filter(|number| *number != 0);
                (name, Some(number.ok_or_else(|| UpstreamError::Port(port.to_owned()))?))
            }
            None => (text, None),
        };
        let (namespace, name) = match (name.split_once('/'), name.split_once('.')) {
            (Some((namespace, name)), None) => (Namespace::from(label(namespace)?), name),
            (None, Some((name, namespace))) => (Namespace::from(label(namespace)?), name),
            (None, None) => (namespace.clone(), name),
            (Some(_), Some(_)) => return Err(UpstreamError::Form(name.to_owned())),
        };
        Ok(Self { service: ServiceKey::new(namespace, label(name)?), port })
    }
}

fn label(text: &str) -> Result<&str, UpstreamError> {
    let allowed = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit() || c == '-';
    let edge = text.starts_with('-') || text.ends_with('-');
    let good = !text.is_empty() && text.len() <= 63 && !edge && text.chars().all(allowed);
    if good { Ok(text) } else { Err(UpstreamError::Name(text.to_owned())) }
}

/// What `Display` writes, with its namespace.
impl FromStr for Upstream {
    type Err = UpstreamError;

    fn from_str(text: &str) -> Result<Self, UpstreamError> {
        if !text.contains('.') {
            return Err(UpstreamError::Form(text.to_owned()));
        }
        Self::parse(text, &Namespace::from(""))
    }
}

impl fmt::Display for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}.{}", self.service.name, self.service.namespace)?;
        self.port.iter().try_for_each(|port| write!(f, ":{port}"))
    }
}

impl fmt::Debug for Upstream {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        fmt::Display::fmt(self, f)
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn all_ways_to_write_a_service_are_read() {
        let shop = Namespace::from("shop");
        for (text, shown) in [
            ("cart", "cart.shop"),
            ("cart:80", "cart.shop:80"),
            ("mail.other", "mail.other"),
            ("mail.other:25", "mail.other:25"),
            ("other/mail:25", "mail.other:25"),
        ] {
            let upstream = Upstream::parse(text, &shop).expect(text);
            assert_eq!(upstream.to_string(), shown);
            assert_eq!(shown.parse(), Ok(upstream));
        }
    }

    #[test]
    fn what_names_no_service_is_refused_with_the_part_that_is_wrong() {
        let shop = Namespace::from("shop");
        for (text, part) in [
            ("cart:0", "`0` is not a port"),
            ("cart:http", "`http` is not a port"),
            ("a/b/c", "`b/c` is not the name"),
            ("cart.shop.svc", "`shop.svc` is not the name"),
            ("a/b.c", "`a/b.c` names no Service"),
            ("Cart", "`Cart` is not the name"),
            ("-a", "`-a` is not the name"),
            (".shop", "`` is not the name"),
            (":80", "`` is not the name"),
        ] {
            let error = Upstream::parse(text, &shop).expect_err(text).to_string();
            assert!(error.starts_with(part), "{text}: {error}");
        }
        assert!("cart:80".parse::<Upstream>().is_err(), "no namespace");
    }
}
