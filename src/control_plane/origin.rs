//! Where the mesh's objects come from, and with it where its root is kept and who vouches for sidecars.
//!
//! ```text
//!             objects          root                        sidecars
//!  Directory  DirectorySource  files in a directory        tokens that `weft up` signed
//!  Kubernetes KubeSource       Secret, ConfigMaps, Lease   TokenReview
//! ```

use std::path::PathBuf;
use std::sync::Arc;

use tokio::sync::mpsc;
use tokio::task::JoinHandle;

use super::identity::Tokens;
use super::pipeline::State;
use super::told::Told;
use super::{DNS_NAME, Error};
use crate::ca::token::TokenVerifier;
use crate::ca::{Authority, Clock, Material};
use crate::kubernetes::lease::{Lease, while_holding};
use crate::kubernetes::root_bundle::RootBundle;
use crate::kubernetes::root_secret::RootSecret;
use crate::kubernetes::status::Status;
use crate::kubernetes::token_review::TokenReviews;
use crate::kubernetes::warm_sets::ConfigMapStore;
use crate::kubernetes::webhooks::{Served, Webhooks};
use crate::kubernetes::{Cluster, skew};
use crate::mesh::TrustDomain;
use crate::source::crds;
use crate::source::kube::{KubeSource, ObservedObjects};
use crate::source::{DirectorySource, Event, SourceError};
use crate::warm::WarmStore;
use crate::xds::auth::Authenticator;

/// Where everything comes from.
#[derive(Clone, Debug)]
pub enum Origin {
    /// A directory of YAML.
    Directory(DirectoryOrigin),
    /// A Kubernetes API server.
    Kubernetes(KubernetesOrigin),
}

/// A directory, and what an API server would have besides.
#[derive(Clone, Debug)]
pub struct DirectoryOrigin {
    /// The directory that holds the mesh's objects.
    pub path: PathBuf,
    /// Where the root certificate and its key are kept; `None` keeps them in memory, and with them the mesh's trust.
    pub ca_dir: Option<PathBuf>,
    /// The public key that tokens are verified with, PEM.
    pub token_key: PathBuf,
}

/// An API server.
#[derive(Clone, Debug)]
pub struct KubernetesOrigin {
    /// How to reach it; `None`: as the environment says, or the pod that this runs in.
    pub kubeconfig: Option<PathBuf>,
    /// The control plane's own namespace.
    pub namespace: String,
    /// The name of this replica: its pod's.
    pub replica: String,
    /// The Secret with the user's own certificate authority; `None`: one is made.
    pub ca_secret: Option<String>,
}

/// An origin that can be read.
pub(super) enum Opened {
    Directory(Box<OnDisk>),
    Kubernetes(Box<OnKubernetes>),
}

/// A directory, and what the control plane has beside it.
pub(super) struct OnDisk {
    /// Until it is read.
    source: Option<DirectorySource>,
    verifier: TokenVerifier,
    ca_dir: Option<PathBuf>,
}

/// An API server, and what the control plane has there.
pub(super) struct OnKubernetes {
    source: KubeSource,
    cluster: Cluster,
    secret: RootSecret,
    lease: Lease,
    /// What the authority is made of, once there is one.
    material: Option<Material>,
}

impl Opened {
    pub(super) async fn open(origin: Origin, clock: &Clock) -> Result<Self, Error> {
        match origin {
            Origin::Directory(DirectoryOrigin { path, ca_dir, token_key }) => {
                let unreadable = |error| Error::TokenKeyFile { path: token_key.clone(), error };
                let key = std::fs::read(&token_key).map_err(unreadable)?;
                let verifier = TokenVerifier::from_pem(&key, clock.clone())
                    .map_err(|error| Error::TokenKey { path: token_key.clone(), error })?;
                let source = Some(DirectorySource::open(path)?);
                Ok(Self::Directory(Box::new(OnDisk { source, verifier, ca_dir })))
            }
            Origin::Kubernetes(KubernetesOrigin { kubeconfig, namespace, replica, ca_secret }) => {
                let cluster = Cluster::connect(kubeconfig.as_deref(), namespace, replica).await?;
                let secret = RootSecret::new(&cluster, ca_secret.as_deref());
                let (source, lease) = (KubeSource::new(cluster.client()), Lease::new(&cluster));
                Ok(Self::Kubernetes(Box::new(OnKubernetes { source, cluster, secret, lease, material: None })))
            }
        }
    }

