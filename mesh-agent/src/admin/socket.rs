//! `agent.sock`: SOCK_SEQPACKET, one message a packet, descriptors by SCM_RIGHTS, peers by SO_PEERCRED.
//!
//! Invariant: a packet is at most [`MAX_PACKET`] bytes and [`MAX_FDS`] descriptors; one that is longer is an
//! error, never cut. Not here: what the messages mean (admin, enrol).

use std::io::{self, IoSlice, IoSliceMut};
use std::mem::MaybeUninit;
use std::os::fd::{AsFd, BorrowedFd, OwnedFd};
use std::path::{Path, PathBuf};

use mesh_api::local::MAX_PACKET;
use rustix::net::{
    AddressFamily, RecvAncillaryBuffer, RecvAncillaryMessage, RecvFlags, ReturnFlags, SendAncillaryBuffer,
    SendAncillaryMessage, SendFlags, SocketAddrUnix, SocketFlags, SocketType,
};
use tokio::io::Interest;
use tokio::io::unix::AsyncFd;

use crate::sys;

/// Descriptors in a packet, at most.
pub const MAX_FDS: usize = 4;
const FLAGS: SocketFlags = SocketFlags::CLOEXEC.union(SocketFlags::NONBLOCK);

/// The listening socket. Its file goes with it.
#[derive(Debug)]
pub struct Listener {
    fd: AsyncFd<OwnedFd>,
    path: PathBuf,
}

/// Who is at the other end.
#[derive(Clone, Copy, Debug)]
pub struct Peer {
    /// User.
    pub uid: u32,
    /// Process, in the agent's pid namespace; 0: it has none there.
    pub pid: i32,
}

impl Listener {
    /// Binds; the stale file of an agent that is gone is replaced, a live agent is an error.
    pub fn bind(path: &Path) -> io::Result<Self> {
        let address = SocketAddrUnix::new(path)?;
        let probe = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?;
        match rustix::net::connect(&probe, &address) {
            Ok(()) | Err(rustix::io::Errno::AGAIN) => {
                return Err(io::Error::new(
                    io::ErrorKind::AddrInUse,
                    format!(
                        "another agent serves {}: stop it, let this one --take-over from it, or give this one \
                         its own --run-dir",
                        path.display()
                    ),
                ));
            }
            Err(rustix::io::Errno::CONNREFUSED) => std::fs::remove_file(path)?,
            Err(_) => {}
        }
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?;
        rustix::net::bind(&socket, &address)?;
        // Peers are checked by credentials; the mode only keeps the merely curious from connecting.
        std::fs::set_permissions(path, std::os::unix::fs::PermissionsExt::from_mode(0o600))?;
        rustix::net::listen(&socket, 64)?;
        Ok(Self { fd: sys::watch(socket, Interest::READABLE)?, path: path.to_owned() })
    }

    /// The next connection.
    pub async fn accept(&self) -> io::Result<Connection> {
        let accept = |fd: &OwnedFd| Ok(rustix::net::accept_with(fd, FLAGS)?);
        let socket = self.fd.async_io(Interest::READABLE, accept).await?;
        Connection::new(socket)
    }
}

impl Drop for Listener {
    fn drop(&mut self) {
        let _ = std::fs::remove_file(&self.path);
    }
}

/// One connection.
#[derive(Debug)]
pub struct Connection {
    fd: AsyncFd<OwnedFd>,
}

impl Connection {
    /// Of a connected socket, on the runtime that is entered.
    pub fn new(socket: OwnedFd) -> io::Result<Self> {
        Ok(Self { fd: sys::watch(socket, Interest::READABLE | Interest::WRITABLE)? })
    }

