//! What the two sidecars of a call count of it, and how they name its ends.

use std::collections::BTreeSet;
use std::time::{Duration, Instant};

use weft_e2e::mesh::Mesh;
use weft_e2e::samples::Samples;

use crate::{scenarios, start};

const CLIENT: &str = "app/client";
const SERVER: &str = "app/server";
const VAULT: &str = "guarded/vault";

/// The requests that a caller counts to a Service, and those that a callee counts.
const TO_SERVER: &[(&str, &str)] = &[("reporter", "source"), ("destination_service", "server")];
const AT_CALLEE: &[(&str, &str)] = &[("reporter", "destination")];

/// What is seen of a sidecar's metrics: `expected`, or what was there instead after a while. A request is counted when it
/// has ended, which is a moment after its caller has the answer; histograms appear every 5 s.
fn seen(mesh: &Mesh, pod: &str, expected: &str, look: impl Fn(&Samples) -> String) -> anyhow::Result<String> {
    let start = Instant::now();
    loop {
        let saw = look(&Samples::of(mesh, pod)?);
        if saw == expected || start.elapsed() > Duration::from_secs(12) {
            return Ok(saw);
        }
        std::thread::sleep(Duration::from_millis(20));
    }
}

fn principal(namespace: &str, account: &str) -> String {
    format!("spiffe://cluster.local/ns/{namespace}/sa/{account}")
}

