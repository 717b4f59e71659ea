//! What a control plane takes to read a large cluster from a real API server, and to hold it: target/bench/kube.json.
//!
//! ```text
//!  kube [--services 1000] [--pods 10000] [--weft target/release/weft]
//! ```

use std::fs;
use std::path::PathBuf;
use std::time::{Duration, Instant};

use anyhow::{Context, bail};
use futures::{StreamExt, TryStreamExt};
use serde::Serialize;
use serde_json::{Value, json};
use weft_e2e::kube::{Kubernetes, Replica, endpoint_slice, meshed_pod, namespace, service};
use weft_e2e::mesh::repository;
use weft_e2e::until;

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
}

fn main() -> anyhow::Result<()> {
    let (mut services, mut pods, mut weft) = (1_000, 10_000, repository().join("target/release/weft"));
    let mut arguments = std::env::args().skip(1);
    while let Some(name) = arguments.next() {
        let value = arguments.next().with_context(|| format!("{name} needs a value"))?;
        match name.as_str() {
            "--services" => services = value.parse()?,
            "--pods" => pods = value.parse()?,
            "--weft" => weft = PathBuf::from(value),
            _ => bail!("no such option: {name}"),
        }
    }
    let mut kubernetes = Kubernetes::start()?;
    for name in ["crds.yaml", "rbac.yaml"] {
        kubernetes.apply(&fs::read_to_string(repository().join("e2e/kube").join(name))?)?;
    }
    let began = Instant::now();
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
    let measured = Measured {
        services,
        pods,
        seconds_to_complete_snapshot,
        memory_mib,
        memory_after_a_relist_mib: replica.memory()?,
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

/// A Service, its account, its pods and its EndpointSlice.
fn of(number: usize, pods: usize) -> Vec<Value> {
    let (space, name) = (format!("n-{}", number / IN_NAMESPACE), format!("s-{number}"));
    let ip = |pod: usize| {
        let at = number * pods + pod;
        format!("10.244.{}.{}", at / 250, 1 + at % 250)
    };
    let named: Vec<_> = (0..pods).map(|pod| (format!("{name}-{pod}"), ip(pod))).collect();
    let account = json!({"apiVersion": "v1", "kind": "ServiceAccount", "metadata": {"namespace": space, "name": name}});
    let mut objects = vec![account, service(&space, &name, 80)];
    for (pod, ip) in &named {
        let mut pod = meshed_pod(&space, pod, &name, ip);
        // What a pod of a usual chart has.
        let variables: Vec<_> =
            (0..20).map(|index| json!({"name": format!("VARIABLE_{index}"), "value": "a value"})).collect();
        pod["spec"]["containers"][0]["env"] = json!(variables);
        pod["spec"]["containers"][0]["readinessProbe"] = json!({"httpGet": {"path": "/ready", "port": 8080}});
        objects.push(pod);
    }
    let pods: Vec<_> = named.iter().map(|(name, ip)| (name.as_str(), ip.as_str())).collect();
    objects.push(endpoint_slice(&space, &name, &pods));
    objects
}
