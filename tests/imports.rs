//! Data flows one way: which module may not import what (ARCHITECTURE.md).
//!
//! Reads every path of `src/`, in `use` and elsewhere, with comments, strings and test code left out.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may, and here its helpers do")]

use std::collections::BTreeSet;
use std::fmt::Write;
use std::fs;
use std::path::Path;

/// A module, and what it may not import: crates by name, modules of Weft as `crate::NAME`.
type Row = (&'static str, &'static [&'static str]);

const TABLE: &[Row] = &[
    // The flow, in its order.
    ("source", &["crate::envoy", "crate::xds", "crate::cli", "anyhow"]),
    (
        "mesh",
        &[
            "kube",
            "tonic",
            "tokio",
            "crate::source",
            "crate::policy",
            "crate::envoy",
            "crate::snapshot",
            "crate::xds",
            "crate::cli",
            "anyhow",
        ],
    ),
    (
        "policy",
        &[
            "kube",
            "tonic",
            "tokio",
            "envoy_types",
            "crate::source",
            "crate::envoy",
            "crate::snapshot",
            "crate::xds",
            "crate::cli",
            "anyhow",
        ],
    ),
    ("envoy", &["kube", "tokio", "crate::source", "crate::xds", "crate::cli", "anyhow"]),
    (
        "snapshot",
        &["kube", "tonic", "crate::source", "crate::policy", "crate::envoy", "crate::xds", "crate::cli", "anyhow"],
    ),
    ("xds", &["crate::source", "crate::policy", "crate::envoy", "crate::cli", "anyhow"]),
    // Beside the flow.
    ("ca", &["crate::source", "crate::policy", "crate::envoy", "crate::xds", "crate::cli", "anyhow"]),
    ("kubernetes", &["crate::source", "crate::policy", "crate::envoy", "crate::cli", "anyhow"]),
    ("inject", &["crate::xds", "crate::cli", "anyhow"]),
    ("webhook", &["crate::policy", "crate::snapshot", "crate::xds", "crate::cli", "anyhow"]),
    (
        "warm",
        &[
            "kube",
            "tonic",
            "crate::source",
            "crate::policy",
            "crate::envoy",
            "crate::snapshot",
            "crate::xds",
            "crate::cli",
            "anyhow",
        ],
    ),
    ("inspect", &["crate::cli", "anyhow"]),
    ("status", &["crate::cli", "anyhow"]),
    ("local", &["crate::cli", "anyhow"]),
    ("control_plane", &["crate::cli", "crate::local", "anyhow"]),
    (
        "app",
        &[
            "kube",
            "crate::source",
            "crate::mesh",
            "crate::policy",
            "crate::envoy",
            "crate::snapshot",
            "crate::xds",
            "crate::cli",
            "anyhow",
        ],
    ),
    ("duration", &["kube", "tonic", "tokio", "crate", "anyhow"]),
    ("nearest", &["kube", "tonic", "tokio", "anyhow"]),
    ("backoff", &["kube", "tonic", "tokio", "anyhow"]),
    ("cli", &[]),
];

/// The roots, which put everything together.
const ROOTS: [&str; 2] = ["lib", "main"];

#[test]
fn no_module_imports_what_it_may_not() {
    let mut found = String::new();
    for (file, module) in sources() {
        let Some((_, forbidden)) =
            TABLE.iter().find(|(name, _)| Some(name) == module.first().map(String::as_str).as_ref())
        else {
            continue; // the next test says so
        };
        for import in broken(&fs::read_to_string(&file).unwrap(), &module, forbidden) {
            writeln!(found, "{file}: may not import {import}").unwrap();
        }
    }
    assert!(found.is_empty(), "the module table of ARCHITECTURE.md is broken:\n{found}");
}

#[test]
fn every_module_has_a_row() {
    let modules: BTreeSet<String> = sources().into_iter().filter_map(|(_, module)| module.into_iter().next()).collect();
    assert!(modules.contains("mesh"), "the sources are read: {modules:?}");
    let without: Vec<_> = modules.iter().filter(|module| !TABLE.iter().any(|(name, _)| name == module)).collect();
    assert!(
        without.is_empty(),
        "{without:?} have no row in the table of tests/imports.rs: say what they may not import"
    );
}

#[test]
fn broken_rules_are_found_however_they_are_written() {
    let module = ["mesh".to_owned(), "object".to_owned()];
    let forbidden = ["tokio", "crate::xds"];
    for sample in [
        "use tokio::sync::watch;",
        "use ::tokio as t;",
        "use tokio;",
        "fn f() -> tokio::time::Instant { g() }",
        "use std::{fmt, collections::{BTreeMap}}; use {serde::Serialize, tokio::sync};",
        "#[tokio::main] async fn main() {}",
        "use crate::xds::status::Ledger;",
        "use crate::{policy::Plan, xds};",
        "pub(in crate::mesh) fn f(x: &crate::xds::status::Ledger) {}",
        "use super::super::xds::status;",
        "fn f() { super::super::xds::g() }",
        "#[cfg(test)] use std::fmt; use tokio::sync;",
        "#[cfg(test)] mod tests { use std::fmt; } use tokio::sync;",
        "const A: char = '\"'; use tokio::sync; const B: char = '\"';",
        "fn f<'a>(x: &'a str) {} use tokio::sync;",
        "const A: &str = r#\"\"//\"#; use tokio::sync;",
        "/* /* */ */ use tokio::sync;",
    ] {
        assert_eq!(broken(sample, &module, &forbidden).len(), 1, "{sample}");
    }
    for sample in [
        "// use tokio::sync;\n/// [`crate::xds::status`]\n/* use crate::xds; /* nested */ use tokio::sync; */",
        "const A: &str = \"use tokio::sync;\"; const B: &str = r##\"tokio::x \"# tokio::y\"##; const C: &[u8] = b\"\\\"tokio::x\";",
        "#[cfg(test)] mod tests { use tokio::sync; fn f() { crate::xds::g() } }",
        "#[cfg(test)] use tokio::sync;",
        "use super::tokio::x; use crate::mesh::xds; use super::xds::y; fn f(tokio: u8) { tokio + 1 }",
        "use crate::xdsx::a; use tokio_stream::b;",
    ] {
        assert_eq!(broken(sample, &module, &forbidden), Vec::<String>::new(), "{sample}");
    }
}

/// Each file of `src/` but the roots and the tests, with the path of its module.
fn sources() -> Vec<(String, Vec<String>)> {
    fn read(directory: &Path, module: &[String], into: &mut Vec<(String, Vec<String>)>) {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            let stem = path.file_stem().unwrap().to_str().unwrap().to_owned();
            if stem == "tests" || (module.is_empty() && ROOTS.contains(&stem.as_str())) {
                continue;
            }
            let mut inner = module.to_vec();
            if stem != "mod" {
                inner.push(stem);
            }
            if path.is_dir() {
                read(&path, &inner, into);
            } else if path.extension().is_some_and(|extension| extension == "rs") {
                into.push((path.display().to_string(), inner));
            }
        }
    }
    let mut sources = Vec::new();
    read(Path::new("src"), &[], &mut sources);
    sources
}

/// What a source of this module imports against the rules.
fn broken(source: &str, module: &[String], forbidden: &[&str]) -> Vec<String> {
    let mut tokens = without_tests(tokens(source));
    tokens.push(String::new()); // so that a path at the very end has a token after it
    let mut paths = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        let after_path = at > 0 && matches!(tokens[at - 1].as_str(), "::" | ".");
        if tokens[at] == "use" {
            at = use_tree(&tokens, at + 1, &[], &mut paths);
        } else if is_name(&tokens[at]) && !after_path && tokens[at + 1] == "::" {
            at = use_tree(&tokens, at, &[], &mut paths);
        } else if tokens[at] == "::" && !(at > 0 && (is_name(&tokens[at - 1]) || tokens[at - 1] == ">")) {
            at = use_tree(&tokens, at + 1, &[], &mut paths);
        } else if tokens[at] == "crate" || tokens[at] == "super" {
            paths.push(vec![tokens[at].clone()]);
            at += 1;
        } else {
            at += 1;
        }
    }
    let mut found: Vec<String> = paths.iter().map(|path| absolute(path, module)).collect();
    found.retain(|path| {
        forbidden.iter().any(|rule| path == rule || path.strip_prefix(rule).is_some_and(|rest| rest.starts_with("::")))
    });
    found
}

