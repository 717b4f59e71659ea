//! The admin port: health, readiness and metrics over HTTP, and the inspection API over gRPC beside them.

use std::io;
use std::sync::Arc;

use axum::Router;
use axum::extract::{Query, State};
use axum::http::{StatusCode, header};
use axum::response::{IntoResponse, Response};
use axum::routing::get;
use axum::serve::ListenerExt;
use prometheus_client::registry::Registry;
use serde::Serialize;
use tokio::net::TcpListener;
use tonic::server::NamedService;

use super::answers::Generations;
use super::proto::inspection_server::InspectionServer;
use super::proto::{ListDeliveriesRequest, ListDeliveriesResponse, ListHeldBackResponse};
use super::scrape::TargetGroup;
use super::service::InspectionService;
use super::{Audit, Delivery, Graph, Mesh, Readiness, deliveries, graph};
use crate::xds::status::Proxies;

/// The content type of the OpenMetrics text format.
const OPEN_METRICS: &str = "application/openmetrics-text; version=1.0.0; charset=utf-8";

/// What the admin port tells of.
#[derive(Clone)]
pub struct Admin {
    /// The connected proxies.
    pub proxies: Arc<dyn Proxies>,
    /// The mesh's objects.
    pub mesh: Arc<dyn Mesh>,
    /// What the replica's proxies have answered to objects of an API server.
    pub generations: Arc<dyn Generations>,
    /// Who calls whom.
    pub graph: Arc<dyn Graph>,
    /// The progress of snapshots.
    pub delivery: Arc<dyn Delivery>,
    /// What enforcement would deny.
    pub audit: Arc<dyn Audit>,
    /// What has yet to happen before `/readyz` is 200.
    pub readiness: Readiness,
    /// The metrics.
    pub registry: Arc<Registry>,
}

impl Admin {
    /// Everything on one router; gRPC needs HTTP/2 with prior knowledge, as [`serve`] speaks it.
    pub fn router(self) -> Router {
        let Self { proxies, mesh, generations, graph, delivery, audit, readiness, registry } = self;
        let (ledger, refused, edges) = (proxies.clone(), proxies.clone(), graph.clone());
        let pods = mesh.clone();
        let inspection =
            InspectionServer::new(InspectionService { proxies, mesh, generations, graph, delivery, audit });
        let service = format!("/{}/{{method}}", <InspectionServer<InspectionService> as NamedService>::NAME);
        health(readiness)
            .route("/deliveries", get(list_deliveries).with_state(ledger))
            .route("/held-back", get(list_held_back).with_state(refused))
            .route("/graph", get(whole_graph).with_state(edges))
            .route("/sd/prometheus", get(scrape_targets).with_state(pods))
            .route("/metrics", get(metrics).with_state(registry))
            .route_service(&service, inspection)
    }
}

/// Health and readiness alone: all there is to tell before anything was read.
pub fn health(readiness: Readiness) -> Router {
    Router::new().route("/healthz", get(async || "ok\n")).route("/readyz", get(readyz).with_state(readiness))
}

/// Serves `router` over HTTP/1.1 and HTTP/2 without TLS until `shutdown` completes and open requests are answered.
pub async fn serve(
    listener: TcpListener,
    router: Router,
    shutdown: impl Future<Output = ()> + Send + 'static,
) -> io::Result<()> {
    // Small answers go out at once; the peer would otherwise wait for its own delayed acknowledgement.
    let listener = listener.tap_io(|connection| drop(connection.set_nodelay(true)));
    axum::serve(listener, router).with_graceful_shutdown(shutdown).await
}

/// JSON that ends its line, for who reads it with curl.
struct JsonLine<T>(T);

impl<T: Serialize> IntoResponse for JsonLine<T> {
    fn into_response(self) -> Response {
        match serde_json::to_string(&self.0) {
            Ok(text) => ([(header::CONTENT_TYPE, "application/json")], text + "\n").into_response(),
            Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("{error}\n")).into_response(),
        }
    }
}

async fn readyz(State(readiness): State<Readiness>) -> Response {
    match readiness.reasons() {
        reasons if reasons.is_empty() => "ready\n".into_response(),
        reasons => (StatusCode::SERVICE_UNAVAILABLE, format!("not ready: {}\n", reasons.join("; "))).into_response(),
    }
}

async fn list_deliveries(
    State(proxies): State<Arc<dyn Proxies>>,
    Query(request): Query<ListDeliveriesRequest>,
) -> JsonLine<ListDeliveriesResponse> {
    JsonLine(deliveries::list(&*proxies, &request))
}

async fn list_held_back(State(proxies): State<Arc<dyn Proxies>>) -> JsonLine<ListHeldBackResponse> {
    JsonLine(deliveries::held_back(&*proxies))
}

async fn whole_graph(State(graph): State<Arc<dyn Graph>>) -> JsonLine<graph::Document> {
    JsonLine(graph::Document::from(graph::message(graph.edges(), "")))
}

/// Every sidecar's metrics (Prometheus, "HTTP service discovery").
async fn scrape_targets(State(mesh): State<Arc<dyn Mesh>>) -> JsonLine<Vec<TargetGroup>> {
    JsonLine(mesh.sidecars().into_iter().map(TargetGroup::from).collect())
}

async fn metrics(State(registry): State<Arc<Registry>>) -> Response {
    let mut text = String::new();
    match prometheus_client::encoding::text::encode(&mut text, &registry) {
        Ok(()) => ([(header::CONTENT_TYPE, OPEN_METRICS)], text).into_response(),
        Err(error) => (StatusCode::INTERNAL_SERVER_ERROR, format!("metrics: {error}\n")).into_response(),
    }
}

#[cfg(test)]
pub(super) mod tests;
