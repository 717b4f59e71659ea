//! Calls stay in their caller's zone while there is a healthy endpoint in it, and leave it when there is none.

use std::time::Duration;

use anyhow::ensure;
use weft::local::control::PodSelector;
use weft_e2e::load::Summary;
use weft_e2e::mesh::{Mesh, PATIENCE};
use weft_e2e::scenario::Scenarios;
use weft_e2e::until;

use crate::{scenarios, start, told};

const A: &str = "app/client-a";
const B: &str = "app/client-b";
const POLICY: &str = "policy.yaml";
const MANY: [&str; 4] = ["-n", "200", "-c", "2"];

#[test]
fn calls_stay_in_their_zone() {
    run("default");
}

#[cfg(feature = "slow")]
#[test]
fn calls_stay_in_their_zone_on_the_oldest_envoy() {
    run("oldest");
}

fn run(line: &str) {
    let mesh = start("zone", line);
    let mut checks = scenarios(&mesh, line);
    by_policy(&mesh, &mut checks);
    by_service(&mesh, &mut checks);
    splits(&mesh, &mut checks);
    unhealthy(&mesh, &mut checks);
    gone(&mesh, &mut checks);
    checks.end(mesh).expect("every scenario holds");
}

fn policy(service: &str, balancing: &str) -> String {
    format!(
        "apiVersion: weft.dev/v1alpha1\nkind: TrafficPolicy\nmetadata: {{name: p, namespace: app}}\nspec:\n  \
         targetRefs: [{{group: \"\", kind: Service, name: {service}}}]\n  loadBalancing: {{{balancing}}}\n"
    )
}

/// What came of 200 calls, and the share of `responder` in them, in percent.
fn share(mesh: &Mesh, caller: &str, url: &str, responder: &str) -> anyhow::Result<(f64, String)> {
    let summary = mesh.calls(caller, &[&MANY, &[url][..]].concat())?;
    ensure!(summary.failed == 0, "{}", summary.said());
    Ok((summary.share(responder), format!("{:?}", summary.responders)))
}

/// All of 200 calls are answered in this zone.
fn all(mesh: &Mesh, checks: &mut Scenarios, scenario: &str, (caller, url): (&str, &str), zone: &str) {
    checks.holds(scenario, &format!("zone-{zone} answers all"), || {
        let (share, seen) = share(mesh, caller, url, &format!("echo {zone}"))?;
        Ok((share > 99.9, seen))
    });
}

/// Zone a answers about so much of 200 calls.
fn about(mesh: &Mesh, checks: &mut Scenarios, scenario: &str, (caller, url): (&str, &str), percent: f64) {
    checks.holds(scenario, &format!("zone-a answers about {percent} %"), || {
        let (share, seen) = share(mesh, caller, url, "echo a")?;
        // A zone is chosen at random where none is the caller's.
        Ok(((share - percent).abs() < 15.0, seen))
    });
}

fn by_policy(mesh: &Mesh, checks: &mut Scenarios) {
    let (http, tcp) = ("http://echo/", "tcp://echo:7000");
    about(mesh, checks, "policy-zone: without a policy, HTTP", (A, http), 50.0);
    about(mesh, checks, "policy-zone: without a policy, TCP", (B, tcp), 50.0);
    checks.holds("policy-zone: it begins and ends under load", "no failed request", || {
        let load = mesh.load(A, &["-c", "4", "--rate", "200", http])?;
        mesh.write(POLICY, &policy("echo", "zone: Prefer"))?;
        mesh.remove(POLICY)?;
        mesh.write(POLICY, &policy("echo", "zone: Prefer"))?;
        let summary = load.stop()?;
        Ok((summary.failed == 0, summary.said()))
    });
    all(mesh, checks, "policy-zone: HTTP from zone-a", (A, http), "a");
    all(mesh, checks, "policy-zone: HTTP from zone-b", (B, http), "b");
    all(mesh, checks, "policy-zone: TCP from zone-a", (A, tcp), "a");
    all(mesh, checks, "policy-zone: TCP from zone-b", (B, tcp), "b");
    about(mesh, checks, "policy-zone: a caller of which no zone is known", ("app/nowhere", http), 50.0);
    mesh.write(POLICY, &policy("echo", "zone: Prefer, algorithm: LeastRequest, slowStart: {window: 1s}")).expect("set");
    all(mesh, checks, "policy-zone: with LeastRequest", (B, http), "b");
    mesh.write(POLICY, &policy("echo", "algorithm: LeastRequest")).expect("set");
    about(mesh, checks, "policy-zone: a policy that says nothing of zones", (A, http), 50.0);
    mesh.remove(POLICY).expect("removed");
}

