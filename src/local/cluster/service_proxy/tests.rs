//! The rules in the kernel: a node and two pods as network namespaces, real TCP connections.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use rustix::thread::UnshareFlags;
use serde_json::json;

use super::*;

fn service(cluster_ip: &str, port: u16) -> Service {
    let name = format!("s-{}-{port}", cluster_ip.replace('.', "-"));
    let spec = json!({"clusterIP": cluster_ip, "ports": [{"name": "p", "port": port}]});
    serde_json::from_value(json!({"metadata": {"name": name, "namespace": "shop"}, "spec": spec})).expect("a Service")
}

fn slice(service: &Service, endpoints: &[(&str, bool, bool)], port: u16) -> EndpointSlice {
    let endpoint = |(address, ready, terminating): &(&str, bool, bool)| {
        let conditions = json!({"ready": ready, "serving": true, "terminating": terminating});
        json!({"addresses": [address], "conditions": conditions})
    };
    serde_json::from_value(json!({
        "metadata": {"name": "x", "namespace": "shop", "labels": {"kubernetes.io/service-name": service.metadata.name}},
        "addressType": "IPv4", "ports": [{"name": "p", "port": port, "protocol": "TCP"}],
        "endpoints": endpoints.iter().map(endpoint).collect::<Vec<_>>(),
    }))
    .expect("an EndpointSlice")
}

#[test]
fn terminating_endpoints_serve_only_when_nobody_else_does() {
    let web = service("10.96.1.1", 80);
    let both = slice(&web, &[("10.244.0.2", true, false), ("10.244.0.3", false, true)], 8080);
    assert!(ruleset([&web], [&both]).contains("mod 1 map { 0 : 10.244.0.2 . 8080 }"));
    let leaving = slice(&web, &[("10.244.0.3", false, true)], 8080);
    assert!(ruleset([&web], [&leaving]).contains("mod 1 map { 0 : 10.244.0.3 . 8080 }"));
    let dns = service("10.96.0.10", 53);
    assert!(!ruleset([&dns], [&slice(&dns, &[("10.244.0.2", true, false)], 53)]).contains("dnat ip to"));
}

/// A network namespace held by a thread of this process that runs what it is given.
struct Netns {
    jobs: mpsc::Sender<Box<dyn FnOnce() + Send>>,
    thread: i32,
}

impl Netns {
    fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (started, thread) = mpsc::channel();
        std::thread::spawn(move || {
            // Of this thread alone, and no file table: nothing that the deprecation is about.
            #[allow(deprecated, reason = "the replacement is unsafe, for flags that are not used here")]
            rustix::thread::unshare(UnshareFlags::NEWNET).expect("a network namespace (needs root)");
            started.send(rustix::thread::gettid().as_raw_nonzero().get()).expect("the test lives");
            queue.into_iter().for_each(|job| job());
        });
        Self { jobs, thread: thread.recv().expect("the thread started") }
    }

    fn run<T: Send + 'static>(&self, job: impl FnOnce() -> T + Send + 'static) -> T {
        let (sender, receiver) = mpsc::channel();
        self.jobs.send(Box::new(move || drop(sender.send(job())))).expect("the thread lives");
        receiver.recv().expect("the job has not panicked")
    }

    fn sh(&self, script: &str) {
        let script = script.to_owned();
        self.run(move || {
            let output = Command::new("sh").args(["-ec", &script]).output().expect("sh");
            assert!(output.status.success(), "{script}: {}", String::from_utf8_lossy(&output.stderr));
        });
    }
}

/// A node that routes to two pods by /32, as the playground's does; each pod serves its own name on 8080.
struct Network {
    node: Netns,
    pods: [Netns; 2],
}

