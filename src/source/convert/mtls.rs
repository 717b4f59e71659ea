//! What a pod's annotations say of mTLS. What cannot be read is held to mean strict: a slip of the pen opens no port.

use std::collections::BTreeMap;

use k8s_openapi::apimachinery::pkg::apis::meta::v1::ObjectMeta;

use crate::mesh::object::{MtlsMode, PodMtls};
use crate::source::manifest::config;

use super::Findings;

/// The mode of a pod.
const MODE: &str = "weft.dev/mtls";
/// The modes of single ports: `8080=permissive,9090=strict`.
const PORTS: &str = "weft.dev/mtls-ports";
/// Each port costs the sidecar six filter chains.
const MOST_PORTS: usize = 64;

/// The pod's own modes; none for what it does not say.
pub(super) fn of_pod(metadata: &ObjectMeta, findings: &mut Findings) -> PodMtls {
    let annotation = |key: &str| metadata.annotations.as_ref()?.get(key);
    let mut own = PodMtls {
        mode: annotation(MODE).map(|text| {
            mode(text).unwrap_or_else(|| {
                findings.warning(
                    format!("metadata.annotations.{MODE}"),
                    format!("`{text}` is no mode, so the pod is held to be strict"),
                    "use `strict` or `permissive`",
                );
                MtlsMode::Strict
            })
        }),
        ports: BTreeMap::new(),
    };
    let entries = annotation(PORTS).into_iter().flat_map(|text| text.split(',')).map(str::trim);
    for entry in entries.filter(|entry| !entry.is_empty()) {
        let (port, said) = entry.split_once('=').map_or((entry, ""), |(port, said)| (port.trim(), said.trim()));
        let mut left = |reason: &str| {
            findings.warning(
                format!("metadata.annotations.{PORTS}"),
                format!("`{entry}` {reason}"),
                "write PORT=strict or PORT=permissive with the pod's own port numbers, separated by commas",
            );
        };
        let Some(port) = port.parse().ok().filter(|port| *port != 0) else {
            // Which port was meant is not known: all of them are closed but those that are known to be meant open.
            left("names no port, so every port that no other entry names is held to be strict");
            own.mode = Some(MtlsMode::Strict);
            continue;
        };
        if own.ports.len() == MOST_PORTS && !own.ports.contains_key(&port) {
            left(
                "is one port too many (the limit is 64), so every port that no other entry names is held to be strict",
            );
            own.mode = Some(MtlsMode::Strict);
            break;
        }
        let mode = mode(said).unwrap_or_else(|| {
            left("has no mode, so the port is held to be strict");
            MtlsMode::Strict
        });
        if own.ports.insert(port, mode).is_some_and(|before| before != mode) {
            left("contradicts another entry of its port, so the port is held to be strict");
            own.ports.insert(port, MtlsMode::Strict);
        }
    }
    own
}

fn mode(text: &str) -> Option<MtlsMode> {
    config::MtlsMode::try_from(text.to_owned()).ok().map(Into::into)
}

#[cfg(test)]
mod tests {
    use super::*;
    use MtlsMode::{Permissive, Strict};

    fn read(annotations: &[(&str, &str)]) -> (PodMtls, usize) {
        let annotations = annotations.iter().map(|(key, value)| ((*key).to_owned(), (*value).to_owned())).collect();
        let mut findings = Findings::default();
        let own = of_pod(&ObjectMeta { annotations: Some(annotations), ..ObjectMeta::default() }, &mut findings);
        assert!(findings.errors.is_empty(), "a pod is never kept out for this: it would have no sidecar to speak of");
        (own, findings.warnings.len())
    }

    #[test]
    fn what_can_be_read_is_taken_and_what_cannot_is_strict() {
        let own = |mode, ports: &[(u16, MtlsMode)]| PodMtls { mode, ports: ports.iter().copied().collect() };
        for (mode, ports, expected, warnings) in [
            ("permissive", "", own(Some(Permissive), &[]), 0),
            ("Strict", "8080=Permissive", own(Some(Strict), &[(8080, Permissive)]), 0),
            ("stict", "", own(Some(Strict), &[]), 1),
            ("permissive", " 80 = strict , ,", own(Some(Permissive), &[(80, Strict)]), 0),
            ("permissive", "80=open", own(Some(Permissive), &[(80, Strict)]), 1),
            ("permissive", "80", own(Some(Permissive), &[(80, Strict)]), 1),
            ("permissive", "808o=strict,81=permissive", own(Some(Strict), &[(81, Permissive)]), 1),
            ("permissive", "0=strict", own(Some(Strict), &[]), 1),
            ("permissive", "70000=strict", own(Some(Strict), &[]), 1),
            ("strict", "80=permissive,80=strict", own(Some(Strict), &[(80, Strict)]), 1),
            ("strict", "80=strict,80=permissive", own(Some(Strict), &[(80, Strict)]), 1),
        ] {
            let said = read(&[(MODE, mode), (PORTS, ports)]);
            assert_eq!(said, (expected, warnings), "{mode} {ports}");
        }
        assert_eq!(read(&[]), (PodMtls::default(), 0));
    }

    #[test]
    fn more_ports_than_can_be_had_close_the_others() {
        let ports: Vec<String> = (1..=100).map(|port| format!("{port}=permissive")).collect();
        let (own, warnings) = read(&[(PORTS, &ports.join(","))]);
        assert_eq!((own.mode, own.ports.len(), warnings), (Some(Strict), MOST_PORTS, 1));
    }
}
