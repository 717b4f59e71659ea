//! The sockets of the cluster DNS.

use std::io;
use std::net::{Ipv4Addr, SocketAddr};
use std::sync::Arc;
use std::time::Duration;

use arc_swap::ArcSwap;
use hickory_proto::op::{Message, MessageType, ResponseCode};
use tokio::io::{AsyncReadExt as _, AsyncWriteExt as _};
use tokio::net::{TcpListener, TcpStream, UdpSocket};
use tokio::sync::Semaphore;
use tokio::task::JoinSet;

use super::{Answer, Zone, answer};

/// A TCP connection without a query for this long is closed.
const IDLE: Duration = Duration::from_secs(10);
/// A forwarder that is silent for this long has failed.
const FORWARD: Duration = Duration::from_secs(4);
/// Connections and forwarded queries at the same time; more have to wait or ask again.
const MOST_AT_ONCE: usize = 256;
/// The most that UDP carries without EDNS (RFC 1035, 4.2.1).
const PLAIN_UDP: usize = 512;

/// The cluster DNS on one address, over UDP and TCP.
#[derive(Debug)]
pub struct Server {
    udp: Arc<UdpSocket>,
    tcp: TcpListener,
    resolver: Arc<Resolver>,
}

#[derive(Debug)]
struct Resolver {
    zone: Arc<ArcSwap<Zone>>,
    forwarder: Option<SocketAddr>,
    room: Arc<Semaphore>,
}

#[derive(Clone, Copy, PartialEq, Eq, Debug)]
enum Transport {
    Udp,
    Tcp,
}

impl Server {
    /// Binds both sockets. Names outside the cluster go to `forwarder`; without one, they do not exist.
    ///
    /// # Errors
    /// If an address cannot be bound.
    pub async fn bind(
        udp: SocketAddr,
        tcp: SocketAddr,
        zone: Arc<ArcSwap<Zone>>,
        forwarder: Option<SocketAddr>,
    ) -> io::Result<Self> {
        let resolver = Resolver { zone, forwarder, room: Arc::new(Semaphore::new(MOST_AT_ONCE)) };
        let udp = Arc::new(UdpSocket::bind(udp).await?);
        Ok(Self { udp, tcp: TcpListener::bind(tcp).await?, resolver: Arc::new(resolver) })
    }

    /// The addresses of the UDP and the TCP socket.
    ///
    /// # Errors
    /// If the kernel does not tell.
    pub fn addresses(&self) -> io::Result<(SocketAddr, SocketAddr)> {
        Ok((self.udp.local_addr()?, self.tcp.local_addr()?))
    }

    /// Serves until dropped.
    pub async fn run(self) {
        let mut tasks = JoinSet::new();
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            tokio::select! {
                received = self.udp.recv_from(&mut buffer) => match received {
                    Ok((length, peer)) => self.datagram(&mut tasks, &buffer[..length], peer).await,
                    // An ICMP error for an earlier answer is reported here, and concerns only its asker.
                    Err(error) => tracing::debug!(%error, "cluster DNS: receive failed"),
                },
                accepted = self.tcp.accept() => match accepted {
                    Ok((stream, _)) => if let Ok(permit) = self.resolver.room.clone().try_acquire_owned() {
                        let resolver = self.resolver.clone();
                        tasks.spawn(async move {
                            let _permit = permit;
                            // The peer may end the connection at any point.
                            let _ = resolver.connection(stream).await;
                        });
                    },
                    Err(error) => {
                        tracing::warn!(%error, "cluster DNS: accept failed");
                        tokio::time::sleep(Duration::from_millis(100)).await;
                    }
                },
                Some(_) = tasks.join_next() => {}
            }
        }
    }

    async fn datagram(&self, tasks: &mut JoinSet<()>, query: &[u8], peer: SocketAddr) {
        let resolver = self.resolver.clone();
        match resolver.local(query, Transport::Udp) {
            None => {}
            Some(Local::Done(response)) => {
                if let Err(error) = self.udp.send_to(&response, peer).await {
                    tracing::debug!(%error, %peer, "cluster DNS: send failed");
                }
            }
            Some(Local::Forward(upstream, refusal)) => {
                let Ok(permit) = resolver.room.clone().try_acquire_owned() else { return };
                let (query, socket) = (query.to_vec(), self.udp.clone());
                tasks.spawn(async move {
                    let _permit = permit;
                    let response = forward(upstream, &query, Transport::Udp).await.unwrap_or(refusal);
                    // A client that has gone asks no more.
                    let _ = socket.send_to(&response, peer).await;
                });
            }
        }
    }
}

