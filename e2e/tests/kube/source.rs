//! The mesh as it is read from an API server.

use std::collections::BTreeSet;
use std::fs;
use std::path::Path;
use std::time::Duration;

use anyhow::{Context, ensure};
use kube::config::{KubeConfigOptions, Kubeconfig};
use kube::{Client, Config};
use serde_json::{Value, json};
use weft_e2e::kube::{Kubernetes, endpoint_slice, meshed_pod, namespace, service};
use weft_e2e::mesh::repository;
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

use crate::watched::{Plan, Watched, plan_of};
use crate::{account, file, finish, role_without, tail};

/// All that the source reads: apiVersion and plural.
const RESOURCES: [(&str, &str); 13] = [
    ("v1", "namespaces"),
    ("v1", "services"),
    ("v1", "pods"),
    ("discovery.k8s.io/v1", "endpointslices"),
    ("split.smi-spec.io/v1alpha4", "trafficsplits"),
    ("specs.smi-spec.io/v1alpha4", "httproutegroups"),
    ("specs.smi-spec.io/v1alpha4", "tcproutes"),
    ("specs.smi-spec.io/v1alpha4", "udproutes"),
    ("access.smi-spec.io/v1alpha3", "traffictargets"),
    ("weft.dev/v1alpha1", "trafficfaults"),
    ("weft.dev/v1alpha1", "trafficpolicies"),
    ("weft.dev/v1alpha1", "meshconfigs"),
    ("weft.dev/v1alpha1", "egresses"),
];

/// Meshes whose objects an API server takes; the golden tests have what Envoy gets of them.
const MESHES: [&str; 6] = ["split", "policy", "fault", "inbound", "egress", "telemetry"];

const SPLIT: (&str, &str, &str, &str) = ("split.smi-spec.io/v1alpha4", "trafficsplits", "shop", "catalog");

#[test]
fn the_source_reads_a_real_api_server() {
    let mut kubernetes = Kubernetes::start().expect("an API server");
    let mut rows = Scenarios::of("source", "none");
    let watched = Watched::start(&kubernetes, kubernetes.client());

    rows.holds(
        "kube-crd: kinds without a CustomResourceDefinition are said, and hold up nothing",
        "9 said, synced",
        || {
            watched.wait_for("synced", "")?;
            let said = watched.told().iter().filter(|line| line.contains("has no kind")).count();
            Ok((said == 9, format!("{said} said, synced")))
        },
    );
    rows.holds(
        "kube-crd: a kind is taken up when its CustomResourceDefinition appears",
        "over, then its objects",
        || {
            kubernetes.apply(&file("crds.yaml"))?;
            watched.wait_for("over Kind(TrafficSplit)", "")?;
            watched.wait_for("over Kind(MeshConfig)", "")?;
            shop(&kubernetes)?;
            // Each kind is read by itself: none may come late and change the plans that the rows below compare.
            for last in ["Pod shop/catalog-2", "Service shop/catalog-v2", "TrafficPolicy shop/catalog"] {
                watched.wait_for(&format!("apply {last}"), "")?;
            }
            Ok((true, watched.wait_for("apply TrafficSplit shop/catalog", "")?))
        },
    );
    rows.holds(
        "kube-objects: an object that does not parse leaves its last good version",
        "rejected, same plan",
        || {
            let before = watched.plan();
            kubernetes.patch(SPLIT, &json!({"spec": {"backends": "all of them"}}))?;
            let said = watched.wait_for("rejected", "TrafficSplit shop/catalog")?;
            ensure!(said.contains("spec.backends"), "{said}");
            Ok((watched.plan() == before && !before.is_empty(), said))
        },
    );
    rows.holds("kube-objects: deleting an object that does not parse deletes it", "deleted, another plan", || {
        let before = watched.plan();
        kubernetes.delete(SPLIT.0, SPLIT.1, SPLIT.2, SPLIT.3)?;
        let said = watched.wait_for("delete TrafficSplit shop/catalog", "")?;
        Ok((watched.plan() != before, said))
    });
    rows.holds("kube-objects: a pod that has finished is gone", "deleted", || {
        kubernetes.patch(("v1", "pods", "shop", "catalog-2/status"), &json!({"status": {"phase": "Succeeded"}}))?;
        Ok((true, watched.wait_for("delete Pod shop/catalog-2", "")?))
    });
    rows.holds(
        "kube-restart: while the API server is away nothing changes, and it is said once",
        "1 said, over, same plan",
        || {
            watched.forget();
            let before = watched.plan();
            kubernetes.kill_server()?;
            watched.wait_for("trouble Whole", "does not answer")?;
            kubernetes.start_server()?;
            watched.wait_for("over Whole", "")?;
            let told = watched.told();
            let said = told.iter().filter(|line| line.starts_with("trouble")).count();
            let touched: Vec<_> = told.iter().filter(|line| line.starts_with("delete")).cloned().collect();
            let after = watched.plan();
            let seen = format!("{said} said, {touched:?} deleted, {}; told: {told:?}", difference(&before, &after));
            Ok((said == 1 && touched.is_empty() && after == before, seen))
        },
    );
    rows.holds("kube-restart: what changes after it is read", "a new Service", || {
        kubernetes.put(&service("shop", "late", 80))?;
        Ok((true, watched.wait_for("apply Service shop/late", "")?))
    });
    rows.holds(
        "kube-410: what was deleted while its version expired is deleted here, and nothing is read twice",
        "1 deleted, 0 applied",
        || {
            kubernetes.kill_server()?;
            watched.forget();
            kubernetes.delete_behind_the_server("/registry/services/specs/shop/late")?;
            kubernetes.start_server()?;
            watched.wait_for("over Whole", "")?;
            watched.wait_for("delete Service shop/late", "")?;
            let told = watched.told();
            let applied: Vec<_> = told.iter().filter(|line| line.starts_with("apply")).cloned().collect();
            let deleted = told.iter().filter(|line| line.starts_with("delete")).count();
            // The API server itself touches its own Service and its FlowSchemas' kin after a start.
            let ours = applied.iter().filter(|line| line.contains(" shop/")).count();
            Ok((
                deleted == 1 && ours == 0,
                format!("{deleted} deleted, {ours} of the shop applied ({})", applied.len()),
            ))
        },
    );
    rows.holds(
        "kube-crd: without its definition the objects of a kind are gone, and it is said",
        "deleted, said",
        || {
            kubernetes.delete(
                "apiextensions.k8s.io/v1",
                "customresourcedefinitions",
                "",
                "trafficpolicies.weft.dev",
            )?;
            watched.wait_for("trouble Kind(TrafficPolicy)", "has no kind TrafficPolicy")?;
            watched.wait_for("delete TrafficPolicy shop/catalog", "")?;
            kubernetes.apply(&file("crds.yaml"))?;
            watched.wait_for("over Kind(TrafficPolicy)", "")?;
            Ok((true, "deleted, said, and taken up again".to_owned()))
        },
    );
    for mesh in MESHES {
        let name =
            format!("kube-plans: {mesh}.yaml from the API server gives what the same objects give from a directory");
        rows.holds(&name, "equal, and many", || same_plans(&kubernetes, mesh));
    }
    rights(&mut kubernetes, &mut rows);
    finish(rows, || tail(&kubernetes.log()));
}