/// Reads one tree of paths (`a::{b, c::d}`) from `at`, and says where it ends.
fn use_tree(tokens: &[String], mut at: usize, prefix: &[String], paths: &mut Vec<Vec<String>>) -> usize {
    let mut path = prefix.to_vec();
    if tokens[at] == "::" {
        at += 1;
    }
    loop {
        match tokens[at].as_str() {
            "{" => {
                at += 1;
                while !matches!(tokens[at].as_str(), "}" | "") {
                    let next = use_tree(tokens, at, &path, paths);
                    at = next.max(at + 1);
                    if tokens[at] == "as" {
                        at += 2;
                    }
                    if tokens[at] == "," {
                        at += 1;
                    }
                }
                return (at + 1).min(tokens.len() - 1);
            }
            name if is_name(name) => {
                path.push(name.to_owned());
                at += 1;
            }
            _ => break,
        }
        if tokens[at] != "::" {
            break;
        }
        at += 1;
    }
    paths.push(path);
    at
}

/// A path from the root of Weft (`crate::xds::status`) or from a crate (`tokio::sync`).
fn absolute(path: &[String], module: &[String]) -> String {
    let supers = path.iter().take_while(|name| *name == "super").count();
    let relative = path.first().is_some_and(|name| name == "self") || supers > 0;
    if !relative {
        return path.join("::");
    }
    let kept = module.len().saturating_sub(supers);
    let rest = path.iter().skip_while(|name| matches!(name.as_str(), "self" | "super"));
    let names: Vec<&str> = module[..kept].iter().chain(rest).map(String::as_str).collect();
    format!("crate::{}", names.join("::"))
}

