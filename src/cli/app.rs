//! `weft app`: the demo workload, and a client that calls it.

use std::io::{self, IsTerminal, Write};
use std::net::{IpAddr, Ipv4Addr};
use std::num::{NonZeroU32, NonZeroU64};
use std::process::ExitCode;

use anyhow::{Context, bail};
use axum::http::{HeaderMap, HeaderName, HeaderValue, Method};
use bytes::Bytes;
use clap::{Subcommand, ValueEnum};
use tokio::io::AsyncReadExt;
use tokio::signal::unix::{SignalKind, signal};
use tokio_util::sync::CancellationToken;

use crate::app::caller::{Call, Caller, Outcome};
use crate::app::load::{Load, Rate};
use crate::app::serve::{Addresses, Ended, Options, Server};
use crate::app::target::Target;
use crate::app::workload::{Identity, Settings};
use crate::duration::HumanDuration;

/// The demo workload: an HTTP, gRPC and TCP echo that can call upstreams, and its client
#[derive(Debug, clap::Args)]
pub struct Args {
    #[command(subcommand)]
    command: Command,
}

#[derive(Debug, Subcommand)]
enum Command {
    Serve(Box<ServeArgs>),
    Call(Box<CallArgs>),
}

/// Runs a workload until SIGTERM or Ctrl-C
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weft app serve --name cart --version v1 --http 8080 --upstream grpc://inventory.warehouse:9090
  weft app serve --name ledger --tcp 7000 --delay 50ms --error-rate 0.1

HTTP paths:
  /             who answers, what it was asked, and what the upstreams answered
  /call?url=U   calls U and reports the answer
  /control      GET shows, POST changes: {\"delay\":\"50ms\",\"errorRate\":0.5,\"errorStatus\":503,\"ready\":true}
  /websocket    every message back, over HTTP/1.1 and HTTP/2
  /healthz      200
  /readyz       200 or 503; POST /readyz?ready=false changes it, gRPC health follows
  others        as / without upstreams; any can have ?delay=50ms&status=418&size=1000&trailer=x")]
struct ServeArgs {
    /// Serve HTTP/1.1 and HTTP/2 (prior knowledge) on this port
    #[arg(long, value_name = "PORT")]
    http: Option<u16>,
    /// Serve HTTPS on this port, with a certificate that nobody has signed
    #[arg(long, value_name = "PORT")]
    https: Option<u16>,
    /// Serve gRPC (weft.app.v1.Echo and grpc.health.v1.Health) on this port
    #[arg(long, value_name = "PORT")]
    grpc: Option<u16>,
    /// Serve TCP on this port: a line with name and version in answer to the first bytes, and every byte back
    #[arg(long, value_name = "PORT")]
    tcp: Option<u16>,
    /// Speak first on TCP
    #[arg(long, requires = "tcp")]
    tcp_greeting: bool,
    /// The address to listen on
    #[arg(long, value_name = "IP", default_value_t = IpAddr::V4(Ipv4Addr::UNSPECIFIED))]
    address: IpAddr,
    /// The workload's name [default: the host's name]
    #[arg(long, env = "WEFT_APP_NAME")]
    name: Option<String>,
    /// The workload's version
    #[arg(long, env = "WEFT_APP_VERSION", default_value = "v1")]
    version: String,
    /// The pod's name [default: the host's name]
    #[arg(long, env = "POD_NAME")]
    pod: Option<String>,
    /// Call this on each request to / and nest the answer (http://, grpc:// or tcp://; may be repeated)
    #[arg(long = "upstream", value_name = "URL")]
    upstreams: Vec<Target>,
    /// How long an upstream may take
    #[arg(long, value_name = "DURATION", default_value = "5s")]
    upstream_timeout: HumanDuration,
    /// Wait before each answer
    #[arg(long, value_name = "DURATION", default_value = "0s")]
    delay: HumanDuration,
    /// The share of requests, 0 to 1, that are answered with an error
    #[arg(long, value_name = "SHARE", default_value_t = 0.0)]
    error_rate: f64,
    /// The HTTP status of such an error (gRPC: UNAVAILABLE, TCP: closed)
    #[arg(long, value_name = "STATUS", default_value_t = 503)]
    error_status: u16,
    /// Take new connections for this time after SIGTERM, while readiness sends callers elsewhere
    #[arg(long, value_name = "DURATION", default_value = "1s")]
    drain: HumanDuration,
    /// Give requests this time to end after that
    #[arg(long, value_name = "DURATION", default_value = "10s")]
    grace: HumanDuration,
}

/// Calls a URL once and prints the answer, or many times and prints a summary
#[derive(Debug, clap::Args)]
#[command(after_help = "Examples:
  weft app call http://frontend/                       the answer
  weft app call -n 2000 -c 10 http://catalog/          a summary: codes, who answered, latencies
  weft app call -n 20 --expect PERMISSION_DENIED grpc://inventory.warehouse:9090
  weft app call --rate 50 -o json http://frontend/     until Ctrl-C

Schemes: http://HOST[:PORT][/PATH], grpc://HOST:PORT (one Echo), tcp://HOST:PORT (connect, a line, its answer).
The exit code is 0 when every call succeeded, else 1.")]
struct CallArgs {
    /// What to call
    url: Target,
    /// Make this many calls
    #[arg(short = 'n', long)]
    count: Option<NonZeroU64>,
    /// Call for this time
    #[arg(long)]
    duration: Option<HumanDuration>,
    /// Call until standard input ends
    #[arg(long)]
    until_stdin_closes: bool,
    /// This many callers at once, each with its own connections
    #[arg(short = 'c', long, default_value = "1")]
    concurrency: NonZeroU32,
    /// At most so many calls a second, by all callers together
    #[arg(long, value_name = "RPS")]
    rate: Option<Rate>,
    /// The HTTP method [default: GET, or POST with --data or --size]
    #[arg(short = 'X', long)]
    method: Option<Method>,
    /// An HTTP header, or gRPC metadata (may be repeated)
    #[arg(short = 'H', long = "header", value_name = "NAME: VALUE", value_parser = header)]
    headers: Vec<(HeaderName, HeaderValue)>,
    /// The body, the message of the Echo, or the line for TCP
    #[arg(short = 'd', long, conflicts_with = "size")]
    data: Option<String>,
    /// A body of this many bytes
    #[arg(long, value_name = "BYTES", value_parser = clap::value_parser!(u32).range(..=crate::app::MAX_BODY as i64))]
    size: Option<u32>,
    /// HTTP/2 with prior knowledge
    #[arg(long)]
    http2: bool,
    /// How long one call may take
    #[arg(long, default_value = "5s")]
    timeout: HumanDuration,
    /// A connection for every call
    #[arg(long)]
    no_keepalive: bool,
    /// The code that is a success, as the summary names it: 403, PERMISSION_DENIED, closed … (may be repeated)
    #[arg(long, value_name = "CODE")]
    expect: Vec<String>,
    /// Print the answer's status and headers before its body
    #[arg(short = 'i', long)]
    include: bool,
    /// Print a summary in this form, even of one call
    #[arg(short = 'o', long)]
    output: Option<Output>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug, ValueEnum)]
