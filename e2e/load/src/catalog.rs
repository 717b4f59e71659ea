//! Every name and every content that any sidecar was sent, once: a sidecar then holds four bytes for each.
//!
//! A content is recognised by the hash of its bytes. Only one that was never seen is looked into.

use std::collections::HashMap;
use std::hash::{BuildHasherDefault, Hasher};
use std::sync::{Arc, PoisonError, RwLock, RwLockReadGuard};

use bytes::Bytes;
use envoy_types::pb::envoy::config::cluster::v3::{Cluster, cluster};
use envoy_types::pb::envoy::config::listener::v3::{Filter, Listener, filter};
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{
    HttpConnectionManager, http_connection_manager::RouteSpecifier,
};
use prost::Message;
use weft::snapshot::{Resource, ResourceType, Version};
use xxhash_rust::xxh3::xxh3_64_with_seed;

use crate::wire::{DeltaResource, DeltaResponse, Malformed};

/// A resource's name, whatever its type.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub struct NameId(u32);

/// One content of one resource.
#[derive(Clone, Copy, PartialEq, Eq, Hash, Debug)]
pub struct ContentId(u32);

/// A change that was made at the source, in order.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub struct ChangeId(pub usize);

/// What a sidecar needs to know of a content when it comes.
#[derive(Clone, Copy, Debug)]
pub(crate) struct Seen {
    pub(crate) id: ContentId,
    pub(crate) name: NameId,
    /// The name of the endpoints that a cluster has from EDS.
    pub(crate) endpoints: Option<NameId>,
    /// The change that it came from.
    pub(crate) change: Option<ChangeId>,
}

#[derive(Debug)]
struct Content {
    seen: Seen,
    /// As the server calls it.
    version: Arc<str>,
    /// The hash of the body.
    body: Version,
    /// The route configurations that a listener asks for.
    routes: Arc<[NameId]>,
}

/// The names and contents.
#[derive(Debug, Default)]
pub struct Catalog(RwLock<Inner>);

#[derive(Debug, Default)]
struct Inner {
    by_name: HashMap<Arc<str>, NameId>,
    names: Vec<Arc<str>>,
    by_hash: IdMap<u64, ContentId>,
    contents: Vec<Content>,
    awaited: HashMap<NameId, ChangeId>,
}

impl Catalog {
    /// The id of a name.
    pub fn name(&self, text: &str) -> NameId {
        if let Some(id) = self.read().by_name.get(text) {
            return *id;
        }
        self.0.write().unwrap_or_else(PoisonError::into_inner).name(text)
    }

    /// The id of the endpoints of a cluster, which Weft names after it: `10.96.0.5:80@3f2a9c1e`. Of several, those that
    /// were seen last.
    pub fn endpoints_of(&self, cluster: &str) -> NameId {
        let of_it = |text: &Arc<str>| text.strip_prefix(cluster).is_some_and(|rest| rest.starts_with('@'));
        let last = self.read().names.iter().rposition(of_it);
        last.map_or_else(|| self.name(cluster), |id| NameId(id as u32))
    }

    /// A name's text.
    pub fn text(&self, name: NameId) -> Arc<str> {
        self.read().names[name.0 as usize].clone()
    }

    /// What the server calls the version of a content.
    pub(crate) fn version(&self, content: ContentId) -> Arc<str> {
        self.read().contents[content.0 as usize].version.clone()
    }

    /// The hash of a content's body.
    pub fn body(&self, content: ContentId) -> Version {
        self.read().contents[content.0 as usize].body
    }

    pub(crate) fn endpoints(&self, content: ContentId) -> Option<NameId> {
        self.read().contents[content.0 as usize].seen.endpoints
    }

    pub(crate) fn routes(&self, content: ContentId) -> Arc<[NameId]> {
        self.read().contents[content.0 as usize].routes.clone()
    }

    /// The next new endpoints of this name come from `change`.
    pub(crate) fn await_change(&self, name: NameId, change: ChangeId) {
        self.0.write().unwrap_or_else(PoisonError::into_inner).awaited.insert(name, change);
    }

    /// Enters a response's resources, in `seen`.
    pub(crate) fn enter(
        &self,
        kind: ResourceType,
        response: &DeltaResponse<'_>,
        seen: &mut Vec<Seen>,
    ) -> Result<(), Malformed> {
        let mut unknown = Vec::new();
        {
            let inner = self.read();
            for resource in response.resources() {
                let hash = hash(kind, resource);
                match inner.by_hash.get(&hash) {
                    Some(id) => seen.push(inner.contents[id.0 as usize].seen),
                    None => unknown.push((hash, resource)),
                }
            }
        }
        if !unknown.is_empty() {
            let mut inner = self.0.write().unwrap_or_else(PoisonError::into_inner);
            for (hash, resource) in unknown {
                seen.push(inner.content(kind, hash, resource)?);
            }
        }
        Ok(())
    }

