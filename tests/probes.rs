//! The probes that a sidecar asks for the kubelet, on stock Envoys: they say of the application what it is.

#![allow(clippy::expect_used, clippy::panic, reason = "a test may, and here its helpers do")]

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, TcpListener, TcpStream};
use std::path::{Path, PathBuf};
use std::process::{Child, Command, Stdio};
use std::sync::atomic::{AtomicU16, Ordering};
use std::sync::{Arc, Mutex};
use std::time::{Duration, Instant};

use rustls::pki_types::{PrivateKeyDer, PrivatePkcs8KeyDer};
use weft::local::bootstrap::{Bootstrap, Directories, XdsProtocol, render};
use weft::local::intercept::SidecarSockets;
use weft::local::probes::AskedProbe;
use weft::mesh::id::{PodKey, ProxyId, WorkloadKey};

/// An Envoy that ends with its owner.
struct Envoy(Child);

impl Drop for Envoy {
    fn drop(&mut self) {
        let _ = self.0.kill();
        let _ = self.0.wait();
    }
}

/// A free port.
fn port() -> u16 {
    TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port").local_addr().expect("an address").port()
}

/// The status of `GET path`, as the kubelet asks.
fn get(port: u16, path: &str) -> Option<u16> {
    let mut stream = TcpStream::connect((Ipv4Addr::LOCALHOST, port)).ok()?;
    stream.set_read_timeout(Some(Duration::from_secs(5))).ok()?;
    let head = format!("GET {path} HTTP/1.1\r\nhost: pod\r\nuser-agent: kube-probe/1.35\r\nconnection: close\r\n\r\n");
    stream.write_all(head.as_bytes()).ok()?;
    let mut answer = String::new();
    stream.read_to_string(&mut answer).ok()?;
    answer.split(' ').nth(1)?.parse().ok()
}

fn until(what: &str, mut holds: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(30);
    while !holds() {
        assert!(Instant::now() < deadline, "{what}");
        std::thread::sleep(Duration::from_millis(50));
    }
}

/// An application that answers by HTTPS: `status`, to whatever it is asked, which it notes.
struct Application {
    port: u16,
    status: Arc<AtomicU16>,
    asked: Arc<Mutex<Vec<String>>>,
}

impl Application {
    fn start() -> Self {
        let made = rcgen::generate_simple_self_signed(["nobody.example".to_owned()]).expect("a certificate");
        let key = PrivateKeyDer::from(PrivatePkcs8KeyDer::from(made.signing_key.serialize_der()));
        let config = rustls::ServerConfig::builder_with_provider(Arc::new(rustls::crypto::ring::default_provider()))
            .with_safe_default_protocol_versions()
            .expect("versions")
            .with_no_client_auth()
            .with_single_cert(vec![made.cert.der().clone()], key)
            .expect("a certificate and its key");
        let (config, listener) = (Arc::new(config), TcpListener::bind((Ipv4Addr::LOCALHOST, 0)).expect("a port"));
        let port = listener.local_addr().expect("an address").port();
        let (status, asked) = (Arc::new(AtomicU16::new(200)), Arc::new(Mutex::new(Vec::new())));
        let (answer, heard) = (status.clone(), asked.clone());
        std::thread::spawn(move || {
            for stream in listener.incoming() {
                let Ok(stream) = stream else { return };
                let Ok(connection) = rustls::ServerConnection::new(config.clone()) else { return };
                let mut stream = rustls::StreamOwned::new(connection, stream);
                let mut head = vec![0; 4096];
                let Ok(read) = stream.read(&mut head) else { continue };
                let head = String::from_utf8_lossy(&head[..read]).into_owned();
                heard.lock().expect("heard").push(head.split(' ').nth(1).unwrap_or_default().to_owned());
                let status = answer.load(Ordering::SeqCst);
                let _ = write!(stream, "HTTP/1.1 {status} x\r\ncontent-length: 0\r\nconnection: close\r\n\r\n");
            }
        });
        Self { port, status, asked }
    }
}

