//! Who a workload is and how it acts: its delay, its errors, its readiness, settable while it runs.

use std::collections::BTreeMap;
use std::time::Duration;

use axum::http::{HeaderMap, HeaderName, StatusCode};
use serde::{Deserialize, Serialize};
use serde_json::Value;
use tokio::sync::watch;
use tokio_util::sync::CancellationToken;
use tonic_health::ServingStatus;
use tonic_health::server::HealthReporter;

use super::caller::{Call, Caller, Outcome};
use super::target::Target;
use crate::duration::HumanDuration;

/// What a workload answers with.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct Identity {
    /// Its name, as in `cart`.
    pub name: String,
    /// Its version, as in `v1`.
    pub version: String,
    /// Its pod.
    pub pod: String,
}

impl Identity {
    /// `NAME VERSION`.
    pub fn responder(&self) -> String {
        format!("{} {}", self.name, self.version)
    }
}

/// How a workload acts, as `GET /control` shows it.
#[derive(Clone, PartialEq, Debug, Serialize)]
#[serde(rename_all = "camelCase")]
pub struct Settings {
    /// Waits this long before each answer.
    pub delay: HumanDuration,
    /// The share of requests, 0 to 1, that are answered with an error.
    pub error_rate: f64,
    /// The HTTP status of such an error; gRPC says UNAVAILABLE, TCP closes.
    pub error_status: u16,
    /// What the readiness endpoints say.
    pub ready: bool,
}

impl Default for Settings {
    fn default() -> Self {
        Self { delay: HumanDuration::default(), error_rate: 0.0, error_status: 503, ready: true }
    }
}

/// A change of [`Settings`]: the body of `POST /control`.
#[derive(Clone, PartialEq, Debug, Default, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields)]
#[allow(missing_docs, reason = "each field replaces the one of the same name")]
pub struct Change {
    pub delay: Option<HumanDuration>,
    pub error_rate: Option<f64>,
    pub error_status: Option<u16>,
    pub ready: Option<bool>,
}

/// Why settings cannot be.
#[derive(Clone, PartialEq, Debug, thiserror::Error)]
#[allow(missing_docs, reason = "the messages say it")]
pub enum SettingsError {
    #[error("the error rate is {0}: it must be from 0 to 1")]
    ErrorRate(f64),
    #[error("the status is {0}: it must be from 200 to 599")]
    Status(u16),
}

impl Settings {
    /// These settings with the change; all of it or nothing.
    ///
    /// # Errors
    /// The change asks for an error rate or a status that cannot be.
    pub fn with(&self, change: &Change) -> Result<Self, SettingsError> {
        let error_rate = change.error_rate.unwrap_or(self.error_rate);
        if !(0.0..=1.0).contains(&error_rate) {
            return Err(SettingsError::ErrorRate(error_rate));
        }
        let error_status = change.error_status.unwrap_or(self.error_status);
        status(error_status)?;
        Ok(Self {
            delay: change.delay.unwrap_or(self.delay),
            error_rate,
            error_status,
            ready: change.ready.unwrap_or(self.ready),
        })
    }
}

/// A status that a final answer may have.
pub(super) fn status(code: u16) -> Result<StatusCode, SettingsError> {
    let known = StatusCode::from_u16(code).ok().filter(|status| (200..600).contains(&status.as_u16()));
    known.ok_or(SettingsError::Status(code))
}

/// What an upstream answered, nested in the answer of who called it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub struct UpstreamAnswer {
    /// What was called.
    pub url: String,
    /// The HTTP status, the gRPC status, or what went wrong: the words of [`super::caller::Code`].
    pub code: String,
    /// How long it took.
    pub latency_ms: f64,
    /// What it answered, as JSON if it is JSON.
    #[serde(skip_serializing_if = "Value::is_null")]
    pub body: Value,
    /// Why it did not answer.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub error: Option<String>,
}

impl UpstreamAnswer {
    fn of(target: &Target, outcome: Outcome) -> Self {
        let body = match serde_json::from_slice(&outcome.body) {
            Ok(json) => json,
            Err(_) if outcome.body.is_empty() => Value::Null,
            Err(_) => Value::String(String::from_utf8_lossy(&outcome.body).into_owned()),
        };
        Self {
            url: target.to_string(),
            code: outcome.code.to_string(),
            latency_ms: (outcome.latency.as_secs_f64() * 1e6).round() / 1e3,
            body,
            error: outcome.error,
        }
    }
}

/// A running workload, shared by its listeners.
pub(super) struct Workload {
    pub(super) identity: Identity,
    pub(super) upstreams: Vec<Target>,
    pub(super) draining: CancellationToken,
    settings: watch::Sender<Settings>,
    health: HealthReporter,
    caller: Caller,
}

impl Workload {
    pub(super) async fn new(
        identity: Identity,
        upstreams: Vec<Target>,
        upstream_timeout: Duration,
        settings: Settings,
        health: HealthReporter,
    ) -> Self {
        let workload = Self {
            identity,
            upstreams,
            draining: CancellationToken::new(),
            settings: watch::Sender::new(settings),
            health,
            caller: Caller::new(upstream_timeout),
        };
        workload.tell_health().await;
        workload
    }

