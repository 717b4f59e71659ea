//! What an installation decides of all its sidecars: the file that the chart writes from its values.

use serde::{Deserialize, Serialize};
use serde_json::{Value, json};

/// How Envoy's version is written in the names of its images.
const ENVOY_IMAGE: &str = "docker.io/envoyproxy/envoy:v";

/// The options of injection. A field that is absent has its default.
#[derive(Debug, Clone, PartialEq, Serialize, Deserialize)]
#[serde(rename_all = "camelCase", deny_unknown_fields, default)]
pub struct Options {
    /// Weft's image, for the init container.
    pub image: String,
    /// The stock Envoy. Its `bash` runs the hooks, so that a distroless one does not do.
    pub envoy_image: String,
    /// `imagePullPolicy` of both; Kubernetes' default when absent.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub image_pull_policy: Option<String>,
    /// The form of the sidecar.
    pub sidecar: SidecarForm,
    /// Who loads the rules of interception.
    pub interception: Interception,
    /// The DNS name of the control plane: pods resolve it, and its certificate must carry it.
    pub control_plane: String,
    /// Envoy's log level.
    pub log_level: LogLevel,
    /// Envoy's worker threads.
    pub concurrency: u32,
    /// `resources` of the sidecar.
    pub resources: Value,
}

impl Default for Options {
    fn default() -> Self {
        Self {
            image: crate::IMAGE.to_owned(),
            envoy_image: format!("{ENVOY_IMAGE}{}", default_envoy()),
            image_pull_policy: None,
            sidecar: SidecarForm::default(),
            interception: Interception::default(),
            control_plane: crate::control_plane::DNS_NAME.to_owned(),
            log_level: LogLevel::default(),
            concurrency: 2,
            resources: json!({"requests": {"cpu": "50m", "memory": "64Mi"}, "limits": {"memory": "256Mi"}}),
        }
    }
}

/// The version of Envoy that Weft is run with by default.
fn default_envoy() -> &'static str {
    let lines = include_str!("../../envoy-bootstrap/VERSIONS").lines();
    lines.filter_map(|line| line.strip_prefix("default ")).next().unwrap_or_default()
}

/// The form of the sidecar.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum SidecarForm {
    /// An init container that is always restarted (KEP-753): it starts before the application and ends after it. From
    /// Kubernetes 1.29 on.
    #[default]
    Native,
    /// One of the pod's containers.
    Classic,
}

/// Who loads the rules of interception into a pod's network.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
pub enum Interception {
    /// The init container, which needs the capability NET_ADMIN for it.
    #[default]
    InitContainer,
    /// A CNI plugin, before any container runs. No container of the pod needs a right then.
    Cni,
}

/// A log level of Envoy.
#[derive(Debug, Clone, Copy, Default, PartialEq, Eq, Serialize, Deserialize)]
#[serde(rename_all = "lowercase")]
#[allow(missing_docs, reason = "the levels are Envoy's")]
pub enum LogLevel {
    Trace,
    Debug,
    Info,
    #[default]
    Warning,
    Error,
    Critical,
    Off,
}

impl LogLevel {
    /// The level by its name.
    pub fn parse(text: &str) -> Option<Self> {
        serde_json::from_value(text.into()).ok()
    }

    /// As Envoy's `-l` takes it.
    pub fn as_str(self) -> &'static str {
        match self {
            Self::Trace => "trace",
            Self::Debug => "debug",
            Self::Info => "info",
            Self::Warning => "warning",
            Self::Error => "error",
            Self::Critical => "critical",
            Self::Off => "off",
        }
    }
}

/// A file of options that cannot be used.
#[derive(Debug, thiserror::Error)]
#[error("the options of injection cannot be read: {0}; correct the file")]
pub struct OptionsError(String);

impl Options {
    /// Reads them from YAML.
    ///
    /// # Errors
    /// When it is no YAML, or has a field that does not exist or has another type.
    pub fn from_yaml(text: &str) -> Result<Self, OptionsError> {
        if text.trim().is_empty() {
            return Ok(Self::default());
        }
        let options: Self = serde_saphyr::from_str(text).map_err(|error| OptionsError(error.to_string()))?;
        let fits = |list: &str| options.resources.get(list).is_none_or(Value::is_object);
        match options.resources.is_object() && fits("requests") && fits("limits") {
            true => Ok(options),
            false => Err(OptionsError("resources: requests and limits must be mappings".to_owned())),
        }
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn what_is_absent_has_its_default_and_what_is_unknown_is_refused() {
        let options = Options::from_yaml("sidecar: Classic\nresources: {limits: {cpu: '1'}}\n").expect("options");
        assert_eq!((options.sidecar, options.interception), (SidecarForm::Classic, Interception::InitContainer));
        assert_eq!(options.image, crate::IMAGE);
        assert!(options.envoy_image.ends_with(":v1.40.0"), "{}", options.envoy_image);
        assert_eq!(Options::from_yaml("").expect("none"), Options::default());
        let written = serde_saphyr::to_string(&options).expect("written");
        assert_eq!(Options::from_yaml(&written).expect("read again"), options);
        for (text, named) in [
            ("sidecars: Native", "sidecars"),
            ("sidecar: native", "native"),
            ("resources: [1]", "resources"),
            ("- 1", ""),
        ] {
            let error = Options::from_yaml(text).expect_err(text).to_string();
            assert!(error.contains(named), "{error}");
        }
        assert_eq!(LogLevel::parse("debug").map(LogLevel::as_str), Some("debug"));
        assert_eq!(LogLevel::parse("verbose"), None);
    }
}