#[test]
fn both_sidecars_of_a_call_count_it_with_both_ends() {
    let mesh = start("metrics", "default");
    let mut checks = scenarios(&mesh, "default");
    let client = principal("app", "client");

    for (status, count) in [("200", "5"), ("404", "3"), ("503", "2")] {
        mesh.calls(CLIENT, &["-n", count, &format!("http://server/?status={status}")]).expect("calls");
    }
    let codes = "200: 5, 404: 3, 503: 2";
    let by_code = |wanted: &'static [(&str, &str)]| move |s: &Samples| s.by("response_code", "requests_total", wanted);
    checks.equal("metrics-by-code at the caller", codes, seen(&mesh, CLIENT, codes, by_code(TO_SERVER)));
    checks.equal("metrics-by-code at the callee", codes, seen(&mesh, SERVER, codes, by_code(AT_CALLEE)));

    let ends = format!(
        "destination_namespace=app destination_port=80 destination_principal={} destination_service=server \
         destination_version=v3 destination_workload=server protocol=HTTP/1.1 reporter=source response_code=404 \
         response_flags=- source_namespace=app source_principal={client} source_version=v7 source_workload=client",
        principal("app", "server")
    );
    let labels = |s: &Samples| {
        let series = s.with("requests_total", &[("response_code", "404")]).map(|sample| sample.labels());
        series.collect::<Vec<_>>().join("; ")
    };
    checks.equal("metrics-labels at the caller", &ends, seen(&mesh, CLIENT, &ends, labels));
    let ends = format!(
        "destination_namespace=app destination_principal={} destination_sni=80.server.app.svc.cluster.local \
         destination_version=v3 destination_workload=server protocol=HTTP/1.1 reporter=destination response_code=404 \
         response_flags=- source_principal={client}",
        principal("app", "server")
    );
    checks.equal("metrics-labels at the callee", &ends, seen(&mesh, SERVER, &ends, labels));

    let summary = mesh.calls(CLIENT, &["-n", "200", "-c", "4", "http://web/"]).expect("calls");
    let answered = |who: &str| summary.responders.get(who).copied().unwrap_or(0);
    let shares = format!("v1: {}, v2: {}", answered("web-primary v1"), answered("web-canary v2"));
    let web: &[(&str, &str)] = &[("destination_service", "web"), ("response_code", "200")];
    checks.equal(
        "metrics-by-version during a split",
        &shares,
        seen(&mesh, CLIENT, &shares, |s| s.by("destination_version", "requests_total", web)),
    );

    mesh.calls(CLIENT, &["-n", "3", "--expect", "403", "http://vault.guarded/"]).expect("calls");
    let denied = format!("{client}: 3");
    checks.equal(
        "metrics-denied requests, at the callee by the caller's principal",
        &denied,
        seen(&mesh, VAULT, &denied, |s| s.by("source_principal", "requests_total", &[("response_code", "403")])),
    );
    mesh.calls(CLIENT, &["-n", "2", "http://watched.audited/"]).expect("calls");
    let audited = format!("{client}: 2");
    checks.equal(
        "metrics-audit, what enforcement would deny",
        &audited,
        seen(&mesh, "audited/watched", &audited, |s| {
            s.by("source_principal", "requests_total", &[("response_code", "200"), ("audit", "denied")])
        }),
    );

    mesh.calls(CLIENT, &["-n", "2", "--expect", "503", "http://empty/"]).expect("calls");
    checks.equal(
        "metrics-response-flags, a Service without endpoints",
        "UH: 2",
        seen(&mesh, CLIENT, "UH: 2", |s| {
            s.by("response_flags", "requests_total", &[("destination_service", "empty"), ("response_code", "503")])
        }),
    );

    mesh.calls(CLIENT, &["-n", "20", "-c", "5", "http://web-canary/?delay=60ms"]).expect("calls");
    let latencies = |s: &Samples| {
        let metric = |part: &str| format!("request_duration_milliseconds_{part}");
        let canary = ("destination_service", "web-canary");
        let up_to = |bound| s.sum(&metric("bucket"), &[canary, ("le", bound)]);
        format!("{} up to 50 ms, {} up to 1 s", up_to("50"), up_to("1000"))
    };
    let expected = "0 up to 50 ms, 20 up to 1 s";
    checks.equal("metrics-latency of answers after 60 ms", expected, seen(&mesh, CLIENT, expected, latencies));

    mesh.calls(CLIENT, &["-n", "3", "--size", "100000", "http://web-primary/?size=50000"]).expect("calls");
    let bytes = |s: &Samples| {
        let primary = &[("destination_service", "web-primary")];
        let answered = s.sum("response_bytes_total", primary);
        format!("{} out, {} in", s.sum("request_bytes_total", primary), answered > 150_000.0 && answered < 160_000.0)
    };
    checks.equal("metrics-bytes", "300000 out, true in", seen(&mesh, CLIENT, "300000 out, true in", bytes));
    let once = |s: &Samples| {
        let bytes = s.sum("request_bytes_total", &[]) + s.sum("response_bytes_total", &[]);
        format!("{} requests, {bytes} bytes", s.sum("requests_total", AT_CALLEE))
    };
    let expected = "10 requests, 0 bytes";
    checks.equal(
        "metrics-bytes at the callee of a caller that counts them",
        expected,
        seen(&mesh, SERVER, expected, once),
    );

    mesh.calls(CLIENT, &["-n", "5", "tcp://server:7000"]).expect("calls");
    for (side, pod, wanted) in [("caller", CLIENT, TO_SERVER), ("callee", SERVER, AT_CALLEE)] {
        let connections = |s: &Samples| {
            let [opened, closed] =
                ["opened", "closed"].map(|what| s.sum(&format!("tcp_connections_{what}_total"), wanted));
            let bytes = ["received", "sent"].map(|what| s.sum(&format!("tcp_{what}_bytes_total"), wanted) > 0.0);
            format!("{opened} opened, {closed} closed, bytes {bytes:?}")
        };
        let expected = "5 opened, 5 closed, bytes [true, true]";
        checks.equal(&format!("metrics-tcp at the {side}"), expected, seen(&mesh, pod, expected, connections));
    }
    mesh.calls(CLIENT, &["-n", "2", "--expect", "closed", "tcp://vault.guarded:7000"]).expect("calls");
    let denied = format!("{client}: 2");
    checks.equal(
        "metrics-tcp denied, at the callee by the caller's principal",
        &denied,
        seen(&mesh, VAULT, &denied, |s| {
            let wanted = &[("termination", "san_denied")];
            s.by("source_principal", "tcp_connections_closed_total", wanted)
        }),
    );

    checks.equal(
        "metrics-tcp denied, no connection is opened to the application",
        "0 opened",
        Samples::of(&mesh, VAULT).map(|s| format!("{} opened", s.sum("tcp_connections_opened_total", AT_CALLEE).abs())),
    );
    let opened = format!("{client}: 5");
    checks.equal(
        "metrics-tcp opened, at the callee by the caller's principal",
        &opened,
        seen(&mesh, SERVER, &opened, |s| s.by("source_principal", "tcp_connections_opened_total", AT_CALLEE)),
    );

    mesh.calls(CLIENT, &["-n", "4", "grpc://server:9090"]).expect("calls");
    mesh.calls(CLIENT, &["-n", "2", "--expect", "PERMISSION_DENIED", "grpc://vault.guarded:9090"]).expect("calls");
    let statuses =
        |s: &Samples| s.by("grpc_status", "requests_total", &[("protocol", "HTTP/2"), ("reporter", "source")]);
    checks.equal("metrics-grpc status", "0: 4, 7: 2", seen(&mesh, CLIENT, "0: 4, 7: 2", statuses));

    mesh.calls("plain/stranger", &["-n", "3", "http://server.app/"]).expect("calls");
    checks.equal(
        "metrics-unknown caller, in clear",
        "200: 3",
        seen(&mesh, SERVER, "200: 3", |s| s.by("response_code", "requests_total", &[("source_principal", "")])),
    );

    checks.holds("metrics-probes are not counted", "many answered, none counted", || {
        let answered = mesh.stats(VAULT, "^http.inbound.downstream_rq_2xx$")?;
        let counted = Samples::of(&mesh, VAULT)?.sum("requests_total", &[("source_principal", "")]);
        let many = answered.iter().any(|(_, count)| *count >= 3);
        Ok((many && counted == 0.0, format!("{answered:?}, {counted} counted")))
    });

    let server = mesh.pods_of("app", "server").expect("pods").first().map(|pod| pod.ip).expect("a pod");
    mesh.calls(CLIENT, &["-n", "2", &format!("http://{server}:8080/")]).expect("calls");
    checks.equal(
        "metrics-a pod called by its address",
        "server: 2",
        seen(&mesh, CLIENT, "server: 2", |s| {
            s.by("destination_workload", "requests_total", &[("destination_service", ""), ("response_code", "200")])
        }),
    );

    checks.holds("metrics-bounded, whatever a client says", "no new series after one call of each kind", || {
        let odd = |number: usize| {
            let method = ["GET", "POST", "PURGE", "X-ODD"][number % 4];
            let url = format!("http://server/{number}/odd?{number}");
            // Every other four name a second host, which Envoy refuses.
            let header =
                if number % 8 < 4 { format!("x-odd-{number}: {number}") } else { format!("host: h{number}.test") };
            mesh.call(CLIENT, &["-X", method, "-H", &header, &url])
        };
        let series = |pod: &str| -> anyhow::Result<BTreeSet<String>> {
            let samples = Samples::of(&mesh, pod)?.0.into_iter().filter(|sample| sample.name.ends_with("_total"));
            Ok(samples.map(|sample| format!("{} {}", sample.name, sample.labels())).collect())
        };
        let both = || Ok::<_, anyhow::Error>((series(CLIENT)?, series(SERVER)?));
        let total = |s: &Samples| s.sum("requests_total", &[("reporter", "source")]);
        let start = total(&Samples::of(&mesh, CLIENT)?);
        let counted = |made: f64| {
            let expected = (start + made).to_string();
            seen(&mesh, CLIENT, &expected, |s| total(s).to_string()).map(|saw| saw == expected)
        };
        (0..8).try_for_each(|number| odd(number).map(drop))?;
        let first = counted(8.0)?;
        let before = both()?;
        (8..48).try_for_each(|number| odd(number).map(drop))?;
        let all = counted(48.0)?;
        let after = both()?;
        let new: Vec<_> = after.0.difference(&before.0).chain(after.1.difference(&before.1)).collect();
        let said = format!("{} and {} series, new: {new:?}, counted: {first}, {all}", after.0.len(), after.1.len());
        Ok((new.is_empty() && first && all, said))
    });

    let counted = || Samples::of(&mesh, CLIENT).map(|s| s.sum("requests_total", &[("destination_service", "web")]));
    checks.holds("metrics-basic by MeshConfig, and full again", "not counted, then counted", || {
        let full = mesh.read("mesh.yaml")?;
        mesh.edit("mesh.yaml", |text| text.replacen("spec:\n", "spec:\n  metrics: {mode: Basic}\n", 1))?;
        let before = counted()?;
        let quiet = mesh.calls(CLIENT, &["-n", "20", "http://web/"])?;
        let own = mesh.stats(CLIENT, "^cluster.app/web/80.upstream_rq_completed$")?;
        let without = counted()?;
        mesh.write("mesh.yaml", &full)?;
        let again = mesh.calls(CLIENT, &["-n", "20", "http://web/"])?;
        let with = seen(&mesh, CLIENT, "20", |s| {
            (s.sum("requests_total", &[("destination_service", "web")]) - without).to_string()
        })?;
        let none_failed = quiet.failed + again.failed == 0 && own.iter().any(|(_, count)| *count >= 220);
        Ok((
            without <= before && with == "20" && none_failed,
            format!("{before}, {without}, then {with} more; {own:?}"),
        ))
    });
    checks.end(mesh).expect("every scenario holds");
}

#[test]
fn an_envoy_without_the_stats_logger_counts_as_it_can() {
    let mesh = start("metrics", "oldest");
    let mut checks = scenarios(&mesh, "oldest");
    checks.holds("metrics-oldest Envoy, counts by cluster", "6 requests to app/server/80, nothing refused", || {
        let summary = mesh.calls(CLIENT, &["-n", "6", "http://server/"])?;
        let own = mesh.stats(CLIENT, "^cluster.app/server/80.upstream_rq_2xx$")?;
        let at_callee = mesh.stats(SERVER, "^http.inbound.downstream_rq_2xx$")?;
        let golden = Samples::of(&mesh, CLIENT)?.0.len();
        let refusing = mesh.metrics()?.lines().any(|line| line == "weft_xds_refusing_proxies 0");
        let six = |stats: &[(String, u64)]| stats.iter().map(|(_, count)| count).sum::<u64>() == 6;
        let ok = summary.failed == 0 && six(&own) && six(&at_callee) && golden == 0 && refusing;
        Ok((ok, format!("{own:?}, {at_callee:?}, {golden} golden series, refusals none: {refusing}")))
    });
    checks.end(mesh).expect("every scenario holds");
}
