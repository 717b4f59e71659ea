//! How many pods a Deployment makes and ends at one moment: the arithmetic of Kubernetes' deployment controller.

use k8s_openapi::api::apps::v1::{DeploymentSpec, DeploymentStrategy};
use k8s_openapi::apimachinery::pkg::util::intstr::IntOrString;

use crate::mesh::PodKey;

/// A pod of the Deployment that is not terminating.
#[derive(Clone, PartialEq, Eq, Debug)]
pub(super) struct Member {
    pub(super) key: PodKey,
    /// It was made from the present template.
    pub(super) current: bool,
    pub(super) ready: bool,
}

/// What to do now; the next change of a pod asks again.
#[derive(Clone, PartialEq, Eq, Debug, Default)]
pub(super) struct Step {
    pub(super) create: usize,
    pub(super) stop: Vec<PodKey>,
}

/// How a template change rolls.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Strategy {
    Recreate,
    Rolling { surge: usize, unavailable: usize },
}

impl Strategy {
    /// `spec.strategy` with Kubernetes' defaults: 25 % each, surge rounded up, unavailable rounded down, not both 0.
    pub(super) fn of(spec: &DeploymentSpec, replicas: usize) -> Self {
        let strategy = spec.strategy.as_ref();
        if strategy.and_then(|s: &DeploymentStrategy| s.type_.as_deref()) == Some("Recreate") {
            return Self::Recreate;
        }
        let rolling = strategy.and_then(|s| s.rolling_update.as_ref());
        let surge = share(rolling.and_then(|r| r.max_surge.as_ref()), replicas, usize::div_ceil);
        let unavailable = share(rolling.and_then(|r| r.max_unavailable.as_ref()), replicas, |a, b| a / b);
        Self::Rolling { surge, unavailable: if surge == 0 && unavailable == 0 { 1 } else { unavailable } }
    }
}

/// A number, or a percentage of `replicas`; 25 % when absent or not readable.
fn share(value: Option<&IntOrString>, replicas: usize, divide: impl Fn(usize, usize) -> usize) -> usize {
    let percent = match value {
        Some(IntOrString::Int(number)) => return usize::try_from(*number).unwrap_or(0),
        Some(IntOrString::String(text)) => text.trim().strip_suffix('%').and_then(|p| p.parse().ok()).unwrap_or(25),
        None => 25,
    };
    divide(replicas * percent, 100)
}

/// The next step towards `replicas` pods of the present template. `members` are in the order they were made;
/// `terminating` tells whether pods of an older template are still on their way out.
pub(super) fn step(strategy: Strategy, replicas: usize, members: &[Member], terminating: bool) -> Step {
    let (current, old): (Vec<_>, Vec<_>) = members.iter().partition(|member| member.current);
    let mut step = Step::default();

    // Scaling down: pods that are not ready first, then the youngest.
    let mut spare: Vec<&&Member> = current.iter().rev().collect();
    spare.sort_by_key(|member| member.ready);
    step.stop.extend(spare.iter().take(current.len().saturating_sub(replicas)).map(|member| member.key.clone()));

    let wanted = replicas.saturating_sub(current.len());
    match strategy {
        Strategy::Recreate => {
            step.stop.extend(old.iter().map(|member| member.key.clone()));
            step.create = if old.is_empty() && !terminating { wanted } else { 0 };
        }
        Strategy::Rolling { surge, unavailable } => {
            step.create = wanted.min((replicas + surge).saturating_sub(members.len()));
            let least = replicas.saturating_sub(unavailable);
            let current_unready = current.iter().filter(|member| !member.ready).count();
            // Old pods that do not serve anyway go first, but never so many that the new ones, if they all turned
            // out bad, would leave too few.
            let mut may_go = members.len().saturating_sub(least + current_unready);
            let mut serving = members.iter().filter(|member| member.ready).count().saturating_sub(least);
            for member in old.iter().filter(|m| !m.ready).chain(old.iter().filter(|m| m.ready)) {
                if may_go == 0 || (member.ready && serving == 0) {
                    continue;
                }
                may_go -= 1;
                serving -= usize::from(member.ready);
                step.stop.push(member.key.clone());
            }
        }
    }
    step
}

