use proptest::prelude::*;

use super::*;
use crate::mesh::PodKey;
use crate::snapshot::Pushed;
use crate::snapshot::ResourceType::{Cluster, Endpoints, Listener, Route};
use crate::xds::subscription::Changed;
use crate::xds::testing::{gone, put, resource};

const STREAMS: Slot = 10;

/// Ten streams that subscribe to all clusters, listeners, and the names `a` and `b` of the other types.
struct Scene {
    rollout: Rollout,
    interest: Interest,
    source: Arc<Snapshot>,
    busy: RoaringBitmap,
    now: Instant,
}

fn proxy_of(slot: Slot) -> ProxyId {
    ProxyId(PodKey::new("shop", format!("web-{slot}")))
}

fn view(slot: Slot, own: &[Arc<Resource>]) -> Change {
    Change::PutView(proxy_of(slot), Arc::new(View { own: own.to_vec(), pushed: Pushed::All }))
}

impl Scene {
    fn new(changes: impl IntoIterator<Item = Change>) -> Self {
        let mut scene = Self {
            rollout: Rollout::new(Canary::default()),
            interest: Interest::default(),
            source: Arc::new(Snapshot::empty()),
            busy: RoaringBitmap::new(),
            now: Instant::now(),
        };
        scene.publish((0..STREAMS).map(|slot| view(slot, &[])).chain(changes).collect::<Vec<_>>());
        let everything = View { own: vec![], pushed: Pushed::All };
        for slot in 0..STREAMS {
            scene.interest.enter(slot, &proxy_of(slot), Some(&everything));
            for kind in [Cluster, Listener] {
                let changed = Changed { wildcard_added: true, ..Changed::default() };
                scene.interest.subscribed(slot, kind, &changed);
            }
            for kind in [Endpoints, Route] {
                let changed = Changed { added: Arc::new(["a".into(), "b".into()].into()), ..Changed::default() };
                scene.interest.subscribed(slot, kind, &changed);
            }
        }
        scene
    }

    fn publish(&mut self, changes: impl IntoIterator<Item = Change>) {
        self.source = Arc::new(self.source.with(changes));
        let (busy, source) = (self.busy.clone(), self.source.clone());
        self.rollout.publish(source, &self.interest, &|slot| busy.contains(slot), self.now, self.now);
        self.busy |= self.canaries();
    }

    fn canaries(&self) -> RoaringBitmap {
        self.rollout.trial().map(|(_, canaries, _)| canaries.clone()).unwrap_or_default()
    }

    /// These streams have answered everything.
    fn answer(&mut self, slots: &RoaringBitmap) {
        self.busy -= slots;
        let busy = self.busy.clone();
        let before = self.canaries();
        self.rollout.settle(&self.interest, &|slot| busy.contains(slot), self.now);
        if self.canaries() != before {
            self.busy |= self.canaries();
        }
    }

    fn refuse(&mut self, slot: Slot, bad: &Arc<Resource>, good: Option<Arc<Resource>>, accepted: bool) -> bool {
        let had = good.is_some();
        let refused =
            RefusedResource { by: proxy_of(slot), resource: bad.clone(), good, had, message: "no such socket".into() };
        let busy = self.busy.clone();
        let busy = |slot| busy.contains(slot);
        self.rollout.refused(slot, refused, accepted, &self.interest, &busy, self.now)
    }

    fn wait(&mut self, duration: Duration) {
        self.now += duration;
        let busy = self.busy.clone();
        self.rollout.tick(&self.interest, &|slot| busy.contains(slot), self.now);
    }

    /// The contents that the streams are served under this name, with how many are served each.
    fn served(&self, kind: ResourceType, name: &str) -> Vec<(Option<u8>, usize)> {
        let mut counts = BTreeMap::new();
        for slot in 0..STREAMS {
            let content = self.rollout.served(slot).get(&proxy_of(slot), kind, &name.into());
            *counts.entry(content.map(|resource| resource.body[0])).or_insert(0) += 1;
        }
        counts.into_iter().collect()
    }
}

#[test]
fn what_many_share_goes_to_a_few_first_and_to_all_when_they_have_acknowledged_it() {
    let mut s = Scene::new([put(Cluster, "a", 1)]);
    s.publish([put(Cluster, "a", 2)]);
    assert_eq!(s.served(Cluster, "a"), [(Some(1), 7), (Some(2), 3)]);
    let canaries = s.canaries();
    s.answer(&canaries.iter().take(2).collect());
    assert_eq!(s.served(Cluster, "a"), [(Some(1), 7), (Some(2), 3)], "one has not answered");
    s.answer(&canaries);
    assert_eq!(s.served(Cluster, "a"), [(Some(2), 10)]);
}

