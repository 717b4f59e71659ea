//! What the authors of objects should know, kept so that only what is new is told.

use std::collections::HashMap;

use crate::mesh::Diagnostic;

/// Counts how many plans say the same: a thousand pods of one account find the same fault in a TrafficTarget.
#[derive(Debug, Default)]
pub(super) struct Findings {
    said: HashMap<Diagnostic, usize>,
    /// Since the last [`Findings::settle`].
    added: Vec<Diagnostic>,
    dropped: Vec<Diagnostic>,
}

impl Findings {
    pub(super) fn add(&mut self, findings: impl IntoIterator<Item = Diagnostic>) {
        self.added.extend(findings);
    }

    pub(super) fn drop(&mut self, findings: impl IntoIterator<Item = Diagnostic>) {
        self.dropped.extend(findings);
    }

    /// What is said now and was not at the last call. What one plan ceases to say and another begins to is not new.
    pub(super) fn settle(&mut self) -> Vec<Diagnostic> {
        let mut new = Vec::new();
        for finding in self.added.drain(..) {
            let count = self.said.entry(finding.clone()).or_default();
            *count += 1;
            if *count == 1 {
                new.push(finding);
            }
        }
        for finding in self.dropped.drain(..) {
            if let Some(count) = self.said.get_mut(&finding) {
                *count -= 1;
                if *count == 0 {
                    self.said.remove(&finding);
                }
            }
        }
        new
    }

    /// All that is said, ordered by object.
    pub(super) fn all(&self) -> Vec<Diagnostic> {
        let mut all: Vec<Diagnostic> = self.said.keys().cloned().collect();
        all.sort_by(|a, b| (&a.object, &a.field, &a.reason).cmp(&(&b.object, &b.field, &b.reason)));
        all
    }
}
