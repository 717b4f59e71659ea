//! What tests ask an API server for, with all rights.

use anyhow::Context;
use kube::Client;
use serde_json::{Value, json};

use super::{http_request, objects};

/// An API server, as its administrator sees it. Clones are the same.
#[derive(Clone)]
pub struct Api {
    client: Client,
    runtime: tokio::runtime::Handle,
}

impl Api {
    pub(super) fn new(client: Client, runtime: tokio::runtime::Handle) -> Self {
        Self { client, runtime }
    }

    /// A client with all rights.
    pub fn client(&self) -> Client {
        self.client.clone()
    }

    /// Runs a future to its end.
    pub fn block_on<T>(&self, work: impl Future<Output = T>) -> T {
        self.runtime.block_on(work)
    }

    /// Creates or changes all objects of a YAML text, as `kubectl apply --server-side` would.
    ///
    /// # Errors
    /// When the server refuses one.
    pub fn apply(&self, yaml: &str) -> anyhow::Result<()> {
        for document in yaml.split("\n---\n").filter(|document| document.lines().any(|line| !line.starts_with('#'))) {
            let object: Value = serde_saphyr::from_str(document).with_context(|| document.to_owned())?;
            self.put(&object)?;
        }
        Ok(())
    }

    /// Creates or changes an object, and its `status` when it has one.
    ///
    /// # Errors
    /// When the server refuses it.
    pub fn put(&self, object: &Value) -> anyhow::Result<()> {
        self.runtime.block_on(objects::put(&self.client, object))
    }

    /// Deletes an object at once; it is no error when there is none.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn delete(&self, api_version: &str, plural: &str, namespace: &str, name: &str) -> anyhow::Result<()> {
        let path = objects::path(api_version, plural, namespace, name);
        let body = json!({"gracePeriodSeconds": 0}).to_string();
        match self.runtime.block_on(self.client.request_text(http_request(
            "DELETE",
            &path,
            Some(("application/json", body)),
        ))) {
            Ok(_) => Ok(()),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(()),
            Err(error) => Err(error).with_context(|| path),
        }
    }

    /// Deletes an object as it was written.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn remove(&self, object: &Value) -> anyhow::Result<()> {
        let text = |pointer: &str| object.pointer(pointer).and_then(Value::as_str).unwrap_or_default();
        let (plural, namespaced) = objects::resource(text("/kind"));
        let namespace = if namespaced { text("/metadata/namespace") } else { "" };
        self.delete(text("/apiVersion"), &plural, namespace, text("/metadata/name"))
    }

    /// An object; `None` when there is none.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn get(&self, api_version: &str, plural: &str, namespace: &str, name: &str) -> anyhow::Result<Option<Value>> {
        let path = objects::path(api_version, plural, namespace, name);
        match self.runtime.block_on(self.client.request::<Value>(http_request("GET", &path, None))) {
            Ok(object) => Ok(Some(object)),
            Err(kube::Error::Api(status)) if status.code == 404 => Ok(None),
            Err(error) => Err(error).with_context(|| path),
        }
    }

    /// Changes an object by a JSON merge patch.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn patch(&self, path: (&str, &str, &str, &str), patch: &Value) -> anyhow::Result<()> {
        let path = objects::path(path.0, path.1, path.2, path.3);
        let body = Some(("application/merge-patch+json", patch.to_string()));
        self.runtime.block_on(self.client.request_text(http_request("PATCH", &path, body))).with_context(|| path)?;
        Ok(())
    }

    /// A token of a ServiceAccount by TokenRequest, bound to a pod when `pod` names one.
    ///
    /// # Errors
    /// When the server refuses.
    pub fn token(
        &self,
        namespace: &str,
        account: &str,
        audience: Option<&str>,
        pod: Option<&str>,
        seconds: u32,
    ) -> anyhow::Result<String> {
        let path = format!("{}/token", objects::path("v1", "serviceaccounts", namespace, account));
        let mut spec = json!({"expirationSeconds": seconds});
        if let Some(audience) = audience {
            spec["audiences"] = json!([audience]);
        }
        if let Some(pod) = pod {
            spec["boundObjectRef"] = json!({"apiVersion": "v1", "kind": "Pod", "name": pod});
        }
        let body = json!({"apiVersion": "authentication.k8s.io/v1", "kind": "TokenRequest", "spec": spec}).to_string();
        let request = http_request("POST", &path, Some(("application/json", body)));
        let answer: Value = self.runtime.block_on(self.client.request(request)).with_context(|| path)?;
        Ok(answer["status"]["token"].as_str().context("a token")?.to_owned())
    }
}
