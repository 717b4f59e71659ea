//! Hosts outside the mesh, as far as a machine without a network can have them: a pod stands for each.
//!
//! A pod with the annotation `weft.dev/local-hosts: api.example.com, *.example.org` has its address in 203.0.113.0/24,
//! a range for documentation (RFC 5737) that is no mesh's, and the cluster's DNS answers these names with it.

use std::collections::BTreeMap;

/// The annotation that names the hosts.
const HOSTS: &str = "weft.dev/local-hosts";

/// The hosts for which a pod with these annotations stands, in lower case; `*.` begins one for all names below it.
pub(super) fn hosts(annotations: Option<&BTreeMap<String, String>>) -> impl Iterator<Item = String> + '_ {
    let text = annotations.and_then(|annotations| annotations.get(HOSTS)).map_or("", String::as_str);
    let names = text.split(',').map(|name| name.trim().trim_end_matches('.').to_ascii_lowercase());
    names.filter(|name| !name.is_empty())
}