    /// The name by which sidecars know the control plane: the SAN of its certificate.
    pub(super) fn dns_name(&self) -> String {
        match self {
            Self::Directory(_) => DNS_NAME.to_owned(),
            Self::Kubernetes(on) => format!("weft.{}.svc", on.cluster.namespace()),
        }
    }

    /// Starts to read. A directory is read once in a process's life.
    pub(super) fn read(&mut self, events: mpsc::Sender<Vec<Event>>) -> JoinHandle<Result<(), SourceError>> {
        match self {
            Self::Directory(on) => {
                let source = on.source.take();
                tokio::spawn(async move {
                    match source {
                        Some(source) => source.run(events).await,
                        None => Ok(()),
                    }
                })
            }
            Self::Kubernetes(on) => {
                let source = on.source.clone();
                tokio::spawn(async move {
                    source.run(events).await;
                    Ok(())
                })
            }
        }
    }

    /// The certificate authority; on Kubernetes it is waited for.
    pub(super) async fn authority(
        &mut self,
        trust_domain: &TrustDomain,
        clock: &Clock,
        mesh: Arc<State>,
    ) -> Result<Arc<Authority>, Error> {
        let authority = match self {
            Self::Directory(on) => match &on.ca_dir {
                Some(dir) => Authority::load_or_create(dir, trust_domain.clone(), clock.clone())?,
                None => Authority::in_memory(trust_domain.clone(), clock.clone())?,
            },
            Self::Kubernetes(on) => {
                let (authority, made_of) = on.secret.authority(trust_domain, clock, &*mesh).await;
                on.material = Some(made_of);
                authority
            }
        };
        Ok(Arc::new(authority))
    }

    /// Where replicas keep what workloads call, if they have anything in common.
    pub(super) fn warm_store(&self, mesh: Arc<State>) -> Option<Arc<dyn WarmStore>> {
        match self {
            Self::Directory(_) => None,
            Self::Kubernetes(on) => Some(Arc::new(ConfigMapStore::new(&on.cluster, mesh))),
        }
    }

    pub(super) fn authenticator(
        &self,
        mesh: Arc<State>,
        trust_domain: TrustDomain,
        clock: Clock,
    ) -> Arc<dyn Authenticator> {
        match self {
            Self::Directory(on) => Arc::new(Tokens::new(on.verifier.clone(), trust_domain)),
            Self::Kubernetes(on) => Arc::new(TokenReviews::new(on.cluster.client(), mesh, trust_domain, clock)),
        }
    }

    /// What an API server says of objects; nothing, of a directory's.
    pub(super) fn observed(&self) -> Arc<ObservedObjects> {
        match self {
            Self::Directory(_) => Arc::default(),
            Self::Kubernetes(on) => on.source.observed(),
        }
    }

    /// Sees to the control plane's own objects, until the future is dropped.
    pub(super) async fn tend(&mut self, authority: &Authority, mesh: Arc<State>, told: Arc<Told>) {
        let Self::Kubernetes(on) = self else { return std::future::pending().await };
        let OnKubernetes { source, cluster, secret, lease, material: Some(material) } = &mut **on else {
            return std::future::pending().await;
        };
        let (holding, meshed) = (lease.holding(), source.meshed());
        let cluster = &*cluster;
        let bundle = async |report| {
            RootBundle::new(cluster, authority.root_pem(), report).keep(meshed.watch()).await;
        };
        let webhooks = async |report| {
            let served = Served { service: crds::WEBHOOK_SERVICE, definitions: crds::all() };
            Webhooks::new(cluster, authority, served, report).keep().await;
        };
        let status = async |report| Status::new(cluster, told.clone(), report).keep().await;
        tokio::select! {
            () = lease.run(&*mesh) => {}
            () = secret.tend(authority, material.clone(), holding.clone(), mesh.clone()) => {}
            () = while_holding(holding.clone(), mesh.clone(), bundle) => {}
            () = while_holding(holding.clone(), mesh.clone(), webhooks) => {}
            () = while_holding(holding.clone(), mesh.clone(), status) => {}
            () = skew::watch(cluster, authority.clock(), &*mesh) => {}
        }
    }

    /// The process ends: others need not wait for what it holds.
    pub(super) async fn end(&mut self) {
        if let Self::Kubernetes(on) = self {
            on.lease.resign().await;
        }
    }
}