    pub(super) fn settings(&self) -> Settings {
        self.settings.borrow().clone()
    }

    pub(super) fn ready(&self) -> bool {
        self.settings.borrow().ready && !self.draining.is_cancelled()
    }

    /// Changes how the workload acts; gRPC health has followed when this returns.
    pub(super) async fn change(&self, change: &Change) -> Result<Settings, SettingsError> {
        let mut result = Ok(());
        self.settings.send_if_modified(|settings| match settings.with(change) {
            Ok(changed) => std::mem::replace(settings, changed) != *settings,
            Err(error) => {
                result = Err(error);
                false
            }
        });
        result?;
        self.tell_health().await;
        Ok(self.settings())
    }

    /// Tells the callers to go elsewhere: not ready, and HTTP/1.1 connections close after their answer.
    pub(super) async fn drain(&self) {
        self.draining.cancel();
        self.tell_health().await;
    }

    async fn tell_health(&self) {
        let status = if self.ready() { ServingStatus::Serving } else { ServingStatus::NotServing };
        for service in ["", "weft.app.v1.Echo"] {
            self.health.set_service_status(service, status).await;
        }
    }

    /// Waits as settings or request say; then whether this request is to fail.
    pub(super) async fn act(&self, delay: Option<HumanDuration>) -> bool {
        let settings = self.settings();
        let HumanDuration(delay) = delay.unwrap_or(settings.delay);
        if !delay.is_zero() {
            tokio::time::sleep(delay).await;
        }
        settings.error_rate > 0.0 && rand::random::<f64>() < settings.error_rate
    }

    /// Calls one upstream with the trace headers of the request that it is called for.
    pub(super) async fn call(&self, target: &Target, headers: HeaderMap) -> (bool, UpstreamAnswer) {
        let call = Call { headers, ..Call::new(target.clone()) };
        let outcome = self.caller.call(&call).await;
        (outcome.code.succeeded(), UpstreamAnswer::of(target, outcome))
    }
}

/// Counts how often a request was passed on, so that workloads that call each other in a ring come to an end.
pub(super) static HOPS: HeaderName = HeaderName::from_static("x-weft-app-hops");

/// How often a request is passed on at most.
pub(super) const MAX_HOPS: u32 = 16;

/// How often this request has been passed on.
pub(super) fn hops(headers: &HeaderMap) -> u32 {
    headers.get(&HOPS).and_then(|value| value.to_str().ok()).and_then(|text| text.parse().ok()).unwrap_or(0)
}

/// What a workload passes on of a request's headers: the trace (W3C, B3, gRPC binary) and the hops.
pub(super) fn passed_on(headers: &HeaderMap) -> HeaderMap {
    const EXACT: [&str; 5] = ["traceparent", "tracestate", "x-request-id", "b3", "grpc-trace-bin"];
    let traces = |name: &HeaderName| EXACT.contains(&name.as_str()) || name.as_str().starts_with("x-b3-");
    let mut passed: HeaderMap =
        headers.iter().filter(|(name, _)| traces(name)).map(|(name, value)| (name.clone(), value.clone())).collect();
    passed.insert(HOPS.clone(), (hops(headers).saturating_add(1)).into());
    passed
}

/// Headers as an answer shows them: several values of one name are joined as HTTP joins them.
pub(super) fn shown(headers: &HeaderMap) -> BTreeMap<String, String> {
    let mut shown: BTreeMap<String, String> = BTreeMap::new();
    for (name, value) in headers {
        let value = String::from_utf8_lossy(value.as_bytes());
        shown
            .entry(name.as_str().to_owned())
            .and_modify(|values| {
                values.push_str(", ");
                values.push_str(&value);
            })
            .or_insert_with(|| value.into_owned());
    }
    shown
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn a_change_is_taken_whole_or_not_at_all() {
        let settings = Settings::default();
        let refused = |json| settings.with(&serde_json::from_str(json).unwrap());
        assert_eq!(refused(r#"{"delay":"1s","errorRate":1.5}"#), Err(SettingsError::ErrorRate(1.5)));
        assert_eq!(refused(r#"{"errorStatus":101}"#), Err(SettingsError::Status(101)));
        let changed = settings.with(&serde_json::from_str(r#"{"delay":"50ms","errorRate":0.5}"#).unwrap()).unwrap();
        assert_eq!((changed.delay.0.as_millis(), changed.error_rate, changed.ready), (50, 0.5, true));
    }

    #[test]
    fn an_unknown_setting_is_refused_by_name() {
        let error = serde_json::from_str::<Change>(r#"{"erorRate":1}"#).unwrap_err().to_string();
        assert!(error.contains("erorRate"), "{error}");
    }

    #[test]
    fn trace_headers_are_passed_on_and_others_are_not() {
        let names = ["traceparent", "x-b3-traceid", "x-request-id", "grpc-trace-bin", "authorization", "host"];
        let headers = names.map(|name| (HeaderName::from_static(name), "1".parse().unwrap())).into_iter().collect();
        let passed = shown(&passed_on(&headers));
        let expected = ["grpc-trace-bin", "traceparent", "x-b3-traceid", "x-request-id", "x-weft-app-hops"];
        assert_eq!(passed.keys().map(String::as_str).collect::<Vec<_>>(), expected);
    }
}
