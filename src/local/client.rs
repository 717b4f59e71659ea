//! A client of a running playground: what `weft exec` and the tests use.
//!
//! The calls block; in asynchronous code, run them through [`Client::in_background`]. Each opens a connection of its own.

use std::io;
use std::net::{SocketAddr, TcpStream};
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::time::Duration;

use rustix::io::Errno;
use rustix::net::sockopt::{Timeout, set_socket_timeout};
use rustix::net::{AddressFamily, SocketAddrUnix, SocketFlags, SocketType, connect, socket_with};

use super::control::{self, PodSelector, Request, Response, Status};
use super::wire;

/// Why a request was not carried out.
#[derive(Debug, thiserror::Error)]
pub enum ClientError {
    /// Nobody listens.
    #[error(
        "no playground named `{0}` is running for this user: start it with `weft up DIR`; --name or WEFT_PLAYGROUND names another"
    )]
    NotRunning(String),
    /// It ended while the request was under way.
    #[error("the playground ended before it answered")]
    Ended,
    /// It did not answer in time.
    #[error("the playground did not answer within {0:?}")]
    TimedOut(Duration),
    /// It refused.
    #[error("{0}")]
    Refused(String),
    /// Another system call failed.
    #[error("cannot talk to the playground: {0}")]
    Io(#[from] io::Error),
}

/// A client of the playground of this name and this user.
#[derive(Debug, Clone)]
pub struct Client {
    name: String,
}

impl Client {
    /// Checks that the playground is running.
    pub fn connect(name: &str) -> Result<Self, ClientError> {
        let client = Self::named(name);
        client.open().map(|_| client)
    }

    /// A client of a playground that may not be running yet.
    pub fn named(name: &str) -> Self {
        Self { name: name.to_owned() }
    }

    /// What is there.
    pub fn status(&self) -> Result<Status, ClientError> {
        match self.request(&Request::Status, &[], None)? {
            (Response::Status(status), _) => Ok(status),
            _ => Err(ClientError::Ended),
        }
    }

    /// Waits until the control plane and the first pods are ready.
    pub fn wait_ready(&self, within: Duration) -> Result<(), ClientError> {
        self.request(&Request::WaitReady, &[], Some(within)).map(drop)
    }

