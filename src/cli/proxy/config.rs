//! `weft proxy config`: a table for each type of resource.

use serde_json::Value;

use super::config_dump::{Entry, Type, address, items, text};
use crate::cli::output::Table;

/// The tables of all types that occur, a blank line between them.
pub(super) fn tables(entries: &[Entry]) -> String {
    let of = |r#type| entries.iter().filter(|entry| entry.r#type == r#type).collect::<Vec<_>>();
    let mut parts = Vec::new();
    let mut add = |r#type, table: fn(&[&Entry]) -> Table| {
        let found = of(r#type);
        if !found.is_empty() {
            parts.push(table(&found).to_string());
        }
    };
    add(Type::Clusters, clusters);
    add(Type::Endpoints, endpoints);
    add(Type::Listeners, listeners);
    add(Type::Routes, routes);
    add(Type::Secrets, secrets);
    let refusals: Vec<String> = entries.iter().filter_map(refusal).collect();
    if !refusals.is_empty() {
        parts.push(refusals.concat());
    }
    if parts.is_empty() { "The proxy has no such resource.\n".to_owned() } else { parts.join("\n") }
}

fn refusal(entry: &Entry) -> Option<String> {
    let kind = match entry.r#type {
        Type::Clusters => "cluster",
        Type::Endpoints => "endpoints",
        Type::Listeners => "listener",
        Type::Routes => "route configuration",
        Type::Secrets => "secret",
    };
    Some(format!("REFUSED {kind} {}: {}\n", entry.name, entry.error.as_ref()?))
}

fn clusters(entries: &[&Entry]) -> Table {
    let mut table = Table::new(["CLUSTER", "STAT NAME", "TYPE", "TLS", "STATE", "VERSION"]);
    for entry in entries {
        let cluster = &entry.resource;
        let r#type = match (text(cluster, "type"), text(&cluster["cluster_type"], "name")) {
            ("", "") => "STATIC", // the default of Cluster.type, which JSON leaves out
            ("", custom) => custom,
            (r#type, _) => r#type,
        };
        table.row([
            entry.name.clone(),
            text(cluster, "alt_stat_name").to_owned(),
            r#type.to_owned(),
            cluster_tls(cluster),
            entry.state.to_owned(),
            entry.version.clone(),
        ]);
    }
    table
}

/// The SNI of a cluster's TLS; `yes` if it has none; empty without TLS.
fn cluster_tls(cluster: &Value) -> String {
    let matches = items(cluster, "transport_socket_matches").filter_map(|each| each.get("transport_socket"));
    let mut sockets = cluster.get("transport_socket").into_iter().chain(matches);
    let tls = sockets.find_map(|socket| {
        let config = socket.get("typed_config")?;
        text(config, "@type").ends_with(".UpstreamTlsContext").then(|| text(config, "sni"))
    });
    match tls {
        Some("") => "yes".to_owned(),
        Some(sni) => sni.to_owned(),
        None => String::new(),
    }
}

fn endpoints(entries: &[&Entry]) -> Table {
    let mut table = Table::new(["CLUSTER", "ENDPOINT", "HEALTH", "WEIGHT", "PRIORITY", "ZONE"]);
    for entry in entries {
        let mut any = false;
        for locality in items(&entry.resource, "endpoints") {
            for endpoint in items(locality, "lb_endpoints") {
                any = true;
                table.row([
                    entry.name.clone(),
                    address(&endpoint["endpoint"]["address"]),
                    text(endpoint, "health_status").to_owned(),
                    number(&endpoint["load_balancing_weight"]),
                    locality.get("priority").map_or("0".to_owned(), number),
                    text(&locality["locality"], "zone").to_owned(),
                ]);
            }
        }
        if !any {
            table.row([
                entry.name.clone(),
                "none".to_owned(),
                String::new(),
                String::new(),
                String::new(),
                String::new(),
            ]);
        }
    }
    table
}

fn listeners(entries: &[&Entry]) -> Table {
    let mut table = Table::new(["LISTENER", "ADDRESS", "CHAIN", "MATCH", "TLS", "DESTINATION", "STATE", "VERSION"]);
    for entry in entries {
        let listener = &entry.resource;
        let mut add = |chain: &str, r#match: String, tls: &str, destination: String| {
            table.row([
                entry.name.clone(),
                address(&listener["address"]),
                chain.to_owned(),
                r#match,
                tls.to_owned(),
                destination,
                entry.state.to_owned(),
                entry.version.clone(),
            ]);
        };
        let (mut chains, default) = (items(listener, "filter_chains").peekable(), listener.get("default_filter_chain"));
        if chains.peek().is_none() && default.is_none() {
            add("", String::new(), "", "nowhere".to_owned());
        }
        for chain in chains {
            add(
                text(chain, "name"),
                chain_match(&chain["filter_chain_match"]),
                chain_tls(chain),
                chain_destination(chain),
            );
        }
        if let Some(chain) = default {
            add(text(chain, "name"), "nothing else".to_owned(), chain_tls(chain), chain_destination(chain));
        }
    }
    table
}

