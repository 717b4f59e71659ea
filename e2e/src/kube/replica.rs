//! A control plane that is fed by an API server: `weft serve --source kube`, as the chart's Deployment runs it.

use std::fs;
use std::io::{Read, Write};
use std::net::{Ipv4Addr, SocketAddr, TcpStream};
use std::path::{Path, PathBuf};
use std::process::Command;
use std::time::Duration;

use anyhow::{Context, bail};

use super::clock::{self, Clock};
use super::{Process, free_port};
use crate::inspection::Inspection;
use crate::mesh::weft_beside_tests;
use crate::until;

/// How long a control plane may take to do what it is asked, on a busy machine.
const PATIENCE: Duration = Duration::from_secs(60);

/// A replica of the control plane.
pub struct Replica {
    process: Process,
    log: PathBuf,
    admin: SocketAddr,
    xds: SocketAddr,
}

impl Replica {
    /// Starts one of this name; its log is in `directory`.
    ///
    /// # Errors
    /// When there is no `weft`.
    pub fn start(directory: &Path, name: &str, kubeconfig: &Path, arguments: &[&str]) -> anyhow::Result<Self> {
        Self::start_with(&weft_beside_tests()?, directory, name, kubeconfig, arguments)
    }

    /// As [`Replica::start`], with a clock of its own.
    ///
    /// # Errors
    /// When there is no `weft`.
    pub fn start_by(clock: &Clock, directory: &Path, name: &str, kubeconfig: &Path) -> anyhow::Result<Self> {
        let environment = clock::environment(clock.directory());
        Self::run(&weft_beside_tests()?, directory, name, kubeconfig, &[], &environment)
    }

    /// Starts one with this `weft`.
    ///
    /// # Errors
    /// When it cannot be run.
    pub fn start_with(
        weft: &Path,
        directory: &Path,
        name: &str,
        kubeconfig: &Path,
        arguments: &[&str],
    ) -> anyhow::Result<Self> {
        Self::run(weft, directory, name, kubeconfig, arguments, &[])
    }

    fn run(
        weft: &Path,
        directory: &Path,
        name: &str,
        kubeconfig: &Path,
        arguments: &[&str],
        environment: &[(String, String)],
    ) -> anyhow::Result<Self> {
        let log = directory.join(format!("{name}.log"));
        let _ = fs::remove_file(&log); // of an earlier one of this name
        let [mut admin, mut xds] =
            [free_port()?, free_port()?].map(|port| SocketAddr::from((Ipv4Addr::LOCALHOST, port)));
        let arguments = match arguments {
            // Who is to be found again is where another was.
            ["--xds", at, rest @ ..] => {
                xds = at.parse()?;
                rest
            }
            // An EndpointSlice names no loopback address.
            ["--admin", at, rest @ ..] => {
                admin = at.parse()?;
                rest
            }
            all => all,
        };
        let mut command = Command::new(weft);
        command
            .args(["serve", "--source", "kube", "--kubeconfig"])
            .arg(kubeconfig)
            .args(["--replica", name, "--xds", &xds.to_string(), "--admin", &admin.to_string()])
            .args(arguments)
            .env_remove("POD_NAMESPACE")
            .envs(environment.iter().cloned())
            .env("WEFT_LOG", "info,weft=debug")
            .env("NO_COLOR", "1");
        Ok(Self { process: Process::start(&mut command, &log)?, log, admin, xds })
    }

    /// Where it serves xDS.
    pub fn xds(&self) -> SocketAddr {
        self.xds
    }

    /// Where it tells of itself.
    pub fn admin(&self) -> SocketAddr {
        self.admin
    }

    /// What it has logged.
    pub fn log(&self) -> String {
        fs::read_to_string(&self.log).unwrap_or_default()
    }

    /// The answer of `/readyz`, whatever it is.
    pub fn readyz(&self) -> String {
        http(self.admin, "GET", "/readyz", "").unwrap_or_else(|error| format!("{error:#}"))
    }

