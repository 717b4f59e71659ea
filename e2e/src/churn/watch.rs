//! What sidecars count that no caller may see: retries, resets, failed connections, refused configuration.

use std::collections::BTreeMap;

use crate::mesh::Mesh;

/// Counters that stay at 0 while nothing is lost. A retry would hide a loss, so it is one.
const ALARMS: &str = "(upstream_cx_connect_fail|upstream_cx_connect_timeout|upstream_cx_none_healthy\
     |upstream_cx_protocol_error|upstream_rq_pending_failure_eject\
     |upstream_rq_rx_reset|upstream_rq_tx_reset|upstream_rq_timeout|upstream_rq_retry|upstream_rq_5xx\
     |downstream_rq_4xx|downstream_rq_5xx|downstream_rq_rx_reset|downstream_rq_tx_reset|downstream_cx_protocol_error\
     |downstream_cx_destroy_local_active_rq|downstream_cx_destroy_remote_active_rq|downstream_cx_no_route\
     |rq_reset_after_downstream_response_started|no_cluster|no_route|no_filter_chain_match|rbac..*denied\
     |ssl.connection_error|ssl.fail_verify_error|ssl.fail_verify_san|on_demand_cluster_missing\
     |on_demand_cluster_timeout|update_rejected|init_fetch_timeout)$";

/// The alarms of all sidecars up to now.
#[derive(Debug, Default)]
pub(super) struct Watch {
    seen: BTreeMap<(String, String), u64>,
}

impl Watch {
    /// The alarms since the last look, as `POD COUNTER +N`. A pod that ends while it is looked at has none.
    pub(super) fn look(&mut self, mesh: &Mesh) -> anyhow::Result<Vec<String>> {
        let mut new = Vec::new();
        for pod in mesh.client().status()?.pods.into_iter().filter(|pod| pod.meshed && pod.ready) {
            let name = format!("{}/{}", pod.namespace, pod.name);
            let stats = mesh.stats(&name, ALARMS)?;
            for (counter, value) in stats {
                let key = (name.clone(), counter);
                let before = self.seen.get(&key).copied().unwrap_or(0);
                // What is made anew, as a cluster's, begins at 0.
                let more = if value < before { value } else { value - before };
                if more > 0 {
                    new.push(format!("{} {} +{more}", key.0, key.1));
                }
                self.seen.insert(key, value);
            }
        }
        Ok(new)
    }
}
