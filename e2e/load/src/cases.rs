//! The cases. Each starts its server, and ends with every sidecar's state compared byte by byte.

use std::collections::BTreeMap;
use std::time::{Duration, Instant};

use crate::catalog::ChangeId;
use crate::expected;
use crate::fleet::{Change, Fleet};
use crate::mesh::Size;
use crate::report::{Case, percentile};
use crate::server::{Kind, Programs, Server};
use crate::stream::{Command, Reading};

const PATIENCE: Duration = Duration::from_secs(300);
/// A server that says nothing for this long has no more to say.
const QUIET: Duration = Duration::from_millis(500);

/// What is measured.
#[derive(Clone, Copy, PartialEq, Eq, Debug, clap::ValueEnum)]
#[allow(missing_docs, reason = "the module of each says what it does")]
pub enum Name {
    EndpointChange,
    FirstSync,
    Stalled,
    Reconnect,
    Churn,
    OnDemandChange,
    OnDemandFirstCall,
}

/// How much of it.
#[derive(Clone, Copy, Debug)]
pub struct Amount {
    /// Changes one after the other.
    pub changes: usize,
    /// How long the cases last that last.
    pub time: Duration,
}

/// A server with a fleet that has everything.
struct Running {
    server: Server,
    fleet: Fleet,
    rss_before: u64,
    /// How long each sidecar took to have everything, its connection apart.
    synced: Vec<Duration>,
    sync_cpu: Duration,
    connecting: Duration,
}

impl Running {
    async fn start(kind: Kind, programs: &Programs, size: Size) -> anyhow::Result<Self> {
        let server = Server::start(kind, programs, size).await?;
        let rss_before = server.process.rss_kb()?;
        let start = Instant::now();
        let fleet = Fleet::connect(server.target.clone(), |catalog| server.personas(catalog)).await?;
        let connecting = start.elapsed();
        let (start, cpu) = (Instant::now(), server.process.cpu()?);
        fleet.tell(0..fleet.len(), &Command::Start);
        let synced = fleet.synced(fleet.len(), PATIENCE).await?;
        let synced = synced.into_iter().map(|at| at - start).collect();
        let sync_cpu = server.process.cpu()? - cpu;
        fleet.quiet(QUIET).await;
        Ok(Self { server, fleet, rss_before, synced, sync_cpu, connecting })
    }

    /// The case with what is the same for all.
    fn case(&self, case: &'static str, times: &mut [Duration], cpu: Duration, bytes: u64) -> anyhow::Result<Case> {
        let (rss, proxies) = (self.server.process.rss_kb()?, self.fleet.len());
        Ok(Case {
            case,
            server: self.server.kind(),
            proxies,
            services: self.server.mesh().size().services,
            p50_ms: percentile(times, 50),
            p99_ms: percentile(times, 99),
            max_ms: percentile(times, 100),
            cpu_us_per_proxy: cpu.as_secs_f64() * 1e6 / proxies as f64,
            rss_mb: rss as f64 / 1024.0,
            rss_kb_per_proxy: rss.saturating_sub(self.rss_before) as f64 / proxies as f64,
            bytes,
            more: BTreeMap::new(),
        })
    }

    /// Changes the endpoints of one Service.
    async fn change(&self, service: usize, serial: usize, expected: usize) -> anyhow::Result<Change> {
        let id = self.begin(service, serial, expected).await?;
        self.fleet.changed(id, Duration::from_secs(60)).await
    }

    async fn begin(&self, service: usize, serial: usize, expected: usize) -> anyhow::Result<ChangeId> {
        let name = self.fleet.catalog().endpoints_of(&self.server.destination(service));
        let id = self.fleet.begin_change(name, expected);
        self.server.change(service, serial).await?;
        Ok(id)
    }

    async fn check(&self) -> anyhow::Result<usize> {
        expected::check(&self.server, &self.fleet, 0..self.fleet.len()).await
    }
}

/// Runs one case.
pub async fn run(name: Name, kind: Kind, programs: &Programs, size: Size, amount: Amount) -> anyhow::Result<Case> {
    let on_demand = Size { eager: false, ..size };
    match name {
        Name::EndpointChange => endpoint_change(kind, programs, size, amount.changes).await,
        Name::FirstSync => first_sync(kind, programs, size).await,
        Name::Stalled => stalled(kind, programs, size, amount.changes).await,
        Name::Reconnect => reconnect(kind, programs, size).await,
        Name::Churn => churn(kind, programs, size, amount.time).await,
        Name::OnDemandChange => on_demand_change(kind, programs, on_demand, amount.changes).await,
        Name::OnDemandFirstCall => on_demand_first_call(kind, programs, on_demand, amount.time).await,
    }
}