/// The conditions of a FilterChainMatch, as `field=value`.
fn chain_match(value: &Value) -> String {
    let Value::Object(fields) = value else { return String::new() };
    let show = |value: &Value| match value {
        Value::Array(values) => values.iter().map(scalar).collect::<Vec<_>>().join(","),
        Value::Object(_) => value.to_string(),
        value => scalar(value),
    };
    let prefix = |value: &Value| {
        let range = |range: &Value| format!("{}/{}", text(range, "address_prefix"), number(&range["prefix_len"]));
        value.as_array().into_iter().flatten().map(range).collect::<Vec<_>>().join(",")
    };
    let condition = |(name, value): (&String, &Value)| match name.as_str() {
        "prefix_ranges" | "source_prefix_ranges" => format!("{name}={}", prefix(value)),
        _ => format!("{name}={}", show(value)),
    };
    fields.iter().map(condition).collect::<Vec<_>>().join(" ")
}

fn chain_tls(chain: &Value) -> &'static str {
    let config = &chain["transport_socket"]["typed_config"];
    match config["require_client_certificate"].as_bool() {
        _ if !text(config, "@type").ends_with(".DownstreamTlsContext") => "",
        Some(true) => "mutual",
        _ => "server",
    }
}

/// Where the chain's last network filter leads: a cluster, a route configuration, or the filter's name.
fn chain_destination(chain: &Value) -> String {
    let Some(filter) = items(chain, "filters").last() else { return String::new() };
    let config = &filter["typed_config"];
    if let Some(routes) = config.get("rds") {
        return format!("routes {}", text(routes, "route_config_name"));
    }
    if let Some(routes) = config.get("route_config") {
        let name = text(routes, "name");
        return format!("routes {} (inline)", if name.is_empty() { "-" } else { name });
    }
    let destination = destination(config);
    if destination.is_empty() { text(filter, "name").to_owned() } else { destination }
}

/// The clusters that a RouteAction or TcpProxy leads to, with their shares.
fn destination(action: &Value) -> String {
    if let Some(weighted) = action.get("weighted_clusters") {
        let share = |cluster: &Value| format!("{} {}", text(cluster, "name"), number(&cluster["weight"]));
        return items(weighted, "clusters").map(share).collect::<Vec<_>>().join(", ");
    }
    match text(action, "cluster_header") {
        "" => text(action, "cluster").to_owned(),
        header => format!("by header {header}"),
    }
}

fn routes(entries: &[&Entry]) -> Table {
    let mut table = Table::new(["ROUTES", "VIRTUAL HOST", "DOMAINS", "MATCH", "DESTINATION", "STATE", "VERSION"]);
    for entry in entries {
        for host in items(&entry.resource, "virtual_hosts") {
            let domains: Vec<String> = items(host, "domains").map(scalar).collect();
            for route in items(host, "routes") {
                table.row([
                    entry.name.clone(),
                    text(host, "name").to_owned(),
                    domains.join(","),
                    route_match(&route["match"]),
                    route_action(route),
                    entry.state.to_owned(),
                    entry.version.clone(),
                ]);
            }
        }
    }
    table
}

fn route_match(value: &Value) -> String {
    let mut conditions = Vec::new();
    for (field, sign) in [("prefix", "*"), ("path", ""), ("path_separated_prefix", "[/*]")] {
        if let Some(path) = value.get(field) {
            conditions.push(format!("{}{sign}", scalar(path)));
        }
    }
    if let Some(regex) = value.get("safe_regex") {
        conditions.push(format!("~{}", text(regex, "regex")));
    }
    conditions.extend(items(value, "headers").map(header_match));
    conditions.join(" ")
}

fn header_match(value: &Value) -> String {
    let matcher = &value["string_match"];
    let (sign, wanted) = match (matcher.get("exact"), matcher.get("safe_regex")) {
        (Some(exact), _) => ("=", scalar(exact)),
        (_, Some(regex)) => ("~", text(regex, "regex").to_owned()),
        _ => ("", matcher.as_object().map_or(String::new(), |_| format!(" {matcher}"))),
    };
    let not = if value["invert_match"] == true { "not " } else { "" };
    format!("{not}{}{sign}{wanted}", text(value, "name"))
}

fn route_action(route: &Value) -> String {
    if let Some(answer) = route.get("direct_response") {
        return format!("answer {}", number(&answer["status"]));
    }
    if route.get("redirect").is_some() {
        return "redirect".to_owned();
    }
    destination(&route["route"])
}

fn secrets(entries: &[&Entry]) -> Table {
    let mut table = Table::new(["SECRET", "KIND", "STATE", "VERSION", "LAST UPDATED"]);
    for entry in entries {
        let kind = ["tls_certificate", "validation_context", "session_ticket_keys", "generic_secret"]
            .into_iter()
            .find(|kind| entry.resource.get(kind).is_some());
        table.row([
            entry.name.clone(),
            kind.unwrap_or_default().to_owned(),
            entry.state.to_owned(),
            entry.version.clone(),
            entry.last_updated.clone(),
        ]);
    }
    table
}

fn number(value: &Value) -> String {
    if value.is_null() { String::new() } else { scalar(value) }
}

fn scalar(value: &Value) -> String {
    value.as_str().map_or_else(|| value.to_string(), str::to_owned)
}
