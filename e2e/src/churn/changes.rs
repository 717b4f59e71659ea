//! What changes: each [`Change`] is a cycle of steps that leads back to where it began, and knows nothing of the
//! others, so that their steps can be mixed in any order.

/// A thing that changes: steps which, taken in their order again and again, are a cycle.
#[derive(Debug)]
pub(super) struct Change {
    pub(super) name: &'static str,
    pub(super) steps: Vec<Step>,
}

/// One step of a change.
#[derive(Debug)]
pub(super) enum Step {
    /// Files of the mesh are written (or removed), and pods follow.
    Write { what: &'static str, files: Vec<(&'static str, Option<String>)>, pods: Option<Pods> },
    /// Callers begin to call the Service `guest`.
    Call,
    /// They stop.
    HangUp,
}

/// Pods that a write brings about, all of them ready at the end.
#[derive(Debug)]
pub(super) struct Pods {
    pub(super) workload: &'static str,
    pub(super) count: usize,
    /// They are other pods than before.
    pub(super) new: bool,
}

/// The discovery that a run begins with; a step changes it and another changes it back.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub enum Discovery {
    /// A sidecar is told of what it calls.
    OnDemand,
    /// A sidecar is told of everything.
    Eager,
}

/// Every change that costs nothing. The last step of each is where the run begins.
pub(super) fn harmless(discovery: Discovery) -> Vec<Change> {
    let mut changes = vec![Change { name: "discovery", steps: modes(discovery) }];
    changes.extend(of_routes());
    changes
}

/// Those, and such as do harm on purpose.
pub(super) fn all() -> Vec<Change> {
    let mut changes = vec![
        Change { name: "mesh", steps: meshes() },
        Change { name: "fault", steps: faults() },
        Change { name: "denial", steps: denials() },
        Change { name: "policy", steps: policies() },
    ];
    changes.extend(of_routes());
    changes
}

fn of_routes() -> Vec<Change> {
    vec![
        Change { name: "mTLS", steps: mtls() },
        Change { name: "access", steps: targets() },
        Change { name: "scale", steps: scale() },
        Change { name: "rollout", steps: rollout() },
        Change { name: "split", steps: split() },
        Change { name: "move", steps: moved() },
        Change { name: "ports", steps: ports() },
        Change { name: "headless", steps: headless() },
        Change { name: "guest", steps: guest() },
    ]
}

fn write(what: &'static str, file: &'static str, text: String) -> Step {
    Step::Write { what, files: vec![(file, Some(text))], pods: None }
}

fn rolls(what: &'static str, file: &'static str, text: String, pods: Pods) -> Step {
    Step::Write { what, files: vec![(file, Some(text))], pods: Some(pods) }
}

fn modes(first: Discovery) -> Vec<Step> {
    let (first, other) = match first {
        Discovery::OnDemand => ("OnDemand", "Eager"),
        Discovery::Eager => ("Eager", "OnDemand"),
    };
    let config = |mode: &str| {
        format!(
            "apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: default}}\n\
             spec:\n  discovery: {{mode: {mode}}}\n  authorization: {{mode: Enforce}}\n"
        )
    };
    vec![
        write("the other mode", "config.yaml", config(other)),
        write("the mode as before", "config.yaml", config(first)),
    ]
}

/// What the mesh does and tells.
fn meshes() -> Vec<Step> {
    let config = |what, spec: &[&str]| {
        let spec: String = spec.iter().map(|line| format!("  {line}\n")).collect();
        let text =
            format!("apiVersion: weft.dev/v1alpha1\nkind: MeshConfig\nmetadata: {{name: default}}\nspec:\n{spec}");
        write(what, "config.yaml", text)
    };
    const ENFORCE: &str = "authorization: {mode: Enforce}";
    // A call that fails tells of itself in the log.
    const JSON: &str = "accessLog: {mode: Errors, format: Json}";
    const TEXT: &str = "accessLog: {mode: Errors, format: Text}";
    vec![
        config("everything is pushed", &[TEXT, ENFORCE, "discovery: {mode: Eager}"]),
        config("other access logs", &[JSON, ENFORCE, "discovery: {mode: Eager}"]),
        config("on demand", &[JSON, ENFORCE]),
        config("denials are audited only", &[JSON, "authorization: {mode: Audit}"]),
        config("few metrics", &[JSON, "authorization: {mode: Audit}", "metrics: {mode: Basic}"]),
        config("as at the beginning", &[TEXT, ENFORCE]),
    ]
}

