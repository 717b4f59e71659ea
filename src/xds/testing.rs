//! Builders for the tests of this module: resources of one byte, a proxy, its secrets.

use std::collections::BTreeMap;
use std::sync::{Arc, Mutex};
use std::time::Duration;

use bytes::Bytes;
use futures::FutureExt;
use futures::future::BoxFuture;
use tokio::sync::watch;

use super::auth::{AuthError, Authenticator, ProxyIdentity, Secrets};
use super::session::Patience;
use crate::mesh::{PodKey, ProxyId, ServiceAccountKey, SpiffeId, TrustDomain};
use crate::snapshot::{Change, Fallback, Hosts, Pushed, Resource, ResourceName, ResourceType, View};

pub(crate) fn proxy() -> ProxyId {
    ProxyId(PodKey::new("shop", "web"))
}

pub(crate) fn identity(account: &str) -> SpiffeId {
    SpiffeId::new(TrustDomain::default(), ServiceAccountKey::new("shop", account))
}

pub(crate) fn resource(kind: ResourceType, name: &str, content: u8) -> Arc<Resource> {
    let resource = Resource::new(kind, name, Bytes::from(vec![content]), None);
    Arc::new(match kind {
        ResourceType::Cluster => resource.with_endpoints(name.into()),
        _ => resource,
    })
}

pub(crate) fn put(kind: ResourceType, name: &str, content: u8) -> Change {
    Change::Put(resource(kind, name, content))
}

pub(crate) fn gone(kind: ResourceType, name: &str) -> Change {
    Change::Remove(kind, name.into())
}

/// The proxy is known, and everything is pushed to it.
pub(crate) fn eager() -> Change {
    Change::PutView(proxy(), Arc::new(View { own: vec![], pushed: Pushed::All }))
}

/// The proxy is known, and these clusters are pushed to it.
pub(crate) fn on_demand(pushed: &[&str]) -> Change {
    let names = pushed.iter().map(|name| ResourceName::from(*name)).collect();
    Change::PutView(proxy(), Arc::new(View { own: vec![], pushed: Pushed::Only(Arc::new(names)) }))
}

/// Has a cluster of one content for names that begin with `pod`.
#[derive(Debug)]
pub(crate) struct Pods(pub(crate) u8);

impl Fallback for Pods {
    fn cluster(&self, name: &ResourceName) -> Option<Arc<Resource>> {
        name.as_str().starts_with("pod").then(|| resource(ResourceType::Cluster, name.as_str(), self.0))
    }

    fn since(&self, _: &dyn Fallback) -> Hosts {
        Hosts::All
    }
}

/// Secrets that the test sets.
#[derive(Debug)]
pub(crate) struct TestSecrets {
    secrets: Mutex<BTreeMap<(String, ResourceName), Arc<Resource>>>,
    ticks: watch::Sender<u64>,
}

impl TestSecrets {
    pub(crate) fn new() -> Arc<Self> {
        Arc::new(Self { secrets: Mutex::default(), ticks: watch::Sender::new(0) })
    }

    pub(crate) fn set(&self, account: &str, name: &str, content: u8) {
        let key = (identity(account).to_string(), name.into());
        self.secrets.lock().expect("not poisoned").insert(key, resource(ResourceType::Secret, name, content));
        self.ticks.send_modify(|tick| *tick += 1);
    }
}

impl Secrets for TestSecrets {
    fn secret(&self, identity: &SpiffeId, _proxy: &ProxyId, name: &ResourceName) -> Option<Arc<Resource>> {
        self.secrets.lock().expect("not poisoned").get(&(identity.to_string(), name.clone())).cloned()
    }

    fn changes(&self) -> watch::Receiver<u64> {
        self.ticks.subscribe()
    }
}

/// Takes `good` as the token of the test's proxy, and `good-NAME` as that of pod NAME.
pub(crate) struct TestTokens;

impl Authenticator for TestTokens {
    fn authenticate<'a>(&'a self, token: &'a str) -> BoxFuture<'a, Result<ProxyIdentity, AuthError>> {
        async move {
            match token {
                "good" => Ok(ProxyIdentity { spiffe: identity("web"), pod: Some(proxy().0) }),
                "later" => Err(AuthError::Unavailable("the key is not loaded yet".into())),
                _ if token.starts_with("good-") => {
                    Ok(ProxyIdentity { spiffe: identity("web"), pod: Some(PodKey::new("shop", &token[5..])) })
                }
                _ => Err(AuthError::Invalid("it is signed by an unknown key".into())),
            }
        }
        .boxed()
    }
}

/// As by default, but what nobody uses any more is removed at once.
pub(crate) fn patience() -> Patience {
    Patience { lingering: Duration::ZERO, ..Patience::default() }
}
