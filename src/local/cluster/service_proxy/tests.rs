//! The rules in the kernel: a node and two pods as network namespaces, real TCP connections.

use std::io::{Read as _, Write as _};
use std::net::{TcpListener, TcpStream};
use std::os::fd::AsFd as _;
use std::process::Command;
use std::sync::mpsc;
use std::time::Duration;

use serde_json::json;

use super::*;

fn service(cluster_ip: &str, port: u16) -> Service {
    let name = format!("s{port}");
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
    thread: u32,
}

impl Netns {
    fn new() -> Self {
        let (jobs, queue) = mpsc::channel::<Box<dyn FnOnce() + Send>>();
        let (started, thread) = mpsc::channel();
        std::thread::spawn(move || {
            rustix::thread::unshare_unsafe_free();
            let _ = started.send(rustix::thread::gettid().as_raw_nonzero().get().unsigned_abs());
            queue.into_iter().for_each(|job| job());
        });
        Self { jobs, thread: thread.recv().expect("a network namespace (needs root)") }
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
