//! `make bench`: xDS servers under a fleet of fake sidecars; see the library for how.

use std::path::PathBuf;
use std::time::Duration;

use clap::Parser;
use weft_load::cases::{self, Amount, Name};
use weft_load::mesh::Size;
use weft_load::report::Report;
use weft_load::server::{Kind, Programs};

/// Measure xDS servers with thousands of fake sidecars
#[derive(Parser, Debug)]
struct Args {
    /// What to measure; repeat for several. Without it everything is, at the sizes that the targets are stated for
    #[arg(long = "case", value_enum)]
    cases: Vec<Name>,
    /// Against which servers; repeat for several
    #[arg(long = "server", value_enum, default_values_t = [Kind::Weft])]
    servers: Vec<Kind>,
    /// Sidecars
    #[arg(long, default_value_t = 1000)]
    proxies: usize,
    /// Services
    #[arg(long, default_value_t = 1000)]
    services: usize,
    /// Changes one after the other
    #[arg(long, default_value_t = 50)]
    changes: usize,
    /// How long the cases last that last, in seconds
    #[arg(long, default_value_t = 30)]
    seconds: u64,
    /// The weft to measure; by default the one beside this program
    #[arg(long)]
    weft: Option<PathBuf>,
    /// The go-control-plane server
    #[arg(long, default_value = "target/bench/go-control-plane")]
    go: PathBuf,
    /// Threads of the client
    #[arg(long, default_value_t = 2)]
    threads: usize,
    /// Where the JSON goes
    #[arg(long, default_value = "target/bench/xds.json")]
    json: PathBuf,
}

fn main() -> anyhow::Result<()> {
    let args = Args::parse();
    let weft = match args.weft {
        Some(weft) => weft,
        None => std::env::current_exe()?.with_file_name("weft"),
    };
    let programs = Programs { weft, go: args.go };
    let amount = Amount { changes: args.changes, time: Duration::from_secs(args.seconds) };
    let size = Size { services: args.services, proxies: args.proxies, eager: true };
    let runtime = tokio::runtime::Builder::new_multi_thread().worker_threads(args.threads).enable_all().build()?;
    let mut runs = Vec::new();
    for name in &args.cases {
        let servers = args.servers.iter().filter(|kind| name.is_for(**kind));
        runs.extend(servers.map(|kind| (*name, *kind, size)));
    }
    if args.cases.is_empty() {
        let size = |proxies, services| Size { proxies, services, eager: true };
        runs.extend(SUITE.map(|(name, kind, proxies, services)| (name, kind, size(proxies, services))));
    }
    if let Some(directory) = args.json.parent() {
        std::fs::create_dir_all(directory)?;
    }
    let (mut report, mut failed) = (Report::default(), Vec::new());
    for (name, kind, size) in runs {
        let start = std::time::Instant::now();
        let own = weft_load::process::cpu(std::process::id())?;
        match runtime.block_on(cases::run(name, kind, &programs, size, amount)) {
            Ok(mut case) => {
                let own = weft_load::process::cpu(std::process::id())? - own;
                case.more.insert("client_cpu_s", own.as_secs_f64());
                case.more.insert("took_s", start.elapsed().as_secs_f64());
                report.add(case);
            }
            Err(error) => failed.push(format!("{name:?} {kind:?} {size:?}: {error:#}")),
        }
        std::fs::write(&args.json, format!("{}\n", serde_json::to_string_pretty(&report)?))?;
    }
    println!("{}", args.json.display());
    anyhow::ensure!(failed.is_empty(), "these cases failed:\n{}", failed.join("\n"));
    Ok(())
}

/// Every case at the sizes that its target is stated for, and the peers at those where all three can be compared.
const SUITE: [(Name, Kind, usize, usize); 19] = [
    (Name::EndpointChange, Kind::Weft, 1000, 1000),
    (Name::EndpointChange, Kind::GoSnapshot, 1000, 1000),
    (Name::EndpointChange, Kind::GoLinear, 1000, 1000),
    (Name::EndpointChange, Kind::Weft, 5000, 1000),
    (Name::FirstSync, Kind::Weft, 1000, 1000),
    (Name::FirstSync, Kind::GoSnapshot, 1000, 1000),
    (Name::FirstSync, Kind::GoLinear, 1000, 1000),
    (Name::Stalled, Kind::Weft, 1000, 1000),
    (Name::Stalled, Kind::GoSnapshot, 1000, 1000),
    (Name::Stalled, Kind::GoLinear, 1000, 1000),
    (Name::Reconnect, Kind::Weft, 1000, 1000),
    (Name::Reconnect, Kind::GoSnapshot, 1000, 1000),
    (Name::Reconnect, Kind::GoLinear, 1000, 1000),
    (Name::Reconnect, Kind::Weft, 5000, 1000),
    (Name::Churn, Kind::Weft, 1000, 1000),
    (Name::Churn, Kind::GoLinear, 1000, 1000),
    (Name::Churn, Kind::Weft, 5000, 1000),
    (Name::OnDemandChange, Kind::Weft, 5000, 10_000),
    (Name::OnDemandFirstCall, Kind::Weft, 5000, 10_000),
];
