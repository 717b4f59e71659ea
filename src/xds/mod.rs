//! The xDS server: what a proxy subscribes to, in what order it is answered, what it acknowledged.
//!
//! ```text
//!  Envoy ◀─HTTP/2─▶ connection ──▶ service ──▶ stream (one loop per stream)
//!                     │               │            │  requests, snapshots, secrets, time
//!                 admission         auth           ▼
//!  body ◀── frames ◀── wire ◀──────────────── session ──uses──▶ subscription       (pure)
//!  (shared bytes, encoded once)                  │
//!                                                └─ status ──▶ registry (who has acknowledged what)
//!
//!  Envoy ──▶ connection ──▶ service ──▶ access_logs (what enforcement would deny)
//! ```

pub mod access_logs;
pub mod admission;
pub mod auth;
mod beginnings;
mod body;
mod connection;
mod deliveries;
mod frames;
mod interest;
pub mod learn;
mod ledger;
mod name_pool;
pub mod pace;
pub mod registry;
pub mod requests;
mod rollout;
pub mod service;
pub mod session;
pub mod status;
mod steps;
mod stream;
pub mod subscription;
#[cfg(test)]
mod testing;
pub mod wire;

pub use admission::Limits;
pub use registry::Registry;
pub use rollout::Canary;
pub use service::Server;

#[cfg(test)]
mod tests;
