//! What the mesh's root is, for all replicas: a Secret in the control plane's own namespace.
//!
//! ```text
//!  at the start: read it ──missing──▶ was there one before? ──no──▶ create it; who comes second reads the first one's
//!                                                       └──yes─▶ refuse: it must be restored, or given up on purpose
//!  then:         look now and then: gone ─▶ the holder of the Lease puts back what it has in memory
//!                                   changed ─▶ taken up if it ends at the same root
//! ```
//!
//! A Secret that the user names (`--ca-secret`) is the user's: it is waited for, and neither made nor put back.

use std::collections::BTreeMap;
use std::sync::Arc;
use std::time::Duration;

use k8s_openapi::ByteString;
use k8s_openapi::api::core::v1::{ConfigMap, Secret};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;
use kube::Api;
use kube::api::PostParams;
use tokio::sync::watch;
use tokio::time::sleep;

use super::{Cluster, Report, RequestError, root_bundle, send};
use crate::backoff::about;
use crate::ca::{Authority, CaError, Clock, Material, Origin, PrivateKey};
use crate::mesh::{Diagnostic, TrustDomain};

/// The Secret's name when the user names none.
pub const NAME: &str = "weft-ca";

/// The keys of a Secret of the type `kubernetes.io/tls`, and the one that cert-manager puts beside them.
const CERTIFICATES: &str = "tls.crt";
const KEY: &str = "tls.key";
const ROOTS: &str = "ca.crt";
/// Between two looks.
const LOOK: Duration = Duration::from_secs(5);

/// Why there is no root.
#[derive(Debug, thiserror::Error)]
pub(crate) enum RootError {
    /// A request failed.
    #[error("{of}: {error}")]
    Request {
        /// The Secret.
        of: String,
        /// Why.
        error: RequestError,
    },
    /// It is not what it should be.
    #[error(transparent)]
    Ca(#[from] CaError),
    /// A key of it is missing.
    #[error("{of} has no {key}")]
    Incomplete {
        /// The Secret.
        of: String,
        /// The key.
        key: &'static str,
    },
    /// There was a root before.
    #[error(
        "{of} is gone, and a mesh was made with it; a new root in its place would make all sidecars distrust each other"
    )]
    Gone {
        /// The Secret.
        of: String,
    },
    /// The user's own is not there yet.
    #[error("{of}, which --ca-secret names, is not there")]
    Awaited {
        /// The Secret.
        of: String,
    },
}

impl RootError {
    fn diagnostic(&self, cluster: &Cluster) -> Diagnostic {
        let bundle = format!("ConfigMap {}/{}", cluster.namespace, root_bundle::NAME);
        let help = match self {
            Self::Request { error, .. } => error.help("secrets"),
            Self::Ca(_) | Self::Incomplete { .. } => "put a usable CA there (tls.crt, tls.key, ca.crt)".to_owned(),
            Self::Gone { .. } => {
                format!(
                    "restore it from a backup (a replica that still runs puts it back); to give the old root up, delete {bundle}"
                )
            }
            Self::Awaited { .. } => "create it, as with cert-manager; it is waited for".to_owned(),
        };
        Diagnostic::error("", self.to_string(), help)
    }
}

/// The Secret that holds the root.
#[derive(Clone)]
pub struct RootSecret {
    cluster: Cluster,
    api: Api<Secret>,
    name: String,
    /// It is ours to make.
    ours: bool,
    of: String,
}

impl RootSecret {
    /// The one that the user names, or our own.
    pub fn new(cluster: &Cluster, named: Option<&str>) -> Self {
        let name = named.unwrap_or(NAME).to_owned();
        Self {
            api: Api::namespaced(cluster.client(), cluster.namespace()),
            of: format!("Secret {}/{name}", cluster.namespace()),
            ours: named.is_none(),
            cluster: cluster.clone(),
            name,
        }
    }

    /// The authority of all replicas, and what it is made of. It is tried again until there is one.
    pub async fn authority(
        &self,
        trust_domain: &TrustDomain,
        clock: &Clock,
        report: &dyn Report,
    ) -> (Authority, Material) {
        loop {
            match self.load_or_create(trust_domain, clock).await {
                Ok(made) => {
                    report.report(&self.of, None);
                    return made;
                }
                Err(RootError::Request { error: RequestError::Conflict, .. }) => {}
                Err(error) => {
                    report.report(&self.of, Some(error.diagnostic(&self.cluster)));
                    sleep(about(LOOK / 2)).await;
                }
            }
        }
    }

    /// Keeps the Secret and the authority, which is made of `kept`, together until the future is dropped.
    pub async fn tend(
        &self,
        authority: &Authority,
        mut kept: Material,
        holding: watch::Receiver<bool>,
        report: Arc<dyn Report>,
    ) {
        let mut seen = None;
        loop {
            // Copied first: whoever changes it waits as long as it is borrowed, on this very thread.
            let holds = *holding.borrow();
            let found = self.look(authority, &mut seen, &mut kept, holds).await;
            report.report(&self.of, found.err());
            sleep(about(LOOK)).await;
        }
    }

