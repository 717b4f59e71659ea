//! Several replicas, each with sidecars of its own: what objects say of all of them together, also when one hangs, is
//! killed, is of an older version, or has yet to read what the others have.

use std::net::SocketAddr;
use std::ops::Range;
use std::path::{Path, PathBuf};
use std::sync::Arc;
use std::time::Duration;

use anyhow::Context;
use serde_json::{Value, json};
use weft::envoy::names::OUTBOUND;
use weft::local::node::NODE_IP;
use weft_e2e::kube::{Kubernetes, Replica, free_port, meshed_pod, namespace, service};
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;
use weft_load::fleet::{Fleet, Target};
use weft_load::sidecar::Persona;
use weft_load::stream::{Command, Reading};

use crate::status::delivered;
use crate::{account, finish, install, role_without, tail};

const PATIENCE: Duration = Duration::from_secs(60);
const SYSTEM: &str = "weft-system";
const APART: &str = "apart";
/// The sidecars of the two replicas, and one that refuses what changes.
const OF_ONE: Range<u32> = 1..4;
const OF_TWO: Range<u32> = 4..8;
const REFUSING: u32 = 8;
/// As a condition says that all of them have it.
const ALL: &str = ": 7/7 proxies, ";

#[test]
fn objects_tell_of_the_proxies_of_all_replicas() {
    // EndpointSlices name no loopback addresses, so this has a network with others.
    let mut kubernetes = Kubernetes::start_for_a_node().expect("an API server");
    let mut rows = Scenarios::of("replicas", "none");
    let kubeconfig = install(&kubernetes).expect("installed");
    shop(&kubernetes).expect("a shop");
    let one = start(&kubernetes, "one", &kubeconfig).expect("one");
    one.wait_for_log("this replica holds the lease").expect("the lease");
    let apart = account_of_its_own(&kubernetes).expect("an account");
    let two = start(&kubernetes, "two", &apart).expect("two");
    let of_one = connect(&kubernetes, &one, OF_ONE, false).expect("sidecars of one");
    let of_two = connect(&kubernetes, &two, OF_TWO, false).expect("sidecars of two");
    rows.holds(
        "kube-status: `Delivered` counts the proxies of all replicas",
        "True Delivered … 7/7 proxies, … ms",
        || {
            let said = said(&kubernetes, 1, "True Delivered")?;
            Ok((said.contains(ALL) && said.ends_with('s'), said))
        },
    );
    rows.holds(
        "kube-status: a proxy of another replica that does not answer is waited for by name",
        "…/7 proxies; waiting for cart-4.shop; then all",
        || {
            of_two.tell([0], &Command::Read(Reading::WindowFills));
            let waits = said(&kubernetes, 2, "False Pending")?;
            of_two.tell([0], &Command::Read(Reading::Fast));
            let then = becomes(&kubernetes)?;
            // Others may wait for it, too: it is one of the few that try it first.
            let right = waits.contains("/7 proxies; waiting for cart-4.shop") && then.contains(ALL);
            Ok((right, format!("{waits}; {then}")))
        },
    );
    rows.holds("kube-status: what a proxy of another replica refuses is refused", "cart-8.shop refuses it", || {
        let refusing = connect(&kubernetes, &two, REFUSING..REFUSING + 1, true)?;
        refusing.begin_change(refusing.catalog().name(OUTBOUND), 1);
        let refused = said(&kubernetes, 3, "False Refused")?;
        drop(refusing);
        let then = said(&kubernetes, 4, "True Delivered")?;
        Ok((refused.contains(": cart-8.shop refuses it: ") && then.contains(ALL), format!("{refused}; {then}")))
    });
    rows.holds(
        "kube-status: a replica that hangs is waited for while sidecars are sent to it",
        "replica two does not answer; then all",
        || {
            two.pause()?;
            let waits = said(&kubernetes, 5, "False Pending");
            let told = one.wait_for_log("replica two does not answer at ");
            two.go_on()?;
            let (waits, told, then) = (waits?, told?, becomes(&kubernetes)?);
            let right = waits.ends_with("3/3 proxies; replica two does not answer") && told.contains("NetworkPolicy");
            Ok((right && then.contains(ALL), format!("{waits}; {then}; {told}")))
        },
    );
    rows.holds("kube-status: and no longer when it is not ready: they leave it", "3/3 proxies, then all", || {
        two.pause()?;
        kubernetes.put(&endpoint("two", two.admin(), false))?;
        let without = said(&kubernetes, 6, "True Delivered");
        two.go_on()?;
        kubernetes.put(&endpoint("two", two.admin(), true))?;
        let (without, with) = (without?, said(&kubernetes, 7, "True Delivered")?);
        Ok((without.contains(": 3/3 proxies, ") && with.contains(ALL), format!("{without}; {with}")))
    });
    rows.holds(
        "kube-status: a replica of an older version is waited for until its endpoint is gone",
        "a version that cannot be asked; then all",
        || {
            let at = SocketAddr::from((NODE_IP, free_port()?));
            let server = tonic::transport::Server::builder().add_routes(tonic::service::Routes::default()).serve(at);
            kubernetes.spawn(async move { server.await.expect("serves") });
            kubernetes.put(&endpoint("old", at, true))?;
            let waits = said(&kubernetes, 8, "False Pending")?;
            kubernetes.remove(&endpoint("old", at, true))?;
            let then = becomes(&kubernetes)?;
            let right = waits.ends_with("7/7 proxies; replica old is of a version that cannot be asked");
            Ok((right && then.contains(ALL), format!("{waits}; {then}")))
        },
    );
    rows.holds(
        "kube-status: a replica that has yet to read the object is waited for, and what it has of it does not count",
        "3/3 proxies; replica two has yet to read it; then all",
        || {
            kubernetes.put(&role_apart("trafficpolicies"))?;
            // What it watches ends, and it may not begin again.
            kubernetes.kill_server()?;
            kubernetes.start_server()?;
            two.wait_for_log("trafficpolicies.weft.dev is forbidden")?;
            let waits = said(&kubernetes, 9, "False Pending")?;
            kubernetes.put(&role_apart("nothing"))?;
            let then = becomes(&kubernetes)?;
            let right = waits.ends_with(": 3/3 proxies; replica two has yet to read it");
            Ok((right && then.contains(ALL), format!("{waits}; {then}")))
        },
    );
    rows.holds(
        "kube-status: a replica that is killed is waited for until its endpoint is gone, and its proxies count where they go",
        "replica two does not answer; then all",
        || {
            drop(two); // SIGKILL
            let waits = said(&kubernetes, 10, "False Pending")?;
            let moved = connect(&kubernetes, &one, OF_TWO, false)?;
            kubernetes.remove(&endpoint("two", one.admin(), true))?;
            let then = becomes(&kubernetes)?;
            drop(moved);
            let right = waits.ends_with("; replica two does not answer") && then.contains(": 7/7 proxies");
            Ok((right, format!("{waits}; {then}")))
        },
    );
    finish(rows, || tail(&one.log()));
    drop((of_one, of_two));
}

