//! Kubernetes YAML in, Envoy configuration out: `tests/golden/NAME.yaml` beside `NAME@TYPE.snap`.
//!
//! And a stock Envoy takes it: every resource passes `envoy --mode validate` without a warning.

#![allow(clippy::expect_used, clippy::panic, reason = "a test may, and here its helpers do")]

mod support;

use std::collections::{BTreeMap, BTreeSet};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::sync::Arc;

use envoy_types::pb::envoy::config::bootstrap::v3::bootstrap::{DynamicResources, StaticResources};
use envoy_types::pb::envoy::config::bootstrap::v3::{Admin, Bootstrap, LayeredRuntime, RuntimeLayer, runtime_layer};
use envoy_types::pb::envoy::config::cluster::v3::Cluster;
use envoy_types::pb::envoy::config::cluster::v3::cluster::{ClusterDiscoveryType, DiscoveryType, EdsClusterConfig};
use envoy_types::pb::envoy::config::core::v3::api_config_source::ApiType;
use envoy_types::pb::envoy::config::core::v3::config_source::ConfigSourceSpecifier;
use envoy_types::pb::envoy::config::core::v3::grpc_service::{EnvoyGrpc, TargetSpecifier};
use envoy_types::pb::envoy::config::core::v3::{
    AggregatedConfigSource, ApiConfigSource, ApiVersion, ConfigSource, GrpcService, Node,
};
use envoy_types::pb::envoy::config::listener::v3::{Filter, FilterChain, Listener, filter};
use envoy_types::pb::envoy::config::route::v3::RouteConfiguration;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::HttpConnectionManager;
use envoy_types::pb::envoy::extensions::filters::network::http_connection_manager::v3::http_connection_manager::RouteSpecifier;
use envoy_types::pb::google::protobuf::{Struct, Value, value};
use envoy_types::util::pack_any;
use prost::Message;
use weft::snapshot::{Generation, Resource, ResourceType};

fn inputs() -> Vec<PathBuf> {
    let folder = Path::new(env!("CARGO_MANIFEST_DIR")).join("tests/golden");
    let mut inputs: Vec<_> = std::fs::read_dir(&folder)
        .expect("the folder of inputs")
        .map(|entry| entry.expect("an entry").path())
        .filter(|path| path.extension().is_some_and(|extension| extension == "yaml"))
        .collect();
    inputs.sort();
    assert!(inputs.len() >= 3, "inputs in {}", folder.display());
    inputs
}

#[test]
fn the_configuration_is_what_stands_beside_its_input() {
    for input in inputs() {
        let name = input.file_stem().expect("a name").to_string_lossy().into_owned();
        let mut by_type: BTreeMap<ResourceType, BTreeMap<String, serde_json::Value>> = BTreeMap::new();
        for ((kind, name), resource) in support::translate(&input) {
            by_type.entry(kind).or_default().insert(name, support::readable(&resource));
        }
        insta::with_settings!({snapshot_path => "golden", prepend_module_to_snapshot => false, omit_expression => true}, {
            for (kind, resources) in by_type {
                insta::assert_yaml_snapshot!(format!("{name}@{kind:?}"), resources);
            }
        });
    }
}

#[test]
fn rule_32_how_long_envoy_waits_is_said_of_every_source() {
    let mut sources = 0;
    for input in inputs() {
        for ((kind, name), resource) in support::translate(&input) {
            sources += patient_sources(&support::readable(&resource), &format!("{}: {kind:?} {name}", input.display()));
        }
    }
    let bootstrap = Path::new(env!("CARGO_MANIFEST_DIR")).join("envoy-bootstrap/sidecar.yaml");
    let bootstrap = std::fs::read_to_string(bootstrap).expect("the sidecar's bootstrap");
    for line in bootstrap.lines().filter(|line| line.contains("ads: {}")) {
        assert!(line.contains("initial_fetch_timeout"), "{line}");
        sources += 1;
    }
    assert!(sources > 10, "{sources} sources");
}

/// Counts the sources of configuration in a message, each of which says how long Envoy waits for it.
fn patient_sources(message: &serde_json::Value, at: &str) -> usize {
    match message {
        serde_json::Value::Object(fields) => {
            let is_source = fields.contains_key("ads");
            assert!(!is_source || fields.contains_key("initial_fetch_timeout"), "{at}: {message}");
            usize::from(is_source) + fields.values().map(|field| patient_sources(field, at)).sum::<usize>()
        }
        serde_json::Value::Array(items) => items.iter().map(|item| patient_sources(item, at)).sum(),
        _ => 0,
    }
}

#[test]
fn a_stock_envoy_takes_it_without_a_warning() {
    takes_it_without_a_warning(&support::envoy(), Generation::Current);
}

#[test]
fn the_oldest_envoy_takes_what_is_meant_for_it() {
    takes_it_without_a_warning(&support::oldest_envoy(), Generation::Older);
}