fn by_service(mesh: &Mesh, checks: &mut Scenarios) {
    let (http, tcp) = ("http://near/", "tcp://near:7000");
    all(mesh, checks, "policy-zone: trafficDistribution, HTTP from zone-a", (A, http), "a");
    all(mesh, checks, "policy-zone: trafficDistribution, TCP from zone-b", (B, tcp), "b");
    mesh.write(POLICY, &policy("near", "zone: Any")).expect("set");
    about(mesh, checks, "policy-zone: a policy counts before trafficDistribution", (A, http), 50.0);
    mesh.write(POLICY, &policy("near", "algorithm: LeastRequest")).expect("set");
    all(mesh, checks, "policy-zone: trafficDistribution, a policy says nothing of it", (A, http), "a");
    mesh.write(POLICY, &policy("near", "algorithm: Maglev, hash: {header: x-user}")).expect("set");
    checks.holds("policy-zone: trafficDistribution and a hash", "is reported", || {
        told(mesh, "Service app/near spec.trafficDistribution the TrafficPolicy `p` chooses the endpoints of port 80")
    });
    mesh.remove(POLICY).expect("removed");
}

fn splits(mesh: &Mesh, checks: &mut Scenarios) {
    checks.holds("policy-zone: a split with both backends in each zone", "80 % and 20 %, all in zone-b", || {
        let summary: Summary = mesh.calls(B, &[&MANY[..], &["http://even/"]].concat())?;
        let ok = (summary.share("echo b") - 80.0).abs() < 5.0 && (summary.share("canary b") - 20.0).abs() < 5.0;
        Ok((summary.failed == 0 && ok, format!("{:?}", summary.responders)))
    });
    checks.holds("policy-zone: a split with a backend that is not in each zone", "the shares, from both zones", || {
        let summary: Summary = mesh.calls(A, &[&MANY[..], &["http://uneven/"]].concat())?;
        let ok = (summary.share("echo a") - 40.0).abs() < 5.0 && (summary.share("canary b") - 20.0).abs() < 5.0;
        Ok((summary.failed == 0 && ok, format!("{:?}", summary.responders)))
    });
}

fn unhealthy(mesh: &Mesh, checks: &mut Scenarios) {
    all(mesh, checks, "policy-zone: the zone's only pod does not listen", (A, "http://half/"), "b");
    checks.holds("policy-zone: the zone's only application is killed", "no call fails but those in flight", || {
        let url = "http://near/";
        let load = mesh.load(A, &["-c", "4", "--rate", "200", "--timeout", "2s", url])?;
        let answered = |who: &str| -> anyhow::Result<u64> {
            let summary = mesh.calls(A, &["-n", "20", "--expect", "200", "--expect", "503", url])?;
            Ok(summary.responders.get(who).copied().unwrap_or(0))
        };
        until("calls in zone-a", PATIENCE, || Ok(if answered("echo a")? == 20 { Ok(()) } else { Err("few".into()) }))?;
        mesh.client().kill_container(PodSelector::new("app", "echo-a".to_owned()), "app")?;
        until("calls in zone-a again", PATIENCE, || {
            let restarts = mesh.pods_of("app", "echo-a")?.iter().map(|pod| pod.restarts).sum::<u32>();
            let answered = answered("echo a")?;
            Ok(if restarts > 0 && answered == 20 { Ok(()) } else { Err(format!("{restarts} {answered}")) })
        })?;
        let summary = load.stop()?;
        Ok((summary.failed <= 4, format!("{}, {:?}", summary.said(), summary.responders)))
    });
}

/// The zone's only pod ends in good order, and another comes.
fn gone(mesh: &Mesh, checks: &mut Scenarios) {
    mesh.write(POLICY, &policy("echo", "zone: Prefer")).expect("set");
    let pod = mesh.read("a.yaml").expect("the pod of zone-a");
    for (scheme, url, service) in
        [("HTTP", "http://echo/", "http://near/"), ("TCP", "tcp://echo:7000", "tcp://near:7000")]
    {
        let load = mesh.load(A, &["-c", "4", "--rate", "100", url]).expect("a load");
        let other = mesh.load(A, &["-c", "2", "--rate", "50", service]).expect("a load");
        mesh.delete("a.yaml").expect("deleted");
        mesh.wait_for_pods("app", "echo-a", 0).expect("it is gone");
        all(mesh, checks, &format!("policy-zone: the zone's only pod is gone, {scheme}"), (A, url), "b");
        mesh.put("a.yaml", &pod).expect("written");
        mesh.wait_for_pods("app", "echo-a", 1).expect("it is back");
        checks.holds(&format!("policy-zone: it is back, {scheme}"), "zone-a answers all", || {
            let back = until("calls in zone-a", Duration::from_secs(10), || {
                let (share, seen) = share(mesh, A, url, "echo a")?;
                Ok(if share > 99.9 { Ok(seen) } else { Err(seen) })
            })?;
            Ok((true, back))
        });
        checks.holds(&format!("policy-zone: under load all the while, {scheme}"), "no failed call", || {
            let mut summary = load.stop()?;
            summary.add(other.stop()?);
            let both = summary.responders.len() == 2;
            Ok((summary.failed == 0 && both, format!("{}, {:?}", summary.said(), summary.responders)))
        });
    }
    mesh.remove(POLICY).expect("removed");
}