    fn read(&self) -> RwLockReadGuard<'_, Inner> {
        self.0.read().unwrap_or_else(PoisonError::into_inner)
    }
}

impl Inner {
    fn name(&mut self, text: &str) -> NameId {
        if let Some(id) = self.by_name.get(text) {
            return *id;
        }
        let (id, text) = (NameId(self.names.len() as u32), Arc::<str>::from(text));
        self.names.push(text.clone());
        self.by_name.insert(text, id);
        id
    }

    fn content(&mut self, kind: ResourceType, hash: u64, resource: &[u8]) -> Result<Seen, Malformed> {
        if let Some(id) = self.by_hash.get(&hash) {
            return Ok(self.contents[id.0 as usize].seen); // another sidecar was first
        }
        let DeltaResource { name, version, body } = DeltaResource::read(resource)?;
        let endpoints = match kind {
            ResourceType::Cluster => endpoints_of(body, name)?.map(|name| self.name(&name)),
            _ => None,
        };
        let routes = match kind {
            ResourceType::Listener => routes_of(body)?.iter().map(|name| self.name(name)).collect(),
            _ => Arc::default(),
        };
        let name = self.name(name);
        let change = match kind {
            ResourceType::Endpoints | ResourceType::Route => self.awaited.remove(&name),
            _ => None,
        };
        let seen = Seen { id: ContentId(self.contents.len() as u32), name, endpoints, change };
        let body = Resource::new(kind, "", Bytes::copy_from_slice(body), None).version;
        self.contents.push(Content { seen, version: version.into(), body, routes });
        self.by_hash.insert(hash, seen.id);
        Ok(seen)
    }
}

fn hash(kind: ResourceType, resource: &[u8]) -> u64 {
    xxh3_64_with_seed(resource, kind as u64)
}

fn endpoints_of(body: &[u8], name: &str) -> Result<Option<String>, Malformed> {
    let cluster = Cluster::decode(body)?;
    let eds = cluster::ClusterDiscoveryType::Type(cluster::DiscoveryType::Eds.into());
    let named = cluster.eds_cluster_config.map(|config| config.service_name).filter(|name| !name.is_empty());
    Ok((cluster.cluster_discovery_type == Some(eds)).then(|| named.unwrap_or_else(|| name.to_owned())))
}

fn routes_of(body: &[u8]) -> Result<Vec<String>, Malformed> {
    let listener = Listener::decode(body)?;
    let chains = listener.filter_chains.iter().chain(&listener.default_filter_chain);
    let mut names = Vec::new();
    for config in chains.flat_map(|chain| &chain.filters).filter_map(typed_config) {
        if config.type_url.ends_with(".HttpConnectionManager") {
            let manager = HttpConnectionManager::decode(config.value.as_slice())?;
            if let Some(RouteSpecifier::Rds(rds)) = manager.route_specifier {
                names.push(rds.route_config_name);
            }
        }
    }
    names.sort();
    names.dedup();
    Ok(names)
}

fn typed_config(filter: &Filter) -> Option<&envoy_types::pb::google::protobuf::Any> {
    match filter.config_type.as_ref()? {
        filter::ConfigType::TypedConfig(config) => Some(config),
        filter::ConfigType::ConfigDiscovery(_) => None,
    }
}

/// A map whose keys are spread evenly already, or are small numbers.
pub(crate) type IdMap<K, V> = HashMap<K, V, BuildHasherDefault<IdHasher>>;

/// Multiplies by an odd constant, which spreads small numbers over the high bits.
#[derive(Clone, Copy, Default)]
pub(crate) struct IdHasher(u64);

impl Hasher for IdHasher {
    fn finish(&self) -> u64 {
        self.0
    }

    fn write(&mut self, bytes: &[u8]) {
        for byte in bytes {
            self.write_u64((*byte).into());
        }
    }

    fn write_u32(&mut self, value: u32) {
        self.write_u64(value.into());
    }

    fn write_u64(&mut self, value: u64) {
        self.0 = (self.0 ^ value).wrapping_mul(0x9e37_79b9_7f4a_7c15).rotate_left(26);
    }
}
