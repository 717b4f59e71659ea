//! The demo workload and its caller: what the playground, the examples and the end-to-end tests run inside pods.
//!
//! ```text
//!                    ┌─ http ─┐                                  ┌─▶ Caller ─▶ http://, grpc://, tcp://
//!   callers ───────▶ │  grpc  │ ──▶ Workload (who, how it acts) ─┤
//!                    └─ tcp ──┘                                  └─▶ Answer, with what upstream answered
//!
//!   weft app call ─▶ load ─▶ Caller ─▶ Report
//! ```
//!
//! Both sides are one [`caller::Caller`], so what a workload calls and what a test calls fail in the same words.

mod accept;
pub mod caller;
mod grpc;
mod http;
pub mod load;
pub mod report;
pub mod serve;
pub mod target;
mod tcp;
pub mod workload;

#[cfg(test)]
mod tests;

/// The gRPC face, generated from proto/weft/app/v1/echo.proto.
#[allow(missing_docs, unreachable_pub, clippy::all, reason = "generated")]
pub mod proto {
    tonic::include_proto!("weft.app.v1");
}

/// The longest body that is sent or read, in bytes: nothing from outside decides how much memory is taken.
pub const MAX_BODY: usize = 16 << 20;

/// Names who answered, as `NAME VERSION`; absent when a proxy answered in the workload's place.
pub const RESPONDER_HEADER: &str = "x-weft-app";
