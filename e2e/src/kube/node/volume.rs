//! The volumes of a pod: what they hold is written as the kubelet writes it, behind a link that is swapped.

use std::collections::BTreeMap;
use std::fs;
use std::os::unix::fs::{PermissionsExt, symlink};
use std::path::{Path, PathBuf};

use anyhow::{Context, bail};
use k8s_openapi::ByteString;
use serde_json::Value;

use super::Api;

/// The files of a volume by their path in it.
type Files = BTreeMap<String, Vec<u8>>;

/// The volumes of a pod.
pub(super) struct Volumes {
    directory: PathBuf,
    namespace: String,
    pod: String,
    account: String,
    /// What the fields of a downward API may be.
    fields: BTreeMap<String, String>,
    volumes: Vec<Value>,
    written: BTreeMap<String, (u64, Files)>,
    /// By audience: the node does not replace them, since no test takes so long.
    tokens: BTreeMap<String, String>,
}

impl Volumes {
    pub(super) fn of(pod: &Value, directory: PathBuf, fields: &BTreeMap<String, String>) -> Self {
        let text = |pointer: &str| pod.pointer(pointer).and_then(Value::as_str).unwrap_or("default").to_owned();
        Self {
            directory,
            namespace: text("/metadata/namespace"),
            pod: text("/metadata/name"),
            account: text("/spec/serviceAccountName"),
            fields: fields.clone(),
            volumes: pod["spec"]["volumes"].as_array().cloned().unwrap_or_default(),
            written: BTreeMap::new(),
            tokens: BTreeMap::new(),
        }
    }

    /// Writes what is new.
    ///
    /// # Errors
    /// When an object is not there that a volume needs.
    pub(super) fn refresh(&mut self, api: &Api) -> anyhow::Result<()> {
        for volume in self.volumes.clone() {
            let name = volume["name"].as_str().unwrap_or_default();
            let directory = self.directory.join(name);
            if volume.get("emptyDir").is_some() {
                fs::create_dir_all(&directory)?;
                fs::set_permissions(&directory, fs::Permissions::from_mode(0o777))?;
                continue;
            }
            let files = self.files(api, &volume).with_context(|| format!("volume {name}"))?;
            let (generation, before) = self.written.entry(name.to_owned()).or_default();
            if *generation > 0 && *before == files {
                continue;
            }
            *generation += 1;
            publish(&directory, *generation, &files)?;
            *before = files;
        }
        Ok(())
    }

    fn files(&mut self, api: &Api, volume: &Value) -> anyhow::Result<Files> {
        if let Some(map) = volume.get("configMap") {
            return self.object(api, "configmaps", map, "name");
        }
        if let Some(secret) = volume.get("secret") {
            return self.object(api, "secrets", secret, "secretName");
        }
        let Some(sources) = volume["projected"]["sources"].as_array() else {
            bail!("this node does not know its kind: {volume}");
        };
        let mut files = Files::new();
        for source in sources {
            if let Some(token) = source.get("serviceAccountToken") {
                let path = token["path"].as_str().context("a path")?;
                files.insert(path.to_owned(), self.token(api, token)?.into_bytes());
            } else if let Some(map) = source.get("configMap") {
                files.extend(self.object(api, "configmaps", map, "name")?);
            } else if let Some(items) = source["downwardAPI"]["items"].as_array() {
                for item in items {
                    let field = item["fieldRef"]["fieldPath"].as_str().unwrap_or_default();
                    let value = self.fields.get(field).cloned().unwrap_or_default();
                    files.insert(item["path"].as_str().context("a path")?.to_owned(), value.into_bytes());
                }
            } else {
                bail!("this node does not know the source {source}");
            }
        }
        Ok(files)
    }

    /// A token that is bound to the pod.
    fn token(&mut self, api: &Api, source: &Value) -> anyhow::Result<String> {
        let audience = source["audience"].as_str();
        let key = audience.unwrap_or_default().to_owned();
        if let Some(token) = self.tokens.get(&key) {
            return Ok(token.clone());
        }
        let seconds = source["expirationSeconds"].as_u64().and_then(|seconds| seconds.try_into().ok());
        let token = api.token(&self.namespace, &self.account, audience, Some(&self.pod), seconds.unwrap_or(3600))?;
        self.tokens.insert(key, token.clone());
        Ok(token)
    }

    /// What a ConfigMap or a Secret holds.
    fn object(&self, api: &Api, plural: &str, source: &Value, field: &str) -> anyhow::Result<Files> {
        let name = source[field].as_str().context("a name")?;
        let Some(object) = api.get("v1", plural, &self.namespace, name)? else {
            if source["optional"] == true {
                return Ok(Files::new());
            }
            bail!("there is no {plural} {name}");
        };
        let mut files = Files::new();
        for (key, value) in object["data"].as_object().into_iter().flatten() {
            let bytes = match plural {
                "secrets" => serde_json::from_value::<ByteString>(value.clone())?.0,
                _ => value.as_str().unwrap_or_default().as_bytes().to_vec(),
            };
            files.insert(key.clone(), bytes);
        }
        match source["items"].as_array() {
            None => Ok(files),
            Some(items) => items
                .iter()
                .map(|item| {
                    let key = item["key"].as_str().context("a key")?;
                    let bytes = files.get(key).with_context(|| format!("{plural} {name} has no {key}"))?;
                    Ok((item["path"].as_str().unwrap_or(key).to_owned(), bytes.clone()))
                })
                .collect(),
        }
    }
}

/// Has one file of a volume hold something else, as if its source had changed.
///
/// # Errors
/// When there is no such volume.
pub(super) fn replace(directory: &Path, path: &str, content: &str) -> anyhow::Result<()> {
    let mut files = Files::new();
    for entry in fs::read_dir(directory.join("..data")).with_context(|| directory.display().to_string())? {
        let entry = entry?;
        files.insert(entry.file_name().to_string_lossy().into_owned(), fs::read(entry.path())?);
    }
    files.insert(path.to_owned(), content.as_bytes().to_vec());
    let mut generations = 1..;
    let next = generations.find(|generation| !directory.join(format!("..{generation}")).exists());
    publish(directory, next.unwrap_or_default(), &files)
}

/// Writes a new generation of the files and swaps it in.
fn publish(directory: &Path, generation: u64, files: &Files) -> anyhow::Result<()> {
    let new = format!("..{generation}");
    fs::create_dir_all(directory.join(&new))?;
    for (path, content) in files {
        fs::write(directory.join(&new).join(path), content)?;
        if directory.join(path).symlink_metadata().is_err() {
            symlink(Path::new("..data").join(path), directory.join(path))?;
        }
    }
    symlink(&new, directory.join("..data_new"))?;
    fs::rename(directory.join("..data_new"), directory.join("..data"))?;
    Ok(())
}
