//! One kind: found, listed, watched, for ever.

use std::pin::pin;
use std::time::Duration;

use futures::StreamExt;
use kube::api::{ListParams, ObjectList, WatchEvent, WatchParams};
use kube::{Client, Error};
use serde_json::Value;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep, timeout};

use crate::backoff::{Backoff, about};
use crate::mesh::Kind;
use crate::source::Event;

use super::Beside;
use super::objects::Objects;
use super::resource::{self, Resource};
use super::standing::{Failure, Standing};

/// Objects of one page of a list: a Pod has some 10 KB, and a page is in memory as a whole.
const PAGE: u32 = 100;
/// How long a request may take until its answer is there. A watch begins to answer at once.
const ANSWER: Duration = Duration::from_secs(30);
/// How long a watch is asked for; then it goes on with a new request.
const WATCH: Duration = Duration::from_secs(240);
/// How much later than that its end may be noticed: the connection is dead.
const GRACE: Duration = Duration::from_secs(10);
/// How often a missing kind is looked for.
const LOOK: Duration = Duration::from_secs(5);
/// A watch that ends sooner is a failure; the next one does not begin at once.
const SHORT: Duration = Duration::from_secs(1);

/// What a kind's task tells.
#[derive(Debug)]
pub(super) enum Told {
    /// What happened to objects.
    Events(Vec<Event>),
    /// How it stands with the kind.
    Standing(Kind, Standing),
}

/// The task of one kind.
pub(super) struct Watch {
    client: Client,
    kind: Kind,
    objects: Objects,
    tell: mpsc::Sender<Told>,
    backoff: Backoff,
    /// It was missing when it was looked for last.
    missing: bool,
    /// Pages are asked for. Not after one came too late, when what it continues was forgotten.
    pages: bool,
}

/// What is done next.
enum Step {
    /// Which version is served?
    Find,
    List(Resource),
    /// From this resource version on.
    Watch(Resource, String),
}

/// The receiver is gone.
struct Closed;

impl Watch {
    pub(super) fn new(client: Client, kind: Kind, beside: Beside, tell: mpsc::Sender<Told>) -> Self {
        let backoff = Backoff::new(Duration::from_millis(250), Duration::from_secs(10));
        Self { client, kind, objects: Objects::new(kind, beside), tell, backoff, missing: false, pages: true }
    }

    /// Until nobody listens any more.
    pub(super) async fn run(mut self) {
        let mut step = Step::Find;
        loop {
            let next = match step {
                Step::Find => self.find().await,
                Step::List(resource) => self.list(resource).await,
                Step::Watch(resource, from) => self.watch(resource, from).await,
            };
            match next {
                Ok(next) => step = next,
                Err(Closed) => return,
            }
        }
    }

    async fn find(&mut self) -> Result<Step, Closed> {
        match in_time(resource::find(&self.client, self.kind)).await {
            Ok(Some(resource)) => {
                self.missing = false;
                Ok(Step::List(resource))
            }
            Ok(None) => {
                // A server that has just started may not know all of its kinds. It is believed the second time.
                if std::mem::replace(&mut self.missing, true) {
                    let mut events = Vec::new();
                    self.objects.clear(&mut events);
                    self.tell(events).await?;
                }
                self.stand(Standing::Missing).await?;
                sleep(about(LOOK)).await;
                Ok(Step::Find)
            }
            Err(failed) => self.failed("get", &self.kind.to_string(), failed, Step::Find).await,
        }
    }

    async fn list(&mut self, resource: Resource) -> Result<Step, Closed> {
        self.objects.begin();
        let mut continued = None;
        loop {
            let params = ListParams {
                field_selector: resource::field_selector(self.kind),
                limit: self.pages.then_some(PAGE),
                continue_token: continued,
                ..ListParams::default()
            };
            let page = async {
                let request = kube::core::Request::new(resource.path()).list(&params).map_err(Error::BuildRequest)?;
                self.client.request::<ObjectList<Value>>(request).await
            };
            let page = match in_time(page).await {
                Ok(page) => page,
                Err(Failed::Api(code, _)) if code == 410 && self.pages => {
                    self.pages = false;
                    return Ok(Step::List(resource));
                }
                Err(failed) => {
                    let name = resource.name();
                    return self.failed("list", &name, failed, Step::List(resource)).await;
                }
            };
            let mut events = Vec::new();
            for json in page.items {
                self.objects.take(&resource, json, &mut events);
            }
            continued = page.metadata.continue_.filter(|token| !token.is_empty());
            if continued.is_some() {
                self.tell(events).await?;
                continue;
            }
            self.objects.end(&mut events);
            self.tell(events).await?;
            self.stand(Standing::Listed).await?;
            self.pages = true;
            return match page.metadata.resource_version.filter(|version| !version.is_empty()) {
                Some(version) => Ok(Step::Watch(resource, version)),
                None => {
                    let failed = Failed::Other("the list has no resourceVersion".to_owned());
                    let name = resource.name();
                    self.failed("list", &name, failed, Step::List(resource)).await
                }
            };
        }
    }

