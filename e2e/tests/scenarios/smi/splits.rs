//! TrafficSplit.

use weft_e2e::mesh::Mesh;
use weft_e2e::scenario::Scenarios;

use super::{CLIENT, SPLIT, STRANGER, said, see, share, taken};

const ROOT: &str = "http://root/";
const BETA: &str = "  matches:\n    - {kind: HTTPRouteGroup, name: beta}\n";

pub(super) fn run(mesh: &Mesh, checks: &mut Scenarios) {
    shares(mesh, checks);
    zeros(mesh, checks);
    deleted(mesh, checks);
    several(mesh, checks);
    backends(mesh, checks);
    callers(mesh, checks);
    matches(mesh, checks);
}

fn split(version: &str, rest: &str, backends: &[(&str, u32)]) -> String {
    split_of("root", version, "", rest, backends)
}

/// A split of this root; `metadata` and `rest` are more lines of both parts.
fn split_of(root: &str, version: &str, metadata: &str, rest: &str, backends: &[(&str, u32)]) -> String {
    let backends: String =
        backends.iter().map(|(service, weight)| format!("    - {{service: {service}, weight: {weight}}}\n")).collect();
    format!(
        "apiVersion: split.smi-spec.io/{version}\nkind: TrafficSplit\nmetadata: {{name: root, namespace: app{metadata}}}\n\
         spec:\n  service: {root}\n{rest}  backends:\n{backends}"
    )
}

fn write(mesh: &Mesh, checks: &mut Scenarios, text: &str) {
    taken(checks, "a split", mesh.write(SPLIT, text));
}

fn shares(mesh: &Mesh, checks: &mut Scenarios) {
    write(mesh, checks, &split("v1alpha4", "", &[("root-v1", 90), ("root-v2", 10)]));
    share(mesh, checks, "smi-01: 90/10", &["-n", "2000", "-c", "10", ROOT], 10.0, 2.0);
    let load = mesh.load(CLIENT, &["-c", "10", "--rate", "400", ROOT]).expect("a load");
    for weights in [[20, 80], [70, 30], [1000, 500]] {
        write(mesh, checks, &split("v1alpha2", "", &[("root-v1", weights[0]), ("root-v2", weights[1])]));
    }
    share(mesh, checks, "smi-02: weights of 1000 and 500", &["-n", "2000", "-c", "10", ROOT], 33.3, 3.0);
    checks.holds("smi-02: weights changed under load", "no failed request", || {
        let summary = load.stop()?;
        Ok((summary.failed == 0 && summary.responders.len() == 2, summary.said()))
    });
    write(mesh, checks, &split("v1alpha3", "", &[("root-v1", 100), ("root-v2", 0)]));
    share(mesh, checks, "smi-03: 100/0, HTTP", &["-n", "200", "-c", "4", ROOT], 0.0, 0.0);
    share(mesh, checks, "smi-03: 100/0, gRPC", &["-n", "100", "-c", "4", "grpc://root:9090"], 0.0, 0.0);
    share(mesh, checks, "smi-03: 100/0, TCP", &["-n", "100", "-c", "4", "tcp://root:7000"], 0.0, 0.0);
    let refused = || Ok(mesh.stats(CLIENT, "update_rejected$")?.iter().map(|(_, count)| count).sum::<u64>());
    checks.equal("smi-03: 100/0, what Envoy refuses of it", "0", refused());
}

fn zeros(mesh: &Mesh, checks: &mut Scenarios) {
    write(mesh, checks, &split("v1alpha4", "", &[("root-v1", 0), ("root-v2", 0)]));
    checks.equal("smi-04: all weights 0, HTTP", "503", see(mesh, CLIENT, &[ROOT]));
    checks.equal("smi-04: all weights 0, gRPC", "UNAVAILABLE", see(mesh, CLIENT, &["grpc://root:9090"]));
    checks.equal("smi-04: all weights 0, TCP", "closed", see(mesh, CLIENT, &["tcp://root:7000"]));
    checks.equal("smi-04: all weights 0, another Service", "200 v2", see(mesh, CLIENT, &["http://root-v2/"]));
    said(mesh, checks, "smi-04: all weights 0, reported", "every weight is 0");
    let late = "apiVersion: v1\nkind: Service\nmetadata: {name: late, namespace: app}\nspec:\n  \
                selector: {version: v2}\n  ports: [{name: http, port: 80, targetPort: 8081}]\n";
    taken(checks, "a Service", mesh.write("late.yaml", late));
    checks.equal("smi-04: all weights 0, an unrelated change", "200 v2", see(mesh, CLIENT, &["http://late/"]));
}