    async fn look(
        &self,
        authority: &Authority,
        seen: &mut Option<String>,
        kept: &mut Material,
        holding: bool,
    ) -> Result<(), Diagnostic> {
        let said = |error: RootError| error.diagnostic(&self.cluster);
        let secret = self.get().await.map_err(said)?;
        let Some(secret) = secret else {
            *seen = None;
            if !(self.ours && holding) {
                let reason = format!("{} is gone; this replica goes on with what it has in memory", self.of);
                let help = match self.ours {
                    true => "nothing: the replica that holds the lease puts it back",
                    false => "put it back before a replica is started again",
                };
                return Err(Diagnostic::error("", reason, help));
            }
            self.create(kept).await.map_err(said)?;
            tracing::warn!(secret = %self.of, "it was gone, and was put back with the root that is in use");
            return Ok(());
        };
        if secret.metadata.resource_version == *seen {
            return Ok(());
        }
        let material = self.material(&secret).map_err(said)?;
        // Our own is put back with the root beside it, which changes nothing.
        if (&kept.certificates, &kept.key) != (&material.certificates, &material.key) {
            authority.renew(&material, &self.origin()).map_err(|error| said(error.into()))?;
            tracing::info!(secret = %self.of, "it has changed, and certificates are signed with it from now on");
        }
        (*kept, *seen) = (material, secret.metadata.resource_version);
        Ok(())
    }

    async fn load_or_create(
        &self,
        trust_domain: &TrustDomain,
        clock: &Clock,
    ) -> Result<(Authority, Material), RootError> {
        let material = match self.get().await? {
            Some(secret) => self.material(&secret)?,
            None if !self.ours => return Err(RootError::Awaited { of: self.of.clone() }),
            None if self.was_there_one().await? => return Err(RootError::Gone { of: self.of.clone() }),
            None => {
                let material = Material::new_root(trust_domain, clock.now())?;
                // Of several who create it one succeeds; the others are told of a conflict, and read it.
                self.create(&material).await?;
                tracing::info!(secret = %self.of, "made a new root for the mesh");
                material
            }
        };
        let authority = Authority::from_material(&material, &self.origin(), trust_domain.clone(), clock.clone())?;
        Ok((authority, material))
    }

    async fn get(&self) -> Result<Option<Secret>, RootError> {
        match send("get", self.api.get(&self.name)).await {
            Ok(secret) => Ok(Some(secret)),
            Err(RequestError::Missing) => Ok(None),
            Err(error) => Err(RootError::Request { of: self.of.clone(), error }),
        }
    }

    /// Where the root was told to sidecars, there is a mesh that believes in it.
    async fn was_there_one(&self) -> Result<bool, RootError> {
        let api: Api<ConfigMap> = Api::namespaced(self.cluster.client(), self.cluster.namespace());
        match send("get", api.get(root_bundle::NAME)).await {
            Ok(_) => Ok(true),
            Err(RequestError::Missing) => Ok(false),
            Err(error) => {
                let of = format!("ConfigMap {}/{}", self.cluster.namespace, root_bundle::NAME);
                Err(RootError::Request { of, error })
            }
        }
    }

    async fn create(&self, material: &Material) -> Result<(), RootError> {
        let roots = material.roots.as_ref().unwrap_or(&material.certificates);
        let data =
            [(CERTIFICATES, material.certificates.as_str()), (KEY, material.key.expose_pem()), (ROOTS, roots.as_str())];
        let secret = Secret {
            metadata: ObjectMeta {
                name: Some(self.name.clone()),
                labels: Some(BTreeMap::from([("app.kubernetes.io/managed-by".to_owned(), "weft".to_owned())])),
                ..ObjectMeta::default()
            },
            type_: Some("kubernetes.io/tls".to_owned()),
            data: Some(data.map(|(key, text)| (key.to_owned(), ByteString(text.as_bytes().to_vec()))).into()),
            ..Secret::default()
        };
        match send("create", self.api.create(&PostParams::default(), &secret)).await {
            Ok(_) => Ok(()),
            Err(error) => Err(RootError::Request { of: self.of.clone(), error }),
        }
    }

    fn material(&self, secret: &Secret) -> Result<Material, RootError> {
        let text = |key: &'static str| {
            let bytes = &secret.data.as_ref()?.get(key)?.0;
            (!bytes.is_empty()).then(|| String::from_utf8_lossy(bytes).into_owned())
        };
        let missing = |key| RootError::Incomplete { of: self.of.clone(), key };
        Ok(Material {
            certificates: text(CERTIFICATES).ok_or_else(|| missing(CERTIFICATES))?,
            key: PrivateKey::from_pem(text(KEY).ok_or_else(|| missing(KEY))?),
            roots: text(ROOTS),
        })
    }

    fn origin(&self) -> Origin {
        let [certificates, key, roots] = [CERTIFICATES, KEY, ROOTS].map(|key| format!("{}, {key}", self.of));
        Origin { certificates, key, roots }
    }
}
