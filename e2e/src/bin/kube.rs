//! What a control plane takes to read a large cluster from a real API server, to hold it, and to bring a change from the
//! API server to many sidecars: target/bench/kube.json.
//!
//! ```text
//!  kube [--services 1000] [--pods 10000] [--proxies 1000] [--changes 50] [--weft target/release/weft]
//! ```

use std::fs;
use std::path::PathBuf;
use std::sync::Arc;
use std::time::{Duration, Instant};

use anyhow::{Context, bail, ensure};
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use serde_json::{Value, json};
use weft_e2e::kube::{Kubernetes, Replica, endpoint_slice, meshed_pod, namespace, service};
use weft_e2e::mesh::repository;
use weft_e2e::until;
use weft_load::fleet::{Fleet, Target};
use weft_load::report::percentile;
use weft_load::sidecar::Persona;
use weft_load::stream::Command;

/// Services of one namespace.
const IN_NAMESPACE: usize = 100;
/// Requests to the API server at once.
const AT_ONCE: usize = 16;

#[derive(Serialize)]
struct Measured {
    services: usize,
    pods: usize,
    /// From the start of the process until it serves.
    seconds_to_complete_snapshot: f64,
    /// Resident, when it serves.
    memory_mib: f64,
    /// Resident, after everything was listed once more.
    memory_after_a_relist_mib: f64,
    /// Sidecars that connect, each with the token of a pod of its own, and hold all endpoints.
    proxies: usize,
    /// From the moment before an EndpointSlice is written to the API server until the last of them has acknowledged it.
    change_p50_ms: f64,
    change_p99_ms: f64,
    changes: usize,
    /// Resident, with all of them connected.
    memory_with_proxies_mib: f64,
}

fn main() -> anyhow::Result<()> {
    let (mut services, mut pods, mut proxies, mut changes) = (1_000, 10_000, 1_000, 50);
    let mut weft = repository().join("target/release/weft");
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--services" => services = value.parse()?,
            "--pods" => pods = value.parse()?,
            "--proxies" => proxies = value.parse()?,
            "--changes" => changes = value.parse()?,
            "--weft" => weft = PathBuf::from(value),
            _ => bail!("no such option: {name}"),
        }
    }
    ensure!(proxies <= pods, "each of --proxies {proxies} has a pod, and there are {pods}");
    let mut kubernetes = Kubernetes::start()?;
    for name in ["crds.yaml", "rbac.yaml"] {
        kubernetes.apply(&fs::read_to_string(repository().join("e2e/kube").join(name))?)?;
    }
    let began = Instant::now();
    // Every sidecar is given every endpoint: what a change costs at most.
    kubernetes.put(&json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "MeshConfig", "metadata": {"name": "default"},
        "spec": {"discovery": {"mode": "Eager"}},
    }))?;
    fill(&kubernetes, services, pods)?;
    println!("{services} Services and {pods} Pods written in {:.0} s", began.elapsed().as_secs_f64());
    let kubeconfig = kubernetes.kubeconfig_of("weft-system", "weft")?;
    let began = Instant::now();
    let mut replica = Replica::start_with(&weft, kubernetes.directory(), "bench", &kubeconfig, &[])?;
    replica.wait_until_ready()?;
    let seconds_to_complete_snapshot = began.elapsed().as_secs_f64();
    let memory_mib = replica.memory()?;
    // What its watches were at is forgotten: all is listed again.
    kubernetes.kill_server()?;
    kubernetes.delete_behind_the_server("/registry/services/specs/n-0/s-0")?;
    kubernetes.start_server()?;
    replica.wait_for_log("reading all of it again")?;
    until("it has settled", Duration::from_secs(60), || {
        let said = replica.wait_for_log("the source can be read again");
        Ok(said.map(drop).map_err(|error| error.to_string()))
    })?;
    let memory_after_a_relist_mib = replica.memory()?;
    let (space, name) = names(0);
    kubernetes.put(&service(&space, &name, 80))?; // which was deleted for that
    let personas = personas(&kubernetes, proxies, pods / services)?;
    let root = kubernetes.get("v1", "configmaps", "weft-system", "weft-root")?.context("the mesh's root is told")?;
    let root = root["data"]["root.pem"].as_str().context("root.pem")?.to_owned();
    let addresses: Vec<String> =
        (0..services).map(|number| address(&kubernetes, number)).collect::<anyhow::Result<_>>()?;
    println!("{proxies} sidecars connect …");
    let changed = change(&kubernetes, &replica, &root, personas, &addresses, pods / services, changes);
    let (mut times, memory_with_proxies_mib) = kubernetes.block_on(changed).with_context(|| end_of(&replica.log()))?;
    let measured = Measured {
        services,
        pods,
        seconds_to_complete_snapshot,
        memory_mib,
        memory_after_a_relist_mib,
        proxies,
        change_p50_ms: percentile(&mut times, 50),
        change_p99_ms: percentile(&mut times, 99),
        changes,
        memory_with_proxies_mib,
    };
    replica.stop()?;
    let text = serde_json::to_string_pretty(&measured)?;
    println!("{text}");
    fs::create_dir_all(repository().join("target/bench"))?;
    fs::write(repository().join("target/bench/kube.json"), text + "\n")?;
    Ok(())
}

