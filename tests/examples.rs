//! The examples name Weft's own image, and what they ask of `weft` is something that it takes.

#![allow(clippy::unwrap_used, clippy::panic, reason = "a test may, and here its helpers do")]

use std::fs;
use std::path::PathBuf;

use clap::Args;
use serde_json::Value;

/// Every document of the examples, with its file.
fn documents() -> Vec<(PathBuf, Value)> {
    let mut documents = Vec::new();
    for directory in ["examples/shop", "examples/shop-steps"] {
        for entry in fs::read_dir(directory).unwrap() {
            let path = entry.unwrap().path();
            if path.extension().is_some_and(|extension| extension == "yaml") {
                let text = fs::read_to_string(&path).unwrap();
                let parsed: Vec<Value> =
                    serde_saphyr::from_multiple(&text).unwrap_or_else(|error| panic!("{}: {error}", path.display()));
                documents.extend(parsed.into_iter().map(|document| (path.clone(), document)));
            }
        }
    }
    documents
}

/// Every container of the pods and Deployments.
fn containers() -> Vec<(PathBuf, Value)> {
    let mut containers = Vec::new();
    for (path, document) in documents() {
        let spec = match document["kind"].as_str() {
            Some("Pod") => &document["spec"],
            Some("Deployment") => &document["spec"]["template"]["spec"],
            _ => continue,
        };
        let all = spec["containers"].as_array().unwrap_or_else(|| panic!("{}: no containers", path.display()));
        containers.extend(all.iter().map(|container| (path.clone(), container.clone())));
    }
    assert!(containers.len() >= 10, "the shop has at least ten containers: {}", containers.len());
    containers
}

#[test]
fn every_container_runs_the_image_of_this_version() {
    for (path, container) in containers() {
        assert_eq!(container["image"], weft::IMAGE, "{}", path.display());
    }
}

#[test]
fn every_container_gives_arguments_that_weft_takes() {
    for (path, container) in containers() {
        let arguments: Vec<&str> =
            container["args"].as_array().unwrap().iter().map(|argument| argument.as_str().unwrap()).collect();
        assert_eq!(arguments.first(), Some(&"app"), "{}", path.display());
        let command = weft::cli::app::Args::augment_args(clap::Command::new("app"));
        let taken = command.try_get_matches_from(arguments);
        assert!(taken.is_ok(), "{}: {}", path.display(), taken.unwrap_err());
    }
}

#[test]
fn every_container_has_probes_and_its_ports_are_those_it_serves() {
    for (path, container) in containers() {
        assert!(container["readinessProbe"].is_object(), "{}: no readinessProbe", path.display());
        for port in container["ports"].as_array().unwrap() {
            let served = format!("--{}={}", port["name"].as_str().unwrap(), port["containerPort"]);
            let arguments = container["args"].as_array().unwrap();
            assert!(arguments.contains(&Value::from(served.as_str())), "{}: {served} is not served", path.display());
        }
    }
}
