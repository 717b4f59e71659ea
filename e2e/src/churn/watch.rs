//! What sidecars count that no caller may see: retries, resets, failed connections, refused configuration.

use std::collections::{BTreeMap, BTreeSet};

use crate::mesh::Mesh;

/// Counters that stay at 0 while nothing is lost. A retry would hide a loss, so it is one.
///
/// Two that sound like it are not here, since they count what is as it should be: `upstream_cx_protocol_error`, when
/// an HTTP/2 connection to an endpoint that has gone is closed behind its last answer ("Connection was closed while
/// dispatching frames", with no request pending), and `upstream_cx_destroy_with_active_rq`, for each TCP connection.
const ALARMS: &str = "(upstream_cx_connect_fail|upstream_cx_connect_timeout|upstream_cx_none_healthy\
     |upstream_rq_pending_failure_eject|upstream_rq_rx_reset|upstream_rq_tx_reset|upstream_rq_timeout|upstream_rq_retry|upstream_rq_5xx\
     |downstream_rq_4xx|downstream_rq_5xx|downstream_rq_rx_reset|downstream_rq_tx_reset|downstream_cx_protocol_error\
     |downstream_cx_destroy_local_active_rq|downstream_cx_destroy_remote_active_rq|downstream_cx_no_route\
     |rq_reset_after_downstream_response_started|no_cluster|no_route|no_filter_chain_match|rbac..*denied\
     |ssl.connection_error|ssl.fail_verify_error|ssl.fail_verify_san|on_demand_cluster_missing\
     |on_demand_cluster_timeout|update_rejected|init_fetch_timeout)$";

/// Where a counter is about what comes in.
const PROBED: [&str; 2] = ["inbound", "15006"];

/// Counters that stay at 0 even where faults and denials are meant.
const REFUSALS: &str = "(update_rejected|no_filter_chain_match|downstream_cx_protocol_error|ssl.connection_error\
     |ssl.fail_verify_error|ssl.fail_verify_san|rq_reset_after_downstream_response_started)$";

/// The alarms of all sidecars up to now.
#[derive(Debug)]
pub(super) struct Watch {
    counters: &'static str,
    pods: BTreeSet<String>,
    seen: BTreeMap<(String, String), u64>,
}

impl Watch {
    /// For whatever may tell of a loss.
    pub(super) fn for_losses() -> Self {
        Self { counters: ALARMS, pods: BTreeSet::new(), seen: BTreeMap::new() }
    }

    /// For what is never meant.
    pub(super) fn for_refusals() -> Self {
        Self { counters: REFUSALS, ..Self::for_losses() }
    }

    /// The alarms since the last look, as `POD COUNTER +N`. Not while pods come and go.
    pub(super) fn look(&mut self, mesh: &Mesh) -> anyhow::Result<Vec<String>> {
        let mut new = Vec::new();
        for pod in mesh.client().status()?.pods.into_iter().filter(|pod| pod.meshed && pod.ready) {
            let name = format!("{}/{}", pod.namespace, pod.name);
            let known = self.pods.contains(&name);
            for (counter, value) in mesh.stats(&name, self.counters)? {
                // A probe that came before the application listened was refused: that is what probes are for.
                if !known && PROBED.iter().any(|part| counter.contains(part)) {
                    self.seen.insert((name.clone(), counter), value);
                    continue;
                }
                let key = (name.clone(), counter);
                let before = self.seen.get(&key).copied().unwrap_or(0);
                // What is made anew, as a cluster's, begins at 0.
                let more = if value < before { value } else { value - before };
                if more > 0 {
                    new.push(format!("{} {} +{more}", key.0, key.1));
                }
                self.seen.insert(key, value);
            }
            self.pods.insert(name);
        }
        Ok(new)
    }
}
