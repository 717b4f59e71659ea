//! The TCP face: a line that says who it is, then every byte back.

use std::io;
use std::sync::Arc;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::{TcpListener, TcpStream};
use tokio_util::sync::CancellationToken;

use super::accept::{self, Stop};
use super::workload::Workload;

/// When the server says who it is.
#[derive(Clone, Copy, PartialEq, Eq, Debug)]
pub(super) enum Greeting {
    /// At once, as servers do that speak first (MySQL, SMTP).
    AtOnce,
    /// When the client has said something.
    WhenSpokenTo,
}

/// Serves until `stop`; a connection that owes no answer then ends.
pub(super) async fn serve(listener: TcpListener, workload: Arc<Workload>, greeting: Greeting, stop: Stop) {
    let ending = stop.ending.clone();
    accept::connections(listener, stop, |stream| {
        let (workload, ending) = (workload.clone(), ending.clone());
        async move {
            if let Err(error) = echo(stream, &workload, greeting, &ending).await {
                tracing::debug!(%error, "a TCP connection ended early");
            }
        }
    })
    .await;
}

async fn echo(
    mut stream: TcpStream,
    workload: &Workload,
    greeting: Greeting,
    ending: &CancellationToken,
) -> io::Result<()> {
    let mut greeted = false;
    if greeting == Greeting::AtOnce {
        greeted = greet(&mut stream, workload).await?;
        if !greeted {
            return Ok(());
        }
    }
    let mut buffer = vec![0; 16 * 1024];
    while let Some(read) = ending.run_until_cancelled(stream.read(&mut buffer)).await {
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
