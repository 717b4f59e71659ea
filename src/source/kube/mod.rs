//! A Kubernetes API server as a source.
//!
//! ```text
//!  one task a kind:  find ─▶ list ─▶ watch ─▶ … ──watch──▶ [Event], Standing ──standing (pure)──▶ [Event] ──▶ channel
//!                    which version     │                        ▲
//!                    is served?        └─▶ objects (pure): what is new of an object, what is gone
//! ```
//!
//! - Nothing of an object is kept but what the mesh uses, and of all others the hash of what was seen last.
//! - A list that is cut short applies what it brought and removes nothing; what a complete list does not have is gone.
//! - A watch that ends goes on where it was; if the server no longer knows that version (410), the kind is listed
//!   again, and what has not changed costs nothing.
//! - A kind whose CustomResourceDefinition is missing is said once and looked for; it holds up no other. A kind that may
//!   not be read does hold up the beginning: half a policy is worse than a sidecar that waits.

mod meshed;
mod objects;
mod observed;
mod resource;
mod standing;
#[cfg(test)]
mod tests;
mod watch;

use std::sync::Arc;

use kube::Client;
use tokio::sync::mpsc;
use tokio::task::JoinSet;

use super::Event;
pub use meshed::MeshedNamespaces;
pub use observed::ObservedObjects;
use resource::KINDS;
use standing::Standings;
use watch::{Told, Watch};

/// How many messages of the kinds' tasks are told as one batch.
const BATCH: usize = 256;

/// An API server as a source of events.
#[derive(Clone)]
pub struct KubeSource {
    client: Client,
    beside: Beside,
}

/// What is told beside the events.
#[derive(Clone, Debug, Default)]
struct Beside {
    meshed: Arc<MeshedNamespaces>,
    observed: Arc<ObservedObjects>,
}

impl std::fmt::Debug for KubeSource {
    fn fmt(&self, f: &mut std::fmt::Formatter<'_>) -> std::fmt::Result {
        f.debug_struct("KubeSource").finish_non_exhaustive()
    }
}

impl KubeSource {
    /// The API server that `client` talks to. Nothing is read before [`KubeSource::run`].
    pub fn new(client: Client) -> Self {
        Self { client, beside: Beside::default() }
    }

    /// The namespaces that have, or may have, pods with a sidecar.
    pub fn meshed(&self) -> Arc<MeshedNamespaces> {
        self.beside.meshed.clone()
    }

    /// What the API server says of the objects of SMI and of Weft.
    pub fn observed(&self) -> Arc<ObservedObjects> {
        self.beside.observed.clone()
    }

    /// Lists and watches every kind, and sends a batch of events for what changes, until the receiver is dropped.
    /// [`Event::Synced`] follows when every kind was listed once.
    pub async fn run(self, events: mpsc::Sender<Vec<Event>>) {
        // A page of a list is one message, and few wait: the server's answers wait in the connection.
        let (tell, mut told) = mpsc::channel(4);
        let mut kinds = JoinSet::new();
        for kind in KINDS {
            let watch = Watch::new(self.client.clone(), kind, self.beside.clone(), tell.clone());
            kinds.spawn(watch.run());
        }
        drop(tell);
        let mut standings = Standings::new(KINDS);
        let mut messages = Vec::new();
        loop {
            tokio::select! {
                count = told.recv_many(&mut messages, BATCH) => if count == 0 { return },
                () = events.closed() => return,
            }
            let mut batch = Vec::new();
            for message in messages.drain(..) {
                match message {
                    Told::Events(events) => batch.extend(events),
                    Told::Standing(kind, standing) => batch.extend(standings.note(kind, standing)),
                }
            }
            if !batch.is_empty() && events.send(batch).await.is_err() {
                return;
            }
        }
    }
}
