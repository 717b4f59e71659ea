//! The objects of one kind: what is new of one, and what is gone. Pure.
//!
//! ```text
//!  begin ─▶ take (each object of the list) ─▶ end: what the list did not have is gone
//!           take, remove (each event of the watch)
//! ```

use std::collections::HashMap;
use std::sync::Arc;

use serde_json::Value;
use xxhash_rust::xxh3::xxh3_64;

use crate::mesh::{Diagnostic, Kind, ObjectRef};
use crate::source::Event;
use crate::source::convert::{self, Converted};
use crate::source::document::{complete, type_error, unknown_field, unknown_fields};
use crate::source::manifest::{Manifest, is_namespaced};

use super::Beside;
use super::meshed::MeshedNamespaces;
use super::resource::{Resource, is_built_in};

/// What is remembered of the objects of a kind: little, since there may be ten thousands of them.
#[derive(Debug)]
pub(super) struct Objects {
    kind: Kind,
    known: HashMap<ObjectRef, Known>,
    /// The number of the list that is being read, or was read last.
    list: u32,
    beside: Beside,
}

#[derive(Debug, Default)]
struct Known {
    /// The hash of the version that was seen last.
    seen: u64,
    /// The list that had it last.
    list: u32,
    /// What was said to be wrong with it.
    said: Vec<Diagnostic>,
    /// It is a pod with a sidecar.
    sidecar: bool,
}

impl Objects {
    pub(super) fn new(kind: Kind, beside: Beside) -> Self {
        Self { kind, known: HashMap::new(), list: 0, beside }
    }

    /// A list begins.
    pub(super) fn begin(&mut self) {
        self.list = self.list.wrapping_add(1);
    }

    /// The list is complete: what it did not have is gone.
    pub(super) fn end(&mut self, events: &mut Vec<Event>) {
        let list = self.list;
        self.drop_if(|known| known.list != list, events);
    }

    /// The kind itself is gone, and all its objects with it.
    pub(super) fn clear(&mut self, events: &mut Vec<Event>) {
        self.drop_if(|_| true, events);
    }

    /// An object as a list or a watch has it. It need not be well-formed: then it is told so, and its last good version
    /// stays.
    pub(super) fn take(&mut self, resource: &Resource, mut json: Value, events: &mut Vec<Event>) {
        let Some(object) = self.identify(&json) else { return };
        let seen = version(resource, &json);
        let known = self.known.entry(object.clone()).or_default();
        known.list = self.list;
        if std::mem::replace(&mut known.seen, seen) == seen {
            return;
        }
        self.beside.observed.seen(&object, resource, &json);
        if let Some(metadata) = json.get_mut("metadata").and_then(Value::as_object_mut) {
            metadata.remove("managedFields");
        }
        complete(&mut json, &object, (resource.api_version, self.kind));
        match read(self.kind, resource, json) {
            Ok((manifest, Converted { object: converted, warnings })) => {
                known.said.clear();
                note_meshed(&self.beside.meshed, &manifest, known);
                events.push(Event::Apply { manifest: Arc::new(manifest), object: converted, warnings });
            }
            Err(found) => {
                let found: Vec<_> = found.into_iter().map(|found| found.about(object.clone())).collect();
                events.extend(found.iter().filter(|found| !known.said.contains(found)).cloned().map(Event::Rejected));
                known.said = found;
            }
        }
    }

    /// The object is gone, whether or not it is well-formed.
    pub(super) fn remove(&mut self, json: &Value, events: &mut Vec<Event>) {
        let Some(object) = self.identify(json) else { return };
        if let Some(known) = self.known.remove(&object) {
            self.forget(&object, &known);
            events.push(Event::Delete(object));
        }
    }

    fn drop_if(&mut self, gone: impl Fn(&Known) -> bool, events: &mut Vec<Event>) {
        let dropped: Vec<_> = self.known.extract_if(|_, known| gone(known)).collect();
        for (object, known) in dropped {
            self.forget(&object, &known);
            events.push(Event::Delete(object));
        }
    }

    fn forget(&self, object: &ObjectRef, known: &Known) {
        self.beside.observed.gone(object);
        match &object.namespace {
            Some(namespace) if known.sidecar => self.beside.meshed.pod_ends(namespace.as_str()),
            None if self.kind == Kind::Namespace => self.beside.meshed.label(&object.name, false),
            _ => {}
        }
    }

    /// Which object it is. The server gives every object a name.
    fn identify(&self, json: &Value) -> Option<ObjectRef> {
        let metadata = |field: &str| json.get("metadata")?.get(field)?.as_str();
        let namespace = match is_namespaced(self.kind) {
            true => Some(metadata("namespace")?.into()),
            false => None,
        };
        Some(ObjectRef { kind: self.kind, namespace, name: metadata("name")?.into() })
    }
}

/// Tells one version of an object, as it is read, from all others.
fn version(resource: &Resource, json: &Value) -> u64 {
    let metadata = |field: &str| json.get("metadata").and_then(|metadata| metadata.get(field)).and_then(Value::as_str);
    let parts = [Some(resource.api_version), metadata("uid"), metadata("resourceVersion")];
    xxh3_64(parts.map(Option::unwrap_or_default).join(" ").as_bytes())
}

/// As the directory source reads a document.
fn read(kind: Kind, resource: &Resource, json: Value) -> Result<(Manifest, Converted), Vec<Diagnostic>> {
    // A newer server's own kinds have fields that Weft does not know; of the others' fields it knows all.
    let written = (!is_built_in(kind)).then(|| json.clone());
    let manifest = Manifest::read(resource.version, json).map_err(|error| vec![type_error(error)])?;
    let mut converted = convert::convert(&manifest)?;
    if let Some(written) = written {
        let mut unknown = Vec::new();
        unknown_fields(&written, &manifest.to_json(), "", &mut unknown);
        let about = |field| unknown_field(manifest.kind(), field).about(manifest.object_ref());
        converted.warnings.extend(unknown.into_iter().map(about));
    }
    Ok((manifest, converted))
}

fn note_meshed(meshed: &MeshedNamespaces, manifest: &Manifest, known: &mut Known) {
    match manifest {
        Manifest::Namespace(namespace) => {
            let name = namespace.metadata.name.as_deref().unwrap_or_default();
            meshed.label(name, convert::is_meshed(namespace));
        }
        Manifest::Pod(pod) => {
            let namespace = pod.metadata.namespace.as_deref().unwrap_or_default();
            match (known.sidecar, convert::has_sidecar(pod)) {
                (false, true) => meshed.pod_begins(namespace),
                (true, false) => meshed.pod_ends(namespace),
                _ => {}
            }
            known.sidecar = convert::has_sidecar(pod);
        }
        _ => {}
    }
}
