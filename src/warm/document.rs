//! Warm sets as JSON: `{"version":1,"workloads":{"shop/web":{"cart.shop:80":{"since":…,"alive":…}}}}`.
//!
//! Fields that a later Weft adds are ignored; what cannot be read by an earlier one gets another version.

use std::collections::BTreeMap;

use serde::{Deserialize, Serialize};

use super::{Moment, Seen, WarmSets};
use crate::mesh::{Upstream, UpstreamError, WorkloadKey};

const VERSION: u64 = 1;

/// Why a document cannot be read.
#[derive(Debug, thiserror::Error)]
pub enum DocumentError {
    /// It is no JSON, or of another form.
    #[error("they are not warm sets: {0}")]
    Form(#[from] serde_json::Error),
    /// A key is no workload.
    #[error("`{0}` is no workload (NAMESPACE/NAME)")]
    Workload(String),
    /// A key is no destination.
    #[error(transparent)]
    Upstream(#[from] UpstreamError),
    /// A later Weft wrote it.
    #[error("version {0} is of a later Weft; this one reads version {VERSION}")]
    Newer(u64),
}

#[derive(Deserialize)]
struct Versioned {
    version: u64,
}

#[derive(Serialize, Deserialize)]
struct Document {
    version: u64,
    workloads: BTreeMap<String, BTreeMap<String, Times>>,
}

#[derive(Serialize, Deserialize)]
struct Times {
    since: Moment,
    alive: Moment,
}

/// The document of `sets`; equal sets have equal documents.
pub(crate) fn encode(sets: &WarmSets) -> Result<String, DocumentError> {
    let mut workloads: BTreeMap<String, BTreeMap<String, Times>> = BTreeMap::new();
    for (workload, upstream, Seen { since, alive }) in sets.iter() {
        workloads.entry(workload.to_string()).or_default().insert(upstream.to_string(), Times { since, alive });
    }
    Ok(serde_json::to_string(&Document { version: VERSION, workloads })?)
}

/// The sets of a document.
pub(crate) fn decode(document: &[u8]) -> Result<WarmSets, DocumentError> {
    // A later version may have another form.
    match serde_json::from_slice(document)? {
        Versioned { version } if version > VERSION => return Err(DocumentError::Newer(version)),
        Versioned { .. } => {}
    }
    let Document { workloads, .. } = serde_json::from_slice(document)?;
    let mut entries = Vec::new();
    for (workload, set) in workloads {
        let key = workload.split_once('/').filter(|(namespace, name)| !namespace.is_empty() && !name.is_empty());
        let key = key.map(|(namespace, name)| WorkloadKey::new(namespace, name));
        let key = key.ok_or(DocumentError::Workload(workload))?;
        for (upstream, Times { since, alive }) in set {
            entries.push((key.clone(), upstream.parse::<Upstream>()?, Seen { since, alive }));
        }
    }
    Ok(entries.into_iter().collect())
}

#[cfg(test)]
mod tests {
    use proptest::prelude::*;

    use super::*;
    use crate::warm::sets::tests::any_sets;

    proptest! {
        #[test]
        fn a_document_reads_back(sets in any_sets()) {
            prop_assert_eq!(decode(encode(&sets).expect("JSON").as_bytes()).expect("ours"), sets);
        }

        #[test]
        fn arbitrary_bytes_do_no_harm(bytes in proptest::collection::vec(any::<u8>(), 0..200)) {
            let _ = decode(&bytes);
        }
    }

    #[test]
    fn a_document_is_readable_and_names_no_address() {
        let seen = Seen { since: Moment(1), alive: Moment(2) };
        let upstream = "cart.shop:80".parse().expect("an upstream");
        let sets = WarmSets::from_iter([(WorkloadKey::new("shop", "web"), upstream, seen)]);
        assert_eq!(
            encode(&sets).expect("JSON"),
            r#"{"version":1,"workloads":{"shop/web":{"cart.shop:80":{"since":1,"alive":2}}}}"#
        );
    }

    #[test]
    fn what_a_later_weft_added_is_ignored_and_its_next_version_is_told_apart() {
        let added = r#"{"version":1,"by":"x","workloads":{"a/b":{"c.d:1":{"since":1,"alive":2,"calls":3}}}}"#;
        assert_eq!(decode(added.as_bytes()).expect("readable").len(), 1);
        let newer = decode(br#"{"version":2,"sets":[]}"#).expect_err("newer");
        assert!(matches!(newer, DocumentError::Newer(2)), "{newer}");
    }

    #[test]
    fn what_is_wrong_is_named() {
        for (text, words) in [
            ("", "not warm sets"),
            (r#"{"version":1}"#, "missing field `workloads`"),
            (r#"{"version":1,"workloads":{"web":{"a.b:1":{"since":1,"alive":1}}}}"#, "`web` is no workload"),
            (r#"{"version":1,"workloads":{"a/b":{"A.b:1":{"since":1,"alive":1}}}}"#, "`A` is not the name"),
        ] {
            let error = decode(text.as_bytes()).expect_err(text).to_string();
            assert!(error.contains(words), "{text}: {error}");
        }
    }
}
