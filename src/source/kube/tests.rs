use std::collections::VecDeque;
use std::convert::Infallible;
use std::sync::Mutex;

use kube::client::Body;
use serde_json::{Value, json};

use super::objects::Objects;
use super::resource::Resource;
use super::*;
use crate::mesh::Kind;
use crate::source::manifest::VERSIONS;

fn resource(kind: Kind) -> Resource {
    let (_, api_version, version) = VERSIONS.iter().rev().find(|(of, _, _)| *of == kind).unwrap();
    Resource { version: *version, api_version, plural: format!("{}s", kind.to_string().to_lowercase()) }
}

fn service(name: &str, version: u32) -> Value {
    json!({
        "metadata": {
            "namespace": "shop", "name": name, "uid": name, "resourceVersion": version.to_string(),
            "managedFields": [{"manager": "kubectl", "fieldsV1": {"f:spec": {}}}],
        },
        "spec": {"clusterIP": "10.96.0.1", "ports": [{"port": 80}]},
    })
}

fn split(version: u32, spec: Value) -> Value {
    let metadata = json!({"namespace": "shop", "name": "s", "uid": "s", "resourceVersion": version.to_string()});
    json!({"metadata": metadata, "spec": spec})
}

fn good() -> Value {
    json!({"service": "a", "backends": [{"service": "a", "weight": 1}]})
}

/// What is told, one event a line.
fn lines(events: &mut Vec<Event>) -> Vec<String> {
    let line = |event| match event {
        Event::Apply { manifest, warnings, .. } => {
            format!("apply {}{}", manifest.object_ref(), " !".repeat(warnings.len()))
        }
        Event::Delete(object) => format!("delete {object}"),
        Event::Rejected(found) => format!("reject {}", found.object.map_or(String::new(), |object| object.to_string())),
        Event::Trouble { of, found } => format!("trouble {of:?} {}", found.is_some()),
        Event::Synced => "synced".to_owned(),
    };
    events.drain(..).map(line).collect()
}

#[test]
fn a_list_tells_what_is_new_or_different_and_what_is_gone() {
    let mut objects = Objects::new(Kind::Service, Beside::default());
    let mut events = Vec::new();
    let mut list = |all: &[Value]| {
        objects.begin();
        all.iter().for_each(|json| objects.take(&resource(Kind::Service), json.clone(), &mut events));
        objects.end(&mut events);
        lines(&mut events)
    };
    assert_eq!(list(&[service("a", 1), service("b", 2)]), ["apply Service shop/a", "apply Service shop/b"]);
    assert_eq!(list(&[service("a", 1), service("b", 2)]), [""; 0], "nothing twice");
    assert_eq!(list(&[service("a", 3)]), ["apply Service shop/a", "delete Service shop/b"]);
}

#[test]
fn a_list_that_is_cut_short_removes_nothing() {
    let mut objects = Objects::new(Kind::Service, Beside::default());
    let mut events = Vec::new();
    objects.begin();
    for name in ["a", "b"] {
        objects.take(&resource(Kind::Service), service(name, 1), &mut events);
    }
    objects.end(&mut events);
    lines(&mut events);
    objects.begin();
    objects.take(&resource(Kind::Service), service("b", 1), &mut events);
    objects.begin();
    objects.take(&resource(Kind::Service), service("a", 1), &mut events);
    objects.take(&resource(Kind::Service), service("b", 1), &mut events);
    objects.end(&mut events);
    assert_eq!(lines(&mut events), [""; 0]);
}

#[test]
fn another_object_of_the_same_name_is_read_whatever_its_version_says() {
    let mut objects = Objects::new(Kind::Service, Beside::default());
    let mut events = Vec::new();
    objects.take(&resource(Kind::Service), service("a", 1), &mut events);
    lines(&mut events);
    let mut other = service("a", 1);
    other["metadata"]["uid"] = json!("other");
    objects.take(&resource(Kind::Service), other, &mut events);
    assert_eq!(lines(&mut events), ["apply Service shop/a"]);
}

