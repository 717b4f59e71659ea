//! `weft proxy upstreams`: the destinations that a proxy uses, as the control plane knows them.

use anyhow::Context;
use serde::Serialize;
use tonic::Code;
use tonic::transport::Channel;

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
    let request = ListUpstreamsRequest { namespace: pod.namespace.to_string(), pod: pod.name.to_string() };
    // It is connected to one replica; the others have nothing to tell.
    let ask = async |mut client: InspectionClient<Channel>| match client.list_upstreams(request.clone()).await {
        Err(status) if status.code() == Code::NotFound => Ok(Err(status)),
        answer => Ok(Ok(answer?.into_inner().upstreams)),
    };
    let answers = reach::ask_each(reach, ask).await;
    let found = answers.and_then(|answers| Ok(answers.into_iter().reduce(Result::or).transpose()?));
    let found = found.with_context(|| format!("the control plane did not tell what the proxy of {pod} uses"))?;
    Ok(found.into_iter().flatten().map(upstream).collect())
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
