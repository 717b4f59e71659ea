//! A TCP connection that is in use for as long as a run takes.

use std::io::{BufRead, BufReader, Write};
use std::net::{SocketAddr, TcpStream};
use std::sync::Arc;
use std::sync::atomic::{AtomicBool, Ordering};
use std::thread::JoinHandle;
use std::time::Duration;

use anyhow::{Context, anyhow, bail};

use crate::mesh::Mesh;

/// Between two lines on one connection.
const PACE: Duration = Duration::from_millis(50);
/// For the answer to one line.
const PATIENCE: Duration = Duration::from_secs(10);

/// A connection to an echo, and a thread that talks on it.
#[derive(Debug)]
pub struct Held {
    done: Arc<AtomicBool>,
    talking: JoinHandle<anyhow::Result<u64>>,
}

impl Held {
    /// Connects from inside a pod, and talks until it is stopped.
    ///
    /// # Errors
    /// When it cannot connect.
    pub fn start(mesh: &Mesh, pod: &str, host: &str, port: u16) -> anyhow::Result<Self> {
        let socket = mesh.dial(pod, SocketAddr::new(mesh.resolve(pod, host)?, port))?;
        socket.set_read_timeout(Some(PATIENCE))?;
        let done = Arc::new(AtomicBool::new(false));
        let until = done.clone();
        Ok(Self { done, talking: std::thread::spawn(move || talk(socket, &until)) })
    }

    /// Ends it: how many lines came back.
    ///
    /// # Errors
    /// Why one did not.
    pub fn stop(self) -> anyhow::Result<u64> {
        self.done.store(true, Ordering::Relaxed);
        self.talking.join().map_err(|_| anyhow!("the connection's thread panicked"))?
    }
}

fn talk(mut socket: TcpStream, done: &AtomicBool) -> anyhow::Result<u64> {
    let mut lines = BufReader::new(socket.try_clone()?);
    let mut read = |about: &str| {
        let mut line = String::new();
        match lines.read_line(&mut line).with_context(|| about.to_owned())? {
            0 => bail!("{about}: the connection was closed"),
            _ => Ok(line),
        }
    };
    let mut count = 0;
    while !done.load(Ordering::Relaxed) {
        let line = format!("line {count}\n");
        socket.write_all(line.as_bytes()).with_context(|| line.clone())?;
        if count == 0 {
            read("who it is")?;
        }
        let back = read(&line)?;
        if back != line {
            bail!("{line:?} came back as {back:?}");
        }
        count += 1;
        std::thread::sleep(PACE);
    }
    Ok(count)
}