#[test]
fn what_does_not_parse_is_said_once_and_still_deleted() {
    let (mut objects, mut events) = (Objects::new(Kind::TrafficSplit, Beside::default()), Vec::new());
    let splits = resource(Kind::TrafficSplit);
    let bad = || json!({"service": "a", "backends": 5});
    objects.take(&splits, split(1, good()), &mut events);
    assert_eq!(lines(&mut events), ["apply TrafficSplit shop/s"]);
    objects.take(&splits, split(2, bad()), &mut events);
    assert_eq!(lines(&mut events), ["reject TrafficSplit shop/s"]);
    objects.take(&splits, split(3, bad()), &mut events);
    assert_eq!(lines(&mut events), [""; 0], "said before");
    objects.take(&splits, split(4, good()), &mut events);
    objects.take(&splits, split(5, bad()), &mut events);
    assert_eq!(lines(&mut events), ["apply TrafficSplit shop/s", "reject TrafficSplit shop/s"], "said anew");
    objects.remove(&split(6, bad()), &mut events);
    objects.remove(&split(6, bad()), &mut events);
    assert_eq!(lines(&mut events), ["delete TrafficSplit shop/s"]);
}

#[test]
fn nothing_that_a_server_sends_panics() {
    let mut events = Vec::new();
    let strange =
        [json!(null), json!([]), json!({}), json!({"metadata": 5}), json!({"metadata": {"name": 1}}), json!("x")];
    for kind in KINDS {
        let mut objects = Objects::new(kind, Beside::default());
        for json in &strange {
            objects.take(&resource(kind), json.clone(), &mut events);
            objects.remove(json, &mut events);
        }
        let mut odd = service("a", 1);
        odd["spec"] = json!([{"ports": {}}]);
        objects.take(&resource(kind), odd, &mut events);
    }
}

#[test]
fn fields_that_a_kind_of_weft_does_not_have_are_said_and_those_of_kubernetes_are_not() {
    let mut events = Vec::new();
    let mut typo = good();
    typo["sevice"] = json!("a");
    Objects::new(Kind::TrafficSplit, Beside::default()).take(
        &resource(Kind::TrafficSplit),
        split(1, typo),
        &mut events,
    );
    let mut newer = service("a", 1);
    newer["spec"]["newField"] = json!(true);
    Objects::new(Kind::Service, Beside::default()).take(&resource(Kind::Service), newer, &mut events);
    assert_eq!(lines(&mut events), ["apply TrafficSplit shop/s !", "apply Service shop/a"]);
}

#[test]
fn no_managed_fields_are_kept() {
    let mut events = Vec::new();
    Objects::new(Kind::Service, Beside::default()).take(&resource(Kind::Service), service("a", 1), &mut events);
    let [Event::Apply { manifest, .. }] = &events[..] else { panic!("{events:?}") };
    assert_eq!(manifest.metadata().managed_fields, None);
}

#[test]
fn meshed_namespaces_are_known_from_labels_and_from_pods_without_an_address() {
    let beside = Beside::default();
    let meshed = beside.meshed.clone();
    let (mut pods, mut spaces) = (Objects::new(Kind::Pod, beside.clone()), Objects::new(Kind::Namespace, beside));
    let mut events = Vec::new();
    let pod = |container: &str, version: u32| {
        json!({
            "metadata": {"namespace": "depot", "name": "p", "resourceVersion": version.to_string()},
            "spec": {"containers": [{"name": "app"}, {"name": container}]},
        })
    };
    let space = |label: &str, version: u32| {
        let labels = json!({"weft.dev/inject": label});
        json!({"metadata": {"name": "shop", "labels": labels, "resourceVersion": version.to_string()}})
    };
    let now = || meshed.watch().borrow().iter().cloned().collect::<Vec<_>>().join(" ");
    pods.take(&resource(Kind::Pod), pod("weft-proxy", 1), &mut events);
    spaces.take(&resource(Kind::Namespace), space("enabled", 1), &mut events);
    assert_eq!(now(), "depot shop");
    spaces.take(&resource(Kind::Namespace), space("disabled", 2), &mut events);
    assert_eq!(now(), "depot");
    spaces.take(&resource(Kind::Namespace), space("enabled", 3), &mut events);
    spaces.remove(&space("enabled", 3), &mut events);
    pods.remove(&pod("weft-proxy", 1), &mut events);
    assert_eq!(now(), "");
}

