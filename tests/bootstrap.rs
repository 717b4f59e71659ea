//! The sidecar's bootstrap on the stock Envoys: each must load it without a warning, deprecations included.

#![allow(clippy::expect_used, clippy::panic, reason = "a test may, and here its helpers do")]

use std::fs;
use std::path::{Path, PathBuf};
use std::process::Command;

use weft::local::bootstrap::{Bootstrap, Directories, XdsProtocol, render};
use weft::local::intercept::SidecarSockets;
use weft::local::probes::AskedProbe;
use weft::mesh::id::{PodKey, ProxyId, WorkloadKey};

/// Every Envoy of `envoy-bootstrap/VERSIONS`; `WEFT_ENVOY` stands for the default one.
fn envoys() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let versions = fs::read_to_string(root.join("envoy-bootstrap/VERSIONS")).expect("the versions");
    let lines = versions.lines().filter(|line| !line.starts_with('#')).filter_map(|line| line.split_once(' '));
    let envoys = lines.map(|(name, version)| match std::env::var_os("WEFT_ENVOY").filter(|_| name == "default") {
        Some(asked) => PathBuf::from(asked),
        None => root.join("target/envoy").join(version).join("envoy"),
    });
    let envoys: Vec<_> = envoys.collect();
    for envoy in &envoys {
        assert!(envoy.exists(), "there is no Envoy at {}: run `make setup-all`", envoy.display());
    }
    envoys
}

fn write_all(directory: &Path, bootstrap: &Bootstrap<'_>) {
    for (name, text) in render(bootstrap) {
        fs::write(directory.join(name), text).expect("written");
    }
    let root = rcgen::generate_simple_self_signed(["weft".to_owned()]).expect("a certificate").cert.pem();
    for (path, text) in [("token/token", "a token"), ("root/root.pem", &root)] {
        let path = directory.join(path);
        fs::create_dir_all(path.parent().expect("a directory")).expect("made");
        fs::write(path, text).expect("written");
    }
}

#[test]
fn envoy_takes_the_bootstrap_without_a_warning() {
    let (uid, mark) = (SidecarSockets::Uid(1337), SidecarSockets::Mark(0x539));
    let probes = ["tcp:5432:10", "tcp:6379:1", "https:8443/healthz", "https:8443/a \"b\": ${x}", "https:9443/"]
        .map(|text| text.parse::<AskedProbe>().expect(text));
    let kinds = [
        (uid, XdsProtocol::Delta, None, &[][..]),
        (mark, XdsProtocol::Delta, None, &[]),
        (uid, XdsProtocol::StateOfTheWorld, None, &[]),
        (uid, XdsProtocol::Delta, Some("10.244.0.7"), &probes[..]),
        (uid, XdsProtocol::Delta, Some("fd00::7"), &probes[..]),
    ];
    for (sockets, protocol, pod_ip, probes) in kinds {
        let dir = tempfile::tempdir().expect("a directory");
        let files = dir.path().to_str().expect("a path");
        let (token, root) = (format!("{files}/token"), format!("{files}/root"));
        let bootstrap = Bootstrap {
            node: &ProxyId(PodKey::new("shop", "cart-1")),
            workload: &WorkloadKey::new("shop", "cart"),
            zone: (protocol == XdsProtocol::Delta).then_some("zone-a"),
            control_plane: "10.244.0.1",
            control_plane_name: "weft.weft-system.svc",
            protocol,
            sockets,
            directories: Directories { files, token: &token, root: &root },
            pod_ip: pod_ip.map(|ip| ip.parse().expect("an address")),
            probes,
        };
        write_all(dir.path(), &bootstrap);
        for envoy in envoys() {
            let done = Command::new(&envoy)
                .args(["--mode", "validate", "--disable-hot-restart", "-l", "warning", "-c"])
                .arg(dir.path().join("bootstrap.yaml"))
                .output()
                .expect("Envoy ran");
            let printed = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
            assert!(done.status.success(), "{}: {printed}", envoy.display());
            let bad = ["warn", "deprecat", "error"].iter().any(|word| printed.contains(word));
            assert!(!bad, "{}: {printed}", envoy.display());
        }
    }
}
