//! Which pod is meant.

use crate::mesh::{PodKey, WorkloadKey};

/// A pod that can be named.
#[derive(Clone, PartialEq, Eq, Debug)]
pub struct KnownPod {
    /// The pod.
    pub key: PodKey,
    /// What it belongs to, if that is known.
    pub workload: Option<WorkloadKey>,
}

/// Why it cannot be told which pod is meant.
#[derive(Debug, PartialEq, Eq, thiserror::Error)]
pub(super) enum PodError {
    /// None fits.
    #[error("no proxy fits `{text}`; {}", known_list(.known))]
    Unknown {
        /// What the user wrote.
        text: String,
        /// What there is.
        known: Vec<PodKey>,
    },
    /// Several fit.
    #[error("`{text}` fits {} pods: {}; name one of them", .candidates.len(), list(.candidates))]
    Ambiguous {
        /// What the user wrote.
        text: String,
        /// Those that fit.
        candidates: Vec<PodKey>,
    },
}

/// How many names a message lists.
const LISTED: usize = 10;

fn list(pods: &[PodKey]) -> String {
    let mut names: Vec<String> = pods.iter().take(LISTED).map(ToString::to_string).collect();
    if pods.len() > LISTED {
        names.push(format!("and {} more", pods.len() - LISTED));
    }
    names.join(", ")
}

fn known_list(pods: &[PodKey]) -> String {
    if pods.is_empty() { "no proxy is known".to_owned() } else { format!("there are {}", list(pods)) }
}

/// The pod that `text` means: `NAME`, `NAMESPACE/NAME`, `NAME.NAMESPACE`, `pod/NAME`, `deploy/NAME` (the first pod of
/// that workload, as kubectl has it), or else the beginning of one pod's name. `namespace` narrows the choice.
pub(super) fn resolve(text: &str, namespace: Option<&str>, known: &[KnownPod]) -> Result<PodKey, PodError> {
    let pick = |fits: &dyn Fn(&KnownPod) -> bool| {
        let in_namespace = |pod: &&KnownPod| namespace.is_none_or(|wanted| pod.key.namespace.as_str() == wanted);
        let mut found: Vec<PodKey> =
            known.iter().filter(in_namespace).filter(|pod| fits(pod)).map(|pod| pod.key.clone()).collect();
        found.sort();
        found
    };
    let unknown = || {
        let mut all: Vec<PodKey> = known.iter().map(|pod| pod.key.clone()).collect();
        all.sort();
        PodError::Unknown { text: text.to_owned(), known: all }
    };
    let in_whole = |pod: &KnownPod, name: &str| *pod.key.name == *name;

    let (place, name) = match text.split_once('/') {
        Some(("deploy" | "deployment" | "deployments" | "workload", name)) => {
            let of_it = |pod: &KnownPod| pod.workload.as_ref().is_some_and(|workload| *workload.name == *name);
            return pick(&of_it).into_iter().next().ok_or_else(unknown);
        }
        Some(("pod" | "pods", name)) => (None, name),
        Some((place, name)) => (Some(place), name),
        None => (None, text),
    };
    let there = |pod: &KnownPod| place.is_none_or(|wanted| pod.key.namespace.as_str() == wanted);
    let dotted =
        |pod: &KnownPod| place.is_none() && name.rsplit_once('.') == Some((&pod.key.name, pod.key.namespace.as_str()));
    // The more exact reading wins: a pod called `web` is meant by `web` even if there is a `web-1`.
    let readings = [
        pick(&|pod| there(pod) && in_whole(pod, name)),
        pick(&dotted),
        pick(&|pod| !name.is_empty() && there(pod) && pod.key.name.starts_with(name)),
    ];
    match readings.into_iter().find(|found| !found.is_empty()) {
        None => Err(unknown()),
        Some(mut found) if found.len() == 1 => Ok(found.remove(0)),
        Some(candidates) => Err(PodError::Ambiguous { text: text.to_owned(), candidates }),
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn known() -> Vec<KnownPod> {
        let pod = |namespace: &str, name: &str, workload: &str| KnownPod {
            key: PodKey::new(namespace, name),
            workload: Some(WorkloadKey::new(namespace, workload)),
        };
        vec![
            pod("shop", "cart-5d8f-xyz12", "cart"),
            pod("shop", "cart-5d8f-abc34", "cart"),
            pod("shop", "web", "web"),
            pod("shop", "web-1", "web-1"),
            pod("shop", "web.v2", "web.v2"),
            pod("bank", "teller-0", "teller"),
            pod("test", "web", "web"),
        ]
    }

    #[test]
    fn every_way_to_name_a_pod_works() {
        for (text, namespace, expected) in [
            ("teller-0", None, "bank/teller-0"),
            ("bank/teller-0", None, "bank/teller-0"),
            ("teller-0.bank", None, "bank/teller-0"),
            ("pod/teller-0", None, "bank/teller-0"),
            ("tel", None, "bank/teller-0"),
            ("shop/cart-5d8f-a", None, "shop/cart-5d8f-abc34"),
            ("deploy/cart", None, "shop/cart-5d8f-abc34"),
            ("deployment/web", Some("test"), "test/web"),
            ("web", Some("shop"), "shop/web"),
            ("web.shop", None, "shop/web"),
            ("web.v2", None, "shop/web.v2"),
            ("web.v2.shop", None, "shop/web.v2"),
        ] {
            let found = resolve(text, namespace, &known()).map(|pod| pod.to_string());
            assert_eq!(found.as_deref(), Ok(expected), "{text}");
        }
    }

    #[test]
    fn a_name_that_fits_several_pods_or_none_lists_what_there_is() {
        let error = |text, namespace| resolve(text, namespace, &known()).unwrap_err().to_string();
        assert_eq!(
            error("cart", None),
            "`cart` fits 2 pods: shop/cart-5d8f-abc34, shop/cart-5d8f-xyz12; name one of them"
        );
        assert_eq!(error("web", None), "`web` fits 2 pods: shop/web, test/web; name one of them");
        for (text, namespace) in
            [("", None), ("nobody", None), ("bank/", None), ("web", Some("bank")), ("deploy/nobody", None), ("/", None)]
        {
            let error = error(text, namespace);
            assert!(
                error.starts_with(&format!("no proxy fits `{text}`; there are bank/teller-0, shop/cart")),
                "{error}"
            );
        }
        assert_eq!(resolve("web", None, &[]).unwrap_err().to_string(), "no proxy fits `web`; no proxy is known");
    }
}