/// Writes Services with their pods and EndpointSlices. Pods are as large as real ones: managed fields come by themselves.
fn fill(kubernetes: &Kubernetes, services: usize, pods: usize) -> anyhow::Result<()> {
    let of_service = pods / services;
    for space in 0..services.div_ceil(IN_NAMESPACE) {
        kubernetes.put(&namespace(&format!("n-{space}")))?;
    }
    let client = kubernetes.client();
    let objects = (0..services).map(|number| of(number, of_service));
    kubernetes.block_on(async {
        let put = futures::stream::iter(objects).map(|objects| {
            let client = client.clone();
            async move {
                for object in objects {
                    weft_e2e::kube::put(&client, &object).await?;
                }
                anyhow::Ok(())
            }
        });
        put.buffer_unordered(AT_ONCE).try_collect::<()>().await
    })
}

/// The name and namespace of a Service.
fn names(number: usize) -> (String, String) {
    (format!("n-{}", number / IN_NAMESPACE), format!("s-{number}"))
}

/// The first pods, as sidecars: the node id and the token of each.
fn personas(kubernetes: &Kubernetes, proxies: usize, of_service: usize) -> anyhow::Result<Vec<(String, String)>> {
    let persona = |proxy: usize| {
        let (space, account) = names(proxy / of_service);
        let pod = format!("{account}-{}", proxy % of_service);
        Ok((format!("{pod}.{space}"), kubernetes.token(&space, &account, Some("weft-xds"), Some(&pod), 3_600)?))
    };
    (0..proxies).map(persona).collect()
}

/// The name of a Service's cluster.
fn address(kubernetes: &Kubernetes, number: usize) -> anyhow::Result<String> {
    let (space, name) = names(number);
    let service = kubernetes.get("v1", "services", &space, &name)?.context("a Service")?;
    Ok(format!("{}:80", service["spec"]["clusterIP"].as_str().context("spec.clusterIP")?))
}

/// Connects the sidecars and changes the endpoints of one Service after the other: how long each change took, and the
/// replica's memory with all of them connected.
async fn change(
    kubernetes: &Kubernetes,
    replica: &Replica,
    root: &str,
    personas: Vec<(String, String)>,
    addresses: &[String],
    of_service: usize,
    changes: usize,
) -> anyhow::Result<(Vec<Duration>, f64)> {
    let target = Target::new(replica.xds(), weft::control_plane::DNS_NAME, root.as_bytes())?;
    let fleet = Fleet::connect(target, |catalog| {
        let secrets: Arc<[_]> = [weft::ca::WORKLOAD, weft::ca::MESH_ROOT].map(|name| catalog.name(name)).into();
        let persona = |node| Persona { node, secrets: secrets.clone(), refuses: false };
        Ok(personas.into_iter().map(|(node, token)| (persona(node), token)).collect())
    });
    let fleet = fleet.await?;
    fleet.tell(0..fleet.len(), &Command::Start);
    fleet.synced(fleet.len(), Duration::from_secs(300)).await?;
    let (client, mut times) = (kubernetes.client(), Vec::new());
    // The first is not counted: caches are cold.
    for serial in 0..=changes {
        let number = serial * 7 % addresses.len();
        fleet.quiet(Duration::from_millis(500)).await;
        let mut slice = slice(number, of_service);
        let moved = json!([format!("10.245.{}.{}", serial / 250, 1 + serial % 250)]);
        slice["endpoints"][0]["addresses"] = moved;
        let change = fleet.begin_change(fleet.catalog().endpoints_of(&addresses[number]), fleet.len());
        weft_e2e::kube::put(&client, &slice).await?;
        let change = fleet.changed(change, Duration::from_secs(60)).await?;
        times.extend((serial > 0).then(|| change.last()));
    }
    Ok((times, replica.memory()?))
}

fn end_of(log: &str) -> String {
    log.lines().rev().take(8).collect::<Vec<_>>().join("\n")
}

/// A Service, its account, its pods and its EndpointSlice.
fn of(number: usize, pods: usize) -> Vec<Value> {
    let (space, name) = names(number);
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": space, "name": name}});
    let mut objects = vec![account, service(&space, &name, 80)];
    for (pod, ip) in &pods_of(number, pods) {
        let mut pod = meshed_pod(&space, pod, &name, ip);
        // What a pod of a usual chart has.
        let variables: Vec<_> =
            (0..20).map(|index| json!({"name": format!("VARIABLE_{index}"), "value": "a value"})).collect();
        pod["spec"]["containers"][0]["env"] = json!(variables);
        pod["spec"]["containers"][0]["readinessProbe"] = json!({"httpGet": {"path": "/ready", "port": 8080}});
        objects.push(pod);
    }
    objects.push(slice(number, pods));
    objects
}

/// The pods of a Service and their addresses.
fn pods_of(number: usize, pods: usize) -> Vec<(String, String)> {
    let ip = |pod: usize| {
        let at = number * pods + pod;
        format!("10.244.{}.{}", at / 250, 1 + at % 250)
    };
    (0..pods).map(|pod| (format!("{}-{pod}", names(number).1), ip(pod))).collect()
}

fn slice(number: usize, pods: usize) -> Value {
    let (space, name) = names(number);
    let pods = pods_of(number, pods);
    let pods: Vec<_> = pods.iter().map(|(name, ip)| (name.as_str(), ip.as_str())).collect();
    endpoint_slice(&space, &name, &pods)
}