    /// To the agent behind `path`; `None`: nobody serves it.
    pub fn to(path: &Path) -> io::Result<Option<Self>> {
        let socket = rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None)?;
        match rustix::net::connect(&socket, &SocketAddrUnix::new(path)?) {
            Ok(()) => Self::new(socket).map(Some),
            Err(rustix::io::Errno::CONNREFUSED | rustix::io::Errno::NOENT) => Ok(None),
            Err(error) => Err(error.into()),
        }
    }

    /// The socket, for another runtime.
    pub fn into_inner(self) -> OwnedFd {
        self.fd.into_inner()
    }

    /// Credentials of the peer when it connected.
    pub fn peer(&self) -> io::Result<Peer> {
        let cred = rustix::net::sockopt::socket_peercred(self.fd.get_ref())?;
        Ok(Peer { uid: cred.uid.as_raw(), pid: cred.pid.as_raw_nonzero().get() })
    }

    /// The next packet; `None`: the peer is gone.
    pub async fn recv(&self) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
        self.fd.async_io(Interest::READABLE, |fd| receive(fd.as_fd())).await
    }

    /// Sends a packet.
    pub async fn send(&self, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
        if bytes.len() > MAX_PACKET {
            return Err(io::Error::new(io::ErrorKind::InvalidInput, "the answer does not fit a packet"));
        }
        self.fd.async_io(Interest::WRITABLE, |fd| transmit(fd.as_fd(), bytes, fds)).await
    }
}

fn receive(fd: BorrowedFd<'_>) -> io::Result<Option<(Vec<u8>, Vec<OwnedFd>)>> {
    let mut bytes = vec![0; MAX_PACKET];
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = RecvAncillaryBuffer::new(&mut space);
    let flags = RecvFlags::CMSG_CLOEXEC;
    let got = rustix::net::recvmsg(fd, &mut [IoSliceMut::new(&mut bytes)], &mut control, flags)?;
    let mut fds = Vec::new();
    for message in control.drain() {
        if let RecvAncillaryMessage::ScmRights(rights) = message {
            fds.extend(rights);
        }
    }
    if got.flags.intersects(ReturnFlags::TRUNC | ReturnFlags::CTRUNC) {
        let what = format!("a packet holds at most {MAX_PACKET} bytes and {MAX_FDS} descriptors");
        return Err(io::Error::new(io::ErrorKind::InvalidData, what));
    }
    if got.bytes == 0 {
        return Ok(None);
    }
    bytes.truncate(got.bytes);
    Ok(Some((bytes, fds)))
}

fn transmit(fd: BorrowedFd<'_>, bytes: &[u8], fds: &[BorrowedFd<'_>]) -> io::Result<()> {
    let mut space = [MaybeUninit::uninit(); rustix::cmsg_space!(ScmRights(MAX_FDS))];
    let mut control = SendAncillaryBuffer::new(&mut space);
    if !fds.is_empty() && !control.push(SendAncillaryMessage::ScmRights(fds)) {
        return Err(io::Error::new(io::ErrorKind::InvalidInput, "too many descriptors"));
    }
    rustix::net::sendmsg(fd, &[IoSlice::new(bytes)], &mut control, SendFlags::NOSIGNAL)?;
    Ok(())
}

#[cfg(test)]
mod tests {
    use super::*;
    use std::os::fd::AsRawFd;

    fn directory(name: &str) -> PathBuf {
        let dir = std::env::temp_dir().join(format!("mesh-agent-socket-{name}-{}", std::process::id()));
        std::fs::create_dir_all(&dir).unwrap();
        dir
    }

    #[tokio::test]
    async fn a_packet_carries_bytes_descriptors_and_credentials() {
        let path = directory("packet").join("agent.sock");
        let listener = Listener::bind(&path).unwrap();
        let client =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None).unwrap();
        rustix::net::connect(&client, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        let server = listener.accept().await.unwrap();
        assert_eq!(server.peer().unwrap().pid, std::process::id() as i32);
        let client = Connection::new(client).unwrap();
        let null = std::fs::File::open("/dev/null").unwrap();
        client.send(b"hello", &[null.as_fd(), null.as_fd()]).await.unwrap();
        let (bytes, fds) = server.recv().await.unwrap().unwrap();
        assert_eq!((bytes.as_slice(), fds.len()), (b"hello".as_slice(), 2));
        assert!(fds[0].as_raw_fd() > 2);
        drop(client);
        assert!(server.recv().await.unwrap().is_none());
    }

    #[tokio::test]
    async fn a_stale_file_is_replaced_and_a_live_agent_is_not() {
        let path = directory("stale").join("agent.sock");
        let stale =
            rustix::net::socket_with(AddressFamily::UNIX, SocketType::SEQPACKET, FLAGS, None).unwrap();
        rustix::net::bind(&stale, &SocketAddrUnix::new(&path).unwrap()).unwrap();
        drop(stale);
        let _live = Listener::bind(&path).unwrap();
        assert!(Listener::bind(&path).unwrap_err().to_string().contains("another agent"));
    }
}
