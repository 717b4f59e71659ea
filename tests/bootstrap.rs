//! The sidecar's bootstrap on the stock Envoy: it must load without a warning, deprecations included.

use std::fs;
use std::path::PathBuf;
use std::process::Command;

use weft::local::bootstrap::{Bootstrap, XdsProtocol, render};
use weft::local::envoy_binary;
use weft::local::intercept::SidecarSockets;
use weft::mesh::id::{PodKey, ProxyId, WorkloadKey};

#[test]
fn envoy_takes_the_bootstrap_without_a_warning() {
    let asked = std::env::var_os("WEFT_ENVOY").map(PathBuf::from);
    let envoy = envoy_binary::find(asked.as_deref()).unwrap_or_else(|why| panic!("{why}"));
    let kinds = [
        (SidecarSockets::Uid(1337), XdsProtocol::Delta),
        (SidecarSockets::Mark(0x539), XdsProtocol::Delta),
        (SidecarSockets::Uid(1337), XdsProtocol::StateOfTheWorld),
    ];
    for (sockets, protocol) in kinds {
        let dir = tempfile::tempdir().expect("a directory");
        let bootstrap = Bootstrap {
            node: &ProxyId(PodKey::new("shop", "cart-1")),
            workload: &WorkloadKey::new("shop", "cart"),
            zone: (protocol == XdsProtocol::Delta).then_some("zone-a"),
            control_plane: "10.244.0.1",
            protocol,
            sockets,
            directory: dir.path().to_str().expect("a path"),
        };
        for (name, text) in render(&bootstrap) {
            fs::write(dir.path().join(name), text).expect("written");
        }
        let root = rcgen::generate_simple_self_signed(["weft".to_owned()]).expect("a certificate").cert.pem();
        for (directory, file, text) in [("token", "token", "a token"), ("root", "root.pem", &root)] {
            fs::create_dir(dir.path().join(directory)).expect("made");
            fs::write(dir.path().join(directory).join(file), text).expect("written");
        }
        let done = Command::new(&envoy)
            .args(["--mode", "validate", "--disable-hot-restart", "-l", "warning", "-c"])
            .arg(dir.path().join("bootstrap.yaml"))
            .output()
            .expect("Envoy ran");
        let printed = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned()).concat();
        assert!(done.status.success(), "{printed}");
        assert!(!["warn", "deprecat", "error"].iter().any(|word| printed.contains(word)), "{printed}");
    }
}
