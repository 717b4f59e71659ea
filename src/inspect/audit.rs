//! What enforcement would deny, as messages.

use super::proto::{Denial, ListDenialsResponse};
use super::{Audit, DeniedCalls, DeniedEdge};

/// The calls to workloads in `namespace`, or to all if it is empty.
pub(super) fn list(audit: &dyn Audit, namespace: &str) -> ListDenialsResponse {
    let wanted = |edge: &DeniedEdge| namespace.is_empty() || edge.callee.namespace.as_str() == namespace;
    let denials = audit.denied().into_iter().filter(|(edge, _)| wanted(edge)).map(|(edge, calls)| denial(edge, &calls));
    ListDenialsResponse { denials: denials.collect(), uncounted: audit.uncounted() }
}

fn denial(edge: DeniedEdge, calls: &DeniedCalls) -> Denial {
    Denial {
        caller: edge.caller.map(|caller| caller.to_string()).unwrap_or_default(),
        namespace: edge.callee.namespace.to_string(),
        workload: edge.callee.name.to_string(),
        account: edge.account.name.to_string(),
        port: edge.port.into(),
        http: edge.http,
        methods: calls.methods.iter().map(|method| (*method).to_owned()).collect(),
        calls: calls.calls(),
        first_at: Some(calls.first.into()),
        last_at: Some(calls.last.into()),
    }
}