#[test]
fn endpoints_do_not_wait_for_a_trial_and_removals_do() {
    let mut s =
        Scene::new([put(Cluster, "a", 1), put(Cluster, "b", 1), put(Endpoints, "a", 1), put(Endpoints, "b", 1)]);
    s.publish([put(Route, "a", 2), gone(Cluster, "b"), gone(Endpoints, "b"), put(Endpoints, "a", 2)]);
    assert_eq!(s.served(Endpoints, "a"), [(Some(2), 10)]);
    assert_eq!(s.served(Cluster, "b"), [(None, 3), (Some(1), 7)]);
    s.publish([put(Endpoints, "a", 3), put(Cluster, "c", 1)]);
    assert_eq!(s.served(Endpoints, "a"), [(Some(3), 10)], "nor for a trial that runs already");
    assert_eq!(s.served(Cluster, "c"), [(None, 10)], "which does not change under the eyes of those who try");
    let canaries = s.canaries();
    s.answer(&canaries);
    assert_eq!((s.served(Route, "a"), s.served(Cluster, "b")), (vec![(Some(2), 10)], vec![(None, 10)]));
    assert_eq!(s.served(Cluster, "c"), [(None, 7), (Some(1), 3)], "what came meanwhile is the next trial");
}

#[test]
fn what_few_have_goes_to_them_at_once() {
    let mut s = Scene::new([]);
    let changed = Changed { added: Arc::new(["rare".into()].into()), ..Changed::default() };
    (0..3).for_each(|slot| s.interest.subscribed(slot, Route, &changed));
    s.publish([put(Route, "rare", 1)]);
    assert_eq!(s.served(Route, "rare"), [(Some(1), 10)]);
    s.rollout.set_canary(Canary { proxies: 0, ..Canary::default() });
    s.publish([put(Cluster, "a", 1)]);
    assert_eq!(s.served(Cluster, "a"), [(Some(1), 10)], "nor is there a trial where it is turned off");
}

#[test]
fn refused_content_reaches_no_more_than_the_few_and_is_tried_again_when_its_object_changes() {
    let mut s = Scene::new([put(Cluster, "a", 1)]);
    s.publish([put(Cluster, "a", 2), put(Cluster, "b", 1)]);
    let canaries = s.canaries();
    let first = canaries.min().expect("a canary");
    assert!(s.refuse(first, &resource(Cluster, "a", 2), Some(resource(Cluster, "a", 1)), true));
    assert_eq!(s.served(Cluster, "a"), [(Some(1), 10)], "those who took it get the last good one back");
    s.answer(&canaries);
    assert_eq!(s.served(Cluster, "b"), [(Some(1), 10)], "everything else goes on");
    let held: Vec<_> = s.rollout.held_back().map(|(key, held)| (key.name.to_string(), held.message.clone())).collect();
    assert_eq!(held, [("a".to_owned(), "no such socket".to_owned())]);
    s.publish([put(Cluster, "c", 1)]);
    assert_eq!(s.served(Cluster, "a"), [(Some(1), 10)], "it does not come with another change");
    let canaries = s.canaries();
    s.answer(&canaries);
    s.publish([put(Cluster, "a", 3)]);
    assert_eq!(s.served(Cluster, "a"), [(Some(1), 7), (Some(3), 3)]);
    assert_eq!(s.rollout.held_back().count(), 0);
}

#[test]
fn new_content_that_is_refused_is_served_to_nobody() {
    let mut s = Scene::new([]);
    s.publish([put(Listener, "l", 9)]);
    let canaries = s.canaries();
    assert!(s.refuse(canaries.min().expect("a canary"), &resource(Listener, "l", 9), None, false));
    s.answer(&canaries);
    assert_eq!(s.served(Listener, "l"), [(None, 10)]);
}

#[test]
fn one_proxy_cannot_take_from_the_others_what_they_accepted() {
    let mut s = Scene::new([put(Cluster, "a", 1)]);
    assert!(!s.refuse(4, &resource(Cluster, "a", 1), None, true));
    assert_eq!(s.served(Cluster, "a"), [(Some(1), 10)]);
    assert!(!s.refuse(4, &resource(Cluster, "a", 7), None, false), "nor what it is not served");
}

#[test]
fn canaries_that_end_or_do_not_answer_are_replaced_once() {
    let mut s = Scene::new([put(Cluster, "a", 1)]);
    s.publish([put(Cluster, "a", 2)]);
    let first = s.canaries();
    s.wait(Canary::default().patience);
    let second = s.canaries();
    assert!((&first & &second).is_empty() && second.len() == 3, "{first:?} {second:?}");
    s.busy |= &second;
    for slot in second.iter().take(2) {
        let busy = s.busy.clone();
        s.interest.leave(slot, &proxy_of(slot), []);
        s.rollout.left(slot, &s.interest, &|slot| busy.contains(slot), s.now);
    }
    assert_eq!(s.canaries().len(), 1);
    s.wait(Canary::default().patience);
    assert_eq!((s.canaries().len(), s.served(Cluster, "a")), (0, vec![(Some(2), 10)]));
}

