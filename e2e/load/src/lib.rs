//! An xDS load client: thousands of fake sidecars in one process, and what a server makes of them.
//!
//! ```text
//!  cases ──▶ server (weft serve on a directory, go-control-plane) ◀── change, restart, CPU, memory
//!    │            ▲ TLS, HTTP/2, delta ADS
//!    └────▶ fleet ┴ stream (one connection) ── sidecar (what Envoy says; no I/O) ── catalog (names and contents, once)
//!             │
//!             └▶ expected: every sidecar's state, byte by byte
//! ```
//!
//! A time begins at the moment before the object is written to the source, and ends when the last acknowledgement has
//! been handed to the socket. A sidecar holds four bytes for a resource and decodes none that another has had, so that
//! the client leaves the machine to the server.

pub mod cases;
pub mod catalog;
pub mod expected;
pub mod fleet;
pub mod mesh;
pub mod process;
pub mod report;
pub mod server;
pub mod sidecar;
pub mod stream;
mod wire;
