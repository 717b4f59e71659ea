//! What enforcement would deny, by edge: who calls which workload at which port, as sidecars report it.
//!
//! It is kept in memory since the control plane started, and bounded: an edge is who, whom and where, never what a
//! caller can make up.

use std::collections::BTreeMap;
use std::collections::btree_map::Entry;
use std::fmt;
use std::sync::{Arc, Mutex, MutexGuard, PoisonError};
use std::time::SystemTime;

use super::pipeline::State;
use crate::inspect::{self, DeniedCalls, DeniedEdge};
use crate::mesh::ProxyId;
use crate::xds::access_logs::{Call, Denial, Denials};

/// More edges than a mesh has for which somebody is about to write TrafficTargets.
const MOST_EDGES: usize = 20_000;

/// Counts the reports.
pub(super) struct Audit {
    state: Arc<State>,
    table: Mutex<Table>,
}

impl Audit {
    pub(super) fn new(state: Arc<State>) -> Self {
        Self { state, table: Mutex::default() }
    }

    fn table(&self) -> MutexGuard<'_, Table> {
        self.table.lock().unwrap_or_else(PoisonError::into_inner)
    }
}

impl fmt::Debug for Audit {
    fn fmt(&self, f: &mut fmt::Formatter<'_>) -> fmt::Result {
        f.debug_struct("Audit").finish_non_exhaustive()
    }
}

impl Denials for Audit {
    fn denied(&self, callee: &ProxyId, denials: Vec<Denial>) {
        let known = self.state.lock().world.pod(&callee.0).map(|pod| (pod.workload.clone(), pod.account.clone()));
        // Of a pod that has gone in the meantime, nobody knows any more what it was.
        let Some((workload, account)) = known else { return };
        let (mut table, now) = (self.table(), SystemTime::now());
        for Denial { caller, port, call } in denials {
            let http = matches!(call, Call::Request(_));
            let edge = DeniedEdge { callee: workload.clone(), account: account.clone(), port, http, caller };
            table.count(edge, &call, now);
        }
    }
}

impl inspect::Audit for Audit {
    fn denied(&self) -> Vec<(DeniedEdge, DeniedCalls)> {
        self.table().edges.iter().map(|(edge, calls)| (edge.clone(), calls.clone())).collect()
    }

    fn uncounted(&self) -> u64 {
        self.table().uncounted
    }
}

#[derive(Debug, Default)]
struct Table {
    edges: BTreeMap<DeniedEdge, DeniedCalls>,
    /// Calls of edges beyond [`MOST_EDGES`].
    uncounted: u64,
}

impl Table {
    fn count(&mut self, edge: DeniedEdge, call: &Call, now: SystemTime) {
        let full = self.edges.len() >= MOST_EDGES;
        let calls = match self.edges.entry(edge) {
            Entry::Vacant(_) if full => return self.uncounted += 1,
            Entry::Vacant(new) => {
                new.insert(DeniedCalls { ended: 0, methods: Default::default(), first: now, last: now })
            }
            Entry::Occupied(known) => known.into_mut(),
        };
        calls.last = now;
        match call {
            Call::Request(method) => {
                calls.methods.insert(method);
                calls.ended += 1;
            }
            Call::Connection => calls.ended += 1,
            // It is told of again and again, and counted when it ends.
            Call::OpenConnection => {}
        }
    }
}

#[cfg(test)]
mod tests {
    use std::time::Duration;

    use super::*;
    use crate::mesh::WorkloadKey;
    use crate::mesh::fixture::account;

    fn edge(caller: &str, port: u16, http: bool) -> DeniedEdge {
        let callee = WorkloadKey::new("shop", "cart");
        DeniedEdge { callee, account: account("shop/cart"), port, http, caller: caller.parse().ok() }
    }

    fn at(seconds: u64) -> SystemTime {
        SystemTime::UNIX_EPOCH + Duration::from_secs(seconds)
    }

    #[test]
    fn calls_are_counted_by_edge_and_an_open_connection_once_it_ends() {
        let mut table = Table::default();
        let web = "spiffe://cluster.local/ns/shop/sa/web";
        table.count(edge(web, 80, true), &Call::Request("GET"), at(1));
        table.count(edge(web, 80, true), &Call::Request("POST"), at(2));
        table.count(edge("", 80, true), &Call::Request("GET"), at(3));
        table.count(edge(web, 70, false), &Call::OpenConnection, at(4));
        let of = |table: &Table, edge: &DeniedEdge| table.edges.get(edge).map(|calls| (calls.calls(), calls.last));
        assert_eq!(of(&table, &edge(web, 80, true)), Some((2, at(2))));
        assert_eq!(table.edges[&edge(web, 80, true)].methods, ["GET", "POST"].into());
        assert_eq!(of(&table, &edge("", 80, true)), Some((1, at(3))));
        assert_eq!(of(&table, &edge(web, 70, false)), Some((1, at(4))), "it is there before it has ended");
        table.count(edge(web, 70, false), &Call::OpenConnection, at(5));
        table.count(edge(web, 70, false), &Call::Connection, at(6));
        assert_eq!(of(&table, &edge(web, 70, false)), Some((1, at(6))));
        assert_eq!(table.edges.len(), 3);
    }

    #[test]
    fn more_edges_than_are_kept_are_told_of_as_a_number() {
        let mut table = Table::default();
        for number in 0..MOST_EDGES + 2 {
            let caller = format!("spiffe://cluster.local/ns/shop/sa/web-{number}");
            table.count(edge(&caller, 80, true), &Call::Request("GET"), at(1));
        }
        table.count(edge("spiffe://cluster.local/ns/shop/sa/web-0", 80, true), &Call::Request("GET"), at(2));
        assert_eq!((table.edges.len(), table.uncounted), (MOST_EDGES, 2));
    }
}
