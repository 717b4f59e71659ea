//! One JSON message a packet, with file descriptors beside it: what the playground's processes speak to each other.
//!
//! The sockets are `AF_UNIX`, `SOCK_SEQPACKET`: a packet arrives whole or not at all, its descriptors come with it,
//! and the end of the peer is the end of the stream. Blocking functions serve the command line and the small
//! helper processes; [`Channel`] is the same for tokio.

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::os::unix::net::UnixStream as StdUnixStream;

use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketFlags, SocketType, recvmsg, sendmsg, socketpair,
};
use serde::Serialize;
use serde::de::DeserializeOwned;
use tokio::io::Interest;
use tokio::net::UnixStream;

/// The longest message, in bytes: below Linux's default socket buffer (`net.core.wmem_default`, 208 KiB).
const MAX_MESSAGE: usize = 160 * 1024;
/// The most descriptors beside a message: standard input, output and error.
const MAX_DESCRIPTORS: usize = 3;

/// A connected pair of packet sockets, both closed on exec.
pub(crate) fn pair() -> io::Result<(OwnedFd, OwnedFd)> {
    Ok(socketpair(AddressFamily::UNIX, SocketType::SEQPACKET, SocketFlags::CLOEXEC, None)?)
}

/// Sends one message and duplicates of `descriptors`.
pub(crate) fn send<T: Serialize>(socket: impl AsFd, message: &T, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    send_bytes(socket.as_fd(), &serde_json::to_vec(message)?, descriptors)
}

/// Receives one message and its descriptors; `None` at the end of the stream.
pub(crate) fn receive<T: DeserializeOwned>(socket: impl AsFd) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
    let mut buffer = vec![0; MAX_MESSAGE];
    receive_bytes(socket.as_fd(), &mut buffer)?.map(|(length, fds)| decode(&buffer[..length], fds)).transpose()
}

fn decode<T: DeserializeOwned>(bytes: &[u8], fds: Vec<OwnedFd>) -> io::Result<(T, Vec<OwnedFd>)> {
    Ok((serde_json::from_slice(bytes)?, fds))
}

fn send_bytes(socket: BorrowedFd<'_>, bytes: &[u8], descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
    if bytes.len() > MAX_MESSAGE {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "the message is longer than 160 KiB"));
    }
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !descriptors.is_empty() && !control.push(SendAncillaryMessage::ScmRights(descriptors)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors beside one message"));
    }
    rustix::io::retry_on_intr(|| sendmsg(socket, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL))?;
    Ok(())
}

fn receive_bytes(socket: BorrowedFd<'_>, buffer: &mut [u8]) -> io::Result<Option<(usize, Vec<OwnedFd>)>> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_DESCRIPTORS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let received = rustix::io::retry_on_intr(|| {
        recvmsg(socket, &mut [IoSliceMut::new(buffer)], &mut control, RecvFlags::CMSG_CLOEXEC)
    })?;
    let descriptors = control
        .drain()
        .filter_map(|message| match message {
            RecvAncillaryMessage::ScmRights(fds) => Some(fds),
            _ => None,
        })
        .flatten()
        .collect();
    if received.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        return Err(io::Error::new(io::ErrorKind::InvalidData, "the message or its descriptors were cut off"));
    }
    Ok((received.bytes > 0).then_some((received.bytes, descriptors)))
}

/// A packet socket for tokio. Sending and receiving take `&self`: a packet is one system call, so that tasks may
/// send at the same time; one task receives.
pub(crate) struct Channel(UnixStream);

impl From<UnixStream> for Channel {
    /// Of an accepted socket, which must be one of packets.
    fn from(accepted: UnixStream) -> Self {
        Self(accepted)
    }
}

impl Channel {
    /// Registers `socket` with the runtime. `UnixStream` is only the vehicle: it knows readiness and the peer's user.
    pub(crate) fn new(socket: OwnedFd) -> io::Result<Self> {
        let stream = StdUnixStream::from(socket);
        stream.set_nonblocking(true)?;
        Ok(Self(UnixStream::from_std(stream)?))
    }

    /// The user id of the process at the other end, as this user namespace sees it.
    pub(crate) fn peer_uid(&self) -> io::Result<u32> {
        Ok(self.0.peer_cred()?.uid())
    }

    /// Ends this direction: the peer reads the end of the stream.
    pub(crate) fn shut_down(&self) -> io::Result<()> {
        Ok(rustix::net::shutdown(&self.0, rustix::net::Shutdown::Write)?)
    }

    /// Like [`send`].
    pub(crate) async fn send<T: Serialize>(&self, message: &T, descriptors: &[BorrowedFd<'_>]) -> io::Result<()> {
        let bytes = serde_json::to_vec(message)?;
        self.0.async_io(Interest::WRITABLE, || send_bytes(self.0.as_fd(), &bytes, descriptors)).await
    }

    /// Like [`receive`]. Dropping the future loses no message.
    pub(crate) async fn receive<T: DeserializeOwned>(&self) -> io::Result<Option<(T, Vec<OwnedFd>)>> {
        let mut buffer = vec![0; MAX_MESSAGE];
        let received = self.0.async_io(Interest::READABLE, || receive_bytes(self.0.as_fd(), &mut buffer)).await?;
        received.map(|(length, fds)| decode(&buffer[..length], fds)).transpose()
    }
}

#[cfg(test)]
mod tests {
    use std::fs::File;
    use std::io::{Read, Write};

    use super::*;

    #[test]
    fn a_message_arrives_with_its_descriptors_and_the_end_is_seen() {
        let (a, b) = pair().expect("a socket pair");
        let (mut reader, writer) = io::pipe().expect("a pipe");
        send(&a, &"hello", &[writer.as_fd()]).expect("sent");
        drop((a, writer));
        let (text, mut fds) = receive::<String>(&b).expect("received").expect("a message");
        assert_eq!(text, "hello");
        File::from(fds.remove(0)).write_all(b"through").expect("written");
        let mut seen = String::new();
        reader.read_to_string(&mut seen).expect("read to the end: no other writer is left");
        assert_eq!(seen, "through");
        assert!(receive::<String>(&b).expect("no error").is_none());
    }

    #[tokio::test]
    async fn channels_speak_both_ways_and_refuse_what_is_no_message() {
        let (a, b) = pair().expect("a socket pair");
        let (a, b) = (Channel::new(a).expect("a channel"), Channel::new(b).expect("a channel"));
        a.send(&1, &[]).await.expect("sent");
        b.send(&2, &[]).await.expect("sent");
        assert_eq!(b.receive::<u8>().await.expect("received").expect("a message").0, 1);
        assert!(a.receive::<String>().await.is_err(), "2 is no string");
        assert!(a.send(&"x".repeat(MAX_MESSAGE), &[]).await.is_err(), "too long");
    }
}
