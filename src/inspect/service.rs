//! The inspection API's gRPC service: plain status data in, messages out.

use std::sync::Arc;
use std::time::SystemTime;

use tonic::{Request, Response, Status};

use super::answers::{self, Generations};
use super::proto::inspection_server::Inspection;
use super::proto::{
    Convergence, Diagnostic, GetConvergenceRequest, GetGraphRequest, ListAnswersRequest, ListAnswersResponse,
    ListDeliveriesRequest, ListDeliveriesResponse, ListDenialsRequest, ListDenialsResponse, ListDiagnosticsRequest,
    ListDiagnosticsResponse, ListHeldBackRequest, ListHeldBackResponse, ListProxiesRequest, ListProxiesResponse,
    ListUpstreamsRequest, ListUpstreamsResponse, ObjectName, Proxy, Refusal, RefusedResource, ResourceType, Severity,
    TypeStatus,
};
use super::{Audit, Delivery, Graph, Mesh, audit, deliveries, graph, proto};
use crate::mesh::{self, PodKey, WorkloadKey};
use crate::snapshot;
use crate::xds::status::{self, Proxies, ProxyStatus};

/// Answers from whoever knows.
#[derive(Clone)]
pub(super) struct InspectionService {
    pub(super) proxies: Arc<dyn Proxies>,
    pub(super) mesh: Arc<dyn Mesh>,
    pub(super) generations: Arc<dyn Generations>,
    pub(super) graph: Arc<dyn Graph>,
    pub(super) delivery: Arc<dyn Delivery>,
    pub(super) audit: Arc<dyn Audit>,
}

#[tonic::async_trait]
impl Inspection for InspectionService {
    async fn list_proxies(
        &self,
        request: Request<ListProxiesRequest>,
    ) -> Result<Response<ListProxiesResponse>, Status> {
        let namespace = request.into_inner().namespace;
        let wanted = |proxy: &ProxyStatus| namespace.is_empty() || proxy.proxy.0.namespace.as_str() == namespace;
        let proxies = self.proxies.proxies().into_iter().filter(wanted);
        let proxies = proxies.map(|status| proxy(&status, self.mesh.workload(&status.proxy.0))).collect();
        Ok(Response::new(ListProxiesResponse { proxies }))
    }

    async fn list_diagnostics(
        &self,
        request: Request<ListDiagnosticsRequest>,
    ) -> Result<Response<ListDiagnosticsResponse>, Status> {
        let namespace = request.into_inner().namespace;
        let wanted = |found: &mesh::Diagnostic| namespace.is_empty() || is_in(found, &namespace);
        let diagnostics = self.mesh.diagnostics().into_iter().filter(wanted).map(diagnostic).collect();
        Ok(Response::new(ListDiagnosticsResponse { diagnostics }))
    }

    async fn get_graph(&self, request: Request<GetGraphRequest>) -> Result<Response<proto::Graph>, Status> {
        Ok(Response::new(graph::message(self.graph.edges(), &request.into_inner().namespace)))
    }

    async fn list_denials(
        &self,
        request: Request<ListDenialsRequest>,
    ) -> Result<Response<ListDenialsResponse>, Status> {
        Ok(Response::new(audit::list(&*self.audit, &request.into_inner().namespace)))
    }

    async fn list_upstreams(
        &self,
        request: Request<ListUpstreamsRequest>,
    ) -> Result<Response<ListUpstreamsResponse>, Status> {
        let ListUpstreamsRequest { namespace, pod } = request.into_inner();
        let pod = PodKey::new(namespace.as_str(), pod);
        let used = self.graph.used(&pod);
        let used = used.ok_or_else(|| Status::not_found(format!("the proxy of pod {pod} is not connected")))?;
        Ok(Response::new(ListUpstreamsResponse { upstreams: used.into_iter().map(graph::upstream).collect() }))
    }

    async fn get_convergence(&self, _: Request<GetConvergenceRequest>) -> Result<Response<Convergence>, Status> {
        let proxies = self.proxies.proxies();
        let refusing = proxies.iter().filter(|proxy| proxy.types.values().any(|status| status.refusal.is_some()));
        Ok(Response::new(Convergence {
            snapshot: self.delivery.snapshot(),
            connected: proxies.len() as u64,
            behind: self.delivery.behind() as u64,
            refusing: refusing.count() as u64,
        }))
    }