fn takes_it_without_a_warning(envoy: &Path, generation: Generation) {
    for input in inputs() {
        let directory = tempfile::tempdir().expect("a directory");
        let bootstrap = directory.path().join("bootstrap.pb");
        let resources = support::translate(&input);
        std::fs::write(&bootstrap, bootstrap_with(&resources, generation).encode_to_vec()).expect("written");
        let output = Command::new(envoy)
            .env("OTEL_RESOURCE_ATTRIBUTES", "service.name=cart.shop")
            .args(["--mode", "validate", "--disable-hot-restart", "-l", "warning", "-c"])
            .arg(&bootstrap)
            .output()
            .unwrap_or_else(|error| panic!("{}: {error}", envoy.display()));
        let log = String::from_utf8_lossy(&output.stderr);
        assert!(output.status.success(), "{}: {log}", input.display());
        assert!(!log.contains("[warning]") && !log.contains("[error]"), "{}: {log}", input.display());
    }
}

/// A bootstrap that holds the resources as if they were static.
fn bootstrap_with(resources: &BTreeMap<(ResourceType, String), Arc<Resource>>, generation: Generation) -> Bootstrap {
    let of = |kind| resources.iter().filter(move |((of, _), _)| *of == kind).map(|(_, resource)| resource);
    let mut listeners: Vec<Listener> = of(ResourceType::Listener)
        .map(|r| Listener::decode(r.body_for(generation).clone()).expect("a listener"))
        .collect();
    // Those of several pods have the same name and address.
    for (number, listener) in (1..).zip(&mut listeners) {
        listener.name = format!("{}-{number}", listener.name);
        listener.address = support::port(number);
    }
    listeners.extend(of(ResourceType::Route).map(routes_in_a_listener));
    let mut clusters: Vec<Cluster> =
        of(ResourceType::Cluster).map(|r| Cluster::decode(r.body.clone()).expect("a cluster")).collect();
    // Those that each pod has for itself are the same.
    let mut names = BTreeSet::new();
    clusters.retain(|cluster| names.insert(cluster.name.clone()));
    // A static cluster of a bootstrap is made before the stream that its secrets come over, and Envoy 1.40 ends with a
    // segmentation fault. Over CDS it is made after it: e2e calls pods by their addresses.
    let of_addresses = Some(ClusterDiscoveryType::Type(DiscoveryType::Static.into()));
    let with_secrets = |cluster: &&mut Cluster| {
        cluster.cluster_discovery_type == of_addresses && !cluster.transport_socket_matches.is_empty()
    };
    for cluster in clusters.iter_mut().filter(with_secrets) {
        cluster.load_assignment = None;
        cluster.cluster_discovery_type = Some(ClusterDiscoveryType::Type(DiscoveryType::Eds.into()));
        cluster.eds_cluster_config = Some(EdsClusterConfig {
            eds_config: Some(ConfigSource {
                resource_api_version: ApiVersion::V3.into(),
                config_source_specifier: Some(ConfigSourceSpecifier::Ads(AggregatedConfigSource {})),
                ..Default::default()
            }),
            ..Default::default()
        });
    }
    clusters.push(Cluster { name: "xds".into(), connect_timeout: None, ..Default::default() });
    let grpc = GrpcService {
        target_specifier: Some(TargetSpecifier::EnvoyGrpc(EnvoyGrpc {
            cluster_name: "xds".into(),
            ..Default::default()
        })),
        ..Default::default()
    };
    Bootstrap {
        node: Some(Node { id: "cart-1.shop".into(), cluster: "cart.shop".into(), ..Default::default() }),
        admin: Some(Admin::default()),
        static_resources: Some(StaticResources { listeners, clusters, ..Default::default() }),
        dynamic_resources: Some(DynamicResources {
            ads_config: Some(ApiConfigSource {
                api_type: ApiType::DeltaGrpc.into(),
                transport_api_version: ApiVersion::V3.into(),
                grpc_services: vec![grpc],
                ..Default::default()
            }),
            ..Default::default()
        }),
        layered_runtime: Some(LayeredRuntime {
            layers: vec![RuntimeLayer {
                name: "static".into(),
                layer_specifier: Some(runtime_layer::LayerSpecifier::StaticLayer(regexes_of_any_size())),
            }],
        }),
        ..Default::default()
    }
}

/// As the sidecar's bootstrap sets it.
fn regexes_of_any_size() -> Struct {
    let number = |value| Value { kind: Some(value::Kind::NumberValue(value)) };
    Struct {
        fields: [
            ("re2.max_program_size.error_level".to_owned(), number(32768.0)),
            ("re2.max_program_size.warn_level".to_owned(), number(32768.0)),
        ]
        .into(),
    }
}

/// Envoy validates routes only where a listener holds them.
fn routes_in_a_listener(routes: &Arc<Resource>) -> Listener {
    let manager = HttpConnectionManager {
        stat_prefix: "routes".into(),
        route_specifier: Some(RouteSpecifier::RouteConfig(
            RouteConfiguration::decode(routes.body.clone()).expect("routes"),
        )),
        http_filters: vec![support::router()],
        ..Default::default()
    };
    Listener {
        name: "routes".into(),
        address: support::port(0),
        filter_chains: vec![FilterChain {
            filters: vec![Filter {
                name: "envoy.filters.network.http_connection_manager".into(),
                config_type: Some(filter::ConfigType::TypedConfig(pack_any(manager))),
            }],
            ..Default::default()
        }],
        ..Default::default()
    }
}