/// Gives the policy this time-out, and waits until `Delivered` begins like this; what it says.
fn said(kubernetes: &Kubernetes, seconds: u32, begins: &str) -> anyhow::Result<String> {
    kubernetes.put(&policy(seconds))?;
    delivered(kubernetes, "catalog", begins)
}

/// Waits until it is delivered.
fn becomes(kubernetes: &Kubernetes) -> anyhow::Result<String> {
    delivered(kubernetes, "catalog", "True Delivered")
}

/// Starts a replica whose admin port the Service `weft` has.
fn start(kubernetes: &Kubernetes, name: &str, kubeconfig: &Path) -> anyhow::Result<Replica> {
    let admin = SocketAddr::from((NODE_IP, free_port()?));
    let arguments = ["--admin", &admin.to_string()];
    let mut replica = Replica::start(kubernetes.directory(), name, kubeconfig, &arguments)?;
    replica.wait_until_ready()?;
    kubernetes.put(&endpoint(name, admin, true))?;
    Ok(replica)
}

/// A ServiceAccount that reads what `weft` reads, and takes no part in the lease: rights can be taken from it alone.
fn account_of_its_own(kubernetes: &Kubernetes) -> anyhow::Result<PathBuf> {
    let subjects = json!([{"kind": "ServiceAccount", "namespace": SYSTEM, "name": APART}]);
    let group = "rbac.authorization.k8s.io";
    let role = |kind: &str| json!({"apiGroup": group, "kind": kind, "name": APART});
    let version = format!("{group}/v1");
    kubernetes.put(&account(SYSTEM, APART))?;
    kubernetes.put(&role_apart("nothing"))?;
    kubernetes.put(&json!({
        "apiVersion": version, "kind": "ClusterRoleBinding", "metadata": {"name": APART},
        "roleRef": role("ClusterRole"), "subjects": subjects,
    }))?;
    kubernetes.put(&json!({
        "apiVersion": version, "kind": "Role", "metadata": {"namespace": SYSTEM, "name": APART},
        "rules": [{"apiGroups": [""], "resources": ["secrets"], "resourceNames": ["weft-ca"], "verbs": ["get"]}],
    }))?;
    kubernetes.put(&json!({
        "apiVersion": version, "kind": "RoleBinding", "metadata": {"namespace": SYSTEM, "name": APART},
        "roleRef": role("Role"), "subjects": subjects,
    }))?;
    kubernetes.kubeconfig_of(SYSTEM, APART)
}