/// What can be said without asking anybody else.
enum Local {
    Done(Vec<u8>),
    /// Ask this server; if it does not answer, say that.
    Forward(SocketAddr, Vec<u8>),
}

impl Resolver {
    /// `None` for what is no query: answering it could make two servers answer each other for ever.
    fn local(&self, query: &[u8], transport: Transport) -> Option<Local> {
        let query = Message::from_vec(query).ok().filter(|m| m.metadata.message_type == MessageType::Query)?;
        let limit = match transport {
            Transport::Tcp => usize::from(u16::MAX),
            Transport::Udp => query.edns.as_ref().map_or(PLAIN_UDP, |e| usize::from(e.max_payload())).max(PLAIN_UDP),
        };
        match (answer(&self.zone.load(), &query), self.forwarder) {
            (Answer::Foreign(mut refusal), Some(forwarder)) => {
                refusal.metadata.response_code = ResponseCode::ServFail;
                Some(Local::Forward(forwarder, encode(&refusal, limit)?))
            }
            (Answer::Response(response) | Answer::Foreign(response), _) => Some(Local::Done(encode(&response, limit)?)),
        }
    }

    async fn connection(&self, mut stream: TcpStream) -> io::Result<()> {
        while let Ok(query) = tokio::time::timeout(IDLE, read_message(&mut stream)).await {
            let query = query?;
            let response = match self.local(&query, Transport::Tcp) {
                None => return Ok(()),
                Some(Local::Done(response)) => response,
                Some(Local::Forward(upstream, refusal)) => {
                    forward(upstream, &query, Transport::Tcp).await.unwrap_or(refusal)
                }
            };
            write_message(&mut stream, &response).await?;
        }
        Ok(())
    }
}

/// The bytes of a response; what is too long for the way is cut, so that the asker comes again over TCP.
fn encode(response: &Message, limit: usize) -> Option<Vec<u8>> {
    let bytes = response.to_vec().ok()?;
    if bytes.len() <= limit { Some(bytes) } else { response.truncate().to_vec().ok() }
}

/// Passes a query on as it is; `None` when no answer comes.
async fn forward(upstream: SocketAddr, query: &[u8], transport: Transport) -> Option<Vec<u8>> {
    let exchange = async {
        if transport == Transport::Tcp {
            let mut stream = TcpStream::connect(upstream).await?;
            write_message(&mut stream, query).await?;
            return read_message(&mut stream).await;
        }
        let socket = UdpSocket::bind((Ipv4Addr::UNSPECIFIED, 0)).await?;
        socket.connect(upstream).await?;
        socket.send(query).await?;
        let mut buffer = vec![0; usize::from(u16::MAX)];
        loop {
            let length = socket.recv(&mut buffer).await?;
            // A late or forged answer bears another id.
            if buffer[..length].get(..2) == query.get(..2) {
                buffer.truncate(length);
                return Ok(buffer);
            }
        }
    };
    let answer: io::Result<Vec<u8>> = tokio::time::timeout(FORWARD, exchange).await.ok()?;
    answer.inspect_err(|error| tracing::debug!(%error, %upstream, "cluster DNS: forwarder failed")).ok()
}

async fn read_message(stream: &mut TcpStream) -> io::Result<Vec<u8>> {
    let mut message = vec![0; usize::from(stream.read_u16().await?)];
    stream.read_exact(&mut message).await?;
    Ok(message)
}

async fn write_message(stream: &mut TcpStream, message: &[u8]) -> io::Result<()> {
    let length = u16::try_from(message.len()).map_err(|_| io::ErrorKind::InvalidData)?;
    let mut framed = length.to_be_bytes().to_vec();
    framed.extend_from_slice(message);
    stream.write_all(&framed).await
}