impl Network {
    fn new() -> Self {
        let network = Self { node: Netns::new(), pods: [Netns::new(), Netns::new()] };
        network.node.sh("echo 1 > /proc/sys/net/ipv4/ip_forward
             ip link set lo up
             ip address add 10.244.0.1/32 dev lo
             ip address add 10.96.0.10/32 dev lo
             ip route add 10.96.0.0/12 dev lo src 10.244.0.1");
        for (pod, ip) in network.pods.iter().zip(["10.244.0.2", "10.244.0.3"]) {
            let device = format!("pod{}", &ip[9..]);
            network.node.sh(&format!(
                "ip link add {device} type veth peer name eth0 netns {}
                 ip link set {device} up
                 ip route add {ip}/32 dev {device}",
                pod.thread
            ));
            pod.sh(&format!(
                "ip link set lo up
                 ip address add {ip}/32 dev eth0
                 ip link set eth0 up
                 ip route add 10.244.0.1 dev eth0
                 ip route add default via 10.244.0.1"
            ));
            let listener = pod.run(|| TcpListener::bind("0.0.0.0:8080").expect("bound"));
            std::thread::spawn(move || {
                listener.incoming().flatten().for_each(|mut stream| drop(stream.write_all(ip.as_bytes())));
            });
        }
        network
    }

    fn load(&self, services: &[Service], slices: &[EndpointSlice]) {
        let text = ruleset(services, slices);
        self.node.run(move || {
            let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
            runtime.block_on(load(&text)).expect("nft takes the rules");
        });
    }
}

/// Who answers at `address`.
fn ask(from: &Netns, address: &'static str) -> Result<String, io::ErrorKind> {
    from.run(move || {
        let address = address.parse().expect("an address");
        let mut stream = TcpStream::connect_timeout(&address, Duration::from_secs(5)).map_err(|e| e.kind())?;
        let mut name = String::new();
        stream.read_to_string(&mut name).map_err(|e| e.kind())?;
        Ok(name)
    })
}

#[test]
fn connections_reach_ready_endpoints_and_nothing_else() {
    let network = Network::new();
    let web = service("10.96.1.1", 80);
    let empty = service("10.96.1.2", 80);
    let both = slice(&web, &[("10.244.0.2", true, false), ("10.244.0.3", true, false)], 8080);
    network.load(&[web.clone(), empty.clone()], &[both]);
    for (from, whence) in [(&network.pods[0], "pod"), (&network.node, "node")] {
        // That forty draws of two hit one only happens once in 2^39.
        let answers: BTreeSet<_> = (0..40).map(|_| ask(from, "10.96.1.1:80").expect("an answer")).collect();
        assert_eq!(answers.len(), 2, "from the {whence}, which reaches itself too: {answers:?}");
        assert_eq!(ask(from, "10.96.1.2:80"), Err(io::ErrorKind::ConnectionRefused), "no endpoints, from the {whence}");
        assert_eq!(ask(from, "10.96.9.9:80"), Err(io::ErrorKind::ConnectionRefused), "no Service, from the {whence}");
        assert_eq!(ask(from, "10.96.1.1:81"), Err(io::ErrorKind::ConnectionRefused), "no such port, from the {whence}");
    }

    let one = slice(&web, &[("10.244.0.2", false, true), ("10.244.0.3", true, false)], 8080);
    network.load(std::slice::from_ref(&web), &[one]);
    assert!((0..20).all(|_| ask(&network.pods[0], "10.96.1.1:80").as_deref() == Ok("10.244.0.3")));

    let dns = network.node.run(|| TcpListener::bind("10.96.0.10:53").expect("bound"));
    std::thread::spawn(move || dns.incoming().flatten().for_each(|mut stream| drop(stream.write_all(b"dns"))));
    assert_eq!(ask(&network.pods[0], "10.96.0.10:53").as_deref(), Ok("dns"));
}

#[test]
fn refused_rules_are_reported_in_nfts_words() {
    let netns = Netns::new();
    let error = netns.run(|| {
        let runtime = tokio::runtime::Builder::new_current_thread().enable_all().build().expect("a runtime");
        runtime.block_on(load("table ip broken {")).expect_err("not a ruleset")
    });
    assert!(error.to_string().contains("syntax error"), "{error}");
}
