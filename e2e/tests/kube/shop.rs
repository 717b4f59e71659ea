//! The checks of the playground's shop that hold everywhere, unchanged, on an API server.

use weft_e2e::checks::{CERTIFICATE_LIFETIME, core};
use weft_e2e::kube::Shop;
use weft_e2e::mesh::pinned_version;
use weft_e2e::scenario::Scenarios;

use crate::finish;
use crate::installed::Installed;

#[test]
fn the_shop_of_the_playground_holds_on_an_api_server() {
    run("default");
}

#[test]
fn the_shop_of_the_playground_with_the_oldest_envoy_holds_on_an_api_server() {
    run("oldest");
}

fn run(line: &str) {
    let version = pinned_version(line).expect("a version");
    let lifetime = format!("controlPlane.extraArgs={{--certificate-lifetime={}s}}", CERTIFICATE_LIFETIME.as_secs());
    let values = [lifetime.as_str(), "injection.concurrency=1"];
    let installed = Installed::without_a_shop(&version, &values).unwrap_or_else(|error| panic!("{error:#}"));
    let shop = Shop::open(&installed.kubernetes, &installed.node, "examples/shop");
    let shop = shop.unwrap_or_else(|error| panic!("{error:#}"));
    let mut rows = Scenarios::with(&format!("shop-{line}"), &version, installed.node.traffic());
    for row in core(&shop) {
        rows.holds(&format!("kube-shop: {}", row.check), &row.expected, || Ok((row.ok, row.observed.clone())));
    }
    let log = installed.node.log("shop") + &installed.node.log("warehouse");
    finish(rows, || log);
}
