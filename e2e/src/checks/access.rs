//! Who may call whom.

use std::fs;

use anyhow::Context;

use super::Seen;
use crate::mesh::{Mesh, repository};

const INVENTORY: &str = "grpc://inventory.warehouse:9090";
const LEDGER: &str = "tcp://ledger.warehouse:7000";

/// The shell may call the frontend, and read the catalog; nothing else.
pub(super) fn denied(mesh: &Mesh) -> anyhow::Result<Seen> {
    let codes = [
        mesh.code("shop/shell", &["http://cart/"])?,
        mesh.code("shop/shell", &["-X", "POST", "http://catalog/"])?,
        mesh.code("shop/shell", &[INVENTORY])?,
        mesh.code("shop/shell", &[LEDGER])?,
    ];
    Ok(Seen::new(codes == ["403", "403", "PERMISSION_DENIED", "closed"], codes.join(", ")))
}

/// And more, while a target says so.
pub(super) fn allowed(mesh: &Mesh) -> anyhow::Result<Seen> {
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
pub(super) fn allow(mesh: &Mesh) -> anyhow::Result<std::time::Duration> {
    let path = repository().join("examples/shop-steps").join(TARGETS);
    mesh.write(TARGETS, &fs::read_to_string(&path).with_context(|| path.display().to_string())?)
}
