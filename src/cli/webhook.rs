//! `weft webhook`: answers what the API server asks.

use std::net::SocketAddr;
use std::path::PathBuf;
use std::process::ExitCode;
use std::sync::Arc;

use anyhow::Context as _;
use prometheus_client::registry::Registry;
use tokio::net::TcpListener;
use tokio_util::sync::CancellationToken;

use super::inject::read_options;
use super::logging::{self, LogFormat};
use crate::inspect;
use crate::webhook::{CertificateFiles, Server, admin};

/// Run the webhooks: sidecar injection, validation and conversion, as the API server asks for them.
#[derive(clap::Args, Debug)]
#[command(after_help = "\
Examples:
  weft webhook --tls /var/run/weft/tls --options /etc/weft/inject.yaml

It needs no rights: every answer follows from the question. The certificate is read again whenever its files change.
Logs go to standard error; WEFT_LOG sets what is logged.
Exit code: 0 after SIGINT or SIGTERM, 1 when it cannot run.")]
pub struct Args {
    /// The directory of tls.crt and tls.key; they may come later
    #[arg(long, value_name = "DIR")]
    tls: PathBuf,
    /// The options of injection
    #[arg(long, value_name = "FILE")]
    options: Option<PathBuf>,
    /// Where the webhooks are served, over TLS
    #[arg(long, value_name = "ADDRESS", default_value = "0.0.0.0:15017")]
    listen: SocketAddr,
    /// Where health, readiness and metrics are served, in clear
    #[arg(long, value_name = "ADDRESS", default_value = "127.0.0.1:15014")]
    admin: SocketAddr,
    /// The form of the log
    #[arg(long, value_enum, default_value_t)]
    log_format: LogFormat,
}

/// Runs the command.
///
/// # Errors
/// When the options cannot be read, or a port is taken.
pub fn run(args: Args) -> anyhow::Result<ExitCode> {
    logging::init(args.log_format);
    let server = Server::new(read_options(args.options.as_deref())?);
    let certificate = Arc::new(CertificateFiles::new(args.tls));
    let mut registry = Registry::default();
    server.register(&mut registry);
    let runtime = tokio::runtime::Builder::new_multi_thread().enable_all().build()?;
    runtime.block_on(async {
        let listen = async |address: SocketAddr| {
            TcpListener::bind(address).await.with_context(|| format!("cannot listen on {address}"))
        };
        let (listener, admin_listener) = (listen(args.listen).await?, listen(args.admin).await?);
        let shutdown = CancellationToken::new();
        let on_signal = shutdown.clone();
        tokio::spawn(async move {
            logging::stop_requested().await;
            on_signal.cancel();
        });
        let admin = admin(certificate.clone(), Arc::new(registry));
        tracing::info!(listen = %args.listen, admin = %args.admin, "answering the API server");
        let following = certificate.clone();
        tokio::select! {
            ended = server.serve(listener, certificate, shutdown.clone()) => ended?,
            ended = inspect::serve(admin_listener, admin, std::future::pending()) => ended?,
            () = following.follow() => {}
        }
        Ok(ExitCode::SUCCESS)
    })
}