impl Name {
    /// Whether a server can do it: go-control-plane knows no destination that a proxy has not been given.
    pub fn is_for(self, kind: Kind) -> bool {
        kind == Kind::Weft || !matches!(self, Self::OnDemandChange | Self::OnDemandFirstCall)
    }
}

/// Every sidecar begins its stream at once; each time is one sidecar's, to its last acknowledgement.
async fn first_sync(kind: Kind, programs: &Programs, size: Size) -> anyhow::Result<Case> {
    let mut running = Running::start(kind, programs, size).await?;
    let compared = running.check().await?;
    let mut times = std::mem::take(&mut running.synced);
    let mut case = running.case("first-sync", &mut times, running.sync_cpu, running.fleet.bytes())?;
    case.more.insert("connecting_ms", running.connecting.as_secs_f64() * 1000.0);
    case.more.insert("resources_compared", compared as f64);
    Ok(case)
}

/// One EndpointSlice after the other changes; each time is one change's, to the last acknowledgement of all sidecars.
async fn endpoint_change(kind: Kind, programs: &Programs, size: Size, changes: usize) -> anyhow::Result<Case> {
    let running = Running::start(kind, programs, size).await?;
    let mut measured = running.changes(1, changes, size.proxies).await?;
    let compared = running.check().await?;
    let mut case = running.case("endpoint-change", &mut measured.times, measured.cpu, measured.bytes)?;
    case.more.insert("each_p50_ms", percentile(&mut measured.each, 50));
    case.more.insert("each_p99_ms", percentile(&mut measured.each, 99));
    case.more.insert("resources_compared", compared as f64);
    Ok(case)
}

/// Changes one after the other.
struct Measured {
    /// Of each change, to its last acknowledgement.
    times: Vec<Duration>,
    /// Of each sidecar and change.
    each: Vec<Duration>,
    /// Of the server, for one change.
    cpu: Duration,
    /// For one change.
    bytes: u64,
}

impl Running {
    /// Changes as many Services' endpoints, which `expected` sidecars acknowledge. Serials count from `first`.
    async fn changes(&self, first: usize, changes: usize, expected: usize) -> anyhow::Result<Measured> {
        let (mut times, mut each, mut cpu, mut bytes) = (Vec::new(), Vec::new(), Duration::ZERO, 0);
        let services = self.server.mesh().size().services;
        for serial in first..=first + changes {
            // Changes are apart, so that none is gathered with the one before it.
            self.fleet.quiet(Duration::from_millis(100)).await;
            let (cpu_before, bytes_before) = (self.server.process.cpu()?, self.fleet.bytes());
            let change = self.change(serial * 7 % services, serial, expected).await?;
            self.fleet.quiet(Duration::from_millis(30)).await;
            if serial > first {
                // The very first is not counted: caches are cold.
                cpu += self.server.process.cpu()? - cpu_before;
                bytes += self.fleet.bytes() - bytes_before;
                times.push(change.last());
                each.extend(change.acknowledged);
            }
        }
        let count = u32::try_from(changes.max(1))?;
        Ok(Measured { times, each, cpu: cpu / count, bytes: bytes / u64::from(count) })
    }

    fn rss_kb(&self) -> anyhow::Result<f64> {
        Ok(self.server.process.rss_kb()? as f64)
    }

    /// Changes all Services' endpoints as fast as they can be written.
    async fn change_all(&self, serial: usize) -> anyhow::Result<()> {
        for service in 0..self.server.mesh().size().services {
            self.server.change(service, serial + service).await?;
        }
        self.fleet.quiet(QUIET).await;
        Ok(())
    }
}