/// What the control plane may not read.
fn rights(kubernetes: &mut Kubernetes, rows: &mut Scenarios) {
    rows.holds(
        "kube-rbac: a kind that may not be listed is named, with the verb, and holds up the beginning",
        "said, not synced; then synced",
        || {
            kubernetes.apply(&file("rbac.yaml"))?;
            kubernetes.put(&role_without("pods"))?;
            let client = client(kubernetes, &kubernetes.kubeconfig_of("weft-system", "weft")?)?;
            let watched = Watched::start(kubernetes, client);
            let said = watched.wait_for("trouble Kind(Pod)", "may not list pods")?;
            watched.wait_for("apply Service", "")?;
            let synced = watched.told().contains(&"synced".to_owned());
            kubernetes.apply(&file("rbac.yaml"))?;
            watched.wait_for("synced", "")?;
            Ok((!synced, said))
        },
    );
    rows.holds(
        "kube-rbac: a right that is taken away leaves the mesh as it is, names the verb, and comes back",
        "said, nothing deleted",
        || {
            kubernetes.put(&endpoint_slice("shop", "catalog", &[("catalog-1", "10.244.0.11")]))?;
            let client = client(kubernetes, &kubernetes.kubeconfig_of("weft-system", "weft")?)?;
            let watched = Watched::start(kubernetes, client);
            watched.wait_for("synced", "")?;
            let before = watched.plan();
            watched.forget();
            kubernetes.put(&role_without("endpointslices"))?;
            // A watch that has begun goes on.
            kubernetes.kill_server()?;
            kubernetes.start_server()?;
            let said = watched.wait_for("trouble Kind(EndpointSlice)", "endpointslices.discovery.k8s.io")?;
            let deleted = watched.told().iter().filter(|line| line.starts_with("delete")).count();
            let same = watched.plan() == before;
            kubernetes.apply(&file("rbac.yaml"))?;
            watched.wait_for("over Kind(EndpointSlice)", "")?;
            Ok((deleted == 0 && same && said.contains("may not"), said))
        },
    );
}

fn client(kubernetes: &Kubernetes, kubeconfig: &Path) -> anyhow::Result<Client> {
    kubernetes.block_on(async {
        let options = KubeConfigOptions::default();
        let mut config = Config::from_custom_kubeconfig(Kubeconfig::read_from(kubeconfig)?, &options).await?;
        config.default_retry = false;
        Ok(Client::try_from(config)?)
    })
}

