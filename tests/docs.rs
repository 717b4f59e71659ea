//! The pages for users: what they list is what the code reads, and their links lead somewhere.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may, and here its helpers do")]

use std::collections::BTreeSet;
use std::fs;
use std::path::{Path, PathBuf};
use std::sync::LazyLock;

use regex::Regex;

/// Every file below a directory whose name ends so.
fn files(directory: &str, ending: &str) -> Vec<PathBuf> {
    let mut found = Vec::new();
    for entry in fs::read_dir(directory).unwrap() {
        let path = entry.unwrap().path();
        if path.is_dir() {
            found.extend(files(path.to_str().unwrap(), ending));
        } else if path.to_str().unwrap().ends_with(ending) {
            found.push(path);
        }
    }
    found
}

/// The labels and annotations of Weft's that a text names.
fn keys(text: &str) -> BTreeSet<String> {
    static KEY: LazyLock<Regex> = LazyLock::new(|| Regex::new(r"weft\.dev/([a-z][a-z-]*[a-z])\b").unwrap());
    // `weft.dev/v1alpha1`, the version of Weft's kinds, is none of them.
    KEY.captures_iter(text).map(|found| found[1].to_owned()).collect()
}

/// What the code says in its literals, with comments and tests left out.
fn keys_of_code() -> BTreeSet<String> {
    let literal = Regex::new("\"[^\"\\n]*\"").unwrap();
    let mut found = BTreeSet::new();
    for path in files("src", ".rs") {
        let is_test = path.file_stem().is_some_and(|stem| stem == "tests" || stem == "bad_inputs" || stem == "fixture");
        if is_test || path.to_str().unwrap().contains("/tests/") {
            continue;
        }
        let text = fs::read_to_string(&path).unwrap();
        let code = text.split("#[cfg(test)]\nmod tests {").next().unwrap_or_default();
        for line in code.lines().filter(|line| !line.trim_start().starts_with("//")) {
            literal.find_iter(line).for_each(|literal| found.extend(keys(literal.as_str())));
        }
    }
    found
}

#[test]
fn every_label_and_annotation_of_the_code_is_in_the_reference_and_no_other() {
    let code = keys_of_code();
    assert!(code.contains("mtls-ports") && code.contains("inject") && code.len() > 20, "the code is read: {code:?}");
    let reference = keys(&fs::read_to_string("docs/annotations.md").unwrap());
    let missing: Vec<_> = code.difference(&reference).collect();
    assert!(missing.is_empty(), "docs/annotations.md does not list {missing:?}");
    let invented: Vec<_> = reference.difference(&code).collect();
    assert!(invented.is_empty(), "docs/annotations.md lists what no code reads: {invented:?}");
}

#[test]
fn the_readme_leads_to_every_page_and_every_link_leads_somewhere() {
    let link = Regex::new(r"\]\(([^)#:]+)(#[^)]*)?\)").unwrap();
    let readme = fs::read_to_string("README.md").unwrap();
    let pages = files("docs", ".md");
    assert!(pages.len() > 10);
    for page in &pages {
        let page = page.to_str().unwrap();
        assert!(readme.contains(&format!("({page})")), "README.md does not lead to {page}");
    }
    for file in pages.iter().map(PathBuf::as_path).chain([Path::new("README.md")]) {
        let text = fs::read_to_string(file).unwrap();
        for found in link.captures_iter(&text) {
            let target = file.parent().unwrap().join(&found[1]);
            assert!(target.exists(), "{}: {} is not there", file.display(), &found[1]);
        }
    }
}
