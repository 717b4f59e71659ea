//! The playground on this machine: needs root or user namespaces, iproute2, nftables, util-linux (setpriv, unshare).

#![expect(clippy::expect_used, clippy::panic, reason = "helpers of tests fail as tests do")]

use std::fs;
use std::io::Read;
use std::net::{Ipv4Addr, SocketAddr, TcpListener, TcpStream};
use std::os::unix::fs::PermissionsExt;
use std::path::{Path, PathBuf};
use std::process::{Command, Output};
use std::time::{Duration, Instant};

use weft::local::control::PodSelector;
use weft::local::intercept::{self, Exclusions, SidecarSockets};
use weft::local::{Client, ClientError, Options, Playground, StartError};

const PODS: &str = r#"
apiVersion: v1
kind: Pod
metadata:
  name: idle
  namespace: shop
  annotations: {weft.dev/local-command: sleep 1000}
spec:
  containers:
  - {name: app, image: example, env: [{name: COLOUR, value: green}]}
---
apiVersion: apps/v1
kind: Deployment
metadata: {name: busy, namespace: shop}
spec:
  replicas: 1
  selector: {matchLabels: {app: busy}}
  template:
    metadata:
      labels: {app: busy}
      annotations: {weft.dev/local-command: sleep 1000}
    spec:
      containers:
      - {name: app, image: example}
"#;

fn weft() -> PathBuf {
    PathBuf::from(env!("CARGO_BIN_EXE_weft"))
}

fn directory(yaml: &str) -> tempfile::TempDir {
    let dir = tempfile::tempdir().expect("a directory");
    fs::write(dir.path().join("pods.yaml"), yaml).expect("written");
    // The rootless test reads it as another user.
    fs::set_permissions(dir.path(), PermissionsExt::from_mode(0o755)).expect("permissions");
    dir
}

fn start(name: &str, dir: &Path) -> Playground {
    try_start(name, dir).unwrap_or_else(|error| panic!("{error}"))
}

fn try_start(name: &str, dir: &Path) -> Result<Playground, StartError> {
    Playground::start(Options {
        dir: dir.to_owned(),
        name: name.to_owned(),
        weft_exe: weft(),
        envoy: None,
        arguments: Vec::new(),
        ready_within: Duration::from_secs(30),
    })
}

fn argv(words: &[&str]) -> Vec<String> {
    words.iter().map(|word| (*word).to_owned()).collect()
}

fn shell(client: &Client, pod: &str, script: &str) -> (i32, String) {
    client.output(PodSelector::new("shop", pod), argv(&["sh", "-c", script])).expect("the command ran")
}

/// Waits for `condition`, and fails if it does not come true.
fn eventually(what: &str, mut condition: impl FnMut() -> bool) {
    let deadline = Instant::now() + Duration::from_secs(20);
    while !condition() {
        assert!(Instant::now() < deadline, "still not: {what}");
        std::thread::sleep(Duration::from_millis(20));
    }
}

/// Process `root` and all its descendants.
fn processes_of(root: u32) -> Vec<u32> {
    let parent_of = |pid: u32| -> Option<u32> {
        let stat = fs::read_to_string(format!("/proc/{pid}/stat")).ok()?;
        stat.rsplit_once(')')?.1.split_whitespace().nth(1)?.parse().ok()
    };
    let all: Vec<u32> = fs::read_dir("/proc")
        .expect("/proc")
        .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
        .collect();
    all.into_iter()
        .filter(|pid| std::iter::successors(Some(*pid), |pid| parent_of(*pid)).any(|ancestor| ancestor == root))
        .collect()
}

/// Every namespace that a process is in, as `net:[4026532000]`.
fn namespaces_of(pids: &[u32]) -> Vec<String> {
    let links = pids
        .iter()
        .flat_map(|pid| ["net", "mnt", "pid"].map(|kind| fs::read_link(format!("/proc/{pid}/ns/{kind}")).ok()));
    links.flatten().map(|link| link.to_string_lossy().into_owned()).collect()
}

/// What the host would keep if something were left behind.
fn host() -> (String, String, String, usize) {
    let text = |output: Output| String::from_utf8_lossy(&output.stdout).into_owned();
    let links = text(Command::new("ip").args(["-brief", "link"]).output().expect("ip"));
    let rules = text(Command::new("nft").args(["list", "ruleset"]).output().expect("nft"));
    let mounts = fs::read_to_string("/proc/self/mounts").expect("mounts");
    let run = fs::read_dir("/run").expect("/run").count();
    (links, rules, mounts, run)
}

