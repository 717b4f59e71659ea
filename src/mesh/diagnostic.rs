//! What is wrong with an object, said so that its author can mend it.

use std::fmt;
use std::path::PathBuf;
use std::sync::Arc;

use super::ObjectRef;

/// Where a document stands in a watched directory. The API server has no such place: there it is absent.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Location {
    /// The file, as given by the user.
    pub file: Arc<PathBuf>,
    /// The line of the field or document, from 1.
    pub line: u32,
}

impl fmt::Display for Location {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        write!(f, "{}:{}", self.file.display(), self.line)
    }
}

/// How much a diagnostic matters.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Hash, Debug)]
pub enum Severity {
    /// The object is used, except for what the message names.
    Warning,
    /// The object is not used; its last good version, if there is one, stays.
    Error,
}

/// One finding about one object: which, where, which field, why, and what to do about it.
#[derive(Clone, PartialEq, Eq, Hash, Debug)]
pub struct Diagnostic {
    /// Whether the object is used in spite of it.
    pub severity: Severity,
    /// The object; `None` when the document is too broken to tell.
    pub object: Option<ObjectRef>,
    /// Where it was read.
    pub location: Option<Location>,
    /// The path of the field, as `kubectl explain` writes it: `spec.ports[0].port`. Empty when the whole is meant.
    pub field: String,
    /// What is wrong, as one sentence without a full stop.
    pub reason: String,
    /// What to do, as an imperative sentence without a full stop.
    pub help: String,
}

impl Diagnostic {
    /// A finding that keeps the object out.
    pub fn error(field: impl Into<String>, reason: impl Into<String>, help: impl Into<String>) -> Self {
        Self {
            severity: Severity::Error,
            object: None,
            location: None,
            field: field.into(),
            reason: reason.into(),
            help: help.into(),
        }
    }

    /// A finding that leaves the object in use.
    pub fn warning(field: impl Into<String>, reason: impl Into<String>, help: impl Into<String>) -> Self {
        Self { severity: Severity::Warning, ..Self::error(field, reason, help) }
    }

    /// The same finding, about `object`.
    #[must_use]
    pub fn about(self, object: ObjectRef) -> Self {
        Self { object: Some(object), ..self }
    }

    /// The same finding, at `location`.
    #[must_use]
    pub fn at(self, location: Location) -> Self {
        Self { location: Some(location), ..self }
    }
}

/// `shop.yaml:12: Service shop/cart: spec.ports[0].port: REASON; HELP`, leaving out what is not known.
impl fmt::Display for Diagnostic {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        if let Some(location) = &self.location {
            write!(f, "{location}: ")?;
        }
        if let Some(object) = &self.object {
            write!(f, "{object}: ")?;
        }
        if !self.field.is_empty() {
            write!(f, "{}: ", self.field)?;
        }
        write!(f, "{}; {}", self.reason, self.help)
    }
}
