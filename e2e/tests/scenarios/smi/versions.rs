//! Objects of old versions, and what they come to in others: each is converted as an API server would ask for it, and
//! written in the other version.

use serde_json::{Value, json};
use weft::source::versions::convert;
use weft_e2e::mesh::Mesh;
use weft_e2e::scenario::Scenarios;

use super::targets::{self, calls};
use super::{CLIENT, SPLIT, TARGET, see, share, taken};

const ROOT: &str = "http://root/";

pub(super) fn run(mesh: &Mesh, checks: &mut Scenarios) {
    splits(mesh, checks);
    targets(mesh, checks);
}

fn object(api_version: &str, kind: &str, namespace: &str, fields: Value) -> Value {
    let mut object = json!({"apiVersion": api_version, "kind": kind});
    object["metadata"] = json!({"name": "old", "namespace": namespace});
    for (name, value) in fields.as_object().into_iter().flatten() {
        object[name] = value.clone();
    }
    object
}

/// Writes the object in place of what was there. JSON is YAML.
fn write(mesh: &Mesh, checks: &mut Scenarios, file: &str, object: &Value) {
    if mesh.read(file).is_ok() {
        taken(checks, "removed", mesh.remove(file));
    }
    taken(checks, "written", mesh.write(file, &object.to_string()));
}

fn splits(mesh: &Mesh, checks: &mut Scenarios) {
    let backends = json!([{"service": "root-v1", "weight": "1"}, {"service": "root-v2", "weight": "500m"}]);
    let spec = json!({"service": "root", "backends": backends});
    let old = object("split.smi-spec.io/v1alpha1", "TrafficSplit", "app", json!({"spec": spec}));
    let calls = ["-n", "1500", "-c", "10", ROOT];
    write(mesh, checks, SPLIT, &old);
    share(mesh, checks, "smi-13: weights of 1 and 500m in v1alpha1", &calls, 33.3, 3.0);
    let stored = convert(old, "split.smi-spec.io/v1alpha4").expect("v1alpha4");
    checks.equal(
        "smi-13: the same, read as v1alpha4",
        r#"[{"service":"root-v1","weight":1000},{"service":"root-v2","weight":500}]"#,
        Ok(&stored["spec"]["backends"]),
    );
    write(mesh, checks, SPLIT, &stored);
    share(mesh, checks, "smi-13: the same, written as v1alpha4", &calls, 33.3, 3.0);

    // Matches come, and then a client of v1alpha2 changes the weights.
    let mut stored = stored;
    stored["spec"]["matches"] = json!([{"kind": "HTTPRouteGroup", "name": "beta"}]);
    let mut read = convert(stored, "split.smi-spec.io/v1alpha2").expect("v1alpha2");
    read["spec"]["backends"] = json!([{"service": "root-v1", "weight": 0}, {"service": "root-v2", "weight": 7}]);
    write(mesh, checks, SPLIT, &read);
    checks.equal("smi-13: updated as v1alpha2, what matches", "200 v2", see(mesh, CLIENT, &["http://root/beta"]));
    checks.equal("smi-13: updated as v1alpha2, what does not", "200 v1", see(mesh, CLIENT, &[ROOT]));
    let updated = convert(read, "split.smi-spec.io/v1alpha4").expect("v1alpha4");
    checks.equal(
        "smi-13: updated as v1alpha2, its matches in v1alpha4",
        r#"[{"kind":"HTTPRouteGroup","name":"beta"}]"#,
        Ok(&updated["spec"]["matches"]),
    );
    taken(checks, "removed", mesh.remove(SPLIT));
}

/// A target of v1alpha1 with routes of v1alpha1: its port is a constraint in every version.
fn targets(mesh: &Mesh, checks: &mut Scenarios) {
    let routes = object(
        "specs.smi-spec.io/v1alpha1",
        "HTTPRouteGroup",
        "guarded",
        json!({"matches": [{"name": "all", "pathRegex": ".*", "methods": ["*"]}]}),
    );
    let target = object(
        "access.smi-spec.io/v1alpha1",
        "TrafficTarget",
        "guarded",
        json!({
            "destination": {"kind": "ServiceAccount", "name": "vault", "port": 8080},
            "sources": [{"kind": "ServiceAccount", "name": "client", "namespace": "app"}],
            "specs": [{"kind": "HTTPRouteGroup", "name": "old"}],
        }),
    );
    let newest = convert(target.clone(), "access.smi-spec.io/v1alpha3").expect("v1alpha3");
    mesh.put("old-routes.yaml", &routes.to_string()).expect("written");
    for (version, object) in [("v1alpha1", target), ("v1alpha3", newest)] {
        write(mesh, checks, TARGET, &object);
        checks.equal(
            &format!("smi-13: a target with the port 8080, written as {version}"),
            "200 200 403 closed closed",
            calls(mesh, CLIENT),
        );
    }
    taken(checks, "removed", mesh.remove(TARGET));
    checks.equal("smi-13: that target is gone", targets::NOTHING, calls(mesh, CLIENT));
    mesh.delete("old-routes.yaml").expect("removed");
}
