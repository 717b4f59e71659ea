//! The objects that a command line names, as KIND or KIND/NAME.

use std::str::FromStr;

use crate::mesh::Kind;
use crate::nearest::nearest;
use crate::source::manifest::KINDS;

/// Objects of a kind, or one of them.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Which {
    /// A kind that resources are made of.
    pub(super) kind: Kind,
    /// Empty: all of them.
    pub(super) name: String,
}

/// The kinds that resources are made of, by kubectl's short names.
const DELIVERED: [(Kind, Option<&str>); 3] =
    [(Kind::Service, Some("svc")), (Kind::Pod, Some("po")), (Kind::MeshConfig, None)];

impl FromStr for Which {
    type Err = String;

    fn from_str(text: &str) -> Result<Self, String> {
        let (kind, name) = text.split_once('/').unwrap_or((text, ""));
        let word = kind.to_lowercase();
        let is = |kind: &Kind| {
            let known = kind.to_string().to_lowercase();
            word == known || word == format!("{known}s") || word == format!("{known}es") || ies(&known) == Some(&word)
        };
        if let Some((kind, _)) = DELIVERED.iter().find(|(kind, short)| is(kind) || *short == Some(&word)) {
            return Ok(Self { kind: *kind, name: name.to_owned() });
        }
        match KINDS.iter().find(|kind| is(kind)) {
            Some(kind) => Err(format!("a change of a {kind} is delivered as {}", delivered_as(*kind))),
            None => {
                let known: Vec<String> = KINDS.iter().map(|kind| kind.to_string().to_lowercase()).collect();
                let meant = nearest(&word, known.iter().map(String::as_str));
                let meant = meant.map(|meant| format!(" (did you mean `{meant}`?)")).unwrap_or_default();
                Err(format!("there is no kind `{kind}`{meant}; deliveries are told of by service, pod and meshconfig"))
            }
        }
    }
}

fn ies(kind: &str) -> Option<&str> {
    (kind == "trafficpolicy").then_some("trafficpolicies")
}

/// What to ask for instead.
fn delivered_as(kind: Kind) -> &'static str {
    match kind {
        Kind::TrafficSplit => "its root Service: ask for service/NAME",
        Kind::TrafficFault | Kind::TrafficPolicy => "the Services of its targetRefs: ask for service/NAME",
        Kind::EndpointSlice => "its Service: ask for service/NAME",
        Kind::HTTPRouteGroup => "the Services and Pods that use it: ask for service/NAME or pod/NAME",
        Kind::TrafficTarget | Kind::TCPRoute | Kind::UDPRoute => "the Pods of its destination: ask for pod/NAME",
        Kind::Deployment | Kind::StatefulSet | Kind::ServiceAccount | Kind::Namespace | Kind::Egress => {
            "the Pods that it is about: ask for pod/NAME"
        }
        Kind::Service | Kind::Pod | Kind::MeshConfig => "itself",
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn kinds_are_named_as_for_kubectl() {
        for (text, kind, name) in [
            ("service", Kind::Service, ""),
            ("Services", Kind::Service, ""),
            ("svc/cart", Kind::Service, "cart"),
            ("pod/web-1", Kind::Pod, "web-1"),
            ("po", Kind::Pod, ""),
            ("meshconfig/default", Kind::MeshConfig, "default"),
        ] {
            assert_eq!(text.parse(), Ok(Which { kind, name: name.to_owned() }), "{text}");
        }
    }

    #[test]
    fn another_kind_is_answered_with_what_to_ask_for() {
        for (text, said) in [
            ("servce/cart", "there is no kind `servce` (did you mean `service`?); deliveries are"),
            ("trafficsplt", "did you mean `trafficsplit`?"),
            ("banana", "there is no kind `banana`; deliveries are told of by service, pod and meshconfig"),
            ("trafficsplit/cart", "a change of a TrafficSplit is delivered as its root Service: ask for service/NAME"),
            ("trafficpolicies", "a change of a TrafficPolicy is delivered as the Services of its targetRefs"),
            ("/cart", "there is no kind ``"),
        ] {
            let error = text.parse::<Which>().unwrap_err();
            assert!(error.contains(said), "{text}: {error}");
        }
    }
}
