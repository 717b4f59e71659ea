//! Envoy's `/config_dump` as a flat list of resources.

use serde::Serialize;
use serde_json::Value;

/// A type of resource.
#[derive(Clone, Copy, PartialEq, Eq, PartialOrd, Ord, Debug, Serialize, clap::ValueEnum)]
#[serde(rename_all = "lowercase")]
pub(super) enum Type {
    /// Clusters (CDS).
    Clusters,
    /// Endpoints (EDS).
    Endpoints,
    /// Listeners (LDS).
    Listeners,
    /// Route configurations (RDS).
    Routes,
    /// Secrets (SDS); private keys are not shown.
    Secrets,
}

impl Type {
    const ALL: [Self; 5] = [Self::Clusters, Self::Endpoints, Self::Listeners, Self::Routes, Self::Secrets];

    /// The message of `envoy.admin.v3` that holds them, the field of its items with the resource, and the field of
    /// the resource with its name.
    fn shape(self) -> (&'static str, &'static str, &'static str) {
        match self {
            Self::Clusters => ("ClustersConfigDump", "cluster", "name"),
            Self::Endpoints => ("EndpointsConfigDump", "endpoint_config", "cluster_name"),
            Self::Listeners => ("ListenersConfigDump", "listener", "name"),
            Self::Routes => ("RoutesConfigDump", "route_config", "name"),
            Self::Secrets => ("SecretsConfigDump", "secret", "name"),
        }
    }
}

/// One resource as a proxy has it.
#[derive(Clone, PartialEq, Debug, Serialize)]
pub(super) struct Entry {
    pub(super) r#type: Type,
    pub(super) name: String,
    /// `static`, `active`, `warming` or `draining`; `refused` for one of which no version was ever accepted.
    pub(super) state: &'static str,
    /// As the control plane named it; empty for what is static.
    pub(super) version: String,
    pub(super) last_updated: String,
    /// Why the last update was refused, in Envoy's words.
    #[serde(skip_serializing_if = "Option::is_none")]
    pub(super) error: Option<String>,
    pub(super) resource: Value,
}

/// Every resource of a dump, by type and name. What has an unexpected form is passed over.
pub(super) fn entries(dump: &Value) -> Vec<Entry> {
    let mut entries = Vec::new();
    for config in items(dump, "configs") {
        let message = text(config, "@type").rsplit('.').next().unwrap_or_default();
        if let (Some(r#type), Value::Object(groups)) =
            (Type::ALL.into_iter().find(|r#type| r#type.shape().0 == message), config)
        {
            for (group, found) in groups {
                found.as_array().into_iter().flatten().for_each(|item| read(&mut entries, r#type, group, item));
            }
        }
    }
    entries.sort_by(|a, b| (a.r#type, &a.name).cmp(&(b.r#type, &b.name)));
    entries
}

/// Those of one type and name, where they are asked for.
pub(super) fn select(entries: Vec<Entry>, r#type: Option<Type>, name: Option<&str>) -> anyhow::Result<Vec<Entry>> {
    let of_type: Vec<Entry> =
        entries.into_iter().filter(|entry| r#type.is_none_or(|wanted| entry.r#type == wanted)).collect();
    let Some(name) = name else { return Ok(of_type) };
    let exact = of_type.iter().any(|entry| entry.name == name);
    let fits = |entry: &Entry| if exact { entry.name == name } else { entry.name.contains(name) };
    let found: Vec<Entry> = of_type.into_iter().filter(fits).collect();
    anyhow::ensure!(!found.is_empty(), "the proxy has no such resource whose name contains `{name}`");
    Ok(found)
}

/// Listeners have their states inside the item, the others have a group for each.
fn read(entries: &mut Vec<Entry>, r#type: Type, group: &str, item: &Value) {
    let error = item.get("error_state").map(|state| text(state, "details").to_owned());
    let states = ["active", "warming", "draining"];
    let nested: Vec<_> =
        states.into_iter().filter_map(|state| Some((state, item.get(format!("{state}_state"))?))).collect();
    if group == "dynamic_listeners" {
        for (state, holder) in &nested {
            entries.extend(entry(r#type, state, holder, text(item, "name"), error.clone()));
        }
        if let (true, Some(error)) = (nested.is_empty(), error) {
            let resource = item.pointer("/error_state/failed_configuration").cloned().unwrap_or_default();
            let holder = serde_json::json!({ "listener": resource });
            entries.extend(entry(r#type, "refused", &holder, text(item, "name"), Some(error)));
        }
    } else {
        let state = match group {
            _ if group.starts_with("static_") => "static",
            _ if group.starts_with("dynamic_warming_") => "warming",
            _ => "active",
        };
        entries.extend(entry(r#type, state, item, text(item, "name"), error));
    }
}

fn entry(r#type: Type, state: &'static str, holder: &Value, name: &str, error: Option<String>) -> Option<Entry> {
    let (_, field, name_field) = r#type.shape();
    let mut resource = holder.get(field)?.clone();
    redact(&mut resource);
    let own_name = text(&resource, name_field);
    Some(Entry {
        r#type,
        name: if own_name.is_empty() { name } else { own_name }.to_owned(),
        state,
        version: text(holder, "version_info").to_owned(),
        last_updated: text(holder, "last_updated").to_owned(),
        error,
        resource,
    })
}

/// Hides what is secret. Envoy has done so already; an admin interface that is not Envoy's may not have.
fn redact(value: &mut Value) {
    match value {
        Value::Object(fields) => {
            for (name, value) in fields {
                match name.as_str() {
                    "private_key" | "password" | "pkcs12" | "session_ticket_keys" | "generic_secret" => blank(value),
                    _ => redact(value),
                }
            }
        }
        Value::Array(items) => items.iter_mut().for_each(redact),
        _ => {}
    }
}

fn blank(value: &mut Value) {
    match value {
        Value::String(text) => *text = "[redacted]".to_owned(),
        Value::Array(items) => items.iter_mut().for_each(blank),
        Value::Object(fields) => fields.values_mut().for_each(blank),
        _ => {}
    }
}

/// The text of a field; empty if it is absent or no text.
pub(super) fn text<'a>(value: &'a Value, field: &str) -> &'a str {
    value.get(field).and_then(Value::as_str).unwrap_or_default()
}

/// The items of a repeated field; none if it is absent.
pub(super) fn items<'a>(value: &'a Value, field: &str) -> impl Iterator<Item = &'a Value> {
    value.get(field).and_then(Value::as_array).into_iter().flatten()
}

/// `IP:PORT` of an `envoy.config.core.v3.Address`; the path of a pipe; the name of an internal listener.
pub(super) fn address(value: &Value) -> String {
    if let Some(socket) = value.get("socket_address") {
        let (host, port) = (text(socket, "address"), socket.get("port_value").and_then(Value::as_u64).unwrap_or(0));
        return if host.contains(':') { format!("[{host}]:{port}") } else { format!("{host}:{port}") };
    }
    let internal = value.pointer("/envoy_internal_address/server_listener_name").and_then(Value::as_str);
    let pipe = value.pointer("/pipe/path").and_then(Value::as_str);
    internal.or(pipe).unwrap_or_default().to_owned()
}
