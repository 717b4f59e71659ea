//! Which replica does what only one may do: the holder of a Lease of coordination.k8s.io.
//!
//! ```text
//!  read the Lease ─▶ Contest (pure) ─▶ renew | take over | wait ─▶ write it, unless it has changed
//! ```
//!
//! The rules are those of client-go. Who holds it renews it every few seconds; who does not takes it over when it has
//! seen no renewal for as long as the Lease says, *by its own clock*, so that the replicas' clocks may differ. A holder
//! that could not renew stops before any other may begin.

use std::collections::BTreeSet;
use std::sync::{Arc, Mutex, PoisonError};
use std::time::Duration;

use k8s_openapi::api::coordination::v1::{Lease as LeaseObject, LeaseSpec};
use k8s_openapi::apimachinery::pkg::apis::meta::v1::{MicroTime, ObjectMeta};
use k8s_openapi::jiff::Timestamp;
use kube::Api;
use kube::api::PostParams;
use tokio::sync::watch;
use tokio::time::{Instant, sleep, timeout};

use super::{Cluster, Report, RequestError, send};
use crate::mesh::Diagnostic;

/// The Lease's name.
pub const NAME: &str = "weft";

/// How long the Lease is held without being renewed.
const DURATION: Duration = Duration::from_secs(15);
/// Who could not renew for this long gives it up.
const DEADLINE: Duration = Duration::from_secs(10);
/// Between two looks.
const LOOK: Duration = Duration::from_secs(2);

/// Takes part in who holds the Lease.
pub struct Lease {
    api: Api<LeaseObject>,
    contest: Contest,
    holding: watch::Sender<bool>,
    renewed: Option<Instant>,
    of: String,
}

impl Lease {
    /// Takes no part before [`Lease::run`].
    pub fn new(cluster: &Cluster) -> Self {
        // A process that is started again in the same pod is another one.
        let me = format!("{}_{:08x}", cluster.replica, rand::random::<u32>());
        Self {
            api: Api::namespaced(cluster.client(), cluster.namespace()),
            contest: Contest { me, seen: None },
            holding: watch::Sender::new(false),
            renewed: None,
            of: format!("Lease {}/{NAME}", cluster.namespace()),
        }
    }

    /// Whether this replica holds it.
    pub fn holding(&self) -> watch::Receiver<bool> {
        self.holding.subscribe()
    }

    /// Takes part until the future is dropped; [`Lease::resign`] follows.
    pub async fn run(&mut self, report: &dyn Report) {
        loop {
            // Whatever a request takes, the Lease is given up in time.
            let left = self.renewed.map(|at| DEADLINE.saturating_sub(at.elapsed()));
            let round = timeout(left.unwrap_or(DEADLINE), self.round()).await;
            let failed = match round {
                Ok(Ok(())) | Ok(Err(RequestError::Conflict)) => None,
                Ok(Err(error)) => Some(error),
                Err(_) => Some(RequestError::Unwell(format!("the Lease could not be renewed within {DEADLINE:?}"))),
            };
            if self.renewed.is_some_and(|at| at.elapsed() >= DEADLINE) {
                self.renewed = None;
                self.hold(false);
            }
            report.report(&self.of, failed.map(|error| unusable(&self.of, &error)));
            sleep(LOOK).await;
        }
    }

    /// Gives it up at once, so that nobody has to wait for its end.
    pub async fn resign(&mut self) {
        if self.renewed.take().is_none() {
            return;
        }
        self.hold(false);
        let Ok(mut lease) = send("get", self.api.get(NAME)).await else { return };
        let Some(spec) = lease.spec.as_mut().filter(|spec| spec.holder_identity.as_ref() == Some(&self.contest.me))
        else {
            return;
        };
        spec.holder_identity = None;
        spec.lease_duration_seconds = Some(1);
        if let Err(error) = send("update", self.api.replace(NAME, &PostParams::default(), &lease)).await {
            tracing::debug!(%error, "the lease ends by itself");
        }
    }

    async fn round(&mut self) -> Result<(), RequestError> {
        let found = match send("get", self.api.get(NAME)).await {
            Ok(found) => Some(found),
            Err(RequestError::Missing) => None,
            Err(error) => return Err(error),
        };
        let began = Instant::now();
        let spec = found.as_ref().and_then(|lease| lease.spec.as_ref());
        let wanted = match self.contest.next(spec, began) {
            Move::Wait => {
                self.renewed = None;
                self.hold(false);
                return Ok(());
            }
            Move::Hold(wanted) => wanted,
        };
        let lease = LeaseObject {
            metadata: found.as_ref().map_or_else(named, |lease| lease.metadata.clone()),
            spec: Some(wanted),
        };
        // With the version that was read: if it has changed since, another has it.
        match found {
            Some(_) => send("update", self.api.replace(NAME, &PostParams::default(), &lease)).await?,
            None => send("create", self.api.create(&PostParams::default(), &lease)).await?,
        };
        self.renewed = Some(began);
        self.hold(true);
        Ok(())
    }

