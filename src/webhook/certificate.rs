//! The webhooks' certificate: two files, as a Secret of the type `kubernetes.io/tls` is mounted. The kubelet replaces
//! them when the control plane has renewed the Secret, and the next handshake uses the new ones.

use std::fs;
use std::io;
use std::path::{Path, PathBuf};
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use arc_swap::ArcSwapOption;
use rustls::crypto::ring;
use rustls::pki_types::pem::PemObject;
use rustls::pki_types::{CertificateDer, PrivateKeyDer};
use rustls::server::{ClientHello, ResolvesServerCert};
use rustls::sign::CertifiedKey;

/// How often the files are looked at. The kubelet itself needs up to a minute to change them.
const LOOK: Duration = Duration::from_secs(2);

/// Why the files are not used. What was used before still is.
#[derive(Debug, thiserror::Error)]
pub enum CertificateError {
    /// A file.
    #[error("cannot read {}: {error}", path.display())]
    Read {
        /// Which.
        path: PathBuf,
        /// Why not.
        error: io::Error,
    },
    /// What is in them.
    #[error("{} does not hold {what}", path.display())]
    Content {
        /// Which.
        path: PathBuf,
        /// What was looked for.
        what: &'static str,
    },
}

/// A certificate and its key in a directory, `tls.crt` and `tls.key`.
#[derive(Debug)]
pub struct CertificateFiles {
    directory: PathBuf,
    current: ArcSwapOption<CertifiedKey>,
    /// What was read last, to see a change.
    read: Mutex<Vec<u8>>,
}

impl CertificateFiles {
    /// Those of `directory`, not yet read.
    pub fn new(directory: impl Into<PathBuf>) -> Self {
        Self { directory: directory.into(), current: ArcSwapOption::empty(), read: Mutex::default() }
    }

    /// Whether there is a certificate to serve with.
    pub fn is_ready(&self) -> bool {
        self.current.load().is_some()
    }

    /// Reads the files; true if they are new.
    ///
    /// # Errors
    /// When they cannot be used.
    pub fn load(&self) -> Result<bool, CertificateError> {
        let read = |name: &str| {
            let path = self.directory.join(name);
            fs::read(&path).map_err(|error| CertificateError::Read { path, error })
        };
        let (certificate, key) = (read("tls.crt")?, read("tls.key")?);
        let both = [certificate.as_slice(), &key].concat();
        if *self.read.lock().unwrap_or_else(PoisonError::into_inner) == both {
            return Ok(false);
        }
        self.current.store(Some(Arc::new(certified(&self.directory, &certificate, &key)?)));
        *self.read.lock().unwrap_or_else(PoisonError::into_inner) = both;
        Ok(true)
    }

    /// Reads the files whenever they change, until the future is dropped.
    pub async fn follow(&self) {
        let mut said = String::new();
        loop {
            match self.load() {
                Ok(true) => {
                    said.clear();
                    tracing::info!(directory = %self.directory.display(), "serving with a new certificate");
                }
                Ok(false) => said.clear(),
                Err(error) => {
                    // Once: a Secret that the control plane has yet to make is no reason to fill the log.
                    let error = error.to_string();
                    if said != error {
                        tracing::warn!(%error, "no certificate for the webhooks; the control plane writes it");
                        said = error;
                    }
                }
            }
            tokio::time::sleep(LOOK).await;
        }
    }
}

impl ResolvesServerCert for CertificateFiles {
    fn resolve(&self, _: ClientHello<'_>) -> Option<Arc<CertifiedKey>> {
        self.current.load_full()
    }
}

fn certified(directory: &Path, certificate: &[u8], key: &[u8]) -> Result<CertifiedKey, CertificateError> {
    let content = |name: &str, what| CertificateError::Content { path: directory.join(name), what };
    let chain: Vec<_> = CertificateDer::pem_slice_iter(certificate)
        .collect::<Result<_, _>>()
        .map_err(|_| content("tls.crt", "certificates as PEM"))?;
    let key = PrivateKeyDer::from_pem_slice(key).map_err(|_| content("tls.key", "a private key as PEM"))?;
    let key = ring::sign::any_supported_type(&key).map_err(|_| content("tls.key", "a key of a known type"))?;
    let certified = CertifiedKey::new(chain, key);
    match certified.keys_match() {
        Ok(()) => Ok(certified),
        Err(_) => Err(content("tls.crt", "the certificate of the key beside it")),
    }
}