    /// Runs a command in a pod and returns its exit code (128 + the signal's number).
    pub fn exec(&self, pod: PodSelector, argv: Vec<String>, stdio: [BorrowedFd<'_>; 3]) -> Result<i32, ClientError> {
        self.start(pod, argv, stdio)?.wait()
    }

    /// Starts a command in a pod. It is killed when this client goes away.
    pub fn start(
        &self,
        pod: PodSelector,
        argv: Vec<String>,
        stdio: [BorrowedFd<'_>; 3],
    ) -> Result<Command, ClientError> {
        let socket = self.open()?;
        wire::send(&socket, &Request::Exec { pod, argv }, &stdio).map_err(ended_or)?;
        Ok(Command(socket))
    }

    /// Runs a command in a pod with nothing to read; returns its exit code and what it wrote to its standard output
    /// and error.
    pub fn output(&self, pod: PodSelector, argv: Vec<String>) -> Result<(i32, String), ClientError> {
        let (mut reader, writer) = io::pipe()?;
        let null = std::fs::File::open("/dev/null")?;
        let reading = std::thread::spawn(move || {
            let mut text = Vec::new();
            io::Read::read_to_end(&mut reader, &mut text).map(|_| text)
        });
        let code = self.exec(pod, argv, [null.as_fd(), writer.as_fd(), writer.as_fd()]);
        drop(writer);
        let text = reading.join().map_err(|_| ClientError::Ended)??;
        Ok((code?, String::from_utf8_lossy(&text).into_owned()))
    }

    /// A TCP connection from within a pod, or from the node, where the control plane is.
    pub fn dial(&self, from: Option<PodSelector>, to: SocketAddr) -> Result<TcpStream, ClientError> {
        let (_, mut sockets) = self.request(&Request::Dial { from, to }, &[], None)?;
        sockets.pop().map(TcpStream::from).ok_or(ClientError::Ended)
    }

    /// Kills a container of a pod (`weft-proxy` is the sidecar); it is started again with back-off.
    pub fn kill_container(&self, pod: PodSelector, container: &str) -> Result<(), ClientError> {
        self.request(&Request::KillContainer { pod, container: container.to_owned() }, &[], None).map(drop)
    }

    /// Kills the control plane with SIGKILL and leaves it down.
    pub fn kill_control_plane(&self) -> Result<(), ClientError> {
        self.request(&Request::KillControlPlane, &[], None).map(drop)
    }

    /// Starts the control plane and waits until it is ready.
    pub fn start_control_plane(&self, within: Duration) -> Result<(), ClientError> {
        self.request(&Request::StartControlPlane, &[], Some(within)).map(drop)
    }

    /// Asks the playground to stop.
    pub fn stop(&self) -> Result<(), ClientError> {
        self.request(&Request::Stop, &[], None).map(drop)
    }

    /// Runs a blocking call of this client beside an asynchronous runtime.
    pub async fn in_background<T: Send + 'static>(
        &self,
        call: impl FnOnce(&Self) -> Result<T, ClientError> + Send + 'static,
    ) -> Result<T, ClientError> {
        let client = self.clone();
        tokio::task::spawn_blocking(move || call(&client)).await.map_err(|_| ClientError::Ended)?
    }

    fn open(&self) -> Result<OwnedFd, ClientError> {
        let socket = socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)
            .map_err(io::Error::from)?;
        let address = SocketAddrUnix::new_abstract_name(&control::socket_name(&self.name)).map_err(io::Error::from)?;
        match connect(&socket, &address) {
            Ok(()) => Ok(socket),
            Err(Errno::CONNREFUSED | Errno::NOENT) => Err(ClientError::NotRunning(self.name.clone())),
            Err(errno) => Err(ClientError::Io(errno.into())),
        }
    }

    fn request(
        &self,
        request: &Request,
        descriptors: &[BorrowedFd<'_>],
        within: Option<Duration>,
    ) -> Result<(Response, Vec<OwnedFd>), ClientError> {
        let socket = self.open()?;
        set_socket_timeout(&socket, Timeout::Recv, within).map_err(io::Error::from)?;
        match (wire::send(&socket, request, descriptors).and_then(|()| wire::receive(&socket)), within) {
            (Err(error), Some(within)) if error.kind() == io::ErrorKind::WouldBlock => {
                Err(ClientError::TimedOut(within))
            }
            (answer, _) => answered(answer),
        }
    }
}

/// A command that runs in a pod.
#[derive(Debug)]
pub struct Command(OwnedFd);

impl Command {
    /// Sends it SIGINT.
    pub fn interrupt(&self) -> Result<(), ClientError> {
        wire::send(&self.0, &Request::Interrupt, &[]).map_err(ended_or)
    }

    /// Waits for its end; its exit code (128 + the signal's number).
    pub fn wait(&self) -> Result<i32, ClientError> {
        match answered(wire::receive(&self.0))? {
            (Response::Exited(code), _) => Ok(code),
            _ => Err(ClientError::Ended),
        }
    }
}

type Answer = (Response, Vec<OwnedFd>);

fn answered(answer: io::Result<Option<Answer>>) -> Result<Answer, ClientError> {
    match answer.map_err(ended_or)? {
        Some((Response::Refused(why), _)) => Err(ClientError::Refused(why)),
        Some(answer) => Ok(answer),
        None => Err(ClientError::Ended),
    }
}

fn ended_or(error: io::Error) -> ClientError {
    match error.kind() {
        io::ErrorKind::BrokenPipe | io::ErrorKind::ConnectionReset => ClientError::Ended,
        _ => ClientError::Io(error),
    }
}
