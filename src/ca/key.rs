//! A private key that cannot be printed by accident.

use std::fmt;

/// A private key as PKCS #8 PEM. Its `Debug` shows nothing of it, and it has no `Display`.
#[derive(Clone, PartialEq, Eq)]
pub struct PrivateKey(String);

impl PrivateKey {
    /// Wraps a PKCS #8 PEM text.
    pub fn from_pem(pem: String) -> Self {
        Self(pem)
    }

    /// The PEM text, for a TLS stack, an encoder or a file of mode 0600; not for a log.
    pub fn expose_pem(&self) -> &str {
        &self.0
    }
}

impl fmt::Debug for PrivateKey {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("PrivateKey([redacted])")
    }
}