/// Some requests of one caller to `root` go wrong on purpose.
fn faults() -> Vec<Step> {
    const FILE: &str = "fault.yaml";
    let fault = |what, harm: &str| {
        let text = format!(
            "apiVersion: weft.dev/v1alpha1\nkind: TrafficFault\nmetadata: {{name: root, namespace: work}}\nspec:\n  \
             targetRefs: [{{kind: Service, name: root, port: 80}}]\n  \
             callers: [{{kind: ServiceAccount, name: a, namespace: app}}]\n  {harm}\n"
        );
        write(what, FILE, text)
    };
    vec![
        fault("a third is aborted", "percentage: 33\n  abort: {httpStatus: 418}"),
        fault("half are delayed", "percentage: 50\n  delay: {fixed: 30ms}"),
        fault("all are aborted", "abort: {httpStatus: 418}"),
        Step::Write { what: "no fault", files: vec![(FILE, None)], pods: None },
    ]
}

/// Who may call `guarded`, whose pod stays.
fn denials() -> Vec<Step> {
    let allowed = |what, sources: &[&str]| {
        let sources: String = sources
            .iter()
            .map(|name| format!("    - {{kind: ServiceAccount, name: {name}, namespace: app}}\n"))
            .collect();
        let target = format!(
            "apiVersion: access.smi-spec.io/v1alpha3\nkind: TrafficTarget\n\
             metadata: {{name: guarded, namespace: work}}\nspec:\n  \
             destination: {{kind: ServiceAccount, name: guarded, namespace: work}}\n  sources:\n{sources}  \
             rules:\n    - {{kind: HTTPRouteGroup, name: http, matches: [everything]}}\n"
        );
        let workload = Workload { name: "guarded", labels: "app: guarded", account: "guarded", ..ROOT };
        let text = format!("{target}---\n{}---\n{}", service("guarded", "app: guarded", PORTS), workload.yaml());
        Step::Write {
            what,
            files: vec![("guarded.yaml", Some(text))],
            pods: Some(Pods { workload: "guarded", count: 1, new: false }),
        }
    };
    vec![allowed("another may call", &["a", "b"]), allowed("that one may no more", &["a"])]
}

/// How calls to `rolling` are made.
fn policies() -> Vec<Step> {
    const FILE: &str = "policy.yaml";
    let policy = |what, field: &str| {
        let text = format!(
            "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: rolling, namespace: work}}\nspec:\n  \
             targetRefs: [{{kind: Service, name: rolling, port: 80}}]\n  {field}\n"
        );
        write(what, FILE, text)
    };
    vec![
        policy("timeouts and retries", "timeouts: {request: 10s}\n  retries: {on: [reset], attempts: 2}"),
        policy("a ring", "loadBalancing: {algorithm: RingHash, hash: {header: x-user}}"),
        policy("limits", "limits: {connections: 100, requests: 200}"),
        policy("ejection", "outlierDetection: {consecutiveErrors: 5, interval: 1s, ejectionTime: 1s}"),
        Step::Write { what: "no policy", files: vec![(FILE, None)], pods: None },
    ]
}

fn mtls() -> Vec<Step> {
    let namespace = |mode: &str| {
        format!(
            "apiVersion: v1\nkind: Namespace\nmetadata:\n  name: work\n  labels: {{weft.dev/inject: enabled}}\n  \
             annotations: {{weft.dev/mtls: {mode}}}\n"
        )
    };
    vec![
        write("strict", "namespace.yaml", namespace("Strict")),
        write("permissive", "namespace.yaml", namespace("Permissive")),
    ]
}