    async fn list_deliveries(
        &self,
        request: Request<ListDeliveriesRequest>,
    ) -> Result<Response<ListDeliveriesResponse>, Status> {
        Ok(Response::new(deliveries::list(&*self.proxies, request.get_ref())))
    }

    async fn list_answers(
        &self,
        request: Request<ListAnswersRequest>,
    ) -> Result<Response<ListAnswersResponse>, Status> {
        Ok(Response::new(answers::list(&*self.generations, request.into_inner())))
    }

    async fn list_held_back(&self, _: Request<ListHeldBackRequest>) -> Result<Response<ListHeldBackResponse>, Status> {
        Ok(Response::new(deliveries::held_back(&*self.proxies)))
    }
}

fn proxy(status: &ProxyStatus, workload: Option<WorkloadKey>) -> Proxy {
    Proxy {
        namespace: status.proxy.0.namespace.to_string(),
        pod: status.proxy.0.name.to_string(),
        identity: status.identity.to_string(),
        peer: status.peer.clone(),
        envoy_version: status.envoy_version.clone(),
        connected_at: Some(status.connected_at.into()),
        delta: status.delta,
        types: status.types.iter().map(|(kind, status)| type_status(*kind, status)).collect(),
        workload: workload.map(|workload| workload.name.to_string()).unwrap_or_default(),
    }
}

fn type_status(kind: snapshot::ResourceType, status: &status::TypeStatus) -> TypeStatus {
    let time = |at: Option<SystemTime>| at.map(Into::into);
    TypeStatus {
        r#type: resource_type(kind).into(),
        subscribed: status.subscribed as u64,
        wildcard: status.wildcard,
        resources: status.resources as u64,
        sent: status.sent,
        acknowledged: status.acknowledged,
        refused: status.refused,
        resources_sent: status.resources_sent,
        last_sent: time(status.last_sent),
        last_acknowledged: time(status.last_acknowledged),
        pending: status.pending,
        refusal: status.refusal.as_ref().map(refusal),
    }
}

fn refusal(refusal: &status::Refusal) -> Refusal {
    let resource = |(name, version): &(snapshot::ResourceName, snapshot::Version)| RefusedResource {
        name: name.to_string(),
        version: version.to_string(),
    };
    Refusal {
        at: Some(refusal.at.into()),
        message: refusal.message.clone(),
        resources: refusal.resources.iter().map(resource).collect(),
    }
}

pub(super) fn resource_type(kind: snapshot::ResourceType) -> ResourceType {
    match kind {
        snapshot::ResourceType::Cluster => ResourceType::Cluster,
        snapshot::ResourceType::Endpoints => ResourceType::Endpoints,
        snapshot::ResourceType::Listener => ResourceType::Listener,
        snapshot::ResourceType::Route => ResourceType::Route,
        snapshot::ResourceType::Secret => ResourceType::Secret,
    }
}

/// Whether it is about an object of this namespace, or about the Namespace itself.
fn is_in(diagnostic: &mesh::Diagnostic, namespace: &str) -> bool {
    diagnostic.object.as_ref().is_some_and(|object| match &object.namespace {
        Some(own) => own.as_str() == namespace,
        None => object.kind == mesh::Kind::Namespace && &*object.name == namespace,
    })
}

fn diagnostic(diagnostic: mesh::Diagnostic) -> Diagnostic {
    let severity = match diagnostic.severity {
        mesh::diagnostic::Severity::Warning => Severity::Warning,
        mesh::diagnostic::Severity::Error => Severity::Error,
    };
    let ObjectName { kind, namespace, name } = deliveries::object_name(diagnostic.object.as_ref());
    let (file, line) = match diagnostic.location {
        Some(location) => (location.file.display().to_string(), location.line),
        None => Default::default(),
    };
    Diagnostic {
        severity: severity.into(),
        kind,
        namespace,
        name,
        file,
        line,
        field: diagnostic.field,
        reason: diagnostic.reason,
        help: diagnostic.help,
    }
}