#[test]
fn a_pod_has_its_own_address_names_and_files() {
    let dir = directory(PODS);
    let playground = start("own", dir.path());
    let client = playground.client();
    let status = client.status().expect("status");
    assert!(status.ready, "{status:?}");
    let ip = |workload: &str| status.pods.iter().find(|pod| pod.workload == workload).expect(workload).ip;

    assert_eq!(shell(client, "idle", "hostname; echo $COLOUR; exit 7"), (7, "idle\ngreen\n".to_owned()));
    let (code, addresses) = shell(client, "idle", "ip -4 -o address show dev eth0");
    assert!(code == 0 && addresses.contains(&format!("{}/32", ip("idle"))), "{addresses}");
    let (_, resolv_conf) = shell(client, "idle", "cat /etc/resolv.conf");
    assert!(resolv_conf.contains("nameserver 10.96.0.10"), "{resolv_conf}");
    assert!(resolv_conf.contains("search shop.svc.cluster.local svc.cluster.local cluster.local"), "{resolv_conf}");
    assert!(resolv_conf.contains("options ndots:5"), "{resolv_conf}");
    let (_, files) = shell(client, "idle", "ls /run/weft; ls /proc | grep -c '^[0-9]'");
    assert!(files.starts_with("bin\n"), "other pods' files are not seen: {files}");
    let (_, capabilities) = shell(client, "idle", "grep CapEff /proc/self/status");
    assert!(capabilities.ends_with("425fb\n"), "neither NET_ADMIN nor SYS_ADMIN: {capabilities}");
    assert_eq!(shell(client, "deploy/busy", "no-such-command").0, 127);
    playground.stop().expect("stopped");
}

#[test]
fn a_dialled_connection_comes_from_within_the_pod_and_from_the_node() {
    let dir = directory(PODS);
    let playground = start("dial", dir.path());
    let client = playground.client().clone();
    let status = client.status().expect("status");
    let idle = status.pods.iter().find(|pod| pod.name == "idle").expect("the pod").ip;
    // The listener is made in pod idle by asking for a command that says who called.
    let script = "import socket\n\
        s = socket.create_server(('0.0.0.0', 80))\n\
        for _ in range(3):\n\
        \x20   c, peer = s.accept(); c.sendall(peer[0].encode()); c.close()";
    let server = {
        let client = client.clone();
        let command = argv(&["python3", "-c", script]);
        std::thread::spawn(move || client.output(PodSelector::new("shop", "idle"), command))
    };
    let ask = |from: Option<&str>, to: Ipv4Addr| {
        let mut answer = String::new();
        eventually("the listener answers", || {
            let from = from.map(|pod| PodSelector::new("shop", pod));
            match client.dial(from, SocketAddr::new(to.into(), 80)) {
                Ok(mut stream) => stream.read_to_string(&mut answer).is_ok(),
                Err(ClientError::Refused(_)) => false, // not listening yet
                Err(error) => panic!("{error}"),
            }
        });
        answer
    };
    assert_eq!(ask(Some("idle"), Ipv4Addr::LOCALHOST), "127.0.0.1");
    assert_eq!(ask(None, idle), "10.244.0.1");
    let busy = status.pods.iter().find(|pod| pod.workload == "busy").expect("the pod");
    assert_eq!(ask(Some(&busy.name), idle), busy.ip.to_string());
    assert_eq!(server.join().expect("joined").expect("ran").0, 0);
}

#[test]
fn a_command_ends_with_its_client() {
    let dir = directory(PODS);
    let playground = start("client", dir.path());
    let mut exec = Command::new(weft())
        .args(["exec", "--name", "client", "-n", "shop", "idle", "--", "sleep", "4321"])
        .spawn()
        .expect("started");
    let seen =
        || shell(playground.client(), "idle", "cat /proc/[0-9]*/cmdline | tr '\\0' ' '").1.contains("sleep 4321");
    eventually("the command runs", seen);
    exec.kill().expect("killed");
    exec.wait().expect("ended");
    eventually("the command is gone", || !seen());
}

#[test]
fn a_container_that_ends_is_started_again() {
    let dir = directory(PODS);
    let playground = start("again", dir.path());
    let client = playground.client();
    let pod = || client.status().expect("status").pods.into_iter().find(|pod| pod.name == "idle").expect("the pod");
    assert_eq!(pod().restarts, 0);
    client.kill_container(PodSelector::new("shop", "idle"), "app").expect("killed");
    eventually("it runs again", || pod().restarts == 1 && pod().ready);
    let refusal = client.kill_container(PodSelector::new("shop", "idle"), "web").expect_err("no such container");
    assert!(refusal.to_string().contains("no container `web`"), "{refusal}");
}

