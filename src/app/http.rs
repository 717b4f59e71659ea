//! The HTTP face: `/` and every path that is not named here echo, `/call` calls what it is told, `/control` sets how
//! the workload acts, `/websocket` gives every message back, `/healthz` and `/readyz` are for probes.

use std::collections::BTreeMap;
use std::sync::Arc;

use axum::extract::ws::{Message, WebSocketUpgrade};
use axum::extract::{FromRequestParts, Query, Request, State};
use axum::http::header::{CONNECTION, CONTENT_TYPE};
use axum::http::request::Parts;
use axum::http::uri::Authority;
use axum::http::{HeaderMap, HeaderName, HeaderValue, StatusCode, Version, header};
use axum::middleware::{self, Next};
use axum::response::{IntoResponse, Response};
use axum::routing::{any, get};
use axum::{Json, Router, body};
use bytes::Bytes;
use futures::StreamExt;
use http_body_util::{BodyExt, BodyStream, StreamBody};
use hyper::body::Frame;
use serde::{Deserialize, Serialize};

use super::target::Target;
use super::workload::{
    Change, MAX_HOPS, Settings, SettingsError, UpstreamAnswer, Workload, hops, passed_on, shown, status,
};
use super::{MAX_BODY, RESPONDER_HEADER};
use crate::duration::HumanDuration;

/// What a request is answered with.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct Answer {
    name: String,
    version: String,
    pod: String,
    path: String,
    method: String,
    host: String,
    protocol: String,
    headers: BTreeMap<String, String>,
    /// The length of the request's body in bytes.
    received: usize,
    /// The request's trailers.
    #[serde(skip_serializing_if = "BTreeMap::is_empty")]
    trailers: BTreeMap<String, String>,
    upstream: Vec<UpstreamAnswer>,
    #[serde(skip_serializing_if = "Option::is_none")]
    error: Option<String>,
    /// As many bytes as the request asked for.
    #[serde(skip_serializing_if = "String::is_empty")]
    padding: String,
}

/// What a request can ask for itself, on every path that echoes.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(default)]
struct Wishes {
    delay: Option<HumanDuration>,
    status: Option<u16>,
    size: usize,
    /// The length of a header of the answer, [`LARGE`].
    header: Option<usize>,
    /// The value of a trailer of the answer, [`TRAILER`].
    trailer: Option<String>,
}

/// The header that a request can ask for.
const LARGE: HeaderName = HeaderName::from_static("x-weft-app-large");

/// How long it may be.
const LARGEST_HEADER: usize = 1 << 20;

/// The trailer that a request can ask for.
const TRAILER: HeaderName = HeaderName::from_static("x-weft-app-trailer");

/// A refused request: the status and why.
type Refused = (StatusCode, String);

pub(super) fn router(workload: Arc<Workload>) -> Router {
    Router::new()
        .route("/healthz", get(async || "ok\n"))
        .route("/readyz", get(readiness).post(set_readiness))
        .route("/control", get(settings).post(control))
        .route("/call", any(call))
        .route("/websocket", any(websocket))
        .fallback(echo)
        .layer(middleware::from_fn_with_state(workload.clone(), name_and_drain))
        .with_state(workload)
}

/// Says who answers, and has HTTP/1.1 connections close once the workload drains (HTTP/2 gets its GOAWAY at the end).
async fn name_and_drain(State(workload): State<Arc<Workload>>, request: Request, next: Next) -> Response {
    let http1 = request.version() < Version::HTTP_2;
    let mut response = next.run(request).await;
    if let Ok(responder) = HeaderValue::from_str(&workload.identity.responder()) {
        response.headers_mut().insert(RESPONDER_HEADER, responder);
    }
    if http1 && workload.draining.is_cancelled() {
        response.headers_mut().insert(CONNECTION, HeaderValue::from_static("close"));
    }
    response
}

async fn readiness(State(workload): State<Arc<Workload>>) -> (StatusCode, &'static str) {
    if workload.ready() { (StatusCode::OK, "ready\n") } else { (StatusCode::SERVICE_UNAVAILABLE, "not ready\n") }
}

#[derive(Deserialize)]
struct Readiness {
    ready: bool,
}

async fn set_readiness(
    State(workload): State<Arc<Workload>>,
    Query(Readiness { ready }): Query<Readiness>,
) -> Result<Json<Settings>, Refused> {
    change(&workload, &Change { ready: Some(ready), ..Change::default() }).await
}

async fn settings(State(workload): State<Arc<Workload>>) -> Json<Settings> {
    Json(workload.settings())
}

/// Reads JSON whatever the content type says, so that `-d` of any client will do.
async fn control(State(workload): State<Arc<Workload>>, body: Bytes) -> Result<Json<Settings>, Refused> {
    let refused = |error| (StatusCode::BAD_REQUEST, format!("the body is no change of settings: {error}\n"));
    change(&workload, &serde_json::from_slice(&body).map_err(refused)?).await
}

async fn change(workload: &Workload, change: &Change) -> Result<Json<Settings>, Refused> {
    workload.change(change).await.map(Json).map_err(refused)
}

fn refused(error: SettingsError) -> Refused {
    (StatusCode::BAD_REQUEST, format!("{error}\n"))
}

async fn echo(State(workload): State<Arc<Workload>>, request: Request) -> Result<Response, Refused> {
    let upstreams = if request.uri().path() == "/" { workload.upstreams.as_slice() } else { &[] };
    answer(&workload, request, upstreams).await
}