enum Output {
    Table,
    Json,
}

/// Runs the subcommand.
///
/// # Errors
/// What was asked for cannot be done; the message says why.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build().context("cannot start")?;
    let exit = match args.command {
        Command::Serve(args) => runtime.block_on(serve(*args)),
        Command::Call(args) => runtime.block_on(call(*args)),
    };
    runtime.shutdown_background(); // a read of standard input would be waited for
    exit
}

async fn serve(args: ServeArgs) -> anyhow::Result<ExitCode> {
    let host = || {
        // In a pod HOSTNAME is the pod; on a machine it is often not exported.
        std::env::var("HOSTNAME").unwrap_or_else(|_| rustix::system::uname().nodename().to_string_lossy().into_owned())
    };
    let identity =
        Identity { name: args.name.unwrap_or_else(host), version: args.version, pod: args.pod.unwrap_or_else(host) };
    let responder = identity.responder();
    let settings =
        Settings { delay: args.delay, error_rate: args.error_rate, error_status: args.error_status, ready: true };
    let stopped = stop_signals()?;
    let server = Server::bind(Options {
        identity,
        address: args.address,
        http: args.http,
        https: args.https,
        grpc: args.grpc,
        tcp: args.tcp,
        tcp_greeting: args.tcp_greeting,
        upstreams: args.upstreams,
        upstream_timeout: args.upstream_timeout.0,
        settings,
        drain: args.drain.0,
        grace: args.grace.0,
    })
    .await?;
    let Addresses { http, https, grpc, tcp } = server.addresses();
    let bound = [("http", http), ("https", https), ("grpc", grpc), ("tcp", tcp)];
    let bound = bound.iter().filter_map(|(name, address)| address.map(|address| format!("{name}://{address}")));
    print(&format!("{responder} listens on {}\n", bound.collect::<Vec<_>>().join(", ")))?;
    match server.run(stopped.cancelled()).await {
        Ended::Drained => Ok(ExitCode::SUCCESS),
        Ended::CutOff => bail!("requests were still unanswered after the grace period of {}", args.grace),
    }
}