fn envoys() -> Vec<PathBuf> {
    let root = Path::new(env!("CARGO_MANIFEST_DIR"));
    let versions = fs::read_to_string(root.join("envoy-bootstrap/VERSIONS")).expect("the versions");
    let versions = versions.lines().filter_map(|line| line.split_once(' ')).filter(|(name, _)| *name != "#");
    let envoys = versions.map(|(_, version)| root.join("target/envoy").join(version).join("envoy"));
    envoys.filter(|envoy| envoy.exists()).collect()
}

#[test]
fn a_probe_that_the_sidecar_asks_says_what_the_application_is() {
    let envoys = envoys();
    assert_eq!(envoys.len(), 2, "run `make setup-all`");
    for envoy in envoys {
        let (application, tcp, health, admin) = (Application::start(), port(), port(), port());
        let probes = [
            AskedProbe::Tcp { port: tcp, period: 1 },
            AskedProbe::Https { port: application.port, path: "/healthz".to_owned() },
        ];
        let directory = tempfile::tempdir().expect("a directory");
        let files = directory.path().to_str().expect("a path");
        let bootstrap = Bootstrap {
            node: &ProxyId(PodKey::new("shop", "cart-1")),
            workload: &WorkloadKey::new("shop", "cart"),
            zone: None,
            control_plane: "127.0.0.1",
            control_plane_name: "weft.weft-system.svc",
            protocol: XdsProtocol::Delta,
            sockets: SidecarSockets::Uid(1337),
            directories: Directories { files, token: files, root: files },
            pod_ip: Some(Ipv4Addr::LOCALHOST.into()),
            probes: &probes,
        };
        fs::write(directory.path().join("token"), "a token").expect("written");
        let root = rcgen::generate_simple_self_signed(["weft".to_owned()]).expect("a certificate").cert.pem();
        fs::write(directory.path().join("root.pem"), root).expect("written");
        for (name, text) in render(&bootstrap) {
            // On ports of its own, and without a control plane, which it would wait for.
            let text = text.replace("port_value: 15020", &format!("port_value: {health}"));
            let text = text.replace("port_value: 15000", &format!("port_value: {admin}"));
            let text = match text.split_once("dynamic_resources:") {
                Some((before, rest)) => {
                    let (_, after) = rest.split_once("cluster_manager:").expect("what follows");
                    format!("{before}cluster_manager:{after}")
                }
                None => text,
            };
            fs::write(directory.path().join(name), text).expect("written");
        }
        let log = fs::File::create(directory.path().join("log")).expect("a file");
        let process = Command::new(&envoy)
            .args(["--disable-hot-restart", "--concurrency", "1", "-l", "warning", "-c"])
            .arg(directory.path().join("bootstrap.yaml"))
            .stdout(Stdio::null())
            .stderr(log)
            .spawn()
            .expect("Envoy runs");
        let _process = Envoy(process);
        let path = |probe: usize| probes[probe].asked_path();

        until("it is there, and nobody listens", || get(health, &path(0)) == Some(503));
        let listener = TcpListener::bind((Ipv4Addr::LOCALHOST, tcp)).expect("the port is free");
        until("somebody listens", || get(health, &path(0)) == Some(200));
        drop(listener);
        until("nobody listens any more", || get(health, &path(0)) == Some(503));

        assert_eq!(get(health, &format!("{}?verbose=1", path(1))), Some(200));
        application.status.store(500, Ordering::SeqCst);
        assert_eq!(get(health, &path(1)), Some(500));
        application.status.store(200, Ordering::SeqCst);
        assert_eq!(get(health, &path(1)), Some(200));
        assert_eq!(*application.asked.lock().expect("asked"), ["/healthz?verbose=1", "/healthz", "/healthz"]);
        // Nothing else of the application is reached this way.
        let other = format!("/probe/https/{}/secret", application.port);
        assert_eq!(
            (get(health, &other), get(health, "/probe/tcp/22"), get(health, "/")),
            (Some(404), Some(404), Some(404))
        );
        assert_eq!(application.asked.lock().expect("asked").len(), 3);
    }
}
