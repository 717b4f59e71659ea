//! What the tests of generated configuration share.

use std::path::PathBuf;
use std::process::Command;
use std::sync::OnceLock;

use prost_reflect::{DescriptorPool, DynamicMessage, SerializeOptions};
use weft::snapshot::{Resource, ResourceType};

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
    message.serialize_with_options(serde_json::value::Serializer, &options).expect("JSON")
}