/// As `endpoint-change`, with 30 % of the sidecars not reading: a third of these look at their socket no more, a third
/// let the HTTP/2 window fill, a third read slowly. Before it is measured, everything changes several times, which is
/// more than a window holds. The times are those of the others.
async fn stalled(kind: Kind, programs: &Programs, size: Size, changes: usize) -> anyhow::Result<Case> {
    let running = Running::start(kind, programs, size).await?;
    let mut before = running.changes(1, changes, size.proxies).await?;
    let stalled: Vec<usize> = (0..size.proxies).filter(|member| member % 10 < 3).collect();
    let slow = Reading::Slow(Duration::from_millis(50));
    for (kind, reading) in [Reading::Never, Reading::WindowFills, slow].into_iter().enumerate() {
        running.fleet.tell(stalled.iter().copied().filter(|member| member % 10 == kind), &Command::Read(reading));
    }
    let awake = size.proxies - stalled.len();
    let rss = running.rss_kb()?;
    for round in 1..=4 {
        running.change_all(10_000 * round).await?;
    }
    let grown = (running.rss_kb()? - rss) / stalled.len().max(1) as f64;
    let mut after = running.changes(50_500, changes, awake).await?;
    let others: Vec<usize> = (0..size.proxies).filter(|member| member % 10 >= 3).collect();
    let mut compared = expected::check(&running.server, &running.fleet, others).await?;
    // Whoever was slow has everything in the end, too.
    running.fleet.tell(stalled.iter().copied(), &Command::Read(Reading::Fast));
    running.fleet.quiet(Duration::from_secs(2)).await;
    compared += expected::check(&running.server, &running.fleet, stalled.iter().copied()).await?;
    let mut case = running.case("stalled", &mut after.times, after.cpu, after.bytes)?;
    case.more.insert("p50_ms_without", percentile(&mut before.times, 50));
    case.more.insert("p99_ms_without", percentile(&mut before.times, 99));
    case.more.insert("kb_per_stalled", grown);
    case.more.insert("resources_compared", compared as f64);
    Ok(case)
}

/// The server is killed and starts again, with nothing changed. Each time is one sidecar's, from the moment the server
/// is ready to the answer of its clusters and listeners; `resources` are those that were sent again.
async fn reconnect(kind: Kind, programs: &Programs, size: Size) -> anyhow::Result<Case> {
    let mut running = Running::start(kind, programs, size).await?;
    running.fleet.forget();
    let bytes = running.fleet.bytes();
    let ready = running.server.restart().await?;
    let cpu = running.server.process.cpu()?;
    running.rss_before = running.server.process.rss_kb()?;
    let synced = running.fleet.synced(size.proxies, PATIENCE).await?;
    running.fleet.quiet(QUIET).await;
    let cpu = running.server.process.cpu()? - cpu;
    let mut times: Vec<_> = synced.into_iter().map(|at| at.saturating_duration_since(ready)).collect();
    let compared = running.check().await?;
    let bytes = running.fleet.bytes() - bytes;
    let mut case = running.case("reconnect", &mut times, cpu, bytes)?;
    case.more.insert("resources", running.fleet.resources() as f64);
    case.more.insert("quiet_after_ms", (running.fleet.last_heard() - ready).as_secs_f64() * 1000.0);
    case.more.insert("resources_compared", compared as f64);
    Ok(case)
}

/// Pod changes a second.
const CHURN: u32 = 100;

/// Replaces pods until the time is over; each change is awaited by as many as hold its endpoints.
async fn replace_pods(running: &Running, time: Duration, first: usize) -> anyhow::Result<Vec<ChangeId>> {
    let (mut ticks, mut changes) = (tokio::time::interval(Duration::from_secs(1) / CHURN), Vec::new());
    let services = running.server.mesh().size().services;
    let start = Instant::now();
    let mut serial = first;
    while start.elapsed() < time {
        ticks.tick().await;
        let service = serial * 7 % services;
        let name = running.fleet.catalog().endpoints_of(&running.server.destination(service));
        changes.push(running.fleet.begin_change(name, running.fleet.holders(name)));
        running.server.replace_pod(service, serial).await?;
        serial += 1;
    }
    Ok(changes)
}

/// 100 pods a second are replaced. Each time is one change's, to its last acknowledgement.
async fn churn(kind: Kind, programs: &Programs, size: Size, time: Duration) -> anyhow::Result<Case> {
    let running = Running::start(kind, programs, size).await?;
    replace_pods(&running, Duration::from_secs(3), 1).await?;
    running.fleet.quiet(QUIET).await;
    let (cpu, bytes, rss) = (running.server.process.cpu()?, running.fleet.bytes(), running.rss_kb()?);
    let changes = replace_pods(&running, time, 1000).await?;
    let made = changes.len();
    let mut times = Vec::new();
    for change in changes {
        times.push(running.fleet.changed(change, Duration::from_secs(60)).await?.last());
    }
    running.fleet.quiet(QUIET).await;
    let cpu = running.server.process.cpu()? - cpu;
    let compared = running.check().await?;
    let third = times.len() / 3;
    let (mut early, mut late) = (times[..third].to_vec(), times[times.len() - third..].to_vec());
    let bytes = (running.fleet.bytes() - bytes) / made.max(1) as u64;
    let mut case = running.case("churn", &mut times, cpu / u32::try_from(made.max(1))?, bytes)?;
    case.more.insert("changes", made as f64);
    case.more.insert("first_third_p99_ms", percentile(&mut early, 99));
    case.more.insert("last_third_p99_ms", percentile(&mut late, 99));
    case.more.insert("rss_grown_kb", running.rss_kb()? - rss);
    case.more.insert("cpu_share", cpu.as_secs_f64() / time.as_secs_f64());
    case.more.insert("resources_compared", compared as f64);
    Ok(case)
}