    fn hold(&self, holding: bool) {
        if self.holding.send_if_modified(|held| std::mem::replace(held, holding) != holding) {
            let replica = &self.contest.me;
            match holding {
                true => tracing::info!(%replica, "this replica holds the lease: it does what only one may do"),
                false => tracing::info!(%replica, "this replica no longer holds the lease"),
            }
        }
    }
}

fn named() -> ObjectMeta {
    ObjectMeta { name: Some(NAME.to_owned()), ..ObjectMeta::default() }
}

fn unusable(of: &str, error: &RequestError) -> Diagnostic {
    let reason = format!("{of} cannot be used, so this replica does nothing that only one may do: {error}");
    Diagnostic::warning("", reason, error.help("leases.coordination.k8s.io"))
}

/// Runs `work` whenever this replica holds the Lease, and drops it when it no longer does. What it has said by then is
/// unsaid: another holder says what holds from then on.
pub async fn while_holding<F: Future<Output = ()>>(
    mut holding: watch::Receiver<bool>,
    report: Arc<dyn Report>,
    work: impl Fn(Arc<dyn Report>) -> F,
) {
    loop {
        if holding.wait_for(|holding| *holding).await.is_err() {
            return;
        }
        let said = Arc::new(SaidByHolder { report: report.clone(), of: Mutex::default() });
        tokio::select! {
            () = work(said) => tokio::time::sleep(LOOK).await,
            lost = holding.wait_for(|holding| !*holding) => if lost.is_err() { return },
        }
    }
}

/// Passes on what the holder says, and unsays it at the end.
struct SaidByHolder {
    report: Arc<dyn Report>,
    /// Of what something is said.
    of: Mutex<BTreeSet<String>>,
}

impl Report for SaidByHolder {
    fn report(&self, of: &str, found: Option<Diagnostic>) {
        let mut said = self.of.lock().unwrap_or_else(PoisonError::into_inner);
        match found {
            Some(_) => said.insert(of.to_owned()),
            None => said.remove(of),
        };
        self.report.report(of, found);
    }
}

impl Drop for SaidByHolder {
    fn drop(&mut self) {
        let said = self.of.get_mut().unwrap_or_else(PoisonError::into_inner);
        said.iter().for_each(|of| self.report.report(of, None));
    }
}

/// What one of those who want the Lease knows.
#[derive(Debug)]
struct Contest {
    me: String,
    /// The Lease as it was seen last, and since when it has been so.
    seen: Option<(LeaseSpec, Instant)>,
}

#[derive(Debug, PartialEq)]
enum Move {
    /// It is another's.
    Wait,
    /// Write it so, and it is ours.
    Hold(LeaseSpec),
}

impl Contest {
    fn next(&mut self, found: Option<&LeaseSpec>, now: Instant) -> Move {
        let found = found.cloned().unwrap_or_default();
        if self.seen.as_ref().is_none_or(|(seen, _)| *seen != found) {
            self.seen = Some((found.clone(), now));
        }
        let holder = found.holder_identity.as_deref().filter(|holder| !holder.is_empty());
        let mine = holder == Some(&self.me);
        if let Some((_, since)) = self.seen.as_ref().filter(|_| holder.is_some() && !mine) {
            let lasts = found.lease_duration_seconds.and_then(|seconds| u64::try_from(seconds).ok());
            if now.duration_since(*since) < lasts.map_or(DURATION, Duration::from_secs) {
                return Move::Wait;
            }
        }
        let at = Some(MicroTime(Timestamp::now()));
        let before = found.lease_transitions.unwrap_or_default();
        Move::Hold(LeaseSpec {
            holder_identity: Some(self.me.clone()),
            lease_duration_seconds: i32::try_from(DURATION.as_secs()).ok(),
            acquire_time: if mine { found.acquire_time.clone() } else { at.clone() },
            renew_time: at,
            lease_transitions: Some(if mine || before == i32::MAX { before } else { before + 1 }),
            ..found
        })
    }
}

#[cfg(test)]
mod tests {
    use super::*;

