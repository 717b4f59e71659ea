//! The part of [`Cluster`] that makes and ends the pods of StatefulSets: numbered, one after the other.

use k8s_openapi::api::apps::v1::StatefulSet;
use k8s_openapi::apimachinery::pkg::apis::meta::v1::OwnerReference;

use super::super::hash;
use super::super::pod::{LivePod, Origin};
use super::Cluster;
use super::pods::{Blueprint, is_error, reference};
use crate::mesh::{Kind, PodKey, WorkloadKey};

/// What to do now; the next change of a pod asks again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
struct Step {
    create: Vec<u32>,
    stop: Vec<u32>,
}

/// A pod that exists: its number, and what of it matters here.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
struct Member {
    number: u32,
    /// It was made from the present template.
    current: bool,
    ready: bool,
    terminating: bool,
}

/// The next step towards the pods `first` to `first + replicas - 1`, as Kubernetes' controller takes it: a pod begins
/// when those before it are ready (unless `parallel`), the last one goes first, and a changed template replaces one pod
/// at a time, from the last on.
fn step(first: u32, replicas: u32, parallel: bool, members: &[Member]) -> Step {
    let wanted = first..first.saturating_add(replicas);
    let mut step = Step::default();
    let mut surplus: Vec<&Member> = members.iter().filter(|member| !wanted.contains(&member.number)).collect();
    surplus.sort_by_key(|member| std::cmp::Reverse(member.number));
    let going = |member: &&&Member| !member.terminating;
    match parallel {
        true => step.stop.extend(surplus.iter().filter(going).map(|member| member.number)),
        false if surplus.iter().any(|member| member.terminating) => {}
        false => step.stop.extend(surplus.iter().take(1).map(|member| member.number)),
    }
    for number in wanted.clone() {
        match members.iter().find(|member| member.number == number) {
            Some(member) if parallel || (member.ready && !member.terminating) => {}
            // The ones after it wait.
            Some(_) => break,
            None => {
                step.create.push(number);
                if !parallel {
                    break;
                }
            }
        }
    }
    let there: Vec<&Member> = members.iter().filter(|member| wanted.contains(&member.number)).collect();
    let settled = there.len() == wanted.len() && there.iter().all(|member| !member.terminating);
    let outdated = there.iter().filter(|member| !member.current).max_by_key(|member| member.number);
    if let Some(outdated) = outdated.filter(|_| settled) {
        // One that does not serve is replaced at once, another when all others do.
        if there.iter().all(|member| member.ready || member.number == outdated.number) {
            step.stop.push(outdated.number);
        }
    }
    step
}

impl Cluster {
    pub(super) fn reconcile_stateful_set(&mut self, key: &WorkloadKey) {
        let owned: Vec<&LivePod> = self
            .pods
            .values()
            .filter(|pod| matches!(&pod.origin, Origin::StatefulSet(owner, _) if owner == key))
            .collect();
        let Some(set) = self.stateful_sets.get(key) else {
            let all: Vec<_> = owned.iter().map(|pod| pod.key().clone()).collect();
            all.iter().for_each(|pod| self.stop_pod(pod));
            return;
        };
        let reference = reference(Kind::StatefulSet, &key.namespace, &key.name);
        let blueprint = self.stateful_blueprint(key, set);
        let found = self.check(&key.namespace, &blueprint, "spec.template.");
        let refused = is_error(&found);
        let first = set.spec.ordinals.as_ref().and_then(|ordinals| ordinals.start).unwrap_or(0);
        let replicas = set.spec.replicas.unwrap_or(1);
        let (first, replicas) = (u32::try_from(first).unwrap_or(0), u32::try_from(replicas).unwrap_or(0));
        let parallel = set.spec.pod_management_policy.as_deref() == Some("Parallel");
        let member = |pod: &&LivePod| {
            let number = pod.key().name.strip_prefix(&*key.name)?.strip_prefix('-')?.parse().ok()?;
            let current = matches!(&pod.origin, Origin::StatefulSet(_, hash) if *hash == blueprint.hash);
            Some(Member { number, current, ready: pod.ready, terminating: pod.deleted.is_some() })
        };
        let members: Vec<Member> = owned.iter().filter_map(member).collect();
        self.report(&reference, found);
        if refused {
            return;
        }
        let step = step(first, replicas, parallel, &members);
        let pod = |number| PodKey::new(key.namespace.clone(), format!("{}-{number}", key.name));
        for number in step.stop {
            self.stop_pod(&pod(number));
        }
        for number in step.create {
            let (key_of_pod, origin) = (pod(number), Origin::StatefulSet(key.clone(), blueprint.hash.clone()));
            // A Pod of the same name that the user declared keeps it.
            if !self.pods.contains_key(&key_of_pod) {
                let blueprint = numbered(&blueprint, &key_of_pod, number);
                self.create_pod(&reference, key_of_pod, origin, &blueprint, key.clone());
            }
        }
    }