/// Who may call changes in every way that leaves the callers allowed: other objects, other rules.
fn targets() -> Vec<Step> {
    let file = |targets: &[(&str, &[&str], &str)]| {
        let target = |(name, sources, rule): &(&str, &[&str], &str)| {
            let sources: String = sources
                .iter()
                .map(|source| format!("    - {{kind: ServiceAccount, name: {source}, namespace: app}}\n"))
                .collect();
            format!(
                "apiVersion: access.smi-spec.io/v1alpha3\nkind: TrafficTarget\n\
                 metadata: {{name: {name}, namespace: work}}\nspec:\n  \
                 destination: {{kind: ServiceAccount, name: root, namespace: work}}\n  \
                 sources:\n{sources}  rules:\n    - {rule}\n"
            )
        };
        targets.iter().map(target).collect::<Vec<_>>().join("---\n")
    };
    const ALL: &str = "{kind: HTTPRouteGroup, name: http, matches: [everything]}";
    const TCP: &str = "{kind: TCPRoute, name: tcp}";
    let base = [("http", &["a", "b"][..], ALL), ("tcp", &["a", "b"], TCP)];
    let of_each =
        [("http-a", &["a"][..], ALL), ("http-b", &["b"], ALL), ("tcp-a", &["a"], TCP), ("tcp-b", &["b"], TCP)];
    let narrow = [
        ("gets", &["a", "b"][..], "{kind: HTTPRouteGroup, name: http, matches: [gets]}"),
        ("echo", &["a", "b"], "{kind: HTTPRouteGroup, name: http, matches: [echo]}"),
        ("tcp", &["b", "a"], TCP),
    ];
    const FILE: &str = "targets.yaml";
    vec![
        write("a target for each caller, in place of one", FILE, file(&of_each)),
        write("targets for each kind of request, in place of those", FILE, file(&narrow)),
        write("one target for all", FILE, file(&base)),
    ]
}

/// A Deployment.
struct Workload {
    name: &'static str,
    labels: &'static str,
    version: &'static str,
    account: &'static str,
    replicas: usize,
    /// Added to every port number that it listens on.
    offset: u16,
}

impl Workload {
    fn yaml(&self) -> String {
        let Self { name, labels, version, account, replicas, offset } = self;
        let [http, other, grpc, tcp] = [8080, 8081, 9090, 7000].map(|port: u16| port + offset);
        format!(
            "apiVersion: apps/v1
kind: Deployment
metadata: {{name: {name}, namespace: work}}
spec:
  replicas: {replicas}
  selector: {{matchLabels: {{{labels}, version: {version}}}}}
  template:
    metadata:
      labels: {{{labels}, version: {version}}}
    spec:
      serviceAccountName: {account}
      containers:
        - name: app
          image: ghcr.io/weft-mesh/weft:0.1.0
          args: [app, serve, --name={name}, --version={version}, --http={http}, --grpc={grpc}, --tcp={tcp}]
          ports:
            - {{name: http, containerPort: {http}}}
            - {{name: grpc, containerPort: {grpc}}}
            - {{name: tcp, containerPort: {tcp}}}
          readinessProbe: {{httpGet: {{path: /readyz, port: http}}, periodSeconds: 1}}
        - name: other
          image: ghcr.io/weft-mesh/weft:0.1.0
          args: [app, serve, --name={name}, --version={version}, --http={other}]
          readinessProbe: {{httpGet: {{path: /readyz, port: {other}}}, periodSeconds: 1}}
"
        )
    }
}

fn service(name: &str, selector: &str, ports: &str) -> String {
    format!(
        "apiVersion: v1\nkind: Service\nmetadata: {{name: {name}, namespace: work}}\n\
         spec:\n  selector: {{{selector}}}\n  ports:\n{ports}"
    )
}

/// By the names of the pods' ports.
const PORTS: &str = "    - {name: http, port: 80, targetPort: http}
    - {name: grpc, port: 9090, targetPort: grpc}
    - {name: tcp, port: 7000, targetPort: tcp}
";

/// The pods that all Services but one begin with.
const V1: &str = "app: root, version: v1";

const ROOT: Workload =
    Workload { name: "root-v1", labels: "app: root", version: "v1", account: "root", replicas: 1, offset: 0 };

/// The pods behind almost every Service come and go.
fn scale() -> Vec<Step> {
    let of = |replicas| {
        let pods = Pods { workload: "root-v1", count: replicas, new: false };
        let text = format!(
            "{}---\n{}---\n{}",
            service("root", V1, PORTS),
            service("root-v1", V1, PORTS),
            Workload { replicas, ..ROOT }.yaml()
        );
        (text, pods)
    };
    let [(three, pods_of_three), (one, pods_of_one)] = [3, 1].map(of);
    vec![rolls("3 pods", "root.yaml", three, pods_of_three), rolls("1 pod", "root.yaml", one, pods_of_one)]
}

