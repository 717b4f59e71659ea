//! Compiles every .proto file below proto/ in pure Rust: no protoc is needed. Puts the Helm chart into the program. Has the
//! release's linker fold functions that are the same.

use std::env;
use std::error::Error;
use std::fmt::Write;
use std::path::{Path, PathBuf};

use tonic_prost_build::Builder;

fn main() -> Result<(), Box<dyn Error>> {
    let root = Path::new("proto");
    println!("cargo::rerun-if-changed={}", root.display());
    let files = files_below(root, &|path| path.extension().is_some_and(|extension| extension == "proto"))?;
    let descriptors = protox::compile(&files, [root])?;
    as_json(tonic_prost_build::configure()).compile_fds(descriptors)?;
    chart(Path::new("helm/weft"))?;
    fold_identical_functions();
    Ok(())
}

/// Writes `chart.rs`: an array of each file's path in the chart and its text. The definitions are left out, since the
/// program makes them itself.
fn chart(root: &Path) -> Result<(), Box<dyn Error>> {
    println!("cargo::rerun-if-changed={}", root.display());
    let mut code = "&[\n".to_owned();
    for path in files_below(root, &|path| !path.starts_with(root.join("crds")))? {
        let name = path.strip_prefix(root)?;
        // From where the package is when it is compiled: a checkout may be moved with what it has built.
        let path = format!("/{}", path.display());
        writeln!(code, "    ({name:?}, include_str!(concat!(env!(\"CARGO_MANIFEST_DIR\"), {path:?}))),")?;
    }
    code.push_str("]\n");
    Ok(std::fs::write(Path::new(&env::var("OUT_DIR")?).join("chart.rs"), code)?)
}

/// The same code for many types is in the program once. Nearly all of a program's code becomes resident, so that this is
/// memory: half a megabyte. lld can do it, which Rust links with by default on this target alone.
fn fold_identical_functions() {
    let is = |name: &str, value: &str| env::var(name).is_ok_and(|found| found == value);
    if is("PROFILE", "release") && is("TARGET", "x86_64-unknown-linux-gnu") {
        println!("cargo::rustc-link-arg-bins=-Wl,--icf=all");
    }
}

/// These messages are also the JSON of the admin port and of commands: the same fields by the same names.
fn as_json(builder: Builder) -> Builder {
    let messages = [
        "ListDeliveriesResponse",
        "ObjectDelivery",
        "ResourceDelivery",
        "Answers",
        "ResourceRefusal",
        "ListHeldBackResponse",
        "HeldBack",
        "ObjectName",
        "PodName",
        "ListDenialsResponse",
        "Denial",
        "ListDiagnosticsResponse",
        "Diagnostic",
    ];
    let fields = [
        ("ObjectDelivery", &[("state", "state"), ("changed_at", "time")][..]),
        ("ResourceDelivery", &[("type", "resource_type"), ("state", "state"), ("changed_at", "time")]),
        ("Answers", &[("took", "seconds")]),
        ("ResourceRefusal", &[("at", "time"), ("type", "resource_type")]),
        ("HeldBack", &[("at", "time"), ("type", "resource_type")]),
        ("Denial", &[("first_at", "time"), ("last_at", "time")]),
        ("Diagnostic", &[("severity", "severity")]),
    ];
    let builder = messages.into_iter().fold(builder, |builder, message| {
        builder.type_attribute(format!(".weft.inspect.v1.{message}"), "#[derive(serde::Serialize)]")
    });
    let builder = fields.into_iter().fold(builder, |builder, (message, fields)| {
        fields.iter().fold(builder, |builder, (field, writer)| {
            let attribute = format!("#[serde(serialize_with = \"crate::inspect::json::{writer}\")]");
            builder.field_attribute(format!(".weft.inspect.v1.{message}.{field}"), attribute)
        })
    });
    builder.type_attribute(
        ".weft.inspect.v1.ListDeliveriesRequest",
        "#[derive(serde::Deserialize)] #[serde(default, deny_unknown_fields)]",
    )
}

/// The files that are wanted, in a fixed order, so that equal trees give equal code.
fn files_below(dir: &Path, wanted: &dyn Fn(&Path) -> bool) -> Result<Vec<PathBuf>, Box<dyn Error>> {
    let mut found = Vec::new();
    for entry in std::fs::read_dir(dir)? {
        let path = entry?.path();
        if path.is_dir() {
            found.extend(files_below(&path, wanted)?);
        } else if wanted(&path) {
            found.push(path);
        }
    }
    found.sort();
    Ok(found)
}
