//! The way from an API server to its etcd, which can be made slow.

use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::sync::atomic::{AtomicU64, Ordering};
use std::time::Duration;

use tokio::io::{AsyncReadExt, AsyncWriteExt};
use tokio::net::tcp::{OwnedReadHalf, OwnedWriteHalf};
use tokio::net::{TcpListener, TcpStream};
use tokio::runtime::Handle;
use tokio::sync::mpsc;
use tokio::time::{Instant, sleep_until};

/// What is read at once.
const READ: usize = 64 * 1024;
/// So many reads may be on their way at once, each way of a connection.
const UNDER_WAY: usize = 1_024;

/// A port at which another is reached, after a while. It ends with its runtime.
pub(super) struct Way {
    port: u16,
    /// In milliseconds.
    delay: Arc<AtomicU64>,
}

impl Way {
    /// One to `port` of this network's loopback, without delay.
    pub(super) fn start(runtime: &Handle, to: u16) -> anyhow::Result<Self> {
        let listener = runtime.block_on(TcpListener::bind((Ipv4Addr::LOCALHOST, 0)))?;
        let way = Self { port: listener.local_addr()?.port(), delay: Arc::default() };
        let (to, delay) = (SocketAddr::from((Ipv4Addr::LOCALHOST, to)), Arc::clone(&way.delay));
        runtime.spawn(async move {
            while let Ok((caller, _)) = listener.accept().await {
                let delay = Arc::clone(&delay);
                tokio::spawn(async move {
                    let Ok(called) = TcpStream::connect(to).await else { return };
                    let ((from, back), (answers, there)) = (caller.into_split(), called.into_split());
                    tokio::join!(carry(from, there, &delay), carry(answers, back, &delay));
                });
            }
        });
        Ok(way)
    }

    /// Where it begins.
    pub(super) fn port(&self) -> u16 {
        self.port
    }

    /// Has everything that comes from now on take so long, there and back.
    pub(super) fn delay(&self, delay: Duration) {
        self.delay.store(u64::try_from(delay.as_millis()).unwrap_or(u64::MAX), Ordering::Relaxed);
    }
}

/// Carries all bytes in their order, each after the delay of the moment when it came.
async fn carry(mut from: OwnedReadHalf, mut to: OwnedWriteHalf, delay: &AtomicU64) {
    let (put, mut take) = mpsc::channel::<(Instant, Vec<u8>)>(UNDER_WAY);
    let reading = async {
        let mut buffer = vec![0; READ];
        while let Ok(count @ 1..) = from.read(&mut buffer).await {
            let due = Instant::now() + Duration::from_millis(delay.load(Ordering::Relaxed));
            if put.send((due, buffer[..count].to_vec())).await.is_err() {
                break;
            }
        }
        drop(put);
    };
    let writing = async {
        while let Some((due, bytes)) = take.recv().await {
            sleep_until(due).await;
            if to.write_all(&bytes).await.is_err() {
                break;
            }
        }
        let _ = to.shutdown().await; // the other end may be gone
    };
    tokio::join!(reading, writing);
}