    async fn watch(&mut self, resource: Resource, mut from: String) -> Result<Step, Closed> {
        let began = Instant::now();
        let lasts = about(WATCH);
        let params = WatchParams {
            field_selector: resource::field_selector(self.kind),
            timeout: u32::try_from(lasts.as_secs()).ok(),
            ..WatchParams::default()
        };
        let started = async {
            let request =
                kube::core::Request::new(resource.path()).watch(&params, &from).map_err(Error::BuildRequest)?;
            self.client.request_events::<Value>(request).await
        };
        let stream = match in_time(started).await {
            Ok(stream) => stream,
            Err(Failed::Api(410, _)) => return self.again(resource, began).await,
            Err(failed) => {
                let name = resource.name();
                return self.failed("watch", &name, failed, Step::Watch(resource, from)).await;
            }
        };
        let mut stream = pin!(stream);
        self.stand(Standing::Watched).await?;
        loop {
            // A dead connection is noticed when the end of the watch is overdue.
            let left = (lasts + GRACE).saturating_sub(began.elapsed());
            let event = match timeout(left, stream.next()).await {
                Ok(Some(Ok(event))) => event,
                Ok(None) | Err(_) => {
                    return match began.elapsed() < SHORT {
                        true => {
                            sleep(self.backoff.failed()).await;
                            Ok(Step::Watch(resource, from))
                        }
                        false => Ok(Step::Watch(resource, from)),
                    };
                }
                Ok(Some(Err(error))) => {
                    let name = resource.name();
                    return self.failed("watch", &name, error.into(), Step::Watch(resource, from)).await;
                }
            };
            let mut events = Vec::new();
            match event {
                WatchEvent::Added(json) | WatchEvent::Modified(json) => {
                    version_of(&json, &mut from);
                    self.objects.take(&resource, json, &mut events);
                }
                WatchEvent::Deleted(json) => {
                    version_of(&json, &mut from);
                    self.objects.remove(&json, &mut events);
                }
                WatchEvent::Bookmark(bookmark) => from = bookmark.metadata.resource_version,
                WatchEvent::Error(status) if status.code == 410 => return self.again(resource, began).await,
                // Whatever it is, a new list tells where it stands, and what has not changed costs nothing.
                WatchEvent::Error(status) => {
                    let name = resource.name();
                    let failed = Failed::Api(status.code, status.message);
                    return self.failed("watch", &name, failed, Step::List(resource)).await;
                }
            }
            self.backoff.succeeded();
            self.tell(events).await?;
        }
    }

    /// The server has forgotten the version that the watch was to go on from.
    async fn again(&mut self, resource: Resource, began: Instant) -> Result<Step, Closed> {
        tracing::info!(kind = %self.kind, "the API server has forgotten what was read last: reading all of it again");
        if began.elapsed() < SHORT {
            sleep(self.backoff.failed()).await;
        }
        Ok(Step::List(resource))
    }

    /// Says why it failed, and waits before `again`.
    async fn failed(&mut self, verb: &'static str, name: &str, failed: Failed, again: Step) -> Result<Step, Closed> {
        let failure = match failed {
            // The kind, or its version, is served no more.
            Failed::Api(404, _) if !resource::is_built_in(self.kind) => {
                sleep(self.backoff.failed()).await;
                return Ok(Step::Find);
            }
            Failed::Api(403, message) => Failure::Forbidden { verb, resource: name.to_owned(), message },
            Failed::Api(401, message) => {
                Failure::Server(format!("it does not accept the credentials of the control plane (401: {message})"))
            }
            Failed::Api(code, message) if code == 429 || code >= 500 => Failure::Server(format!("{code}: {message}")),
            Failed::Api(code, message) => Failure::Refused(format!("{code}: {message}")),
            Failed::Unanswered(message) => Failure::Server(message),
            Failed::Other(message) => Failure::Refused(message),
        };
        self.stand(Standing::Failed(failure)).await?;
        sleep(self.backoff.failed()).await;
        Ok(again)
    }

    async fn tell(&self, events: Vec<Event>) -> Result<(), Closed> {
        match events.is_empty() {
            true => Ok(()),
            false => self.tell.send(Told::Events(events)).await.map_err(|_| Closed),
        }
    }

    async fn stand(&mut self, standing: Standing) -> Result<(), Closed> {
        if matches!(standing, Standing::Listed) {
            self.backoff.succeeded();
        }
        self.tell.send(Told::Standing(self.kind, standing)).await.map_err(|_| Closed)
    }
}

/// Why a request failed.
enum Failed {
    /// The server says so: the HTTP status and its words.
    Api(u16, String),
    /// There was no answer.
    Unanswered(String),
    /// The answer is none.
    Other(String),
}

impl From<Error> for Failed {
    fn from(error: Error) -> Self {
        match error {
            Error::Api(status) => Self::Api(status.code, status.message),
            Error::SerdeError(error) => Self::Other(format!("the answer cannot be read: {error}")),
            error => Self::Unanswered(causes(&error)),
        }
    }
}

/// An error's own words and those of the causes below it: the last one tells most.
fn causes(error: &dyn std::error::Error) -> String {
    let mut text = error.to_string();
    let mut below = error.source();
    while let Some(error) = below {
        let words = error.to_string();
        if !text.ends_with(&words) {
            text = format!("{text}: {words}");
        }
        below = error.source();
    }
    text
}

async fn in_time<T>(request: impl Future<Output = Result<T, Error>>) -> Result<T, Failed> {
    match timeout(ANSWER, request).await {
        Ok(answer) => answer.map_err(Failed::from),
        Err(_) => Err(Failed::Unanswered(format!("no answer within {ANSWER:?}"))),
    }
}

/// Where the watch goes on after an event.
fn version_of(json: &Value, from: &mut String) {
    let version = json.get("metadata").and_then(|metadata| metadata.get("resourceVersion")).and_then(Value::as_str);
    if let Some(version) = version {
        version.clone_into(from);
    }
}
