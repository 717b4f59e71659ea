//! Identity: a certificate authority, the secrets of every workload, and the tokens that say who a proxy is.
//!
//! ```text
//!  token ──TokenVerifier──▶ SpiffeId ──SecretStore::secret──▶ Secret resources ──xds──▶ Envoy
//!                                          │ mints when first asked, and again at half of a leaf's life
//!                                          ▼
//!                                      Authority (root certificate and key)
//! ```
//!
//! Private keys leave this module only inside an encoded `Secret` (the workload's own) or a TLS server's key. They are
//! never logged and, but for the root key of [`Authority::load_or_create`], never written.

mod authority;
mod describe;
mod key;
mod material;
mod root_files;
mod secrets;
mod server;
pub mod token;

use std::fmt;
use std::sync::Arc;
use std::time::{Duration, SystemTime};

pub use authority::{Authority, CaError, Issued};
pub use describe::{CertificateSummary, DescribeError, describe, describe_all};
pub use key::PrivateKey;
pub use material::{Material, Origin};
pub use secrets::{LeafPolicy, MESH_ROOT, SecretStore, WORKLOAD};
pub use server::ServerCertificate;

/// How far the clocks of two machines of a mesh may be apart: certificates are valid from so long before they are made. Each
/// clock may be some minutes off, in either direction.
pub const CLOCK_TOLERANCE: Duration = Duration::from_mins(15);

/// Tells the time; tests set it.
#[derive(Clone)]
pub struct Clock(Arc<dyn Fn() -> SystemTime + Send + Sync>);

impl Clock {
    /// The machine's clock.
    pub fn system() -> Self {
        Self::new(SystemTime::now)
    }

    /// A clock that says what `now` returns.
    pub fn new(now: impl Fn() -> SystemTime + Send + Sync + 'static) -> Self {
        Self(Arc::new(now))
    }

    /// The time.
    pub fn now(&self) -> SystemTime {
        (self.0)()
    }
}

impl fmt::Debug for Clock {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.write_str("Clock")
    }
}

#[cfg(test)]
pub(crate) mod test_clock {
    use std::time::{Duration, SystemTime};

    use super::Clock;

    /// 2026-01-01T00:00:00Z.
    pub(crate) fn epoch() -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(1_767_225_600)
    }

    /// A clock that always says `at`.
    pub(crate) fn fixed(at: SystemTime) -> Clock {
        Clock::new(move || at)
    }

    /// A clock that starts at [`epoch`] and runs with tokio's, which a test can pause.
    pub(crate) fn tokio_clock() -> Clock {
        let start = tokio::time::Instant::now();
        Clock::new(move || epoch() + start.elapsed())
    }
}
