//! `weft proxy upstreams`: the destinations that a proxy uses, as the control plane knows them.

use anyhow::Context;
use serde::Serialize;

use super::reach::{self, Reach};
use crate::cli::output::Table;
use crate::inspect::proto::inspection_client::InspectionClient;
use crate::inspect::proto::{self, ListUpstreamsRequest};
use crate::mesh::PodKey;

/// A cluster that the proxy has.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct Upstream {
    cluster: String,
    /// Empty for what is no Service.
    destination: String,
    /// Pushed before any call.
    warm: bool,
}

/// Asks the control plane.
pub(super) async fn fetch(reach: &dyn Reach, pod: &PodKey) -> anyhow::Result<Vec<Upstream>> {
    let mut client = InspectionClient::new(reach::channel(reach).await?).max_decoding_message_size(256 << 20);
    let request = ListUpstreamsRequest { namespace: pod.namespace.to_string(), pod: pod.name.to_string() };
    let answer = client.list_upstreams(request).await;
    let answer = answer.with_context(|| format!("the control plane did not tell what the proxy of {pod} uses"))?;
    Ok(answer.into_inner().upstreams.into_iter().map(upstream).collect())
}

fn upstream(upstream: proto::Upstream) -> Upstream {
    let proto::Upstream { cluster, destination, warm } = upstream;
    Upstream { cluster, destination, warm }
}

/// The table for reading.
pub(super) fn table(upstreams: &[Upstream]) -> String {
    let mut table = Table::new(["CLUSTER", "DESTINATION", "KNOWN BY"]);
    for each in upstreams {
        let how = if each.warm { "push" } else { "call" };
        table.row([each.cluster.clone(), each.destination.clone(), how.to_owned()]);
    }
    table.to_string()
}