#[test]
fn a_name_is_used_once_and_free_again_afterwards() {
    let dir = directory(PODS);
    let playground = start("once", dir.path());
    let second = Command::new(weft()).arg("up").arg(dir.path()).args(["--name", "once"]).output().expect("ran");
    assert!(!second.status.success());
    let message = String::from_utf8_lossy(&second.stderr).into_owned();
    assert!(message.contains("a playground named `once` is running"), "{message}");
    assert!(playground.stop().expect("stopped").success());
    assert!(matches!(Client::connect("once"), Err(ClientError::NotRunning(_))));
    assert!(start("once", dir.path()).stop().expect("stopped").success());
}

#[test]
fn nothing_is_left_after_sigkill() {
    let dir = directory(PODS);
    let before = host();
    let playground = start("killed", dir.path());
    let pids = processes_of(playground.pid());
    let spaces = namespaces_of(&pids);
    assert!(pids.len() >= 7, "weft up, init, playground, and two pods of two processes: {pids:?}");
    let kill = Command::new("kill").args(["-9", &playground.pid().to_string()]).status().expect("kill");
    assert!(kill.success());
    let own = namespaces_of(&[std::process::id()]);
    let left: Vec<_> = spaces.into_iter().filter(|namespace| !own.contains(namespace)).collect();
    assert!(left.len() >= 9, "{left:?}");
    drop(playground);
    eventually("all processes are gone", || pids.iter().all(|pid| !Path::new(&format!("/proc/{pid}/ns/net")).exists()));
    eventually("no process is in one of the namespaces", || {
        let everybody: Vec<u32> = fs::read_dir("/proc")
            .expect("/proc")
            .filter_map(|entry| entry.ok()?.file_name().to_str()?.parse().ok())
            .collect();
        namespaces_of(&everybody).iter().all(|namespace| !left.contains(namespace))
    });
    assert_eq!(host(), before, "links, rules, mounts, files of the host");
}

#[test]
fn ctrl_c_stops_in_order() {
    let dir = directory(PODS);
    let playground = start("ctrl-c", dir.path());
    let interrupt = Command::new("kill").args(["-INT", &playground.pid().to_string()]).status().expect("kill");
    assert!(interrupt.success());
    let client = playground.client().clone();
    eventually("it is gone", || matches!(client.status(), Err(ClientError::NotRunning(_))));
    eventually("it said so", || playground.log().iter().any(|line| line.contains("nothing is left behind")));
    assert!(playground.stop().expect("ended").success());
}

#[test]
fn it_works_without_root() {
    let dir = directory(PODS);
    // Of root, make a user; a user is one already.
    let as_user: &[&str] = match rustix::process::geteuid().is_root() {
        true => &["setpriv", "--reuid", "65534", "--regid", "65534", "--clear-groups"],
        false => &["env"],
    };
    let run = |words: &[&str]| {
        let mut command = Command::new(as_user[0]);
        command.args(&as_user[1..]).arg(weft()).args(words);
        command
    };
    let log = tempfile::NamedTempFile::new().expect("a file");
    let mut up = run(&["up", dir.path().to_str().expect("a path"), "--name", "rootless"])
        .stderr(log.reopen().expect("a file"))
        .spawn()
        .expect("setpriv of util-linux");
    let mut output = String::new();
    eventually("a command runs in a pod", || {
        let mut exec = run(&["exec", "--name", "rootless", "-n", "shop", "idle", "--", "sh", "-c", "hostname; id -u"]);
        let done = exec.output().expect("ran");
        output = String::from_utf8_lossy(&done.stdout).into_owned();
        let ended = up.try_wait().expect("waited");
        assert!(ended.is_none(), "{}", fs::read_to_string(log.path()).expect("a log"));
        done.status.success()
    });
    assert_eq!(output, "idle\n0\n");
    up.kill().expect("killed");
    up.wait().expect("ended");
    eventually("it is gone", || {
        let exec = run(&["exec", "--name", "rootless", "-n", "shop", "idle", "--", "true"]).output().expect("ran");
        String::from_utf8_lossy(&exec.stderr).contains("no playground named `rootless`")
    });
}

#[test]
fn where_namespaces_are_refused_it_says_what_to_do() {
    let dir = directory(PODS);
    let done = Command::new("unshare")
        .args(["--user", "--map-root-user", "--", "setpriv", "--bounding-set=-sys_admin", "--"])
        .arg(weft())
        .args(["up", dir.path().to_str().expect("a path"), "--name", "refused"])
        .output()
        .expect("unshare and setpriv of util-linux");
    let message = String::from_utf8_lossy(&done.stderr).into_owned();
    assert!(!done.status.success() && message.contains("CAP_SYS_ADMIN"), "{message}");
}

