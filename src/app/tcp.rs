//! The TCP face: a line that says who it is, then every byte back.

use std::io;
use std::sync::Arc;
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;
use tokio_util::task::TaskTracker;

use super::workload::Workload;

/// When the server says who it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Greeting {
    /// At once, as servers do that speak first (MySQL, SMTP).
    AtOnce,
    /// When the client has said something.
    WhenSpokenTo,
}

/// Serves until `stop`; returns when every connection has ended. One that owes no answer ends at `stop`.
pub(super) async fn serve(listener: TcpListener, workload: Arc<Workload>, greeting: Greeting, stop: CancellationToken) {
    let connections = TaskTracker::new();
    while let Some(accepted) = stop.run_until_cancelled(listener.accept()).await {
        match accepted {
            Ok((stream, peer)) => {
                let (workload, stop) = (workload.clone(), stop.clone());
                connections.spawn(async move {
                    if let Err(error) = echo(stream, &workload, greeting, &stop).await {
                        tracing::debug!(%peer, %error, "a TCP connection ended early");
                    }
                });
            }
            Err(error) => {
                // Out of descriptors, most likely: to accept again at once would spin.
                tracing::warn!(%error, "cannot accept a TCP connection");
                tokio::time::sleep(Duration::from_millis(100)).await;
            }
        }
    }
    drop(listener);
    connections.close();
    connections.wait().await;
}

async fn echo(
    mut stream: TcpStream,
    workload: &Workload,
    greeting: Greeting,
    stop: &CancellationToken,
) -> io::Result<()> {
    stream.set_nodelay(true)?;
    let mut greeted = false;
    if greeting == Greeting::AtOnce {
        greeted = greet(&mut stream, workload).await?;
        if !greeted {
            return Ok(());
        }
    }
    let mut buffer = vec![0; 16 * 1024];
    while let Some(read) = stop.run_until_cancelled(stream.read(&mut buffer)).await {
        let read = read?;
        if read == 0 {
            break;
        }
        if !greeted {
            greeted = greet(&mut stream, workload).await?;
            if !greeted {
                return Ok(());
            }
        }
        stream.write_all(buffer.get(..read).unwrap_or_default()).await?;
    }
    stream.shutdown().await
}

/// Whether the connection goes on: an error on purpose closes it.
async fn greet(stream: &mut TcpStream, workload: &Workload) -> io::Result<bool> {
    if workload.act(None).await {
        return Ok(false);
    }
    stream.write_all(format!("{}\n", workload.identity.responder()).as_bytes()).await?;
    Ok(true)
}