#[test]
fn one_answer_is_enough_when_the_others_do_not_come() {
    let mut s = Scene::new([put(Cluster, "a", 1)]);
    s.publish([put(Cluster, "a", 2)]);
    let one = s.canaries().iter().take(1).collect();
    s.answer(&one);
    s.wait(Canary::default().patience);
    assert_eq!(s.served(Cluster, "a"), [(Some(2), 10)]);
}

#[test]
fn the_same_listener_of_many_pods_is_tried_by_a_few_of_them_and_each_keeps_its_own_when_it_is_bad() {
    let inbound = |content| resource(Listener, "inbound", content);
    let mut s = Scene::new([]);
    s.publish((0..STREAMS).map(|slot| view(slot, &[inbound(slot as u8)])).collect::<Vec<_>>());
    s.busy.clear();
    s.answer(&RoaringBitmap::new());
    s.publish((0..STREAMS).map(|slot| view(slot, &[inbound(99)])).collect::<Vec<_>>());
    assert_eq!(s.served(Listener, "inbound").last(), Some(&(Some(99), 3)));
    let canaries = s.canaries();
    let first = canaries.min().expect("a canary");
    assert!(s.refuse(first, &inbound(99), Some(inbound(first as u8)), false));
    s.answer(&canaries);
    let own: Vec<_> = (0..10).map(|slot| (Some(slot), 1)).collect();
    assert_eq!(s.served(Listener, "inbound"), own);
}

#[test]
fn a_trial_that_begins_when_the_last_canary_ends_is_not_taken_for_answered() {
    let mut s = Scene::new([put(Cluster, "a", 1)]);
    s.publish([put(Cluster, "a", 2)]);
    for slot in s.canaries() {
        let busy = s.busy.clone();
        s.interest.leave(slot, &proxy_of(slot), []);
        s.rollout.left(slot, &s.interest, &|slot| busy.contains(slot), s.now);
    }
    assert_eq!(s.canaries().len(), 3, "others try it");
    assert_eq!(s.rollout.stable().shared(Cluster, &"a".into()).map(|a| a.body[0]), Some(1));
}

#[test]
fn content_of_its_own_that_a_proxy_refused_is_forgotten_when_it_has_other_content() {
    let inbound = |content| [resource(Listener, "inbound", content)];
    let mut s = Scene::new([]);
    s.publish((0..STREAMS).map(|slot| view(slot, &inbound(1))).collect::<Vec<_>>());
    s.busy.clear();
    s.publish([view(0, &inbound(9))]);
    assert!(s.refuse(0, &inbound(9)[0], Some(inbound(1)[0].clone()), false));
    s.publish([view(1, &inbound(9))]);
    s.publish([view(0, &inbound(2))]);
    assert_eq!(s.rollout.held_back().count(), 1, "another has it");
    s.publish([view(1, &inbound(2))]);
    assert_eq!(s.rollout.held_back().count(), 0);
}

#[test]
fn a_change_is_as_old_as_itself_and_not_as_the_trial_that_it_waited_for() {
    let mut s = Scene::new([put(Cluster, "a", 1)]);
    s.publish([put(Cluster, "a", 2)]);
    let first = s.now;
    s.now += Duration::from_secs(1);
    s.publish([put(Cluster, "a", 3)]);
    assert_eq!(s.rollout.trial().map(|(_, _, since)| since), Some(first));
    s.now += Duration::from_secs(1);
    let canaries = s.canaries();
    s.answer(&canaries);
    assert_eq!(s.rollout.trial().map(|(_, _, since)| since), Some(first + Duration::from_secs(1)));
}

fn change() -> impl Strategy<Value = Change> {
    let kind = || prop::sample::select(vec![Cluster, Endpoints, Listener, Route]);
    let name = || prop::sample::select(vec!["a", "b"]);
    prop_oneof![
        6 => (kind(), name(), 0u8..4).prop_map(|(k, n, c)| put(k, n, c)),
        3 => (kind(), name()).prop_map(|(k, n)| gone(k, n)),
        2 => (0..STREAMS, 0u8..3).prop_map(|(slot, c)| view(slot, &[resource(Listener, "inbound", c)])),
    ]
}

proptest! {
    #[test]
    fn at_rest_all_are_served_what_the_source_says(
        steps in prop::collection::vec((prop::collection::vec(change(), 0..5), any::<bool>()), 1..20),
    ) {
        let mut s = Scene::new([]);
        for (changes, answers) in steps {
            let before = s.rollout.stable().number();
            s.publish(changes);
            prop_assert!(s.rollout.stable().number() >= before);
            if answers {
                let canaries = s.canaries();
                s.answer(&canaries);
            }
        }
        for _ in 0..10 {
            let canaries = s.canaries();
            s.answer(&canaries);
        }
        prop_assert!(s.rollout.trial().is_none());
        prop_assert!(s.source.since(s.rollout.stable()).is_empty());
    }
}