#[cfg(test)]
mod tests {
    use super::*;

    /// `"n+ n- o+"`: a new ready pod, a new one that is not, an old ready one.
    fn members(text: &str) -> Vec<Member> {
        let member = |(i, word): (usize, &str)| Member {
            key: PodKey::new("shop", format!("{word}{i}")),
            current: word.starts_with('n'),
            ready: word.ends_with('+'),
        };
        text.split_whitespace().enumerate().map(member).collect()
    }

    fn stepped(strategy: Strategy, replicas: usize, text: &str) -> (usize, String) {
        let step = step(strategy, replicas, &members(text), false);
        (step.create, step.stop.iter().map(|key| key.name.to_string()).collect::<Vec<_>>().join(" "))
    }

    #[test]
    fn steps_of_a_rolling_update() {
        let default = Strategy::Rolling { surge: 1, unavailable: 0 };
        for (replicas, pods, create, stop) in [
            (2, "", 2, ""),
            (1, "o+", 1, ""),
            (1, "o+ n-", 0, ""),
            (1, "o+ n+", 0, "o+0"),
            (2, "o+ o+ n-", 0, ""),
            (2, "o+ o+ n+", 0, "o+0"),
            (2, "o+ n+", 1, ""),
            (2, "o- o+", 1, ""),
            (1, "o-", 1, ""),
            (3, "n+ n+ n-", 0, ""),
            (1, "n+ n+ n-", 0, "n-2 n+1"),
            (0, "n+ o+", 0, "n+0 o+1"),
        ] {
            assert_eq!(stepped(default, replicas, pods), (create, stop.to_owned()), "{replicas}: {pods}");
        }
    }

    #[test]
    fn recreate_waits_until_the_old_pods_have_gone() {
        assert_eq!(stepped(Strategy::Recreate, 1, "o+"), (0, "o+0".to_owned()));
        assert_eq!(step(Strategy::Recreate, 1, &[], true), Step::default());
        assert_eq!(step(Strategy::Recreate, 1, &[], false).create, 1);
    }

    #[test]
    fn defaults_are_a_quarter() {
        let spec = DeploymentSpec::default();
        for (replicas, surge, unavailable) in [(1, 1, 0), (4, 1, 1), (5, 2, 1), (10, 3, 2)] {
            assert_eq!(Strategy::of(&spec, replicas), Strategy::Rolling { surge, unavailable }, "{replicas}");
        }
        assert_eq!(Strategy::of(&spec, 0), Strategy::Rolling { surge: 0, unavailable: 1 });
    }

    #[test]
    fn an_update_always_ends_and_never_serves_with_too_few() {
        for replicas in 1..8 {
            let strategy = Strategy::of(&DeploymentSpec::default(), replicas);
            let Strategy::Rolling { surge, unavailable } = strategy else { unreachable!() };
            let mut pods = members(&"o+ ".repeat(replicas));
            for round in 0..100 {
                let step = step(strategy, replicas, &pods, false);
                pods.retain(|member| !step.stop.contains(&member.key));
                assert!(pods.iter().filter(|m| m.ready).count() >= replicas - unavailable);
                let made = (0..step.create).map(|i| Member {
                    key: PodKey::new("shop", format!("n{round}-{i}")),
                    current: true,
                    ready: false,
                });
                pods.extend(made);
                assert!(pods.len() <= replicas + surge);
                if let Some(member) = pods.iter_mut().find(|m| !m.ready) {
                    member.ready = true;
                }
            }
            assert_eq!(pods.len(), replicas);
            assert!(pods.iter().all(|m| m.current && m.ready));
        }
    }
}