/// Run by [`interception_sends_connections_through_the_sidecar`] in a network namespace of its own.
fn inside_a_network_namespace() {
    let ip = |words: &str| {
        let done = Command::new("ip").args(words.split(' ')).output().expect("iproute2");
        assert!(done.status.success(), "ip {words}: {}", String::from_utf8_lossy(&done.stderr));
    };
    for words in [
        "link set lo up",
        "link add eth0 type veth peer name eth1",
        "address add 10.244.9.9/32 dev eth0",
        "link set eth0 up",
        "link set eth1 up",
    ] {
        ip(words);
    }
    ip("route add default dev eth0");
    let mut annotations = std::collections::BTreeMap::new();
    annotations.insert("weft.dev/exclude-outbound-ports".to_owned(), "81".to_owned());
    let exclude = Exclusions::from_annotations(&annotations).expect("exclusions");
    intercept::apply(SidecarSockets::Mark(intercept::SIDECAR_MARK), &exclude).expect("nftables");

    let outbound = TcpListener::bind("0.0.0.0:15001").expect("bound");
    let inbound = TcpListener::bind("0.0.0.0:15006").expect("bound");
    let application = TcpListener::bind("0.0.0.0:8080").expect("bound");
    let arrives = |listener: &TcpListener| {
        let (accepted, _) = listener.accept().expect("accepted");
        rustix::net::sockopt::ip_original_dst(&accepted)
            .map_or_else(|_| accepted.local_addr().expect("an address").to_string(), |original| original.to_string())
    };
    // Outbound, to a Service that nobody has: the sidecar learns where it was to go.
    let _client = TcpStream::connect("10.96.0.5:80").expect("redirected");
    assert_eq!(arrives(&outbound), "10.96.0.5:80");
    // The application's own loopback is left alone, by either address.
    let _client = TcpStream::connect("127.0.0.1:8080").expect("direct");
    assert_eq!(arrives(&application), "127.0.0.1:8080");
    let _client = TcpStream::connect("10.244.9.9:8080").expect("direct");
    assert_eq!(arrives(&application), "10.244.9.9:8080");
    // The sidecar's own socket, to the pod's own address: inbound, unless it is the way to the application.
    let _client = marked("0.0.0.0:0", "10.244.9.9:8080").expect("redirected");
    assert_eq!(arrives(&inbound), "10.244.9.9:8080");
    let _client = marked("127.0.0.6:0", "10.244.9.9:8080").expect("direct");
    assert_eq!(arrives(&application), "10.244.9.9:8080");
    // The sidecar's own socket and an excluded port leave the pod, where nobody answers.
    for refused in [marked("0.0.0.0:0", "10.96.0.5:80"), connect_briefly("10.96.0.5:81")] {
        assert!(refused.is_err(), "not redirected");
    }
}

fn connect_briefly(to: &str) -> std::io::Result<TcpStream> {
    TcpStream::connect_timeout(&to.parse().expect("an address"), Duration::from_millis(300))
}

/// Connects as a sidecar without a user id of its own does.
fn marked(from: &str, to: &str) -> std::io::Result<TcpStream> {
    let address = |text: &str| text.parse::<SocketAddr>().expect("an address").into();
    let socket = socket2::Socket::new(socket2::Domain::IPV4, socket2::Type::STREAM, None)?;
    socket.set_mark(intercept::SIDECAR_MARK)?;
    socket.bind(&address(from))?;
    socket.connect_timeout(&address(to), Duration::from_millis(300))?;
    Ok(socket.into())
}

#[test]
fn interception_sends_connections_through_the_sidecar() {
    // This test runs itself again in there.
    const INSIDE: &str = "WEFT_TEST_IN_NAMESPACE";
    if std::env::var_os(INSIDE).is_some() {
        return inside_a_network_namespace();
    }
    let done = Command::new("unshare")
        .args(["--user", "--map-root-user", "--net", "--"])
        .arg(std::env::current_exe().expect("this test"))
        .args(["--exact", "interception_sends_connections_through_the_sidecar"])
        .env(INSIDE, "1")
        .output()
        .expect("unshare of util-linux");
    let output = [done.stdout, done.stderr].map(|bytes| String::from_utf8_lossy(&bytes).into_owned());
    assert!(done.status.success() && output[0].contains("1 passed"), "{}", output.join("\n"));
}