    fn contest(me: &str) -> Contest {
        Contest { me: me.to_owned(), seen: None }
    }

    fn held(found: Move) -> LeaseSpec {
        match found {
            Move::Hold(spec) => spec,
            Move::Wait => panic!("it waits"),
        }
    }

    #[tokio::test(start_paused = true)]
    async fn the_first_holds_it_and_the_second_waits_for_its_renewals_to_stop() {
        let (mut a, mut b) = (contest("a"), contest("b"));
        let mut lease = held(a.next(None, Instant::now()));
        assert_eq!((lease.holder_identity.as_deref(), lease.lease_transitions), (Some("a"), Some(1)));
        for _ in 0..10 {
            assert_eq!(b.next(Some(&lease), Instant::now()), Move::Wait);
            tokio::time::advance(DURATION - LOOK).await;
            assert_eq!(b.next(Some(&lease), Instant::now()), Move::Wait);
            lease = held(a.next(Some(&lease), Instant::now()));
        }
        assert_eq!(lease.lease_transitions, Some(1), "a renewal is no transition");
        assert_eq!(b.next(Some(&lease), Instant::now()), Move::Wait);
        tokio::time::advance(DURATION).await;
        let taken = held(b.next(Some(&lease), Instant::now()));
        assert_eq!((taken.holder_identity.as_deref(), taken.lease_transitions), (Some("b"), Some(2)));
        assert_eq!(a.next(Some(&taken), Instant::now()), Move::Wait, "the one before gives way");
    }

    #[tokio::test(start_paused = true)]
    async fn what_a_renewal_says_of_the_time_does_not_count() {
        let (mut a, mut b) = (contest("a"), contest("b"));
        let mut lease = held(a.next(None, Instant::now()));
        lease.renew_time = Some(MicroTime(Timestamp::UNIX_EPOCH));
        assert_eq!(b.next(Some(&lease), Instant::now()), Move::Wait, "a's clock may be slow");
    }

    #[tokio::test(start_paused = true)]
    async fn one_that_was_given_up_is_taken_at_once() {
        let mut lease = held(contest("a").next(None, Instant::now()));
        lease.holder_identity = None;
        assert_eq!(held(contest("b").next(Some(&lease), Instant::now())).holder_identity.as_deref(), Some("b"));
    }

    /// Counts when it comes and when it goes.
    struct Counted<'a>(&'a watch::Sender<u32>);

    impl<'a> Counted<'a> {
        fn new(count: &'a watch::Sender<u32>) -> Self {
            count.send_modify(|count| *count += 1);
            Self(count)
        }
    }

    /// What is said now.
    #[derive(Default)]
    struct Said(Mutex<BTreeSet<String>>);

    impl Said {
        fn now(&self) -> Vec<String> {
            self.0.lock().expect("no panic").iter().cloned().collect()
        }
    }

    impl Report for Said {
        fn report(&self, of: &str, found: Option<Diagnostic>) {
            let mut said = self.0.lock().expect("no panic");
            match found {
                Some(_) => said.insert(of.to_owned()),
                None => said.remove(of),
            };
        }
    }

    impl Drop for Counted<'_> {
        fn drop(&mut self) {
            self.0.send_modify(|count| *count += 1);
        }
    }

    #[tokio::test(start_paused = true)]
    async fn work_runs_only_while_the_lease_is_held() {
        let holding = watch::Sender::new(false);
        let count = watch::Sender::new(0);
        let said = Arc::new(Said::default());
        let work = |report: Arc<dyn Report>| async {
            let _running = Counted::new(&count);
            let wrong = || Some(Diagnostic::warning("", "wrong", "mend it"));
            report.report("over", wrong());
            report.report("over", None);
            report.report("wrong", wrong());
            std::future::pending::<()>().await;
            drop(report);
        };
        let watch = async {
            let mut seen = count.subscribe();
            assert!(timeout(DURATION, seen.changed()).await.is_err(), "not before");
            for round in [0, 2] {
                holding.send_replace(true);
                seen.wait_for(|count| *count == round + 1).await.expect("it begins");
                assert_eq!(said.now(), ["wrong"]);
                holding.send_replace(false);
                seen.wait_for(|count| *count == round + 2).await.expect("it ends");
                assert!(said.now().is_empty(), "another holder says what holds: {:?}", said.now());
            }
        };
        tokio::select! {
            () = while_holding(holding.subscribe(), said.clone(), work) => panic!("it ended"),
            () = watch => {}
        }
    }
}