/// A server that answers each request for Services by the next of a script, and knows no other kind.
#[derive(Clone)]
struct Scripted(Arc<Mutex<Script>>);

/// The answers that are left, and the queries that were asked.
type Script = (VecDeque<Answer>, Vec<String>);

/// The HTTP status and the body.
type Answer = (u16, Value);

impl Scripted {
    fn new(script: impl IntoIterator<Item = Answer>) -> Self {
        Self(Arc::new(Mutex::new((script.into_iter().collect(), Vec::new()))))
    }

    fn client(&self) -> Client {
        let server = self.clone();
        let answer = move |request: http::Request<Body>| {
            let answer = server.answer(request.uri());
            async move {
                // A watch that nothing happens to.
                let Some((status, body)) = answer else { return std::future::pending().await };
                let response = http::Response::builder().status(status).body(Body::from(body.to_string().into_bytes()));
                Ok::<_, Infallible>(response.unwrap())
            }
        };
        Client::new(tower::service_fn(answer), "default")
    }

    fn answer(&self, uri: &http::Uri) -> Option<Answer> {
        let (script, asked) = &mut *self.0.lock().unwrap();
        let query = uri.query().unwrap_or_default();
        if uri.path() == "/api/v1/services" {
            asked.push(query.to_owned());
            return script.pop_front();
        }
        let list = json!({"kind": "List", "metadata": {"resourceVersion": "1"}, "items": []});
        match query.contains("watch=true") {
            true => None,
            false if uri.path().ends_with("/v1alpha1") || uri.path().contains("smi-spec.io") => {
                Some((404, status(404)))
            }
            false => Some((200, list)),
        }
    }
}

fn status(code: u16) -> Value {
    json!({"kind": "Status", "status": "Failure", "code": code, "message": "as it was told", "reason": "Test"})
}

fn page(items: &[Value], more: Option<&str>) -> Answer {
    (200, json!({"metadata": {"resourceVersion": "7", "continue": more}, "items": items}))
}

/// What a source tells of such a server until it is synced, and what it asked for.
async fn told(server: &Scripted) -> (Vec<String>, Vec<String>) {
    let (events, mut batches) = mpsc::channel(16);
    let source = tokio::spawn(KubeSource::new(server.client()).run(events));
    let mut told = Vec::new();
    while !told.contains(&"synced".to_owned()) {
        let mut batch = batches.recv().await.unwrap();
        told.extend(lines(&mut batch));
    }
    source.abort();
    told.retain(|line| !line.starts_with("trouble Kind("));
    (told, server.0.lock().unwrap().1.clone())
}

#[tokio::test(start_paused = true)]
async fn it_is_synced_after_the_last_page_and_not_before() {
    let server = Scripted::new([page(&[service("a", 1)], Some("more")), page(&[service("b", 1)], None)]);
    let (told, asked) = told(&server).await;
    assert_eq!(told, ["apply Service shop/a", "apply Service shop/b", "synced"]);
    assert!(asked[1].contains("continue=more"), "{asked:?}");
}

#[tokio::test(start_paused = true)]
async fn a_server_that_fails_half_way_is_asked_again_from_the_beginning() {
    let server = Scripted::new([
        (503, status(503)),
        page(&[service("a", 1)], Some("more")),
        (500, status(500)),
        page(&[service("a", 1)], Some("more")),
        page(&[service("b", 1)], None),
    ]);
    let (told, _) = told(&server).await;
    let expected =
        ["trouble Whole true", "apply Service shop/a", "apply Service shop/b", "trouble Whole false", "synced"];
    assert_eq!(told, expected);
}

#[tokio::test(start_paused = true)]
async fn a_page_that_comes_too_late_is_followed_by_a_list_without_pages() {
    let server =
        Scripted::new([page(&[service("a", 1)], Some("more")), (410, status(410)), page(&[service("a", 1)], None)]);
    let (told, asked) = told(&server).await;
    assert_eq!(told, ["apply Service shop/a", "synced"]);
    assert!(asked[0].contains("limit=") && !asked[2].contains("limit="), "{asked:?}");
}