/// Gives every message back: by HTTP/1.1's upgrade, or by HTTP/2's extended CONNECT (RFC 8441).
async fn websocket(upgrade: WebSocketUpgrade) -> Response {
    upgrade.on_upgrade(async |mut socket| {
        while let Some(Ok(message)) = socket.recv().await {
            if let Message::Text(_) | Message::Binary(_) = &message
                && socket.send(message).await.is_err()
            {
                return;
            }
        }
    })
}

#[derive(Deserialize)]
struct Called {
    url: String,
}

/// Reports what a URL answers. That it was called is a success, whatever came of it.
async fn call(State(workload): State<Arc<Workload>>, request: Request) -> Result<Response, Refused> {
    let Query(Called { url }) = Query::try_from_uri(request.uri())
        .map_err(|error| (StatusCode::BAD_REQUEST, format!("{error}: write /call?url=http://HOST/PATH\n")))?;
    let target: Target = url.parse().map_err(|error| (StatusCode::BAD_REQUEST, format!("{error}\n")))?;
    answer(&workload, request, &[target]).await
}

async fn answer(workload: &Workload, request: Request, upstreams: &[Target]) -> Result<Response, Refused> {
    let (mut parts, body) = request.into_parts();
    let wishes = wishes(&mut parts).await?;
    let wished = wishes.status.map(status).transpose().map_err(refused)?;
    let (received, trailers) = read(body).await?;
    let fails = workload.act(wishes.delay).await;

    let mut upstream = Vec::new();
    let mut status = wished.unwrap_or(StatusCode::OK);
    let mut error = None;
    if fails && wished.is_none() {
        status = StatusCode::from_u16(workload.settings().error_status).unwrap_or(StatusCode::SERVICE_UNAVAILABLE);
        error = Some("failed on purpose: the error rate says so".to_owned());
    } else if !upstreams.is_empty() && hops(&parts.headers) >= MAX_HOPS {
        status = StatusCode::LOOP_DETECTED;
        error = Some(format!("passed on {MAX_HOPS} times already: do the upstreams form a ring?"));
    } else {
        for target in upstreams {
            let (succeeded, answered) = workload.call(target, passed_on(&parts.headers)).await;
            if !succeeded && wished.is_none() && parts.uri.path() != "/call" {
                status = StatusCode::BAD_GATEWAY;
                error = Some(format!("{} failed: {}", answered.url, answered.code));
            }
            upstream.push(answered);
        }
    }
    if matches!(status, StatusCode::NO_CONTENT | StatusCode::RESET_CONTENT | StatusCode::NOT_MODIFIED) {
        return Ok(status.into_response()); // these have no body
    }
    let answer = Answer {
        name: workload.identity.name.clone(),
        version: workload.identity.version.clone(),
        pod: workload.identity.pod.clone(),
        path: parts.uri.path_and_query().map_or_else(|| "*".to_owned(), ToString::to_string),
        method: parts.method.to_string(),
        host: host(&parts),
        protocol: format!("{:?}", parts.version),
        headers: shown(&parts.headers),
        received,
        trailers: shown(&trailers),
        upstream,
        error,
        padding: "x".repeat(wishes.size),
    };
    let mut json = serde_json::to_vec_pretty(&answer).unwrap_or_default();
    json.push(b'\n');
    let mut response = (status, [(CONTENT_TYPE, "application/json")], Bytes::from(json)).into_response();
    let value =
        |text: &str| HeaderValue::from_str(text).map_err(|error| (StatusCode::BAD_REQUEST, format!("{error}\n")));
    if let Some(length) = wishes.header {
        response.headers_mut().insert(LARGE, value(&"x".repeat(length))?);
    }
    if let Some(trailer) = wishes.trailer {
        response.headers_mut().insert(header::TRAILER, HeaderValue::from(TRAILER));
        let trailers = HeaderMap::from_iter([(TRAILER, value(&trailer)?)]);
        response = response.map(|body| {
            // Of unknown length, so that HTTP/1.1 sends it in chunks, after which trailers may come.
            let trailers = futures::stream::iter([Ok(Frame::trailers(trailers))]);
            body::Body::new(StreamBody::new(BodyStream::new(body).chain(trailers)))
        });
        response.headers_mut().remove(header::CONTENT_LENGTH);
    }
    Ok(response)
}

async fn wishes(parts: &mut Parts) -> Result<Wishes, Refused> {
    let bad = |text: String| (StatusCode::BAD_REQUEST, format!("{text}\n"));
    let Query(wishes) =
        Query::<Wishes>::from_request_parts(parts, &()).await.map_err(|error| bad(error.body_text()))?;
    if wishes.size > MAX_BODY {
        return Err(bad(format!("size is {}: at most {MAX_BODY} bytes are given", wishes.size)));
    }
    if wishes.header.is_some_and(|length| length > LARGEST_HEADER) {
        return Err(bad(format!("header is longer than {LARGEST_HEADER} bytes")));
    }
    Ok(wishes)
}

/// The length of a body, which is thrown away as it comes, and its trailers.
async fn read(mut body: body::Body) -> Result<(usize, HeaderMap), Refused> {
    let (mut length, mut trailers) = (0, HeaderMap::new());
    while let Some(frame) = body.frame().await {
        let frame = frame.map_err(|error| (StatusCode::BAD_REQUEST, format!("the body broke off: {error}\n")))?;
        length += frame.data_ref().map_or(0, Bytes::len);
        trailers = frame.into_trailers().unwrap_or(trailers);
    }
    Ok((length, trailers))
}

/// HTTP/2 has the host in the URI, HTTP/1.1 in a header.
fn host(parts: &Parts) -> String {
    let authority = parts.uri.authority().map(Authority::to_string);
    let header = || parts.headers.get(header::HOST).map(|value| String::from_utf8_lossy(value.as_bytes()).into_owned());
    authority.or_else(header).unwrap_or_default()
}
