//! Who may call whom.

use std::fs;
use std::io::{Read, Write};
use std::net::SocketAddr;
use std::time::Duration;

use anyhow::Context;

use super::{Seen, Site};
use crate::mesh::repository;

const INVENTORY: &str = "grpc://inventory.warehouse:9090";
const LEDGER: &str = "tcp://ledger.warehouse:7000";

/// The shell may call the frontend, and read the catalog; nothing else.
pub(super) fn denied(mesh: &dyn Site) -> anyhow::Result<Seen> {
    let codes = [
        mesh.code("shop/shell", &["http://cart/"])?,
        mesh.code("shop/shell", &["-X", "POST", "http://catalog/"])?,
        mesh.code("shop/shell", &[INVENTORY])?,
        mesh.code("shop/shell", &[LEDGER])?,
    ];
    Ok(Seen::new(codes == ["403", "403", "PERMISSION_DENIED", "closed"], codes.join(", ")))
}

/// HTTP clients keep connections in store. One that says nothing for a while is HTTP all the same.
pub(super) fn silent_at_first(mesh: &dyn Site) -> anyhow::Result<Seen> {
    let catalog = mesh.resolve("shop/shell", "catalog")?;
    let mut connection = mesh.dial("shop/shell", SocketAddr::new(catalog, 80))?;
    // The time is the subject: no condition stands for it.
    std::thread::sleep(Duration::from_millis(1500));
    connection.write_all(b"GET /healthz HTTP/1.1\r\nhost: catalog\r\nconnection: close\r\n\r\n")?;
    let mut answer = String::new();
    connection.read_to_string(&mut answer)?;
    let status = answer.lines().next().unwrap_or("nothing").to_owned();
    Ok(Seen::new(status == "HTTP/1.1 200 OK", status))
}

/// And more, while a target says so.
pub(super) fn allowed(mesh: &dyn Site) -> anyhow::Result<Seen> {
    let read = mesh.code("shop/shell", &["http://catalog/"])?;
    let took = allow(mesh)?;
    let inventory = mesh.code("shop/shell", &[INVENTORY])?;
    let ledger = mesh.code("shop/shell", &[LEDGER])?;
    mesh.remove(TARGETS)?;
    let codes = [read, inventory, ledger, mesh.code("shop/shell", &[INVENTORY])?, mesh.code("shop/shell", &[LEDGER])?];
    let ok = codes == ["200", "OK", "ok", "PERMISSION_DENIED", "closed"];
    Ok(Seen::new(ok, format!("{}; in force after {} ms", codes.join(", "), took.as_millis())))
}

/// The file that lets the shell call the warehouse.
pub(super) const TARGETS: &str = "allow-shell.yaml";

/// Puts [`TARGETS`] in force.
pub(super) fn allow(mesh: &dyn Site) -> anyhow::Result<Duration> {
    let path = repository().join("examples/shop-steps").join(TARGETS);
    mesh.write(TARGETS, &fs::read_to_string(&path).with_context(|| path.display().to_string())?)
}