fn is_name(token: &str) -> bool {
    token.starts_with(|c: char| c.is_alphabetic() || c == '_')
}

/// The tokens without the items that are under `#[cfg(test)]`.
fn without_tests(tokens: Vec<String>) -> Vec<String> {
    let test = ["#", "[", "cfg", "(", "test", ")", "]"];
    let mut kept = Vec::new();
    let mut at = 0;
    while at < tokens.len() {
        if !tokens[at..].iter().map(String::as_str).take(test.len()).eq(test) {
            kept.push(tokens[at].clone());
            at += 1;
            continue;
        }
        at += test.len();
        let is_use = tokens.get(at).is_some_and(|token| token == "use");
        let mut depth = 0_usize;
        while at < tokens.len() {
            match tokens[at].as_str() {
                "{" => depth += 1,
                "}" => depth = depth.saturating_sub(1),
                _ => {}
            }
            let ends = tokens[at] == ";" || (tokens[at] == "}" && !is_use);
            at += 1;
            if ends && depth == 0 {
                break;
            }
        }
    }
    kept
}

/// Names, `::`, and all other marks one by one; no comments, strings, characters or lifetimes.
fn tokens(source: &str) -> Vec<String> {
    let text: Vec<char> = source.chars().collect();
    let mut tokens = Vec::new();
    let mut at = 0;
    while at < text.len() {
        let rest = &text[at..];
        at += match rest {
            ['/', '/', ..] => rest.iter().position(|c| *c == '\n').unwrap_or(rest.len()),
            ['/', '*', ..] => comment(rest),
            ['"', ..] => string(rest),
            ['b' | 'c', '"', ..] => 1 + string(&rest[1..]),
            ['r', '"' | '#', ..] if raw_string(&rest[1..]).is_some() => 1 + raw_string(&rest[1..]).unwrap(),
            ['b' | 'c', 'r', '"' | '#', ..] if raw_string(&rest[2..]).is_some() => 2 + raw_string(&rest[2..]).unwrap(),
            ['\'', '\\', _, ..] => 3 + rest[3..].iter().position(|c| *c == '\'').map_or(rest.len() - 3, |end| end + 1),
            ['\'', _, '\'', ..] => 3,
            ['\'', ..] => 1 + rest[1..].iter().take_while(|c| c.is_alphanumeric() || **c == '_').count(),
            [':', ':', ..] => {
                tokens.push("::".to_owned());
                2
            }
            [first, ..] if first.is_alphanumeric() || *first == '_' => {
                let name: String = rest.iter().take_while(|c| c.is_alphanumeric() || **c == '_').collect();
                let length = name.chars().count();
                tokens.push(name);
                length
            }
            [mark, ..] => {
                if !mark.is_whitespace() {
                    tokens.push(mark.to_string());
                }
                1
            }
            [] => 1,
        };
    }
    tokens
}

/// The length of a comment with those inside it.
fn comment(text: &[char]) -> usize {
    let (mut depth, mut at) = (0, 0);
    while at < text.len() {
        match text[at..] {
            ['/', '*', ..] => (depth, at) = (depth + 1, at + 2),
            ['*', '/', ..] => (depth, at) = (depth - 1, at + 2),
            _ => at += 1,
        }
        if depth == 0 {
            break;
        }
    }
    at
}

/// The length of a string from quote to quote.
fn string(text: &[char]) -> usize {
    let mut at = 1;
    while at < text.len() && text[at] != '"' {
        at += if text[at] == '\\' { 2 } else { 1 };
    }
    (at + 1).min(text.len())
}

/// The length of a raw string from its first hash or quote; none for a raw name (`r#type`).
fn raw_string(text: &[char]) -> Option<usize> {
    let hashes = text.iter().take_while(|c| **c == '#').count();
    if text.get(hashes) != Some(&'"') {
        return None;
    }
    let mut at = hashes + 1;
    while at < text.len() {
        if text[at] == '"' && text[at + 1..].iter().take(hashes).filter(|c| **c == '#').count() == hashes {
            return Some(at + 1 + hashes);
        }
        at += 1;
    }
    Some(text.len())
}