fn deleted(mesh: &Mesh, checks: &mut Scenarios) {
    let all = ("without matches", split("v1alpha2", "", &[("root-v2", 1)]), ROOT);
    let some = ("with matches", split("v1alpha4", BETA, &[("root-v2", 1)]), "http://root/beta");
    for (kind, text, url) in [all, some] {
        write(mesh, checks, &text);
        let load = mesh.load(CLIENT, &["-c", "5", "--rate", "300", url]).expect("a load");
        let before = see(mesh, CLIENT, &["-n", "20", url]);
        taken(checks, "removed", mesh.remove(SPLIT));
        let after = see(mesh, CLIENT, &["-n", "20", url]);
        checks.equal(&format!("smi-05: {kind}, before it is deleted"), "200 v2", before);
        checks.equal(&format!("smi-05: {kind}, after it is deleted"), "200 v1", after);
        checks.holds(&format!("smi-05: {kind}, deleted under load"), "no failed request, both answered", || {
            let summary = load.stop()?;
            Ok((summary.failed == 0 && summary.responders.len() == 2, summary.said()))
        });
    }
}

/// Several splits on one root: the oldest is in force, and another takes over when it goes.
fn several(mesh: &Mesh, checks: &mut Scenarios) {
    const YOUNG: &str = "young.yaml";
    let aged = |name: &str, year: u32, backend: &str| {
        split_of("root", "v1alpha4", &format!(", creationTimestamp: '{year}-01-01T00:00:00Z'"), "", &[(backend, 1)])
            .replace("name: root,", &format!("name: {name},"))
    };
    write(mesh, checks, &aged("z-old", 2020, "root-v2"));
    mesh.put(YOUNG, &aged("a-young", 2026, "root-v1")).expect("another split");
    said(mesh, checks, "smi-several: the younger of two splits, reported", "the split `z-old` already decides");
    checks.equal("smi-several: the older of two splits is in force", "200 v2", see(mesh, CLIENT, &["-n", "20", ROOT]));
    let load = mesh.load(CLIENT, &["-c", "5", "--rate", "300", ROOT]).expect("a load");
    taken(checks, "removed", mesh.remove(SPLIT));
    checks.equal("smi-several: the younger takes over", "200 v1", see(mesh, CLIENT, &["-n", "20", ROOT]));
    checks.holds("smi-several: the younger takes over under load", "no failed request", || {
        let summary = load.stop()?;
        Ok((summary.failed == 0 && summary.requests > 20, summary.said()))
    });
    taken(checks, "a split with matches", mesh.write(SPLIT, &split("v1alpha4", BETA, &[("root-v2", 1)])));
    checks.equal("smi-several: what matches", "200 v2", see(mesh, CLIENT, &["-n", "20", "http://root/beta"]));
    let rest = aged("a-young", 2026, "root-v2");
    taken(checks, "the split without matches changes", mesh.write(YOUNG, &rest));
    taken(checks, "the split with matches changes", mesh.write(SPLIT, &split("v1alpha4", BETA, &[("root-v1", 1)])));
    checks.equal("smi-several: what matches, after a change", "200 v1", see(mesh, CLIENT, &["http://root/beta"]));
    checks.equal("smi-several: what does not goes by the other", "200 v2", see(mesh, CLIENT, &["-n", "20", ROOT]));
    let second = split("v1alpha4", "  matches:\n    - {kind: HTTPRouteGroup, name: alpha}\n", &[("root-v1", 1)]);
    taken(checks, "another with matches", mesh.write("alpha.yaml", &second.replace("name: root,", "name: b.alpha,")));
    checks.equal(
        "smi-several: two with matches",
        "200 v1, 200 v1, 200 v2",
        [&["http://root/beta"][..], &["-H", "x-user: alpha", ROOT], &[ROOT]]
            .into_iter()
            .map(|arguments| see(mesh, CLIENT, arguments))
            .collect::<anyhow::Result<Vec<_>>>()
            .map(|seen| seen.join(", ")),
    );
    for file in ["alpha.yaml", SPLIT, YOUNG] {
        mesh.delete(file).expect("removed");
    }
}