async fn call(args: CallArgs) -> anyhow::Result<ExitCode> {
    let single = args.count.is_none()
        && args.duration.is_none()
        && args.rate.is_none()
        && args.concurrency == NonZeroU32::MIN
        && !args.until_stdin_closes;
    let body = match (&args.data, args.size) {
        (Some(data), _) => Bytes::from(data.clone()),
        (None, Some(size)) => Bytes::from("x".repeat(size as usize)),
        (None, None) => Bytes::new(),
    };
    let method =
        args.method.unwrap_or(if args.data.is_some() || args.size.is_some() { Method::POST } else { Method::GET });
    let headers: HeaderMap = args.headers.into_iter().collect();
    let call = Call { method, headers, body, http2: args.http2, ..Call::new(args.url) };
    let timeout = args.timeout.0;
    if single && args.output.is_none() {
        let caller = if args.no_keepalive { Caller::without_keepalive(timeout) } else { Caller::new(timeout) };
        return one(&caller.call(&call).await, args.include, &args.expect);
    }

    let load = Load {
        call,
        count: if single { Some(NonZeroU64::MIN) } else { args.count },
        duration: args.duration.map(|HumanDuration(duration)| duration),
        concurrency: args.concurrency,
        rate: args.rate,
        timeout,
        keepalive: !args.no_keepalive,
        expect: args.expect,
    };
    let stop = stop_signals()?;
    if args.until_stdin_closes {
        let stop = stop.clone();
        tokio::spawn(async move {
            // What is read does not count, nor whether it ended with an error.
            let mut ignored = [0; 1024];
            let mut stdin = tokio::io::stdin();
            while matches!(stdin.read(&mut ignored).await, Ok(read) if read > 0) {}
            stop.cancel();
        });
    }
    let report = load.run(stop).await;
    match args.output {
        Some(Output::Json) => print(&format!("{}\n", serde_json::to_string(&report)?))?,
        Some(Output::Table) | None => print(&report.to_string())?,
    }
    Ok(if report.failed == 0 { ExitCode::SUCCESS } else { ExitCode::FAILURE })
}

/// Prints one answer as curl would; the exit code tells success.
fn one(outcome: &Outcome, include: bool, expect: &[String]) -> anyhow::Result<ExitCode> {
    let mut text = Vec::new();
    if include {
        let version = outcome.version.map_or_else(String::new, |version| format!("{version:?} "));
        writeln!(text, "{version}{}", outcome.code)?;
        for (name, value) in &outcome.headers {
            writeln!(text, "{name}: {}", String::from_utf8_lossy(value.as_bytes()))?;
        }
        writeln!(text)?;
    }
    text.extend_from_slice(&outcome.body);
    let mut stdout = io::stdout().lock();
    stdout.write_all(&text)?;
    // A program reads the bytes as they came; somebody who looks at them has a prompt behind them.
    if stdout.is_terminal() && text.last().is_some_and(|last| *last != b'\n') {
        stdout.write_all(b"\n")?;
    }
    stdout.flush()?;
    let code = outcome.code.to_string();
    let succeeded = if expect.is_empty() { outcome.code.succeeded() } else { expect.contains(&code) };
    match &outcome.error {
        _ if succeeded => Ok(ExitCode::SUCCESS),
        Some(error) => bail!("{error}"),
        None => Ok(ExitCode::FAILURE),
    }
}

fn print(text: &str) -> io::Result<()> {
    let mut stdout = io::stdout().lock();
    stdout.write_all(text.as_bytes())?;
    stdout.flush()
}

/// Cancelled by the first SIGTERM or SIGINT.
fn stop_signals() -> io::Result<CancellationToken> {
    let (mut terminate, mut interrupt) = (signal(SignalKind::terminate())?, signal(SignalKind::interrupt())?);
    let stop = CancellationToken::new();
    let cancelled = stop.clone();
    tokio::spawn(async move {
        tokio::select! {
            _ = terminate.recv() => {}
            _ = interrupt.recv() => {}
        }
        cancelled.cancel();
    });
    Ok(stop)
}

fn header(text: &str) -> anyhow::Result<(HeaderName, HeaderValue)> {
    let (name, value) = text.split_once(':').context("a header is written NAME: VALUE")?;
    Ok((name.trim().parse()?, value.trim().parse()?))
}
