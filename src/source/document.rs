//! One file's text becomes objects, each document for itself.
//!
//! ```text
//!  text ──yaml──▶ Tree ──which object?──▶ its type (Manifest::read) ──▶ convert ──▶ Outcome
//!                   └── kind: List ──▶ each item as if it were a document
//! ```

use std::path::PathBuf;
use std::sync::Arc;

use serde_json::Value;

use crate::mesh::object::Object;
use crate::mesh::{Diagnostic, Kind, Location, ObjectRef};
use crate::nearest::nearest;

use super::convert::{Converted, convert};
use super::manifest::{FieldError, Manifest, VERSIONS, Version, is_namespaced};
use super::unknown;
use super::yaml::{self, Node, Tree};

/// An object that can be used.
#[derive(Clone, Debug, PartialEq)]
pub(crate) struct Document {
    /// Where the document begins.
    pub(crate) location: Location,
    pub(crate) manifest: Arc<Manifest>,
    pub(crate) object: Option<Object>,
    pub(crate) warnings: Vec<Diagnostic>,
}

/// What one document comes to.
#[derive(Debug)]
pub(crate) enum Outcome {
    /// An object.
    Usable(Box<Document>),
    /// An object that can be told, but not used.
    Rejected(ObjectRef, Vec<Diagnostic>),
    /// Nothing that can be told: a syntax error, or an object without a name.
    Illegible(Diagnostic),
    /// An object of a kind that Weft has no use for: its `apiVersion` and `kind`.
    Unknown(String, String, Diagnostic),
}

/// Reads all documents of a file. Empty ones are passed over.
pub(crate) fn read(file: &Arc<PathBuf>, text: &str) -> Vec<Outcome> {
    let text = yaml::normalise(text);
    let mut reader = Reader { file: file.clone(), outcomes: Vec::new() };
    for chunk in yaml::documents(&text) {
        match chunk.parse() {
            Ok(tree) => reader.document(&tree, None),
            Err(error) => {
                let help = "correct the YAML; the other documents of the file are read without it";
                let diagnostic = Diagnostic::error("", format!("the document is not YAML: {}", error.reason), help);
                reader.outcomes.push(Outcome::Illegible(diagnostic.at(reader.at(error.line))));
            }
        }
    }
    reader.outcomes
}

/// The line of a field of an object, in the text of the file that holds it; `None` if it does not.
pub(super) fn line_of(text: &str, object: &ObjectRef, field: &str) -> Option<u32> {
    let text = yaml::normalise(text);
    let trees = yaml::documents(&text).into_iter().filter_map(|chunk| chunk.parse().ok()).collect::<Vec<_>>();
    let objects = trees.iter().flat_map(|tree| match tree.get("items").map(|items| &items.node) {
        Some(Node::Sequence(items)) => items.iter().collect(),
        _ => vec![tree],
    });
    let is = |tree: &&Tree| {
        let metadata = |key: &str| tree.get("metadata").and_then(|metadata| metadata.get(key)?.as_str());
        let namespace = metadata("namespace").filter(|namespace| !namespace.is_empty()).unwrap_or("default");
        // The items of a `PodList` need not say what they are.
        tree.get("kind").and_then(Tree::as_str).is_none_or(|kind| kind == object.kind.to_string())
            && metadata("name") == Some(&*object.name)
            && object.namespace.as_ref().is_none_or(|expected| expected.as_str() == namespace)
    };
    objects.into_iter().find(is).map(|tree| tree.line_of(field))
}

struct Reader {
    file: Arc<PathBuf>,
    outcomes: Vec<Outcome>,
}

impl Reader {
    fn at(&self, line: u32) -> Location {
        Location { file: self.file.clone(), line }
    }

    fn illegible(&mut self, tree: &Tree, field: &str, reason: impl Into<String>, help: impl Into<String>) {
        let diagnostic = Diagnostic::error(field, reason, help).at(self.at(tree.line_of(field)));
        self.outcomes.push(Outcome::Illegible(diagnostic));
    }