/// Destinations that each sidecar uses.
const USED: usize = 20;

/// Every sidecar calls its destinations.
async fn use_destinations(running: &Running) -> anyhow::Result<Vec<Duration>> {
    let Size { services, proxies, .. } = running.server.mesh().size();
    for proxy in 0..proxies {
        let used = (0..USED.min(services)).map(|number| (proxy * USED + number) % services);
        let names = expected::names(&running.server, &running.fleet, used);
        running.fleet.tell([proxy], &Command::Call(names.into()));
    }
    let calls = running.fleet.calls(proxies * USED.min(services), PATIENCE).await?;
    running.fleet.quiet(QUIET).await;
    Ok(calls)
}

/// Every sidecar uses 20 of the mesh's Services; one of them changes. Each time is to the last acknowledgement of those
/// that use it. CPU is that of one change, for each of them.
async fn on_demand_change(kind: Kind, programs: &Programs, size: Size, changes: usize) -> anyhow::Result<Case> {
    let running = Running::start(kind, programs, size).await?;
    use_destinations(&running).await?;
    let holders = |service: usize| {
        let name = running.fleet.catalog().endpoints_of(&running.server.destination(service));
        running.fleet.holders(name)
    };
    let (mut times, mut cpu, mut bytes, mut acknowledged) = (Vec::new(), Duration::ZERO, 0, 0);
    for serial in 1..=changes + 1 {
        let service = serial * 7 % size.services;
        running.fleet.quiet(Duration::from_millis(100)).await;
        let (cpu_before, bytes_before) = (running.server.process.cpu()?, running.fleet.bytes());
        let change = running.change(service, serial, holders(service)).await?;
        running.fleet.quiet(Duration::from_millis(30)).await;
        if serial > 1 {
            cpu += running.server.process.cpu()? - cpu_before;
            bytes += running.fleet.bytes() - bytes_before;
            acknowledged += change.acknowledged.len();
            times.push(change.last());
        }
    }
    let compared = running.check().await?;
    let mut case = running.case("on-demand-change", &mut times, cpu, bytes / changes.max(1) as u64)?;
    case.cpu_us_per_proxy = cpu.as_secs_f64() * 1e6 / acknowledged.max(1) as f64;
    case.more.insert("proxies_per_change", acknowledged as f64 / changes.max(1) as f64);
    case.more.insert("resources_compared", compared as f64);
    Ok(case)
}

/// First calls a second, in all.
const CALLS: u32 = 200;

/// Sidecars call destinations that they have never called, while 100 pods a second are replaced. Each time is one
/// call's, from its request to the endpoints' arrival.
async fn on_demand_first_call(kind: Kind, programs: &Programs, size: Size, time: Duration) -> anyhow::Result<Case> {
    let running = Running::start(kind, programs, size).await?;
    use_destinations(&running).await?;
    running.fleet.forget();
    let (cpu, bytes) = (running.server.process.cpu()?, running.fleet.bytes());
    let calling = async {
        let (start, mut made) = (Instant::now(), 0);
        let mut ticks = tokio::time::interval(Duration::from_secs(1) / CALLS);
        while start.elapsed() < time {
            ticks.tick().await;
            let proxy = made * 13 % size.proxies;
            // Past those that it uses, another one each time round.
            let service = (proxy * USED + USED + made / size.proxies) % size.services;
            let names = expected::names(&running.server, &running.fleet, [service]);
            running.fleet.tell([proxy], &Command::Call(names.into()));
            made += 1;
        }
        made
    };
    let (made, churned) = tokio::join!(calling, replace_pods(&running, time, 1));
    let changes = churned?.len();
    let mut times = running.fleet.calls(made, Duration::from_secs(60)).await?;
    running.fleet.quiet(QUIET).await;
    let cpu = running.server.process.cpu()? - cpu;
    let compared = running.check().await?;
    let bytes = running.fleet.bytes() - bytes;
    let mut case = running.case("on-demand-first-call", &mut times, cpu, bytes)?;
    case.more.insert("calls", made as f64);
    case.more.insert("changes", changes as f64);
    case.more.insert("resources_compared", compared as f64);
    Ok(case)
}
