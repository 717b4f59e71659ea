//! What the tests of generated configuration share.

use std::collections::BTreeMap;
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::{Arc, OnceLock};

use envoy_types::pb::envoy::config::core::v3::socket_address::PortSpecifier;
use envoy_types::pb::envoy::config::core::v3::{Address, SocketAddress, address};
use envoy_types::pb::envoy::extensions::filters::http::router::v3::Router;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::{HttpFilter, http_filter};
use envoy_types::util::pack_any;
use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use weft::envoy::Translator;
use weft::mesh::{self, Dirty, World};
use weft::snapshot::{Change, Resource, ResourceType};

/// The descriptors of every message that `envoy-types` holds, as that crate ships them.
pub(crate) fn descriptors() -> &'static DescriptorPool {
    static POOL: OnceLock<DescriptorPool> = OnceLock::new();
    POOL.get_or_init(|| {
        // Only this platform's packages are certain to have been downloaded.
        let rustc = Command::new("rustc").arg("-vV").output().expect("rustc runs");
        let rustc = String::from_utf8(rustc.stdout).expect("text");
        let host = rustc.lines().find_map(|line| line.strip_prefix("host: ")).expect("the host's triple");
        let metadata = Command::new(env!("CARGO"))
            .args(["metadata", "--format-version", "1", "--offline", "--locked", "--filter-platform", host])
            .current_dir(env!("CARGO_MANIFEST_DIR"))
            .output()
            .expect("cargo metadata runs");
        assert!(metadata.status.success(), "{}", String::from_utf8_lossy(&metadata.stderr));
        let metadata: serde_json::Value = serde_json::from_slice(&metadata.stdout).expect("JSON of cargo metadata");
        let manifest = metadata["packages"]
            .as_array()
            .expect("packages")
            .iter()
            .find(|package| package["name"] == "envoy-types")
            .and_then(|package| package["manifest_path"].as_str())
            .expect("envoy-types among the packages");
        let types = PathBuf::from(manifest).with_file_name("src/generated/types.bin");
        let bytes = std::fs::read(&types).unwrap_or_else(|error| panic!("{}: {error}", types.display()));
        DescriptorPool::decode(bytes.as_slice()).expect("a descriptor set")
    })
}

/// A resource as people write it: JSON with field names of the proto files and every `Any` opened.
pub(crate) fn readable(resource: &Resource) -> serde_json::Value {
    let name = match resource.kind {
        ResourceType::Cluster => "envoy.config.cluster.v3.Cluster",
        ResourceType::Endpoints => "envoy.config.endpoint.v3.ClusterLoadAssignment",
        ResourceType::Listener => "envoy.config.listener.v3.Listener",
        ResourceType::Route => "envoy.config.route.v3.RouteConfiguration",
        ResourceType::Secret => "envoy.extensions.transport_sockets.tls.v3.Secret",
    };
    let descriptor = descriptors().get_message_by_name(name).expect("a known message");
    let message = DynamicMessage::decode(descriptor, resource.body.clone()).expect("its own encoding");
    let options = SerializeOptions::new().use_proto_field_name(true).stringify_64_bit_integers(false);
    let mut json = message.serialize_with_options(serde_json::value::Serializer, &options).expect("JSON");
    sort_maps(&mut json);
    json
}

/// The maps whose entries are several: they are read in any order.
fn sort_maps(json: &mut serde_json::Value) {
    match json {
        serde_json::Value::Object(fields) => {
            for (name, field) in fields {
                match (name.as_str(), &mut *field) {
                    ("filter_metadata", _) => field.sort_all_objects(),
                    ("map" | "policies", serde_json::Value::Object(entries)) => entries.sort_keys(),
                    _ => {}
                }
                sort_maps(field);
            }
        }
        serde_json::Value::Array(items) => items.iter_mut().for_each(sort_maps),
        _ => {}
    }
}

/// Everything that the objects of a file come to, by type and name; a proxy's own resources by `PROXY NAME`.
pub(crate) fn translate(file: &Path) -> BTreeMap<(ResourceType, String), Arc<Resource>> {
    let events = weft::source::directory::read_once(file).unwrap_or_else(|error| panic!("{error}"));
    let mut world = World::default();
    for event in events {
        match event {
            weft::source::Event::Apply { object: Some(object), warnings, .. } => {
                assert_eq!(warnings, [], "{}", file.display());
                world.apply(mesh::Event::Apply(object));
            }
            weft::source::Event::Rejected(diagnostic) => panic!("{diagnostic}"),
            _ => {}
        }
    }
    let mut everything = Dirty { config: true, ..Dirty::default() };
    everything.services.extend(world.services().map(|service| service.key.clone()));
    everything.pods.extend(world.pods().map(|pod| pod.key.clone()));
    let mut resources = BTreeMap::new();
    for change in Translator::default().translate(&world, &everything).changes {
        match change {
            Change::Put(resource) => {
                resources.insert((resource.kind, resource.name.to_string()), resource);
            }
            Change::PutView(proxy, view) => {
                for own in &view.own {
                    resources.insert((own.kind, format!("{proxy} {}", own.name)), own.clone());
                }
            }
            Change::Fallback(addresses) => {
                let outside = ["egress/api.example.com:443", "egress/wildcard"];
                for name in ["10.244.0.11:9999", "10.244.9.9:80"].into_iter().chain(outside) {
                    let cluster = addresses.cluster(&name.into()).expect("an address in the mesh's ranges, or a host");
                    resources.insert((ResourceType::Cluster, name.to_owned()), cluster);
                }
            }
            Change::Remove(..) | Change::RemoveView(..) => {}
        }
    }
    resources
}

/// The stock Envoy: `WEFT_ENVOY`, or what `make setup` installed.
pub(crate) fn envoy() -> PathBuf {
    let installed = || PathBuf::from(env!("CARGO_MANIFEST_DIR")).join("target/envoy/default/envoy");
    let path = std::env::var_os("WEFT_ENVOY").map_or_else(installed, PathBuf::from);
    assert!(path.exists(), "there is no Envoy at {}: run `make setup`, or set WEFT_ENVOY", path.display());
    path
}

/// The oldest stock Envoy of envoy-bootstrap/VERSIONS, as `make setup-all` installed it.
pub(crate) fn oldest_envoy() -> PathBuf {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let versions = std::fs::read_to_string(root.join("envoy-bootstrap/VERSIONS")).expect("envoy-bootstrap/VERSIONS");
    let version = versions.lines().find_map(|line| line.strip_prefix("oldest ")).expect("the oldest");
    let path = root.join("target/envoy").join(version.trim()).join("envoy");
    assert!(path.exists(), "there is no Envoy at {}: run `make setup-all`", path.display());
    path
}

pub(crate) fn router() -> HttpFilter {
    HttpFilter {
        name: "envoy.filters.http.router".into(),
        config_type: Some(http_filter::ConfigType::TypedConfig(pack_any(Router::default()))),
        ..Default::default()
    }
}

pub(crate) fn port(port: u32) -> Option<Address> {
    let socket = SocketAddress {
        address: "127.0.0.1".into(),
        port_specifier: Some(PortSpecifier::PortValue(port)),
        ..Default::default()
    };
    Some(Address { address: Some(address::Address::SocketAddress(socket)) })
}