/// Its rights in the cluster, without those on one resource.
fn role_apart(without: &str) -> Value {
    let mut role = role_without(without);
    role["metadata"]["name"] = json!(APART);
    role
}

/// The EndpointSlice of one replica, as Kubernetes' controller writes it for all.
fn endpoint(replica: &str, admin: SocketAddr, ready: bool) -> Value {
    json!({
        "apiVersion": "discovery.k8s.io/v1", "kind": "EndpointSlice", "addressType": "IPv4",
        "metadata": {"namespace": SYSTEM, "name": format!("weft-{replica}"),
            "labels": {"kubernetes.io/service-name": "weft"}},
        "ports": [{"name": "http-admin", "port": admin.port(), "protocol": "TCP"}],
        "endpoints": [{"addresses": [admin.ip().to_string()], "conditions": {"ready": ready},
            "targetRef": {"kind": "Pod", "namespace": SYSTEM, "name": replica}}],
    })
}

fn shop(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    kubernetes.put(&namespace("shop"))?;
    // Every sidecar has every Service.
    let config = json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "MeshConfig", "metadata": {"name": "default"},
        "spec": {"discovery": {"mode": "Eager"}},
    });
    until("MeshConfigs are served", PATIENCE, || Ok(kubernetes.put(&config).map_err(|error| format!("{error:#}"))))?;
    kubernetes.put(&account("shop", "cart"))?;
    kubernetes.put(&service("shop", "catalog", 80))?;
    (OF_ONE.start..=REFUSING).try_for_each(|number| {
        kubernetes.put(&meshed_pod("shop", &format!("cart-{number}"), "cart", &format!("10.244.0.{number}")))
    })
}

/// The policy with this time-out.
fn policy(seconds: u32) -> Value {
    json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"namespace": "shop", "name": "catalog"},
        "spec": {"targetRefs": [{"kind": "Service", "name": "catalog"}],
            "timeouts": {"request": format!("{seconds}s")}},
    })
}

/// Connects sidecars of the pods `cart-NUMBER` to a replica, and waits until they have everything.
fn connect(kubernetes: &Kubernetes, to: &Replica, numbers: Range<u32>, refuses: bool) -> anyhow::Result<Fleet> {
    let root = kubernetes.get("v1", "configmaps", SYSTEM, "weft-root")?.context("the mesh's root is told")?;
    let root = root["data"]["root.pem"].as_str().context("root.pem")?.to_owned();
    let target = Target::new(to.xds(), weft::control_plane::DNS_NAME, root.as_bytes())?;
    let pod = |number| {
        let pod = format!("cart-{number}");
        let token = kubernetes.token("shop", "cart", Some("weft-xds"), Some(&pod), 3_600)?;
        anyhow::Ok((format!("{pod}.shop"), token))
    };
    let pods: Vec<_> = numbers.map(pod).collect::<anyhow::Result<_>>()?;
    kubernetes.block_on(async {
        let fleet = Fleet::connect(target, |catalog| {
            let secrets: Arc<[_]> = [weft::ca::WORKLOAD, weft::ca::MESH_ROOT].map(|name| catalog.name(name)).into();
            let persona = |node| Persona { node, secrets: secrets.clone(), refuses };
            Ok(pods.into_iter().map(|(node, token)| (persona(node), token)).collect())
        });
        let fleet = fleet.await?;
        fleet.tell(0..fleet.len(), &Command::Start);
        fleet.synced(fleet.len(), PATIENCE).await?;
        Ok(fleet)
    })
}