fn shop(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    kubernetes.put(&namespace("shop"))?;
    kubernetes.put(&account("shop", "catalog"))?;
    for (number, ip) in [(1, "10.244.0.11"), (2, "10.244.0.12")] {
        kubernetes.put(&meshed_pod("shop", &format!("catalog-{number}"), "catalog", ip))?;
    }
    for name in ["catalog", "catalog-v1", "catalog-v2"] {
        kubernetes.put(&service("shop", name, 80))?;
    }
    kubernetes.put(&json!({
        "apiVersion": "weft.dev/v1alpha1", "kind": "TrafficPolicy",
        "metadata": {"namespace": "shop", "name": "catalog"},
        "spec": {"targetRefs": [{"kind": "Service", "name": "catalog"}], "timeouts": {"request": "5s"}},
    }))?;
    kubernetes.put(&json!({
        "apiVersion": "split.smi-spec.io/v1alpha4", "kind": "TrafficSplit",
        "metadata": {"namespace": "shop", "name": "catalog"},
        "spec": {"service": "catalog", "backends": [
            {"service": "catalog-v1", "weight": 90}, {"service": "catalog-v2", "weight": 10},
        ]},
    }))
}

/// Puts a mesh into an API server that has no other, and compares what comes of it there with what comes of its objects,
/// as the API server has them, from a directory.
fn same_plans(kubernetes: &Kubernetes, mesh: &str) -> anyhow::Result<(bool, String)> {
    empty(kubernetes)?;
    let text = fs::read_to_string(repository().join(format!("tests/golden/{mesh}.yaml")))?;
    let objects: Vec<Value> = text
        .split("\n---\n")
        .map(|document| serde_saphyr::from_str(document).with_context(|| document.to_owned()))
        .collect::<Result<_, _>>()?;
    let mut spaces = BTreeSet::new();
    for object in &objects {
        if let Some(space) = object["metadata"]["namespace"].as_str() {
            let name = object["spec"]["serviceAccountName"].as_str().unwrap_or("default");
            if spaces.insert(space.to_owned()) {
                kubernetes.put(&namespace(space))?;
            }
            kubernetes.put(&account(space, name))?;
        }
    }
    objects.iter().try_for_each(|object| kubernetes.put(object))?;
    let directory = tempfile::TempDir::new()?;
    for (index, object) in all(kubernetes)?.into_iter().enumerate() {
        fs::write(directory.path().join(format!("{index}.json")), object.to_string())?;
    }
    let expected = plan_of(directory.path())?;
    let watched = Watched::start(kubernetes, kubernetes.client());
    watched.wait_for("synced", "")?;
    let mut last = Plan::new();
    let equal = until("the plans are equal", Duration::from_secs(20), || {
        last = watched.plan();
        Ok((last == expected).then_some(()).ok_or_else(|| difference(&expected, &last)))
    });
    let rejected: Vec<_> = watched.told().into_iter().filter(|line| line.starts_with("rejected")).collect();
    ensure!(rejected.is_empty(), "{rejected:?}");
    equal?;
    Ok((expected.len() >= 4, format!("{} resources", expected.len())))
}

fn difference(expected: &Plan, observed: &Plan) -> String {
    if expected == observed {
        return "the plans are equal".to_owned();
    }
    let lines = |plan: &Plan| plan.iter().map(|(name, version)| format!("{name} {version}")).collect::<BTreeSet<_>>();
    let (expected, observed) = (lines(expected), lines(observed));
    if expected == observed {
        return "the plans are equal".to_owned();
    }
    format!(
        "missing: {:?}, too much: {:?}",
        expected.difference(&observed).take(5).collect::<Vec<_>>(),
        observed.difference(&expected).take(5).collect::<Vec<_>>()
    )
}

/// Every object that the source reads, as the API server has it.
fn all(kubernetes: &Kubernetes) -> anyhow::Result<Vec<Value>> {
    let mut all = Vec::new();
    for (api_version, plural) in RESOURCES {
        let list = kubernetes.get(api_version, plural, "", "")?.with_context(|| plural.to_owned())?;
        let kind = list["kind"].as_str().unwrap_or_default().trim_end_matches("List").to_owned();
        for item in list["items"].as_array().into_iter().flatten() {
            let mut item = item.clone();
            (item["apiVersion"], item["kind"]) = (json!(api_version), json!(kind));
            all.push(item);
        }
    }
    Ok(all)
}

/// Removes what an earlier mesh has left. Nobody ends namespaces here.
fn empty(kubernetes: &Kubernetes) -> anyhow::Result<()> {
    for (api_version, plural) in RESOURCES.into_iter().filter(|(_, plural)| *plural != "namespaces") {
        let list = kubernetes.get(api_version, plural, "", "")?.with_context(|| plural.to_owned())?;
        for item in list["items"].as_array().into_iter().flatten() {
            let text = |field: &str| item["metadata"][field].as_str().unwrap_or_default().to_owned();
            if (text("namespace").as_str(), text("name").as_str()) != ("default", "kubernetes") {
                kubernetes.delete(api_version, plural, &text("namespace"), &text("name"))?;
            }
        }
    }
    Ok(())
}