    /// A document, or an item of a list of the type `listed`: items of a `PodList` need not repeat it, and for those
    /// of a plain `List` it is empty.
    fn document(&mut self, tree: &Tree, listed: Option<(&str, &str)>) {
        match &tree.node {
            Node::Null if listed.is_none() => return,
            Node::Mapping(entries) if entries.is_empty() && listed.is_none() => return,
            Node::Mapping(_) => {}
            _ => {
                let help = "write a mapping with apiVersion, kind and metadata";
                return self.illegible(tree, "", "the document is not a Kubernetes object", help);
            }
        }
        let text = |key: &str| tree.get(key).and_then(Tree::as_str).filter(|text| !text.is_empty());
        let Some(api_version) =
            text("apiVersion").or(listed.map(|(version, _)| version).filter(|version| !version.is_empty()))
        else {
            return self.illegible(
                tree,
                "apiVersion",
                "apiVersion is missing or not text",
                "set it, as in `apiVersion: v1`",
            );
        };
        let Some(kind) = text("kind").or(listed.map(|(_, kind)| kind).filter(|kind| !kind.is_empty())) else {
            return self.illegible(tree, "kind", "kind is missing or not text", "set it, as in `kind: Service`");
        };
        if let Some(listed) = kind.strip_suffix("List") {
            return self.list(tree, (!listed.is_empty()).then_some((api_version, listed)));
        }
        match recognise(api_version, kind) {
            Recognised::As(kind, version) => {
                if let Some(object) = self.identify(tree, kind) {
                    self.object(tree, object, version, (api_version, kind));
                }
            }
            Recognised::WrongVersion(kind, right) => {
                if let Some(object) = self.identify(tree, kind) {
                    let reason = format!("{kind} is not read as {api_version}");
                    let diagnostic = Diagnostic::error("apiVersion", reason, format!("write it as {right}"));
                    let at = self.at(tree.line_of("apiVersion"));
                    self.outcomes.push(Outcome::Rejected(object.clone(), vec![diagnostic.about(object).at(at)]));
                }
            }
            Recognised::Unknown => {
                let reason =
                    format!("Weft does not read the kind {kind} of {api_version}, and passes over such objects");
                let siblings = VERSIONS.iter().filter(|(_, version, _)| *version == api_version);
                let siblings: Vec<String> = siblings.map(|(kind, _, _)| kind.to_string()).collect();
                let help = match nearest(kind, siblings.iter().map(String::as_str)) {
                    Some(meant) => format!("did you mean `{meant}`? Then correct the name"),
                    None => "leave it if it is not meant for Weft; this is said once".to_owned(),
                };
                let diagnostic = Diagnostic::warning("kind", reason, help).at(self.at(tree.line_of("kind")));
                self.outcomes.push(Outcome::Unknown(api_version.to_owned(), kind.to_owned(), diagnostic));
            }
        }
    }

    fn list(&mut self, tree: &Tree, items_are: Option<(&str, &str)>) {
        match tree.get("items").map(|items| &items.node) {
            Some(Node::Sequence(items)) => items.iter().for_each(|item| {
                // An item without content is as broken as one of another type: `document` says so.
                self.document(item, Some(items_are.unwrap_or(("", ""))));
            }),
            Some(Node::Null) | None => {}
            Some(_) => self.illegible(tree, "items", "the items of the list are not a sequence", "write each as `- …`"),
        }
    }

    /// The object's name and namespace, checked as an API server would.
    fn identify(&mut self, tree: &Tree, kind: Kind) -> Option<ObjectRef> {
        let metadata = tree.get("metadata");
        let field = |key: &str| metadata.and_then(|metadata| metadata.get(key));
        let Some(name) = field("name").filter(|name| !matches!(name.node, Node::Null)) else {
            let help = match field("generateName") {
                Some(_) => "set metadata.name; generateName needs an API server",
                None => "set metadata.name",
            };
            self.illegible(tree, "metadata.name", format!("the {kind} has no name"), help);
            return None;
        };
        let Some(name) = name.as_str() else {
            let help = "put the name in quotes";
            self.illegible(tree, "metadata.name", format!("the name of the {kind} is not text"), help);
            return None;
        };
        // RFC 1123 subdomains, and labels for what becomes a DNS label.
        let longest = if matches!(kind, Kind::Service | Kind::Namespace) { 63 } else { 253 };
        let dotted = !matches!(kind, Kind::Service | Kind::Namespace);
        if !is_dns_name(name, longest, dotted) {
            let help = format!("use a-z, 0-9 and `-`{}, at most {longest}", if dotted { " and `.`" } else { "" });
            self.illegible(tree, "metadata.name", format!("`{name}` is not the name of a {kind}"), help);
            return None;
        }
        let namespace = match field("namespace").map(|namespace| (&namespace.node, namespace.as_str())) {
            _ if !is_namespaced(kind) => None,
            None | Some((Node::Null, _) | (_, Some(""))) => Some("default".into()),
            Some((_, Some(namespace))) if is_dns_name(namespace, 63, false) => Some(namespace.into()),
            Some(_) => {
                let help = "use a-z, 0-9 and `-`, at most 63, as text";
                self.illegible(tree, "metadata.namespace", "the namespace is not the name of one", help);
                return None;
            }
        };
        Some(ObjectRef { kind, namespace, name: name.into() })
    }

    fn object(&mut self, tree: &Tree, object: ObjectRef, version: Version, named: (&str, Kind)) {
        let place = |diagnostic: Diagnostic| {
            let at = self.at(tree.line_of(&diagnostic.field));
            diagnostic.about(object.clone()).at(at)
        };
        let mut json = tree.to_json();
        complete(&mut json, &object, named);
        let manifest = match Manifest::read(version, json.clone()) {
            Ok(manifest) => manifest,
            Err(error) => {
                let diagnostics = vec![place(type_error(error))];
                return self.outcomes.push(Outcome::Rejected(object, diagnostics));
            }
        };
        let unknown = unknown::find(&json, &manifest);
        let outcome = match convert(&manifest) {
            Ok(Converted { object, warnings }) if unknown.errors.is_empty() => Outcome::Usable(Box::new(Document {
                location: self.at(tree.line),
                warnings: warnings.into_iter().chain(unknown.warnings).map(place).collect(),
                manifest: Arc::new(manifest),
                object,
            })),
            converted => {
                let found = converted.err().into_iter().flatten().chain(unknown.errors);
                Outcome::Rejected(object.clone(), found.map(place).collect())
            }
        };
        self.outcomes.push(outcome);
    }
}