fn backends(mesh: &Mesh, checks: &mut Scenarios) {
    let many = |url: &'static str| see(mesh, CLIENT, &["-n", "40", "-c", "4", "--no-keepalive", url]);
    write(mesh, checks, &split("v1alpha2", "", &[("root-v1", 1), ("root-v2", 1), ("root-v3", 8)]));
    share(mesh, checks, "smi-06: a backend without a Service", &["-n", "400", "-c", "4", ROOT], 50.0, 5.0);
    said(mesh, checks, "smi-06: a backend without a Service, reported", "Service app/root-v3 does not exist");
    let late = "apiVersion: v1\nkind: Service\nmetadata: {name: root-v3, namespace: app}\nspec:\n  \
                selector: {app: client}\n  ports: [{name: http, port: 80, targetPort: 8080}]\n";
    taken(checks, "a Service", mesh.write("root-v3.yaml", late));
    share(mesh, checks, "smi-06: its Service comes later, of the rest", &["-n", "400", "-c", "4", ROOT], 10.0, 2.0);
    taken(checks, "removed", mesh.remove("root-v3.yaml"));
    checks.equal("smi-07: different target ports, HTTP", "200 v1 v2", many(ROOT));
    checks.equal("smi-07: different target ports, gRPC", "OK v1 v2", many("grpc://root:9090"));
    checks.equal("smi-07: different target ports, TCP", "ok v1 v2", many("tcp://root:7000"));

    write(mesh, checks, &split("v1alpha4", "", &[("root-v1", 3), ("root-v2", 1)]));
    share(mesh, checks, "smi-08: HTTP beside gRPC", &["-n", "1000", "-c", "4", ROOT], 25.0, 3.0);
    share(mesh, checks, "smi-08: gRPC beside HTTP", &["-n", "1000", "-c", "4", "grpc://root:9090"], 25.0, 3.0);
    share(mesh, checks, "smi-08: TCP, by connection", &["-n", "400", "-c", "4", "tcp://root:7000"], 25.0, 5.0);
    checks.equal("smi-08: a port that one backend has not", "200 v1", many("http://root:81/"));
    said(mesh, checks, "smi-08: a port that one backend has not, reported", "Service app/root-v2 has no port 81");

    write(mesh, checks, &split("v1alpha4", "", &[("root", 1), ("root-v2", 3)]));
    share(mesh, checks, "smi-09: the root among its backends, HTTP", &["-n", "1000", "-c", "4", ROOT], 75.0, 3.0);
    share(mesh, checks, "smi-09: the root among its backends, TCP", &["-n", "400", "tcp://root:7000"], 75.0, 5.0);
    let both =
        split_of("both", "v1alpha4", "", "", &[("both", 1), ("root-v2", 1)]).replace("name: root,", "name: both,");
    taken(checks, "a split whose backends have a pod in common", mesh.write("both.yaml", &both));
    let (http, tcp) = ("http://both/", "tcp://both:7000");
    share(mesh, checks, "smi-09: backends with a pod in common, HTTP", &["-n", "1000", "-c", "4", http], 75.0, 3.0);
    share(mesh, checks, "smi-09: backends with a pod in common, TCP", &["-n", "400", tcp], 75.0, 5.0);
    taken(checks, "removed", mesh.remove("both.yaml"));
    let turned = split_of("root-v2", "v1alpha4", "", "", &[("root-v1", 1)]).replace("name: root,", "name: turned,");
    taken(checks, "a split of a backend", mesh.write("turned.yaml", &turned));
    share(mesh, checks, "smi-09: a backend that is itself split", &["-n", "1000", "-c", "4", ROOT], 75.0, 3.0);
    taken(checks, "removed", mesh.remove("turned.yaml"));
    checks.equal("smi-10: a backend called directly, HTTP", "200 v1", many("http://root-v1/"));
    checks.equal("smi-10: a backend called directly, gRPC", "OK v2", many("grpc://root-v2:9090"));
    checks.equal("smi-10: a backend called directly, TCP", "ok v2", many("tcp://root-v2:7000"));
}

