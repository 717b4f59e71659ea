use std::collections::{BTreeMap, BTreeSet};

use super::facts::Facts;
use super::plan::{self, Extent, Kind, Object, Step};
use crate::cli::install::release::Release;

const SYSTEM: &str = "weft-system";

fn release() -> Release {
    Release {
        name: "weft".to_owned(),
        namespace: SYSTEM.to_owned(),
        revision: 2,
        status: "deployed".to_owned(),
        version: "0.1.0".to_owned(),
    }
}

fn root_in(namespace: &str) -> Object {
    Object::new(Kind::ConfigMap, namespace, "weft-root")
}

/// An installation with a meshed namespace of two Deployments, one of which has a pod with a sidecar, and a bare pod.
fn installed() -> Facts {
    let owners = [("deployment/web", "web-5d8f-a"), ("pod/bare", "bare")];
    let owners = owners.map(|(owner, pod)| (owner.to_owned(), vec![pod.to_owned()]));
    Facts {
        namespace: SYSTEM.to_owned(),
        release: Some(release()),
        there: BTreeSet::from([
            Object::cluster(Kind::Injector, "weft-injector"),
            Object::cluster(Kind::Validator, "weft-validator"),
            Object::new(Kind::Secret, SYSTEM, "weft-webhook-tls"),
            Object::new(Kind::Secret, SYSTEM, "weft-ca"),
            Object::new(Kind::Lease, SYSTEM, "weft"),
            Object::new(Kind::ConfigMap, SYSTEM, "weft-warm-sets"),
            root_in(SYSTEM),
            root_in("shop"),
            root_in("quiet"),
        ]),
        meshed: ["shop", "quiet"].map(str::to_owned).into(),
        sidecars: BTreeMap::from([("shop".to_owned(), owners.into())]),
        definitions: BTreeMap::from([
            ("trafficsplits.split.smi-spec.io".to_owned(), Ok(3)),
            ("egresses.weft.dev".to_owned(), Ok(0)),
            ("tcproutes.specs.smi-spec.io".to_owned(), Err("no answer".to_owned())),
        ]),
    }
}

fn nothing() -> Facts {
    Facts {
        namespace: SYSTEM.to_owned(),
        release: None,
        there: BTreeSet::new(),
        meshed: BTreeSet::new(),
        sidecars: BTreeMap::new(),
        definitions: BTreeMap::new(),
    }
}

fn removed(steps: &[Step]) -> Vec<String> {
    let objects = steps.iter().filter_map(|step| match step {
        Step::Remove(objects) => Some(objects.iter().map(ToString::to_string)),
        _ => None,
    });
    objects.flatten().collect()
}

#[test]
fn the_webhooks_go_first_and_the_control_plane_before_what_it_writes_and_reads() {
    let steps = plan::steps(&installed(), Extent::Everything);
    let order: Vec<_> = steps.iter().map(|step| plan::told(step).0).collect();
    assert_eq!(order, ["webhooks", "release", "pods", "written", "definitions"]);
    assert_eq!(
        removed(&steps[..1]),
        ["MutatingWebhookConfiguration weft-injector", "ValidatingWebhookConfiguration weft-validator"]
    );
}

#[test]
fn what_pods_mount_stays_and_the_root_with_the_sign_that_there_was_one() {
    let written = |extent| removed(&plan::steps(&installed(), extent)[1..]);
    let always = [
        "Secret weft-system/weft-webhook-tls",
        "Lease weft-system/weft",
        "ConfigMap quiet/weft-root",
        "ConfigMap weft-system/weft-warm-sets",
    ];
    assert_eq!(written(Extent::Program), always);
    assert_eq!(written(Extent::Definitions), always);
    assert_eq!(
        written(Extent::Everything),
        [
            "Secret weft-system/weft-ca",
            "Secret weft-system/weft-webhook-tls",
            "Lease weft-system/weft",
            "ConfigMap quiet/weft-root",
            "ConfigMap weft-system/weft-root",
            "ConfigMap weft-system/weft-warm-sets",
        ]
    );
}

#[test]
fn definitions_go_only_when_they_are_meant() {
    let definitions = |extent| {
        let steps = plan::steps(&installed(), extent);
        steps.into_iter().find_map(|step| if let Step::Definitions(names) = step { Some(names.len()) } else { None })
    };
    let extents = [Extent::Program, Extent::Definitions, Extent::Everything];
    assert_eq!(extents.map(definitions), [None, Some(3), Some(3)]);
}

#[test]
fn where_there_is_nothing_there_is_nothing_to_do_and_leftovers_are_removed_without_a_release() {
    for extent in [Extent::Program, Extent::Definitions, Extent::Everything] {
        assert_eq!(plan::steps(&nothing(), extent), []);
    }
    assert_eq!(plan::consequences(&nothing(), "kubectl", Extent::Everything), Vec::<String>::new());
    let mut root = nothing();
    root.there = BTreeSet::from([Object::new(Kind::Secret, SYSTEM, "weft-ca"), root_in(SYSTEM)]);
    assert_eq!(plan::steps(&root, Extent::Program), [], "what an uninstallation leaves");
    let order: Vec<_> = plan::steps(&root, Extent::Everything).iter().map(|step| plan::told(step).0).collect();
    assert_eq!(order, ["pods", "written"]);
}

#[test]
fn what_depends_on_it_is_told_with_the_commands_that_end_that() {
    let said = plan::consequences(&installed(), "kubectl --context a", Extent::Program).join("\n");
    for words in [
        "2 pods with a sidecar, which keeps what it has and gets no new certificate",
        "  shop: web-5d8f-a, bare",
        "namespaces with the label weft.dev/inject: quiet, shop; the label stays",
        "  kubectl --context a label namespace shop weft.dev/inject-",
        "  kubectl --context a -n shop rollout restart deployment/web",
        "  kubectl --context a -n shop delete pod/bare   # and create anew",
    ] {
        assert!(said.contains(words), "{words}:\n{said}");
    }
    assert!(!said.contains("DELETED"), "{said}");
    let said = plan::consequences(&installed(), "kubectl", Extent::Definitions).join("\n");
    assert!(said.contains("3 trafficsplits.split.smi-spec.io will be DELETED"), "{said}");
    assert!(
        said.contains("all tcproutes.specs.smi-spec.io will be DELETED; they cannot be counted: no answer"),
        "{said}"
    );
    assert!(!said.contains("egresses") && !said.contains("root will be DELETED"), "{said}");
    let said = plan::consequences(&installed(), "kubectl", Extent::Everything).join("\n");
    assert!(said.contains("the mesh's root will be DELETED"), "{said}");
}

#[test]
fn what_stays_is_told_with_what_removes_it() {
    let said = plan::left(&installed(), "kubectl").join("\n");
    for words in [
        "3 CustomResourceDefinitions with 3 objects",
        "weft uninstall --crds",
        "Secret weft-system/weft-ca, the mesh's root",
        "weft uninstall --purge",
        "ConfigMap weft-root in shop, whose pods mount it",
        "kubectl delete namespace weft-system",
    ] {
        assert!(said.contains(words), "{words}:\n{said}");
    }
    assert_eq!(plan::left(&nothing(), "kubectl"), ["the namespace weft-system: kubectl delete namespace weft-system"]);
}
