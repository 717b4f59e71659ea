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
    /// What to measure; repeat for several
    #[arg(long = "case", value_enum, required = true)]
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
    #[arg(long, default_value = "target/go-control-plane")]
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
    let mut report = Report::default();
    for name in args.cases {
        for kind in args.servers.iter().filter(|kind| name.is_for(**kind)) {
            let start = std::time::Instant::now();
            let own = weft_load::process::cpu(std::process::id())?;
            let mut case = runtime.block_on(cases::run(name, *kind, &programs, size, amount))?;
            let own = weft_load::process::cpu(std::process::id())? - own;
            case.more.insert("client_cpu_s", own.as_secs_f64());
            case.more.insert("took_s", start.elapsed().as_secs_f64());
            report.add(case);
        }
    }
    if let Some(directory) = args.json.parent() {
        std::fs::create_dir_all(directory)?;
    }
    std::fs::write(&args.json, format!("{}\n", serde_json::to_string_pretty(&report)?))?;
    Ok(())
}
