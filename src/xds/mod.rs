//! The xDS server: what a proxy subscribes to, in what order it is answered, what it acknowledged.
//!
//! ```text
//!  Envoy ◀──gRPC──▶ service ──▶ stream (one loop per stream: all the I/O there is)
//!                     │            │  requests, snapshots, secrets, time
//!                   auth           ▼
//!                               session ──uses──▶ subscription       (pure)
//!                                  │
//!                                  └─ status ──▶ registry (who has acknowledged what)
//! ```

pub mod auth;
pub mod learn;
pub mod registry;
pub mod service;
pub mod session;
pub mod status;
mod stream;
pub mod subscription;
#[cfg(test)]
mod testing;
pub mod wire;

pub use registry::Registry;
pub use service::Server;

#[cfg(test)]
mod tests;