enum Recognised {
    As(Kind, Version),
    /// A kind that is read, in another version: the version to use.
    WrongVersion(Kind, &'static str),
    Unknown,
}

fn recognise(api_version: &str, kind: &str) -> Recognised {
    let of_kind = || VERSIONS.iter().filter(|(known, _, _)| known.to_string() == kind);
    if let Some((kind, _, version)) = of_kind().find(|(_, version, _)| *version == api_version) {
        return Recognised::As(*kind, *version);
    }
    let group = |version: &str| version.split_once('/').map_or(String::new(), |(group, _)| group.to_owned());
    // `apps/v1 Service` is a slip; `serving.knative.dev/v1 Service` is somebody else's kind.
    let written = group(api_version);
    match of_kind().next_back() {
        Some((kind, right, _)) if group(right) == written || !written.contains('.') => {
            Recognised::WrongVersion(*kind, right)
        }
        _ => Recognised::Unknown,
    }
}

fn is_dns_name(name: &str, longest: usize, dotted: bool) -> bool {
    let alphanumeric = |c: char| c.is_ascii_lowercase() || c.is_ascii_digit();
    let label = |label: &str| {
        label.chars().all(|c| alphanumeric(c) || c == '-')
            && label.starts_with(alphanumeric)
            && label.ends_with(alphanumeric)
    };
    name.len() <= longest && if dotted { name.split('.').all(label) } else { label(name) }
}

/// Fills in what the document may leave out: the type of a list's item, and the namespace.
pub(super) fn complete(json: &mut Value, object: &ObjectRef, (api_version, kind): (&str, Kind)) {
    json["apiVersion"] = api_version.into();
    json["kind"] = kind.to_string().into();
    if let Some(namespace) = &object.namespace {
        json["metadata"]["namespace"] = namespace.as_str().into();
    }
    // Other kinds use these words for something else.
    if matches!(object.kind, Kind::Pod | Kind::Deployment) {
        quantities(json);
    }
}

/// Writes numbers of resource quantities (`cpu: 1`) as text, which is how their type reads them.
fn quantities(json: &mut Value) {
    match json {
        Value::Object(fields) => {
            for (name, value) in fields {
                match value {
                    Value::Object(amounts) if matches!(name.as_str(), "limits" | "requests") => {
                        for amount in amounts.values_mut().filter(|amount| amount.is_number()) {
                            *amount = amount.to_string().into();
                        }
                    }
                    _ => quantities(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(quantities),
        _ => {}
    }
}

/// serde's words as a diagnostic. Weft's own types give the help after a semicolon.
pub(super) fn type_error(FieldError { field, message }: FieldError) -> Diagnostic {
    if let Some(missing) = message.strip_prefix("missing field `").and_then(|rest| rest.strip_suffix('`')) {
        let field = if field.is_empty() { missing.to_owned() } else { format!("{field}.{missing}") };
        return Diagnostic::error(field, "the field is missing", "set it");
    }
    if let Some((reason, help)) = message.split_once("; ") {
        return Diagnostic::error(field, reason, help);
    }
    let help = match message.ends_with("expected a string") || message.ends_with("expected std::string::String") {
        true => "put the value in quotes",
        false => "correct the value; `kubectl explain` tells the field's type",
    };
    Diagnostic::error(field, message, help)
}

pub(super) fn unknown_field(kind: Kind, field: String) -> Diagnostic {
    let reason = format!("{kind} has no such field, and it is not used");
    Diagnostic::warning(field, reason, "correct its name or its indentation, or remove it")
}

/// The fields of `written` that did not survive being read: the type does not have them.
pub(super) fn unknown_fields(written: &Value, read: &Value, path: &str, found: &mut Vec<String>) {
    match (written, read) {
        (Value::Object(written), Value::Object(read)) => {
            for (key, value) in written {
                let field = if path.is_empty() { key.clone() } else { format!("{path}.{key}") };
                // The API server's own fields, in a dump: `status` of a custom resource, and what is deprecated.
                if matches!(field.as_str(), "status" | "metadata.managedFields" | "metadata.selfLink") {
                    continue;
                }
                match read.get(key) {
                    Some(read) => unknown_fields(value, read, &field, found),
                    None if is_empty(value) => {}
                    None => found.push(field),
                }
            }
        }
        (Value::Array(written), Value::Array(read)) => {
            for (index, (written, read)) in written.iter().zip(read).enumerate() {
                unknown_fields(written, read, &format!("{path}[{index}]"), found);
            }
        }
        _ => {}
    }
}

/// Not set, as far as Kubernetes is concerned.
fn is_empty(value: &Value) -> bool {
    match value {
        Value::Null => true,
        Value::Object(fields) => fields.is_empty(),
        Value::Array(items) => items.is_empty(),
        Value::String(text) => text.is_empty(),
        _ => false,
    }
}