    fn stateful_blueprint(&self, key: &WorkloadKey, set: &StatefulSet) -> Blueprint {
        let template = set.spec.template.clone();
        let mut spec = template.spec.unwrap_or_default();
        spec.subdomain = set.spec.service_name.clone().filter(|service| !service.is_empty());
        let metadata = template.metadata.unwrap_or_default();
        let mut blueprint = self.blueprint(key.namespace.as_str(), metadata, spec, Clone::clone);
        let labels = blueprint.metadata.labels.get_or_insert_default();
        labels.insert("controller-revision-hash".to_owned(), format!("{}-{}", key.name, blueprint.hash));
        blueprint.metadata.owner_references = Some(vec![OwnerReference {
            api_version: "apps/v1".to_owned(),
            kind: "StatefulSet".to_owned(),
            uid: hash::uuid(&format!("StatefulSet {key}")),
            name: key.name.to_string(),
            controller: Some(true),
            block_owner_deletion: Some(true),
        }]);
        blueprint
    }
}

/// The blueprint of one pod, which has its name as host name and label.
fn numbered(blueprint: &Blueprint, pod: &PodKey, number: u32) -> Blueprint {
    let (mut metadata, mut spec) = (blueprint.metadata.clone(), blueprint.spec.clone());
    let labels = metadata.labels.get_or_insert_default();
    labels.insert("statefulset.kubernetes.io/pod-name".to_owned(), pod.name.to_string());
    labels.insert("apps.kubernetes.io/pod-index".to_owned(), number.to_string());
    spec.hostname = Some(pod.name.to_string());
    Blueprint { metadata, spec, hash: blueprint.hash.clone() }
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `"0+ 1o- 2+x"`: a ready pod, one of an older template that is not ready, a ready one that is terminating.
    fn stepped(first: u32, replicas: u32, parallel: bool, text: &str) -> (Vec<u32>, Vec<u32>) {
        let member = |word: &str| Member {
            number: word.trim_end_matches(|c: char| !c.is_ascii_digit()).parse().expect("a number"),
            current: !word.contains('o'),
            ready: word.contains('+'),
            terminating: word.contains('x'),
        };
        let step = step(first, replicas, parallel, &text.split_whitespace().map(member).collect::<Vec<_>>());
        (step.create, step.stop)
    }

    #[test]
    fn pods_begin_in_order_and_end_in_reverse() {
        for (replicas, pods, create, stop) in [
            (2, "", vec![0], vec![]),
            (2, "0-", vec![], vec![]),
            (2, "0+", vec![1], vec![]),
            (2, "0+ 1+", vec![], vec![]),
            (1, "0+ 1+ 2+", vec![], vec![2]),
            (1, "0+ 1+ 2+x", vec![], vec![]),
            (2, "1+", vec![0], vec![]),
            (2, "0o+ 1o+", vec![], vec![1]),
            (2, "0o+ 1-", vec![], vec![]),
            (2, "0o+ 1+x", vec![], vec![]),
            (2, "0o+ 1+", vec![], vec![0]),
            (1, "0o-", vec![], vec![0]),
        ] {
            assert_eq!(stepped(0, replicas, false, pods), (create, stop), "{replicas}: {pods}");
        }
        assert_eq!(stepped(5, 2, false, "5+"), (vec![6], vec![]));
    }

    #[test]
    fn parallel_pods_do_not_wait_for_each_other() {
        assert_eq!(stepped(0, 3, true, "0-"), (vec![1, 2], vec![]));
        assert_eq!(stepped(0, 1, true, "0+ 1- 2+"), (vec![], vec![2, 1]));
    }
}