    /// Waits until it serves.
    ///
    /// # Errors
    /// When it does not in time, or has ended.
    pub fn wait_until_ready(&mut self) -> anyhow::Result<()> {
        until("the control plane is ready", PATIENCE, || {
            if !self.process.runs() {
                bail!("the control plane ended:\n{}", self.log());
            }
            match self.readyz() {
                answer if answer == "ready\n" => Ok(Ok(())),
                answer => Ok(Err(answer)),
            }
        })
    }

    /// Waits until its log has `text`.
    ///
    /// # Errors
    /// When it has not in time.
    pub fn wait_for_log(&self, text: &str) -> anyhow::Result<String> {
        until(&format!("`{text}` is logged"), PATIENCE, || {
            let log = self.log();
            let line = log.lines().find(|line| line.contains(text)).map(str::to_owned);
            Ok(line.ok_or_else(|| log[log.len().saturating_sub(3_000)..].to_owned()))
        })
    }

    /// Its inspection API.
    ///
    /// # Errors
    /// When it does not answer.
    pub fn inspection(&self) -> anyhow::Result<Inspection> {
        Inspection::at(self.admin)
    }

    /// Its resident memory in MiB.
    ///
    /// # Errors
    /// When it has ended.
    pub fn memory(&self) -> anyhow::Result<f64> {
        let status = fs::read_to_string(format!("/proc/{}/status", self.process.id()))?;
        let line = status.lines().find_map(|line| line.strip_prefix("VmRSS:")).context("VmRSS")?;
        Ok(line.trim().trim_end_matches(" kB").parse::<f64>()? / 1024.0)
    }

    /// Has it do nothing, as one that hangs, until [`Replica::go_on`].
    ///
    /// # Errors
    /// When it has ended.
    pub fn pause(&self) -> anyhow::Result<()> {
        self.process.signal("STOP")
    }

    /// Ends what [`Replica::pause`] did.
    ///
    /// # Errors
    /// When it has ended.
    pub fn go_on(&self) -> anyhow::Result<()> {
        self.process.signal("CONT")
    }

    /// Asks it to end, and waits for that.
    ///
    /// # Errors
    /// When it had ended before.
    pub fn stop(mut self) -> anyhow::Result<()> {
        self.process.signal("TERM")?;
        self.process.wait()
    }

    /// Whether it still runs.
    pub fn runs(&mut self) -> bool {
        self.process.runs()
    }
}

/// The body of an answer over plain HTTP, whatever its status.
///
/// # Errors
/// When there is none.
pub fn http(at: SocketAddr, method: &str, path: &str, body: &str) -> anyhow::Result<String> {
    let mut socket = TcpStream::connect_timeout(&at, Duration::from_secs(2))?;
    socket.set_read_timeout(Some(Duration::from_secs(10)))?;
    let length = body.len();
    write!(
        socket,
        "{method} {path} HTTP/1.1\r\nHost: {at}\r\nConnection: close\r\nContent-Length: {length}\r\n\r\n{body}"
    )?;
    let mut answer = String::new();
    socket.read_to_string(&mut answer)?;
    let (head, body) = answer.split_once("\r\n\r\n").context("an HTTP answer")?;
    match head.to_lowercase().contains("transfer-encoding: chunked") {
        true => unchunked(body),
        false => Ok(body.to_owned()),
    }
}

/// RFC 9112, section 7.1.
fn unchunked(mut body: &str) -> anyhow::Result<String> {
    let mut whole = String::new();
    loop {
        let (size, rest) = body.split_once("\r\n").context("a chunk's size")?;
        let size = usize::from_str_radix(size.trim(), 16)?;
        if size == 0 {
            return Ok(whole);
        }
        let (chunk, rest) = rest.split_at_checked(size).context("a whole chunk")?;
        whole.push_str(chunk);
        body = rest.trim_start_matches("\r\n");
    }
}