fn callers(mesh: &Mesh, checks: &mut Scenarios) {
    write(mesh, checks, &split_of("root.app.svc.cluster.local", "v1alpha1", "", "", &[("root-v1", 1), ("root-v2", 1)]));
    for (form, arguments) in [
        ("root", vec![ROOT]),
        ("root.app", vec!["http://root.app/"]),
        ("root.app.svc", vec!["http://root.app.svc/"]),
        ("root.app.svc.cluster.local", vec!["http://root.app.svc.cluster.local/"]),
        ("root:80", vec!["-H", "host: root:80", ROOT]),
        ("root.app.svc.cluster.local:80", vec!["-H", "host: root.app.svc.cluster.local:80", ROOT]),
        ("another name", vec!["-H", "host: www.example.org", ROOT]),
        ("root, HTTP/2", vec!["--http2", ROOT]),
    ] {
        let arguments = [&["-n", "200", "-c", "2"], &arguments[..]].concat();
        share(mesh, checks, &format!("smi-11: host {form}"), &arguments, 50.0, 6.0);
    }
    let outside = |url: &str| see(mesh, STRANGER, &["-n", "40", "--no-keepalive", url]);
    checks.equal("smi-12: a caller outside the mesh, HTTP", "200 v1", outside("http://root.app/"));
    checks.equal("smi-12: a caller outside the mesh, gRPC", "OK v1", outside("grpc://root.app:9090"));
    checks.equal("smi-12: a caller outside the mesh, TCP", "ok v1", outside("tcp://root.app:7000"));
    mesh.put(SPLIT, &split_of("root.outside", "v1alpha4", "", "", &[("root-v2", 1)])).expect("a split");
    said(mesh, checks, "smi-root: a split for another namespace, reported", "is not in the split's namespace, app");
    share(
        mesh,
        checks,
        "smi-root: a split for another namespace changes nothing",
        &["-n", "200", "-c", "2", ROOT],
        50.0,
        6.0,
    );
    taken(checks, "removed", mesh.remove(SPLIT));
}

/// What a split with `matches` takes, and what is left to the root.
fn matches(mesh: &Mesh, checks: &mut Scenarios) {
    let see = |arguments: &[&str]| see(mesh, CLIENT, arguments);
    let both = "  matches:\n    - {kind: HTTPRouteGroup, name: beta}\n    - {kind: HTTPRouteGroup, name: alpha}\n";
    write(mesh, checks, &split("v1alpha3", both, &[("root-v1", 0), ("root-v2", 1)]));
    let another = mesh.resolve(CLIENT, "root-v2").expect("the address of another Service");
    for (what, expected, arguments) in [
        ("nothing fits", "200 v1", vec![ROOT]),
        ("the path", "200 v2", vec!["http://root/beta/7?x=1"]),
        ("the path elsewhere", "200 v1", vec!["http://root/x/beta"]),
        ("the path, another method", "200 v1", vec!["-X", "POST", "http://root/beta"]),
        ("a header", "200 v2", vec!["-H", "x-user: beta-7", ROOT]),
        ("a header, HTTP/2", "200 v2", vec!["--http2", "-H", "x-user: beta-7", ROOT]),
        ("a header with another value around it", "200 v1", vec!["-H", "x-user: my beta-7", ROOT]),
        ("a header of the second group", "200 v2", vec!["-H", "x-user: alpha", ROOT]),
        ("a client's own x-weft-dst", "200 v1", vec!["-H", &format!("x-weft-dst: {another}:80"), ROOT]),
        ("TCP has none", "ok v1", vec!["-n", "20", "tcp://root:7000"]),
        ("a backend called directly", "200 v1", vec!["-H", "x-user: beta-7", "http://root-v1/"]),
    ] {
        checks.equal(&format!("smi-matches: {what}"), expected, see(&arguments));
    }
    let [beta, gamma] = ["pathRegex: /beta", "pathRegex: /gamma"];
    taken(checks, "another path", mesh.edit("routes.yaml", |text| text.replace(beta, gamma)));
    checks.equal("smi-matches: the group changes, its new path", "200 v2", see(&["http://root/gamma"]));
    checks.equal("smi-matches: the group changes, its old path", "200 v1", see(&["http://root/beta"]));
    taken(checks, "the path as it was", mesh.edit("routes.yaml", |text| text.replace(gamma, beta)));
    taken(checks, "removed", mesh.remove(SPLIT));
}