/// A Deployment's pods are replaced by such as listen on other ports.
fn rollout() -> Vec<Step> {
    let on = |offset| {
        let workload = Workload { name: "rolling", labels: "app: rolling", offset, ..ROOT };
        format!("{}---\n{}", service("rolling", "app: rolling", PORTS), workload.yaml())
    };
    let pods = || Pods { workload: "rolling", count: 1, new: true };
    vec![
        rolls("other ports", "rolling.yaml", on(1000), pods()),
        rolls("the ports as before", "rolling.yaml", on(0), pods()),
    ]
}

/// A release: a second version comes, takes shares of the calls, has all, and goes again.
fn split() -> Vec<Step> {
    const SPLIT: &str = "split.yaml";
    const BACKEND: &str = "root-v2.yaml";
    let shares = |v1: u32, v2: Option<u32>, matches: &str| {
        let second = v2.map_or(String::new(), |weight| format!("    - {{service: root-v2, weight: {weight}}}\n"));
        format!(
            "apiVersion: split.smi-spec.io/v1alpha4\nkind: TrafficSplit\nmetadata: {{name: root, namespace: work}}\n\
             spec:\n  service: root\n{matches}  backends:\n    - {{service: root-v1, weight: {v1}}}\n{second}"
        )
    };
    let second = Workload { name: "root-v2", version: "v2", ..ROOT };
    let second = format!("{}---\n{}", service("root-v2", "app: root, version: v2", PORTS), second.yaml());
    let matches = "  matches:\n    - {kind: HTTPRouteGroup, name: http}\n";
    let split = |what, text| write(what, SPLIT, text);
    vec![
        rolls("a second version", BACKEND, second, Pods { workload: "root-v2", count: 1, new: false }),
        split("all to the first", shares(100, Some(0), "")),
        split("90 to 10", shares(90, Some(10), "")),
        split("with matches", shares(50, Some(50), matches)),
        split("with matches, all of them to the second", shares(0, Some(100), matches)),
        split("without matches", shares(0, Some(100), "")),
        split("30 to 70", shares(30, Some(70), "")),
        split("100 to 0", shares(100, Some(0), "")),
        split("without the second", shares(100, None, "")),
        Step::Write {
            what: "no second version",
            files: vec![(BACKEND, None)],
            pods: Some(Pods { workload: "root-v2", count: 0, new: false }),
        },
        Step::Write { what: "no split", files: vec![(SPLIT, None)], pods: None },
    ]
}

/// A Service leads to the pods of another Deployment, of the same ServiceAccount.
fn moved() -> Vec<Step> {
    let to = |selector| service("moving", selector, PORTS);
    vec![write("to the other Deployment", "moving.yaml", to("app: rolling")), write("back", "moving.yaml", to(V1))]
}

/// Names and numbers of a Service's ports.
fn ports() -> Vec<Step> {
    let with = |ports: &str| service("ported", V1, ports);
    vec![
        write("another targetPort", "ported.yaml", with("    - {name: http, port: 80, targetPort: 8081}\n")),
        write(
            "another name, and a second port",
            "ported.yaml",
            with(
                "    - {name: http-web, port: 80, targetPort: 8081}\n    - {name: http-more, port: 81, targetPort: 8080}\n",
            ),
        ),
        write("as before", "ported.yaml", with("    - {name: http, port: 80, targetPort: 8080}\n")),
    ]
}

/// A Service without an address of its own.
fn headless() -> Vec<Step> {
    let of = |selector: &str| {
        service("headless", selector, "    - {name: http, port: 8080}\n    - {name: tcp, port: 7000}\n")
            .replace("spec:\n", "spec:\n  clusterIP: None\n")
    };
    vec![write("other pods", "headless.yaml", of(V1)), write("pods of every version", "headless.yaml", of("app: root"))]
}

/// A Service that comes, is called, and goes after that.
fn guest() -> Vec<Step> {
    const FILE: &str = "guest.yaml";
    vec![
        write("a new Service", FILE, service("guest", V1, PORTS)),
        Step::Call,
        write("other pods", FILE, service("guest", "app: rolling", PORTS)),
        Step::HangUp,
        Step::Write { what: "no such Service", files: vec![(FILE, None)], pods: None },
    ]
}

/// A Service that nobody calls, and that is another one for each number.
pub(super) fn barrier(number: usize) -> String {
    service("barrier", "app: none", &format!("    - {{port: {}}}\n", 1000 + number % 10_000))
}
